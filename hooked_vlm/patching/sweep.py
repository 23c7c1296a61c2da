"""The exact sweep: thousands of sites patched in one growing pass.

A sweep gives, to float rounding, the numbers of one `run_with_hooks` a site. Clean and corrupt run once each.
Then the layers of the patched stack are walked once: at layer L a row joins for each site of layer L, carrying the
base run's residual stream with the patch applied, and all rows run on together. A patch that changes its block's
output at its own position alone (all but those of what other positions attend to) runs that position alone
through the block. What no site changes is computed once and shared: every earlier stage, the keys and values of
cross-attention, and in a causal stack everything before the first patched position. Only the position that the
metrics read is unembedded.

Cost: two forwards, and for each site the blocks from its layer on. Memory: `budget` bytes; rows are cut into
chunks that fit, and running out of memory halves them. Hook points outside of blocks, and models that carry
hooks of the user's own, are swept with one run of the whole model a site.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import Tensor
from transformer_lens.patching import PatchingResult

from hooked_vlm.errors import InputsError
from hooked_vlm.hooks import OWN_POSITIONS
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import RunState
from hooked_vlm.patching.metrics import Metric
from hooked_vlm.patching.sites import ALL, Sites

Measure = Callable[[Tensor], Tensor]


def sweep(
    model: Any,
    clean: VLMInputs,
    corrupt: VLMInputs,
    sites: Sites,
    metrics: Mapping[str, Measure] | Measure,
    *,
    direction: Literal["denoise", "noise"] = "denoise",
    reduce: Literal["none", "mean"] = "none",
    budget: int | None = None,
    progress: bool = True,
    corruption: Sequence[Any] = (),
) -> PatchingResult:
    """Patch every site, one at a time, and measure.

    Args:
        model: a `HookedVLM`.
        clean: inputs that the model answers rightly.
        corrupt: inputs of the same shape, with the image or the text corrupted.
        sites: where to patch.
        metrics: functions of the logits [batch pos d_vocab] that give [batch], by name, or one of them. Those of
            `patching.metrics` are given the last position alone, any other function every position.
        direction: "denoise" patches clean into the corrupt run, "noise" corrupt into the clean one.
        reduce: "none" keeps every example, "mean" averages them.
        budget: bytes that the sweep may take, the two runs it keeps included; None for a quarter of what is free.
        progress: show sites per second and time left.
        corruption: forward hooks that are in place while the corrupt inputs run, e.g. noise on the embeddings. All
            that act before the patched stack's first block leave the sweep as fast as it is; with others each
            site takes a run of the whole model.

    Returns:
        `transformer_lens.patching.PatchingResult`: `values` [metric, *sites.axis_names, example], the metric
        axis there if a mapping was given, `baseline` the base run's [metric example], and with them effects,
        bootstrap intervals and permutation p-values.

    Raises:
        InputsError: if clean and corrupt differ in shape, or a metric gives no number for each example.
        PositionError: if a position is out of range.
        SilentHookError: if a run never reaches the sites.
    """
    return sweep_all(
        model,
        clean,
        corrupt,
        {"": sites},
        metrics,
        direction=direction,
        reduce=reduce,
        budget=budget,
        progress=progress,
        corruption=corruption,
    )[""]


def sweep_all(
    model: Any,
    clean: VLMInputs,
    corrupt: VLMInputs,
    kinds: Mapping[str, Sites],
    metrics: Mapping[str, Measure] | Measure,
    *,
    direction: Literal["denoise", "noise"] = "denoise",
    reduce: Literal["none", "mean"] = "none",
    budget: int | None = None,
    progress: bool = True,
    corruption: Sequence[Any] = (),
) -> dict[str, PatchingResult]:
    """Sweeps over several kinds of sites, which share the clean and the corrupt run.

    Args:
        model: a `HookedVLM`.
        clean: as in `sweep`, and so the rest.
        corrupt: likewise.
        kinds: sites by name.
        metrics: likewise.
        direction: likewise.
        reduce: likewise.
        budget: likewise.
        progress: likewise.
        corruption: likewise.

    Returns:
        A result for each name; the activations of all kinds are held until the last is swept.

    Raises:
        InputsError, PositionError, SilentHookError: as `sweep`.
    """
    named = dict(metrics) if isinstance(metrics, Mapping) else {getattr(metrics, "name", "metric"): metrics}
    if not named or direction not in ("denoise", "noise") or reduce not in ("none", "mean"):
        raise InputsError(
            f"metrics {list(named)}, direction {direction!r}, reduce {reduce!r}: expected a metric, 'denoise' or "
            "'noise', and 'none' or 'mean'"
        )
    refuse_different(clean, corrupt)
    with torch.no_grad():
        if direction == "denoise":
            tasks = _prepared(model, clean, corrupt, kinds, named, (), corruption)
        else:
            tasks = _prepared(model, corrupt, clean, kinds, named, corruption, ())
        return {
            name: _result(task, budget, progress, reduce, isinstance(metrics, Mapping)) for name, task in tasks.items()
        }


def _result(task: Task, budget: int | None, progress: bool, reduce: str, is_mapping: bool) -> PatchingResult:
    named, base = task.metrics, task.base
    baseline = torch.stack([_measured(name, fn, task.read(task.logits), len(base)) for name, fn in named.items()])
    values = _swept(task, list(_chunks(task, budget)), progress)
    values = values.reshape(len(named), *task.sites.shape, len(base))
    if reduce == "mean":
        values, baseline = values.mean(-1), baseline.mean(-1)
    return PatchingResult(
        values=values if is_mapping else values[0],
        axis_names=[] if task.sites.picked is not None else task.sites.axis_names,
        index_df=task.sites.table,
        metric_names=list(named),
        reduced=reduce == "mean",
        baseline=baseline if is_mapping else baseline[0],
        has_metric_axis=is_mapping,
    )


# --- what is to be done -----------------------------------------------------------------------------


@dataclass
class Task:
    """A sweep whose two runs are done.

    Args:
        model: the model.
        base: the inputs that are patched into.
        sites: where, with the positions spelled out.
        metrics: the measures by name.
        logits: of the base run, at every position.
        state: of the base run; None if each site takes a run of its own.
        source: the activations to patch in, by hook name.
        hooks: forward hooks of the base run.
    """

    model: Any
    base: VLMInputs
    sites: Sites
    metrics: dict[str, Measure]
    logits: Tensor
    state: RunState | None
    source: dict[str, Tensor]
    hooks: Sequence[Any] = ()

    @property
    def causal(self) -> bool:
        """True if the patched stack is causal, so that what is before a patched position can be shared."""
        return self.sites.stack is not None and bool(self.model.stacks[self.sites.stack].causal)

    @property
    def acts_alone(self) -> bool:
        """True if a patch changes the stream after its block at its own position alone."""
        stack = self.sites.stack
        in_block = self.sites.hook.partition("{}.")[2]
        return (
            "position" in self.sites.axis_names and stack is not None and self.model.stacks[stack].acts_alone(in_block)
        )

    @property
    def reads_last(self) -> bool:
        """True if every metric reads the last position alone."""
        return all(isinstance(fn, Metric) and fn.n_last == 1 for fn in self.metrics.values())

    @property
    def prompted(self) -> bool:
        """True if the logits stand at the prompt's positions, so that padding may follow the last real one."""
        return bool(self.model.answer_stack == self.model.prompt_stack)

    def read(self, logits: Tensor) -> Tensor:
        """What the metrics are given of logits at every position: the last real one alone, if that is enough."""
        if not (self.reads_last and self.prompted) or logits.shape[1] == 1:
            return logits
        return logits[torch.arange(len(logits)), self.base.last_each][:, None]


