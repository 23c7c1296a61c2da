"""What is measured of a batch of examples before all of it is: kept on disk where a batch takes minutes.

A sweep of a large model takes minutes an example. Each kind of sites, some layers of it at a time, is written to
`parts/` when it is done, so that a process that is killed goes on inside the example; the files go when the batch is
written as a whole. Whether and when a part was kept changes no number: the same sites are swept together either way.

Costs a file for every `SECONDS` that a batch takes, at most. Knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hooked_vlm.notice.config import file_name
from hooked_vlm.notice.directory import PARTS, RunDirectory
from hooked_vlm.notice.storage import Packed, digest_of, packed

SECONDS = 20.0  # that are lost at most, beside the part in flight


@dataclass(frozen=True)
class Swept:
    """What a sweep of some sites gave.

    Args:
        effects: effect and restoration, [2 site example].
        baseline: logit difference and probability of the right answer in the corrupt run, [2 example].
        measured: whether each site's values were measured, and not estimated, [site].
        skipped: how many sites cannot differ.
    """

    effects: NDArray[np.float64]
    baseline: NDArray[np.float64]
    measured: NDArray[np.bool_]
    skipped: int


class Parts:
    """The parts of one batch.

    Args:
        place: the run's directory, locked.
        task: as the configuration names it.
        numbers: of the examples that are swept together.
    """

    def __init__(self, place: RunDirectory, task: str, numbers: Sequence[int]) -> None:
        self._place, self._task, self._numbers = place, file_name(task), list(numbers)
        self._last, self._names, self._waiting = time.monotonic(), set[str](), dict[str, tuple[str, Swept]]()

    def get(self, what: str) -> Swept | None:
        """A part that was kept; None where there is none that proves to be it."""
        name = self._name(what)
        if not self._place.has(name):
            return None
        try:
            found = Packed(self._place.content(name))
            (table,) = found.tables().values()
        except ValueError:
            return None
        about = found.about
        if about.pop("is", None) != self._about(what) or np.ndim(about["baseline"]) != 2:
            return None
        self._names.add(name)
        columns = {column: table.column(column).to_numpy() for column in table.column_names}
        effects = np.stack([columns["effect"], columns["restoration"]]).reshape(2, -1, len(self._numbers))
        measured = columns["measured"].reshape(-1, len(self._numbers))[:, 0]
        return Swept(effects, np.array(about["baseline"]), measured, about["skipped"])

    def add(self, what: str, swept: Swept) -> None:
        """Keep a part, and those that wait; or let it wait if the last ones were kept a moment ago."""
        self._waiting[self._name(what)] = what, swept
        if time.monotonic() - self._last < SECONDS:
            return
        for name, (of, part) in self._waiting.items():
            n = part.effects.shape[-1]
            table = pa.table(
                {
                    "effect": part.effects[0].ravel(),
                    "restoration": part.effects[1].ravel(),
                    "measured": np.repeat(part.measured, n),
                }
            )
            about = {"is": self._about(of), "baseline": part.baseline.tolist(), "skipped": part.skipped}
            self._place.write(name, packed({0: table}, about))
            self._names.add(name)
        self._waiting.clear()
        self._last = time.monotonic()

    def clear(self) -> None:
        """Remove them: what they are parts of is written."""
        for name in sorted(self._names):
            self._place.remove(name)

    def _about(self, what: str) -> dict[str, object]:
        return {"run": self._place.record["id"], "task": self._task, "numbers": self._numbers, "what": what}

    def _name(self, what: str) -> str:
        return f"{PARTS}/{self._task}-{self._numbers[0]:06d}-{digest_of(self._about(what))[:16]}.parquet"
