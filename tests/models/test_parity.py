"""Logits and generated tokens equal Hugging Face's, for every variant, dtype, padding and batch size."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from tests.models import drawn
from tests.models.reference import hf_logits, real_logits, scale, unpadded

KINDS = ["llava", "vqa", "caption", "itm"]


def as_good_as(theirs: Tensor, found: Tensor, exact: Tensor) -> bool:
    """True if our rounding is of the size of Hugging Face's, whatever this model makes of rounding."""
    assert found.shape == theirs.shape and found.dtype == theirs.dtype
    rounding, eps = float((theirs - exact).abs().max()), torch.finfo(found.dtype).eps
    return float((found - exact).abs().max()) <= 4 * rounding + 16 * eps * scale(exact)


def exact_copy(case: drawn.Case) -> drawn.Case:
    """The case in float64, itself left as it is."""
    return replace(case, hf=copy.deepcopy(case.hf)).exactly()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(data=st.data())
def test_logits_equal_hugging_face(kind: str, data: st.DataObject) -> None:
    case = data.draw(drawn.cases((kind,)))
    exact = exact_copy(case)
    with torch.no_grad():
        logits = HookedVLM.from_hf(case.hf)(case.inputs)
    for i in range(len(case.inputs)):
        theirs = hf_logits(case.hf, kind, unpadded(case.inputs, i))
        truth = hf_logits(exact.hf, kind, unpadded(exact.inputs, i))
        assert as_good_as(theirs, real_logits(logits, case.inputs, kind, i), truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(max_examples=8)
@given(case=drawn.cases(max_batch=2))
def test_half_precision_is_as_good_as_hugging_face(dtype: torch.dtype, case: drawn.Case) -> None:
    exact = exact_copy(case)
    truth = hf_logits(exact.hf, case.kind, unpadded(exact.inputs, 0))
    case.hf.to(dtype)
    row = unpadded(case.inputs, 0).to(dtype=dtype)
    with torch.no_grad():
        ours = HookedVLM.from_hf(case.hf)(row)
    assert ours.dtype == dtype
    assert as_good_as(hf_logits(case.hf, case.kind, row), ours, truth)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6)
