"""The vocabulary of interventions: functions that return TransformerLens hook functions.

Each returned function takes an activation and its hook point and gives a new activation; what it was given is
never edited in place, so that any two compose on one hook point, in the order in which they are listed. All
work batched, and in `run_with_hooks`, `hooks()` and at every step of `generate`: positions are absolute
positions of the stack, and those that a pass does not hold (an earlier step's) are left alone.

Which axis is a position or a head is read from the hook point (`components.hook_point.HookPoint`). Positions and
heads are ints (negative ones count from the end), slices, ranges, lists, masks, or None for all; positions also each
row's own, as `inputs.find_each` and `inputs.image_spans` give them (`hooked_vlm.positions`). Where a source has one
row it serves every row; otherwise it has a row for each. Cost: one copy of the activation. Knows no model.

    model.run_with_hooks(corrupt, fwd_hooks=[("text_encoder.blocks.3.cross_attn.hook_z", patch(cache, here, 5))])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_vlm.errors import InputsError, PositionError
from hooked_vlm.options import number, of_type, told
from hooked_vlm.positions import Index, Places, each_row, members, read

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
    at, source = _Where(positions, heads), _source(source)

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        new = _aligned(_look_up(source, activation, hook), activation, hook)
        return torch.where(at(activation, hook), new, activation)

    return hook_fn


def zero_ablate(positions: Index = None, heads: Index = None) -> HookFunction:
    """Zeros in place of the activation."""
    at = _Where(positions, heads)

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        return activation.masked_fill(at(activation, hook), 0.0)

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
    at, source = _Where(positions, heads), _source(source)

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        mean = _look_up(source, activation, hook).to(activation).mean(0, keepdim=True)
        return torch.where(at(activation, hook), _aligned(mean, activation, hook), activation)

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
    at, source = _Where(positions, heads), _source(source)
    _draws(generator)

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        reference = _look_up(source, activation, hook)
        drawn = torch.randint(len(reference), (len(activation),), generator=generator, device=generator.device)
        new = _aligned(reference[drawn.to(reference.device)], activation, hook)
        return torch.where(at(activation, hook), new, activation)

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
    at, keys = _Where(query_positions, heads), read(key_positions, "key positions")

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        if "key_pos" not in hook.axes or "query_pos" not in hook.axes:
            raise PositionError(
                f"knock_out acts on scores [batch head query_pos key_pos], and {hook.name} is "
                f"[{' '.join(hook.axes)}]: hook hook_attn_scores, or sweep Sites.heads(activation='attn_scores')"
            )
        unseen = _members(keys, activation, hook, 3, f"key positions of {hook.name}")
        return activation.masked_fill(at(activation, hook) & unseen.reshape(len(unseen), 1, 1, -1), -torch.inf)

    return hook_fn


def add_noise(std: float, generator: torch.Generator, positions: Index = None, heads: Index = None) -> HookFunction:
    """Gaussian noise on top of the activation.

    Args:
        std: its standard deviation, in the activation's units. Meng et al. (2022) take three times that of the
            embeddings.
        generator: draws it, anew in every pass: seed it for each run to repeat one.
        positions: where; None everywhere.
        heads: which heads; None all.

    Raises:
        InputsError: if `std` is negative or not finite, or `generator` is none.
        PositionError: when it runs, if an index is out of range.
    """
    at = _Where(positions, heads)
    number(std, "std", least=0)
    _draws(generator)

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        noise = torch.randn(activation.shape, generator=generator, device=generator.device).to(activation) * std
        return torch.where(at(activation, hook), activation + noise, activation)

    return hook_fn


def swap_image(pixel_values: Float[Tensor, "batch channel height width"]) -> HookFunction:
    """Another image, for `hook_pixel_values`: running it equals running inputs with that image.

    Args:
        pixel_values: preprocessed, one image or one for each row.

    Raises:
        InputsError: if they are no tensor.
    """
    of_type(pixel_values, "pixel_values", Tensor, "preprocessed pixels: model.to_pixels(image)")

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        return _aligned(pixel_values, activation, hook)

    return hook_fn


def swap_tokens(embeddings: Float[Tensor, "batch pos d_model"]) -> HookFunction:
    """Other words, for a `hook_embed`: running it equals running inputs with those words.

    Args:
        embeddings: of as many tokens, e.g. ``W_E[ids]``; one row or one for each. Tokens generated after them
            keep their own.

    Raises:
        InputsError: if they are no tensor.
    """
    of_type(embeddings, "embeddings", Tensor, "a tensor [batch pos d_model], e.g. W_E[ids]")

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

    Raises:
        InputsError: if the direction is no tensor, or the scale no finite number.
        PositionError: when it runs, if the direction does not fit the activation, or an index is out of range.
    """
    at = _Where(positions, heads)
    of_type(direction, "direction", Tensor, "a tensor [d_model] or [d_head]")
    if not isinstance(scale, Tensor):
        number(scale, "scale")

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        if not _broadcasts(direction, activation):
            raise PositionError(
                f"the direction is {tuple(direction.shape)} and the activation at {hook.name} "
                f"{tuple(activation.shape)}: expected [{activation.shape[-1]}], or what broadcasts to it"
            )
        moved = activation + scale * direction.to(activation)
        return torch.where(at(activation, hook), moved, activation)

    return hook_fn


