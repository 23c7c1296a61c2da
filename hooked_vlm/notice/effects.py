"""Patching effects of examples: each corruption swept over each kind of site, as tables.

With L = logit(right) - logit(wrong) and P the probability of the right answer, at the answer's token:
effect = L_patched - L_corrupt; restoration = P_patched - P_corrupt; normalised = effect / (L_clean - L_corrupt)
(Golovanevsky et al. 2025). The clean activation is patched into the corrupt run.

Costs one exact sweep a corruption, and a clean run. In a causal stack, positions before the first that a corruption
changes have the same activation in both runs: their effect is 0, and they are not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.examples import Example, corruptions, first_changed, noisy_places, stacked
from hooked_vlm.notice.vocabulary import EVERY, module_of, of_heads
from hooked_vlm.patching import Sites
from hooked_vlm.patching.metrics import logit_diff, probability
from hooked_vlm.patching.sweep import sweep_all

_TEXT_COLUMNS = ("task", "example", "group", "corrupt", "kind", "stack", "role", "token")
_PLACES = ("layer", "head", "position")
_VALUES = ("effect", "restoration", "normalised")
_AT_ONCE, _BASELINE = " at once", "baseline"


@dataclass(frozen=True)
class Effects:
    """What sweeps gave for one example.

    Args:
        table: a row for each site and corruption, the columns of `effects/*.parquet`.
        clean: L of the clean run.
        corrupt: L of each corrupt run, by corruption.
    """

    table: pa.Table
    clean: float
    corrupt: dict[str, float]


def resid_hook(model: Any) -> str:
    """The residual stream as the next block of the prompt's stack receives it."""
    return "normalized_resid_post" if model.stacks[model.prompt_stack].post_norm else "resid_post"


def sites_of(model: Any, kind: str, positions: Any) -> Sites:
    """The sites of a kind, in the prompt's stack.

    Args:
        model: a `HookedVLM`.
        kind: one of `vocabulary.KINDS`.
        positions: as `Sites` takes them.
    """
    stack = model.prompt_stack
    if of_heads(kind):
        return Sites.heads(model, stack, module_of(kind), positions=positions)
    hooks = {"cross_attn": "cross_attn_out", "attn": "attn_out", "mlp": "mlp_out", "resid": resid_hook(model)}
    return Sites.module(model, stack, hooks[kind], positions=positions)


def n_sites(model: Any, kinds: Sequence[str], n_positions: int) -> int:
    """How many sites one corruption of one example has."""
    cfg = model.stacks[model.prompt_stack].cfg
    heads = sum(of_heads(kind) for kind in kinds)
    return int(cfg.n_layers * (cfg.n_heads * heads * (n_positions + 1) + (len(kinds) - heads) * n_positions))


def measured(model: Any, config: NoticeConfig, examples: Sequence[Example], budget: int | None = None) -> list[Effects]:
    """Sweep examples of equal length and positions together.

    Args:
        model: a `HookedVLM`.
        config: the run's, resolved.
        examples: kept ones, alike in their number of tokens and their positions.
        budget: bytes that a sweep may take; None for a quarter of what is free.
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
    found: dict[str, NDArray[Any]] = {}
    low: dict[str, NDArray[Any]] = {}
    for name, corruption in corruptions(config, examples).items():
        begins = _first_difference(model, name, clean, examples)
        kinds = skeleton.sites(begins)
        hooks = corruption.fwd_hooks(model, clean)
        if not kinds:  # every site is before the first difference: nothing is patched, and the corrupt run is measured
            kinds = {_BASELINE: Sites.module(model, model.prompt_stack, "mlp_out", layers=0, positions=0)}
        results = sweep_all(model, clean, clean, kinds, metrics, corruption=hooks, budget=budget, progress=False)
        baseline = next(iter(results.values())).baseline
        assert baseline is not None
        values = {kind: (result.values - _like(baseline, result.values)).cpu() for kind, result in results.items()}
        found[name] = skeleton.filled(values, begins, len(examples))
        low[name] = baseline[0].cpu().double().numpy()
    return [
        Effects(
            skeleton.table(
                example, {name: found[name][:, :, i] for name in found}, high[i], {n: low[n][i] for n in low}
            ),
            float(high[i]),
            {name: float(low[name][i]) for name in low},
        )
        for i, example in enumerate(examples)
    ]


def _like(baseline: Tensor, values: Tensor) -> Tensor:
    """A baseline [metric example] along the axes of values [metric ... example]."""
    return baseline.reshape(len(baseline), *(1,) * (values.ndim - 2), -1)


def _first_difference(model: Any, name: str, clean: VLMInputs, examples: Sequence[Example]) -> int:
    """The first position of the prompt's stack at which a corruption changes anything."""
    stack = model.stacks[model.prompt_stack]
    image = clean.layout.image_token_id
    if not stack.causal or (name.startswith("image") and image is None):
        return 0
    if name.startswith("image"):
        assert image is not None
        return int(clean.input_ids.eq(image).long().argmax(1).min())
    changed = first_changed if name == "text" else noisy_places
    return min(changed(example)[0] for example in examples)


