"""A sweep whose two runs are done: what is patched into what, at which sites, and how it is measured.

Cost: the two runs; it holds the base run's keys, values and streams, and the source's activations at the sites.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from hooked_vlm.errors import InputsError
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import RunState
from hooked_vlm.patching.metrics import Metric, answering
from hooked_vlm.patching.result import SitesResult
from hooked_vlm.patching.sites import Sites

Measure = Callable[[Tensor], Tensor]


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

    def baseline(self) -> Tensor:
        """Every metric of the base run, [metric example]."""
        logits = self.read(self.logits)
        return torch.stack([measured(name, fn, logits, len(self.base)) for name, fn in self.metrics.items()])

    def read(self, logits: Tensor) -> Tensor:
        """What the metrics are given of logits at every position: the last real one alone, if that is enough."""
        return answering(self.model, self.base, logits) if self.reads_last else logits


def prepared(
    model: Any,
    source: VLMInputs,
    base: VLMInputs,
    kinds: Mapping[str, Sites],
    metrics: dict[str, Measure],
    source_hooks: Sequence[Any],
    base_hooks: Sequence[Any],
) -> dict[str, Task]:
    """The two runs of a sweep, shared by several kinds of sites.

    Args:
        model: a `HookedVLM`.
        source: the inputs whose activations are patched in.
        base: the inputs that are patched into.
        kinds: sites by name.
        metrics: measures by name.
        source_hooks: forward hooks of the source's run.
        base_hooks: forward hooks of the base's run.

    Returns:
        A task for each name.

    Raises:
        PositionError: if a position is out of range.
        SilentHookError: if a run never reaches the sites.
    """
    own_hooks = bool(model.list_hooks())
    names = list(dict.fromkeys(name for sites in kinds.values() for name in sites.hooks))
    found = activations(model, source, names, source_hooks)
    if own_hooks:
        warnings.warn("the model carries hooks of its own: each site takes a run of the whole model", stacklevel=4)
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


def activations(model: Any, inputs: VLMInputs, names: Sequence[str], hooks: Sequence[Any] = ()) -> dict[str, Tensor]:
    """The activations of a run at some hook points, by name.

    Args:
        model: a `HookedVLM`.
        inputs: what is run.
        names: the hook points.
        hooks: forward hooks of the run; at one hook point they act before it is looked at.

    Raises:
        SilentHookError: if the run never reaches one of them.
    """
    found: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        found[hook.name] = activation.detach()

    looking = [*hooks, *((name, keep) for name in names)]
    with model.hooks(fwd_hooks=looking):
        model(inputs, return_type=None)
    if len(found) < len(set(names)):
        model.run_with_hooks(inputs, fwd_hooks=looking, return_type=None)  # raises SilentHookError
    return found


def _is_before(model: Any, name: Any, stack: str) -> bool:
    """True if a hook acts before a stack's first block, so that resuming in the stack does without it."""
    order, prefix = list(model.stacks), model.stacks[stack].prefix
    if name in ("hook_pixel_values", f"{prefix}hook_embed", f"{prefix}hook_pos_embed"):
        return True
    if not isinstance(name, str) or order.index(stack) == 0:
        return False
    owner = None if name == "hook_image_features" else model.stack_of(name)
    return owner is None or name.startswith("projector.") or order.index(owner) < order.index(stack)


def by_name(metrics: Mapping[str, Measure] | Measure, direction: str, reduce: str) -> dict[str, Measure]:
    """Metrics by name. Raises InputsError if there is none, or an option that there is not."""
    named = _named(metrics)
    if not named or direction not in ("denoise", "noise") or reduce not in ("none", "mean"):
        raise InputsError(
            f"metrics {list(named)}, direction {direction!r}, reduce {reduce!r}: expected a metric, 'denoise' or "
            "'noise', and 'none' or 'mean'"
        )
    return named


def _named(metrics: Mapping[str, Measure] | Measure) -> dict[str, Measure]:
    return dict(metrics) if isinstance(metrics, Mapping) else {getattr(metrics, "name", "metric"): metrics}


def refuse_different(clean: VLMInputs, corrupt: VLMInputs) -> None:
    """Raise InputsError if the tensors of clean and corrupt differ in shape."""
    for name in ("pixel_values", "input_ids", "decoder_input_ids"):
        a, b = (None if getattr(x, name) is None else tuple(getattr(x, name).shape) for x in (clean, corrupt))
        if a != b:
            raise InputsError(
                f"clean and corrupt differ in {name}: {a} and {b}. Patching needs the same number of examples and "
                "tokens: choose replacements of equal length, or pad both alike"
            )


def measured(name: str, fn: Measure, logits: Tensor, n: int) -> Tensor:
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


def result(
    values: Tensor,
    baseline: Tensor,
    table: pd.DataFrame,
    axes: Sequence[str],
    metrics: Mapping[str, Measure] | Measure,
    reduce: str,
) -> SitesResult:
    """What was measured, as TransformerLens gives it.

    Args:
        values: the metrics of the patched runs, [metric *axes example].
        baseline: those of the base run, [metric example].
        table: what was patched, a row each.
        axes: names of the axes between; none where the sites are a list.
        metrics: as they were asked for; the metric axis is left out where one stood alone.
        reduce: "none" or "mean", over examples.
    """
    if reduce == "mean":
        values, baseline = values.mean(-1), baseline.mean(-1)
    several = isinstance(metrics, Mapping)
    return SitesResult(
        values=values if several else values[0],
        axis_names=list(axes),
        index_df=table,
        metric_names=list(_named(metrics)),
        reduced=reduce == "mean",
        baseline=baseline if several else baseline[0],
        has_metric_axis=several,
    )
