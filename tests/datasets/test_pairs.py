"""The schema of a task: kept on the way to parquet and back, and defended by name."""

import pathlib

import numpy as np
import pytest
from datasets import Dataset

from hooked_vlm.datasets import pairs, shapes


def test_parquet_and_back_changes_nothing(tmp_path: pathlib.Path) -> None:
    task = shapes.load("shape", 8, n_objects=(1, 2, 3))
    assert None in task["corrupt_prompt"]
    pairs.write_parquet(task, tmp_path / "shape.parquet")
    again = pairs.read_parquet(tmp_path / "shape.parquet")
    assert again.features == task.features
    for one, other in zip(task, again, strict=True):
        for name in pairs.COLUMNS:
            if name in pairs.PICTURES:
                assert (np.asarray(one[name]) == np.asarray(other[name])).all()
            else:
                assert one[name] == other[name]


def test_a_parquet_file_holds_its_pictures_and_can_be_moved(tmp_path: pathlib.Path) -> None:
    pairs.write_parquet(shapes.load("colour", 2), tmp_path / "here.parquet")
    (tmp_path / "here.parquet").rename(tmp_path / "there.parquet")
    assert pairs.read_parquet(tmp_path / "there.parquet")[1]["image"].size == (64, 64)


def test_masks_are_optional(tmp_path: pathlib.Path) -> None:
    task = pairs.table(shapes.rows("place", 2), mask=False)
    assert "mask" not in task.column_names
    pairs.write_parquet(task, tmp_path / "place.parquet")
    assert pairs.read_parquet(tmp_path / "place.parquet").features == pairs.features(mask=False)


def test_rows_of_before_there_were_masks_of_rivals_are_a_task(tmp_path: pathlib.Path) -> None:
    rows = [{name: row[name] for name in row if name != "rival_mask"} for row in shapes.rows("shape", 2)]
    pairs.write_parquet(pairs.check(pairs.table(rows)), tmp_path / "shape.parquet")
    assert pairs.read_parquet(tmp_path / "shape.parquet").features == pairs.features(rival_mask=False)


def test_a_row_without_a_column_is_named() -> None:
    row = next(shapes.rows("colour", 1))
    del row["answer"]
    with pytest.raises(pairs.TaskSchemaError, match="Row 0 has no answer"):
        pairs.table([row])


def test_a_table_without_a_column_is_named() -> None:
    task = shapes.load("colour", 2).remove_columns(["corrupt_image", "group"])
    with pytest.raises(pairs.TaskSchemaError, match="no column group, corrupt_image"):
        pairs.check(task)


def test_a_name_that_comes_twice_is_named() -> None:
    row = next(shapes.rows("colour", 1))
    with pytest.raises(pairs.TaskSchemaError, match="Row 1 is called 'colour-test-0-000000'"):
        pairs.check(pairs.table([row, row]))


def test_two_answers_that_are_one_are_named() -> None:
    row = next(shapes.rows("colour", 1))
    with pytest.raises(pairs.TaskSchemaError, match=r"Row 0 .*does not fit: the answer is the wrong answer too"):
        pairs.check(pairs.table([{**row, "wrong_answer": "red"}]))


def test_a_parquet_file_that_is_no_task_is_refused(tmp_path: pathlib.Path) -> None:
    Dataset.from_dict({"id": ["one"]}).to_parquet(str(tmp_path / "other.parquet"))
    with pytest.raises(pairs.TaskSchemaError, match="no column task"):
        pairs.read_parquet(tmp_path / "other.parquet")
