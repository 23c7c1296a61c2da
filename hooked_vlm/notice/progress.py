"""The progress bar of a run: examples kept, sites patched a second, time left. Costs nothing where nobody looks."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


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
        self._id: TaskID = self._bar.add_task("examples", total=n_tasks * n_examples, rate="")

    def begin(self, task: str, kept: int) -> None:
        """A task begins, of which some examples are kept already."""
        self._kept = kept
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
        self._bar.update(self._id, description=what)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
