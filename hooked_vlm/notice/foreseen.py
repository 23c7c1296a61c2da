"""What a run's sweeps will be, from the first rows of its tasks: which sites there are and which cannot matter.

Clean and corrupt are equal in a causal stack before the first position that a corruption changes, and under an image
that is no part of the prompt in whatever stands before the first cross-attention to it. What the sweep itself finds by
comparing two runs (`patching.moving`) is foreseen here from that. Costs nothing; runs no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_vlm.models.base import HookedVLM
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.effects import sites_by_kind
from hooked_vlm.notice.examples import Example, first_changed, noisy_places
from hooked_vlm.patching import Sites, cost
from hooked_vlm.patching.cost import SitesCost
from hooked_vlm.positions import Places


@dataclass(frozen=True)
class Foreseen:
    """The sweeps of one example, the mean over some.

    Args:
        costs: by corruption and kind of sites.
        n_tokens: of the longest prompt.
        n_left: positions that a site runs again, the mean over sites.
        kept: numbers that are held of an example throughout.
        row: numbers of one site in flight.
    """

    costs: dict[tuple[str, str], SitesCost]
    n_tokens: int
    n_left: float
    kept: int
    row: int

    @property
    def total(self) -> SitesCost:
        """All sites of all corruptions."""
        return cost.total(self.costs.values())

    @property
    def n_run(self) -> int:
        """Sites that are run."""
        return self.total.sites - self.total.skipped

    def n_passes(self, size: int) -> int:
        """Growing passes, of so many sites at most."""
        return sum(ceil((each.sites - each.skipped) / size) for each in self.costs.values())


def foreseen(config: NoticeConfig, model: HookedVLM, examples: Sequence[Example]) -> Foreseen:
    """What sweeping some examples takes.

    Args:
        config: the run's, resolved.
        model: a `HookedVLM`, its weights not needed.
        examples: laid out.
    """
    found: dict[tuple[str, str], list[SitesCost]] = {}
    left, n_tokens, kept, row = [0.0], 1, 0, 1
    for example in examples:
        n = example.clean.input_ids.shape[1]
        lengths, n_tokens = cost.lengths_of(model, n), max(n_tokens, n)
        kinds = {name: sites.at(n) for name, sites in sites_by_kind(model, config, example.positions).items()}
        kept = max(kept, _kept(model, kinds.values(), lengths))
        for corruption in config.corruptions:
            if corruption.removesuffix("_noise") not in example.corrupt:
                continue
            begins = first_difference(model, corruption, example)
            for name, sites in kinds.items():
                matters, first = which_matter(model, sites, corruption, begins, n)
                every = cost.sites_cost(model, sites, matters, first, lengths)
                found.setdefault((corruption, name), []).append(_screened(every, config.screen, model, lengths))
                if bool(matters.any()):
                    left += (n - first[matters]).tolist()
                    earliest = int(first[matters].min())
                    numbers = cost.row_numbers(model, sites, lengths, earliest, n_logits=1, shared=True)
                    row = max(row, numbers)
    costs = {key: _mean(each, len(examples)) for key, each in found.items()}
    return Foreseen(costs, n_tokens, sum(left) / max(1, len(left) - 1), kept, row)


def first_difference(model: HookedVLM, corruption: str, example: Example) -> int:
    """The first position of the prompt at which a corruption changes anything; 0 where every position sees a change."""
    image = example.clean.layout.image_token_id
    if not model.stacks[model.prompt_stack].causal or (corruption.startswith("image") and image is None):
        return 0
    if corruption.startswith("image"):
        assert image is not None
        return int(example.clean.input_ids[0].eq(image).long().argmax())
    return (first_changed if corruption == "text" else noisy_places)(example)[0]


def which_matter(
    model: HookedVLM, sites: Sites, corruption: str, begins: int, n_tokens: int
) -> tuple[Bool[Tensor, " site"], Int[Tensor, " site"]]:
    """Which sites a corruption can make a difference to, and the first position that each changes.

    Args:
        model: a `HookedVLM`, its weights not needed.
        sites: in the prompt's stack, with their positions spelled out.
        corruption: its name.
        begins: the first position that it changes.
        n_tokens: of the prompt.
    """
    stack, table = model.stacks[model.prompt_stack], sites.table
    layer = torch.tensor(table["layer"].to_numpy())
    one_each = isinstance(sites.positions, Places)
    at = sites.positions_of(table, 1)[:, 0] if one_each else torch.full((len(table),), begins)
    matters = at >= begins
    if corruption.startswith("image") and cost.crosses(model, stack.name) and "cross_attn" not in sites.hook:
        before = sites.hook.partition("{}.")[2].startswith(("attn.", "hook_attn_out"))
        matters &= ~(before & (layer == 0))
    after_last = model.answer_stack == model.prompt_stack and cost.joins_after_its_block(stack, sites)
    if after_last:  # the metrics read the last position alone
        matters &= (layer < stack.cfg.n_layers - 1) | (at == n_tokens - 1)
    return matters, at if stack.causal else torch.zeros_like(at)


def _kept(model: HookedVLM, kinds: Iterable[Sites], lengths: cost.Lengths) -> int:
    hooks = {sites.hook: cost.source_numbers(model, sites, lengths) for sites in kinds}
    return cost.state_numbers(model, lengths) + sum(hooks.values())


def _screened(every: SitesCost, screen: int | None, model: HookedVLM, lengths: cost.Lengths) -> SitesCost:
    """What is left of sites' cost where the largest estimates and as many others are measured."""
    n_run = every.sites - every.skipped
    if screen is None or n_run <= 2 * screen:
        return every
    share = 2 * screen / n_run
    estimates = 2 * 3 * cost.run_flop(model, lengths)  # of two metrics, a forward and a backward each
    return replace(every, position_runs=round(share * every.position_runs), flop=share * every.flop + estimates)


def _mean(costs: Sequence[SitesCost], n: int) -> SitesCost:
    """Of so many examples; those that lack a corruption cost nothing under it."""
    whole = cost.total(costs)
    return SitesCost(round(whole.sites / n), round(whole.skipped / n), round(whole.position_runs / n), whole.flop / n)
