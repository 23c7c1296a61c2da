"""A sweep whose two runs are done: what is patched into what, at which sites, and how it is measured.

Cost: the two runs; it holds the base run's keys, values and streams, and the source's activations at the sites.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_vlm.components.embed import VisionStack
from hooked_vlm.errors import InputsError, PositionError
from hooked_vlm.hooks import OWN_POSITIONS, HookFunction
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.hooking import pairs
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import RunState
from hooked_vlm.models.turn import a_model
from hooked_vlm.options import number, of_type, takes, told
from hooked_vlm.patching.cost import joins_after_its_block, lengths_of
from hooked_vlm.patching.metrics import Metric, answer_logits, measured
from hooked_vlm.patching.moving import Moved, comparing, moving
from hooked_vlm.patching.result import Missed, SitesResult, rounding_of
from hooked_vlm.patching.sites import Sites
from hooked_vlm.positions import Places

Measure = Callable[[Tensor], Tensor]


@dataclass
class SweepPlan:
    """A sweep whose two runs are done.

    Args:
        model: the model.
        base: the inputs that are patched into.
        sites: where, with the positions spelled out.
        metrics: the measures by name.
        logits: of the base run, at every position.
        state: of the base run; None if each site takes a run of its own.
        source: the activations to patch in, by hook name; with an intervention what it makes of the base run's.
        moved: where they differ from the base run's, by hook name.
        hooks: forward hooks of the base run.
        intervention: what is done to the sites' activations, a hook function; None to patch `source` in.
    """

    model: HookedVLM
    base: VLMInputs
    sites: Sites
    metrics: dict[str, Measure]
    logits: Tensor
    state: RunState | None
    source: dict[str, Tensor]
    moved: dict[str, Moved]
    hooks: Sequence[Any] = field(default=(), repr=False)
    intervention: HookFunction | None = field(default=None, repr=False)

    @property
    def causal(self) -> bool:
        """True if the patched stack is causal, so that what is before a patched position can be shared."""
        return self.sites.stack is not None and bool(self.model.stacks[self.sites.stack].causal)

    @property
    def places(self) -> bool:
        """True if each site is at one position of each example."""
        return isinstance(self.sites.positions, Places)

    @property
    def is_position_local(self) -> bool:
        """True if a patch changes the stream after its block at its own position alone."""
        return self.sites.stack is not None and joins_after_its_block(self.model.stacks[self.sites.stack], self.sites)

    @property
    def lengths(self) -> dict[str, int]:
        """Positions of each stack in the base run."""
        found = lengths_of(self.model, self.base.input_ids.shape[1])
        state = self.state
        return found if state is None else found | {name: state.resid_pre(name, 0).shape[1] for name in state.passes}

    @property
    def reads_last(self) -> bool:
        """True if every metric reads the last position alone."""
        return all(isinstance(fn, Metric) and fn.n_last == 1 for fn in self.metrics.values())

    @property
    def prompted(self) -> bool:
        """True if the logits stand at the prompt's positions, so that padding may follow the last real one."""
        at_each = self.logits.shape[1] == self.base.input_ids.shape[1]  # not those of a retrieval, which are one
        return bool(self.model.answer_stack == self.model.prompt_stack and at_each)

    @cached_property
    def matters(self) -> Bool[Tensor, "site example"]:
        """Where a patch can change what a metric reads; elsewhere its value is the base run's.

        It cannot where it puts in what is there already, and where it changes the last block's output at a position
        that no metric reads.
        """
        matters = self._moving[0]
        after_last = self.state is not None and self.is_position_local and self.reads_last and self.prompted
        if after_last and self.sites.stack == self.model.answer_stack:
            at = self.sites.positions_of(self.sites.table, len(self.base))
            last = self.model.stacks[self.sites.stack].cfg.n_layers - 1
            own = torch.tensor([layers[0] == last for layers in self.sites.layers_of(self.sites.table)])[:, None]
            matters = matters & ~(own & (at != self.base.last_each.cpu()))
        return matters

    @cached_property
    def first(self) -> Int[Tensor, " site"]:
        """The first position of its stack that a site changes in any example; 0 where earlier ones see it too."""
        axis = self.sites.position_axis
        if not self.causal or axis is None or self.sites.axes[axis] not in OWN_POSITIONS:
            return torch.zeros_like(self._moving[1])  # a key of another stack is seen from every position
        first = self._moving[1]
        if self.state is not None and (mask := self.state.passes[str(self.sites.stack)].mask).groups is not None:
            first = torch.tensor([mask.first_to_see(at) for at in first.tolist()], dtype=torch.long)
        last = int(self.base.last_each.min())
        return first.clamp(max=last) if self.reads_last and self.prompted else first

    @cached_property
    def _moving(self) -> tuple[Tensor, Tensor]:
        return moving(self.sites, self.moved, len(self.base))

    @cached_property
    def baseline(self) -> Tensor:
        """Every metric of the base run, [metric example]."""
        logits = self.read(self.logits)
        return torch.stack([measured(name, fn, logits, len(self.base)) for name, fn in self.metrics.items()])

    def read(self, logits: Tensor) -> Tensor:
        """What the metrics are given of logits at every position: the last real one alone, if that is enough."""
        return answer_logits(self.model, self.base, logits) if self.reads_last else logits


