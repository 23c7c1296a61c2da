"""No silent hook: an edit at any hook point of any stack changes the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_vlm import HookedVLM
from hooked_vlm.errors import GatedHookError, HookNameError, SilentHookError
from tests.models import drawn

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "blip-vqa": ("vqa", {}),
    "blip-captioning": ("caption", {}),
    "blip-retrieval": ("itm", {}),
    "llava-llama-clip": ("llava", {"bias": True}),
    "llava-mistral-siglip": ("llava", {"text": "mistral", "vision": "siglip", "strategy": "full", "n_kv_heads": 4}),
    "llava-qwen2-two-layers": ("llava", {"text": "qwen2", "feature_layer": [-3, -1]}),
}

# Hook points that a run for logits lawfully never reaches, and why.
EXCEPTIONS = {
    "hook_image_embed": "the contrastive features are computed for return_type='similarity' alone",
    "hook_text_embed": "the contrastive features are computed for return_type='similarity' alone",
}


def variant(name: str, *flags: str) -> tuple[HookedVLM, Any]:
    """A hooked model and inputs for it, with some flags on."""
    kind, options = VARIANTS[name]
    hf = drawn.llava(**options) if kind == "llava" else drawn.blip(kind, **options)
    model = HookedVLM.from_hf(hf)
    for flag in flags:
        setattr(model.cfg, flag, True)
    return model, drawn.inputs_for(hf, kind, [5, 3], n_answer=2)


def replaced_by_noise(activation: Tensor, hook: Any) -> Tensor:
    """Noise of the activation's own size; positive, so that it is a possible norm's scale or pattern."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(activation.shape, generator=generator).to(activation.dtype)
    finite = activation.masked_fill(~activation.isfinite(), 0.0)
    return noise * (finite.abs().max() + 1.0) + 0.1


@pytest.mark.parametrize(
    "flags", [(), ("use_attn_result",), ("use_split_qkv_input",)], ids=["plain", "result", "split"]
)
@pytest.mark.parametrize("name", VARIANTS)
def test_an_edit_at_any_hook_point_changes_the_logits(name: str, flags: tuple[str, ...]) -> None:
    model, inputs = variant(name, *flags)
    with torch.no_grad():
        plain = model(inputs)
        dead, unreached = [], []
        for hook in model.hook_names(lambda _: True):
            try:
                edited = model.run_with_hooks(inputs, fwd_hooks=[(hook, replaced_by_noise)])
            except SilentHookError:
                unreached.append(hook)
                continue
            if not (edited - plain).abs().max() > 1e-4:
                dead.append(hook)
    assert dead == []
    assert unreached == [hook for hook in model.hook_dict if hook in EXCEPTIONS]


@pytest.mark.parametrize("hook", EXCEPTIONS)
def test_contrastive_features_are_live_in_the_similarity(hook: str) -> None:
    model, inputs = variant("blip-retrieval")
    plain = model(inputs, return_type="similarity")
    edited = model.run_with_hooks(inputs, return_type="similarity", fwd_hooks=[(hook, replaced_by_noise)])
    assert (edited - plain).abs().max() > 1e-4


def test_cross_attention_hooks_raise_in_a_run_without_cross_attention() -> None:
    model, inputs = variant("blip-retrieval")
    hook = "text_encoder.blocks.0.cross_attn.hook_z"
    with pytest.raises(SilentHookError, match=hook):
        model.run_with_hooks(inputs, return_type="similarity", fwd_hooks=[(hook, replaced_by_noise)])


def attentions(model: HookedVLM) -> list[str]:
    """Names of every attention of every stack."""
    return [name.removesuffix(".hook_z") for name in model.hook_dict if name.endswith(".hook_z")]


@pytest.mark.parametrize("name", VARIANTS)
def test_zeroing_a_heads_z_equals_subtracting_its_result(name: str) -> None:
    model, inputs = variant(name, "use_attn_result")
    assert {n.rsplit(".", 1)[-1] for n in attentions(model)} == {"attn"} | ({"cross_attn"} if "blip" in name else set())
    with torch.no_grad():
        for attention in attentions(model):
            for head in range(model.mod_dict[attention].cfg.n_heads):

                def zero(z: Tensor, hook: Any, head: int = head) -> Tensor:
                    return z.index_fill(2, torch.tensor([head]), 0.0)

                out = f"{attention.rpartition('.')[0]}.hook_{attention.rpartition('.')[2]}_out"
                _, cache = model.run_with_cache(inputs, names_filter=[f"{attention}.hook_result"])
                result = cache[f"{attention}.hook_result"][:, :, head]
                zeroed = model.run_with_hooks(inputs, fwd_hooks=[(f"{attention}.hook_z", zero)])
                subtracted = model.run_with_hooks(inputs, fwd_hooks=[(out, lambda x, hook, r=result: x - r)])
                assert torch.allclose(zeroed, subtracted, atol=1e-5 * float(zeroed.abs().max()))


