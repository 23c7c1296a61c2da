"""Every task by its name: a stream of rows in the schema of `pairs`, whatever holds them.

`source` is the one way in: the shapes world, the three data sets of the NOTICE paper as they are downloaded, a
user's own folder, and files that `pairs.write_parquet` wrote.
The rows of a source come in an order that is a function of the task, the seed and the data alone, so row k is
always the same row, and a run that was cut off goes on with `start`.

Costs: rows are made one at a time; names are listed, and no picture is opened before its row is due. Knows no
model: of a tokenizer it only asks how many tokens a text has.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hooked_vlm.datasets import facial_expressions, folder, mit_states, pairs, parquet, shapes, svo_probes
from hooked_vlm.datasets.pictures import Skips
from hooked_vlm.datasets.rows import whole
from hooked_vlm.errors import DataError, closest, quoted

Rows = Iterator[dict[str, Any]]

TASKS: dict[str, str] = {
    "colour": "the shapes world: is the circle red or blue?",
    "shape": "the shapes world: is the red shape a circle or a square?",
    "place": "the shapes world: is the circle above or below the square?",
    "svo_subject": "SVO-Probes: is the girl or boy riding horse?",
    "svo_verb": "SVO-Probes: is the girl riding or feeding horse?",
    "svo_object": "SVO-Probes: is the girl riding horse or bike?",
    "mit_states": "MIT-States: is this apple ripe or moldy?",
    "facial_expressions": "faces, as in FER-2013: is this person feeling sad or happy?",
    "folder": "your own folder: pairs.csv and pictures",
}
"""Of each task, one line on what it asks."""

_FOLDERS = {module.TASK: module for module in (mit_states, facial_expressions, folder)}


@dataclass
class Source:
    """A task's rows, one at a time, and what was passed over on the way.

    Args:
        name: The task.
        rows: Rows with the columns of `pairs.COLUMNS`, pictures as PIL images; `corrupt_prompt` may be None,
            and masks are None or missing where nobody knows them.
        skipped: How many cases were passed over for which reason, filled while rows are drawn, those before the
            start included. A reason that starts with "no corrupt prompt" or "no mask" concerns rows that are
            there, without it.
        length: How many rows there are at most; None if that is not known before they are drawn.
        named: The names of the first cases of each reason.
    """

    name: str
    rows: Rows
    skipped: Counter[str]
    length: int | None = None
    named: dict[str, list[str]] = field(default_factory=dict)


def source(
    task: str,
    *,
    data: str | Path | None = None,
    n: int | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    start: int = 0,
    warn: bool = True,
    as_published: bool = False,
) -> Source:
    """The rows of a task.

    Args:
        task: One of `TASKS`, or the path of a file ending in ".parquet".
        data: The folder of the data set, for tasks that read one; a parquet file's path may be relative to it.
        n: How many rows at most; None for all (the shapes world never ends).
        seed: Which order, and which draws.
        tokenizer: The model's Hugging Face tokenizer. A corrupt prompt has as many tokens under it as its
            prompt, or is None.
        start: The number of the first row, from 0.
        warn: Say after the last row, as a warning, which pictures could not be read; they are counted either way.
        as_published: As the released NOTICE code does: corrupt prompts have other words for both answers (of your own
            data, one that keeps an answer is None), SVO-Probes is asked both ways round, and MIT-States of its 58
            states.

    Returns:
        The source; nothing is read before its rows are asked for, save listings and tables of names.

    Raises:
        DataError: There is no such task, or its folder or file is not what it should be.
        TaskSchemaError: A table has not the columns of a task.

    Example:
        >>> colour = source("colour", n=1, seed=5)
        >>> next(colour.rows)["prompt"], colour.length
        ('is the square red or green?', 1)
    """
    if not isinstance(task, str):
        raise DataError(f"The task is {quoted(task)}; expected a name, such as 'colour', or a parquet file's.")
    if not (data is None or isinstance(data, (str, os.PathLike))):
        raise DataError(f"data is {quoted(data)}; expected the path of the folder with the data of {quoted(task)}.")
    if start < 0 or (n is not None and n < 0):
        raise DataError(f"start is {start} and n is {n}: both count rows, from 0.")
    skips = Skips()
    length: int | None = None
    if task in shapes.TASKS:
        rows: Rows = (shapes.pair(task, k, seed=seed).to_row() for k in itertools.count())
        rows = map(shapes.replaced, rows) if as_published else rows
        length = n
        rows = _corrupted(rows, tokenizer, skips)
    elif task.endswith(".parquet"):
        path = Path(data or "") / task
        file = parquet.opened(path)
        left = max(0, file.metadata.num_rows - start)
        length = left if n is None else min(n, left)
        found = (whole(row, path.parent, skips) for row in parquet.rows(file, path))
        rows = _corrupted((row for row in found if row is not None), tokenizer, skips, as_published)
    elif task in TASKS:
        adapter = partial(svo_probes.rows, task) if task in svo_probes.TASKS else _FOLDERS[task].rows
        rows = adapter(data, seed=seed, tokenizer=tokenizer, skips=skips, as_published=as_published)
        if task == folder.TASK:
            rows = _corrupted(rows, tokenizer, skips, as_published)
    else:
        raise DataError(
            f"There is no task {quoted(task)}: the tasks are {', '.join(TASKS)}, or a file ending in .parquet. "
            f"Nearest: {', '.join(closest(task, TASKS))}."
        )
    # Rows before the start are made and dropped: only so is it known which of them are passed over.
    rows = itertools.islice(rows, start, None if n is None else start + n)
    told = _told(rows, skips, str(data or task)) if warn else rows
    return Source(task, told, skips.counts, length, skips.names)


def _told(rows: Rows, skips: Skips, where: str) -> Rows:
    """The rows, and a warning after the last one if pictures could not be read."""
    yield from rows
    skips.warn(where)


def _corrupted(rows: Rows, tokenizer: Any, skips: Skips, both: bool = False) -> Rows:
    """The rows, without those corrupt prompts that are none.

    Such are their prompts again, those of another number of tokens, and, where both answers are to be replaced, those
    that keep one.
    """
    for row in rows:
        corrupt = row["corrupt_prompt"]
        reason = "" if corrupt is None else _no_corruption(corrupt, row["prompt"], tokenizer)
        if corrupt is not None and both and not reason:
            kept = [each for each in (row["answer"], row["wrong_answer"]) if pairs.offers(corrupt, each)]
            reason = "keeps an answer, and as published both are replaced" if kept else ""
        if reason:
            skips.add(f"no corrupt prompt: the one given {reason}", row["id"])
            row = {**row, "corrupt_prompt": None}
        yield row


def _no_corruption(corrupt: str, prompt: str, tokenizer: Any) -> str:
    """Why a text is no corrupt prompt; empty if it is one, as far as that can be known without a tokenizer."""
    one, other = (text if tokenizer is None else tokenizer(text)["input_ids"] for text in (corrupt, prompt))
    if one == other:
        return "is the prompt itself"
    return "" if tokenizer is None or len(one) == len(other) else "has another number of tokens"
