"""A run's files that are links to somebody else's, and comparisons that would be written over a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hooked_vlm.notice import compare
from tests.sabotage.engine import Oracle, either, refuses
from tests.sabotage.run_directories import files_of, fresh, locked, numbers, same_command

Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]
VICTIM = "what nobody may touch"


def attacks(prepared: Path) -> Found:
    """Every attack of the kind."""
    yield from _links(prepared)
    yield from _compares(prepared)


def _guarded(attack: Callable[[Path], Any], folder: Path) -> Any:
    """An attack with a file beside the run that nobody may write."""
    (path := folder / "victim.txt").write_text(VICTIM)
    try:
        return attack(folder)
    finally:
        assert path.read_text() == VICTIM, "a file outside of the run was written"


def _links(prepared: Path) -> Found:
    """Links that lead to a file of somebody else's."""
    reference = numbers(prepared / "run")

    def lock(folder: Path) -> Any:
        place = fresh(prepared, folder) / ".lock"
        place.unlink(missing_ok=True)
        place.symlink_to(folder / "victim.txt")
        return same_command(folder / "run")

    def lock_of_new(folder: Path) -> Any:
        (folder / "new").mkdir()
        (folder / "new" / ".lock").symlink_to(folder / "victim.txt")
        return same_command(folder / "new")

    yield "lock-a-link", partial(_guarded, lock), refuses(".lock")
    yield "lock-a-link-in-a-new-run", partial(_guarded, lock_of_new), refuses(".lock")
    for name, make in {"folder": lambda path: path.mkdir(), "pipe": os.mkfifo}.items():

        def odd(make: Callable[[Path], Any], folder: Path) -> Any:
            place = fresh(prepared, folder) / ".lock"
            place.unlink(missing_ok=True)
            make(place)
            return same_command(folder / "run")

        yield f"lock-a-{name}", partial(odd, make), either(reference, ".lock")

    def busy(folder: Path) -> Any:
        held = locked(fresh(prepared, folder))
        try:
            return same_command(folder / "run")
        finally:
            held.release()

    yield "locked-by-another", busy, refuses("another process")
    for file in ("run.json", "summary.json", "sources.json", "report.html"):

        def through(file: str, folder: Path) -> Any:
            place = fresh(prepared, folder) / file
            place.unlink(missing_ok=True)
            place.symlink_to(folder / "victim.txt")
            return same_command(folder / "run")

        def part(file: str, folder: Path) -> Any:
            place = fresh(prepared, folder) / f"{file}.part"
            place.symlink_to(folder / "victim.txt")
            return same_command(folder / "run")

        yield f"{file}-a-link-out", partial(_guarded, partial(through, file)), either(reference, file)
        yield f"{file}.part-a-link-out", partial(_guarded, partial(part, file)), either(reference, file)


def _compares(prepared: Path) -> Found:
    """Comparisons that would be written over a file of a run, or through a link."""
    for name, target in {
        "run.json": "run/run.json",
        "report.html": "run/report.html",
        "summary.json": "run/summary.json",
    }.items():
        yield f"compare-onto-{name}", partial(_compared, prepared, target), refuses(name)
    one_of_each = {file.partition("/")[0]: file for file in files_of(prepared / "run") if "/" in file}
    for file in one_of_each.values():
        yield f"compare-onto-{file}", partial(_compared, prepared, f"run/{file}"), refuses(Path(file).name)
    yield "compare-onto-a-lock", partial(_compared, prepared, "run/.lock"), refuses(".lock")
    yield "compare-onto-the-other-run", partial(_compared, prepared, "other/summary.json"), refuses("summary.json")
    yield (
        "compare-by-another-path",
        partial(_compared, prepared, "other/../run/./summary.json"),
        refuses("summary.json"),
    )

    def linked(folder: Path) -> Any:
        (folder / "out.html").symlink_to(folder / "victim.txt")
        return _compared(prepared, "out.html", folder)

    yield "compare-through-a-link", partial(_guarded, linked), refuses("out.html")


def _compared(prepared: Path, out: str, folder: Path) -> Any:
    """Compare two runs into a file; no file of theirs may be another one afterwards."""
    fresh(prepared, folder)
    shutil.copytree(prepared / "another-seed", folder / "other")
    before = {file: (folder / file).read_bytes() for file in files_of(folder) if "/" in file}
    try:
        compare(["run", "other"], out)
    finally:
        for file, content in before.items():
            assert (folder / file).read_bytes() == content, f"{file} was overwritten"
    return "written"
