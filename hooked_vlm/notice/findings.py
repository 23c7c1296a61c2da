"""What a run shows: its verdicts, each decided once by the rules of `claims`, from its numbers. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pandas as pd

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.decided import Holds, above, every
from hooked_vlm.analysis.grid import Grid
from hooked_vlm.analysis.head_labels import LOOKS, OBJECT
from hooked_vlm.analysis.heads import HEAD, Head, of_heads
from hooked_vlm.analysis.power import examples_needed, power
from hooked_vlm.analysis.universal_heads import Rule, universal
from hooked_vlm.notice.claims import (
    AGREE,
    Alike,
    Concentrated,
    Detected,
    Estimate,
    Harmed,
    Selected,
    Verdict,
    corrected,
    fewest,
    of_parts,
    smallest_p,
)
from hooked_vlm.notice.run_tables import RunTables
from hooked_vlm.notice.schema import Ablation, Function, Noise, Power, Universal, known
from hooked_vlm.notice.selections import TOP
from hooked_vlm.notice.stored import Summary
from hooked_vlm.notice.vocabulary import CORRUPT, EVERY

CONTENT = ["answer", "wrong answer", "subject"]  # the words that a question about a picture turns on


def findings(data: RunTables, tables: Summary, rule: Rule, selection: pd.DataFrame) -> list[Verdict]:
    """The verdicts of a run.

    Args:
        data: from `run_tables.gather`.
        tables: the tables of the summary.
        rule: the numbers of the rules; its resamples and seed are used.
        selection: what `universal_heads.select_matrices` gave.
    """
    kinds = sorted({kind for corrupt, kind, _ in data.roles if corrupt == "image" and of_heads(kind)})
    found = [_concentration(data, kind, rule.seed) for kind in kinds]
    found.append(_detection(tables["functions_by_task"]))
    found.append(_universal(data, tables, rule, selection))
    found += _harm(tables["ablation"])
    found.append(_noise(tables["noise"], data.at))
    return corrected(found, rule.alpha)


def _concentration(data: RunTables, kind: str, seed: int) -> Verdict:
    """Whether |effect| under image corruption is larger at the tokens that should carry it."""
    expected = ["last"] if "last" in (data.at, *data.query_roles) else CONTENT  # where the model answers from
    per_role: dict[str, list[np.ndarray]] = {}
    on, off, ways = [], [], []
    for (corrupt, of_kind, task), grid in sorted(data.roles.items()):
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
            ways.append(data.clusters(task, grid.examples))
    if not on:
        return Verdict(Concentrated(kind, expected), None, kind)
    here, there = np.concatenate(on), np.concatenate(off)
    together = clusters.side_by_side(ways)
    found = [clusters.interval_of(each, together, seed=seed) for each in (here, there, here - there)]
    on_them, off_them, gap = (Estimate(each["mean"], each["low"], each["high"], int(each["n"])) for each in found)
    means = {role: float(np.nanmean(np.concatenate(each))) for role, each in per_role.items() if role != EVERY}
    evidence = Concentrated(kind, expected, on_them, off_them, gap, means)
    return Verdict(evidence, above(gap.low, gap.high, 0.0), kind, p=_number(found[2]["p"]))


def _by_role(grid: Grid) -> dict[str, np.ndarray]:
    """|effect| of each example by role, over layers."""
    sizes, cells = grid.matrix("size"), grid.cells
    roles = sorted({role for _, role in cells})
    return {role: _rowwise_mean(list(sizes[:, [i for i, (_, r) in enumerate(cells) if r == role]].T)) for role in roles}


def _rowwise_mean(columns: list[np.ndarray]) -> np.ndarray:
    return statistics.means(np.array(columns))  # NaN where an example has none of them


def _detection(rows: list[Function]) -> Verdict:
    """In a task it holds where a head detects the object, and does not where no head that was tested does.

    Heads are tested on other examples than they were chosen on, so that the choice cannot help.
    """
    parts: dict[str, Holds] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        found = [row["detects"] for row in rows if row["task"] == task and row["n_causes"]]
        parts[task] = True if True in found else False if found and None not in found else None
    evidence = Detected(
        any(known(row["lift"]) for row in rows),
        any(known(row["rival_lift"]) for row in rows),
        [row for row in rows if row["label"] in (OBJECT, LOOKS) and row["n_causes"]],
        {task: sum(row["task"] == task and row["n_causes"] > 0 for row in rows) for task in parts},
    )
    return Verdict(evidence, every(parts.values()), parts=parts if evidence.rivals else {})


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _universal(data: RunTables, tables: Summary, rule: Rule, selection: pd.DataFrame) -> Verdict:
    """Undecided where no head is selected, and a task has too few examples or a head may matter in all of them."""
    tasks = {row["task"] for row in tables["heads"]}
    few = [row["task"] for row in tables["counts"] if row["task"] in tasks and fewest(row) < rule.fewest]
    n = len({(row["kind"], row["layer"], row["head"]) for row in tables["heads"]})
    rows = tables["universal"]
    asked = selection[selection["corrupt"].isin(CORRUPT)] if len(selection) else selection
    evidence = Selected(
        rows, n, len(tasks), data.at, few, rule.fewest, bool(tables["roles"]),
        open=_open(asked), partly=_partly(asked), power=_power(asked, rule),
    )  # fmt: skip
    found = any(row["rule"] == "fdr" for row in rows)
    return Verdict(evidence, True if found else None if few or not n or evidence.open else False)


def _open(selection: pd.DataFrame) -> list[Head]:
    """Heads that may matter in every task under a corruption, and were not found to."""
    found: dict[Head, None] = {}
    for (_, *head), cells in selection.groupby(["corrupt", *HEAD], observed=True):
        if not cells["fdr_all"].any() and (cells["fdr"] | cells["undecided"]).all():
            found[cast(Head, tuple(head))] = None
    return list(found)


def _partly(selection: pd.DataFrame) -> list[Universal]:
    if selection.empty:
        return []
    some = universal(selection, at_least=2)
    some = some[some["rule"] == "fdr"]
    whole = set(universal(selection)[HEAD].itertuples(index=False, name=None))
    rows: list[Any] = [row for row in some.to_dict("records") if tuple(row[name] for name in HEAD) not in whole]
    return rows


def _power(selection: pd.DataFrame, rule: Rule) -> list[Power]:
    """Of each corruption and kind, how likely a head whose effect varies as the strongest ones' is found."""
    found: list[Power] = []
    for (corrupt, kind), cells in selection.groupby(["corrupt", "kind"], observed=True):
        strongest = cells.sort_values("mean_abs", ascending=False).groupby("task", observed=True).head(TOP)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = (strongest["sd"] / strongest["mean"].abs()).replace(np.inf, np.nan).dropna()
        if ratios.empty:
            continue
        tasks, cv = cells["task"].nunique(), float(ratios.median())
        n = int(cells.groupby("task", observed=True)["n"].max().min())
        rivals = max(1, int((cells.drop_duplicates(HEAD)["at_least"] >= tasks - 1).sum())) if tasks > 1 else len(cells)
        given = {"tasks": tasks, "rivals": rivals, "alpha": rule.alpha}
        made = {"power": power(cv, n, **given), "needed": examples_needed(cv, **given)}
        about = {"corrupt": str(corrupt), "kind": str(kind), "cv": cv, "n": n, "tasks": tasks}
        row: Any = about | made | {"clusters": int(cells["clusters"].min())}
        found.append(row)
    return found


