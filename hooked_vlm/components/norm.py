"""LayerNorm and RMSNorm with TransformerLens' two hook points. Knows no model.

Costs what the Hugging Face leaf costs while nobody looks; with a hook on scale or normalized, the same
numbers are computed step by step in float32.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vlm.components.declared import Declared
from hooked_vlm.components.hook_point import HookPoint, hooked
from hooked_vlm.components.weights import in_memory


class HookedNorm(Declared, nn.Module):
    """A Hugging Face norm layer that shows its scale and its normalized output.

    As in TransformerLens 4, `hook_normalized` stands before the weight and bias are applied.

    Args:
        leaf: the Hugging Face norm: `nn.LayerNorm`, or an RMS norm with `weight` and `variance_epsilon` or `eps`.
        adds_one: True for a leaf that scales by ``1 + weight`` (Gemma).
    """

    def __init__(self, leaf: nn.Module, *, adds_one: bool = False) -> None:
        super().__init__()
        self._leaves = (leaf,)
        self.is_rms = not isinstance(leaf, nn.LayerNorm)
        self.adds_one = adds_one
        self.eps = float(getattr(leaf, "variance_epsilon", None) or leaf.eps)  # type: ignore[arg-type]
        self.hook_scale = HookPoint("batch pos 1")
        self.hook_normalized = HookPoint("batch pos d_model")

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """`x` normalized, scaled and shifted."""
        (leaf,) = self._leaves
        if not hooked(self.hook_scale, self.hook_normalized):
            return leaf(x)
        y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if not self.is_rms:
            y = y - y.mean(-1, keepdim=True)
        scale = self.hook_scale((y.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        y = self.hook_normalized(y / scale)
        with in_memory(leaf):
            y = y * self.w
            return (y if self.is_rms else y + self.b).to(x.dtype)

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        """What the norm scales by: its weight itself, or one more than it."""
        weight: Tensor = self._leaves[0].weight  # type: ignore[assignment]
        return 1 + weight if self.adds_one else weight

    @property
    def b(self) -> Float[Tensor, " d_model"]:
        """The norm's bias; a view, or zeros for an RMS norm."""
        bias: Tensor | None = getattr(self._leaves[0], "bias", None)
        return torch.zeros_like(self.w) if bias is None else bias
