"""Where a model's image patches lie in the picture that was given to it.

A processor may pad a picture to a square, resize it (BLIP: to a square, whatever its shape; CLIP: its shortest edge)
and crop the centre before a model cuts it into patches. `Geometry` undoes that, so that one number a patch can be
drawn over the picture as it was, and a mask of the picture becomes one share a patch. Cost: nothing to speak of.
Knows no model: it reads the settings of the image processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from hooked_vlm.errors import InputsError, PositionError
from hooked_vlm.images import to_rgb

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

    >>> seen = Geometry(size=(100, 50), grid=(2, 2), box=(25, 0, 75, 50))  # the centre of a wide picture
    >>> seen.where(3)
    (50.0, 25.0, 75.0, 50.0)
    >>> seen.patch_at(30, 40), seen.patch_at(10, 10)
    (2, None)
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    box: Box

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if min(*self.size, *self.grid) < 1 or right <= left or bottom <= top:
            raise InputsError(
                f"a picture of {self.size[0]} x {self.size[1]} pixels with {self.grid[0]} x {self.grid[1]} patches in "
                f"the box {self.box}: expected sizes of at least 1, and left < right, top < bottom"
            )

    @classmethod
    def of(cls, processor: Any, image: Any, patch_size: int) -> Geometry:
        """Where the patches lie that a processor makes of a picture.

        Args:
            processor: a Hugging Face image processor, or a processor that has one (`model.processor`).
            image: the picture as it was given to the model (anything `picture` reads), or its (width, height).
            patch_size: side of a patch in the processed image's pixels (`model.vision_encoder.patch_size`).

        Raises:
            InputsError: if the processor's size or the patch size cannot be read.
            ImageError: if the picture cannot be read.
        """
        processor = getattr(processor, "image_processor", processor)
        width, height = image if isinstance(image, tuple) else picture(image).size
        pad_x = pad_y = 0
        if getattr(processor, "do_pad", None) and hasattr(processor, "pad_to_square"):
            side = max(width, height)
            pad_x, pad_y = (side - width) // 2, (side - height) // 2
        whole = (width, height) if not (pad_x or pad_y) else (max(width, height),) * 2
        resized = _resized(processor, *whole)
        seen = _cropped(processor, *resized)
        rows, columns = seen[1] // int(patch_size), seen[0] // int(patch_size)
        if rows < 1 or columns < 1:
            raise InputsError(f"an image of {seen[0]} x {seen[1]} pixels has no patch of {patch_size}")
        cut_x, cut_y = ((r - s) // 2 for r, s in zip(resized, seen, strict=True))
        per_x, per_y = whole[0] / resized[0], whole[1] / resized[1]  # pixels of the picture in one processed pixel
        box = (
            cut_x * per_x - pad_x,
            cut_y * per_y - pad_y,
            (cut_x + columns * patch_size) * per_x - pad_x,
            (cut_y + rows * patch_size) * per_y - pad_y,
        )
        return cls((int(width), int(height)), (rows, columns), box)

    @property
    def n_patches(self) -> int:
        """How many patches there are."""
        return self.grid[0] * self.grid[1]

    @property
    def boxes(self) -> Float[np.ndarray, "patch 4"]:
        """Left, top, right and bottom of every patch in the picture's pixels, [patch 4]."""
        x, y = self._edges
        rows, columns = np.divmod(np.arange(self.n_patches), self.grid[1])
        return np.stack([x[columns], y[rows], x[columns + 1], y[rows + 1]], 1)

    def where(self, patch: int) -> Box:
        """Left, top, right and bottom of a patch in the picture's pixels.

        Raises:
            PositionError: if there is no such patch.
        """
        left, top, right, bottom = self.boxes[self._known(patch)].tolist()
        return left, top, right, bottom

    def patch_at(self, x: Number, y: Number) -> int | None:
        """The patch that a point of the picture lies in; None where the model sees nothing."""
        edges_x, edges_y = self._edges
        column, row = np.searchsorted(edges_x, x, "right") - 1, np.searchsorted(edges_y, y, "right") - 1
        inside = 0 <= row < self.grid[0] and 0 <= column < self.grid[1]
        return int(row * self.grid[1] + column) if inside else None

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
        x, y = self._edges
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
                f"{self.n_patches} patches: take the image positions alone, e.g. pattern[..., inputs.image_span]"
            )
        return found.reshape(*found.shape[:-1], *self.grid)

    @property
    def _edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        left, top, right, bottom = self.box
        return np.linspace(left, right, self.grid[1] + 1), np.linspace(top, bottom, self.grid[0] + 1)

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


def _overlaps(edges: NDArray[np.float64], n_pixels: int) -> NDArray[np.float64]:
    """How much of each pixel each interval covers, [interval pixel]."""
    pixel = np.arange(n_pixels)
    low, high = edges[:-1, None], edges[1:, None]
    return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)


def _entry(size: Any, name: str) -> int | None:
    found = size.get(name) if isinstance(size, dict) else getattr(size, name, None)
    return None if found is None else int(found)


def _resized(processor: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height after the processor's resizing."""
    if not getattr(processor, "do_resize", True):
        return width, height
    size = getattr(processor, "size", None)
    to_width, to_height = _entry(size, "width"), _entry(size, "height")
    if to_width is not None and to_height is not None:
        return to_width, to_height
    shortest = _entry(size, "shortest_edge")
    if shortest is None or _entry(size, "longest_edge") is not None:
        raise InputsError(
            f"the image processor's size is {size}; expected height and width, or shortest_edge. For others, make "
            "viz.Geometry(size, grid, box) by hand"
        )
    if width <= height:
        return shortest, int(shortest * height / width)
    return int(shortest * width / height), shortest


def _cropped(processor: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height after the processor's centre crop."""
    if not getattr(processor, "do_center_crop", None):
        return width, height
    size = getattr(processor, "crop_size", None)
    to_width, to_height = _entry(size, "width"), _entry(size, "height")
    if to_width is None or to_height is None:
        raise InputsError(f"the image processor's crop_size is {size}; expected height and width")
    return to_width, to_height
