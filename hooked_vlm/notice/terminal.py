"""What a run shows on a terminal: a bar while it goes, and what it found when it is done.

The bar costs nothing where nobody looks; the ending reads summary.json and nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from hooked_vlm.analysis.heads import RULES, Head, head_name
from hooked_vlm.models import placement
from hooked_vlm.notice import places
from hooked_vlm.notice.cautions import about_sentences
from hooked_vlm.notice.claims import verdicts_of
from hooked_vlm.notice.directory import REPORT, RUN, SUMMARY
from hooked_vlm.notice.earlier import as_now
from hooked_vlm.notice.selections import strongest
from hooked_vlm.notice.vocabulary import CORRUPT, at_place, listed
from hooked_vlm.notice.wording import kept, percent, with_interval

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
    summary = as_now(json.loads((directory / SUMMARY).read_text(encoding="utf-8")))
    counts = Table("task", "rows seen", "answered rightly", "kept", "why not", box=box.SIMPLE, pad_edge=False)
    for row in summary["counts"]:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in row["reasons"].items())
        accuracy = "" if row["accuracy"] is None else with_interval(row, "accuracy", percent)
        counts.add_row(*(Text(str(cell)) for cell in (row["task"], row["seen"], accuracy, kept(row), reasons)))
    console.print(counts)
    for row in summary["noted"]:
        names = [*row["names"], *(["..."] if row["n"] > len(row["names"]) else [])]
        line = f"Noted in the data of {row['task']}, {row['n']} times: {row['reason']} ({'; '.join(names)})"
        console.print(Text(line), soft_wrap=True)
    for line in about_sentences(summary["counts"], summary["config"]):
        console.print(Text(line), soft_wrap=True)
    if not any(row["kept"] for row in summary["counts"]):
        console.print(Text("Nothing was patched: no example was kept, for the reasons above"))
    for corrupt in CORRUPT:
        heads = strongest(summary, corrupt)
        if heads:
            read = listed(at_place(role) for role in dict.fromkeys(summary["select_at"].values()))
            console.print(Text(f"Strongest under {corrupt} corruption, {read}: {_listed(heads)}"), soft_wrap=True)
            for sentence in places.told(summary["strongest"], corrupt):
                console.print(Text(f"  {sentence}"), soft_wrap=True)
    for rule in RULES if summary["heads"] else ():
        rows = [row for row in summary["universal"] if row["rule"] == rule]
        told = [f"{head_name(row['kind'], row['layer'], row['head'])} ({row['modality']})" for row in rows]
        alone = ", in the one task there is" if told and len(summary["counts"]) == 1 else ""
        console.print(Text(f"Universal by {RULES[rule]}{alone}: {', '.join(told) or 'none'}"))
    found = Table("claim", "verdict", box=box.SIMPLE, pad_edge=False)
    for verdict in verdicts_of(summary):
        found.add_row(Text(verdict.claim), Text(verdict.word, style=STYLE[verdict.holds]))
    console.print(found)
    config = json.loads((directory / RUN).read_text(encoding="utf-8"))["config"]
    console.print(Text(f"{config['model']} ran {placement.told(config['device'], config['dtype'])}"), soft_wrap=True)
    console.print(Text(f"Report: {directory / REPORT}"), soft_wrap=True)


def _listed(heads: Sequence[Head]) -> str:
    return ", ".join(head_name(*head) for head in heads)
