"""Quantised layers: they run as Hugging Face runs them, hooks and all, and own up to having no dense weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, VLMInputs
from hooked_vlm.errors import DenseWeightError
from tests.models.checkpoints import blip_vqa, llava, picture, save

pytest.importorskip("bitsandbytes")

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes' kernels take no less
KINDS = {
    "Linear4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "Linear8bitLt": {"load_in_8bit": True},
}
WAY_OUT = r"no dense form\. Load the model without quantization_config to read weights; hooks and activations work"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("wide")
    return {
        "llava": save(root / "llava", *llava(vision_changes=WIDE, text_changes=WIDE)),
        "vqa": save(root / "vqa", *blip_vqa(text=WIDE, vision=WIDE)),
    }


@pytest.fixture(scope="module", params=KINDS)
def layer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(directory: str, layer: str, **options: Any) -> Any:
    return HookedVLM.from_pretrained(directory, quantization_config=BitsAndBytesConfig(**KINDS[layer]), **options)


@pytest.fixture(scope="module")
def language(checkpoints: dict[str, str], layer: str) -> HookedLLaVA:
    return loaded(checkpoints["llava"], layer)


@pytest.fixture(scope="module")
def answering(checkpoints: dict[str, str], layer: str) -> HookedBLIP:
    return loaded(checkpoints["vqa"], layer)


def asked(model: HookedVLM) -> VLMInputs:
    return model.to_inputs([picture(0), picture(1)], ["is it red ?", "what color is the circle ?"])


def test_the_layers_are_quantised(language: HookedLLaVA, answering: HookedBLIP, layer: str) -> None:
    for model in (language, answering):
        assert layer in {type(module).__name__ for module in model.hf_model.modules()}


@torch.no_grad()
def test_quantised_logits_equal_hugging_faces(language: HookedLLaVA) -> None:
    # No padding: 8-bit layers choose their outliers over the whole batch, and what stands there differs.
    inputs = language.to_inputs([picture(0), picture(1)], ["is it red ?", "is it blue ?"])
    theirs = language.hf_model(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits
    assert (language(inputs) - theirs).abs().mean() <= 1e-2 * theirs.abs().mean()


@torch.no_grad()
def test_quantised_answers_equal_hugging_faces(language: HookedLLaVA) -> None:
    inputs = language.to_inputs(picture(0), "is it red ?")
    ours = language.generate(inputs, 4, return_type="tokens", stop_at_eos=False)
    theirs = language.hf_model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        pixel_values=inputs.pixel_values,
        do_sample=False,
        max_new_tokens=4,
        min_new_tokens=4,
        eos_token_id=-1,
    )
    assert ours.tolist() == theirs[:, -4:].tolist()


@torch.no_grad()
def test_a_quantised_model_is_near_the_one_it_was_made_from(answering: HookedBLIP, checkpoints: dict[str, str]) -> None:
    dense = HookedVLM.from_pretrained(checkpoints["vqa"])
    ours, exact = answering(asked(answering)).flatten(), dense(asked(dense)).flatten()
    assert not torch.equal(ours, exact)
    assert torch.nn.functional.cosine_similarity(ours.float(), exact, dim=0) > 0.8


@torch.no_grad()
def test_hooks_of_quantised_layers_see_and_edit(language: HookedLLaVA, answering: HookedBLIP) -> None:
    for model, name in (
        (language, "blocks.0.attn.hook_z"),
        (answering, "text_encoder.blocks.0.cross_attn.hook_pattern"),
    ):
        inputs = asked(model)
        logits, cache = model.run_with_cache(inputs)
        assert cache[name].isfinite().all() and len(cache) > 80
        edited = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: torch.zeros_like(x))])
        assert not torch.allclose(edited, logits, atol=1e-3)


@pytest.mark.parametrize("weight", ["W_Q", "W_K", "W_V", "W_O", "QK", "OV"])
def test_an_attention_weight_that_is_quantised_says_so(
    language: HookedLLaVA, answering: HookedBLIP, layer: str, weight: str
) -> None:
    for attention in (
        language.blocks[0].attn,
        language.vision_encoder.blocks[0].attn,
        answering.vision_encoder.blocks[0].attn,
        answering.stacks["text_encoder"].blocks[1].cross_attn,
    ):
        with pytest.raises(DenseWeightError, match=rf"{layer} stores torch\.u?int8 .*{WAY_OUT}"):
            getattr(attention, weight)


@pytest.mark.parametrize("weight", ["W_in", "W_out", "W_gate"])
def test_an_mlp_weight_that_is_quantised_says_so(language: HookedLLaVA, layer: str, weight: str) -> None:
    with pytest.raises(DenseWeightError, match=rf"{layer} stores .*{WAY_OUT}"):
        getattr(language.blocks[0].mlp, weight)


def test_what_is_not_quantised_can_be_read(language: HookedLLaVA) -> None:
    assert language.W_E.data_ptr() == language.hf_model.model.language_model.embed_tokens.weight.data_ptr()
    assert language.W_U.shape == (64, language.cfg.d_vocab)


@torch.no_grad()  # on some CPUs bitsandbytes repacks a layer at its first run without gradients, and then takes none
@pytest.mark.parametrize("flag", ["use_attn_result", "use_split_qkv_input"])
def test_what_needs_a_dense_weight_refuses_to_run(
    language: HookedLLaVA, answering: HookedBLIP, layer: str, flag: str
) -> None:
    for model in (language, answering):
        setattr(model.cfg, flag, True)
        try:
            with pytest.raises(DenseWeightError, match=rf"{layer} stores .*{WAY_OUT}"):
                model(asked(model))
        finally:
            setattr(model.cfg, flag, False)


def test_a_quantised_model_in_half_precision_runs(checkpoints: dict[str, str]) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = HookedVLM.from_pretrained(checkpoints["llava"], dtype="bfloat16", quantization_config=config)
    with torch.no_grad():
        logits = model(asked(model))
    assert model.dtype == logits.dtype == torch.bfloat16 and logits.isfinite().all()
