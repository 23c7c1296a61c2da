"""A run that stops at a layer gives the stream as it arrives there, and computes nothing that this does not need."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge.sources import build_bridge_from_module

from hooked_vlm import HookedLLaVA, HookedVLM, VLMInputs
from hooked_vlm.errors import HookNameError, InputsError, SilentHookError, StackError, StackNameError
from tests.models import checkpoints, drawn
from tests.models.test_hooks_live import VARIANTS, variant
from tests.models.test_resume import arrives_at
from tests.models.unchecked import unchecked


def nothing(activation: Tensor, hook: Any) -> None:
    """A hook that looks and changes nothing."""


def reached(model: HookedVLM, stack: str, layer: int) -> set[str]:
    """The hook points of a run that stops there, from the names alone."""
    order, crossed = list(model.stacks), getattr(model.stacks[stack].blocks[0], "has_cross_attn", False)
    whole = order[: order.index(stack)] if layer > 0 or not crossed else []
    outside = {"vision_encoder": ["hook_pixel_values"], "language_model": ["hook_embed"]}
    if "vision_encoder" in whole:
        outside["vision_encoder"] += [n for n in model.hook_dict if n.startswith("projector.")] + [
            "hook_image_features"
        ]
    found = {name for one in [*whole, stack] for name in outside.get(one, [])}
    for name in model.hook_names(lambda _: True):
        owner = next((s for s in order if model.stacks[s].prefix and name.startswith(model.stacks[s].prefix)), None)
        owner = "language_model" if name.startswith("blocks.") else owner
        parts = name.split("blocks.")
        ends = ("ln_final", "head.", "hook_logits")
        in_blocks = len(parts) == 2 and int(parts[1].split(".")[0]) < layer
        begins = len(parts) == 1 and not name.removeprefix(f"{owner}.").startswith(ends)
        if owner in whole or (owner == stack and (in_blocks or begins)):
            found.add(name)
    return found


@settings(max_examples=10)
@given(data=st.data())
def test_a_stopped_run_gives_what_arrives_in_a_whole_one(data: st.DataObject) -> None:
    """Bit for bit: the same kernels run. Everything that is looked at is equal too, and nothing else is."""
    case = data.draw(drawn.cases(any_size=True))
    model, options = case.hooked(), {"interpolate_pos_encoding": case.interpolate}
    stack = data.draw(st.sampled_from(list(model.stacks)))
    n_layers = len(model.stacks[stack].blocks)
    layer = data.draw(st.integers(-n_layers, n_layers))
    first = layer % n_layers if layer < n_layers else layer
    names = [arrives_at(model, stack, first)]
    names += [f"{model.stacks[stack].prefix}blocks.{first}.hook_resid_pre"] if first < n_layers else []
    with torch.no_grad():
        found = model(case.inputs, stop_at_layer=(stack, layer), **options)
        _, arrives = model.run_with_cache(case.inputs, names_filter=names, **options)
        assert all(torch.equal(found, arrives[name]) for name in names)
        _, whole = model.run_with_cache(case.inputs, **options)
        again, cache = model.run_with_cache(case.inputs, stop_at_layer=(stack, layer), **options)
    assert torch.allclose(again, found, atol=1e-4)
    assert set(cache) == reached(model, stack, first)
    assert all(torch.equal(cache[name], whole[name]) for name in cache)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_layer_alone_is_one_of_the_prompts_stack(name: str) -> None:
    model, inputs = variant(name)
    for layer in (0, 1, -1, 2):
        named = model(inputs, stop_at_layer=(model.prompt_stack, layer))
        assert torch.equal(model(inputs, stop_at_layer=layer), named)
        assert torch.equal(model.run_with_hooks(inputs, stop_at_layer=layer, fwd_hooks=[]), named)
    assert model(inputs, None, stop_at_layer=1) is None


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_that_is_not_asked_for_is_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = variant(name)
    called: set[str] = set()
    for path, module in model.hf_model.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda module, given, path=path: called.add(path))
    parts = {"vision_encoder": "vision", "text_encoder": "text_encoder", "text_decoder": "text_decoder"}
    for stack in model.stacks:
        for layer in range(len(model.stacks[stack].blocks) + 1):
            called.clear()
            model(inputs, stop_at_layer=(stack, layer))
            order = list(model.stacks)
            for other in order:
                part = parts.get(other, "language_model")
                ran = any(part in path for path in called)
                behind = order.index(other) > order.index(stack)
                unread = other != stack and layer == 0 and "text" in stack
                assert ran == (not behind and not unread), (stack, layer, other)
            layers = [p for p in called if f"layers.{layer}." in p or f"layer.{layer}." in p]
            part = parts.get(stack, "language_model")
            assert not [p for p in layers if part in p and "vision_proj" not in p]
            assert not [p for p in called if "lm_head" in p or "cls." in p or "itm_head" in p or ("post_layernorm" in p
                        and stack == "vision_encoder")]  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_hook_before_the_stop_acts_and_one_behind_it_raises(name: str) -> None:
    model, inputs = variant(name)
    order = list(model.stacks)
    for stack in order:
        prefix = model.stacks[stack].prefix
        plain = model(inputs, stop_at_layer=(stack, 1))
        acts = (f"{prefix}blocks.0.attn.hook_z", lambda z, hook: z * 0.5)
        assert not torch.allclose(model.run_with_hooks(inputs, fwd_hooks=[acts], stop_at_layer=(stack, 1)), plain)
        behind = [f"{prefix}blocks.1.hook_resid_pre", *(["hook_logits"] if "hook_logits" in model.hook_dict else [])]
        behind += [f"{model.stacks[later].prefix}blocks.0.attn.hook_z" for later in order[order.index(stack) + 1 :]]
        for late in behind:
            for hooked in (late, lambda n, late=late: n == late):
                with pytest.raises(SilentHookError, match=f"never reached {late}, so the hooks"):
                    model.run_with_hooks(inputs, fwd_hooks=[acts, (hooked, nothing)], stop_at_layer=(stack, 1))
            for hooked in (late, [acts[0], late], lambda n, late=late: n == late):
                with pytest.raises(SilentHookError, match=f"never reached {late}, so there is nothing"):
                    model.run_with_cache(inputs, names_filter=hooked, stop_at_layer=(stack, 1))
        everywhere = (lambda n: n.endswith("attn.hook_z"), nothing)
        assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=[everywhere], stop_at_layer=(stack, 1)), plain)
        assert not model.list_hooks()


def test_a_filter_that_matches_only_what_a_run_never_reaches_raises() -> None:
    """Whatever the reason: a similarity has no cross-attention."""
    model, inputs = variant("blip-retrieval")
    hooked = lambda n: "cross_attn" in n  # noqa: E731
    with pytest.raises(SilentHookError, match=r"any of text_encoder\.blocks\.0\.cross_attn\.hook_q"):
        model.run_with_hooks(inputs, return_type="similarity", fwd_hooks=[(hooked, nothing)])
    for names in (hooked, "text_encoder.blocks.1.cross_attn.hook_z", ["hook_text_embed", [hooked]]):
        with pytest.raises(SilentHookError, match="nothing of them to cache"):
            model.run_with_cache(inputs, return_type="similarity", names_filter=names)
    _, cache = model.run_with_cache(inputs, return_type="similarity", names_filter=iter(["hook_text_embed"]))
    assert list(cache) == ["hook_text_embed"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"return_type": "loss"}, "stop_at_layer is 1: .*layer 1 of text_encoder.*return_type 'loss'"),
        ({"return_type": "both"}, "return_type 'both'"),
        ({"logits_at": "last"}, "logits_at 'last'"),
        ({"logits_at": [0]}, r"logits_at \[0\]"),
        ({"loss_per_token": True}, "loss_per_token True"),
        ({"stop_at_layer": 3}, "stop_at_layer is 3 and text_encoder has layers 0 to 1: .*2 for what leaves the last"),
        ({"stop_at_layer": -3}, "stop_at_layer is -3"),
        ({"stop_at_layer": ("vision_encoder", 9)}, "stop_at_layer is 9 and vision_encoder has"),
        ({"stop_at_layer": ("vision", 1)}, "no stack 'vision'; this model has vision_encoder, text_encoder"),
        *(
            ({"stop_at_layer": given}, "stop_at_layer is .*expected a layer of text_encoder, or a stack and a layer")
            for given in (True, 1.0, "1", "text_encoder", (1, "text_encoder"), ("text_encoder",), (), torch.zeros(2))
        ),
    ],
    ids=str,
)
def test_what_contradicts_a_stop_or_is_none_raises(options: dict[str, Any], word: str) -> None:
    model, inputs = variant("blip-vqa")
    options = {"stop_at_layer": 1, **options}
    for run in (model, model.run_with_hooks, model.run_with_cache):
        with unchecked(), pytest.raises((InputsError, StackError, StackNameError), match=word):
            run(inputs, **options)


def test_gradients_of_a_loss_are_not_kept_of_a_run_without_one() -> None:
    model, inputs = variant("blip-vqa")
    with pytest.raises(InputsError, match=r"stop_at_layer is 1: .*incl_bwd"):
        model.run_with_cache(inputs, incl_bwd=True, stop_at_layer=1)


@pytest.mark.parametrize("options", [{"stop_at_layer": 1}, {"logits_at": "last"}, {"loss_per_token": True}], ids=str)
def test_a_similarity_refuses_what_is_asked_of_logits(options: dict[str, Any]) -> None:
    model, inputs = variant("blip-retrieval")
    with pytest.raises(InputsError, match=f"similarity has no logits.*leave out {next(iter(options))}="):
        model(inputs, "similarity", **options)
    assert model(inputs, "similarity", logits_at=None).shape == (2, 2)


@pytest.mark.parametrize("layer", [0, 1, -1, 2])
@pytest.mark.parametrize("stack", ["vision_encoder", "text_encoder", "text_decoder"])
def test_a_view_stops_at_a_layer_of_its_own_stack(stack: str, layer: int) -> None:
    model = HookedVLM.from_hf(*checkpoints.blip_vqa())
    pictures = [checkpoints.picture(0)]
    view = model.focus(stack, images=pictures, texts="is it red ?")
    tokens = view.to_tokens(pictures if stack == "vision_encoder" else "is it red ?")
    inputs = view.to_inputs(tokens)
    expected = model(inputs, stop_at_layer=(stack, layer))
    assert torch.equal(view(tokens, stop_at_layer=layer), expected)
    assert torch.equal(view(tokens, stop_at_layer=(stack, layer)), expected)
    hook = (lambda n: n.startswith(("blocks.", "hook_embed")), nothing)
    assert torch.allclose(view.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer), expected, atol=1e-5)
    found, cache = view.run_with_cache(tokens, stop_at_layer=layer)
    assert torch.allclose(found, expected, atol=1e-5)
    first = layer % 2 if layer < 2 else layer
    assert {n.split(".")[1] for n in cache if n.startswith("blocks.")} == {str(i) for i in range(first)}
    with pytest.raises(SilentHookError, match=r"blocks\.1\."):
        view.run_with_cache(tokens, names_filter=["blocks.1.attn.hook_z"], stop_at_layer=1)


def test_a_residual_streams_gradient_reaches_the_pixels() -> None:
    model, inputs = variant("llava-llama-clip")
    inputs.pixel_values.requires_grad_()
    model(inputs, stop_at_layer=1).square().sum().backward()
    assert inputs.pixel_values.grad is not None and inputs.pixel_values.grad.abs().max() > 0


def test_a_hook_on_a_hugging_face_layer_behind_the_stop_is_not_told_to_be_passed_by(recwarn: Any) -> None:
    model, inputs = variant("blip-vqa")
    seen: list[int] = []
    model.hf_model.text_decoder.cls.predictions.decoder.register_forward_hook(lambda *given: seen.append(1))
    model(inputs, stop_at_layer=1)
    model(inputs)
    assert seen == [1] and not [w for w in recwarn if "never called" in str(w.message)]


@pytest.mark.parametrize("layer", [0, 1, -1, -2])
def test_the_stream_is_the_bridges(layer: int) -> None:
    """TransformerLens' own bridge, which at n_layers gives logits."""
    hf = drawn.llava()
    inputs = drawn.inputs_for(hf, "llava", [6])
    bridge = build_bridge_from_module(copy.deepcopy(hf), "LlavaForConditionalGeneration", hf_config=hf.config)
    with torch.no_grad():
        theirs = bridge.forward(inputs.input_ids, pixel_values=inputs.pixel_values, stop_at_layer=layer)
        ours = HookedLLaVA.from_hf(hf)(inputs, stop_at_layer=layer)
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))


def test_a_run_through_a_mapping_stops_too() -> None:
    model, inputs = variant("blip-captioning")
    parts = {k: v for k, v in vars(inputs).items() if isinstance(v, Tensor)}
    assert torch.equal(model(VLMInputs.of(parts), stop_at_layer=1), model(parts, stop_at_layer=1))


def test_an_unknown_name_is_told_before_anything_runs() -> None:
    model, inputs = variant("blip-vqa")
    with unchecked(), pytest.raises(HookNameError, match="3, an int"):
        model.run_with_cache(inputs, names_filter=3, stop_at_layer=1)
