"""Every token of a prompt has the role that a reader would give it, with and without a chat template."""

from __future__ import annotations

import pytest

from hooked_vlm.errors import PositionError
from hooked_vlm.notice.roles import occurrences, roles
from hooked_vlm.notice.vocabulary import ROLES
from tests.notice.models import blip_shapes, pictures, row, small, untrained_llava

PROMPT, CORRUPT = "is the square red or green?", "is the triangle red or green?"


def of(model, prompt=PROMPT, corrupt=CORRUPT, answer="red", wrong="green", template="{}"):
    clean = model.to_inputs(row()["image"], template.format(prompt))
    other = None if corrupt is None else model.to_inputs(row()["image"], template.format(corrupt))
    return clean, roles(clean, prompt, answer, wrong, other)


def test_a_question_without_a_template() -> None:
    _, found = of(blip_shapes())
    assert found == [
        "special",
        *["other", "other", "subject", "answer", "other", "wrong answer", "punctuation"],
        "last",
    ]
    assert set(found) <= set(ROLES)


def test_a_question_in_a_chat_template() -> None:
    inputs, found = of(untrained_llava())
    n = inputs.image_span.stop - inputs.image_span.start
    assert found[inputs.image_span] == ["image"] * n == found[3 : 3 + n]
    expected = ["other", "other", "subject", "answer", "other", "wrong answer", "punctuation", "template", "last"]
    assert found[:3] + found[3 + n :] == [*["template"] * 3, "template", *expected]


def test_a_template_of_ones_own_is_a_template_in_both() -> None:
    inputs, found = of(blip_shapes(), template="the or red {}")
    assert found[1:4] == ["template"] * 3 and found.count("answer") == 1
    assert found[inputs.find("square")[0]] == "subject"


def test_without_a_corrupt_prompt_there_is_no_subject() -> None:
    _, found = of(blip_shapes(), corrupt=None)
    assert "subject" not in found and found[3] == "other"


def test_words_of_several_tokens_and_several_places() -> None:
    model = small("blip")  # spells words it does not know in letters
    prompt, corrupt = "is the redo red or rede or red?", "is the redu red or rede or red?"
    inputs = model.to_inputs(pictures(1)[0], prompt)
    other = model.to_inputs(pictures(1)[0], corrupt)
    found = roles(inputs, prompt, "red", "rede", other)
    spelled = {role: [p for p, r in enumerate(found) if r == role] for role in set(found)}
    assert spelled["answer"] == occurrences(inputs, "red") and len(spelled["answer"]) == 2
    assert spelled["wrong answer"] == inputs.find("rede") and len(spelled["wrong answer"]) > 1
    assert spelled["subject"] == inputs.find("redo") and len(spelled["subject"]) > 1
    assert occurrences(inputs, "blue") == []


def test_a_question_that_the_tokens_do_not_spell_has_no_template() -> None:
    model = small("llava")  # <unk> for words it does not know
    _, found = of(model, "is the zebra red?", None)
    assert "template" in found  # <s>, or the image's surroundings, are not told from the question's words
    assert found.count("answer") == 1 and found[-1] == "last"


def test_the_last_token_is_last_whatever_else_it_is() -> None:
    model = small("llava")
    inputs = model.to_inputs(pictures(1)[0], "<image> is it blue or red")
    assert roles(inputs, "is it blue or red", "red", "blue")[-1] == "last"


def test_several_examples_are_refused() -> None:
    inputs = blip_shapes().to_inputs([row()["image"]] * 2, PROMPT)
    with pytest.raises(PositionError, match=r"take inputs\[i\]"):
        roles(inputs, PROMPT, "red", "green")
