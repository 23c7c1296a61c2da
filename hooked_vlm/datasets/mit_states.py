"""MIT-States as it is downloaded (Isola, Lim and Adelson, CVPR 2015): "is this apple ripe or moldy?".

The folder holds `images/<adjective> <noun>/*.jpg` (also as `release_dataset/images`). The clean picture shows a
noun in one state, the corrupt one the same noun in another: the semantic image pair of NOTICE (Golovanevsky et
al., NAACL 2025). Adjectives that mean nearly the same, or that one picture may well deserve both, never face each
other (`words.NEAR_STATES`); folders `adj <noun>`, pictures in no particular state, are passed over. The data set
names one state a picture: that the other one is false of it is likely, and not certain.

Each picture is asked about once. Of two states each is right equally often: a noun leaves a pair of states when
the pictures of the state whose turn it is do. Costs: names are listed when their folder is due (all of them:
some 8 MB); two pictures are decoded a row. Knows no model.
"""

from collections import deque
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from hooked_vlm.datasets.pictures import Deck, Skips, existing_folder, folders_in, same, shuffled
from hooked_vlm.datasets.questions import NEAR, SAME, Questions, Rows, in_turns
from hooked_vlm.datasets.words import NEAR_STATES, PUBLISHED_STATES, STATES
from hooked_vlm.errors import DataError

TASK = "mit_states"
_LAYOUT = "images/<adjective> <noun>/*.jpg, as in images/ripe apple and images/moldy apple"


def question(noun: str, first: str, second: str) -> str:
    """The question about a noun with two states.

    Example:
        >>> question("apple", "ripe", "moldy")
        'is this apple ripe or moldy?'
    """
    return f"is this {noun} {first} or {second}?"


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
        data: The folder with `images`.
        seed: Which order and pairs.
        tokenizer: The model's tokenizer; None for no corrupt prompts.
        skips: Where what is passed over is counted.
        as_published: Only the states that the released NOTICE code takes, and both answers replaced in corrupt prompts.

    Returns:
        A stream of rows; the pairs of states take turns, and so do the nouns of a pair.

    Raises:
        DataError: The folder is not laid out like that, or shows no noun in two states.
    """
    skips = skips if skips is not None else Skips()
    folder = existing_folder(data, TASK, _LAYOUT)
    choices = (folder / "images", folder / "release_dataset" / "images", folder)
    images = next(each for each in choices if each.is_dir())
    known = PUBLISHED_STATES if as_published else None
    states = _states_by_noun(images, skips, known)
    nouns: dict[tuple[str, str], list[str]] = {}
    for noun, adjectives in states.items():
        for pair in combinations(sorted(adjectives), 2):
            if NEAR_STATES(*pair):
                skips.add(NEAR, f"{'/'.join(pair)} {noun}")
            else:
                nouns.setdefault(pair, []).append(noun)
    if not nouns:
        found = ", ".join(folders_in(images)[:10]) or "no folder"
        raise DataError(f"{str(images)!r} shows no noun in two states: expected {_LAYOUT}; found {found}.")
    draws = Questions(TASK, seed, tokenizer, NEAR_STATES, skips, as_published)
    decks = _Decks(images, seed, skips)
    vocabulary = frozenset(adjective for each in states.values() for adjective in each)
    groups = {"/".join(pair): pair for pair in nouns}
    return in_turns(
        [
            _group(
                groups[name],
                shuffled(nouns[groups[name]], TASK, seed, name),
                decks,
                draws,
                (vocabulary, known or STATES),
            )
            for name in shuffled(groups, TASK, seed)
        ]
    )


def _states_by_noun(images: Path, skips: Skips, known: tuple[str, ...] | None) -> dict[str, set[str]]:
    states: dict[str, set[str]] = {}
    for name in folders_in(images):
        adjective, space, noun = name.partition(" ")
        if not space or not noun.strip():
            skips.add("the folder's name is not '<adjective> <noun>'", name)
        elif adjective == "adj":
            skips.add("the folder's pictures are in no particular state", name)
        elif known is not None and adjective not in known:
            skips.add("the state is none of those that the released code takes", name)
        else:
            states.setdefault(noun, set()).add(adjective)
    return states


class _Decks:
    """The pictures of each state of each noun, listed when they are first asked for."""

    def __init__(self, images: Path, seed: int, skips: Skips) -> None:
        self._images, self._seed, self._skips = images, seed, skips
        self._decks: dict[str, Deck] = {}

    def __call__(self, adjective: str, noun: str) -> Deck:
        name = f"{adjective} {noun}"
        if name not in self._decks:
            deck = Deck(self._images / name, TASK, self._seed, name, skips=self._skips, label=name)
            if not len(deck):
                self._skips.add("the folder holds no picture", name)
            self._decks[name] = deck
        return self._decks[name]


def _group(
    pair: tuple[str, str], nouns: list[str], decks: _Decks, draws: Questions, words: Sequence[Collection[str]]
) -> Rows:
    group, left = "/".join(pair), deque(nouns)
    while left:
        answer = draws.due(group, pair)
        wrong = pair[1] if answer == pair[0] else pair[0]
        noun = left[0]
        clean = decks(answer, noun).once()
        corrupt = decks(wrong, noun).partner() if clean else None
        if clean is None or corrupt is None:
            left.popleft()
            continue
        id = f"{TASK}-{answer} {noun}-{clean[0]}-{wrong}-{corrupt[0]}"
        if same(clean[1], corrupt[1]):
            draws.skips.add(SAME, id)
            continue
        left.rotate(-1)

        def ask(first: str, second: str, noun: str = noun) -> str:
            return question(noun, first, second)

        yield draws.row(id, group, answer, wrong, ask, clean[1], corrupt[1], words)
