"""HTML in one file: escaped elements, tables, charts, images, and the page around them.

Knows nothing of NOTICE: what is written into it comes from `report` and `compare`. Text is escaped unless it is
`Markup`, so no string of a data set or a model can become an element. Costs nothing, but for the 5 MB of plotly.js
that every page with a chart carries, so that it opens offline.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hooked_vlm.notice.report.style import SCRIPT, STYLE

VOID = frozenset({"meta", "img", "br", "hr"})

Child = str | None | Iterable[Any]  # of children
Chart = dict[str, Any]


class Markup(str):
    """Text that is HTML already, and is not escaped again."""


def joined(*children: Child) -> Markup:
    """Children one after another: a str is escaped, Markup is not, None is left out, a list is walked.

    >>> joined("a < b", Markup("<br>"), None, ["c"])
    'a &lt; b<br>c'
    """
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(child))
        else:
            parts.append(joined(*child))
    return Markup("".join(parts))


def tag(name: str, *children: Child, **attributes: str | bool | None) -> Markup:
    """One element; `class_` and `for_` lose the underscore, other underscores become hyphens.

    >>> tag("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(*children)}</{name}>")


def section(id: str, title: str, *children: Child) -> Markup:
    """A part of the page that its table of contents can name."""
    return tag("section", tag("h2", title), *children, id=id)


def details(summary: str, *children: Child, open: bool = False, on_paper: bool = True) -> Markup:
    """What only some readers want, folded away.

    Args:
        summary: what it is.
        children: what is in it.
        open: unfolded to begin with.
        on_paper: unfolded where the page is printed.
    """
    return tag("details", tag("summary", summary), *children, open=open, data_screen=not on_paper)


def paragraph(*children: Child, class_: str | None = None) -> Markup:
    """A paragraph."""
    return tag("p", *children, class_=class_)


def facts(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """What was what: terms and their values."""
    return tag("dl", [(tag("dt", term), tag("dd", value)) for term, value in pairs], class_="facts")


def items(entries: Iterable[Child], class_: str | None = None) -> Markup:
    """A bulleted list."""
    return tag("ul", [tag("li", entry) for entry in entries], class_=class_)


def table(
    header: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    *,
    caption: str,
    numeric: Iterable[int] = (),
    prose: bool = False,
) -> Markup:
    """A table that scrolls within its own box where the page is narrow.

    Args:
        header: one cell a column.
        rows: cells of each row; the first cell is the row's heading.
        caption: says what the table shows; also what a screen reader calls the scrolling box.
        numeric: columns whose cells are right-aligned.
        prose: cells hold sentences, so that headings of rows may wrap.
    """
    right = set(numeric)

    def kind(column: int) -> str | None:
        return "number" if column in right else None

    head = tag("tr", [tag("th", cell, scope="col", class_=kind(i)) for i, cell in enumerate(header)])
    body = [
        tag(
            "tr",
            [
                tag("td", cell, class_=kind(i)) if i else tag("th", cell, scope="row", class_=kind(i))
                for i, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    parts = (tag("caption", caption), tag("thead", head), tag("tbody", body))
    whole = tag("table", *parts, class_="prose" if prose else None)
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def image(png: bytes, caption: str) -> Markup:
    """A PNG inside the page, with its caption, which is also its alternative text."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return tag("figure", tag("img", src=source, alt=caption), tag("figcaption", caption), class_="overlay")


def chart(figure: Chart, title: Child, note: Child = None, *, height: int) -> Markup:
    """A plotly figure, given as plain ``{"data": ..., "layout": ...}``; the page's script draws it.

    Args:
        figure: data and layout. NaN becomes null.
        title: stands above the chart as text, so that it can be found and wraps on a phone.
        note: stands below it.
        height: pixels.
    """
    data = json.dumps(_plain(figure), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    plot = tag(
        "div",
        Markup(f'<script type="application/json">{data}</script>'),
        class_="plot",
        style=f"height:{height}px",
    )
    return tag(
        "figure",
        tag("figcaption", title, class_="title"),
        plot,
        tag("p", note, class_="note") if note else None,
        class_="chart",
    )


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dictionaries that JSON has, numbers to five significant digits."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class Part:
    """A section of a page and the name under which the table of contents lists it."""

    id: str
    name: str
    body: Markup


def page(title: str, subtitle: str, top: Markup, parts: Sequence[Part], foot: Markup) -> str:
    """The whole document: header, what comes first, table of contents, sections, foot.

    Args:
        title: of the page and its first heading.
        subtitle: one line under it.
        top: what a reader sees before anything else.
        parts: sections in their order.
        foot: where it came from.
    """
    from plotly.offline import get_plotlyjs  # 5 MB of text, wanted by writers of pages alone

    drawn = any('class="plot"' in part.body for part in (Part("", "", top), *parts))
    contents = tag(
        "nav",
        tag("h2", "Contents"),
        tag("ol", [tag("li", tag("a", part.name, href=f"#{part.id}")) for part in parts]),
        class_="contents",
        aria_label="Contents",
    )
    header = tag("header", tag("h1", title), tag("p", subtitle, class_="subtitle"))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            tag("title", title),
            # The browser itself refuses whatever would leave the machine.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            tag("div", header, top, class_="top"),
            contents,
            tag("div", [Markup(f"\n{part.body}\n") for part in parts], tag("footer", foot), class_="parts"),
            "</main>",
            f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>" if drawn else "",
            "</body>",
            "</html>",
            "",
        ]
    )
