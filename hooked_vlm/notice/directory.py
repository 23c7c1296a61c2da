"""The directory of a run: what is in it, written so that it is whole or not there, by one process at a time.

A file is written beside its place (`.part`) and moved into it. An example is done when its file in `examples/` is
there, and that one is written last: a process may be killed at any moment, and what is there is right. The lock is
the operating system's and goes with the process that holds it.

Costs one small file each for what an example gave. Knows no model and no numbers.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice.config import file_name

VERSION = 1
RUN, SOURCES, SUMMARY, REPORT = "run.json", "sources.json", "summary.json", "report.html"
EXAMPLES, EFFECTS, ATTENTION, ABLATION, FIGURES = "examples", "effects", "attention", "ablation", "figures"
_LOCK = ".lock"


def whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file beside its place and move it into it, so that it is whole or not there; nothing is left behind."""
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return path


class RunDirectory:
    """A run's directory.

    Args:
        path: where it is, or is to be.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    # --- opening it -----------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[RunDirectory]:
        """While it is open, no other process writes here; the directory is made if need be.

        Raises:
            RunDirectoryError: if another process is at it, it cannot be written, or what is in it is no run.
        """
        with self._reported("cannot be made or written"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_strangers()
            lock = (self.path / _LOCK).open("a+", encoding="utf-8")
        import fcntl  # not on Windows, where finished runs can be reported and compared all the same

        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                raise RunDirectoryError(
                    f"{self.path} is being written by another process ({lock.read().strip() or 'unknown'}): wait for "
                    "it, or take another directory"
                ) from error
            with self._reported("cannot be written"):
                lock.truncate(0)
                lock.write(f"pid {os.getpid()}")
                lock.flush()
                for part in self.path.rglob("*.part"):  # of a process that was killed
                    part.unlink()
            yield self

    def _refuse_strangers(self) -> None:
        names = {entry.name for entry in self.path.iterdir()} - {_LOCK}
        if names and RUN not in names and not all(name.endswith(".part") for name in names):
            raise RunDirectoryError(
                f"{self.path} is no run: it holds {', '.join(sorted(names)[:3])} and no {RUN}. Take an empty or a new "
                "directory"
            )

    # --- reading --------------------------------------------------------------------------------------

    def stored(self) -> dict[str, Any] | None:
        """What `run.json` says; None where no run has begun.

        Raises:
            RunDirectoryError: if it is damaged, or of another version.
        """
        found = self.read_json(RUN)
        if found is not None and found.get("version") != VERSION:
            raise RunDirectoryError(
                f"{self.path / RUN} has version {found.get('version')!r} and this package writes {VERSION}: take "
                "another directory"
            )
        return found

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A file's values; None where there is none.

        Raises:
            RunDirectoryError: if it cannot be read.
        """
        path = self.path / name
        if not path.exists():
            return None
        with self._reported("cannot be read"):
            text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
        except ValueError as error:
            raise RunDirectoryError(f"{path} is damaged ({error}): take another directory") from error
        if not isinstance(found, dict):
            raise RunDirectoryError(f"{path} is no run's: it holds a {type(found).__name__}")
        return found

    def done(self, task: str) -> dict[int, bool]:
        """Of each example of a task that is done, whether it was kept."""
        return {number: bool(self.example(task, number)["kept"]) for number in self.numbers(EXAMPLES, task)}

    def numbers(self, kind: str, task: str) -> list[int]:
        """The examples of a task that have a file of a kind, in order."""
        prefix = f"{file_name(task)}-"
        folder = self.path / kind
        stems = [path.stem for path in folder.glob("*.parquet")] if folder.is_dir() else []
        own = [stem.removeprefix(prefix) for stem in stems if stem.startswith(prefix)]
        return sorted(int(number) for number in own if number.isdecimal())

    def example(self, task: str, number: int) -> dict[str, Any]:
        """An example's row.

        Raises:
            RunDirectoryError: if its file is damaged.
        """
        path = self.file(EXAMPLES, task, number)
        try:
            (row,) = pq.read_table(path).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise RunDirectoryError(
                f"{path} is damaged ({error}): delete it, and the same command makes it anew"
            ) from error
        found: dict[str, Any] = row
        return found

    def file(self, kind: str, task: str, number: int) -> Path:
        """Where an example's file of a kind is."""
        return self.path / kind / f"{file_name(task)}-{number:06d}.parquet"

    # --- writing --------------------------------------------------------------------------------------

    def write_json(self, name: str, values: dict[str, Any]) -> Path:
        """Write a file of values.

        Raises:
            RunDirectoryError: as `write_table`.
        """
        text = json.dumps(values, indent=1, ensure_ascii=False)
        return self._into_place(self.path / name, lambda part: part.write_text(text, encoding="utf-8"))

    def write_table(self, kind: str, task: str, number: int, table: pa.Table) -> Path:
        """Write an example's table of a kind.

        Raises:
            RunDirectoryError: if the disk is full or refuses; it says what was kept.
        """
        path = self.file(kind, task, number)
        return self._into_place(path, lambda part: pq.write_table(table, part, compression="zstd"))

    def write_figure(self, name: str, figure: Any) -> Path:
        """Write a matplotlib figure as PNG.

        Raises:
            RunDirectoryError: as `write_table`.
        """

        def save(part: Path) -> None:
            figure.savefig(part, format="png", dpi=100, bbox_inches="tight")

        return self._into_place(self.path / FIGURES / name, save)

    def _into_place(self, path: Path, write: Callable[[Path], Any]) -> Path:
        with self._reported("cannot be written"):
            path.parent.mkdir(exist_ok=True)
            return whole(path, write)

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Turn an error of the operating system into one that says what was kept."""
        try:
            yield
        except RunDirectoryError:
            raise
        except OSError as error:
            try:
                n = len(list((self.path / EXAMPLES).glob("*.parquet")))
            except OSError:
                n = 0
            reason = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way_out = "make room on the disk" if full else "make it writable"
            if n:
                done = "1 example that is done is" if n == 1 else f"{n} examples that are done are"
                way_out = f"the {done} kept; {way_out}, and the same command goes on"
            else:
                way_out = f"{way_out}, or take another directory"
            raise RunDirectoryError(f"{error.filename or self.path} {what} ({reason}): {way_out}") from error
