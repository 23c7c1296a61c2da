"""What each head does, in a word: from where it looks, and what the answer owes to it, to labels that may be undecided.

Labels are of one task: a head may look at the object in one and away in another, and matter in one alone. In each, a
label holds, does not, or is undecided (None): the interval of something that it asks for holds its bound, or nobody
measured it. Intervals and tests are those of `clusters`; over the heads of a kind they are held to `alpha` by
Benjamini-Hochberg.

| label | sight: attention of the query | cause: what `attention_causes` gives |
|---|---|---|
| `looks_at_objects` | `objects_lift` > 1: more than evenly on objects, asked about or not | |
| `looks_at_asked` | `lift` > 1, and `grounding` > 0: more on the object asked about than on its rival | |
| `detects` | `looks_at_asked`, `auc` > 0.5, `relative_inside` > 0 | cost(asked) > cost(rival) |
| `suppresses` | `lift` < 1, `auc` < 0.5, `relative_inside` < 0 | cost(asked) < 0: the answer gains without it |
| `parks` | `outlier` > 0.5: most of it on outlier patches and class token | cost(outliers) > 0 |

The last three are "object detection", "object suppression" and "outlier suppression" of the paper (Golovanevsky et al.
2025), which reads them off the attention; here they ask a head, too, that its patching has a significant effect *in
this task*. `label` says it in a word: the first that holds, in the order `parks`, `detects`, `suppresses`,
`looks_at_objects` ("looks at objects"); else "undecided" where one of the four is, else "none". A head without a
significant effect is "none": attention that changes nothing does nothing.

Cost: a few resamples of a matrix [example head] for each score. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.causes import INTERVENTIONS
from hooked_vlm.analysis.clusters import CLUSTERS
from hooked_vlm.analysis.decided import Holds, above, below, every, tested
from hooked_vlm.analysis.grid import Grid
from hooked_vlm.analysis.heads import Head
from hooked_vlm.analysis.image_attention import SCORES

SHARES = frozenset({"inside", "auc", "pointing", "outlier"})  # scores between 0 and 1 that are means of one an example
MAJORITY = 0.5  # of a head's attention to the image, for a label by its outliers
OBJECT, SUPPRESSION, OUTLIER, NONE = "object detection", "object suppression", "outlier suppression", "none"
LOOKS, UNDECIDED = "looks at objects", "undecided"
CLAIMS: Final = ("looks_at_objects", "looks_at_asked", "detects", "suppresses", "parks")
NAMED: Final = {"parks": OUTLIER, "detects": OBJECT, "suppresses": SUPPRESSION, "looks_at_objects": LOOKS}
"""Of each claim that makes a label, its name, in the order in which they are looked at."""
LACKS: Final = ("mask", "rival mask", "causes")
"""What may be missing to decide whether a head detects the object, the first first."""

Ways = Mapping[str, tuple[str, ...]]


def cost_column(intervention: str) -> str:
    """The column that holds what an intervention costs.

    >>> cost_column("to rival")
    'cost_to_rival'
    """
    return f"cost_{intervention.replace(' ', '_')}"


COSTS: Final = tuple(map(cost_column, INTERVENTIONS))


def labels(
    scores: pd.DataFrame,
    causes: pd.DataFrame | None = None,
    *,
    significant: Iterable[Head] | Mapping[str, Iterable[Head]] | None = None,
    majority: float = MAJORITY,
    seed: int = 0,
    alpha: float = statistics.ALPHA,
    level: float = statistics.LEVEL,
) -> pd.DataFrame:
    """What each head does in each task, from its scores over examples, and from what its attention is worth.

    Args:
        scores: rows of `score_example` or `score_batch` for several examples, with columns task and example, and with
            answer, group and template where these cluster the examples.
        causes: rows of `attention_causes` with the same columns, of other examples than the heads were chosen by, if
            they were chosen; None leaves what needs them undecided.
        significant: (kind, layer, head) of the heads whose patching has an effect: the same in every task, or those
            of each task by its name; None not to ask.
        majority: the share of attention on outliers from which a head is said to rest on them.
        seed: of the resamples.
        alpha: level of the tests.
        level: of the intervals.

    Returns:
        One row for each task, kind, layer, head: label, score, ci_low, ci_high (of the outlier share where that is
        the label or there are no masks, else of lift), scored ("lift" or "outlier"), n (examples), significant, lacks
        (what is missing to say whether it detects: "mask", "rival mask", "causes" or ""), `CLAIMS`, q (of auc),
        objects_q, grounding_q, gap_q (of cost_gap, over the heads that were tested); the mean of each of `SCORES`,
        and of `COSTS` and cost_gap (cost_asked less cost_rival) over n_causes examples, each with its interval as
        lift_low, lift_high and so on.
    """
    ways = _ways(scores, causes)
    tables = [scores] if causes is None else [scores, _wide(causes)]
    parts = []
    for task in sorted(set(scores["task"])):
        grids = [_grids(table[table["task"] == task], SCORES if i == 0 else COSTS) for i, table in enumerate(tables)]
        of_task = significant.get(task, ()) if isinstance(significant, Mapping) else significant
        found = labels_of(
            grids[0],
            grids[1] if causes is not None else {},
            ways=ways,
            significant=of_task,
            majority=majority,
            seed=seed,
            alpha=alpha,
            level=level,
        )
        found.insert(0, "task", task)
        parts.append(found)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def labels_of(
    grids: Mapping[str, Grid],
    causes: Mapping[str, Grid],
    *,
    ways: Ways | None = None,
    significant: Iterable[Head] | None = None,
    majority: float = MAJORITY,
    seed: int = 0,
    alpha: float = statistics.ALPHA,
    level: float = statistics.LEVEL,
) -> pd.DataFrame:
    """`labels` of the grids of one task.

    Args:
        grids: for each kind `SCORES` of the cells (layer, head).
        causes: for each kind `COSTS` of the cells that were tested.
        ways: of each example by its name, what clusters it: its answer, its group.
        significant: see `labels`.
        majority: see `labels`.
        seed: see `labels`.
        alpha: see `labels`.
        level: see `labels`.
    """
    allowed = None if significant is None else {tuple(each) for each in significant}
    records = []
    for kind, grid in sorted(grids.items()):
        heads = grid.cells
        made = _of_scores(grid, ways, seed, alpha, level)
        made |= _of_causes(causes.get(kind, Grid(*COSTS)), heads, ways, seed, level)
        n_masks, n_all = (~np.isnan(grid.matrix("auc"))).sum(0), len(grid.examples)
        for i, (layer, head) in enumerate(heads):
            row = {key: float(values[i]) for key, values in made.items() if not key.endswith("_p")}
            is_significant = None if allowed is None else (kind, layer, head) in allowed
            claims = _claims(row, is_significant, majority, alpha)
            label = _label(claims, is_significant)
            scored = "outlier" if label == OUTLIER or not n_masks[i] else "lift"
            about = {"kind": kind, "layer": int(layer), "head": int(head), "label": label, "score": row[scored]}
            ends = {"ci_low": row[f"{scored}_low"], "ci_high": row[f"{scored}_high"], "scored": scored}
            n = int(n_masks[i]) if scored == "lift" else n_all
            known = {"n": n, "n_causes": int(row.pop("n_causes")), "significant": is_significant}
            records.append({**about, **ends, **known, "lacks": _lacks(row), **claims, **row})
    return pd.DataFrame(records)


def over_tasks(of_all: pd.DataFrame, of_each: pd.DataFrame) -> pd.DataFrame:
    """One row a head: scores of all tasks together, and labels that hold in every task in which the head matters.

    Args:
        of_all: what `labels_of` gives of the examples of all tasks together.
        of_each: what it gives of each task, with column task.

    Returns:
        `of_all` with label and `CLAIMS` so decided, lacks (the first that a task lacks), significant (in a task at
        least) and tasks (those in which the head is significant, all where that is not asked).
    """
    if of_all.empty:
        return of_all
    by_head = dict(iter(of_each.groupby(["kind", "layer", "head"])))
    records = []
    for row in of_all.to_dict("records"):
        rows = by_head[row["kind"], row["layer"], row["head"]].to_dict("records")
        mine = [each for each in rows if each["significant"] in (None, True)]
        asked = rows[0]["significant"] is not None
        claims = {name: every(each[name] for each in mine) for name in CLAIMS}
        lacks = {each["lacks"] for each in mine or rows}
        records.append(
            {
                **row,
                **claims,
                "label": _label(claims, bool(mine) if asked else None),
                "lacks": next((name for name in LACKS if name in lacks), ""),
                "significant": bool(mine) if asked else None,
                "tasks": [each["task"] for each in mine],
            }
        )
    return pd.DataFrame(records)


# --- numbers ----------------------------------------------------------------------------------------


def _of_scores(grid: Grid, ways: Ways | None, seed: int, alpha: float, level: float) -> dict[str, np.ndarray]:
    """Means, intervals and adjusted p-values of every head's scores."""
    values = {name: grid.matrix(name) for name in SCORES}
    made = _judged(values, grid, ways, clusters.ROUGH, (seed, 4), level)
    for name in SHARES:
        low, high = statistics.of_scores(values[name], seed=(seed, 4), level=level)
        made[f"{name}_low"] = np.fmax(0.0, np.fmin(made[f"{name}_low"], low))
        made[f"{name}_high"] = np.fmin(1.0, np.fmax(made[f"{name}_high"], high))
    against = {"q": ("auc", 0.5), "objects_q": ("objects_lift", 1.0), "grounding_q": ("grounding", 0.0)}
    shifted = {name: values[score] - even for name, (score, even) in against.items()}
    flips = statistics.flips_needed(len(grid.cells), alpha)
    tests = _judged(shifted, grid, ways, flips, (seed, 5), level)
    return made | {name: statistics.benjamini_hochberg(tests[f"{name}_p"]) for name in against}


