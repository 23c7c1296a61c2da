"""Whether a head acts for all examples or for some kind of them: its effect by answer, by group, by any column.

Fifty examples of four answers are not fifty draws: a head that writes "blue" has a large mean effect on colour, and
does nothing for red. `by_cluster` shows means by any column, `answer_specific` says which heads act for one answer
alone. Both take a table of effects (`effect_tables`) with that column.

Cost: resampling over examples; no model is run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.clusters import CLUSTERS
from hooked_vlm.analysis.effect_tables import Effects, each_task, spread, verdicts
from hooked_vlm.analysis.heads import HEAD
from hooked_vlm.errors import DataError

Array = statistics.Array
FEWEST = 5  # examples of a value without which nothing is said of it


def by_cluster(table: pd.DataFrame, column: str = "answer", *, level: float = statistics.LEVEL) -> pd.DataFrame:
    """Each head's mean effect by answer, or by whatever else a column says of examples.

    Args:
        table: effects; columns task, example, corrupt, layer, head, effect, and the one asked for.
        column: which; the other ones of answer, group and template cluster the examples within a value.
        level: of each interval by itself.

    Returns:
        task, corrupt, kind, layer, head, the column, n, mean, low, high: in logits. An interval is NaN where a value
        has one example.

    Raises:
        DataError: if a column is missing, or an example has several effects of a head, or values of the column.
    """
    parts = []
    for each in each_task(table, column):
        labels = each.examples[column].astype(str).to_numpy()
        for value in dict.fromkeys(sorted(labels)):
            judged = _judged(each, labels == value, column, level)
            told = each.named(n=int((labels == value).sum()), mean=judged.mean, low=judged.low, high=judged.high)
            told.insert(len(HEAD) + 2, column, value)
            parts.append(told)
    if not parts:
        raise DataError("the table has no effects of heads")
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(["task", "corrupt", *HEAD, column], kind="stable", ignore_index=True)


def answer_specific(
    table: pd.DataFrame,
    column: str = "answer",
    *,
    alpha: float = statistics.ALPHA,
    floor: float = 0.01,
    at_most: float = 0.5,
) -> pd.DataFrame:
    """Heads that act for one answer alone: the answer of largest |mean effect| against all others.

    A head is answer-specific if the two means differ (Welch's t, p_holm <= alpha, over all heads and all answers,
    since the answer was chosen by looking) and the others' mean is less than half of the answer's: the interval of
    ``others - at_most * answer`` lies below 0. It is not if that lies above 0, or the head does nothing at all;
    else the data decide neither. Means are compared with the sign of the answer's turned to plus.

    Args:
        table: effects; columns task, example, corrupt, layer, head, effect, and the one asked for.
        column: "answer", "group", or any other.
        alpha: level of the tests; of the intervals ``1 - alpha / answers``.
        floor: share of the mean span that the answer's mean has to be above, where the table has a column span.
        at_most: the share of the answer's effect that others may have.

    Returns:
        task, corrupt, kind, layer, head, the column (the answer), n, mean, rest (mean of the others), rest_n, share
        (rest / mean), difference (mean - rest) with its interval, p, p_holm, answer_specific; the largest |mean|
        first.

    Raises:
        DataError: if a column is missing, no task has two answers of `FEWEST` examples, or an example has several
            effects of a head.
    """
    parts = []
    for each in each_task(table, column):
        labels = each.examples[column].astype(str).to_numpy()
        values, counts = np.unique(labels, return_counts=True)
        asked = [value for value, n in zip(values, counts, strict=True) if FEWEST <= n <= len(labels) - FEWEST]
        if len(values) > 1 and asked:
            parts.append(_specific(each, labels, asked, column, alpha, floor, at_most))
    if not parts:
        raise DataError(f"no task has two values of {column!r} with {FEWEST} examples or more: nothing to compare")
    return pd.concat(parts, ignore_index=True).sort_values(
        "mean", key=abs, ascending=False, kind="stable", ignore_index=True
    )


def _specific(
    each: Effects, labels: Any, asked: list[str], column: str, alpha: float, floor: float, at_most: float
) -> pd.DataFrame:
    """One task's heads, each with the answer that it does most for."""
    groups = np.stack([labels == value for value in asked])  # [answer example]
    means, p = _welch(each.effects, groups)
    adjusted = statistics.holm(p.ravel()).reshape(p.shape)
    chosen = np.nan_to_num(np.abs(means)).argmax(0)
    heads, n_heads = np.arange(len(each.heads)), len(each.heads)
    sign = np.where(means[chosen, heads] < 0, -1.0, 1.0)
    ends = {name: np.full(n_heads, np.nan) for name in ("mean", "rest", "low", "high", "q_low", "q_high", "top_low")}
    level = 1 - alpha / len(asked)
    for i in dict.fromkeys(chosen.tolist()):
        own = chosen == i
        here = _judged(each, groups[i], column, level, own, sign)
        there = _judged(each, ~groups[i], column, level, own, sign)
        found = {"mean": here.mean, "rest": there.mean, "top_low": here.low}
        found["low"], found["high"] = _difference(here, there, 1.0)
        lower, upper = _difference(here, there, at_most)  # of at_most * answer - others
        found |= {"q_low": -upper, "q_high": -lower}
        for name, numbers in found.items():
            ends[name][own] = numbers
    span = abs(float(np.nanmean(each.span))) if "span" in each.examples else 0.0
    none = ~np.nan_to_num(each.effects).any(0)
    yes = (adjusted[chosen, heads] <= alpha) & (ends["q_high"] < 0) & (ends["top_low"] > floor * span)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = ends["rest"] / ends["mean"]
    n = groups.sum(1)[chosen]
    turned = {name: np.where(sign < 0, -ends[other], ends[name]) for name, other in (("low", "high"), ("high", "low"))}
    return each.named(
        **{column: [asked[i] for i in chosen]}, n=n, mean=sign * ends["mean"], rest=sign * ends["rest"],
        rest_n=len(labels) - n, share=share, difference=sign * (ends["mean"] - ends["rest"]),
        difference_low=turned["low"], difference_high=turned["high"], p=p[chosen, heads],
        p_holm=adjusted[chosen, heads], answer_specific=verdicts(yes, none | (ends["q_low"] > 0)),
    )  # fmt: skip