@pytest.mark.parametrize("name", VARIANTS)
def test_use_attn_result_and_split_inputs_change_no_number(name: str) -> None:
    with torch.no_grad():
        model, inputs = variant(name)
        plain = model(inputs)
        for flag in ("use_attn_result", "use_split_qkv_input"):
            model, inputs = variant(name, flag)
            assert torch.allclose(model(inputs), plain, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("name", VARIANTS)
def test_an_edit_of_one_heads_input_reaches_that_head_alone(name: str, which: str) -> None:
    model, inputs = variant(name, "use_split_qkv_input")
    for attention in attentions(model):
        other = model.mod_dict[attention]._leaves
        n_heads = (other.q if which == "q" else other.k).weight.shape[0] // model.mod_dict[attention].cfg.d_head
        head = n_heads - 1

        def shift(x: Tensor, hook: Any, head: int = head) -> Tensor:
            x[:, :, head] += torch.arange(x.shape[-1]).to(x)  # in place, as TransformerLens' own functions do
            return x

        seen = f"{attention}.hook_{which}"
        with torch.no_grad():
            _, before = model.run_with_cache(inputs, names_filter=seen)
            with model.hooks([(f"{attention}.hook_{which}_input", shift)]):
                _, after = model.run_with_cache(inputs, names_filter=seen)
        moved = (after[seen] - before[seen]).abs().amax((0, 1, 3)) > 1e-4
        assert moved.tolist() == [h == head for h in range(n_heads)]


def feeds(model: HookedVLM, hook: str) -> list[str]:
    """The hook point whose very tensor arrives at `hook`, if there is one."""
    point = model.hook_dict[hook]
    block = hook.rpartition(".")[0]
    if hook.endswith("hook_mlp_in"):
        ways = ("hook_normalized_resid_mid_cross", "hook_normalized_resid_mid", "hook_resid_mid")
    elif hook.endswith("hook_resid_pre") and point.layer():
        block = block.replace(f".{point.layer()}", f".{point.layer() - 1}", 1)
        ways = ("hook_normalized_resid_post", "hook_resid_post")
    else:
        return []
    return [f"{block}.{way}" for way in ways if f"{block}.{way}" in model.hook_dict][:1]


@pytest.mark.parametrize("name", VARIANTS)
def test_an_in_place_edit_reaches_only_its_own_hook_point(name: str) -> None:
    """Copies are handed out where an activation shares memory with the stream, the inputs or a weight."""
    model, inputs = variant(name)
    weights = [p.clone() for p in model.parameters()]
    pixels = inputs.pixel_values.clone()

    def spoil(x: Tensor, hook: Any) -> Tensor:
        x += 1.0
        return x

    with torch.no_grad():
        for hook in model.hook_names(lambda n: n.endswith(("hook_resid_pre", "hook_mlp_in", "embed", "pixel_values"))):
            if hook in EXCEPTIONS:
                continue
            upstream = feeds(model, hook)
            names = ["hook_logits", *upstream]
            _, before = model.run_with_cache(inputs, names_filter=names)
            with model.hooks([(hook, spoil)]):
                _, after = model.run_with_cache(inputs, names_filter=names)
            assert all(torch.equal(before[n], after[n]) for n in upstream)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert torch.equal(pixels, inputs.pixel_values)


def test_an_unknown_hook_name_raises_with_the_closest() -> None:
    model, inputs = variant("blip-vqa")
    for ask in (
        lambda n: model.run_with_hooks(inputs, fwd_hooks=[(n, replaced_by_noise)]),
        lambda n: model.run_with_cache(inputs, names_filter=n),
        lambda n: model.run_with_cache(inputs, names_filter=["hook_logits", n]),
        lambda n: model.add_hook(n, replaced_by_noise),
    ):
        with pytest.raises(HookNameError, match=r"closest are text_encoder\.blocks\.1\.cross_attn\.hook_pattern"):
            ask("text_encoder.blocks.1.cross_attn.hook_patern")
    with pytest.raises(HookNameError, match="matches none"):
        model.run_with_hooks(inputs, fwd_hooks=[(lambda n: "blokcs" in n, replaced_by_noise)])
    assert not model.list_hooks()


@pytest.mark.parametrize("hook, flag", [("hook_result", "use_attn_result"), ("hook_q_input", "use_split_qkv_input")])
def test_a_gated_hook_raises_while_its_flag_is_off_and_names_it(hook: str, flag: str) -> None:
    model, inputs = variant("llava-llama-clip")
    for name in (f"blocks.0.attn.{hook}", f"vision_encoder.blocks.1.attn.{hook}"):
        for ask in (
            lambda n: model.run_with_hooks(inputs, fwd_hooks=[(n, replaced_by_noise)]),
            lambda n: model.run_with_cache(inputs, names_filter=n),
            lambda n: model.run_with_cache(inputs, names_filter=lambda m, n=n: m == n),
            lambda n: model.add_perma_hook(n, replaced_by_noise),
        ):
            with pytest.raises(GatedHookError, match=f"{name} is off.*model.cfg.{flag} = True"):
                ask(name)
        model.hook_dict[name].add_hook(replaced_by_noise)  # past the model, straight at the hook point
        with pytest.raises(GatedHookError, match=flag):
            model(inputs)
        model.reset_hooks()
        setattr(model.cfg, flag, True)
        assert name in model.run_with_cache(inputs, names_filter=name)[1]
        setattr(model.cfg, flag, False)


def test_flags_can_be_set_for_one_stack() -> None:
    model, inputs = variant("blip-vqa")
    model.stacks["text_encoder"].cfg.use_attn_result = True
    _, cache = model.run_with_cache(inputs)
    with_result = [n for n in cache if n.endswith("hook_result")]
    assert len(with_result) == 4 and all(n.startswith("text_encoder.") for n in with_result)
