"""A closer look at the heads that matter in a run: at which words they act, and for which answers.

Heads are selected at one place, every position at once where a run patched them so; here those that were selected are
looked for at each kind of token, one position at a time. Cost: one more pass over the files of effects, then some
resamples of few heads. Knows no model.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from hooked_vlm.analysis import by_answer, clusters, statistics
from hooked_vlm.analysis.clusters import CLUSTERS
from hooked_vlm.analysis.heads import HEAD, Head
from hooked_vlm.analysis.universal_heads import Rule
from hooked_vlm.errors import DataError
from hooked_vlm.notice.directory import RunDirectory
from hooked_vlm.notice.places import KEY
from hooked_vlm.notice.run_tables import RunTables, gather_places
from hooked_vlm.notice.schema import ByAnswer, Localised
from hooked_vlm.notice.selections import TOP
from hooked_vlm.notice.vocabulary import CORRUPT, EVERY

FLIPS = 1999  # for the p-values of a few roles


def chosen(selection: pd.DataFrame) -> pd.DataFrame:
    """Of each corruption and task the heads that a rule selects, and the strongest.

    Args:
        selection: what `universal_heads.select_matrices` gave.
    """
    asked = selection[selection["corrupt"].isin(CORRUPT)]
    ranks = asked.groupby(["corrupt", "task"], observed=True)["mean_abs"].rank(ascending=False, method="first")
    return asked[asked["fdr"] | asked["paper"] | (ranks <= TOP)][KEY]


def localised(place: RunDirectory, data: RunTables, selection: pd.DataFrame, rule: Rule) -> list[Localised]:
    """Where each head that the FDR-controlled rule selects in a task acts, by the role of single positions.

    Which heads were selected is the first step, at which of its roles a head acts the second: within each head's family
    of roles q-values are Benjamini and Hochberg's, raised by the number of families over that of the selected ones
    (Benjamini & Bogomolov 2014), so that the expected share of false roles, averaged over selected heads, is held.

    Args:
        place: the run's directory, open.
        data: its grids; selected at every position at once, or there is nothing to localise.
        selection: what `universal_heads.select_matrices` gave.
        rule: its level and seed.
    """
    if data.at != EVERY or selection.empty:
        return []
    tested = selection[selection["corrupt"].isin(CORRUPT)]
    selected = tested[tested["fdr"]]
    heads: Collection[Head] = set(selected[HEAD].itertuples(index=False, name=None))
    if not heads:
        return []
    found, raised = [], len(tested) / len(selected)
    grids = gather_places(place, heads)
    for (corrupt, kind, task), cells in selected.groupby(["corrupt", "kind", "task"], observed=True, sort=True):
        grid = grids[str(corrupt), str(kind), str(task)]
        ways = data.clusters(str(task), grid.examples)
        for head in cells[["layer", "head"]].itertuples(index=False, name=None):
            roles = [role for of, role in grid.cells if of == head and role != EVERY]
            values = grid.matrix("effect", [(head, role) for role in roles])
            judged = clusters.granted(
                clusters.judge_each(values, ways, flips=FLIPS, seed=(rule.seed, 12)), clusters.FEW
            )
            q = np.minimum(1.0, raised * statistics.benjamini_hochberg(judged.p))
            for i, role in enumerate(roles):
                row: Any = {
                    "corrupt": corrupt, "kind": kind, "task": task, "layer": int(head[0]), "head": int(head[1]),
                    "role": role, "n": int((~np.isnan(values[:, i])).sum()), "mean": judged.mean[i],
                    "ci_low": judged.low[i], "ci_high": judged.high[i], "p": judged.p[i], "q": q[i],
                    "acts": bool(q[i] <= rule.alpha),
                }  # fmt: skip
                found.append(row)
    return found


def by_answers(data: RunTables, selection: pd.DataFrame) -> list[ByAnswer]:
    """The effect of the heads that matter in a task by answer, and whether a head acts for one answer alone.

    Args:
        data: the run's grids.
        selection: what `universal_heads.select_matrices` gave.
    """
    found: list[ByAnswer] = []
    looked_at = chosen(selection) if len(selection) else selection
    for corrupt, kind, task in sorted(data.heads):
        if corrupt not in CORRUPT:
            continue
        table = _long(data, corrupt, kind, task)
        try:
            specific = by_answer.answer_specific(table)
        except DataError:  # too few examples of any answer
            continue
        mine = looked_at[(looked_at["corrupt"] == corrupt) & (looked_at["kind"] == kind) & (looked_at["task"] == task)]
        heads = set(mine[["layer", "head"]].itertuples(index=False, name=None))
        heads |= {(row.layer, row.head) for row in specific.itertuples() if row.answer_specific is True}
        if not heads:
            continue
        of = specific.set_index(["layer", "head"])
        small = table[[(each) in heads for each in zip(table["layer"], table["head"], strict=True)]]
        for row in by_answer.by_cluster(small).to_dict("records"):
            about = of.loc[(row["layer"], row["head"])]
            own = about["answer"] == row["answer"]
            verdict = about["answer_specific"] if own else None
            made: Any = {name: row[name] for name in (*KEY, "answer", "n", "mean")}
            made |= {"ci_low": row["low"], "ci_high": row["high"], "alone": verdict, "most": bool(own)}
            found.append(made | {"rest": about["rest"], "p": about["p_holm"] if own else None})
    return found


def _long(data: RunTables, corrupt: str, kind: str, task: str) -> pd.DataFrame:
    """Effects as a table of one row for each example and head, with span and clusters."""
    grid = data.heads[corrupt, kind, task]
    heads, values = grid.cells, grid.matrix("effect")
    about = data.about(task, grid.examples)
    n, m = values.shape
    table = pd.DataFrame({"example": np.repeat(np.array(grid.examples), m), "effect": values.ravel()})
    table[["layer", "head"]] = np.tile(np.array(heads), (n, 1))
    for name in CLUSTERS:
        table[name] = np.repeat(about[name].astype(str).to_numpy(), m)
    return table.assign(
        span=np.repeat(data.spans(corrupt, task, grid.examples), m), task=task, corrupt=corrupt, kind=kind
    )
