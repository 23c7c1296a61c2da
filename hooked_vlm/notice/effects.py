"""Patching effects of examples: each corruption swept over each kind of site, as tables.

With L = logit(right) - logit(wrong) and P the probability of the right answer, at the answer's token:
effect = L_patched - L_corrupt; restoration = P_patched - P_corrupt; normalized = effect / (L_clean - L_corrupt)
(Golovanevsky et al. 2025); of a run as published also p_patched = P_patched. The clean activation is patched into the
corrupt run.

Costs one exact sweep a corruption, and a clean run. Sites where clean and corrupt are equal have an effect of 0, and
are not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from hooked_vlm.analysis.heads import module_of, of_heads
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.examples import Example, corruptions, stacked
from hooked_vlm.notice.parts import Parts, Swept
from hooked_vlm.notice.schema import Kind
from hooked_vlm.notice.vocabulary import EVERY
from hooked_vlm.patching import Sites
from hooked_vlm.patching.metrics import logit_diff, probability
from hooked_vlm.patching.result import SitesResult
from hooked_vlm.patching.sweep import sweep_all

_PLACES = ("layer", "head", "position")
PIECE = 4  # layers of a kind of sites that are swept together, and kept together
AT_ONCE = " at once"  # behind a kind's name: its sites at every position at once


@dataclass(frozen=True)
class Effects:
    """What sweeps gave for one example.

    Args:
        table: a row for each site and corruption, the columns of `effects/*.parquet`.
        clean: L of the clean run.
        corrupt: L of each corrupt run, by corruption.
        skipped: how many sites were not run since they cannot differ, by corruption.
    """

    table: pa.Table
    clean: float
    corrupt: dict[str, float]
    skipped: dict[str, int]


def resid_hook(model: HookedVLM) -> str:
    """The residual stream as the next block of the prompt's stack receives it."""
    return "normalized_resid_post" if model.stacks[model.prompt_stack].post_norm else "resid_post"


def sites_of(model: HookedVLM, kind: Kind, positions: Any) -> Sites:
    """The sites of a kind, in the prompt's stack.

    Args:
        model: a `HookedVLM`.
        kind: which.
        positions: as `Sites` takes them.
    """
    stack = model.prompt_stack
    if of_heads(kind):
        return Sites.heads(model, stack, module_of(kind), positions=positions)
    hooks = {"cross_attn": "cross_attn_out", "attn": "attn_out", "mlp": "mlp_out", "resid": resid_hook(model)}
    return Sites.module(model, stack, hooks[kind], positions=positions)


def sites_by_kind(model: HookedVLM, config: NoticeConfig, positions: Sequence[int]) -> dict[str, Sites]:
    """The sites of every kind, by its name; behind those of heads the same at every position at once, with `AT_ONCE`.

    Args:
        model: a `HookedVLM`, its weights not needed.
        config: the run's, resolved.
        positions: where an example is patched.
    """
    found: dict[str, Sites] = {}
    for kind in config.kinds:
        found[kind] = sites_of(model, kind, list(positions))
        if of_heads(kind) and config.every_position is not False:
            found[kind + AT_ONCE] = sites_of(model, kind, "all_at_once")
    return found


def measured(
    model: HookedVLM,
    config: NoticeConfig,
    examples: Sequence[Example],
    budget: int | None = None,
    parts: Parts | None = None,
) -> list[Effects]:
    """Sweep examples of equal length and positions together.

    Args:
        model: a `HookedVLM`.
        config: the run's, resolved.
        examples: kept ones, alike in their number of tokens and their positions.
        budget: bytes that a sweep may take; None for a quarter of what is free.
        parts: what was measured of them before, and where what is measured is kept; None to keep nothing.
    """
    clean = stacked(examples)
    tokens = [example.tokens for example in examples]
    metrics = {
        "difference": logit_diff([t.right for t in tokens], [t.wrong for t in tokens]),
        "probability": probability([t.right for t in tokens]),
    }
    with torch.no_grad():
        high = metrics["difference"](model(clean, logits_at="last")).cpu().double().numpy()
    skeleton = _Skeleton(model, config, examples[0].positions)
    pieces = _pieces(skeleton.sites, whole=config.screen is not None)
    found: dict[str, Swept] = {}
    for name, corruption in corruptions(config, examples).items():
        kept = {piece: part for piece in pieces if parts and (part := parts.get(f"{name}, {piece}"))}

        def keep(piece: str, result: SitesResult, name: str = name, kept: dict[str, Swept] = kept) -> None:
            kept[piece] = _swept(result, len(examples))
            if parts is not None:
                parts.add(f"{name}, {piece}", kept[piece])

        if left := {piece: sites for piece, sites in pieces.items() if piece not in kept}:
            sweep_all(
                model, clean, clean, left, metrics, corruption=corruption.fwd_hooks(model, clean),
                budget=budget, progress=False, screen=config.screen, done=keep,
            )  # fmt: skip
        in_order = [kept[piece] for piece in pieces]
        found[name] = Swept(
            np.concatenate([part.effects for part in in_order], 1),
            in_order[0].baseline,
            np.concatenate([part.measured for part in in_order]),
            sum(part.skipped for part in in_order),
        )
    return [
        Effects(
            skeleton.table(example, found, i, float(high[i])),
            float(high[i]),
            {name: float(each.baseline[0, i]) for name, each in found.items()},
            {name: each.skipped for name, each in found.items()},
        )
        for i, example in enumerate(examples)
    ]


