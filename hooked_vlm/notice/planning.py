"""What a run will cost, before it is run: sites, operations, memory, time, and what each option would save.

The first rows of each task go through the processor, and nothing through the model: how long prompts are, and where
clean and corrupt begin to differ, says which sites cannot matter. Operations and bytes are counted (`patching.cost`);
seconds come from timing passes of the run's own widths on its own device (a model of two layers where the weights are
not loaded), so that what is estimated is a sum of things that were measured.

Costs the processor on a few rows, and a few seconds where seconds are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from hooked_vlm.errors import DoesNotFitError
from hooked_vlm.models import loading, placement
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.memory import free_bytes
from hooked_vlm.models.memory import shown as _bytes
from hooked_vlm.models.skeleton import shallow, skeleton
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.effects import AT_ONCE
from hooked_vlm.notice.examples import Example, stacked, unanswered
from hooked_vlm.notice.foreseen import Foreseen, foreseen
from hooked_vlm.notice.rows import TaskRows
from hooked_vlm.notice.selections import TOP
from hooked_vlm.notice.timing import Rates, rates
from hooked_vlm.notice.vocabulary import EVERY
from hooked_vlm.patching import cost
from hooked_vlm.patching.cost import SitesCost

LOOKED_AT = 4  # rows of a task
AFFORDABLE = 3  # every position at once is swept where it costs at most so many times what the other sites do
ROW_BYTES = 24  # of a row of effects on disk, compressed
FORWARDS = 5  # of an example besides its sweeps: its answer, its clean run, its attention, its ablation


@dataclass(frozen=True)
class Plan:
    """What a run costs.

    Args:
        config: the run's, with what it leaves open decided.
        costs: of one example, by corruption and kind of sites; the mean over the rows that were looked at.
        n_tokens: of the longest prompt.
        flop: operations of one example, its forwards included.
        weights_bytes: of the weights.
        kept_bytes: of what a sweep holds throughout: the base run and what is patched in.
        row_bytes: of one site in flight; as many run together as a quarter of the memory that is free holds.
        peak_bytes: of all of these.
        free_bytes: of the device, weights not loaded.
        disk_bytes: of the run's directory.
        seconds: of the run; None if nothing was timed.
        savings: share of an example's operations that is left with an option, by option.
    """

    config: NoticeConfig
    costs: dict[tuple[str, str], SitesCost]
    n_tokens: int
    flop: float
    weights_bytes: int
    kept_bytes: int
    row_bytes: int
    peak_bytes: int
    free_bytes: int
    disk_bytes: int
    seconds: float | None = None
    savings: dict[str, float] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Examples of all tasks."""
        return len(self.config.tasks) * self.config.examples

    @property
    def sites(self) -> int:
        """Sites of one example, all corruptions together."""
        return cost.total(self.costs.values()).sites

    @property
    def skipped(self) -> int:
        """Those of them that cannot differ, and are not run."""
        return cost.total(self.costs.values()).skipped

    @property
    def position_runs(self) -> int:
        """Positions that the sites of one example run through blocks; see `patching.cost`."""
        return cost.total(self.costs.values()).position_runs

    def refuse_unfit(self) -> None:
        """Raise DoesNotFitError if one site at a time does not fit the memory."""
        least = self.weights_bytes + self.kept_bytes + self.row_bytes
        if least <= self.free_bytes:
            return
        ways = []
        if self.config.dtype == "float32":
            ways.append(f"dtype float16 or bfloat16 halves the weights to {_bytes(self.weights_bytes / 2)}")
        if (self.config.batch or 1) > 1:
            ways.append(f"batch 1 keeps {_bytes(self.kept_bytes / (self.config.batch or 1))} instead")
        ways.append("load the model over several devices or quantised (HookedVLM.from_pretrained(..., device_map=, "
                    "quantization_config=)) and give it to run(config, out, model=model)")  # fmt: skip
        raise DoesNotFitError(
            f"{self.config.model} {placement.told(self.config.device, self.config.dtype)} needs {_bytes(least)} "
            f"(weights {_bytes(self.weights_bytes)}, one example's runs {_bytes(self.kept_bytes)}, one site "
            f"{_bytes(self.row_bytes)}), and {_bytes(self.free_bytes)} are free",
            *ways,
        )

    def __str__(self) -> str:
        config, n = self.config, self.examples
        lines = [
            f"{config.model} {placement.told(config.device, config.dtype)}; "
            f"{config.examples} examples of {', '.join(config.tasks)}, of {self.n_tokens} tokens at most"
        ]
        width = max((len(f"{corrupt}, {kind}") for corrupt, kind in self.costs), default=0)
        for (corrupt, kind), each in self.costs.items():
            lines.append(
                f"  {f'{corrupt}, {kind}':<{width}}  {each.skipped:>8,} of {each.sites:>8,} sites cannot differ: not "
                f"run; {each.position_runs:>12,} position-runs, {_flop(each.flop)}"
            )
        lines.append(f"  an example: {self.skipped:,} of {self.sites:,} sites not run; {_flop(self.flop)} in all")
        if not config.every_position:
            lines.append("  every position at once: not swept (--every-position sweeps it too)")
        lines.append(
            f"  memory: {_bytes(self.peak_bytes)} of {_bytes(self.free_bytes)} that are free (weights "
            f"{_bytes(self.weights_bytes)}, the runs that are kept {_bytes(self.kept_bytes)}, a site in flight "
            f"{_bytes(self.row_bytes)}); disk {_bytes(self.disk_bytes)}"
        )
        if self.seconds is not None:
            lines.append(f"  time: about {_time(self.seconds)}, {_time(self.seconds / max(1, n))} an example")
        saved = [f"{option} {share:.0%}" for option, share in self.savings.items() if share < 0.95]
        if saved:
            lines.append(f"  of its operations are left with: {', '.join(saved)}")
        return "\n".join(lines)


