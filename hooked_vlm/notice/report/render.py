"""Pages from what they show: Jinja2 templates in which every value is escaped, one style sheet and one script.

No string of a data set or a model can become an element. A page opens offline: it carries its charts as data and the
5 MB of plotly.js that draw them, where it has any. Knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from hooked_vlm.viz.scales import FAINT, FONT, INK, LINE, PALETTES

HERE: Final = Path(__file__).parent


def rendered(template: str, **values: Any) -> str:
    """A template of templates/ with its values.

    Args:
        template: its name without endings: "report", "compare" or "verdicts".
        values: by name in the template; text is escaped.
    """
    return ENVIRONMENT.get_template(f"{template}.html.j2").render(values)


def page(template: str, view: Mapping[str, Any]) -> str:
    """A whole document.

    Args:
        template: that extends page.html.j2.
        view: all that it shows, plain, with its title and subtitle.
    """
    style, script = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("style.css", "report.js"))
    look = {"font": Markup(FONT), "ink": INK, "faint": FAINT, "line": LINE, "diverging": PALETTES["diverging"].split()}
    return rendered(template, view=view, look=look, style=style, script=script, plotly=_plotly)


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs  # 5 MB of text, wanted by writers of pages alone

    return Markup(get_plotlyjs())


def _json(figure: Mapping[str, Any]) -> Markup:
    return htmlsafe_json_dumps(_plain(figure), separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dictionaries that JSON has, numbers to five significant digits, null for NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # a numpy array or scalar
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


ENVIRONMENT: Final = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["json"] = _json
