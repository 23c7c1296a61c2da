"""The report's charts: what `viz` draws of a table of summary.json, and what the mouse shows there.

Each function gives plain plotly data and layout; the browser draws. Knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from hooked_vlm import viz
from hooked_vlm.analysis.heads import head_at
from hooked_vlm.notice.places import stronger_elsewhere
from hooked_vlm.notice.report.text import places
from hooked_vlm.notice.report.text.words import (
    BOTH,
    DASH,
    FDR,
    NEITHER,
    PAPER,
    at_place,
    chance,
    interval,
    number,
    percent,
    rule_of,
    two,
)
from hooked_vlm.notice.schema import HeadEffect, known
from hooked_vlm.notice.vocabulary import ROLES
from hooked_vlm.viz.scales import SHADES

Chart = dict[str, Any]

MARKS: Final = {BOTH: "\u25cf", FDR: "\u25cb", PAPER: "\u25d0", NEITHER: ""}
ELSEWHERE: Final = "\u25b8"  # a head that does little where heads are read, and much elsewhere
LEGEND: Final = {"both": MARKS[BOTH], "fdr": MARKS[FDR], "paper": MARKS[PAPER], "elsewhere": ELSEWHERE}
BARS: Final = ("#b7c0ca", SHADES[0], SHADES[1])
WRITTEN: Final = 8  # cells a row, at most, in which there is room for a number
NAMED: Final = 3  # heads that do much more elsewhere, named under a map
LOWEST: Final = 160  # pixels of a map: plotly hides a label that is taller than its chart
# What hovering over a head shows.
HOVER: Final = (
    "<b>layer %{y}, head %{x}</b>, %{customdata[3]} examples<br>%{z:.3f} %{customdata[0]} %{customdata[10]}<br>"
    "p %{customdata[1]}, q %{customdata[2]}<br>"
    "|effect| %{customdata[4]}, %{customdata[5]} \u00d7 average head<br>"
    "restoration %{customdata[6]}, normalized %{customdata[7]}<br>"
    "%{customdata[8]}, repeats in %{customdata[9]} of halves<br>"
    "most: %{customdata[11]}<extra></extra>"
)


def hovered(row: HeadEffect) -> list[str]:
    """What hovering over one head shows, in the order of `HOVER`."""
    return [
        interval(row.get("ci_low"), row.get("ci_high")),
        chance(row.get("p")),
        chance(row.get("q")),
        number(row.get("n")),
        number(row.get("mean_abs")),
        two(row.get("ratio")),
        number(row.get("restoration")),
        number(row.get("normalized")),
        rule_of(row.get("paper"), row.get("fdr")),
        percent(row.get("repeats")),
        at_place(row["at"]) if isinstance(row.get("at"), str) else DASH,
        strongest_place(row),
    ]


def strongest_place(row: HeadEffect) -> str:
    """Where patching a head does most, and how much."""
    return places.there(row) if known(row.get("best_abs")) else DASH


def elsewhere(rows: Iterable[HeadEffect]) -> str:
    """The line under a map: which of its heads do much more elsewhere, and where; "" for none."""
    others = stronger_elsewhere(rows)
    named = [f"{head_at(row['layer'], row['head'])} {places.there(row)}" for row in others[:NAMED]]
    more = [f"{len(others) - NAMED} more"] if len(others) > NAMED else []
    return f"{ELSEWHERE} {'; '.join([*named, *more])}." if others else ""


def limit(values: pd.Series) -> float:
    """The largest absolute value, so that the colour scale is centred at zero; 1 where there is nothing."""
    finite = values[np.isfinite(values)].abs()
    return float(finite.max()) if len(finite) and finite.max() > 0 else 1.0


def _cells(rows: pd.DataFrame, columns: Iterable[int], shape: tuple[int, int], *of: Callable[[Any], Any]) -> list[Any]:
    """What each of some functions says of the row of each cell, [layer column ...]; of {} where there is none."""
    found = [[[one({}) for _ in range(shape[1])] for _ in range(shape[0])] for one in of]
    for layer, column, row in zip(rows["layer"], columns, rows.to_dict("records"), strict=True):
        for grid, one in zip(found, of, strict=True):
            grid[int(layer)][int(column)] = one(row)
    return found


def _sized(layers: int, least: int, side: int) -> int:
    """Pixels of a map: what its labels take, and what its layers take, lower ones where there are many."""
    return max(LOWEST, least + layers * (side if layers <= 8 else 20 if layers <= 16 else 10))


def head_map(rows: pd.DataFrame, shape: tuple[int, int], bound: float) -> tuple[Chart, int]:
    """A layers x heads map of mean effects, with interval, p, q and n on hover and a mark where a rule selects.

    Args:
        rows: of one corruption, task and kind, a row a head.
        shape: layers and heads of the stack.
        bound: the effect at either end of the colour scale.

    Returns:
        The chart, and its height in pixels.
    """

    def marked(row: Mapping[str, Any]) -> str:
        effect = row.get("mean")
        written = two(effect) if shape[1] <= WRITTEN and known(effect) else ""
        mark = MARKS[rule_of(row.get("paper"), row.get("fdr"))]
        return " ".join(filter(None, [written, mark, ELSEWHERE if row.get("elsewhere") is True else ""]))

    values, marks, more = _cells(rows, rows["head"], shape, lambda row: row.get("mean"), marked, hovered)
    figure = viz.head_map(values, limit=bound, words=marks, customdata=more, hovertemplate=HOVER, to="page")
    return figure, _sized(shape[0], 78, 34)


def role_map(rows: pd.DataFrame, layers: int, value: str, bound: float) -> tuple[Chart, int]:
    """A layers x token-roles map.

    Args:
        rows: of one corruption, task and kind; columns layer, role, n, ci_low, ci_high and `value`.
        layers: of the stack.
        value: the column that is drawn.
        bound: the value at either end of the colour scale.

    Returns:
        The chart, and its height in pixels.
    """
    roles = sorted(set(rows["role"]), key=lambda role: (ROLES.index(role) if role in ROLES else len(ROLES), role))
    low, high = ("abs_low", "abs_high") if value == "mean_abs" else ("ci_low", "ci_high")
    values, more = _cells(
        rows,
        rows["role"].map(roles.index),
        (layers, len(roles)),
        lambda row: row.get(value),
        lambda row: [number(row.get(low)), number(row.get(high)), number(row.get("n"))],
    )
    figure = viz.head_map(
        values,
        heads=roles,
        column_title="",
        limit=bound,
        words=_written(values) if len(roles) <= WRITTEN and layers <= 16 else None,
        customdata=more,
        hovertemplate="<b>layer %{y}, %{x}</b><br>%{z:.3f}<br>interval [%{customdata[0]}, %{customdata[1]}]"
        "<br>examples %{customdata[2]}<extra></extra>",
        to="page",
    )
    return figure, _sized(layers, 120, 32)


def correlations(names: Sequence[str], values: Sequence[Sequence[float]]) -> tuple[Chart, int]:
    """A square map of correlations between -1 and 1, names on both axes, and its height in pixels."""
    hover = "%{y}<br>%{x}<br>correlation %{z:.3f}<extra></extra>"
    words = _written(values) if len(names) <= 10 else None
    figure = viz.head_map(
        values, layers=names, heads=names, row_title="", column_title="", limit=1.0, words=words,
        hovertemplate=hover, to="page",
    )  # fmt: skip
    return figure, 150 + 36 * len(names)


def _written(values: Sequence[Sequence[Any]]) -> list[list[str]]:
    return [[two(value) if known(value) else "" for value in row] for row in values]


def lines(series: Mapping[str, pd.DataFrame], title: str, at: str) -> Chart:
    """Lines over layers with intervals; each table has columns layer, mean, ci_low, ci_high.

    Args:
        series: by name in the legend.
        title: of the vertical axis.
        at: the place that was patched, in words.
    """
    sorted_ = {name: rows.sort_values("layer") for name, rows in series.items()}
    return viz.lines(
        {name: rows["mean"] for name, rows in sorted_.items()},
        x={name: rows["layer"] for name, rows in sorted_.items()},
        spans={name: (rows["ci_low"], rows["ci_high"]) for name, rows in sorted_.items()},
        y_title=title,
        hovertemplate=f"layer %{{x}}: %{{y:.3f}} {at}",
        to="page",
    )


def bars(
    names: Sequence[str],
    groups: Mapping[str, Sequence[float | None]],
    spans: Mapping[str, Sequence[tuple[float | None, float | None]]],
    title: str,
) -> Chart:
    """Grouped bars with intervals; None leaves a bar or an interval out.

    Args:
        names: under the groups.
        groups: by name in the legend, the heights.
        spans: by name in the legend, low and high end of each interval.
        title: of the vertical axis.
    """
    ends = {name: ([low for low, _ in each], [high for _, high in each]) for name, each in spans.items()}
    return viz.bars(names, groups, spans=ends, shades=BARS, y_title=title, hovertemplate="%{x}: %{y:.3f}", to="page")


def scatter(rows: pd.DataFrame, x: str, y: str, at: str) -> Chart:
    """Two effects of the same heads at one place against one another; columns layer, head and the two named."""
    return viz.scatter(
        rows[x],
        rows[y],
        [head_at(layer, head) for layer, head in zip(rows["layer"], rows["head"], strict=True)],
        x_title="effect under the semantic pair",
        y_title="effect under noise",
        hovertemplate=f"<b>%{{customdata}}</b>, {at}<br>semantic pair %{{x:.3f}}<br>noise %{{y:.3f}}<extra></extra>",
        to="page",
    )
