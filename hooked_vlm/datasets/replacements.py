"""Symmetric token replacement: one word of a prompt gives way to another, and nothing else changes.

The corruption of the text in NOTICE (Golovanevsky et al., NAACL 2025; after Zhang and Nanda, ICLR 2024,
arXiv:2309.16042): the word that is the right answer is replaced by one of the same part of speech, so that the
corrupt prompt has as many tokens as the clean one, and every other token stays as it was, at its position. Both
are checked of the whole prompt as the model's tokenizer cuts it, since a word may be cut otherwise in its context
than alone.

Costs: a call tokenizes one prompt per word tried, some 50 microseconds each. Knows no model and no data set;
words' lemmas are looked up in lemminflect's tables (20 MB, loaded at the first look-up).
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from hooked_vlm.datasets.scenes import Dice
from hooked_vlm.errors import ReplacementError


class Related:
    """Whether two words mean nearly the same, or one is a kind of the other: known groups, and shared lemmas.

    Args:
        groups: Words separated by spaces (an underscore for a space in a word). Any two words of a group are too
            near, and so are their other forms. A word may be in several groups, without making the others of one
            group near to those of another.

    Example:
        >>> near = Related("damp wet", "wet muddy")
        >>> near("damp", "wet"), near("damp", "muddy"), near("damp", "wetter"), near("dog", "dogs")
        (True, False, True, True)
    """

    def __init__(self, *groups: str) -> None:
        self._groups: dict[str, set[int]] = {}
        for number, group in enumerate(groups):
            for word in group.split():
                self._groups.setdefault(word.replace("_", " "), set()).add(number)

    def __call__(self, one: str, other: str) -> bool:
        """Whether the two words are too near to stand against each other."""
        forms = [{word.casefold()} | lemmas(word) for word in (one, other)]
        groups = [set().union(*(self._groups.get(form, ()) for form in each)) for each in forms]
        return bool(forms[0] & forms[1]) or bool(groups[0] & groups[1])

    @property
    def words(self) -> frozenset[str]:
        """Every word of every group."""
        return frozenset(self._groups)


@lru_cache(maxsize=65536)
def _readings(word: str) -> tuple[tuple[str, str], ...]:
    """(part of speech, lemma) of every reading in the dictionary; none for a word it does not have."""
    from lemminflect import getAllLemmas

    found = getAllLemmas(word.casefold())
    return tuple((part, lemma) for part, each in found.items() for lemma in each)


def lemmas(word: str) -> frozenset[str]:
    """The lemmas of a word's every reading, the word itself if the dictionary does not have it.

    Args:
        word: One word.

    Returns:
        Lemmas, lower case.

    Example:
        >>> sorted(lemmas("broken"))
        ['break', 'broken']
    """
    return frozenset(lemma.casefold() for _, lemma in _readings(word)) or frozenset((word.casefold(),))


def same_part_of_speech(one: str, other: str) -> bool:
    """Whether two words can be the same part of speech, as far as the dictionary knows them.

    Args:
        one: A word.
        other: Another.

    Returns:
        False if both are in the dictionary and no reading of one is a reading of the other; else True.

    Example:
        >>> same_part_of_speech("girl", "dog"), same_part_of_speech("girl", "happy")
        (True, False)
    """
    parts = [{part for part, _ in _readings(word)} for word in (one, other)]
    return not all(parts) or bool(parts[0] & parts[1])


def replacement(
    prompt: str,
    word: str,
    candidates: Iterable[str],
    tokenizer: Any,
    dice: Dice,
    *,
    related: Callable[[str, str], bool] | None = None,
) -> str:
    """The prompt with one word replaced by a drawn one, token for token.

    Of the candidates, those fall away that are a word of the prompt or share a lemma with one, are related to the
    replaced word, would want the other article (a, an), or cannot take its tokens' place: the corrupt prompt must
    have as many tokens, the same ones outside the word, no unknown token, and differ inside it.

    Args:
        prompt: The clean prompt, holding the word once.
        word: The word to replace: in a two-choice question, the right answer's.
        candidates: Words of the same part of speech. Their order does not matter.
        tokenizer: The model's Hugging Face tokenizer.
        dice: Draws; every candidate that fits is equally likely.
        related: Whether two words mean nearly the same; shared lemmas alone if None.

    Returns:
        The corrupt prompt.

    Raises:
        ReplacementError: The prompt does not hold the word exactly once, or no candidate fits; the message counts
            the candidates by what was wrong with them.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from hooked_vlm.zoo import locate
        >>> tokenizer = AutoTokenizer.from_pretrained(locate("zoo:blip-shapes"))
        >>> replacement("is the circle red or blue?", "red", ["blue", "green"], tokenizer, Dice(0))
        'is the circle green or blue?'
    """
    start, end = _place(prompt, word)
    others = set(re.findall(r"[^\W_]+", (prompt[:start] + " " + prompt[end:]).casefold()))
    known = frozenset().union(*(lemmas(each) for each in others), others)
    near = related or Related()
    clean = _Tokens(prompt, start, end, tokenizer)
    wants_an = _article(prompt[:start])
    wrong: dict[str, int] = {}

    def refuse(reason: str) -> None:
        wrong[reason] = wrong.get(reason, 0) + 1

    for candidate in _drawn(candidates, dice):
        parts = re.findall(r"[^\W_]+", candidate.casefold())
        if not parts or any(lemmas(part) & known or part in known for part in parts):
            refuse("in the prompt")
        elif near(word, candidate):
            refuse("too near in meaning")
        elif wants_an is not None and wants_an != (candidate[0].casefold() in "aeiou"):
            refuse("of the other article")
        else:
            text = candidate[0].upper() + candidate[1:] if prompt[start].isupper() else candidate
            corrupt = prompt[:start] + text + prompt[end:]
            if clean.give_way_to(_Tokens(corrupt, start, start + len(text), tokenizer)):
                return corrupt
            refuse("cut into other tokens")
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(wrong.items())) or "none was given"
    raise ReplacementError(
        f"No word can replace {word!r} in {prompt!r} token for token. Of the candidates: {listed}. "
        "Give more words of the same part of speech."
    )


def _place(prompt: str, word: str) -> tuple[int, int]:
    if not word.strip():
        raise ReplacementError(f"An empty word cannot be replaced in {prompt!r}.")
    found = [each.span() for each in re.finditer(rf"(?<![\w-]){re.escape(word)}(?![\w-])", prompt, re.IGNORECASE)]
    if len(found) != 1:
        raise ReplacementError(
            f"{prompt!r} holds {word!r} {len(found)} times: a word that is replaced stands in it once."
        )
    return found[0]


def _article(before: str) -> bool | None:
    """Whether the word after this text follows "an", or "a"; None if it follows neither."""
    found = re.search(r"\b(an?)\s+$", before, re.IGNORECASE)
    return None if found is None else found[1].casefold() == "an"


def _drawn(candidates: Iterable[str], dice: Dice) -> list[str]:
    """The candidates in an order that depends on the draw and on which they are, not on how they came."""
    key = dice.below(2**64).to_bytes(8, "big")
    unique = {each.strip() for each in candidates} - {""}
    return sorted(unique, key=lambda each: (hashlib.blake2b(each.encode(), key=key, digest_size=8).digest(), each))


class _Tokens:
    """A text's token ids, and which of them belong to the word at [start, end).

    A fast tokenizer says where each token stands. Of another, the word is taken to be cut as it is alone.
    """

    def __init__(self, text: str, start: int, end: int, tokenizer: Any) -> None:
        self.unknown = getattr(tokenizer, "unk_token_id", None)
        fast = bool(getattr(tokenizer, "is_fast", False))
        encoded = tokenizer(text, return_offsets_mapping=True) if fast else tokenizer(text)
        self.ids: list[int] = list(encoded["input_ids"])
        self.at: list[int] | None = None
        if fast:
            places = encoded["offset_mapping"]
            self.at = [k for k, (first, last) in enumerate(places) if first < end and start < last]
        else:
            self.n_alone = len(tokenizer(text[start:end], add_special_tokens=False)["input_ids"])

    def give_way_to(self, other: "_Tokens") -> bool:
        """Whether the other text has these tokens outside the word, and other known ones in it, as many."""
        if len(self.ids) != len(other.ids):
            return False
        changed = [k for k, (one, two) in enumerate(zip(self.ids, other.ids, strict=True)) if one != two]
        if not changed or other.unknown in [other.ids[k] for k in changed]:
            return False
        if self.at is None:
            return self.n_alone == other.n_alone and changed[-1] - changed[0] < self.n_alone
        return set(changed) <= set(self.at)
