"""Which heads matter in every task: the paper's rule, and beside it one that controls the false discovery rate.

Both read effects of patching single heads, one number for each example and head. A head is *universal* for a
corruption if a rule selects it in every task; of the two corruptions, image and text, that makes it vision-only,
text-only or multimodal (in both).

**The paper's rule** (Golovanevsky et al. 2025, "What Do VLMs NOTICE?"): over examples, the mean of |effect| of the
head lies above ``mean + 2 SD`` of that number over all heads (sample SD). It says nothing of chance, and three of
its properties come from the SD: outliers raise it, so that several strong heads hide one another; among k heads no
number lies further than ``(k - 1) / sqrt(k)`` SD above the mean, so that with fewer than 6 heads none can pass; and
|effect| is as large for a head that helps in half the examples and harms in the other half as for one that always
helps. Given the probability after patching, the rule is the released code's instead (`published`).

**The FDR-controlled rule** asks four things of a head:

1. *Systematic*: the mean effect differs from 0, by the least favourable p-value of `clusters`: each example alone, and
   by whatever clusters them (columns answer, group, template). In one task, by Benjamini-Hochberg over all heads x
   tasks of the corruption, ``q <= alpha``; where a column has fewer than 8 values they are taken as all there are, and
   the head has to act in each of them (`p_each`, within each and of one sign): what is said then holds for these
   answers. "In every task" is one more claim (the partial conjunction, Benjamini & Heller 2008), and of answers in
   general, however few were seen: a head's largest p-value over tasks, weighed against the heads whose other p-values
   are as small, since no other head could be taken for universal (AdaFilter, Wang, Gui, Su, Sabatti & Owen 2022).
   ``q_all <= alpha`` holds the chance of *any* false one below alpha. In the same way `at_least` says in how many
   tasks, at least, a head matters for the answers seen.
2. *Not next to nothing*: the end of the mean's interval that is nearer to 0 lies beyond `floor` of the corruption's
   span (1 %), the mean clean less corrupt logit difference. Among inert heads any trace would stand out.
3. *Large*: ``ratio = mean |effect| of the head / that of the median head``; the lower end of its percentile bootstrap
   interval lies above `times` (2). Neither a giant nor other strong heads hide a head, until half of them are strong.
4. *Enough examples*: `fewest` (12). With fewer no test here holds its level under skew.

A head that is not selected, but whose intervals reach past both bounds, is *undecided*: the data rule it neither in
nor out. `repeats` says how stable a selection is: the share of random halvings in which both halves show the same
sign, ``p <= alpha`` and a ratio above `times` (cf. stability selection, Meinshausen & Buehlmann 2010). It decides
nothing: at 50 examples a half sees too little.

Cost: matrix products [resamples example] x [example head]; some seconds for 144 heads, 3 tasks, 50 examples and
two ways to cluster them. Knows no model and no files.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from hooked_vlm.analysis import clusters, published, statistics
from hooked_vlm.analysis.clusters import CLUSTERS
from hooked_vlm.analysis.heads import HEAD, MODALITIES, MULTIMODAL, RULES, head_name
from hooked_vlm.errors import DataError

NEEDED = ("task", "example", "corrupt", "layer", "head", "effect")


@dataclass(frozen=True)
class Measured:
    """Effects of heads in one task.

    Args:
        effects: [example head], NaN where a head was not measured.
        span: clean less corrupt logit difference of each example, [example]; None if unknown, and then no effect is
            too small to be selected.
        clusters: ways to cluster the examples, from `clusters.codes`; none where each stands alone.
        p_patched: probability of the right answer with each head patched, [example head]; where it is given, the
            threshold of the released code (`published`) takes the place of the paper's rule.
    """

    effects: statistics.Matrix
    span: Float[np.ndarray, "example"] | None = None
    clusters: Sequence[clusters.Codes] = ()
    p_patched: statistics.Matrix | None = None


Families = dict[tuple[str, str], tuple[list[tuple[int, int]], dict[str, Measured]]]


@dataclass(frozen=True)
class Rule:
    """The numbers in the two rules, each with its one default.

    Args:
        alpha: level of the tests.
        times: how many times the median head's |effect| counts as large.
        floor: share of the span below which an effect counts as none.
        fewest: examples of a task without which nothing is selected.
        sds: standard deviations above the mean, in the paper's rule.
        level: of the intervals.
        bootstrap: resamples of the examples, for ratios.
        flips: random sign flips, and resamples for p-values; None takes `statistics.flips_needed`.
        splits: random halvings of the examples.
        seed: of everything random here.
    """

    alpha: float = statistics.ALPHA
    times: float = 2.0
    floor: float = 0.01
    fewest: int = 12
    sds: float = 2.0
    level: float = statistics.LEVEL
    bootstrap: int = statistics.BOOTSTRAP
    flips: int | None = None
    splits: int = 100
    seed: int = 0


DEFAULT = Rule()


def select(table: pd.DataFrame, rule: Rule = DEFAULT) -> pd.DataFrame:
    """Both rules on a table of effects.

    Args:
        table: one row for each example and head, columns task, example, corrupt, layer, head, effect; and where
            there are any: kind (each is a family of heads of its own), span (the example's clean less corrupt logit
            difference, without which no effect is too small to be selected), answer, group and template, which
            cluster the examples, and p_patched (`Measured`). NaN effects are left out.
        rule: its numbers.

    Returns:
        One row for each corrupt, kind, task, layer, head: n (examples), clusters (the fewest that it was judged by),
        mean, mean_abs, sd (of the effect), se (of mean), ci_low, ci_high (of mean), abs_low, abs_high (of mean_abs),
        span (the mean |span|), threshold and paper (the paper's rule), ratio, ratio_low, ratio_high, p, p_each, q,
        repeats, matters (the first two hold here), fdr (the FDR-controlled rule selects it here) and undecided; and,
        the same in every task of a head, p_all, q_all, repeats_all, paper_all, fdr_all (universal) and at_least (in how
        many tasks it matters, at least). With p_patched, also that: the mean |p_patched| of threshold and paper.

    Raises:
        DataError: if a column is missing, or an example has two rows for one head, or two spans, answers or groups.
    """
    if missing := [name for name in NEEDED if name not in table.columns]:
        raise DataError(f"The table of effects has no {', '.join(missing)}: select needs {', '.join(NEEDED)}.")
    if "kind" not in table.columns:
        table = table.assign(kind="heads")
    families: Families = {}
    for (corrupt, kind), rows in table.groupby(["corrupt", "kind"], observed=True, sort=True):
        heads = sorted(set(rows[["layer", "head"]].itertuples(index=False, name=None)))
        by_task = rows.groupby("task", observed=True, sort=True)
        families[str(corrupt), str(kind)] = (heads, {str(task): _measured(each, heads) for task, each in by_task})
    return select_matrices(families, rule)


def select_matrices(families: Families, rule: Rule = DEFAULT) -> pd.DataFrame:
    """`select` on matrices.

    Args:
        families: for each (corrupt, kind) the heads (layer, head), and for each task what was measured of them.
        rule: its numbers.
    """
    found = [_family(corrupt, kind, *given, rule) for (corrupt, kind), given in sorted(families.items())]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=_COLUMNS)


_CELL = ("corrupt", "kind", "task", "layer", "head")
_MEASURED = ("n", "clusters", "mean", "mean_abs", "sd", "se", "ci_low", "ci_high", "abs_low", "abs_high", "span")
_PAPERS = ("threshold", "paper")
_RULES = ("ratio", "ratio_low", "ratio_high", "p", "p_each", "q", "repeats", "matters", "fdr", "undecided")
_EVERYWHERE = ("p_all", "q_all", "repeats_all", "paper_all", "fdr_all", "at_least")
_COLUMNS = [*_CELL, *_MEASURED, *_PAPERS, *_RULES, *_EVERYWHERE]


def _family(
    corrupt: str, kind: str, heads: list[tuple[int, int]], tasks: dict[str, Measured], rule: Rule
) -> pd.DataFrame:
    """All heads of one kind under one corruption, in all tasks."""
    index = pd.MultiIndex.from_tuples(heads, names=["layer", "head"])
    flips = rule.flips or statistics.flips_needed(len(heads) * len(tasks), rule.alpha)
    parts, repeated = [], []
    for i, (task, measured) in enumerate(sorted(tasks.items())):
        part = _numbers(measured, rule, flips, i)
        again = _repeats(measured.effects, rule, i)
        part["repeats"] = again.mean(0) if len(again) else np.nan
        repeated.append(again)
        parts.append(part.assign(corrupt=corrupt, kind=kind, task=task).set_index(index).reset_index())
    table = pd.concat(parts, ignore_index=True)
    table["q"] = statistics.benjamini_hochberg(table["p"])
    shape = (len(tasks), len(heads))
    low, high = _reach(table, "seen_low", "seen_high")
    enough, floor = table["n"] >= rule.fewest, rule.floor * table["span"].fillna(0.0)
    stands_out = enough & (table["ratio_low"] > rule.times)
    real = (low > floor) & ~(table["p_each"] > rule.alpha)
    table["matters"] = real & (table["q"] <= rule.alpha)
    large = stands_out & real
    general = (stands_out & (_reach(table)[0] > floor)).to_numpy().reshape(shape)
    p_all, q_all = partial_conjunction(table["p_general"].to_numpy().reshape(shape), len(tasks))
    fdr_all = (q_all <= rule.alpha) & general.all(0)
    table["fdr"] = np.tile(fdr_all, len(tasks)) | ((table["q"] <= rule.alpha) & large)
    reaches = (high > floor) & ~(table["ratio_high"] <= rule.times)
    table["undecided"] = (table["n"] > 0) & ~table["fdr"] & (reaches | (~enough & (table["mean_abs"] > floor)))
    p_seen = np.where(table["fdr"] | large, table["p"], 1.0).reshape(shape)
    repeats_all = np.mean(np.all(repeated, 0), 0) if all(map(len, repeated)) else np.full(len(heads), np.nan)
    everywhere = {
        "p_all": p_all,
        "q_all": q_all,
        "repeats_all": repeats_all,
        "paper_all": table["paper"].to_numpy().reshape(shape).all(0),
        "fdr_all": fdr_all,
        "at_least": np.where(fdr_all, len(tasks), _at_least(p_seen, rule.alpha)),
    }
    columns = [*_COLUMNS, *({"p_patched"} & set(table))]
    return table.assign(**{name: np.tile(values, len(tasks)) for name, values in everywhere.items()})[columns]


def partial_conjunction(p: Float[np.ndarray, "task head"], tasks: int) -> tuple[statistics.Array, statistics.Array]:
    """p-values of "in at least so many tasks", and adjusted ones that hold the chance of any false head.

    ``S = (T - u + 1) * p_(u)`` with the u-th smallest of a head's T p-values (Bonferroni's, Benjamini & Heller 2008),
    weighed against the heads with ``(T - u + 1) * p_(u-1)`` as small (AdaFilter, Wang et al. 2022): ``S * #{F <= S}``.
    With one task that is Bonferroni's correction.

    Args:
        p: NaN where a head was not tested in a task; it then matters there in no claim.
        tasks: u, from 1 to T.

    Returns:
        S and the adjusted S, [head] each, NaN where a head was tested in fewer tasks.
    """
    total = len(p)
    ordered = np.sort(p, 0)  # NaN last
    of = total - tasks + 1
    claim = np.minimum(1.0, of * ordered[tasks - 1])
    weight = of * ordered[tasks - 2] if tasks > 1 else np.where(np.isnan(ordered[0]), np.nan, 0.0)
    rivals = (weight[None, :] <= claim[:, None]).sum(1)
    return claim, np.where(np.isnan(claim), np.nan, np.minimum(1.0, claim * np.maximum(rivals, 1)))


def _at_least(p: Float[np.ndarray, "task head"], alpha: float) -> NDArray[np.int64]:
    """In how many tasks each head matters, at least; [head]."""
    held = [np.full(p.shape[1], True)]
    for tasks in range(1, len(p) + 1):
        held.append(held[-1] & (partial_conjunction(p, tasks)[1] <= alpha))
    return np.sum(held[1:], 0)


def _reach(table: pd.DataFrame, *ends: str) -> tuple[pd.Series, pd.Series]:
    """The least and the greatest |mean| in an interval of each cell; the mean itself where nothing varies."""
    low, high = (table[end].fillna(table["mean"]) for end in ends or ("ci_low", "ci_high"))
    least = np.where(np.sign(low) == np.sign(high), np.minimum(low.abs(), high.abs()), 0.0)
    return pd.Series(least, table.index), np.maximum(low.abs(), high.abs())


def _measured(rows: pd.DataFrame, heads: list[tuple[int, int]]) -> Measured:
    """One task's rows; infinite effects count as not measured."""
    if rows.duplicated(["example", "layer", "head"]).any():
        row = rows[rows.duplicated(["example", "layer", "head"])].iloc[0]
        raise DataError(
            f"Example {row['example']!r} of task {row['task']!r} has two effects of layer {row['layer']} head "
            f"{row['head']} ({row['corrupt']}): average over positions first, or choose one."
        )
    wide = rows.pivot(index="example", columns=["layer", "head"], values="effect")
    values = wide.reindex(columns=pd.MultiIndex.from_tuples(heads)).to_numpy(np.float64)
    patched = None
    if "p_patched" in rows:
        there = rows.pivot(index="example", columns=["layer", "head"], values="p_patched")
        patched = there.reindex(wide.index, columns=pd.MultiIndex.from_tuples(heads)).to_numpy(np.float64)
    given = [name for name in ("span", *CLUSTERS) if name in rows]
    each = rows.drop_duplicates(["example", *given]).set_index("example")
    if twice := each.index[each.index.duplicated()].tolist():
        raise DataError(
            f"Example {twice[0]!r} of task {rows['task'].iloc[0]!r} has two different values of {' or '.join(given)}."
        )
    each = each.reindex(wide.index)
    ways = clusters.codes(*(each[name] for name in CLUSTERS if name in each), n=len(each))
    span = each["span"].to_numpy(np.float64) if "span" in each else None
    return Measured(np.where(np.isfinite(values), values, np.nan), span, ways, patched)


