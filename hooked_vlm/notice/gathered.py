"""A run directory's parquet files, read one at a time into grids: what the summary is made from.

Of each file only the columns that are used are read, and of its rows only what the summary needs is kept: of the
effects those of single heads where heads are selected, and means by token role. Cost: a few milliseconds a file, and
a few kilobytes an example. Knows no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice.functions import SCORES
from hooked_vlm.notice.grids import Grid

DIFFERENCES = [f"{run}_logit_diff" for run in ("clean", "image", "text", "image_noise", "text_noise")]
ABOUT = ["task", "example", "number", "group", "answer", "wrong_answer", "generated", "kept", "reason"]
EXAMPLE_COLUMNS = [*ABOUT, *DIFFERENCES]
MEASURES = ["effect", "restoration", "normalised"]
EFFECT_COLUMNS = ["task", "example", "corrupt", "kind", "layer", "head", "role", *MEASURES]
ATTENTION_COLUMNS = ["task", "example", "kind", "layer", "head", "query_role", *SCORES]
ABLATION_COLUMNS = ["task", "example", "selection", "draw", "n_heads", "correct", "logit_diff"]
EVERY = "every position"


@dataclass
class Gathered:
    """What the summary is made from.

    Args:
        at: the role of the tokens at which heads are selected.
        examples: one row an example, kept or not.
        heads: for each (corrupt, kind, task) a grid of `MEASURES`, cells (layer, head), at role `at`.
        roles: for each (corrupt, kind, task) a grid of effect and size (|effect|), cells (layer, role), each the mean
            over heads and positions.
        attention: for each kind a grid of `SCORES`, cells (layer, head).
        ablation: for each task a grid of correct and logit_diff, cells (selection, draw).
        sets: for each (task, selection, draw) its n_heads, and overlap where it was written.
        query_roles: where the queries stood whose attention was scored.
        n_effects: examples with effects.
    """

    at: str
    examples: pd.DataFrame
    heads: dict[tuple[str, str, str], Grid] = field(default_factory=dict)
    roles: dict[tuple[str, str, str], Grid] = field(default_factory=dict)
    attention: dict[str, Grid] = field(default_factory=dict)
    ablation: dict[str, Grid] = field(default_factory=dict)
    sets: dict[tuple[str, str, int], dict[str, int]] = field(default_factory=dict)
    query_roles: set[str] = field(default_factory=set)
    n_effects: int = 0

    @property
    def head_kinds(self) -> list[str]:
        """The kinds of heads that were patched."""
        return sorted({kind for _, kind, _ in self.heads})

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which their examples stand."""
        return list(dict.fromkeys(self.examples["task"])) if len(self.examples) else []

    def families(self, at: str) -> Any:
        """The effects as `universal.select_matrices` takes them, of every head that any task has."""
        grids: dict[tuple[str, str], dict[str, Grid]] = {}
        for (corrupt, kind, task), grid in self.heads.items():
            grids.setdefault((corrupt, kind), {})[task] = grid
        families = {}
        for key, of_tasks in grids.items():
            heads = sorted({cell for grid in of_tasks.values() for cell in grid.cells})
            families[key] = (heads, {task: grid.matrix(at, heads) for task, grid in of_tasks.items()})
        return families


PARTS = ("effects", "attention", "ablation")


