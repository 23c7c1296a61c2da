"""What each token of a prompt is there for: the answer's word, the subject, the template, and so on.

Positions come from `VLMInputs` alone, never from a count. Costs decoding the prompt some times (1 ms). Knows no model.
"""

from __future__ import annotations

import itertools

from hooked_vlm.errors import PositionError
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.notice.schema import Role


def roles(
    inputs: VLMInputs,
    prompt: str,
    answer: str,
    wrong_answer: str,
    corrupt: VLMInputs | None = None,
) -> list[Role]:
    """The role of every position of one example's prompt.

    Args:
        inputs: the example alone, from `model.to_inputs`.
        prompt: its question, as it stands in the data.
        answer: the right answer; each of its occurrences in the question counts.
        wrong_answer: the other one.
        corrupt: the example with its corrupt prompt, of as many tokens. The words in which the two differ are the
            subject; None where that cannot be told.

    Returns:
        A role for each position: "answer"; "wrong answer"; "subject"; "image" for image tokens; "template" for what
        the model's chat template adds; "special" for BLIP's [CLS] and [SEP], and padding; "punctuation"; "other". The
        last token of the prompt is "last", whatever else it is.

    Raises:
        PositionError: if there are several examples, or the inputs know no layout.
    """
    if len(inputs) != 1:
        raise PositionError(f"roles are of one example, and the inputs have {len(inputs)}: take inputs[i]")
    ids, n = inputs.input_ids[0].tolist(), inputs.input_ids.shape[1]
    found: list[Role] = ["other"] * n
    spelled, spans = inputs._spelled(0)
    question = _question(inputs, prompt)
    for place, (start, stop) in enumerate(spans):
        if not any(letter.isalnum() for letter in spelled[start:stop]):
            found[place] = "punctuation"
    in_sequence = inputs.layout.image_token_id is not None
    special = set(inputs._tokenizer.all_special_ids)
    for place, token in enumerate(ids):
        if in_sequence and token == inputs.layout.image_token_id:
            found[place] = "image"
        elif token in special:
            found[place] = "template" if in_sequence else "special"
        elif place not in question:
            found[place] = "template"
    for place in _subject(inputs, corrupt, spelled, spans, question):
        found[place] = "subject"
    words: dict[Role, str] = {"wrong answer": wrong_answer, "answer": answer}
    for role, word in words.items():
        for place in occurrences(inputs, word):
            if place in question:
                found[place] = role
    found[inputs.last] = "last"
    return found


def as_published(found: list[Role], *, last: bool, off_by_one: bool) -> list[Role]:
    """The roles with one position alone as the answer's, where the released NOTICE code reads heads.

    Args:
        found: from `roles`.
        last: of the tokens of the answer's first occurrence the last (LLaVA), else the first (BLIP).
        off_by_one: the position before it, as an index is that was counted without [CLS].

    Returns:
        The same, other tokens of the answer as "other"; no "answer" where there is none, or none before it.
    """
    places = [place for place, role in enumerate(found) if role == "answer"]
    if not places:
        return found
    run = [place for i, place in enumerate(places) if place == places[0] + i]
    chosen = (run[-1] if last else run[0]) - off_by_one
    there: list[Role] = ["other" if role == "answer" else role for role in found]
    if chosen >= 0:
        there[chosen] = "answer"
    return there


def occurrences(inputs: VLMInputs, text: str) -> list[int]:
    """Positions of every occurrence of a text in one example's prompt; none if it is not there."""
    places: list[int] = []
    for occurrence in itertools.count():
        try:
            places += inputs.find(text, occurrence=occurrence)
        except PositionError:
            break
    return places


def _question(inputs: VLMInputs, prompt: str) -> set[int]:
    """Where the question stands; everywhere, if the tokens do not spell it (an unknown word, say)."""
    found = occurrences(inputs, prompt)
    return set(found) if found else set(range(inputs.input_ids.shape[1]))


def _subject(
    inputs: VLMInputs, corrupt: VLMInputs | None, spelled: str, spans: list[tuple[int, int]], question: set[int]
) -> list[int]:
    """The positions of the words that differ in the corrupt prompt, whole words of several tokens included."""
    if corrupt is None or corrupt.input_ids.shape != inputs.input_ids.shape:
        return []
    places: set[int] = set()
    for changed in (corrupt.input_ids[0] != inputs.input_ids[0]).nonzero()[:, 0].tolist():
        start, stop = spans[changed]
        while start < stop and not spelled[start].isalnum():
            start += 1
        while start > 0 and spelled[start - 1].isalnum():
            start -= 1
        while stop < len(spelled) and spelled[stop].isalnum():
            stop += 1
        places |= {p for p, (a, b) in enumerate(spans) if a < stop and b > start}
    return sorted(places & question)