@given(data=st.data())
def test_interpolated_positions_equal_hugging_face(kind: str, data: st.DataObject) -> None:
    hf = drawn.exact(data.draw(drawn.llava_models() if kind == "llava" else drawn.blip_models(kind)))
    vision = hf.config.vision_config
    grid = vision.image_size // vision.patch_size + data.draw(st.sampled_from([-1, 1, 2]))
    ids = drawn.prompt(hf, kind, 4, 0)
    if kind == "llava":
        more = grid**2 - (vision.image_size // vision.patch_size) ** 2
        image = torch.full((drawn.n_image_tokens(hf) + more,), drawn.IMAGE)
        ids = torch.cat([ids[:2], image, ids[-2:]])
    inputs = VLMInputs(drawn.pixels(hf, 1, 0, size=grid * vision.patch_size).double(), ids[None])
    with torch.no_grad():
        found = HookedVLM.from_hf(hf)(inputs, interpolate_pos_encoding=True)
    expected = hf_logits(hf, kind, inputs, interpolate=True)
    assert (found - expected).abs().max() <= 1e-5 * scale(expected)


def hf_generate(hf: Any, kind: str, row: VLMInputs, n: int) -> list[int]:
    """Hugging Face's greedy new tokens for a batch of one without padding."""
    options = {"max_new_tokens": n, "do_sample": False}
    if kind == "caption":  # its generate drops the last token of the prompt, a [SEP]
        ids = torch.cat([row.input_ids, torch.tensor([[drawn.SEP]])], 1)
        return hf.generate(row.pixel_values, ids, **options)[0, row.input_ids.shape[1] :].tolist()
    skip = row.input_ids.shape[1] if kind == "llava" else 1
    return hf.generate(input_ids=row.input_ids, pixel_values=row.pixel_values, **options)[0, skip:].tolist()


@pytest.mark.parametrize("kind", ["llava", "vqa", "caption"])
@settings(max_examples=12)
@given(data=st.data())
def test_greedy_generation_equals_hugging_face_token_for_token(kind: str, data: st.DataObject) -> None:
    case = data.draw(drawn.cases((kind,), max_batch=3)).exactly()
    inputs = case.inputs.replace(decoder_input_ids=None)
    if kind == "caption":
        first = inputs.input_ids.clone()
        starts = torch.zeros(len(inputs), dtype=torch.long) if inputs.real is None else inputs.real.long().argmax(1)
        first[torch.arange(len(inputs)), starts] = drawn.BOS  # its generate puts it there in any case
        inputs = inputs.replace(input_ids=first)
    found = HookedVLM.from_hf(case.hf).generate(inputs, 5, return_type="tokens")
    _, padding = HookedVLM.from_hf(case.hf)._stop_tokens()
    for i in range(len(inputs)):
        expected = hf_generate(case.hf, kind, unpadded(inputs, i), 5)
        n = found.shape[1]
        expected = expected[:n] + [padding] * (n - len(expected))
        assert found[i].tolist() == expected


def rows_are_generated_as_alone(hf: Any, inputs: VLMInputs) -> None:
    tokens = HookedVLM.from_hf(hf).generate(inputs, 8, return_type="tokens", stop_at_eos=False)
    alone = [
        HookedVLM.from_hf(hf).generate(unpadded(inputs, i), 8, return_type="tokens", stop_at_eos=False)
        for i in range(len(inputs))
    ]
    assert torch.equal(tokens, torch.cat(alone))


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("window", [2, 3, 5, 9, 12])
@pytest.mark.parametrize("text", ["mistral", "qwen2"])
def test_a_sliding_window_counts_tokens_and_no_padding(text: str, window: int, side: str) -> None:
    hf = drawn.exact(drawn.llava(text=text, window=window, n_full_layers=0))
    inputs = drawn.inputs_for(hf, "llava", [3, 9, 5], side=side).to(dtype=torch.float64)
    rows_are_generated_as_alone(hf, inputs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_depend_on_length_are_each_rows_own(kind: str, side: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4} if kind == "longrope" else {}
    long = {"original_max_position_embeddings": 12} if kind == "longrope" else {}
    hf = drawn.exact(drawn.llava(rope={"rope_type": kind, "factor": 2.0, **long, **factors}))
    inputs = drawn.inputs_for(hf, "llava", [2, 9], side=side).to(dtype=torch.float64)
    assert int(inputs.is_real.sum(1).min()) < 12 < inputs.input_ids.shape[1]
    logits = HookedVLM.from_hf(hf)(inputs)
    for i in range(len(inputs)):
        expected = hf_logits(hf, "llava", unpadded(inputs, i))
        assert (real_logits(logits, inputs, "llava", i) - expected).abs().max() <= 1e-9
    rows_are_generated_as_alone(hf, inputs)


@pytest.mark.parametrize("kind", ["llava", "caption"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_no_loss_is_asked_of_padding(kind: str, side: str) -> None:
    hf = drawn.llava() if kind == "llava" else drawn.blip(kind)
    inputs, model = drawn.inputs_for(hf, kind, [3, 6], side=side), HookedVLM.from_hf(hf)
    together = model(inputs, "loss", loss_per_token=True)
    alone = [model(unpadded(inputs, i), "loss", loss_per_token=True) for i in range(2)]
    n_scored = [int((losses != 0).sum()) for losses in alone]
    assert [int((losses != 0).sum()) for losses in together] == n_scored
    assert torch.allclose(together.sum(1), torch.stack([losses.sum() for losses in alone]), rtol=1e-4)
    mean = torch.stack([losses.sum() for losses in alone]).sum() / sum(n_scored)
    assert torch.allclose(model(inputs, "loss"), mean, rtol=1e-4)


@settings(max_examples=15)
@given(case=drawn.cases(("llava", "vqa", "caption"), max_batch=2))
def test_loss_equals_hugging_face(case: drawn.Case) -> None:
    case = case.exactly()
    row = unpadded(case.inputs, 0)
    if case.kind == "vqa":
        answer = torch.tensor([[drawn.BOS, 7, 9, 11]])
        row = row.replace(decoder_input_ids=answer)
        expected = case.hf(input_ids=row.input_ids, pixel_values=row.pixel_values, labels=answer).loss
    else:
        labels = row.input_ids.masked_fill(row.input_ids == drawn.IMAGE, -100)
        if case.kind == "caption":
            labels = row.input_ids
        expected = case.hf(input_ids=row.input_ids, pixel_values=row.pixel_values, labels=labels).loss
    model = HookedVLM.from_hf(case.hf)
    loss = model(row, return_type="loss")
    assert torch.allclose(loss.to(expected), expected, rtol=1e-4, atol=1e-5)
    per_token = model(row, return_type="loss", loss_per_token=True)
    assert torch.allclose(per_token.sum() / (per_token != 0).sum(), loss, rtol=1e-4)


def test_similarity_equals_hugging_face() -> None:
    hf = drawn.blip("itm")
    inputs = drawn.inputs_for(hf, "itm", [4, 4, 4])
    found = HookedVLM.from_hf(hf)(inputs, return_type="similarity")
    expected = hf(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values, use_itm_head=False).itm_score
    assert found.shape == (3, 3)
    assert torch.allclose(found, expected, atol=1e-5)