def prepared(
    model: HookedVLM,
    source: VLMInputs | None,
    base: VLMInputs,
    kinds: Mapping[str, Sites],
    metrics: dict[str, Measure],
    source_hooks: Sequence[Any],
    base_hooks: Sequence[Any],
    intervention: HookFunction | None = None,
) -> dict[str, SweepPlan]:
    """The two runs of a sweep, shared by several kinds of sites; with an intervention the base run alone.

    Args:
        model: a `HookedVLM`.
        source: the inputs whose activations are patched in; None with an intervention.
        base: the inputs that are patched into.
        kinds: sites by name.
        metrics: measures by name.
        source_hooks: forward hooks of the source's run.
        base_hooks: forward hooks of the base's run.
        intervention: as in `SweepPlan`.

    Returns:
        A plan for each name.

    Raises:
        PositionError: if a position is out of range.
        SilentHookError: if a run never reaches the sites.
    """
    source_hooks, base_hooks = (pairs(hooks, "corruption") for hooks in (source_hooks, base_hooks))
    own_hooks = bool(model.list_hooks())
    names = list(dict.fromkeys(name for sites in kinds.values() for name in sites.hooks))
    found = {} if source is None else activations(model, source, names, source_hooks)
    acting = _keeping(found, names, intervention) if source is None else []
    if own_hooks:
        warnings.warn("the model carries hooks of its own: each site takes a run of the whole model", stacklevel=4)
    moved: dict[str, dict[str, Moved]] = {kind: {} for kind in kinds}
    looking = [hook for kind, sites in kinds.items() for hook in comparing(sites, found, moved[kind])]
    with model.hooks(fwd_hooks=[*base_hooks, *acting, *looking]):
        logits, state = model.run_with_state(base)
    _refuse_unreached(model, base, found, [*base_hooks, *acting], names)
    plans = {}
    for kind, sites in kinds.items():
        closed = closed_sites(model, sites, found[sites.hooks[0]], base)
        before = [isinstance(name, str) and model.runs_before(name, str(sites.stack)) for name, _ in base_hooks]
        shared = not own_hooks and sites.stack is not None and all(before)
        given = state if shared else None
        plans[kind] = SweepPlan(
            model, base, closed, metrics, logits, given, found, moved[kind], base_hooks, intervention
        )
    return plans


def closed_sites(model: HookedVLM, sites: Sites, seen: Tensor, inputs: VLMInputs) -> Sites:
    """Sites with their positions spelled out.

    Args:
        model: a `HookedVLM`.
        sites: where to patch.
        seen: an activation at one of their hook points.
        inputs: what is patched into.

    Raises:
        PositionError: if there is no such position, it is padding in some row, or there are positions for other rows.
    """
    axis = sites.position_axis
    if axis is None:
        return sites.at(1)
    n, closed = seen.shape[axis], sites.at(seen.shape[axis], len(inputs))
    of_prompt = sites.axes[axis] in OWN_POSITIONS and model.stack_of(sites.hooks[0]) == model.prompt_stack
    if not of_prompt or inputs.real is None or not isinstance(closed.positions, Places):
        return closed
    if not closed.by_row and len(closed.positions.spelled(n, "positions")[0]) == n:
        return closed  # all there are, padding among them: it has effects of 0
    at = closed.positions_of(closed.table, len(inputs)).T.to(inputs.real.device)
    row, cell = next(iter((~inputs.real.gather(1, at)).nonzero().tolist()), (None, None))
    if row is not None:
        raise PositionError(
            f"position {int(at[row, cell])} of row {row} is padding, so that patching it does nothing: rows of "
            "other lengths have positions of their own, e.g. inputs.last_each[:, None], inputs.find_each('word')"
        )
    return closed


