"""Which heads matter in every task: the paper's rule, and beside it one that controls the false discovery rate.

Both read effects of patching single heads, one number for each example and head. A head is *universal* for a
corruption if a rule selects it in every task; of the two corruptions, image and text, that makes it vision-only,
text-only or multimodal (in both).

**The paper's rule** (Golovanevsky et al. 2025, "What Do VLMs NOTICE?"): over examples, the mean of |effect| of the
head lies above ``mean + 2 SD`` of that number over all heads (sample SD). It says nothing of chance, and three of
its properties come from the SD: outliers raise it, so that several strong heads hide one another; among k heads no
number lies further than ``(k - 1) / sqrt(k)`` SD above the mean, so that with fewer than 6 heads none can pass; and
|effect| is as large for a head that helps in half the examples and harms in the other half as for one that always
helps.

**The FDR-controlled rule** asks four things of a head, in every task:

1. *Systematic*: the mean effect differs from 0. Sign-flip p-values over examples (`statistics.sign_flip`),
   Benjamini-Hochberg over all heads x tasks of the corruption, ``q <= alpha``. "In every task" is one more claim,
   tested by the largest of a head's p-values over tasks (the partial conjunction of all, Benjamini & Heller 2008),
   again with Benjamini-Hochberg over heads: ``q_all <= alpha``. Under the null that a head does nothing in at least
   one task, the expected share of false ones among the universal heads is then below alpha.
2. *Large*: ``ratio = mean |effect| of the head / mean over all heads of mean |effect|``; the lower end of its
   percentile bootstrap interval over examples lies above `times` (2: twice the average head). A ratio needs no
   SD: strong heads do not hide one another until half of the heads are strong.
3. *It repeats*: examples are halved at random many times; the selection repeats if in both halves the sign of the
   mean is the same, ``p <= alpha`` and ``ratio > times``. `repeats` is the share of halvings in which it does, and
   `repeats_all` the share in which it does in every task at once: at least `least_repeats` of them (a half; cf.
   stability selection, Meinshausen & Buehlmann 2010).
4. *Enough examples*: a half must be able to give ``p <= alpha`` at all: 2^(1-n/2) <= alpha, at least 12 examples at
   0.05. With fewer, the rule selects nothing.

Cost: matrix products [resamples example] x [example head]; about a second for 144 heads, 3 tasks, 50 examples.
Knows no model and no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from hooked_vlm.analysis import statistics
from hooked_vlm.analysis.heads import HEAD, MODALITIES, MULTIMODAL, RULES, head_name
from hooked_vlm.errors import DataError

NEEDED = ("task", "example", "corrupt", "layer", "head", "effect")
Families = dict[tuple[str, str], tuple[list[tuple[int, int]], dict[str, statistics.Matrix]]]


@dataclass(frozen=True)
class Rule:
    """The numbers in the two rules, each with its one default.

    Args:
        alpha: level of the tests.
        times: how many times the average head's |effect| counts as large.
        sds: standard deviations above the mean, in the paper's rule.
        level: of the bootstrap intervals.
        bootstrap: resamples of the examples.
        flips: random sign flips; None takes `statistics.flips_needed`.
        splits: random halvings of the examples.
        least_repeats: share of them in which a selection must repeat.
        seed: of everything random here.
    """

    alpha: float = statistics.ALPHA
    times: float = 2.0
    sds: float = 2.0
    level: float = statistics.LEVEL
    bootstrap: int = statistics.BOOTSTRAP
    flips: int | None = None
    splits: int = 100
    least_repeats: float = 0.5
    seed: int = 0

    @property
    def fewest_examples(self) -> int:
        """The least number of examples of which both halves can give a small enough p-value."""
        half = 1
        while statistics.smallest_p(half) > self.alpha:
            half += 1
        return 2 * half


DEFAULT = Rule()


def select(table: pd.DataFrame, rule: Rule = DEFAULT) -> pd.DataFrame:
    """Both rules on a table of effects.

    Args:
        table: one row for each example and head, columns task, example, corrupt, layer, head, effect, and kind
            where there are several (each kind is a family of heads of its own). NaN effects are left out.
        rule: its numbers.

    Returns:
        One row for each corrupt, kind, task, layer, head: n (examples), mean, mean_abs, sd (of the effect),
        ci_low, ci_high (of mean), abs_low, abs_high (of mean_abs), threshold and paper (the paper's rule), ratio,
        ratio_low, ratio_high, p, q, repeats, fdr (the FDR-controlled rule); and, the same in every
        task of a head, p_all, q_all, repeats_all, paper_all, fdr_all (selected in every task).

    Raises:
        DataError: if a column is missing, or an example has two rows for one head.
    """
    if missing := [name for name in NEEDED if name not in table.columns]:
        raise DataError(f"The table of effects has no {', '.join(missing)}: select needs {', '.join(NEEDED)}.")
    if "kind" not in table.columns:
        table = table.assign(kind="heads")
    families: Families = {}
    for (corrupt, kind), rows in table.groupby(["corrupt", "kind"], observed=True, sort=True):
        heads = sorted(set(rows[["layer", "head"]].itertuples(index=False, name=None)))
        by_task = rows.groupby("task", observed=True, sort=True)
        families[str(corrupt), str(kind)] = (heads, {str(task): _matrix(each, heads) for task, each in by_task})
    return select_matrices(families, rule)


def select_matrices(families: Families, rule: Rule = DEFAULT) -> pd.DataFrame:
    """`select` on matrices.

    Args:
        families: for each (corrupt, kind) the heads (layer, head), and for each task the effects [example head].
        rule: its numbers.
    """
    found = [_family(corrupt, kind, *given, rule) for (corrupt, kind), given in sorted(families.items())]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=_COLUMNS)


_CELL = ("corrupt", "kind", "task", "layer", "head")
_MEASURED = ("n", "mean", "mean_abs", "sd", "ci_low", "ci_high", "abs_low", "abs_high")
_RULES = ("threshold", "paper", "ratio", "ratio_low", "ratio_high", "p", "q", "repeats", "fdr")
_EVERYWHERE = ("p_all", "q_all", "repeats_all", "paper_all", "fdr_all")
_COLUMNS = [*_CELL, *_MEASURED, *_RULES, *_EVERYWHERE]


def _family(
    corrupt: str, kind: str, heads: list[tuple[int, int]], effects: dict[str, statistics.Matrix], rule: Rule
) -> pd.DataFrame:
    """All heads of one kind under one corruption, in all tasks."""
    index = pd.MultiIndex.from_tuples(heads, names=["layer", "head"])
    flips = rule.flips or statistics.flips_needed(len(heads) * len(effects), rule.alpha)
    parts, repeated = [], []
    for i, (task, values) in enumerate(sorted(effects.items())):
        part = _measured(values, rule, i)
        part["p"] = statistics.sign_flip(values, flips=flips, seed=(rule.seed, 1, i))
        again = _repeats(values, rule, i)
        part["repeats"] = again.mean(0) if len(again) else np.nan
        repeated.append(again)
        parts.append(part.assign(corrupt=corrupt, kind=kind, task=task).set_index(index).reset_index())
    table = pd.concat(parts, ignore_index=True)
    table["q"] = statistics.benjamini_hochberg(table["p"])
    table["fdr"] = (
        (table["q"] <= rule.alpha) & (table["ratio_low"] > rule.times) & (table["repeats"] >= rule.least_repeats)
    )
    shape = (len(effects), len(heads))
    p_all = np.max(table["p"].to_numpy().reshape(shape), axis=0)  # NaN where a task has no example of the head
    q_all = statistics.benjamini_hochberg(p_all)
    repeats_all = np.mean(np.all(repeated, 0), 0) if all(map(len, repeated)) else np.full(len(heads), np.nan)
    fdr_all = table["fdr"].to_numpy().reshape(shape).all(0)
    fdr_all &= (q_all <= rule.alpha) & (repeats_all >= rule.least_repeats)
    everywhere = {
        "p_all": p_all,
        "q_all": q_all,
        "repeats_all": repeats_all,
        "paper_all": table["paper"].to_numpy().reshape(shape).all(0),
        "fdr_all": fdr_all,
    }
    return table.assign(**{name: np.tile(values, len(effects)) for name, values in everywhere.items()})[_COLUMNS]


def _matrix(rows: pd.DataFrame, heads: list[tuple[int, int]]) -> statistics.Matrix:
    """[example head], NaN where a head was not measured (infinite counts as that)."""
    if rows.duplicated(["example", "layer", "head"]).any():
        row = rows[rows.duplicated(["example", "layer", "head"])].iloc[0]
        raise DataError(
            f"Example {row['example']!r} of task {row['task']!r} has two effects of layer {row['layer']} head "
            f"{row['head']} ({row['corrupt']}): average over positions first, or choose one."
        )
    wide = rows.pivot(index="example", columns=["layer", "head"], values="effect")
    values = wide.reindex(columns=pd.MultiIndex.from_tuples(heads)).to_numpy(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _ratio(mean_abs: np.ndarray) -> np.ndarray:
    """|effect| of each head by that of the average head, over the last axis."""
    known = ~np.isnan(mean_abs)
    with np.errstate(invalid="ignore", divide="ignore"):
        average = np.where(known, mean_abs, 0.0).sum(-1, keepdims=True) / known.sum(-1, keepdims=True)
        return np.where(average > 0, mean_abs / np.where(average > 0, average, 1.0), np.nan)


def _measured(values: statistics.Matrix, rule: Rule, task: int) -> pd.DataFrame:
    """Means, intervals, the paper's threshold, and the ratio with its interval."""
    size = np.abs(values)
    n = (~np.isnan(values)).sum(0)
    mean, mean_abs = statistics.means(values), statistics.means(size)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = statistics.means((values - mean) ** 2) * n / np.where(n > 1, n - 1, np.nan)
    known = mean_abs[~np.isnan(mean_abs)]
    threshold = known.mean() + rule.sds * known.std(ddof=1) if len(known) > 1 else np.nan
    interval = partial(statistics.bootstrap, times=rule.bootstrap, seed=(rule.seed, 0, task), level=rule.level)
    low, high = interval(values)
    abs_low, abs_high = interval(size)
    ratio_low, ratio_high = interval(size, _ratio)
    return pd.DataFrame(
        {
            "n": n,
            "mean": mean,
            "mean_abs": mean_abs,
            "sd": np.sqrt(squares),
            "ci_low": low,
            "ci_high": high,
            "abs_low": abs_low,
            "abs_high": abs_high,
            "threshold": threshold,
            "paper": mean_abs > threshold,
            "ratio": _ratio(mean_abs),
            "ratio_low": ratio_low,
            "ratio_high": ratio_high,
        }
    )


def _repeats(values: statistics.Matrix, rule: Rule, task: int) -> Float[np.ndarray, "split head"]:
    """1 where a head is selected alike in both halves of a random halving; no rows if there are too few examples."""
    n, heads = values.shape
    if n < rule.fewest_examples:
        return np.zeros((0, heads))
    orders = [np.random.default_rng((rule.seed, 2, task, split)).permutation(n) for split in range(rule.splits)]
    first = np.zeros((rule.splits, n))
    for row, order in zip(first, orders, strict=True):
        row[order[: n // 2]] = 1.0
    mean = [statistics.means(values, half) for half in (first, 1 - first)]
    ratio = [_ratio(statistics.means(np.abs(values), half)) for half in (first, 1 - first)]
    alike = (ratio[0] > rule.times) & (ratio[1] > rule.times) & (np.sign(mean[0]) == np.sign(mean[1]))
    found = np.zeros((rule.splits, heads))
    for split in np.flatnonzero(alike.any(1)):
        at = np.flatnonzero(alike[split])
        halves = (values[first[split] == side][:, at] for side in (1, 0))
        p = [statistics.sign_flip(half, flips=999, seed=(rule.seed, 3, task, int(split))) for half in halves]
        found[split, at] = (p[0] <= rule.alpha) & (p[1] <= rule.alpha)
    return found


# --- universal heads --------------------------------------------------------------------------------


def universal(selection: pd.DataFrame) -> pd.DataFrame:
    """The heads that a rule selects in every task, by modality.

    Args:
        selection: from `select`. Corruptions other than "image" and "text" are left out.

    Returns:
        One row for each head and rule ("paper" or "fdr") that selects it: kind, layer, head, modality
        ("vision-only", "text-only" or "multimodal"), rule, tasks (those it was tested in), tested (the corruptions
        that were run), mean_abs (over tasks and the corruptions it is universal in), q (the larger q_all of them)
        and repeats (the smaller repeats_all); the largest mean_abs first. Where only one corruption was run,
        "only" says no more than that.
    """
    columns = [*HEAD, "modality", "rule", "tasks", "tested", "mean_abs", "q", "repeats"]
    rows = []
    table = selection[selection["corrupt"].isin(list(MODALITIES))]
    for kind, family in table.groupby("kind", observed=True, sort=True):
        tested = [name for name in MODALITIES if (family["corrupt"] == name).any()]
        for rule in RULES:
            for (layer, head), cells in family[family[f"{rule}_all"].astype(bool)].groupby(["layer", "head"]):
                found = [name for name in tested if (cells["corrupt"] == name).any()]
                rows.append(
                    {
                        "kind": kind,
                        "layer": int(layer),
                        "head": int(head),
                        "modality": MODALITIES[found[0]] if len(found) == 1 else MULTIMODAL,
                        "rule": rule,
                        "tasks": sorted(cells["task"].unique()),
                        "tested": tested,
                        "mean_abs": float(cells["mean_abs"].mean()),
                        "q": float(cells["q_all"].max()),
                        "repeats": float(cells["repeats_all"].min()),
                    }
                )
    made = pd.DataFrame(rows, columns=columns)
    return made.sort_values(["rule", "mean_abs"], ascending=[True, False], ignore_index=True)


def disagreements(selection: pd.DataFrame, rule: Rule = DEFAULT, at: str = "") -> list[str]:
    """Where the two rules part, in sentences: which head, in which task, and why.

    Args:
        selection: from `select`.
        rule: the numbers it was made with.
        at: where the effects were read, in words ("at the answer's word"); "" not to say.

    Returns:
        One sentence for each head and task that one rule selects and the other does not, the largest first; and
        one for each head that they part on only as universal.
    """
    selection = selection[selection["corrupt"].isin(list(MODALITIES))]
    parted = selection[selection["paper"].astype(bool) != selection["fdr"].astype(bool)]
    said = [
        _cell_sentence(row, selection, rule, at) for row in _records(parted.sort_values("mean_abs", ascending=False))
    ]
    heads = selection.drop_duplicates(["corrupt", *HEAD])
    for row in _records(heads[heads["paper_all"].astype(bool) & ~heads["fdr_all"].astype(bool)]):
        cells = selection[_same(selection, row, ["corrupt", *HEAD])]
        if cells["fdr"].all():
            said.append(
                f"{_who(row)} ({row['corrupt']}): both rules select it in every task, but as universal it fails the "
                f"FDR-controlled one: q over all tasks {row['q_all']:.3g}, repeats in {row['repeats_all']:.0%} of "
                "halvings."
            )
    return said


def _records(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    yield from table.to_dict("records")


def _same(selection: pd.DataFrame, row: dict[str, Any], columns: list[str]) -> pd.Series:
    return (selection[columns] == [row[c] for c in columns]).all(axis=1)


def _who(row: dict[str, Any]) -> str:
    return head_name(row["kind"], row["layer"], row["head"])


def _cell_sentence(row: dict[str, Any], selection: pd.DataFrame, rule: Rule, at: str) -> str:
    where = f"{_who(row)} in task {row['task']} ({row['corrupt']}{', ' + at if at else ''})"
    if row["paper"]:
        faults = "; ".join(_faults(row, rule))
        return f"{where}: the paper's rule selects it, the FDR-controlled one does not: {faults}."
    family = selection[_same(selection, row, ["corrupt", "kind", "task"])]
    digits = next(n for n in range(3, 18) if f"{row['mean_abs']:.{n}g}" != f"{row['threshold']:.{n}g}" or n == 17)
    return (
        f"{where}: the FDR-controlled rule selects it, the paper's does not: its mean |effect| "
        f"{row['mean_abs']:.{digits}g} is {row['ratio']:.3g} times the average head's but below mean + {rule.sds:g} SD "
        f"= {row['threshold']:.{digits}g}, an SD that the strongest heads (up to {family['mean_abs'].max():.3g}) raise "
        f"for all {len(family)}."
    )


def _faults(row: dict[str, Any], rule: Rule) -> list[str]:
    """Which of the FDR-controlled rule's demands a cell fails."""
    r = {key: float(row[key]) for key in ("n", "mean", "mean_abs", "q", "ratio", "ratio_low", "repeats")}
    faults = []
    if r["n"] < rule.fewest_examples:
        faults.append(f"{r['n']:.0f} examples are too few to hold out a half (it takes {rule.fewest_examples})")
    if not r["q"] <= rule.alpha:
        faults.append(
            f"its effect is not systematic (q = {r['q']:.3g}: mean {r['mean']:.3g}, mean |effect| {r['mean_abs']:.3g})"
        )
    if not r["ratio_low"] > rule.times:
        faults.append(
            f"it may be less than {rule.times:g} times the average head ({r['ratio']:.3g}, at worst "
            f"{r['ratio_low']:.3g})"
        )
    if r["n"] >= rule.fewest_examples and not r["repeats"] >= rule.least_repeats:
        faults.append(f"it repeats in {r['repeats']:.0%} of random halvings only")
    return faults
