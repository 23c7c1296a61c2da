"""Sources: every task's rows by its name, the same row at the same number whatever came before."""

import pathlib
import re
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from hooked_vlm.datasets import pairs, shapes
from hooked_vlm.datasets.sources import TASKS, Source, source
from hooked_vlm.errors import DataError, TaskSchemaError
from hooked_vlm.zoo import locate
from tests.models.checkpoints import byte_tokenizer, word_tokenizer
from tests.models.unchecked import unchecked


def texts(drawn: Source) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in pairs.PICTURES} for row in drawn.rows]


@given(st.sampled_from(shapes.TASKS), st.integers(0, 50), st.integers(0, 5), st.integers(0, 3))
def test_row_k_is_the_same_row_wherever_a_source_starts(task: str, start: int, n: int, seed: int) -> None:
    whole = texts(source(task, n=start + n, seed=seed))
    assert texts(source(task, n=n, seed=seed, start=start)) == whole[start:]
    assert [row["id"] for row in whole] == [shapes.pair(task, k, seed=seed).id for k in range(start + n)]


def test_a_source_of_shapes_has_pictures_and_a_mask() -> None:
    drawn = source("place", n=3)
    assert drawn.name == "place" and drawn.length == 3
    for row in drawn.rows:
        assert set(row) == set(pairs.COLUMNS)
        assert all(isinstance(row[name], Image.Image) for name in pairs.PICTURES)
    assert not drawn.skipped


def test_the_shapes_world_keeps_its_corrupt_prompts_under_its_own_tokenizer() -> None:
    drawn = source("shape", n=24, tokenizer=AutoTokenizer.from_pretrained(locate("zoo:blip-shapes")))
    assert all(row["corrupt_prompt"] for row in drawn.rows)
    assert not drawn.skipped


def test_a_corrupt_prompt_of_another_length_is_dropped_and_counted() -> None:
    tokenizer = byte_tokenizer()
    drawn = source("place", n=40, tokenizer=tokenizer)
    dropped = 0
    for row in drawn.rows:
        if row["corrupt_prompt"] is None:
            dropped += 1
        else:
            assert len(tokenizer(row["prompt"])["input_ids"]) == len(tokenizer(row["corrupt_prompt"])["input_ids"])
    assert 0 < dropped < 40
    assert sum(drawn.skipped.values()) == dropped
    assert all(reason.startswith("no corrupt prompt") for reason in drawn.skipped)


def test_a_parquet_file_gives_its_rows(tmp_path: pathlib.Path) -> None:
    task = shapes.load("colour", 21, n_objects=(1, 2, 3))
    pairs.write_parquet(task, tmp_path / "colour.parquet")
    drawn = source(str(tmp_path / "colour.parquet"), tokenizer=word_tokenizer())
    assert drawn.length == 21
    for one, other in zip(task, drawn.rows, strict=True):
        for name in pairs.COLUMNS:
            if name == "rival_mask" and one["corrupt_prompt"] is None:
                assert one[name] is None and other[name] is None  # a scene without a rival
            elif name in pairs.PICTURES:
                assert other[name].mode == ("L" if name in pairs.MASKS else "RGB")
                assert (np.asarray(one[name]) == np.asarray(other[name])).all()
            else:
                assert one[name] == other[name]
    later = source("colour.parquet", data=tmp_path, start=19, n=10)
    assert later.length == 2
    assert [row["id"] for row in later.rows] == task["id"][19:]


def test_a_damaged_picture_in_a_parquet_file_is_named_and_passed_over(tmp_path: pathlib.Path) -> None:
    task = pairs.table(shapes.rows("colour", 4), mask=False)
    cells = [{"image": {"bytes": b"\x89PNG no more", "path": None}} if k == 1 else {} for k in range(4)]
    raw = [{**row, **cell} for row, cell in zip(task.to_list(), cells, strict=True)]
    columns = {name: [row[name] for row in raw] for name in task.column_names}
    type(task).from_dict(columns, features=task.features).to_parquet(str(tmp_path / "some.parquet"))
    drawn = source(str(tmp_path / "some.parquet"))
    with pytest.warns(UserWarning, match=r"1 of the pictures of .*some\.parquet cannot be read"):
        assert [row["id"] for row in drawn.rows] == [task["id"][k] for k in (0, 2, 3)]
    assert drawn.skipped == {"the picture cannot be read": 1}
    assert "image of row colour-test-0-000001" in drawn.named["the picture cannot be read"][0]
    later = source(str(tmp_path / "some.parquet"), start=1)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert [row["id"] for row in later.rows] == [task["id"][k] for k in (2, 3)]


