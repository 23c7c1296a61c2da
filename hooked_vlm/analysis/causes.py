"""What a head's attention to an object is worth: the answer without it, and with it moved elsewhere.

Where a head looks is not yet what it does. In one head at a time, at the query tokens alone, the attention is changed,
and what becomes of the logit difference is measured; every other head computes as ever from what it then reads.

| intervention | what the queries of the head see |
|---|---|
| `asked` | not the patches of the object asked about |
| `rival` | not those of its rival, the thing for which the wrong answer would be right |
| `outliers` | not the high-norm background patches, nor the class token |
| `to asked` | of the image, the object asked about alone |
| `to rival` | of the image, its rival alone |

The first three set scores to -inf before the softmax (Geva et al. 2023), so that the attention is shared out among the
other keys. The last two leave the head's attention to text as it is, and give all that it gives to patches and class
token to the object's patches, by how much of each the mask covers. Which patches are an object's, or outliers, says
`image_attention`. Cross-attention reads the image, and so does self-attention where the prompt holds it; other heads
are left out.

Cost: two forwards a batch, then one resumed pass of the prompt's stack (and what follows it) a chunk of
``rows = examples x heads x interventions``; each row joins at its head's layer, in a causal stack at the first query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_vlm.analysis.ablation import hook_name
from hooked_vlm.analysis.heads import Head, of_heads
from hooked_vlm.analysis.image_attention import (
    ImageAttention,
    ImageKeys,
    Query,
    covered,
    image_attention,
    image_keys,
    object_patches,
    one_each,
    outlying,
    query_weights,
)
from hooked_vlm.errors import DataError, StackError
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import RunState
from hooked_vlm.patching.metrics import answer_logits

KNOCK_OUTS: Final = ("asked", "rival", "outliers")
REDIRECTIONS: Final = ("to asked", "to rival")
INTERVENTIONS: Final = (*KNOCK_OUTS, *REDIRECTIONS)
COLUMNS = ("row", "kind", "layer", "head", "intervention", "attention", "clean_logit_diff", "logit_diff", "cost")

Edit = tuple[str, int, int, str]  # kind, layer, head, intervention


@dataclass(frozen=True)
class _Targets:
    """What is looked at, over the patches behind the class token where there is one.

    Args:
        keys: of the kind of heads.
        on: for each intervention the weight of each of the image's keys, [batch image_key]: 0 or 1 for knock-outs,
            summing to 1 for redirections; 0 everywhere in an example that has no such thing.
    """

    keys: ImageKeys
    on: Mapping[str, Float[Tensor, "batch image_key"]]

    def has(self, intervention: str) -> Bool[Tensor, " batch"]:
        """Which examples have what the intervention is about."""
        return (self.on[intervention] > 0).any(1)

    def over_keys(self, weights: Tensor, n_keys: int) -> Float[Tensor, "batch key"]:
        """Weights of the image's keys among all keys, 0 on the others."""
        places = self.keys.places.to(weights.device)
        return torch.zeros(len(weights), n_keys, device=weights.device).scatter(1, places, weights)


