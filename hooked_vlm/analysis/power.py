"""How likely a run finds a head that matters, and how many examples it would take.

A head whose effect varies over examples by `cv` (SD / |mean|; cluster-robust: standard error * sqrt(n) / |mean|) has
``t ~ noncentral t(n - 1, sqrt(n) / cv)`` in each task, where tasks have examples of their own. The FDR-controlled
rule asks each of them for ``p <= alpha / rivals``, where rivals are the heads that could be taken for universal
(`universal_heads.partial_conjunction`), the head itself among them.

What is told is the power for such a head, not for the one that was found: the power of a test at the very effect it
observed says nothing that its p-value does not (Hoenig & Heisey 2001).

Source: the power of Student's test, Johnson & Welch (1940).
"""

from __future__ import annotations

import math

from scipy import stats

from hooked_vlm.analysis.statistics import ALPHA


def power(cv: float, n: int, *, tasks: int = 1, rivals: int = 1, alpha: float = ALPHA) -> float:
    """The probability that a head is found in every task.

    >>> round(power(2.0, 50, tasks=3, rivals=3), 2), round(power(2.0, 100, tasks=3, rivals=3), 2)
    (0.61, 0.98)

    Args:
        cv: SD of its effect over examples by the size of its mean, the same in each task.
        n: examples a task.
        tasks: in all of which it has to be found.
        rivals: heads that could be taken for universal.
        alpha: level of the rule.
    """
    if n < 2 or not math.isfinite(cv):
        return 0.0
    if cv == 0:
        return 1.0
    bound = stats.t.isf(alpha / (2 * max(rivals, 1)), n - 1)
    shift = math.sqrt(n) / cv
    once = float(stats.nct.sf(bound, n - 1, shift) + stats.nct.cdf(-bound, n - 1, shift))
    if math.isnan(once):  # far from the bound the noncentral t has no value here, and the normal is as good
        once = float(stats.norm.sf(bound - shift))
    return once**tasks


def examples_needed(
    cv: float, *, tasks: int = 1, rivals: int = 1, alpha: float = ALPHA, at_least: float = 0.8, most: int = 100_000
) -> int | None:
    """The fewest examples a task with which a head is found in every task with probability `at_least`.

    >>> examples_needed(2.0, tasks=3, rivals=3)
    63

    Args:
        cv: as `power` takes it.
        tasks: in all of which it has to be found.
        rivals: heads that could be taken for universal.
        alpha: level of the rule.
        at_least: the probability.
        most: examples at which to give up.

    Returns:
        The number; None if it is more than `most`.
    """
    low, high = 2, 2
    while power(cv, high, tasks=tasks, rivals=rivals, alpha=alpha) < at_least:
        low, high = high, 2 * high
        if low > most or not math.isfinite(cv):
            return None
    while low < high:
        middle = (low + high) // 2
        if power(cv, middle, tasks=tasks, rivals=rivals, alpha=alpha) < at_least:
            low = middle + 1
        else:
            high = middle
    return high if high <= most else None
