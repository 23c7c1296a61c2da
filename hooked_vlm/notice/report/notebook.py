"""What a run shows, for a notebook: its verdicts as a list that prints itself, as text or as a table.

Reads summary.json alone.
"""

from __future__ import annotations

from pathlib import Path

from hooked_vlm.notice.report.blocks import table
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.render import rendered
from hooked_vlm.notice.report.text import headlines, verdicts_of
from hooked_vlm.notice.report.text.verdicts import Told


class Verdicts(list[Told]):
    """The verdicts of a run: a list, with the sentences that the report opens with."""

    def __init__(self, run: Loaded) -> None:
        super().__init__(verdicts_of(run))
        self.name = run.name
        self.sentences = headlines(run)

    def __repr__(self) -> str:
        wide = max((len(found.word) for found in self), default=0)
        return "\n".join([self.name, *(f"{found.word:>{wide}}  {found.claim}" for found in self), *self.sentences])

    def _repr_html_(self) -> str:
        rows = [[found.claim, found, found.evidence] for found in self]
        shown = table(["claim", "verdict", "evidence"], rows, f"What {self.name} shows", prose=True)
        return rendered("verdicts", sentences=" ".join(self.sentences), verdicts=shown)


def verdicts(directory: str | Path) -> Verdicts:
    """The verdicts of a finished run, as its report, the terminal and a comparison give them.

    Args:
        directory: of the run.

    Returns:
        A list of `report.text.verdicts.Told`s that shows itself in a notebook.

    Raises:
        RunDirectoryError: There is no finished run.
    """
    return Verdicts(Loaded.read(directory))
