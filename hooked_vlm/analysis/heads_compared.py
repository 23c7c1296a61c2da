"""Heads held side by side in a table of effects: against the answer, from task to task, image against text.

Each function takes a table of effects (`effect_tables.head_effects`, or a run's with one place chosen) and gives a
tidy table. Means are over examples, in logits, or shares of the span (mean effect / mean span); intervals and p-values
are those of `clusters.judge`, with the columns answer, group and template as clusters where the table has them;
p_holm is adjusted over the heads of a task and corruption. A verdict is True, False, or None where the data decide
neither.

Cost: resampling over examples, a second or so for 32 heads; no model is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.effect_tables import Effects, codes_of, each_task, linearised, spread, verdicts
from hooked_vlm.analysis.heads import HEAD, Head
from hooked_vlm.errors import DataError
from hooked_vlm.options import whole

# --- against the answer -----------------------------------------------------------------------------


def negative_heads(
    table: pd.DataFrame, *, alpha: float = statistics.ALPHA, level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Heads that speak against the right answer: patched in, they lower it (the negative heads of Wang et al. 2022).

    A head is negative if its mean effect is below 0 (p_holm <= alpha) and it is so in most examples: the exact
    interval of the share of examples in which its effect is below 0, of those in which it is not 0, lies above one
    half. It is not if its mean's interval reaches no lower than 0, or that share's no higher than one half.

    Args:
        table: effects; columns task, example, corrupt, layer, head, effect.
        alpha: level of the tests, over the heads of a task and corruption (Holm).
        level: of the intervals.

    Returns:
        task, corrupt, kind, layer, head, n, mean, low, high, against (share of examples), against_low, against_high,
        p, p_holm, negative; the most negative first.

    Raises:
        DataError: if a column is missing, or an example has several effects of a head.
    """
    parts = []
    for each in each_task(table):
        flips = statistics.flips_needed(len(each.heads), alpha)
        judged = clusters.judge(each.effects, each.codes, flips=flips, level=level)
        low, high = spread(judged.low, judged.high, judged.mean)
        signed = np.where(each.effects == 0, np.nan, each.effects)
        shares = [statistics.share(np.where(np.isnan(x), np.nan, x < 0), level) for x in signed.T]
        against, below, above = (np.array([share[k] for share in shares]) for k in ("mean", "low", "high"))
        adjusted = statistics.holm(judged.p)
        yes = (adjusted <= alpha) & (judged.mean < 0) & (below > 0.5)
        no = (low >= 0) | (above < 0.5) | np.isnan(against)
        parts.append(
            each.named(
                n=(~np.isnan(each.effects)).sum(0), mean=judged.mean, low=low, high=high, against=against,
                against_low=below, against_high=above, p=judged.p, p_holm=adjusted, negative=verdicts(yes, no),
            )
        )  # fmt: skip
    return _together(parts).sort_values("mean", kind="stable", ignore_index=True)


# --- from task to task ------------------------------------------------------------------------------


