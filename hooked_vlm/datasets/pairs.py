"""The schema of a NOTICE task: the columns of its table, and the table's way to parquet and back.

A task is a `datasets.Dataset` of image-text pairs with two answers and two corruptions: whoever reads a data
set into these columns can run the pipeline on it. Costs: pictures are held compressed, and decoded one row at
a time. Knows no data set and no model.
"""

import io
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hooked_vlm.errors import DataError, TaskSchemaError
from hooked_vlm.given import is_blank, unwritable

COLUMNS: dict[str, str] = {
    "id": "a name that no other row of the task has",
    "task": "what is asked about, such as colour",
    "group": "rows that belong together, such as those that offer the same two answers",
    "image": "the clean picture",
    "corrupt_image": "the picture in which the wrong answer is right (semantic image pair); None where there is none",
    "prompt": "the question, with both answers in it",
    "corrupt_prompt": "the question with a token replaced by another (symmetric token replacement), or None",
    "answer": "what is right of the clean picture",
    "wrong_answer": "the other choice",
    "mask": "white where the thing asked about stands in the clean picture, black elsewhere",
    "rival_mask": "white where its rival stands, the thing of which the wrong answer is right; black elsewhere",
}
MASKS = ("mask", "rival_mask")
OPTIONAL = MASKS
PICTURES = ("image", "corrupt_image", *MASKS)
TEXTS = tuple(name for name in COLUMNS if name not in PICTURES)
ROW_GROUP = 100  # rows that a reader of a file holds at once: some 20 MB of photographs


def features(*, mask: bool = True, rival_mask: bool = True) -> datasets.Features:
    """The types of a task's columns.

    Args:
        mask: Whether the task knows where the thing asked about stands.
        rival_mask: Whether it knows where the rival of that thing stands.

    Returns:
        A picture for every column of `PICTURES`, a string for every other.
    """
    has = {"mask": mask, "rival_mask": rival_mask}
    names = [name for name in COLUMNS if has.get(name, True)]
    return datasets.Features(
        {name: datasets.Image() if name in PICTURES else datasets.Value("string") for name in names}
    )


def table(rows: Iterable[Mapping[str, Any]], *, mask: bool = True, rival_mask: bool | None = None) -> datasets.Dataset:
    """Rows as a task's table, in memory.

    Args:
        rows: Values by column; pictures as PIL images.
        mask: Whether the rows have masks.
        rival_mask: Whether they have masks of the rivals; None to look at the first row.

    Returns:
        The table.

    Raises:
        TaskSchemaError: A row lacks a column.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))
    has_rivals = "rival_mask" in {name for row in first for name in row} if rival_mask is None else rival_mask
    types = features(mask=mask, rival_mask=has_rivals)
    names = list(types)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for number, row in enumerate(itertools.chain(first, rows)):
        if missing := [name for name in names if name not in row]:
            raise TaskSchemaError(f"Row {number} has no {', '.join(missing)}: a task's row has {', '.join(names)}.")
        for name in names:
            value = row[name]
            columns[name].append(_png(value) if isinstance(value, Image.Image) else value)
    return datasets.Dataset.from_dict(columns, features=types)


def misfit(row: Mapping[str, Any]) -> str:
    """Why a row's texts are none of a task; empty if they are. Pictures are not looked at.

    Args:
        row: Values by column; `corrupt_prompt` may be None.
    """
    for name in TEXTS:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            return f"the row's {name} is no text"
        if value and (found := unwritable(value)):
            return f"the row's {name} holds {found}"
    if empty := [name for name in ("prompt", "answer", "wrong_answer") if is_blank(row.get(name) or "")]:
        return f"the row has no {', '.join(empty)}"
    answers = [row[name].strip().casefold() for name in ("answer", "wrong_answer")]
    if answers[0] == answers[1]:
        return "the answer is the wrong answer too"
    if not all(offers(row["prompt"], each) for each in answers):
        return "the question does not offer both answers"
    return ""


def offers(prompt: str, answer: str) -> bool:
    """Whether a question has an answer's words in it."""
    return bool(re.search(rf"(?<!\w){re.escape(answer.strip().casefold())}(?!\w)", prompt.casefold()))


def check(task: datasets.Dataset) -> datasets.Dataset:
    """The table itself, if it is a task.

    Args:
        task: A table from anywhere.

    Returns:
        The same table.

    Raises:
        TaskSchemaError: A column is missing, an id is missing or occurs twice, or a row's texts do not fit.
    """
    needed = [name for name in COLUMNS if name not in OPTIONAL]
    if missing := [name for name in needed if name not in task.column_names]:
        raise TaskSchemaError(f"The table has no column {', '.join(missing)}: a task has {', '.join(needed)}.")
    seen: set[str] = set()
    for number, row in enumerate(task.select_columns(list(TEXTS))):
        if not row["id"] or row["id"] in seen:
            twice = f"is called {row['id']!r}, and so is a row before it" if row["id"] else "has no id"
            raise TaskSchemaError(f"Row {number} {twice}: ids differ in a task.")
        seen.add(row["id"])
        if reason := misfit(row):
            raise TaskSchemaError(f"Row {number} ({row['id']}) does not fit: {reason}.")
    return task


def write_parquet(task: datasets.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a task as one parquet file, pictures inside.

    Args:
        task: The table.
        path: The file; what is there is replaced.
    """
    check(task).to_parquet(os.fspath(path), batch_size=ROW_GROUP)


def read_parquet(path: str | os.PathLike[str]) -> datasets.Dataset:
    """Read a task from a parquet file that holds its pictures, whoever wrote it, without a copy in a cache folder.

    Args:
        path: The file.

    Returns:
        The table, in memory.

    Raises:
        DataError: The file cannot be read.
        TaskSchemaError: The file's table is not a task, or has pictures as paths, which `sources.source` looks for
            beside the file.
    """
    try:
        read = pq.read_table(os.fspath(path))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{os.fspath(path)!r} is no parquet file that can be read: {error}") from error
    task = check(datasets.Dataset(read))
    for name in PICTURES:
        if name in read.column_names and any(map(_is_path, read[name])):
            raise TaskSchemaError(
                f"The column {name} of {os.fspath(path)!r} has pictures as paths: sources.source reads such a file."
            )
    return task.cast(features(**{name: name in task.column_names for name in OPTIONAL}))


def _is_path(cell: pa.Scalar) -> bool:
    if isinstance(cell, pa.StructScalar):
        fields = dict(cell.items()) if cell.is_valid else {}
        return "path" in fields and fields["path"].is_valid and not ("bytes" in fields and fields["bytes"].is_valid)
    return cell.is_valid and pa.types.is_string(cell.type)


def _png(picture: Image.Image) -> dict[str, Any]:
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return {"bytes": data.getvalue(), "path": None}
