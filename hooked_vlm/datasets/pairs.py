"""The schema of a NOTICE task: the columns of its table, and the table's way to parquet and back.

A task is a `datasets.Dataset` of image-text pairs with two answers and two corruptions: whoever reads a data
set into these columns can run the pipeline on it. Costs: pictures are held compressed, and decoded one row at
a time. Knows no data set and no model.
"""

import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import pyarrow.parquet as pq
from PIL import Image

from hooked_vlm.errors import TaskSchemaError

COLUMNS: dict[str, str] = {
    "id": "a name that no other row of the task has",
    "task": "what is asked about, such as colour",
    "group": "rows that belong together, such as those that offer the same two answers",
    "image": "the clean picture",
    "corrupt_image": "the picture in which the wrong answer is right (semantic image pair)",
    "prompt": "the question, with both answers in it",
    "corrupt_prompt": "the question with a token replaced by another (symmetric token replacement), or None",
    "answer": "what is right of the clean picture",
    "wrong_answer": "the other choice",
    "mask": "white where the thing asked about stands in the clean picture, black elsewhere",
}
OPTIONAL = ("mask",)
PICTURES = ("image", "corrupt_image", "mask")
ROW_GROUP = 100  # rows that a reader of a file holds at once: some 20 MB of photographs


def features(*, mask: bool = True) -> datasets.Features:
    """The types of a task's columns.

    Args:
        mask: Whether the task knows where the thing asked about stands.

    Returns:
        A picture for every column of `PICTURES`, a string for every other.
    """
    names = [name for name in COLUMNS if mask or name not in OPTIONAL]
    return datasets.Features(
        {name: datasets.Image() if name in PICTURES else datasets.Value("string") for name in names}
    )


def table(rows: Iterable[Mapping[str, Any]], *, mask: bool = True) -> datasets.Dataset:
    """Rows as a task's table, in memory.

    Args:
        rows: Values by column; pictures as PIL images.
        mask: Whether the rows have masks.

    Returns:
        The table.

    Raises:
        TaskSchemaError: A row lacks a column.
    """
    names = list(features(mask=mask))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for number, row in enumerate(rows):
        if missing := [name for name in names if name not in row]:
            raise TaskSchemaError(f"Row {number} has no {', '.join(missing)}: a task's row has {', '.join(names)}.")
        for name in names:
            value = row[name]
            columns[name].append(_png(value) if isinstance(value, Image.Image) else value)
    return datasets.Dataset.from_dict(columns, features=features(mask=mask))


def check(task: datasets.Dataset) -> datasets.Dataset:
    """The table itself, if it is a task.

    Args:
        task: A table from anywhere.

    Returns:
        The same table.

    Raises:
        TaskSchemaError: A column is missing, a name occurs twice, or a prompt does not offer its answers.
    """
    needed = [name for name in COLUMNS if name not in OPTIONAL]
    if missing := [name for name in needed if name not in task.column_names]:
        raise TaskSchemaError(f"The table has no column {', '.join(missing)}: a task has {', '.join(needed)}.")
    seen: set[str] = set()
    texts = task.select_columns(["id", "prompt", "answer", "wrong_answer"])
    for number, row in enumerate(texts):
        if row["id"] in seen:
            raise TaskSchemaError(
                f"Row {number} is called {row['id']!r}, and so is a row before it: ids differ in a task."
            )
        seen.add(row["id"])
        if row["answer"] == row["wrong_answer"]:
            raise TaskSchemaError(
                f"Row {number} ({row['id']}) has the answer {row['answer']!r} as its wrong answer too."
            )
    return task


def write_parquet(task: datasets.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a task as one parquet file, pictures inside.

    Args:
        task: The table.
        path: The file; what is there is replaced.
    """
    check(task).to_parquet(os.fspath(path), batch_size=ROW_GROUP)


def read_parquet(path: str | os.PathLike[str]) -> datasets.Dataset:
    """Read a task from a parquet file, whoever wrote it, without a copy in a cache folder.

    Args:
        path: The file.

    Returns:
        The table, in memory.

    Raises:
        TaskSchemaError: The file's table is not a task.
    """
    task = datasets.Dataset(pq.read_table(os.fspath(path)))
    check(task)
    return task.cast(features(mask="mask" in task.column_names))


def _png(picture: Image.Image) -> dict[str, Any]:
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return {"bytes": data.getvalue(), "path": None}
