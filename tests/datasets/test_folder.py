"""A user's own folder: what is missing is made, and what does not fit is named."""

import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.folder import NEEDED
from hooked_vlm.datasets.sources import source
from hooked_vlm.errors import DataError, TaskSchemaError
from tests.datasets.folders import damaged, picture, table
from tests.models.checkpoints import wordpiece_tokenizer

ALL = (*NEEDED, "id", "task", "group", "corrupt_prompt", *pairs.MASKS)


def line(answer: str, wrong: str, **changes: str) -> dict[str, str]:
    return {
        "image": f"{answer}.png",
        "corrupt_image": f"inside/{wrong}.png",
        "prompt": f"is it a {answer} or a {wrong}?",
        "answer": answer,
        "wrong_answer": wrong,
        **changes,
    }


def folder(path: pathlib.Path, lines: list[dict[str, str]], columns: tuple[str, ...] = NEEDED) -> pathlib.Path:
    table(path / "pairs.csv", lines, columns)
    for number, word in enumerate(sorted({each[name] for each in lines for name in ("answer", "wrong_answer")} - {""})):
        picture(path / f"{word}.png", number)
        picture(path / "inside" / f"{word}.png", 100 + number)
    return path


def drawn(path: pathlib.Path, **options: Any) -> list[dict[str, Any]]:
    return sorted(source("folder", data=path, **options).rows, key=lambda row: row["id"])


def test_the_least_table_gives_rows(tmp_path: pathlib.Path) -> None:
    rows = drawn(folder(tmp_path, [line("cat", "dog"), line("hen", "cow"), line("café", "bar")]))
    assert [row["id"] for row in rows] == ["folder-000002", "folder-000003", "folder-000004"]
    assert [row["group"] for row in rows] == ["cat/dog", "cow/hen", "bar/café"]
    assert {row["task"] for row in rows} == {"folder"}
    assert all(row["mask"] is None and row["corrupt_prompt"] is None for row in rows)
    pairs.check(pairs.table(rows))


def test_the_full_table_is_taken_at_its_word(tmp_path: pathlib.Path) -> None:
    given = {"id": "mine", "task": "pets", "group": "small", "corrupt_prompt": "is it a fox or a dog?", "mask": "m.png"}
    folder(tmp_path, [line("cat", "dog", **given)], ALL)
    Image.fromarray(np.eye(12, dtype=np.uint8) * 255).save(tmp_path / "m.png")
    (row,) = drawn(tmp_path, tokenizer=wordpiece_tokenizer())
    assert {name: row[name] for name in ("id", "task", "group", "corrupt_prompt")} == {
        name: given[name] for name in ("id", "task", "group", "corrupt_prompt")
    }
    assert row["mask"].mode == "L" and (np.asarray(row["mask"]) == np.eye(12) * 255).all()


def test_a_corrupt_prompt_is_made_of_the_other_answers(tmp_path: pathlib.Path) -> None:
    lines = [line("cat", "dog"), line("hen", "cow"), line("sad", "shy", prompt="is it sad or shy?")]
    source_ = source("folder", data=folder(tmp_path, lines), tokenizer=wordpiece_tokenizer())
    rows = sorted(source_.rows, key=lambda row: row["id"])
    assert [row["corrupt_prompt"] for row in rows[:2]] in [
        [f"is it a {a} or a dog?", f"is it a {b} or a cow?"] for a in ("hen", "cow") for b in ("cat", "dog")
    ]
    assert rows[2]["corrupt_prompt"] is None  # a feeling is replaced by no animal
    reasons = [reason for reason in source_.skipped if reason.startswith("no corrupt prompt: no word")]
    assert [source_.skipped[reason] for reason in reasons] == [1]


