"""Blocks in a row, run from the start or from any layer. Knows no model.

A `StackPass` says what a pass needs besides the residual stream. With a `KVCache` the keys, values and
residuals of a pass are kept (the cost of a KV cache plus one residual stream a layer), so that generation can
go on and a finished run can be resumed: rows with altered residuals join before any layer, read the keys and
values that did not change, and are computed together from there on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.config import TransformerLensConfig

from hooked_vlm.components.attention import AttentionPass, Rotary
from hooked_vlm.components.block import Block, BlockPass, Blocks
from hooked_vlm.components.declared import Declared
from hooked_vlm.components.hook_point import PositionOffset
from hooked_vlm.components.kv_cache import KeysValues, KVCache, KVCacheEntry
from hooked_vlm.components.masks import AttentionMask
from hooked_vlm.errors import StackError


@dataclass
class StackPass:
    """What one pass through a stack needs besides the residual stream.

    Args:
        mask: which positions see which, in self-attention.
        rotary: cosines and sines at the positions of this pass, for each kind of rotary positions that the stack's
            attentions have.
        source: what cross-attention reads, [batch key_pos d_source], or None to skip cross-attention.
        source_real: [batch key_pos], False where the source is padding; None where it has none.
        kv_cache: keys and values of earlier positions, or None.
        keep: write what this pass computes into `kv_cache`.
        first_position: absolute position of the first position of this pass; keys and values before it
            are read from `kv_cache`.
        last_alone: nothing but the last position is asked for, which is all that the last block need compute.
    """

    mask: AttentionMask = field(default_factory=lambda: AttentionMask(None))
    rotary: Mapping[str, Rotary] = field(default_factory=dict)
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

    before_blocks: ClassVar = ("hook_embed", "hook_pos_embed", "ln_pre", "ln_embed")  # what makes its input

    def __init__(
        self, name: str, prefix: str, cfg: TransformerLensConfig, blocks: Sequence[Block], *, causal: bool
    ) -> None:
        super().__init__()
        self.name, self.prefix, self.cfg, self.causal = name, prefix, cfg, causal
        self.blocks = Blocks(blocks)
        self.offset = PositionOffset()

    @property
    def post_norm(self) -> bool:
        """True if sums of branches pass a norm, so that the residual stream is no sum of its parts."""
        return any(block.post_norm for block in self.blocks)

    def stacked(self, name: str, module: str = "attn") -> Tensor:
        """A weight of every block, stacked along a new first axis: `stacked("W_V", "cross_attn")`.

        Raises:
            StackError: if the blocks have no such module or weight.
        """
        found = [getattr(getattr(block, module, None), name, None) for block in self.blocks]
        lacking = [layer for layer, weight in enumerate(found) if weight is None]
        if lacking:
            those = "" if len(lacking) == len(found) else f" {lacking}"
            raise StackError(f"the blocks{those} of {self.name} have no {module}.{name}")
        return torch.stack([weight for weight in found if weight is not None])

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
        before = None if given.kv_cache is None else given.kv_cache[0].resid_pre
        n_base = None if before is None else before.shape[0]
        end = len(self.blocks) if stop_at_layer is None else stop_at_layer
        for layer, block in enumerate(self.blocks[:end]):
            if layer in injected:
                x = _inject(x, injected[layer], n_base or injected[layer].shape[0])
            if x is None:
                continue
            x = x.to(block.device)  # moves nothing unless the layers lie on several devices
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
        return all(block.is_position_local(hook) for block in self.blocks)

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
        assert remembered.resid_pre is not None
        x = remembered.resid_pre
        places = places.to(x.device)

        def at_places(t: Float[Tensor, "_batch pos d"]) -> Float[Tensor, "_rows 1 d"]:
            t = t.to(x.device).expand(len(x), -1, -1)
            return rearrange(t[torch.arange(len(x), device=x.device)[:, None], places], "b r d -> (b r) 1 d")

        cross = None
        if given.source is not None and block.has_cross_attn:
            cross = self._cross_pass(given, cached_kv=remembered.cross_attn, rows_per_source=places.shape[1])
        attn = AttentionPass()
        if block.has("attn"):
            assert remembered.attn is not None
            attn.mask = given.mask.of_rows(places, remembered.attn.k.shape[1], block.attn.window)
            attn.cached_kv = remembered.attn
            if block.attn.rotary is not None:
                cos, sin = given.rotary[block.attn.rotary]
                attn.rotary = at_places(cos), at_places(sin)
        return block(at_places(x), BlockPass(attn, cross, given.source))

    def _block_pass(self, layer: int, x: Tensor, given: StackPass) -> BlockPass:
        block = self.blocks[layer]
        remembered = None if given.kv_cache is None else given.kv_cache[layer]
        attn = self._attn_pass(block, x, given, remembered) if block.has("attn") else AttentionPass()
        if given.source is None or not block.has_cross_attn:
            return BlockPass(attn)
        source, rows = given.source, x.shape[0] // given.source.shape[0]
        if remembered is None:
            return BlockPass(attn, self._cross_pass(given), source)
        if given.keep:

            def keep(kv: KeysValues) -> None:
                remembered.cross_attn = kv

            return BlockPass(attn, self._cross_pass(given, cached_kv=remembered.cross_attn, kv_sink=keep), source)
        if block.cross_attn.sees_keys_values():  # somebody looks: every row gets its own keys and values
            return BlockPass(attn, self._cross_pass(given), source.repeat_interleave(rows, 0))
        return BlockPass(attn, self._cross_pass(given, cached_kv=remembered.cross_attn, rows_per_source=rows), source)

    def _attn_pass(self, block: Block, x: Tensor, given: StackPass, remembered: KVCacheEntry | None) -> AttentionPass:
        first, n_positions = given.first_position, x.shape[1]
        ends = given.last_alone and block is self.blocks[-1] and not block.is_hooked
        n_queries = 1 if ends else n_positions  # the others are attended to, and ask nothing
        sees = given.mask.given(first + n_positions - n_queries, n_queries, block.attn.window, x.device)
        attn = AttentionPass(n_queries=n_queries, **sees)
        if block.attn.rotary is not None:
            cos, sin = given.rotary[block.attn.rotary]
            attn.rotary = cos.to(x.device), sin.to(x.device)
        if remembered is None:
            return attn
        if first and remembered.attn is not None:
            attn.prefix = remembered.attn.first(first)
        if given.keep:

            def keep(kv: KeysValues) -> None:
                remembered.attn = kv

            attn.kv_sink = keep
        return attn

    @staticmethod
    def _cross_pass(given: StackPass, **options: Any) -> AttentionPass:
        assert given.source is not None
        real = given.source_real
        mask = None if real is None else real[:, None, None, :].to(given.source.device)
        return AttentionPass(mask, **options)


def _inject(x: Tensor | None, new: Tensor, n_base: int) -> Tensor:
    """Rows that were there and rows that join, each example's together, [batch * rows pos d_model]."""
    if x is None:
        return new
    parts = [rearrange(t, "(b r) p d -> b r p d", b=n_base) for t in (x, new.to(x.device))]
    return rearrange(torch.cat(parts, 1), "b r p d -> (b r) p d")
