"""A path is what one head does through another's query, key or value, the stream or the logits, and no other way.

Each is held against two whole runs a pair, written down plainly.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.errors import InputsError
from hooked_vlm.patching import Sites, metrics, path_patching
from tests.models.reference import scale
from tests.models.test_hooks_live import VARIANTS, variant
from tests.models.unchecked import unchecked
from tests.patching.test_sweep import at_last, each_row, entries, other

OUTPUTS = ("hook_attn_out", "hook_cross_attn_out", "hook_mlp_out")


def edit(x: Tensor, new: Tensor, sites: Sites, cell: Any) -> Tensor:
    """One cell of an activation taken from another run."""
    out = x.clone()
    for at in entries(sites, cell, len(x)):
        out[at] = new[at]
    return out


def by_hand(
    model: HookedVLM, source: VLMInputs, base: VLMInputs, pair: tuple[Any, Any], sites: tuple[Sites, Any], mlps: bool
) -> Tensor:
    """Logits of the base run with one path patched: two runs of the whole model, or one where they are the receiver."""
    (sender, _), (senders, receivers) = pair, sites
    names = [hooks.hook.format(cell.get("layer")) for hooks, cell in zip(sites, pair, strict=True) if cell is not None]
    _, there = model.run_with_cache(source, names_filter=names[0])
    _, here = model.run_with_cache(base, names_filter=lambda name: name.endswith(OUTPUTS) or name == names[0])
    start = list(here.cache_dict).index(names[0])
    own = names[0].rpartition("blocks.")[0] + f"blocks.{sender['layer']}."
    own += {"attn": OUTPUTS[0], "cross_attn": OUTPUTS[1], "mlp": OUTPUTS[2]}[
        senders.hook.partition("{}.")[2].removeprefix("hook_").partition(".")[0].removesuffix("_out")
    ]
    held = [
        name
        for name in list(here.cache_dict)[start + 1 :]
        if name.endswith(OUTPUTS) and name != own and not (mlps and name.endswith("mlp_out"))
    ]
    seen: dict[str, Tensor] = {}
    first = [
        (names[0], lambda x, hook: edit(x, there[hook.name], senders, pair[0])),
        *((name, lambda x, hook: seen.__setitem__("receiver", x.clone())) for name in names[1:]),
        *((name, lambda x, hook: here[hook.name]) for name in held),
    ]
    logits = model.run_with_hooks(base, fwd_hooks=first)
    if receivers == "logits":
        return at_last(model, base, logits)
    second = (names[1], lambda x, hook: edit(x, seen["receiver"], receivers, pair[1]))
    return at_last(model, base, model.run_with_hooks(base, fwd_hooks=[second]))


def kind_of(
    draw: Any, model: HookedVLM, inputs: VLMInputs, stacks: list[str], activations: list[str], where: Any
) -> Sites:
    stack = draw(st.sampled_from(stacks))
    crossed = getattr(model.stacks[stack].blocks[0], "has_cross_attn", False)
    at: dict[str, Any] = {
        "stack": stack,
        "attention": draw(st.sampled_from(["attn", "cross_attn"] if crossed else ["attn"])),
        "layers": draw(st.sampled_from([[0], [-1]])),
        "heads": draw(st.sampled_from([[0], [-1, 0], "all_at_once"])),
        "activation": draw(st.sampled_from(activations)),
    }
    return Sites.heads(model, **at, positions=draw(st.sampled_from(where) | each_row(model, inputs, at)))


def streams(model: HookedVLM, stack: str) -> dict[str, list[str]]:
    """Where a path can end in a block but for queries, keys and values: in the stream, and at a sub-layer."""
    crossed = getattr(model.stacks[stack].blocks[0], "has_cross_attn", False)
    resid = ["resid_pre", "resid_mid", "resid_post"]
    resid += ["normalized_resid_mid", "resid_mid_cross", "normalized_resid_post"] if crossed else []
    parts = ["attn_out", "mlp_in", "mlp.hook_post", "mlp_out", "ln2.hook_normalized", "ln1.hook_scale"]
    return {"residual": resid, "module": [*parts, *(["cross_attn_out"] if crossed else [])]}


def receivers_of(draw: Any, model: HookedVLM, inputs: VLMInputs, stacks: list[str], where: Any) -> Any:
    """Anything that a path can end at."""
    kind = draw(st.sampled_from(["heads", "residual", "module", "logits"]))
    if kind == "logits":
        return kind
    if kind == "heads":
        return kind_of(draw, model, inputs, stacks, ["q", "k", "v"], where)
    stack = draw(st.sampled_from(stacks))
    hook = draw(st.sampled_from([h for h in streams(model, stack)[kind] if not h.startswith("ln1")]))
    at: dict[str, Any] = {"stack": stack, "layers": draw(st.sampled_from([[0], [-1]]))}
    return getattr(Sites, kind)(
        model, **at, hook=hook, positions=draw(st.sampled_from(where) | each_row(model, inputs, at))
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_path_ends_in_the_stream_or_at_a_sub_layer_or_at_the_logits(name: str) -> None:
    """In every stack of every family, from its first block on: two whole runs."""
    model, source = variant(name)
    base, measure, order = other(source, image=True), metrics.logit_diff(1, 0), list(model.stacks)
    options = {"metrics": measure, "progress": False}
    with torch.no_grad():
        for i, stack in enumerate(order):
            own: Any = base.last_each[:, None] if stack == model.prompt_stack else [-1]
            own = [0] if name == "blip-retrieval" else own  # whose logits are read there
            crossed = model.stacks[stack].post_norm
            senders = Sites.heads(model, stack, "cross_attn" if crossed else "attn", layers=0, heads=1, positions=own)
            hooks = ["resid_pre", "attn_out", "normalized_resid_post" if crossed else "resid_mid"]
            ends: list[Any] = [Sites.module(model, stack, hook, layers=1, positions=own) for hook in hooks]
            ends += [Sites.residual(model, later, layers=0, positions="all_at_once") for later in order[i + 1 : i + 2]]
            ends += ["logits"]
            seen = 0
            for receivers in ends:
                found = path_patching(model, source, base, senders, receivers, through_mlps=bool(i % 2), **options)
                closed = [x if x == "logits" else x.at(n_of(model, base, x), 2) for x in (senders, receivers)]
                cells = [None if x == "logits" else x.table.iloc[0] for x in closed]
                logits = by_hand(model, source, base, (cells[0], cells[1]), (closed[0], closed[1]), bool(i % 2))
                expected = measure(logits)
                assert torch.allclose(found.values.flatten(), expected, atol=1e-5 * scale(expected)), receivers
                seen += bool(found.effect().abs().max() > 1e-5)
            assert seen >= 3 or stack != model.answer_stack, (stack, seen)


def n_of(model: HookedVLM, inputs: VLMInputs, sites: Sites) -> int:
    """Positions that a run has at some sites."""
    _, cache = model.run_with_cache(inputs, names_filter=sites.hooks[0])
    return int(cache[sites.hooks[0]].shape[sites.position_axis])


def test_a_heads_direct_effect_on_the_logits_is_what_it_writes_unembedded() -> None:
    """By the weights alone: the final norm of the stream and the sender's change of it."""
    model, clean = variant("llava-llama-clip")
    corrupt, measure = other(clean, image=True), metrics.logit_diff(7, 8)
    senders = Sites.heads(model, "language_model", positions=clean.last_each[:, None])
    found = path_patching(model, clean, corrupt, senders, "logits", {"d": measure}, progress=False)
    assert found.axis_names == ["sender_layer", "sender_place", "sender_head"] == list(found.index_df)
    assert found.values.shape == (1, 2, 1, 4, 2) and len(found.index_df) == 8
    with torch.no_grad():
        _, there = model.run_with_cache(clean)
        _, here = model.run_with_cache(corrupt)
        rows, last = torch.arange(2), clean.last_each
        for layer, block in enumerate(model.stacks["language_model"].blocks):
            z = f"blocks.{layer}.attn.hook_z"
            for head in range(4):
                change = (there[z] - here[z])[rows, last, head] @ block.attn.W_O[head]
                stream = here["blocks.1.hook_resid_post"][rows, last] + change
                expected = measure(model.ln_final(stream[:, None]) @ model.W_U + model.b_U)
                assert torch.allclose(found.values[0, layer, 0, head], expected, atol=1e-4)
    assert found.effect().abs().max() > 1e-3
    mean = path_patching(model, clean, corrupt, senders, "logits", measure, reduce="mean", progress=False)
    assert torch.allclose(mean.values, found.values[0].mean(-1), atol=1e-6)
    closed = senders.at(clean.input_ids.shape[1], 2)
    some = path_patching(model, clean, corrupt, closed.pick([5, 2]), "logits", measure, progress=False)
    assert some.axis_names == [] and list(some.index_df) == ["sender_layer", "sender_place", "sender_head"]
    assert torch.allclose(some.values, found.values[0].reshape(8, 2)[[5, 2]], atol=1e-6)


