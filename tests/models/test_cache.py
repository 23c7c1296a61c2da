"""Caches: what is kept, under which names, sliced where; backward hooks; contexts that leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_vlm.errors import InputsError, ResidualError
from hooked_vlm.models.cache import VLMCache
from tests.models.test_hooks_live import VARIANTS, variant


@pytest.mark.parametrize("name", VARIANTS)
def test_the_cache_holds_every_hook_point_that_is_on(name: str) -> None:
    model, inputs = variant(name)
    logits, cache = model.run_with_cache(inputs)
    gated = {n for n, point in model.hook_dict.items() if point.gate}
    absent = {"hook_image_embed", "hook_text_embed"}
    assert isinstance(cache, VLMCache)
    assert set(cache.keys()) == set(model.hook_dict) - gated - absent
    assert torch.equal(cache["hook_logits"], logits)
    assert not model.list_hooks()
    for hook, activation in cache.items():
        assert activation.ndim == len(model.hook_dict[hook].axes), hook


@pytest.mark.parametrize("name", VARIANTS)
def test_the_axes_of_a_hook_point_are_what_they_are_called(name: str) -> None:
    model, inputs = variant(name, "use_attn_result", "use_split_qkv_input")
    _, cache = model.run_with_cache(inputs)
    for stack in model.stacks.values():
        cfg = stack.cfg
        sizes = {
            "batch": len(inputs),
            "head": cfg.n_heads,
            "kv_head": cfg.n_key_value_heads or cfg.n_heads,
            "d_head": cfg.d_head,
            "d_model": cfg.d_model,
            "d_mlp": cfg.d_mlp,
            "1": 1,
        }
        for hook in cache:
            if hook.startswith(stack.prefix + "blocks.") and (stack.prefix or hook.startswith("blocks.")):
                for axis, size in zip(model.hook_dict[hook].axes, cache[hook].shape, strict=False):
                    if cache[hook].ndim == len(model.hook_dict[hook].axes):
                        assert size == sizes.get(axis, size), (hook, axis)


def test_a_cache_can_be_asked_by_name_list_filter_and_shorthand() -> None:
    model, inputs = variant("llava-llama-clip")
    assert set(model.run_with_cache(inputs, names_filter="blocks.0.attn.hook_z")[1]) == {"blocks.0.attn.hook_z"}
    two = ["blocks.1.attn.hook_pattern", "projector.hook_pre"]
    assert set(model.run_with_cache(inputs, names_filter=two)[1]) == set(two)
    _, cache = model.run_with_cache(inputs, names_filter=lambda n: n.endswith("hook_pattern"))
    assert cache["pattern", 1].shape == (2, 4, *[inputs.input_ids.shape[1]] * 2)
    assert torch.equal(cache["pattern", -1], cache["blocks.1.attn.hook_pattern"])


def test_pos_slice_slices_the_prompts_positions_and_nothing_else() -> None:
    model, inputs = variant("llava-llama-clip", "use_split_qkv_input")
    _, whole = model.run_with_cache(inputs)
    _, last = model.run_with_cache(inputs, pos_slice=-1)
    for hook, activation in whole.items():
        axes = model.hook_dict[hook].axes
        place = next((i for i, axis in enumerate(axes) if axis in ("pos", "query_pos")), None)
        if hook.startswith(("blocks.", "ln_final.", "hook_embed", "hook_logits")):
            assert place is not None
            assert torch.equal(last[hook], activation.narrow(place, -1, 1)), hook
        else:
            assert torch.equal(last[hook], activation), hook


def test_the_batch_axis_can_be_dropped_for_one_row_only() -> None:
    model, inputs = variant("blip-vqa")
    _, cache = model.run_with_cache(inputs[0], remove_batch_dim=True)
    assert cache["text_encoder.blocks.0.attn.hook_pattern"].shape == (2, 5, 5)
    assert not cache.has_batch_dim
    with pytest.raises(InputsError, match="batch of one, not 2"):
        model.run_with_cache(inputs, remove_batch_dim=True)


@pytest.mark.parametrize("name", ["blip-vqa", "llava-llama-clip"])
def test_gradients_are_cached_and_equal_autograds(name: str) -> None:
    model, inputs = variant(name)
    inputs = inputs[0]
    hook = f"{model.stacks[model.prompt_stack].prefix}blocks.1.hook_attn_out"
    loss, cache = model.run_with_cache(inputs, return_type="loss", incl_bwd=True, names_filter=[hook])
    kept: list[Tensor] = []

    def keep(x: Tensor, hook: object) -> Tensor:
        kept.append(x.detach().requires_grad_())
        return kept[0]

    again = model.run_with_hooks(inputs, return_type="loss", fwd_hooks=[(hook, keep)])
    (expected,) = torch.autograd.grad(again, kept)
    assert torch.allclose(loss, again) and expected.abs().max() > 0
    assert torch.allclose(cache[f"{hook}_grad"], expected, atol=1e-6)


def test_backward_hooks_fire_in_every_stack() -> None:
    model, inputs = variant("llava-llama-clip", "use_attn_result")
    fired: set[str] = set()
    hooks = [(lambda n: "blocks.0" in n, lambda grad, hook: fired.add(hook.name))]
    with model.hooks(bwd_hooks=hooks):
        model(inputs, return_type="loss").backward()
    expected = set(model.hook_names(lambda n: "blocks.0" in n))
    assert fired == expected
    assert not model.list_hooks()


def test_a_context_leaves_nothing_behind_when_a_hook_fails() -> None:
    model, inputs = variant("blip-vqa")

    def fail(x: Tensor, hook: object) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(inputs, fwd_hooks=[("text_encoder.blocks.0.attn.hook_z", fail)])
    assert not model.list_hooks() and model.context_level == 0
    assert all(stack.offset.first_position == 0 for stack in model.stacks.values())


def test_permanent_hooks_stay_and_others_go() -> None:
    model, inputs = variant("blip-vqa")
    plain = model(inputs)
    model.add_perma_hook("text_encoder.blocks.0.cross_attn.hook_z", lambda z, hook: z * 0)
    edited = model(inputs)
    assert (edited - plain).abs().max() > 1e-4
    model.reset_hooks()
    assert torch.equal(model(inputs), edited)
    model.reset_hooks(including_permanent=True)
    assert torch.equal(model(inputs), plain)


def test_add_caching_hooks_keeps_what_later_runs_show() -> None:
    model, inputs = variant("llava-llama-clip")
    cache = model.add_caching_hooks(lambda n: n.endswith("hook_pattern"))
    model(inputs)
    model.reset_hooks()
    _, expected = model.run_with_cache(inputs, names_filter=lambda n: n.endswith("hook_pattern"))
    assert set(cache) == set(expected.keys())
    assert all(torch.equal(cache[n], expected[n]) for n in cache)


def test_generate_runs_hooks_at_every_step_with_the_positions_they_see() -> None:
    model, inputs = variant("llava-llama-clip")
    seen: dict[str, list[tuple[int, int]]] = {n: [] for n in ("hook_embed", "blocks.0.attn.hook_z", "hook_logits")}

    def note(x: Tensor, hook: Any) -> None:
        seen[hook.name].append((hook.first_position, x.shape[1]))

    with model.hooks([(n, note) for n in seen]):
        answer = model.generate(inputs, 4, return_type="tokens", stop_at_eos=False)
    n = inputs.input_ids.shape[1]
    assert answer.shape == (2, 4)
    assert seen["hook_embed"] == seen["blocks.0.attn.hook_z"] == [(0, n), (n, 1), (n + 1, 1), (n + 2, 1)]
    assert [first for first, _ in seen["hook_logits"]][1:] == [n, n + 1, n + 2]


@pytest.mark.parametrize("name", ["blip-vqa", "blip-captioning", "llava-llama-clip"])
def test_generation_under_a_hook_equals_growing_the_prompt_by_hand(name: str) -> None:
    model, inputs = variant(name)
    inputs = inputs[0].replace(decoder_input_ids=None)
    stack = model.stacks[model.answer_stack]
    hook = (f"{stack.prefix}blocks.1.attn.hook_z", lambda z, hook: z.index_fill(2, torch.tensor([0]), 0.0))
    with model.hooks([hook]):
        found = model.generate(inputs, 4, return_type="tokens", stop_at_eos=False)[0].tolist()
        expected: list[int] = []
        so_far, _ = model._answer_so_far(inputs)
        for _ in range(4):
            part = "decoder_input_ids" if name == "blip-vqa" else "input_ids"
            grown = inputs.replace(**{part: so_far, **({} if name == "blip-vqa" else {"attention_mask": None})})
            expected.append(int(model(grown)[0, -1].argmax()))
            so_far = torch.cat([so_far, torch.tensor([[expected[-1]]])], 1)
    assert found == expected


def test_decompositions_of_a_model_with_several_streams_name_the_way_out() -> None:
    model, inputs = variant("blip-vqa")
    _, cache = model.run_with_cache(inputs)
    for name in ("decompose_resid", "accumulated_resid", "stack_head_results", "logit_attrs"):
        with pytest.raises(ResidualError, match=rf"cache\.focus\(stack\)\.{name}"):
            getattr(cache, name)()
