"""A claim about a run and the verdict on it: decided once, from numbers, and told alike wherever it is told.

A verdict has three values. A claim *holds* where an interval, or a test, lies on its side; it *does not hold* where the
interval lies on the other; else it is *undecided*, which is not the same as refuted. `findings` makes the verdicts of a
run, summary.json keeps them, and the report's first screen, its list, the terminal, a notebook and the comparison of
runs take word and sentence from them. Knows no model and no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from hooked_vlm.analysis import statistics
from hooked_vlm.notice.vocabulary import CORRUPT, listed
from hooked_vlm.notice.wording import known

Holds = bool | None  # None: the run cannot tell

WORD: Final = {True: "holds", False: "does not hold", None: "undecided"}


@dataclass(frozen=True)
class Verdict:
    """A claim, whether it holds, and what that rests on.

    Args:
        about: what kind of claim it is: "concentration", "detection", "universal", "harm" or "noise".
        claim: the claim, as a sentence without a full stop.
        holds: whether it does; None where the run cannot tell.
        told: the verdict in a sentence or two, for a reader who sees nothing else; "" for none.
        evidence: its numbers, in a sentence.
        subject: what it is about, where there are several of a kind: the set of heads that was ablated.
        parts: whether it holds in each task, where it was decided task by task.
    """

    about: str
    claim: str
    holds: Holds
    told: str
    evidence: str
    subject: str = ""
    parts: dict[str, Holds] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """The verdict in a word or three: "holds", "does not hold", "undecided"."""
        return WORD[self.holds]

    def to_record(self) -> dict[str, Any]:
        """As plain values for summary.json."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Verdict:
        """From what `to_record` gave; a summary of an earlier version lacks some of it."""
        known = {one.name: record[one.name] for one in fields(cls) if record.get(one.name) is not None}
        return cls(**({"about": "", "claim": "", "holds": None, "told": "", "evidence": ""} | known))


def fewest(row: Mapping[str, Any]) -> int:
    """Of a task's kept examples those under the corruption that fewest have, of those that any has.

    Args:
        row: of the summary's counts.

    >>> fewest({"kept": 50, "kept_image": 50, "kept_text": 38}), fewest({"kept": 50, "kept_image": 50, "kept_text": 0})
    (38, 50)
    """
    counts = [int(row[f"kept_{name}"]) for name in CORRUPT if known(row.get(f"kept_{name}"))]
    return min(filter(None, counts), default=int(row["kept"]))


def verdicts_of(summary: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts that a summary keeps."""
    return [Verdict.from_record(record) for record in summary.get("findings") or []]


def headlines(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts that are told to a reader who sees nothing else: of each kind, the first that has a sentence.

    Of ablations that is the first set in `selections.order`, whatever it shows.
    """
    first: dict[str, Verdict] = {}
    for verdict in verdicts:
        if verdict.told:
            first.setdefault(verdict.about, verdict)
    return [first[about] for about in ("universal", "harm", "noise") if about in first]


# --- deciding ---------------------------------------------------------------------------------------


def above(low: float, high: float, bound: float) -> Holds:
    """Whether a number lies above a bound, by its interval; None where the interval holds the bound, or is none.

    >>> above(0.2, 0.5, 0.0), above(-0.5, -0.2, 0.0), above(-0.1, 0.4, 0.0), above(float("nan"), 1.0, 0.0)
    (True, False, None, None)
    """
    if math.isnan(low) or math.isnan(high) or low <= bound <= high:
        return None
    return low > bound


def every(parts: Iterable[Holds]) -> Holds:
    """Whether all of some claims hold: not if one of them does not, and undecided if one of them is.

    >>> every([True, None]), every([True, None, False]), every([True, True]), every([])
    (None, False, True, None)
    """
    known = list(parts)
    if False in known:
        return False
    return None if None in known or not known else True


def smallest_p(draws: int) -> float:
    """The smallest p-value that comparing one set of heads with so many random sets can give.

    >>> smallest_p(3)
    0.25
    """
    return 1 / (1 + draws)


def hurts_more(low: float, high: float, p: float, draws: int, alpha: float = statistics.ALPHA) -> Holds:
    """Whether ablating a set of heads hurts more than ablating random sets of as many.

    Undecided where there are too few random sets for a p-value that could tell, whatever the examples say: what the
    examples can tell is how these sets compare, not whether others would be as bad.

    Args:
        low: of the interval over examples of the harm: the mean logit difference under random sets less that under
            the set.
        high: its upper end.
        p: the share of sets, the chosen one among them, that hurt as much.
        draws: how many random sets.
        alpha: the level.
    """
    if smallest_p(draws) > alpha:
        return None
    more = above(low, high, 0.0)
    return None if more and p > alpha else more


# --- telling ----------------------------------------------------------------------------------------


def by_task(parts: Mapping[str, Holds]) -> str:
    """Where tasks differ, which says what: " (it does in colour; not in place; undecided in shape)".

    >>> by_task({"colour": True, "place": True}), by_task({"colour": True, "place": None})
    ('', ' (it does in colour; undecided in place)')
    """
    if len(set(parts.values())) < 2:
        return ""
    words: dict[Holds, str] = {True: "it does", False: "not", None: "undecided"}
    groups = {word: [task for task, holds in parts.items() if holds is value] for value, word in words.items()}
    return f" ({'; '.join(f'{word} in {listed(tasks)}' for word, tasks in groups.items() if tasks)})"


def told(holds: Holds, *, yes: str, no: str, whether: str) -> str:
    """The sentence that a verdict gets, without its full stop.

    Args:
        holds: the verdict.
        yes: the claim.
        no: the claim denied.
        whether: the claim after "It is undecided whether".
    """
    return {True: yes, False: no, None: f"It is undecided whether {whether}"}[holds]