def _pieces(kinds: Mapping[str, Sites], *, whole: bool) -> dict[str, Sites]:
    """The sites of each kind, `PIECE` layers at a time, in the order of the kinds' tables; or all of a kind at once."""
    found = {}
    for name, sites in kinds.items():
        size = len(sites.layers) if whole else PIECE
        for start in range(0, len(sites.layers), size):
            found[f"{name} from {start}"] = replace(sites, layers=sites.layers[start : start + size])
    return found


def _swept(result: SitesResult, n_examples: int) -> Swept:
    assert result.baseline is not None
    effects = result.effect().cpu().double().numpy().reshape(2, -1, n_examples)
    known = np.ones(effects.shape[1], dtype=bool) if result.measured is None else result.measured.numpy().ravel()
    baseline = result.baseline.cpu().double().numpy().reshape(2, n_examples)
    return Swept(effects, baseline, known, result.skipped)


class _Skeleton:
    """The rows of a table of effects that do not depend on the example: which kind, layer, head and position."""

    def __init__(self, model: HookedVLM, config: NoticeConfig, positions: tuple[int, ...]) -> None:
        self.model, self.kinds, self.positions = model, config.kinds, positions
        self.screened, self.as_published = config.screen is not None, config.as_published
        cfg = model.stacks[model.prompt_stack].cfg
        self.sites = sites_by_kind(model, config, positions)
        columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("kind", *_PLACES)}
        for name in self.sites:
            kind = name.removesuffix(AT_ONCE)
            places = list(positions) if name == kind else [-1]
            heads = list(range(cfg.n_heads)) if of_heads(kind) else [-1]
            layer, position, head = np.meshgrid(range(cfg.n_layers), places, heads, indexing="ij")
            for column, values in zip(("layer", "position", "head"), (layer, position, head), strict=True):
                columns[column].append(values.ravel())
            columns["kind"].append(np.full(layer.size, config.kinds.index(kind)))
        self.columns = {name: np.concatenate(parts).astype(np.int32) for name, parts in columns.items()}

    def table(self, example: Example, found: Mapping[str, Swept], i: int, high: float) -> pa.Table:
        """One example's table.

        Args:
            example: which.
            found: what the sweeps gave, by corruption.
            i: its place among the examples that were swept together.
            high: its clean logit difference.
        """
        names, row = list(found), example.row
        n = len(names) * len(self.columns["kind"])
        place = self.columns["position"]  # -1 is the last entry of what follows
        of_places = {"role": [*example.roles, EVERY], "token": [*example.clean.str_tokens[: len(example.roles)], ""]}
        constant = {"task": row["task"], "example": row["id"], "group": row["group"] or ""}
        columns: dict[str, Any] = {name: _words([value], np.zeros(n)) for name, value in constant.items()}
        columns["corrupt"] = _words(names, np.repeat(np.arange(len(names)), n // len(names)))
        columns["kind"] = _words(list(self.kinds), np.tile(self.columns["kind"], len(names)))
        columns["stack"] = _words([self.model.prompt_stack], np.zeros(n))
        for name in _PLACES:
            columns[name] = pa.array(np.tile(self.columns[name], len(names)))
        for name, given in of_places.items():
            known = list(dict.fromkeys(given))
            codes = np.array([known.index(each) for each in given])
            columns[name] = _words(known, np.tile(codes[place], len(names)))
        effects, restored = (np.stack([each.effects[k, :, i] for each in found.values()]) for k in (0, 1))
        spans = np.array([high - each.baseline[0, i] for each in found.values()])
        spans[spans == 0] = np.nan
        measures = {"effect": effects, "restoration": restored, "normalized": effects / spans[:, None]}
        if self.as_published:
            measures["p_patched"] = restored + np.array([each.baseline[1, i] for each in found.values()])[:, None]
        columns |= {name: pa.array(values.ravel()) for name, values in measures.items()}
        if self.screened:
            columns["measured"] = pa.array(np.concatenate([each.measured for each in found.values()]))
        return pa.table(columns)


def _words(known: list[str], codes: NDArray[Any]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(known, pa.string()))
