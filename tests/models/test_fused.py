"""The fused attention equals the explicit one, and is taken exactly when nobody looks at scores or pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.models import drawn
from tests.models.reference import scale
from tests.models.test_hooks_live import VARIANTS, attentions, variant

LOOK = (lambda name: name.endswith(("hook_attn_scores", "hook_pattern")), lambda x, hook: None)


@settings(max_examples=30)
@given(case=drawn.cases(max_batch=3))
def test_fused_equals_explicit_in_logits_and_gradients(case: drawn.Case) -> None:
    case = case.exactly()
    model = case.hooked()
    pixels = case.inputs.pixel_values.requires_grad_()
    found = []
    for hooks in ([], [LOOK]):
        logits = model.run_with_hooks(case.inputs.replace(pixel_values=pixels), fwd_hooks=hooks)
        logits = (
            logits if case.inputs.real is None or case.kind not in ("llava", "caption") else logits[case.inputs.real]
        )
        weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
        found.append((logits.detach(), *torch.autograd.grad((logits * weights).sum(), [pixels])))
    for fused, explicit in zip(*found, strict=True):
        assert (fused - explicit).abs().max() <= 1e-5 * max(1.0, scale(explicit))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_fused_kernel_runs_exactly_where_nobody_looks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = variant(name)
    calls: list[int] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr("hooked_vlm.components.attention.F.scaled_dot_product_attention", counting)
    every = attentions(model)

    def fused_calls(hooks: list[Any], bwd: list[Any] | None = None) -> int:
        calls.clear()
        with model.hooks(hooks, bwd or []):
            model(inputs)
        return len(calls)

    assert fused_calls([]) == len(every)
    assert fused_calls([(f"{every[0]}.hook_z", lambda z, hook: None)]) == len(every)
    for looked_at in ("hook_attn_scores", "hook_pattern"):
        assert fused_calls([(f"{every[-1]}.{looked_at}", lambda x, hook: None)]) == len(every) - 1
        assert fused_calls([], [(f"{every[-1]}.{looked_at}", lambda x, hook: None)]) == len(every) - 1
    assert fused_calls([LOOK]) == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_a_query_with_every_key_knocked_out_attends_to_nothing(name: str) -> None:
    model, inputs = variant(name)

    def knock_out(scores: Tensor, hook: Any) -> Tensor:
        return torch.full_like(scores, -torch.inf)

    for attention in attentions(model):
        with model.hooks([(f"{attention}.hook_attn_scores", knock_out)]):
            out, cache = model.run_with_cache(inputs, names_filter=[f"{attention}.hook_pattern", f"{attention}.hook_z"])
        assert (cache[f"{attention}.hook_pattern"] == 0).all() and (cache[f"{attention}.hook_z"] == 0).all()
        real = out if inputs.real is None or out.shape[1] != inputs.real.shape[1] else out[inputs.real]
        assert real.isfinite().all()
        (gradient,) = torch.autograd.grad(real.sum(), [next(model.hf_model.parameters())], allow_unused=True)
        assert gradient is None or gradient.isfinite().all()
