"""Blocks in a row, run from the start or from any layer. Knows no model.

A `StackPass` says what a pass needs besides the residual stream. With a `KVCache` the keys, values and
residuals of a pass are kept (the cost of a KV cache plus one residual stream a layer), so that generation can
go on and a finished run can be resumed: rows with altered residuals join before any layer, read the keys and
values that did not change, and are computed together from there on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.config import TransformerLensConfig

from hooked_vlm.components.attention import AttentionPass, KeysValues
from hooked_vlm.components.block import Block, BlockPass, Blocks, PostNormBlock
from hooked_vlm.components.declared import Declared
from hooked_vlm.components.hook_point import HookPoint, PositionOffset, hooked
from hooked_vlm.errors import StackError


@dataclass
class KVCacheEntry:
    """What one block had before it and attended to in a finished pass."""

    resid_pre: Float[Tensor, "batch pos d_model"] | None = None  # as it arrived, before its hook point
    attn: KeysValues | None = None
    cross_attn: KeysValues | None = None


KVCache = list[KVCacheEntry]


class AttentionMask:
    """Which keys each query may see.

    Args:
        real: [batch key_pos], False where there is padding; None where there is none.
        causal: True if a query sees no later position.
    """

    def __init__(self, real: Bool[Tensor, "batch key_pos"] | None, *, causal: bool = False) -> None:
        self.real, self.causal = real, causal
        # What a window counts: tokens. Padding may stand between two of them, where a padded prompt was answered.
        self._tokens = None if real is None else real.long().cumsum(1)
        self._masks = cache(self._mask)  # every layer of a pass asks for the same one

    def given(self, first: int, n_queries: int, window: int | None, device: torch.device) -> dict[str, Any]:
        """`mask` and `causal` of an `AttentionPass` for queries at positions `first`, `first + 1`, ..."""
        n_keys = first + n_queries
        window = None if window is None or n_keys <= window else window
        if not self.causal:
            return {"mask": None if self.real is None else self.real[:, None, None, :].to(device)}
        if self.real is None and window is None and (first == 0 or n_queries == 1):
            return {"causal": n_queries > 1}
        return {"mask": self._masks(first, n_queries, window, device)}

    def of_rows(self, places: Int[Tensor, "batch rows"], n_keys: int, window: int | None) -> Tensor | None:
        """[batch * rows 1 1 key_pos] for rows that hold one query each, at `places` of their example."""
        if not self.causal and self.real is None:
            return None
        return rearrange(self._seen(places, n_keys, window).expand(len(places), -1, -1), "b r k -> (b r) 1 1 k")

    def _mask(self, first: int, n_queries: int, window: int | None, device: torch.device) -> Tensor:
        queries = torch.arange(first, first + n_queries, device=device)[None]
        return self._seen(queries, first + n_queries, window)[:, None]

    def _seen(
        self, queries: Int[Tensor, "query_batch query_pos"], n_keys: int, window: int | None
    ) -> Bool[Tensor, "mask_batch query_pos key_pos"]:
        """Which of the first `n_keys` positions the queries at these positions see; one row where it serves all."""
        keys, at = torch.arange(n_keys, device=queries.device)[None, None], queries[:, :, None]
        sees = keys <= at if self.causal else torch.ones_like(keys <= at)
        if window is not None:
            tokens = keys[0] if self._tokens is None else self._tokens[:, :n_keys].to(queries.device)
            rows = max(len(tokens), len(queries))
            own = tokens.expand(rows, -1).gather(1, queries.expand(rows, -1))
            sees = sees & (own[:, :, None] - tokens[:, None] < window)
        if self.real is None:
            return sees
        sees = sees & self.real[:, None, :n_keys].to(queries.device)
        # A padded query sees itself: it must see something to stay finite, and nobody sees it.
        return sees | (keys == at) if self.causal else sees


@dataclass
class StackPass:
    """What one pass through a stack needs besides the residual stream.

    Args:
        mask: which positions see which, in self-attention.
        rotary: cosines and sines at the positions of this pass, [batch pos d_head], or None.
        source: what cross-attention reads, [batch key_pos d_source], or None to skip cross-attention.
        source_real: [batch key_pos], False where the source is padding; None where it has none.
        kv_cache: keys and values of earlier positions, or None.
        keep: write what this pass computes into `kv_cache`.
        first_position: absolute position of the first position of this pass; keys and values before it
            are read from `kv_cache`.
        last_alone: nothing but the last position is asked for, which is all that the last block need compute.
    """

    mask: AttentionMask = field(default_factory=lambda: AttentionMask(None))
    rotary: tuple[Tensor, Tensor] | None = None
    source: Tensor | None = None
    source_real: Tensor | None = None
    kv_cache: KVCache | None = None
    keep: bool = False
    first_position: int = 0
    last_alone: bool = False

    def __repr__(self) -> str:
        kept = "" if self.kv_cache is None else f", keys and values of {len(self.kv_cache) - 1} layers"
        return f"StackPass(from position {self.first_position}{kept})"


def _stacked(module: str, name: str, axes: str) -> Any:
    def read(self: StackedWeights) -> Tensor:
        return self.stacked(name, module)

    read.__doc__ = f"`{name}` of every block's `{module}`, [{axes}]; a copy, since layers lie apart in memory."
    return property(read)


class StackedWeights:
    """The weights of a stack's blocks, stacked along a new first axis: copies, since layers lie apart in memory."""

    W_Q: Tensor = _stacked("attn", "W_Q", "layer head d_model d_head")
    W_K: Tensor = _stacked("attn", "W_K", "layer kv_head d_model d_head")
    W_V: Tensor = _stacked("attn", "W_V", "layer kv_head d_model d_head")
    W_O: Tensor = _stacked("attn", "W_O", "layer head d_head d_model")
    b_Q: Tensor = _stacked("attn", "b_Q", "layer head d_head")
    b_K: Tensor = _stacked("attn", "b_K", "layer kv_head d_head")
    b_V: Tensor = _stacked("attn", "b_V", "layer kv_head d_head")
    b_O: Tensor = _stacked("attn", "b_O", "layer d_model")
    W_in: Tensor = _stacked("mlp", "W_in", "layer d_model d_mlp")
    W_gate: Tensor = _stacked("mlp", "W_gate", "layer d_model d_mlp")
    W_out: Tensor = _stacked("mlp", "W_out", "layer d_mlp d_model")
    b_in: Tensor = _stacked("mlp", "b_in", "layer d_mlp")
    b_out: Tensor = _stacked("mlp", "b_out", "layer d_model")

    def stacked(self, name: str, module: str = "attn") -> Tensor:
        """A weight of every block."""
        raise NotImplementedError


