"""The shapes world: every pair is what it says, and no question gives its answer away."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_vlm.datasets import pairs, shapes
from hooked_vlm.datasets.scenes import Scene, Thing, mask, render
from hooked_vlm.datasets.shapes import CHOICES, TASKS, Pair

drawn_pairs = st.builds(
    shapes.pair,
    task=st.sampled_from(TASKS),
    index=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
    n_objects=st.just((1, 2, 3)),
    split=st.sampled_from(("train", "test")),
)


def truth(scene: Scene, prompt: str) -> str:
    """The answer that the scene itself gives, worked out from the prompt's words alone."""
    words = prompt.rstrip("?").split()
    if words[1] == "the" and words[3] == "shape":
        (thing,) = [each for each in scene.things if each.colour == words[2]]
        assert thing.shape in (words[5], words[8])
        return thing.shape
    (thing,) = [each for each in scene.things if each.shape == words[2]]
    if "the" not in words[3:]:
        assert thing.colour in (words[3], words[5])
        return thing.colour
    (other,) = [each for each in scene.things if each.shape == words[-1]]
    (x, y), (other_x, other_y) = thing.centre, other.centre
    if "above" in words:
        assert abs(y - other_y) > 10
        return "above" if y < other_y else "below"
    assert abs(x - other_x) > 10
    return "left" if x < other_x else "right"


def changed_fields(one: Thing, other: Thing) -> list[str]:
    return [each.name for each in fields(Thing) if getattr(one, each.name) != getattr(other, each.name)]


@given(drawn_pairs)
def test_the_answer_is_true_of_the_clean_scene_and_the_wrong_answer_of_the_corrupt_one(pair: Pair) -> None:
    assert truth(pair.scene, pair.prompt) == pair.answer
    assert truth(pair.corrupt_scene, pair.prompt) == pair.wrong_answer


@given(drawn_pairs)
def test_the_corrupt_scene_differs_in_the_asked_attribute_of_the_asked_thing_alone(pair: Pair) -> None:
    assert pair.corrupt_scene.background == pair.scene.background
    assert pair.corrupt_scene.things[1:] == pair.scene.things[1:]
    assert changed_fields(pair.scene.things[0], pair.corrupt_scene.things[0]) == [pair.task]


@settings(max_examples=50)
@given(drawn_pairs)
def test_no_pixel_outside_the_asked_thing_changes(pair: Pair) -> None:
    changed = (render(pair.scene) != render(pair.corrupt_scene)).any(axis=-1)
    touched = mask(pair.scene.things[0]) | mask(pair.corrupt_scene.things[0])
    assert changed.any()
    assert not (changed & ~touched).any()


@given(drawn_pairs)
def test_the_corrupt_prompt_replaces_one_word_and_makes_the_wrong_answer_right(pair: Pair) -> None:
    if len(pair.scene.things) == (2 if pair.task == "place" else 1) and pair.corrupt_prompt is None:
        return
    assert pair.corrupt_prompt is not None
    clean, corrupt = pair.prompt.split(), pair.corrupt_prompt.split()
    replaced = [(one, other) for one, other in zip(clean, corrupt, strict=True) if one != other]
    attribute = "colour" if pair.task == "shape" else "shape"
    asked, rival = pair.scene.things[:2]
    assert replaced == [(getattr(asked, attribute), getattr(rival, attribute))]
    assert truth(pair.scene, pair.corrupt_prompt) == pair.wrong_answer


@given(drawn_pairs)
def test_scenes_belong_to_the_split_they_are_drawn_for(pair: Pair) -> None:
    split = pair.id.split("-")[1]
    for scene in (pair.scene, pair.corrupt_scene):
        assert (scene.digest() % shapes.TEST_SHARE == 0) == (split == "test")


def test_no_test_scene_was_ever_a_training_scene() -> None:
    def digests(split: str) -> set[int]:
        drawn = [shapes.pair("colour", index, n_objects=(1,), split=split) for index in range(2000)]
        return {scene.digest() for pair in drawn for scene in (pair.scene, pair.corrupt_scene)}

    train, test = digests("train"), digests("test")
    assert not train & test
    assert len(train) < 4000  # one-thing scenes do come again, so that drawing anew would not have been enough


@given(drawn_pairs, st.data())
def test_a_pair_is_a_function_of_its_arguments(pair: Pair, data: st.DataObject) -> None:
    task, split, seed, index = pair.id.split("-")
    again = shapes.pair(task, int(index), seed=int(seed), n_objects=(1, 2, 3), split=split)
    assert again == pair
    other = data.draw(st.integers(0, 10**6).filter(lambda drawn: drawn != int(seed)))
    assert shapes.pair(task, int(index), seed=other, n_objects=(1, 2, 3), split=split).id != pair.id


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_comes_equally_often_first_and_second(task: str) -> None:
    counts: Counter[tuple[str, str, bool]] = Counter()
    for index in range(240):
        pair = shapes.pair(task, index, n_objects=(1, 2, 3))
        first = pair.prompt.index(f" {pair.answer}") < pair.prompt.index(f" {pair.wrong_answer}")
        counts[pair.answer, pair.wrong_answer, first] += 1
    assert len(counts) == 2 * len(CHOICES[task])
    assert len(set(counts.values())) == 1