class _Skeleton:
    """The rows of a table of effects that do not depend on the example: which kind, layer, head and position."""

    def __init__(self, model: Any, config: NoticeConfig, positions: tuple[int, ...]) -> None:
        self.model, self.kinds, self.positions = model, config.kinds, positions
        cfg = model.stacks[model.prompt_stack].cfg
        self.shapes: dict[str, tuple[int, ...]] = {}
        columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("kind", *_PLACES)}
        for number, kind in enumerate(config.kinds):
            single = of_heads(kind)
            heads = list(range(cfg.n_heads)) if single else [-1]
            for name, places in ((kind, list(positions)), (kind + _AT_ONCE, [-1])):
                if name != kind and not single:
                    continue
                self.shapes[name] = (cfg.n_layers, len(places), len(heads))
                layer, position, head = np.meshgrid(range(cfg.n_layers), places, heads, indexing="ij")
                for column, values in zip(("layer", "position", "head"), (layer, position, head), strict=True):
                    columns[column].append(values.ravel())
                columns["kind"].append(np.full(layer.size, number))
        self.columns = {name: np.concatenate(parts).astype(np.int32) for name, parts in columns.items()}

    def sites(self, begins: int) -> dict[str, Sites]:
        """The sites that have to be run."""
        places = [place for place in self.positions if place >= begins]
        kinds: dict[str, Sites] = {}
        for name in self.shapes:
            kind = name.removesuffix(_AT_ONCE)
            if name != kind:
                kinds[name] = sites_of(self.model, kind, "all_at_once")
            elif places:
                kinds[name] = sites_of(self.model, kind, places)
        return kinds

    def filled(self, values: dict[str, Tensor], begins: int, n: int) -> NDArray[Any]:
        """Values of every row, [metric row example]; 0 where nothing had to be run."""
        late = [i for i, place in enumerate(self.positions) if place >= begins]
        parts = []
        for name, shape in self.shapes.items():
            whole = np.zeros((2, *shape, n))
            if name.endswith(_AT_ONCE):
                whole[:] = values[name].reshape(2, *shape, n).double().numpy()
            elif late:
                whole[:, :, late] = values[name].reshape(2, shape[0], len(late), shape[2], n).double().numpy()
            parts.append(whole.reshape(2, -1, n))
        return np.concatenate(parts, 1)

    def table(self, example: Example, found: dict[str, NDArray[Any]], high: float, low: dict[str, float]) -> pa.Table:
        """One example's table.

        Args:
            example: which.
            found: effect and restoration of every row, [2 row], by corruption.
            high: its clean logit difference.
            low: its corrupt ones, by corruption.
        """
        n_rows, names = len(self.columns["kind"]), list(found)
        strings = example.clean.str_tokens
        place = self.columns["position"]
        roles = [*example.roles, EVERY]  # a position of -1 is the last entry
        tokens = [*strings[: len(example.roles)], ""]
        row = example.row
        constant = {
            "task": row["task"],
            "example": row["id"],
            "group": row["group"] or "",
            "stack": self.model.prompt_stack,
        }
        columns: dict[str, Any] = {
            name: _words([value], np.zeros(n_rows * len(names))) for name, value in constant.items()
        }
        columns["corrupt"] = _words(names, np.repeat(np.arange(len(names)), n_rows))
        columns["kind"] = _words(list(self.kinds), np.tile(self.columns["kind"], len(names)))
        for name, given in (("role", roles), ("token", tokens)):
            known = list(dict.fromkeys(given))
            codes = np.array([known.index(each) for each in given])
            columns[name] = _words(known, np.tile(codes[place], len(names)))
        for name in _PLACES:
            columns[name] = pa.array(np.tile(self.columns[name], len(names)))
        effects = np.stack([found[name][0] for name in names])
        spans = np.array([high - low[name] for name in names])
        spans[spans == 0] = np.nan
        columns["effect"] = pa.array(effects.ravel())
        columns["restoration"] = pa.array(np.stack([found[name][1] for name in names]).ravel())
        columns["normalised"] = pa.array((effects / spans[:, None]).ravel())
        order = ("task", "example", "group", "corrupt", "kind", "stack", "layer", "head", "position", "role", "token")
        return pa.table({name: columns[name] for name in (*order, *_VALUES)})


def _words(known: list[str], codes: NDArray[Any]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(known, pa.string()))
