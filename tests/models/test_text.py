"""Texts to tokens and back, on a word-piece, a word and a byte-pair tokenizer."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM
from hooked_vlm.errors import InputsError, TextError
from hooked_vlm.given import is_blank, unwritable
from hooked_vlm.models.prompts import fewest_tokens
from tests.models.checkpoints import (
    WORDS,
    blip_processor,
    blip_vqa,
    byte_tokenizer,
    llava,
    picture,
    word_tokenizer,
    wordpiece_tokenizer,
)
from tests.models.unchecked import unchecked

EXAMPLES = settings(max_examples=50, deadline=None)


@pytest.fixture(scope="module")
def blip() -> HookedBLIP:
    return HookedBLIP.from_hf(*blip_vqa())


@pytest.fixture(scope="module")
def llava_bytes() -> HookedLLaVA:
    return HookedLLaVA.from_hf(*llava(tokenizer=byte_tokenizer()))


@pytest.fixture(scope="module")
def llava_words() -> HookedLLaVA:
    return HookedLLaVA.from_hf(*llava())


# --- round trips ------------------------------------------------------------------------------------


@EXAMPLES
@given(st.text(min_size=1, max_size=20).filter(lambda text: not is_blank(text) and not unwritable(text)))
def test_byte_pairs_spell_every_text_again(llava_bytes: HookedLLaVA, text: str) -> None:
    assert llava_bytes.to_string(llava_bytes.to_tokens(text, prepend_bos=False)) == [text]


@EXAMPLES
@given(st.lists(st.sampled_from([w for w in WORDS.lower().split() if w.isalpha()]), min_size=1, max_size=6))
def test_word_pieces_spell_known_words_again(blip: HookedBLIP, words: list[str]) -> None:
    tokens = blip.to_tokens(" ".join(words), prepend_bos=False)
    assert tokens.shape == (1, len(words))
    assert blip.to_string(tokens[0]) == " ".join(words)
    assert blip.to_str_tokens(" ".join(words), prepend_bos=False) == words


@EXAMPLES
@given(st.sampled_from(WORDS.split()))
def test_a_single_token_and_its_string_are_each_others_inverse(llava_words: HookedLLaVA, word: str) -> None:
    token = llava_words.to_single_token(word)
    assert llava_words.to_string(token) == word and llava_words.to_str_tokens([token]) == [word]


def test_special_tokens_come_unless_they_are_declined(blip: HookedBLIP) -> None:
    whole = blip.to_str_tokens("is it red?")
    assert whole == ["[CLS]", "is", "it", "red", "?", "[SEP]"]
    assert blip.to_str_tokens("is it red?", prepend_bos=True) == whole
    assert blip.to_str_tokens("is it red?", prepend_bos=False) == whole[1:-1]


def test_several_texts_are_padded_on_the_tokenizers_side(blip: HookedBLIP, llava_words: HookedLLaVA) -> None:
    texts = ["red", "is it red"]
    right, left = (model.to_tokens(texts, prepend_bos=False) for model in (blip, llava_words))
    assert right.shape == left.shape == (2, 3)
    assert blip.to_str_tokens(right[0]) == ["red", "[PAD]", "[PAD]"]
    assert llava_words.to_str_tokens(left[0]) == ["<pad>", "<pad>", "red"]
    assert blip.to_str_tokens(texts, prepend_bos=False) == [["red", "[PAD]", "[PAD]"], ["is", "it", "red"]]


def test_tokens_are_on_the_models_device_and_are_those_of_its_tokenizer(blip: HookedBLIP) -> None:
    tokens = blip.to_tokens("is it red?")
    assert tokens.device == blip.device and tokens.dtype == torch.int64
    assert tokens.tolist() == [blip.processor.tokenizer("is it red?")["input_ids"]]


def test_ids_may_be_a_number_a_list_or_a_tensor_of_one_row_or_several(blip: HookedBLIP) -> None:
    token = blip.to_single_token("red")
    assert blip.to_string(token) == blip.to_string([token]) == blip.to_string(torch.tensor(token)) == "red"
    assert blip.to_string([[token], [token]]) == ["red", "red"]
    assert blip.to_str_tokens([[token, token], [token, token]]) == [["red", "red"], ["red", "red"]]
    assert blip.to_str_tokens(torch.tensor(token)) == ["red"]


# --- what cannot be done ----------------------------------------------------------------------------


def test_a_word_of_several_tokens_is_refused_with_its_pieces(blip: HookedBLIP) -> None:
    with pytest.raises(TextError, match=r"'reddish' is 3 tokens \['red', '##d', '##ish'\], not one; take to_tokens"):
        blip.to_single_token("reddish")


def test_a_word_beyond_the_vocabulary_is_refused(llava_words: HookedLLaVA) -> None:
    with pytest.raises(TextError, match="'purple' is not in the vocabulary: the tokenizer reads it as '<unk>'"):
        llava_words.to_single_token("purple")


@pytest.mark.parametrize("method", ["to_tokens", "to_str_tokens", "to_single_token"])
@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_text_has_no_tokens(blip: HookedBLIP, method: str, text: str) -> None:
    with pytest.raises(TextError, match=r"text 0 is empty .*at least one word"):
        getattr(blip, method)(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "list of texts is empty; expected at least one"),
        (["red", ""], "text 1 is empty"),
        (["red", 3], "text 1 is a int; expected a string"),
        (None, "the text is a NoneType; expected a string or a list"),
        (3.5, "the text is a float"),
        (b"red", "the text is a bytes"),
        ({"text": "red"}, "the text is a dict"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place_and_type(blip: HookedBLIP, texts: Any, message: str) -> None:
    with unchecked(), pytest.raises(TextError, match=message):
        blip.to_tokens(texts)


@pytest.mark.parametrize("method", ["to_string", "to_str_tokens"])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 9999], "from 1 to 9999; the vocabulary is 0 to"),
        ([-1], "from -1 to -1; the vocabulary is 0 to"),
        ([0.5], "dtype torch.float32 .*expected integer ids"),
        ([True], "dtype torch.bool"),
        ([[[1]]], r"shape \(1, 1, 1\); expected integer ids"),
        ([], r"shape \(0,\)"),
        ([[1], [1, 2]], "cannot be read as ids .*expected integers"),
        (None, "cannot be read as ids"),
    ],
)
def test_what_is_no_token_id_is_refused(blip: HookedBLIP, method: str, tokens: Any, message: str) -> None:
    if tokens == [] and method == "to_str_tokens":
        with pytest.raises(TextError, match="the list of texts is empty"):
            blip.to_str_tokens(tokens)
        return
    with unchecked(), pytest.raises(InputsError, match=message):
        getattr(blip, method)(tokens)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda m: m.to_inputs(picture(), "is it red?"), "processor"),
        (lambda m: m.to_pixels(picture()), "processor"),
        (lambda m: m.to_tokens("red"), "tokenizer"),
        (lambda m: m.to_string([1]), "tokenizer"),
        (lambda m: m.to_str_tokens("red"), "tokenizer"),
        (lambda m: m.to_single_token("red"), "tokenizer"),
    ],
)
def test_a_model_without_a_processor_says_how_to_give_it_one(call: Any, part: str) -> None:
    model = HookedVLM.from_hf(blip_vqa()[0])
    with pytest.raises(InputsError, match=rf"has no {part}: pass one, .*\.from_hf\(hf_model, processor\)"):
        call(model)


def test_a_tokenizer_is_no_processor() -> None:
    model = HookedVLM.from_hf(blip_vqa()[0], blip_processor().tokenizer)
    with pytest.raises(InputsError, match=r"is a BertTokenizer, which has no image_processor.*from_hf"):
        model.to_inputs(picture(), "is it red?")


def test_another_familys_processor_is_refused() -> None:
    model = HookedVLM.from_hf(llava()[0], blip_processor())
    with pytest.raises(InputsError, match=r"is a BlipProcessor, which has no image_token: .*HookedLLaVA\.from_hf"):
        model.to_inputs(picture(), "is it red?")


# --- pixels -----------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_processor_for_one_image_or_several(blip: HookedBLIP) -> None:
    images = [picture(0), picture(1, 20, 30)]
    expected = blip.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(blip.to_pixels(images), expected)
    assert torch.equal(blip.to_pixels(images[1]), expected[1:])
    assert torch.equal(blip.to_inputs(images, "is it red?").pixel_values, expected)


# --- prompts ----------------------------------------------------------------------------------------

UNSEEN = ["\u200b", " \u200b\u2060\ufeff ", "\u3164\u115f", "\u2800", "\u00ad\ufe0f", "\x00", "\x1b\x7f"]


@pytest.mark.parametrize("text", UNSEEN, ids=ascii)
@pytest.mark.parametrize("family", ["blip", "llava_bytes"])
def test_a_question_that_cannot_be_seen_is_empty(family: str, text: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(family)
    for call in (lambda: model.to_inputs(picture(), text), lambda: model.to_tokens(["red", text])):
        with pytest.raises(TextError, match=r"text [01] is empty .*can be seen"):
            call()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("is it\x00 red?", "text 0 has a NUL at character 5"),
        ("is it \ud800 red?", r"text 0 has half of a surrogate pair, '\\ud800', at character 6"),
    ],
)
def test_what_no_tokenizer_reads_is_refused_by_its_place(blip: HookedBLIP, text: str, message: str) -> None:
    for call in (lambda: blip.to_inputs(picture(), text), lambda: blip.to_tokens(text)):
        with pytest.raises(TextError, match=message):
            call()


CONTROLS = {
    "blip": ["[SEP]", "[CLS]", "[PAD]", "[MASK]", "[UNK]", "<image>"],
    "llava_bytes": ["</s>", "<s>", "<pad>", "<unk>"],
    "llava_words": ["</s>", "<s>", "<pad>", "<unk>"],
}


@pytest.mark.parametrize(("family", "token"), [(name, token) for name, tokens in CONTROLS.items() for token in tokens])
def test_a_control_token_in_a_prompt_is_refused_unless_it_is_allowed(
    family: str, token: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    for text in (f"is it {token} red?", f"is it{token}", token):
        with pytest.raises(TextError, match=rf"text 1 .* holds '{re.escape(token)}'.*allow_special_tokens=True"):
            model.to_inputs(picture(), ["is it red?", text])
        assert model.to_inputs(picture(), text, allow_special_tokens=True).input_ids.numel()
        assert model.to_tokens(text).numel()


def test_llavas_own_placeholder_and_words_that_nobody_knows_are_no_control_tokens(llava_words: HookedLLaVA) -> None:
    by_template = llava_words.to_inputs(picture(), "is it purple?")
    written = llava_words.to_inputs(picture(), "USER: <image>\nis it purple? ASSISTANT:")
    assert torch.equal(by_template.input_ids, written.input_ids)
    assert llava_words.processor.tokenizer.unk_token_id in written.input_ids


# --- prompts beyond the context ---------------------------------------------------------------------

TOKENIZERS = {"word pieces": wordpiece_tokenizer(), "words": word_tokenizer(), "byte pairs": byte_tokenizer()}
PIECES = st.sampled_from([*WORDS.split(), *"?!.,'", " ", "\n", "reddish", "é", "一", "\u0301", "<pad>", "</s>", "zzz"])


@EXAMPLES
@given(st.sampled_from(sorted(TOKENIZERS)), st.lists(PIECES, min_size=1, max_size=60), st.sampled_from(["", " "]))
def test_the_bound_is_never_above_the_number_of_tokens(name: str, pieces: list[str], between: str) -> None:
    tokenizer, text = TOKENIZERS[name], between.join(pieces)
    n_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert fewest_tokens(tokenizer, text, 10) <= n_tokens


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["is it red ? ", "red,blue;", "一 二 三 "], ids=ascii)
def test_of_a_long_text_the_bound_exceeds_the_context(name: str, text: str) -> None:
    assert fewest_tokens(TOKENIZERS[name], text * 100_000, 512) > 512


@pytest.mark.parametrize("family", ["blip", "llava_bytes", "llava_words"])
@pytest.mark.parametrize(
    "text", ["is it red? " * 400_000, "a" * 5_000_000, " " * 5_000_000 + "red", "is it red? " * 20_000]
)
def test_a_prompt_beyond_the_context_is_refused_before_it_is_tokenized(
    family: str, text: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(family)
    monkeypatch.setattr(type(model.processor.tokenizer), "_encode_plus", None)
    limit = model.stacks[model.prompt_stack].cfg.n_ctx
    with pytest.raises(TextError, match=rf"text 1 .* has {len(text):,} characters.* context is {limit}: shorten"):
        model.to_inputs(picture(), ["is it red?", text])


def test_a_long_prompt_that_fits_is_read(llava_words: HookedLLaVA) -> None:
    assert torch.equal(
        llava_words.to_inputs(picture(), "is it" + " " * 200_000 + "red?").input_ids,
        llava_words.to_inputs(picture(), "is it red?").input_ids,
    )