@pytest.mark.parametrize("stack", ["vision_encoder", "text_encoder"])
def test_an_encoders_head_reaches_the_logits_through_the_decoder_alone(stack: str) -> None:
    model, clean = variant("blip-vqa")
    corrupt, measure = other(clean, image=True), metrics.logit_diff(7, 8)
    senders = Sites.heads(model, stack, positions="all_at_once")
    direct = path_patching(model, clean, corrupt, senders, "logits", measure, progress=False)
    assert direct.effect().abs().max() == 0
    of_answer = Sites.heads(model, "text_decoder", positions="all_at_once")
    assert (
        path_patching(model, clean, corrupt, of_answer, "logits", measure, progress=False).effect().abs().max() > 1e-4
    )


def test_what_leaves_a_block_is_what_arrives_at_the_next() -> None:
    model, clean = variant("llava-llama-clip")
    corrupt, measure = other(clean, image=True), metrics.logit_diff(7, 8)
    senders = Sites.heads(model, "language_model", layers=0, positions="all_at_once")
    leaves, arrives = (
        path_patching(
            model,
            clean,
            corrupt,
            senders,
            Sites.residual(model, "language_model", hook=hook, layers=layer, positions="all_at_once"),
            measure,
            progress=False,
        ).effect()
        for hook, layer in (("resid_post", 0), ("resid_pre", 1))
    )
    assert torch.allclose(leaves, arrives, atol=1e-6) and leaves.abs().max() > 1e-4


