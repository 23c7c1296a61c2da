"""Which positions see which. Knows no model.

Cost: one mask [batch 1 query_pos key_pos] for each sliding window of a pass; none where the fused kernel needs none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor


class AttentionMask:
    """Which keys each query may see.

    Args:
        real: [batch key_pos], False where there is padding; None where there is none.
        causal: True if a query sees no later position.
        groups: [batch key_pos], for positions that also see all others of their group, whatever is later or out of a
            window (an image's tokens in Gemma 3): the group's number, -1 outside of all. A group lies in one piece.
    """

    def __init__(
        self,
        real: Bool[Tensor, "batch key_pos"] | None,
        *,
        causal: bool = False,
        groups: Int[Tensor, "batch key_pos"] | None = None,
    ) -> None:
        self.real, self.causal = real, causal
        self.groups = groups if causal else None  # where every position sees every other, groups say nothing
        # What a window counts: tokens. Padding may stand between two of them, where a padded prompt was answered.
        self._tokens = None if real is None else real.long().cumsum(1)
        self._masks = cache(self._mask)  # every layer of a pass asks for the same one

    def given(self, first: int, n_queries: int, window: int | None, device: torch.device) -> dict[str, Any]:
        """`mask` and `causal` of an `AttentionPass` for queries at positions `first`, `first + 1`, ..."""
        n_keys = first + n_queries
        window = None if window is None or n_keys <= window else window
        if not self.causal:
            return {"mask": None if self.real is None else self.real[:, None, None, :].to(device)}
        plain = self.real is None and self.groups is None and window is None
        if plain and (first == 0 or n_queries == 1):
            return {"causal": n_queries > 1}
        return {"mask": self._masks(first, n_queries, window, device)}

    def of_rows(self, places: Int[Tensor, "batch rows"], n_keys: int, window: int | None) -> Tensor | None:
        """[batch * rows 1 1 key_pos] for rows that hold one query each, at `places` of their example."""
        if not self.causal and self.real is None:
            return None
        return rearrange(self._seen(places, n_keys, window).expand(len(places), -1, -1), "b r k -> (b r) 1 1 k")

    def first_to_see(self, position: int) -> int:
        """The first position that sees a change at this one in any row: it, or where its group begins; 0 if all do."""
        if not self.causal:
            return 0
        if self.groups is None or position >= self.groups.shape[1]:
            return position
        own = self.groups[:, position, None]
        sees = (self.groups == own) & (own >= 0)
        return min(position, int(sees.any(0).long().argmax())) if bool(sees.any()) else position

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
            sees = sees & (_of_queries(tokens, queries)[:, :, None] - tokens[:, None] < window)
        if self.groups is not None:
            groups = self.groups[:, :n_keys].to(queries.device)
            groups = torch.nn.functional.pad(groups, (0, n_keys - groups.shape[1]), value=-1)  # answers have none
            own = _of_queries(groups, queries)[:, :, None]
            sees = sees | ((own == groups[:, None]) & (own >= 0))
        if self.real is None:
            return sees
        sees = sees & self.real[:, None, :n_keys].to(queries.device)
        # A padded query sees itself: it must see something to stay finite, and nobody sees it.
        return sees | (keys == at) if self.causal else sees


def _of_queries(
    of_keys: Int[Tensor, "key_batch key_pos"], queries: Int[Tensor, "query_batch query_pos"]
) -> Int[Tensor, "batch query_pos"]:
    """What stands at the queries' positions."""
    rows = max(len(of_keys), len(queries))
    return of_keys.expand(rows, -1).gather(1, queries.expand(rows, -1))
