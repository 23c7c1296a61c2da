"""Symmetric token replacement: one word changes, and no token beside it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hooked_vlm.datasets.replacements import Related, lemmas, replacement, same_part_of_speech
from hooked_vlm.datasets.scenes import COLOURS, SHAPES, Dice
from hooked_vlm.errors import ReplacementError
from hooked_vlm.zoo import locate
from tests.models.checkpoints import byte_tokenizer, word_tokenizer, wordpiece_tokenizer

TOKENIZERS = {
    "zoo": AutoTokenizer.from_pretrained(locate("zoo:blip-shapes")),
    "word pieces": wordpiece_tokenizer(),
    "words": word_tokenizer(),
    "bytes": byte_tokenizer(),
}
ANIMALS = ("cat", "dog", "cow", "horse", "sheep", "bird", "frog", "hen", "bee", "ant", "ape", "eel", "mouse", "tiger")


class Slow:
    """A tokenizer that does not say where its tokens stand."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.unk_token_id = tokenizer, tokenizer.unk_token_id

    def __call__(self, text: str, **options: Any) -> Any:
        return self.tokenizer(text, **options)


def changed_tokens(tokenizer: Any, one: str, other: str) -> list[str]:
    first, second = (tokenizer(text)["input_ids"] for text in (one, other))
    assert len(first) == len(second)
    return [tokenizer.decode([a]).strip("# ") for a, b in zip(first, second, strict=True) if a != b]


