"""The families by name: functions of a seed and of a folder that outlives the cases, which give cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tests.sabotage import api, checkpoints, cli, images, positions, run_directories, tables, text
from tests.sabotage.engine import Case

FAMILIES: dict[str, Callable[[int, Path], Iterable[Case]]] = {
    "images": images.cases,
    "text": text.cases,
    "tables": tables.cases,
    "run directories": run_directories.cases,
    "checkpoints": checkpoints.cases,
    "positions": positions.cases,
    "api": api.cases,
    "cli": cli.cases,
}
