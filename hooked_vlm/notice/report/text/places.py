"""Sentences on where heads are strong: a head's effect is told with its place, and with where it is stronger."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hooked_vlm.analysis.heads import head_name
from hooked_vlm.notice.places import at_its_best
from hooked_vlm.notice.report.text.words import at_place, listed, two, with_interval
from hooked_vlm.notice.schema import HeadEffect, Strongest

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


def _by_head(records: Iterable[Strongest]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in records:
        found.setdefault(_name(record), []).append(f"{record['task']} ({effect(record)})")
    return found


def _name(record: Strongest) -> str:
    return head_name(record["kind"], record["layer"], record["head"])
