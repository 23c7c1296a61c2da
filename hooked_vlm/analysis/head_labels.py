"""What each head does, in a word: from its attention scores over examples to a label with its score and interval.

Cost: a few resamples of a matrix [example head] for each score. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from hooked_vlm.analysis import statistics
from hooked_vlm.analysis.grid import Grid
from hooked_vlm.analysis.heads import Head
from hooked_vlm.analysis.image_attention import SCORES

SHARES = frozenset({"inside", "auc", "pointing", "outlier"})  # scores between 0 and 1 that are means of one an example
MAJORITY = 0.5  # of a head's attention to the image, for a label by its outliers
OBJECT, SUPPRESSION, OUTLIER, NONE = "object detection", "object suppression", "outlier suppression", "none"


def labels(
    scores: pd.DataFrame,
    *,
    significant: Iterable[Head] | None = None,
    majority: float = MAJORITY,
    times: int = statistics.BOOTSTRAP,
    seed: int = 0,
    alpha: float = statistics.ALPHA,
    level: float = statistics.LEVEL,
) -> pd.DataFrame:
    """What each head does, from its scores over examples: a label with its score and interval.

    In this order, intervals being percentile bootstrap over examples:

    - "outlier suppression": `outlier` lies above `majority`: most of the head's attention to the image rests on
      high-norm background patches and the class token;
    - "object detection": `lift` lies above 1, `auc` above 0.5 and `relative_inside` above 0: the object gets more
      than even attention, and more than from the average head (a head is read less the mean, as in the paper);
    - "object suppression": the reverse, `lift` below 1, `auc` below 0.5 and `relative_inside` below 0;
    - "none": anything else.

    The object labels also need ``q <= alpha``: sign flips of ``auc - 0.5`` over examples, Benjamini-Hochberg over the
    heads of the kind. All but "none" need a head whose patching has a significant effect, if `significant` says
    which those are: attention that changes nothing suppresses nothing.

    Args:
        scores: rows of `score_example` or `score_batch` for several examples, with columns task and example.
        significant: (kind, layer, head) of those heads; None not to ask.
        majority: see above.
        times: resamples.
        seed: of the resamples.
        alpha: level of the tests.
        level: of the intervals.

    Returns:
        One row for each kind, layer, head: label, score, ci_low, ci_high (of the outlier share where that is the
        label or there are no masks, else of lift), scored ("lift" or "outlier"), n (examples), significant, q, and
        the mean of each of `SCORES`, with intervals as lift_low, lift_high and so on.
    """
    grids: dict[str, Grid] = {}
    for (kind, task, example), rows in scores.groupby(["kind", "task", "example"], observed=True, sort=True):
        cells = list(rows[["layer", "head"]].itertuples(index=False, name=None))
        grids.setdefault(str(kind), Grid(*SCORES)).add(f"{task} {example}", cells, rows[list(SCORES)].to_numpy())
    return labels_of(
        grids, significant=significant, majority=majority, times=times, seed=seed, alpha=alpha, level=level
    )


def labels_of(
    grids: Mapping[str, Grid],
    *,
    significant: Iterable[Head] | None = None,
    majority: float = MAJORITY,
    times: int = statistics.BOOTSTRAP,
    seed: int = 0,
    alpha: float = statistics.ALPHA,
    level: float = statistics.LEVEL,
) -> pd.DataFrame:
    """`labels` of grids: for each kind `SCORES` of the cells (layer, head)."""
    allowed = None if significant is None else {tuple(each) for each in significant}
    records = []
    for kind, grid in sorted(grids.items()):
        heads = grid.cells
        made: dict[str, Any] = {}
        for name in SCORES:
            values = grid.matrix(name)
            interval = statistics.of_scores if name in SHARES else statistics.bootstrap
            low, high = interval(values, times=times, seed=(seed, 4), level=level)
            made |= {name: statistics.means(values), f"{name}_low": low, f"{name}_high": high}
        auc = grid.matrix("auc")
        flips = statistics.flips_needed(len(heads), alpha)
        made["q"] = statistics.benjamini_hochberg(statistics.sign_flip(auc - 0.5, flips=flips, seed=(seed, 5)))
        n_masks, n_all = (~np.isnan(auc)).sum(0), len(auc)
        for i, (layer, head) in enumerate(heads):
            row = {key: float(values[i]) for key, values in made.items()}
            is_significant = None if allowed is None else (kind, layer, head) in allowed
            label = _label(row, majority, alpha) if is_significant in (None, True) else NONE
            scored = "outlier" if label == OUTLIER or not n_masks[i] else "lift"
            about = {"kind": kind, "layer": int(layer), "head": int(head), "label": label, "score": row[scored]}
            ends = {"ci_low": row[f"{scored}_low"], "ci_high": row[f"{scored}_high"], "scored": scored}
            n = int(n_masks[i]) if scored == "lift" else n_all
            records.append({**about, **ends, "n": n, "significant": is_significant, **row})
    return pd.DataFrame(records)


def _label(row: dict[str, float], majority: float, alpha: float) -> str:
    if row["outlier_low"] > majority:
        return OUTLIER
    if row["q"] <= alpha and _low(row, "lift") > 1 and row["auc_low"] > 0.5 and _low(row, "relative_inside") > 0:
        return OBJECT
    if row["q"] <= alpha and _high(row, "lift") < 1 and row["auc_high"] < 0.5 and _high(row, "relative_inside") < 0:
        return SUPPRESSION
    return NONE


def _low(row: dict[str, float], score: str) -> float:
    """The lower end of a score's interval; the score itself where examples are all alike and `q` alone has a say."""
    return row[score] if math.isnan(row[f"{score}_low"]) else row[f"{score}_low"]


def _high(row: dict[str, float], score: str) -> float:
    return row[score] if math.isnan(row[f"{score}_high"]) else row[f"{score}_high"]