def _of_causes(grid: Grid, heads: list[Any], ways: Ways | None, seed: int, level: float) -> dict[str, np.ndarray]:
    """Means and intervals of what the answer owes to each head's attention; NaN for heads that were not tested."""
    values = {name: grid.matrix(name, heads) for name in COSTS}
    values["cost_gap"] = values["cost_asked"] - values["cost_rival"]
    n = (~np.isnan(np.stack([values[name] for name in COSTS]))).any(0).sum(0)
    made = _judged(values, grid, ways, clusters.ROUGH, (seed, 6), level)
    return {"n_causes": n, **made, "gap_q": statistics.benjamini_hochberg(made["cost_gap_p"])}


def _judged(
    values: Mapping[str, np.ndarray],
    grid: Grid,
    ways: Ways | None,
    flips: int,
    seed: tuple[int, ...],
    level: float,
) -> dict[str, np.ndarray]:
    """Matrices by name, judged in the same resamples: name, name_low, name_high and name_p.

    Clusterings into fewer than `clusters.FEW` have no say: what is told then holds for the answers that were seen.
    """
    together = np.hstack(list(values.values()))
    each = clusters.judge_each(together, _coded(grid, ways), flips=flips, seed=seed, level=level)
    found = clusters.granted(each, clusters.FEW)
    parts = {"": found.mean, "_low": found.low, "_high": found.high, "_p": found.p}
    return {
        f"{name}{end}": column
        for end, every_one in parts.items()
        for name, column in zip(values, np.split(every_one, len(values)), strict=True)
    }


