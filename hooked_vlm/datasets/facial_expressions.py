"""Pictures of faces sorted by what they show, as FER-2013 is downloaded: "is this person feeling sad or happy?".

The folder holds `train/<emotion>/*.jpg` (or `test/` alone, or the emotions themselves). The clean picture shows
one emotion, the corrupt one another: the semantic image pair of NOTICE (Golovanevsky et al., NAACL 2025). Pairs
are of two persons, since the data set shows hardly anybody twice.

Each picture is asked about once. Of two emotions each is right equally often: a pair of emotions ends when the
pictures of the one whose turn it is do. Costs: the names of all pictures (FER-2013: some 6 MB); two pictures are
decoded a row. Knows no model.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

from hooked_vlm.datasets.pictures import Deck, Skips, existing_folder, folders_in, same, shuffled
from hooked_vlm.datasets.questions import NEAR, SAME, Questions, Rows, in_turns
from hooked_vlm.datasets.words import EMOTIONS, NEAR_EMOTIONS, SPARE_EMOTIONS
from hooked_vlm.errors import DataError

TASK = "facial_expressions"
_LAYOUT = "train/<emotion>/*.jpg, as in train/happy and train/sad"


def question(first: str, second: str) -> str:
    """The question with two emotions.

    Example:
        >>> question("sad", "happy")
        'is this person feeling sad or happy?'
    """
    return f"is this person feeling {first} or {second}?"


def rows(
    data: str | Path | None,
    *,
    seed: int = 0,
    tokenizer: Any = None,
    skips: Skips | None = None,
    as_published: bool = False,
) -> Rows:
    """The rows of the task, in the columns of `pairs` without a mask.

    Args:
        data: The folder with `train`.
        seed: Which order and pairs.
        tokenizer: The model's tokenizer; None for no corrupt prompts.
        skips: Where what is passed over is counted.
        as_published: Both answers replaced in corrupt prompts, as the released NOTICE code does.

    Returns:
        A stream of rows; the pairs of emotions take turns.

    Raises:
        DataError: The folder is not laid out like that, or shows fewer than two emotions.
    """
    skips = skips if skips is not None else Skips()
    folder = existing_folder(data, TASK, _LAYOUT)
    there = folders_in(folder)
    split = next((name for name in ("train", "test") if name in there), "")
    decks = _decks(folder / split, split, seed, skips)
    if len(decks) < 2:
        found = ", ".join(there[:10]) or "no folder"
        raise DataError(f"{str(folder)!r} does not show two emotions: expected {_LAYOUT}; found {found}.")
    draws = Questions(TASK, seed, tokenizer, NEAR_EMOTIONS, skips, as_published)
    groups = {}
    for one, other in combinations(sorted(decks), 2):
        if NEAR_EMOTIONS(one, other):
            skips.add(NEAR, f"{one}/{other}")
        else:
            groups[f"{one}/{other}"] = (one, other)
    return in_turns([_group(name, groups[name], decks, draws) for name in shuffled(groups, TASK, seed)])


def _decks(folder: Path, split: str, seed: int, skips: Skips) -> dict[str, Deck]:
    """The pictures of each emotion, by the word for it; of two folders with one word, the first."""
    decks: dict[str, Deck] = {}
    for name in folders_in(folder):
        word = EMOTIONS.get(name.casefold(), name.casefold().replace("_", " ").strip())
        deck = Deck(folder / name, TASK, seed, name, skips=skips, label=f"{split}/{name}".strip("/"))
        if not len(deck):
            skips.add("the folder holds no picture", name)
        elif word in decks:
            skips.add("another folder holds the same emotion", name)
        else:
            decks[word] = deck
    return decks


def _group(group: str, emotions: tuple[str, str], decks: dict[str, Deck], draws: Questions) -> Rows:
    while True:
        answer = draws.due(group, emotions)
        wrong = emotions[1] if answer == emotions[0] else emotions[0]
        clean = decks[answer].once()
        corrupt = decks[wrong].partner() if clean else None
        if clean is None or corrupt is None:
            return
        id = f"{TASK}-{answer}-{clean[0]}-{wrong}-{corrupt[0]}"
        if same(clean[1], corrupt[1]):
            draws.skips.add(SAME, id)
            continue
        words = (decks, SPARE_EMOTIONS)
        yield draws.row(id, group, answer, wrong, question, clean[1], corrupt[1], words)
