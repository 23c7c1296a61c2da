"""Panels as a plotly figure: to look at, with what each cell is under the mouse.

Cost: pictures are sent along as PNG, at most 600 pixels a side. Positions are numbers and tokens their labels, so that
a token that is there twice keeps two columns.
"""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from hooked_vlm.viz.panels import Drawing, Panel

FONT = "Helvetica, Arial, sans-serif"
INK, FRAME = "#222222", "#111111"
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


def _traces(panel: Panel, coloraxis: str) -> list[Any]:
    rows, columns = panel.values.shape
    x0, y0, x1, y1 = panel.edges
    x = x0 + (np.arange(columns) + 0.5) * (x1 - x0) / columns
    y = y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows
    hover = panel.hover if panel.hover is not None else np.vectorize("{:.3g}".format)(panel.values)
    shown = [[html.escape(str(text)).replace("\n", "<br>") for text in line] for line in hover]
    cells = go.Heatmap(
        z=panel.values,
        x=x,
        y=y,
        coloraxis=coloraxis,
        customdata=shown,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1 if panel.image is None else 0,
        ygap=1 if panel.image is None else 0,
    )
    traces: list[Any] = [cells]
    if panel.image is not None:
        traces.insert(0, _picture(panel))
    if panel.outline is not None:
        traces += [
            _edge(panel, {"color": FRAME, "width": 3.5}),
            _edge(panel, {"color": "#ffffff", "width": 2, "dash": "dot"}),
        ]
    if panel.words is not None:
        traces.append(
            go.Scatter(
                x=np.tile(x, rows),
                y=np.repeat(y, columns),
                mode="text",
                text=[_text(str(word)) for word in panel.words.reshape(-1)],
                textfont={"size": 12, "color": [panel.ink(*cell) for cell in np.ndindex(rows, columns)]},
                hoverinfo="skip",
            )
        )
    return traces


def _picture(panel: Panel) -> go.Image:
    assert panel.image is not None
    height, width = panel.image.shape[:2]
    small = Image.fromarray(panel.image)
    small.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    stored = io.BytesIO()
    small.save(stored, "PNG")
    dx, dy = width / small.width, height / small.height
    source = "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()
    return go.Image(source=source, x0=dx / 2, y0=dy / 2, dx=dx, dy=dy, hoverinfo="skip")


def _edge(panel: Panel, line: dict[str, Any]) -> go.Contour:
    assert panel.outline is not None
    step = max(1, max(panel.outline.shape) // 200)
    region = np.pad(panel.outline[::step, ::step].astype(float), 1)  # so that the edge closes at the border
    return go.Contour(
        z=region,
        x0=-step / 2,
        dx=step,
        y0=-step / 2,
        dy=step,
        contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        line=line,
        showscale=False,
        hoverinfo="skip",
    )


def _axes(figure: go.Figure, panel: Panel, row: int, column: int) -> None:
    where = {"row": row, "col": column}
    shared = {"showgrid": False, "zeroline": False, "ticks": "", "title_standoff": 8}
    if panel.image is not None:
        height, width = panel.image.shape[:2]
        figure.update_xaxes(visible=False, range=[0, width], constrain="domain", **where)
        figure.update_yaxes(visible=False, range=[height, 0], scaleanchor=_x_axis(figure, row, column), **where)
        figure.update_yaxes(constrain="domain", **where)
        return
    x0, y0, x1, y1 = panel.edges
    rows, columns = panel.ticks
    figure.update_xaxes(
        range=[x0, x1],
        tickvals=columns,
        ticktext=[_text(panel.column_labels[i]) for i in columns],
        tickangle=-90 if panel.upright else 0,
        title={"text": _text(panel.column_title)},
        **shared,
        **where,
    )
    figure.update_yaxes(
        range=[y1, y0],
        tickvals=rows,
        ticktext=[_text(panel.row_labels[i]) for i in rows],
        title={"text": _text(panel.row_title)},
        **shared,
        **where,
    )


def _x_axis(figure: go.Figure, row: int, column: int) -> str:
    name: str = figure.get_subplot(row, column).xaxis.plotly_name
    return name.replace("axis", "")


def _text(given: str) -> str:
    """Text that plotly does not read as tags: "<image>" would vanish."""
    return html.escape(given, quote=False)
