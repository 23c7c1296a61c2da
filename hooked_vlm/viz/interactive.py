"""Panels and graphs as plotly figures: to look at, with what each cell is under the mouse; and as data for a page.

Cost: pictures are sent along as PNG, at most 600 pixels a side. Positions are numbers and tokens their labels, so that
a token that is there twice keeps two columns.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from hooked_vlm.errors import InputsError
from hooked_vlm.viz.geometry import Number
from hooked_vlm.viz.panels import Drawing, Graph, Panel, Series
from hooked_vlm.viz.scales import FAINT, FONT, INK, LINE

FRAME = "#111111"
ZERO = "#9aa5b1"  # of the line at zero
LARGEST_PICTURE = 600
TOOLS = 30  # pixels at the top where plotly puts its buttons
BAR = 96  # pixels that a colour bar takes, with its label


def draw(drawing: Drawing) -> go.Figure:
    """The drawing as a figure, sized so that its cells are square."""
    panels, columns, rows = drawing.panels, drawing.columns, drawing.rows
    wide, high = max(p.pixels[0] for p in panels), max(p.pixels[1] for p in panels)
    left, between, above, below = _gaps(drawing)
    scales = list(dict.fromkeys(panel.scale for panel in panels))
    inner_width = columns * wide + (columns - 1) * between
    inner_height = rows * high + (rows - 1) * (above + below)
    top = TOOLS + above + (30 if drawing.title else 0)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[_text(panel.title) for panel in panels],
        horizontal_spacing=between / inner_width if columns > 1 else 0,
        vertical_spacing=(above + below) / inner_height if rows > 1 else 0,
    )
    for i, panel in enumerate(panels):
        row, column = i // columns + 1, i % columns + 1
        for trace in _traces(panel, f"coloraxis{scales.index(panel.scale) + 1}"):
            figure.add_trace(trace, row, column)
        for cell in panel.framed:
            x0, y0, x1, y1 = panel.cell(*cell)
            lines = [(FRAME, 2.5)] if panel.image is None else [(FRAME, 4.5), ("#ffffff", 2)]
            for colour, width in lines:
                line = {"color": colour, "width": width}
                figure.add_shape(type="rect", x0=x0, y0=y0, x1=x1, y1=y1, line=line, row=row, col=column)
        _axes(figure, panel, row, column)
        if i % columns:
            figure.update_yaxes(title=None, row=row, col=column)
        if i + columns < len(panels):
            figure.update_xaxes(title=None, row=row, col=column)
    for i, scale in enumerate(scales):
        bar = {
            "title": {"text": _text(scale.label), "side": "right", "font": {"size": 13}},
            "thickness": 14,
            "len": min(1.0, max(220 / inner_height, 0.4)),
            "x": 1 + (12 + BAR * i) / inner_width,
            "xanchor": "left",
            "tickfont": {"size": 12},
        }
        figure.update_layout(
            {f"coloraxis{i + 1}": {"colorscale": scale.stops, "cmin": scale.low, "cmax": scale.high, "colorbar": bar}}
        )
    right = 12 + BAR * len(scales)
    figure.update_layout(
        width=round(max(inner_width + left + right, 9 * len(drawing.title) + 60)),
        height=round(inner_height + top + below + 12),
        margin={"l": left, "r": right, "t": top, "b": below + 12},
        title={"text": _text(drawing.title), "x": 0, "xanchor": "left", "y": 1, "yanchor": "top"}
        | {"font": {"size": 17}, "pad": {"t": TOOLS, "l": 14}},
        font={"family": FONT, "size": 13, "color": INK},
        plot_bgcolor="#ffffff",
        paper_bgcolor="#ffffff",
        showlegend=False,
    )
    figure.update_annotations(font={"size": 14, "color": INK})
    return figure


def draw_graph(graph: Graph) -> go.Figure:
    """The graph as a figure with its title, and a legend where there are several series."""
    several = len(graph.series) > 1
    size = {"width": 640, "height": 400, "margin": {"l": 64, "r": 20, "t": 70 if graph.title else 40, "b": 50}}
    title = {"text": _text(graph.title), "x": 0, "xanchor": "left", "font": {"size": 17}, "pad": {"l": 14}}
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    drawn = embedded(graph)
    about = {"title": title, "legend": legend, "showlegend": several, "dragmode": "zoom"}
    return go.Figure(drawn["data"], {**drawn["layout"], **size, **about})


def embedded(what: Drawing | Graph) -> dict[str, Any]:
    """One panel or graph as plain data and layout, as wide as its place; it is not dragged, since a phone must scroll.

    Raises:
        InputsError: if there are several panels, or one with a picture, which has a size of its own.
    """
    if isinstance(what, Graph):
        data, axes = _of_form(what), _graph_axes(what)
    else:
        if len(what.panels) > 1 or what.panels[0].image is not None:
            raise InputsError("a page embeds one map without a picture at a time: draw each with to='page'")
        (panel,) = what.panels
        scale, axes = panel.scale, _panel_axes(panel, _few(panel.row_labels), _few(panel.column_labels))
        colours = {"zmin": scale.low, "zmax": scale.high, "colorscale": scale.stops, "showscale": False}
        data = [_cells(panel, **colours)]
        if panel.words is not None:  # plotly leaves out what has no room, since only it knows how wide the page is
            data[0] |= {"text": np.vectorize(_text, otypes=[object])(panel.words), "texttemplate": "%{text}"}
        axes["xaxis"]["tickangle"] = -40 if panel.upright else 0
        axes["margin"] = {"l": 50, "r": 6, "t": 6, "b": 40}
    return {"data": data, "layout": _layout(**axes)}


def _layout(xaxis: Mapping[str, Any], yaxis: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What every embedded chart shares: letters, white ground, narrow margins."""
    shared = {"gridcolor": LINE, "zerolinecolor": ZERO, "linecolor": LINE, "automargin": True}
    font = {"family": FONT, "size": 12.5, "color": INK}
    return {
        "font": font,
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 56, "r": 16, "t": 14, "b": 42},
        "dragmode": False,
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": ZERO, "font": {**font, "size": 13}},
        "xaxis": {**shared, **xaxis},
        "yaxis": {**shared, **yaxis},
        "showlegend": False,
        "barcornerradius": 2,
        **more,
    }