def test_a_row_without_a_picture_or_an_answer_is_counted(tmp_path: pathlib.Path) -> None:
    task = pairs.table(shapes.rows("colour", 4))
    columns = {name: task.with_format("arrow")[name].to_pylist() for name in task.column_names}
    columns["image"][0] = columns["answer"][2] = columns["mask"][3] = columns["corrupt_prompt"][3] = None
    type(task).from_dict(columns, features=task.features).to_parquet(str(tmp_path / "some.parquet"))
    drawn = source(str(tmp_path / "some.parquet"))
    rows = list(drawn.rows)
    assert [row["id"] for row in rows] == [task["id"][k] for k in (1, 3)]
    assert rows[1]["mask"] is None and rows[1]["corrupt_prompt"] is None
    assert drawn.skipped == {"the row has no image": 1, "the row has no answer": 1}


def test_a_file_is_written_so_that_it_can_be_read_a_little_at_a_time(tmp_path: pathlib.Path) -> None:
    pairs.write_parquet(shapes.load("colour", 2 * pairs.ROW_GROUP + 1), tmp_path / "colour.parquet")
    assert pq.ParquetFile(tmp_path / "colour.parquet").num_row_groups == 3
    assert len(list(source(str(tmp_path / "colour.parquet"), start=199).rows)) == 2


def test_a_file_cut_off_in_the_middle_is_named(tmp_path: pathlib.Path) -> None:
    pairs.write_parquet(shapes.load("colour", 250), tmp_path / "colour.parquet")
    raw = bytearray((tmp_path / "colour.parquet").read_bytes())
    raw[20_000 : len(raw) // 2] = bytes(len(raw) // 2 - 20_000)
    (tmp_path / "colour.parquet").write_bytes(raw)
    with pytest.raises(DataError, match=r"colour\.parquet'"):
        list(source(str(tmp_path / "colour.parquet")).rows)


def test_a_file_that_is_not_there_or_no_parquet_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"no file .*gone\.parquet"):
        source(str(tmp_path / "gone.parquet"))
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"text\.parquet' is no parquet file"):
        source(str(tmp_path / "text.parquet"))


def test_a_table_that_is_no_task_is_refused(tmp_path: pathlib.Path) -> None:
    shapes.load("colour", 2).remove_columns(["answer"]).to_parquet(str(tmp_path / "no.parquet"))
    with pytest.raises(TaskSchemaError, match="no column answer"):
        source(str(tmp_path / "no.parquet"))
    row = next(shapes.rows("colour", 1))
    pairs.table([row, row]).to_parquet(str(tmp_path / "twice.parquet"))
    with pytest.raises(TaskSchemaError, match="two rows called 'colour-test-0-000000'"):
        source(str(tmp_path / "twice.parquet"))


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"no task 'color'.*colour.*Nearest: colour"):
        source("color")
    with pytest.raises(DataError, match="start is -1"):
        source("colour", start=-1)


@pytest.mark.parametrize("data", [7, [], True, 0, b"folder"])
@pytest.mark.parametrize("task", ["folder", "svo_verb", "colour", "x.parquet"])
def test_data_that_is_no_path_is_refused(task: str, data: Any) -> None:
    with unchecked(), pytest.raises(DataError, match=f"data is {re.escape(repr(data))}; expected the path"):
        source(task, data=data)


def test_a_task_that_is_no_name_is_refused() -> None:
    with unchecked(), pytest.raises(DataError, match=r"The task is \[\]; expected a name"):
        source([])  # type: ignore[arg-type]


def test_ids_may_be_stored_as_a_dictionary(tmp_path: pathlib.Path) -> None:
    task = shapes.load("colour", 5)
    pairs.write_parquet(task, tmp_path / "task.parquet")
    read = pq.read_table(tmp_path / "task.parquet")
    ids = read.column_names.index("id")
    pq.write_table(read.set_column(ids, "id", read["id"].dictionary_encode()), tmp_path / "task.parquet")
    assert [row["id"] for row in source(str(tmp_path / "task.parquet")).rows] == task["id"]


def test_a_parquet_file_of_no_rows_is_refused(tmp_path: pathlib.Path) -> None:
    shapes.load("colour", 2).select([]).to_parquet(str(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match=r"none\.parquet' holds no rows"):
        source(str(tmp_path / "none.parquet"))


@pytest.mark.parametrize("tokenizer", [None, word_tokenizer()])
def test_a_corrupt_prompt_that_is_the_prompt_is_none(tmp_path: pathlib.Path, tokenizer: Any) -> None:
    one, other = shapes.rows("colour", 2)
    pairs.table([one, {**other, "corrupt_prompt": other["prompt"]}]).to_parquet(str(tmp_path / "alike.parquet"))
    drawn = source(str(tmp_path / "alike.parquet"), tokenizer=tokenizer)
    assert [row["corrupt_prompt"] for row in drawn.rows] == [one["corrupt_prompt"], None]
    assert drawn.named == {"no corrupt prompt: the one given is the prompt itself": [other["id"]]}


def test_a_table_that_is_a_link_to_itself_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pairs.csv").symlink_to("pairs.csv")
    with pytest.raises(DataError, match=r"has no pairs\.csv"):
        source("folder", data=tmp_path)


def test_every_task_has_a_line() -> None:
    assert all(line and "\n" not in line for line in TASKS.values())
