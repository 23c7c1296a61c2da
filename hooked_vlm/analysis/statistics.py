"""Resampling over examples: bootstrap intervals, sign-flip p-values, and Benjamini-Hochberg over many of them.

Everything takes a matrix [example cell], one column a head (or anything else that is measured once in each
example), and treats all columns in the same resamples, so that what examples have in common stays in common. NaN
means "not measured in this example" and is left out of its column. Cost: one matrix product a call,
[resamples example] by [example cell], in chunks. Knows no model and no files.

Resampling a sample that has no spread gives a point, which says nothing of how sure its value is. So a proportion has
an exact interval instead (50 of 50 is [92.9 %, 100 %]), and any other mean that is the same in every resample has none.

Sources: percentile bootstrap, Efron (1979) and Efron & Tibshirani (1993, ch. 13); proportions, Clopper & Pearson
(1934); means from their moments, Student (1908); sign flips, Fisher (1935), with the observed arrangement counted among
the random ones as in Phipson & Smyth (2010); false discovery rate, Benjamini & Hochberg (1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Matrix = Float[np.ndarray, "example cell"]
Array = NDArray[np.float64]

LEVEL = 0.95
ALPHA = 0.05
BOOTSTRAP = 1000
ROUNDING = 1e-12  # of a number: what adding the same numbers in another order changes
CHUNK = 2**20  # entries of a block of sign patterns, or of their sums


@lru_cache(maxsize=4)  # tables of one run are resampled alike
def resamples(n: int, times: int, seed: int | tuple[int, ...]) -> Float[np.ndarray, "times example"]:
    """How often each of `n` examples is drawn, in each of `times` resamples with replacement.

    Args:
        n: examples.
        times: resamples.
        seed: which draws; equal arguments give equal draws.
    """
    counts = drawn(n, times, seed)
    counts.flags.writeable = False  # the cache hands the same array to every caller
    return counts


def drawn(n: int, times: int, seed: int | tuple[int, ...]) -> Float[np.ndarray, "times example"]:
    """`resamples`, not kept for the next who asks."""
    if not n:
        return np.zeros((times, 0))
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=times).astype(np.float64)


def means(values: Matrix, weights: Float[np.ndarray, "times example"] | None = None) -> Array:
    """The mean of every column over its examples, [cell]; or its mean in every resample, [times cell].

    Args:
        values: NaN where an example was not measured.
        weights: from `resamples`, or None for the examples as they are.
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    if weights is None:
        weights = np.ones((1, len(values)))
        return means(values, weights)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights @ filled
        return total / (weights @ known.astype(np.float64))


def interval(draws: Array, level: float = LEVEL, *, points: bool = False) -> tuple[Array, Array]:
    """The percentile interval of a statistic from its values in resamples, [times cell] to two [cell].

    NaN where all resamples agree: there was nothing to resample, which is no reason to be certain.

    Args:
        draws: NaN where a resample has no value.
        level: e.g. 0.95.
        points: keep an interval that is a point, of a statistic that arithmetic can hold in place.
    """
    tail = 50 * (1 - level)
    if not draws.size:
        empty = np.full(draws.shape[1:], np.nan)
        return empty, empty
    bare = np.isnan(draws).all(0)
    filled = np.where(bare, 0.0, draws)
    percentile = np.nanpercentile if np.isnan(filled).any() else np.percentile  # the first goes column by column
    low, high = percentile(filled, [tail, 100 - tail], axis=0)
    bare |= (not points) & np.isclose(low, high, rtol=ROUNDING, atol=0)
    return np.where(bare, np.nan, low), np.where(bare, np.nan, high)


