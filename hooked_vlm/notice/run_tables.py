"""A run directory's parquet files, read one block at a time into grids: what the summary is made from.

Every file is one that the run wrote, whole and in its place, or an error names it (`RunDirectory.opened`). Of each only
the columns that are used are read, and of its rows only what the summary needs is kept: of the effects those of single
heads where heads are selected, and means by token role: of each head over all examples, of all heads in each. Cost: a
few milliseconds and a few kilobytes an example. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from hooked_vlm.analysis import clusters
from hooked_vlm.analysis.ablation import SELECTED
from hooked_vlm.analysis.clusters import CLUSTERS
from hooked_vlm.analysis.grid import Grid, Moments
from hooked_vlm.analysis.head_labels import COSTS, cost_column
from hooked_vlm.analysis.heads import Head
from hooked_vlm.analysis.image_attention import RIVAL_SCORES, SCORES
from hooked_vlm.analysis.universal_heads import Families, Measured
from hooked_vlm.notice.directory import ABLATION, ATTENTION, CAUSES, EFFECTS, EXAMPLES, RunDirectory
from hooked_vlm.notice.vocabulary import CORRUPT, CORRUPTIONS

LACKING = [f"{name}_lacking" for name in CORRUPT]  # of a kept example, why it has no such corruption
DIFFERENCES = [f"{run}_logit_diff" for run in ("clean", *CORRUPTIONS)]
ABOUT = [
    "task",
    "example",
    "number",
    "group",
    "prompt",
    "corrupt_prompt",
    "answer",
    "wrong_answer",
    "generated",
    "kept",
    "reason",
]
EXAMPLE_COLUMNS = [*ABOUT, *DIFFERENCES]
MEASURES = ["effect", "restoration", "normalized"]
PUBLISHED = "p_patched"  # another measure, of a run as published
EFFECT_COLUMNS = ["task", "example", "corrupt", "kind", "layer", "head", "role", *MEASURES]
ATTENTION_COLUMNS = ["task", "example", "kind", "layer", "head", "query_role"]
ATTENTION_COLUMNS += [name for name in SCORES if name not in RIVAL_SCORES]
CAUSES_COLUMNS = ["task", "example", "kind", "layer", "head", "intervention", "cost"]
OPTIONAL = ["overlap", "heads", PUBLISHED, *RIVAL_SCORES]  # columns that runs of earlier versions lack
ABLATION_COLUMNS = ["task", "example", "selection", "draw", "n_heads", "correct", "logit_diff"]


@dataclass
class RunTables:
    """What the summary is made from.

    Args:
        at: the role of the tokens at which heads are selected.
        examples: one row an example, kept or not.
        heads: for each (corrupt, kind, task) a grid of `MEASURES`, and of `PUBLISHED` where it was written, cells
            (layer, head), at role `at`.
        roles: for each (corrupt, kind, task) a grid of effect and size (|effect|), cells (layer, role), each the mean
            over heads and positions.
        places: for each (corrupt, kind, task) the moments of the effect of single heads at every role, cells (layer,
            (head, role)).
        attention: for each kind a grid of `SCORES`, cells (layer, head).
        causes: for each kind a grid of `COSTS`, cells (layer, head).
        ablation: for each task a grid of correct and logit_diff, cells (selection, draw).
        sets: for each (task, selection, draw) its n_heads, and overlap where it was written.
        chosen: for each (task, selection) the heads of the selection itself, one text for each half if they differ.
        task_of: the task of each row of the attention grids.
        query_roles: where the queries stood whose attention was scored.
        n_effects: examples with effects.
    """

    at: str
    examples: pd.DataFrame
    heads: dict[tuple[str, str, str], Grid] = field(default_factory=dict)
    roles: dict[tuple[str, str, str], Grid] = field(default_factory=dict)
    places: dict[tuple[str, str, str], Moments] = field(default_factory=dict)
    attention: dict[str, Grid] = field(default_factory=dict)
    causes: dict[str, Grid] = field(default_factory=dict)
    ablation: dict[str, Grid] = field(default_factory=dict)
    sets: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    chosen: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    task_of: dict[str, str] = field(default_factory=dict)
    query_roles: set[str] = field(default_factory=set)
    n_effects: int = 0

    @property
    def head_kinds(self) -> list[str]:
        """The kinds of heads that were patched."""
        return sorted({kind for _, kind, _ in self.heads})

    def of_task(self, grids: Mapping[str, Grid], task: str) -> dict[str, Grid]:
        """`attention` or `causes` of one task alone: kind to grid, of the kinds that it has."""
        found = {}
        for kind, grid in grids.items():
            rows = [i for i, example in enumerate(grid.examples) if self.task_of[example] == task]
            if rows:
                found[kind] = grid.rows(rows)
        return found

    @cached_property
    def ways(self) -> dict[str, tuple[str, ...]]:
        """What clusters each row of the attention grids, by its name: answer, group and template."""
        rows = self._about[0]
        names = (f"{task} {example}" for task, example in zip(rows["task"], rows["example"], strict=True))
        return dict(zip(names, rows[list(CLUSTERS)].astype(str).itertuples(index=False, name=None), strict=True))

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which their examples stand."""
        return list(dict.fromkeys(self.examples["task"])) if len(self.examples) else []

    def clusters(self, task: str, examples: Iterable[str]) -> list[clusters.Codes]:
        """The ways in which some examples of a task hang together: by answer, group and template of the prompt.

        Args:
            task: which.
            examples: their ids.
        """
        columns = self.about(task, examples)
        return clusters.codes(*(columns[name] for name in CLUSTERS), n=len(columns))

    @cached_property
    def _about(self) -> tuple[pd.DataFrame, dict[tuple[str, str], int]]:
        """The examples with their templates, and where each stands among them, by task and example."""
        texts = self.examples[["prompt", "corrupt_prompt", "answer", "wrong_answer"]].itertuples(index=False, name=None)
        rows = self.examples.assign(template=[_template(*each) for each in texts])
        names = rows[["task", "example"]].itertuples(index=False, name=None)
        return rows, {name: place for place, name in enumerate(names)}

    def about(self, task: str, examples: Iterable[str]) -> pd.DataFrame:
        """The rows of some examples of a task, in their order, with the template of the prompt."""
        rows, place_of = self._about
        return rows.iloc[[place_of[task, example] for example in examples]]

    def spans(self, corrupt: str, task: str, examples: Sequence[str]) -> np.ndarray:
        """The clean less corrupt logit difference of some examples of a task."""
        rows = self.about(task, examples)
        return rows["clean_logit_diff"].to_numpy(np.float64) - rows[f"{corrupt}_logit_diff"].to_numpy(np.float64)

    def halves(self, seed: int) -> dict[str, tuple[list[str], list[str]]]:
        """Of each task its examples with effects in two halves, drawn at random.

        What is chosen on one of them can be judged on the other.
        """
        found = {}
        for i, task in enumerate(self.tasks):
            there = {example for (_, _, of), grid in self.heads.items() if of == task for example in grid.examples}
            rows = self.examples[self.examples["task"] == task]
            ordered = [str(example) for example in rows["example"] if example in there]
            at = np.random.default_rng((seed, 11, i)).permutation(len(ordered))
            cut = (len(ordered) + 1) // 2
            first, second = ([ordered[place] for place in sorted(part)] for part in (at[:cut], at[cut:]))
            found[task] = (first, second)
        return found

    def families(self, only: Mapping[str, Collection[str]] | None = None) -> Families:
        """The effects as `universal_heads.select_matrices` takes them, of every head that any task has.

        Args:
            only: of each task the examples to take; None for all.
        """
        grids: dict[tuple[str, str], dict[str, Grid]] = {}
        for (corrupt, kind, task), grid in self.heads.items():
            grids.setdefault((corrupt, kind), {})[task] = grid
        families: Families = {}
        for key, of_tasks in grids.items():
            heads = sorted({cell for grid in of_tasks.values() for cell in grid.cells})
            measured = {}
            for task, grid in of_tasks.items():
                if only is not None:
                    grid = grid.rows([i for i, example in enumerate(grid.examples) if example in only[task]])
                spans = self.spans(key[0], task, grid.examples)
                patched = grid.matrix(PUBLISHED, heads) if PUBLISHED in grid.measures else None
                ways = self.clusters(task, grid.examples)
                measured[task] = Measured(grid.matrix("effect", heads), spans, ways, patched)
            families[key] = (heads, measured)
        return families


