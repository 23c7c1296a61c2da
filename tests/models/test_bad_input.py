"""Bad images, texts and tensors, as a user meets them: the error names the culprit and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, VLMInputs
from hooked_vlm.errors import HookedVLMError, ImageError, InputsError, TextError
from tests.models.checkpoints import blip_captioner, blip_retrieval, blip_vqa, byte_tokenizer, llava, picture
from tests.models.unchecked import unchecked

MAKERS = {"vqa": blip_vqa, "captioner": blip_captioner, "retrieval": blip_retrieval, "llava": llava}
QUESTION = "is it red ?"


@pytest.fixture(scope="module")
def models() -> dict[str, HookedVLM]:
    return {name: HookedVLM.from_hf(*make()) for name, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest, models: dict[str, HookedVLM]) -> HookedVLM:
    return models[request.param]


@pytest.fixture
def blip(models: dict[str, HookedVLM]) -> HookedBLIP:
    return models["vqa"]


@pytest.fixture
def llava_words(models: dict[str, HookedVLM]) -> HookedLLaVA:
    return models["llava"]


# --- images -----------------------------------------------------------------------------------------


def missing(directory: Path) -> Path:
    return directory / "absent.png"


def no_image(directory: Path) -> Path:
    (directory / "notes.png").write_text("no pixels here")
    return directory / "notes.png"


def truncated(directory: Path) -> Path:
    picture(0, 64, 64).save(directory / "half.jpg")
    content = (directory / "half.jpg").read_bytes()
    (directory / "half.jpg").write_bytes(content[: len(content) // 2])
    return directory / "half.jpg"


def bomb(directory: Path) -> Path:
    picture(0, 64, 64).save(directory / "bomb.png")
    return directory / "bomb.png"


BAD_FILES = {missing: "check the path", no_image: "convert it", truncated: "get the file again", bomb: "Resize it"}


@pytest.mark.parametrize("make", BAD_FILES, ids=lambda make: make.__name__)
def test_a_bad_file_is_named_with_the_way_out(
    model: HookedVLM, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path)
    if make is bomb:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for call in (lambda: model.to_inputs([picture(), path], QUESTION), lambda: model.to_pixels(str(path))):
        with pytest.raises(ImageError, match=rf"{path.name}.*{BAD_FILES[make]}"):
            call()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK", "I;16"])
def test_a_file_of_any_mode_gives_the_logits_of_its_rgb(model: HookedVLM, mode: str, tmp_path: Path) -> None:
    image = picture(5)
    if mode == "I;16":
        grey = np.asarray(image.convert("L"))
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        rgb = Image.fromarray(grey).convert("RGB")
    else:
        image = image.convert(mode)
        rgb = image.convert("RGB")
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    image.save(path)
    assert torch.equal(model(model.to_inputs(path, QUESTION)), model(model.to_inputs(rgb, QUESTION)))


def test_every_way_to_hold_an_image_gives_the_same_inputs(model: HookedVLM, tmp_path: Path) -> None:
    image = picture(6, 20, 24)
    image.save(tmp_path / "same.png")
    array = np.asarray(image)
    held = [tmp_path / "same.png", str(tmp_path / "same.png"), array, array / 255, torch.tensor(array).permute(2, 0, 1)]
    expected = model.to_inputs(image, QUESTION).pixel_values
    assert torch.equal(model.to_inputs(held, QUESTION).pixel_values, expected.expand(len(held), -1, -1, -1))


@pytest.mark.parametrize("images", [[], [None], 3, np.zeros((4, 4), np.int64), [picture(), "absent.png"]])
def test_what_is_no_image_is_refused(model: HookedVLM, images: Any) -> None:
    with pytest.raises(ImageError, match=r"expected|check the path"):
        model.to_inputs(images, QUESTION)


# --- texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  ", "\n\t "])
def test_an_empty_text_is_named_by_its_row(model: HookedVLM, text: str) -> None:
    for texts, row in ((text, 0), ([QUESTION, text], 1)):
        with pytest.raises(TextError, match=rf"text {row} is empty .*expected at least one word"):
            model.to_inputs(picture(), texts)


def test_an_empty_list_of_texts_is_refused(model: HookedVLM) -> None:
    with pytest.raises(TextError, match="list of texts is empty; expected at least one"):
        model.to_inputs(picture(), [])


@pytest.mark.parametrize("texts", [3, [QUESTION, None], {"text": QUESTION}])
def test_what_is_no_string_is_refused_by_its_type(model: HookedVLM, texts: Any) -> None:
    with unchecked(), pytest.raises(TextError, match=r"is a (int|NoneType|dict); expected a string"):
        model.to_inputs(picture(), texts)


def test_only_a_captioner_does_without_a_text(models: dict[str, HookedVLM]) -> None:
    for name, model in models.items():
        if name == "captioner":
            assert model.to_inputs(picture()).input_ids.shape == (1, 1)
        else:
            with pytest.raises(TextError, match=r"reads a text with every image: to_inputs\(images, texts\)"):
                model.to_inputs(picture())


def test_a_text_beyond_the_context_says_by_how_much(model: HookedVLM) -> None:
    n_context = model.stacks[model.prompt_stack].cfg.n_ctx
    around = model.to_inputs(picture(), "red").input_ids.shape[1] - 1
    fits = " ".join(["red"] * (n_context - around))
    assert model(model.to_inputs(picture(), fits)).isfinite().all()
    too_long = pytest.raises(
        TextError, match=rf"text 1 \('.*takes {n_context + 1} tokens and the context is {n_context}: shorten it by 1"
    )
    with too_long:
        model.to_inputs(picture(), [QUESTION, f"{fits} red"])


# --- image placeholders -----------------------------------------------------------------------------


def test_a_text_with_its_placeholder_is_taken_as_it_stands(llava_words: HookedLLaVA) -> None:
    inputs = llava_words.to_inputs(picture(), "red <image> blue")
    assert inputs.str_tokens == ["red", *["<image>"] * 4, "blue"]


def test_a_text_without_a_placeholder_goes_through_the_chat_template(llava_words: HookedLLaVA) -> None:
    tokens = llava_words.to_inputs(picture(), QUESTION).str_tokens
    assert tokens == ["USER", ":", *["<image>"] * 4, "is", "it", "red", "?", "ASSISTANT", ":"]


def test_two_placeholders_are_refused_with_their_count(llava_words: HookedLLaVA) -> None:
    with pytest.raises(TextError, match="text 1 has 2 '<image>' placeholders; expected one"):
        llava_words.to_inputs(picture(), [QUESTION, "<image> or <image> ?"])


def test_no_placeholder_and_no_chat_template_is_refused_with_an_example() -> None:
    model = HookedVLM.from_hf(*llava(chat_template=None))
    assert len(model.to_inputs(picture(), "<image> red ?")) == 1
    with pytest.raises(TextError, match=r"text 0 has no '<image>' and .*no chat template.*'USER: <image>"):
        model.to_inputs(picture(), QUESTION)


def test_a_processor_that_leaves_the_patches_to_the_model_is_completed() -> None:
    hf, processor = llava()
    expected = HookedVLM.from_hf(hf, llava()[1]).to_inputs(picture(), QUESTION)
    processor.patch_size = processor.vision_feature_select_strategy = None
    processor.num_additional_image_tokens = 0
    assert torch.equal(HookedVLM.from_hf(hf, processor).to_inputs(picture(), QUESTION).input_ids, expected.input_ids)


# --- counts -----------------------------------------------------------------------------------------


def test_one_image_is_asked_every_text_and_one_text_of_every_image(model: HookedVLM) -> None:
    images, texts = [picture(0), picture(1)], [QUESTION, "what color ?"]
    pairs = model.to_inputs(images, texts)
    one_image, one_text = model.to_inputs(images[0], texts), model.to_inputs(images, texts[0])
    assert torch.equal(one_image.input_ids, pairs.input_ids)
    assert torch.equal(one_image.pixel_values, pairs.pixel_values[:1].expand(2, -1, -1, -1))
    assert torch.equal(one_text.pixel_values, pairs.pixel_values)
    assert torch.equal(one_text.input_ids[0], one_text.input_ids[1])


@pytest.mark.parametrize(("n_images", "n_texts"), [(2, 3), (3, 2)])
def test_other_counts_of_images_and_texts_are_refused(model: HookedVLM, n_images: int, n_texts: int) -> None:
    with pytest.raises(InputsError, match=f"{n_images} images and {n_texts} texts: give as many of each, or one"):
        model.to_inputs([picture(i) for i in range(n_images)], [QUESTION] * n_texts)


# --- what a run refuses -----------------------------------------------------------------------------


@pytest.fixture
def inputs(model: HookedVLM) -> VLMInputs:
    return model.to_inputs([picture(0), picture(1)], QUESTION)


@pytest.mark.parametrize("beyond", [-1, 10_000])
def test_ids_outside_the_vocabulary_are_refused(model: HookedVLM, inputs: VLMInputs, beyond: int) -> None:
    ids = inputs.input_ids.clone()
    ids[1, -1] = beyond
    with pytest.raises(InputsError, match=rf"input_ids has ids from .*{beyond}.*; the vocabulary is 0 to \d+"):
        model(inputs.replace(input_ids=ids))


def test_answer_ids_outside_the_vocabulary_are_refused(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs(picture(), QUESTION).replace(decoder_input_ids=torch.tensor([[1, 10_000]]))
    with pytest.raises(InputsError, match="decoder_input_ids has ids from 1 to 10000; the vocabulary is 0 to"):
        blip(inputs)


def test_an_image_of_another_size_is_refused(model: HookedVLM, inputs: VLMInputs) -> None:
    if model.prompt_stack == "language_model":  # as many patches as the prompt has places for
        inputs = inputs.replace(pixel_values=torch.zeros(2, 3, 8, 32))
        size = "8 x 32"
    else:
        inputs = inputs.replace(pixel_values=torch.zeros(2, 3, 24, 24))
        size = "24 x 24"
    with pytest.raises(InputsError, match=rf"{size} and vision_encoder was trained on 16 x 16: .*interpolate_pos_enc"):
        model(inputs)


def test_more_tokens_than_the_context_are_refused(model: HookedVLM, inputs: VLMInputs) -> None:
    n_context = model.stacks[model.prompt_stack].cfg.n_ctx
    last = inputs.input_ids[:, -1:].expand(-1, n_context)
    ids = torch.cat([inputs.input_ids, last], 1)
    with pytest.raises(InputsError, match=f"input_ids has {ids.shape[1]} positions and the context is {n_context}"):
        model(inputs.replace(input_ids=ids, attention_mask=None))


def test_a_longer_answer_than_the_context_is_refused(blip: HookedBLIP) -> None:
    inputs = blip.to_inputs(picture(), QUESTION).replace(decoder_input_ids=torch.ones(1, 41, dtype=torch.long))
    with pytest.raises(InputsError, match="decoder_input_ids has 41 positions and the context is 40"):
        blip(inputs)


def test_llava_has_no_answer_decoder(llava_words: HookedLLaVA) -> None:
    inputs = llava_words.to_inputs(picture(), QUESTION).replace(decoder_input_ids=torch.ones(1, 1, dtype=torch.long))
    with pytest.raises(InputsError, match=r"no answer decoder: .*at the end of input_ids"):
        llava_words(inputs)


def test_a_prompt_with_too_few_image_tokens_is_refused(llava_words: HookedLLaVA) -> None:
    inputs = llava_words.to_inputs(picture(), QUESTION)
    ids = inputs.input_ids[:, [0, 1, 2, 3, 4, 6, 7]]
    with pytest.raises(InputsError, match=r"\[3\] image tokens \(id 4\) and each image gives 4 features.*to_inputs"):
        llava_words(inputs.replace(input_ids=ids, attention_mask=None))


def test_inputs_on_another_device_are_refused_with_the_way_there(model: HookedVLM, inputs: VLMInputs) -> None:
    with pytest.raises(InputsError, match=r"inputs are on meta and the model on cpu: inputs\.to\(model\.device\)"):
        model(inputs.to("meta"))


@pytest.mark.parametrize("given", ["is it red?", [1, 2], None, picture()])
def test_raw_images_and_texts_are_sent_to_to_inputs(model: HookedVLM, given: Any) -> None:
    with (
        unchecked(),
        pytest.raises(InputsError, match=rf"given a {type(given).__name__}; expected VLMInputs.*to_inputs"),
    ):
        model(given)


def test_an_unknown_return_type_is_refused(model: HookedVLM, inputs: VLMInputs) -> None:
    with pytest.raises(InputsError, match="return_type is 'probabilities'; expected 'logits'"):
        model(inputs, return_type="probabilities")


def test_a_loss_without_a_next_token_says_what_to_give(blip: HookedBLIP) -> None:
    with pytest.raises(InputsError, match=r"no next token to score.*give decoder_input_ids"):
        blip(blip.to_inputs(picture(), QUESTION), return_type="loss")


def test_a_retrieval_model_has_no_loss(models: dict[str, HookedVLM]) -> None:
    model = models["retrieval"]
    with pytest.raises(InputsError, match="predicts no tokens, so it has no loss; take the logits"):
        model(model.to_inputs(picture(), QUESTION), return_type="loss")


def test_every_error_of_ours_is_also_the_builtin_that_fits() -> None:
    for error in (ImageError, TextError, InputsError):
        assert issubclass(error, HookedVLMError) and issubclass(error, ValueError)


def test_a_question_beyond_ascii_is_no_bad_input() -> None:
    model = HookedVLM.from_hf(*llava(tokenizer=byte_tokenizer()))
    inputs = model.to_inputs(picture(), "ist es 緑 oder rot? 🟥")
    assert model(inputs).isfinite().all() and len(inputs.find("緑")) == 3
