"""To which size image processors bring a picture, and how many patches of it are left: arithmetic alone, no pixels.

Sizes are (width, height) in pixels, grids (rows, columns). Each formula rounds as the processors and models do that
were trained with it, to the pixel, so that the patches counted here are the patches there are. Knows no model: a
processor's settings say which formula is meant. Cost: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import ceil, floor, sqrt

from hooked_vlm.errors import InputsError

Size = tuple[int, int]
Grid = tuple[int, int]


def shortest_edge(size: Size, to: int) -> Size:
    """A picture whose shorter side is brought to `to`, its shape kept."""
    width, height = size
    return (to, int(to * height / width)) if width <= height else (int(to * width / height), to)


def best_resolution(size: Size, choices: Iterable[Size]) -> Size:
    """The resolution that keeps most of a picture's pixels when it is fitted in, and of those the smallest.

    Args:
        size: of the picture.
        choices: (width, height) each.

    Raises:
        InputsError: if there is no choice.
    """
    width, height = size

    def keeps(choice: Size) -> tuple[int, int]:
        scale = min(choice[0] / width, choice[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - choice[0] * choice[1]

    found = max(choices, key=keeps, default=None)
    if found is None:
        raise InputsError("the image processor has no resolution to choose from: expected image_grid_pinpoints")
    return found


def fitted(size: Size, into: Size) -> Size:
    """A picture as large as `into` allows, its shape kept and rounded up."""
    (width, height), (most_x, most_y) = size, into
    x, y = most_x / width, most_y / height
    return (most_x, min(ceil(height * x), most_y)) if x < y else (min(ceil(width * y), most_x), most_y)


def unpadded(size: Size, grid: Grid) -> tuple[int, int]:
    """How many rows and columns of patches are dropped at either end, since they show padding alone.

    Args:
        size: of the picture, before it was fitted into the grid's canvas and padded to it on both sides.
        grid: rows and columns of the canvas.
    """
    (width, height), (rows, columns) = size, grid
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def thinned(grid: Grid, most: int) -> Grid:
    """A grid brought below about `most` patches, where it has a fifth more; a smaller one as it is."""
    rows, columns = grid
    ratio = sqrt(rows * columns / most)
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else grid


def multiple(size: Size, of: int, least: int, most: int) -> Size:
    """A picture whose sides are multiples, its area between two bounds, its shape nearly kept.

    Args:
        size: of the picture.
        of: what both sides are a multiple of.
        least: pixels there are at least.
        most: pixels there are at most.
    """
    width, height = (round(side / of) * of for side in size)
    if width * height > most:
        shrink = sqrt(size[0] * size[1] / most)
        width, height = (max(of, floor(side / shrink / of) * of) for side in size)
    elif width * height < least:
        grow = sqrt(least / (size[0] * size[1]))
        width, height = (ceil(side * grow / of) * of for side in size)
    return width, height


def canvas(size: Size, tile: int, most: int) -> Grid:
    """How many tiles down and across hold a picture: those that enlarge it least, or shrink it least.

    Args:
        size: of the picture.
        tile: side of a tile.
        most: how many tiles there may be.
    """
    grids = [(down, across) for down, across in product(range(1, most + 1), repeat=2) if down * across <= most]
    scales = [min(down * tile / size[1], across * tile / size[0]) for down, across in grids]
    large = [scale for scale in scales if scale >= 1]
    chosen = min(large) if large else max(scales)
    return min((g for g, s in zip(grids, scales, strict=True) if s == chosen), key=lambda grid: grid[0] * grid[1])


def in_canvas(size: Size, tile: int, grid: Grid) -> Size:
    """A picture in a canvas of tiles: enlarged to a tile at most, its shape kept and rounded down.

    Args:
        size: of the picture.
        tile: side of a tile.
        grid: tiles down and across.
    """
    width, height = size
    to_x = min(max(width, tile), grid[1] * tile)
    to_y = min(max(height, tile), grid[0] * tile)
    x, y = to_x / width, to_y / height
    if x < y:
        return to_x, min(floor(height * x) or 1, to_y)
    return min(floor(width * y) or 1, to_x), to_y


def crops(size: Size, least_side: int, most: int, least_ratio: float) -> Grid:
    """How many pieces down and across a long picture is cut into besides; (0, 0) where it is left whole.

    Args:
        size: of the picture.
        least_side: side of a piece at least.
        most: how many pieces there may be.
        least_ratio: of the longer side to the shorter, from which on a picture is long.
    """
    long, short = max(size), min(size)
    if long / short < least_ratio:
        return 0, 0
    n = min(most, max(2, min(floor(long / least_side), floor(long / short + 0.5))))
    if min(ceil(long / n), short) < least_side:
        return 0, 0
    return (1, n) if size[0] >= size[1] else (n, 1)