def _prepared(
    model: Any,
    source: VLMInputs,
    base: VLMInputs,
    kinds: Mapping[str, Sites],
    metrics: dict[str, Measure],
    source_hooks: Sequence[Any],
    base_hooks: Sequence[Any],
) -> dict[str, Task]:
    own_hooks = bool(model.list_hooks())
    names = list(dict.fromkeys(name for sites in kinds.values() for name in sites.hooks))
    with model.hooks(fwd_hooks=source_hooks):
        _, cache = model.run_with_cache(source, names_filter=names)
    found = {name: cache.cache_dict[name] for name in names if name in cache.cache_dict}
    if len(found) < len(names):
        model.run_with_hooks(source, fwd_hooks=[(n, lambda x, hook: None) for n in names])  # raises SilentHookError
    if own_hooks:
        warnings.warn("the model carries hooks of its own: each site takes a run of the whole model", stacklevel=5)
    with model.hooks(fwd_hooks=base_hooks):
        logits, state = model.run_with_state(base)
    tasks = {}
    for kind, sites in kinds.items():
        axis = sites.position_axis
        closed = sites.at(1 if axis is None else found[sites.hooks[0]].shape[axis])
        shared = not own_hooks and sites.stack is not None
        shared = shared and all(_is_before(model, name, str(sites.stack)) for name, _ in base_hooks)
        tasks[kind] = Task(model, base, closed, metrics, logits, state if shared else None, found, base_hooks)
    return tasks


