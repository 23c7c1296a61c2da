"""What a sweep costs, counted before it is run: positions, floating-point operations, bytes.

A *position-run* is one position of one row through one block of the patched stack. A site joins after its own block
if its patch changes the stream at its own position alone (`Stack.is_position_local`), so that it costs one position of
that block and, of every block after it, the positions from the first that it changes on; any other site costs those
positions of its own block too. Of the block before the logits, which are read at the last position, a run is that
position; the others are attended to. What follows the stack (an answer decoder, the unembedding) is run for every row.

A multiply and an add are two operations. Norms, activation functions and softmax are not counted: beside the products
they are nothing in large models, and what they take in small ones is time, not operations. Costs nothing; knows models
by their stacks' configs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_vlm.components.embed import VisionStack
from hooked_vlm.hooks import OWN_POSITIONS
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.patching.sites import Sites
from hooked_vlm.positions import Places

Lengths = Mapping[str, int]  # positions of each stack in a run


@dataclass(frozen=True)
class SitesCost:
    """What the sites of one kind cost in one example.

    Args:
        sites: how many there are.
        skipped: how many of them cannot differ from the base run, and are not run.
        position_runs: see the module.
        flop: floating-point operations.
    """

    sites: int = 0
    skipped: int = 0
    position_runs: int = 0
    flop: float = 0.0

    def __add__(self, other: SitesCost) -> SitesCost:
        return SitesCost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def total(costs: Iterable[SitesCost]) -> SitesCost:
    """All of them together."""
    return sum(costs, SitesCost())


def lengths_of(model: HookedVLM, n_tokens: int) -> dict[str, int]:
    """Positions of each stack where the prompt has `n_tokens`; an answer decoder begins with one."""
    found = dict.fromkeys(model.stacks, 1)
    found[model.prompt_stack] = n_tokens
    return found | {name: s.cfg.n_ctx for name, s in model.stacks.items() if isinstance(s, VisionStack)}


def block_flop(cfg: Any, n_positions: int, keys: int) -> float:
    """Operations of one block's self-attention and MLP for some positions of one row."""
    inner = cfg.d_head * cfg.n_heads
    attention = 2 * cfg.d_model * 2 * inner + keys_values_flop(cfg) + 4 * keys * inner
    mlp = 2 * cfg.d_model * cfg.d_mlp * (3 if cfg.gated_mlp else 2)
    return float(n_positions * (attention + mlp))


def cross_flop(cfg: Any, n_positions: int, keys: int) -> float:
    """Operations of one block's cross-attention for some positions of one row; keys and values are not counted."""
    return float(n_positions * 4 * cfg.d_head * cfg.n_heads * (cfg.d_model + keys))


def keys_values_flop(cfg: Any) -> float:
    """Operations of one position's keys and values in self-attention."""
    return 4.0 * cfg.d_model * cfg.d_head * (cfg.n_key_value_heads or cfg.n_heads)


def run_flop(model: HookedVLM, lengths: Lengths, *, n_logits: int = 1, after: str | None = None) -> float:
    """Operations of one row through every stack, or through those after one; `n_logits` positions are unembedded."""
    order = list(model.stacks)
    answering = model.stacks[model.answer_stack].cfg
    flop = 2.0 * answering.d_model * answering.d_vocab * n_logits
    for i, name in enumerate(order):
        if after is not None and i <= order.index(after):
            continue
        cfg, n = model.stacks[name].cfg, lengths[name]
        flop += cfg.n_layers * block_flop(cfg, n, n)
        if crossing := crosses(model, name):
            source = order[i - 1]
            keys, d_source = lengths[source], model.stacks[source].cfg.d_model
            flop += crossing * (cross_flop(cfg, n, keys) + source_flop(cfg, d_source, n, keys))
    return flop


def source_flop(cfg: Any, d_source: int, n_positions: int, keys: int) -> float:
    """Operations of one block to read a source: keys and values are computed, or their weights go to the queries."""
    computed = keys * cfg.d_head * cfg.n_heads
    absorbed = n_positions * cfg.n_heads * (cfg.d_head + keys)
    return 4.0 * d_source * min(computed, absorbed)


def crosses(model: HookedVLM, stack: str) -> int:
    """How many blocks of a stack cross-attend to the stack before it."""
    return sum(block.has_cross_attn for block in model.stacks[stack].blocks)


