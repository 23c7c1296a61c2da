"""A finished run as `report` and `compare` read it: run.json, summary.json and figures, nothing else.

Of the parquet files it only asks whether they are those that the run wrote. Reads no model: every number of a report
stands in summary.json. What is missing there is an empty table, so that a report can say so in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pandas as pd

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice.directory import SUMMARY, RunDirectory
from hooked_vlm.notice.schema import known
from hooked_vlm.notice.stored import Summary, as_now, columns


@dataclass(frozen=True)
class Loaded:
    """One run directory.

    Args:
        directory: where it is.
        run: run.json.
        summary: summary.json.
    """

    directory: Path
    run: Mapping[str, Any]
    summary: Summary

    @classmethod
    def read(cls, directory: str | Path) -> Loaded:
        """Read a run directory.

        Raises:
            RunDirectoryError: There is no such directory, it holds no finished run, or a file of the run is missing,
                damaged, or another run's.
        """
        place = RunDirectory(directory).opened()
        if not place.has(SUMMARY) and not (place.path / SUMMARY).exists():
            raise RunDirectoryError(
                f"there is no {place.path / SUMMARY}: the run is not finished; the same `hooked-vlm notice` command "
                "goes on"
            )
        summary = as_now(place.values(SUMMARY))
        for figure in summary.get("figures") or []:
            name = str(figure.get("file"))
            if place.lists(name) and (place.path / name).exists():  # the page names those that are gone
                place.content(name)
        return cls(place.path, place.record, summary)

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return {}

    def table(self, name: str) -> pd.DataFrame:
        """The records of summary.json under `name`, with all columns of the format, tasks in the run's order."""
        if name not in self._tables:
            self._tables[name] = self._table(name)
        return self._tables[name].copy()

    def records(self, name: str) -> list[Any]:
        """The same, a row of `schema` each."""
        rows: list[Any] = self.table(name).to_dict("records")
        return rows

    def measured(self, name: str, column: str) -> pd.DataFrame:
        """The rows of a table that have a number in a column."""
        rows = self.table(name)
        return rows[rows[column].map(known).astype(bool)]

    def tasks_of(self, rows: pd.DataFrame) -> list[str]:
        """The tasks of some rows in the run's order."""
        return [task for task in self.tasks if task in set(rows["task"])]

    def _table(self, name: str) -> pd.DataFrame:
        rows = pd.DataFrame(list(cast(Any, self.summary).get(name) or []))
        for column in columns(name):
            if column not in rows:
                rows[column] = pd.Series([None] * len(rows), dtype=object)
        if "task" in rows:
            place = {task: i for i, task in enumerate(self.tasks)}
            rows = rows.sort_values("task", key=lambda tasks: tasks.map(place), kind="stable", ignore_index=True)
        return rows

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was asked for."""
        return dict(self.run.get("config") or self.summary.get("config") or {})

    @cached_property
    def model(self) -> dict[str, Any]:
        """Name, class, stack, layers, heads, d_model."""
        return dict(self.run.get("model") or self.summary.get("model") or {})

    @property
    def name(self) -> str:
        """The model's name as it was given."""
        return str(self.model.get("name") or self.config.get("model") or "a model")

    @property
    def short(self) -> str:
        """The model's name without owner or folder.

        >>> Loaded(Path("."), {"model": {"name": "zoo:blip-shapes"}}, {}).short
        'blip-shapes'
        """
        return self.name.rstrip("/").replace("\\", "/").rpartition("/")[2].removeprefix("zoo:") or self.name

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks that have rows, in the order in which they were asked for; those asked for, where none has."""
        asked = [str(task) for task in self.config.get("tasks") or []]
        names = ("counts", "behaviour", "heads")
        seen = [str(row.get("task")) for name in names for row in cast(Any, self.summary).get(name) or []]
        found = list(dict.fromkeys(seen))
        return sorted(found, key=lambda task: asked.index(task) if task in asked else len(asked)) or asked

    @cached_property
    def kept(self) -> int:
        """How many examples were patched, over all tasks."""
        return int(self.table("counts")["kept"].fillna(0).sum())

    @cached_property
    def seen(self) -> int:
        """How many examples were looked at, over all tasks."""
        return int(self.table("counts")["seen"].fillna(0).sum())

    def shape(self, rows: pd.DataFrame) -> tuple[int, int]:
        """Layers and heads of the stack, at least as many as the rows name."""
        layers = int(rows["layer"].max()) + 1 if len(rows) else 0
        heads = int(rows["head"].max()) + 1 if len(rows) and "head" in rows else 0
        return max(layers, int(self.model.get("layers") or 0)), max(heads, int(self.model.get("heads") or 0))
