"""The shapes world: two-choice questions about scenes whose truth is known, with their true corruptions.

Three tasks mirror the three data sets of the NOTICE paper (Golovanevsky et al., NAACL 2025):

| task | asks about | question |
|---|---|---|
| `colour` | a state | is the circle red or blue? |
| `shape` | a subject | is the red shape a circle or a square? |
| `place` | a relation | is the circle above or below the square? (or: left or right of the square?) |

Every scene of two or three things holds a *rival*: a thing for which the wrong answer would be right. The
rival is what makes the clean and the corrupt logit difference mean something:

- The corrupt image gives the asked thing the rival's attribute and leaves every other pixel alone, so the
  wrong answer becomes right and the logit difference of a model that sees changes sign.
- The corrupt prompt names the rival in place of the asked thing: one word, the same part of speech, the same
  number of tokens. Picture and choices stay as they were, and again the wrong answer becomes right.
  (Replacing a choice instead would leave a question without a right answer, far from anything a model was
  trained on, and a logit difference whose size nobody can interpret.)
- Neither the presence of a colour or shape nor the mean position of all things tells the answer: both choices
  are in the picture, on opposite sides where the question is about place. A model has to bind the word to the
  thing.

In place scenes the thing that is compared with stands in the middle, so that moving the asked thing alone
turns the relation round. A scene without a rival (`n_objects` of 1: the asked thing alone, or with what it is
compared with) is easier, has no corrupt prompt (None), and is there for training to begin with.

Scenes are split by a digest of the scene itself: no picture of split "test", clean or corrupt, is a picture
of split "train". Costs some 0.2 ms an example, 2 ms as a dataset row. Knows no model and no tokenizer.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any

import datasets
from PIL import Image

from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.scenes import (
    BACKGROUNDS,
    COLOURS,
    CORNERS,
    GRID,
    JITTER,
    MIDDLE,
    PLACES,
    RADII,
    SHAPES,
    Dice,
    Scene,
    Thing,
    mask,
    render,
)

TASKS = ("colour", "shape", "place")
CHOICES: dict[str, tuple[tuple[str, str], ...]] = {
    "colour": tuple(permutations(COLOURS, 2)),
    "shape": tuple(permutations(SHAPES, 2)),
    "place": (("above", "below"), ("below", "above"), ("left", "right"), ("right", "left")),
}
"""Of each task, every (answer, wrong answer)."""

TEST_SHARE = 4  # one scene in so many belongs to split "test"
_VERSION = 1  # part of every digest: raise it when the world changes, so that nobody compares two worlds unawares


@dataclass(frozen=True)
class Pair:
    """A question, the scene it is asked of, and the two ways to turn its answer round.

    `scene.things[0]` is the thing asked about, `scene.things[1]` its rival where there is a corrupt prompt,
    and the last thing is the one compared with where the question is about place.
    """

    id: str
    task: str
    scene: Scene
    corrupt_scene: Scene
    prompt: str
    corrupt_prompt: str | None
    answer: str
    wrong_answer: str

    @property
    def asked(self) -> Thing:
        """The thing that the question is about."""
        return self.scene.things[0]

    @property
    def rival(self) -> Thing | None:
        """The thing of which the wrong answer is right; None in a scene that has none."""
        return None if self.corrupt_prompt is None else self.scene.things[1]

    def to_row(self, size: int = GRID) -> dict[str, Any]:
        """The pair as a row of a task table.

        Args:
            size: Side of the pictures in pixels.

        Returns:
            A value for every column of `pairs.COLUMNS`, pictures as PIL images.
        """
        return {
            "id": self.id,
            "task": self.task,
            "group": "/".join(sorted((self.answer, self.wrong_answer))),
            "image": Image.fromarray(render(self.scene, size)),
            "corrupt_image": Image.fromarray(render(self.corrupt_scene, size)),
            "prompt": self.prompt,
            "corrupt_prompt": self.corrupt_prompt,
            "answer": self.answer,
            "wrong_answer": self.wrong_answer,
            "mask": _picture_of(self.asked, size),
            "rival_mask": None if self.rival is None else _picture_of(self.rival, size),
        }


def _picture_of(thing: Thing, size: int) -> Image.Image:
    """A thing's mask as a picture."""
    return Image.fromarray(mask(thing, size).astype("uint8") * 255)