def transfer(
    table: pd.DataFrame, k: int = 5, *, splits: int = 20, level: float = statistics.LEVEL, seed: int = 0
) -> pd.DataFrame:
    """How far the top heads of one task are those of another.

    Heads are ranked by mean effect on one half of a task's examples and judged on the other half of each task's, both
    ways round, over random halvings. ``share`` is what the top k heads of `ranked_in` restore in `judged_in`, as a
    share of what that task's own top k restore there: sums of effects of single heads, 1 on the diagonal. For heads
    kept together, `faithfulness` takes the rankings of several tasks. ``rank_correlation`` is Spearman's over all
    heads between the two halves; on the diagonal it says how far a ranking repeats, the most that others can reach.

    Args:
        table: effects in two tasks or more.
        k: how many heads.
        splits: random halvings, which are averaged.
        level: of the intervals, which hold for the choice of heads as it was made.
        seed: of the halvings.

    Returns:
        corrupt, ranked_in, judged_in, k, n (examples judged on), share, low, high, rank_correlation: a matrix by
        ``.pivot(index="ranked_in", columns="judged_in", values="share")``.

    Raises:
        DataError: if a task has fewer than 2 examples, tasks have fewer than `k` heads in common, a column is missing,
            or an example has several effects of a head.
    """
    k, parts = whole(k, "k", least=1), []
    for corrupt, found in groupby(sorted(each_task(table), key=lambda each: each.corrupt), lambda each: each.corrupt):
        tasks = list(found)
        values = _common(tasks, k)
        names = [each.task for each in tasks]
        halved = [_halves([each.examples["example"] for each in tasks], (seed, i)) for i in range(splits)]
        tops = [[_means_of_halves(v, half) for v, half in zip(values, halves, strict=True)] for halves in halved]
        for b, judged_in in enumerate(names):
            carried = np.zeros((len(names), len(values[b])))  # by the top heads of each task, in each example
            correlation = np.zeros(len(names))
            for halves, means in zip(halved, tops, strict=True):
                for a in range(len(names)):
                    for half in (0, 1):
                        best = np.argsort(-means[a][half], kind="stable")[:k]
                        judged = halves[b] != half
                        carried[a, judged] += values[b][judged][:, best].sum(1) / splits
                        rho = statistics.spearman(means[a][half][None], means[b][1 - half][None])[0]
                        correlation[a] += rho / (2 * splits)
            own = linearised(carried.T, carried[b])
            judge = clusters.judge(own, tasks[b].codes, level=level)
            low, high = spread(judge.low, judge.high, judge.mean)
            parts.append(
                pd.DataFrame(
                    {
                        "corrupt": corrupt, "ranked_in": names, "judged_in": judged_in, "k": k, "n": len(values[b]),
                        "share": judge.mean, "low": low, "high": high, "rank_correlation": correlation,
                    }
                )
            )  # fmt: skip
    found_all = _together(parts)
    return found_all.sort_values(["corrupt", "ranked_in", "judged_in"], kind="stable", ignore_index=True)


def _common(tasks: Sequence[Effects], k: int) -> list[Float[np.ndarray, "example head"]]:
    """Each task's effects of the heads that all tasks have, 0 where one was not measured."""
    heads: list[Head] = [head for head in tasks[0].heads if all(head in each.heads for each in tasks)]
    if len(heads) < k:
        raise DataError(f"{', '.join(each.task for each in tasks)} have {len(heads)} heads in common, and k={k}")
    if few := [f"{each.task} ({len(each.effects)})" for each in tasks if len(each.effects) < 2]:
        raise DataError(f"heads are ranked on one half of a task's examples; too few: {', '.join(few)}")
    return [np.nan_to_num(each.effects[:, [each.heads.index(head) for head in heads]]) for each in tasks]


