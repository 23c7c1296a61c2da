"""MIT-States as it is downloaded: one noun, two states, and no two that one picture deserves both."""

import os
import pathlib
import shutil
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_vlm.datasets import mit_states, pairs
from hooked_vlm.datasets.pictures import Skips
from hooked_vlm.datasets.sources import source
from hooked_vlm.datasets.words import NEAR_STATES, STATES
from hooked_vlm.errors import DataError
from tests.datasets.folders import damaged, sorted_pictures
from tests.models.checkpoints import wordpiece_tokenizer

COUNTS = {
    "ripe apple": 6,
    "moldy apple": 6,
    "sliced apple": 2,
    "diced apple": 6,
    "old dog": 5,
    "wet dog": 5,
    "small dog": 1,
    "adj apple": 3,
    "huge crème brûlée": 3,
    "melted crème brûlée": 3,
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    sorted_pictures(tmp_path / "images", COUNTS)
    return tmp_path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same folder, for tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("states")
    sorted_pictures(folder / "images", COUNTS)
    return folder


def drawn(folder: pathlib.Path, **options: Any) -> list[dict[str, Any]]:
    return list(source("mit_states", data=folder, **options).rows)


def texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in pairs.PICTURES} for row in rows]


def test_the_pair_is_one_noun_in_two_states(folder: pathlib.Path) -> None:
    rows = drawn(folder)
    assert rows
    for row in rows:
        states = {row["answer"], row["wrong_answer"]}
        nouns = [noun for noun in ("apple", "dog", "crème brûlée") if f"is this {noun} " in row["prompt"]]
        assert len(nouns) == 1
        assert row["prompt"] in {mit_states.question(nouns[0], a, b) for a in states for b in states if a != b}
        assert {f"{state} {nouns[0]}" for state in states} <= set(COUNTS)
        assert not NEAR_STATES(row["answer"], row["wrong_answer"])
        assert row["group"] == "/".join(sorted(states))
        assert row["image"].mode == row["corrupt_image"].mode == "RGB"
        assert row["image"].tobytes() != row["corrupt_image"].tobytes()
        assert f"-{row['answer']} {nouns[0]}-" in row["id"]


