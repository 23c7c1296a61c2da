"""The report's figures as plain plotly dictionaries: maps of heads and of token roles, lines, bars, scatters.

Each function takes rows of `summary.json` as a table and gives ``{"data": [...], "layout": {...}}``; plotly itself is
not imported, and the browser draws. Knows no model and no file.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from hooked_vlm.analysis.heads import head_at
from hooked_vlm.notice import places
from hooked_vlm.notice.report.text import BOTH, FDR, NEITHER, PAPER, rule_of
from hooked_vlm.notice.vocabulary import ROLES, at_place
from hooked_vlm.notice.wording import DASH, chance, interval, known, number, percent

Chart = dict[str, Any]

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK: Final = "#1f2933"
FAINT: Final = "#5f6c7b"
LINE: Final = "#dde3ea"
SHADES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#a0522d")

# ColorBrewer's RdBu turned round: blue below zero, red above (Harrower and Brewer 2003).
DIVERGING: Final = (
    "#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7",
    "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f",
)  # fmt: skip

SCALE = [[i / (len(DIVERGING) - 1), shade] for i, shade in enumerate(DIVERGING)]
MARKS = {BOTH: "\u25cf", FDR: "\u25cb", PAPER: "\u25d0", NEITHER: ""}
BARS = ("#b7c0ca", SHADES[0], SHADES[1])
WRITTEN = 8  # cells a row, at most, in which there is room for a number
ELSEWHERE = "\u25b8"  # a head that does little where heads are read, and much elsewhere
LEGEND = {"both": MARKS[BOTH], "fdr": MARKS[FDR], "paper": MARKS[PAPER], "elsewhere": ELSEWHERE}
NAMED = 3  # heads that do much more elsewhere, named under a map
LOWEST = 160  # pixels of a map: plotly hides a label that is taller than its chart
# What hovering over a head shows.
HOVER = (
    "<b>layer %{y}, head %{x}</b>, %{customdata[3]} examples<br>%{z:.3f} %{customdata[0]} %{customdata[10]}<br>"
    "p %{customdata[1]}, q %{customdata[2]}<br>"
    "|effect| %{customdata[4]}, %{customdata[5]} \u00d7 average head<br>"
    "restoration %{customdata[6]}, normalised %{customdata[7]}<br>"
    "%{customdata[8]}, repeats in %{customdata[9]} of halves<br>"
    "most: %{customdata[11]}<extra></extra>"
)


def hovered(row: Mapping[str, Any]) -> list[str]:
    """What hovering over one head shows, in the order of `HOVER`."""
    return [
        interval(row.get("ci_low"), row.get("ci_high")),
        as_text(chance(row.get("p"))),
        as_text(chance(row.get("q"))),
        number(row.get("n")),
        number(row.get("mean_abs")),
        number(row.get("ratio"), 2),
        number(row.get("restoration")),
        number(row.get("normalised")),
        rule_of(row.get("paper"), row.get("fdr")),
        percent(row.get("repeats")),
        as_text(at_place(row["at"])) if isinstance(row.get("at"), str) else DASH,
        as_text(strongest_place(row)),
    ]


def strongest_place(row: Mapping[str, Any]) -> str:
    """Where patching a head does most, and how much."""
    return places.there(row) if known(row.get("best_abs")) else DASH


def elsewhere(rows: Iterable[Mapping[str, Any]]) -> str:
    """The line under a map: which of its heads do much more elsewhere, and where; "" for none."""
    others = places.stronger_elsewhere(rows)
    named = [f"{head_at(row['layer'], row['head'])} {places.there(row)}" for row in others[:NAMED]]
    more = [f"{len(others) - NAMED} more"] if len(others) > NAMED else []
    return f"{ELSEWHERE} {'; '.join([*named, *more])}." if others else ""


def layout(**more: Any) -> dict[str, Any]:
    """What every chart shares: fonts, white ground, narrow margins, no dragging (a phone must scroll)."""
    axis = {
        "gridcolor": LINE,
        "zerolinecolor": "#9aa5b1",
        "linecolor": LINE,
        "automargin": True,
        "title": {"standoff": 6},
    }
    base: dict[str, Any] = {
        "font": {"family": FONT, "size": 12.5, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 46, "r": 12, "t": 8, "b": 40},
        "dragmode": False,
        "hoverlabel": {
            "bgcolor": "#ffffff",
            "bordercolor": "#9aa5b1",
            "font": {"family": FONT, "size": 13, "color": INK},
        },
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "showlegend": False,  # the page has one legend for a row of charts
        "barcornerradius": 2,
    }
    for key, value in more.items():
        base[key] = {**base[key], **value} if isinstance(value, Mapping) and key in base else value
    return base


def limit(values: pd.Series) -> float:
    """The largest absolute value, so that the colour scale is centred at zero; 1 where there is nothing."""
    finite = values[np.isfinite(values)].abs()
    return float(finite.max()) if len(finite) and finite.max() > 0 else 1.0


def head_map(rows: pd.DataFrame, shape: tuple[int, int], bound: float) -> tuple[Chart, int]:
    """A layers x heads map of mean effects, with interval, p, q and n on hover and a mark where a rule selects.

    Args:
        rows: of one corruption, task and kind, a row a head.
        shape: layers and heads of the stack.
        bound: the effect at either end of the colour scale.

    Returns:
        The chart, and its height in pixels.
    """
    layers, heads = shape
    grid = rows.set_index(["layer", "head"])
    values: list[list[Any]] = [[None] * heads for _ in range(layers)]
    marks = [[""] * heads for _ in range(layers)]
    more: list[list[Any]] = [[[DASH] * len(hovered({})) for _ in range(heads)] for _ in range(layers)]
    for index, row in zip(grid.index, grid.to_dict("records"), strict=True):
        layer, head = (int(i) for i in index)
        mark = MARKS[rule_of(row.get("paper"), row.get("fdr"))]
        effect = row.get("mean")
        values[layer][head] = effect
        marks[layer][head] = " ".join(
            part
            for part in (
                number(effect, 2) if heads <= WRITTEN and known(effect) else "",
                mark,
                ELSEWHERE if row.get("elsewhere") is True else "",
            )
            if part
        )
        more[layer][head] = hovered(row)
    data = {
        "type": "heatmap",
        "z": values,
        "x": [str(i) for i in range(heads)],
        "y": [str(i) for i in range(layers)],
        "text": marks,
        "texttemplate": "%{text}",
        "customdata": more,
        "hovertemplate": HOVER,
        **colours(bound),
    }
    axis = {"type": "category", "showgrid": False, "zeroline": False}
    height = max(LOWEST, 78 + layers * (34 if layers <= 8 else 20 if layers <= 16 else 10))
    drawn = layout(
        xaxis={**axis, "title": {"text": "head", "standoff": 4}, "dtick": ticks(heads)},
        yaxis={**axis, "title": {"text": "layer", "standoff": 6}, "autorange": "reversed", "dtick": ticks(layers)},
        margin={"l": 50, "r": 6, "t": 6, "b": 40},
    )
    return {"data": [data], "layout": drawn}, height


def role_map(rows: pd.DataFrame, layers: int, value: str, bound: float) -> tuple[Chart, int]:
    """A layers x token-roles map.

    Args:
        rows: of one corruption, task and kind; columns layer, role, n, ci_low, ci_high and `value`.
        layers: of the stack.
        value: the column that is drawn.
        bound: the value at either end of the colour scale.
    """
    roles = sorted(set(rows["role"]), key=lambda role: (ROLES.index(role) if role in ROLES else len(ROLES), role))
    column = {role: i for i, role in enumerate(roles)}
    ends = ("abs_low", "abs_high") if value == "mean_abs" else ("ci_low", "ci_high")
    values: list[list[Any]] = [[None] * len(roles) for _ in range(layers)]
    more: list[list[Any]] = [[["", "", ""] for _ in roles] for _ in range(layers)]
    for row in rows.to_dict("records"):
        layer, role = int(row["layer"]), column[row["role"]]
        values[layer][role] = row[value]
        more[layer][role] = [number(row.get(ends[0])), number(row.get(ends[1])), number(row.get("n"))]
    wide = len(roles) <= WRITTEN and layers <= 16
    data = {
        "type": "heatmap",
        "z": values,
        "x": [as_text(role) for role in roles],
        "y": [str(i) for i in range(layers)],
        "customdata": more,
        "texttemplate": "%{z:.2f}" if wide else "",
        "hovertemplate": "<b>layer %{y}, %{x}</b><br>%{z:.3f}<br>interval [%{customdata[0]}, %{customdata[1]}]"
        "<br>examples %{customdata[2]}<extra></extra>",
        **colours(bound),
    }
    axis = {"type": "category", "showgrid": False, "zeroline": False}
    height = 120 + layers * (32 if layers <= 8 else 20 if layers <= 16 else 10)
    drawn = layout(
        xaxis={**axis, "tickangle": -40},
        yaxis={
            **axis,
            "title": {"text": "layer", "standoff": 6},
            "autorange": "reversed",
            "dtick": ticks(layers),
        },
        margin={"l": 50, "r": 6, "t": 6, "b": 84},
    )
    return {"data": [data], "layout": drawn}, height


def as_text(name: str) -> str:
    """A name in which plotly, which knows a few tags, finds none."""
    return html.escape(name, quote=False)


def ticks(n: int) -> int:
    """Every how many of `n` layers or heads a number stands, so that none is turned on its side."""
    return 1 if n <= 12 else 2 if n <= 16 else 4


def colours(bound: float) -> dict[str, Any]:
    """Blue below zero, red above, the same distance either way; no bar of its own, since maps share one."""
    return {
        "zmin": -bound,
        "zmax": bound,
        "colorscale": SCALE,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
    }


def lines(series: Mapping[str, pd.DataFrame], title: str, at: str) -> Chart:
    """Lines over layers with intervals; each table has columns layer, mean, ci_low, ci_high.

    Args:
        series: by name in the legend.
        title: of the vertical axis.
        at: the place that was patched, in words.
    """
    data = []
    for i, (name, rows) in enumerate(series.items()):
        rows = rows.sort_values("layer")
        low, high = (rows["mean"] - rows["ci_low"]).tolist(), (rows["ci_high"] - rows["mean"]).tolist()
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": rows["layer"].tolist(),
                "y": rows["mean"].tolist(),
                "error_y": {"type": "data", "array": high, "arrayminus": low, "thickness": 1, "width": 2},
                "line": {"color": SHADES[i % len(SHADES)], "width": 2},
                "marker": {"symbol": i, "size": 7},
                "hovertemplate": f"layer %{{x}}: %{{y:.3f}} {as_text(at)}",
            }
        )
    drawn = layout(
        xaxis={"title": {"text": "layer", "standoff": 4}, "dtick": ticks(_longest(series))},
        yaxis={"title": {"text": title, "standoff": 6}},
        hovermode="x unified",
        margin={"l": 52, "r": 8, "t": 8, "b": 40},
    )
    return {"data": data, "layout": drawn}


def _longest(series: Mapping[str, pd.DataFrame]) -> int:
    return max((len(rows) for rows in series.values()), default=0)


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
    data = []
    for i, (name, heights) in enumerate(groups.items()):
        bar: dict[str, Any] = {
            "type": "bar",
            "name": name,
            "x": [as_text(name) for name in names],
            "y": list(heights),
            "marker": {"color": BARS[i % len(BARS)]},
            "hovertemplate": "%{x}: %{y:.3f}<extra>" + name + "</extra>",
        }
        if name in spans:
            ends = list(zip(heights, spans[name], strict=True))
            bar["error_y"] = {
                "type": "data",
                "array": [_apart(high, height) for height, (_, high) in ends],
                "arrayminus": [_apart(height, low) for height, (low, _) in ends],
                "thickness": 1.4,
                "color": INK,
            }
        data.append(bar)
    drawn = layout(
        barmode="group",
        bargap=0.25,
        yaxis={"title": {"text": title, "standoff": 6}},
        xaxis={"type": "category"},
        margin={"l": 52, "r": 8, "t": 8, "b": 30},
    )
    return {"data": data, "layout": drawn}


def _apart(high: float | None, low: float | None) -> float | None:
    return None if high is None or low is None else high - low


def scatter(rows: pd.DataFrame, x: str, y: str, at: str) -> Chart:
    """Two effects of the same heads at one place against one another; columns layer, head and the two named."""
    far = (rows[x].abs() + rows[y].abs()).rank(ascending=False, method="first") <= 5
    names = [head_at(layer, head) for layer, head in zip(rows["layer"], rows["head"], strict=True)]
    data = {
        "type": "scatter",
        "mode": "markers+text",
        "x": rows[x].tolist(),
        "y": rows[y].tolist(),
        "text": [name if labelled else "" for name, labelled in zip(names, far, strict=True)],
        "customdata": names,
        "textposition": "top center",
        "textfont": {"size": 11, "color": FAINT},
        "cliponaxis": False,
        "marker": {"color": SHADES[0], "size": 7, "opacity": 0.75},
        "hovertemplate": f"<b>%{{customdata}}</b>, {as_text(at)}<br>"
        + "semantic pair %{x:.3f}<br>noise %{y:.3f}<extra></extra>",
    }
    drawn = layout(
        xaxis={"title": {"text": "effect under the semantic pair", "standoff": 4}},
        yaxis={"title": {"text": "effect under noise", "standoff": 6}},
        margin={"l": 56, "r": 16, "t": 14, "b": 42},
    )
    return {"data": [data], "layout": drawn}


def correlations(names: Sequence[str], values: Sequence[Sequence[float]]) -> tuple[Chart, int]:
    """A square map of correlations between -1 and 1, names on both axes."""
    data = {
        "type": "heatmap",
        "z": [list(row) for row in values],
        "x": [as_text(name) for name in names],
        "y": [as_text(name) for name in names],
        "texttemplate": "%{z:.2f}" if len(names) <= 10 else "",
        "hovertemplate": "%{y}<br>%{x}<br>correlation %{z:.3f}<extra></extra>",
        **colours(1.0),
    }
    axis = {"type": "category", "showgrid": False, "zeroline": False}
    drawn = layout(
        xaxis={**axis, "tickangle": -40},
        yaxis={**axis, "autorange": "reversed"},
        margin={"l": 60, "r": 6, "t": 6, "b": 60},
    )
    return {"data": [data], "layout": drawn}, 150 + 36 * len(names)
