"""The directory of a run: what is in it, and the proof that it is this run's, whole, and where it belongs.

`run.json` says of which model, rows, options and packages the run is, under a checksum; `manifest.jsonl` has a line
with the digest of every other file, written before the file is put in place, and run.json's content once more. The
tables of results lie in `examples/`, `effects/`, `attention/`, `ablation/` and `causes/`, in blocks of some rows: a
block's file is replaced by a longer one whenever more of its rows are computed, so that a process may be killed at any
moment and loses at most what it had in memory. Each file proves that it is whole, and says which run, kind, task and
block it is of. What proves to be all that, and nothing else, is done: a file that is missing, damaged, cut off, swapped
or renamed is computed again, and one of another run, or of nobody, is refused by name. Who only reads the directory (a
summary, a report, a comparison) goes by the manifest, which also knows what is missing.

One process writes at a time; the lock is the operating system's and goes with the process that holds it.

Costs two digests of what is there when a run begins (1 s for 1 GB). Knows no model and no numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from hooked_vlm.errors import RunDirectoryError, cut, quoted
from hooked_vlm.notice import storage
from hooked_vlm.notice.config import file_name
from hooked_vlm.notice.files import AGAIN, MANIFEST, ListedFiles, text_of
from hooked_vlm.notice.storage import PART, Packed, digest, packed, refuse_link, refuse_odd, sealed, whole

VERSION = 2
RUN, SOURCES, SUMMARY, REPORT = "run.json", "sources.json", "summary.json", "report.html"
EXAMPLES, EFFECTS, ATTENTION, ABLATION, CAUSES = "examples", "effects", "attention", "ablation", "causes"
FIGURES, ROWS, PARTS = "figures", "rows", "parts"
MEASURED = (EFFECTS, ATTENTION)  # of every example that is kept
RESULTS = (*MEASURED, ABLATION, CAUSES, EXAMPLES)
BLOCK = 16  # rows of a task in one file of results, at least: a paper's 4,500 rows are 1,100 files
_LOCK = ".lock"
_NAME = re.compile(r"(?P<task>.+)-(?P<block>[0-9]{6,})\.parquet")


def block_size(batch: int) -> int:
    """Rows in a file of results: whole batches, and `BLOCK` at least."""
    return batch * -(-BLOCK // batch)


class RunDirectory(ListedFiles):
    """A run's directory.

    Args:
        path: where it is, or is to be.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.record: dict[str, Any] = {}
        self._blocks: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}  # what each file says of itself

    # --- opening it -----------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[RunDirectory]:
        """While it is open, no other process writes here; the directory is made if need be.

        Raises:
            RunDirectoryError: if another process is at it, it cannot be written, it holds symbolic links, or what is
                in it is no run.
        """
        with self._reported("cannot be made or written"):
            refuse_link(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_strangers()
            refuse_odd(self.path / _LOCK)
            lock = FileLock(self.path / _LOCK, timeout=0, preserve_lock_file=True, on_acquired=_signed)
            try:
                lock.acquire()
            except Timeout as error:
                raise RunDirectoryError(
                    f"{self.path} is being written by another process ({self._holder() or 'unknown'}): wait for it, or "
                    "take another directory"
                ) from error
        try:
            with self._reported("cannot be written"):
                for folder in (self.path, *(self.path / name for name in (*RESULTS, FIGURES, ROWS, PARTS))):
                    for part in folder.glob(f"*{PART}") if folder.is_dir() else ():  # of a process that was killed
                        part.unlink()
            yield self
        finally:
            lock.release()

    def _holder(self) -> str:
        """The process that holds the lock, as it signed it; "" where that cannot be read, as on Windows."""
        try:
            return storage.read(self.path / _LOCK).decode().strip()
        except (OSError, ValueError):
            return ""

    def _refuse_strangers(self) -> None:
        entries = list(self.path.iterdir())
        for entry in entries:
            refuse_link(entry)
        names = {entry.name for entry in entries} - {_LOCK}
        if names and not names & {RUN, MANIFEST} and not all(name.endswith(PART) for name in names):
            raise RunDirectoryError(
                f"{self.path} is no run: it holds {cut(', '.join(sorted(names)[:3]))} and no {RUN}. Take an empty or "
                "a new directory"
            )

    def stored(self) -> dict[str, Any] | None:
        """What `run.json` says, or, where that is damaged, what the manifest says that it said; None for no run.

        Raises:
            RunDirectoryError: if neither can be read, or it is of another version.
        """
        with self._reported("cannot be read"):
            entries = self._manifest.read()
            text = storage.read(self.path / RUN) if (self.path / RUN).exists() else None
        try:
            found = None if text is None else storage.parsed(text)
        except ValueError:
            found = None
        kept = [found, *(entry["run"] for entry in reversed(entries) if "run" in entry)]
        good = [
            record
            for record in kept
            if isinstance(record, dict) and record.get("version") == VERSION and record == sealed(record)
        ]
        if len({record["id"] for record in good}) > 1:  # one of the two files is another run's
            own = self._run_of_results()
            good = [record for record in good if record["id"] == own] or good
        if good:
            return good[0]
        if isinstance(found, dict) and found.get("version") not in (None, VERSION):
            raise RunDirectoryError(
                f"{self.path / RUN} has version {quoted(found['version'])} and this package writes {VERSION}: the run "
                "cannot go on. Take another directory; the same command runs there from the beginning"
            )
        if text is None and not any((self.path / kind).exists() for kind in RESULTS):
            return None  # killed before anything was done
        raise RunDirectoryError(
            f"{self.path / RUN} is damaged, and {MANIFEST} does not say what it was: of which run the rest is cannot "
            "be known. Take another directory; the same command runs there from the beginning"
        )

    def begin(self, record: Mapping[str, Any]) -> None:
        """Say of which run this directory is, or say it anew; its `id` is that of every file of results.

        Args:
            record: what `run.json` is to hold.
        """
        self.record = sealed(record)
        with self._reported("cannot be written"):
            self._manifest.add({"run": self.record})
            whole(self.path / RUN, text_of(self.record))

    def forget_parts(self) -> None:
        """Remove what is left of parts of batches: every batch is whole."""
        with self._reported("cannot be removed"):
            refuse_link(self.path / PARTS)
            if (self.path / PARTS).is_dir():
                for path in (self.path / PARTS).iterdir():
                    self.remove(f"{PARTS}/{path.name}")
                (self.path / PARTS).rmdir()

    # --- what is there --------------------------------------------------------------------------------

    def verify(self, tasks: Collection[str]) -> None:
        """Look at every file of results; remove what is damaged or out of place, so that it is computed again.

        A file of an earlier version, whose columns had other names, is written anew with today's.

        Args:
            tasks: of the run.

        Raises:
            RunDirectoryError: if a file is another run's, nobody's, or a symbolic link.
        """
        with self._reported("cannot be read or mended"):
            self.read_list()
            self._blocks = {}
            if self.record != self._run_json():
                whole(self.path / RUN, text_of(self.record))
            for kind, path in self._files():
                name = f"{kind}/{path.name}"
                data = path.read_bytes()
                if found := self._place(kind, path.name, data, tasks):
                    self._digests.setdefault(name, []).append(digest(data))
                    if not found.is_as_now:
                        self.write(name, packed(found.tables(), found.about))
                    continue
                self._refuse_another(path, data)
                path.unlink()
            listed = {name: digests for name, digests in self._digests.items() if self._is(name, digests)}
            self._digests = listed
            files = [{"file": name, "digest": digests[-1]} for name, digests in sorted(listed.items())]
            self._manifest.rewrite([{"run": self.record}, *files])

    def opened(self) -> RunDirectory:
        """For reading: every file of results is there, whole, as it was written last, and there is no other.

        Raises:
            RunDirectoryError: if one is missing, damaged, cut off, renamed, another run's or nobody's; or no run.
        """
        if not self.path.is_dir():
            raise RunDirectoryError(f"{self.path} is no directory: give the --out of a `hooked-vlm notice` run")
        record = self.stored()
        if record is None:
            raise RunDirectoryError(
                f"there is no {self.path / RUN}: it is no run; give the --out of a `hooked-vlm notice` run"
            )
        self.record = record
        with self._reported("cannot be read"):
            self.read_list()
            self._blocks = {}
            there = {f"{kind}/{path.name}": (kind, path) for kind, path in self._files()}
        for name in sorted(self._digests):
            if name.partition("/")[0] in RESULTS:
                data = self.content(name)
                kind, path = there.pop(name)
                if not self._place(kind, path.name, data, None):
                    raise RunDirectoryError(f"{path} does not say that it is what its name says: {AGAIN}")
        for name, (_, path) in there.items():
            self._refuse_another(path, path.read_bytes())
            raise RunDirectoryError(f"{self.path / name} is not on the run's list of files: {AGAIN}, or remove it")
        return self

    def _run_of_results(self) -> Any:
        """The run that the first whole file of results says it is of; None where there is none."""
        for _, path in self._files():
            with suppress(ValueError):
                return Packed(path.read_bytes()).about.get("run")
        return None

    def _run_json(self) -> Any:
        try:
            return storage.parsed(storage.read(self.path / RUN))
        except (OSError, ValueError):
            return None

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Every file in the folders of results, which are ordinary ones and have a result's name."""
        for kind in RESULTS:
            folder = self.path / kind
            refuse_link(folder)
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                refuse_link(path)
                if path.name.endswith(PART):
                    continue
                if not path.is_file() or not _NAME.fullmatch(path.name):
                    raise RunDirectoryError(
                        f"{path} was not written by this run: move it away, and the same command goes on"
                    )
                yield kind, path

    def _place(self, kind: str, name: str, data: bytes, tasks: Collection[str] | None) -> Packed | None:
        """A file that says that it is what its name says, which is taken into the index; None for any other."""
        match = _NAME.fullmatch(name)
        assert match is not None
        task, block = match["task"], int(match["block"])
        try:
            found = Packed(data)
        except ValueError:
            return None
        said = dict(found.about)
        given = said.pop("given", "")
        if said != self._about(kind, task, block) or (tasks is not None and task not in map(file_name, tasks)):
            return None
        if not all(number // self.record["block"] == block for number in found.numbers):
            return None
        self._blocks.setdefault((kind, task), {})[block] = {"numbers": found.numbers, "given": given}
        return found

    def _about(self, kind: str, task: str, block: int) -> dict[str, Any]:
        return {"run": self.record["id"], "kind": kind, "task": task, "block": block}

    def _refuse_another(self, path: Path, data: bytes) -> None:
        """Raise RunDirectoryError if a file is whole and another run's: it may be the only copy."""
        try:
            run = Packed(data).about.get("run")
        except ValueError:
            return
        if run != self.record["id"]:
            raise RunDirectoryError(
                f"{path} is of another run ({str(run)[:12]}; this one is {self.record['id'][:12]}): move it to where "
                "it belongs, and the same command computes this run's"
            )

    # --- reading --------------------------------------------------------------------------------------

    @property
    def n_examples(self) -> int:
        """How many examples are on the disk."""
        done = [of for (kind, _), of in self._blocks.items() if kind == EXAMPLES]
        return sum(len(block["numbers"]) for of in done for block in of.values())

    @property
    def tasks(self) -> list[str]:
        """The tasks that have results, by their name in files, sorted."""
        return sorted({task for _, task in self._blocks})

    def numbers(self, kind: str, task: str, given: str | None = None) -> list[int]:
        """The examples of a task that have a table of a kind, in order.

        Args:
            kind: one of `RESULTS`.
            task: as the configuration or a file names it.
            given: only those that were made from this; None for all.
        """
        blocks = self._blocks.get((kind, file_name(task)), {})
        return sorted(n for each in blocks.values() if given in (None, each["given"]) for n in each["numbers"])

    def tables(
        self, kind: str, task: str, columns: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[tuple[int, pa.Table]]:
        """The tables of a kind of a task, one example after another; one block of them is in memory.

        Args:
            kind: one of `RESULTS`.
            task: as the configuration or a file names it.
            columns: which.
            optional: more of them, where they are there.

        Raises:
            RunDirectoryError: if a file is damaged, or lacks a column.
        """
        for block in sorted(self._blocks.get((kind, file_name(task)), {})):
            path, found = self._packed(kind, task, block)
            if missing := [name for name in columns if name not in found.columns]:
                raise RunDirectoryError(f"{path} has no column {', '.join(missing)}: it was not written by a run")
            chosen = [*columns, *(name for name in optional if name in found.columns)]
            yield from self._read(path, found, chosen).items()

    def kept(self, task: str) -> list[int]:
        """The examples of a task that were kept, in order.

        Raises:
            RunDirectoryError: if what was measured of one is not there.
        """
        rows = self.tables(EXAMPLES, task, ["kept"])
        found = [number for number, table in rows if table.column("kept")[0].as_py()]
        for kind in MEASURED:
            if missing := sorted(set(found) - set(self.numbers(kind, task))):
                lost = self._name(kind, task, missing[0] // self.record["block"])
                raise RunDirectoryError(f"{self.path / lost} has nothing of example {missing[0]}: {AGAIN}")
        return found

    def example(self, task: str, number: int) -> dict[str, Any]:
        """An example's row.

        Raises:
            RunDirectoryError: if its file is damaged.
        """
        path, found = self._packed(EXAMPLES, task, number // self.record["block"])
        (row,) = self._read(path, found)[number].to_pylist()
        example: dict[str, Any] = row
        return example

    def _packed(self, kind: str, task: str, block: int) -> tuple[Path, Packed]:
        path = self.path / self._name(kind, task, block)
        try:
            return path, Packed(self.content(self._name(kind, task, block)))
        except ValueError as error:
            raise RunDirectoryError(f"{path} is damaged ({error}): {AGAIN}") from error

    def _read(self, path: Path, found: Packed, columns: Sequence[str] | None = None) -> dict[int, pa.Table]:
        try:
            return found.tables(columns)
        except ValueError as error:
            raise RunDirectoryError(f"{path} is damaged ({error}): {AGAIN}") from error

    def _name(self, kind: str, task: str, block: int) -> str:
        return f"{kind}/{file_name(task)}-{block:06d}.parquet"

    # --- writing --------------------------------------------------------------------------------------

    def add(self, kind: str, task: str, tables: Mapping[int, pa.Table], given: str = "") -> None:
        """Write tables of examples into the blocks that they belong to; what was there of them is replaced.

        Args:
            kind: one of `RESULTS`.
            task: as the configuration names it.
            tables: by the number of the example.
            given: a digest of what they were made from beside the run's configuration; a block holds tables of one.

        Raises:
            RunDirectoryError: if the disk is full or refuses; it says what was kept.
        """
        for block in sorted({number // self.record["block"] for number in tables}):
            of = self._blocks.setdefault((kind, file_name(task)), {})
            before: dict[int, pa.Table] = {}
            if block in of and of[block]["given"] == given:
                before = self._read(*self._packed(kind, task, block))
            now = before | {n: table for n, table in tables.items() if n // self.record["block"] == block}
            about = self._about(kind, file_name(task), block) | {"given": given}
            self.write(self._name(kind, task, block), packed(now, about))
            of[block] = {"numbers": sorted(now), "given": given}


def _signed(descriptor: int) -> None:
    """Write into a lock that was just taken whose it is."""
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"pid {os.getpid()}".encode())