def _most_frequent(train: list[Pair], key: Callable[[Pair], Any]) -> dict[Any, str]:
    """Of each key, the answer that came most often."""
    table: dict[Any, Counter[str]] = {}
    for pair in train:
        table.setdefault(key(pair), Counter())[pair.answer] += 1
    return {each: counts.most_common(1)[0][0] for each, counts in table.items()}


def _first_offered(pair: Pair) -> str:
    return min(pair.answer, pair.wrong_answer, key=lambda word: pair.prompt.index(f" {word}"))


@functools.cache
def drawn_splits(task: str) -> tuple[list[Pair], list[Pair]]:
    train = [shapes.pair(task, index, split="train", n_objects=(1, 2, 3)) for index in range(4000)]
    return train, [shapes.pair(task, index, seed=1, n_objects=(1, 2, 3)) for index in range(1200)]


def text_only_accuracy(task: str, key: Callable[[Pair], Any]) -> float:
    train, test = drawn_splits(task)
    learned = _most_frequent(train, key)
    return float(np.mean([learned.get(key(pair), _first_offered(pair)) == pair.answer for pair in test]))


@pytest.mark.parametrize("task", TASKS)
def test_a_classifier_that_reads_whole_questions_and_sees_nothing_stays_at_chance(task: str) -> None:
    assert abs(text_only_accuracy(task, lambda pair: pair.prompt) - 0.5) < 0.06  # four standard deviations of 1,200


@pytest.mark.parametrize("task", TASKS)
def test_a_classifier_that_reads_the_two_choices_and_sees_nothing_stays_at_chance(task: str) -> None:
    accuracy = text_only_accuracy(task, lambda pair: tuple(sorted((pair.answer, pair.wrong_answer))))
    assert abs(accuracy - 0.5) < 0.06


def test_a_classifier_that_sees_would_be_caught() -> None:
    """The measure can fail: told the asked thing's attribute, the same classifier is always right."""
    assert text_only_accuracy("colour", lambda pair: pair.asked.colour) == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_what_stands_in_the_picture_does_not_tell_the_answer_without_the_thing_asked_about(task: str) -> None:
    """Both choices are in every clean picture of two or more things; their mean position is the middle."""
    for index in range(200):
        pair = shapes.pair(task, index)
        if task == "place":
            asked, rival, middle = pair.scene.things
            assert middle.place == (1, 1)
            assert tuple(np.add(asked.place, rival.place)) == (2, 2)
        else:
            seen = {getattr(thing, task) for thing in pair.scene.things}
            assert {pair.answer, pair.wrong_answer} <= seen


@pytest.mark.parametrize("task", TASKS)
def test_a_table_has_the_columns_of_a_task_and_the_pictures_of_its_pairs(task: str) -> None:
    table = shapes.load(task, 6, seed=3)
    assert table.column_names == list(pairs.COLUMNS)
    assert table.features == pairs.features()
    for index, row in enumerate(table):
        pair = shapes.pair(task, index, seed=3)
        assert (row["id"], row["prompt"], row["answer"]) == (pair.id, pair.prompt, pair.answer)
        assert (np.asarray(row["image"]) == render(pair.scene)).all()
        assert (np.asarray(row["corrupt_image"]) == render(pair.corrupt_scene)).all()
        assert ((np.asarray(row["mask"]) > 0) == mask(pair.asked)).all()
        if pair.rival is None:
            assert row["rival_mask"] is None
            continue
        assert ((np.asarray(row["rival_mask"]) > 0) == mask(pair.scene.things[1])).all()
        said = {"colour": pair.rival.colour, "shape": pair.rival.shape}.get(pair.task, pair.wrong_answer)
        assert said == pair.wrong_answer


def test_a_stream_gives_the_rows_of_the_table() -> None:
    streamed = shapes.stream("place", 5, seed=2)
    assert isinstance(streamed, datasets.IterableDataset)
    assert [_plain(row) for row in streamed] == [_plain(row) for row in shapes.load("place", 5, seed=2)]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tobytes() if name in pairs.PICTURES else value for name, value in row.items()}


def test_pictures_come_in_the_size_asked_for() -> None:
    row = next(shapes.rows("shape", 1, size=96))
    assert row["image"].size == row["corrupt_image"].size == row["mask"].size == (96, 96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "texture"}, "'texture'.*colour, shape, place"),
        ({"n_objects": (4,)}, r"\(4,\).*1, 2 or 3"),
        ({"n_objects": ()}, r"\(\).*1, 2 or 3"),
        ({"split": "dev"}, "'dev'.*'train' or 'test'"),
    ],
)
def test_what_there_is_not_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    asked = {"task": "colour", **options}
    with pytest.raises(ValueError, match=message):
        shapes.load(n=1, **asked)
    with pytest.raises(ValueError, match=message):
        shapes.pair(index=0, **asked)
