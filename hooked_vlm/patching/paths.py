"""Path patching: what one head does through another head's queries, keys or values, and no other way.

Two runs for each pair (Wang et al. 2022; Goldowsky-Dill et al. 2023):

1. The base run with the sender's activation taken from the source run and every sub-layer after it held at what it
   put out in the base run. What reaches the receiver's query, key or value is then what the sender writes there
   directly; norms and LLaVA's projector are on the way and are computed anew.
2. The base run with the receiver's query, key or value as it was in the first. Everything after it follows freely.

Sender and receiver may be in different stacks: a head of BLIP's vision tower through a cross-attention's keys, say.
Both runs are resumed inside the finished base run, and all receivers of a sender ride in one growing pass.

Cost: for each sender the stacks from it on, and for each pair a site of a sweep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.patching import PatchingResult

from hooked_vlm.errors import InputsError
from hooked_vlm.hooks import OWN_POSITIONS, patch
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.turn import alone
from hooked_vlm.patching.growing import swept
from hooked_vlm.patching.moving import moved
from hooked_vlm.patching.sites import Sites
from hooked_vlm.patching.task import Measure, Task, activations, asked, prepared, result

SUBLAYERS = {"attn": "hook_attn_out", "cross_attn": "hook_cross_attn_out", "mlp": "hook_mlp_out"}
RECEIVED = (".hook_q", ".hook_k", ".hook_v")


@alone
def path_patching(
    model: Any,
    clean: VLMInputs,
    corrupt: VLMInputs,
    senders: Sites,
    receivers: Sites,
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
        receivers: what the sender acts through: `Sites.heads` with activation "q", "k" or "v". A receiver that is
            not after the sender has no effect, exactly 0.
        metrics: as `sweep`'s.
        through_mlps: let MLPs on the way respond to the sender, as Wang et al. do; else they are held too.
        direction: "denoise" sends the clean activation through the corrupt run, "noise" the other way.
        reduce: "none" keeps every example, "mean" averages them.
        budget: bytes that the passes may take; None for a quarter of what is free.
        progress: show paths per second and time left.

    Returns:
        `transformer_lens.patching.PatchingResult` with `values` [metric, *sender axes, *receiver axes, example]; the
        sender's axes are called "sender_layer" and so on. Flat, [metric, path, example], where sites were picked.

    Raises:
        InputsError: if clean and corrupt differ in shape, the senders are no heads or sub-layers, or the receivers
            no queries, keys or values.
        PositionError: if a position is out of range.
        SilentHookError: if a run never reaches senders or receivers.
    """
    from tqdm.auto import tqdm

    kinds = {"senders": senders, "receivers": receivers}
    named = asked(model, clean, corrupt, kinds, metrics, direction=direction, reduce=reduce, budget=budget)
    _sublayer(senders)  # raises where it is none
    if not receivers.hook.endswith(RECEIVED):
        raise InputsError(
            f"{receivers!r} cannot be receivers: a path ends at a query, key or value, Sites.heads(model, stack, "
            'attention, activation="q"), "k" or "v"'
        )
    source, base = (clean, corrupt) if direction == "denoise" else (corrupt, clean)
    with torch.no_grad():
        tasks = prepared(model, source, base, kinds, named, (), ())
        sending, receiving = tasks["senders"], tasks["receivers"]
        held = _held(model, sending.sites, through_mlps)
        before = activations(model, base, [*held, *receiving.sites.hooks])
        values, skipped, n = [], 0, len(receiving.sites)
        with tqdm(total=len(sending.sites) * n, unit="path", disable=not progress) as bar:
            for number, cell in sending.sites.table.iterrows():
                if bool(sending.matters[number].any()):
                    received = _received(sending, cell, held, receiving.sites, before)
                    changed = {name: moved(receiving.sites, x, before[name]) for name, x in received.items()}
                    found, not_run = swept(replace(receiving, source=received, moved=changed), budget, progress=False)
                else:
                    found, not_run = receiving.baseline[:, None].expand(-1, n, -1).cpu(), n
                values.append(found)
                skipped += not_run
                bar.update(n)
    flat = senders.picked is not None or receivers.picked is not None
    shape = [-1] if flat else [*sending.sites.shape, *receiving.sites.shape]
    found = torch.stack(values, 1).reshape(len(named), *shape, len(base))
    from_columns = {name: f"sender_{name}" for name in sending.sites.axis_names}
    axes = [] if flat else [*from_columns.values(), *receiving.sites.axis_names]
    table = pd.merge(sending.sites.table.rename(columns=from_columns), receiving.sites.table, how="cross")
    return result(found, receiving.baseline, table, axes, metrics, reduce, skipped)


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


def _held(model: Any, senders: Sites, through_mlps: bool) -> list[str]:
    """Outputs of the sub-layers that may stand between a sender and a receiver, by hook name."""
    order = list(model.stacks)
    assert senders.stack is not None
    held = []
    for name in order[order.index(senders.stack) :]:
        for layer, block in enumerate(model.stacks[name].blocks):
            for kind, hook in SUBLAYERS.items():
                exists = kind != "cross_attn" or getattr(block, "has_cross_attn", False)
                if exists and not (kind == "mlp" and through_mlps):
                    held.append(f"{model.stacks[name].prefix}blocks.{layer}.{hook}")
    return held


def _received(
    sending: Task, cell: Any, held: list[str], receivers: Sites, base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the receivers' hook points see if one sender is patched and all after it but the receivers is held."""
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
    hooks = [(name, send), *((one, patch(base)) for one in after), *((one, keep) for one in receivers.hooks)]
    with model.hooks(fwd_hooks=hooks):
        if sending.state is None:
            model(sending.base, return_type=None)
            first = 0
        else:
            first = int(sending.first[int(cell.name)])
            resid = sending.state.resid_pre(sites.stack, layer)[:, first:]
            at = "last" if sending.reads_last else None
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