def _welch(
    effects: Float[np.ndarray, "example head"], groups: Bool[np.ndarray, "answer example"]
) -> tuple[Float[np.ndarray, "answer head"], Float[np.ndarray, "answer head"]]:
    """Each answer's mean, and the p-value that it is that of all other answers' examples (Welch 1947)."""
    means, p = [], []
    for group in groups:
        here, there = effects[group], effects[~group]
        means.append(statistics.means(here))
        with np.errstate(all="ignore"):
            found = stats.ttest_ind(here, there, axis=0, equal_var=False, nan_policy="omit").pvalue
        p.append(np.nan_to_num(np.ma.filled(found, np.nan), nan=1.0))  # nothing varies: nothing to tell apart
    return np.stack(means), np.stack(p)


def _judged(
    each: Effects, rows: Any, column: str, level: float, heads: Any = slice(None), sign: Any = 1.0
) -> clusters.Judged:
    """Means over some examples, clustered by what is not the column asked about."""
    others = [each.examples[name][rows] for name in CLUSTERS if name != column and name in each.examples]
    turned = (each.effects * sign)[rows][:, heads]
    judged = clusters.judge(turned, clusters.codes(*others, n=len(turned)), flips=clusters.ROUGH, level=level)
    if len(turned) < 2:
        return judged
    low, high = spread(judged.low, judged.high, judged.mean)
    return judged._replace(low=low, high=high)


def _difference(here: clusters.Judged, there: clusters.Judged, times: float) -> tuple[Array, Array]:
    """The interval of ``times * here - there`` from those of two samples (MOVER; Zou & Donner 2008)."""
    middle = times * here.mean - there.mean
    below = np.hypot(times * (here.mean - here.low), there.high - there.mean)
    above = np.hypot(times * (here.high - here.mean), there.mean - there.low)
    return middle - below, middle + above
