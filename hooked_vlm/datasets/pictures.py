"""Pictures in folders that hold tens of thousands of them: listed by name, opened one at a time, damage named.

`Skips` counts what is passed over and why. Costs: a listing holds the names (some 100 bytes each) and opens
nothing; a picture is decoded when it is asked for and forgotten by the next. Knows no data set and no model.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from hooked_vlm.errors import DataError, ImageError, quoted
from hooked_vlm.images import read

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
NAMES_KEPT = 20  # of each reason: enough to look into it, however many there are

UNREADABLE = "the picture cannot be read"


@dataclass
class Skips:
    """What was passed over and why: every case counted, the first few of each reason named.

    Args:
        counts: Cases by reason.
        names: The names of the first `NAMES_KEPT` by reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count a case, and keep its name if it is among the first."""
        self.counts[reason] += 1
        kept = self.names.setdefault(reason, [])
        if len(kept) < NAMES_KEPT:
            kept.append(name)

    def told(self) -> str:
        """The reasons with their counts, most frequent first; "" if nothing was passed over."""
        return ", ".join(f"{reason} ({count})" for reason, count in self.counts.most_common())

    def warn(self, where: str) -> None:
        """Say once, as a warning, which pictures could not be read; nothing if all could."""
        if n := self.counts[UNREADABLE]:
            named = ", ".join(name.rstrip(".") for name in self.names[UNREADABLE])
            more = f" and {n - len(self.names[UNREADABLE])} more" if n > len(self.names[UNREADABLE]) else ""
            warnings.warn(
                f"{n} of the pictures of {where} cannot be read and were passed over: {named}{more}.", stacklevel=2
            )


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture; hidden files are none."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def names_in(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The names of the files in a folder, as the disk gives them; nothing is opened.

    Args:
        folder: The folder; folders inside it are left out.

    Yields:
        File names without the folder's.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if _is(entry.is_file))
    except OSError as error:
        raise DataError(f"{os.fspath(folder)!r} cannot be listed ({error.strerror or error}).") from error


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the folders in a folder, in order; hidden ones left out.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is(entry.is_dir) and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{os.fspath(folder)!r} cannot be listed ({error.strerror or error}).") from error


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself is nothing
        return False


def existing_folder(data: str | os.PathLike[str] | None, task: str, what: str) -> Path:
    """The folder of a data set.

    Args:
        data: What the user gave.
        task: The task that needs it.
        what: What the folder should hold, for the error.

    Raises:
        DataError: None was given, or there is no such folder.
    """
    if data is None:
        raise DataError(f"The task {task!r} needs a folder of data: give data=FOLDER with {what}.")
    folder = Path(data)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{quoted(folder)} {found}: the task {task!r} needs a folder with {what}.")
    return folder


def shuffled(names: Iterable[str], *key: str | int) -> list[str]:
    """Names in an order drawn by a key: each name's place depends on the key and the set of names alone.

    Args:
        names: Names, in any order and any script.
        key: Strings and integers that name what is drawn.

    Returns:
        The names, sorted by a digest of key and name. A name that is added or taken away moves no other.
    """
    prefix = hashlib.blake2b(ascii(key).encode("ascii"), digest_size=16).digest()

    def place(name: str) -> tuple[bytes, str]:
        return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), key=prefix, digest_size=16).digest(), name

    return sorted(names, key=place)


def same(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures are the same, pixel by pixel (as two dead links' placeholders are)."""
    return one.size == other.size and one.tobytes() == other.tobytes()


class Deck:
    """The pictures of one folder in drawn order: each given out once as itself, and as often as asked as a partner.

    Args:
        folder: The folder; its names are listed now, and none is opened.
        key: Strings and integers that draw the order.
        skips: Where damaged pictures are counted, each once.
        label: What stands before a picture's name in `skips`.
    """

    def __init__(self, folder: Path, *key: str | int, skips: Skips, label: str) -> None:
        self._folder, self._skips, self._label = folder, skips, label
        self._names: list[str | None] = [*shuffled(filter(is_picture, names_in(folder)), *key)]
        self._next = self._back = 0

    def __len__(self) -> int:
        """How many pictures there are by name, save those found damaged."""
        return len(self._names) - self._names.count(None)

    def once(self) -> tuple[str, Image.Image] | None:
        """The name and the picture that come next; None when every picture was given out."""
        while self._next < len(self._names):
            self._next += 1
            if (found := self._read(self._next - 1)) is not None:
                return found
        return None

    def partner(self) -> tuple[str, Image.Image] | None:
        """The next name and picture from the other end, round and round; None if no picture can be read."""
        for _ in range(len(self._names)):
            self._back = (self._back or len(self._names)) - 1
            if (found := self._read(self._back)) is not None:
                return found
        return None

    def _read(self, index: int) -> tuple[str, Image.Image] | None:
        name = self._names[index]
        if name is None:
            return None
        try:
            return name, read(self._folder / name)
        except ImageError:
            self._names[index] = None
            self._skips.add(UNREADABLE, f"{self._label}/{name}")
            return None