def _template(prompt: str, corrupt: Any, *answers: str) -> str:
    """A prompt without its answers, and without the words that a corrupt prompt of as many words has others for.

    Args:
        prompt: the question.
        corrupt: the same of another subject; no text where the example has none.
        answers: both.
    """
    words, others = prompt.split(), corrupt.split() if isinstance(corrupt, str) else []
    if len(words) == len(others):
        words = [word if word == other else "_" for word, other in zip(words, others, strict=True)]
    pattern = "|".join(rf"\b{re.escape(answer)}\b" for answer in answers if answer)
    return re.sub(pattern, "_", " ".join(words), flags=re.IGNORECASE) if pattern else " ".join(words)


def gather(place: RunDirectory, at: str) -> RunTables:
    """Read what the examples of a run gave; an example counts once its row in examples/ is there.

    Args:
        place: the run's directory, open.
        at: role of the tokens at which heads are selected; `EVERY` takes the sites that are every position at once.

    Raises:
        RunDirectoryError: if a file is missing, damaged or another run's, or lacks a column.
    """
    tables = [table for task in place.tasks for _, table in place.tables(EXAMPLES, task, EXAMPLE_COLUMNS, LACKING)]
    examples = pa.concat_tables(tables, promote_options="permissive").to_pandas() if tables else pd.DataFrame()
    if len(examples):
        examples = examples.sort_values(["task", "number"], ignore_index=True, kind="stable")
        order = {task: i for i, task in enumerate(dict.fromkeys(examples["task"]))}
        examples = examples.sort_values("task", key=lambda each: each.map(order), kind="stable", ignore_index=True)
    found = RunTables(at, examples if len(examples) else pd.DataFrame(columns=EXAMPLE_COLUMNS))
    _read(found, place, EFFECTS, EFFECT_COLUMNS, _add_effects)
    _read(found, place, ATTENTION, ATTENTION_COLUMNS, _add_attention)
    return found


