"""The forms a chart is given in: a plotly figure to look at, a matplotlib one for papers, or a plotly one for a page.

Plotly and matplotlib are imported when a figure is drawn, and not before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from hooked_vlm.errors import InputsError
from hooked_vlm.viz.panels import Drawing, Graph

To = Literal["plotly", "matplotlib", "page"]


def drawn(what: Drawing | Graph, to: To) -> Any:
    """A plotly figure to look at, a matplotlib one for a paper, or plotly's plain data for a page.

    Args:
        what: panels, or a graph.
        to: "plotly", "matplotlib" or "page". For a page, of one panel or a graph, `{"data": [...], "layout": {...}}` is
            as wide as its place there, and has neither title, legend nor bar of colours, since charts share them.

    Raises:
        InputsError: if the form is none of these.
        MissingExtraError: if matplotlib is not installed.
    """
    if to == "matplotlib":
        from hooked_vlm.viz import paper

        return paper.draw(what) if isinstance(what, Drawing) else paper.draw_graph(what)
    if to not in ("plotly", "page"):
        raise InputsError(f"to={to!r}; expected 'plotly' or 'matplotlib', or 'page' for what a page embeds")
    from hooked_vlm.viz import interactive

    if to == "page":
        return interactive.embedded(what)
    return interactive.draw(what) if isinstance(what, Drawing) else interactive.draw_graph(what)


def save(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure: matplotlib's as .png, .svg or .pdf, plotly's as one .html that opens offline.

    Raises:
        InputsError: if the figure has no such form.
    """
    path = Path(path)
    if hasattr(figure, "savefig"):
        if path.suffix not in (".png", ".svg", ".pdf"):
            raise InputsError(f"{path.name}: a matplotlib figure is written as .png, .svg or .pdf")
        figure.savefig(path, dpi=200, bbox_inches="tight")
        return path
    if not hasattr(figure, "write_html"):
        raise InputsError(f"a {type(figure).__name__} is no figure of plotly or matplotlib")
    if path.suffix != ".html":
        raise InputsError(f"{path.name}: a plotly figure is written as .html; draw it to='matplotlib' for paper")
    figure.write_html(path, include_plotlyjs=True)
    return path
