"""Where a patch changes anything: one that puts in what is there already does not, and need not be run.

Clean and corrupt are equal bit for bit in much of a model: before the first token that differs in a causal stack, in a
text's rows before its first cross-attention to another image, in a whole vision tower under another question. What is
equal is found by comparing the two runs, not by knowing the model.

Cost: a comparison of the two runs' activations at the sites; it keeps a truth value for each position and unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from einops import reduce
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.patching.sites import ALL, Sites
from hooked_vlm.positions import Places

Moved = Bool[Tensor, "batch pos unit"]


def moved(sites: Sites, source: Tensor, base: Tensor) -> Moved:
    """Where an activation of the source run differs from the base run's; of size 1 along an axis sites do not have."""
    position = "1" if sites.position_axis is None else sites.axes[sites.position_axis]
    kept = f"{sites.axes[0]} {position} {sites.unit or '1'}"
    return reduce(source != base.to(source.device), f"{' '.join(sites.axes)} -> {kept}", torch.any)


def comparing(
    sites: Sites, source: Mapping[str, Tensor], found: dict[str, Moved]
) -> list[tuple[str, Callable[[Tensor, HookPoint], None]]]:
    """Forward hooks for the base run that write into `found`, by hook name, where the source differs from it."""

    def compare(activation: Tensor, hook: HookPoint) -> None:
        found[str(hook.name)] = moved(sites, source[str(hook.name)], activation)

    return [(name, compare) for name in sites.hooks]


def moving(
    sites: Sites, found: Mapping[str, Moved], n_rows: int
) -> tuple[Bool[Tensor, "site row"], Int[Tensor, "site"]]:
    """Which sites a patch changes in which row of the batch, and the first position that it changes in any row.

    Args:
        sites: with their positions spelled out.
        found: where the source differs from the base run, by hook name.
        n_rows: examples of the batch.
    """
    table, rows = sites.table, torch.arange(n_rows)
    changes = torch.zeros(len(table), n_rows, dtype=torch.bool)
    never = torch.iinfo(torch.long).max
    first = torch.full((len(table),), never)
    in_layer: dict[int, list[int]] = {}
    for row, layers in enumerate(sites.layers_of(table)):
        for layer in layers:
            in_layer.setdefault(layer, []).append(row)
    for layer, own in in_layer.items():
        here = found[sites.hook.format(layer)].cpu().expand(n_rows, -1, -1)
        cells, number = table.iloc[own], torch.tensor(own)
        unit = torch.zeros(len(cells), dtype=torch.long)
        if sites.units != ALL and sites.unit is not None:
            unit = torch.tensor(cells["neuron" if sites.unit == "d_mlp" else "head"].to_list())
        else:
            here = here.any(2, keepdim=True)
        if isinstance(sites.positions, Places) and sites.position_axis is not None:
            at = sites.positions_of(cells, n_rows)
            changes[number] |= here[rows, at, unit[:, None]]
            first[number] = at.amin(1)
        else:
            of_sites = here.movedim(2, 0)[unit]  # [cell batch pos]
            changes[number] |= of_sites.any(2)
            seen = of_sites.any(1)
            first[number] = first[number].minimum(torch.where(seen.any(1), seen.long().argmax(1), never))
    return changes, first.where(first < never, 0)
