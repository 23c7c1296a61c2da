"""The hook points of a model as a table, one row for all layers of a stack. Knows no model.

A table needs a checkpoint's config alone: give it a `skeleton`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.shown import collapsed

HEADER = ("hook point", "axes", "fires")
BEFORE_BLOCKS = ("hook_embed", "hook_pos_embed", "ln_embed", "ln_pre")


@dataclass(frozen=True)
class HookRow:
    """A hook point, or the same one in every layer of a stack.

    Args:
        name: as in `model.hook_dict`, with ``{l}`` in place of the layer.
        axes: names of the activation's axes, e.g. ``("batch", "pos", "head", "d_head")``.
        gate: the `cfg` flag that must be on for it to fire, or None.
    """

    name: str
    axes: tuple[str, ...]
    gate: str | None

    @property
    def shape(self) -> str:
        """The axes as TransformerLens writes them, e.g. ``[batch pos head d_head]``."""
        return f"[{' '.join(self.axes)}]"

    @property
    def fires(self) -> str:
        """When it fires."""
        return "always" if self.gate is None else f"with cfg.{self.gate}"


def hook_table(model: HookedVLM) -> list[HookRow]:
    """Every hook point of a model, layers collapsed; a stack's embedding stands before its blocks."""
    rows = dict.fromkeys(HookRow(collapsed(name), point.axes, point.gate) for name, point in model.hook_dict.items())
    parts = list(dict.fromkeys(row.name.partition(".")[0] for row in rows))

    def place(row: HookRow) -> tuple[int, bool]:
        part, _, rest = row.name.partition(".")
        return parts.index(part), not rest.startswith(BEFORE_BLOCKS)

    return sorted(rows, key=place)


def hook_table_markdown(model: HookedVLM) -> str:
    """`hook_table` as a Markdown table, without a newline at its end."""
    return to_markdown(hook_table(model))


def to_markdown(rows: Sequence[HookRow]) -> str:
    """Some rows as a Markdown table."""
    cells = [(f"`{row.name}`", f"`{row.shape}`", row.fires) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [HEADER, ("---",) * len(HEADER), *cells])