def gather(directory: Path, at: str, parts: Collection[str] = PARTS) -> Gathered:
    """Read a run directory; an example counts once its file in examples/ is there.

    Args:
        directory: of the run.
        at: role of the tokens at which heads are selected; `EVERY` takes the sites that are every position at once.

        parts: which folders to read beside examples/.

    Raises:
        RunDirectoryError: if a file cannot be read or lacks a column.
    """
    done, tables = set(), []
    for path in _files(directory / "examples"):
        table = _read(path, EXAMPLE_COLUMNS)
        done.add(path.name)
        tables.append(table)
    examples = pa.concat_tables(tables, promote_options="permissive").to_pandas() if tables else pd.DataFrame()
    if len(examples):
        examples = examples.sort_values(["task", "number"], ignore_index=True, kind="stable")
        order = {task: i for i, task in enumerate(dict.fromkeys(examples["task"]))}
        examples = examples.sort_values("task", key=lambda each: each.map(order), kind="stable", ignore_index=True)
    found = Gathered(at, examples if len(examples) else pd.DataFrame(columns=EXAMPLE_COLUMNS))
    for path in _files(directory / "effects", done if "effects" in parts else ()):
        _add_effects(found, _read(path, EFFECT_COLUMNS).to_pandas(strings_to_categorical=True))
    for path in _files(directory / "attention", done if "attention" in parts else ()):
        _add_attention(found, _read(path, ATTENTION_COLUMNS).to_pandas())
    for path in _files(directory / "ablation", done if "ablation" in parts else ()):
        _add_ablation(found, _read(path, ABLATION_COLUMNS, optional=["overlap"]).to_pandas())
    return found


def _files(folder: Path, among: Collection[str] | None = None) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.glob("*.parquet")) if among is None or path.name in among)


def _read(path: Path, columns: list[str], optional: list[str] | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            if not file.metadata.num_rows:
                return pa.table({name: pa.array([], pa.string()) for name in columns})
            if missing := [name for name in columns if name not in there]:
                raise RunDirectoryError(f"{path} has no column {', '.join(missing)}: it was not written by a run")
            extra = [name for name in optional or [] if name in there]
            return file.read(columns=[*columns, *extra], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, RunDirectoryError):
            raise
        raise RunDirectoryError(
            f"{path} cannot be read ({error}): delete it and its namesake in examples/, and run the same command again"
        ) from error


def _add_effects(found: Gathered, rows: pd.DataFrame) -> None:
    if rows.empty:
        return
    task, example = str(rows["task"].iloc[0]), str(rows["example"].iloc[0])
    found.n_effects += 1
    here = rows[(rows["role"] == found.at) & (rows["head"] >= 0)]
    means = here.groupby(["corrupt", "kind", "layer", "head"], observed=True)[MEASURES].mean()
    _add(found.heads, means, task, example)
    sized = rows.assign(size=rows["effect"].abs())
    means = sized.groupby(["corrupt", "kind", "layer", "role"], observed=True)[["effect", "size"]].mean()
    _add(found.roles, means, task, example)


def _add(grids: dict[tuple[str, str, str], Grid], means: pd.DataFrame, task: str, example: str) -> None:
    """A table indexed by corrupt, kind and a cell, into the grids of its parts."""
    for (corrupt, kind), part in means.groupby(level=["corrupt", "kind"], observed=True):
        cells = list(part.index.droplevel(["corrupt", "kind"]))
        grid = grids.setdefault((str(corrupt), str(kind), task), Grid(*means.columns))
        grid.add(example, cells, part.to_numpy())


def _add_attention(found: Gathered, rows: pd.DataFrame) -> None:
    for kind, part in rows.groupby("kind", observed=True):
        cells = list(part[["layer", "head"]].itertuples(index=False, name=None))
        name = f"{part['task'].iloc[0]} {part['example'].iloc[0]}"
        found.attention.setdefault(str(kind), Grid(*SCORES)).add(name, cells, part[list(SCORES)].to_numpy(np.float64))
        found.query_roles |= set(part["query_role"].astype(str))


def _add_ablation(found: Gathered, rows: pd.DataFrame) -> None:
    if rows.empty:
        return
    task = str(rows["task"].iloc[0])
    cells = [(str(name), int(draw)) for name, draw in zip(rows["selection"], rows["draw"], strict=True)]
    values = rows[["correct", "logit_diff"]].to_numpy(np.float64)
    found.ablation.setdefault(task, Grid("correct", "logit_diff")).add(str(rows["example"].iloc[0]), cells, values)
    known = [name for name in ("n_heads", "overlap") if name in rows]
    for cell, about in zip(cells, rows[known].to_dict("records"), strict=True):
        found.sets[(task, *cell)] = {str(key): int(value) for key, value in about.items()}