def sites_cost(
    model: HookedVLM, sites: Sites, matters: Bool[Tensor, " site"], first: Int[Tensor, " site"], lengths: Lengths
) -> SitesCost:
    """What sites cost whose positions are spelled out, one metric read at the last position.

    Args:
        model: a `HookedVLM`, its weights not needed.
        sites: where.
        matters: which of them are run.
        first: the first position that each changes.
        lengths: positions of each stack.
    """
    name = sites.stack
    assert name is not None
    stack, order = model.stacks[name], list(model.stacks)
    cfg, n = stack.cfg, lengths[name]
    left = (n - first[matters]).double()
    layers = [own for own, runs in zip(sites.layers_of(sites.table), matters.tolist(), strict=True) if runs]
    layer, after_own = torch.tensor([own[0] for own in layers]), joins_after_its_block(stack, sites)
    own = torch.ones_like(left) if after_own else left
    crossing = crosses(model, name)
    crossed = cross_flop(cfg, 1, lengths[order[order.index(name) - 1]]) if crossing else 0.0
    block = block_flop(cfg, 1, n) + crossing / cfg.n_layers * crossed
    position_runs = float((own + (cfg.n_layers - 1 - layer) * left).sum())
    after = run_flop(model, lengths, after=name)
    attended_to = 0.0  # positions that the last block needs as keys and values alone
    patched_in_last = any(own[-1] == cfg.n_layers - 1 and not (after_own and len(own) == 1) for own in layers)
    if stack.causal and name == model.answer_stack and not patched_in_last:
        attended_to = float((left - 1)[layer < cfg.n_layers - 1].sum())
        position_runs -= attended_to
    flop = position_runs * block + attended_to * keys_values_flop(cfg)
    flop += int(matters.sum()) * after
    return SitesCost(len(matters), int((~matters).sum()), int(position_runs), flop)


def joins_after_its_block(stack: Any, sites: Sites) -> bool:
    """Whether each site changes the stream after its block at its own position alone."""
    return isinstance(sites.positions, Places) and bool(stack.is_position_local(sites.hook.partition("{}.")[2]))


def row_numbers(model: HookedVLM, sites: Sites, lengths: Lengths, first: int, *, n_logits: int, shared: bool) -> int:
    """Roughly how many numbers one row of a sweep holds at once: streams, MLP, attention; or its logits.

    Args:
        model: a `HookedVLM`, its weights not needed.
        sites: where.
        lengths: positions of each stack.
        first: the first position that is run again in the patched stack.
        n_logits: positions that are unembedded.
        shared: False if every site takes a run of the whole model.
    """
    order = list(model.stacks)
    later = order[order.index(sites.stack) if sites.stack else 0 :]
    largest = 2 * model.stacks[model.answer_stack].cfg.d_vocab * n_logits
    for name in later:
        cfg = model.stacks[name].cfg
        n = keys = lengths[name]
        own = shared and sites.stack == name
        if own:
            n -= first
            if crosses(model, name):
                keys = max(keys, lengths[order[order.index(name) - 1]])
        looked_at = "pattern" in sites.hook or "scores" in sites.hook
        before = keys - n if own and model.stacks[name].causal else 0  # keys that the rows share
        explicit = looked_at or before > n
        attention = n * 3 * cfg.n_heads * keys if explicit else 2 * (keys if before else 0) * cfg.n_heads * cfg.d_head
        mlp = (3 if cfg.gated_mlp else 2) * (cfg.d_mlp or 0)
        largest = max(largest, n * (6 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head + mlp) + attention)
    return int(largest)


def state_numbers(model: HookedVLM, lengths: Lengths) -> int:
    """How many numbers a kept run holds of one example: keys, values and a residual stream for every layer."""
    order, numbers = list(model.stacks), 0
    for i, (name, stack) in enumerate(model.stacks.items()):
        cfg = stack.cfg
        kv = 2 * cfg.d_head * (cfg.n_key_value_heads or cfg.n_heads)
        crossed = crosses(model, name) * kv * lengths[order[i - 1]]
        numbers += (cfg.n_layers + 1) * lengths[name] * cfg.d_model + cfg.n_layers * lengths[name] * kv + crossed
    return numbers


def source_numbers(model: HookedVLM, sites: Sites, lengths: Lengths) -> int:
    """How many numbers of one example are held to be patched in at the sites."""
    cfg = model.stacks[str(sites.stack)].cfg
    of: dict[str, int | None] = {
        "head": cfg.n_heads,
        "kv_head": cfg.n_key_value_heads or cfg.n_heads,
        "d_head": cfg.d_head,
    }
    of |= {"d_model": cfg.d_model, "d_mlp": cfg.d_mlp, "key_pos": max(lengths.values())}
    of |= dict.fromkeys(OWN_POSITIONS, lengths[str(sites.stack)])
    return len(sites.layers) * prod(int(of.get(axis) or 1) for axis in sites.axes[1:])
