"""Sentences on where heads are strong: a head's effect is told with its place, and with where it is stronger."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hooked_vlm.analysis.heads import head_name
from hooked_vlm.notice.places import at_its_best
from hooked_vlm.notice.report.text.words import at_place, estimate, listed, two, with_interval
from hooked_vlm.notice.schema import ByAnswer, HeadEffect, Localised, Strongest

MOST: Final = 4  # places of heads that one sentence names
CORRUPTED: Final = {"image": "image swapped", "text": "word replaced"}


def effect(record: Strongest) -> str:
    r"""A record's effect with its interval; its size as well, where signs cancel.

    >>> effect({"mean": 5.78, "mean_low": 4.33, "mean_high": 7.22, "mean_abs": 5.9}).replace("\N{NO-BREAK SPACE}", " ")
    '5.78 [4.33, 7.22]'
    """
    signed = with_interval(record, "mean", two)
    mean, size = record["mean"] or 0.0, record["mean_abs"] or 0.0
    return signed if 2 * abs(mean) >= size else f"{signed}, |effect| {two(record['mean_abs'])}"


def there(row: HeadEffect) -> str:
    """Where a head is stronger than where it is read, and how strong: for a row of heads that has `elsewhere`."""
    return f"{effect(at_its_best(row))} {at_place(row['best_at'])}"


def told(records: Iterable[Strongest], corrupt: str) -> list[str]:
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


def localised(rows: Iterable[Localised]) -> list[str]:
    """Where the strongest selected heads do most, one position at a time: a sentence for each corruption."""
    said = []
    for corrupt, with_it in CORRUPTED.items():
        best: dict[tuple[str, str], Localised] = {}
        for row in rows:
            if row["corrupt"] == corrupt and row["acts"]:
                key = (head_name(row["kind"], row["layer"], row["head"]), row["task"])
                best[key] = max(best.get(key, row), row, key=lambda one: abs(one["mean"] or 0.0))
        ordered = sorted(best.items(), key=lambda one: -abs(one[1]["mean"] or 0.0))[:MOST]
        parts: dict[str, list[str]] = {}
        for (head, task), row in ordered:
            parts.setdefault(head, []).append(f"{at_place(row['role'])} in {task} ({two(row['mean'])})")
        if parts:
            told = listed(f"{head} {listed(places)}" for head, places in parts.items())
            said.append(f"With the {with_it}, one position at a time, selected heads do most so: {told}.")
    return said


def for_one_answer(rows: Iterable[ByAnswer]) -> list[str]:
    """Heads that act for one answer alone, in one sentence."""
    found = []
    for row in rows:
        if row["alone"]:
            head = head_name(row["kind"], row["layer"], row["head"])
            own = estimate(row["mean"], row["ci_low"], row["ci_high"], two)
            others = f"for other answers {two(row['rest'])}"
            found.append(f"{head} for “{row['answer']}” in {row['task']} ({row['corrupt']}: {own}, {others})")
    return [f"Acting for one answer alone: {listed(found)}."] if found else []


def _by_head(records: Iterable[Strongest]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in records:
        found.setdefault(_name(record), []).append(f"{record['task']} ({effect(record)})")
    return found


def _name(record: Strongest) -> str:
    return head_name(record["kind"], record["layer"], record["head"])