def _ratio(mean_abs: np.ndarray) -> np.ndarray:
    """|effect| of each head by that of the median head, over the last axis; infinite beside inert heads."""
    known = ~np.isnan(mean_abs)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # no head was measured
        middle = np.median(mean_abs, -1, keepdims=True) if known.all() else np.nanmedian(mean_abs, -1, keepdims=True)
        return np.where(mean_abs > 0, mean_abs / middle, np.where(known & (middle > 0), 0.0, np.nan))


def _numbers(measured: Measured, rule: Rule, flips: int, task: int) -> pd.DataFrame:
    """Means, intervals, the paper's threshold, the ratio with its interval, and p-values."""
    values, size = measured.effects, np.abs(measured.effects)
    ways = measured.clusters or clusters.codes(n=len(values))
    n = (~np.isnan(values)).sum(0)
    each = clusters.judge_each(values, ways, flips=flips, seed=(rule.seed, 0, task), level=rule.level)
    found, seen = clusters.granted(each), clusters.granted(each, clusters.FEW)
    sizes = clusters.judge(size, ways, flips=clusters.INTERVALS, seed=(rule.seed, 1, task), level=rule.level)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = statistics.means((values - found.mean) ** 2) * n / np.where(n > 1, n - 1, np.nan)
    known = sizes.mean[~np.isnan(sizes.mean)]
    threshold = known.mean() + rule.sds * known.std(ddof=1) if len(known) > 1 else np.nan
    chosen, released = sizes.mean > threshold, {}
    if measured.p_patched is not None:
        of_released, threshold, chosen = published.thresholded(measured.p_patched, rule.sds)
        released = {"p_patched": of_released}
    ends = []
    p_each = np.full(len(n), np.nan)
    for i, way in enumerate(ways):
        few = int(way.max(initial=-1)) + 1 < clusters.FEW
        if i and few:
            p_each = np.fmax(p_each, clusters.in_every_cluster(values, way, seed=(rule.seed, 5, task, i)))
            continue
        drawn = _ratio(statistics.means(size, clusters.weights(way, rule.bootstrap, (rule.seed, 4, task, i))))
        ends.append(_ends(drawn, rule.level, alone=len(np.unique(way)) < 2))
    return pd.DataFrame(
        {
            "n": n,
            "clusters": found.clusters,
            "mean": found.mean,
            "mean_abs": sizes.mean,
            "sd": np.sqrt(squares),
            "se": found.se,
            "ci_low": found.low,
            "ci_high": found.high,
            "abs_low": sizes.low,
            "abs_high": sizes.high,
            "span": np.nan if measured.span is None else float(statistics.means(np.abs(measured.span)[:, None])[0]),
            "threshold": threshold,
            "paper": chosen,
            "ratio": _ratio(sizes.mean),
            "ratio_low": np.fmin.reduce([low for low, _ in ends]),
            "ratio_high": np.fmax.reduce([high for _, high in ends]),
            "p": seen.p,
            "p_each": p_each,
            "p_general": found.p,
            "seen_low": seen.low,
            "seen_high": seen.high,
            **released,
        }
    )