def test_a_corrupt_prompt_of_another_length_is_dropped_and_counted(tmp_path: pathlib.Path) -> None:
    lines = [line("cat", "dog", corrupt_prompt="is it a horse or a dog?")]
    given = source("folder", data=folder(tmp_path, lines, ALL), tokenizer=wordpiece_tokenizer())
    assert [row["corrupt_prompt"] for row in given.rows] == [None]
    assert given.skipped == {"no corrupt prompt: the one given has another number of tokens": 1}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line("cat", "dog", prompt=""), "the row has no prompt"),
        (line("cat", "", image=""), "the row has no image, wrong_answer"),
        (line("cat", "cat"), "the answer is the wrong answer too"),
        (line("cat", "dog", prompt="is it a cat?"), "the question does not offer both answers"),
        (line("cat", "dog", prompt="is it a catfish or a dog?"), "the question does not offer both answers"),
        (line("cat", "dog", image="../cat.png"), "a path leads out of the folder"),
        (line("cat", "dog", image="/etc/passwd"), "a path leads out of the folder"),
    ],
)
def test_a_line_that_does_not_fit_is_counted(tmp_path: pathlib.Path, bad: dict[str, str], reason: str) -> None:
    given = source("folder", data=folder(tmp_path, [bad, line("hen", "cow")]))
    assert [row["answer"] for row in given.rows] == ["hen"]
    assert given.skipped[reason] == 1
    assert given.named[reason] == ["line 2"]


def test_pictures_that_are_missing_damaged_or_the_same_are_named(tmp_path: pathlib.Path) -> None:
    lines = [line("cat", "dog"), line("hen", "cow"), line("fox", "ape", corrupt_image="fox.png"), line("bee", "ant")]
    folder(tmp_path, lines)
    (tmp_path / "cat.png").unlink()
    damaged(tmp_path / "hen.png")
    given = source("folder", data=tmp_path)
    with pytest.warns(UserWarning, match="2 of the pictures"):
        assert [row["answer"] for row in given.rows] == ["bee"]
    assert given.skipped["the picture cannot be read"] == 2
    assert given.skipped["the two pictures are the same picture"] == 1
    said = "; ".join(given.named["the picture cannot be read"])
    assert "folder-000002: there is no image file" in said and "cat.png" in said and "hen.png" in said


def test_a_mask_of_another_size_is_left_out_and_counted(tmp_path: pathlib.Path) -> None:
    folder(tmp_path, [line("cat", "dog", mask="m.png")], ALL)
    picture(tmp_path / "m.png", 5, mode="L", side=7)
    given = source("folder", data=tmp_path)
    assert [row["mask"] for row in given.rows] == [None]
    assert given.skipped["no mask: it has another size than its picture"] == 1


def test_groups_take_turns_and_the_seed_is_an_order(tmp_path: pathlib.Path) -> None:
    words = ["cat", "dog", "hen", "cow", "fox", "ape", "bee", "ant", "eel"]
    lines = [line(one, two, group=one[0]) for one in words for two in words if one != two]
    folder(tmp_path, lines, ALL)
    rows = list(source("folder", data=tmp_path, seed=1).rows)
    assert len(rows) == 72
    n = len({row["group"] for row in rows})
    assert len({row["group"] for row in rows[:n]}) == n
    ids = [row["id"] for row in rows]
    assert [row["id"] for row in source("folder", data=tmp_path, seed=1, start=70).rows] == ids[70:]
    assert [row["id"] for row in source("folder", data=tmp_path, seed=2).rows] != ids


def test_a_folder_or_table_that_is_something_else_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"has no pairs\.csv: expected pairs\.csv with .* found no file"):
        source("folder", data=tmp_path)
    table(tmp_path / "pairs.csv", [], ("image", "prompt", "answer"))
    with pytest.raises(TaskSchemaError, match=r"no column corrupt_image, wrong_answer: .* found image, prompt, answer"):
        source("folder", data=tmp_path)
    table(tmp_path / "pairs.csv", [], NEEDED)
    with pytest.raises(DataError, match=r"No line of .*pairs\.csv' can be used: there are none"):
        source("folder", data=tmp_path)
    folder(tmp_path, [line("cat", "dog", id="one"), line("hen", "cow", id="one")], ALL)
    with pytest.raises(TaskSchemaError, match=r"Lines 2 and 3 .* both called 'one'"):
        source("folder", data=tmp_path)
    (tmp_path / "pairs.csv").write_bytes("image,\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"Line 1 .* is not UTF-8"):
        source("folder", data=tmp_path)
