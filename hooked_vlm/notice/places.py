"""Where heads are strong: at the tokens where a run reads them, and elsewhere.

A run selects heads by their effect at one kind of token. A head that does nothing there may carry the answer from other
words, so wherever a head's effect is told, the place is told too, and where it is stronger. Costs nothing; knows no
model and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import pandas as pd

from hooked_vlm.analysis import statistics
from hooked_vlm.analysis.heads import HEAD, head_name
from hooked_vlm.notice.run_tables import RunTables
from hooked_vlm.notice.vocabulary import CORRUPT, at_place, listed
from hooked_vlm.notice.wording import known, two, with_interval

KEY: Final = ["corrupt", "task", *HEAD]
STRONG: Final = 0.5  # of the largest mean |effect| of any head anywhere: a head of so much is strong
TIMES: Final = 2.0  # how many times its size where it is read makes a head stronger elsewhere
CORRUPTED: Final = {"image": "image swapped", "text": "word replaced"}


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


def strongest(heads: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The strongest head of each task and corruption where heads are read, and one a kind that does more elsewhere.

    Args:
        heads: the summary's records of heads, with `best_places`' columns.

    Returns:
        Records: corrupt, task, kind, layer, head, role, mean, mean_low, mean_high, mean_abs at that role, at (where
        heads are read) and here (the mean effect there). Those with role other than at do more elsewhere.
    """
    found = []
    rows = [row for row in heads if row["corrupt"] in CORRUPT and known(row["mean_abs"])]
    for corrupt in CORRUPT:
        for task in dict.fromkeys(row["task"] for row in rows):
            mine = [row for row in rows if (row["corrupt"], row["task"]) == (corrupt, task)]
            if not mine:
                continue
            best = max(mine, key=lambda row: row["mean_abs"])
            ends = {"mean": best["mean"], "mean_low": best["ci_low"], "mean_high": best["ci_high"]}
            found.append(_about(best) | ends | {"role": best["at"], "mean_abs": best["mean_abs"]})
            more = [row for row in stronger_elsewhere(mine) if row["best_abs"] > best["mean_abs"]]
            found += [_elsewhere(row) for row in {row["kind"]: row for row in reversed(more)}.values()]
    return found


def stronger_elsewhere(heads: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of some heads those that are strong, and not where they are read; the strongest first."""
    found = [row for row in heads if known(row.get("best_abs")) and row["elsewhere"]]
    return sorted(found, key=lambda row: -row["best_abs"])


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in (*KEY, "at")} | {"here": row["mean"]}


def _elsewhere(row: Mapping[str, Any]) -> dict[str, Any]:
    return _about(row) | _at_its_best(row) | {"role": row["best_at"]}


def _at_its_best(row: Mapping[str, Any]) -> dict[str, Any]:
    names = {"mean": "best", "mean_low": "best_low", "mean_high": "best_high", "mean_abs": "best_abs"}
    return {name: row[column] for name, column in names.items()}


# --- telling ----------------------------------------------------------------------------------------


def effect(record: Mapping[str, Any]) -> str:
    r"""A record's effect with its interval; its size as well, where signs cancel.

    >>> effect({"mean": 5.78, "mean_low": 4.33, "mean_high": 7.22, "mean_abs": 5.9}).replace("\N{NO-BREAK SPACE}", " ")
    '5.78 [4.33, 7.22]'
    """
    signed = with_interval(record, "mean", two)
    return signed if 2 * abs(record["mean"]) >= record["mean_abs"] else f"{signed}, |effect| {two(record['mean_abs'])}"


def there(row: Mapping[str, Any]) -> str:
    """Where a head is stronger than where it is read, and how strong: for a row of heads that has `elsewhere`."""
    return f"{effect(_at_its_best(row))} {at_place(row['best_at'])}"


def told(records: Iterable[Mapping[str, Any]], corrupt: str) -> list[str]:
    """The strongest heads under one corruption, where they were read, and the stronger ones elsewhere: sentences.

    Args:
        records: from `strongest`.
        corrupt: which corruption.
    """
    mine = [record for record in records if record["corrupt"] == corrupt]
    here = [record for record in mine if record["role"] == record["at"]]
    if not here:
        return []
    names = listed(f"{head} in {listed(tasks)}" for head, tasks in _by_head(here).items())
    said = [f"With the {CORRUPTED[corrupt]}, the strongest single head {at_place(here[0]['at'])} is {names}."]
    for role in dict.fromkeys(record["role"] for record in mine if record["role"] != record["at"]):
        there = [record for record in mine if record["role"] == role]
        place = at_place(there[0]["at"])
        more = [f"{_name(one)} in {one['task']} ({effect(one)}; {two(one['here'])} {place})" for one in there]
        said.append(f"A{at_place(role)[1:]}, more is done by {listed(more)}.")
    return said


def _by_head(records: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in records:
        found.setdefault(_name(record), []).append(f"{record['task']} ({effect(record)})")
    return found


def _name(record: Mapping[str, Any]) -> str:
    return head_name(record["kind"], record["layer"], record["head"])