def _harm(rows: list[Ablation]) -> list[Verdict]:
    found = []
    for selection in sorted({row["selection"] for row in rows}, key=lambda each: each.order):
        mine = [row for row in rows if row["selection"] == selection]
        parts = {row["task"]: row["worse"] for row in mine}
        draws = min(row["draws"] for row in mine)
        least = smallest_p(draws)
        evidence = Harmed(mine, draws, least if least > statistics.ALPHA else None)
        holds = every(parts.values())
        p = {row["task"]: _of_harm(row) for row in mine}
        found.append(Verdict(evidence, holds, selection, parts, of_parts(holds, parts, p)))
    if not any(row["selection"].how == "universal" for row in rows):
        found.insert(0, Verdict(Harmed([], others=bool(rows)), None))
    return found


def _of_harm(row: Ablation) -> float | None:
    """The less sure of both demands: among random sets, and over examples."""
    sets, examples = row["p"], row["harm_p"]
    if row["worse"] is False:
        return examples
    return None if sets is None or examples is None else max(sets, examples)


def _noise(rows: list[Noise], at: str) -> Verdict:
    """Whether noise finds the same heads, in every task, corruption and kind of heads."""
    ranked = [row for row in rows if known(row["spearman"])]
    parts = {
        task: every(above(row["ci_low"], row["ci_high"], AGREE) for row in ranked if row["task"] == task)
        for task in dict.fromkeys(row["task"] for row in ranked)
    }
    holds = every(parts.values())
    p = {task: _worst(row["p"] for row in ranked if row["task"] == task) for task in parts}
    return Verdict(Alike(ranked, AGREE, at), holds, parts=parts, p=of_parts(holds, parts, p))


def _worst(p: Iterable[float | None]) -> float | None:
    return max((each for each in p if each is not None), default=None)