def _thing(dice: Dice, shape: str, colour: str, place: tuple[int, int]) -> Thing:
    jitter = (dice.below(2 * JITTER + 1) - JITTER, dice.below(2 * JITTER + 1) - JITTER)
    return Thing(shape, colour, place, jitter, dice.pick(RADII))


def _colour_things(dice: Dice, answer: str, wrong: str, n: int) -> tuple[list[Thing], Thing]:
    colours = (answer, wrong, dice.pick(tuple(COLOURS)))
    places = dice.sample(PLACES, n)
    things = [_thing(dice, *traits) for traits in zip(dice.sample(SHAPES, n), colours[:n], places, strict=True)]
    return things, replace(things[0], colour=wrong)


def _shape_things(dice: Dice, answer: str, wrong: str, n: int) -> tuple[list[Thing], Thing]:
    shapes = (answer, wrong, dice.pick(SHAPES))
    places = dice.sample(PLACES, n)
    colours = dice.sample(tuple(COLOURS), n)
    things = [_thing(dice, *traits) for traits in zip(shapes[:n], colours, places, strict=True)]
    return things, replace(things[0], shape=wrong)


def _place_things(dice: Dice, answer: str, wrong: str, n: int) -> tuple[list[Thing], Thing]:
    """The asked thing in a corner, its rival in the corner across, the thing compared with in the middle."""
    axis, low = (0, "above") if answer in ("above", "below") else (1, "left")
    place = dice.pick([corner for corner in CORNERS if (corner[axis] == 0) == (answer == low)])
    across = (2 - place[0], 2 - place[1])
    moved = (across[0], place[1]) if axis == 0 else (place[0], across[1])
    places = (place, MIDDLE) if n == 1 else (place, across, MIDDLE)
    colours = [dice.pick(tuple(COLOURS)) for _ in places]
    things = [_thing(dice, *each) for each in zip(dice.sample(SHAPES, len(places)), colours, places, strict=True)]
    return things, replace(things[0], place=moved)


_THINGS = {"colour": _colour_things, "shape": _shape_things, "place": _place_things}


def _question(task: str, asked: Thing, first: str, second: str, things: Sequence[Thing]) -> str:
    if task == "colour":
        return f"is the {asked.shape} {first} or {second}?"
    if task == "shape":
        return f"is the {asked.colour} shape a {first} or a {second}?"
    of = "of " if first in ("left", "right") else ""
    return f"is the {asked.shape} {first} or {second} {of}the {things[-1].shape}?"


