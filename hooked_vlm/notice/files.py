"""The files of a directory that are known by their digests: what is read is what was written, or an error says so.

A file's digest is on the directory's list (`storage.Manifest`) before the file is in its place. Knows no run but by the
words of its errors.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from hooked_vlm.errors import RunDirectoryError, cut
from hooked_vlm.notice import storage
from hooked_vlm.notice.storage import Manifest, digest, parsed, place_of, refuse_link, whole

MANIFEST = "manifest.jsonl"
AGAIN = "run the same `hooked-vlm notice` command, which computes it again"


class ListedFiles:
    """The files of a directory, under a manifest.

    Args:
        path: of the directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = place_of(path, "the run's directory, out,")
        self._manifest = Manifest(self.path / MANIFEST)
        self._digests: dict[str, list[str]] = {}  # of each file, the last one written last

    @property
    def n_examples(self) -> int:
        """How many examples are on the disk, for errors that say what is kept."""
        return 0

    def read_list(self) -> None:
        """Read the manifest again."""
        self._digests = {}
        for entry in self._manifest.read():
            if "file" in entry:
                self._digests.setdefault(entry["file"], []).append(entry["digest"])

    def content(self, name: str) -> bytes:
        """What a file of the run holds.

        Raises:
            RunDirectoryError: if it is not there, or not as the run wrote it last.
        """
        path = self.path / name
        try:
            data = storage.read(path)
        except FileNotFoundError as error:
            raise RunDirectoryError(f"there is no {path}: {AGAIN}") from error
        except RunDirectoryError:
            raise
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be read ({error.strerror or error}): {AGAIN}") from error
        if name not in self._digests or digest(data) != self._digests[name][-1]:
            raise RunDirectoryError(f"{path} is damaged, or not as the run wrote it: {AGAIN}")
        return data

    def values(self, name: str) -> dict[str, Any]:
        """The values in a file of the run.

        Raises:
            RunDirectoryError: as `content`.
        """
        found: dict[str, Any] = parsed(self.content(name))
        return found

    def lists(self, name: str) -> bool:
        """Whether the run wrote such a file, whatever became of it."""
        return name in self._digests

    def has(self, name: str) -> bool:
        """Whether a file of the run is there, as the run wrote it last."""
        return name in self._digests and self._is(name, self._digests[name])

    def _is(self, name: str, digests: Sequence[str]) -> bool:
        """Whether a file is there and is one that was written under its name."""
        try:
            return digest(storage.read(self.path / name)) in digests[-1:]
        except OSError:
            return False

    # --- writing --------------------------------------------------------------------------------------

    def write_json(self, name: str, values: Mapping[str, Any]) -> Path:
        """Write a file of values.

        Raises:
            RunDirectoryError: if the disk is full or refuses; it says what was kept.
        """
        return self.write(name, text_of(values))

    def write_text(self, name: str, text: str) -> Path:
        """Write a text.

        Raises:
            RunDirectoryError: as `write_json`.
        """
        return self.write(name, text.encode())

    def remove(self, name: str) -> None:
        """Remove a file of the run.

        Raises:
            RunDirectoryError: if the disk refuses.
        """
        with self._reported("cannot be removed", self.path / name):
            refuse_link((self.path / name).parent)
            (self.path / name).unlink(missing_ok=True)
            self._digests.pop(name, None)

    def write_figure(self, name: str, figure: Any) -> Path:
        """Write a matplotlib figure as PNG.

        Raises:
            RunDirectoryError: as `write_json`.
        """
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=100, bbox_inches="tight")
        return self.write(name, picture.getvalue())

    def write(self, name: str, data: bytes) -> Path:
        """Put a file in place; its digest is on the list before it is.

        Raises:
            RunDirectoryError: as `write_json`.
        """
        path = self.path / name
        with self._reported("cannot be written", path):
            refuse_link(path.parent)
            path.parent.mkdir(exist_ok=True)
            self._manifest.add({"file": name, "digest": digest(data)})
            self._digests.setdefault(name, []).append(digest(data))
            return whole(path, data)

    @contextmanager
    def _reported(self, what: str, at: Path | None = None) -> Iterator[None]:
        """Turn an error of the operating system into one that says what was kept."""
        try:
            yield
        except RunDirectoryError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a path that no system takes
            n, number = self.n_examples, getattr(error, "errno", None)
            reason = getattr(error, "strerror", None) or (os.strerror(number) if number else str(error))
            full = number in (errno.ENOSPC, errno.EDQUOT)
            way_out = "make room on the disk" if full else "make it writable"
            if n:
                done = "1 example that is done is" if n == 1 else f"{n} examples that are done are"
                way_out = f"the {done} kept; {way_out}, and the same command goes on"
            else:
                way_out = f"{way_out}, or take another directory"
            where = at or getattr(error, "filename", None) or self.path
            raise RunDirectoryError(f"{cut(where)} {what} ({cut(reason)}): {way_out}") from error


def text_of(values: Mapping[str, Any]) -> bytes:
    """Plain values as JSON for a reader."""
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False).encode()