def activations(
    model: HookedVLM, inputs: VLMInputs, names: Sequence[str], hooks: Sequence[Any] = ()
) -> dict[str, Tensor]:
    """The activations of a run at some hook points, by name.

    Args:
        model: a `HookedVLM`.
        inputs: what is run.
        names: the hook points.
        hooks: forward hooks of the run; at one hook point they act before it is looked at.

    Raises:
        SilentHookError: if the run never reaches one of them.
        InputsError: if it reaches one several times, so that it has no one activation there.
    """
    found: dict[str, Tensor] = {}
    looking = [*hooks, *_keeping(found, names)]
    with model.hooks(fwd_hooks=looking):
        model(inputs, return_type=None)
    _refuse_unreached(model, inputs, found, looking, names)
    return found


def _keeping(
    found: dict[str, Tensor], names: Sequence[str], intervention: HookFunction | None = None
) -> list[tuple[str, Callable[[Tensor, Any], None]]]:
    """Forward hooks that write a run's activations into `found`, or what an intervention makes of them."""

    def keep(activation: Tensor, hook: Any) -> None:
        if hook.name in found:
            raise InputsError(
                f"{hook.name} fires several times in a run, once for each of q, k and v, and has no one activation to "
                "patch: set model.cfg.use_split_qkv_input = False"
            )
        seen = activation.detach()
        found[hook.name] = seen if intervention is None else hook.edited(intervention, seen)

    return [(name, keep) for name in names]


def _refuse_unreached(
    model: HookedVLM, inputs: VLMInputs, found: dict[str, Tensor], hooks: Sequence[Any], names: Sequence[str]
) -> None:
    """Raise SilentHookError if a run that wrote into `found` did not reach some of the hook points."""
    if len(found) < len(set(names)):
        found.clear()
        model.run_with_hooks(inputs, fwd_hooks=hooks, return_type=None)  # raises it


def asked(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs | None,
    kinds: Mapping[str, Sites],
    metrics: Mapping[str, Measure] | Measure,
    *,
    direction: str,
    reduce: str,
    budget: int | float | None = None,
    intervention: HookFunction | None = None,
    windows: bool = False,
) -> dict[str, Measure]:
    """Metrics by name, of a sweep that can be run.

    Args:
        model: a `HookedVLM`, and so the rest as in `sweep`.
        clean: likewise.
        corrupt: likewise.
        kinds: sites by name.
        metrics: likewise.
        direction: likewise.
        reduce: likewise.
        budget: likewise.
        intervention: likewise.
        windows: True if sites may hold several layers.

    Raises:
        InputsError: if an argument is of another type, there is no metric, it cannot be called with logits, there is
            no such option, options contradict one another, or clean and corrupt do not fit one another.
    """
    a_model(model)
    for name, sites in kinds.items():
        of_type(sites, name or "sites", Sites, "Sites, e.g. Sites.heads(model, stack)")
        if sites.spans is not None and not windows:
            raise InputsError(f"{sites!r}: only a sweep of every site takes windows of layers; give each layer alone")
    if budget is not None:
        number(budget, "budget", above=0)
    named = _by_name(metrics, direction, reduce)
    expected = "VLMInputs: model.to_inputs(image, 'a question?')"
    of_type(clean, "clean", VLMInputs, expected)
    _refuse_images_of_one_prompt(model, kinds, clean)
    if intervention is None:
        of_type(corrupt, "corrupt", VLMInputs, expected)
        assert corrupt is not None
        _refuse_different(model, clean, corrupt)
    elif corrupt is not None or direction != "denoise":
        raise InputsError(
            f"an intervention acts in one run, and corrupt inputs were given too, or direction={direction!r}: "
            "sweep(model, inputs, None, sites, metrics, intervention=...), or patch without one"
        )
    elif not takes(intervention, None, hook=None):
        raise InputsError(
            f"the intervention is {told(intervention)}; expected a function of (activation, hook), which hooks.* make: "
            "hooks.zero_ablate(), hooks.mean_ablate(cache), hooks.knock_out(queries, keys), hooks.steer(direction)"
        )
    return named


