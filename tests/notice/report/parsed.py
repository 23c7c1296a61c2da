"""What a reader sees of a report: its text, tables by caption, charts by title, elements with attributes."""

from __future__ import annotations

import html.parser
import json
from typing import Any


class Page(html.parser.HTMLParser):
    """A report, read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.charts: list[tuple[str, dict[str, Any]]] = []
        self.sections: dict[str, str] = {}
        self.text = ""
        self._open: list[str] = []
        self._inside: dict[str, str] = {}
        self._rows: list[list[str]] = []
        self._section = self._caption = self._title = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"]
            self.sections[self._section] = ""
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th", "caption", "figcaption"):
            self._inside[tag] = ""
        self._data = dict(attrs).get("type") == "application/json"
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass
        if tag in ("td", "th"):
            self._rows[-1].append(self._inside.pop(tag))
        elif tag == "caption":
            self._caption = self._inside.pop(tag)
        elif tag == "figcaption":
            self._title = self._inside.pop(tag)
        elif tag == "table":
            self.tables[self._caption] = self._rows
        elif tag == "section":
            self._section = ""

    def handle_data(self, data):
        if "script" in self._open:
            if self._data:
                self.charts.append((self._title, json.loads(data)))
            return
        if "style" in self._open or "head" in self._open:
            return
        self.text += data
        if self._section:
            self.sections[self._section] += data
        for tag in self._inside:
            self._inside[tag] += data

    def table(self, start: str) -> list[dict[str, str]]:
        """The rows of the one table whose caption begins so, by column."""
        (rows,) = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
