"""`VLMInputs`: what it refuses, how it behaves as a batch, and that every position it names is the right one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BatchEncoding

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, VLMInputs
from hooked_vlm.errors import InputsError, PositionError
from hooked_vlm.models.layout import Layout
from tests.models.checkpoints import blip_captioner, blip_vqa, byte_tokenizer, llava, picture
from tests.models.unchecked import unchecked

PIXELS, IDS, MASK = torch.zeros(2, 3, 16, 16), torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
EXAMPLES = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def blip() -> HookedBLIP:
    return HookedBLIP.from_hf(*blip_vqa())


@pytest.fixture(scope="module")
def word_llava() -> HookedLLaVA:
    return HookedLLaVA.from_hf(*llava())


@pytest.fixture(scope="module")
def byte_llava() -> HookedLLaVA:
    return HookedLLaVA.from_hf(*llava(tokenizer=byte_tokenizer(), text_changes={"max_position_embeddings": 400}))


# --- what does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixel_values": PIXELS.numpy()}, ["pixel_values is a ndarray", "tensor", "to_inputs"]),
        ({"input_ids": [[1, 2]]}, ["input_ids is a list", "tensor"]),
        ({"input_ids": None}, ["input_ids is a NoneType"]),
        ({"attention_mask": [1]}, ["attention_mask is a list"]),
        ({"pixel_values": PIXELS[0]}, ["pixel_values has shape (3, 16, 16)", "4 axes"]),
        ({"input_ids": IDS[0]}, ["input_ids has shape (5,)", "2 axes"]),
        ({"input_ids": torch.tensor(3)}, ["input_ids has shape ()", "2 axes"]),
        ({"decoder_input_ids": IDS[0]}, ["decoder_input_ids has shape (5,)"]),
        ({"pixel_values": PIXELS[:1]}, ["pixel_values has 1 rows and input_ids 2"]),
        ({"decoder_input_ids": IDS[:1]}, ["decoder_input_ids has 1 rows and input_ids 2"]),
        ({"input_ids": IDS.float()}, ["input_ids has dtype torch.float32", "integer"]),
        ({"input_ids": IDS.bool()}, ["input_ids has dtype torch.bool", "integer"]),
        ({"decoder_input_ids": IDS.float()}, ["decoder_input_ids has dtype torch.float32"]),
        ({"pixel_values": PIXELS.byte()}, ["pixel_values has dtype torch.uint8", "to_inputs"]),
        ({"attention_mask": MASK[:, :4]}, ["attention_mask has shape (2, 4)", "(2, 5)"]),
        ({"input_ids": IDS[:, :0], "attention_mask": None}, ["input_ids has shape (2, 0)", "empty"]),
        ({"pixel_values": PIXELS[:0], "input_ids": IDS[:0]}, ["empty", "at least one row"]),
        ({"pixel_values": PIXELS.to("meta")}, ["pixel_values is on meta", "input_ids on cpu", "one device"]),
        ({"attention_mask": MASK.to("meta")}, ["attention_mask is on meta", "one device"]),
    ],
)
def test_parts_that_do_not_fit_are_named(changes: dict[str, Any], words: list[str]) -> None:
    with unchecked(), pytest.raises(InputsError) as caught:
        VLMInputs(**{"pixel_values": PIXELS, "input_ids": IDS, "attention_mask": MASK} | changes)
    assert all(word in str(caught.value) for word in words)


def test_a_row_of_padding_alone_is_named() -> None:
    inputs = VLMInputs(PIXELS, IDS, torch.tensor([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]))
    with pytest.raises(InputsError, match=r"no token in rows \[1\]; expected at least one 1 in each"):
        _ = inputs.position_ids


@pytest.mark.parametrize("given", [IDS, "a question?", None, [PIXELS, IDS], 3])
def test_what_is_neither_inputs_nor_a_mapping_is_refused(given: object) -> None:
    with pytest.raises(InputsError, match=rf"given a {type(given).__name__}; expected VLMInputs: .*model\.to_inputs"):
        VLMInputs.of(given)


def test_a_mapping_that_lacks_a_part_is_refused_by_its_name() -> None:
    with pytest.raises(InputsError, match=r"lack input_ids; model\.to_inputs"):
        VLMInputs.of({"attention_mask": MASK, "pixel_values": PIXELS})


def test_a_model_that_needs_an_image_says_that_there_is_none(blip: HookedBLIP, word_llava: HookedLLaVA) -> None:
    for model, asked, message in (
        (blip, "is it red ?", "BLIP reads an image with every text, and the inputs lack pixel_values"),
        (word_llava, "USER : <image> is it red ?", r"hold \[\d+\] image tokens, and the inputs lack pixel_values"),
    ):
        encoding = dict(model.processor(images=picture(), text=asked, return_tensors="pt"))
        with pytest.raises(InputsError, match=message):
            model(encoding | {"pixel_values": None})


def test_the_encoding_of_a_hugging_face_processor_runs_as_it_is(blip: HookedBLIP, word_llava: HookedLLaVA) -> None:
    for model, text in ((blip, "is it red ?"), (word_llava, "USER : <image> is it red ?")):
        encoding = model.processor(images=picture(), text=text, return_tensors="pt")
        assert isinstance(encoding, BatchEncoding) or hasattr(encoding, "keys")
        assert torch.equal(model(encoding), model(model.to_inputs(picture(), text)))


# --- as a batch -------------------------------------------------------------------------------------


def numbered(n: int = 3) -> VLMInputs:
    """A batch whose every part says which row it is."""
    rows = torch.arange(n)
    return VLMInputs(
        rows[:, None, None, None].expand(n, 3, 4, 4).float(),
        rows[:, None].expand(n, 5),
        torch.ones(n, 5),
        rows[:, None].expand(n, 2),
        Layout(image_token_id=77),
    )


def rows_of(inputs: VLMInputs) -> list[int]:
    """The rows in a batch made of `numbered`'s, the same in every part."""
    parts = (inputs.pixel_values[:, 0, 0, 0], inputs.input_ids[:, 0], inputs.decoder_input_ids[:, 0])
    first, *others = [part.long().tolist() for part in parts]
    assert all(other == first for other in others) and len(inputs.attention_mask) == len(inputs) == len(first)
    assert inputs.layout.image_token_id == 77
    return first


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([1, 1]), [1, 1]),
        (torch.tensor([True, False, True]), [0, 2]),
    ],
)
def test_indexing_takes_the_same_rows_of_every_part(rows: Any, expected: list[int]) -> None:
    with unchecked():  # the annotation knows no NumPy integers
        assert rows_of(numbered()[rows]) == expected


