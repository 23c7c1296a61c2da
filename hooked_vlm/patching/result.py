"""What a sweep, an estimate or a path patching found: TransformerLens' `PatchingResult`, which prints its largest.

Costs a mean over the examples when it is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.patching import PatchingResult

N_SHOWN = 5
# By how much an effect in half precision is off from float32, in one site of one example: the worst that
# tests/benchmarks/bench_half.py finds in the models that ship here, rounded up.
ROUNDING = {torch.float16: 0.005, torch.bfloat16: 0.03}  # where it was measured, of the base run's largest |logit|
ROUNDING_OF_ESTIMATES = {torch.float16: 0.04, torch.bfloat16: 0.13}  # of the largest |estimate|


@dataclass(frozen=True)
class Missed:
    """The share of important sites that screening missed, told from a random sample of the sites it would not run.

    Args:
        share: the estimate.
        low: where its 95 % interval begins.
        high: where it ends.
        threshold: from which mean |effect| on a site is important.
        hits: important sites in the sample.
        drawn: sites in it.
        left: sites that were not run.
    """

    share: float
    low: float
    high: float
    threshold: float
    hits: int
    drawn: int
    left: int

    def __str__(self) -> str:
        share, low, high = (f"{100 * x:.0f}" for x in (self.share, self.low, self.high))
        return (
            f"of the sites with a mean |effect| of {self.threshold:.3g} or more {share} % [{low}, {high}] are missed: "
            f"{self.hits} of {self.drawn} drawn at random are such, {self.left:,} were not run"
        )


@dataclass(repr=False)
class SitesResult(PatchingResult):
    """A `PatchingResult` that says what was run, printed in a few lines: its shape, and the sites of largest effect.

    Args:
        skipped: how many of its sites cannot differ from the base run, so that they have its value and were not run.
        measured: at which sites the value is exact, [*sites]; elsewhere it is an estimate.
        missed: what a screened sweep missed; None where none was, or nothing is known of it.
        dtype: in which the model computed; None where that is not known.
        rounding: in half precision, by how much a logit difference of one site in one example may be off from what
            float32 gives; None in float32 and float64. An effect is a difference of logits, which are rounded in
            proportion to their own size and not to the effect's, so that it is `ROUNDING` of the largest logit;
            estimates are off by `ROUNDING_OF_ESTIMATES` of the largest. Means over examples are off by less.
    """

    values: Tensor  # the fields of the base class again, by names that this module has: the reference reads them here
    axis_names: list[str]
    index_df: pd.DataFrame
    metric_names: list[str]
    reduced: bool
    baseline: Tensor | None = None
    has_metric_axis: bool = False
    patch_type_names: list[str] | None = None
    skipped: int = 0
    measured: Tensor | None = None
    missed: Missed | None = None
    dtype: torch.dtype | None = None
    rounding: float | None = None

    def __getitem__(self, metric_name: str) -> SitesResult:
        """One metric's result, with the metric axis dropped."""
        return SitesResult(**{**vars(self), **vars(super().__getitem__(metric_name))})

    def __repr__(self) -> str:
        axes = [f"{n} {name}" for n, name in zip(self._site_shape(), self.axis_names or ["site"], strict=True)]
        axes += [] if self.reduced else [f"{self.values.shape[-1]} example"]
        lines = [f"{type(self).__name__} of {', '.join(self.metric_names)}: values [{' x '.join(axes)}]"]
        lines += [f"  {self.skipped:,} of {len(self.index_df):,} sites cannot differ: not run"] if self.skipped else []
        estimated = 0 if self.measured is None else int((~self.measured).sum())
        lines += [f"  {estimated:,} of {len(self.index_df):,} sites are estimates: not measured"] if estimated else []
        lines += [f"  {self.missed}"] if self.missed is not None else []
        if self.rounding is not None:
            said = str(self.dtype).removeprefix("torch.")
            lines.append(
                f"  computed in {said}: an effect on a logit in one example is off by up to {self.rounding:.2g}"
            )
        for i, name in enumerate(self.metric_names):
            lines += self._largest(name, i)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = pd.concat([self._table(i, name) for i, name in enumerate(self.metric_names)])
        return f"<div><b>{repr(self).partition(chr(10))[0]}</b>{table.to_html(index=False, float_format='%.4g')}</div>"

    def _site_shape(self) -> tuple[int, ...]:
        shape = self.values.shape[int(self.has_metric_axis) :]
        return tuple(shape if self.reduced else shape[:-1])

    def _means(self, metric: int) -> Tensor:
        """A number for each row of `index_df`: the mean effect, or the mean value where there is no baseline."""
        found = self.values if self.baseline is None else self.effect()
        found = found[metric] if self.has_metric_axis else found
        return (found if self.reduced else found.mean(-1)).detach().float().cpu().flatten()

    def _table(self, metric: int, name: str) -> pd.DataFrame:
        """The sites of the largest numbers, largest first."""
        means = self._means(metric)
        order = means.abs().nan_to_num(-1.0).argsort(descending=True)[:N_SHOWN].tolist()
        said = "value" if self.baseline is None else "effect"
        found: dict[str, Any] = {"metric": name} if len(self.metric_names) > 1 else {}
        return self.index_df.iloc[order].assign(**found, **{f"mean {said}": means[order].numpy()})

    def _largest(self, name: str, metric: int) -> list[str]:
        table = self._table(metric, name)
        if table.empty:
            return []
        return [
            f"  {line}" for line in table.to_string(index=False, float_format="%+.4f", max_colwidth=40).splitlines()
        ]


def rounding_of(logits: Tensor, estimates: Tensor) -> float | None:
    """What `SitesResult.rounding` says.

    Args:
        logits: of the base run, in the dtype that the model computed in; empty where nothing was measured.
        estimates: the effects that were estimated; empty where all were measured.
    """
    if logits.dtype not in ROUNDING:
        return None
    parts = (ROUNDING, logits), (ROUNDING_OF_ESTIMATES, estimates)
    return max(share[logits.dtype] * float(of.abs().nan_to_num(0.0).max()) for share, of in parts if of.numel())
