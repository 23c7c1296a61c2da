"""One validator: a row is as good in pairs.csv as in parquet, and is passed over in both for the same reason."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.sources import source
from hooked_vlm.errors import DataError, TaskSchemaError
from tests.datasets.folders import picture, table

ALL = tuple(pairs.COLUMNS)


def row(id: str, **changes: Any) -> dict[str, Any]:
    return {
        **{"id": id, "task": "pets", "group": "cat/dog", "image": "cat.png", "corrupt_image": "dog.png"},
        **{"prompt": "is it a cat or a dog?", "answer": "cat", "wrong_answer": "dog"},
        **{"corrupt_prompt": "is it a fox or a dog?", "mask": "mask.png", "rival_mask": ""},
        **changes,
    }


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with pictures inside it, beside it, and behind links out of it."""
    folder = tmp_path / "data"
    for number, name in enumerate(("cat.png", "dog.png", "in/fox.png", "../beside.png")):
        picture(folder / name, number)
    Image.fromarray(np.eye(12, dtype=np.uint8) * 255).save(folder / "mask.png")
    Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save(folder / "small.png")
    (folder / "out.png").symlink_to("../beside.png")
    (folder / "up").symlink_to("..")
    (folder / "within.png").symlink_to("in/fox.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "text.png").write_text("no picture")
    return folder


def as_csv(folder: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    table(folder / "pairs.csv", rows, ALL)
    return "folder"


def as_parquet(folder: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    return "pairs.parquet"


def as_structs(folder: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    """Pictures as `datasets` stores them."""
    cells = [
        {name: {"bytes": None, "path": each[name]} if each[name] else None for name in pairs.PICTURES} for each in rows
    ]
    return as_parquet(folder, [one | other for one, other in zip(rows, cells, strict=True)])


WAYS = pytest.mark.parametrize("write", [as_csv, as_parquet, as_structs])
Write = Callable[[pathlib.Path, list[dict[str, Any]]], str]

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "upwards": ({"image": "../beside.png"}, "a path leads out of the folder"),
    "roundabout": ({"corrupt_image": "in/../../beside.png"}, "a path leads out of the folder"),
    "absolute": ({"image": "/etc/passwd"}, "a path leads out of the folder"),
    "by a link": ({"image": "out.png"}, "a path leads out of the folder"),
    "by a linked folder": ({"mask": "up/beside.png"}, "a path leads out of the folder"),
    "gone": ({"image": "gone.png"}, "the picture cannot be read"),
    "fifo": ({"image": "fifo.png"}, "the picture cannot be read"),
    "folder": ({"corrupt_image": "in"}, "the picture cannot be read"),
    "text": ({"mask": "text.png"}, "the picture cannot be read"),
    "no answer": ({"answer": ""}, "the row has no answer"),
    "unseen answer": ({"wrong_answer": "\u200b"}, "the row has no wrong_answer"),
    "no image": ({"image": ""}, "the row has no image"),
    "one answer": ({"wrong_answer": "Cat"}, "the answer is the wrong answer too"),
    "not offered": ({"prompt": "is it a cat?"}, "the question does not offer both answers"),
}


@WAYS
@pytest.mark.parametrize("kind", BAD)
def test_a_row_is_passed_over_for_the_same_reason_wherever_it_stands(
    data: pathlib.Path, write: Write, kind: str
) -> None:
    changes, reason = BAD[kind]
    task = write(data, [row("bad", **changes), row("good")])
    given = source(task, data=data, warn=False)
    assert [each["id"] for each in given.rows] == ["good"]
    assert given.skipped[reason] == 1


@WAYS
def test_a_row_may_lack_a_corrupt_image(data: pathlib.Path, write: Write) -> None:
    given = source(write(data, [row("text", corrupt_image=""), row("both")]), data=data, warn=False)
    there = {each["id"]: each["corrupt_image"] for each in given.rows}
    assert there["text"] is None and there["both"] is not None and not given.skipped


@WAYS
def test_same_pictures_are_seen_where_they_are_decoded(data: pathlib.Path, write: Write) -> None:
    task = write(data, [row("bad", corrupt_image="cat.png"), row("good")])
    reason = "the two pictures are the same picture"
    given = source(task, data=data)
    assert len(list(given.rows)) == 1 and given.skipped[reason] == 1


@WAYS
def test_a_mask_of_another_size_is_left_out_before_anything_is_computed(data: pathlib.Path, write: Write) -> None:
    task = write(data, [row("bad", mask="small.png"), row("good"), row("bare", mask="")])
    given = source(task, data=data)
    masks = {each["id"]: each["mask"] for each in given.rows}
    assert {name: mask is not None for name, mask in masks.items()} == {"bad": False, "good": True, "bare": False}
    assert given.skipped == {"no mask: it has another size than its picture": 1}


@WAYS
def test_a_rivals_mask_is_read_as_the_masks_are(data: pathlib.Path, write: Write) -> None:
    task = write(data, [row("bad", rival_mask="small.png"), row("good", rival_mask="mask.png"), row("bare")])
    given = source(task, data=data, warn=False)
    masks = {each["id"]: each["rival_mask"] for each in given.rows}
    assert masks["bad"] is None and masks["bare"] is None and masks["good"].mode == "L"
    assert given.skipped == {"no mask of the rival: it has another size than its picture": 1}


@WAYS
def test_links_inside_the_folder_and_a_linked_folder_are_followed(data: pathlib.Path, write: Write) -> None:
    task = write(data, [row("one", image="within.png")])
    (data.parent / "linked").symlink_to(data)
    assert len(list(source(task, data=data.parent / "linked").rows)) == 1


def test_pictures_in_a_hubs_cache_are_links_and_inside(data: pathlib.Path) -> None:
    snapshot = data.parent / "datasets--me--pets" / "snapshots" / "0123"
    blobs = data.parent / "datasets--me--pets" / "blobs"
    snapshot.mkdir(parents=True)
    as_csv(data, [row("one")])
    data.rename(blobs)
    for name in ("cat.png", "dog.png", "mask.png", "pairs.csv"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert len(list(source("folder", data=snapshot).rows)) == 1


ILL: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({"id": None}, "Row 1 of .* has no id"),
    "an empty id": ({"id": " "}, "Row 1 of .* has no id"),
    "one id twice": ({"id": "good"}, "two rows called 'good'"),
}


@pytest.mark.parametrize("kind", ILL)
def test_an_id_that_is_none_or_anothers_is_refused(data: pathlib.Path, kind: str) -> None:
    changes, message = ILL[kind]
    task = as_parquet(data, [row("good"), row("bad") | changes])
    with pytest.raises(TaskSchemaError, match=message):
        source(task, data=data)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("id", 7, "The column id of .* holds int64; expected texts"),
        ("prompt", ["is it?"], "The column prompt of .* holds list.*; expected texts"),
        ("image", 3.5, "The column image of .* holds double; expected pictures"),
        ("mask", {"name": "m.png"}, "The column mask of .* holds struct.*; expected pictures"),
    ],
)
def test_a_column_of_another_type_is_refused(data: pathlib.Path, column: str, value: Any, message: str) -> None:
    task = as_parquet(data, [row("one") | {column: value}])
    with pytest.raises(TaskSchemaError, match=message):
        source(task, data=data)


@pytest.mark.parametrize("write", [as_parquet, as_structs])
def test_a_table_read_whole_follows_no_path(data: pathlib.Path, write: Write) -> None:
    task = write(data, [row("one", image="/etc/passwd")])
    with pytest.raises(TaskSchemaError, match=r"The column image of .* has pictures as paths: sources\.source"):
        pairs.read_parquet(data / task)
    with pytest.raises(DataError, match=r"gone\.parquet' is no parquet file"):
        pairs.read_parquet(data / "gone.parquet")
