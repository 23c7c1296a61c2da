"""The one validator of rows that a user brings, from `pairs.csv` as from parquet: texts, paths, pictures, masks.

A raw row has the columns of `pairs`, texts as strings or None, and pictures as a cell: None, a file's bytes, a path
inside the data's folder, or both in a mapping as `datasets` stores them. `unusable` looks at it without reading a
picture, `whole` decodes them. Costs: a look at the disk for each path.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from hooked_vlm.datasets.pairs import MASKS, PICTURES, misfit
from hooked_vlm.datasets.pictures import UNREADABLE, Skips, same
from hooked_vlm.datasets.questions import SAME
from hooked_vlm.errors import ImageError
from hooked_vlm.given import is_blank, leads_out
from hooked_vlm.images import read

NEEDED = ("image", "corrupt_image", "prompt", "answer", "wrong_answer")  # columns
LEFT_OUT = ("corrupt_image",)  # of them, where a row may have nothing: its text or a masked region is corrupted then
OUTSIDE = "a path leads out of the folder"
OTHER_SIZE = {  # by the column of the mask
    "mask": "no mask: it has another size than its picture",
    "rival_mask": "no mask of the rival: it has another size than its picture",
}

Row = dict[str, Any]


def unusable(row: Mapping[str, Any], folder: Path) -> str:
    """Why a raw row cannot be asked about; empty if it can, as far as its texts and paths tell.

    Args:
        row: The raw row.
        folder: Where its paths begin.
    """
    if empty := [name for name in NEEDED if name not in LEFT_OUT and _is_empty(row.get(name))]:
        return f"the row has no {', '.join(empty)}"
    if reason := misfit(row):
        return reason
    for name in PICTURES:
        data, path = _cell(row.get(name))
        if data is None and path and leads_out(folder, path):
            return OUTSIDE
    return ""


def whole(row: Mapping[str, Any], folder: Path, skips: Skips) -> Row | None:
    """A raw row with its pictures decoded; None, with the reason counted, if it cannot be asked about.

    A mask of another size than its picture is left out, and counted.

    Args:
        row: The raw row, with an id.
        folder: Where its paths begin.
        skips: Where reasons are counted.
    """
    id = str(row["id"])
    if reason := unusable(row, folder):
        skips.add(reason, id)
        return None
    pictures: dict[str, Image.Image | None] = dict.fromkeys(PICTURES)
    try:
        for name in PICTURES:
            if (source := _source(row, name, folder)) is not None:
                pictures[name] = read(*source)
    except ImageError as error:
        skips.add(UNREADABLE, f"{id}: {error}")
        return None
    image, corrupt_image = pictures["image"], pictures["corrupt_image"]
    assert image is not None
    if corrupt_image is not None and same(image, corrupt_image):
        skips.add(SAME, id)
        return None
    for name in MASKS:
        if (mask := pictures[name]) is not None:
            fits = mask.size == image.size
            pictures[name] = mask.convert("L") if fits else None
            if not fits:
                skips.add(OTHER_SIZE[name], id)
    return {**row, **pictures}


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return is_blank(value)
    return value is None or (isinstance(value, Mapping) and _cell(value) == (None, ""))


def _cell(value: Any) -> tuple[bytes | None, str]:
    """The bytes and the path in a picture's cell; None and "" for what is not there."""
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
    else:
        data, path = (value, None) if isinstance(value, bytes) else (None, value)
    return data or None, os.fspath(path) if path else ""


def _source(row: Mapping[str, Any], name: str, folder: Path) -> tuple[Path | bytes, str] | None:
    data, path = _cell(row.get(name))
    if data is not None:
        return data, f"{name} of row {row['id']}"
    return (folder / path, str(folder / path)) if path else None