@pytest.mark.parametrize("row", [3, -4])
def test_a_row_beyond_the_batch_is_an_index_error(row: int) -> None:
    with pytest.raises(IndexError, match=rf"rows of this batch are 0 to 2; \[{row}\] was asked for"):
        numbered()[row]


def test_a_slice_of_no_rows_is_refused() -> None:
    with pytest.raises(InputsError, match="none was asked for"):
        numbered()[3:]


def test_iterating_gives_each_row_as_a_batch_of_one() -> None:
    assert [rows_of(row) for row in numbered()] == [[0], [1], [2]]


def test_repeating_puts_copies_next_to_one_another() -> None:
    assert rows_of(numbered(2).repeat(3)) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputsError, match="is 0, an int; expected a whole number of at least 1"):
        numbered().repeat(0)


def test_repeated_inputs_give_repeated_logits(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs([picture(0), picture(1)], ["is it red?", "what color is the circle?"])
    torch.testing.assert_close(blip(inputs.repeat(2)), blip(inputs).repeat_interleave(2, 0))


def test_moving_takes_every_part_and_only_pixels_change_their_dtype() -> None:
    moved = numbered().to("meta", torch.float16)
    parts = (moved.pixel_values, moved.input_ids, moved.attention_mask, moved.decoder_input_ids)
    assert {part.device.type for part in parts} == {"meta"}
    assert (moved.pixel_values.dtype, moved.input_ids.dtype) == (torch.float16, torch.int64)
    assert numbered().to(dtype=torch.bfloat16).pixel_values.device.type == "cpu"


def test_pixels_cannot_be_made_integers() -> None:
    with unchecked(), pytest.raises(InputsError, match=r"dtype is torch\.int64; expected a floating-point one"):
        numbered().to(dtype=torch.int64)


def test_replacing_a_part_leaves_the_inputs_as_they_were() -> None:
    inputs = numbered()
    changed = inputs.replace(decoder_input_ids=None)
    assert changed.decoder_input_ids is None and inputs.decoder_input_ids is not None
    with pytest.raises(InputsError, match="attention_mask has shape"):
        inputs.replace(attention_mask=torch.ones(3, 9))


def test_the_repr_says_how_much_there_is() -> None:
    assert repr(numbered()) == "VLMInputs(3 x [3 4 4] pixels, 5 tokens, 2 answer tokens)"
    assert repr(numbered().replace(decoder_input_ids=None)) == "VLMInputs(3 x [3 4 4] pixels, 5 tokens)"


# --- padding, last, image ---------------------------------------------------------------------------

PADDED = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def test_positions_count_real_tokens_alone() -> None:
    right, left = VLMInputs(PIXELS, IDS, PADDED), VLMInputs(PIXELS, IDS, PADDED.flip(1))
    assert right.position_ids[0, :3].tolist() == [0, 1, 2]
    assert left.position_ids[0].tolist() == [0, 0, 0, 1, 2]
    assert left.position_ids[1].tolist() == VLMInputs(PIXELS, IDS).position_ids[1].tolist() == [0, 1, 2, 3, 4]


def test_padding_is_told_from_tokens() -> None:
    assert VLMInputs(PIXELS, IDS).real is None and VLMInputs(PIXELS, IDS, MASK).real is None
    assert torch.equal(VLMInputs(PIXELS, IDS, PADDED).real, PADDED.bool())


def test_last_is_the_last_real_token_of_each_row() -> None:
    assert VLMInputs(PIXELS, IDS, PADDED).last_each.tolist() == [2, 4]
    assert VLMInputs(PIXELS, IDS, PADDED.flip(1)).last_each.tolist() == [4, 4]
    assert VLMInputs(PIXELS, IDS, PADDED.flip(1)).last == VLMInputs(PIXELS, IDS).last == 4


def test_last_is_refused_where_rows_end_at_different_places() -> None:
    with pytest.raises(PositionError, match=r"last differs from row to row .*use last_each"):
        _ = VLMInputs(PIXELS, IDS, PADDED).last


def test_the_image_span_of_llava_is_where_its_image_tokens_stand(word_llava: HookedLLaVA) -> None:
    inputs = word_llava.to_inputs(picture(), ["is it red ?", "what color is the circle ?"])
    spans = inputs.image_spans
    for row, span in zip(inputs.str_tokens, spans, strict=True):
        assert row[span] == ["<image>"] * 4 and "<image>" not in row[: span.start] + row[span.stop :]
    assert inputs[0].image_span == spans[0]
    with pytest.raises(PositionError, match=r"image spans differ from row to row .*use image_spans"):
        _ = inputs.image_span


def test_the_image_span_of_blip_is_the_patches_among_the_keys_of_cross_attention(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs([picture(0), picture(1)], "is it red?")
    _, cache = blip.run_with_cache(inputs)
    n_keys = cache["text_encoder.blocks.0.cross_attn.hook_pattern"].shape[-1]
    assert inputs.image_span == slice(1, n_keys) and len(inputs.image_spans) == 2


def test_the_image_span_of_blip_grows_with_an_image_of_another_size(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs(picture(), "is it red?").replace(pixel_values=torch.zeros(1, 3, 24, 32))
    name = "text_encoder.blocks.0.cross_attn.hook_pattern"
    _, cache = blip.run_with_cache(inputs, names_filter=name, interpolate_pos_encoding=True)
    assert inputs.image_span == slice(1, cache[name].shape[-1]) == slice(1, 13)


def test_inputs_built_by_hand_name_positions_once_they_have_the_models_layout(blip: HookedBLIP) -> None:
    made = blip.to_inputs(picture(), "is it red?")
    built = VLMInputs(made.pixel_values, made.input_ids).replace(layout=blip.layout)
    assert (built.image_span, built.find("red"), built.str_tokens) == (made.image_span, [3], made.str_tokens)


def test_inputs_built_by_hand_know_no_positions_and_say_so() -> None:
    inputs = VLMInputs(PIXELS, IDS)
    with pytest.raises(PositionError, match=r"built by hand .*to_inputs, or inputs\.replace\(layout="):
        _ = inputs.image_span
    for ask in (lambda: inputs.str_tokens, lambda: inputs.find("red")):
        with pytest.raises(PositionError, match=r"know no tokenizer: make them with model.to_inputs"):
            ask()


def test_a_row_without_its_image_is_named() -> None:
    ids = torch.tensor([[77, 1, 2], [1, 2, 3]])
    with pytest.raises(PositionError, match="row 1 has no image token 77"):
        _ = VLMInputs(PIXELS, ids, layout=Layout(image_token_id=77)).image_spans


def test_image_tokens_with_text_between_them_are_no_span() -> None:
    inputs = VLMInputs(PIXELS, torch.tensor([[77, 77, 2, 3], [77, 1, 2, 77]]), layout=Layout(image_token_id=77))
    with pytest.raises(PositionError, match="row 1 has image tokens from 0 to 3 and others between them"):
        _ = inputs.image_spans
    assert inputs[0].image_span == slice(0, 2)


# --- find -------------------------------------------------------------------------------------------


def spelled_by(inputs: VLMInputs, text: str, occurrence: int | None = None) -> list[str]:
    return [inputs.str_tokens[p] for p in inputs.find(text, occurrence)]


def test_a_word_of_several_pieces_is_found_whole(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs(picture(), "is the reddish circle red?")
    assert spelled_by(inputs, "reddish") == ["red", "##d", "##ish"]
    assert spelled_by(inputs, "red") == ["red"] and inputs.find("red")[0] > inputs.find("circle")[0]


def test_several_words_and_their_punctuation_are_found(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs(picture(), "what's left of the cat's tail?")
    assert spelled_by(inputs, "left of") == ["left", "of"]
    assert spelled_by(inputs, "what's") == ["what", "'", "##s"] or spelled_by(inputs, "what's") == ["what", "'", "s"]
    assert spelled_by(inputs, "tail?")[-1] == "?"
    with pytest.raises(PositionError, match="'leftof' is not in row 0"):
        inputs.find("leftof")


def test_special_tokens_are_found_whole_and_never_in_part(blip: HookedBLIP, byte_llava: HookedLLaVA) -> None:
    assert blip.to_inputs(picture(), "is it red?").find("[SEP]") == [5]
    with pytest.raises(PositionError, match="'SEP' is not in row 0"):
        blip.to_inputs(picture(), "is it red?").find("SEP")
    inputs = byte_llava.to_inputs(picture(), "<s><image> is it an s?", allow_special_tokens=True)
    assert len(inputs.find("s")) == 1 and inputs.find("s")[0] > inputs.image_span.stop


def test_case_matters_only_where_it_decides(byte_llava: HookedLLaVA) -> None:
    inputs = byte_llava.to_inputs(picture(), "is Red left of red or of GREEN?")
    assert inputs.find("Red") != inputs.find("red")
    assert len(inputs.find("Green")) == len(inputs.find("green")) >= 1


def test_a_word_that_is_there_more_often_needs_an_occurrence(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs(picture(), "is red to the left of red or not red?")
    found = [inputs.find("red", i) for i in range(3)]
    assert found == sorted(found) and len({tuple(p) for p in found}) == 3 and inputs.find("red", -1) == found[-1]
    with pytest.raises(PositionError, match=r"'red' is 3 times in row 0 \(.*not red.*name one: occurrence=0"):
        inputs.find("red")
    for missing in (3, -4):
        with pytest.raises(PositionError, match=f"'red' is 3 times in row 0; there is no occurrence {missing}"):
            inputs.find("red", missing)


@pytest.mark.parametrize("text", ["purple", "", "  "])
def test_a_word_that_is_not_there_is_refused_with_what_is(blip: HookedBLIP, text: str) -> None:
    with pytest.raises(PositionError, match=rf"'{text}' is not in row 0, whose tokens spell '.*is it red"):
        blip.to_inputs(picture(), "is it red?").find(text)


def test_find_each_follows_padding_on_the_right_and_on_the_left(blip: HookedBLIP, word_llava: HookedLLaVA) -> None:
    for model in (blip, word_llava):
        inputs = model.to_inputs(picture(), ["what color is the red circle ?", "is it red ?"])
        each = inputs.find_each("red")
        assert [inputs.str_tokens[i][p] for i, (p,) in enumerate(each.tolist())] == ["red", "red"]
        assert each[0] != each[1]
        with pytest.raises(PositionError, match=r"find\('red'\) differs from row to row .*find_each\('red'\)"):
            inputs.find("red")


def test_find_each_names_the_row_that_lacks_the_word_and_the_lengths_that_differ(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs(picture(), ["is it red?", "is it blue?"])
    with pytest.raises(PositionError, match=r"'red' is not in row 1, whose tokens spell .*blue"):
        inputs.find_each("red")
    model = HookedVLM.from_hf(*llava(tokenizer=byte_tokenizer()))
    byte_rows = model.to_inputs(picture(), ["<image> the Red", "<image> the red"])
    with pytest.raises(PositionError, match=r"'RED' takes \[\d, \d\] tokens in the rows"):
        byte_rows.find_each("RED")


def test_padding_and_image_tokens_spell_nothing(word_llava: HookedLLaVA) -> None:
    inputs = word_llava.to_inputs(picture(), ["is it red ?", "what color is the red circle ?"])
    for text in ("pad", "<pad>", "image", "<image>"):
        with pytest.raises(PositionError, match="is not in row 0"):
            inputs.find_each(text)


def test_captions_are_searched_too() -> None:
    model = HookedVLM.from_hf(*blip_captioner())
    inputs = model.to_inputs(picture(), "a picture of the red circle")
    assert spelled_by(inputs, "red circle") == ["red", "circle"]


LATIN = st.text("abcdefghijklmnop", min_size=1, max_size=7)
ANY_LETTER = st.text(st.sampled_from("abcXYZ" + "éüñßøЖжλΩ中語あアกक한" + "𝔘𐐀"), min_size=1, max_size=5)


def check_find(model: HookedVLM, words: list[str], which: int, image: str) -> None:
    """`find` gives the tokens that spell the word: as many as it takes, and they decode to it and no more."""
    word = words[which % len(words)]
    assume(sum(w.lower() == word.lower() for w in words) == 1)
    inputs = model.to_inputs(picture(), image + " ".join(words))
    found = inputs.find(word)
    tokenizer = model.processor.tokenizer
    assert found == list(range(found[0], found[-1] + 1))
    assert tokenizer.decode(inputs.input_ids[0, found]).strip().replace(" ", "") == word
    shorter = [part for part in (found[1:], found[:-1]) if part]
    assert all(tokenizer.decode(inputs.input_ids[0, part]).strip().replace(" ", "") != word for part in shorter)


@EXAMPLES
@given(st.lists(LATIN, min_size=1, max_size=4), st.integers(0, 3))
def test_find_gives_exactly_the_word_pieces_that_spell_a_word(blip: HookedBLIP, words: list[str], which: int) -> None:
    check_find(blip, words, which, "")


@EXAMPLES
@given(st.lists(st.one_of(LATIN, ANY_LETTER), min_size=1, max_size=4), st.integers(0, 3))
def test_find_gives_exactly_the_byte_pairs_that_spell_a_word(
    byte_llava: HookedLLaVA, words: list[str], which: int
) -> None:
    check_find(byte_llava, words, which, "<image> ")


@EXAMPLES
@given(st.lists(LATIN, min_size=2, max_size=3), st.lists(LATIN, min_size=0, max_size=4))
def test_find_each_equals_find_in_each_row_alone(byte_llava: HookedLLaVA, words: list[str], others: list[str]) -> None:
    assume("needle" not in {w.lower() for w in words + others})
    texts = [f"<image> {' '.join(words)} needle", f"<image> {' '.join(others)} needle ?"]
    together = byte_llava.to_inputs(picture(), texts)
    for i, text in enumerate(texts):
        alone = byte_llava.to_inputs(picture(), text)
        shift = together.input_ids.shape[1] - alone.input_ids.shape[1]
        assert together.find_each("needle")[i].tolist() == [p + shift for p in alone.find("needle")]