def _few(labels: Sequence[str]) -> list[int]:
    """Which labels there is room for: all words, and of numbers so many that none is turned on its side."""
    n = len(labels)
    words = any(len(label) > 2 for label in labels)
    return list(range(0, n, 1 if words or n <= 12 else 2 if n <= 16 else 4))


def _of_form(graph: Graph) -> list[dict[str, Any]]:
    """The series of a graph as traces."""
    return [
        {"name": one.name, "y": one.y, "hovertemplate": graph.template, **_FORMS[graph.form](graph, i, one)}
        for i, one in enumerate(graph.series)
    ]


def _line(graph: Graph, i: int, one: Series) -> dict[str, Any]:
    line = {"color": graph.shades[i % len(graph.shades)], "width": 2}
    look = {"line": line, "marker": {"symbol": i, "size": 7}, **_intervals(one, thickness=1, width=2)}
    return {"type": "scatter", "mode": "lines+markers", "x": one.x, **look}


def _bar(graph: Graph, i: int, one: Series) -> dict[str, Any]:
    names = [_text(name) for name in graph.ticks[1]]
    colour = {"color": graph.shades[i % len(graph.shades)]}
    return {"type": "bar", "x": names, "marker": colour, **_intervals(one, thickness=1.4, color=INK)}


def _points(graph: Graph, i: int, one: Series) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": one.x,
        "text": [_text(text) if shown else "" for text, shown in zip(one.texts, one.labelled, strict=True)],
        "customdata": [_text(text) for text in one.texts],
        "textposition": "top center",
        "textfont": {"size": 11, "color": FAINT},
        "cliponaxis": False,
        "marker": {"color": graph.shades[i % len(graph.shades)], "size": 7, "opacity": 0.75},
    }


_FORMS = {"lines": _line, "bars": _bar, "points": _points}


def _intervals(one: Series, **look: Any) -> dict[str, Any]:
    if one.spans is None:
        return {}
    below, above = one.spans
    return {"error_y": {"type": "data", "array": above, "arrayminus": below, **look}}


def _graph_axes(graph: Graph) -> dict[str, Any]:
    places, labels = graph.ticks
    xaxis: dict[str, Any] = {"title": {"text": _text(graph.x_title), "standoff": 4}}
    more: dict[str, Any] = {}
    if graph.form == "lines":
        shown = _few(labels)
        xaxis |= {"tickvals": [places[i] for i in shown], "ticktext": [labels[i] for i in shown]}
        more["hovermode"] = "x unified"
    elif graph.form == "bars":
        xaxis["type"] = "category"
        more = {"barmode": "group", "bargap": 0.25}
    return {"xaxis": xaxis, "yaxis": {"title": {"text": _text(graph.y_title), "standoff": 6}}, **more}