class Stack(StackedWeights, Declared, nn.Module):
    """The blocks of one stack, its config and its weights.

    Args:
        name: e.g. "text_encoder".
        prefix: what its hook names begin with, before "blocks.": "text_encoder." or "".
        cfg: the stack's TransformerLens config, shared with its attentions.
        blocks: the blocks, in order.
        causal: True if no position sees a later one.
    """

    def __init__(
        self, name: str, prefix: str, cfg: TransformerLensConfig, blocks: Sequence[Block], *, causal: bool
    ) -> None:
        super().__init__()
        self.name, self.prefix, self.cfg, self.causal = name, prefix, cfg, causal
        self.blocks = Blocks(blocks)
        self.offset = PositionOffset()

    @property
    def post_norm(self) -> bool:
        """True if each sub-layer's sum passes a norm, so that the residual stream is no sum of its parts."""
        return bool(self.blocks[0].post_norm)

    def stacked(self, name: str, module: str = "attn") -> Tensor:
        """A weight of every block, stacked along a new first axis: `stacked("W_V", "cross_attn")`.

        Raises:
            StackError: if the blocks have no such module or weight.
        """
        found = [getattr(getattr(block, module, None), name, None) for block in self.blocks]
        weights = [weight for weight in found if weight is not None]
        if len(weights) < len(found):
            raise StackError(f"the blocks of {self.name} have no {module}.{name}")
        return torch.stack(weights)

    def new_kv_cache(self) -> KVCache:
        """An empty cache for this stack: a part for each block, and one for what leaves the last."""
        return [KVCacheEntry() for _ in range(len(self.blocks) + 1)]

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"] | None,
        given: StackPass,
        *,
        injected: Mapping[int, Float[Tensor, "_rows pos d_model"]] | None = None,
        collect: Collection[int] = (),
        stop_at_layer: int | None = None,
    ) -> tuple[Float[Tensor, "_out_rows _out_pos d_model"], dict[int, Tensor]]:
        """Run the blocks.

        Args:
            x: the residual stream before the first block, or None if all rows join later.
            given: masks, positions, source and cache of this pass.
            injected: for each layer the residuals of rows that join before it (n_layers: after the last one),
                [batch * new_rows pos d_model], the rows of one example next to one another.
            collect: also return the residual stream before these layers (n_layers: after the last one).
            stop_at_layer: the first block that does not run; None to run all.

        Returns:
            The residual stream after the last block that ran, [batch * rows pos d_model], each example's rows in
            the order in which they joined (its last position, if that alone is asked for); and what was collected,
            by layer.
        """
        injected = injected or {}
        collected: dict[int, Tensor] = {}
        n_base = None if given.kv_cache is None or given.kv_cache[0].attn is None else given.kv_cache[0].attn.k.shape[0]
        end = len(self.blocks) if stop_at_layer is None else stop_at_layer
        for layer, block in enumerate(self.blocks[:end]):
            if layer in injected:
                x = _inject(x, injected[layer], n_base or injected[layer].shape[0])
            if x is None:
                continue
            x = x.to(block.attn.device)  # moves nothing unless the layers lie on several devices
            if layer in collect:
                collected[layer] = x
            if given.keep and given.kv_cache is not None:
                given.kv_cache[layer].resid_pre = x
            x = block(x, self._block_pass(layer, x, given))
        if end in injected:
            late = injected[end] if x is None else injected[end][:, -x.shape[1] :]
            x = _inject(x, late, n_base or late.shape[0])
        assert x is not None, "no rows: x is None and nothing joined"
        x = x[:, -1:] if given.last_alone else x
        if end in collect:
            collected[end] = x
        if given.keep and given.kv_cache is not None:
            given.kv_cache[end].resid_pre = x
        return x, collected

    def reads_earlier_stacks(self, layer: int) -> bool:
        """True if what arrives at a layer depends on the stacks before this one.

        They are read by the cross-attention of the blocks, or, in a stack without any, by what it begins with.

        Args:
            layer: a layer; n_layers for what leaves the last.
        """
        crossed = [block.has_cross_attn for block in self.blocks]
        return any(crossed[:layer]) or not any(crossed)

    def is_position_local(self, hook: str) -> bool:
        """True if an edit at a block's hook point, at one position, changes the stream there alone.

        Not so for what other positions attend to: the stream before attention, its norm, keys and values.

        Args:
            hook: a name within a block, e.g. "cross_attn.hook_z".
        """
        read_by_others = re.fullmatch(r"hook_resid_pre|(cross_)?attn\.hook_(k|v|rot_k|k_input|v_input)", hook)
        return not read_by_others and (self.post_norm or not hook.startswith("ln1."))

    def one_block(
        self, layer: int, places: Int[Tensor, "batch rows"], given: StackPass
    ) -> Float[Tensor, "_out_rows 1 d_model"]:
        """One block of a finished pass again, for rows that hold one position each; hooks act on the rows.

        Every row reads the finished pass' keys and values, so this is exact for hooks of which `is_position_local`.

        Args:
            layer: which block.
            places: the position of each row.
            given: the finished pass, with its cache.

        Returns:
            The stream after the block, [batch * rows 1 d_model], each example's rows together.
        """
        assert given.kv_cache is not None
        block, remembered = self.blocks[layer], given.kv_cache[layer]
        assert remembered.resid_pre is not None and remembered.attn is not None
        x = remembered.resid_pre
        places = places.to(x.device)
        n_keys = remembered.attn.k.shape[1]

        def at_places(t: Float[Tensor, "_batch pos d"]) -> Float[Tensor, "_rows 1 d"]:
            t = t.to(x.device).expand(len(x), -1, -1)
            return rearrange(t[torch.arange(len(x), device=x.device)[:, None], places], "b r d -> (b r) 1 d")

        mask = given.mask.of_rows(places, n_keys, block.attn.window)
        attn = AttentionPass(mask=mask, cached_kv=remembered.attn)
        if given.rotary is not None:
            attn.rotary = at_places(given.rotary[0]), at_places(given.rotary[1])
        rows = at_places(x)
        if given.source is None or not isinstance(block, PostNormBlock) or not block.has_cross_attn:
            return block(rows, BlockPass(attn))
        real = given.source_real
        mask = None if real is None else real[:, None, None, :].to(x.device)
        return block(rows, BlockPass(attn, AttentionPass(mask=mask, cached_kv=remembered.cross_attn), given.source))

    def _block_pass(self, layer: int, x: Tensor, given: StackPass) -> BlockPass:
        block = self.blocks[layer]
        remembered = None if given.kv_cache is None else given.kv_cache[layer]
        first, n_queries = given.first_position, x.shape[1]
        rotary = None if given.rotary is None else (given.rotary[0].to(x.device), given.rotary[1].to(x.device))
        ends = given.last_alone and block is self.blocks[-1] and not _hooked(block)
        alone = n_queries - 1 if ends else 0  # positions that are attended to, and ask nothing
        sees = given.mask.given(first + alone, n_queries - alone, block.attn.window, x.device)
        attn = AttentionPass(rotary=rotary, n_queries=n_queries - alone, **sees)
        if remembered is not None:
            if first and remembered.attn is not None:
                attn.prefix = remembered.attn.first(first)
            if given.keep:
                attn.kv_sink = lambda kv: setattr(remembered, "attn", kv)
        if given.source is None or not isinstance(block, PostNormBlock) or not block.has_cross_attn:
            return BlockPass(attn)
        real = given.source_real
        cross = AttentionPass(mask=None if real is None else real[:, None, None, :].to(x.device))
        source = given.source
        if remembered is not None:
            if given.keep:
                cross.cached_kv = remembered.cross_attn
                cross.kv_sink = lambda kv: setattr(remembered, "cross_attn", kv)
            elif block.cross_attn.sees_keys_values():  # somebody looks: every row gets its own keys and values
                source = source.repeat_interleave(x.shape[0] // source.shape[0], 0)
            else:
                cross.cached_kv = remembered.cross_attn
        return BlockPass(attn, cross, source)


def _hooked(block: Block) -> bool:
    return hooked(*(point for point in block.modules() if isinstance(point, HookPoint)))


def _inject(x: Tensor | None, new: Tensor, n_base: int) -> Tensor:
    """Rows that were there and rows that join, each example's together, [batch * rows pos d_model]."""
    if x is None:
        return new
    parts = [rearrange(t, "(b r) p d -> b r p d", b=n_base) for t in (x, new.to(x.device))]
    return rearrange(torch.cat(parts, 1), "b r p d -> (b r) p d")
