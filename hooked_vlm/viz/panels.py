"""What is to be drawn, before it is drawn: panels of cells, with or without a picture beneath.

Charts say what they show in panels, or in a graph of series; `interactive` draws them with plotly and `paper` with
matplotlib, so that both forms show the same. Cost: the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hooked_vlm.errors import InputsError
from hooked_vlm.viz.geometry import Box, Number
from hooked_vlm.viz.scales import Scale


@dataclass(frozen=True)
class Panel:
    """One heat map, or one picture with cells over it.

    Args:
        values: [row column], NaN for nothing.
        scale: their colours.
        title: above the panel.
        row_labels: one a row; none over a picture.
        column_labels: one a column; none over a picture.
        row_title: what the rows are.
        column_title: what the columns are.
        hover: [row column], what the mouse shows; or [row column field], texts that `template` puts into words.
        words: [row column], what is written into the cells, or None.
        framed: cells with a frame around them, (row, column).
        image: [height width 3] of uint8, the picture beneath, or None.
        box: where the cells lie on the picture.
        outline: [height width], a region of the picture whose edge is drawn, or None.
        template: how plotly shows what `hover` holds, there called customdata.
    """

    values: NDArray[np.float64]
    scale: Scale
    title: str = ""
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    row_title: str = ""
    column_title: str = ""
    hover: NDArray[Any] | None = None
    words: NDArray[Any] | None = None
    framed: Sequence[tuple[int, int]] = ()
    image: NDArray[np.uint8] | None = None
    box: Box | None = None
    outline: NDArray[np.bool_] | None = None
    template: str = "%{customdata}<extra></extra>"

    def __post_init__(self) -> None:
        rows, columns = self.values.shape
        beyond = [cell for cell in self.framed if not (0 <= cell[0] < rows and 0 <= cell[1] < columns)]
        if beyond:
            raise InputsError(f"cells {beyond} are to be framed, and the map has {rows} rows and {columns} columns")

    @property
    def edges(self) -> Box:
        """Left, top, right and bottom of the cells, in the coordinates they are drawn in."""
        rows, columns = self.values.shape
        return self.box if self.box is not None else (-0.5, -0.5, columns - 0.5, rows - 0.5)

    @property
    def places(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the centres of columns and of rows lie."""
        left, top, right, bottom = self.edges
        rows, columns = self.values.shape
        across, down = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
        return left + across * (right - left), top + down * (bottom - top)

    def cell(self, row: int, column: int) -> Box:
        """Left, top, right and bottom of one cell."""
        left, top, right, bottom = self.edges
        wide, high = (right - left) / self.values.shape[1], (bottom - top) / self.values.shape[0]
        return left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high

    @property
    def pixels(self) -> tuple[float, float]:
        """Width and height that the panel should have on a screen, its labels not counted."""
        if self.image is not None:
            height, width = self.image.shape[:2]
            side = 300.0 if self.words is None else 560.0
            return side * min(1.0, width / height), side * min(1.0, height / width)
        rows, columns = self.values.shape
        if self.words is not None:
            longest = max(len(str(word)) for word in self.words.flat)
            return columns * max(44.0, 8.0 * longest + 10), rows * 28.0
        return columns * _side(columns), rows * _side(rows)

    @property
    def ticks(self) -> tuple[list[int], list[int]]:
        """Which rows and columns are labelled: every second column where numbers would touch."""
        crowded = not self.upright and self.pixels[0] / max(1, len(self.column_labels)) < 20
        return list(range(len(self.row_labels))), list(range(0, len(self.column_labels), 1 + crowded))

    @property
    def upright(self) -> bool:
        """True if the columns' labels are words, which are written upwards."""
        return any(len(label) > 2 for label in self.column_labels)

    def ink(self, row: int, column: int) -> str:
        """Black or white, whichever can be read in a cell."""
        beneath = 1.0
        if self.image is not None:
            left, top, right, bottom = (max(0, round(edge)) for edge in self.cell(row, column))
            part = self.image[top : max(bottom, top + 1), left : max(right, left + 1)]
            beneath = float(part.mean()) / 255 if part.size else beneath
        red, green, blue, alpha = self.scale.colours(self.values[row, column])
        luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
        return "#111111" if alpha * luma + (1 - alpha) * beneath > 0.5 else "#ffffff"


def _side(n: int) -> float:
    """Side of a cell in pixels where there are so many."""
    return float(np.clip(560 / n, 16, 42))


@dataclass(frozen=True)
class Drawing:
    """Panels side by side, in rows of at most `columns`.

    Args:
        panels: what to draw.
        title: above all of them.
        columns: how many stand side by side.
    """

    panels: Sequence[Panel]
    title: str = ""
    columns: int = 4
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        if not self.panels or self.columns < 1:
            raise InputsError(f"{len(self.panels)} panels in {self.columns} columns: expected at least one of each")
        object.__setattr__(self, "columns", min(self.columns, len(self.panels)))
        object.__setattr__(self, "rows", -(-len(self.panels) // self.columns))


def titles_of(titles: Sequence[str], n: int) -> list[str]:
    """A title a panel, of those that were given."""
    if titles and len(titles) != n:
        raise InputsError(f"{len(titles)} titles for {n} panels: expected as many")
    return list(titles) or [""] * n


@dataclass(frozen=True)
class Series:
    """What one line, group of bars or cloud of points shows.

    Args:
        name: in the legend.
        x: where along the horizontal axis.
        y: how high, NaN for nothing.
        low: low end of each interval, NaN for none.
        high: its high end.
        texts: of points, what each is.
        labelled: of points, which have their text written beside them.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    texts: Sequence[str] = ()
    labelled: Sequence[bool] = ()

    @property
    def spans(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """How far the intervals reach below and above; None where there are none."""
        return None if self.low is None or self.high is None else (self.y - self.low, self.high - self.y)


@dataclass(frozen=True)
class Graph:
    """Series over one pair of axes.

    Args:
        form: "lines", "bars" or "points".
        series: what is shown.
        shades: their colours.
        x_title: what stands along the horizontal axis.
        y_title: what stands along the vertical one.
        ticks: the horizontal axis' places and their labels.
        title: above the graph.
        template: how plotly shows what is under the mouse.
    """

    form: Literal["lines", "bars", "points"]
    series: Sequence[Series]
    shades: Sequence[str]
    x_title: str = ""
    y_title: str = ""
    ticks: tuple[Sequence[Number], Sequence[str]] = ((), ())
    title: str = ""
    template: str = ""
