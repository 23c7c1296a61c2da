"""The organisms before training: Hugging Face's classes, one token a word, the processors' own pixels."""

import pathlib
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, BlipForQuestionAnswering, LlavaForConditionalGeneration

from hooked_vlm.datasets import shapes
from hooked_vlm.datasets.scenes import render
from hooked_vlm.zoo.recipes import RECIPES, Recipe, to_pixels

both = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
QUESTION = "is the circle red or blue?"


def processed(recipe: Recipe, pairs: list[shapes.Pair]) -> Any:
    processor = recipe.processor()
    pictures = [pair.to_row()["image"] for pair in pairs]
    prompts = [pair.prompt for pair in pairs]
    if recipe.name == "llava-shapes":
        talks = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in prompts]
        prompts = [processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]
    return processor(images=pictures, text=prompts, padding=True, return_tensors="pt")


def mixed(n: int) -> list[shapes.Pair]:
    return [shapes.pair(shapes.TASKS[number % 3], number) for number in range(n)]


@both
def test_every_word_of_the_world_is_one_token(recipe: Recipe) -> None:
    for pair in mixed(300):
        words = [pair.answer, *pair.prompt.rstrip("?").split()]
        ids = recipe.tokenizer.convert_tokens_to_ids(words)
        assert recipe.tokenizer.unk_token_id not in ids
        plain = recipe.tokenizer(pair.prompt, add_special_tokens=False).input_ids
        assert plain == recipe.tokenizer.convert_tokens_to_ids([*words[1:], "?"])


@both
def test_pixels_are_the_processors(recipe: Recipe) -> None:
    pairs = mixed(6)
    expected = processed(recipe, pairs).pixel_values
    torch.testing.assert_close(to_pixels([render(pair.scene) for pair in pairs]), expected, rtol=0, atol=1e-6)


@both
def test_answer_logits_are_hugging_faces_on_what_the_processor_gives(recipe: Recipe) -> None:
    model: Any = recipe.build(0).eval()
    pairs = mixed(6)
    inputs = processed(recipe, pairs)
    with torch.inference_mode():
        ours = recipe.answer_logits(model, inputs.pixel_values, [pair.prompt for pair in pairs])
        if isinstance(model, LlavaForConditionalGeneration):
            theirs = model(**inputs).logits[:, -1]
        else:
            image = model.vision_model(pixel_values=inputs.pixel_values).last_hidden_state
            mask = inputs.attention_mask
            asked = model.text_encoder(
                input_ids=inputs.input_ids, attention_mask=mask, encoder_hidden_states=image
            ).last_hidden_state
            start = torch.full((len(pairs), 1), model.config.text_config.bos_token_id)
            theirs = model.text_decoder(
                input_ids=start, encoder_hidden_states=asked, encoder_attention_mask=mask
            ).logits[:, -1]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_chat_template_asks_as_llava_is_asked() -> None:
    recipe = RECIPES["llava-shapes"]
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = recipe.processor().apply_chat_template(talk, add_generation_prompt=True)
    assert text == f"USER: <image>\n{QUESTION} ASSISTANT:"
    tokens = recipe.tokenizer.convert_ids_to_tokens(recipe.tokenizer(text).input_ids)
    assert tokens[:5] == ["<s>", "USER", ":", "<image>", "\n"]
    assert tokens[-2:] == ["ASSISTANT", ":"]


@both
def test_every_stack_that_notice_patches_has_three_layers_of_four_heads(recipe: Recipe) -> None:
    config: Any = recipe.build(0).config
    assert config.text_config.num_hidden_layers >= 3
    assert config.text_config.num_attention_heads >= 4
    assert config.vision_config.num_hidden_layers >= 3
    assert config.vision_config.num_attention_heads >= 4


@both
def test_the_seed_names_the_first_weights(recipe: Recipe) -> None:
    one, same, other = (recipe.build(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@both
def test_what_is_saved_loads_again_under_its_own_class(recipe: Recipe, tmp_path: pathlib.Path) -> None:
    model: Any = recipe.build(0).eval()
    model.save_pretrained(tmp_path)
    recipe.processor().save_pretrained(tmp_path)
    family: Any = {"blip-shapes": BlipForQuestionAnswering, "llava-shapes": LlavaForConditionalGeneration}[recipe.name]
    again = family.from_pretrained(tmp_path).eval()
    saved, read = model.state_dict(), again.state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
    processor: Any = AutoProcessor.from_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    assert type(processor) is type(recipe.processor())
    assert processor.tokenizer(QUESTION).input_ids == recipe.tokenizer(QUESTION).input_ids
    assert (tmp_path / "model.safetensors").stat().st_size < 8_000_000
