"""What sections of a page are made of, as plain dictionaries that templates/parts.html.j2 writes: tables and charts.

Knows no run and no sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

View = dict[str, Any]


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    caption: str,
    numeric: Iterable[int] = (),
    prose: bool = False,
) -> View:
    """A table; a cell is a text or a `Verdict`.

    Args:
        header: one cell a column.
        rows: cells of each row; the first is the row's heading.
        caption: says what the table shows.
        numeric: columns whose cells are right-aligned.
        prose: cells hold sentences, so that headings of rows may wrap.
    """
    return {"header": header, "rows": list(rows), "caption": caption, "numeric": list(numeric), "prose": prose}


def chart(figure: View, title: str, height: int, note: str = "") -> View:
    """A chart with what stands above and below it."""
    return {"figure": figure, "title": title, "height": height, "note": note}


def row(
    shown: list[View],
    title: str = "",
    ends: tuple[str, str] | None = None,
    legend: Iterable[tuple[str, str]] = (),
    wide: bool = False,
) -> View:
    """Charts beside one another.

    Args:
        shown: the charts.
        title: above them.
        ends: of the colour scale that they share.
        legend: name and colour of what they share.
        wide: with more room for each.
    """
    return {"charts": shown, "title": title, "ends": ends, "legend": list(legend), "wide": wide}


def ordered(values: pd.Series, order: Sequence[str]) -> list[str]:
    """The distinct values, those of `order` first."""
    return sorted(set(values), key=lambda value: (order.index(value) if value in order else len(order), str(value)))