def gather_places(place: RunDirectory, heads: Collection[Head]) -> dict[tuple[str, str, str], Grid]:
    """The effect of some heads in each example, at tokens of each role: of (corrupt, kind, task) a grid.

    Its cells are ((layer, head), role); where a role has several positions, an example's effect is their mean.

    Raises:
        RunDirectoryError: as `gather`.
    """
    found: dict[tuple[str, str, str], Grid] = {}
    for task in place.tasks:
        done = set(place.kept(task))
        for number, table in place.tables(EFFECTS, task, EFFECT_COLUMNS):
            if number not in done or not table.num_rows:
                continue
            rows = table.select(["example", "corrupt", "kind", "layer", "head", "role", "effect"]).to_pandas()
            keys = zip(rows["kind"].astype(str), rows["layer"], rows["head"], strict=True)
            rows = rows[np.array([key in heads for key in keys], bool) & np.isfinite(rows["effect"].to_numpy())]
            by = ["corrupt", "kind", "layer", "head", "role"]
            means = rows.groupby(by, observed=True, sort=True)["effect"].mean().reset_index()
            example = str(table.column("example")[0])
            for (corrupt, kind), part in means.groupby(["corrupt", "kind"], observed=True):
                cells = [((int(r.layer), int(r.head)), str(r.role)) for r in part.itertuples()]
                grid = found.setdefault((str(corrupt), str(kind), task), Grid("effect"))
                grid.add(example, cells, part[["effect"]].to_numpy(np.float64))
    return found


def gather_ablation(found: RunTables, place: RunDirectory) -> None:
    """Read what ablating heads, and changing their attention, gave, too.

    Raises:
        RunDirectoryError: as `gather`.
    """
    _read(found, place, ABLATION, ABLATION_COLUMNS, _add_ablation)
    _read(found, place, CAUSES, CAUSES_COLUMNS, _add_causes)


def _read(
    found: RunTables, place: RunDirectory, kind: str, columns: list[str], add: Callable[[RunTables, pa.Table], None]
) -> None:
    for task in place.tasks:
        done = set(place.kept(task))
        for number, table in place.tables(kind, task, columns, optional=OPTIONAL):
            if number in done:
                add(found, table)


def _column(rows: pa.Table, name: str) -> np.ndarray:
    return rows.column(name).to_numpy()


