"""How the sites of a sweep are run: rows that join a growing pass, cut into chunks that fit the memory.

Cost: for each site the blocks from its layer on, or the whole model where nothing can be shared. Memory: the budget
given; running out of it halves the chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor

from hooked_vlm.hooks import OWN_POSITIONS
from hooked_vlm.patching.cost import row_numbers
from hooked_vlm.patching.sites import ALL
from hooked_vlm.patching.task import Task, measured

WASTE = 256  # positions of a pass that are run though no site needs them, before another pass is begun

# --- chunks -----------------------------------------------------------------------------------------


def _chunks(task: Task, budget: int | None) -> list[list[int]]:
    """Numbers of the sites that matter (rows of the table) that run together, in an order that shares a long prefix."""
    matters = task.matters.any(1).nonzero()[:, 0].tolist()
    if not matters:
        return []
    order = task.sites.table.assign(number=range(len(task.sites)), first=task.first.numpy()).iloc[matters]
    if task.causal:  # sites late in the sequence leave little to compute again
        order = order.sort_values(["first", "layer"], ascending=[False, True], kind="stable")
    found: list[list[int]] = []
    size, begins, waste = _rows_that_fit(task, budget), 0, 0
    for number, first in zip(order["number"], order["first"], strict=True):
        # All rows of a pass begin at its earliest position: a pass ends where they would run many more than they need.
        waste += 0 if not found else len(found[-1]) * (begins - first) if first < begins else first - begins
        if not found or len(found[-1]) == size or waste * len(task.base) > WASTE:
            found.append([])
            begins, waste = first, 0
        found[-1].append(number)
        begins = min(begins, first)
    return found


def _rows_that_fit(task: Task, budget: int | None) -> int:
    """How many rows of each example fit the budget, by what a block holds at once."""
    if budget is None:
        device = task.model.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        budget = free // 4
    first = int(task.first[task.matters.any(1)].min())
    n_logits = 1 if task.reads_last else task.logits.shape[1]
    shared = task.state is not None
    row = row_numbers(task.model, task.sites, task.lengths, first, n_logits=n_logits, shared=shared)
    spare = budget - _kept_bytes(task)
    return max(1, int(spare // (row * task.logits.element_size() * len(task.base))))


def _kept_bytes(task: Task) -> int:
    """What the base run's state and the source's activations hold throughout."""
    tensors = list(task.source.values())
    for given in () if task.state is None else task.state.passes.values():
        for layer in given.memory or ():
            tensors += [t for kv in (layer.attn, layer.cross_attn) if kv is not None for t in (kv.k, kv.v)]
            tensors += [] if layer.resid_pre is None else [layer.resid_pre]
    return sum(t.numel() * t.element_size() for t in tensors)


# --- running ----------------------------------------------------------------------------------------


def swept(task: Task, budget: int | None, progress: bool) -> tuple[Tensor, int]:
    """Values of every site, [metric site example], and how many of them were not run since they cannot differ."""
    from tqdm.auto import tqdm

    base = task.baseline[:, None].cpu()
    values = base.repeat(1, len(task.sites), 1)
    run = _one_run_a_site if task.state is None else _grown
    waiting = _chunks(task, budget)[::-1]
    n_run = sum(map(len, waiting))
    with tqdm(total=n_run, unit="site", disable=not progress, desc=repr(task.sites)) as bar:
        while waiting:
            chunk = waiting.pop()
            try:
                values[:, chunk] = run(task, chunk).to(values)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if len(chunk) == 1 or not _is_out_of_memory(error):
                    raise
                half = len(chunk) // 2
                again = [number for later in [chunk, *waiting[::-1]] for number in later]
                waiting = [again[i : i + half] for i in range(0, len(again), half)][::-1]
                continue
            bar.update(len(chunk))
    return torch.where(task.matters, values, base), len(task.sites) - n_run


def _is_out_of_memory(error: BaseException) -> bool:
    return not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)


def _grown(task: Task, chunk: list[int]) -> Tensor:
    """Values of some sites by one growing pass, [metric site example]."""
    assert task.state is not None and task.sites.stack is not None
    table = task.sites.table.iloc[chunk]
    first = int(task.first[chunk].min())
    joins, hooks, rows_of, joined = {}, [], [], 0
    for layer, cells in table.groupby("layer", sort=True):
        name = task.sites.hook.format(layer)
        if task.acts_alone:
            joins[int(layer) + 1] = _after_its_block(task, int(layer), name, cells, first)
        else:
            resid = task.state.resid_pre(task.sites.stack, int(layer))[:, first:]
            joins[int(layer)] = resid.repeat_interleave(len(cells), 0)
            hooks.append((name, _patch_of_rows(task, name, cells, joined, first)))
        rows_of += cells.index.tolist()
        joined += len(cells)
    with task.model.hooks(fwd_hooks=hooks):
        logits = task.model.resume(
            task.state,
            task.sites.stack,
            joins,
            first_position=first,
            logits_at="last" if task.reads_last else None,
        )
    if not task.reads_last and logits.shape[1] < task.logits.shape[1]:  # a causal stack's shared positions
        before = task.logits[:, : task.logits.shape[1] - logits.shape[1]].repeat_interleave(joined, 0)
        logits = torch.cat([before, logits], 1)
    n = len(task.base)
    found = torch.stack([measured(k, fn, logits, n) for k, fn in task.metrics.items()])
    found = found.reshape(len(task.metrics), n, joined).transpose(1, 2)
    order = {number: row for row, number in enumerate(rows_of)}
    return found[:, [order[number] for number in table.index]]


def _after_its_block(task: Task, layer: int, name: str, cells: Any, first: int) -> Tensor:
    """The stream after a block with each site of it patched, from `first` on, [batch * site pos d_model].

    A patch that acts alone changes the stream at its own position only: that position runs, and no other.
    """
    assert task.state is not None and task.sites.stack is not None
    stack = task.model.stacks[task.sites.stack]
    places = task.sites.positions_of(cells, len(task.base)).T  # [batch cell]
    with task.model.hooks(fwd_hooks=[(name, _patch_of_rows(task, name, cells, 0, None))]):
        after = stack.one_block(layer, places, task.state.passes[stack.name])
    rows = task.state.resid_pre(stack.name, layer + 1)[:, first:].repeat_interleave(len(cells), 0)
    rows[torch.arange(len(rows)), places.flatten() - first] = after[:, 0]
    return rows


def _patch_of_rows(task: Task, name: str, cells: Any, joined: int, first: int | None) -> Callable[..., Tensor]:
    """A hook function that patches the rows that have just joined, each at its own site.

    Args:
        task: the sweep.
        name: the hook point.
        cells: the table's rows of this layer.
        joined: how many rows of each example were there before.
        first: absolute position of the pass's first position; None where each row holds its own position alone.
    """
    sites, n = task.sites, len(task.base)
    each = torch.arange(n)
    index, axes = [torch.arange(joined, joined + len(cells))[:, None], each], [1, 0]  # [cell batch]
    source_index, source_axes = [each], [0]
    if task.places and sites.position_axis is not None:
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
    new = task.source[name]
    if (
        first
        and not task.places
        and sites.position_axis is not None
        and sites.axes[sites.position_axis] in OWN_POSITIONS
    ):
        new = new.narrow(sites.position_axis, first, new.shape[sites.position_axis] - first)
    new = new.movedim(source_axes, list(range(len(source_axes))))[tuple(source_index)]  # [cell? batch ...]
    front = list(range(len(axes)))

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        # [row batch position unit ...], a view
        rows = activation.view(n, -1, *activation.shape[1:]).movedim(axes, front)
        rows[tuple(index)] = new.to(activation)
        return activation

    return hook_fn


def _one_run_a_site(task: Task, chunk: list[int]) -> Tensor:
    """Values of some sites by one run of the whole model each, [metric site example]."""
    rows = []
    for number in chunk:
        cells = task.sites.table.iloc[[number]]
        name = task.sites.hook.format(cells["layer"].iloc[0] if "layer" in cells else None)
        hook = (name, _patch_of_rows(task, name, cells, 0, 0))
        logits = task.read(task.model.run_with_hooks(task.base, fwd_hooks=[*task.hooks, hook]))
        rows.append(torch.stack([measured(k, m, logits, len(task.base)) for k, m in task.metrics.items()]))
    return torch.stack(rows, 1)
