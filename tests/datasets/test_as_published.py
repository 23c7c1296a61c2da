"""The data sets as the released NOTICE code takes them: both answers replaced, SVO-Probes both ways, 58 states."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.sources import source
from hooked_vlm.datasets.words import NEAR_EMOTIONS, NEAR_NOUNS, NEAR_STATES, NEAR_VERBS, PUBLISHED_STATES, STATES
from tests.datasets.folders import picture, sorted_pictures, svo_folder, svo_line, table
from tests.models.checkpoints import wordpiece_tokenizer

LINES = [
    *(svo_line("girl,ride,horse", "boy,ride,horse", k, k + 1) for k in range(10, 16)),
    svo_line("boy,ride,horse", "girl,ride,horse", 11, 10),  # the first line's reverse
    *(svo_line("dog,lie,bed", "cat,lie,bed", k, k + 1) for k in range(20, 23)),
    *(svo_line("dog,run,beach", "dog,sit,beach", k, k + 1) for k in range(30, 36)),
    *(svo_line("woman,hold,cup", "woman,hold,dog", k, k + 1) for k in range(50, 54)),
]
EMOTIONS = ("angry", "happy", "sad", "fear", "surprise")
COUNTS = {"old dog": 4, "wet dog": 4, "small dog": 4, "huge pizza": 3, "sliced pizza": 3, "ripe pizza": 3}
TASKS = {
    "svo_subject": NEAR_NOUNS,
    "svo_verb": NEAR_VERBS,
    "svo_object": NEAR_NOUNS,
    "mit_states": NEAR_STATES,
    "facial_expressions": NEAR_EMOTIONS,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("published")
    svo = svo_folder(root / "svo", LINES)
    sorted_pictures(root / "mit" / "images", COUNTS)
    sorted_pictures(root / "faces" / "train", dict.fromkeys(EMOTIONS, 4))
    return dict.fromkeys(list(TASKS)[:3], svo) | {"mit_states": root / "mit", "facial_expressions": root / "faces"}


@pytest.mark.parametrize("task", [*TASKS, "colour", "shape", "place"])
def test_both_answers_are_replaced_token_for_token_and_nothing_else(task: str, folders: dict) -> None:
    tokenizer = wordpiece_tokenizer() if task in folders else None  # it has not every word of the shapes world
    n, data = (None, folders[task]) if task in folders else (24, None)
    rows = source(task, data=data, n=n, tokenizer=tokenizer, as_published=True).rows
    made = [row for row in rows if row["corrupt_prompt"]]
    assert made
    for row in made:
        answers, corrupt = (row["answer"], row["wrong_answer"]), row["corrupt_prompt"]
        assert not any(pairs.offers(corrupt, each) for each in answers)
        choices = re.escape(row["prompt"])
        for each in answers:
            choices = re.sub(rf"\b{each}\b", "(.+)", choices, count=1)
        found = re.fullmatch(choices, corrupt)
        assert found, (row["prompt"], corrupt)
        new = found.groups()
        assert len({*new, *answers}) == 4
        if tokenizer is not None:
            assert not any(TASKS[task](each, other) for each in new for other in answers)
            assert len(tokenizer(row["prompt"])["input_ids"]) == len(tokenizer(corrupt)["input_ids"])


@pytest.mark.parametrize("task", list(TASKS)[:3])
def test_svo_probes_is_asked_both_ways_round(task: str, folders: dict) -> None:
    data = folders[task]
    one = {row["id"]: row for row in source(task, data=data).rows}
    counted = source(task, data=data, as_published=True)
    both = {row["id"]: row for row in counted.rows}
    again = 2 if task == "svo_subject" else 0  # two lines are each other's reverse, and are asked once each
    assert counted.skipped["an earlier line asks the same of the same pictures"] == again
    assert len(both) == 2 * len(one) - again and set(one) - set(both) <= {"svo_subject-000008"}
    for id, row in both.items():
        if not id.endswith("-reversed") or id.removesuffix("-reversed") not in both:
            continue
        other = both[id.removesuffix("-reversed")]
        assert (row["answer"], row["wrong_answer"]) == (other["wrong_answer"], other["answer"])
        for mine, theirs in (("image", "corrupt_image"), ("corrupt_image", "image")):
            assert (np.asarray(row[mine]) == np.asarray(other[theirs])).all()


def test_mit_states_has_the_58_states_of_the_released_code(folders: dict) -> None:
    assert len(set(PUBLISHED_STATES)) == 58 and set(PUBLISHED_STATES) <= set(STATES)
    counted = source("mit_states", data=folders["mit_states"], tokenizer=wordpiece_tokenizer(), as_published=True)
    rows = list(counted.rows)
    assert rows and {row["answer"] for row in rows} <= set(PUBLISHED_STATES)
    assert counted.named["the state is none of those that the released code takes"] == ["ripe pizza"]
    for row in rows:
        words = re.findall(r"(\w+) or (\w+)", row["corrupt_prompt"] or "huge or old")
        assert set(words[0]) <= set(PUBLISHED_STATES)


def pairs_folder(folder: pathlib.Path, corrupt: str) -> pathlib.Path:
    for k, name in enumerate(("a.png", "b.png")):
        picture(folder / name, k)
    line = {"image": "a.png", "corrupt_image": "b.png", "prompt": "is it a cat or a dog?", "answer": "cat"}
    line |= {"wrong_answer": "dog", "corrupt_prompt": corrupt}
    table(folder / "pairs.csv", [line], list(line))
    return folder


@pytest.mark.parametrize(("corrupt", "kept"), [("is it a hen or a cow?", True), ("is it a hen or a dog?", False)])
def test_of_ones_own_data_a_corrupt_prompt_that_keeps_an_answer_is_none(
    tmp_path: pathlib.Path, corrupt: str, kept: bool
) -> None:
    counted = source("folder", data=pairs_folder(tmp_path, corrupt), tokenizer=wordpiece_tokenizer(), as_published=True)
    (row,) = counted.rows
    assert row["corrupt_prompt"] == (corrupt if kept else None)
    assert bool(counted.skipped) != kept and ("keeps an answer" in "".join(counted.skipped)) != kept
    (usual,) = source("folder", data=tmp_path, tokenizer=wordpiece_tokenizer()).rows
    assert usual["corrupt_prompt"] == corrupt


def test_a_folder_that_gives_none_has_both_replaced_by_its_own_words(tmp_path: pathlib.Path) -> None:
    names = [("cat", "dog"), ("hen", "cow"), ("fox", "ape")]
    for one, other in names:
        for at, name in enumerate((one, other)):
            Image.fromarray(np.full((12, 12, 3), 10 * names.index((one, other)) + at, np.uint8)).save(
                tmp_path / f"{name}.png"
            )
    lines = [
        {"image": f"{one}.png", "corrupt_image": f"{other}.png", "prompt": f"is it a {one} or a {other}?"}
        | {"answer": one, "wrong_answer": other, "corrupt_prompt": ""}
        for one, other in names
    ]
    table(tmp_path / "pairs.csv", lines, list(lines[0]))
    rows = source("folder", data=tmp_path, tokenizer=wordpiece_tokenizer(), as_published=True).rows
    made = [row for row in rows if row["corrupt_prompt"]]
    assert made
    for row in made:
        new = re.fullmatch(r"is it a (\w+) or a (\w+)\?", row["corrupt_prompt"])
        assert new and len({*new.groups(), row["answer"], row["wrong_answer"]}) == 4