def attention_causes(
    model: HookedVLM,
    inputs: VLMInputs,
    right: Sequence[int],
    wrong: Sequence[int],
    heads: Iterable[Head],
    *,
    queries: Query | Sequence[Query],
    masks: Sequence[Any] | None = None,
    rival_masks: Sequence[Any] | None = None,
    image: int | None = None,
    max_rows: int = 256,
) -> pd.DataFrame:
    """What becomes of the logit difference when single heads no longer see an object, or see nothing else.

    Args:
        model: a `HookedVLM` with a processor.
        inputs: clean examples.
        right: token id of each example's right answer.
        wrong: of its wrong one.
        heads: (kind, layer, head) of each; those that see no image are left out.
        queries: at which positions their attention is changed, as `image_attention` takes them.
        masks: of the object asked about, white where it is: one for each example, None for those without; or None.
        rival_masks: of its rival, in the same way.
        image: as `image_attention`.
        max_rows: rows in one pass.

    Returns:
        A row for each example (row, its place in the batch), head and intervention, with `COLUMNS`: attention (how
        much of the queries' is taken from keys or moved, in the clean run), clean_logit_diff, logit_diff and cost
        (the former less the latter: above 0, the answer needs what was taken). NaN where an example has no such
        object, or no such patches.

    Raises:
        DataError: if there are not as many answers or masks as examples.
        StackError: if the model has no such heads.
        PositionError: if a query is no position of the prompt.
        InputsError: if a prompt has not exactly one image.
    """
    if not len(right) == len(wrong) == len(inputs):
        raise DataError(f"{len(right)} right and {len(wrong)} wrong answers were given for {len(inputs)} examples")
    chosen = _known(model, heads)
    kinds = list(dict.fromkeys(kind for kind, _, _ in chosen))
    with torch.no_grad():
        attention, norms = image_attention(model, inputs, kinds, queries, image=image)
        covers = [covered(model, one_each(each, len(inputs)), norms.shape[1]) for each in (masks, rival_masks)]
        keys = {kind: image_keys(model, inputs, kind, image) for kind in attention}
        targets = {kind: _targets(each, covers, norms.cpu()) for kind, each in keys.items() if each is not None}
        edits = [(*head, name) for head in chosen if head[0] in targets for name in INTERVENTIONS]
        if not edits:
            return pd.DataFrame(columns=list(COLUMNS))
        logits, state = model.run_with_state(inputs)
        ids = torch.stack([torch.as_tensor(list(right)), torch.as_tensor(list(wrong))], 1)
        clean = _logit_diff(answer_logits(model, inputs, logits)[:, -1:], ids)
        asks = query_weights(inputs, queries) > 0
        size = max(1, max_rows // len(inputs))
        chunks = (edits[start : start + size] for start in range(0, len(edits), size))
        parts = [
            _table(chunk, _edited(model, state, chunk, targets, asks, ids), clean, attention, targets)
            for chunk in chunks
        ]
    return pd.concat(parts, ignore_index=True).sort_values(["row", "layer"], kind="stable", ignore_index=True)


def _known(model: HookedVLM, heads: Iterable[Head]) -> list[Head]:
    """Heads, each once, those of shallow layers first. Raises StackError if the model lacks one."""
    chosen = dict.fromkeys((str(kind), int(layer), int(head)) for kind, layer, head in heads)
    n_heads = model.stacks[model.prompt_stack].cfg.n_heads
    for kind, layer, head in chosen:
        name = hook_name(model, kind, layer)
        if not of_heads(kind) or not 0 <= head < n_heads:
            raise StackError(f"there is no head {head} in {name}, which has {n_heads}")
    return sorted(chosen, key=lambda head: head[1])


def _targets(keys: ImageKeys, covers: Sequence[Tensor], norms: Tensor) -> _Targets:
    asked, rival = (cover.nan_to_num(0.0) for cover in covers)
    patches = {
        "asked": object_patches(asked).float(),
        "rival": object_patches(rival).float(),
        "outliers": outlying(norms, asked).float(),
        "to asked": asked / asked.sum(1, keepdim=True).clamp(min=1e-9),
        "to rival": rival / rival.sum(1, keepdim=True).clamp(min=1e-9),
    }
    before = {name: torch.full((len(norms), keys.n_before), float(name == "outliers")) for name in patches}
    return _Targets(keys, {name: torch.cat([before[name], patches[name]], 1) for name in patches})


# --- running ----------------------------------------------------------------------------------------


def _edited(
    model: HookedVLM,
    state: RunState,
    edits: Sequence[Edit],
    targets: Mapping[str, _Targets],
    asks: Bool[Tensor, "batch pos"],
    ids: Tensor,
) -> Float[Tensor, "batch edit"]:
    """The logit difference under each edit; each row joins before the layer of its head."""
    stack = model.prompt_stack
    first = 0
    if model.stacks[stack].causal:
        first = state.passes[stack].mask.first_to_see(int(asks.any(0).nonzero()[0]))
    layers = [layer for _, layer, _, _ in edits]  # in order: rows of an example stand as they joined
    injected = {
        layer: state.resid_pre(stack, layer)[:, first:].repeat_interleave(layers.count(layer), 0)
        for layer in dict.fromkeys(layers)
    }
    hooks: list[tuple[str, Any]] = []
    for kind, layer in dict.fromkeys((kind, layer) for kind, layer, _, _ in edits):
        prefix = hook_name(model, kind, layer).removesuffix("hook_z")
        here = [(i, head, name) for i, (k, at, head, name) in enumerate(edits) if (k, at) == (kind, layer)]
        for point, make, names in (
            ("hook_attn_scores", _knocked_out, KNOCK_OUTS),
            ("hook_pattern", _redirected, REDIRECTIONS),
        ):
            if mine := [each for each in here if each[2] in names]:
                hooks.append((f"{prefix}{point}", make(mine, targets[kind], asks)))
    with model.hooks(fwd_hooks=hooks):
        logits = model.resume(state, stack, injected, first_position=first, logits_at="last")
    return _logit_diff(rearrange(logits[:, -1], "(b e) v -> b e v", b=len(ids)), ids)


Own = Sequence[tuple[int, int, str]]  # an edit's place among an example's rows, its head, the intervention


def _knocked_out(own: Own, targets: _Targets, asks: Tensor) -> Callable[..., Tensor]:
    def hook_fn(scores: Tensor, hook: Any) -> Tensor:
        rows, asking = _by_example(scores, hook, asks)
        for place, head, name in own:
            gone = targets.over_keys(targets.on[name].to(scores.device), scores.shape[-1]) > 0
            unseen = asking[:, :, None] & gone[:, None, :]
            rows[:, place, head] = rows[:, place, head].masked_fill(unseen, -torch.inf)
        return rearrange(rows, "b e h q k -> (b e) h q k")

    return hook_fn


def _redirected(own: Own, targets: _Targets, asks: Tensor) -> Callable[..., Tensor]:
    def hook_fn(pattern: Tensor, hook: Any) -> Tensor:
        rows, asking = _by_example(pattern, hook, asks)
        ones = torch.ones(targets.keys.places.shape, device=pattern.device)
        image = targets.over_keys(ones, pattern.shape[-1]).to(pattern)[:, None, :]
        for place, head, name in own:
            to = targets.over_keys(targets.on[name].to(pattern.device), pattern.shape[-1]).to(pattern)
            before = rows[:, place, head]
            moved = before * (1 - image) + (before * image).sum(-1, keepdim=True) * to[:, None, :]
            changed = asking & targets.has(name).to(pattern.device)[:, None]
            rows[:, place, head] = torch.where(changed[:, :, None], moved, before)
        return rearrange(rows, "b e h q k -> (b e) h q k")

    return hook_fn


def _by_example(activation: Tensor, hook: Any, asks: Tensor) -> tuple[Tensor, Tensor]:
    """A copy, rows by example, [batch edit head query_pos key_pos], and which of its queries ask, [batch query_pos]."""
    first = hook.first_position
    asking = asks[:, first : first + activation.shape[2]].to(activation.device)
    return rearrange(activation, "(b e) h q k -> b e h q k", b=len(asks)).clone(), asking


def _logit_diff(logits: Float[Tensor, "batch edit d_vocab"], ids: Tensor) -> Float[Tensor, "batch edit"]:
    of = ids.to(logits.device)[:, None, :].expand(-1, logits.shape[1], -1)
    scores = logits.double().gather(-1, of)
    return scores[..., 0] - scores[..., 1]


# --- what it gave -----------------------------------------------------------------------------------


def _table(
    edits: Sequence[Edit],
    found: Float[Tensor, "batch edit"],
    clean: Float[Tensor, "batch 1"],
    attention: Mapping[str, ImageAttention],
    targets: Mapping[str, _Targets],
) -> pd.DataFrame:
    parts = []
    for i, (kind, layer, head, name) in enumerate(edits):
        seen = attention[kind].on_image(layer, head).double().cpu()
        taken = (seen * targets[kind].on[name]).sum(1) if name in KNOCK_OUTS else seen.sum(1)
        has = targets[kind].has(name)
        values = {
            "attention": taken.where(has, torch.nan),
            "clean_logit_diff": clean[:, 0].cpu(),
            "logit_diff": found[:, i].cpu().where(has, torch.nan),
        }
        about = {"kind": kind, "layer": layer, "head": head, "intervention": name}
        columns = {column: each.numpy() for column, each in values.items()}
        parts.append(pd.DataFrame({"row": range(len(found)), **about, **columns}))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(cost=table["clean_logit_diff"] - table["logit_diff"])[list(COLUMNS)]
