"""Transformer blocks: the order in which a residual stream is read and written. Knows no model.

Two kinds: pre-norm (ViT, CLIP, Llama) and post-norm (BERT, BLIP's text stacks). Cost: that of their parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, overload

from jaxtyping import Float
from torch import Tensor, nn

from hooked_vlm.components.attention import AttentionPass, HookedAttention
from hooked_vlm.components.declared import Declared
from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.components.mlp import HookedMLP
from hooked_vlm.components.norm import HookedNorm

RESID = "batch pos d_model"


@dataclass
class BlockPass:
    """What one block needs in one pass besides the residual stream."""

    attn: AttentionPass = field(default_factory=AttentionPass)
    cross_attn: AttentionPass | None = None
    source: Tensor | None = None  # [batch key_pos d_source], what cross-attention reads


class Block(Declared, nn.Module):
    """What the two kinds of blocks have in common.

    Attributes:
        post_norm: True if each sub-layer's sum passes a norm.
        has_cross_attn: True if there is a `cross_attn`.
    """

    post_norm: ClassVar[bool]
    has_cross_attn = False
    attn: HookedAttention
    cross_attn: HookedAttention
    mlp: HookedMLP

    def forward(self, x: Float[Tensor, "batch pos d_model"], given: BlockPass) -> Float[Tensor, "batch _pos d_model"]:
        """The residual stream after this block, at the positions that ask in its attention."""
        raise NotImplementedError


class Blocks(nn.ModuleList):
    """The blocks of one stack, in order."""

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, idx: slice) -> Blocks: ...
        @overload
        def __getitem__(self, idx: int) -> Block: ...
        def __getitem__(self, idx: int | slice) -> Block | Blocks: ...

        def __iter__(self) -> Iterator[Block]: ...


class PreNormBlock(Block):
    """``x + attn(ln1 x)``, then ``x + mlp(ln2 x)``."""

    post_norm = False

    def __init__(self, attn: HookedAttention, mlp: HookedMLP, ln1: HookedNorm, ln2: HookedNorm) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint(RESID, aliased=True)
        self.ln1, self.attn = ln1, attn
        self.hook_attn_out = HookPoint(RESID)
        self.hook_resid_mid = HookPoint(RESID)
        self.hook_mlp_in = HookPoint(RESID, aliased=True)
        self.ln2, self.mlp = ln2, mlp
        self.hook_mlp_out = HookPoint(RESID)
        self.hook_resid_post = HookPoint(RESID)

    def forward(self, x: Float[Tensor, "batch pos d_model"], given: BlockPass) -> Float[Tensor, "batch _pos d_model"]:
        """The residual stream after this block, at the positions that ask in its attention."""
        x = self.hook_resid_pre(x)
        out = self.hook_attn_out(self.attn(x, given.attn, norm=self.ln1))
        x = self.hook_resid_mid(x[:, -out.shape[1] :] + out)
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(self.hook_mlp_in(x)))))


class PostNormBlock(Block):
    """``ln1(x + attn x)``, then ``ln2(x + cross_attn x)`` where there is one, then ``ln(x + mlp x)``.

    `hook_resid_*` are the sums before the norms, as in TransformerLens' BertBlock, and
    `hook_normalized_resid_*` the stream after them; the next block receives the last one.

    Args:
        norms: one norm for each sub-layer, in order.
        cross_attn: None for a block without cross-attention. A block that has one skips it in a pass without
            a `BlockPass.cross_attn`.
    """

    post_norm = True

    def __init__(
        self,
        attn: HookedAttention,
        mlp: HookedMLP,
        norms: tuple[HookedNorm, ...],
        cross_attn: HookedAttention | None = None,
    ) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint(RESID, aliased=True)
        self.attn = attn
        self.hook_attn_out = HookPoint(RESID)
        self.hook_resid_mid = HookPoint(RESID)
        self.ln1 = norms[0]
        self.hook_normalized_resid_mid = HookPoint(RESID)
        self.has_cross_attn = cross_attn is not None
        if cross_attn is not None:
            self.cross_attn = cross_attn
            self.hook_cross_attn_out = HookPoint(RESID)
            self.hook_resid_mid_cross = HookPoint(RESID)
            self.ln2 = norms[1]
            self.hook_normalized_resid_mid_cross = HookPoint(RESID)
        self.hook_mlp_in = HookPoint(RESID, aliased=True)
        self.mlp = mlp
        self.hook_mlp_out = HookPoint(RESID)
        self.hook_resid_post = HookPoint(RESID)
        if cross_attn is None:
            self.ln2 = norms[1]
        else:
            self.ln3 = norms[2]
        self.hook_normalized_resid_post = HookPoint(RESID)

    def forward(self, x: Float[Tensor, "batch pos d_model"], given: BlockPass) -> Float[Tensor, "batch _pos d_model"]:
        """The residual stream after this block, at the positions that ask in its attention."""
        x = self.hook_resid_pre(x)
        out = self.hook_attn_out(self.attn(x, given.attn))
        x = self.hook_resid_mid(x[:, -out.shape[1] :] + out)
        x = self.hook_normalized_resid_mid(self.ln1(x))
        if given.cross_attn is not None:
            out = self.hook_cross_attn_out(self.cross_attn(x, given.cross_attn, source=given.source))
            x = self.hook_normalized_resid_mid_cross(self.ln2(self.hook_resid_mid_cross(x + out)))
        x = self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.hook_mlp_in(x))))
        return self.hook_normalized_resid_post((self.ln3 if self.has_cross_attn else self.ln2)(x))
