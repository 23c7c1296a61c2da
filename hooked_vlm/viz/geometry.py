"""Where a model's image patches lie in the picture that was given to it.

A processor may pad a picture to a square, resize it (BLIP: to a square, whatever its shape; CLIP: its shortest edge),
crop the centre, or cut it into tiles before a model cuts it into patches. `Geometry` undoes that, so that one number a
patch can be drawn over the picture as it was, and a mask of the picture becomes one share a patch. Cost: nothing to
speak of. Knows no model: `views` reads the settings of the image processor.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from hooked_vlm.errors import InputsError, PositionError
from hooked_vlm.images import to_rgb
from hooked_vlm.viz.views import Spans, View, edges, views

Number = float | int
Box = tuple[Number, Number, Number, Number]


@dataclass(frozen=True)
class Geometry:
    """A grid of patches over a picture.

    Patches are numbered row by row from the top left, as vision towers number them after their class token.

    Args:
        size: width and height of the picture in pixels.
        grid: rows and columns of patches.
        box: left, top, right and bottom of the whole grid in the picture's pixels. What the processor cropped away
            lies outside; where it padded, the box reaches beyond the picture.
        spans: which part of the width each column shows and which of the height each row, where they do not share
            the box evenly: a tile's last pixels may be no whole patch. Maps are drawn evenly all the same.
        others: where the patches of the picture's further views lie; `view` gives them.

    >>> seen = Geometry(size=(100, 50), grid=(2, 2), box=(25, 0, 75, 50))  # the centre of a wide picture
    >>> seen.where(3)
    (50.0, 25.0, 75.0, 50.0)
    >>> seen.patch_at(30, 40), seen.patch_at(10, 10)
    (2, None)
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    box: Box
    spans: View | None = None
    others: tuple[Geometry, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if min(*self.size, *self.grid) < 1 or right <= left or bottom <= top:
            raise InputsError(
                f"a picture of {self.size[0]} x {self.size[1]} pixels with {self.grid[0]} x {self.grid[1]} patches in "
                f"the box {self.box}: expected sizes of at least 1, and left < right, top < bottom"
            )

    @classmethod
    def of(cls, processor: Any, image: Any, patch_size: int, *, tiled: bool = True) -> Geometry:
        """Where the patches lie that a processor makes of a picture: of its first view, which knows the others.

        Args:
            processor: a processor (`model.processor`), or a Hugging Face image processor.
            image: the picture as it was given to the model (anything `picture` reads), or its (width, height).
            patch_size: side of a patch in the processed image's pixels (`model.vision_encoder.patch_size`); where
                patches are merged into one position, the side of what one position shows.
            tiled: False where a processor that can make tiles made none of this picture, as LLaVA-OneVision's does
                where a prompt has several.

        Raises:
            InputsError: if the processor's size or the patch size cannot be read.
            ImageError: if the picture cannot be read.
        """
        width, height = image if isinstance(image, tuple) else picture(image).size
        size = (int(width), int(height))
        first, *rest = (cls._of_view(size, view) for view in views(processor, size, int(patch_size), tiled))
        return replace(first, others=tuple(rest))

    @classmethod
    def _of_view(cls, size: tuple[int, int], view: View) -> Geometry:
        columns, rows = view.columns, view.rows
        box = (columns[0][0], rows[0][0], columns[-1][1], rows[-1][1])
        found = cls(size, (len(rows), len(columns)), box)
        even = all(np.allclose(edges(a), edges(b)) for a, b in zip(found._axes, (columns, rows), strict=True))
        return found if even else replace(found, spans=view)

    def view(self, number: int) -> Geometry:
        """Where the patches of one of the picture's views lie; 0 is this one.

        Raises:
            PositionError: if there is no such view.
        """
        if not 0 <= number <= len(self.others):
            raise PositionError(f"there is no view {number}; the picture has views 0 to {len(self.others)}")
        return self.others[number - 1] if number else self

    def region(self, role: Any) -> Box | None:
        """Left, top, right and bottom of what a position shows of the picture; None where it shows no region of it.

        Newlines, class tokens, queries and text show none, and neither does a patch of padding alone.

        Args:
            role: what stands at the position, one of `inputs.roles`, of this picture: `role.image` says of which.

        Raises:
            PositionError: if the picture has no such view, row or column.
        """
        if role.kind != "patch":
            return None
        seen = self.view(role.view)
        rows, columns = seen.grid
        if not (0 <= role.row < rows and 0 <= role.column < columns):
            raise PositionError(
                f"the position is row {role.row}, column {role.column} of image {role.image}, and the geometry has "
                f"{rows} x {columns} patches there: make it of that image, with what one position shows as patch_size"
            )
        left, top, right, bottom = seen.where(role.row * columns + role.column)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, self.size[0]), min(bottom, self.size[1])
        return (left, top, right, bottom) if left < right and top < bottom else None

    @property
    def n_patches(self) -> int:
        """How many patches there are."""
        return self.grid[0] * self.grid[1]

    @property
    def boxes(self) -> Float[np.ndarray, "patch 4"]:
        """Left, top, right and bottom of every patch in the picture's pixels, [patch 4]."""
        x, y = map(edges, self._axes)
        rows, columns = np.divmod(np.arange(self.n_patches), self.grid[1])
        return np.stack([x[columns, 0], y[rows, 0], x[columns, 1], y[rows, 1]], 1)

    def where(self, patch: int) -> Box:
        """Left, top, right and bottom of a patch in the picture's pixels.

        Raises:
            PositionError: if there is no such patch.
        """
        left, top, right, bottom = self.boxes[self._known(patch)].tolist()
        return left, top, right, bottom

    def patch_at(self, x: Number, y: Number) -> int | None:
        """The patch that a point of the picture lies in; None where the model sees nothing."""
        column, row = (_within(spans, at) for spans, at in zip(self._axes, (x, y), strict=True))
        return None if row is None or column is None else row * self.grid[1] + column

    def shares(self, mask: Any) -> Float[np.ndarray, " patch"]:
        """How much of each patch a mask covers, 0 to 1: exact areas, whatever the resizing.

        Args:
            mask: [height width] of the picture, or a picture; what is not zero is covered.

        Raises:
            InputsError: if the mask has another size than the picture.
        """
        covered = _mask(mask)
        if covered.shape != self.size[::-1]:
            raise InputsError(
                f"the mask is {covered.shape[1]} x {covered.shape[0]} and the picture {self.size[0]} x "
                f"{self.size[1]} pixels: they must be alike"
            )
        x, y = map(edges, self._axes)
        area = np.outer(np.diff(y), np.diff(x))
        return ((_overlaps(y, covered.shape[0]) @ covered @ _overlaps(x, covered.shape[1]).T) / area).reshape(-1)

    def cells(self, values: Any) -> NDArray[np.float64]:
        """One number a patch as rows and columns, [... patch] to [... row column].

        Raises:
            InputsError: if there are not as many numbers as patches.
        """
        found = array(values)
        if found.shape[-1:] != (self.n_patches,):
            raise InputsError(
                f"{found.shape[-1] if found.ndim else 'one'} values for {self.grid[0]} x {self.grid[1]} = "
                f"{self.n_patches} patches: take the positions of one image alone, e.g. pattern[..., "
                "inputs.image_span], or of several pattern[..., inputs.grid(0).flatten()]"
            )
        return found.reshape(*found.shape[:-1], *self.grid)

    @property
    def _axes(self) -> tuple[Spans, Spans]:
        """Where columns begin and end, and rows."""
        if self.spans is not None:
            return self.spans.columns, self.spans.rows
        left, top, right, bottom = self.box
        x, y = np.linspace(left, right, self.grid[1] + 1), np.linspace(top, bottom, self.grid[0] + 1)
        return tuple(pairwise(x.tolist())), tuple(pairwise(y.tolist()))

    def _known(self, patch: int) -> int:
        if not 0 <= patch < self.n_patches:
            raise PositionError(f"there is no patch {patch}; the grid has {self.n_patches}, numbered from 0")
        return patch


