"""The head of a masked-language model: a transform of its own before the unembedding. Knows no model."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.components.norm import HookedNorm


class TransformHead(nn.Module):
    """``ln(act(dense x))``, what BERT-like decoders do between the last block and the unembedding.

    Args:
        dense: the Hugging Face layer. act: its activation function. ln: the norm after it.
    """

    def __init__(self, dense: nn.Module, act: Callable[[Tensor], Tensor], ln: HookedNorm) -> None:
        super().__init__()
        self._leaves = (dense, act)
        self.hook_pre = HookPoint("batch pos d_model")
        self.hook_post = HookPoint("batch pos d_model")
        self.ln = ln

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the unembedding reads."""
        dense, act = self._leaves
        return self.ln(self.hook_post(act(self.hook_pre(dense(x)))))