def _is_before(model: Any, name: Any, stack: str) -> bool:
    """True if a hook acts before a stack's first block, so that resuming in the stack does without it."""
    order, prefix = list(model.stacks), model.stacks[stack].prefix
    if name in ("hook_pixel_values", f"{prefix}hook_embed", f"{prefix}hook_pos_embed"):
        return True
    if not isinstance(name, str) or order.index(stack) == 0:
        return False
    owner = None if name == "hook_image_features" else model.stack_of(name)
    return owner is None or name.startswith("projector.") or order.index(owner) < order.index(stack)


def refuse_different(clean: VLMInputs, corrupt: VLMInputs) -> None:
    """Raise InputsError if the tensors of clean and corrupt differ in shape."""
    for name in ("pixel_values", "input_ids", "decoder_input_ids"):
        a, b = (None if getattr(x, name) is None else tuple(getattr(x, name).shape) for x in (clean, corrupt))
        if a != b:
            raise InputsError(
                f"clean and corrupt differ in {name}: {a} and {b}. Patching needs the same number of examples and "
                "tokens: choose replacements of equal length, or pad both alike"
            )


# --- chunks -----------------------------------------------------------------------------------------


def _chunks(task: Task, budget: int | None) -> Iterator[list[int]]:
    """Site numbers (rows of the table) that run together, in an order that shares the longest prefix."""
    table = task.sites.table
    order = list(range(len(table)))
    if task.causal and "position" in table:  # sites late in the sequence leave little to compute again
        order = table.sort_values(["position", "layer"], ascending=[False, True], kind="stable").index.tolist()
    size = _rows_that_fit(task, budget)
    yield from (order[i : i + size] for i in range(0, len(order), size))


def _rows_that_fit(task: Task, budget: int | None) -> int:
    """How many rows of each example fit the budget, by what a block holds at once."""
    if budget is None:
        device = task.model.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        budget = free // 4
    stacks = list(task.model.stacks)
    later = stacks[stacks.index(task.sites.stack) if task.sites.stack else 0 :]
    d_vocab = task.logits.shape[-1] * (1 if task.reads_last else task.logits.shape[1])
    row = max([2 * d_vocab, *(_block_numbers(task, name) for name in later)])
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


def _block_numbers(task: Task, name: str) -> int:
    """Roughly how many numbers one row holds at once in a block of a stack: streams, MLP, and attention."""
    cfg = task.model.stacks[name].cfg
    n = keys = cfg.n_ctx if name == "vision_encoder" else task.base.input_ids.shape[1]
    if task.sites.stack == name and task.state is not None:
        memory = task.state.passes[name].memory
        if memory is not None and memory[0].cross_attn is not None:
            keys = max(keys, memory[0].cross_attn.k.shape[1])
        n -= _first_position(task, slice(None))
    looked_at = "pattern" in task.sites.hook or "scores" in task.sites.hook
    attention = 3 * cfg.n_heads * keys if looked_at or (task.causal and n < keys) else 0
    return int(n * (6 * cfg.d_model + (3 if cfg.gated_mlp else 2) * (cfg.d_mlp or 0) + attention))


