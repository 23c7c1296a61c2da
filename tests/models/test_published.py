"""Checkpoints as they are published: other towers, templates that write BOS, processors that know less than the model.

Each is saved in the hub's layout and loaded from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import (
    CONFIG_MAPPING,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from hooked_vlm import HookedLLaVA, HookedVLM
from hooked_vlm.errors import InputsError, TextError, UnsupportedArchitectureError
from hooked_vlm.models import loading, skeleton
from tests.models.checkpoints import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    llava,
    llava_config,
    picture,
    randomised,
    save,
    word_tokenizer,
)
from tests.models.reference import hf_logits, scale

TEXT = "is it red ?"
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def published(directory: Path, hf: Any, processor: LlavaProcessor, **of_processor: Any) -> HookedLLaVA:
    """A LLaVA in the layout of the hub's older checkpoints, loaded.

    Its picture settings and its template have files of their own, and `processor_config.json` says what it is given.
    """
    save(directory, hf, processor)
    pictures = json.loads((directory / "processor_config.json").read_text())["image_processor"]
    (directory / "preprocessor_config.json").write_text(json.dumps(pictures))
    said = {"processor_class": "LlavaProcessor", "image_token": "<image>"} | of_processor
    (directory / "processor_config.json").write_text(json.dumps(said))
    if processor.chat_template is not None:
        (directory / "chat_template.jinja").unlink()
        (directory / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    return HookedLLaVA.from_pretrained(str(directory))


# --- other towers -------------------------------------------------------------------------------------------

OTHER_TEXT = ["qwen3", "granite", "helium", "smollm3", "phi3", "gemma2", "olmo2", "mixtral"]
OTHER_VISION = ["pixtral", "siglip2_vision_model", "dinov2"]


def with_towers(text: str | None = None, vision: str | None = None) -> LlavaForConditionalGeneration:
    parts = llava_config()
    if text is not None:
        ids = {"vocab_size": len(word_tokenizer()), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        heads = {"num_key_value_heads": 1} | ({} if text == "phi3" else {"head_dim": 8})
        parts.text_config = CONFIG_MAPPING[text](**SHAPE, **ids, **heads)
    if vision is not None:
        parts.vision_config = CONFIG_MAPPING[vision](**SHAPE, image_size=16, patch_size=8)
    config = LlavaConfig(
        vision_config=parts.vision_config, text_config=parts.text_config, image_token_index=parts.image_token_id
    )
    return randomised(LlavaForConditionalGeneration(config))


@pytest.mark.parametrize("tower", [*OTHER_TEXT, *OTHER_VISION])
def test_another_tower_is_refused_by_its_model_type_before_its_weights_are_read(
    tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: Any, **__: Any) -> Any:
        raise AssertionError("the weights were reached")

    part, known = ("text", "llama, mistral or qwen2") if tower in OTHER_TEXT else ("vision", "clip_vision_model or sig")
    message = rf"LlavaForConditionalGeneration whose {part}_config has the model_type '{tower}': expected {known}"
    hf = with_towers(**{part: tower})
    with pytest.raises(UnsupportedArchitectureError, match=message):
        HookedVLM.from_hf(hf)
    directory = save(tmp_path, hf, llava()[1])
    monkeypatch.setattr(loading, "load_model", reached)
    for read in (HookedVLM.from_pretrained, HookedLLaVA.from_pretrained, skeleton.skeleton):
        with pytest.raises(UnsupportedArchitectureError, match=message):
            read(directory)


# --- how many image tokens ----------------------------------------------------------------------------------

SAID = {
    "patch_size": st.sampled_from([None, 4, 8, 14]),
    "vision_feature_select_strategy": st.sampled_from([None, "default", "full"]),
    "num_additional_image_tokens": st.sampled_from([0, 1, 3]),
}


@given(
    st.sampled_from(["clip", "siglip"]),
    st.sampled_from(["default", "full"]),
    st.fixed_dictionaries({}, optional=SAID),
    st.integers(1, 3),
)
@settings(max_examples=15)
def test_image_tokens_are_as_many_as_the_models_features_whatever_the_processor_says(
    tmp_path_factory: pytest.TempPathFactory, vision: str, strategy: str, said: dict[str, Any], side: int
) -> None:
    hf, processor = llava(
        vision=vision, vision_changes={"image_size": 8 * (side + 1)}, vision_feature_select_strategy=strategy
    )
    model = published(tmp_path_factory.mktemp("published"), hf, processor, **said)
    for name, value in said.items():  # also where it is the user who holds such a processor
        setattr(model.processor, name, value)
    inputs = model.to_inputs(picture(), TEXT)
    features = (side + 1) ** 2 + (vision == "clip") - (strategy == "default")
    assert int(inputs.is_image.sum()) == features
    theirs = hf_logits(hf, "llava", inputs)
    assert (model(inputs) - theirs).abs().max() < 1e-4 * scale(theirs)


def test_a_placeholder_that_is_none_of_the_models_is_refused() -> None:
    hf, processor = llava()
    hf.config.image_token_id = 5
    with pytest.raises(InputsError, match=r"placeholder '<image>' is token 4 and the model's image token is 5"):
        HookedVLM.from_hf(hf, processor).to_inputs(picture(), TEXT)


# --- templates ----------------------------------------------------------------------------------------------

WRITES_BOS = "{{ bos_token }}" + CHAT_TEMPLATE


def adds_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that puts BOS before what it reads, as Llama's does."""
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer


