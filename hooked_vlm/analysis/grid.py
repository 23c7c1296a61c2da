"""What was measured once in each example, kept one example at a time: every value, or the moments alone.

Cost: 4 bytes a value, or 32 a cell however many examples there are. Knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float


class Grid:
    """What was measured once in each example: a row for each example, a column for each cell (a head, say).

    It is filled one file at a time, and takes 4 bytes a number: 1,000 examples of 144 heads are 0.6 MB a measure.

    Args:
        measures: their names.
    """

    def __init__(self, *measures: str) -> None:
        self.measures = measures
        self.examples: list[str] = []
        self._columns: dict[Any, int] = {}
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, example: str, cells: Sequence[Any], values: Float[np.ndarray, "cell measure"]) -> None:
        """One example's values; cells that it does not name stay NaN."""
        places = np.fromiter((self._columns.setdefault(cell, len(self._columns)) for cell in cells), np.int32)
        if self._rows and np.array_equal(self._rows[-1][0], places):
            places = self._rows[-1][0]  # files of one run have the same cells: keep them once
        self.examples.append(example)
        self._rows.append((places, values.astype(np.float32)))

    @property
    def cells(self) -> list[Any]:
        """The cells, sorted."""
        return sorted(self._columns)

    def matrix(self, measure: str, cells: Sequence[Any] | None = None) -> Float[np.ndarray, "example cell"]:
        """One measure, NaN where an example has no such cell or its value is not finite.

        Args:
            measure: which.
            cells: which columns, in order; None for `cells`.
        """
        filled = np.full((len(self._rows), len(self._columns) + 1), np.nan)
        at = self.measures.index(measure)
        for row, (places, values) in zip(filled, self._rows, strict=True):
            row[places] = values[:, at]
        missing = len(self._columns)  # a column that nobody fills
        chosen = filled[:, [self._columns.get(cell, missing) for cell in (self.cells if cells is None else cells)]]
        return np.where(np.isfinite(chosen), chosen, np.nan)

    def rows(self, which: Sequence[int] | np.ndarray) -> Grid:
        """The same with some of the examples alone."""
        chosen = Grid(*self.measures)
        chosen.examples = [self.examples[i] for i in which]
        chosen._columns, chosen._rows = self._columns, [self._rows[i] for i in which]
        return chosen


class Moments:
    """What `Grid` takes, added up: the mean of each cell over examples, in memory that does not grow with them."""

    def __init__(self) -> None:
        self._columns: dict[Any, int] = {}
        self._sums = np.zeros((0, 4))  # of each cell: how many, their sum, that of their squares, of their sizes

    def add(self, example: str, cells: Sequence[Any], values: Float[np.ndarray, "cell 1"]) -> None:
        """One example's values; those that are not finite do not count."""
        places = np.fromiter((self._columns.setdefault(cell, len(self._columns)) for cell in cells), np.int64)
        grown = np.zeros((len(self._columns), 4))
        grown[: len(self._sums)] = self._sums
        value, known = np.nan_to_num(values[:, 0], posinf=0.0, neginf=0.0), np.isfinite(values[:, 0])
        grown[places] += np.stack([known, value * known, (value * known) ** 2, np.abs(value * known)], 1)
        self._sums = grown

    def table(self) -> pd.DataFrame:
        """A row a cell: cell, n, mean, sd (of the sample), mean_abs."""
        n, total, squares, sizes = self._sums.T
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / n
            sd = np.sqrt(np.maximum(squares - n * mean**2, 0.0) / (n - 1))
            return pd.DataFrame({"cell": list(self._columns), "n": n, "mean": mean, "sd": sd, "mean_abs": sizes / n})
