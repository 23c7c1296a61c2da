"""In which views an image processor shows a picture to a model, and which part of the picture each patch shows.

Most processors show it once: padded to a square, resized, its centre cropped, or resized to whole patches and no fixed
size. Some show it in tiles, alone or beside the whole, some in crops. Read off the settings of the processor; no pixel
is touched. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooked_vlm import resizing
from hooked_vlm.errors import InputsError
from hooked_vlm.resizing import Size

BY_HAND = "For others, make viz.Geometry(size, grid, box) by hand"
Spans = tuple[tuple[float, float], ...]  # where each of a row of patches begins and ends, in the picture's pixels


@dataclass(frozen=True)
class View:
    """A grid of patches: the part of the picture's width that each column shows, and of its height that each row does.

    Args:
        columns: left and right of each.
        rows: top and bottom of each.
    """

    columns: Spans
    rows: Spans


def views(processor: Any, size: Size, patch: int, tiled: bool) -> list[View]:
    """The views of a picture.

    Args:
        processor: a Hugging Face processor, or its image processor.
        size: of the picture, (width, height).
        patch: side of a patch in the processed image's pixels.
        tiled: whether tiles are made where the processor can make them.

    Raises:
        InputsError: if the settings are of no kind that is known here, or an image has no patch.
    """
    pictures = getattr(processor, "image_processor", processor)
    if tiled and getattr(pictures, "image_grid_pinpoints", None):
        return _whole_and_tiles(pictures, size, patch, _most_tiles(processor))
    if getattr(pictures, "max_image_tiles", None):
        return [_in_canvas(pictures, size, patch)]
    if getattr(pictures, "do_pan_and_scan", None) and tiled:
        return [_whole(pictures, size, patch), *_crops(pictures, size, patch)]
    return [_whole(pictures, size, patch)]


def _axis(n_pixels: int, patch: int, per: float, start: float = 0.0, n_tiles: int = 1) -> Spans:
    """Where patches begin and end along one side, in the picture's pixels: whole ones only, in each tile.

    Args:
        n_pixels: of a tile, in the processed image.
        patch: side of a patch.
        per: the picture's pixels in one of the processed image's.
        start: where the first tile begins in the picture.
        n_tiles: how many tiles there are.
    """
    starts = [tile * n_pixels + k * patch for tile in range(n_tiles) for k in range(n_pixels // patch)]
    if not starts:
        raise InputsError(f"an image of {n_pixels} pixels a side has no patch of {patch}")
    return tuple((start + at * per, start + (at + patch) * per) for at in starts)


def _whole(pictures: Any, size: Size, patch: int) -> View:
    """The picture once: padded to a square, resized and cropped, each if the settings say so."""
    padded, pad = size, (0, 0)
    if getattr(pictures, "do_pad", None) and hasattr(pictures, "pad_to_square"):
        side = max(size)
        padded, pad = (side, side), ((side - size[0]) // 2, (side - size[1]) // 2)
    resized = _resized(pictures, padded)
    seen = _cropped(pictures, resized)
    if min(seen) < patch:
        raise InputsError(f"an image of {seen[0]} x {seen[1]} pixels has no patch of {patch}")
    spans = []
    for whole, brought, kept, before in zip(padded, resized, seen, pad, strict=True):
        per = whole / brought
        spans.append(_axis(kept, patch, per, (brought - kept) // 2 * per - before))
    return View(*spans)


def _whole_and_tiles(pictures: Any, size: Size, patch: int, most: int | None) -> list[View]:
    """The picture squeezed to a tile, and as large as the best resolution allows, cut into tiles and unpadded."""
    side = _tile_side(pictures)
    best = resizing.best_resolution(size, [(width, height) for height, width in pictures.image_grid_pinpoints])
    if best[0] % side or best[1] % side:
        raise InputsError(f"a canvas of {best[0]} x {best[1]} pixels is not cut into tiles of {side}. {BY_HAND}")
    base = View(*(_axis(side, patch, length / side) for length in size))
    fitted = resizing.fitted(size, best)
    spans = []
    for length, brought, whole in zip(size, fitted, best, strict=True):
        per = length / brought
        spans.append(_axis(side, patch, per, -((whole - brought) // 2) * per, whole // side))
    columns, rows = spans
    top, left = resizing.unpadded(size, (len(rows), len(columns)))
    rows, columns = rows[top : len(rows) - top], columns[left : len(columns) - left]
    if most is not None:
        kept = resizing.thinned((len(rows), len(columns)), most * (side // patch) ** 2)
        rows, columns = _thinned(rows, kept[0]), _thinned(columns, kept[1])
    return [base, View(columns, rows)] if rows and columns else [base]


def _tile_side(pictures: Any) -> int:
    size, crop = getattr(pictures, "size", None), getattr(pictures, "crop_size", None)
    sides = {_entry(size, name) for name in ("height", "width", "shortest_edge")}
    if getattr(pictures, "do_center_crop", None):
        sides |= {_entry(crop, name) for name in ("height", "width")}
    sides -= {None}
    if len(sides) != 1:
        raise InputsError(f"the image processor's tiles of {size} are cropped to {crop}: expected one side. {BY_HAND}")
    return int(sides.pop() or 0)


def _most_tiles(processor: Any) -> int | None:
    """Above how many tiles' worth of patches the model thins them out: "anyres_max_9" says 9."""
    found = str(getattr(processor, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    return int(found) if found.isdecimal() else None


def _thinned(spans: Spans, n: int) -> Spans:
    """`n` even parts of what so many patches show."""
    if n == len(spans):
        return spans
    known = [*(start for start, _ in spans), spans[-1][1]]
    cuts = np.interp(np.linspace(0, len(spans), n + 1), np.arange(len(known)), known)
    return tuple(pairwise(cuts.tolist()))


def _in_canvas(pictures: Any, size: Size, patch: int) -> View:
    """The picture in the top left of a canvas of tiles."""
    side = _entry(getattr(pictures, "size", None), "height")
    if side is None:
        raise InputsError(f"the image processor's size is {pictures.size}; expected height and width. {BY_HAND}")
    down, across = resizing.canvas(size, side, int(pictures.max_image_tiles))
    brought = resizing.in_canvas(size, side, (down, across))
    per = (size[0] / brought[0], size[1] / brought[1])
    return View(_axis(side, patch, per[0], n_tiles=across), _axis(side, patch, per[1], n_tiles=down))


def _crops(pictures: Any, size: Size, patch: int) -> list[View]:
    """Pieces of a long picture, each squeezed like the whole."""
    settings = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
    down, across = resizing.crops(size, *(getattr(pictures, f"pan_and_scan_{name}") for name in settings))
    found = []
    for row, column in product(range(down), range(across)):
        wide, high = ceil(size[0] / across), ceil(size[1] / down)
        left, top = column * wide, row * high
        piece = (min(wide, size[0] - left), min(high, size[1] - top))
        view = _whole(pictures, piece, patch)
        found.append(View(_moved(view.columns, left), _moved(view.rows, top)))
    return found


def _moved(spans: Spans, by: int) -> Spans:
    return tuple((start + by, stop + by) for start, stop in spans)


def _entry(size: Any, name: str) -> int | None:
    found = size.get(name) if isinstance(size, dict) else getattr(size, name, None)
    return None if found is None else int(found)


def _resized(pictures: Any, size: Size) -> Size:
    """A picture's size after the processor's resizing."""
    if not getattr(pictures, "do_resize", True):
        return size
    given = getattr(pictures, "size", None)
    width, height = _entry(given, "width"), _entry(given, "height")
    if width is not None and height is not None:
        return width, height
    shortest, longest = _entry(given, "shortest_edge"), _entry(given, "longest_edge")
    merged = getattr(pictures, "merge_size", None)
    if shortest is not None and longest is not None and merged:  # of such processors, least and most pixels
        return resizing.multiple(size, int(pictures.patch_size) * int(merged), shortest, longest)
    if shortest is None or longest is not None:
        raise InputsError(
            f"the image processor's size is {given}; expected height and width, or shortest_edge. {BY_HAND}"
        )
    return resizing.shortest_edge(size, shortest)


def _cropped(pictures: Any, size: Size) -> Size:
    """A picture's size after the processor's centre crop."""
    if not getattr(pictures, "do_center_crop", None):
        return size
    given = getattr(pictures, "crop_size", None)
    width, height = _entry(given, "width"), _entry(given, "height")
    if width is None or height is None:
        raise InputsError(f"the image processor's crop_size is {given}; expected height and width")
    return width, height


def edges(spans: Spans) -> NDArray[np.float64]:
    """Spans as an array, [patch 2]."""
    return np.asarray(spans, dtype=np.float64)
