"""How much of a model's answer a few heads carry: faithfulness along a ranking of heads, against random rankings.

    f(C) = (m(C) - m(empty)) / (m(all) - m(empty))

m is the mean metric over examples of the clean run in which every head outside of C is taken from the corrupt run
(resampled), or mean-ablated; m(all) is the clean run, m(empty) has no clean head at all (Wang et al. 2022; Marks et
al. 2024, whose normalisation this is). C grows along the ranking, the first k heads at a time; the area under f over
k, 1 at most for heads that add up, says how good the ranking is in one number.

A ranking is made on some examples and judged on others: the function takes the ranking, and the examples to judge on,
and refuses those that the ranking was made from where it is told of them. What a ranking is worth is its area against
that of random rankings of the same heads; ``p = (1 + random areas as large) / (1 + rankings drawn)``. Everything is
told task by task: a head that one task rests on vanishes in the mean of three.

Cost: a run for each k and ranking, random ones included, in growing passes; equal sets are run once. With 199 random
rankings of 32 heads at 8 values of k some 1,200 runs of each example through the prompt's stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.ablation import ReferenceMeans
from hooked_vlm.analysis.effect_tables import ID, about, codes_of, columns_of, linearised, spread
from hooked_vlm.analysis.head_sets import PerExample, SetsPatched, as_heads, heads_of, patch_sets
from hooked_vlm.analysis.heads import Head
from hooked_vlm.errors import DataError, quoted
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.options import whole
from hooked_vlm.patching.plan import Measure
from hooked_vlm.patching.sites import ALL, Index

EVERY_K = 32  # up to so many heads every k is measured
Ranking = tuple[Head, ...]


@dataclass(frozen=True)
class Faithfulness:
    """Faithfulness along rankings, task by task.

    Args:
        curve: a row for each task, ranking and k: f with its interval, and of the random rankings the mean (random)
            and where the middle 95 % of them lie (random_low, random_high).
        areas: a row for each task and ranking: n (examples), area with its interval, random (mean area of the random
            rankings), random_low, random_high, draws (how many), gain (area - random) with its interval, and p.
        random: a row for each task and random ranking: draw, area.
    """

    curve: pd.DataFrame
    areas: pd.DataFrame
    random: pd.DataFrame = field(repr=False)


def faithfulness(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs | None,
    metric: Measure,
    rows: Any = None,
    *,
    rankings: Sequence[Head] | Mapping[str, Sequence[Head]],
    ranked_on: Any = None,
    ks: Sequence[int] | None = None,
    draws: int = 199,
    positions: Index = ALL,
    means: ReferenceMeans | None = None,
    corruption: Sequence[Any] = (),
    level: float = statistics.LEVEL,
    seed: int = 0,
    budget: int | None = None,
) -> Faithfulness:
    """Faithfulness of the first k heads of a ranking, for growing k, on examples that it was not made from.

    Args:
        model: a `HookedVLM`.
        clean: inputs that the model answers rightly.
        corrupt: inputs of the same shape, with the image or the text corrupted; may be None with `means`.
        metric: m of one example, e.g. `patching.metrics.logit_diff(right, wrong)`.
        rows: the task that the inputs were made from; a column task splits them.
        rankings: heads, best first, as `effect_tables.ranking` has them; or several by name. Heads of the same kinds
            that a ranking leaves out come last: they are never in C.
        ranked_on: the rows that the rankings were made from, or their ids: none may be among `rows`.
        ks: sizes of C; None for every one up to the shortest ranking's length, or, beyond 32, some of them.
        draws: random rankings; all there are if they are fewer.
        positions: where heads outside of C are replaced: "all_at_once", or as `Sites` takes them.
        means: put these in place of heads outside of C, instead of the corrupt run's.
        corruption: forward hooks of the corrupt run.
        level: of the intervals.
        seed: of the random rankings.
        budget: bytes that a pass may take.

    Raises:
        InputsError, StackError, PositionError: as `head_sets.patch_sets`.
        DataError: if an example was ranked on, there is no ranking, or a k beyond it.
    """
    named = rankings if isinstance(rankings, Mapping) else {"given": rankings}
    given = {str(name): tuple(as_heads(model, heads)) for name, heads in named.items()}
    examples = about(rows, len(clean))
    _refuse_ranked(rows, ranked_on)
    sizes = _sizes(ks, given)
    all_heads = heads_of(model, list(dict.fromkeys(kind for heads in given.values() for kind, _, _ in heads)))
    drawn = random_rankings(all_heads, sizes[-1], whole(draws, "draws", least=1), seed)
    run = partial(
        patch_sets, model, clean, corrupt, metric,
        positions=positions, direction="noise", means=means, corruption=corruption, budget=budget,
    )  # fmt: skip
    curves, empty, full = _measured(all_heads, [*given.values(), *drawn], sizes, run)
    parts = []
    for task in dict.fromkeys(examples["task"]):
        at = (examples["task"] == task).to_numpy()
        parts.append(_judged(str(task), list(given), sizes, curves[at], empty[at], full[at], examples[at], level))
    return Faithfulness(*(pd.concat(each, ignore_index=True) for each in zip(*parts, strict=True)))


def random_rankings(heads: Sequence[Head], length: int, draws: int, seed: int = 0) -> list[Ranking]:
    """Random rankings of heads, each once; all there are if they are no more than `draws`.

    Args:
        heads: which.
        length: of a ranking.
        draws: how many.
        seed: which.
    """
    if math.perm(len(heads), length) <= draws:
        return list(permutations(heads, length))
    generator = np.random.default_rng((seed, 13))
    found: dict[Ranking, None] = {}
    while len(found) < draws:
        found[tuple(heads[i] for i in generator.permutation(len(heads))[:length])] = None
    return list(found)


def _refuse_ranked(rows: Any, ranked_on: Any) -> None:
    """Raise DataError if an example that is judged on was ranked on, or nothing tells which they are."""
    if ranked_on is None:
        return
    asked, made_from = _ids(rows, "rows"), set(_ids(ranked_on, "ranked_on"))
    if both := [each for each in asked if each in made_from]:
        raise DataError(
            f"{len(both)} of {len(asked)} examples are among those that the ranking was made from, the first "
            f"{quoted(both[0])}: judge a ranking on other examples, e.g. rank on one half and judge on the other"
        )


def _ids(given: Any, what: str) -> list[Any]:
    """Names of examples: as they are, or a column of rows. Raises DataError if there is none."""
    if isinstance(given, (list, tuple, set)) and not any(isinstance(one, Mapping) for one in given):
        return list(given)
    rows, names = columns_of(given)
    if not (column := next((one for one in ID if one in names), None)):
        raise DataError(f"{what} have no column {' or '.join(ID)}, so that nothing tells which examples they are")
    return list(rows[column])


def _sizes(ks: Sequence[int] | None, given: Mapping[str, Ranking]) -> list[int]:
    longest = min(map(len, given.values()), default=0)
    if not longest:
        raise DataError("there is no ranking, or an empty one: effect_tables.ranking(effects) makes one")
    if ks is None:
        ks = range(longest + 1) if longest <= EVERY_K else [*_growing(longest), longest]
    sizes = sorted({0, *(whole(k, "k", least=0) for k in ks)})
    if sizes[-1] > longest or sizes[-1] == 0:
        raise DataError(
            f"k goes up to {sizes[-1]}, and the shortest ranking has {longest} heads: expected 1 to {longest}"
        )
    return sizes


def _growing(longest: int) -> Iterable[int]:
    k = 1
    while k < longest:
        yield k
        k = max(k + 1, k * 3 // 2)


def _measured(
    all_heads: Sequence[Head],
    rankings: Sequence[Ranking],
    sizes: Sequence[int],
    patched: Callable[[Sequence[Sequence[Head]]], SetsPatched],
) -> tuple[Float[np.ndarray, "example ranking k"], PerExample, PerExample]:
    """The metric of each example with the first k heads of each ranking, with none and with all."""
    circuits: dict[frozenset[Head], int] = {frozenset(): 0}
    at = [[circuits.setdefault(frozenset(r[:k]), len(circuits)) for k in sizes] for r in rankings]
    outside = [[head for head in all_heads if head not in circuit] for circuit in circuits]
    found = patched(outside)
    return found.values[:, np.array(at)], found.values[:, 0], found.clean


def _judged(
    task: str,
    names: Sequence[str],
    sizes: Sequence[int],
    curves: Float[np.ndarray, "example ranking k"],
    empty: PerExample,
    full: PerExample,
    examples: pd.DataFrame,
    level: float,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """One task's curves, areas and random areas."""
    n, k, n_given = len(examples), np.array(sizes), len(names)
    gained, span, codes = curves - empty[:, None, None], full - empty, codes_of(examples)
    under = np.trapezoid(gained, k, axis=-1) / k[-1]  # [example ranking]
    with np.errstate(invalid="ignore", divide="ignore"):
        f = np.where(span.mean() == 0, np.nan, gained.mean(0) / span.mean())  # [ranking k]
        area = np.where(span.mean() == 0, np.nan, under.mean(0) / span.mean())
    random_f, random_area = f[n_given:], area[n_given:]
    own = linearised(gained[:, :n_given].reshape(n, -1), span)
    table = pd.DataFrame({"task": task, "ranking": np.repeat(list(names), len(k)), "k": np.tile(k, n_given)})
    table["f"], table["low"], table["high"] = f[:n_given].ravel(), *_ends(own, codes, f[:n_given].ravel(), level)
    among = {"random": random_f.mean(0), "random_low": np.quantile(random_f, 0.025, 0)}
    among["random_high"] = np.quantile(random_f, 0.975, 0)
    table = table.assign(**{name: np.tile(values, n_given) for name, values in among.items()})
    areas = pd.DataFrame({"task": task, "ranking": list(names), "n": n, "area": area[:n_given]})
    areas["low"], areas["high"] = _ends(linearised(under[:, :n_given], span), codes, area[:n_given], level)
    areas["random"], areas["draws"] = random_area.mean(), len(random_area)
    areas["random_low"], areas["random_high"] = np.quantile(random_area, [0.025, 0.975])
    gain = area[:n_given] - random_area.mean()
    more = linearised(under[:, :n_given] - under[:, n_given:].mean(1, keepdims=True), span)
    areas["gain"], areas["gain_low"], areas["gain_high"] = gain, *_ends(more, codes, gain, level)
    hits = (random_area >= area[:n_given, None] - 1e-9).sum(1)
    areas["p"] = np.where(np.isnan(area[:n_given]), np.nan, (1 + hits) / (1 + len(random_area)))
    drawn = pd.DataFrame({"task": task, "draw": range(len(random_area)), "area": random_area})
    return table, areas, drawn


def _ends(
    values: Float[np.ndarray, "example cell"], codes: Any, at: statistics.Array, level: float
) -> tuple[statistics.Array, statistics.Array]:
    judged = clusters.judge(values, codes, level=level)
    return spread(judged.low, judged.high, at)