@given(st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(ANIMALS), st.sampled_from(ANIMALS), st.integers(0, 99))
def test_as_many_tokens_and_none_outside_the_word_changes(kind: str, word: str, other: str, seed: int) -> None:
    tokenizer = TOKENIZERS[kind]
    if word == other:
        return
    prompt = f"is the {word} or {other} red?"
    try:
        corrupt = replacement(prompt, word, ANIMALS, tokenizer, Dice(seed))
    except ReplacementError:
        length = len(tokenizer(prompt)["input_ids"])
        as_long = [each for each in ANIMALS if len(tokenizer(f"is the {each} or {other} red?")["input_ids"]) == length]
        # Words and the zoo's know no animal; in bytes, the space before a word may be a token of its own.
        assert set(as_long) <= {word, other} or kind != "word pieces"
        return
    before, after = prompt.split(), corrupt.split()
    assert [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [2]
    assert after[2] in ANIMALS and after[2] not in (word, other)
    clean, given = (tokenizer(text, return_offsets_mapping=True) for text in (prompt, corrupt))
    places = zip(clean["input_ids"], given["input_ids"], clean["offset_mapping"], strict=True)
    changed = [place for one, two, place in places if one != two]
    assert changed and all(start < 7 + len(word) and end > 7 for start, end in changed)


@given(st.sampled_from(list(COLOURS)), st.sampled_from(list(COLOURS)), st.booleans(), st.integers(0, 1000))
def test_a_colour_gives_way_to_one_that_the_prompt_does_not_offer(one: str, two: str, slow: bool, seed: int) -> None:
    tokenizer = Slow(TOKENIZERS["zoo"]) if slow else TOKENIZERS["zoo"]
    if one == two:
        return
    corrupt = replacement(f"is the circle {one} or {two}?", one, COLOURS, tokenizer, Dice(seed))
    assert corrupt.split()[3] in set(COLOURS) - {one, two}
    assert changed_tokens(TOKENIZERS["zoo"], f"is the circle {one} or {two}?", corrupt) == [one]


def test_the_draw_is_the_dice_s_and_every_word_that_fits_is_drawn() -> None:
    draws = [replacement("a red or blue one?", "red", COLOURS, TOKENIZERS["zoo"], Dice(k)) for k in range(60)]
    backwards = [*reversed(COLOURS), "green"]
    again = [replacement("a red or blue one?", "red", backwards, TOKENIZERS["zoo"], Dice(k)) for k in range(60)]
    assert draws == again
    counts = [draws.count(f"a {colour} or blue one?") for colour in ("green", "yellow")]
    assert sum(counts) == 60 and min(counts) > 15


def test_a_token_that_the_tokenizer_does_not_know_stands_in_for_nothing() -> None:
    with pytest.raises(ReplacementError, match="1 cut into other tokens"):
        replacement("is it red or blue?", "red", ["vermilion"], word_tokenizer(), Dice(0))


def test_a_word_is_never_replaced_by_one_of_another_length() -> None:
    tokenizer = wordpiece_tokenizer()  # knows "red" whole and spells "pink"
    with pytest.raises(ReplacementError, match=r"replace 'red' .* 1 cut into other tokens"):
        replacement("is it red or blue?", "red", ["pink"], tokenizer, Dice(0))
    assert replacement("is it pink or blue?", "pink", ["red", "grey"], tokenizer, Dice(0)) == "is it grey or blue?"


def test_a_synonym_and_another_form_of_a_word_are_never_drawn() -> None:
    tokenizer = wordpiece_tokenizer()
    with pytest.raises(ReplacementError, match="1 in the prompt, 2 too near in meaning"):
        replacement(
            "is cat or bear big?", "cat", ["cats", "puss", "bears"], tokenizer, Dice(0), related=Related("cat puss")
        )
    assert (
        replacement("is cat or bear big?", "cat", ["cats", "bear", "fox"], tokenizer, Dice(1)) == "is fox or bear big?"
    )


def test_an_article_fits_the_word_after_it() -> None:
    tokenizer = wordpiece_tokenizer()
    for k in range(10):
        assert (
            replacement("is it an ant or a cow?", "ant", ["dog", "ape"], tokenizer, Dice(k)) == "is it an ape or a cow?"
        )
        assert replacement("is it an ant or a cow?", "cow", ["dog", "ape"], tokenizer, Dice(k)).endswith("a dog?")


def test_a_capital_stays_one() -> None:
    assert replacement("Cat or cow?", "Cat", ["dog"], wordpiece_tokenizer(), Dice(0)) == "Dog or cow?"


@pytest.mark.parametrize(
    ("prompt", "word", "said"),
    [
        ("is it red or blue?", "green", "holds 'green' 0 times"),
        ("is the red one red or blue?", "red", "holds 'red' 2 times"),
        ("is it reddish or dark-red?", "red", "holds 'red' 0 times"),
        ("is it red?", " ", "empty word"),
        ("is it red?", "red", "none was given"),
    ],
)
def test_a_prompt_that_cannot_be_corrupted_is_refused_with_the_reason(prompt: str, word: str, said: str) -> None:
    with pytest.raises(ReplacementError, match=said):
        replacement(prompt, word, [], TOKENIZERS["zoo"], Dice(0))


def test_words_beyond_ascii_are_words() -> None:
    tokenizer = byte_tokenizer()
    corrupt = replacement("is it a café or a bar?", "café", ["caña", "pub"], tokenizer, Dice(0))
    assert corrupt == "is it a caña or a bar?"
    assert len(tokenizer(corrupt)["input_ids"]) == len(tokenizer("is it a café or a bar?")["input_ids"])


def test_what_the_dictionary_does_not_know_is_no_reason_to_refuse() -> None:
    assert same_part_of_speech("zzyzx", "happy") and lemmas("zzyzx") == {"zzyzx"}
    assert not same_part_of_speech("happy", "girl") and same_part_of_speech("standing", "riding")


def test_groups_of_related_words_do_not_run_together() -> None:
    near = Related("damp wet", "wet muddy", "ice_cream sorbet")
    assert near("wet", "damp") and near("Wet", "muddy") and not near("damp", "muddy")
    assert near("ice cream", "sorbet") and "ice cream" in near.words
    assert set(SHAPES) == {one for one in SHAPES if not any(near(one, two) for two in SHAPES if one != two)}
