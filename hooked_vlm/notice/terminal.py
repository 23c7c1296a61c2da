"""What a run shows on a terminal: a bar while it goes, and what it found when it is done.

The bar costs nothing where nobody looks; the ending reads summary.json and nothing else.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from hooked_vlm.models import placement
from hooked_vlm.notice.directory import REPORT, RUN, SUMMARY
from hooked_vlm.notice.report import text
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text.words import kept, percent, reasons, with_interval
from hooked_vlm.notice.stored import as_now

STYLE = {True: "green", False: "red", None: "dim"}  # of a verdict


class Progress:
    """A bar over the examples that are wanted, on the terminal's error stream.

    Args:
        n_tasks: how many tasks there are.
        n_examples: how many examples are wanted of each.
        shown: False for no bar.
    """

    def __init__(self, n_tasks: int, n_examples: int, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown or not console.is_terminal,
        )
        self._each, self._ended, self._kept = n_examples, 0, 0
        self._sites, self._since = 0, time.monotonic()
        self.doing = ""  # what is going on, in words
        self._id: TaskID = self._bar.add_task("examples", total=n_tasks * n_examples, rate="")

    @property
    def shown(self) -> bool:
        """Whether anybody looks."""
        return not self._bar.disable

    def begin(self, task: str, kept: int) -> None:
        """A task begins, of which some examples are kept already."""
        self._kept, self.doing = kept, task
        self._bar.update(self._id, description=task, completed=self._ended * self._each + kept)

    def advance(self, n_sites: int) -> None:
        """One more example is kept, of which so many sites were patched."""
        self._kept += 1
        self._sites += n_sites
        rate = self._sites / max(time.monotonic() - self._since, 1e-9)
        self._bar.update(self._id, completed=self._ended * self._each + self._kept, rate=f"{rate:,.0f} sites/s")

    def end(self, task: str) -> None:
        """A task is at its end, whether or not it had as many examples as were wanted."""
        self._ended += 1
        self._bar.update(self._id, description=task, completed=self._ended * self._each)

    def say(self, what: str) -> None:
        """What is being done after the last example."""
        self.doing = what
        self._bar.update(self._id, description=what)

    def tell(self, what: str) -> None:
        """A line above the bar, which stays."""
        if self.shown:
            self._bar.console.print(Text(what), soft_wrap=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()


def show_ending(console: Console, directory: Path) -> None:
    """Print a run's ending.

    Args:
        console: where.
        directory: of the finished run.
    """
    record, summary = (json.loads((directory / name).read_text(encoding="utf-8")) for name in (RUN, SUMMARY))
    run = Loaded(directory, record, as_now(summary))
    counts = Table("task", "rows seen", "answered rightly", "kept", "why not", box=box.SIMPLE, pad_edge=False)
    for row in run.summary["counts"]:
        accuracy = "" if row["accuracy"] is None else with_interval(row, "accuracy", percent)
        cells = (row["task"], row["seen"], accuracy, kept(row), reasons(row["reasons"]))
        counts.add_row(*(Text(str(cell)) for cell in cells))
    console.print(counts)
    for line in text.ending(run):
        console.print(Text(line), soft_wrap=True)
    found = Table("claim", "verdict", box=box.SIMPLE, pad_edge=False)
    for verdict in text.verdicts_of(run):
        found.add_row(Text(verdict.claim), Text(verdict.word, style=STYLE[verdict.holds]))
    console.print(found)
    where = placement.told(run.config["device"], run.config["dtype"])
    console.print(Text(f"{run.config['model']} ran {where}"), soft_wrap=True)
    console.print(Text(f"Report: {directory / REPORT}"), soft_wrap=True)
