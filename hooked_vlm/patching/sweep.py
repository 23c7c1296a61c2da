"""The exact sweep: thousands of sites patched in one growing pass.

A sweep gives, to float rounding, the numbers of one `run_with_hooks` a site. Clean and corrupt run once each.
Then the layers of the patched stack are walked once: at layer L a row joins for each site of layer L, carrying the
base run's residual stream with the patch applied, and all rows run on together. A patch that changes its block's
output at its own position alone (all but those of what other positions attend to) runs that position alone
through the block. What no site changes is computed once and shared: every earlier stage, the keys and values of
cross-attention, and in a causal stack everything before the first patched position. Only the position that the
metrics read is unembedded. A site where clean and corrupt are equal bit for bit is not run: its value is the base
run's, and the result's `skipped` counts such sites.

Cost: two forwards, and for each site the blocks from its layer on. Memory: `budget` bytes; rows are cut into
chunks that fit, and running out of memory halves them. Hook points outside of blocks, and models that carry
hooks of the user's own, are swept with one run of the whole model a site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from hooked_vlm.hooks import HookFunction
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.turn import alone
from hooked_vlm.patching.growing import swept
from hooked_vlm.patching.result import SitesResult
from hooked_vlm.patching.sites import Sites
from hooked_vlm.patching.task import Measure, asked, prepared, result


def sweep(
    model: Any,
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
) -> SitesResult:
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
        A `transformer_lens.patching.PatchingResult`: `values` [metric, *sites.axis_names, example], the metric
        axis there if a mapping was given, `baseline` the base run's [metric example], and with them effects,
        bootstrap intervals and permutation p-values; `skipped` counts the sites that cannot differ.

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
        intervention=intervention,
    )[""]


@alone
def sweep_all(
    model: Any,
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

    Returns:
        A result for each name; the activations of all kinds are held until the last is swept.

    Raises:
        InputsError, PositionError, SilentHookError: as `sweep`.
    """
    given = {"direction": direction, "reduce": reduce, "budget": budget, "intervention": intervention}
    named = asked(model, clean, corrupt, kinds, metrics, windows=True, **given)
    with torch.no_grad():
        if intervention is not None:
            tasks = prepared(model, None, clean, kinds, named, (), corruption, intervention)
        elif direction == "denoise":
            tasks = prepared(model, clean, corrupt, kinds, named, (), corruption)
        else:
            tasks = prepared(model, corrupt, clean, kinds, named, corruption, ())
        found = {}
        for name, task in tasks.items():
            values, skipped = swept(task, budget, progress)
            axes = task.sites.axis_names if task.sites.picked is None else []
            values = values.reshape(len(named), *task.sites.shape, -1)
            found[name] = result(values, task.baseline, task.sites.table, axes, metrics, reduce, skipped)
        return found
