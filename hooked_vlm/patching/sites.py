"""Where to patch: layers x positions x heads (or neurons) of one hook point. Costs nothing.

A site is one cell: one layer, one position, one head. `Sites` names them all at once, in that order. Where each row
of a batch has positions of its own (`inputs.find_each`, `inputs.image_spans`, ...; see `hooked_vlm.positions`), a site
is one *place*: the first, second, ... of the positions named for each row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Final, Literal, cast

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from hooked_vlm.errors import HookNameError, PositionError, closest
from hooked_vlm.hooks import HEADS, POSITIONS
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.turn import a_model
from hooked_vlm.options import told
from hooked_vlm.positions import Index as AnyIndex
from hooked_vlm.positions import Places, read

ALL: Final = "all_at_once"
Index = AnyIndex | Literal["all_at_once"]


@dataclass(frozen=True)
class Sites:
    """The cells of one hook point of one stack; make them with `heads`, `residual`, `module`, `neurons`, `point`.

    Args:
        stack: the stack, or None for a hook point outside of blocks.
        hook: name of the hook point, with ``{}`` in place of the layer.
        axes: names of the activation's axes.
        layers: layer indices; empty outside of blocks.
        positions: as they were read (`at` spells them out), None for every one of the run's, "all_at_once" for all in
            one site.
        units: heads or neurons, or "all_at_once" for all in one site.
        unit: the axis that `units` are on, or None.
        picked: which rows of the table of all of them; None for every one.
        spans: groups of layers that are patched together, one site each; None for each layer alone.
    """

    stack: str | None
    hook: str
    axes: tuple[str, ...]
    layers: tuple[int, ...]
    positions: Places | Literal["all_at_once"] | None
    units: tuple[int, ...] | Literal["all_at_once"] = ALL
    unit: str | None = None
    picked: tuple[int, ...] | None = None
    spans: tuple[tuple[int, ...], ...] | None = None

    # --- making them --------------------------------------------------------------------------------

    @classmethod
    def heads(
        cls,
        model: HookedVLM,
        stack: str,
        attention: str = "attn",
        *,
        layers: Index = None,
        positions: Index = None,
        heads: Index = None,
        activation: str = "z",
    ) -> Sites:
        """Heads of an attention.

        Args:
            model: a `HookedVLM`.
            stack: e.g. "text_encoder".
            attention: "attn" or "cross_attn".
            layers: which; None for all.
            positions: query positions (key positions for k and v), the same in every row or each row's own; None for
                all, "all_at_once" for all in one.
            heads: which; None for all, "all_at_once" for all in one site.
            activation: "z", "q", "k", "v", "pattern", "attn_scores", "result", "rot_q", ...

        Raises:
            StackError: if there is no such stack or layer.
            HookNameError: if its blocks have no such hook point.
            GatedHookError: if it is off.
            PositionError: if there is no such head.
        """
        sites = cls._in_blocks(model, stack, f"{attention}.hook_{activation}", layers, positions)
        axis = next((name for name in sites.axes if name in HEADS), None)
        if axis is None:
            raise HookNameError(f"{sites.hook} is [{' '.join(sites.axes)}] and has no heads: use Sites.module")
        cfg = model.stacks[stack].cfg
        n_heads = cfg.n_heads if axis == "head" else cfg.n_key_value_heads or cfg.n_heads
        return replace(sites, units=_chosen(heads, n_heads, f"heads of {stack}"), unit=axis)

    @classmethod
    def residual(
        cls, model: HookedVLM, stack: str, *, layers: Index = None, positions: Index = None, hook: str = "resid_pre"
    ) -> Sites:
        """The residual stream: "resid_pre", "resid_mid", "resid_post", "normalized_resid_post", ...

        Args:
            model: a `HookedVLM`.
            stack: e.g. "language_model".
            layers: which; None for all.
            positions: which; None for all, "all_at_once" for all in one site.
            hook: which point of the stream, without "hook_".

        Raises:
            StackError, HookNameError: as `heads`.
        """
        return cls._in_blocks(model, stack, f"hook_{hook}", layers, positions)

    @classmethod
    def module(cls, model: HookedVLM, stack: str, hook: str, *, layers: Index = None, positions: Index = None) -> Sites:
        """A module's output or any other hook point of a block: "attn_out", "mlp_out", "mlp.hook_post", ...

        Args:
            model: a `HookedVLM`.
            stack: e.g. "text_encoder".
            hook: a block's hook point, with or without "hook_".
            layers: which; None for all.
            positions: which; None for all, "all_at_once" for all in one site.

        Raises:
            StackError, HookNameError, GatedHookError: as `heads`.
        """
        name = hook if "hook_" in hook else f"hook_{hook}"
        return cls._in_blocks(model, stack, name, layers, positions)

    @classmethod
    def neurons(
        cls,
        model: HookedVLM,
        stack: str,
        *,
        layers: Index = None,
        positions: Index = None,
        neurons: Index = None,
        activation: str = "post",
    ) -> Sites:
        """Neurons of the MLPs, after ("post") or before ("pre") the activation function.

        Args:
            model: a `HookedVLM`.
            stack: e.g. "language_model".
            layers: which; None for all.
            positions: which; None for all, "all_at_once" for all in one site.
            neurons: which; None for all of d_mlp.
            activation: "post", "pre" or "pre_linear".

        Raises:
            StackError, HookNameError, PositionError: as `heads`.
        """
        sites = cls._in_blocks(model, stack, f"mlp.hook_{activation}", layers, positions)
        d_mlp = model.stacks[stack].cfg.d_mlp
        assert d_mlp is not None  # since its blocks have an MLP
        return replace(sites, units=_chosen(neurons, d_mlp, f"neurons of {stack}"), unit="d_mlp")

    @classmethod
    def point(cls, model: HookedVLM, hook: str, *, positions: Index = None) -> Sites:
        """A hook point outside of blocks: "hook_image_features", "projector.hook_pre", "hook_embed", ...

        Args:
            model: a `HookedVLM`.
            hook: its full name.
            positions: which; None for all, "all_at_once" for all in one site.

        Raises:
            HookNameError, GatedHookError: if there is none, or it is off.
        """
        (name,) = a_model(model).hook_names(hook)
        found = model.hook_dict[name]
        if "blocks." in name:
            raise HookNameError(f"{name} is in a block: use Sites.module")
        return cls(None, name, found.axes, (), _read(positions, "positions", by_row=True))

    @classmethod
    def _in_blocks(cls, model: HookedVLM, stack: str, hook: str, layers: Index, positions: Index) -> Sites:
        form = f"{a_model(model).stacks[stack].prefix}blocks.{{}}.{hook}"
        n_layers = model.stacks[stack].cfg.n_layers
        there = tuple(layer for layer in range(n_layers) if form.format(layer) in model.hook_dict)
        if not there:
            start = form.partition("{}")[0]
            known = [name.removeprefix(start).partition(".")[2] for name in model.hook_dict if name.startswith(start)]
            near = closest(hook, list(dict.fromkeys(known)))
            raise HookNameError(f"the blocks of {stack} have no {hook!r}. The closest are {', '.join(near)}")
        model.hook_names(form.format(there[0]))  # raises where it is off
        chosen = _chosen(layers, n_layers, f"layers of {stack}")
        chosen = there if layers is None or chosen == ALL else chosen
        if lacking := [layer for layer in chosen if layer not in there]:
            raise HookNameError(f"layers {_shown(lacking)} of {stack} have no {hook!r}; layers {_shown(there)} have it")
        axes = model.hook_dict[form.format(there[0])].axes
        return cls(stack, form, axes, chosen, _read(positions, "positions", by_row=True))

    def windows(self, wanted: int | Iterable[Any]) -> Sites:
        """These sites in several layers at once: one site for each window of layers, where there was one a layer.

        Args:
            wanted: how many layers a window has, one beginning at each layer that has as many from it on; or the
                windows, each as layers are named: ``sites.windows([range(0, 8), range(8, 16), range(16)])``.

        Raises:
            PositionError: if a layer is not among these sites', no window is left, or the sites lie outside of blocks
                or were picked.
        """
        if not self.layers or self.picked is not None or self.spans is not None:
            raise PositionError(f"{self!r} cannot be put into windows: take sites in layers, and pick afterwards")
        what, n = f"layers of the windows of {self!r}", len(self.layers)
        if isinstance(wanted, int) and not isinstance(wanted, bool):
            if not 1 <= wanted <= n:
                raise PositionError(f"a window of {wanted} layers was asked for; {self!r} has windows of 1 to {n}")
            groups = [self.layers[start : start + wanted] for start in range(n - wanted + 1)]
        elif isinstance(wanted, Iterable) and not isinstance(wanted, str):
            groups = [tuple(sorted(_chosen(group, max(self.layers) + 1, what))) for group in wanted]
        else:
            raise PositionError(f"the windows are {told(wanted)}; expected a number of layers, or layers for each")
        beyond = sorted({layer for group in groups for layer in group} - set(self.layers))
        if beyond or not groups:
            raise PositionError(f"{what} are {_shown(self.layers)}; {beyond or 'none'} was asked for")
        spans = tuple(dict.fromkeys(groups))
        return replace(self, layers=tuple(sorted({layer for group in spans for layer in group})), spans=spans)

    # --- reading them -------------------------------------------------------------------------------

    @property
    def hooks(self) -> list[str]:
        """Full names of the hook points, one a layer."""
        return [self.hook.format(layer) for layer in self.layers] if self.layers else [self.hook]

    @property
    def position_axis(self) -> int | None:
        """Which axis of the activation is a position, or None."""
        return next((i for i, name in enumerate(self.axes) if name in POSITIONS), None)

    @property
    def by_row(self) -> bool:
        """True if each row of a batch has positions of its own."""
        return isinstance(self.positions, Places) and self.positions.by_row

    def at(self, n_positions: int, n_rows: int | None = None) -> Sites:
        """These sites with their positions spelled out.

        Args:
            n_positions: positions of a run.
            n_rows: its examples, where each row has positions of its own.

        Raises:
            PositionError: if there is no such position, or rows have other numbers of them.
        """
        if self.positions == ALL or self.position_axis is None:
            return replace(self, positions=ALL)
        wanted, what = self.positions or Places((slice(None),)), f"positions of {self.hook}"
        assert isinstance(wanted, Places)
        rows = wanted.spelled(n_positions, what)
        if wanted.by_row and len({len(row) for row in rows}) > 1:
            raise PositionError(
                f"{what}: the rows name {[len(row) for row in rows]} of them, and each site is one in every row: name "
                "as many in each"
            )
        if wanted.by_row and n_rows not in (None, len(rows)):
            raise PositionError(f"{what} were given for {len(rows)} rows, and the run has {n_rows}: give as many")
        rows = rows if wanted.by_row else (tuple(dict.fromkeys(rows[0])),)
        return replace(self, positions=Places(rows, wanted.by_row))

    def positions_of(self, cells: pd.DataFrame, n_rows: int) -> Int[Tensor, "cell row"]:
        """The position that each of some cells of `table` has in each row of a run; closed sites only."""
        assert isinstance(self.positions, Places)
        if self.by_row:
            return torch.tensor(self.positions.rows).T[cells["place"].to_list()]
        return torch.tensor(cells["position"].to_list())[:, None].expand(-1, n_rows)

    def layers_of(self, cells: pd.DataFrame) -> list[tuple[int, ...]]:
        """The layers in which each of some cells of `table` is patched, in order; (0,) for all outside of blocks."""
        if self.spans is not None:
            spans = {_label(span): span for span in self.spans}
            return [spans[label] for label in cells["layers"]]
        return [(layer,) for layer in cells["layer"].to_list()] if self.layers else [(0,)] * len(cells)

    def pick(self, rows: Iterable[int]) -> Sites:
        """Some of these sites, by their row in `table`: ``sites.pick(sites.table.query("layer + head == 3").index)``.

        A result over them has one axis, and its `index_df` says what each entry is.

        Raises:
            PositionError: if the positions are still open (see `at`), or there is no such row.
        """
        chosen = _chosen(list(rows), len(self), f"rows of {self!r}")
        return replace(self, picked=chosen if self.picked is None else tuple(self.picked[row] for row in chosen))

    @property
    def axis_names(self) -> list[str]:
        """Names of the indices of a site, of "layer" or "layers", "position" or "place", "head" or "neuron".

        A place is the how-many-th of the positions named for each row, from 0: rows have positions of their own.
        """
        names = [] if not self.layers else ["layer"] if self.spans is None else ["layers"]
        names += [] if self.positions == ALL else ["place" if self.by_row else "position"]
        return names + ([] if self.units == ALL else ["neuron" if self.unit == "d_mlp" else "head"])

    @property
    def shape(self) -> list[int]:
        """Sizes of the axes of a result over these sites: one for each of `axis_names`, or one if they were picked."""
        return [len(self)] if self.picked is not None else [len(indices) for indices in self._columns.values()]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a site, in the order of a result's axes.

        Raises:
            PositionError: if the positions are still open; `at` closes them.
        """
        places = self.positions
        if places is None or (isinstance(places, Places) and any(isinstance(row, slice) for row in places.rows)):
            raise PositionError("which positions these are depends on the run: sites.at(n_positions).table")
        table = pd.DataFrame(list(product(*self._columns.values())), columns=self.axis_names)
        return table if self.picked is None else table.iloc[list(self.picked)].reset_index(drop=True)

    @property
    def _columns(self) -> dict[str, tuple[Any, ...]]:
        """The indices along each axis of a result."""
        indices: dict[str, Any] = {"layer": self.layers, "head": self.units, "neuron": self.units}
        indices["layers"] = tuple(map(_label, self.spans or ()))
        if isinstance(self.positions, Places):
            (first, *_) = cast("tuple[tuple[int, ...], ...]", self.positions.rows)
            indices |= {"position": first, "place": tuple(range(len(first)))}
        return {name: indices[name] for name in self.axis_names}

    def __len__(self) -> int:
        """Number of sites."""
        return len(self.table)

    def __repr__(self) -> str:
        parts = [f"layers {_shown(self.layers)}"] if self.layers else []
        parts = parts if self.spans is None else [f"windows of layers {'; '.join(map(_label, self.spans))}"]
        if isinstance(self.positions, Places):
            parts.append(f"positions {self.positions.shown}{' in each row' if self.by_row else ''}")
        else:
            parts.append("every position" if self.positions is None else f"positions {self.positions}")
        if self.unit is not None:
            parts.append(f"{'neurons' if self.unit == 'd_mlp' else 'heads'} {_shown(self.units)}")
        if self.picked is not None:
            parts.append(f"{len(self.picked)} of these")
        return f"Sites({self.hook.replace('{}', '{l}')}: {', '.join(parts)})"


def _read(wanted: Any, what: str, *, by_row: bool) -> Any:
    """An index as it is kept until a run says how many there are; "all_at_once" stays. Raises PositionError."""
    if isinstance(wanted, str):
        if wanted != ALL:
            raise PositionError(f"{what}: {wanted!r} was asked for; expected indices, None or {ALL!r}")
        return ALL
    return read(wanted, what, by_row=by_row)


def _chosen(wanted: Any, size: int, what: str) -> Any:
    """Indices below `size`, in the order asked for, each once; "all_at_once" stays.

    Raises:
        PositionError: if one is out of range, or none is left.
    """
    found = _read(wanted, what, by_row=False)
    if found == ALL:
        return ALL
    return tuple(dict.fromkeys((found or Places((slice(None),))).spelled(size, what)[0]))


def _label(layers: tuple[int, ...]) -> str:
    """What a table calls layers that are patched together: "0-7", or "0,2,5"."""
    in_a_row = len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if in_a_row else ",".join(map(str, layers))


def _shown(indices: Any) -> str:
    """Indices in a few words."""
    return indices if isinstance(indices, str) else Places((tuple(indices),)).shown
