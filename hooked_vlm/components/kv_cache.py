"""Keys and values of positions that have been computed, and what else a finished pass leaves behind. Knows no model.

Cost of a cache: keys, values and one residual stream for every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class KeysValues:
    """What one attention attends to, as it attends to it: after its hooks and rotary positions."""

    k: Float[Tensor, "batch key_pos kv_head d_head"]
    v: Float[Tensor, "batch key_pos kv_head d_head"]

    def first(self, n: int) -> KeysValues:
        """The first `n` positions."""
        return KeysValues(self.k[:, :n], self.v[:, :n])

    def for_rows(self, n: int) -> KeysValues:
        """The same for `n` rows, each example's next to one another."""
        times = n // self.k.shape[0]
        return self if times == 1 else KeysValues(*(t.repeat_interleave(times, 0) for t in (self.k, self.v)))

    def then(self, other: KeysValues) -> KeysValues:
        """These positions followed by `other`'s."""
        return KeysValues(torch.cat([self.k, other.k], 1), torch.cat([self.v, other.v], 1))


@dataclass
class KVCacheEntry:
    """What one block had before it and attended to in a finished pass; None for an attention that it does not have."""

    resid_pre: Float[Tensor, "batch pos d_model"] | None = None  # as it arrived, before its hook point
    attn: KeysValues | None = None
    cross_attn: KeysValues | None = None


KVCache = list[KVCacheEntry]  # an entry for each block, and one for what leaves the last
