"""Path patching: what one head does through another's queries, keys or values, the stream or the logits alone.

Two runs for each pair (Wang et al. 2022; Goldowsky-Dill et al. 2023):

1. The base run with the sender's activation taken from the source run and every sub-layer after it held at what it
   put out in the base run. What reaches the receiver (a query, key or value, the residual stream, a sub-layer) is
   then what the sender writes there directly; norms and LLaVA's projector are on the way and are computed anew.
2. The base run with the receiver as it was in the first. Everything after it follows freely.

The sender's direct effect on the logits is the path to the stream that they are read from, after the last block.

Sender and receiver may be in different stacks: a head of BLIP's vision tower through a cross-attention's keys, say.
Both runs are resumed inside the finished base run, and all receivers of a sender ride in one growing pass.

Cost: for each sender the stacks from it on, and for each pair a site of a sweep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.patching import PatchingResult

from hooked_vlm.errors import InputsError
from hooked_vlm.hooks import OWN_POSITIONS, patch
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.turn import alone
from hooked_vlm.options import of_type
from hooked_vlm.patching.engine import run_sweep
from hooked_vlm.patching.moving import moved
from hooked_vlm.patching.plan import Measure, SweepPlan, activations, asked, prepared, result
from hooked_vlm.patching.sites import ALL, Sites

SUBLAYERS = {"attn": "hook_attn_out", "cross_attn": "hook_cross_attn_out", "mlp": "hook_mlp_out"}
LOGITS: Final = "logits"
# What an attention makes of its queries, keys and values together, so that no one path leads there.
MIXED = re.compile(r"(cross_)?attn\.hook_(attn_scores|pattern|z|result)$")


@alone
def path_patching(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs,
    senders: Sites,
    receivers: Sites | Literal["logits"],
    metrics: Mapping[str, Measure] | Measure,
    *,
    through_mlps: bool = False,
    direction: Literal["denoise", "noise"] = "denoise",
    reduce: Literal["none", "mean"] = "none",
    budget: int | None = None,
    progress: bool = True,
) -> PatchingResult:
    """Patch every path from a sender to a receiver, one at a time, and measure.

    Args:
        model: a `HookedVLM`.
        clean: inputs that the model answers rightly.
        corrupt: inputs of the same shape, with the image or the text corrupted.
        senders: heads (`Sites.heads`, usually of "z"), or the output of an attention or MLP (`Sites.module`).
        receivers: what the sender acts through: queries, keys or values (`Sites.heads` with activation "q", "k" or
            "v"), the residual stream (`Sites.residual`), a sub-layer by what goes into it or comes out of it
            (`Sites.module`, `Sites.neurons`) or a point outside of blocks (`Sites.point`). A receiver that is not
            after the sender has no effect, exactly 0, and the sender itself has all of it. "logits" for its direct
            effect on them, which a head of BLIP's encoders does not have: the logits read those stacks through the
            decoder's cross-attention.
        metrics: as `sweep`'s.
        through_mlps: let MLPs on the way respond to the sender, as Wang et al. do; else they are held too.
        direction: "denoise" sends the clean activation through the corrupt run, "noise" the other way.
        reduce: "none" keeps every example, "mean" averages them.
        budget: bytes that the passes may take; None for a quarter of what is free.
        progress: show paths per second and time left.

    Returns:
        `transformer_lens.patching.PatchingResult` with `values` [metric, *sender axes, *receiver axes, example]; the
        sender's axes are called "sender_layer" and so on, and the logits have none. Flat, [metric, path, example],
        where sites were picked.

    Raises:
        InputsError: if clean and corrupt differ in shape, the senders are no heads or sub-layers, or the receivers
            are what an attention makes of queries, keys and values together.
        PositionError: if a position is out of range.
        SilentHookError: if a run never reaches senders or receivers.
    """
    from tqdm.auto import tqdm

    options: dict[str, Any] = {"direction": direction, "reduce": reduce, "budget": budget}
    named = asked(model, clean, corrupt, {"senders": senders}, metrics, **options)
    _sublayer(senders)  # raises where it is none
    at_logits, receivers = isinstance(receivers, str), _receivers(model, receivers)
    kinds = {"senders": senders, "receivers": receivers}
    source, base = (clean, corrupt) if direction == "denoise" else (corrupt, clean)
    with torch.no_grad():
        plans = prepared(model, source, base, kinds, named, (), ())
        sending, receiving = plans["senders"], plans["receivers"]
        held = _held(model, sending.sites, through_mlps)
        before = activations(model, base, list(dict.fromkeys([*held, *receiving.sites.hooks])))
        values, skipped, n = [], 0, len(receiving.sites)
        with tqdm(total=len(sending.sites) * n, unit="path", disable=not progress) as bar:
            for number, cell in sending.sites.table.iterrows():
                if bool(sending.matters[number].any()):
                    received = _received(sending, cell, held, receiving.sites, before)
                    changed = {name: moved(receiving.sites, x, before[name]) for name, x in received.items()}
                    found, not_run = run_sweep(
                        replace(receiving, source=received, moved=changed), budget, progress=False
                    )
                else:
                    found, not_run = receiving.baseline[:, None].expand(-1, n, -1).cpu(), n
                values.append(found)
                skipped += not_run
                bar.update(n)
    to, end = ([], []) if at_logits else (receiving.sites.axis_names, receiving.sites.shape)
    flat = senders.picked is not None or receivers.picked is not None
    shape = [-1] if flat else [*sending.sites.shape, *end]
    found = torch.stack(values, 1).reshape(len(named), *shape, len(base))
    from_columns = {name: f"sender_{name}" for name in sending.sites.axis_names}
    axes = [] if flat else [*from_columns.values(), *to]
    table = pd.merge(sending.sites.table.rename(columns=from_columns), receiving.sites.table, how="cross")
    table = table[[*from_columns.values(), *to]]
    return result(found, receiving.baseline, table, axes, metrics, reduce, receiving.read(receiving.logits), skipped)


def _receivers(model: HookedVLM, receivers: Any) -> Sites:
    """Receivers as sites: the logits read what leaves the last block of their stack, and nothing else.

    Raises:
        InputsError: if they are something else, or what an attention makes of queries, keys and values together.
    """
    if isinstance(receivers, str) and receivers == LOGITS:
        return Sites.residual(model, model.answer_stack, layers=-1, positions=ALL, hook="resid_post")
    found = of_type(receivers, "receivers", Sites, f"{LOGITS!r} or Sites, e.g. Sites.residual(model, stack)")
    if MIXED.match(found.hook.partition("{}.")[2]):
        raise InputsError(
            f"{found!r} cannot be receivers: a path ends at a query, key or value, Sites.heads(model, stack, "
            'attention, activation="q"), "k" or "v"; for all three together, Sites.module(model, stack, "attn_out")'
        )
    return found


def _sublayer(senders: Sites) -> str:
    """The sub-layer that the senders are a part of: a key of `SUBLAYERS`."""
    inside = senders.hook.partition("{}.")[2]
    found = re.match(r"(attn|cross_attn|mlp)\.|hook_(attn|cross_attn|mlp)_out$", inside)
    if found is None or senders.unit == "d_mlp":
        raise InputsError(
            f"{senders!r} cannot send: a path starts at a head (Sites.heads) or at the output of an attention or MLP "
            '(Sites.module(model, stack, "mlp_out"))'
        )
    return found[1] or found[2]


def _held(model: HookedVLM, senders: Sites, through_mlps: bool) -> list[str]:
    """Outputs of the sub-layers that may stand between a sender and a receiver, by hook name."""
    order = list(model.stacks)
    assert senders.stack is not None
    held = []
    for name in order[order.index(senders.stack) :]:
        for layer, block in enumerate(model.stacks[name].blocks):
            for kind, hook in SUBLAYERS.items():
                if block.has(kind) and not (kind == "mlp" and through_mlps):
                    held.append(f"{model.stacks[name].prefix}blocks.{layer}.{hook}")
    return held


def _received(
    sending: SweepPlan, cell: Any, held: list[str], receivers: Sites, base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the receivers' hook points see if one sender is patched and all after it is held behind them."""
    model, sites = sending.model, sending.sites
    assert sites.stack is not None
    layer, prefix = int(cell["layer"]), model.stacks[sites.stack].prefix
    own = f"{prefix}blocks.{layer}.{SUBLAYERS[_sublayer(sites)]}"
    before = [f"{prefix}blocks.{earlier}." for earlier in range(layer)]
    seen: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        seen[hook.name] = activation.clone()

    name = sites.hook.format(layer)
    places = sites.positions_of(cell.to_frame().T, len(sending.base)).T if sending.places else None
    send = patch(sending.source, places, int(cell["head"]) if "head" in cell else None)
    after = [one for one in held if one != own and not one.startswith(tuple(before))]
    hooks = [(name, send), *((one, keep) for one in receivers.hooks), *((one, patch(base)) for one in after)]
    with model.hooks(fwd_hooks=hooks):
        if sending.state is None:
            model(sending.base, return_type=None)
            first = 0
        else:
            first = int(sending.first[int(cell.name)])
            resid = sending.state.resid_pre(sites.stack, layer)[:, first:]
            ends = sending.reads_last and receivers.stack is not None  # or its norm sees no more
            at: Literal["last"] | None = "last" if ends else None
            model.resume(sending.state, sites.stack, {layer: resid}, first_position=first, logits_at=at)
    return {one: _whole(seen.get(one), base[one], receivers) for one in receivers.hooks}


def _whole(seen: Tensor | None, base: Tensor, receivers: Sites) -> Tensor:
    """An activation of a pass that began at a later position, or before which it lies, with the base run's before."""
    if seen is None:
        return base
    axis = receivers.position_axis
    if axis is None or receivers.axes[axis] not in OWN_POSITIONS or seen.shape[axis] == base.shape[axis]:
        return seen
    return torch.cat([base.narrow(axis, 0, base.shape[axis] - seen.shape[axis]), seen], axis)
