"""What the model answered, and by which tokens its two answers are told apart.

An answer is matched without case, punctuation, accents and articles. It is scored in the form that the model itself
generates: "red", "Red", "**Red**", with or without a leading space, whichever its own answer began with; the wrong
answer is written in the same form, behind the same marks. Where the two begin alike, the first token in which they
differ is scored, after what they share (the published code takes the first word piece always).

Costs: a few calls of the tokenizer an example. Knows a model by its tokenizer alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_vlm.models import spelling
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs

MAX_NEW_TOKENS = 8
_ANCHOR = ":"  # what prompts end in: a word after it is tokenized as the model writes it after its prompt
_ARTICLES = ("a", "an", "the")
_ACCENTS = re.compile("[\u0300-\u036f]")  # as they stand behind their letters where letters are taken apart
_LEAD = re.compile(r"(?:[\W_]+|(?:a|an|the)\b)*", re.IGNORECASE)  # what may stand before an answer: marks and articles

RIGHT = ""
WRONG = "the model gives the wrong answer"
OTHER = "the model gives neither answer"
SENTENCE = "the model answers in a sentence, whose first token tells nothing"


@dataclass(frozen=True)
class Scored:
    """The tokens by which an answer is measured.

    Args:
        right: id of the right answer's token.
        wrong: id of the wrong answer's.
        shared: ids that both answers begin with, before it; empty for most.
    """

    right: int
    wrong: int
    shared: tuple[int, ...] = ()


def words(text: str, *, accents: bool = False) -> list[str]:
    """The words of a text in lower case, without punctuation, articles and, unless they are asked for, accents.

    >>> words("A red circle."), words("**Cr\N{LATIN SMALL LETTER E WITH CIRCUMFLEX}pe**")
    (['red', 'circle'], ['crepe'])
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    folded = folded if accents else plain(folded)
    return [word for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", folded) if word not in _ARTICLES]


def plain(text: str) -> str:
    """A text without accents.

    >>> plain("Cr\N{LATIN SMALL LETTER E WITH CIRCUMFLEX}pe")
    'Crepe'
    """
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


def judged(generated: str, answer: str, wrong_answer: str) -> str:
    """Why an example is not kept, or "" where the model gives the right answer.

    >>> judged("Red.", "red", "blue"), judged("blue", "red", "blue")
    ('', 'the model gives the wrong answer')
    """
    accents = words(answer) == words(wrong_answer)  # they may be all that tells the two apart
    said, right, wrong = (words(text, accents=accents) for text in (generated, answer, wrong_answer))
    begins = [side for side in (right, wrong) if side and said[: len(side)] == side]
    if begins:
        return RIGHT if max(begins, key=len) == right else WRONG
    inside = [_holds(said, side) for side in (right, wrong)]
    if inside == [True, False]:
        return SENTENCE
    return WRONG if inside == [False, True] else OTHER


def scored(
    tokenizer: Any,
    generated: Sequence[int] | Int[Tensor, " n_tokens"],
    answer: str,
    wrong_answer: str,
    likelihood: Callable[[int], float] | None = None,
) -> Scored | str:
    """The tokens that tell the right answer from the wrong one, as the model writes them.

    Args:
        tokenizer: the model's Hugging Face tokenizer.
        generated: the ids that the model generated.
        answer: the right answer.
        wrong_answer: the wrong one.
        likelihood: of a first token, to choose a form by where none is what was generated.

    Returns:
        The tokens, or the reason why there are none.
    """
    said = [int(token) for token in generated]
    forms = list(_forms(tokenizer, answer, wrong_answer, spelling.text(tokenizer, said, skip_special_tokens=True)))
    known = [form for form in forms if tokenizer.unk_token_id not in (*form[0], *form[1])]
    if not known:
        return "a word of the answers is not in the vocabulary"
    own = [form for form in known if said[: len(form[0])] == form[0]]
    if own:
        right, wrong = max(own, key=lambda form: len(form[0]))
    elif likelihood is not None:
        right, wrong = max(known, key=lambda form: likelihood(form[0][0]))
    else:
        right, wrong = max(known, key=lambda form: form[0][0] == said[0])
    for place, (mine, other) in enumerate(zip(right, wrong, strict=False)):
        if mine != other:
            return Scored(mine, other, tuple(right[:place]))
    return "one answer begins with the other, and no token tells them apart"


def generated_tokens(model: HookedVLM, inputs: VLMInputs) -> tuple[Int[Tensor, "batch new_tokens"], list[str]]:
    """What the model answers, as ids and in words."""
    tokens = model.generate(inputs, max_new_tokens=MAX_NEW_TOKENS, return_type="tokens")
    tokenizer = model.processor.tokenizer
    return torch.as_tensor(tokens), [
        spelling.text(tokenizer, row, skip_special_tokens=True).strip() for row in tokens.tolist()
    ]


def _holds(said: list[str], side: list[str]) -> bool:
    n = len(side)
    return bool(side) and any(said[i : i + n] == side for i in range(len(said) - n + 1))


def _forms(tokenizer: Any, answer: str, wrong_answer: str, said: str) -> Iterator[tuple[list[int], list[int]]]:
    """Both answers as ids, in each form in which a model may write them; behind what it `said` before its answer.

    The right one is spelled with the accents that the model gave it.
    """
    found = _LEAD.match(said)
    assert found is not None
    lead, rest = found[0], said[found.end() :]

    def alone(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def after_anchor(text: str) -> list[int]:
        whole, anchor = alone(_ANCHOR + text), alone(_ANCHOR)
        return whole[len(anchor) :] if whole[: len(anchor)] == anchor else []

    def as_said(text: str) -> str:
        return next((rest[:n] for n in range(len(rest), 0, -1) if plain(rest[:n]) == plain(text)), text)

    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    cases: tuple[Callable[[str], str], ...] = (str, str.capitalize, str.lower, str.upper, str.title)
    begins = dict.fromkeys(("", " ", lead, lead.strip(), " " + lead.lstrip()))
    for case, begin, ids in product(cases, begins, (alone, after_anchor)):
        right, wrong = ids(begin + as_said(case(answer.strip()))), ids(begin + case(wrong_answer.strip()))
        if right and wrong and (key := (tuple(right), tuple(wrong))) not in seen:
            seen.add(key)
            yield right, wrong