def bootstrap(
    values: Matrix,
    statistic: Callable[[Array], Array] | None = None,
    *,
    times: int = BOOTSTRAP,
    seed: int | tuple[int, ...] = 0,
    level: float = LEVEL,
) -> tuple[Array, Array]:
    """Percentile interval over examples of every column's mean, or of a statistic of the means.

    A single example has no spread to resample, nor have equal ones, so their interval is NaN, not a point. A statistic
    of several columns may be the same in every resample for another reason: where one head alone moves the answer, its
    ratio to the average head is the number of heads. It keeps its point.

    Args:
        values: one row an example.
        statistic: of the columns' means, [times cell] to [times anything]; None for the means themselves.
        times: resamples.
        seed: which.
        level: e.g. 0.95.

    Returns:
        Lower and upper ends, [cell].
    """
    draws = means(values, resamples(len(values), times, seed)) if len(values) else np.empty((0, values.shape[1]))
    low, high = interval(draws if statistic is None else statistic(draws), level, points=statistic is not None)
    if statistic is None:
        alone = (~np.isnan(values)).sum(0) < 2
        return np.where(alone, np.nan, low), np.where(alone, np.nan, high)
    few = len(values) < 2
    return (np.full_like(low, np.nan), np.full_like(high, np.nan)) if few else (low, high)


