"""Means over examples that may hang together: tests and intervals that hold for clusters, skew, tails and few examples.

Examples with the same answer, of the same group or from the same template are alike, and fifty of four answers are
not fifty draws. So every mean is judged several times, with each example alone and with each way to cluster them, and
what is told is what all of them grant: the largest p-value, and the hull of the intervals.

With one clustering, a mean is judged by two methods that fail in different places, and again both have to grant it:

- `FEW` clusters or more: flipping the signs of whole clusters, exact where effects are symmetric about 0 and too
  generous where they are skewed; and the studentised bootstrap over clusters, second-order right under skew and too
  generous under heavy tails. Intervals: the bootstrap's and Student's. (|sum| orders sign patterns as the studentised
  statistic with the null's variance does, since flips leave the sum of squares as it is.)
- fewer clusters: sign patterns and resamples are too few to tell anything, so Student's t with one degree of freedom
  less than clusters, of the mean of cluster means and of the mean over examples with its cluster-robust error. Both
  rest on cluster means being roughly normal; whoever tells the result should say so.

A clustering into fewer than `FEWEST` is left out: two degrees of freedom tell nothing. What is said then holds for
the clusters that were seen.

Sources: cluster sign flips, Canay, Romano & Shaikh (2017); t of cluster means, Ibragimov & Mueller (2010); the
studentised bootstrap, Efron & Tibshirani (1993, ch. 12) and Hall (1992); cluster-robust errors, Liang & Zeger (1986).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import stats

from hooked_vlm.analysis import statistics
from hooked_vlm.analysis.statistics import Array, Matrix

CLUSTERS = ("answer", "group", "template")
"""Columns of a table of effects that cluster its examples."""
FEWEST = 4
"""Clusters that a clustering needs to be used."""
FEW = 8
"""Clusters below which tests rest on normal means, and a report warns."""
ROUGH = 999
"""Resamples that intervals take, and that show which p-values need more."""
INTERVALS = (ROUGH - 1) // 2
"""Flips where nobody reads p-values: no more resamples than intervals take."""
_CLEARLY = 20.0  # times the smallest p-value that resamples can give

TELLING = 6
"""Examples of a cluster whose signs alone can give p <= 0.05."""

Codes = Int[np.ndarray, "example"]


class Judged(NamedTuple):
    """Means with what is known of them, [cell] each.

    Args:
        mean: over examples.
        p: two-sided, that it is 0. NaN without an example.
        low: lower end of its interval; NaN where nothing varies.
        high: upper end.
        se: the largest standard error of all clusterings; NaN of one example or cluster.
        clusters: the fewest clusters of all clusterings.
    """

    mean: Array
    p: Array
    low: Array
    high: Array
    se: Array
    clusters: Array


def codes(*columns: ArrayLike, n: int) -> list[Codes]:
    """The ways to cluster `n` examples: each alone, and by every column of two values or more.

    Columns that cluster alike count once; so does one in which every example has a value of its own.

    Args:
        columns: one value an example, of any kind; None and NaN are values too.
        n: examples.
    """
    found = [np.arange(n)]
    for column in columns:
        _, first, inverse = np.unique(np.asarray(column, dtype=str), return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))  # by first appearance, so that equal partitions have equal codes
        coded = order[np.ravel(inverse)]
        if len(first) > 1 and not any(np.array_equal(coded, other) for other in found):
            found.append(coded)
    return found


def judge(
    values: Matrix,
    clusterings: Sequence[Codes] = (),
    *,
    flips: int = 9999,
    seed: int | tuple[int, ...] = 0,
    level: float = statistics.LEVEL,
) -> Judged:
    """Tests and intervals of every column's mean, by the least favourable of all clusterings.

    Args:
        values: [example cell], NaN where an example was not measured.
        clusterings: from `codes`; each example alone where there is none.
        flips: sign patterns, and twice as many resamples: a p-value of one has two tails to count.
        seed: which.
        level: of the intervals.
    """
    return granted(judge_each(values, clusterings, flips=flips, seed=seed, level=level))


def judge_each(
    values: Matrix,
    clusterings: Sequence[Codes] = (),
    *,
    flips: int = 9999,
    seed: int | tuple[int, ...] = 0,
    level: float = statistics.LEVEL,
) -> list[Judged]:
    """`judge` by each clustering alone; all but the first have NaN where there are fewer than `FEWEST` clusters."""
    found = []
    for i, one in enumerate(clusterings or codes(n=len(values))):
        judged = _judge(values, one, flips, _seed(seed, i), level)
        if i:
            tells = judged.clusters >= FEWEST
            fields = {name: np.where(tells, getattr(judged, name), np.nan) for name in Judged._fields[1:]}
            judged = judged._replace(**fields)
        found.append(judged)
    return found


def granted(each: Sequence[Judged], fewest: int = FEWEST) -> Judged:
    """What several clusterings grant together.

    Args:
        each: from `judge_each`.
        fewest: leave out the clusterings, but for the first, of fewer clusters.
    """
    used = [one for i, one in enumerate(each) if not i or np.nanmax(one.clusters, initial=0) >= fewest]
    p, se, high = (_most([getattr(one, name) for one in used]) for name in ("p", "se", "high"))
    low, clusters = (-_most([-getattr(one, name) for one in used]) for name in ("low", "clusters"))
    bare = np.isnan(used[0].low)  # no spread among examples, none among clusters
    return Judged(used[0].mean, p, np.where(bare, np.nan, low), np.where(bare, np.nan, high), se, clusters)


def in_every_cluster(values: Matrix, coded: Codes, *, flips: int = ROUGH, seed: int | tuple[int, ...] = 0) -> Array:
    """p-values that there is an effect of one sign in every cluster, [cell]: the largest of all clusters' sign flips.

    Clusters of fewer than `TELLING` examples cannot tell and are left out; NaN where no two of a cell can.

    Args:
        values: [example cell].
        coded: the cluster of each example.
        flips: sign patterns.
        seed: which.
    """
    p, signs = [], []
    for cluster in np.unique(coded):
        rows = values[coded == cluster]
        telling = (~np.isnan(rows)).sum(0) >= TELLING
        own = statistics.sign_flip(rows, flips=flips, seed=_seed(seed, int(cluster)))
        p.append(np.where(telling, own, np.nan))
        signs.append(np.where(telling, np.sign(statistics.means(rows)), np.nan))
    one_sign = ~(np.fmax.reduce(signs) > np.fmin.reduce(signs))
    enough = (~np.isnan(p)).sum(0) > 1
    return np.where(enough, np.where(one_sign, np.fmax.reduce(p), 1.0), np.nan)


def interval_of(
    values: ArrayLike,
    clusterings: Sequence[Codes] = (),
    *,
    flips: int = 1999,
    seed: int | tuple[int, ...] = 0,
    level: float = statistics.LEVEL,
) -> dict[str, float]:
    """The mean of some numbers, one an example, with its interval: mean, low, high, n, p. NaN is left out.

    Clusterings into fewer than `FEW` are taken as all the clusters there are, and have no say: what is told then holds
    for those that were seen.

    Args:
        values: the numbers.
        clusterings: from `codes`.
        flips: as `judge` takes them.
        seed: which.
        level: e.g. 0.95.
    """
    given = np.asarray(values, np.float64)[:, None]
    n = int((~np.isnan(given)).sum())
    if not n:
        return dict.fromkeys(("mean", "low", "high", "p"), np.nan) | {"n": 0}
    found = granted(judge_each(given, clusterings, flips=flips, seed=seed, level=level), FEW)
    return {name: float(getattr(found, name)[0]) for name in ("mean", "low", "high", "p")} | {"n": n}


def side_by_side(parts: Sequence[Sequence[Int[np.ndarray, "_"]]]) -> list[Int[np.ndarray, "_"]]:
    """The clusterings of examples of several tasks, one after another: no cluster reaches into another task.

    Args:
        parts: of each task, from `codes`; where one has fewer ways than another, its examples stand alone in the rest.
    """
    found = []
    for way in range(max(map(len, parts), default=0)):
        chosen = [part[way] if way < len(part) else part[0] for part in parts]
        starts = np.cumsum([0, *(int(one.max(initial=-1)) + 1 for one in chosen[:-1])])
        found.append(np.concatenate([one + start for one, start in zip(chosen, starts, strict=True)]))
    return found


def weights(coded: Codes, times: int, seed: int | tuple[int, ...]) -> Float[np.ndarray, "times example"]:
    """How often each example is drawn in resamples of whole clusters."""
    return statistics.resamples(int(coded.max(initial=-1)) + 1, times, seed)[:, coded]


def _seed(seed: int | tuple[int, ...], i: int) -> tuple[int, ...]:
    return (*(seed if isinstance(seed, tuple) else (seed,)), i)


def _most(each: Iterable[Array]) -> Array:
    return np.fmax.reduce(list(each))


def _judge(values: Matrix, coded: Codes, flips: int, seed: tuple[int, ...], level: float) -> Judged:
    known = ~np.isnan(values)
    size = int(coded.max(initial=-1)) + 1
    belongs = (np.arange(size)[:, None] == coded).astype(np.float64)
    sums, counts = belongs @ np.where(known, values, 0.0), belongs @ known.astype(np.float64)
    groups = (counts > 0).sum(0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / counts.sum(0)
        se = np.sqrt(groups / np.maximum(groups - 1, 1) * ((sums - mean * counts) ** 2).sum(0)) / counts.sum(0)
        t = np.where(mean == 0, 0.0, mean / se)
        reach = stats.t.ppf((1 + level) / 2, np.maximum(groups - 1, 1)) * se
        p = 2 * stats.t.sf(np.abs(t), np.maximum(groups - 1, 1))
    low, high = mean - reach, mean + reach
    few = groups < FEW
    if few.any():
        other = _of_cluster_means(np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan), groups, level)
        p, low, high = (
            np.where(few, np.fmax(p, other.p), p),
            np.where(few, np.fmin(low, other.low), low),
            np.where(few, np.fmax(high, other.high), high),
        )
    if not few.all():
        many = np.flatnonzero(~few)
        resampled = _bootstrap(sums[:, many], counts[:, many], mean[many], se[many], 2 * flips + 1, seed, level)
        flipped = statistics.sign_flip(np.where(counts > 0, sums, np.nan)[:, many], flips=flips, seed=(*seed, 1))
        p[many] = np.maximum(resampled.p, flipped)
        low[many], high[many] = np.fmin(low[many], resampled.low), np.fmax(high[many], resampled.high)
    spread = (groups > 1) & (se > statistics.ROUNDING**0.5 * np.abs(mean))
    p = np.where(spread, p, np.where(mean == 0, 1.0, np.exp2(1.0 - groups)))
    p = np.where(groups > 0, p, np.nan)
    se = np.where(groups > 1, se, np.nan)
    return Judged(mean, p, np.where(spread, low, np.nan), np.where(spread, high, np.nan), se, groups)


def _of_cluster_means(means: Array, groups: Array, level: float) -> Judged:
    mean = statistics.means(means)
    with np.errstate(invalid="ignore", divide="ignore"):
        se = np.sqrt(np.nansum((means - mean) ** 2, 0) / np.maximum(groups - 1, 1) / groups)
        df = np.maximum(groups - 1, 1)
        t = np.where(mean == 0, 0.0, mean / se)
        reach = stats.t.ppf((1 + level) / 2, df) * se
    return Judged(mean, 2 * stats.t.sf(np.abs(t), df), mean - reach, mean + reach, se, groups)


def _bootstrap(
    sums: Array, counts: Array, mean: Array, se: Array, times: int, seed: tuple[int, ...], level: float
) -> Judged:
    """The studentised bootstrap over clusters: p-values, and intervals from the first `ROUGH`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.where(mean == 0, 0.0, mean / se)
    rough = min(times, ROUGH)
    drawn = _statistics(sums, counts, mean, statistics.resamples(len(sums), rough, (*seed, 2)))
    tail = 50 * (1 - level)
    high, low = np.percentile(drawn, [tail, 100 - tail], axis=0, method="nearest")
    below, above = (drawn <= seen).sum(0), (drawn >= seen).sum(0)
    total = np.full(len(mean), float(rough))
    at = np.flatnonzero(2 * (1 + np.minimum(below, above)) / (1 + rough) <= _CLEARLY * 2 / (1 + rough))
    if len(at) and times > rough:
        chunk = max(1, statistics.CHUNK // max(len(at), len(sums)))
        for i, start in enumerate(range(rough, times, chunk)):
            more = min(chunk, times - start)
            again = statistics.drawn(len(sums), more, (*seed, 3, i))
            drawn = _statistics(sums[:, at], counts[:, at], mean[at], again)
            below[at] += (drawn <= seen[at]).sum(0)
            above[at] += (drawn >= seen[at]).sum(0)
        total[at] = times
    p = np.minimum(1.0, 2 * (1 + np.minimum(below, above)) / (1 + total))
    return Judged(mean, p, mean - low * se, mean - high * se, se, total)


def _statistics(sums: Array, counts: Array, mean: Array, drawn: Array) -> Array:
    """(mean in a resample - mean) / its standard error there, [times cell]."""
    n, total = drawn @ counts, drawn @ sums
    with np.errstate(invalid="ignore", divide="ignore"):
        here = total / n
        squares = drawn @ sums**2 - 2 * here * (drawn @ (sums * counts)) + here**2 * (drawn @ counts**2)
        error = np.sqrt(len(sums) / (len(sums) - 1) * np.maximum(squares, 0.0)) / n
        return np.nan_to_num((here - mean) / error, nan=0.0)
