"""Weights are views onto Hugging Face's parameters, in TransformerLens' shapes."""

from __future__ import annotations

import copy

import pytest
import torch

from hooked_vlm import HookedVLM
from hooked_vlm.errors import StackError
from tests.models.test_hooks_live import VARIANTS, attentions, variant


@pytest.mark.parametrize("name", VARIANTS)
def test_no_weight_is_copied(name: str) -> None:
    model, _ = variant(name)
    storages = {p.untyped_storage().data_ptr() for p in model.hf_model.parameters()}
    n_params = sum(1 for _ in model.parameters())
    assert n_params == sum(1 for _ in model.hf_model.parameters())
    views = 0
    for module in model.mod_dict.values():
        for weight in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_gate", "W_U", "W_E", "w"):
            if isinstance(getattr(type(module), weight, None), property) and not hasattr(module, "stacked"):
                value = getattr(module, weight)
                assert value is None or value.untyped_storage().data_ptr() in storages, (type(module), weight)
                views += value is not None
    assert views >= 6 * len(attentions(model))


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_computed_from_the_weights_equal_the_hooked_ones(name: str) -> None:
    model, inputs = variant(name, "use_split_qkv_input", "use_attn_result")
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
    for attention in attentions(model):
        module, norm = model.mod_dict[attention], None
        if not model.mod_dict[attention.rpartition(".")[0]].post_norm:
            norm = model.mod_dict[attention.rpartition(".")[0]].ln1
        for letter in "QKV":
            x = cache[f"{attention}.hook_{letter.lower()}_input"]
            x = x if norm is None else norm(x)
            w, b = getattr(module, f"W_{letter}"), getattr(module, f"b_{letter}")
            expected = torch.einsum("bphm,hmd->bphd", x, w) + b
            assert torch.allclose(cache[f"{attention}.hook_{letter.lower()}"], expected, atol=1e-4)
        result = torch.einsum("bphd,hdm->bphm", cache[f"{attention}.hook_z"], module.W_O)
        assert torch.allclose(cache[f"{attention}.hook_result"], result, atol=1e-4)
        out = f"{attention.rpartition('.')[0]}.hook_{attention.rpartition('.')[2]}_out"
        assert torch.allclose(cache[out], result.sum(2) + module.b_O, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_qk_and_ov_are_the_products_of_their_factors(name: str) -> None:
    model, _ = variant(name)
    for attention in attentions(model):
        module = model.mod_dict[attention]
        group = module.cfg.n_heads // module.W_K.shape[0]
        for head in range(module.cfg.n_heads):
            qk = module.W_Q[head] @ module.W_K[head // group].T
            ov = module.W_V[head // group] @ module.W_O[head]
            assert torch.allclose(module.QK.AB[head], qk, atol=1e-5)
            assert torch.allclose(module.OV.AB[head], ov, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_stacked_weights_have_one_entry_a_layer(name: str) -> None:
    model, _ = variant(name)
    for stack in model.stacks.values():
        for weight, module in (("W_Q", "attn"), ("W_O", "attn"), ("b_V", "attn"), ("W_in", "mlp"), ("b_out", "mlp")):
            whole = getattr(stack, weight)
            assert whole.shape[0] == stack.cfg.n_layers
            assert all(
                torch.equal(w, getattr(getattr(b, module), weight)) for w, b in zip(whole, stack.blocks, strict=True)
            )
        if hasattr(stack.blocks[0], "cross_attn"):
            assert torch.equal(stack.stacked("W_V", "cross_attn")[1], stack.blocks[1].cross_attn.W_V)
        if stack.blocks[0].mlp.W_gate is None:
            with pytest.raises(StackError, match=r"no mlp\.W_gate"):
                _ = stack.W_gate
    if model.main_stack is not None:
        assert torch.equal(model.W_Q, model.stacks[model.main_stack].W_Q)
        assert model.W_E.shape[0] == model.W_U.shape[1]


def test_a_change_of_the_hugging_face_weight_is_seen_at_once() -> None:
    model, _ = variant("llava-llama-clip")
    with torch.no_grad():
        model.hf_model.model.language_model.layers[1].self_attn.v_proj.weight.zero_()
    assert (model.blocks[1].attn.W_V == 0).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_deep_copy_stands_on_its_own_weights(name: str) -> None:
    model, inputs = variant(name)
    with torch.no_grad():
        plain, other = model(inputs), copy.deepcopy(model)
        assert torch.equal(other(inputs), plain)
        for p in model.parameters():
            p.zero_()
        assert torch.equal(other(inputs), plain)
        edit = (f"{model.stacks[model.prompt_stack].prefix}blocks.0.attn.hook_z", lambda z, hook: z * 0)
        assert not torch.equal(other.run_with_hooks(inputs, fwd_hooks=[edit]), plain)
        assert not model.list_hooks()


def test_moving_the_model_tells_every_config() -> None:
    model, inputs = variant("blip-vqa")
    model.to(torch.float64)
    assert {stack.cfg.dtype for stack in model.stacks.values()} == {torch.float64}
    assert model(inputs.to(dtype=torch.float64)).dtype == torch.float64
    assert model.cfg.device == "cpu" and isinstance(model, HookedVLM)