def share(hits: ArrayLike, level: float = LEVEL) -> dict[str, float]:
    """The share of hits among trials with its exact (Clopper-Pearson) interval: mean, low, high, n. NaN is left out.

    >>> found = share([1.0] * 50)
    >>> found["mean"], round(found["low"], 3), found["high"]
    (1.0, 0.929, 1.0)

    Args:
        hits: 1 or 0, one an example.
        level: e.g. 0.95.
    """
    known = np.asarray(hits, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return {"mean": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    low, high = exact(int(known.sum()), len(known), level)
    return {"mean": float(known.mean()), "low": low, "high": high, "n": len(known)}


@lru_cache(maxsize=4096)
def exact(hits: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper-Pearson).

    >>> [round(end, 3) for end in exact(0, 50)]
    [0.0, 0.071]
    """
    ends = stats.binomtest(hits, trials).proportion_ci(level, method="exact")
    return float(ends.low), float(ends.high)


def of_scores(
    values: Matrix, *, times: int = BOOTSTRAP, seed: int | tuple[int, ...] = 0, level: float = LEVEL
) -> tuple[Array, Array]:
    """`bootstrap` of the means of scores that lie between 0 and 1.

    A column of ones and zeros has the exact interval of a proportion. Where all examples agree on another score, the
    share of examples that may still disagree is that of a proportion of which no case was seen, and they may lie at
    either bound.

    Args:
        values: one row an example.
        times: resamples.
        seed: which.
        level: e.g. 0.95.

    Returns:
        Lower and upper ends, [cell].
    """
    low, high = bootstrap(values, times=times, seed=seed, level=level)
    n, mean = (~np.isnan(values)).sum(0), means(values)
    for cell in np.flatnonzero(n > 0):
        column = values[~np.isnan(values[:, cell]), cell]
        if np.isin(column, (0.0, 1.0)).all():
            low[cell], high[cell] = exact(int(column.sum()), len(column), level)
        elif n[cell] > 1 and np.isnan(low[cell]):
            unseen = exact(0, len(column), level)[1]
            low[cell], high[cell] = mean[cell] * (1 - unseen), mean[cell] + (1 - mean[cell]) * unseen
    return low, high


def of_moments(n: Array, mean: Array, sd: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Student's interval of means of which n, mean and sample SD were kept, and the numbers were not.

    NaN where fewer than two numbers, or numbers without spread, went into a mean.

    Args:
        n: how many numbers.
        mean: theirs.
        sd: theirs.
        level: e.g. 0.95.
    """
    known = (n > 1) & (sd > 1e-7 * np.abs(mean))  # the root of what rounding leaves of equal numbers' variance
    reach = stats.t.ppf((1 + level) / 2, np.where(known, n - 1, 1)) * sd / np.sqrt(np.where(known, n, 1))
    return np.where(known, mean - reach, np.nan), np.where(known, mean + reach, np.nan)


def flips_needed(n_tests: int, alpha: float = ALPHA, fewest: int = 9999, most: int = 200_000) -> int:
    """How many random sign flips a family of tests needs, so that one small p-value alone can survive it.

    Benjamini-Hochberg holds the smallest of m p-values to alpha / m, and the smallest that b flips can give is
    1 / (b + 1).

    Args:
        n_tests: m.
        alpha: the level.
        fewest: at least so many.
        most: at most so many.
    """
    return int(min(most, max(fewest, math.ceil(n_tests / alpha))))


def sign_flip(values: Matrix, *, flips: int = 9999, seed: int | tuple[int, ...] = 0) -> Array:
    """Two-sided p-values that each column's mean is 0, [cell].

    Under the null an effect is as likely to be e as -e in any example. The p-value is the share of sign patterns
    whose |sum| is at least the observed one. All 2^(n-1) patterns are gone through where they are no more than
    `flips` + 1; else ``p = (1 + hits) / (1 + flips)``. One example gives 1, and so does a column of zeros; a column
    without examples gives NaN.

    Args:
        values: one row an example.
        flips: how many random patterns.
        seed: which.
    """
    n = len(values)
    filled = np.nan_to_num(np.asarray(values, np.float64))
    seen = np.abs(filled.sum(0)) * (1 - 1e-9) - 1e-300  # equal sums count as equal, whatever order they were added in
    exact = n <= 1 or 2 ** (n - 1) <= flips + 1
    hits, tried = np.zeros(values.shape[1]), 0
    size = max(1, CHUNK // max(values.shape))
    for signs in _all_signs(n, size) if exact else _random_signs(n, flips, size, seed):
        hits += (np.abs(signs @ filled) >= seen).sum(0)
        tried += len(signs)
    p = hits / tried if exact else (1 + hits) / (1 + tried)
    return np.where(np.isnan(values).all(0) if n else True, np.nan, p)


def smallest_p(n: int) -> float:
    """The smallest two-sided p-value that flipping the signs of `n` examples can give: 2^(1-n)."""
    return 2.0 ** (1 - n) if n else 1.0


def _all_signs(n: int, size: int) -> Iterator[Array]:
    total = 2 ** max(n - 1, 0)
    for start in range(0, total, size):
        codes = np.arange(start, min(start + size, total))
        bits = (codes[:, None] >> np.arange(n)) & 1  # the last sign stays: |sum| is the same with all turned round
        yield 1.0 - 2.0 * bits.astype(np.float64)


def _random_signs(n: int, flips: int, size: int, seed: int | tuple[int, ...]) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    for start in range(0, flips, size):
        yield 2.0 * generator.integers(0, 2, (min(size, flips - start), n), dtype=np.int8).astype(np.float64) - 1.0


def benjamini_hochberg(p: ArrayLike) -> Array:
    """Adjusted p-values ("q"): below alpha, they hold the share of false discoveries below alpha.

    Args:
        p: p-values of one family, any shape; NaN is no test, and stays NaN.
    """
    given = np.asarray(p, np.float64)
    tested = ~np.isnan(given)
    adjusted = np.full(given.shape, np.nan)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(np.clip(given[tested], 0, 1), method="bh")
    return adjusted


def holm(p: ArrayLike) -> Array:
    """Adjusted p-values: below alpha, they hold the chance of any false one below alpha (Holm 1979).

    Args:
        p: p-values of one family; NaN is no test, and stays NaN.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p, np.float64)
    adjusted = np.full(given.shape, np.nan)
    at = np.flatnonzero(~np.isnan(given))
    order = at[np.argsort(given[at], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def spearman(a: Array, b: Array) -> Array:
    """Rank correlation of the rows of `a` with those of `b`, [times cell] each, ties at their mean rank; [times].

    NaN where one of them is constant. Source: Spearman (1904).
    """
    x, y = (stats.rankdata(each, axis=-1) for each in (a, b))
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
