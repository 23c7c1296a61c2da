"""TransformerLens' own code, unchanged, on one stack of a vision-language model."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import head_detector, patching
from transformer_lens.model_protocol import TransformerLensModelWithWeights
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

from hooked_vlm import HookedVLM
from hooked_vlm.errors import HookNameError, InputsError, ResidualError, StackError
from hooked_vlm.models.focus import FocusedStack
from tests.models import checkpoints
from tests.models.reference import scale
from tests.models.test_hooks_live import VARIANTS, variant

SWEEPS = [
    "get_act_patch_resid_pre",
    "get_act_patch_resid_mid",
    "get_act_patch_attn_out",
    "get_act_patch_mlp_out",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_pattern_all_pos",
]
EVERY = ["get_act_patch_attn_head_all_pos_every", "get_act_patch_attn_head_by_pos_every", "get_act_patch_block_every"]
VIEWS = [
    ("vqa", "vision_encoder"),
    ("vqa", "text_encoder"),
    ("vqa", "text_decoder"),
    ("llava", "vision_encoder"),
    ("llava", "language_model"),
]


@pytest.fixture(scope="module")
def models() -> dict[str, HookedVLM]:
    """Two small models with processors."""
    return {"vqa": HookedVLM.from_hf(*checkpoints.blip_vqa()), "llava": HookedVLM.from_hf(*checkpoints.llava())}


def llava_without_groups() -> HookedVLM:
    """A LLaVA with a key-value head for each head: some of TransformerLens' functions need that."""
    return HookedVLM.from_hf(*checkpoints.llava(text_changes={"num_key_value_heads": 2}))


def view_and_tokens(models: dict[str, HookedVLM], kind: str, stack: str) -> tuple[FocusedStack, Tensor, Tensor]:
    """A view, and clean and corrupt tokens for it."""
    model = models[kind]
    image, question = checkpoints.picture(0), "is the circle red or blue?"
    view = model.focus(stack, images=image, texts=question)
    if stack == "vision_encoder":
        return view, view.to_tokens(image), view.to_tokens(checkpoints.picture(1))
    if stack == "text_decoder":
        return view, torch.tensor([[5, 9, 11]]), torch.tensor([[5, 8, 12]])
    return view, view.to_tokens(question), view.to_tokens("is the square red or green?")


def metric(logits: Tensor) -> Tensor:
    """A logit difference at the last position."""
    return logits[0, -1, 7] - logits[0, -1, 8]


@pytest.mark.parametrize("kind, stack", VIEWS)
def test_a_view_satisfies_the_protocol_and_gives_the_models_logits(
    models: dict[str, HookedVLM], kind: str, stack: str
) -> None:
    view, clean, _ = view_and_tokens(models, kind, stack)
    if (kind == "vqa" and stack == "vision_encoder") or (kind == "llava" and stack == "language_model"):
        assert isinstance(view, TransformerLensModelWithWeights)
    assert {n for n in view.hook_dict if n.startswith("blocks.")}
    direct = models[kind](view.to_inputs(clean))
    assert torch.equal(view(clean), direct)
    assert torch.equal(view.run_with_hooks(clean), direct)
    logits, cache = view.run_with_cache(clean)
    assert torch.allclose(logits, direct, atol=1e-5 * scale(direct))
    assert cache["pattern", 0].shape[1] == view.cfg.n_heads
    assert clean.shape[-1] == cache["resid_pre", 0].shape[1]


EACH = [
    # one whole run for each pair of positions: the patterns by destination alone stand for it in the quick suite
    pytest.param(sweep, marks=pytest.mark.slow) if sweep.endswith("dest_src_pos") else sweep
    for sweep in SWEEPS
]


