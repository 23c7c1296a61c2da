"""Hugging Face's linear layers seen as TransformerLens weights: views, never copies. Knows no model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vlm.errors import DenseWeightError


def dense_weight(linear: nn.Module) -> Float[Tensor, "out in"]:
    """The weight matrix of a linear layer, itself and not a copy.

    Raises:
        DenseWeightError: if the layer stores no dense matrix (quantised, or offloaded to disk).
    """
    weight = getattr(linear, "weight", None)
    kind = type(linear).__name__
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        stored = f"{weight.dtype} {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no `weight`"
        raise DenseWeightError(
            f"{kind} stores {stored}, not a floating-point matrix: its weight has no dense form. "
            "Load the model without quantization_config to read weights; hooks and activations work as it is"
        )
    if weight.device.type == "meta":
        raise _offloaded("weight", linear)
    return weight


def _offloaded(part: str, layer: nn.Module) -> DenseWeightError:
    return DenseWeightError(
        f"the {part} of this {type(layer).__name__} is offloaded and not in memory. Load the model without disk or "
        "CPU offload (no device_map) to read weights"
    )


def in_memory(leaf: nn.Module) -> AbstractContextManager[None]:
    """While it is open, a layer's own parameters are in memory, also where accelerate keeps them elsewhere."""
    if not hasattr(leaf, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device

    context: AbstractContextManager[None] = align_module_device(leaf)
    return context


def held(module: nn.Module, name: str) -> Tensor:
    """A parameter that a layer holds itself, brought into memory where accelerate keeps it elsewhere."""
    with in_memory(module):
        found: Tensor = getattr(module, name)
        return found


@dataclass(frozen=True)
class Projection:
    """One linear map into or out of heads: a whole Linear, or some output rows of a fused one.

    Args:
        linear: the Hugging Face layer.
        start: first output feature that belongs to this map.
        size: how many output features belong to it; None for all.
    """

    linear: nn.Module
    start: int = 0
    size: int | None = None

    def __call__(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The layer applied to `x`."""
        return self.take(self.linear(x))

    def take(self, y: Float[Tensor, "*batch rows"]) -> Float[Tensor, "*batch out"]:
        """This map's share of the output of its (fused) layer."""
        return y if self.size is None else y.narrow(-1, self.start, self.size)

    @property
    def device(self) -> torch.device:
        """Where the layer computes, also where accelerate keeps its weights elsewhere."""
        device = getattr(getattr(self.linear, "_hf_hook", None), "execution_device", None)
        weight: Tensor = self.linear.weight  # type: ignore[assignment]
        return weight.device if device is None else torch.device(device)

    @property
    def is_its_matrix(self) -> bool:
        """True if the layer does what `weight` and `bias` say, and nobody watches it: no hook, adapter or offload."""
        layer = self.linear
        watched = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        plain = type(layer) is nn.Linear and "forward" not in vars(layer) and layer.weight.is_floating_point()
        return plain and not watched and not layer.weight.is_meta

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """View of the rows of the weight matrix that belong to this map."""
        weight = dense_weight(self.linear)
        return weight if self.size is None else weight.narrow(0, self.start, self.size)

    @property
    def bias(self) -> Float[Tensor, " out"]:
        """View of the bias, or fresh zeros where the layer has none."""
        bias: Tensor | None = getattr(self.linear, "bias", None)
        if bias is None:
            weight = self.weight
            return torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        if bias.device.type == "meta":
            raise _offloaded("bias", self.linear)
        return bias if self.size is None else bias.narrow(0, self.start, self.size)