def _first_position(task: Task, numbers: list[int] | slice) -> int:
    """First position that these sites change, where the stack is causal; else 0."""
    if not task.causal or "position" not in task.sites.table:
        return 0
    first = int(task.sites.table["position"].iloc[numbers].min())
    return min(first, int(task.base.last_each.min())) if task.reads_last and task.prompted else first


# --- running ----------------------------------------------------------------------------------------


def _swept(task: Task, chunks: list[list[int]], progress: bool) -> Tensor:
    """Values of every site, [metric site example]."""
    from tqdm.auto import tqdm

    n_sites = sum(map(len, chunks))
    values = torch.full((len(task.metrics), n_sites, len(task.base)), torch.nan)
    run = _one_run_a_site if task.state is None else _grown
    waiting = chunks[::-1]
    with tqdm(total=n_sites, unit="site", disable=not progress, desc=repr(task.sites)) as bar:
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
    return values


def _is_out_of_memory(error: BaseException) -> bool:
    return not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)


def _grown(task: Task, chunk: list[int]) -> Tensor:
    """Values of some sites by one growing pass, [metric site example]."""
    assert task.state is not None and task.sites.stack is not None
    table = task.sites.table.iloc[chunk]
    first = _first_position(task, chunk)
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
    measured = torch.stack([_measured(k, fn, logits, n) for k, fn in task.metrics.items()])
    measured = measured.reshape(len(task.metrics), n, joined).transpose(1, 2)
    order = {number: row for row, number in enumerate(rows_of)}
    return measured[:, [order[number] for number in table.index]]


def _after_its_block(task: Task, layer: int, name: str, cells: Any, first: int) -> Tensor:
    """The stream after a block with each site of it patched, from `first` on, [batch * site pos d_model].

    A patch that acts alone changes the stream at its own position only: that position runs, and no other.
    """
    assert task.state is not None and task.sites.stack is not None
    stack = task.model.stacks[task.sites.stack]
    places = torch.tensor(cells["position"].to_list())
    with task.model.hooks(fwd_hooks=[(name, _patch_of_rows(task, name, cells, 0, None))]):
        after = stack.one_block(layer, places, task.state.passes[stack.name])
    rows = task.state.resid_pre(stack.name, layer + 1)[:, first:].repeat_interleave(len(cells), 0)
    rows[torch.arange(len(rows)), (places - first).repeat(len(task.base))] = after[:, 0]
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
    index, axes, source_axes = [torch.arange(joined, joined + len(cells))], [1], []
    source_index: list[Tensor] = []
    if sites.positions != ALL and sites.position_axis is not None:
        at = torch.tensor(cells["position"].to_list())
        moves = sites.axes[sites.position_axis] in OWN_POSITIONS  # key positions of another stack do not move
        index.append(torch.zeros_like(at) if first is None else at - first if moves else at)
        source_index.append(at)
        source_axes.append(sites.position_axis)
    if sites.units != ALL and sites.unit is not None:
        unit = torch.tensor(cells["neuron" if sites.unit == "d_mlp" else "head"].to_list())
        index.append(unit)
        source_index.append(unit)
        source_axes.append(sites.axes.index(sites.unit))
    axes += [axis + 1 for axis in source_axes]
    front = list(range(len(axes)))
    new = task.source[name].movedim(source_axes, front[:-1])
    new = new[tuple(source_index)] if source_index else new  # [cell batch ...]

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        rows = activation.view(n, -1, *activation.shape[1:]).movedim(
            axes, front
        )  # [row position unit batch ...], a view
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
        rows.append(torch.stack([_measured(k, m, logits, len(task.base)) for k, m in task.metrics.items()]))
    return torch.stack(rows, 1)


def _measured(name: str, fn: Measure, logits: Tensor, n: int) -> Tensor:
    """A metric's value for each row of logits; a user's own function sees one row of each example at a time."""
    if isinstance(fn, Metric):
        found = fn(logits)
    else:
        per_row = logits.reshape(n, -1, *logits.shape[1:]).unbind(1)
        found = torch.stack([torch.as_tensor(fn(row)) for row in per_row], -1).flatten()
    if found.shape != (len(logits),):
        raise InputsError(
            f"metric {name!r} gave shape {tuple(found.shape)}; expected one number for each of {n} examples"
        )
    return found.float()