@pytest.mark.parametrize("sweep", EACH)
@pytest.mark.parametrize("kind, stack", VIEWS)
def test_transformer_lens_patching_equals_patching_by_hand(
    models: dict[str, HookedVLM], kind: str, stack: str, sweep: str
) -> None:
    model = models[kind]
    view, clean, corrupt = view_and_tokens(models, kind, stack)
    with torch.no_grad():
        _, clean_cache = view.run_with_cache(clean)
        function = getattr(patching, sweep)
        axes = function.keywords["index_axis_names"]
        found = function(view, corrupt, clean_cache, metric)
        assert found.shape[0] == view.cfg.n_layers and found.std() > 0
        setter, activation = function.keywords["patch_setter"], function.keywords["activation_name"]
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            index = [int(torch.randint(n, (1,), generator=generator)) for n in found.shape]
            if "src_pos" in axes and view.stack.causal:
                index[-1] = min(index[-1], index[-2])
            point = "" if activation in ("resid_pre", "resid_mid", "attn_out", "mlp_out") else "attn."
            short = f"blocks.{index[0]}.{point}hook_{activation}"
            clean_activation = clean_cache[short]
            hook = (view.stack.prefix + short, lambda x, hook, i=index, c=clean_activation: setter(x, i, c))
            by_hand = metric(model.run_with_hooks(view.to_inputs(corrupt), fwd_hooks=[hook]))
            assert torch.allclose(found[tuple(index)], by_hand, atol=1e-5)


@pytest.mark.parametrize("sweep", EVERY)
@pytest.mark.parametrize("kind, stack", VIEWS)
def test_sweeps_over_every_kind_run(models: dict[str, HookedVLM], kind: str, stack: str, sweep: str) -> None:
    if kind == "llava" and stack == "language_model" and "head" in sweep:
        model = llava_without_groups()
        view = model.focus(stack, images=checkpoints.picture(0))
        clean, corrupt = view.to_tokens("is the circle red or blue?"), view.to_tokens("is the square red or green?")
    else:
        view, clean, corrupt = view_and_tokens(models, kind, stack)
    with torch.no_grad():
        _, cache = view.run_with_cache(clean)
        found = getattr(patching, sweep)(view, corrupt, cache, metric)
    assert found.shape[1] == view.cfg.n_layers and found.isfinite().all()


@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("stack", ["vision_encoder", "language_model"])
def test_direct_path_patching_equals_the_edge_by_hand(stack: str, component: Any) -> None:
    model = llava_without_groups()
    view, clean, corrupt = view_and_tokens({"llava": model}, "llava", stack)
    with torch.no_grad():
        (_, clean_cache), (_, corrupt_cache) = view.run_with_cache(clean), view.run_with_cache(corrupt)
        found = patching.get_act_patch_direct_path(
            view, corrupt, clean_cache, corrupt_cache, metric, src_layer=0, src_head=1, component=component
        )
        assert not view.cfg.use_split_qkv_input
        w = view.blocks[0].attn.W_O[1]
        delta = (clean_cache["z", 0][:, :, 1] - corrupt_cache["z", 0][:, :, 1]) @ w
        view.set_use_split_qkv_input(True)

        def add(x: Tensor, hook: Any) -> Tensor:
            x[:, :, 0] += delta
            return x

        by_hand = metric(view.run_with_hooks(corrupt, fwd_hooks=[(f"blocks.1.attn.hook_{component}_input", add)]))
    assert torch.allclose(found[1, 0], by_hand, atol=1e-5)


@pytest.mark.parametrize("kind, stack", [v for v in VIEWS if v[1] != "vision_encoder"])
def test_the_head_detector_reads_a_view(models: dict[str, HookedVLM], kind: str, stack: str) -> None:
    view, clean, _ = view_and_tokens(models, kind, stack)
    found = head_detector.detect_head(view, clean, torch.eye(clean.shape[1]).tril())
    _, cache = view.run_with_cache(clean)
    expected = torch.stack(
        [cache["pattern", i][0].diagonal(dim1=-2, dim2=-1).mean(-1) for i in range(view.cfg.n_layers)]
    )
    assert torch.allclose(found, expected, atol=1e-5)
    scores = head_detector.detect_head(view, clean, "previous_token_head", cache=cache.remove_batch_dim())
    assert scores.shape == (view.cfg.n_layers, view.cfg.n_heads)


# --- ActivationCache -------------------------------------------------------------------------------


def stack_cache(name: str, stack: str) -> tuple[HookedVLM, Any, Tensor, FocusedStack]:
    """A stack's cache, its logits and view, with head results."""
    model, inputs = variant(name, "use_attn_result")
    logits, cache = model.run_with_cache(inputs)
    return model, cache.focus(stack), logits, model.focus(stack)


