"""Caches of a whole model and of one stack: TransformerLens' `ActivationCache`, refusing what would be wrong.

Cost: the activations. A stack's cache shares its tensors with the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.slice import Slice

from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.errors import ResidualError
from hooked_vlm.models import shown

# What ActivationCache offers that takes the residual stream apart, or puts a norm or the logits on parts of it.
DECOMPOSITIONS = (
    "accumulated_resid",
    "decompose_resid",
    "stack_head_results",
    "stack_neuron_results",
    "get_full_resid_decomposition",
    "apply_ln_to_stack",
    "logit_attrs",
    "logit_lens",
)


def sliced(activation: Tensor, hook: HookPoint, pos_slice: Any, has_batch_dim: bool = True) -> Tensor:
    """Some positions of an activation, along the axis that is a position; all of it where there is none."""
    axes = [axis for axis in hook.axes if axis in ("pos", "query_pos")]
    if not axes:
        return activation
    found: Tensor = Slice.unwrap(pos_slice).apply(activation, dim=hook.axes.index(axes[0]) - (not has_batch_dim))
    return found


def caching_hook(
    cache: dict[str, Tensor], suffix: str, device: Any, remove_batch_dim: bool, pos_slice: Any
) -> Callable[..., None]:
    """A hook that stores what it sees, sliced along its position axis, and changes nothing."""

    def save(activation: Tensor, hook: HookPoint) -> None:
        stored = sliced(activation.detach().to(device), hook, pos_slice)
        cache[f"{hook.name}{suffix}"] = stored[0] if remove_batch_dim and stored.shape[0] == 1 else stored

    return save


class VLMCache(ActivationCache):
    """The activations of a run of the whole model, under their full names.

    What takes a residual stream apart is asked of one stack: `cache.focus("language_model").decompose_resid()`.
    In a model with a main stack (LLaVA) it can be asked here, and means that stack.
    """

    model: Any  # a HookedVLM

    def __repr__(self) -> str:
        return shown.cache("VLMCache", self.cache_dict, type(self.model).__name__)

    def focus(self, stack: str) -> StackCache:
        """The activations of one stack under TransformerLens' names, `blocks.<l>...`; nothing is copied."""
        found: StackCache = self.model.focus(stack).cache_of(self)
        return found


class StackCache(ActivationCache):
    """The activations of one stack, under TransformerLens' names.

    Residual decompositions are exact in pre-norm stacks. In post-norm stacks, where each sum passes a norm,
    they do not hold and raise `ResidualError`.
    """

    model: Any  # a FocusedStack

    def __repr__(self) -> str:
        return shown.cache("StackCache", self.cache_dict, f"{self.model.name} of {type(self.model.model).__name__}")


def _decompose_in_main(name: str, self: VLMCache, *args: Any, **kwargs: Any) -> Any:
    if self.model.main_stack is None:
        stacks = ", ".join(self.model.stacks)
        raise ResidualError(
            f"{name} is about one residual stream, and this model has {stacks}: cache.focus(stack).{name}"
        )
    return getattr(self.focus(self.model.main_stack), name)(*args, **kwargs)


def _decompose_in_stack(name: str, self: StackCache, *args: Any, **kwargs: Any) -> Any:
    view = self.model
    if view.stack.post_norm and not (name == "stack_head_results" and not _asks_for_norm(*args, **kwargs)):
        raise ResidualError(
            f"{name} does not hold in {view.name}: it is post-norm, each sub-layer's sum passes a LayerNorm before "
            "the next, so its stream is no sum of parts. Its hook_attn_out, hook_cross_attn_out and hook_mlp_out "
            "are exact parts of hook_resid_mid, hook_resid_mid_cross and hook_resid_post of their own block"
        )
    if name == "logit_lens" or (name == "logit_attrs" and not view.makes_logits):
        raise ResidualError(
            f"{name} is not offered in {view.name}: "
            + (
                "TransformerLens' reads the bridge's modules; project accumulated_resid(apply_ln=True) with view.W_U"
                if view.makes_logits
                else "its stream is not what the logits are read from"
            )
        )
    return getattr(ActivationCache, name)(self, *args, **kwargs)


def _asks_for_norm(*args: Any, **kwargs: Any) -> bool:
    """Of `stack_head_results`' arguments, those that need more than the heads: a remainder, or a norm."""
    return bool(kwargs.get("incl_remainder") or kwargs.get("apply_ln") or any(args[2:3]) or any(args[4:5]))


def _method(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(self, *args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"`ActivationCache.{name}`, of one stack. Raises `ResidualError` where it does not hold."
    return method


for _name in DECOMPOSITIONS:
    setattr(VLMCache, _name, _method(_name, partial(_decompose_in_main, _name)))
    setattr(StackCache, _name, _method(_name, partial(_decompose_in_stack, _name)))