def test_rows_make_a_table_without_masks(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    task = pairs.check(pairs.table(drawn(folder), mask=False))
    pairs.write_parquet(task, tmp_path / "states.parquet")
    again = list(source(str(tmp_path / "states.parquet")).rows)
    assert [row["id"] for row in again] == task["id"]
    assert (np.asarray(again[3]["image"]) == np.asarray(task[3]["image"])).all()


def test_near_states_never_face_each_other_and_are_counted(folder: pathlib.Path) -> None:
    counted = source("mit_states", data=folder)
    assert not any({"sliced", "diced"} == {row["answer"], row["wrong_answer"]} for row in counted.rows)
    assert counted.skipped["the two answers mean nearly the same"] == 1
    assert counted.named["the two answers mean nearly the same"] == ["diced/sliced apple"]
    assert counted.skipped["the folder's pictures are in no particular state"] == 1


def test_no_clean_picture_comes_twice(folder: pathlib.Path) -> None:
    clean = Counter(row["image"].tobytes() for row in drawn(folder))
    assert set(clean.values()) == {1}


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_answers_stand_first_and_last_and_are_right_equally_often(kept: pathlib.Path, seed: int) -> None:
    right: Counter[tuple[str, str]] = Counter()
    first: Counter[tuple[str, str]] = Counter()
    for row in drawn(kept, seed=seed):
        answer, wrong = row["answer"], row["wrong_answer"]
        right[row["group"], row["answer"]] += 1
        first[row["group"], answer] += row["prompt"].index(answer) < row["prompt"].index(wrong)
    for group in {group for group, _ in right}:
        one, other = group.split("/")
        assert abs(right[group, one] - right[group, other]) <= 1
    assert all(abs(2 * first[each] - right[each]) <= 1 for each in right)
    assert abs(2 * sum(first.values()) - sum(right.values())) <= len(right) // 2 + 1


def test_groups_take_turns(folder: pathlib.Path) -> None:
    groups = [row["group"] for row in drawn(folder)]
    n = len(set(groups))
    assert len(set(groups[:n])) == n


@pytest.mark.filterwarnings("ignore:1 of the pictures")
def test_row_k_is_the_same_row_wherever_a_source_starts_also_with_damage(folder: pathlib.Path) -> None:
    damaged(folder / "images" / "ripe apple" / "zz.jpg")
    with pytest.warns(UserWarning, match=r"cannot be read .* ripe apple/zz\.jpg"):
        whole = texts(drawn(folder, seed=3))
    for start in (1, 5, len(whole) - 1, len(whole)):
        assert texts(drawn(folder, seed=3, start=start, n=4)) == whole[start : start + 4]
    assert texts(drawn(folder, seed=4)) != whole


def test_the_order_does_not_depend_on_how_the_disk_lists_names(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other"
    for name in sorted(os.listdir(folder / "images"), reverse=True):
        (other / "images" / name).mkdir(parents=True)
        for file in sorted(os.listdir(folder / "images" / name), reverse=True):
            shutil.copy(folder / "images" / name / file, other / "images" / name / file)
    assert texts(drawn(folder, seed=1)) == texts(drawn(other, seed=1))


def test_a_replacement_is_another_state_as_long_and_as_far(folder: pathlib.Path) -> None:
    tokenizer = wordpiece_tokenizer()
    counted = source("mit_states", data=folder, tokenizer=tokenizer)
    rows = list(counted.rows)
    made = [row for row in rows if row["corrupt_prompt"]]
    assert len(made) > len(rows) // 2
    for row in made:
        (new,) = set(row["corrupt_prompt"].rstrip("?").split()) - set(row["prompt"].rstrip("?").split())
        assert row["corrupt_prompt"] == row["prompt"].replace(row["answer"], new)
        assert new in STATES and not NEAR_STATES(new, row["answer"]) and not NEAR_STATES(new, row["wrong_answer"])
        assert len(tokenizer(row["prompt"])["input_ids"]) == len(tokenizer(row["corrupt_prompt"])["input_ids"])
    assert sum(counted.skipped[reason] for reason in counted.skipped if reason.startswith("no corrupt prompt")) == len(
        rows
    ) - len(made)


def test_without_a_tokenizer_there_are_no_corrupt_prompts_and_that_is_counted(folder: pathlib.Path) -> None:
    counted = source("mit_states", data=folder, n=5)
    assert [row["corrupt_prompt"] for row in counted.rows] == [None] * 5
    assert counted.skipped["no corrupt prompt: no tokenizer was given"] == 5


def test_damaged_pictures_are_named_once_and_passed_over(tmp_path: pathlib.Path) -> None:
    sorted_pictures(tmp_path / "images", {"ripe apple": 4, "moldy apple": 4, "empty cup": 0, "full cup": 2})
    bad = damaged(tmp_path / "images" / "moldy apple" / "ünreadable.png")
    (bad.parent / "page.jpg").write_text("<html>404</html>")
    (bad.parent / "notes.txt").write_text("no picture by its name")
    counted = source("mit_states", data=tmp_path)
    with pytest.warns(UserWarning, match="2 of the pictures"):
        rows = list(counted.rows)
    assert len(rows) == 8 and {row["group"] for row in rows} == {"moldy/ripe"}
    assert counted.skipped["the picture cannot be read"] == 2
    assert set(counted.named["the picture cannot be read"]) == {"moldy apple/ünreadable.png", "moldy apple/page.jpg"}
    assert counted.named["the folder holds no picture"] == ["empty cup"]


def test_two_copies_of_one_picture_are_no_pair(tmp_path: pathlib.Path) -> None:
    sorted_pictures(tmp_path / "images", {"ripe apple": 1, "moldy apple": 0})
    for file in (tmp_path / "images" / "ripe apple").iterdir():
        shutil.copy(file, tmp_path / "images" / "moldy apple" / "copy.png")
    skips = Skips()
    assert list(mit_states.rows(tmp_path, skips=skips)) == []
    assert skips.counts["the two pictures are the same picture"] >= 1


@pytest.mark.parametrize("inside", [".", "release_dataset/images"])
def test_the_pictures_may_lie_where_the_download_puts_them(tmp_path: pathlib.Path, inside: str) -> None:
    sorted_pictures(tmp_path / inside, {"ripe apple": 2, "moldy apple": 2})
    assert len(drawn(tmp_path)) == 4


def test_a_folder_that_is_something_else_is_refused_with_what_is_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"needs a folder of data: give data=FOLDER with images/<adjective> <noun>"):
        source("mit_states")
    with pytest.raises(DataError, match="does not exist"):
        source("mit_states", data=tmp_path / "gone")
    sorted_pictures(tmp_path / "images", {"happy": 1, "sad": 1, "adj apple": 1})
    with pytest.raises(DataError, match=r"no noun in two states: expected images/.* found adj apple, happy, sad"):
        source("mit_states", data=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        source("mit_states", data=tmp_path / "file")


def test_the_table_of_states_knows_the_whole_data_set_and_leaves_most_pairs() -> None:
    assert len(set(STATES)) == len(STATES) == 115
    assert NEAR_STATES.words <= set(STATES)
    near = [pair for pair in combinations(STATES, 2) if NEAR_STATES(*pair)]
    assert 200 < len(near) < 400
    for pair in ("broken shattered", "damp wet", "huge large", "new modern", "ripped torn"):
        assert NEAR_STATES(*pair.split())
    for pair in ("ripe unripe", "old new", "wet dry", "huge tiny", "painted unpainted"):
        assert not NEAR_STATES(*pair.split())