# --- where ------------------------------------------------------------------------------------------


def where(activation: Tensor, hook: Any, positions: Index = None, heads: Index = None) -> Bool[Tensor, "..."]:
    """Which entries of an activation positions and heads mean; broadcasts to its shape.

    Raises:
        PositionError: if they can be read in no way or in two, an index is out of range, the activation has no such
            axis, or there are positions for another number of rows.
    """
    return _Where(positions, heads)(activation, hook)


class _Where:
    """Positions and heads, read once; called with an activation, which of its entries they mean."""

    def __init__(self, positions: Index, heads: Index) -> None:
        self.wanted = [(read(positions), POSITIONS), (read(heads, "heads", by_row=False), HEADS)]

    def __call__(self, activation: Tensor, hook: Any) -> Bool[Tensor, "..."]:
        mask = torch.ones((1,) * activation.ndim, dtype=torch.bool, device=activation.device)
        for places, names in self.wanted:
            if places is None:
                continue
            axis = next((i for i, name in enumerate(hook.axes) if name in names), None)
            if axis is None:
                raise PositionError(f"{hook.name} is [{' '.join(hook.axes)}] and has no axis among {', '.join(names)}")
            found = _members(places, activation, hook, axis, f"{hook.axes[axis]} of {hook.name}")
            shape = [1] * activation.ndim
            shape[0], shape[axis] = found.shape
            mask = mask & found.reshape(shape)
        return mask


def _members(places: Places | None, activation: Tensor, hook: Any, axis: int, what: str) -> Bool[Tensor, "rows size"]:
    """Which entries along an axis are meant; one row, or each row's own."""
    first = hook.first_position if hook.axes[axis] in OWN_POSITIONS else 0
    growing = bool(hook.first_position) and hook.axes[axis] in POSITIONS
    return members(places, activation.shape[axis], first, what, activation, hook.n_examples, growing)


def _source(source: Any) -> Any:
    """A cache or an activation, as it is. Raises InputsError if it is neither."""
    if isinstance(source, Tensor) or (hasattr(source, "__getitem__") and hasattr(source, "keys")):
        return source
    raise InputsError(f"the source is {told(source)}; expected a cache, from run_with_cache, or an activation of it")


def _look_up(source: Any, activation: Tensor, hook: Any) -> Tensor:
    """The source's activation at a hook point, of one row at least."""
    try:
        found = source if isinstance(source, Tensor) else source[hook.name]
    except KeyError as error:
        raise PositionError(f"the source has no {hook.name}: cache it with run_with_cache") from error
    if not of_type(found, f"the source at {hook.name}", Tensor, "an activation").numel():
        raise PositionError(
            f"the source at {hook.name} is {tuple(found.shape)}, empty, and this run's activation "
            f"{tuple(activation.shape)}: expected at least one row"
        )
    return found


def _draws(generator: Any) -> None:
    """Raise InputsError if it cannot draw."""
    of_type(generator, "generator", torch.Generator, "a torch.Generator: torch.Generator().manual_seed(0)")


def _broadcasts(part: Tensor, whole: Tensor) -> bool:
    """Whether adding `part` leaves the shape of `whole` as it is."""
    sizes = zip(reversed(part.shape), reversed(whole.shape), strict=False)
    return part.ndim <= whole.ndim and all(size in (1, of_whole) for size, of_whole in sizes)


def _aligned(new: Tensor, activation: Tensor, hook: Any) -> Tensor:
    """A source in the activation's shape: one row for all, and the part of its positions that this pass holds."""
    new = new.to(activation)
    axis = next((i for i, name in enumerate(hook.axes) if name in OWN_POSITIONS), None)
    if axis is not None and hook.first_position and new.ndim == activation.ndim:
        held = new.narrow(axis, hook.first_position, max(0, new.shape[axis] - hook.first_position))
        missing = activation.shape[axis] - held.shape[axis]
        new = held if missing <= 0 else torch.cat([held, activation.narrow(axis, held.shape[axis], missing)], axis)
    if new.ndim != activation.ndim or new.shape[1:] != activation.shape[1:]:
        raise PositionError(
            f"the source at {hook.name} is {tuple(new.shape)} and this run's activation {tuple(activation.shape)}: "
            "clean and corrupt must have the same length"
        )
    if len(new) == 1:
        return new.expand_as(activation)
    return each_row(new, len(activation), hook.n_examples, f"the source at {hook.name} is")