@given(
    st.sampled_from([byte_tokenizer, word_tokenizer]),
    st.booleans(),
    st.booleans(),
    st.lists(
        st.sampled_from(
            [TEXT, "is the circle left or right ?", "<image> is it ?", "<s>USER: <image> what color is it ?"]
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["left", "right"]),
)
@settings(max_examples=25)
def test_every_row_begins_with_one_bos_whoever_writes_it(
    make: Any, writes: bool, adds: bool, texts: list[str], side: str
) -> None:
    tokenizer = adds_bos(make()) if adds else make()
    tokenizer.padding_side = side
    model = HookedVLM.from_hf(*llava(tokenizer=tokenizer, chat_template=WRITES_BOS if writes else CHAT_TEMPLATE))
    pictures = [picture(i) for i in range(len(texts))]
    inputs = model.to_inputs(pictures, texts, allow_special_tokens=True)
    for i, text in enumerate(texts):
        row = inputs.input_ids[i][inputs.is_real[i]]
        expected = adds or text.startswith("<s>") or (writes and "<image>" not in text)
        assert int((row == tokenizer.bos_token_id).sum()) == expected
        assert bool(row[0] == tokenizer.bos_token_id) == expected
        alone = model.to_inputs(pictures[i], text, allow_special_tokens=True)
        assert torch.equal(alone.input_ids[0], row) and torch.equal(alone.pixel_values[0], inputs.pixel_values[i])


@given(st.sampled_from([byte_tokenizer, word_tokenizer]), st.booleans(), st.booleans())
@settings(max_examples=8)
def test_a_templates_prompt_has_hugging_faces_tokens(make: Any, writes: bool, adds: bool) -> None:
    tokenizer = adds_bos(make()) if adds else make()
    hf, processor = llava(tokenizer=tokenizer, chat_template=WRITES_BOS if writes else CHAT_TEMPLATE)
    turn = {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": TEXT}]}
    theirs = processor.apply_chat_template(
        [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ours = HookedVLM.from_hf(hf, processor).to_inputs(picture(), TEXT)
    assert torch.equal(ours.input_ids, theirs["input_ids"])


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}USER: {{ m['content'] }} ASSISTANT:{% endfor %}",  # made for texts alone
        "<image>" + CHAT_TEMPLATE,
        CHAT_TEMPLATE.replace("<image>", "<img>"),
    ],
)
def test_a_template_that_places_no_image_or_several_is_told_with_the_way_out(template: str, tmp_path: Path) -> None:
    model = published(tmp_path, *llava(tokenizer=byte_tokenizer(), chat_template=template))
    with pytest.raises(TextError, match=r"placeholders? of text 1; expected one.*write the whole prompt"):
        model.to_inputs(picture(), ["<image> red ?", TEXT])