def _words(rows: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """A column of words as codes, and what each code stands for."""
    column = rows.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _means(cell: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells that occur, sorted, and for each the mean of its finite values, [cell measure]."""
    cells, inverse = np.unique(cell, return_inverse=True)
    finite = np.isfinite(values)
    sums = np.stack([np.bincount(inverse, column, len(cells)) for column in np.where(finite, values, 0.0).T], 1)
    counts = np.stack([np.bincount(inverse, column, len(cells)) for column in finite.T], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cells, sums / counts


def _add_effects(found: RunTables, rows: pa.Table) -> None:
    if not rows.num_rows:
        return
    task, example = str(rows.column("task")[0]), str(rows.column("example")[0])
    found.n_effects += 1
    (corrupt, corrupts), (kind, kinds), (role, roles) = (_words(rows, name) for name in ("corrupt", "kind", "role"))
    layer, head = _column(rows, "layer").astype(np.int64), _column(rows, "head").astype(np.int64)
    names = [*MEASURES, *({PUBLISHED} & set(rows.column_names))]
    measures = np.stack([_column(rows, name).astype(np.float64) for name in names], 1)
    size = np.stack([measures[:, 0], np.abs(measures[:, 0])], 1)
    family = corrupt * len(kinds) + kind
    singly = [(each, role) for each in range(int(head.max()) + 1) for role in roles]
    at_heads = (role == roles.index(found.at)) & (head >= 0) if found.at in roles else np.zeros(len(role), bool)
    rows_of: tuple[tuple[Any, Any, Any, Any, Callable[[], Any], dict[tuple[str, str, str], Any]], ...] = (
        (at_heads, head, range(int(head.max()) + 1), measures, lambda: Grid(*names), found.heads),
        (np.ones(len(role), bool), role, roles, size, lambda: Grid("effect", "size"), found.roles),
        (head >= 0, head * len(roles) + role, singly, measures[:, :1], Moments, found.places),
    )
    for which, mine, parts, values, made, into in rows_of:
        n = max(len(parts), 1)
        n_layers = int(layer.max()) + 1
        cells, means = _means(((family * n_layers + layer) * n + mine)[which], values[which])
        for code in np.unique(cells // (n_layers * n)):
            own = cells // (n_layers * n) == code
            places = [(int(cell) // n % n_layers, parts[int(cell) % n]) for cell in cells[own]]
            key = (corrupts[code // len(kinds)], kinds[code % len(kinds)], task)
            into.setdefault(key, made()).add(example, places, means[own])


def _add_attention(found: RunTables, rows: pa.Table) -> None:
    if not rows.num_rows:
        return
    kind, kinds = _words(rows, "kind")
    name = f"{rows.column('task')[0]} {rows.column('example')[0]}"
    found.task_of[name] = str(rows.column("task")[0])
    heads = list(zip(_column(rows, "layer").tolist(), _column(rows, "head").tolist(), strict=True))
    lacking = np.full(rows.num_rows, np.nan)
    scores = np.stack(
        [_column(rows, name).astype(np.float64) if name in rows.column_names else lacking for name in SCORES], 1
    )
    for code in np.unique(kind):
        own = np.flatnonzero(kind == code)
        grid = found.attention.setdefault(kinds[code], Grid(*SCORES))
        grid.add(name, [heads[i] for i in own], scores[own])
    found.query_roles |= set(_words(rows, "query_role")[1])


def _add_causes(found: RunTables, rows: pa.Table) -> None:
    if not rows.num_rows:
        return
    name = f"{rows.column('task')[0]} {rows.column('example')[0]}"
    costs: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for row in rows.to_pylist():
        of_head = costs.setdefault(row["kind"], {}).setdefault((row["layer"], row["head"]), np.full(len(COSTS), np.nan))
        of_head[COSTS.index(cost_column(row["intervention"]))] = row["cost"]
    for kind, of_heads in costs.items():
        grid = found.causes.setdefault(kind, Grid(*COSTS))
        grid.add(name, list(of_heads), np.stack(list(of_heads.values())))


def _add_ablation(found: RunTables, rows: pa.Table) -> None:
    if not rows.num_rows:
        return
    task = str(rows.column("task")[0])
    code, names = _words(rows, "selection")
    cells = [(names[c], int(draw)) for c, draw in zip(code, _column(rows, "draw"), strict=True)]
    values = np.stack([_column(rows, name).astype(np.float64) for name in ("correct", "logit_diff")], 1)
    found.ablation.setdefault(task, Grid("correct", "logit_diff")).add(str(rows.column("example")[0]), cells, values)
    known = [name for name in ("n_heads", "overlap", "heads") if name in rows.column_names]
    about = [rows.column(name).to_pylist() for name in known]
    for cell, *numbers in zip(cells, *about, strict=True):
        told, before = dict(zip(known, numbers, strict=True)), found.sets.get((task, *cell), {})
        larger = {size: max(told[size], before.get(size, 0)) for size in ("n_heads", "overlap") if size in told}
        found.sets[(task, *cell)] = told | larger  # each half may have others
        if cell[1] == SELECTED and "heads" in known:
            named = found.chosen.setdefault((task, cell[0]), [])
            named += [numbers[-1]] if numbers[-1] not in named else []
