"""The threshold of the released NOTICE code, to compare with its figures.

What its notebook of circuits does (github.com/wrudman/NOTICE, `BLIP/circuit_analysis.ipynb`), written anew: the size
of a head is the mean over examples of ``|P_patched(r)|``, the probability of the right answer after patching. That is
neither an effect nor the restoration ``P_patched(r) - P_corrupt(r)``: a head that changes nothing has the size
``P_corrupt(r)``. What was not measured, or is not finite, counts as 0; a head is selected if its size is *at least* the
mean plus two *population* SD of that number over all heads, so that of heads that are all alike each is selected.

`universal_heads.select` takes it in place of the paper's rule where it is given `p_patched`. Costs two means. Knows no
model and no files.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

RULE: Final = "the released code's rule"


class Thresholded(NamedTuple):
    """What the threshold gives: `size` and `selected` are of each head."""

    size: Float[np.ndarray, "head"]
    threshold: float
    selected: Bool[np.ndarray, "head"]


def thresholded(p_patched: Float[np.ndarray, "example head"], sds: float = 2.0) -> Thresholded:
    """The heads that the released code selects in one task, under one corruption.

    Args:
        p_patched: probability of the right answer with each head patched, [example head]; what is not finite counts as
            0.
        sds: population standard deviations above the mean.

    Returns:
        The mean of |p_patched| over examples, [head]; the threshold; and which heads reach it, [head]. Without examples
        all of it is NaN, and none does.

    Example:
        >>> thresholded(np.array([[0.1, 0.1, 0.1, 0.1, 0.6]])).selected.tolist()
        [False, False, False, False, True]
    """
    if not p_patched.size:
        heads = p_patched.shape[1]
        return Thresholded(np.full(heads, np.nan), float("nan"), np.zeros(heads, bool))
    sizes = np.abs(np.nan_to_num(p_patched.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)).mean(0)
    threshold = float(sds * sizes.std() + sizes.mean())
    return Thresholded(sizes, threshold, sizes >= threshold)