def test_what_arrives_is_what_the_sender_writes() -> None:
    """In a pre-norm stack, by the weights alone: the stream before the receiver and the sender's change of it."""
    model, clean = variant("llava-llama-clip")
    corrupt = other(clean, image=True)
    sender, receiver, at = 3, 1, int(clean.last_each.min())
    measure = metrics.logit_diff(7, 8)
    with torch.no_grad():
        _, there = model.run_with_cache(clean)
        _, here = model.run_with_cache(corrupt)
        writes, block = model.stacks["language_model"].blocks
        change = (there["blocks.0.attn.hook_z"] - here["blocks.0.attn.hook_z"])[:, at, sender]
        stream = here["blocks.1.hook_resid_pre"][:, at] + change @ writes.attn.W_O[sender]
        query = block.ln1(stream[:, None])[:, 0] @ block.attn.W_Q[receiver] + block.attn.b_Q[receiver]

        def put(q: Tensor, hook: Any) -> Tensor:
            q[:, at, receiver] = query
            return q

        logits = model.run_with_hooks(corrupt, fwd_hooks=[("blocks.1.attn.hook_q", put)])
        expected = measure(at_last(model, corrupt, logits))
    senders = Sites.heads(model, "language_model", layers=0, heads=sender, positions=at)
    receivers = Sites.heads(model, "language_model", layers=1, heads=receiver, positions=at, activation="q")
    found = path_patching(model, clean, corrupt, senders, receivers, measure, progress=False)
    assert torch.allclose(found.values.flatten(0, -2)[0], expected, atol=1e-4)
    assert found.effect().abs().max() > 1e-4


def test_a_receiver_that_is_not_after_the_sender_gets_nothing() -> None:
    model, clean = variant("blip-vqa")
    corrupt = other(clean, image=True)
    late = Sites.heads(model, "text_encoder", "cross_attn", layers=1, positions="all_at_once")
    early = Sites.heads(model, "text_encoder", "attn", activation="q", positions="all_at_once")
    found = path_patching(model, clean, corrupt, late, early, metrics.logit_diff(7, 8), progress=False)
    assert found.values.shape == (1, 2, 2, 2, 2)
    assert found.effect().abs().max() == 0
    forth = path_patching(
        model,
        clean,
        corrupt,
        Sites.heads(model, "text_encoder", "cross_attn", layers=0, positions="all_at_once"),
        early,
        metrics.logit_diff(7, 8),
        progress=False,
    )
    effect = forth.effect()
    assert effect[0, :, 0].abs().max() == 0 and effect[0, :, 1].abs().max() > 1e-4


def test_picked_paths_and_several_metrics() -> None:
    model, clean = variant("blip-vqa")
    corrupt = other(clean, image=True)
    senders = Sites.heads(model, "vision_encoder", positions="all_at_once")
    receivers = Sites.heads(model, "text_encoder", "cross_attn", activation="v", positions="all_at_once")
    asked = {"d": metrics.logit_diff(7, 8), "p": metrics.probability(7)}
    whole = path_patching(model, clean, corrupt, senders, receivers, asked, progress=False)
    some = path_patching(model, clean, corrupt, senders.pick([3, 0]), receivers, asked, progress=False)
    assert some.axis_names == [] and list(some.index_df) == ["sender_layer", "sender_head", "layer", "head"]
    assert torch.allclose(some.values[:, :4], whole.values.reshape(2, 4, 4, 2)[:, 3], atol=1e-6)
    mean = path_patching(model, clean, corrupt, senders, receivers, asked, reduce="mean", progress=False)
    assert torch.allclose(mean.values, whole.values.mean(-1), atol=1e-6)


def test_a_word_that_is_not_logits_is_no_receiver() -> None:
    model, clean = variant("blip-vqa")
    senders = Sites.heads(model, "text_decoder")
    with unchecked(), pytest.raises(InputsError, match=r"receivers is 'logit', a str; expected 'logits' or Sites"):
        path_patching(model, clean, clean, senders, "logit", metrics.logit_diff(7, 8), progress=False)


def test_what_cannot_send_raises() -> None:
    model, clean = variant("blip-vqa")
    receivers = Sites.heads(model, "text_encoder", activation="q")
    for senders in (Sites.residual(model, "text_encoder"), Sites.neurons(model, "text_encoder")):
        with pytest.raises(InputsError, match="cannot send"):
            path_patching(model, clean, clean, senders, receivers, metrics.logit_diff(7, 8), progress=False)
