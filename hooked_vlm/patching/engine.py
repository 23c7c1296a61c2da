"""How the sites of a sweep are run: rows that join a growing pass, cut into chunks that fit the memory.

Cost: for each site the blocks from its layer on, or the whole model where nothing can be shared. Memory: the budget
given; running out of it halves the chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_vlm.hooks import OWN_POSITIONS
from hooked_vlm.models.memory import free_bytes, general_ways, ran_out, told_if_out
from hooked_vlm.patching.cost import row_numbers
from hooked_vlm.patching.metrics import measured
from hooked_vlm.patching.plan import SweepPlan
from hooked_vlm.patching.sites import ALL

WASTE = 256  # positions of a pass that are run though no site needs them, before another pass is begun

# --- chunks -----------------------------------------------------------------------------------------


def _chunks(plan: SweepPlan, budget: int | None, chosen: Sequence[int] | None) -> list[list[int]]:
    """Numbers of the sites that matter (rows of the table) that run together, in an order that shares a long prefix."""
    matters = plan.matters.any(1)
    numbers = matters.nonzero()[:, 0].tolist() if chosen is None else [i for i in sorted(chosen) if matters[i]]
    if not numbers:
        return []
    first, layers = plan.first.tolist(), plan.sites.layers_of(plan.sites.table)
    if plan.causal:  # sites late in the sequence leave little to compute again
        numbers.sort(key=lambda number: (-first[number], layers[number][0]))
    found: list[list[int]] = []
    size, begins, waste = _rows_that_fit(plan, budget), 0, 0
    for number in numbers:
        # All rows of a pass begin at its earliest position: a pass ends where they would run many more than they need.
        at = first[number]
        waste += 0 if not found else len(found[-1]) * (begins - at) if at < begins else at - begins
        if not found or len(found[-1]) == size or waste * len(plan.base) > WASTE:
            found.append([])
            begins, waste = at, 0
        found[-1].append(number)
        begins = min(begins, at)
    return found


def _rows_that_fit(plan: SweepPlan, budget: int | None) -> int:
    """How many rows of each example fit the budget, by what a block holds at once."""
    if budget is None:
        budget = free_bytes(plan.model.device) // 4
    first = int(plan.first[plan.matters.any(1)].min())
    n_logits = 1 if plan.reads_last else plan.logits.shape[1]
    shared = plan.state is not None
    row = row_numbers(plan.model, plan.sites, plan.lengths, first, n_logits=n_logits, shared=shared)
    spare = budget - _kept_bytes(plan)
    return max(1, int(spare // (row * plan.logits.element_size() * len(plan.base))))


def _kept_bytes(plan: SweepPlan) -> int:
    """What the base run's state and the source's activations hold throughout."""
    tensors = list(plan.source.values())
    for given in () if plan.state is None else plan.state.passes.values():
        for layer in given.kv_cache or ():
            tensors += [t for kv in (layer.attn, layer.cross_attn) if kv is not None for t in (kv.k, kv.v)]
            tensors += [] if layer.resid_pre is None else [layer.resid_pre]
    return sum(t.numel() * t.element_size() for t in tensors)


# --- running ----------------------------------------------------------------------------------------


def run_sweep(
    plan: SweepPlan, budget: int | None, progress: bool, chosen: Sequence[int] | None = None
) -> tuple[Tensor, int]:
    """Values of every site, [metric site example], and how many of them were not run since they cannot differ.

    Args:
        plan: the sweep.
        budget: as `sweep`'s.
        progress: likewise.
        chosen: numbers of the sites to run; None for all. The others have the base run's value.
    """
    from tqdm.auto import tqdm

    base = plan.baseline[:, None].cpu()
    values = base.repeat(1, len(plan.sites), 1)
    run = _one_run_a_site if plan.state is None else _grown
    waiting = _chunks(plan, budget, chosen)[::-1]
    n_run = sum(map(len, waiting))
    with tqdm(total=n_run, unit="site", disable=not progress, desc=repr(plan.sites)) as bar:
        while waiting:
            chunk = waiting.pop()
            try:
                values[:, chunk] = run(plan, chunk).to(values)
            except Exception as error:
                if not ran_out(error):
                    raise
                if len(chunk) == 1:
                    with told_if_out(lambda: _one_site(plan), lambda: plan.model.device, lambda: _ways(plan)):
                        raise
                half = len(chunk) // 2
                again = [number for later in [chunk, *waiting[::-1]] for number in later]
                waiting = [again[i : i + half] for i in range(0, len(again), half)][::-1]
                continue
            bar.update(len(chunk))
    return torch.where(plan.matters, values, base), int((~plan.matters.any(1)).sum())


def _one_site(plan: SweepPlan) -> str:
    """A run of one site, in words."""
    n = len(plan.base)
    return f"one site alone of {plan.sites!r}, in {n} example{'s' * (n > 1)} in {plan.logits.dtype}".replace(
        "torch.", ""
    )


def _ways(plan: SweepPlan) -> list[str]:
    """Out of a lack of memory for one site."""
    ways = [] if len(plan.base) == 1 else ["fewer examples at a time (clean[:1], corrupt[:1])"]
    ways += (
        [] if plan.reads_last else ["a metric of patching.metrics reads the last position alone, and not every logit"]
    )
    ways += [] if plan.state is None or len(plan.sites.layers) == 1 else ["fewer layers of sites at a time"]
    return [*ways, *general_ways(plan.model.dtype)]


def _grown(plan: SweepPlan, chunk: list[int]) -> Tensor:
    """Values of some sites by one growing pass, [metric site example]."""
    assert plan.state is not None and plan.sites.stack is not None
    first = int(plan.first[chunk].min())
    layers = plan.sites.layers_of(plan.sites.table.iloc[chunk])
    order = sorted(range(len(chunk)), key=lambda i: layers[i][0])  # rows join in the order of their first layer
    table, layers = plan.sites.table.iloc[[chunk[i] for i in order]], [layers[i] for i in order]
    injected, hooks, joined = {}, [], len(chunk)
    for layer in sorted({layer for own in layers for layer in own}):
        name = plan.sites.hook.format(layer)
        new = [row for row, own in enumerate(layers) if own[0] == layer]
        on = [row for row, own in enumerate(layers) if own[0] < layer and layer in own]
        if new and plan.is_position_local:
            injected[layer + 1] = _after_its_block(plan, layer, name, table.iloc[new], first)
        elif new:
            injected[layer] = plan.state.resid_pre(plan.sites.stack, layer)[:, first:].repeat_interleave(len(new), 0)
            hooks.append((name, _patch_of_rows(plan, name, table.iloc[new], new, first)))
        if on:
            hooks.append((name, _patch_of_rows(plan, name, table.iloc[on], on, first, goes_on=True)))
    with plan.model.hooks(fwd_hooks=hooks):
        logits = plan.model.resume(
            plan.state,
            plan.sites.stack,
            injected,
            first_position=first,
            logits_at="last" if plan.reads_last else None,
        )
    if not plan.reads_last and logits.shape[1] < plan.logits.shape[1]:  # a causal stack's shared positions
        before = plan.logits[:, : plan.logits.shape[1] - logits.shape[1]].repeat_interleave(joined, 0)
        logits = torch.cat([before, logits], 1)
    n = len(plan.base)
    found = torch.stack([measured(k, fn, logits, n) for k, fn in plan.metrics.items()])
    found = found.reshape(len(plan.metrics), n, joined).transpose(1, 2)
    return found[:, torch.tensor(order).argsort()]


def _after_its_block(plan: SweepPlan, layer: int, name: str, cells: Any, first: int) -> Tensor:
    """The stream after a block with each site of it patched, from `first` on, [batch * site pos d_model].

    A patch that acts alone changes the stream at its own position only: that position runs, and no other.
    """
    assert plan.state is not None and plan.sites.stack is not None
    stack = plan.model.stacks[plan.sites.stack]
    places = plan.sites.positions_of(cells, len(plan.base)).T  # [batch cell]
    with plan.model.hooks(fwd_hooks=[(name, _patch_of_rows(plan, name, cells, range(len(cells)), None))]):
        after = stack.one_block(layer, places, plan.state.passes[stack.name])
    rows = plan.state.resid_pre(stack.name, layer + 1)[:, first:].repeat_interleave(len(cells), 0)
    rows[torch.arange(len(rows)), places.flatten() - first] = after[:, 0]
    return rows


def _patch_of_rows(
    plan: SweepPlan, name: str, cells: Any, of_cells: Sequence[int], first: int | None, *, goes_on: bool = False
) -> Callable[..., Tensor]:
    """A hook function that patches some rows of each example, each at its own site.

    Args:
        plan: the sweep.
        name: the hook point.
        cells: rows of the table of sites.
        of_cells: which of an example's rows is each cell's.
        first: absolute position of the pass's first position; None where each row holds its own position alone.
        goes_on: True if the rows were patched in an earlier layer, so that an intervention finds another activation
            than the base run's.
    """
    sites, n = plan.sites, len(plan.base)
    each, numbers = torch.arange(n), torch.tensor(list(of_cells))
    acting = plan.intervention if goes_on else None
    index, axes = [numbers[:, None], each], [1, 0]  # [cell batch]
    source_index, source_axes = [each], [0]
    if plan.places and sites.position_axis is not None:
        at = sites.positions_of(cells, n)
        moves = sites.axes[sites.position_axis] in OWN_POSITIONS  # key positions of another stack do not move
        index.append(torch.zeros_like(at) if first is None else at - first if moves else at)
        source_index.append(at)
        source_axes.append(sites.position_axis)
    if sites.units != ALL and sites.unit is not None:
        unit = torch.tensor(cells["neuron" if sites.unit == "d_mlp" else "head"].to_list())[:, None]
        index.append(unit)
        source_index.append(unit)
        source_axes.append(sites.axes.index(sites.unit))
    axes += [axis + 1 for axis in source_axes[1:]]
    new = plan.source[name]
    if (
        first
        and not plan.places
        and sites.position_axis is not None
        and sites.axes[sites.position_axis] in OWN_POSITIONS
    ):
        new = new.narrow(sites.position_axis, first, new.shape[sites.position_axis] - first)
    new = new.movedim(source_axes, list(range(len(source_axes))))[tuple(source_index)]  # [cell? batch ...]
    front = list(range(len(axes)))

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        rows, here = activation.view(n, -1, *activation.shape[1:]), new
        if acting is not None:
            own = hook.edited(acting, rows[:, numbers].flatten(0, 1)).unflatten(0, (n, len(numbers)))
            here = own.movedim(axes, front)[(torch.arange(len(numbers))[:, None], *index[1:])]
        rows.movedim(axes, front)[tuple(index)] = here.to(activation)  # [row batch position unit ...], a view
        return activation

    return hook_fn


def _one_run_a_site(plan: SweepPlan, chunk: list[int]) -> Tensor:
    """Values of some sites by one run of the whole model each, [metric site example]."""
    rows = []
    for number in chunk:
        cells = plan.sites.table.iloc[[number]]
        (layers,) = plan.sites.layers_of(cells)
        names = [plan.sites.hook.format(layer) for layer in layers]
        hooks = [(name, _patch_of_rows(plan, name, cells, [0], 0, goes_on=i > 0)) for i, name in enumerate(names)]
        logits = plan.read(plan.model.run_with_hooks(plan.base, fwd_hooks=[*plan.hooks, *hooks]))
        rows.append(torch.stack([measured(k, m, logits, len(plan.base)) for k, m in plan.metrics.items()]))
    return torch.stack(rows, 1)