def _ends(drawn: np.ndarray, level: float, alone: bool) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of ratios, of which some may be infinite."""
    bare = np.isnan(drawn).all(0) | alone
    filled = np.where(np.isnan(drawn), 0.0, drawn)
    tail = 50 * (1 - level)
    low, high = np.percentile(filled, [tail, 100 - tail], axis=0, method="nearest")
    return np.where(bare, np.nan, low), np.where(bare, np.nan, high)


def _repeats(values: statistics.Matrix, rule: Rule, task: int) -> Float[np.ndarray, "split head"]:
    """1 where a head is selected alike in both halves of a random halving; no rows if there are too few examples."""
    n, heads = values.shape
    if n < rule.fewest:
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


def universal(selection: pd.DataFrame, at_least: int | None = None) -> pd.DataFrame:
    """The heads that a rule selects in every task, or in so many of them, by modality.

    Args:
        selection: from `select`. Corruptions other than "image" and "text" are left out.
        at_least: tasks in which a head has to matter; None for all. The FDR-controlled rule holds the chance of any
            false one among them below its alpha; the paper's counts.

    Returns:
        One row for each head and rule ("paper" or "fdr") that selects it: kind, layer, head, modality
        ("vision-only", "text-only" or "multimodal"), rule, tasks (those it is selected in), tested (the corruptions
        that were run), mean_abs (over those tasks and the corruptions), q (the largest of those corruptions: q_all,
        or where not all tasks are asked for, the largest q of a task) and repeats (the smallest repeats_all); the
        largest mean_abs first. Where only one corruption was run, "only" says no more than that.
    """
    columns = [*HEAD, "modality", "rule", "tasks", "tested", "mean_abs", "q", "repeats"]
    rows = []
    table = selection[selection["corrupt"].isin(list(MODALITIES))]
    for kind, family in table.groupby("kind", observed=True, sort=True):
        tested = [name for name in MODALITIES if (family["corrupt"] == name).any()]
        for rule in RULES:
            chosen = family[_held(family, rule, at_least) & family[rule].astype(bool)]
            for (layer, head), cells in chosen.groupby(["layer", "head"]):
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
                        "q": float(cells["q_all" if at_least is None else "q"].max()),
                        "repeats": float(cells["repeats_all"].min()),
                    }
                )
    made = pd.DataFrame(rows, columns=columns)
    return made.sort_values(["rule", "mean_abs"], ascending=[True, False], ignore_index=True)


def _held(family: pd.DataFrame, rule: str, at_least: int | None) -> pd.Series:
    """Whether the head of each cell is selected in every task, or in so many, under the cell's corruption."""
    if at_least is None:
        return family[f"{rule}_all"].astype(bool)
    if rule == "fdr":
        return family["at_least"] >= at_least
    return family.groupby(["corrupt", "layer", "head"])[rule].transform("sum") >= at_least


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
                f"FDR-controlled one: q over all tasks {row['q_all']:.3g}."
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
    released = "p_patched" in row
    if row["paper"]:
        faults = "; ".join(_faults(row, rule))
        whose = published.RULE if released else RULES["paper"]
        return f"{where}: {whose} selects it, the FDR-controlled one does not: {faults}."
    if released:
        return (
            f"{where}: the FDR-controlled rule selects it, {published.RULE} does not: its mean |P_patched| "
            f"{row['p_patched']:.3g} is below mean + {rule.sds:g} population SD = {row['threshold']:.3g}."
        )
    family = selection[_same(selection, row, ["corrupt", "kind", "task"])]
    digits = next(n for n in range(3, 18) if f"{row['mean_abs']:.{n}g}" != f"{row['threshold']:.{n}g}" or n == 17)
    return (
        f"{where}: the FDR-controlled rule selects it, the paper's does not: its mean |effect| "
        f"{row['mean_abs']:.{digits}g} is {row['ratio']:.3g} times the median head's but below mean + {rule.sds:g} SD "
        f"= {row['threshold']:.{digits}g}, an SD that the strongest heads (up to {family['mean_abs'].max():.3g}) raise "
        f"for all {len(family)}."
    )


