"""The exact sweep: thousands of sites patched in one growing pass.

A sweep gives, to float rounding, the numbers of one `run_with_hooks` a site. Clean and corrupt run once each.
Then the layers of the patched stack are walked once: at layer L a row joins for each site of layer L, carrying the
base run's residual stream with the patch applied, and all rows run on together. A patch that changes its block's
output at its own position alone (all but those of what other positions attend to) runs that position alone
through the block. What no site changes is computed once and shared: every earlier stage, the keys and values of
cross-attention, and in a causal stack everything before the first patched position. Only the position that the
metrics read is unembedded. A site where clean and corrupt are equal bit for bit is not run: its value is the base
run's, and the result's `skipped` counts such sites.

Instead of another run's activation, a site may be given whatever a hook function makes of its own: `intervention`.
What it makes of the base run's activation is then what is patched in, so that all of the above holds, and what it
leaves as it is is not run. In a window of layers (`Sites.windows`) a row joins before the first and is acted on in
each. With `screen` not every site is measured.

Cost: two forwards (one with an intervention), and for each site the blocks from its layer on. Memory: `budget`
bytes; rows are cut into chunks that fit, and running out of memory halves them. Hook points outside of blocks, and
models that carry hooks of the user's own, are swept with one run of the whole model a site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from hooked_vlm.hooks import HookFunction
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.turn import alone
from hooked_vlm.patching.engine import run_sweep
from hooked_vlm.patching.plan import Measure, asked, prepared, result
from hooked_vlm.patching.result import SitesResult
from hooked_vlm.patching.screening import Screen, Screened, by_gradient, screened
from hooked_vlm.patching.sites import Sites


def sweep(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs | None,
    sites: Sites,
    metrics: Mapping[str, Measure] | Measure,
    *,
    direction: Literal["denoise", "noise"] = "denoise",
    reduce: Literal["none", "mean"] = "none",
    budget: int | None = None,
    progress: bool = True,
    corruption: Sequence[Any] = (),
    intervention: HookFunction | None = None,
    screen: int | Screen | None = None,
) -> SitesResult:
    """Patch every site, one at a time, and measure.

    Args:
        model: a `HookedVLM`.
        clean: inputs that the model answers rightly.
        corrupt: inputs of the same shape, with the image or the text corrupted; None with an intervention.
        sites: where to patch.
        metrics: functions of the logits [batch pos d_vocab] that give [batch], by name, or one of them. Those of
            `patching.metrics` are given the last position alone, any other function every position.
        direction: "denoise" patches clean into the corrupt run, "noise" corrupt into the clean one.
        reduce: "none" keeps every example, "mean" averages them.
        budget: bytes that the sweep may take, the two runs it keeps included; None for a quarter of what is free.
        progress: show sites per second and time left.
        corruption: forward hooks that are in place while the corrupt inputs run, e.g. noise on the embeddings. All
            that act before the patched stack's first block leave the sweep as fast as it is; with others each
            site takes a run of the whole model. With an intervention, hooks that are in place in its run. They are to
            give the same in every run.
        intervention: do this to the sites of the clean run, instead of patching: a hook function (activation, hook),
            as `hooks` makes them and without positions or heads of its own, since the sites say where:
            ``hooks.zero_ablate()``, ``hooks.mean_ablate(cache)``, ``hooks.resample_ablate(cache, generator)``,
            ``hooks.steer(direction)``; on sites of "attn_scores" with positions "all_at_once",
            ``hooks.knock_out(queries, keys)``. It acts once on each hook point's activation, so that all sites of a
            layer share one draw, and once more on each row in the later layers of a window.
        screen: estimate every site by its gradient, and measure so many, those of the largest estimates, and as many
            drawn from the rest at random. A `Screen` says more: integrated gradients, the draw's size and seed.

    Returns:
        A `transformer_lens.patching.PatchingResult`: `values` [metric, *sites.axis_names, example], the metric
        axis there if a mapping was given, `baseline` the base run's [metric example], and with them effects,
        bootstrap intervals and permutation p-values; `skipped` counts the sites that cannot differ. `measured`,
        [*sites], is True where the value is exact; with `screen` the others are the base run's metric plus the
        estimate, and `missed` tells the share of important sites among them (see `patching.screening`).

    Raises:
        InputsError: if clean and corrupt differ in shape, a metric gives no number for each example (with `screen`: or
            has no gradient), or an intervention is given corrupt inputs or a direction too.
        HookFunctionError: if an intervention gives back something else than an activation of the same form.
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
        intervention=intervention,
        screen=screen,
    )[""]


@alone
def sweep_all(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs | None,
    kinds: Mapping[str, Sites],
    metrics: Mapping[str, Measure] | Measure,
    *,
    direction: Literal["denoise", "noise"] = "denoise",
    reduce: Literal["none", "mean"] = "none",
    budget: int | None = None,
    progress: bool = True,
    corruption: Sequence[Any] = (),
    intervention: HookFunction | None = None,
    screen: int | Screen | None = None,
    done: Callable[[str, SitesResult], None] | None = None,
) -> dict[str, SitesResult]:
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
        intervention: likewise.
        screen: likewise, for each kind.
        done: called with each kind's name and result as soon as it is swept.

    Returns:
        A result for each name; the activations of all kinds are held until the last is swept.

    Raises:
        InputsError, PositionError, SilentHookError: as `sweep`.
    """
    screening = None if screen is None else Screen.of(screen)
    named = asked(
        model, clean, corrupt, kinds, metrics,
        direction=direction, reduce=reduce, budget=budget, intervention=intervention, windows=screening is None,
    )  # fmt: skip
    source, base, source_hooks, base_hooks = _roles(clean, corrupt, direction, corruption)
    with torch.no_grad():
        found = {}
        for name, plan in prepared(model, source, base, kinds, named, source_hooks, base_hooks, intervention).items():
            if screening is None:
                part = Screened(*run_sweep(plan, budget, progress))
            else:
                estimates = partial(by_gradient, plan, screening, source, source_hooks)
                part = screened(plan, screening, estimates, budget, progress)
            axes = plan.sites.axis_names if plan.sites.picked is None else []
            values = part.values.reshape(len(named), *plan.sites.shape, -1)
            measured = None if part.measured is None else part.measured.reshape(plan.sites.shape)
            given = (plan.baseline, plan.sites.table, axes, metrics, reduce, plan.read(plan.logits))
            found[name] = result(values, *given, skipped=part.skipped, measured=measured, missed=part.missed)
            if done is not None:
                done(name, found[name])
        return found


def _roles(
    clean: VLMInputs, corrupt: VLMInputs | None, direction: str, corruption: Sequence[Any]
) -> tuple[VLMInputs | None, VLMInputs, Sequence[Any], Sequence[Any]]:
    """What is patched in, what is patched into, and the hooks of each; an intervention patches nothing in."""
    if corrupt is None:
        return None, clean, (), corruption
    return (clean, corrupt, (), corruption) if direction == "denoise" else (corrupt, clean, corruption, ())
