"""Panels and graphs as matplotlib figures: for papers, and for notebooks that keep their pictures.

Needs matplotlib, which the extra `figures` installs. Cost: one figure; no window is opened and pyplot's state is left
alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hooked_vlm.errors import MissingExtraError
from hooked_vlm.viz.panels import Drawing, Graph, Panel
from hooked_vlm.viz.scales import FAINT, INK, LINE, Scale

PER_INCH = 80  # pixels of a panel that become an inch on paper


def draw(drawing: Drawing) -> Any:
    """The drawing as a `matplotlib.figure.Figure`.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    panels, columns, rows = drawing.panels, drawing.columns, drawing.rows
    wide, high = max(p.pixels[0] for p in panels), max(p.pixels[1] for p in panels)
    longest_row = max((len(str(label)) for p in panels for label in p.row_labels), default=0)
    longest_column = max((len(str(label)) for p in panels for label in p.column_labels), default=0)
    n_scales = len({panel.scale for panel in panels})
    width = columns * (wide / PER_INCH + 0.08 * longest_row + 0.35) + 0.9 * n_scales
    height = rows * (high / PER_INCH + 0.08 * longest_column + 0.6) + (0.35 if drawing.title else 0)
    figure = _figure(width, height)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    of_scale: dict[Scale, list[Any]] = {}
    for i, (ax, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        _panel(ax, panel)
        ax.set_ylabel(_text(panel.row_title) if i % columns == 0 else "", fontsize=10, color=INK)
        ax.set_xlabel(_text(panel.column_title) if i + columns >= len(panels) else "", fontsize=10, color=INK)
        of_scale.setdefault(panel.scale, []).append(ax)
    for scale, those in of_scale.items():
        _bar(figure, scale, list(axes.flat) if len(of_scale) == 1 else those, rows * high / PER_INCH)
    if drawing.title:
        figure.suptitle(_text(drawing.title), fontsize=12, color=INK)
    return figure


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "drawing for paper needs matplotlib: pip install 'hooked-vlm[figures]', or draw to='plotly'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_graph(graph: Graph) -> Any:
    """The graph as a `matplotlib.figure.Figure`, with a legend where there are several series.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    figure = _figure(5.6, 3.4)
    ax = figure.subplots()
    ax.margins(0.08)
    n = len(graph.series)
    for i, one in enumerate(graph.series):
        colour, label, spans = graph.shades[i % len(graph.shades)], _text(one.name), one.spans
        if graph.form == "bars":
            at = one.x + 0.75 * ((i + 0.5) / n - 0.5)
            ax.bar(at, one.y, 0.75 / n, yerr=spans, color=colour, label=label, ecolor=INK)
        elif graph.form == "lines":
            ax.errorbar(one.x, one.y, spans, color=colour, label=label, marker="o", markersize=4, elinewidth=1)
        else:
            ax.scatter(one.x, one.y, s=20, color=colour, alpha=0.75, label=label)
            for x, y, text, shown in zip(one.x, one.y, one.texts, one.labelled, strict=True):
                if shown:
                    ax.annotate(_text(text), (x, y), (0, 4), textcoords="offset points", ha="center", color=FAINT)
    places, labels = graph.ticks
    if len(places):
        ax.set_xticks(list(places), [_text(label) for label in labels])
    ax.grid(axis="both" if graph.form == "points" else "y", color=LINE)
    ax.set_axisbelow(True)
    ax.set_xlabel(_text(graph.x_title), color=INK)
    ax.set_ylabel(_text(graph.y_title), color=INK)
    ax.set_title(_text(graph.title), fontsize=12, color=INK)
    for spine in ax.spines.values():
        spine.set_color("#bbbbbb")
    if n > 1:
        figure.legend(loc="outside lower center", ncols=n, frameon=False, fontsize=9)
    return figure


def _panel(ax: Any, panel: Panel) -> None:
    x0, y0, x1, y1 = panel.edges
    if panel.image is not None:
        height, width = panel.image.shape[:2]
        ax.imshow(panel.image, extent=(0, width, height, 0), interpolation="antialiased")
    ax.imshow(panel.scale.colours(panel.values), extent=(x0, x1, y1, y0), interpolation="nearest", aspect="auto")
    if panel.image is not None:
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
    else:
        _labels(ax, panel)
    if panel.outline is not None:
        step = max(1, max(panel.outline.shape) // 400)
        region = np.pad(panel.outline[::step, ::step].astype(float), 1)  # so that the edge closes at the border
        along = [(np.arange(n) - 0.5) * step for n in region.shape]
        ax.contour(along[1], along[0], region, [0.5], colors=INK, linewidths=2.2)  # to be seen on light and dark
        ax.contour(along[1], along[0], region, [0.5], colors="#ffffff", linewidths=1.4, linestyles="dotted")
    if panel.words is not None:
        for (row, column), word in np.ndenumerate(panel.words):
            left, top, right, bottom = panel.cell(row, column)
            at = {"ha": "center", "va": "center", "fontsize": 8, "color": panel.ink(row, column), "clip_on": True}
            ax.text((left + right) / 2, (top + bottom) / 2, _text(str(word)), **at)
    for cell in panel.framed:
        left, top, right, bottom = panel.cell(*cell)
        xs, ys = [left, right, right, left, left], [top, top, bottom, bottom, top]
        ax.plot(xs, ys, clip_on=False, color=INK, linewidth=2 if panel.image is None else 4, solid_joinstyle="miter")
        if panel.image is not None:
            ax.plot(xs, ys, clip_on=False, color="#ffffff", linewidth=2, solid_joinstyle="miter")
    for spine in ax.spines.values():
        spine.set_color("#bbbbbb")
    ax.set_title(_text(panel.title), fontsize=10, color=INK)


def _labels(ax: Any, panel: Panel) -> None:
    x0, y0, x1, y1 = panel.edges
    ax.set_xlim(x0, x1)
    ax.set_ylim(y1, y0)
    wide, high = panel.pixels
    square = np.isclose(wide / panel.values.shape[1], high / panel.values.shape[0])
    ax.set_aspect("equal" if square else "auto")
    rows, columns = panel.ticks
    ax.set_xticks(columns, [_text(panel.column_labels[i]) for i in columns])
    ax.set_yticks(rows, [_text(panel.row_labels[i]) for i in rows])
    ax.tick_params(labelsize=9, length=0, colors=INK)
    ax.tick_params(axis="x", rotation=90 if panel.upright else 0)


def _bar(figure: Any, scale: Scale, axes: list[Any], inches: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = ScalarMappable(
        Normalize(scale.low, scale.high), ListedColormap(scale.on_grey if scale.see_through else scale.table)
    )
    bar = figure.colorbar(colours, ax=axes, shrink=min(1.0, 2.6 / inches) if inches > 2.6 else 1.0, aspect=16)
    bar.set_label(_text(scale.label), fontsize=10, color=INK)
    bar.ax.tick_params(labelsize=9, colors=INK)
    bar.outline.set_edgecolor("#bbbbbb")


def _text(given: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return given.replace("$", r"\$")
