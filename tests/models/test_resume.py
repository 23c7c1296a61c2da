"""Resuming a finished run equals running the whole model with the same alteration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM
from hooked_vlm.errors import StackError
from tests.models import drawn
from tests.models.reference import scale
from tests.models.test_hooks_live import VARIANTS, variant


def hook_of(model: HookedVLM, stack: str, layer: int, name: str) -> str:
    """Full name of a block's hook point."""
    return f"{model.stacks[stack].prefix}blocks.{layer}.{name}"


def arrives_at(model: HookedVLM, stack: str, layer: int) -> str:
    """The hook point whose output is the stream that arrives before a layer (n_layers: after the last)."""
    if layer == 0:
        return hook_of(model, stack, 0, "hook_resid_pre")
    end = "hook_normalized_resid_post" if model.stacks[stack].post_norm else "hook_resid_post"
    return hook_of(model, stack, layer - 1, end)


@pytest.mark.parametrize("feature_layers", [[1, 2], [3, 1], [-1, -2], [1, 2, 3]], ids=str)
def test_rows_join_a_tower_of_which_several_layers_are_read(feature_layers: list[int]) -> None:
    hf = drawn.llava(feature_layer=feature_layers)
    model, inputs = HookedVLM.from_hf(hf), drawn.inputs_for(hf, "llava", [4, 4])
    n_layers = model.stacks["vision_encoder"].cfg.n_layers
    with torch.no_grad():
        _, state = model.run_with_state(inputs)
        for layers in ({0}, {n_layers - 1}, {n_layers}, set(range(n_layers + 1))):
            injected, expected = {}, []
            for layer in sorted(layers):
                base = state.resid_pre("vision_encoder", layer)
                injected[layer] = base + base.flip(1)
                hook = (arrives_at(model, "vision_encoder", layer), lambda x, hook: x + x.flip(1))
                expected.append(model.run_with_hooks(inputs, fwd_hooks=[hook]))
            whole = torch.stack(expected, 1).flatten(0, 1)
            assert torch.allclose(model.resume(state, "vision_encoder", injected), whole, atol=2e-5 * scale(whole))


@pytest.mark.parametrize(
    "hook", ["attn.hook_z", "attn.hook_k", "attn.hook_pattern", "mlp.hook_post", "hook_resid_post"]
)
@pytest.mark.parametrize("name", VARIANTS)
def test_hooks_act_on_resumed_rows_as_on_a_whole_run(name: str, hook: str) -> None:
    model, inputs = variant(name)
    inputs = inputs[0]
    with torch.no_grad():
        plain, state = model.run_with_state(inputs)
        for stack in model.stacks:
            edit = (hook_of(model, stack, 1, hook), lambda x, hook: x * 0.5)
            expected = model.run_with_hooks(inputs, fwd_hooks=[edit])
            base = state.resid_pre(stack, 1)
            with model.hooks([edit]):
                found = model.resume(state, stack, {1: base.repeat_interleave(2, 0)})
            assert torch.allclose(found, expected.repeat_interleave(2, 0), atol=2e-5 * scale(plain))


@pytest.mark.parametrize("hook", ["hook_k", "hook_v", "hook_q", "hook_pattern"])
@pytest.mark.parametrize("name", ["blip-vqa", "blip-captioning", "blip-retrieval"])
def test_rows_can_have_keys_and_values_of_their_own_in_cross_attention(name: str, hook: str) -> None:
    model, inputs = variant(name)

    def second_row(x: Tensor, hook: Any) -> Tensor:
        assert x.shape[0] == 3 * len(inputs)
        x[1::3] *= -0.5
        return x

    with torch.no_grad():
        plain, state = model.run_with_state(inputs)
        for stack in [s for s in model.stacks if s.startswith("text")]:
            full = hook_of(model, stack, 0, f"cross_attn.{hook}")
            expected = model.run_with_hooks(inputs, fwd_hooks=[(full, lambda x, hook: x * -0.5)])
            with model.hooks([(full, second_row)]):
                found = model.resume(state, stack, {0: state.resid_pre(stack, 0).repeat_interleave(3, 0)})
            assert torch.allclose(found[1::3], expected, atol=2e-5 * scale(plain))
            assert torch.allclose(found[0::3], plain, atol=2e-5 * scale(plain))


def test_earlier_stages_and_shared_keys_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = variant("blip-vqa")
    _, state = model.run_with_state(inputs)
    fired: list[str] = []
    for name, point in model.hook_dict.items():
        if model._is_on(name):
            point.add_hook(
                lambda x, hook: fired.append(hook.name) if not hook.name.endswith(("hook_k", "hook_v")) else None
            )
    read: list[Any] = []
    for block in model.stacks["text_encoder"].blocks:
        leaf = block.cross_attn._leaves.k.linear
        monkeypatch.setattr(leaf, "forward", lambda x, leaf=leaf: read.append(x) or type(leaf).forward(leaf, x))
    model.hook_dict["text_encoder.blocks.1.cross_attn.hook_k"].remove_hooks("both", including_permanent=True)
    model.hook_dict["text_encoder.blocks.1.cross_attn.hook_v"].remove_hooks("both", including_permanent=True)
    model.resume(state, "text_encoder", {1: state.resid_pre("text_encoder", 1)})
    assert not any(name.startswith(("vision_encoder", "text_encoder.blocks.0.", "hook_pixel")) for name in fired)
    assert read == []


