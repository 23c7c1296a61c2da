"""Faces sorted by emotion: every emotion faces every other, and each is right as often as its opposite."""

import pathlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hooked_vlm.datasets import facial_expressions, pairs
from hooked_vlm.datasets.sources import source
from hooked_vlm.datasets.words import EMOTIONS, NEAR_EMOTIONS, SPARE_EMOTIONS
from hooked_vlm.errors import DataError
from tests.datasets.folders import damaged, sorted_pictures
from tests.models.checkpoints import wordpiece_tokenizer

FER = {"angry": 9, "disgust": 2, "fear": 9, "happy": 15, "neutral": 9, "sad": 9, "surprise": 9}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """FER-2013's layout, greyscale and uneven; for tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("faces")
    sorted_pictures(folder / "train", FER, mode="L", ending=".jpg")
    sorted_pictures(folder / "test", {"happy": 1}, mode="L")
    return folder


def test_a_row_is_two_faces_and_two_feelings(kept: pathlib.Path) -> None:
    rows = list(source("facial_expressions", data=kept).rows)
    words = {EMOTIONS[name] for name in FER}
    assert {row["group"] for row in rows[:21]} == {"/".join(pair) for pair in combinations(sorted(words), 2)}
    for row in rows:
        one, two = row["answer"], row["wrong_answer"]
        assert row["prompt"] in {f"is this person feeling {a} or {b}?" for a, b in ((one, two), (two, one))}
        assert row["image"].mode == row["corrupt_image"].mode == "RGB"
        assert row["image"].size == (12, 12)
        folder = next(name for name in FER if EMOTIONS[name] == one)
        file = kept / "train" / folder / row["id"].split("-")[2]
        assert (np.asarray(Image.open(file).convert("RGB")) == np.asarray(row["image"])).all()
    pairs.check(pairs.table(rows, mask=False))


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_each_picture_is_asked_about_once_and_counts_stay_level(kept: pathlib.Path, seed: int) -> None:
    rows = list(source("facial_expressions", data=kept, seed=seed).rows)
    assert len(rows) > 30
    assert set(Counter(row["image"].tobytes() for row in rows).values()) == {1}
    right = Counter((row["group"], row["answer"]) for row in rows)
    first = Counter((row["group"], row["answer"]) for row in rows if f"feeling {row['answer']} or" in row["prompt"])
    for group in {group for group, _ in right}:
        one, other = group.split("/")
        assert abs(right[group, one] - right[group, other]) <= 1
    assert all(abs(2 * first[each] - right[each]) <= 1 for each in right)
    assert abs(2 * sum(first.values()) - len(rows)) <= len(rows) // 5


def test_a_seed_is_an_order(kept: pathlib.Path) -> None:
    def ids(seed: int) -> list[str]:
        return [row["id"] for row in source("facial_expressions", data=kept, seed=seed, n=20).rows]

    assert ids(0) == ids(0) != ids(1)


def test_a_replacement_is_another_feeling(kept: pathlib.Path) -> None:
    drawn = source("facial_expressions", data=kept, tokenizer=wordpiece_tokenizer())
    made = [row for row in drawn.rows if row["corrupt_prompt"]]
    assert made
    known = {EMOTIONS[name] for name in FER} | set(SPARE_EMOTIONS)
    for row in made:
        choices = row["corrupt_prompt"].removeprefix("is this person feeling ").rstrip("?").split(" or ")
        (new,) = set(choices) - {row["wrong_answer"]}
        assert new in known and not NEAR_EMOTIONS(new, row["answer"]) and not NEAR_EMOTIONS(new, row["wrong_answer"])


def test_without_train_the_test_pictures_are_read_and_without_both_the_folder_itself(tmp_path: pathlib.Path) -> None:
    sorted_pictures(tmp_path / "test", {"Happy": 2, "Sad": 2})
    assert {row["group"] for row in source("facial_expressions", data=tmp_path).rows} == {"happy/sad"}
    assert len(list(source("facial_expressions", data=tmp_path / "test").rows)) == 4


def test_damage_names_the_file_once_however_often_it_comes_round(tmp_path: pathlib.Path) -> None:
    sorted_pictures(tmp_path / "train", {"happy": 9, "sad": 3, "angry": 9})
    damaged(tmp_path / "train" / "sad" / "名前.png")
    drawn = source("facial_expressions", data=tmp_path)
    with pytest.warns(UserWarning, match=r"1 of the pictures .* train/sad/名前\.png"):
        rows = list(drawn.rows)
    assert drawn.skipped["the picture cannot be read"] == 1
    assert sum(row["answer"] == "sad" for row in rows) == 3


def test_words_that_nobody_listed_are_taken_as_they_stand_and_near_ones_do_not_meet(tmp_path: pathlib.Path) -> None:
    folders = {"happy": 2, "happiness": 2, "excited": 2, "sad": 2, "in_love": 2, "empty": 0}
    sorted_pictures(tmp_path / "train", folders)
    drawn = source("facial_expressions", data=tmp_path)
    groups = {row["group"] for row in drawn.rows}
    assert "in love/sad" in groups and "excited/happy" not in groups
    assert drawn.named["the two answers mean nearly the same"] == ["excited/happy"]
    assert drawn.named["another folder holds the same emotion"] == ["happy"]
    assert drawn.named["the folder holds no picture"] == ["empty"]


def test_a_folder_that_is_something_else_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"does not show two emotions: expected train/<emotion>/\*\.jpg.* no folder"):
        source("facial_expressions", data=tmp_path)
    sorted_pictures(tmp_path / "train", {"happy": 2})
    with pytest.raises(DataError, match="found train"):
        source("facial_expressions", data=tmp_path)


def test_no_spare_word_is_near_another_feeling_of_the_data_set_without_saying_so() -> None:
    words = set(EMOTIONS.values()) | set(SPARE_EMOTIONS)
    assert all(word in NEAR_EMOTIONS.words for word in words)
    assert facial_expressions.question("a", "b").endswith("a or b?")
