"""Caches of a whole model and of one stack: TransformerLens' `ActivationCache`, refusing what would be wrong.

A key means one hook point or raises: `cache["z", 0, "cross_attn"]` is cross-attention's, which TransformerLens'
`get_act_name` takes for self-attention's. Cost: the activations. A stack's cache shares its tensors with the model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.components_utils import get_act_name
from transformer_lens.utilities.slice import Slice

from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.errors import (
    HookNameError,
    NotCachedError,
    PositionError,
    ResidualError,
    StackError,
    closest,
)
from hooked_vlm.models import shown
from hooked_vlm.positions import read

if TYPE_CHECKING:
    from hooked_vlm.models.base import HookedVLM
    from hooked_vlm.models.focus import FocusedStack

# What ActivationCache offers that takes the residual stream apart, or puts a norm or the logits on parts of it.
DECOMPOSITIONS = (
    "accumulated_resid",
    "decompose_resid",
    "stack_neuron_results",
    "get_full_resid_decomposition",
    "apply_ln_to_stack",
    "logit_attrs",
    "logit_lens",
)
OF_ONE_STACK = ("stack_activation", "compute_head_results", "get_neuron_results")  # hold in every stack, one at a time

# TransformerLens' other words for the parts of a block.
LAYER_TYPES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}


def act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """TransformerLens' `get_act_name`, except that a layer type which is given is the one that is meant.

    >>> act_name("z", 0, "cross_attn"), act_name("pattern", 2), act_name("scale", 1, "ln2")
    ('blocks.0.cross_attn.hook_z', 'blocks.2.attn.hook_pattern', 'blocks.1.ln2.hook_scale')
    """
    found = str(get_act_name(name, layer, layer_type))
    part = LAYER_TYPES.get(layer_type or "", layer_type)
    if not part:
        return found
    return ".".join([*([] if layer is None else ["blocks", str(layer)]), part, found.rpartition(".")[2]])


def sliced(activation: Tensor, hook: HookPoint, pos_slice: Slice, has_batch_dim: bool = True) -> Tensor:
    """Some positions of an activation, along the axis that is a position; all of it where there is none.

    Raises:
        PositionError: if it has no such position.
    """
    axes = [axis for axis in hook.axes if axis in ("pos", "query_pos")]
    if not axes:
        return activation
    axis = hook.axes.index(axes[0]) - (not has_batch_dim)
    try:
        found: Tensor = pos_slice.apply(activation, dim=axis)
    except (IndexError, ValueError, RuntimeError) as error:
        raise PositionError(
            f"pos_slice is {pos_slice.slice}, and {hook.name} has positions 0 to {activation.shape[axis] - 1}"
        ) from error
    return found


def cut(pos_slice: Any) -> Slice:
    """Positions to keep, as TransformerLens reads them.

    Args:
        pos_slice: an int, a list of ints, a mask, a slice, a tuple of its bounds, or None for all.

    Raises:
        PositionError: if it is none of these.
    """
    if isinstance(pos_slice, Slice):
        return pos_slice
    is_bounds = isinstance(pos_slice, tuple) and 0 < len(pos_slice) < 4
    read(slice(*pos_slice) if is_bounds else pos_slice, "pos_slice", by_row=False)
    return Slice.unwrap(list(pos_slice) if isinstance(pos_slice, range) else pos_slice)


def caching_hook(
    cache: dict[str, Tensor], suffix: str, device: Any, remove_batch_dim: bool, pos_slice: Slice | None
) -> Callable[..., None]:
    """A hook that stores what it sees, sliced along its position axis, and changes nothing."""

    def save(activation: Tensor, hook: HookPoint) -> None:
        whole = activation.detach().to(device)
        stored = whole if pos_slice is None else sliced(whole, hook, pos_slice)
        cache[f"{hook.name}{suffix}"] = stored[0] if remove_batch_dim and stored.shape[0] == 1 else stored

    return save


class KeyedCache(ActivationCache):
    """An `ActivationCache` in which a key means one hook point, and which says why it does not hold one.

    Keys are names, shorthands ("z0", "scale1ln2", "z0cross_attn") and tuples (activation, layer, layer type) with a
    layer type of the blocks: "attn", "cross_attn", "mlp", "ln1", ...; a negative layer counts from the last.
    """

    model: HookedVLM | FocusedStack  # type: ignore[assignment]  # which to TransformerLens is one of its own

    def __getitem__(self, key: Any) -> Tensor:
        """The activation that a key means.

        Raises:
            HookNameError: if the model has no such hook point.
            NotCachedError: if it has, and this cache does not hold it.
        """
        name = self._name(key)
        if name not in self.cache_dict:
            raise self._missing(name)
        return self.cache_dict[name]

    def __contains__(self, key: Any) -> bool:
        """True if the cache holds the activation that a key means."""
        try:
            return self._name(key) in self.cache_dict
        except HookNameError:
            return False

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> KeyedCache:
        """As `ActivationCache`'s, and still a cache of this kind."""
        cut = super().apply_slice_to_batch_dim(batch_slice)
        return type(self)(cut.cache_dict, self.model, has_batch_dim=cut.has_batch_dim)

    def _name(self, key: Any) -> str:
        if isinstance(key, str):
            short = re.fullmatch(r"([a-z_]+?)(\d+)([a-z]?.*)", key)
            if key in self.cache_dict or "." in key or key.startswith("hook_"):
                return key
            return act_name(key) if short is None else act_name(short[1], int(short[2]), short[3])
        parts = (*key, None, None)[:3] if isinstance(key, tuple) and 0 < len(key) < 4 else (None,) * 3
        name, layer, layer_type = parts
        is_name = isinstance(name, str) and (layer is None or not re.search(r"\d", name))  # ("z0", 1) says two layers
        if not is_name or not isinstance(layer_type, str | None) or isinstance(layer, bool):
            raise HookNameError(
                f"{key!r} is no key: expected a name, or activation, layer and layer type as in ('z', 0, 'attn')"
            )
        try:
            number = None if layer is None else index(int(layer) if isinstance(layer, str) else layer)
        except (TypeError, ValueError) as error:
            raise HookNameError(f"{key!r} is no key: the layer is an integer, not {layer!r}") from error
        if number is not None and number < 0:
            number += self._n_layers(key)
        return act_name(name, number, layer_type)

    def _n_layers(self, key: Any) -> int:
        return int(self.model.cfg.n_layers)

    def _is_off(self, name: str) -> str | None:
        """The flag that keeps a hook point from firing, if one does."""
        raise NotImplementedError

    def _missing(self, name: str) -> KeyError:
        known = getattr(self.model, "hook_dict", {})
        plain = name.removesuffix("_grad")
        if plain not in known:
            near = ", ".join(closest(plain, known or self.cache_dict))
            return HookNameError(f"there is no hook point {plain!r}{self._there(plain)}. The closest are {near}")
        flag = self._is_off(plain)
        if flag is not None:
            why = f"model.cfg.{flag} is off: set it to True before the run"
        elif plain != name and plain in self.cache_dict:
            why = "gradients are kept by a run with incl_bwd=True and return_type='loss'"
        else:
            why = "names_filter left it out of the run that was cached, or the run did not reach it"
        return NotCachedError(f"{name} is not among the {len(self)} activations of this cache: {why}")

    def _there(self, name: str) -> str:
        """Where it was looked for, and which layer types and layers there are if it was a block's."""
        return ""


