"""What was measured once in each example, gathered into matrices: the way from parquet files to statistics.

A grid has a row for each example and a column for each cell (a head, say); it is filled one file at a time. Cost: 4
bytes a number, so that 1,000 examples of 144 heads take 0.6 MB a measure. Knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Cell = Hashable


class Grid:
    """Measures of cells over examples.

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
