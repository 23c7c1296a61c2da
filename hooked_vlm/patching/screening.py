"""A screened sweep: every site is estimated, the sites of largest estimate and some at random are measured exactly.

An estimate ranks well and is no measurement (`attribution`). So the `top` sites are run, and of the rest a random
sample, which says how much was missed. With r sites in the rest, m of them drawn and h of these important, p = h/m is
the share of important sites in the rest: p r in all, of which h are known. With t important sites among the top,

    missed = (p r - h) / (p r + t)

is the share of all important sites that screening missed. It grows with p, so that an interval for p (Clopper and
Pearson 1934, a little too wide, since the sample is drawn without replacement) is one for it.

Cost: for each metric a forward and a backward, or `steps` of them; then a sweep of `top` + `drawn` sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vlm.errors import InputsError
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.options import number, whole
from hooked_vlm.patching.engine import run_sweep
from hooked_vlm.patching.gradients import estimated
from hooked_vlm.patching.plan import SweepPlan
from hooked_vlm.patching.result import Missed

LEVEL = 0.95


@dataclass(frozen=True)
class Screen:
    """Which sites of a sweep are measured, the others being estimated.

    Args:
        top: how many sites, those whose estimate of the first metric has the largest mean |effect|.
        drawn: how many of the rest, drawn at random; None for as many as `top`. 0 leaves unknown what was missed.
        steps: None to estimate by the gradient at the base run; a number for integrated gradients over so many points.
        seed: of the draw.
        important: from which mean |effect| of the first metric on a site counts as important; None for the median of
            the `top` sites as measured: what is at least as large belongs into the upper half of the chosen.
        qk_fix: as `attribution`'s.

    Raises:
        InputsError: if a number is none or out of range.
    """

    top: int
    drawn: int | None = None
    steps: int | None = None
    seed: int = 0
    important: float | None = None
    qk_fix: bool = True

    def __post_init__(self) -> None:
        whole(self.top, "screen", 1)
        whole(self.seed, "the screen's seed", 0)
        if self.drawn is not None:
            whole(self.drawn, "the screen's drawn", 0)
        if self.steps is not None:
            whole(self.steps, "the screen's steps", 1)
        if self.important is not None:
            number(self.important, "the screen's important", above=0)

    @classmethod
    def of(cls, given: int | Screen) -> Screen:
        """What was given for `screen`, a number standing for `top`."""
        return given if isinstance(given, Screen) else cls(given)


@dataclass
class Screened:
    """What a sweep of some or all of its sites found.

    Args:
        values: exact where they were measured, else the estimates, [metric site example].
        skipped: how many sites cannot differ from the base run.
        measured: at which sites the values are exact: those run, and those that cannot differ; None for all.
        missed: what was missed, as far as the sample tells; None without one.
    """

    values: Tensor
    skipped: int
    measured: Tensor | None = None
    missed: Missed | None = None


def screened(
    plan: SweepPlan,
    screen: Screen,
    estimates: Callable[[], Float[Tensor, "metric site batch"]],
    budget: int | None,
    progress: bool,
) -> Screened:
    """Measure some sites, those that an estimate points to and some drawn from the rest.

    Args:
        plan: the sweep.
        screen: which sites.
        estimates: gives the estimated effects; not called if all sites are measured.
        budget: as `sweep`'s.
        progress: likewise.
    """
    n_open, base = int(plan.matters.any(1).sum()), plan.baseline[:, None].cpu()
    drawn = screen.top if screen.drawn is None else screen.drawn
    effects = estimates() if n_open > screen.top + drawn else torch.zeros(len(base), *plan.matters.shape)
    differing = plan.matters.any(1).nonzero()[:, 0]
    order = differing[_sizes(effects[0])[differing].argsort(descending=True, stable=True)]
    top, rest = order[: screen.top], order[screen.top :]
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(screen.seed))]
    sample, left = rest[:drawn], rest[drawn:]
    values, skipped = run_sweep(plan, budget, progress, [*top.tolist(), *sample.tolist()])
    measured = torch.ones(len(plan.sites), dtype=torch.bool)
    measured[left] = False
    values = torch.where(measured[:, None] | ~plan.matters, values, base + effects)
    missed = _missed(_sizes(values[0] - base[0]), top, sample, len(left), screen.important)
    return Screened(values, skipped, measured, missed)


def by_gradient(
    plan: SweepPlan, screen: Screen, source: VLMInputs | None, source_hooks: Sequence[Any]
) -> Float[Tensor, "metric site batch"]:
    """Estimates of every site and metric of a sweep.

    Args:
        plan: the sweep.
        screen: how.
        source: the inputs whose activations are patched in; None with an intervention.
        source_hooks: forward hooks of their run.

    Raises:
        InputsError: if a metric has no gradient, or an intervention is to be estimated by integrated gradients.
    """
    if source is None and screen.steps is not None:
        raise InputsError(
            "integrated gradients go from one input to another, and an intervention has one: leave the screen's steps "
            "out"
        )
    found = [
        estimated(
            plan.model, source, plan.base, plan.sites, fn,
            steps=screen.steps, qk_fix=screen.qk_fix, new=plan.source, source_hooks=source_hooks, base_hooks=plan.hooks,
        )[1]
        for fn in plan.metrics.values()
    ]  # fmt: skip
    return torch.stack(found).cpu()


def _sizes(effects: Float[Tensor, "site batch"]) -> Float[Tensor, " site"]:
    """Mean |effect| over the examples that have one."""
    return effects.abs().nanmean(-1).nan_to_num(0.0)


def _missed(sizes: Tensor, top: Tensor, sample: Tensor, left: int, threshold: float | None) -> Missed | None:
    """The share of important sites among those not run, from a sample of them; see the module."""
    from scipy.stats import binomtest

    if not len(top) or (left and not len(sample)):
        return None
    threshold = float(sizes[top].median()) if threshold is None else threshold
    important = (sizes >= threshold) & (sizes > 0)
    hits, among_top = int(important[sample].sum()), int(important[top].sum())
    if not left:
        return Missed(0.0, 0.0, 0.0, threshold, hits, len(sample), left)
    ends = binomtest(hits, len(sample)).proportion_ci(LEVEL, method="exact")
    shares = [hits / len(sample), float(ends.low), float(ends.high)]
    unknown = [min(max(share * (len(sample) + left) - hits, 0.0), left) for share in shares]
    share, low, high = (n / (n + hits + among_top) if n else 0.0 for n in unknown)
    return Missed(share, low, high, threshold, hits, len(sample), left)