def _parts_of_blocks(names: Any) -> str:
    return ", ".join(dict.fromkeys(found[1] for n in names if (found := re.match(r"blocks\.\d+\.(\w+)\.", n))))


class VLMCache(KeyedCache):
    """The activations of a run of the whole model, under their full names.

    What takes a residual stream apart is asked of one stack: `cache.focus("language_model").decompose_resid()`.
    In a model with a main stack (LLaVA) it can be asked here, and means that stack.
    """

    model: HookedVLM

    def __repr__(self) -> str:
        return shown.cache("VLMCache", self.cache_dict, type(self.model).__name__)

    def focus(self, stack: str) -> StackCache:
        """The activations of one stack under TransformerLens' names, `blocks.<l>...`; nothing is copied."""
        found: StackCache = self.model.focus(stack).cache_of(self)
        return found

    def _n_layers(self, key: Any) -> int:
        if self.model.main_stack is None:
            raise HookNameError(f"{key!r} counts from the last layer of one stack: {self._of_one_stack(f'[{key!r}]')}")
        return super()._n_layers(key)

    def _of_one_stack(self, ask: str) -> str:
        return f"cache.focus(stack){ask}, where stack is {' or '.join(map(repr, self.model.stacks))}"

    def _is_off(self, name: str) -> str | None:
        return None if self.model._is_on(name) else str(self.model.hook_dict[name].gate)

    def _there(self, name: str) -> str:
        if not name.startswith("blocks.") or not hasattr(self.model, "stacks"):
            return ""
        if self.model.main_stack is None:
            return f": names begin with a stack's in this model, so ask one stack, {self._of_one_stack('[...]')}"
        parts = _parts_of_blocks(self.model.hook_dict)
        return f" ({self.model.main_stack} has {self._n_layers(name)} layers of {parts})"