def _faults(row: dict[str, Any], rule: Rule) -> list[str]:
    """Which of the FDR-controlled rule's demands a cell fails."""
    names = ("n", "mean", "mean_abs", "q", "ratio", "ratio_low", "span", "ci_low", "ci_high")
    r = {key: float(row[key]) for key in names}
    faults = []
    if r["n"] < rule.fewest:
        faults.append(f"{r['n']:.0f} examples are too few (it takes {rule.fewest})")
    if not r["q"] <= rule.alpha:
        faults.append(
            f"its effect is not systematic (q = {r['q']:.3g}: mean {r['mean']:.3g}, mean |effect| {r['mean_abs']:.3g})"
        )
    elif float(row["p_each"]) > rule.alpha:
        faults.append(f"it does not act in each value of a column that has few (p = {row['p_each']:.2g} in one)")
    elif not (r["ci_low"] > rule.floor * r["span"] or r["ci_high"] < -rule.floor * r["span"]) and r["span"] > 0:
        faults.append(
            f"it may be less than {rule.floor:.0%} of the span of {r['span']:.3g} (mean {r['mean']:.3g}, "
            f"[{r['ci_low']:.3g}, {r['ci_high']:.3g}])"
        )
    if not r["ratio_low"] > rule.times:
        faults.append(
            f"it may be less than {rule.times:g} times the median head ({r['ratio']:.3g}, at worst "
            f"{r['ratio_low']:.3g})"
        )
    return faults
