"""A key of a cache means one hook point: cross-attention's is not self-attention's, and what is not there raises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from einops import einsum
from transformer_lens.utilities import get_act_name

from hooked_vlm.errors import HookNameError, NotCachedError, StackError
from hooked_vlm.models.cache import StackCache, VLMCache
from tests.models.test_hooks_live import variant

SHARED = ("q", "k", "v", "z", "pattern", "attn_scores", "result")
BOTH_FLAGS = ("use_attn_result", "use_split_qkv_input")


def caches(name: str, *flags: str, **options: Any) -> tuple[Any, VLMCache]:
    """A model, and the cache of a run of it."""
    model, inputs = variant(name, *flags)
    with torch.no_grad():
        return model, model.run_with_cache(inputs, **options)[1]


@pytest.mark.parametrize("stack", ["text_encoder", "text_decoder"])
def test_cross_attention_is_a_layer_type_of_every_activation_that_it_has(stack: str) -> None:
    _, whole = caches("blip-vqa", "use_attn_result")
    cache = whole.focus(stack)
    for name in SHARED:
        for layer in (0, 1, -1, np.int64(1)):
            here = f"{stack}.blocks.{int(layer) % 2}"
            for kind in ("attn", "cross_attn"):
                expected = whole[f"{here}.{kind}.hook_{name}"]
                assert torch.equal(cache[name, layer, kind], expected)
                assert (name, layer, kind) in cache
            assert not torch.equal(cache[name, layer, "cross_attn"], cache[name, layer, "attn"])
            assert torch.equal(cache[name, layer], cache[name, layer, "attn"])
        assert torch.equal(cache[f"{name}1cross_attn"], cache[name, 1, "cross_attn"])
        stacked = cache.stack_activation(name, sublayer_type="cross_attn")
        assert torch.equal(stacked, torch.stack([cache[name, layer, "cross_attn"] for layer in range(2)]))
    flagged = caches("blip-vqa", "use_split_qkv_input")[1]
    for name in ("q_input", "k_input", "v_input"):
        assert torch.equal(
            flagged.focus(stack)[name, 1, "cross_attn"], flagged[f"{stack}.blocks.1.cross_attn.hook_{name}"]
        )


@pytest.mark.parametrize("cached", [(), ("use_attn_result",)], ids=["from z", "cached"])
def test_head_results_of_cross_attention_sum_to_what_it_wrote(cached: tuple[str, ...]) -> None:
    model, whole = caches("blip-vqa", *cached)
    cache, blocks = whole.focus("text_encoder"), model.stacks["text_encoder"].blocks
    results, labels = cache.stack_head_results(return_labels=True, sublayer_type="cross_attn")
    assert labels == ["cross_attn L0H0", "cross_attn L0H1", "cross_attn L1H0", "cross_attn L1H1"]
    for layer in range(2):
        written = results[2 * layer : 2 * layer + 2].sum(0) + blocks[layer].cross_attn.b_O
        assert torch.allclose(written, cache["cross_attn_out", layer], atol=1e-5)
    by_hand = einsum(cache["z", 0, "cross_attn"], blocks[0].cross_attn.W_O, "b p h d, h d m -> h b p m")
    assert torch.allclose(cache.stack_head_results(1, sublayer_type="cross_attn"), by_hand, atol=1e-5)
    assert torch.equal(cache.stack_head_results(pos_slice=-1, sublayer_type="cross_attn"), results[:, :, -1])
    _, own = cache.stack_head_results(return_labels=True)
    assert own == ["L0H0", "L0H1", "L1H0", "L1H1"]
    with pytest.raises(StackError, match="heads before layer 3 were asked for; text_encoder has 2 layers"):
        cache.stack_head_results(3, sublayer_type="cross_attn")


@pytest.mark.parametrize(
    "key", [*(("z", 0, kind) for kind in ("cross_attn", "crossattn", "mlp", "ln1")), ("pre", 0, "attn"), "z0cross_attn"]
)
def test_a_layer_type_that_does_not_exist_raises(key: Any) -> None:
    _, whole = caches("llava-llama-clip")
    for cache in (whole, whole.focus("language_model"), whole.focus("vision_encoder")):
        with pytest.raises(HookNameError, match=r"closest are blocks\.0\.\w+\.hook_\w+"):
            cache[key]
        with pytest.raises(HookNameError):
            cache.stack_activation(key[0], sublayer_type=key[2]) if isinstance(key, tuple) else cache[key]
        assert key not in cache


def test_a_cache_of_several_stacks_sends_shorthands_to_one_of_them() -> None:
    _, cache = caches("blip-vqa")
    for key in (("z", 0, "cross_attn"), ("z", -1), "pattern1", "blocks.0.attn.hook_z"):
        with pytest.raises(HookNameError, match=r"cache\.focus\(stack\).*'text_encoder'"):
            cache[key]
    for method, given in (("stack_activation", ("z",)), ("compute_head_results", ()), ("get_neuron_results", (0,))):
        with pytest.raises(StackError, match=rf"cache\.focus\(stack\)\.{method}"):
            getattr(cache, method)(*given)


def test_a_missing_key_says_why_it_is_missing() -> None:
    _, few = caches("blip-vqa", names_filter=["text_encoder.blocks.0.attn.hook_z"])
    stack = few.focus("text_encoder")
    for ask in (
        lambda: few["text_encoder.blocks.0.cross_attn.hook_zz"],
        lambda: stack["zz", 0, "cross_attn"],
    ):
        with pytest.raises(HookNameError, match=r"closest are \S*blocks\.0\.cross_attn\.hook_z"):
            ask()
    for ask in (lambda: few["text_encoder.blocks.0.attn.hook_q"], lambda: stack["q", 0], lambda: stack["z", 1]):
        with pytest.raises(NotCachedError, match="not among the 1 activations of this cache: names_filter left it out"):
            ask()
    for ask in (lambda: few["text_encoder.blocks.0.attn.hook_result"], lambda: stack["result", 0, "cross_attn"]):
        with pytest.raises(NotCachedError, match=r"cfg\.use_attn_result is off"):
            ask()
    for ask in (lambda: few["text_encoder.blocks.0.attn.hook_z_grad"], lambda: stack["blocks.0.attn.hook_z_grad"]):
        with pytest.raises(NotCachedError, match="incl_bwd=True"):
            ask()
    for key in (
        ("z", 1.5),
        ("z", True),
        ("z", "first"),
        (0, "z"),
        ("z0", 1),
        7,
        None,
        (),
        ("z", 0, "attn", 1),
        ("z", 0, 0),
    ):
        for cache in (few, stack):
            with pytest.raises(HookNameError, match="is no key"):
                cache[key]


def test_a_slice_of_a_cache_keeps_its_keys() -> None:
    _, whole = caches("blip-vqa")
    stack = whole.focus("text_encoder")
    assert isinstance(whole.apply_slice_to_batch_dim(0), VLMCache)
    first = stack.apply_slice_to_batch_dim(0)
    assert isinstance(first, StackCache) and not first.has_batch_dim
    assert torch.equal(first["z", 0, "cross_attn"], stack["z", 0, "cross_attn"][0])


@pytest.mark.parametrize("name, stack", [("blip-vqa", "text_decoder"), ("llava-llama-clip", "language_model")])
def test_every_key_that_transformer_lens_reads_means_the_same_or_raises(name: str, stack: str) -> None:
    """Only where a layer type was given that `get_act_name` passes over does a key mean something else."""
    _, whole = caches(name, *BOTH_FLAGS)
    cache = whole.focus(stack)
    for activation in {full.rpartition("hook_")[2] for full in cache}:
        for kind, part in {None: "", "attn": "attn.", "a": "attn.", "mlp": "mlp.", "ln2": "ln2.", "block": ""}.items():
            theirs = get_act_name(activation, 0, kind)
            if theirs.startswith(f"blocks.0.{part}") and theirs in cache.cache_dict:
                assert cache[activation, 0, kind] is cache.cache_dict[theirs]
            else:
                with pytest.raises(HookNameError):
                    cache[activation, 0, kind]
