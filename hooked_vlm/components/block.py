"""A transformer block: branches that read a residual stream and write to it, one after another. Knows no model.

What a block has is described, not subclassed: attention, cross-attention and MLP, each with or without norms before
it, of what it adds, or of the sum, and with or without a gate. Pre-norm (ViT, CLIP, Llama), post-norm (BERT), sandwich
norms (Gemma 3), gated cross-attention in place of self-attention (Llama 3.2 Vision) and cross-attention in some layers
alone (Q-Former) are such descriptions. Cost: that of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vlm.components.attention import AttentionPass, HookedAttention
from hooked_vlm.components.declared import Declared
from hooked_vlm.components.hook_point import HookPoint, hooked
from hooked_vlm.components.mlp import HookedMLP
from hooked_vlm.components.norm import HookedNorm

RESID = "batch pos d_model"
_STREAM = {"attn": "mid", "cross_attn": "mid_cross", "mlp": "post"}  # hook_resid_..., after each branch


@dataclass
class BlockPass:
    """What one block needs in one pass besides the residual stream."""

    attn: AttentionPass = field(default_factory=AttentionPass)
    cross_attn: AttentionPass | None = None
    source: Tensor | None = None  # [batch key_pos d_source], what cross-attention reads


@dataclass(frozen=True)
class Branch:
    """One branch of a block: what it computes of the stream, and how that is added.

    Args:
        module: the attention or the MLP.
        norm: of what it reads (pre-norm), or None.
        norm_of_output: of what it adds (a sandwich's other half), or None.
        norm_of_sum: of the stream after it was added (post-norm), or None.
        gate: gives the number that what it adds is multiplied by, e.g. ``tanh(alpha)``, or None.
    """

    module: HookedAttention | HookedMLP
    norm: HookedNorm | None = None
    norm_of_output: HookedNorm | None = None
    norm_of_sum: HookedNorm | None = None
    gate: Callable[[], Tensor] | None = None


class Block(Declared, nn.Module):
    """``x + branch(x)`` for each branch in turn, with the norms and gates that each has.

    The n-th branch's norm is `ln<n>`, that of what it adds `ln<n>_post`. In a post-norm branch `hook_resid_*` is the
    sum before the norm, as in TransformerLens' BertBlock, and `hook_normalized_resid_*` the stream after it; the next
    branch or block receives the latter. A gate passes `hook_attn_gate`, `hook_cross_attn_gate` or `hook_mlp_gate`, and
    what a branch adds passes its `hook_*_out` after its norm and gate.

    Args:
        attn: self-attention, or None.
        cross_attn: cross-attention, or None; a pass without a `BlockPass.cross_attn` skips it.
        mlp: the MLP, or None.
        order: in which the branches come; each that is given is in it.

    Attributes:
        attn: the self-attention, where there is one; so `cross_attn` and `mlp`.
    """

    attn: HookedAttention
    cross_attn: HookedAttention
    mlp: HookedMLP

    def __init__(
        self,
        *,
        attn: Branch | None = None,
        cross_attn: Branch | None = None,
        mlp: Branch | None = None,
        order: tuple[str, ...] = ("attn", "cross_attn", "mlp"),
    ) -> None:
        super().__init__()
        given = {"attn": attn, "cross_attn": cross_attn, "mlp": mlp}
        assert all(name in order for name, branch in given.items() if branch is not None), "a branch has no place"
        self._branches = {name: branch for name in order if (branch := given[name]) is not None}
        self.hook_resid_pre = HookPoint(RESID, aliased=True)
        self._before_attn: set[str] = set()  # what self-attention reads, of its own and of other positions
        for n, (name, branch) in enumerate(self._branches.items(), 1):  # registered in the order in which they run
            assert branch.norm is None or branch.norm_of_sum is None, "both norms would be called ln<n>"
            if name == "mlp":
                self.hook_mlp_in = HookPoint(RESID, aliased=True)
            if branch.norm is not None:
                self.add_module(f"ln{n}", branch.norm)
            if name == "attn":
                self._before_attn = set(self._modules)
            self.add_module(name, branch.module)
            if branch.norm_of_output is not None:
                self.add_module(f"ln{n}_post", branch.norm_of_output)
            if branch.gate is not None:
                self.add_module(f"hook_{name}_gate", HookPoint("gate"))
            self.add_module(f"hook_{name}_out", HookPoint(RESID))
            self.add_module(f"hook_resid_{_STREAM[name]}", HookPoint(RESID))
            if branch.norm_of_sum is not None:
                self.add_module(f"ln{n}", branch.norm_of_sum)
                self.add_module(f"hook_normalized_resid_{_STREAM[name]}", HookPoint(RESID))

    def has(self, name: str) -> bool:
        """True if there is a branch "attn", "cross_attn" or "mlp"."""
        return name in self._branches

    @property
    def has_cross_attn(self) -> bool:
        """True if there is a `cross_attn`."""
        return self.has("cross_attn")

    @property
    def post_norm(self) -> bool:
        """True if a branch's sum passes a norm, so that the residual stream is no sum of its parts."""
        return any(branch.norm_of_sum is not None for branch in self._branches.values())

    def is_position_local(self, hook: str) -> bool:
        """True if an edit at a hook point of this block, at one position, changes the stream after it there alone."""
        keys = re.fullmatch(r"(cross_)?attn\.(hook_(k|v|rot_k|k_input|v_input)|k_norm\..*)", hook)
        return not keys and hook.partition(".")[0] not in self._before_attn

    @property
    def device(self) -> torch.device:
        """Where this block computes."""
        return next(iter(self._branches.values())).module.device

    @property
    def is_hooked(self) -> bool:
        """True if any hook point in it has a hook."""
        return hooked(*(point for point in self.modules() if isinstance(point, HookPoint)))

    def forward(self, x: Float[Tensor, "batch pos d_model"], given: BlockPass) -> Float[Tensor, "batch _pos d_model"]:
        """The residual stream after this block, at the positions that ask in its attention."""
        x = self.hook_resid_pre(x)
        for name, branch in self._branches.items():
            if name != "cross_attn" or given.cross_attn is not None:
                x = self._after(name, branch, x, given)
        return x

    def _after(self, name: str, branch: Branch, x: Tensor, given: BlockPass) -> Tensor:
        points = self._modules
        if name == "mlp":
            inner = self.hook_mlp_in(x)
            out = self.mlp(inner if branch.norm is None else branch.norm(inner))
        elif name == "attn":
            out = self.attn(x, given.attn, norm=branch.norm)
        else:
            out = self.cross_attn(x, given.cross_attn, source=given.source, norm=branch.norm)
        if branch.norm_of_output is not None:
            out = branch.norm_of_output(out)
        if branch.gate is not None:
            out = points[f"hook_{name}_gate"](branch.gate()) * out  # type: ignore[misc]
        out = points[f"hook_{name}_out"](out)  # type: ignore[misc]
        stream = _STREAM[name]
        x = points[f"hook_resid_{stream}"](x[:, -out.shape[1] :] + out)  # type: ignore[misc]
        if branch.norm_of_sum is None:
            return x
        return points[f"hook_normalized_resid_{stream}"](branch.norm_of_sum(x))  # type: ignore[misc]


class Blocks(nn.ModuleList):
    """The blocks of one stack, in order."""

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, idx: slice) -> Blocks: ...
        @overload
        def __getitem__(self, idx: int) -> Block: ...
        def __getitem__(self, idx: int | slice) -> Block | Blocks: ...

        def __iter__(self) -> Iterator[Block]: ...
