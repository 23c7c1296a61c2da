"""Where heads are strong: at the tokens where a run reads them, and elsewhere.

A run selects heads by their effect at one kind of token. A head that does nothing there may carry the answer from other
words, so wherever a head's effect is told, the place is told too, and where it is stronger. Costs nothing; knows no
model and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import pandas as pd

from hooked_vlm.analysis import statistics
from hooked_vlm.analysis.heads import HEAD
from hooked_vlm.notice.run_tables import RunTables
from hooked_vlm.notice.schema import HeadEffect, Strongest, known
from hooked_vlm.notice.vocabulary import CORRUPT

KEY: Final = ["corrupt", "task", *HEAD]
STRONG: Final = 0.5  # of the largest mean |effect| of any head anywhere: a head of so much is strong
TIMES: Final = 2.0  # how many times its size where it is read makes a head stronger elsewhere


def best_places(data: RunTables) -> pd.DataFrame:
    """For each head, corruption and task, the role at which patching it moves the answer most.

    Returns:
        Columns corrupt, task, kind, layer, head, at (where the run reads heads), best_at, best (mean effect there),
        best_low, best_high (Student's interval), best_abs (mean |effect| there), here_abs (that at `at`) and elsewhere:
        true where a head is strong, and at least twice as strong at `best_at` as at `at`.
    """
    tables = [_of_family(*key, data) for key in sorted(data.places)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*KEY, "at", "elsewhere"])


def _of_family(corrupt: str, kind: str, task: str, data: RunTables) -> pd.DataFrame:
    table = data.places[corrupt, kind, task].table()
    table = table[table["n"] > 0]
    cells = pd.DataFrame(
        [(layer, head, role) for layer, (head, role) in table["cell"]], columns=["layer", "head", "best_at"]
    )
    low, high = statistics.of_moments(*(table[name].to_numpy() for name in ("n", "mean", "sd")))
    table = cells.assign(best=table["mean"].to_numpy(), best_low=low, best_high=high, best_abs=table["mean_abs"].array)
    here = table[table["best_at"] == data.at].set_index(["layer", "head"])["best_abs"]
    at_their_best = table.groupby(["layer", "head"])["best_abs"].idxmax()
    best = table.loc[at_their_best].assign(corrupt=corrupt, kind=kind, task=task, at=data.at)
    best["here_abs"] = here.reindex(pd.MultiIndex.from_frame(best[["layer", "head"]])).to_numpy()
    strong = best["best_abs"] >= STRONG * table["best_abs"].max()
    weaker_here = TIMES * best["here_abs"].fillna(0.0) <= best["best_abs"]
    return best.assign(elsewhere=(best["best_at"] != data.at) & strong & weaker_here & (best["best_abs"] > 0))


def strongest(heads: Iterable[HeadEffect]) -> list[Strongest]:
    """The strongest head of each task and corruption where heads are read, and one a kind that does more elsewhere.

    Args:
        heads: the summary's records of heads, with `best_places`' columns.

    Returns:
        Records: corrupt, task, kind, layer, head, role, mean, mean_low, mean_high, mean_abs at that role, at (where
        heads are read) and here (the mean effect there). Those with role other than at do more elsewhere.
    """
    found: list[Strongest] = []
    rows = [row for row in heads if row["corrupt"] in CORRUPT and known(row["mean_abs"])]
    for corrupt in CORRUPT:
        for task in dict.fromkeys(row["task"] for row in rows):
            mine = [row for row in rows if (row["corrupt"], row["task"]) == (corrupt, task)]
            if not mine:
                continue
            best = max(mine, key=lambda row: row["mean_abs"] or 0.0)
            found.append(_at(best, "at", "mean", "ci_low", "ci_high", "mean_abs"))
            more = [row for row in stronger_elsewhere(mine) if (row["best_abs"] or 0.0) > (best["mean_abs"] or 0.0)]
            found += [at_its_best(row) for row in {row["kind"]: row for row in reversed(more)}.values()]
    return found


def stronger_elsewhere(heads: Iterable[HeadEffect]) -> list[HeadEffect]:
    """Of some heads those that are strong, and not where they are read; the strongest first."""
    found = [row for row in heads if known(row.get("best_abs")) and row["elsewhere"]]
    return sorted(found, key=lambda row: -(row["best_abs"] or 0.0))


def at_its_best(row: HeadEffect) -> Strongest:
    """A head's effect at the role where it is strongest, for a row that says where that is."""
    return _at(row, "best_at", "best", "best_low", "best_high", "best_abs")


def _at(row: Mapping[str, Any], role: str, *numbers: str) -> Strongest:
    ends = zip(("mean", "mean_low", "mean_high", "mean_abs"), numbers, strict=True)
    about = {**{name: row[name] for name in (*KEY, "at")}, "here": row["mean"], "role": row[role]}
    return cast(Strongest, about | {name: row[column] for name, column in ends})
