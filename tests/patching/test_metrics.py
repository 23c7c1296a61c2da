"""Metrics are their formulas, for one row or several rows of each example."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm.errors import InputsError
from hooked_vlm.patching import Sites, metrics, sweep
from tests.models import drawn
from tests.models.test_hooks_live import variant


def logits(rows: int, seed: int = 0, d_vocab: int = 11) -> Tensor:
    """Random logits, [rows 3 d_vocab]."""
    return torch.randn(rows, 3, d_vocab, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(batch=st.integers(1, 3), rows=st.integers(1, 3), seed=st.integers(0, 9))
def test_each_metric_is_its_formula(batch: int, rows: int, seed: int) -> None:
    x, clean, corrupt = logits(batch * rows, seed), logits(batch, 50), logits(batch, 51)
    right = torch.arange(batch)
    each, last = right.repeat_interleave(rows), x[:, -1]
    spread = torch.arange(batch * rows)
    p = last.softmax(-1)
    before = corrupt[:, -1].softmax(-1)[torch.arange(batch), right].repeat_interleave(rows)
    assert torch.allclose(metrics.logit_diff(right, 9)(x), last[spread, each] - last[:, 9])
    assert torch.allclose(metrics.probability(right)(x), p[spread, each])
    assert torch.allclose(metrics.log_probability(right)(x), p[spread, each].log(), atol=1e-5)
    assert torch.allclose(metrics.restoration(right, corrupt)(x), p[spread, each] - before)
    reference = clean[:, -1].softmax(-1).repeat_interleave(rows, 0)
    kl = torch.nn.functional.kl_div(p.log(), reference, reduction="none").sum(-1)
    assert torch.allclose(metrics.kl_divergence(clean)(x), kl, atol=1e-5)
    order = last.argsort(-1, descending=True)
    assert metrics.rank(right)(x).tolist() == [float((order[i] == each[i]).nonzero()[0, 0]) for i in spread]
    difference = metrics.logit_diff(right, 9)
    low, high = (difference(t).repeat_interleave(rows) for t in (corrupt, clean))
    found = metrics.normalised(difference, clean, corrupt)(x)
    assert torch.allclose(found, (difference(x) - low) / (high - low), atol=1e-4)


def test_an_example_without_anything_to_restore_is_nan_and_no_other() -> None:
    clean, corrupt = logits(2, 1), logits(2, 2)
    corrupt[0] = clean[0]
    found = metrics.normalised(metrics.logit_diff(1, 2), clean, corrupt)(logits(2, 3))
    assert found.isnan().tolist() == [True, False]


def test_ids_outside_of_the_vocabulary_and_too_few_positions_raise() -> None:
    with pytest.raises(InputsError, match=r"\[11\] are not all in the vocabulary, 0 to 10"):
        metrics.probability(11)(logits(1))
    with pytest.raises(InputsError, match="reads 4 positions and the logits have 3"):
        metrics.answer_log_probability([1, 2, 3, 4])(logits(1))
    with pytest.raises(InputsError, match="for 2 examples was given logits with 3 rows"):
        metrics.probability([1, 2])(logits(3))


@pytest.mark.parametrize("name", ["blip-vqa", "blip-captioning", "llava-llama-clip"])
def test_an_answer_of_several_tokens_is_scored_by_all_of_them(name: str) -> None:
    model, inputs = variant(name)
    inputs = drawn.inputs_for(
        model.hf_model, "llava" if "llava" in name else {"blip-vqa": "vqa"}.get(name, "caption"), [5, 3], side="left"
    )
    inputs = inputs.replace(decoder_input_ids=None)
    answer = [7, 9, 12]
    grown = metrics.with_answer(model, inputs, answer)
    found = metrics.answer_log_probability(answer)(model(grown))
    expected = torch.zeros(2)
    for i, token in enumerate(answer):  # one token more at a time
        so_far = metrics.with_answer(model, inputs, [*answer[:i], 0])
        expected += model(so_far)[:, -1].log_softmax(-1)[:, token]
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(
        metrics.log_probability(7)(model(metrics.with_answer(model, inputs, [7]))),
        model(inputs)[:, -1].log_softmax(-1)[:, 7],
    )


def test_an_answer_can_be_swept() -> None:
    model, inputs = variant("blip-vqa")
    clean = metrics.with_answer(model, inputs.replace(decoder_input_ids=None), [7, 9])
    corrupt = clean.replace(pixel_values=clean.pixel_values.flip(-1))
    score = metrics.answer_log_probability([7, 9])
    found = sweep(
        model,
        clean,
        corrupt,
        Sites.heads(model, "text_encoder", "cross_attn", heads="all_at_once"),
        score,
        progress=False,
    )
    _, cache = model.run_with_cache(clean)
    name = "text_encoder.blocks.1.cross_attn.hook_z"

    def patch(z: Tensor, hook: object) -> Tensor:
        z[:, 2] = cache[name][:, 2]
        return z

    assert torch.allclose(
        found.values[1, 2], score(model.run_with_hooks(corrupt, fwd_hooks=[(name, patch)])), atol=1e-4
    )


def test_an_answer_cannot_follow_padding() -> None:
    model, inputs = variant("llava-llama-clip")
    with pytest.raises(InputsError, match="pad them on the left"):
        metrics.with_answer(model, inputs, [7, 9])
