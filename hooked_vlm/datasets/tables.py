"""Tables of comma-separated values, read strictly: every line has the header's cells, or the file and line are named.

A table is UTF-8, with or without a mark at its beginning (RFC 4180 for the rest: cells with commas, quotes or line
breaks stand in double quotes, quotes in them twice). Costs: one line at a time. Knows no data set.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hooked_vlm.errors import DataError, TaskSchemaError, cut, quoted

_MARKS = {  # longest first: UTF-32's begins with UTF-16's
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"
_AS_UTF8 = "Save it as UTF-8 (in a spreadsheet: CSV UTF-8)"


def lines(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table by column, without the white space around cells; empty lines are left out.

    Args:
        path: The file.
        needed: Columns that it must have.
        optional: Columns that are "" where it has none; others are not read. The first may have no name, as where a
            data frame numbers its rows.

    Yields:
        The number of the line (of its last, where a cell has line breaks; the header is line 1), and its cells.

    Raises:
        TaskSchemaError: A column is missing, there are two of one name, or one that holds something has no name.
        DataError: It is no regular file, it is not UTF-8, a quote is not closed or stands where none can, or a line
            has not as many cells as the header. The message names the line.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} is no file that can be read as a table.")
    texts = _texts(path)
    reader = csv.reader(texts, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        _check_header(path, header, needed, optional)
        for cells in reader:
            if not any(cell.strip() for cell in cells) and len(cells) < 2:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"Line {reader.line_num} of {str(path)!r} has {len(cells)} cells and the header {len(header)}: a "
                    'cell with commas in it stands in double quotes, "so, then".'
                )
            if lost := next((i for i, name in enumerate(header) if i and not name and cells[i].strip()), 0):
                raise TaskSchemaError(
                    f"Line {reader.line_num} of {str(path)!r} holds {quoted(cells[lost])} in column {lost + 1}, which "
                    "the header does not name: name the column, or empty it."
                )
            line = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            yield reader.line_num, {name: line.get(name, "") for name in (*needed, *optional)}
    except csv.Error as error:
        raise DataError(
            f"Line {reader.line_num} of {str(path)!r} cannot be read as comma-separated cells: {error}. A quote inside "
            'a cell is written twice, "like ""this""", and a cell that begins with one ends with one.'
        ) from error


def _check_header(path: Path, header: list[str], needed: Sequence[str], optional: Sequence[str]) -> None:
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise TaskSchemaError(f"{str(path)!r} has two columns called {cut(', '.join(map(repr, twice)))}: names differ.")
    if missing := [name for name in needed if name not in header]:
        also = f" (and {', '.join(optional)}, where wanted)" if optional else ""
        raise TaskSchemaError(
            f"{str(path)!r} has no column {', '.join(missing)}: expected {', '.join(needed)}{also}; "
            f"found {cut(', '.join(header)) or 'nothing'}."
        )


def _texts(path: Path) -> Iterator[str]:
    """The file's lines as text, decoded one at a time, so that one that is not UTF-8 has a number."""
    try:
        with path.open("rb") as opened:
            number = 0
            for raw in opened:
                if not number:
                    for mark, encoding in _MARKS.items():
                        if raw.startswith(mark):
                            raise DataError(f"{str(path)!r} is {encoding}, not UTF-8. {_AS_UTF8}.")
                    raw = raw.removeprefix(_UTF8_MARK)
                for piece in re.split(rb"(?<=\r)(?!\n)", raw):  # old ones end with \r alone
                    if piece:
                        number += 1
                        yield _text(path, number, piece)
    except OSError as error:
        raise DataError(f"{os.fspath(path)!r} cannot be read ({error.strerror or error}).") from error


def _text(path: Path, number: int, raw: bytes) -> str:
    if b"\0" in raw:
        raise DataError(f"Line {number} of {str(path)!r} holds a NUL: it is damaged, or not UTF-8. {_AS_UTF8}.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = raw[max(0, error.start - 10) : error.start + 10].decode("cp1252", "replace")
        raise DataError(
            f"Line {number} of {str(path)!r} is not UTF-8 (byte {raw[error.start]:#04x}; in Windows-1252, which is "
            f"near to Latin-1, it reads {shown!r}). {_AS_UTF8}."
        ) from error