def plan(
    config: NoticeConfig,
    *,
    model: HookedVLM | None = None,
    timed: bool = True,
    rows: Mapping[str, TaskRows] | None = None,
) -> Plan:
    """What a run will cost.

    Args:
        config: the run's.
        model: a `HookedVLM`; None reads the config of `config.model`, and no weights.
        timed: time a few passes for the expected seconds.
        rows: of each task, where they are opened already.

    Raises:
        DoesNotFitError: if seconds are wanted and a pass does not fit the memory.
        DataError, TaskSchemaError, InputsError, ...: as a run does, if a task or an option cannot be used.
        CheckpointError, ...: as loading does.
    """
    loaded = model
    config, model = _without_weights(config) if model is None else (config.resolved(model), model)
    device, dtype = torch.device(str(config.device)), placement.to_dtype(config.dtype)
    opened = rows or {task: TaskRows(config, task) for task in config.tasks}
    examples = [example for each in opened.values() for example in looked_at(config, model, each)]
    config = decided(config, model, examples)
    found, batch = foreseen(config, model, examples), int(config.batch or 1)
    forwards = _n_forwards(config) * cost.run_flop(model, cost.lengths_of(model, found.n_tokens))
    weights = sum(weight.numel() for weight in model.hf_model.parameters()) * dtype.itemsize
    free = free_bytes(device) + (weights if loaded is not None else 0)
    kept, row = (numbers * dtype.itemsize * batch for numbers in (found.kept, found.row))
    size = max(1, ((free - weights) // 4 - kept) // row)
    n_examples = len(config.tasks) * config.examples
    made = Plan(
        config=config,
        costs=found.costs,
        n_tokens=found.n_tokens,
        flop=found.total.flop + forwards,
        weights_bytes=weights,
        kept_bytes=kept,
        row_bytes=row,
        peak_bytes=weights + kept + row * min(size, max((each.sites for each in found.costs.values()), default=1)),
        free_bytes=free,
        disk_bytes=n_examples * found.total.sites * ROW_BYTES,
        savings=_savings(config, model, examples, forwards),
    )
    if not timed or not examples:
        return made
    made.refuse_unfit()
    inputs = stacked(examples[:1]).repeat(batch).to(device)
    timed_on = loaded or shallow(model, device=device, dtype=dtype)
    return replace(
        made, seconds=n_examples * _seconds(config, model, found, rates(timed_on, model, inputs, found, size), size)
    )


def decided(config: NoticeConfig, model: HookedVLM, examples: Sequence[Example]) -> NoticeConfig:
    """A configuration that says whether every position at once is swept: where it is affordable, if it was left open.

    Args:
        config: the run's, resolved.
        model: a `HookedVLM`, its weights not needed.
        examples: some of the run's, laid out.
    """
    if config.every_position is not None:
        return config
    if config.screen is not None:
        return replace(config, every_position=True).resolved(model)
    costs = foreseen(config, model, examples).costs
    at_once = sum(each.flop for (_, kind), each in costs.items() if kind.endswith(AT_ONCE))
    rest = sum(each.flop for each in costs.values()) - at_once
    return replace(config, every_position=at_once <= AFFORDABLE * rest).resolved(model)


def looked_at(config: NoticeConfig, model: HookedVLM, rows: TaskRows) -> list[Example]:
    """The first rows of a task that can be patched, as if the model answered them rightly.

    Args:
        config: the run's, resolved.
        model: a `HookedVLM`, its weights not needed.
        rows: of the task.
    """
    first = enumerate(rows.first(model, LOOKED_AT))
    return unanswered(model, config, [(number, {**row, "task": rows.task}) for number, row in first])


def _without_weights(config: NoticeConfig) -> tuple[NoticeConfig, HookedVLM]:
    """A configuration, resolved by the model that its checkpoint's config describes, and that model."""
    processor = loading.load_processor(loading.resolve(config.model), revision=config.revision)
    model = skeleton(config.model, processor=processor, revision=config.revision)
    device, dtype = placement.placed(config.device, config.dtype, model.hf_model.config)
    device = device or placement.accelerator() or torch.device("cpu")
    name = str(dtype or model.dtype).removeprefix("torch.")
    return replace(config, device=str(device), dtype=name).resolved(model), model


def _n_forwards(config: NoticeConfig) -> int:
    """Whole runs of an example: those besides its sweeps, and two of each sweep."""
    return FORWARDS + 2 * len(config.corruptions)


def _seconds(config: NoticeConfig, model: HookedVLM, found: Foreseen, took: Rates, size: int) -> float:
    """Of one example."""
    cfg, total = model.stacks[model.prompt_stack].cfg, found.total
    n_layers, others = cfg.n_layers, (cfg.n_heads - 1) ** TOP  # sets of as many heads of the same layers, at most
    sets = 2 * len(config.corrupt) * (1 + min(config.random_draws, others))  # ablated: selected and random ones
    ablated = sets * (found.n_tokens * n_layers * took.position + took.row)
    swept = total.position_runs * took.position + found.n_run * took.row
    passes = found.n_passes(size) * n_layers * took.in_pass / int(config.batch or 1)
    return _n_forwards(config) * took.forward + swept + passes + ablated


def _savings(config: NoticeConfig, model: HookedVLM, examples: Sequence[Example], forwards: float) -> dict[str, float]:
    """What share of an example's operations is left with other options."""
    at = config.watch_at
    single = [replace(example, positions=tuple(example.where(at))) for example in examples]
    others: dict[str, tuple[NoticeConfig, Sequence[Example]]] = {}
    if at in ("last", "answer") and config.positions != at:
        others[f"--positions {at}"] = (replace(config, positions=at, select_at=at, every_position=False), single)
    if config.every_position and at != EVERY:
        others["--no-every-position"] = (replace(config, select_at=at, every_position=False), examples)
    if config.screen is None:
        others["--screen 64"] = (replace(config, screen=64), examples)
    for kind in config.kinds if len(config.kinds) > 1 else ():
        others[f"--sites {kind}"] = (replace(config, kinds=(kind,)), examples)
    for one in config.corrupt if len(config.corrupt) > 1 else ():
        others[f"--corrupt {one}"] = (replace(config, corrupt=(one,), region=None), examples)
    whole = foreseen(config, model, examples).total.flop + forwards
    return {
        option: (foreseen(changed, model, given).total.flop + forwards) / whole
        for option, (changed, given) in others.items()
    }


def _flop(n: int | float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n / 1e6:,.1f} MFLOP"


def _time(seconds: int | float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.2g} s"