def replaced(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with both choices of its corrupt prompt replaced, as the released NOTICE code corrupts a question.

    The thing asked about stays; the other words take the choices' places, word for word ("is the circle left or right
    the square?"). Nothing that is offered is then right: see above why the corrupt prompt is another one by default.

    Args:
        row: from `Pair.to_row`.

    Example:
        >>> replaced(pair("colour", 0, seed=5).to_row())["corrupt_prompt"]
        'is the square yellow or blue?'
    """
    task, answers = row["task"], (row["answer"], row["wrong_answer"])
    others = sorted({answer for answer, _ in CHOICES[task]} - set(answers))
    dice = Dice("both replaced", _VERSION, row["id"])
    prompt = str(row["prompt"])
    for answer, other in zip(answers, dice.sample(others, 2), strict=True):
        prompt = re.sub(rf"\b{answer}\b", other, prompt)
    return {**row, "corrupt_prompt": prompt}


def _check(task: str, n_objects: Sequence[int], split: str) -> None:
    if task not in TASKS:
        raise ValueError(f"No task of the shapes world is called {task!r}: the tasks are {', '.join(TASKS)}.")
    if not n_objects or any(n not in (1, 2, 3) for n in n_objects):
        raise ValueError(f"n_objects is {tuple(n_objects)}: a scene holds 1, 2 or 3 things.")
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}: it is 'train' or 'test'.")


def pair(task: str, index: int, *, seed: int = 0, n_objects: Sequence[int] = (2, 3), split: str = "test") -> Pair:
    """The example at an index of the endless stream that a seed names.

    Examples come round in a fixed order of answers: 24 in a row hold each answer equally often, each in the
    first and in the second place of the question.

    Args:
        task: "colour", "shape" or "place".
        index: Which example, from 0.
        seed: Which stream.
        n_objects: How many things a scene may hold; each number is equally likely. Scenes about place hold
            three, or, where the number drawn is 1, two and no rival.
        split: "test" for pictures that the models of the zoo never saw, "train" for the others.

    Returns:
        The example. The same arguments give the same one on any machine.

    Raises:
        ValueError: A task, number of things or split that there is not.
    """
    _check(task, n_objects, split)
    orders = tuple(product(CHOICES[task], (False, True)))
    (answer, wrong), answer_last = orders[index % len(orders)]
    attempt = 0
    while True:
        dice = Dice("shapes", _VERSION, split, seed, task, index, attempt)
        n = dice.pick(n_objects)
        background = dice.pick(tuple(BACKGROUNDS))
        things, turned = _THINGS[task](dice, answer, wrong, n)
        scene = Scene(background, tuple(things))
        corrupt = Scene(background, (turned, *things[1:]))
        if all((each.digest() % TEST_SHARE == 0) == (split == "test") for each in (scene, corrupt)):
            break
        attempt += 1
    choices = (wrong, answer) if answer_last else (answer, wrong)
    return Pair(
        id=f"{task}-{split}-{seed}-{index:06d}",
        task=task,
        scene=scene,
        corrupt_scene=corrupt,
        prompt=_question(task, things[0], *choices, things),
        corrupt_prompt=_question(task, things[1], *choices, things) if n > 1 else None,
        answer=answer,
        wrong_answer=wrong,
    )


def rows(
    task: str,
    n: int,
    *,
    seed: int = 0,
    n_objects: Sequence[int] = (2, 3),
    split: str = "test",
    size: int = GRID,
    start: int = 0,
) -> Iterator[dict[str, Any]]:
    """The rows of a task, one at a time, in constant memory.

    Args:
        task: "colour", "shape" or "place".
        n: How many.
        seed: Which stream.
        n_objects: How many things a scene may hold.
        split: "test" or "train".
        size: Side of the pictures in pixels.
        start: Index of the first row.

    Yields:
        Rows with the columns of `pairs.COLUMNS`.
    """
    for index in range(start, start + n):
        yield pair(task, index, seed=seed, n_objects=n_objects, split=split).to_row(size)


def load(
    task: str,
    n: int,
    *,
    seed: int = 0,
    n_objects: Sequence[int] = (2, 3),
    split: str = "test",
    size: int = GRID,
) -> datasets.Dataset:
    """A task as a table in memory (about 2 KB a row, pictures compressed).

    Args:
        task: "colour", "shape" or "place".
        n: How many rows.
        seed: Which stream.
        n_objects: How many things a scene may hold.
        split: "test" or "train".
        size: Side of the pictures in pixels.

    Returns:
        A table with the columns of `pairs.COLUMNS`, ready for `pairs.write_parquet`.

    Example:
        >>> row = load("colour", 2, seed=5)[0]
        >>> row["prompt"], row["corrupt_prompt"], row["answer"], row["wrong_answer"]
        ('is the square red or green?', 'is the triangle red or green?', 'red', 'green')
    """
    _check(task, n_objects, split)
    return pairs.table(rows(task, n, seed=seed, n_objects=n_objects, split=split, size=size))


def stream(
    task: str,
    n: int,
    *,
    seed: int = 0,
    n_objects: Sequence[int] = (2, 3),
    split: str = "test",
    size: int = GRID,
) -> datasets.IterableDataset:
    """A task as a stream: nothing is drawn before it is asked for, and nothing is kept.

    Args:
        task: "colour", "shape" or "place".
        n: How many rows.
        seed: Which stream.
        n_objects: How many things a scene may hold.
        split: "test" or "train".
        size: Side of the pictures in pixels.

    Returns:
        A stream with the same rows as `load`.
    """
    _check(task, n_objects, split)
    options = {
        "task": task,
        "n": n,
        "seed": seed,
        "n_objects": tuple(n_objects),
        "split": split,
        "size": size,
    }
    return datasets.IterableDataset.from_generator(rows, gen_kwargs=options, features=pairs.features())
