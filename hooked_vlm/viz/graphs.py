"""Lines over layers, bars and scatters, with their intervals. Cost: the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hooked_vlm.errors import InputsError
from hooked_vlm.viz.forms import To, drawn
from hooked_vlm.viz.geometry import array
from hooked_vlm.viz.panels import Graph, Series
from hooked_vlm.viz.scales import SHADES

Numbers = Any  # anything `geometry.array` reads


def lines(
    series: Mapping[str, Numbers],
    *,
    x: Mapping[str, Numbers] | None = None,
    spans: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    x_title: str = "layer",
    y_title: str = "",
    title: str = "",
    hovertemplate: str = "%{x}: %{y:.3g}",
    to: To = "plotly",
) -> Any:
    """A line for each series, over layers.

    Args:
        series: by name, [layer].
        x: by name, where the numbers stand; None for 0, 1, ...
        spans: by name, low and high ends of intervals, each [layer]; NaN for none.
        x_title: what the numbers are over.
        y_title: what they are.
        title: above the graph.
        hovertemplate: what plotly shows under the mouse.
        to: "plotly" or "matplotlib"; or "page", for what a page embeds.

    Raises:
        InputsError: if a series has not as many places or ends of intervals as numbers.
    """
    found = [_series(name, ys, None if x is None else x[name], (spans or {}).get(name)) for name, ys in series.items()]
    along = sorted({float(place) for one in found for place in one.x})
    ticks = (along, [f"{place:g}" for place in along])
    return drawn(Graph("lines", found, SHADES, x_title, y_title, ticks, title, hovertemplate), to)


def bars(
    names: Sequence[str],
    groups: Mapping[str, Numbers],
    *,
    spans: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    shades: Sequence[str] = SHADES,
    y_title: str = "",
    title: str = "",
    hovertemplate: str = "%{x}: %{y:.3g}",
    to: To = "plotly",
) -> Any:
    """Bars side by side under each name, one a group.

    Args:
        names: under the bars.
        groups: by name in the legend, heights [name]; NaN leaves a bar out.
        spans: by group, low and high ends of intervals, each [name]; NaN for none.
        shades: a colour a group.
        y_title: what the heights are.
        title: above the graph.
        hovertemplate: what plotly shows under the mouse.
        to: "plotly" or "matplotlib"; or "page", for what a page embeds.

    Raises:
        InputsError: if a group has not as many heights or ends of intervals as there are names.
    """
    places = list(range(len(names)))
    found = [_series(name, heights, places, (spans or {}).get(name)) for name, heights in groups.items()]
    return drawn(Graph("bars", found, shades, "", y_title, (places, list(names)), title, hovertemplate), to)


def scatter(
    x: Numbers,
    y: Numbers,
    names: Sequence[str],
    *,
    labelled: int = 5,
    x_title: str = "",
    y_title: str = "",
    title: str = "",
    hovertemplate: str = "<b>%{customdata}</b><br>%{x:.3g}, %{y:.3g}<extra></extra>",
    to: To = "plotly",
) -> Any:
    """Two numbers of the same things against one another.

    Args:
        x: [thing].
        y: [thing].
        names: of the things.
        labelled: of how many, those farthest from zero, the name is written.
        x_title: what x is.
        y_title: what y is.
        title: above the graph.
        hovertemplate: what plotly shows under the mouse; customdata is the name.
        to: "plotly" or "matplotlib"; or "page", for what a page embeds.

    Raises:
        InputsError: if there are not as many of one as of the others.
    """
    found = _series("", y, x)
    if len(names) != len(found.y):
        raise InputsError(f"{len(names)} names for {len(found.y)} points: expected as many")
    far = np.argsort(-np.nan_to_num(np.abs(found.x) + np.abs(found.y)), kind="stable")[:labelled]
    points = Series("", found.x, found.y, texts=list(names), labelled=np.isin(np.arange(len(names)), far).tolist())
    return drawn(Graph("points", [points], SHADES, x_title, y_title, title=title, template=hovertemplate), to)


def _series(name: str, y: Numbers, x: Numbers | None, span: tuple[Numbers, Numbers] | None = None) -> Series:
    ys = array(y)
    along = np.arange(ys.size, dtype=np.float64) if x is None else array(x)
    low, high = (None, None) if span is None else map(array, span)
    for other in (along, low, high):
        if ys.ndim != 1 or (other is not None and other.shape != ys.shape):
            beside = "" if other is None else f" beside others of shape {other.shape}"
            raise InputsError(f"{name or 'a scatter'}: numbers of shape {ys.shape}{beside}: expected as many of each")
    return Series(name, along, ys, low, high)