class StackCache(KeyedCache):
    """The activations of one stack, under TransformerLens' names.

    Residual decompositions are exact in pre-norm stacks. In post-norm stacks, where each sum passes a norm,
    they do not hold and raise `ResidualError`.
    """

    model: FocusedStack

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
        *,
        sublayer_type: str = "attn",
    ) -> Any:
        """What each head adds to the residual stream, [layer * head batch pos d_model].

        Args:
            layer: layers before this one are counted; -1 or None for all.
            return_labels: also return labels, "L0H1" or "cross_attn L0H1".
            incl_remainder: a last component, the rest of the stream. Self-attention, pre-norm stacks.
            pos_slice: some positions alone.
            apply_ln: the norm that reads the stream, applied to each. Self-attention, pre-norm stacks.
            sublayer_type: whose heads: "attn" or "cross_attn".

        Raises:
            ResidualError: if a remainder or a norm is asked for where it does not hold.
            StackError: if there is no such layer.
            HookNameError: if the blocks have no such attention.
        """
        if incl_remainder or apply_ln:
            _decomposable("stack_head_results", self.model)
        if sublayer_type == "attn":
            return super().stack_head_results(layer, return_labels, incl_remainder, pos_slice, apply_ln)  # type: ignore[arg-type]
        n_layers = self._n_layers(None)
        last = n_layers if layer in (-1, None) else layer
        if last not in range(1, n_layers + 1):
            raise StackError(f"heads before layer {layer} were asked for; {self.model.name} has {n_layers} layers")
        results = [self._results(number, sublayer_type) for number in range(last)]
        places = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
        stacked = rearrange(
            torch.stack([places.apply(one, dim=-3) for one in results]),
            "layer ... head d_model -> (layer head) ... d_model",
        )
        labels = [f"{sublayer_type} L{i}H{h}" for i, one in enumerate(results) for h in range(one.shape[-2])]
        return (stacked, labels) if return_labels else stacked

    def _results(self, layer: int, sublayer_type: str) -> Tensor:
        """Each head's result, [batch pos head d_model]: as it was cached, or from z."""
        if ("result", layer, sublayer_type) in self:
            return self["result", layer, sublayer_type]
        z = self["z", layer, sublayer_type]
        weights = getattr(self.model.blocks[layer], sublayer_type).W_O
        return einsum(z, weights.to(z), "... head d_head, head d_head d_model -> ... head d_model")

    def _is_off(self, name: str) -> str | None:
        gate = self.model.hook_dict[name].gate
        return None if gate is None or getattr(self.model.cfg, gate) else str(gate)

    def _there(self, name: str) -> str:
        if not name.startswith("blocks.") or not hasattr(self.model, "hook_dict"):
            return ""
        return f" in {self.model.name} ({self._n_layers(name)} layers of {_parts_of_blocks(self.model.hook_dict)})"

    def __repr__(self) -> str:
        return shown.cache("StackCache", self.cache_dict, f"{self.model.name} of {type(self.model.model).__name__}")


def _decomposable(name: str, view: Any) -> None:
    """Raise ResidualError if a view's stream is no sum of parts."""
    if view.stack.post_norm:
        raise ResidualError(
            f"{name} does not hold in {view.name}: it is post-norm, each sub-layer's sum passes a LayerNorm before "
            "the next, so its stream is no sum of parts. Its hook_attn_out, hook_cross_attn_out and hook_mlp_out "
            "are exact parts of hook_resid_mid, hook_resid_mid_cross and hook_resid_post of their own block"
        )


def _decompose_in_main(name: str, self: VLMCache, *args: Any, **kwargs: Any) -> Any:
    if self.model.main_stack is None:
        stacks = ", ".join(self.model.stacks)
        raise ResidualError(
            f"{name} is about one residual stream, and this model has {stacks}: cache.focus(stack).{name}"
        )
    return getattr(self.focus(self.model.main_stack), name)(*args, **kwargs)


def _decompose_in_stack(name: str, self: StackCache, *args: Any, **kwargs: Any) -> Any:
    view = self.model
    _decomposable(name, view)
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


def _ask_main(name: str, self: VLMCache, *args: Any, **kwargs: Any) -> Any:
    if self.model.main_stack is None:
        raise StackError(f"{name} is about one stack: {self._of_one_stack(f'.{name}(...)')}")
    return getattr(ActivationCache, name)(self, *args, **kwargs)


def _method(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(self, *args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"`ActivationCache.{name}`, of one stack. Raises `ResidualError` where it does not hold."
    return method


for _name in DECOMPOSITIONS:
    setattr(StackCache, _name, _method(_name, partial(_decompose_in_stack, _name)))
for _name in (*DECOMPOSITIONS, "stack_head_results"):
    setattr(VLMCache, _name, _method(_name, partial(_decompose_in_main, _name)))
for _name in OF_ONE_STACK:
    setattr(VLMCache, _name, _method(_name, partial(_ask_main, _name)))
