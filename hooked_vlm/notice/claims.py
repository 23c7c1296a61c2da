"""A claim about a run and the verdict on it: decided once, from numbers, and kept with them.

A verdict has three values. A claim *holds* where an interval, or a test, lies on its side; it *does not hold* where the
interval lies on the other; else it is *undecided*, which is not the same as refuted. `findings` makes the verdicts of a
run, summary.json keeps them, and `report.text.verdicts` makes the words that the report's first screen, its list, the
terminal, a notebook and the comparison of runs give of each.

A new kind of claim is an evidence here, a function in `findings`, and one in `report.text.verdicts`. Knows no model and
no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field

from hooked_vlm.analysis import statistics
from hooked_vlm.analysis.decided import Holds, above
from hooked_vlm.analysis.heads import Head
from hooked_vlm.notice.schema import Ablation, Counts, Function, Noise, Number, Power, Selection, Universal


@dataclass(frozen=True)
class Estimate:
    """A mean over examples with its interval."""

    mean: Number
    low: Number
    high: Number
    n: int


@dataclass(frozen=True)
class Concentrated:
    """Whether |effect| under image corruption is larger at the tokens that should carry it.

    Args:
        kind: of heads.
        expected: roles of those tokens.
        here: |effect| of a head at one of them.
        elsewhere: at any other.
        gap: the difference; None, as both, where the run patched no such tokens beside others.
        by_role: mean |effect|.
    """

    kind: str
    expected: list[str]
    here: Estimate | None = None
    elsewhere: Estimate | None = None
    gap: Estimate | None = None
    by_role: dict[str, float] = field(default_factory=dict)
    about: Literal["concentration"] = "concentration"


@dataclass(frozen=True)
class Detected:
    """Whether, in every task, some head looks at the object asked about, and not at its rival alike, and is needed so.

    Args:
        masked: whether any task has masks.
        rivals: whether any has masks of the rivals.
        heads: one row a task and head whose label rests on objects: it detects, or looks at objects.
        tested: of each task how many heads' attention was changed.
    """

    masked: bool
    rivals: bool = False
    heads: list[Function] = field(default_factory=list)
    tested: dict[str, int] = field(default_factory=dict)
    about: Literal["detection"] = "detection"


@dataclass(frozen=True)
class Selected:
    """Whether some heads matter in every task, by the FDR-controlled rule.

    Args:
        selected: by either rule.
        n_heads: that were patched.
        n_tasks: in which.
        at: the role of the tokens where they are read.
        few: tasks with too few examples for the rule to select any.
        fewest: how many it takes.
        patched: whether anything was patched.
        open: heads of which the run cannot tell.
        partly: heads that matter in some tasks, two at least, but not in all.
        power: what the run could find, for each corruption and kind of heads.
    """

    selected: list[Universal]
    n_heads: int
    n_tasks: int
    at: str
    few: list[str]
    fewest: int
    patched: bool
    open: list[Head] = field(default_factory=list)
    partly: list[Universal] = field(default_factory=list)
    power: list[Power] = field(default_factory=list)
    about: Literal["universal"] = "universal"


@dataclass(frozen=True)
class Harmed:
    """Whether ablating the verdict's subject, a set of heads, hurts more than ablating random sets of as many.

    Args:
        rows: one a task; none where no head is universal, which is a verdict without a subject.
        draws: random sets, in the task that has fewest.
        least_p: the smallest p that so few sets can give, where that is too large to tell.
        others: whether other sets were ablated.
    """

    rows: list[Ablation]
    draws: int = 0
    least_p: Number = None
    others: bool = False
    about: Literal["harm"] = "harm"


@dataclass(frozen=True)
class Alike:
    """Whether semantic pairs and Gaussian noise rank the heads alike.

    Args:
        rows: with a rank correlation; none without Gaussian noise.
        bound: the correlation above which they do.
        at: the role of the tokens where heads are read.
    """

    rows: list[Noise]
    bound: float
    at: str
    about: Literal["noise"] = "noise"


@dataclass(frozen=True)
class Earlier:
    """The sentences that a summary of version 1 keeps of a claim, in place of numbers.

    Args:
        of: what kind of claim it is.
        claim, told, evidence: sentences.
    """

    of: str = ""
    claim: str = ""
    told: str = ""
    evidence: str = ""
    about: Literal["earlier"] = "earlier"


Evidence = Annotated[Concentrated | Detected | Selected | Harmed | Alike | Earlier, Field(discriminator="about")]


@dataclass(frozen=True)
class Verdict:
    """A claim that a run was asked about, whether it holds, and the numbers that rest on; `report.text` words it.

    Args:
        evidence: its numbers; their type says what kind of claim it is.
        holds: whether it does; None where the run cannot tell.
        subject: what it is about, where there are several of a kind: a set of heads, or a kind of them.
        parts: whether it holds in each task, where it was decided task by task.
        p: two-sided, of the test that decided it; None where none did, or it has a correction of its own.
        p_adjusted: the same among all claims of the run, see `corrected`.
    """

    evidence: Evidence
    holds: Holds
    subject: Selection | str | None = None
    parts: dict[str, Holds] = field(default_factory=dict)
    p: Number = None
    p_adjusted: Number = None

    @property
    def about(self) -> str:
        """What kind of claim it is: "concentration", "detection", "universal", "harm" or "noise"."""
        return self.evidence.of if isinstance(self.evidence, Earlier) else self.evidence.about


def fewest(row: Counts) -> int:
    """Of a task's kept examples those under the corruption that fewest have, of those that any has.

    Args:
        row: of the summary's counts.

    >>> fewest({"kept": 50, "kept_image": 50, "kept_text": 38}), fewest({"kept": 50, "kept_image": 50, "kept_text": 0})
    (38, 50)
    """
    return min((n for n in (row.get("kept_image"), row.get("kept_text")) if n), default=row["kept"])


AGREE = 0.5  # rank correlation above which two maps are said to agree


# --- deciding ---------------------------------------------------------------------------------------


def smallest_p(draws: int) -> float:
    """The smallest p-value that comparing one set of heads with so many random sets can give.

    >>> smallest_p(3)
    0.25
    """
    return 1 / (1 + draws)


def of_parts(holds: Holds, parts: Mapping[str, Holds], p: Mapping[str, Number]) -> Number:
    """The p-value of a claim that was decided part by part.

    That all parts hold is as sure as the least sure one; that one does not, as the surest of those, among all parts.
    """
    known = {part: value for part, value in p.items() if value is not None and not math.isnan(value)}
    if holds is False:
        denied = [known[part] for part, each in parts.items() if each is False and part in known]
        return min(1.0, len(parts) * min(denied)) if denied else None
    return max(known.values()) if known and len(known) == len(parts) else None


def corrected(verdicts: Sequence[Verdict], alpha: float = statistics.ALPHA) -> list[Verdict]:
    """Verdicts of which a run's claims together are wrong with a chance of alpha at most (Holm 1979).

    A claim that was decided, and whose p-value among all of them is above alpha, is undecided.

    Args:
        verdicts: of one run; those without a p-value stay as they are.
        alpha: the level.
    """
    adjusted = statistics.holm([math.nan if one.p is None else one.p for one in verdicts])
    return [
        one if math.isnan(p) else replace(one, p_adjusted=p, holds=one.holds if p <= alpha else None)
        for one, p in zip(verdicts, adjusted.tolist(), strict=True)
    ]


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