def picture(image: Any) -> Image.Image:
    """A picture in RGB, upright as a camera's EXIF data says, which is how models get it.

    Args:
        image: a PIL image, a path, or an array or tensor [height width] or [height width channel] (also
            [channel height width]) of uint8, or of floats in 0..1.

    Raises:
        ImageError: if it is none of these, or the file cannot be read.
    """
    return to_rgb(image, "the picture")


def array(values: Any) -> NDArray[np.float64]:
    """Numbers of any kind (tensor on any device, list, array) as float64.

    Raises:
        InputsError: if they are no numbers.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()  # NumPy has no bfloat16
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputsError(f"a {type(values).__name__} holds no table of numbers: {error}") from error


def _mask(mask: Any) -> NDArray[np.float64]:
    found = array(mask)
    if found.ndim == 3:  # an RGB mask
        found = found.max(-1)
    if found.ndim != 2:
        raise InputsError(f"a mask of shape {found.shape}: expected [height width]")
    return (found != 0).astype(np.float64)


def _within(spans: Spans, at: Number) -> int | None:
    """Which span a place lies in."""
    return next((k for k, (start, stop) in enumerate(spans) if start <= at < stop), None)


def _overlaps(spans: NDArray[np.float64], n_pixels: int) -> NDArray[np.float64]:
    """How much of each pixel each interval covers, [interval pixel]."""
    pixel = np.arange(n_pixels)
    low, high = spans[:, :1], spans[:, 1:]
    return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
