"""Head maps of several runs: one beside the other, and rank correlations between them.

Maps are matched by layer and head, so only maps of one shape are correlated. Knows summary.json alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hooked_vlm.analysis.heads import HEAD_KINDS
from hooked_vlm.notice.report import charts
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.maps import grid, head_map, ordered, titled
from hooked_vlm.notice.report.page import Child, Markup, chart, paragraph, tag
from hooked_vlm.notice.report.words import corruption_name, kind_name, kind_title, missing, read_at
from hooked_vlm.notice.vocabulary import CORRUPT, NOISES
from hooked_vlm.notice.wording import known, number


@dataclass(frozen=True)
class Named:
    """A run under the name that the comparison gives it."""

    name: str
    run: Loaded


@dataclass(frozen=True)
class HeadMap:
    """The mean effects of all heads of one kind, in one run, task and corruption, read at one place."""

    run: str
    task: str
    model: str
    kind: str
    corrupt: str
    shape: tuple[int, int]
    at: str
    rows: pd.DataFrame

    @property
    def name(self) -> str:
        """Run and task."""
        return f"{self.run}, {self.task}"

    @property
    def values(self) -> pd.Series:
        """The mean effects by layer and head."""
        return self.rows.set_index(["layer", "head"])["mean"].astype(float)


def head_maps(runs: Sequence[Named]) -> list[HeadMap]:
    """Every head map of every run, noise left out."""
    found = []
    for one in runs:
        rows = one.run.table("heads")
        rows = rows[rows["mean"].map(known) & ~rows["corrupt"].isin(NOISES)]
        shape = one.run.shape(rows)
        for kind in ordered(rows["kind"], HEAD_KINDS):
            for corrupt in ordered(rows["corrupt"], CORRUPT):
                for task in one.run.tasks:
                    part = rows[(rows["kind"] == kind) & (rows["corrupt"] == corrupt) & (rows["task"] == task)]
                    if len(part):
                        found.append(
                            HeadMap(one.name, task, one.run.name, kind, corrupt, shape, read_at(one.run), part)
                        )
    return found


def groups(maps: Sequence[HeadMap]) -> dict[tuple[str, str], list[HeadMap]]:
    """Maps by kind and corruption."""
    found: dict[tuple[str, str], list[HeadMap]] = {}
    for one in maps:
        found.setdefault((one.kind, one.corrupt), []).append(one)
    return found


def side_by_side(maps: Sequence[HeadMap]) -> list[Child]:
    """All head maps of one kind and corruption beside one another."""
    if not maps:
        return [missing("None of these runs patched a head.")]
    told: list[Child] = [
        paragraph(
            "Red restores the right answer, blue pushes away from it. Logits of different models have different "
            "sizes, so the maps of each run share a colour scale of their own; its end stands beside the run."
        ),
        paragraph(
            f"{charts.MARKS[charts.BOTH]} selected by both rules, {charts.MARKS[charts.FDR]} by the FDR-controlled "
            f"rule alone, {charts.MARKS[charts.PAPER]} by the paper's rule alone. "
            f"{charts.ELSEWHERE} does much more elsewhere: the line under the map says where."
        ),
    ]
    for (kind, corrupt), part in groups(maps).items():
        told.append(titled(kind_title(kind), corruption_name(corrupt)))
        for run in dict.fromkeys(one.run for one in part):
            own = [one for one in part if one.run == run]
            bound = charts.limit(pd.concat([one.values for one in own]))
            plots = []
            for one in own:
                plots.append(head_map(one.rows, one.task, one.shape, bound))
            told += [tag("h4", f"{run}, {own[0].at} (\u00b1{number(bound, 2)})"), grid(plots)]
    return told


def correlation(first: HeadMap, second: HeadMap) -> float:
    """Spearman's rank correlation of two head maps over the heads that both have; NaN where one is constant."""
    both = pd.concat([first.values, second.values], axis=1, join="inner")
    return float(both.iloc[:, 0].corr(both.iloc[:, 1], method="spearman")) if len(both) > 2 else float("nan")


def correlation_between(maps: Sequence[HeadMap], same_model: bool) -> pd.Series:
    """Correlations of head maps of the same task and shape in different runs."""
    found = []
    for part in groups(maps).values():
        for i, first in enumerate(part):
            for second in part[i + 1 :]:
                alike = first.task == second.task and first.run != second.run and first.shape == second.shape
                if alike and (first.model == second.model) is same_model:
                    found.append(correlation(first, second))
    return pd.Series(found, dtype=float).dropna()


def alike(maps: Sequence[HeadMap]) -> list[Child]:
    """Rank correlations between all head maps of one shape, kind and corruption."""
    plots: list[Markup] = []
    for (kind, corrupt), part in groups(maps).items():
        for shape in sorted({one.shape for one in part}):
            same = [one for one in part if one.shape == shape]
            if len(same) < 2:
                continue
            values = [[correlation(first, second) for second in same] for first in same]
            figure, height = charts.correlations([one.name for one in same], values)
            title = f"{kind_name(kind)}, {corruption_name(corrupt)}, {shape[0]} layers of {shape[1]} heads"
            plots.append(chart(figure, title, height=height))
    if not plots:
        return [missing("No two head maps have the same shape, so there is nothing to correlate.")]
    return [
        paragraph(
            "Spearman's rank correlation of the mean effects of all heads, each read where its run reads heads: 1 if "
            "two maps rank the heads alike, 0 if one says nothing of the other. Between different checkpoints heads do "
            "not correspond, so expect 0 there."
        ),
        grid(plots, wide=True),
    ]
