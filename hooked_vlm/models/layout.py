"""What stands at each position that an image has: a family declares it here, and `VLMInputs` names positions by it.

An image is a sequence of `Role`s, in the order of its tokens: made by `grid`, `tiles`, `unpadded` or `queries`, out of
what the family's processor returned (sizes, grids, numbers of tiles), and joined with +. A model sees a picture in one
view or several: LLaVA-NeXT whole (view 0) and in tiles (view 1). Rows and columns count within a view; which part of
the picture a view shows, `hooked_vlm.viz.Geometry` says. Knows no model. Cost: a tuple a position, made once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from hooked_vlm import resizing


class Role(NamedTuple):
    """What stands at a position: "text", "padding", or a part of an image.

    Args:
        kind: "text", "padding", or of an image: "patch", "class token", "newline" (ends a row), "query" (has read
            the whole image), "padding" (of a tile that is none). Only a patch shows one region of the picture.
        image: the image's number in the batch, None elsewhere.
        row: the patch's row in its view, from the top; the row that a newline ends.
        column: its column, from the left.
        view: which of the image's views it belongs to; 0 where there is one.
        tile: the tile it was cut from, row by row of tiles; None where the view is not cut into tiles.
    """

    kind: str
    image: int | None = None
    row: int | None = None
    column: int | None = None
    view: int = 0
    tile: int | None = None


Image = tuple[Role, ...]  # what stands at each of an image's positions; whose it is, the inputs know


@dataclass(frozen=True)
class Layout:
    """How a model family lays out its sequence: what `VLMInputs` needs to name positions.

    Args:
        tokenizer: a Hugging Face tokenizer, or None.
        image_processor: a Hugging Face image processor, or None.
        image_token_id: the placeholder's id where image and text share one sequence (LLaVA), else None.
        patch_size: side of a patch in pixels. Without an `image_token_id` the patches are keys of cross-attention,
            after a class token (BLIP).
        images: from inputs to what stands at the positions of each of their images, in order. None where every image
            is one grid, that of its pixels.
        image_parts: what the processor says of each image, a row each: "image_sizes", "image_grid_thw", ...
        pixel_axes: of `pixel_values`. If the first is "batch", the rows of it and of the parts are the batch's.
        pixel_rows: from inputs to how many rows of `pixel_values` each image has, where it is not one.
    """

    tokenizer: Any = None
    image_processor: Any = None
    image_token_id: int | None = None
    patch_size: int | None = None
    images: Callable[[Any], Sequence[Image]] | None = None
    image_parts: tuple[str, ...] = ()
    pixel_axes: tuple[str, ...] = ("image", "channel", "height", "width")
    pixel_rows: Callable[[Any], Sequence[int]] | None = None


@cache
def grid(rows: int, columns: int, *, view: int = 0, class_token: bool = False, blocks: int = 1) -> Image:
    """A grid of patches, row by row.

    Args:
        rows: of patches.
        columns: of patches.
        view: the image's view that they make up.
        class_token: whether one stands before them.
        blocks: side of the blocks of patches that stand together, as in a tower that merges each block (Qwen-VL's).

    >>> [(role.row, role.column) for role in grid(2, 4, blocks=2)][:5]
    [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]
    """
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    cells.sort(key=lambda cell: (cell[0] // blocks, cell[1] // blocks) if blocks > 1 else cell)
    before = (Role("class token", view=view),) * class_token
    return before + tuple(Role("patch", None, row, column, view) for row, column in cells)


@cache
def tiles(
    down: int, across: int, rows: int, columns: int, *, view: int = 0, class_token: bool = False, n_tiles: int = 0
) -> Image:
    """A canvas of tiles, one after another, each row by row (Llama-3.2-Vision's).

    Args:
        down: tiles down.
        across: tiles across.
        rows: of patches in a tile.
        columns: of patches in a tile.
        view: the image's view that the canvas makes up.
        class_token: whether one stands before each tile's patches.
        n_tiles: how many tiles there are places for: those that are left are padding.
    """
    found: list[Role] = []
    for tile in range(max(n_tiles, down * across)):
        top, left = (tile // across * rows, tile % across * columns)
        found += [Role("class token", view=view, tile=tile)] * class_token
        found += [
            Role("patch", None, top + row, left + column, view, tile)
            for row in range(rows)
            for column in range(columns)
        ]
        if tile >= down * across:
            n = rows * columns + class_token
            found[-n:] = [Role("padding", view=view, tile=tile)] * n
    return tuple(found)


@cache
def unpadded(
    size: tuple[int, int],
    tiles: tuple[int, int],
    side: int,
    *,
    view: int = 1,
    newline: bool = True,
    most: int | None = None,
) -> Image:
    """A canvas of tiles, row by row over all of them, without the padding, each row ended by a newline (LLaVA-NeXT's).

    Args:
        size: (width, height) of the picture.
        tiles: down and across.
        side: rows and columns of patches in a tile.
        view: the image's view that the canvas makes up.
        newline: whether newline tokens end the rows.
        most: the tiles' worth of patches above which they are thinned out (LLaVA-OneVision); a patch is then no
            tile's.
    """
    rows, columns = tiles[0] * side, tiles[1] * side
    top, left = resizing.unpadded(size, (rows, columns))
    whole = (rows - 2 * top, columns - 2 * left)
    kept = whole if most is None else resizing.thinned(whole, most * side**2)
    found: list[Role] = []
    for row in range(kept[0]):
        for column in range(kept[1]):
            tile = None if kept != whole else (row + top) // side * tiles[1] + (column + left) // side
            found.append(Role("patch", None, row, column, view, tile))
        found += [Role("newline", None, row, view=view)] * newline
    return tuple(found)


@cache
def queries(n: int) -> Image:
    """Tokens that have each read the whole image (BLIP-2's): none shows a region."""
    return (Role("query"),) * n
