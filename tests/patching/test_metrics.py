"""Metrics are their formulas, and refuse what they were not made for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm.errors import InputsError, NonFiniteError
from hooked_vlm.patching import Sites, attribution, metrics, sweep
from tests.models import drawn
from tests.models.test_hooks_live import variant
from tests.models.unchecked import unchecked


def logits(rows: int, seed: int = 0, d_vocab: int = 11) -> Tensor:
    """Random logits, [rows 3 d_vocab]."""
    return torch.randn(rows, 3, d_vocab, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(batch=st.integers(1, 4), shared=st.booleans(), seed=st.integers(0, 9))
def test_each_metric_is_its_formula(batch: int, shared: bool, seed: int) -> None:
    x, clean, corrupt = logits(batch, seed), logits(1 if shared else batch, 50), logits(1 if shared else batch, 51)
    right = 4 if shared else torch.arange(batch)  # one token or run for all, or one for each
    each, spread, last = torch.as_tensor(right).expand(batch), torch.arange(batch), x[:, -1]
    p = last.softmax(-1)
    before = corrupt[:, -1].softmax(-1).expand(batch, -1)[spread, each]
    assert torch.allclose(metrics.logit_diff(right, 9)(x), last[spread, each] - last[:, 9])
    assert torch.allclose(metrics.probability(right)(x), p[spread, each])
    assert torch.allclose(metrics.log_probability(right)(x), p[spread, each].log(), atol=1e-5)
    assert torch.allclose(metrics.restoration(right, corrupt)(x), p[spread, each] - before)
    reference = clean[:, -1].softmax(-1).expand(batch, -1)
    kl = torch.nn.functional.kl_div(p.log(), reference, reduction="none").sum(-1)
    assert torch.allclose(metrics.kl_divergence(clean)(x), kl, atol=1e-5)
    order = last.argsort(-1, descending=True)
    assert metrics.rank(right)(x).tolist() == [float((order[i] == each[i]).nonzero()[0, 0]) for i in spread]
    difference = metrics.logit_diff(int(each[0]), 9)
    found = metrics.normalized(difference, clean, corrupt)(x)
    low, high = difference(corrupt), difference(clean)
    assert torch.allclose(found, (difference(x) - low) / (high - low), atol=1e-4)


@settings(max_examples=30)
@given(n=st.integers(1, 8), batch=st.integers(1, 8))
def test_what_was_made_for_other_examples_raises(n: int, batch: int) -> None:
    ids, run = list(range(n)), logits(n, 50)
    made = [
        metrics.logit_diff(ids, 9),
        metrics.logit_diff(9, torch.tensor(ids)),
        metrics.probability(ids),
        metrics.rank(ids),
        metrics.restoration(0, run),
        metrics.kl_divergence(run),
        metrics.normalized(metrics.logit_diff(1, 2), run, logits(n, 51)),
        metrics.answer_log_probability(torch.tensor([[i, i] for i in ids])),
    ]
    for metric in made:
        if n in (1, batch):
            assert metric(logits(batch)).shape == (batch,)
        else:
            with pytest.raises(InputsError, match=f"for {n} examples was given logits with {batch} rows"):
                metric(logits(batch))


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_measure_nothing(odd: float) -> None:
    broken = logits(3)
    broken[1, -1, 4] = odd
    model, inputs = variant("blip-vqa")

    def breaks(x: Tensor, hook: object) -> Tensor:
        return x.index_fill(-1, torch.tensor([4]), odd)

    sites = Sites.heads(model, "text_encoder", "cross_attn", layers=0)
    for metric in (metrics.logit_diff(1, 2), metrics.probability(1), metrics.kl_divergence(logits(3, 1))):
        with pytest.raises(NonFiniteError, match=r"logits of rows \[1\] of 3 are NaN or infinite"):
            metric(broken)
    for measure in (metrics.logit_diff(1, 2), lambda x: x[:, -1, 1]):
        for patched in (sweep, attribution):
            with model.hooks([("hook_logits", breaks)]), pytest.raises(NonFiniteError, match=r"rows \[0, 1\] of 2"):
                patched(model, inputs, inputs, sites, measure)


def test_an_example_without_anything_to_restore_is_nan_and_no_other() -> None:
    clean, corrupt = logits(2, 1), logits(2, 2)
    corrupt[0] = clean[0]
    found = metrics.normalized(metrics.logit_diff(1, 2), clean, corrupt)(logits(2, 3))
    assert found.isnan().tolist() == [True, False]


def test_ids_outside_of_the_vocabulary_and_too_few_positions_raise() -> None:
    with pytest.raises(InputsError, match=r"\[11\] are not all in the vocabulary, 0 to 10"):
        metrics.probability(11)(logits(1))
    with pytest.raises(InputsError, match="reads 4 positions and the logits have 3"):
        metrics.answer_log_probability([1, 2, 3, 4])(logits(1))
    for ids in (1.0, [True], torch.tensor([0.5])):
        with unchecked(), pytest.raises(InputsError, match="expected integers"):
            metrics.probability(ids)(logits(1))


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
