"""Answers are matched by their words and scored in the form in which the model writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm.analysis import answers
from hooked_vlm.analysis.answers import OTHER, RIGHT, SENTENCE, WRONG, Scored, judged, scored, words
from tests.models.checkpoints import byte_tokenizer, word_tokenizer, wordpiece_tokenizer
from tests.notice.models import blip_shapes, row


@pytest.mark.parametrize(
    ("generated", "verdict"),
    [
        ("red", RIGHT),
        (" Red.", RIGHT),
        ("RED!", RIGHT),
        ("a red circle", RIGHT),
        ("The red one", RIGHT),
        ("blue", WRONG),
        ("Blue, not red", WRONG),
        ("it is red", SENTENCE),
        ("The circle is red.", SENTENCE),
        ("it is blue", WRONG),
        ("red or blue, I cannot tell", RIGHT),
        ("it is red or blue", OTHER),
        ("reddish", OTHER),
        ("green", OTHER),
        ("", OTHER),
        ("**Red**", RIGHT),
        ("- **The red** one", RIGHT),
        ('"blue"', WRONG),
        ("**It is red**", SENTENCE),
        ("R\u00c9D", RIGHT),
    ],
)
def test_an_answer_is_matched_without_case_punctuation_and_articles(generated: str, verdict: str) -> None:
    assert judged(generated, "red", "blue") == verdict


def test_the_longer_of_two_answers_that_begin_alike_counts() -> None:
    assert judged("left hand", "left", "left hand") == WRONG
    assert judged("left hand", "left hand", "left") == RIGHT
    assert judged("an old man.", "The old man", "a man") == RIGHT


@given(st.text(alphabet="abc XYZ.,'!?", max_size=12), st.sampled_from(["", "!", ".", " ,", '"']))
def test_decoration_changes_no_words(text: str, mark: str) -> None:
    assert words(f"The {text.upper()}{mark}") == words(text)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("said", ["cr\u00eape", "Crepe.", "CRE\u0302PE", "*Cr\u00eape*"])
@pytest.mark.parametrize("answer", ["crepe", "cr\u00eape", "Cre\u0302pe"])
def test_an_answer_is_matched_without_accents(said: str, answer: str) -> None:
    assert judged(said, answer, "cake") == RIGHT and judged(said, "cake", answer) == WRONG
    assert words(said) == ["crepe"] and words(said, accents=True) in (["cr\u00eape"], ["crepe"])


def test_accents_count_where_they_alone_tell_the_answers_apart() -> None:
    assert judged("P\u00eache", "p\u00eache", "p\u00e9ch\u00e9") == RIGHT
    assert judged("p\u00e9ch\u00e9", "p\u00eache", "p\u00e9ch\u00e9") == WRONG


MARKS = ["", "**", "*", '"', "- ", "- **", "(", "\n", "The ", "**a ", "... "]


@given(
    st.sampled_from(MARKS),
    st.sampled_from(["red", "Red", "RED"]),
    st.sampled_from([("red", "blue"), ("Red", "Blue"), ("RED", "blue"), ("r\u00e9d", "blue")]),
    st.sampled_from(["", "**", ".", " one"]),
    st.booleans(),
)
def test_answers_are_scored_behind_the_marks_that_the_model_writes_first(
    mark: str, case: str, answers_of: tuple[str, str], end: str, accented: bool
) -> None:
    tokenizer, answer = byte_tokenizer(), case.replace("e", "\u00e9") if accented else case
    said = ids(tokenizer, mark + answer + end)
    found = scored(tokenizer, said, *answers_of)
    assert isinstance(found, Scored)
    right = ids(tokenizer, mark + answer)
    assert [*found.shared, found.right] == right[: len(found.shared) + 1]
    assert tokenizer.decode([*found.shared, found.wrong]).strip().lower().startswith((mark.lower() + "b").strip())


@pytest.mark.parametrize("form", ["red", "Red", " red", " Red"])
def test_answers_are_scored_in_the_form_that_is_generated(form: str) -> None:
    tokenizer = byte_tokenizer()
    said = ids(tokenizer, form) + ids(tokenizer, " and")
    other = form.replace("red", "blue").replace("Red", "Blue")
    right, wrong = ids(tokenizer, form), ids(tokenizer, other)
    place = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
    assert scored(tokenizer, said, "red", "blue") == Scored(right[place], wrong[place], tuple(right[:place]))


def test_an_answer_after_an_article_is_scored_after_it() -> None:
    tokenizer = byte_tokenizer()
    found = scored(tokenizer, ids(tokenizer, "a red"), "red", "blue")
    assert found == Scored(ids(tokenizer, " red")[0], ids(tokenizer, " blue")[0], tuple(ids(tokenizer, "a")))


def test_the_first_token_that_differs_is_scored() -> None:
    tokenizer = wordpiece_tokenizer()  # spells what it does not know in letters
    right, wrong = ids(tokenizer, "redo"), ids(tokenizer, "rede")
    assert right[:-1] == wrong[:-1] and len(right) > 1
    assert scored(tokenizer, right, "redo", "rede") == Scored(right[-1], wrong[-1], tuple(right[:-1]))
    phrase = ids(tokenizer, "red circle"), ids(tokenizer, "red square")
    assert scored(tokenizer, phrase[0], "red circle", "red square") == Scored(
        phrase[0][1], phrase[1][1], (phrase[0][0],)
    )


def test_what_no_token_tells_apart_says_so() -> None:
    tokenizer = wordpiece_tokenizer()
    assert "begins with the other" in scored(tokenizer, ids(tokenizer, "red"), "red", "red circle")
    assert "begins with the other" in scored(tokenizer, ids(tokenizer, "red"), "red", "Red")
    assert "not in the vocabulary" in scored(word_tokenizer(), [7], "zebra", "red")


def test_the_likeliest_form_is_taken_where_none_was_generated() -> None:
    tokenizer = byte_tokenizer()
    capital = ids(tokenizer, "Red")[0]
    found = scored(tokenizer, [3], "red", "blue", likelihood=lambda token: float(token == capital))
    assert found == Scored(capital, ids(tokenizer, "Blue")[0])


def test_what_a_model_says_is_read_with_its_tokens() -> None:
    model, shown = blip_shapes(), row()
    inputs = model.to_inputs([shown["image"]] * 2, shown["prompt"])
    tokens, said = answers.generated_tokens(model, inputs)
    assert said == ["red", "red"] and tokens.shape[0] == 2
    found = scored(model.processor.tokenizer, tokens[0], shown["answer"], shown["wrong_answer"])
    assert found == Scored(model.to_single_token("red"), model.to_single_token("green"))
