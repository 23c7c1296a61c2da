"""The MLP of a block, plain or gated. Knows no model. Costs what the Hugging Face layers cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vlm.components.declared import Declared
from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.components.weights import Projection


class HookedMLP(Declared, nn.Module):
    """``W_out(act(W_in x))``, or ``W_out(act(W_gate x) * W_in x)`` where there is a gate.

    As in TransformerLens, `hook_pre` is what the activation function receives (the gate's output in a
    gated MLP) and `hook_pre_linear` the other factor.

    Args:
        into: the layer to d_mlp. out: the layer back to d_model.
        act: the activation function.
        gate: the gate's layer, or None.
    """

    def __init__(
        self,
        into: nn.Module,
        out: nn.Module,
        act: Callable[[Tensor], Tensor],
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._in, self._out = Projection(into), Projection(out)
        self._gate = None if gate is None else Projection(gate)
        self._act = (act,)  # a tuple, so that an activation module is not registered a second time
        self.hook_pre = HookPoint("batch pos d_mlp")
        if gate is not None:
            self.hook_pre_linear = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    @property
    def device(self) -> torch.device:
        """Where this MLP computes."""
        return self._out.device

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP adds to the residual stream."""
        (act,) = self._act
        if self._gate is None:
            return self._out(self.hook_post(act(self.hook_pre(self._in(x)))))
        pre = self.hook_pre(self._gate(x))
        return self._out(self.hook_post(act(pre) * self.hook_pre_linear(self._in(x))))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Input weights; a view."""
        return self._in.weight.T

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:
        """Gate weights; a view. None in a plain MLP, as in TransformerLens."""
        return None if self._gate is None else self._gate.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Output weights; a view."""
        return self._out.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Input bias; a view, or zeros."""
        return self._in.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias; a view, or zeros."""
        return self._out.bias