def pre_norm_stacks() -> list[tuple[str, str]]:
    """Every pre-norm stack of every variant."""
    return [(n, "vision_encoder") for n in VARIANTS] + [
        (n, "language_model") for n in VARIANTS if n.startswith("llava")
    ]


@pytest.mark.parametrize("name, stack", pre_norm_stacks())
def test_residual_decompositions_sum_to_the_residual(name: str, stack: str) -> None:
    _, cache, _, view = stack_cache(name, stack)
    with torch.no_grad():
        for layer in range(1, view.cfg.n_layers + 1):
            resid = cache["resid_post", layer - 1]
            close = partial(torch.allclose, resid, atol=2e-5 * scale(resid))
            assert close(cache.decompose_resid(layer).sum(0))
            assert close(cache.get_full_resid_decomposition(layer, expand_neurons=False).sum(0))
            assert close(cache.get_full_resid_decomposition(layer, expand_neurons=True).sum(0))
            assert close(cache.stack_head_results(layer, incl_remainder=True).sum(0))
            assert close(cache.accumulated_resid(layer)[-1])
            if layer < view.cfg.n_layers:
                mid = cache.decompose_resid(layer, mlp_input=True).sum(0)
                assert torch.allclose(mid, cache["resid_mid", layer], atol=2e-5 * scale(resid))
                normed = cache.apply_ln_to_stack(cache.decompose_resid(layer), layer).sum(0)
                assert torch.allclose(normed, cache["normalized", layer, "ln1"], atol=2e-5 * scale(normed))


@pytest.mark.parametrize("name", [n for n in VARIANTS if n.startswith("llava")])
def test_logit_attributions_sum_to_the_logits(name: str) -> None:
    model, cache, logits, view = stack_cache(name, "language_model")
    with torch.no_grad():
        for token, wrong in ((7, None), (torch.tensor(9), torch.tensor(11))):
            for parts in (cache.decompose_resid(), cache.get_full_resid_decomposition(expand_neurons=False)):
                found = cache.logit_attrs(parts, token, wrong).sum(0)
                expected = logits[..., int(token)] - (0 if wrong is None else logits[..., int(wrong)])
                assert torch.allclose(found, expected, atol=3e-5 * scale(logits))
        final = cache.accumulated_resid(apply_ln=True)[-1]
        assert torch.allclose(final @ view.W_U, logits, atol=2e-5 * scale(logits))
        whole = model.run_with_cache(variant(name)[1])[1]
        assert torch.allclose(whole.decompose_resid(), cache.decompose_resid())


@pytest.mark.parametrize("name", [n for n in VARIANTS if n.startswith("blip")])
def test_decompositions_raise_in_post_norm_stacks_and_say_why(name: str) -> None:
    model, inputs = variant(name)
    _, cache = model.run_with_cache(inputs)
    for stack in model.stacks:
        if stack == "vision_encoder":
            continue
        part = cache.focus(stack)
        asks: list[tuple[str, tuple[Any, ...]]] = [
            ("decompose_resid", ()),
            ("accumulated_resid", ()),
            ("get_full_resid_decomposition", ()),
            ("logit_attrs", (torch.zeros(1, 2, 5, 16), 7)),
            ("apply_ln_to_stack", (torch.zeros(1, 2, 5, 16),)),
            ("stack_neuron_results", (1,)),
            ("stack_head_results", (-1, False, True)),
            ("stack_head_results", (-1, False, False, None, True)),
        ]
        for ask, arguments in asks:
            with pytest.raises(ResidualError, match=f"{ask} does not hold in {stack}: it is post-norm"):
                getattr(part, ask)(*arguments)
        heads = part.stack_head_results(1)  # the heads alone hold: they sum to their own block's output
        out = part["attn_out", 0]
        assert torch.allclose(heads.sum(0) + model.stacks[stack].blocks[0].attn.b_O, out, atol=1e-5 * scale(out))


EDGES = EdgeAttributionConfig(granularity="edge")