def _gaps(drawing: Drawing) -> tuple[int, int, int, int]:
    """Pixels left of the first panel, between two, and above and below each, for labels and titles."""
    panels = drawing.panels
    longest_row = max((len(str(label)) for p in panels for label in p.row_labels), default=0)
    longest_column = max((len(str(label)) for p in panels for label in p.column_labels), default=0)
    labelled = any(p.row_labels for p in panels)
    left = 12 + (8 * longest_row + 40 if labelled else 0)
    below = 12 + (8 * longest_column if longest_column > 2 else 18) + (26 if any(p.column_title for p in panels) else 0)
    above = 32 if any(p.title for p in panels) else 8
    return left, left + 8 if labelled else 18, above, below if any(p.column_labels for p in panels) else 8


def _cells(panel: Panel, **colours: Any) -> dict[str, Any]:
    """The cells of a panel as a trace, each at its place."""
    x, y = panel.places
    shown = {} if panel.hover is None else {"customdata": np.vectorize(_hovered, otypes=[object])(panel.hover)}
    gap = 1 if panel.image is None else 0
    about = {"type": "heatmap", "hovertemplate": panel.template, "hoverongaps": False, "xgap": gap, "ygap": gap}
    return {**about, "z": panel.values, "x": x, "y": y, **shown, **colours}


def _traces(panel: Panel, coloraxis: str) -> list[dict[str, Any]]:
    traces = [_cells(panel, coloraxis=coloraxis)]
    if panel.image is not None:
        traces.insert(0, _picture(panel))
    if panel.outline is not None:
        traces += [
            _edge(panel, {"color": FRAME, "width": 3.5}),
            _edge(panel, {"color": "#ffffff", "width": 2, "dash": "dot"}),
        ]
    if panel.words is not None:
        x, y = np.meshgrid(*panel.places)
        inks = [panel.ink(*cell) for cell in np.ndindex(panel.values.shape)]
        text = {"text": list(map(_text, panel.words.flat)), "textfont": {"size": 12, "color": inks}}
        traces.append({"type": "scatter", "mode": "text", "hoverinfo": "skip", "x": x.ravel(), "y": y.ravel(), **text})
    return traces


def _picture(panel: Panel) -> dict[str, Any]:
    assert panel.image is not None
    height, width = panel.image.shape[:2]
    small = Image.fromarray(panel.image)
    small.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    stored = io.BytesIO()
    small.save(stored, "PNG")
    dx, dy = width / small.width, height / small.height
    source = "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()
    return {"type": "image", "source": source, "x0": dx / 2, "y0": dy / 2, "dx": dx, "dy": dy, "hoverinfo": "skip"}


def _edge(panel: Panel, line: dict[str, Any]) -> dict[str, Any]:
    assert panel.outline is not None
    step = max(1, max(panel.outline.shape) // 200)
    region = np.pad(panel.outline[::step, ::step].astype(float), 1)  # so that the edge closes at the border
    contours = {"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"}
    places = {"x0": -step / 2, "dx": step, "y0": -step / 2, "dy": step}
    look = {"contours": contours, "line": line, "showscale": False, "hoverinfo": "skip"}
    return {"type": "contour", "z": region, **places, **look}


def _axes(figure: go.Figure, panel: Panel, row: int, column: int) -> None:
    where = {"row": row, "col": column}
    if panel.image is not None:
        height, width = panel.image.shape[:2]
        figure.update_xaxes(visible=False, range=[0, width], constrain="domain", **where)
        figure.update_yaxes(visible=False, range=[height, 0], scaleanchor=_x_axis(figure, row, column), **where)
        figure.update_yaxes(constrain="domain", **where)
        return
    axes = _panel_axes(panel, *panel.ticks)
    figure.update_xaxes(tickangle=-90 if panel.upright else 0, **axes["xaxis"], **where)
    figure.update_yaxes(**axes["yaxis"], **where)


def _panel_axes(panel: Panel, rows: Sequence[int], columns: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The axes of a map, with the labels of these rows and columns."""
    x0, y0, x1, y1 = panel.edges
    shared = {"showgrid": False, "zeroline": False, "ticks": ""}

    def axis(labels: Sequence[str], shown: Sequence[int], title: str, ends: list[Number]) -> dict[str, Any]:
        named = {"tickvals": list(shown), "ticktext": [_text(labels[i]) for i in shown]}
        return {"range": ends, **named, "title": {"text": _text(title), "standoff": 6}, **shared}

    return {
        "xaxis": axis(panel.column_labels, columns, panel.column_title, [x0, x1]),
        "yaxis": axis(panel.row_labels, rows, panel.row_title, [y1, y0]),
    }


def _x_axis(figure: go.Figure, row: int, column: int) -> str:
    name: str = figure.get_subplot(row, column).xaxis.plotly_name
    return name.replace("axis", "")


def _text(given: object) -> str:
    """Text that plotly does not read as tags: "<image>" would vanish."""
    return html.escape(str(given), quote=False)


def _hovered(given: object) -> str:
    return _text(given).replace("\n", "<br>")
