"""Attribution patching: an estimate of every site's effect from two forwards and one backward.

The exact sweep measures M(run with site s patched) - M(base run). To first order that is the gradient of M with
respect to the site's activation, taken in the base run, times the change the patch makes to it:

    effect(s) ~ sum over the site's entries of (a_source - a_base) * dM/da        (Nanda 2023)

One backward gives it for every site at once. Two things spoil it, and two mends are here:

- A softmax is no straight line: where attention is saturated the gradient at a query or key is near zero, though
  patching it moves the pattern. For sites on queries and keys the change of the *pattern* is therefore computed
  exactly, and only what follows it is taken to first order (the QK fix of AtP*, Kramar et al. 2024).
- The gradient holds at one end of the way. Integrated gradients average it over `steps` points of the straight line
  from the base run's inputs to the source's (Sundararajan et al. 2017; for activations, Hanna et al. 2024).

What remains is an estimate. `verify_top` measures the largest ones exactly, and `sweep` all of them.

Cost: two forwards and one backward, or one forward and `steps` forwards and backwards. Memory: the activations and
the gradients at the sites' hook points, the same for one site as for all of them; with the QK fix also the patterns
of those layers.
"""

from __future__ import annotations

from typing import Literal

import torch

from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.turn import alone
from hooked_vlm.options import whole
from hooked_vlm.patching.gradients import estimated
from hooked_vlm.patching.plan import Measure, asked, prepared, result
from hooked_vlm.patching.result import SitesResult
from hooked_vlm.patching.screening import Screen, screened
from hooked_vlm.patching.sites import Sites


@alone
def attribution(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs,
    sites: Sites,
    metric: Measure,
    *,
    direction: Literal["denoise", "noise"] = "denoise",
    steps: int | None = None,
    qk_fix: bool = True,
    verify_top: int = 0,
    reduce: Literal["none", "mean"] = "none",
) -> SitesResult:
    """Estimate the effect of patching each site.

    Args:
        model: a `HookedVLM`.
        clean: inputs that the model answers rightly.
        corrupt: inputs of the same shape, with the image or the text corrupted.
        sites: where to patch.
        metric: a differentiable function of the logits [batch pos d_vocab] that gives [batch].
        direction: "denoise" patches clean into the corrupt run, "noise" corrupt into the clean one.
        steps: None for the gradient at the base run; a number for integrated gradients over so many points.
        qk_fix: compute the pattern of patched queries and keys exactly; not with `steps`.
        verify_top: re-measure so many sites, those of largest mean |effect|, exactly.
        reduce: "none" keeps every example, "mean" averages them.

    Returns:
        `transformer_lens.patching.PatchingResult`, as `sweep` returns for one metric: `values` is the base run's
        metric plus the estimate, [*sites.axis_names, example], so that `effect()` is the estimate. `measured`, and a
        column "exact" of `index_df`, say which sites are exact.

    Raises:
        InputsError: if clean and corrupt differ in shape, the metric has no gradient, or it cannot see the sites.
        PositionError: if a position is out of range.
        SilentHookError: if a run never reaches the sites.
    """
    named = asked(model, clean, corrupt, {"": sites}, metric, direction=direction, reduce=reduce)
    steps = None if steps is None else whole(steps, "steps", 1)
    verify_top = whole(verify_top, "verify_top", 0)
    source, base = (clean, corrupt) if direction == "denoise" else (corrupt, clean)
    baseline, effects, sites = estimated(model, source, base, sites, metric, steps=steps, qk_fix=qk_fix)
    baseline, effects = baseline[None].cpu(), effects[None].cpu()
    values, measured = baseline[:, None] + effects, torch.zeros(len(sites), dtype=torch.bool)
    logits = torch.empty(0, dtype=model.dtype)
    if verify_top:
        with torch.no_grad():
            task = prepared(model, source, base, {"": sites}, named, (), ())[""]
            found = screened(task, Screen(verify_top, drawn=0), lambda: effects, None, progress=False)
        assert found.measured is not None
        logits = task.read(task.logits)
        measured = found.measured
        values = torch.where(measured[:, None], found.values, values)
    axes = [] if sites.picked is not None else sites.axis_names
    table = sites.table.assign(exact=measured.numpy())
    values = values.reshape(1, *sites.shape, len(base))
    return result(values, baseline, table, axes, metric, reduce, logits, measured=measured.reshape(sites.shape))