def _halves(ids: Sequence[pd.Series], seed: tuple[int, ...]) -> list[Int[np.ndarray, "example"]]:
    """Which half each task's examples are in; one that several tasks share is in the same half everywhere."""
    generator = np.random.default_rng(seed)
    half: dict[object, int] = {}
    for of_task in ids:
        n_second = sum(half.get(one, 0) for one in of_task)
        new = [one for one in of_task if one not in half]
        wanted = max(0, min(len(new), len(of_task) // 2 - n_second))
        for i, one in enumerate(generator.permutation(len(new)).tolist()):
            half[new[one]] = int(i < wanted)
    return [np.array([half[one] for one in of_task]) for of_task in ids]


def _means_of_halves(
    values: Float[np.ndarray, "example head"], half: Int[np.ndarray, "example"]
) -> Float[np.ndarray, "half head"]:
    return np.stack([values[half == one].mean(0) for one in (0, 1)])


# --- image against text -----------------------------------------------------------------------------


def carriers(
    table: pd.DataFrame,
    image: str = "image",
    text: str = "text",
    *,
    alpha: float = statistics.ALPHA,
    level: float = statistics.LEVEL,
) -> pd.DataFrame:
    """Heads that carry the image against heads that carry the text: shares of the span under the two corruptions.

    A share, mean effect / mean span, makes the two comparable, as one corruption moves the answer further than the
    other. Where a task has the same examples under both, the difference is paired over these; where it has none in
    common, the two are compared as two samples.

    Args:
        table: effects under both, with a column span.
        image: the corruption of the image, as the table calls it.
        text: that of the text.
        alpha: level of the tests, over the heads of a task (Holm).
        level: of the intervals.

    Returns:
        task, kind, layer, head, n, paired, image_share, text_share, difference (image - text), each with its interval,
        p, p_holm, carries: "image" or "text" where the difference is significant (p_holm <= alpha) and that share's
        interval lies above 0, else None; the largest |difference| first.

    Raises:
        DataError: if no task has effects under both, a column is missing, or an example has several effects of a head.
    """
    by_task: dict[str, dict[str, Effects]] = {}
    for each in each_task(table, "span"):
        by_task.setdefault(each.task, {})[each.corrupt] = each
    parts = [
        _carried(both[image], both[text], alpha, level) for both in by_task.values() if image in both and text in both
    ]
    if not parts:
        known = sorted({each.corrupt for both in by_task.values() for each in both.values()})
        raise DataError(
            f"no task has effects under both {image!r} and {text!r}; there are {', '.join(known) or 'none'}"
        )
    return _together(parts).sort_values("difference", key=abs, ascending=False, kind="stable", ignore_index=True)


def _carried(image: Effects, text: Effects, alpha: float, level: float) -> pd.DataFrame:
    """One task's heads under both corruptions."""
    heads = [head for head in image.heads if head in text.heads]
    common = [one for one in image.examples["example"] if one in set(text.examples["example"])]
    shares, examples = [], []
    for each in (image, text):
        known = each.examples["example"].isin(common or each.examples["example"]).to_numpy()
        chosen = each.effects[known][:, [each.heads.index(head) for head in heads]]
        shares.append(linearised(chosen, each.span[known]))
        examples.append(each.examples[known].reset_index(drop=True))
    flips = statistics.flips_needed(len(heads), alpha)
    if common:
        values, codes = shares[0] - shares[1], codes_of(examples[0])
    else:
        values, codes = _of_two_samples(*shares), codes_of(pd.concat(examples, ignore_index=True))
    columns: dict[str, object] = {"n": len(values), "paired": bool(common)}
    parts = {"image_share": (shares[0], examples[0]), "text_share": (shares[1], examples[1])}
    for name, (share, rows) in parts.items():
        judged = clusters.judge(share, codes_of(rows), level=level)
        low, high = spread(judged.low, judged.high, judged.mean)
        columns |= {name: judged.mean, f"{name}_low": low, f"{name}_high": high}
    judged = clusters.judge(values, codes, flips=flips, level=level)
    low, high = spread(judged.low, judged.high, judged.mean)
    columns |= {"difference": judged.mean, "difference_low": low, "difference_high": high}
    adjusted = statistics.holm(judged.p)
    told = []
    for i, (p, difference) in enumerate(zip(adjusted, judged.mean, strict=True)):
        more = "image" if difference > 0 else "text"
        told.append(more if p <= alpha and np.asarray(columns[f"{more}_share_low"])[i] > 0 else None)
    table = pd.DataFrame(heads, columns=HEAD).assign(**columns, p=judged.p, p_holm=adjusted)
    table["carries"] = pd.Series(told, dtype=object)
    table.insert(0, "task", image.task)
    return table


def _of_two_samples(
    a: Float[np.ndarray, "example_a head"], b: Float[np.ndarray, "example_b head"]
) -> Float[np.ndarray, "example head"]:
    """Numbers whose mean is that of `a` less that of `b`, and whose spread is that of this difference."""
    n, first, second = len(a) + len(b), statistics.means(a), statistics.means(b)
    return (first - second) + np.concatenate([n / len(a) * (a - first), -n / len(b) * (b - second)])


# --- example by example -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Strongest:
    """Which head is strongest, example by example.

    Args:
        summary: a row for each task and corruption: n (examples in which a head restores anything), none (examples in
            which none does), heads (how many are ever strongest), entropy (of which one is, in bits, as counted),
            effective_heads (``2 ** entropy``: 1 if it is always the same), within (in how many heads an example's
            effects lie: mean over examples of ``2 ** entropy`` of the effects above 0).
        how_often: a row for each head that is ever strongest: times, n, share with its interval.
        by_example: a row for each example: the head, its effect, lead (over the second), share (of the effects above
            0).
    """

    summary: pd.DataFrame
    how_often: pd.DataFrame = field(repr=False)
    by_example: pd.DataFrame = field(repr=False)


def strongest_by_example(table: pd.DataFrame, *, level: float = statistics.LEVEL) -> Strongest:
    """Which head restores most in each example, and whether it is always the same.

    Args:
        table: effects.
        level: of the intervals of how often: the hull of the exact one and, where they vary, that of clusters.

    Raises:
        DataError: if a column is missing, or an example has several effects of a head.
    """
    summaries, often, examples = [], [], []
    for each in each_task(table):
        effects = np.nan_to_num(each.effects)
        ranked = np.argsort(-effects, axis=1, kind="stable")
        positive = np.maximum(effects, 0.0)
        known = positive.sum(1) > 0
        top, rows = ranked[known, 0], np.flatnonzero(known)
        best = effects[rows, top]
        second = effects[rows, ranked[known, 1]] if effects.shape[1] > 1 else np.zeros_like(best)
        names = pd.DataFrame([each.heads[i] for i in top], columns=HEAD)
        share = best / positive[known].sum(1)
        named = names.assign(
            example=each.examples["example"].to_numpy()[known], effect=best, lead=best - second, share=share
        )
        examples.append(named.assign(**each.cell)[["task", "corrupt", "example", *HEAD, "effect", "lead", "share"]])
        counts = np.bincount(top, minlength=len(each.heads))
        hits = (top[:, None] == np.flatnonzero(counts)).astype(np.float64)
        exact = [statistics.share(x, level) for x in hits.T]
        if len(hits):
            judged = clusters.judge(hits, codes_of(each.examples[known]), level=level)
            low = np.fmin(judged.low, [x["low"] for x in exact]).clip(min=0)
            high = np.fmax(judged.high, [x["high"] for x in exact]).clip(max=1)
            counted = pd.DataFrame([each.heads[i] for i in np.flatnonzero(counts)], columns=HEAD).assign(**each.cell)
            counted = counted.assign(times=hits.sum(0).astype(int), n=len(hits), share=hits.mean(0), low=low, high=high)
            order = ["task", "corrupt", *HEAD, "times", "n", "share", "low", "high"]
            often.append(counted[order].sort_values("times", ascending=False, kind="stable"))
        entropy = float(_entropy(counts[None])[0]) if len(hits) else np.nan
        within = float((2 ** _entropy(positive[known])).mean()) if len(hits) else np.nan
        told = {**each.cell, "n": int(known.sum()), "none": int((~known).sum()), "heads": int((counts > 0).sum())}
        summaries.append({**told, "entropy": entropy, "effective_heads": 2**entropy, "within": within})
    return Strongest(pd.DataFrame(summaries), _together(often), _together(examples))


def _entropy(weights: Float[np.ndarray, "row cell"] | Int[np.ndarray, "row cell"]) -> Float[np.ndarray, "row"]:
    """Shannon's, in bits, of weights of each row."""
    share = weights / weights.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(share > 0, share * np.log2(share), 0.0).sum(1) + 0.0


def _together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other.

    Raises:
        DataError: if there is none: nothing was measured.
    """
    if not parts:
        raise DataError("the table has no effects of heads")
    return pd.concat(parts, ignore_index=True)