@pytest.mark.parametrize("kind, stack", VIEWS)
def test_transformer_lens_edges_sum_to_its_nodes_or_are_refused(
    models: dict[str, HookedVLM], kind: str, stack: str
) -> None:
    models = models | {"llava": llava_without_groups()}
    view, clean, corrupt = view_and_tokens(models, kind, stack)
    nodes = attribution_patch(view, clean, corrupt, metric).node_scores
    assert any(abs(score) > 1e-4 for score in nodes.values())
    if view.stack.post_norm:
        with pytest.raises(ResidualError, match=f"do not add up in {stack}: it is post-norm"):
            attribution_patch(view, clean, corrupt, metric, config=EDGES)
    else:
        found = attribution_patch(view, clean, corrupt, metric, config=EDGES)
        assert len(found.edge_scores) > len(nodes)
        assert found.node_scores == pytest.approx(nodes, abs=1e-4 * max(map(abs, nodes.values())))
    assert not models[kind].cfg.use_attn_result and not models[kind].cfg.use_split_qkv_input


def test_what_is_not_offered_raises_and_names_the_way_out(models: dict[str, HookedVLM]) -> None:
    _, cache, _, view = stack_cache("llava-llama-clip", "vision_encoder")
    with pytest.raises(ResidualError, match="not what the logits are read from"):
        cache.logit_attrs(cache.decompose_resid(), 7)
    with pytest.raises(ResidualError, match="not read from its stream"):
        view.tokens_to_residual_directions(7)
    with pytest.raises(AttributeError, match="no norm follows"):
        _ = view.ln_final
    model = models["vqa"]
    with pytest.raises(StackError, match="no stack 'encoder'; this model has vision_encoder"):
        model.focus("encoder")
    with pytest.raises(InputsError, match=r"model.focus\('text_encoder', images=image\)"):
        model.focus("text_encoder").run_with_hooks(torch.tensor([[5, 6]]))
    with pytest.raises(InputsError, match="texts="):
        model.focus("text_decoder", images=checkpoints.picture()).run_with_hooks(torch.tensor([[5, 6]]))
    with pytest.raises(InputsError, match="texts="):
        model.focus("vision_encoder").run_with_cache(checkpoints.picture())
    view = model.focus("text_encoder", images=checkpoints.picture())
    with pytest.raises(HookNameError, match=r"text_encoder\.blocks\.0\.attn\.hook_zz"):
        view.run_with_hooks("is it red?", fwd_hooks=[("blocks.0.attn.hook_zz", lambda x, hook: x)])
    with pytest.raises(HookNameError, match="matches none"):
        view.run_with_cache("is it red?", names_filter=lambda n: n.startswith("vision_encoder"))


@pytest.mark.parametrize("remove_batch_dim", [False, True])
@pytest.mark.parametrize(("kind", "stack"), VIEWS)
def test_pos_slice_means_the_views_positions(
    models: dict[str, HookedVLM], kind: str, stack: str, remove_batch_dim: bool
) -> None:
    view, clean, _ = view_and_tokens(models, kind, stack)
    _, whole = view.run_with_cache(clean, remove_batch_dim=remove_batch_dim)
    _, last = view.run_with_cache(clean, remove_batch_dim=remove_batch_dim, pos_slice=-1)
    for name in ("blocks.0.attn.hook_z", "blocks.1.attn.hook_pattern", "blocks.0.hook_resid_post"):
        axis = -2 if name.endswith(("pattern", "post")) else -3
        assert torch.equal(last[name], whole[name].narrow(axis, -1, 1)), name


def test_hook_functions_in_a_view_see_its_names(models: dict[str, HookedVLM]) -> None:
    seen: list[tuple[str, int]] = []
    view = models["vqa"].focus("text_encoder", images=checkpoints.picture())
    note = (lambda n: n.endswith("cross_attn.hook_z"), lambda z, hook: seen.append((hook.name, hook.layer())))
    view.run_with_hooks("is it red?", fwd_hooks=[note])
    assert seen == [(f"blocks.{layer}.cross_attn.hook_z", layer) for layer in range(view.cfg.n_layers)]


def test_a_view_batches_tokens_and_masks_padding(models: dict[str, HookedVLM]) -> None:
    for kind, stack in (("vqa", "text_encoder"), ("llava", "language_model")):
        view = models[kind].focus(stack, images=checkpoints.picture())
        both = view.to_tokens(["is it red?", "is the circle red or blue?"])
        together = view(both)[:, -1]
        alone = view("is it red?")[:, -1]
        assert torch.allclose(together[:1], alone, atol=1e-5 * scale(alone))
