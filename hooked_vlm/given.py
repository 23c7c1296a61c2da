"""What comes from outside, looked at before it is used: whether a text says anything, whether a path stays inside.

And what another package says of it, in a line. Costs a walk along the text or the path. Imports the standard library,
and the package's errors.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from hooked_vlm.errors import cut

_SAID = 300  # letters of another package's error
_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # controls, formats (zero-width ones are these), separators
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}


def is_blank(text: str) -> bool:
    r"""Whether nothing of a text can be seen: white space, zero-width characters, fillers.

    Example:
        >>> is_blank(" \u200b\ufeff"), is_blank("is it red?")
        (True, False)
    """
    return all(unicodedata.category(each) in _UNSEEN or each in _FILLERS for each in set(text))


def unwritable(text: str) -> str:
    r"""What in a text no tokenizer and no file can hold, and where; empty if there is nothing.

    Example:
        >>> unwritable("a\0b"), unwritable("is it red?")
        ('a NUL at character 1', '')
    """
    if "\0" in text:
        return f"a NUL at character {text.index(chr(0))}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair, {text[error.start]!a}, at character {error.start}"
    return ""


def leads_out(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> bool:
    """Whether a path, taken from a folder, ends outside it: by its spelling, or by a link on the way.

    A snapshot in a hub's cache (`.../snapshots/<revision>`) is made of links into the `blobs` beside `snapshots`;
    those are inside.

    Args:
        folder: the folder; it may itself be a link.
        name: a path relative to it.

    Example:
        >>> leads_out("data", "../other/cat.png"), leads_out("data", "/etc/passwd"), leads_out("data", "cat.png")
        (True, True, False)
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        return True
    root = Path(os.path.realpath(folder))
    try:
        found = Path(os.path.realpath(root / path))
    except ValueError:  # a name that no file can have, and so leads nowhere
        return False
    if found.is_relative_to(root):
        return False
    snapshots = next((parent for parent in (root, *root.parents) if parent.parent.name == "snapshots"), None)
    return snapshots is None or not found.is_relative_to(snapshots.parent.parent / "blobs")


def line(error: BaseException) -> str:
    r"""The first line of another package's error, shortened, without its full stop; its type where it says nothing.

    Example:
        >>> line(ValueError("no such size.\nSee the manual.")), line(MemoryError())
        ('no such size', 'MemoryError')
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return cut(first.rstrip("."), _SAID)


def told(error: BaseException) -> str:
    """The same with its type in front, for what may be raised by anything.

    Example:
        >>> told(KeyError("size")), told(MemoryError())
        ("KeyError: 'size'", 'MemoryError')
    """
    kind, first = type(error).__name__, line(error)
    return first if first == kind else f"{kind}: {first}"
