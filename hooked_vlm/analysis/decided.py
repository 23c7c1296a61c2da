"""Claims with three values: one that an interval carries holds, one that it contradicts does not, else it is undecided.

Undecided is not refuted. Costs nothing; knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

Holds = bool | None  # None: the data cannot tell


def above(low: float | None, high: float | None, bound: float) -> Holds:
    """Whether a number lies above a bound, by its interval; None where the interval holds the bound, or is none.

    >>> above(0.2, 0.5, 0.0), above(-0.5, -0.2, 0.0), above(-0.1, 0.4, 0.0), above(float("nan"), 1.0, 0.0)
    (True, False, None, None)
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high) or low <= bound <= high:
        return None
    return low > bound


def below(low: float, high: float, bound: float) -> Holds:
    """Whether a number lies below a bound, by its interval.

    >>> below(0.2, 0.5, 1.0), below(1.2, 1.5, 1.0), below(0.5, 1.5, 1.0)
    (True, False, None)
    """
    return above(-high, -low, -bound)


def every(parts: Iterable[Holds]) -> Holds:
    """Whether all of some claims hold: not if one of them does not, and undecided if one of them is.

    >>> every([True, None]), every([True, None, False]), every([True, True]), every([])
    (None, False, True, None)
    """
    known = list(parts)
    if False in known:
        return False
    return None if None in known or not known else True


def tested(holds: Holds, q: float, alpha: float) -> Holds:
    """A claim that a test must grant as well: what holds by its interval alone is undecided.

    >>> tested(True, 0.01, 0.05), tested(True, 0.2, 0.05), tested(False, 0.2, 0.05)
    (True, None, False)
    """
    return None if holds and not q <= alpha else holds
