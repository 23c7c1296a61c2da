"""Where to patch: layers x positions x heads (or neurons) of one hook point. Costs nothing.

A site is one cell: one layer, one position, one head. `Sites` names them all at once, in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Final, Literal, cast

import pandas as pd

from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.errors import HookNameError, PositionError, StackError, closest
from hooked_vlm.hooks import HEADS, POSITIONS

ALL: Final = "all_at_once"
Index = int | slice | range | Sequence[int] | Literal["all_at_once"] | None


@dataclass(frozen=True)
class Sites:
    """The cells of one hook point of one stack; make them with `heads`, `residual`, `module`, `neurons`, `point`.

    Args:
        stack: the stack, or None for a hook point outside of blocks.
        hook: name of the hook point, with ``{}`` in place of the layer.
        axes: names of the activation's axes.
        layers: layer indices; empty outside of blocks.
        positions: positions, None for every one of the run's, "all_at_once" for all in one site.
        units: heads or neurons, or "all_at_once" for all in one site.
        unit: the axis that `units` are on, or None.
        picked: which rows of the table of all of them; None for every one.
    """

    stack: str | None
    hook: str
    axes: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...] | slice | Literal["all_at_once"] | None  # a slice until `at` spells it out
    units: tuple[int, ...] | Literal["all_at_once"] = ALL
    unit: str | None = None
    picked: tuple[int, ...] | None = None

    # --- making them --------------------------------------------------------------------------------

    @classmethod
    def heads(
        cls,
        model: Any,
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
            positions: query positions (key positions for k and v); None for all, "all_at_once" for all in one.
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
        cls, model: Any, stack: str, *, layers: Index = None, positions: Index = None, hook: str = "resid_pre"
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
    def module(cls, model: Any, stack: str, hook: str, *, layers: Index = None, positions: Index = None) -> Sites:
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
        model: Any,
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
        return replace(sites, units=_chosen(neurons, d_mlp, f"neurons of {stack}"), unit="d_mlp")

    @classmethod
    def point(cls, model: Any, hook: str, *, positions: Index = None) -> Sites:
        """A hook point outside of blocks: "hook_image_features", "projector.hook_pre", "hook_embed", ...

        Args:
            model: a `HookedVLM`.
            hook: its full name.
            positions: which; None for all, "all_at_once" for all in one site.

        Raises:
            HookNameError, GatedHookError: if there is none, or it is off.
        """
        (name,) = model.hook_names(hook)
        found: HookPoint = model.hook_dict[name]
        if "blocks." in name:
            raise HookNameError(f"{name} is in a block: use Sites.module")
        return cls(None, name, found.axes, (), _chosen_positions(positions))

    @classmethod
    def _in_blocks(cls, model: Any, stack: str, hook: str, layers: Index, positions: Index) -> Sites:
        if stack not in model.stacks:
            raise StackError(f"there is no stack {stack!r}; this model has {', '.join(model.stacks)}")
        prefix = f"{model.stacks[stack].prefix}blocks."
        known = [name.removeprefix(f"{prefix}0.") for name in model.hook_dict if name.startswith(f"{prefix}0.")]
        if hook not in known:
            raise HookNameError(
                f"the blocks of {stack} have no {hook!r}. The closest are {', '.join(closest(hook, known))}"
            )
        model.hook_names(f"{prefix}0.{hook}")  # raises where it is off
        n_layers = model.stacks[stack].cfg.n_layers
        chosen = _chosen(layers, n_layers, f"layers of {stack}")
        chosen = tuple(range(n_layers)) if chosen == ALL else chosen
        return cls(
            stack,
            f"{prefix}{{}}.{hook}",
            model.hook_dict[f"{prefix}0.{hook}"].axes,
            chosen,
            _chosen_positions(positions),
        )

    # --- reading them -------------------------------------------------------------------------------

    @property
    def hooks(self) -> list[str]:
        """Full names of the hook points, one a layer."""
        return [self.hook.format(layer) for layer in self.layers] if self.layers else [self.hook]

    @property
    def position_axis(self) -> int | None:
        """Which axis of the activation is a position, or None."""
        return next((i for i, name in enumerate(self.axes) if name in POSITIONS), None)

    def at(self, n_positions: int) -> Sites:
        """These sites with their positions spelled out, in a run with `n_positions` of them.

        Raises:
            PositionError: if there is no such position.
        """
        if self.positions == ALL or self.position_axis is None:
            return replace(self, positions=ALL)
        return replace(self, positions=_chosen(self.positions, n_positions, f"positions of {self.hook}"))

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
        """Names of the indices of a site, of "layer", "position", "head" or "neuron"."""
        names = ["layer"] if self.layers else []
        names += ["position"] if self.positions != ALL else []
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
        if self.positions is None:
            raise PositionError("the positions are all those of a run: sites.at(n_positions).table")
        table = pd.DataFrame(list(product(*self._columns.values())), columns=self.axis_names)
        return table if self.picked is None else table.iloc[list(self.picked)].reset_index(drop=True)

    @property
    def _columns(self) -> dict[str, tuple[int, ...]]:
        """The indices along each axis of a result."""
        indices = {"layer": self.layers, "position": self.positions, "head": self.units, "neuron": self.units}
        return {name: cast("tuple[int, ...]", indices[name]) for name in self.axis_names}

    def __len__(self) -> int:
        """Number of sites."""
        return len(self.table)

    def __repr__(self) -> str:
        parts = [f"layers {_shown(self.layers)}"] if self.layers else []
        parts.append("every position" if self.positions is None else f"positions {_shown(self.positions)}")
        if self.unit is not None:
            parts.append(f"{'neurons' if self.unit == 'd_mlp' else 'heads'} {_shown(self.units)}")
        if self.picked is not None:
            parts.append(f"{len(self.picked)} of these")
        return f"Sites({self.hook.replace('{}', '{l}')}: {', '.join(parts)})"


def _chosen_positions(positions: Index) -> Any:
    """Positions as they are kept until a run says how many there are."""
    if positions is None or positions == ALL:
        return positions
    if isinstance(positions, int):
        return (positions,)
    return positions if isinstance(positions, slice) else tuple(positions)


def _chosen(wanted: Any, size: int, what: str) -> Any:
    """Indices below `size`, in the order asked for, each once; "all_at_once" stays.

    Raises:
        PositionError: if one is out of range, or none is left.
    """
    if isinstance(wanted, str):
        if wanted != ALL:
            raise PositionError(f"{what}: {wanted!r} was asked for; expected indices, None or {ALL!r}")
        return ALL
    if wanted is None or isinstance(wanted, slice):
        found = list(range(size))[slice(None) if wanted is None else wanted]
    else:
        found = [wanted] if isinstance(wanted, int) else [int(i) for i in wanted]
    beyond = [i for i in found if not -size <= i < size]
    if beyond or not found:
        raise PositionError(f"{what} are 0 to {size - 1}; {beyond or 'none'} was asked for")
    return tuple(dict.fromkeys(i % size for i in found))


def _shown(indices: Any) -> str:
    """Indices in a few words: a run of them as its ends."""
    if isinstance(indices, (str, slice)):
        return str(indices)
    values = list(indices)
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}-{values[-1]}"
    return ",".join(map(str, values))