def test_logits_at_the_last_position_alone() -> None:
    model, inputs = variant("llava-llama-clip")
    _, state = model.run_with_state(inputs)
    rows = {1: state.resid_pre("language_model", 1)[:, 3:].repeat_interleave(2, 0)}
    whole = model.resume(state, "language_model", rows, first_position=3)
    last = model.resume(state, "language_model", rows, first_position=3, logits_at="last")
    places = (inputs.last_each - 3).repeat_interleave(2)
    assert last.shape[1] == 1
    assert torch.allclose(last[:, 0], whole[torch.arange(4), places], atol=1e-5)


@settings(max_examples=25)
@given(case=drawn.cases(kinds=("llava", "caption"), max_batch=3), data=st.data())
def test_the_last_position_alone_is_that_of_all_positions(case: drawn.Case, data: st.DataObject) -> None:
    case = case.exactly()
    model, inputs = case.hooked(), case.inputs
    name = model.prompt_stack
    first = data.draw(st.integers(0, int(inputs.last_each.min())), label="first position")
    layers = data.draw(st.sets(st.integers(0, len(model.stacks[name].blocks)), min_size=1), label="layers")
    with torch.no_grad():
        _, state = model.run_with_state(inputs)
        rows = {layer: state.resid_pre(name, layer)[:, first:].repeat_interleave(2, 0) for layer in layers}
        rows = {layer: x + torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for layer, x in rows.items()}
        whole = model.resume(state, name, rows, first_position=first)
        found = model.resume(state, name, rows, first_position=first, logits_at="last")
    places = (inputs.last_each - first).repeat_interleave(len(whole) // len(inputs))
    torch.testing.assert_close(found[:, 0], whole[torch.arange(len(whole)), places])


def test_the_last_block_runs_the_last_position_alone_unless_somebody_looks() -> None:
    model, inputs = variant("llava-llama-clip")
    inputs = next(row for row in inputs if row.rows_end_together)
    n_positions, n_seen = inputs.input_ids.shape[1], []
    _, state = model.run_with_state(inputs)
    last = model.blocks[-1]
    watching = last.mlp._out.linear.register_forward_hook(lambda layer, given, out: n_seen.append(out.shape[1]))
    for hooks in ([], [(f"blocks.{len(model.blocks) - 1}.hook_mlp_in", lambda x, hook: None)]):
        with model.hooks(hooks):
            model.resume(state, "language_model", {0: state.resid_pre("language_model", 0)}, logits_at="last")
    watching.remove()
    assert n_seen == [1, n_positions]


def test_hooks_know_the_first_position_of_a_resumed_pass() -> None:
    model, inputs = variant("llava-llama-clip")
    _, state = model.run_with_state(inputs)
    seen: list[tuple[int, int]] = []
    note = ("blocks.1.attn.hook_z", lambda z, hook: seen.append((hook.first_position, z.shape[1])))
    with model.hooks([note]):
        model.resume(state, "language_model", {1: state.resid_pre("language_model", 1)[:, 4:]}, first_position=4)
        model(inputs)
    n = inputs.input_ids.shape[1]
    assert seen == [(4, n - 4), (0, n)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stack": "vision"}, "no stack 'vision'; this model has vision_encoder, text_encoder, text_decoder"),
        ({"injected": {}}, "no rows join"),
        ({"injected": {7: torch.zeros(2, 5, 16)}}, "layers 0 to 1, and 2 stands for what leaves the last; 7"),
        ({"injected": {0: torch.zeros(3, 5, 16)}}, r"shape \(3, 5, 16\); expected \[n \* 2 5 16\]"),
        ({"injected": {0: torch.zeros(2, 4, 16)}}, r"expected \[n \* 2 5 16\]"),
        ({"first_position": 2}, "bidirectional"),
        ({"stack": "text_decoder", "first_position": 3, "injected": {0: torch.zeros(2, 0, 16)}}, "positions 0 to 2"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x[:20],
)
def test_what_cannot_be_resumed_raises(change: dict[str, Any], message: str) -> None:
    model, inputs = variant("blip-vqa")
    _, state = model.run_with_state(inputs)
    asked: dict[str, Any] = {"stack": "text_encoder", "injected": {0: state.resid_pre("text_encoder", 0)}, **change}
    with pytest.raises(StackError, match=message):
        model.resume(state, asked.pop("stack"), asked.pop("injected"), **asked)


def test_rows_are_injected_under_their_old_name_too() -> None:
    model, inputs = variant("blip-vqa")
    _, state = model.run_with_state(inputs)
    rows = {0: state.resid_pre("text_encoder", 0)}
    with pytest.warns(DeprecationWarning, match="^resume's joins is deprecated: it is injected now$"):
        found = model.resume(state, "text_encoder", joins=rows)  # type: ignore[call-arg]
    assert torch.equal(found, model.resume(state, "text_encoder", rows))
    with pytest.raises(TypeError, match="unexpected keyword argument 'joins'"):
        model.resume(state, "text_encoder", injected=rows, joins=rows)  # type: ignore[call-arg]