def _coded(grid: Grid, ways: Ways | None) -> list[clusters.Codes]:
    """The ways to cluster a grid's examples."""
    columns = zip(*((ways or {}).get(example, ()) for example in grid.examples), strict=True) if ways else ()
    return clusters.codes(*map(list, columns), n=len(grid.examples))


# --- deciding ---------------------------------------------------------------------------------------


def _claims(row: Mapping[str, float], significant: bool | None, majority: float, alpha: float) -> dict[str, Holds]:
    matters: Holds = significant is None or significant or None  # an effect that was not shown is not refuted

    def over(name: str, bound: float) -> Holds:
        return above(*_ends(row, name), bound)

    def under(name: str, bound: float) -> Holds:
        return below(*_ends(row, name), bound)

    at_asked = every([over("lift", 1.0), tested(over("grounding", 0.0), row["grounding_q"], alpha)])
    sees = every([at_asked, tested(over("auc", 0.5), row["q"], alpha), over("relative_inside", 0.0)])
    avoids = every([under("lift", 1.0), tested(under("auc", 0.5), row["q"], alpha), under("relative_inside", 0.0)])
    return {
        "looks_at_objects": tested(over("objects_lift", 1.0), row["objects_q"], alpha),
        "looks_at_asked": at_asked,
        "detects": every([matters, sees, tested(over("cost_gap", 0.0), row["gap_q"], alpha)]),
        "suppresses": every([matters, avoids, under("cost_asked", 0.0)]),
        "parks": every([matters, over("outlier", majority), over("cost_outliers", 0.0)]),
    }


def _ends(row: Mapping[str, float], name: str) -> tuple[float, float]:
    return row[f"{name}_low"], row[f"{name}_high"]


def _label(claims: Mapping[str, Holds], significant: bool | None) -> str:
    if significant is False:
        return NONE
    for name, label in NAMED.items():
        if claims[name]:
            return label
    return UNDECIDED if any(claims[name] is None for name in NAMED) else NONE


def _lacks(row: Mapping[str, float]) -> str:
    lacking = (math.isnan(row["lift"]), math.isnan(row["grounding"]), math.isnan(row["cost_gap"]))
    return next((name for name, lacks in zip(LACKS, lacking, strict=True) if lacks), "")


# --- tables -----------------------------------------------------------------------------------------


def _grids(table: pd.DataFrame, measures: tuple[str, ...]) -> dict[str, Grid]:
    grids: dict[str, Grid] = {}
    there = table.reindex(columns=[*table.columns, *(name for name in measures if name not in table)])
    for (kind, task, example), rows in there.groupby(["kind", "task", "example"], observed=True, sort=True):
        cells = list(rows[["layer", "head"]].itertuples(index=False, name=None))
        values = rows[list(measures)].to_numpy(np.float64)
        grids.setdefault(str(kind), Grid(*measures)).add(f"{task} {example}", cells, values)
    return grids


def _wide(causes: pd.DataFrame) -> pd.DataFrame:
    """A column of cost for each intervention."""
    named = causes.assign(name=causes["intervention"].map(cost_column))
    about = ["kind", "task", "example", "layer", "head"]
    return named.pivot(index=about, columns="name", values="cost").reset_index()


def _ways(*tables: pd.DataFrame | None) -> dict[str, tuple[str, ...]]:
    """Of each example by its name, the values of what clusters it."""
    found: dict[str, tuple[str, ...]] = {}
    for table in tables:
        if table is None or table.empty:
            continue
        columns = [name for name in CLUSTERS if name in table]
        each = table.drop_duplicates(["task", "example"])
        for task, example, *values in each[["task", "example", *columns]].itertuples(index=False, name=None):
            found.setdefault(f"{task} {example}", tuple(map(str, values)))
    return found
