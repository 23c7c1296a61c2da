"""Examples in docstrings are code on the site: an extension of griffe, which reads the docstrings for mkdocs."""

from __future__ import annotations

import re
from typing import Any

import griffe

SESSION = re.compile(r"^( *)>>> .*\n(?:\1\S.*\n?)*", flags=re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts a fence around each session of a docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = SESSION.sub(fenced, obj.docstring.value)


def fenced(session: re.Match[str]) -> str:
    """A session between fences of its own indentation."""
    indent = session[1]
    return f"{indent}```pycon\n{session[0].rstrip()}\n{indent}```\n"
