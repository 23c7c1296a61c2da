"""What a run shows: its verdicts, each decided once by the rules of `claims`, from its numbers. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hooked_vlm.analysis import statistics
from hooked_vlm.analysis.grid import Grid
from hooked_vlm.analysis.head_labels import OBJECT, SHARES, labels_of
from hooked_vlm.analysis.heads import Head, of_heads
from hooked_vlm.analysis.universal_heads import Rule
from hooked_vlm.notice.claims import (
    Alike,
    Concentrated,
    Detected,
    Estimate,
    Harmed,
    Selected,
    Verdict,
    above,
    every,
    fewest,
    smallest_p,
)
from hooked_vlm.notice.run_tables import RunTables
from hooked_vlm.notice.schema import Ablation, Noise, known
from hooked_vlm.notice.stored import Summary
from hooked_vlm.notice.vocabulary import EVERY

CONTENT = ["answer", "wrong answer", "subject"]  # the words that a question about a picture turns on
AGREE = 0.5  # rank correlation above which two maps are said to agree


def findings(data: RunTables, tables: Summary, significant: Iterable[Head] | None, rule: Rule) -> list[Verdict]:
    """The verdicts of a run.

    Args:
        data: from `run_tables.gather`.
        tables: the tables of the summary.
        significant: heads whose patching has an effect, as `head_labels.labels` takes them.
        rule: the numbers of the rules; its resamples and seed are used.
    """
    kinds = sorted({kind for corrupt, kind, _ in data.roles if corrupt == "image" and of_heads(kind)})
    found = [_concentration(data, kind, rule.bootstrap, rule.seed) for kind in kinds]
    found.append(_detection(data, significant, rule.bootstrap, rule.seed))
    found.append(_universal(data, tables, rule))
    found += _harm(tables["ablation"])
    found.append(_noise(tables["noise"], data.at))
    return found


def _estimate(values: np.ndarray, times: int, seed: int, scores: bool = False) -> Estimate:
    found: dict[str, Any] = {**statistics.mean_with_interval(values, times, seed, scores=scores)}
    return Estimate(**found)


def _concentration(data: RunTables, kind: str, times: int, seed: int) -> Verdict:
    """Whether |effect| under image corruption is larger at the tokens that should carry it."""
    expected = ["last"] if data.at == "last" else CONTENT
    per_role: dict[str, list[np.ndarray]] = {}
    on, off = [], []
    for (corrupt, of_kind, _), grid in sorted(data.roles.items()):
        if corrupt != "image" or of_kind != kind:
            continue
        sizes = _by_role(grid)
        for role, values in sizes.items():
            per_role.setdefault(role, []).append(values)
        mine = [values for role, values in sizes.items() if role in expected]
        others = [values for role, values in sizes.items() if role not in (*expected, EVERY, "image")]
        if mine and others:
            on.append(_rowwise_mean(mine))
            off.append(_rowwise_mean(others))
    if not on:
        return Verdict(Concentrated(kind, expected), None, kind)
    here, there = np.concatenate(on), np.concatenate(off)
    on_them, off_them, gap = (_estimate(each, times, seed) for each in (here, there, here - there))
    means = {role: float(np.nanmean(np.concatenate(each))) for role, each in per_role.items() if role != EVERY}
    return Verdict(Concentrated(kind, expected, on_them, off_them, gap, means), above(gap.low, gap.high, 0.0), kind)


def _by_role(grid: Grid) -> dict[str, np.ndarray]:
    """|effect| of each example by role, over layers."""
    sizes, cells = grid.matrix("size"), grid.cells
    roles = sorted({role for _, role in cells})
    return {role: _rowwise_mean(list(sizes[:, [i for i, (_, r) in enumerate(cells) if r == role]].T)) for role in roles}


def _rowwise_mean(columns: list[np.ndarray]) -> np.ndarray:
    return statistics.means(np.array(columns))  # NaN where an example has none of them


def _detection(data: RunTables, significant: Iterable[Head] | None, times: int, seed: int) -> Verdict:
    """Heads are labelled on one half of the examples and measured on the other, so that the choice cannot help."""
    parts: dict[str, list[np.ndarray]] = {"lift": [], "auc": [], "pointing": []}
    heads: list[Head] = []
    usual: list[np.ndarray] = []
    masked = False
    for kind, grid in sorted(data.attention.items()):
        with_mask = ~np.isnan(grid.matrix("auc")).all(1)
        masked |= bool(with_mask.any())
        order = np.random.default_rng((seed, 10)).permutation(np.flatnonzero(with_mask))
        if len(order) < 4:
            continue
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        labelled = labels_of({kind: grid.rows(first)}, significant=significant, times=times, seed=seed)
        cells = list(labelled[labelled["label"] == OBJECT][["layer", "head"]].itertuples(index=False, name=None))
        if cells:
            held_out = grid.rows(second)
            heads += [(kind, *cell) for cell in cells]
            usual.append(statistics.means(held_out.matrix("lift").T))
            for score, values in parts.items():
                values.append(statistics.means(held_out.matrix(score, cells).T))
    if not heads:
        return Verdict(Detected(masked), None)
    seen = {name: _estimate(np.concatenate(each), times, seed, name in SHARES) for name, each in parts.items()}
    holds = every(above(seen[score].low, seen[score].high, even) for score, even in (("lift", 1.0), ("auc", 0.5)))
    average = float(np.nanmean(np.concatenate(usual)))
    return Verdict(Detected(True, heads, seen["lift"], seen["auc"], seen["pointing"], average), holds)


def _universal(data: RunTables, tables: Summary, rule: Rule) -> Verdict:
    """Undecided where no head is selected and a task has too few examples for the FDR-controlled rule."""
    tasks = {row["task"] for row in tables["heads"]}
    few = [row["task"] for row in tables["counts"] if row["task"] in tasks and fewest(row) < rule.fewest_examples]
    n = len({(row["kind"], row["layer"], row["head"]) for row in tables["heads"]})
    rows = tables["universal"]
    evidence = Selected(rows, n, len(tasks), data.at, few, rule.fewest_examples, bool(tables["roles"]))
    return Verdict(evidence, True if any(row["rule"] == "fdr" for row in rows) else None if few or not n else False)


def _harm(rows: list[Ablation]) -> list[Verdict]:
    found = []
    for selection in sorted({row["selection"] for row in rows}, key=lambda each: each.order):
        mine = [row for row in rows if row["selection"] == selection]
        parts = {row["task"]: row["worse"] for row in mine}
        draws = min(row["draws"] for row in mine)
        least = smallest_p(draws)
        evidence = Harmed(mine, draws, least if least > statistics.ALPHA else None)
        found.append(Verdict(evidence, every(parts.values()), selection, parts))
    if not any(row["selection"].how == "universal" for row in rows):
        found.insert(0, Verdict(Harmed([], others=bool(rows)), None))
    return found


def _noise(rows: list[Noise], at: str) -> Verdict:
    """Whether noise finds the same heads, in every task, corruption and kind of heads."""
    ranked = [row for row in rows if known(row["spearman"])]
    parts = {
        task: every(above(row["ci_low"], row["ci_high"], AGREE) for row in ranked if row["task"] == task)
        for task in dict.fromkeys(row["task"] for row in ranked)
    }
    return Verdict(Alike(ranked, AGREE, at), every(parts.values()), parts=parts)
