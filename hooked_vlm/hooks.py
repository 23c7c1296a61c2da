"""The vocabulary of interventions: functions that return TransformerLens hook functions.

Each returned function takes an activation and its hook point and gives a new activation; what it was given is
never edited in place, so that any two compose on one hook point, in the order in which they are listed. All
work batched, and in `run_with_hooks`, `hooks()` and at every step of `generate`: positions are absolute
positions of the stack, and those that a pass does not hold (an earlier step's) are left alone.

Which axis is a position or a head is read from the hook point (`components.hook_point.HookPoint`). Positions and
heads are ints (negative ones count from the end), slices, ranges, lists, or None for all; positions also a tensor
[batch n] with each row's own. Cost: one copy of the activation. Knows no model.

    model.run_with_hooks(corrupt, fwd_hooks=[("text_encoder.blocks.3.cross_attn.hook_z", patch(cache, here, 5))])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_vlm.errors import PositionError

Index = int | slice | range | Sequence[int] | Tensor | None
HookFunction = Callable[..., Tensor]

OWN_POSITIONS = ("pos", "query_pos")  # axes along which a pass may hold a part of its stack's positions
POSITIONS = (*OWN_POSITIONS, "image_pos", "key_pos")
HEADS = ("head", "kv_head")


def patch(source: Mapping[str, Tensor] | Any, positions: Index = None, heads: Index = None) -> HookFunction:
    """Put another run's activation in place of this one's: activation patching.

    Args:
        source: a cache that holds the hook point, or the activation itself, of the same shape (one row serves
            every row).
        positions: where; None everywhere.
        heads: which heads; None all.

    Raises:
        PositionError: when it runs, if the source lacks the hook point or has another shape, or an index is out
            of range.
    """

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        new = _aligned(_look_up(source, hook), activation, hook)
        return torch.where(where(activation, hook, positions, heads), new, activation)

    return hook_fn


def zero_ablate(positions: Index = None, heads: Index = None) -> HookFunction:
    """Zeros in place of the activation."""

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        return activation.masked_fill(where(activation, hook, positions, heads), 0.0)

    return hook_fn


def mean_ablate(source: Mapping[str, Tensor] | Any, positions: Index = None, heads: Index = None) -> HookFunction:
    """The mean over a reference batch in place of the activation (Wang et al. 2022).

    Args:
        source: a cache, or an activation [reference_batch ...]; its rows are averaged, position by position.
        positions: where; None everywhere.
        heads: which heads; None all.

    Raises:
        PositionError: as `patch`.
    """

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        mean = _look_up(source, hook).to(activation).mean(0, keepdim=True)
        return torch.where(where(activation, hook, positions, heads), _aligned(mean, activation, hook), activation)

    return hook_fn


def resample_ablate(
    source: Mapping[str, Tensor] | Any, generator: torch.Generator, positions: Index = None, heads: Index = None
) -> HookFunction:
    """Each row gets the activation of a row drawn from a reference batch (Chan et al. 2022).

    Args:
        source: a cache, or an activation [reference_batch ...].
        generator: draws the rows, anew in every pass.
        positions: where; None everywhere.
        heads: which heads; None all.

    Raises:
        PositionError: as `patch`.
    """

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        reference = _look_up(source, hook)
        drawn = torch.randint(len(reference), (len(activation),), generator=generator, device=generator.device)
        new = _aligned(reference[drawn.to(reference.device)], activation, hook)
        return torch.where(where(activation, hook, positions, heads), new, activation)

    return hook_fn


def knock_out(query_positions: Index, key_positions: Index, heads: Index = None) -> HookFunction:
    """No attention from these queries to these keys: scores to -inf before the softmax (Geva et al. 2023).

    For `hook_attn_scores`, of self- or cross-attention. A query left without any key attends to nothing.

    Args:
        query_positions: which queries; None all.
        key_positions: which keys; None all. In cross-attention these are positions of the source.
        heads: which heads; None all.

    Raises:
        PositionError: when it runs, if an index is out of range, or at a hook point without keys.
    """

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        if "key_pos" not in hook.axes or "query_pos" not in hook.axes:
            raise PositionError(f"knock_out acts on scores [batch head query_pos key_pos]; {hook.name} is {hook.axes}")
        at = where(activation, hook, query_positions, heads)
        keys = _members(key_positions, activation.shape[3], 0, f"key positions of {hook.name}", activation)
        return activation.masked_fill(at & keys.reshape(keys.shape[0], 1, 1, -1), -torch.inf)

    return hook_fn


def add_noise(std: float, generator: torch.Generator, positions: Index = None, heads: Index = None) -> HookFunction:
    """Gaussian noise on top of the activation.

    Args:
        std: its standard deviation, in the activation's units. Meng et al. (2022) take three times that of the
            embeddings.
        generator: draws it, anew in every pass: seed it for each run to repeat one.
        positions: where; None everywhere.
        heads: which heads; None all.
    """

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        noise = torch.randn(activation.shape, generator=generator, device=generator.device).to(activation) * std
        return torch.where(where(activation, hook, positions, heads), activation + noise, activation)

    return hook_fn


def swap_image(pixel_values: Float[Tensor, "batch channel height width"]) -> HookFunction:
    """Another image, for `hook_pixel_values`: running it equals running inputs with that image.

    Args:
        pixel_values: preprocessed, one image or one for each row.
    """

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        return _aligned(pixel_values, activation, hook)

    return hook_fn


def swap_tokens(embeddings: Float[Tensor, "batch pos d_model"]) -> HookFunction:
    """Other words, for a `hook_embed`: running it equals running inputs with those words.

    Args:
        embeddings: of as many tokens, e.g. ``W_E[ids]``; one row or one for each. Tokens generated after them
            keep their own.
    """

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        return activation if hook.first_position else _aligned(embeddings, activation, hook)

    return hook_fn


def steer(
    direction: Float[Tensor, " d"], scale: float = 1.0, positions: Index = None, heads: Index = None
) -> HookFunction:
    """A direction on top of the activation.

    Args:
        direction: [d_model] for a residual stream, [d_head] for heads, or anything that broadcasts.
        scale: how much of it.
        positions: where; None everywhere.
        heads: which heads; None all.
    """

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        moved = activation + scale * direction.to(activation)
        return torch.where(where(activation, hook, positions, heads), moved, activation)

    return hook_fn


# --- where ------------------------------------------------------------------------------------------


def where(activation: Tensor, hook: Any, positions: Index = None, heads: Index = None) -> Bool[Tensor, "..."]:
    """Which entries of an activation positions and heads mean; broadcasts to its shape.

    Raises:
        PositionError: if an index is out of range, or the activation has no such axis.
    """
    mask = torch.ones((1,) * activation.ndim, dtype=torch.bool, device=activation.device)
    for wanted, names, first in ((positions, POSITIONS, hook.first_position), (heads, HEADS, 0)):
        if wanted is None:
            continue
        axis = next((i for i, name in enumerate(hook.axes) if name in names), None)
        if axis is None:
            raise PositionError(f"{hook.name} is [{' '.join(hook.axes)}] and has no axis among {', '.join(names)}")
        first = first if hook.axes[axis] in OWN_POSITIONS else 0
        members = _members(wanted, activation.shape[axis], first, f"{hook.axes[axis]} of {hook.name}", activation)
        shape = [1] * activation.ndim
        shape[0], shape[axis] = members.shape
        mask = mask & members.reshape(shape)
    return mask


def _members(wanted: Index, size: int, first: int, what: str, activation: Tensor) -> Bool[Tensor, "rows size"]:
    """Which of `size` places, the first of them at absolute place `first`, are wanted; one row, or each row's own."""
    places = torch.arange(first, first + size, device=activation.device)
    if wanted is None:
        return torch.ones(1, size, dtype=torch.bool, device=activation.device)
    if isinstance(wanted, slice):
        wanted = range(first + size)[wanted]
    if isinstance(wanted, int):
        wanted = [wanted]
    asked = torch.as_tensor(wanted if isinstance(wanted, Tensor) else list(wanted), device=activation.device)
    asked = asked if asked.ndim == 2 else asked.reshape(1, -1)
    asked = torch.where(asked < 0, asked + first + size, asked)
    if asked.numel() and (int(asked.min()) < 0 or int(asked.max()) >= first + size):
        shown = asked.tolist() if len(asked) > 1 else asked[0].tolist()
        raise PositionError(f"{shown} was asked for; {what} goes from 0 to {first + size - 1}")
    if len(asked) > 1 and len(activation) % len(asked):
        raise PositionError(f"positions for {len(asked)} rows were given; {what} has {len(activation)} rows")
    members: Tensor = (asked[:, :, None] == places).any(1)
    return members if len(members) == 1 else members.repeat_interleave(len(activation) // len(members), 0)


def _look_up(source: Any, hook: Any) -> Tensor:
    if isinstance(source, Tensor):
        return source
    try:
        found: Tensor = source[hook.name]
    except KeyError as error:
        raise PositionError(f"the source has no {hook.name}: cache it with run_with_cache") from error
    return found


def _aligned(new: Tensor, activation: Tensor, hook: Any) -> Tensor:
    """A source in the activation's shape: one row for all, and the part of its positions that this pass holds."""
    new = new.to(activation)
    axis = next((i for i, name in enumerate(hook.axes) if name in OWN_POSITIONS), None)
    if axis is not None and hook.first_position and new.ndim == activation.ndim:
        held = new.narrow(axis, hook.first_position, max(0, new.shape[axis] - hook.first_position))
        missing = activation.shape[axis] - held.shape[axis]
        new = held if missing <= 0 else torch.cat([held, activation.narrow(axis, held.shape[axis], missing)], axis)
    if len(new) not in (1, len(activation)) and len(activation) % len(new) == 0:
        new = new.repeat_interleave(len(activation) // len(new), 0)
    try:
        return new.expand_as(activation)
    except RuntimeError as error:
        raise PositionError(
            f"the source at {hook.name} is {tuple(new.shape)} and this run's activation {tuple(activation.shape)}: "
            "clean and corrupt must have the same length"
        ) from error
