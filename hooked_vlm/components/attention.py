"""One attention module, self or cross, and what may stand in it. Knows no model.

MHA or GQA; rotary positions, norms of queries and keys, a softcap, an additive bias, a sliding window, each or none.

Cost: the fused kernel runs as long as neither `hook_attn_scores` nor `hook_pattern` has a hook; with a hook on either,
a softcap or a bias, scores and pattern are materialised, [batch head query_pos key_pos] each. `use_attn_result` and
`use_split_qkv_input` cost a factor of n_heads in memory for the tensors they show.

Keys and values may be shared: several rows of queries can read the keys and values of one base example
(cross-attention to one image; `AttentionPass.rows_per_source` says how many), or a common prefix of them followed by
their own (a causal prefix). They are then folded into the query axis and not repeated, unless the prefix is the shorter
part. Where few queries read many positions of a source, as in an answer decoder's first step, the weights of keys and
values are taken to the queries instead of to every position of the source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformer_lens.config import TransformerLensConfig

from hooked_vlm.components.declared import Declared
from hooked_vlm.components.hook_point import HookPoint, hooked
from hooked_vlm.components.kv_cache import KeysValues
from hooked_vlm.components.norm import HookedNorm
from hooked_vlm.components.weights import Projection
from hooked_vlm.errors import GatedHookError, StackError


@dataclass(frozen=True)
class AttentionLeaves:
    """The Hugging Face layers an attention is made of."""

    q: Projection
    k: Projection
    v: Projection
    o: Projection

    @property
    def fused(self) -> bool:
        """True if one layer computes q, k and v."""
        return self.q.linear is self.k.linear is self.v.linear


Rotary = tuple[Float[Tensor, "rotary_batch pos d_head"], Float[Tensor, "rotary_batch pos d_head"]]  # cosines, sines


@dataclass
class AttentionPass:
    """What one attention needs in one pass besides the residual stream.

    Args:
        mask: True where a query may see a key; None if every query sees every key.
        causal: every query sees the keys up to its own; given instead of a mask, which the fused kernel
            then need not read.
        rotary: cosines and sines at the positions of the queries, or None.
        prefix: keys and values of the positions before these (self-attention).
        cached_kv: keys and values to use in place of computing them.
        kv_sink: called with the keys and values attended to, prefix included.
        n_queries: how many of the last positions ask, where the others are attended to alone; None for all.
        bias: is added to the scaled scores (relative positions), or None.
        rows_per_source: how many rows of queries read the keys and values of one row of the source, in
            cross-attention; those of one row next to one another.
    """

    mask: Bool[Tensor, "mask_batch 1 _query_pos key_pos"] | None = None
    causal: bool = False
    rotary: Rotary | None = None
    prefix: KeysValues | None = None
    cached_kv: KeysValues | None = None
    kv_sink: Callable[[KeysValues], None] | None = None
    n_queries: int | None = None
    bias: Float[Tensor, "bias_batch head _query_pos key_pos"] | None = None
    rows_per_source: int = 1


class HookedAttention(Declared, nn.Module):
    """Multi-head attention in which every intermediate passes a hook point.

    Args:
        leaves: the Hugging Face layers.
        cfg: the stack's config: d_head, n_heads, n_key_value_heads and the two flags are read from it.
        cross: True if keys and values come from elsewhere than the queries.
        rotary: which of a pass' rotary positions turn queries and keys (a stack may have several), or None.
        window: how many positions back a query sees (sliding-window attention), or None.
        q_norm: the norm of each head's queries, after `hook_q` and before they are rotated, or None.
        k_norm: that of its keys.
        scale: what scores are multiplied by; ``1 / sqrt(d_head)`` if None.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2), or None.
    """

    def __init__(
        self,
        leaves: AttentionLeaves,
        cfg: TransformerLensConfig,
        *,
        cross: bool = False,
        rotary: str | None = None,
        window: int | None = None,
        q_norm: HookedNorm | None = None,
        k_norm: HookedNorm | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self._leaves, self.cfg = leaves, cfg
        self.cross, self.rotary, self.window, self.softcap = cross, rotary, window, softcap
        self.scale = cfg.d_head**-0.5 if scale is None else scale
        keys = "key_pos" if cross else "pos"
        d_source = "d_source" if cross else "d_model"
        split: dict[str, str | bool] = {"gate": "use_split_qkv_input", "aliased": True}
        self.hook_q_input = HookPoint("batch pos head d_model", **split)  # type: ignore[arg-type]
        self.hook_k_input = HookPoint(f"batch {keys} kv_head {d_source}", **split)  # type: ignore[arg-type]
        self.hook_v_input = HookPoint(f"batch {keys} kv_head {d_source}", **split)  # type: ignore[arg-type]
        self.hook_q = HookPoint("batch pos head d_head")
        self.hook_k = HookPoint(f"batch {keys} kv_head d_head")
        self.hook_v = HookPoint(f"batch {keys} kv_head d_head")
        self._norms = q_norm, k_norm
        if q_norm is not None:
            self.q_norm = q_norm
        if k_norm is not None:
            self.k_norm = k_norm
        if rotary is not None:
            self.hook_rot_q = HookPoint("batch pos head d_head")
            self.hook_rot_k = HookPoint("batch pos kv_head d_head")
        self.hook_attn_scores = HookPoint("batch head query_pos key_pos")
        self.hook_pattern = HookPoint("batch head query_pos key_pos")
        self.hook_z = HookPoint("batch pos head d_head")
        self.hook_result = HookPoint("batch pos head d_model", gate="use_attn_result")

    # --- weights, all views -------------------------------------------------------------------------

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights."""
        return rearrange(self._leaves.q.weight, "(h d) m -> h m d", d=self.cfg.d_head)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_source d_head"]:
        """Key weights, one for each key-value head."""
        return rearrange(self._leaves.k.weight, "(h d) m -> h m d", d=self.cfg.d_head)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_source d_head"]:
        """Value weights, one for each key-value head."""
        return rearrange(self._leaves.v.weight, "(h d) m -> h m d", d=self.cfg.d_head)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights."""
        return rearrange(self._leaves.o.weight, "m (h d) -> h d m", d=self.cfg.d_head)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query bias; zeros where there is none."""
        return rearrange(self._leaves.q.bias, "(h d) -> h d", d=self.cfg.d_head)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        """Key bias; zeros where there is none."""
        return rearrange(self._leaves.k.bias, "(h d) -> h d", d=self.cfg.d_head)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        """Value bias; zeros where there is none."""
        return rearrange(self._leaves.v.bias, "(h d) -> h d", d=self.cfg.d_head)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias; zeros where there is none."""
        return self._leaves.o.bias

    @property
    def QK(self) -> FactoredMatrix:
        """``W_Q @ W_K^T`` of every head, [head d_model d_source], in factors; key heads repeated under GQA."""
        return FactoredMatrix(self.W_Q, self._per_query_head(self.W_K).transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """``W_V @ W_O`` of every head, [head d_source d_model], in factors; value heads repeated under GQA."""
        return FactoredMatrix(self._per_query_head(self.W_V), self.W_O)

    def _per_query_head(self, w: Tensor) -> Tensor:
        groups = self.cfg.n_heads // w.shape[0]
        return w if groups == 1 else w.repeat_interleave(groups, 0)

    # --- forward ------------------------------------------------------------------------------------

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        given: AttentionPass,
        *,
        source: Float[Tensor, "source_batch key_pos d_source"] | None = None,
        norm: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch query_pos d_model"]:
        """What the attention adds to the residual stream, at the positions that ask.

        Args:
            x: the residual stream.
            given: masks, rotary positions, earlier keys and values.
            source: what keys and values are read from, in cross-attention.
            norm: the norm before the attention, or None. With `use_split_qkv_input` it is applied to each
                head's copy of its input, after the hooks on them.
        """
        self._refuse_gated()
        if source is not None and len(x) != len(source) * given.rows_per_source:
            raise StackError(
                f"{len(x)} rows of queries and a source of {len(source)} rows, {given.rows_per_source} rows of queries "
                "for each: a row reads one source, and rows_per_source says how many read the same"
            )
        if not self.cfg.use_split_qkv_input:
            x = x if norm is None else norm(x)
        if source is not None and self._absorbs(x, source, given):
            return self._out(self.hook_z(self._absorbed(x, source, given)))
        q, new = self._queries_keys_values(x, source, given, norm)
        attended, prefix = (given.cached_kv or new), given.prefix
        assert attended is not None
        if prefix is not None and self._copies(prefix, attended):
            attended, prefix = prefix.for_rows(attended.k.shape[0]).then(attended), None
        if given.kv_sink is not None:
            given.kv_sink(attended)
        altered = self.softcap is not None or given.bias is not None
        if prefix is not None or altered or hooked(self.hook_attn_scores, self.hook_pattern):
            z = self._explicit(q, [kv for kv in (prefix, attended) if kv is not None], given)
        else:
            z = self._fused(q, attended, given)
        return self._out(self.hook_z(z))

    @staticmethod
    def _copies(prefix: KeysValues, own: KeysValues) -> bool:
        """Whether a prefix is put before each row's own keys, for the fused kernel: it is theirs, or the shorter part.

        A long one that rows share is folded into the queries instead: copying it would cost more than it saves.
        """
        return prefix.k.shape[0] == own.k.shape[0] or prefix.k.shape[1] <= own.k.shape[1]

    @property
    def device(self) -> torch.device:
        """Where this attention computes."""
        return self._leaves.o.device

    def sees_keys_values(self) -> bool:
        """True if somebody looks at the keys, the values or what they are computed from."""
        k_norm = self._norms[1]
        points = () if k_norm is None else (k_norm.hook_scale, k_norm.hook_normalized)
        return hooked(self.hook_k, self.hook_v, self.hook_k_input, self.hook_v_input, *points)

    def _refuse_gated(self) -> None:
        for point in (self.hook_result, self.hook_q_input, self.hook_k_input, self.hook_v_input):
            assert point.gate is not None
            if hooked(point) and not getattr(self.cfg, point.gate):
                raise gated_error(point)

    def _queries_keys_values(
        self, x: Tensor, source: Tensor | None, given: AttentionPass, norm: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, KeysValues | None]:
        heads = "b p (h d) -> b p h d"
        d = self.cfg.d_head
        leaves, source = self._leaves, x if source is None else source
        asking = x if given.n_queries is None else x[:, -given.n_queries :]
        if self.cfg.use_split_qkv_input:
            q = self._from_split(asking, self.hook_q_input, self.W_Q, self.b_Q, norm)
        elif leaves.fused and given.cached_kv is None and source is x:
            qkv = leaves.q.linear(x)
            q = rearrange(leaves.q.take(qkv)[:, -asking.shape[1] :], heads, d=d)
        else:
            q = rearrange(leaves.q(asking), heads, d=d)
        q_norm, k_norm = self._norms
        q = self.hook_q(q)
        q = q if q_norm is None else q_norm(q)
        if given.rotary is not None:
            q = self.hook_rot_q(rotate(q, *(t[:, -q.shape[1] :] for t in given.rotary)))
        if given.cached_kv is not None:
            return q, None
        if self.cfg.use_split_qkv_input:
            source_norm = None if self.cross else norm
            k = self._from_split(source, self.hook_k_input, self.W_K, self.b_K, source_norm)
            v = self._from_split(source, self.hook_v_input, self.W_V, self.b_V, source_norm)
        elif leaves.fused and source is x:
            k, v = (rearrange(p.take(qkv), heads, d=d) for p in (leaves.k, leaves.v))
        else:
            k, v = (rearrange(p(source), heads, d=d) for p in (leaves.k, leaves.v))
        k, v = self.hook_k(k), self.hook_v(v)
        k = k if k_norm is None else k_norm(k)
        if given.rotary is not None:
            k = self.hook_rot_k(rotate(k, *given.rotary))
        return q, KeysValues(k, v)

    def _from_split(
        self, x: Tensor, point: HookPoint, w: Tensor, b: Tensor, norm: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Each head's own copy of the input through its hook point, its norm and its own weights."""
        copies = point(repeat(x, "b p m -> b p h m", h=w.shape[0]))
        copies = copies if norm is None else norm(copies)
        return einsum(copies, w, "b p h m, h m d -> b p h d") + b

    def _fused(self, q: Tensor, kv: KeysValues, given: AttentionPass) -> Tensor:
        rows = q.shape[0] // kv.k.shape[0]  # more than one only where keys are shared: cross-attention
        mask = given.mask
        if mask is not None and rows > 1 and mask.shape[0] == q.shape[0]:  # each row sees keys of its own
            mask = rearrange(mask, "(b r) 1 q k -> b 1 (r q) k", r=rows)
        elif mask is not None:
            mask = _for_batch(mask, kv.k.shape[0])
        z = F.scaled_dot_product_attention(
            rearrange(q, "(b r) q h d -> b h (r q) d", r=rows),
            rearrange(kv.k, "b k h d -> b h k d"),
            rearrange(kv.v, "b k h d -> b h k d"),
            attn_mask=mask,
            is_causal=given.causal,
            scale=self.scale,
            enable_gqa=kv.k.shape[2] != q.shape[2],
        )
        return rearrange(z, "b h (r q) d -> (b r) q h d", r=rows)

    def _explicit(self, q: Tensor, parts: list[KeysValues], given: AttentionPass) -> Tensor:
        scores = torch.cat([self._scores(q, kv.k) for kv in parts], -1)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if given.bias is not None:
            scores = scores + _for_batch(given.bias, scores.shape[0])
        mask = given.mask
        if given.causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()[None, None]
        if mask is not None:
            scores = scores.masked_fill(~_for_batch(mask, scores.shape[0]), -torch.inf)
        edited = hooked(self.hook_attn_scores)
        scores = self.hook_attn_scores(scores)
        # A query whose every key was knocked out attends to nothing; without this it would attend to NaN.
        fully_masked = scores.isneginf().all(-1, keepdim=True) if edited else None
        if fully_masked is not None:
            scores = scores.masked_fill(fully_masked, 0.0)
        pattern = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        if fully_masked is not None:
            pattern = pattern.masked_fill(fully_masked, 0.0)
        pattern = self.hook_pattern(pattern)
        lengths = [kv.v.shape[1] for kv in parts]
        mixed = [self._mix(p, kv.v) for p, kv in zip(pattern.split(lengths, -1), parts, strict=True)]
        return mixed[0] if len(mixed) == 1 else mixed[0] + mixed[1]

    def _absorbs(self, x: Tensor, source: Tensor, given: AttentionPass) -> bool:
        """Whether a source's keys and values are nobody's but these queries', and cost more than doing without them."""
        n_queries, n_keys = x.shape[0] // source.shape[0] * x.shape[1], source.shape[1]
        return (
            given.cached_kv is None
            and given.kv_sink is None
            and n_queries * (self.cfg.d_head + n_keys) < n_keys * self.cfg.d_head
            and self._norms == (None, None)
            and self.softcap is None  # to which a key's bias matters
            and not self.cfg.use_split_qkv_input
            and not self.sees_keys_values()
            and not hooked(self.hook_attn_scores, self.hook_pattern)
            and self._leaves.k.is_its_matrix
            and self._leaves.v.is_its_matrix
        )

    def _absorbed(self, x: Tensor, source: Tensor, given: AttentionPass) -> Float[Tensor, "batch pos head d_head"]:
        """``z`` without keys and values: ``q (s W_K)^T`` as ``(q W_K^T) s^T``, and ``A (s W_V)`` as ``(A s) W_V``.

        A key's bias adds the same to all scores of a query, and so nothing to its pattern.
        """
        q = self.hook_q(rearrange(self._leaves.q(x), "b p (h d) -> b p h d", d=self.cfg.d_head))
        q = einsum(q, self._per_query_head(self.W_K), "b p h d, h m d -> b p h m")
        mixed = self._explicit(q, [KeysValues(source[:, :, None], source[:, :, None])], given)
        z = einsum(mixed, self._per_query_head(self.W_V), "b p h m, h m d -> b p h d")
        return z + self._per_query_head(self.b_V)

    def _scores(self, q: Tensor, k: Tensor) -> Float[Tensor, "batch head query_pos key_pos"]:
        rows, groups = q.shape[0] // k.shape[0], k.shape[2]
        folded = rearrange(q * self.scale, "(b r) q (g n) d -> b g (r n q) d", r=rows, g=groups)
        scores = folded @ rearrange(k, "b k g d -> b g d k")
        return rearrange(scores, "b g (r n q) k -> (b r) (g n) q k", r=rows, q=q.shape[1])

    def _mix(self, pattern: Tensor, v: Tensor) -> Float[Tensor, "batch pos head d_head"]:
        rows, groups = pattern.shape[0] // v.shape[0], v.shape[2]
        folded = rearrange(pattern, "(b r) (g n) q k -> b g (r n q) k", r=rows, g=groups)
        z = folded.to(v.dtype) @ rearrange(v, "b k g d -> b g k d")
        return rearrange(z, "b g (r n q) d -> (b r) q (g n) d", r=rows, q=pattern.shape[2])

    def _out(self, z: Tensor) -> Tensor:
        if not self.cfg.use_attn_result:
            return self._leaves.o(rearrange(z, "b p h d -> b p (h d)"))
        result = self.hook_result(einsum(z, self.W_O, "b p h d, h d m -> b p h m"))
        return result.sum(-2) + self.b_O


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "rotary_batch pos d_head"],
    sin: Float[Tensor, "rotary_batch pos d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary positions (Su et al. 2021): each pair (x_i, x_{i + d_head/2}) turned by its position's angle."""
    cos, sin = (_for_batch(t, x.shape[0])[:, :, None] for t in (cos, sin))
    turned, half = x * cos, x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    turned[..., :half].addcmul_(high, sin[..., :half], value=-1)  # in place: half the passes over memory
    turned[..., half:].addcmul_(low, sin[..., half:])
    return turned


def _for_batch(t: Tensor, batch: int) -> Tensor:
    """`t` for `batch` rows: each example's entry repeated for its rows in a resumed run; one entry serves all."""
    return t if t.shape[0] in (1, batch) else t.repeat_interleave(batch // t.shape[0], 0)


def gated_error(point: HookPoint) -> GatedHookError:
    """The error for a hook point that is asked for while its flag is off."""
    return GatedHookError(f"{point.name} is off, so a hook there would never fire: set model.cfg.{point.gate} = True")
