"""Anything a user may call an image, as an RGB `PIL.Image`, or an error that names it.

Cost: one decoded image. Imports Pillow and NumPy only.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hooked_vlm.errors import ImageError

_DAMAGE = (SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises besides OSError
_BOMB_WAY_OUT = "Resize it first, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"


def to_rgb(image: Any, name: str = "image") -> Image.Image:
    """`image` as an RGB picture.

    Greyscale, palette, CMYK and RGBA pictures are converted as Pillow converts them (transparency is dropped,
    not blended), 16 bits and floats in 0..1 are scaled to 8 bits, and a camera's EXIF rotation is applied.

    Args:
        image: a PIL image; a path; an array or tensor [height width], [height width channel] or
            [channel height width] of uint8 in 0..255 or floats in 0..1.
        name: what error messages call it, e.g. "image 3".

    Raises:
        ImageError: if the file is missing, unreadable, truncated or a decompression bomb, or if the array
            has another shape, dtype or range.
    """
    if isinstance(image, (str, os.PathLike)):
        return _opened(os.fspath(image))
    if isinstance(image, Image.Image):
        return _decoded(image, getattr(image, "filename", "") or name)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    raise ImageError(
        f"{name} is a {type(image).__name__}; expected a PIL image, a path, a NumPy array or a tensor. "
        "Preprocessed pixels go in VLMInputs(pixel_values=..., input_ids=...)"
    )


def to_rgb_list(images: Any) -> list[Image.Image]:
    """One image or several, as a list: a list or tuple, a batch [batch ...] in one array, or a single one.

    Raises:
        ImageError: as `to_rgb`, naming the index; or if the list is empty.
    """
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
        return [to_rgb(images)]
    if not len(images):
        raise ImageError("the list of images is empty; expected at least one")
    return [to_rgb(image, f"image {i}") for i, image in enumerate(images)]


def _opened(path: str) -> Image.Image:
    if not os.path.exists(path):
        raise ImageError(f"there is no image file {path!r}; check the path, or pass a PIL image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with the way out
            opened = Image.open(path)
        with opened as image:
            return _decoded(image, path)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path!r} may be a decompression bomb: {error}. {_BOMB_WAY_OUT}") from error
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path!r} is not an image that Pillow can read; convert it to PNG or JPEG") from error
    except (OSError, *_DAMAGE) as error:
        raise ImageError(f"{path!r} cannot be read ({error}); check the file, or convert it to PNG or JPEG") from error


def _decoded(image: Image.Image, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _refuse_bomb(image, name)
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I;16", "I")):  # Pillow would clip 16 bits to 255
                return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
            if image.mode == "F":  # Pillow would cut floats down to whole numbers, and 0..1 to black
                return _from_array(np.asarray(image), name)
            return image.convert("RGB")
    except ImageError:
        raise
    except (OSError, *_DAMAGE) as error:
        raise ImageError(f"{name} is truncated, damaged or closed ({error}); get the file again") from error


def _refuse_bomb(image: Image.Image, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS = {limit}: "
            f"it may be a decompression bomb. {_BOMB_WAY_OUT}"
        )


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in shape:
        raise ImageError(f"{name} has shape {shape}; expected [height width], [height width 3] or [3 height width]")
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite([low, high]).all() and low >= 0 and high <= 1):
            raise ImageError(
                f"{name} holds floats from {low:.3g} to {high:.3g}; expected 0 to 1. Preprocessed pixels go in "
                "VLMInputs(pixel_values=..., input_ids=...); 0..255 must be uint8"
            )
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"{name} has dtype {array.dtype}; expected uint8 in 0..255 or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