def _by_name(metrics: Mapping[str, Measure] | Measure, direction: str, reduce: str) -> dict[str, Measure]:
    named = _named(metrics)
    for name, fn in named.items():
        if not takes(fn, None):
            raise InputsError(
                f"metric {name!r} is {told(fn)}; expected a function of the logits [batch pos d_vocab] alone that "
                "gives [batch], e.g. metrics.logit_diff(right, wrong)"
            )
    if not named or direction not in ("denoise", "noise") or reduce not in ("none", "mean"):
        raise InputsError(
            f"metrics {list(named)}, direction {direction!r}, reduce {reduce!r}: expected a metric, 'denoise' or "
            "'noise', and 'none' or 'mean'"
        )
    return named


def _named(metrics: Mapping[str, Measure] | Measure) -> dict[str, Measure]:
    return dict(metrics) if isinstance(metrics, Mapping) else {getattr(metrics, "name", "metric"): metrics}


def _refuse_images_of_one_prompt(model: HookedVLM, kinds: Mapping[str, Sites], inputs: VLMInputs) -> None:
    """Raise InputsError if sites are in images, whose rows are no examples where a prompt has not exactly one."""
    if set(inputs.replace(layout=model.layout).images_each) == {1}:
        return
    for sites in kinds.values():
        of_images = isinstance(model.stacks.get(sites.stack or ""), VisionStack)
        if of_images or {"image_pos", "channel"} & set(sites.axes):
            raise InputsError(
                f"{sites!r} lie in images, and the prompts have {inputs.images_each} of them: sweep there with one "
                "image a prompt, or patch in the prompt's stack"
            )


def _refuse_different(model: HookedVLM, clean: VLMInputs, corrupt: VLMInputs) -> None:
    """Raise InputsError if clean and corrupt differ in shape, or in where a row's tokens or image stand."""
    for name in ("pixel_values", "input_ids", "decoder_input_ids"):
        a, b = (None if getattr(x, name) is None else tuple(getattr(x, name).shape) for x in (clean, corrupt))
        if a != b:
            raise InputsError(
                f"clean and corrupt differ in {name}: {a} and {b}. Patching needs the same number of examples and "
                "tokens: choose replacements of equal length, or pad both alike"
            )
    of_model = [x.replace(layout=model.layout) for x in (clean, corrupt)]
    for what in ("is_real", "is_image"):
        first, second = (getattr(x, what) for x in of_model)
        differing = (first != second.to(first.device)).any(1).nonzero()[:, 0].tolist()
        if differing:
            row = differing[0]
            here, there = (Places((tuple(x[row].nonzero()[:, 0].tolist()),)).shown or "none" for x in (first, second))
            kind = "tokens" if what == "is_real" else "image tokens"
            raise InputsError(
                f"clean and corrupt have their {kind} in other places: in row {row} positions {here} and {there}. A "
                "patch would land on another token: give each example's clean and corrupt prompt the same length"
            )


def result(
    values: Tensor,
    baseline: Tensor,
    table: pd.DataFrame,
    axes: Sequence[str],
    metrics: Mapping[str, Measure] | Measure,
    reduce: str,
    logits: Tensor,
    skipped: int = 0,
    measured: Tensor | None = None,
    missed: Missed | None = None,
) -> SitesResult:
    """What was measured, as TransformerLens gives it.

    Args:
        values: the metrics of the patched runs, [metric *axes example].
        baseline: those of the base run, [metric example].
        table: what was patched, a row each.
        axes: names of the axes between; none where the sites are a list.
        metrics: as they were asked for; the metric axis is left out where one stood alone.
        reduce: "none" or "mean", over examples.
        logits: of the base run where the metrics read them, in the dtype that the model computed in; empty where no
            site was measured.
        skipped: how many sites were not run, since they cannot differ from the base run.
        measured: at which the values are exact, in the shape of the axes; None for all.
        missed: what screening missed.
    """
    measured = torch.ones(values.shape[1:-1], dtype=torch.bool) if measured is None else measured
    estimates = values[:, ~measured] - baseline[:, None]
    rounding = rounding_of(logits, estimates)
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
        skipped=skipped,
        measured=measured,
        missed=missed,
        dtype=logits.dtype,
        rounding=rounding,
    )
