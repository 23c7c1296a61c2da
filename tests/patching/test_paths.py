"""A path is what one head does through another's query, key or value: two whole runs a pair, written down plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.errors import InputsError
from hooked_vlm.patching import Sites, metrics, path_patching
from tests.models.test_hooks_live import variant
from tests.patching.test_sweep import at_last, each_row, entries, other

OUTPUTS = ("hook_attn_out", "hook_cross_attn_out", "hook_mlp_out")


def edit(x: Tensor, new: Tensor, sites: Sites, cell: Any) -> Tensor:
    """One cell of an activation taken from another run."""
    out = x.clone()
    for at in entries(sites, cell, len(x)):
        out[at] = new[at]
    return out


def by_hand(
    model: HookedVLM, source: VLMInputs, base: VLMInputs, pair: tuple[Any, Any], sites: tuple[Sites, Sites], mlps: bool
) -> Tensor:
    """Logits of the base run with one path patched: two runs of the whole model."""
    (sender, _), (senders, receivers) = pair, sites
    _, there = model.run_with_cache(source)
    _, here = model.run_with_cache(base)
    names = [hooks.hook.format(cell["layer"]) for hooks, cell in zip(sites, pair, strict=True)]
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
        *((name, lambda x, hook: here[hook.name]) for name in held),
        (names[1], lambda x, hook: seen.__setitem__("receiver", x.clone())),
    ]
    model.run_with_hooks(base, fwd_hooks=first)
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


def test_what_cannot_send_raises() -> None:
    model, clean = variant("blip-vqa")
    receivers = Sites.heads(model, "text_encoder", activation="q")
    for senders in (Sites.residual(model, "text_encoder"), Sites.neurons(model, "text_encoder")):
        with pytest.raises(InputsError, match="cannot send"):
            path_patching(model, clean, clean, senders, receivers, metrics.logit_diff(7, 8), progress=False)
