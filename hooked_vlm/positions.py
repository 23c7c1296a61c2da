"""What is meant by positions, heads and layers: one reading of them, for hook functions and for sites.

The same in every row of a batch: an int (negative ones count from the end), a slice, a range, a list of ints, a mask
[n] (a boolean tensor or array), or None for all. Each row's own, where rows have positions of their own: integers
[batch k] (`inputs.find_each`, ``inputs.last_each[:, None]``), a list of slices (`inputs.image_spans`), or a mask
[batch n] (`inputs.is_image`). What could be read in two ways is refused. Costs nothing; knows no model.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from hooked_vlm.errors import PositionError

Index = SupportsIndex | slice | Iterable[Any] | None  # tensors, arrays, ranges and columns of tables are iterables


@dataclass(frozen=True)
class Places:
    """Places along an axis, as they were named; `spelled` says which they are in an axis of some size.

    Args:
        rows: places of each row, or one entry for every row.
        by_row: True if each row has its own.
        n: how many places the mask spoke of that named them; None without a mask.
    """

    rows: tuple[tuple[int, ...] | slice, ...]
    by_row: bool = False
    n: int | None = None

    def spelled(self, size: int, what: str, *, growing: bool = False) -> tuple[tuple[int, ...], ...]:
        """The places of each row (one entry if all rows share them), from 0, in the order in which they were named.

        Args:
            size: of the axis.
            what: they are, for errors: "positions of blocks.0.hook_z".
            growing: True if the axis may have grown since a mask was made (in a later step of generation).

        Raises:
            PositionError: if a place is out of range, none is left in any row, or a mask has another length.
        """
        if self.n is not None and self.n != size and not (growing and self.n < size):
            raise PositionError(f"a mask of {self.n} was given for {what}, which are {size}: they must be as many")
        rows = [range(size)[row] if isinstance(row, slice) else row for row in self.rows]
        beyond = [place for row in rows for place in row if not -size <= place < size]
        if beyond or not any(map(len, rows)):
            of_rows = f" (rows of {self.shown})" if self.by_row and beyond else ""
            raise PositionError(f"{what} are 0 to {size - 1}; {beyond or 'none'} was asked for{of_rows}")
        return tuple(tuple(place % size for place in row) for row in rows)

    @property
    def shown(self) -> str:
        """In a few words."""
        few = [_shown(row) for row in self.rows[:4]]
        return "; ".join(few) + ("; ..." if len(self.rows) > 4 else "")


def read(wanted: Any, what: str = "positions", *, by_row: bool = True) -> Places | None:
    """What an index means; None for all.

    Args:
        wanted: see the module.
        what: is named, for errors.
        by_row: True if each row may have its own; a tensor with one axis is then refused, since it could mean either.

    Raises:
        PositionError: if it can be read in no way, or in two.
    """
    if wanted is None or isinstance(wanted, Places):
        return wanted
    if isinstance(wanted, slice):
        return Places((_bounds(wanted, what),))
    if isinstance(wanted, Tensor) or hasattr(wanted, "__array__"):
        return _of_array(wanted, what, by_row)
    if isinstance(wanted, Iterable) and not isinstance(wanted, (str, bytes, dict)):
        items = list(wanted)
        if by_row and items and all(isinstance(item, slice) for item in items):
            return Places(tuple(_bounds(item, what) for item in items), by_row=True)
        if by_row and items and all(isinstance(item, (list, tuple, range)) or _has_axes(item) for item in items):
            rows = tuple(tuple(_integer(place, what) for place in item) for item in items)
            if len({len(row) for row in rows}) > 1:
                raise PositionError(
                    f"{what}: the rows name {[len(row) for row in rows]} places; expected as many in each: "
                    "integers [batch k], or a mask [batch n]"
                )
            return Places(rows, by_row=True)
        return Places((tuple(_integer(item, what) for item in items),))
    return Places(((_integer(wanted, what),),))


def members(
    places: Places | None, size: int, first: int, what: str, like: Tensor, n_examples: int | None, growing: bool
) -> Bool[Tensor, "rows size"]:
    """Which of `size` entries, the first of them at absolute place `first`, are meant; one row, or each row's own.

    Args:
        places: as they were read; None for all.
        size: entries that a pass holds.
        first: the place of the first of them.
        what: they are.
        like: the activation, whose rows and device they are for.
        n_examples: in a resumed run, of how many examples the rows are, each example's next to one another.
        growing: as in `Places.spelled`.

    Raises:
        PositionError: as `Places.spelled`; or if there are places for another number of rows.
    """
    if places is None:
        return torch.ones(1, size, dtype=torch.bool, device=like.device)
    spelled = places.spelled(first + size, what, growing=growing)
    found = torch.zeros(len(spelled), first + size, dtype=torch.bool)
    for row, of_row in zip(found, spelled, strict=True):
        row[list(of_row)] = True
    found = found[:, first:].to(like.device)
    return each_row(found, like.shape[0], n_examples, f"{what} were given") if places.by_row else found


def each_row(given: Tensor, n_rows: int, n_examples: int | None, what: str) -> Tensor:
    """One entry for each row of a pass, from one for each row or, in a resumed run, for each example.

    Raises:
        PositionError: if there are entries for another number of rows.
    """
    if len(given) == n_rows:
        return given
    if n_examples is not None and len(given) == n_examples:
        return given.repeat_interleave(n_rows // n_examples, 0)
    raise PositionError(
        f"{what} for {len(given)} rows, and the run has {n_examples or n_rows}: give as many, or the same for every row"
    )


def _of_array(wanted: Any, what: str, by_row: bool) -> Places:
    array = wanted.detach().cpu().numpy() if isinstance(wanted, Tensor) else np.asarray(wanted)
    kind, ndim = array.dtype.kind, array.ndim
    if kind == "b" and ndim in ((1, 2) if by_row else (1,)):
        rows = tuple(tuple(row.nonzero()[0].tolist()) for row in np.atleast_2d(array))
        return Places(rows, by_row=ndim == 2, n=array.shape[-1])
    if kind not in "iu" or ndim > (2 if by_row else 1):
        raise PositionError(
            f"{what} were given as {array.dtype} of shape {array.shape}; expected integers or a mask"
            + (", for every row [k] or [n], for each row [batch k] or [batch n]" if by_row else " with one axis")
        )
    if ndim == 2:
        return Places(tuple(map(tuple, array.tolist())), by_row=True)
    if ndim == 1 and by_row:
        if len(array) == 1:  # a batch of one's `last_each`: that row's, which is every row's where there is no other
            return Places((tuple(array.tolist()),), by_row=True)
        raise PositionError(
            f"{what} were given as a tensor with one axis, {_shown(array.tolist())}, which could mean these in every "
            "row or one for each: give positions[:, None] for each row's own, positions.tolist() for the same in all"
        )
    return Places((tuple(np.atleast_1d(array).tolist()),))


def _has_axes(item: Any) -> bool:
    return getattr(item, "ndim", 0) > 0


def _integer(place: Any, what: str) -> int:
    """A place as an int. Raises PositionError for a bool, a float, a string."""
    is_bool = isinstance(place, (bool, np.bool_)) or getattr(place, "dtype", None) == torch.bool
    try:
        if not is_bool:
            return operator.index(place)
    except TypeError:
        pass
    raise PositionError(
        f"{place!r} was given among {what}, and is a {type(place).__name__}; expected integers, a slice, a range, "
        "None, or a mask (a boolean tensor)"
    )


def _bounds(wanted: slice, what: str) -> slice:
    """A slice whose bounds are ints. Raises PositionError if they are not, or its step is 0."""
    bounds = [None if bound is None else _integer(bound, what) for bound in (wanted.start, wanted.stop, wanted.step)]
    if bounds[2] == 0:
        raise PositionError(f"{wanted} was given for {what}; its step cannot be 0")
    return slice(*bounds)


def _shown(places: tuple[int, ...] | slice | Sequence[int]) -> str:
    """Places in a few words: a run of them as its ends."""
    if isinstance(places, slice):
        return f"{'' if places.start is None else places.start}:{'' if places.stop is None else places.stop}" + (
            "" if places.step is None else f":{places.step}"
        )
    if len(places) > 2 and list(places) == list(range(places[0], places[-1] + 1)):
        return f"{places[0]}-{places[-1]}"
    return ",".join(map(str, places[:8])) + (",..." if len(places) > 8 else "")
