"""The fused attention equals the explicit one, and is taken exactly when nobody looks at scores or pattern."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hooked_vlm.components.attention import AttentionLeaves, AttentionPass, HookedAttention
from hooked_vlm.components.weights import Projection
from hooked_vlm.models.config import stack_config
from tests.models import drawn
from tests.models.reference import scale
from tests.models.test_hooks_live import VARIANTS, attentions, variant

REAL = HookedAttention._absorbed
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
    monkeypatch.setattr(HookedAttention, "_absorbs", lambda *given: False)
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


@settings(max_examples=40)
@given(data=st.data())
def test_a_sources_weights_taken_to_few_queries_change_nothing(data: st.DataObject) -> None:
    kv_heads, shared, d_head, d_model, d_source, n_sources, n_rows, n_keys, n_queries = (
        data.draw(st.integers(*ends))
        for ends in [(1, 2), (1, 3), (1, 8), (1, 9), (1, 9), (1, 3), (1, 3), (1, 9), (1, 4)]
    )
    n_heads = kv_heads * shared
    sizes = {"d_model": d_model, "d_head": d_head, "n_heads": n_heads, "n_key_value_heads": kv_heads}
    cfg = stack_config(**sizes, n_layers=1, n_ctx=9, d_mlp=1, act_fn="gelu", eps=1e-5)
    shapes = [(d_model, n_heads * d_head), *2 * [(d_source, kv_heads * d_head)], (n_heads * d_head, d_model)]
    layers = [nn.Linear(*size, bias=data.draw(st.booleans()), dtype=torch.float64) for size in shapes]
    attention = HookedAttention(AttentionLeaves(*map(Projection, layers)), cfg, cross=True)
    source = torch.randn(n_sources, n_keys, d_source, dtype=torch.float64, requires_grad=True)
    x = torch.randn(n_sources * n_rows, n_queries, d_model, dtype=torch.float64)
    mask = torch.rand(n_sources, 1, 1, n_keys) < 0.5
    mask[..., data.draw(st.integers(0, n_keys - 1))] = True
    given = AttentionPass(mask=data.draw(st.sampled_from([None, mask])), rows_per_source=n_rows)
    found = []
    for absorbs in (True, False):
        with patch.object(HookedAttention, "_absorbs", lambda *given, absorbs=absorbs: absorbs):
            out = attention(x, given, source=source)
            found.append((out, *torch.autograd.grad(out.square().sum(), [source, layers[1].weight])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_keys_and_values_are_computed_where_somebody_sees_them() -> None:
    model, inputs = variant("blip-vqa")
    cross = model.stacks["text_decoder"].blocks[0].cross_attn
    absorbed = []
    with patch.object(HookedAttention, "_absorbed", lambda self, *given: absorbed.append(self) or REAL(self, *given)):
        model(inputs)
        assert cross in absorbed
        for hook in ("hook_k", "hook_v", "hook_attn_scores", "hook_pattern"):
            absorbed.clear()
            model.run_with_hooks(inputs, fwd_hooks=[(f"text_decoder.blocks.0.cross_attn.{hook}", lambda x, hook: None)])
            assert cross not in absorbed and absorbed
        for layer in (cross._leaves.k.linear, cross._leaves.v.linear):
            absorbed.clear()
            handle = layer.register_forward_hook(lambda *given: None)
            model(inputs)
            handle.remove()
            assert cross not in absorbed and absorbed


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
