"""Files that can prove that they are whole: how they are put in place, hashed, listed and packed.

- `whole` writes a file beside its place (`.part`), syncs it to the disk, moves it into place, and syncs the folder: at
  any moment the file is the old one or the new one. It follows no symbolic link.
- `Manifest` is a list of files with the digest of each, one line a file, to which lines are only added. A line is
  written *before* its file is moved: whatever stands in a place and has no line was not put there by us.
- `packed` and `Packed` are tables of several examples in one Parquet file, a row group each. Pages have checksums, and
  the file says in its own metadata what it is, under a digest of all its bytes: it proves itself, with or without a
  list.

Costs two syncs a file, and a digest of what is written and read (1.7 GB/s). Knows no run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hooked_vlm.errors import RunDirectoryError, cut, quoted

PART = ".part"
RENAMED: Final = {"normalised": "normalized"}  # columns of earlier versions, as they are called now
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # each where there is such a thing
_ABOUT, _SEAL, _NUMBERS = b"hooked-vlm", b"hooked-vlm sha256", "numbers"
_UNSEALED = b"0" * 64  # where the digest of a file is to stand in it


def digest(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_of(values: Any) -> str:
    """The digest of plain values, whatever the order of their keys."""
    return digest(json.dumps(values, sort_keys=True, ensure_ascii=True).encode("ascii"))


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the checksum of its content."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return content | {"checksum": digest_of(content)}


def parsed(text: bytes | str) -> Any:
    """The values that a JSON text holds, whoever wrote it.

    Raises:
        ValueError: if it is none, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep for JSON that a run wrote") from None


# --- single files ---------------------------------------------------------------------------------------


def whole(path: Path, data: bytes) -> Path:
    """Put a file in place, so that it is whole or not there, also after a power cut; nothing is left behind.

    Raises:
        RunDirectoryError: if a symbolic link is in its place.
        OSError: if it cannot be written.
    """
    refuse_link(path)
    part = path.with_name(f"{path.name}{PART}")
    try:
        with suppress(FileNotFoundError):
            part.unlink()  # of a process that was killed; a link is removed, not followed
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        synced(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return path


def refuse_link(path: Path) -> None:
    """Raise RunDirectoryError if a place holds a symbolic link: what is written there would land elsewhere."""
    if path.is_symlink():
        raise RunDirectoryError(
            f"{cut(path)} is a symbolic link to {cut(os.readlink(path))}, and nothing is read or written through "
            "one: remove the link, and the same command goes on"
        )


def refuse_odd(path: Path) -> None:
    """Raise RunDirectoryError if a place holds a symbolic link, a folder, a pipe or a device."""
    refuse_link(path)
    if path.exists() and not path.is_file():
        raise RunDirectoryError(f"{cut(path)} is no ordinary file: remove it, and the same command goes on")


def read(path: Path) -> bytes:
    """What an ordinary file holds.

    Raises:
        RunDirectoryError: if it is a symbolic link, a folder, a pipe or a device.
        OSError: if it cannot be read.
    """
    refuse_odd(path)
    return path.read_bytes()


def place_of(given: Any, what: str) -> Path:
    """A path that was given; an empty one is none, and not the working directory.

    Args:
        given: a text or a path.
        what: what errors say that it is the place of.

    Raises:
        RunDirectoryError: if it is neither, or empty.
    """
    if isinstance(given, str | os.PathLike) and (path := os.fsdecode(given)):
        return Path(path)
    raise RunDirectoryError(f"{what} is {quoted(given)}; expected a path, such as 'runs/first' ('.' for right here)")


def synced(folder: Path) -> None:
    """Let the disk know which names a folder holds."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- the list of files ----------------------------------------------------------------------------------


class Manifest:
    """A list of JSON objects, one a line behind a digest of it: a line that is cut off or damaged is no line.

    Args:
        path: where it is, or is to be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """The entries, in the order in which they were added; none where there is no list."""
        try:
            lines = read(self.path).split(b"\n")
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            found, _, text = line.partition(b" ")
            if found.decode("latin-1") == digest(text):
                entries.append(parsed(text))
        return entries

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an entry; it is on the disk when this returns."""
        refuse_odd(self.path)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINKS, 0o666)
        try:
            left = memoryview(_line(entry))
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rewrite(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Hold these entries and no others; nothing is written where that is so already."""
        lines = b"".join(map(_line, entries))
        if not self.path.exists() or read(self.path) != lines:
            whole(self.path, lines)


def _line(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=True).encode("ascii")
    return f"\n{digest(text)} ".encode("ascii") + text + b"\n"  # begins anew, should the line before be cut off


# --- tables of several examples in one file -------------------------------------------------------------


def packed(tables: Mapping[int, pa.Table], about: Mapping[str, Any]) -> bytes:
    """Tables of one schema as one Parquet file, a row group each, with page checksums.

    The same tables give the same bytes, whether they were just made or read from such a file.

    Args:
        tables: by the number of the example; written in that order.
        about: what the file says of itself.
    """
    plain = {number: _plain(tables[number]) for number in sorted(tables)}
    schema = next(iter(plain.values())).schema
    known = json.dumps({**about, _NUMBERS: list(plain)}, sort_keys=True).encode()
    out = io.BytesIO()
    with pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in plain.values():
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({_ABOUT: known, _SEAL: _UNSEALED})
    data = out.getvalue()
    before, _, after = data.rpartition(_UNSEALED)
    return before + digest(data).encode() + after


def _plain(table: pa.Table) -> pa.Table:
    """A table in the one form that its values have: words coded in the order in which they come."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_dictionary(kind):
            columns[name] = column.cast(kind.value_type).combine_chunks().dictionary_encode()
        else:
            columns[name] = (
                column.cast(pa.list_(pa.field("element", kind.value_type))) if pa.types.is_list(kind) else column
            )
    return pa.table(columns)


class Packed:
    """A file of `packed`, from its bytes.

    Args:
        data: the bytes.

    Raises:
        ValueError: if they are no such file.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            known = self._file.metadata.metadata or {}
            self.about: dict[str, Any] = parsed(known[_ABOUT])
            self.numbers: list[int] = self.about.pop(_NUMBERS)
            before, seal, after = data.rpartition(known[_SEAL])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise ValueError(f"no table that a run wrote ({type(error).__name__}: {error})") from error
        if digest(before + _UNSEALED + after).encode() != seal or len(self.numbers) != self._file.num_row_groups:
            raise ValueError("its content is not what was written")

    @property
    def columns(self) -> list[str]:
        """The names of the tables' columns, as they are called today."""
        return [RENAMED.get(name, name) for name in self._file.schema_arrow.names]

    @property
    def is_as_now(self) -> bool:
        """Whether the columns have today's names in the file too, and not those of an earlier version."""
        return self.columns == self._file.schema_arrow.names

    def tables(self, columns: Sequence[str] | None = None) -> dict[int, pa.Table]:
        """The tables by number, or some of their columns.

        Raises:
            ValueError: if a page is damaged.
        """
        file_names = dict(zip(self.columns, self._file.schema_arrow.names, strict=True))
        wanted = None if columns is None else [file_names[name] for name in columns]
        try:
            tables = [self._file.read_row_group(place, wanted, use_threads=False) for place in range(len(self.numbers))]
        except (OSError, pa.ArrowException) as error:
            raise ValueError(str(error)) from error
        now = [table.rename_columns([RENAMED.get(name, name) for name in table.column_names]) for table in tables]
        return dict(zip(self.numbers, now, strict=True))
