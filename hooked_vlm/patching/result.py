"""What a sweep, an estimate or a path patching found: TransformerLens' `PatchingResult`, which prints its largest.

Costs a mean over the examples when it is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor
from transformer_lens.patching import PatchingResult

N_SHOWN = 5


@dataclass(init=False, repr=False)
class SitesResult(PatchingResult):
    """A `PatchingResult` that says what was run, printed in a few lines: its shape, and the sites of largest effect.

    Args:
        skipped: how many of its sites cannot differ from the base run, so that they have its value and were not run.
    """

    skipped: int = 0

    def __init__(self, *args: Any, skipped: int = 0, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.skipped = skipped

    def __getitem__(self, metric_name: str) -> SitesResult:
        """One metric's result, with the metric axis dropped."""
        return SitesResult(**{**vars(self), **vars(super().__getitem__(metric_name))})

    def __repr__(self) -> str:
        axes = [f"{n} {name}" for n, name in zip(self._site_shape(), self.axis_names or ["site"], strict=True)]
        axes += [] if self.reduced else [f"{self.values.shape[-1]} example"]
        lines = [f"{type(self).__name__} of {', '.join(self.metric_names)}: values [{' x '.join(axes)}]"]
        lines += [f"  {self.skipped:,} of {len(self.index_df):,} sites cannot differ: not run"] if self.skipped else []
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
