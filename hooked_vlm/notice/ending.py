"""What a finished run prints: how many examples survived, the strongest and the universal heads, where the report is.

Reads summary.json and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hooked_vlm.notice.ablating import strongest
from hooked_vlm.notice.vocabulary import CORRUPT, RULES, head_name


def show(console: Console, directory: Path) -> None:
    """Print a run's ending.

    Args:
        console: where.
        directory: of the finished run.
    """
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    counts = Table("task", "rows seen", "answered rightly", "kept", "why not", box=box.SIMPLE, pad_edge=False)
    for row in summary["counts"]:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in row["reasons"].items())
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.0%}"
        counts.add_row(*(Text(str(cell)) for cell in (row["task"], row["seen"], accuracy, row["kept"], reasons)))
    console.print(counts)
    if not any(row["kept"] for row in summary["counts"]):
        console.print(Text("Nothing was patched: no example was kept, for the reasons above"))
    for corrupt in CORRUPT:
        heads = strongest(summary, corrupt)
        if heads:
            console.print(Text(f"Strongest under {corrupt} corruption: {_listed(heads)}"))
    for rule in RULES if summary["heads"] else ():
        rows = [row for row in summary["universal"] if row["rule"] == rule]
        told = [f"{head_name(row['kind'], row['layer'], row['head'])} ({row['modality']})" for row in rows]
        console.print(Text(f"Universal by the {rule} rule: {', '.join(told) or 'none'}"))
    console.print(Text(f"Report: {directory / 'report.html'}"), soft_wrap=True)


def _listed(heads: Sequence[tuple[Any, ...]]) -> str:
    return ", ".join(head_name(*head) for head in heads)
