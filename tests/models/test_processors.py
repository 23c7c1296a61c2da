"""What a processor, a chat template, a tokenizer or a config raises is told as ours, by name and in few words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM
from hooked_vlm.errors import CheckpointError, HookedVLMError, InputsError, PositionError, TextError
from tests.models.checkpoints import blip_vqa, byte_tokenizer, llava, picture, save
from tests.models.unchecked import unchecked

ASKED = "{{ messages[0]['content'][1]['text'] }}"


@pytest.fixture
def blip() -> HookedBLIP:
    return HookedBLIP.from_hf(*blip_vqa())


@pytest.fixture
def template_llava() -> HookedLLaVA:
    return HookedLLaVA.from_hf(*llava(tokenizer=byte_tokenizer()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save(tmp_path_factory.mktemp("checkpoints") / "vqa", *blip_vqa()))


@pytest.fixture
def vqa(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "spoilt"))


def refused(directory: Path, message: str, **options: Any) -> str:
    with pytest.raises(HookedVLMError, match=message) as raised:
        HookedVLM.from_pretrained(str(directory), **options)
    assert len(str(raised.value)) < 900
    return str(raised.value)


# --- at to_inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for", "cannot be applied to text 0: TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}<image>" + ASKED, "cannot be applied to text 0: SecurityError"),
        ("{{ 1 / 0 }}", "cannot be applied to text 0: ZeroDivisionError"),
        ("{{ nobody() }}", "cannot be applied to text 0: UndefinedError"),
        ("{% include 'x' %}", "cannot be applied to text 0: TypeError"),
        (ASKED, "makes 0 '<image>' placeholders of text 0; expected one"),
        ("<image><image>" + ASKED, "makes 2 '<image>' placeholders of text 0; expected one"),
    ],
)
def test_a_template_that_fails_is_told_with_the_text(template_llava: HookedLLaVA, template: str, message: str) -> None:
    template_llava.processor.chat_template = template
    with pytest.raises(TextError, match=message):
        template_llava.to_inputs(picture(), "is it red ?")
    whole = "USER: <image>\nis it red ? ASSISTANT:"
    assert len(template_llava.to_inputs(picture(), whole)) == 1  # the way out that the message names


@pytest.mark.parametrize("error", [ValueError("x" * 5000), MemoryError(), KeyError("size"), ZeroDivisionError("by 0")])
def test_whatever_an_image_processor_raises_is_ours(
    blip: HookedBLIP, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(type(blip.processor.image_processor), "__call__", fails)
    for call in (lambda: blip.to_inputs(picture(), "is it red ?"), lambda: blip.to_pixels(picture())):
        with pytest.raises(
            InputsError, match=rf"BlipProcessor.* fails on what it was given: {type(error).__name__}"
        ) as told:
            call()
        assert len(str(told.value)) < 900 and told.value.__cause__ is error


def test_another_familys_processor_is_refused(template_llava: HookedLLaVA) -> None:
    foreign = HookedBLIP.from_hf(blip_vqa()[0], template_llava.processor)
    with pytest.raises(InputsError, match=r"LlavaProcessor.* fails on what it was given"):
        foreign.to_inputs(picture(), "is it red ?")


def test_a_text_of_which_the_tokenizer_makes_nothing_is_refused(blip: HookedBLIP) -> None:
    for call in (
        lambda: blip.to_inputs(picture(), ["is it red ?", "\u0301"]),
        lambda: blip.to_inputs(picture(), ["is it red ?", "\u0301"], allow_special_tokens=True),
        lambda: blip.to_tokens(["is it red ?", "\u0301"], prepend_bos=False),
    ):
        with pytest.raises(TextError, match=r"text 1 .* is empty to the tokenizer"):
            call()


@pytest.mark.parametrize("method", ["to_tokens", "to_str_tokens", "to_single_token"])
def test_a_text_that_would_take_minutes_is_refused_at_once(
    blip: HookedBLIP, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: Any, **__: Any) -> Any:
        raise AssertionError("the tokenizer was reached")

    monkeypatch.setattr(type(blip.processor.tokenizer), "__call__", reached)
    with pytest.raises(TextError, match=r"text 0 .* has 4,000,000 characters"):
        getattr(blip, method)("red " * 1_000_000)


def test_complex_numbers_are_no_ids(blip: HookedBLIP) -> None:
    with pytest.raises(InputsError, match="complex64"):
        blip.to_string(torch.tensor([1j]))


@pytest.mark.parametrize("text", [None, 3, b"red", ["red"]])
def test_what_is_no_text_is_not_found(blip: HookedBLIP, text: Any) -> None:
    inputs = blip.to_inputs(picture(), "is it red ?")
    with unchecked(), pytest.raises(PositionError, match=f"asked for a {type(text).__name__}; expected a text"):
        inputs.find(text)


@pytest.mark.parametrize("occurrence", ["0", 0.0, float("nan"), [0], True])
def test_an_occurrence_is_a_whole_number(blip: HookedBLIP, occurrence: Any) -> None:
    inputs = blip.to_inputs(picture(), "is it red or red ?")
    with unchecked(), pytest.raises(PositionError, match=r"occurrence .*; expected a whole number"):
        inputs.find("red", occurrence)


def test_what_is_longer_than_the_prompt_is_not_looked_for(blip: HookedBLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = blip.to_inputs(picture(), "is it red ?")
    monkeypatch.setattr("hooked_vlm.models.naming._with_free_spaces", None)  # no pattern is made
    with pytest.raises(PositionError, match="is not in row 0") as raised:
        inputs.find("red ( " * 10_000)
    assert len(str(raised.value)) < 900


# --- at loading ---------------------------------------------------------------------------------------------


def test_a_tokenizer_nested_beyond_measure_is_refused(vqa: Path) -> None:
    (vqa / "tokenizer.json").write_text("[" * 100_000)
    refused(vqa, "the processor of .*spoilt' cannot be loaded")


def test_a_tokenizer_whose_words_do_not_fit_is_refused(tmp_path: Path) -> None:
    directory = Path(save(tmp_path / "spoilt", *llava(tokenizer=byte_tokenizer())))
    values = json.loads((directory / "tokenizer.json").read_text())
    values["model"]["vocab"].pop(next(word for word in values["model"]["vocab"] if len(word) == 2))
    (directory / "tokenizer.json").write_text(json.dumps(values))
    refused(directory, "the processor of .*spoilt' cannot be loaded .*out of vocabulary")


@pytest.mark.parametrize(
    ("file", "names", "value", "message"),
    [
        ("config.json", ["architectures"], float("nan"), "architectures = nan; expected a list"),
        ("config.json", ["architectures"], "BlipForQuestionAnswering", "architectures = .*; expected a list"),
        ("config.json", ["architectures"], [3], r"architectures = \[3\]; expected a list"),
        ("config.json", ["vision_config", "layer_norm_eps"], "9" * 5000, "layer_norm_eps"),
        ("config.json", ["vision_config", "layer_norm_eps"], -(10**30), r"layer_norm_eps = -1000+, more than any"),
        ("processor_config.json", ["image_processor", "size", "width"], 10**9, r"processor_config\.json .*width = 10+"),
    ],
)
def test_a_setting_that_means_nothing_is_named(
    vqa: Path, file: str, names: list[str], value: Any, message: str
) -> None:
    values = inner = json.loads((vqa / file).read_text())
    for name in names[:-1]:
        inner = inner[name]
    inner[names[-1]] = value
    (vqa / file).write_text(json.dumps(values))
    assert "spoilt" in refused(vqa, message)


def test_a_quantization_that_is_none_is_named(vqa: Path) -> None:
    with unchecked():
        refused(vqa, "quantization_config is '4bit'; expected", quantization_config="4bit")


def test_an_empty_processor_is_one_that_was_given(vqa: Path) -> None:
    model = HookedVLM.from_pretrained(str(vqa), processor={})
    with pytest.raises(InputsError, match="processor is a dict"):
        model.to_inputs(picture(), "is it red ?")


def test_a_checkpoints_endless_name_is_not_repeated() -> None:
    with pytest.raises(CheckpointError) as raised:
        HookedVLM.from_pretrained("x" * 5000)
    assert len(str(raised.value)) < 900
