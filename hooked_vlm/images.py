"""Anything that may be called an image, as an RGB `PIL.Image`, or an error that names it: the one image reader.

What a picture becomes:

- Greyscale, palette, CMYK and transparent pictures are converted as Pillow converts them, and as Hugging Face's
  processors do. Transparency is dropped, not blended: what lies under a transparent pixel is seen.
- 16 bits, and 32-bit integers from 0 to 65535, are scaled to 8 bits; so are floats from 0 to 1. Other ranges have no
  one meaning and are refused.
- A camera's EXIF orientation is applied, so that the picture stands as a viewer shows it.
- Of a file that holds several (an animation, a TIFF of pages), the first; of an open PIL image, the frame it is at.

Files are looked at before they are opened: a directory, a FIFO or a device is refused and never waited for. Pictures
without pixels, with more than `PIL.Image.MAX_IMAGE_PIXELS`, or far longer than wide are refused before they are
decoded, and so are formats that another program would have to draw.

Cost: one decoded image. Imports Pillow and NumPy, and of the package its errors and `given`.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hooked_vlm.errors import ImageError, cut
from hooked_vlm.given import line

LONGEST = 500  # times the shorter side: processors that scale it to 336 would make 56 million pixels of the rest
_DRAWN_BY_OTHERS = ("EPS", "WMF", "EMF")  # Pillow starts Ghostscript, or asks Windows
_BOMB_WAY_OUT = "Resize it first, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
_CONVERT = "convert it to PNG or JPEG"


def to_rgb(image: Any, name: str = "image") -> Image.Image:
    """`image` as an RGB picture, as the module says.

    Args:
        image: a PIL image; a path; an array or tensor [height width], [height width channel] or
            [channel height width] of uint8 in 0..255 or floats in 0..1. Where both the first and the last size could
            be channels, the last is taken.
        name: what error messages call it where it has no file, e.g. "image 3".

    Raises:
        ImageError: if the file is missing, no regular file, unreadable, truncated or a decompression bomb, or if the
            array has another shape, dtype or range.
    """
    if isinstance(image, (str, os.PathLike)):
        return read(image)
    if isinstance(image, Image.Image):
        return _decoded(image, cut(getattr(image, "filename", "") or name))
    if hasattr(image, "detach") and hasattr(image, "is_floating_point"):  # a tensor, and torch need not be loaded
        image = _numbers(image, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    raise ImageError(
        f"{name} is a {type(image).__name__}; expected a PIL image, a path, a NumPy array or a tensor. "
        "Preprocessed pixels go in VLMInputs(pixel_values=..., input_ids=...)"
    )


def _numbers(tensor: Any, name: str) -> NDArray[Any]:
    try:
        tensor = tensor.detach().cpu()
        array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (RuntimeError, TypeError, ValueError) as error:  # there are tensors without numbers, and without places
        raise ImageError(
            f"{name} is a tensor that cannot be read ({line(error)}); expected a dense one that holds its numbers"
        ) from error
    return array


def to_rgb_list(images: Any) -> list[Image.Image]:
    """One image or several, as a list: a list or tuple, a batch [batch ...] in one array, or a single one.

    Raises:
        ImageError: as `to_rgb`, naming the index; or if the list is empty.
    """
    if hasattr(images, "ndim") and images.ndim == 4:
        images = list(images)
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
        return [to_rgb(images)]
    if not len(images):
        raise ImageError("the list of images is empty; expected at least one")
    return [to_rgb(image, f"image {i}") for i, image in enumerate(images)]


def read(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """The picture in a file, as `to_rgb`.

    Args:
        source: a path, or a file's bytes.
        name: what errors call it; the path if None.

    Raises:
        ImageError: if there is no such file, it is no regular file, damaged, no picture, or far too large.
    """
    name = cut(name or _named(source))
    with _opened(source, name) as image:
        return _decoded(image, name)


def _named(source: str | os.PathLike[str] | bytes) -> str:
    return "the picture" if isinstance(source, bytes) else os.fspath(source)


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[Image.Image]:
    """The picture in a file with its head read, closed afterwards."""
    with warnings.catch_warnings(), _file(source, name) as file:
        warnings.simplefilter("ignore")  # of odd metadata, and of bombs, which are refused with the way out
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise ImageError(f"{name!r} may be a decompression bomb: {line(error)}. {_BOMB_WAY_OUT}") from error
        except UnidentifiedImageError as error:
            raise ImageError(f"{name!r} is not an image that Pillow can read; {_CONVERT}") from error
        except Exception as error:  # Pillow's readers raise whatever they trip over
            raise _damaged(name, error) from error
        with image:
            if image.format in _DRAWN_BY_OTHERS:
                raise ImageError(f"{name!r} is {image.format}, which another program would have to draw; {_CONVERT}")
            yield image


def _file(source: str | os.PathLike[str] | bytes, name: str) -> io.BytesIO | io.BufferedReader:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    kinds = {stat.S_ISDIR: "a directory", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}

    def refuse_special(mode: int) -> None:
        if not stat.S_ISREG(mode):
            kind = next((called for is_kind, called in kinds.items() if is_kind(mode)), "a device")
            raise ImageError(f"{name!r} is {kind} and cannot be read as an image; expected a file")

    try:
        refuse_special(os.stat(source).st_mode)
        # Should a FIFO have taken the file's place since, it is not waited for.
        descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        opened = os.fdopen(descriptor, "rb")
        with ExitStack() as unless_regular:
            unless_regular.callback(opened.close)
            refuse_special(os.fstat(descriptor).st_mode)
            unless_regular.pop_all()
    except (FileNotFoundError, NotADirectoryError) as error:
        where = "its link leads nowhere" if os.path.islink(source) else "check the path, or pass a PIL image"
        raise ImageError(f"there is no image file {name!r}; {where}") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or line(error)  # without the path, which may be endless
        raise ImageError(f"{name!r} cannot be read ({said}); check the path and the rights") from error
    return opened


def _damaged(name: str, error: BaseException) -> ImageError:
    return ImageError(f"{name!r} is truncated, damaged or closed ({line(error)}); get the file again, or {_CONVERT}")


def _decoded(image: Image.Image, name: str) -> Image.Image:
    _refuse_size(image, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            turned = ImageOps.exif_transpose(image)
            turned.load()
    except Exception as error:
        raise _damaged(name, error) from error
    if turned.mode.startswith("I"):  # Pillow would clip 16 bits to 255
        return _from_integers(np.asarray(turned), name)
    if turned.mode == "F":  # Pillow would cut floats down to whole numbers, and 0..1 to black
        return _from_array(np.asarray(turned), name)
    try:
        return turned.convert("RGB")
    except Exception as error:
        raise ImageError(
            f"{name!r} has mode {turned.mode}, which Pillow does not turn into RGB ({line(error)}); {_CONVERT}"
        ) from error


def _refuse_size(image: Image.Image, name: str) -> None:
    limit, (width, height) = Image.MAX_IMAGE_PIXELS, image.size
    if not width or not height:
        raise ImageError(f"{name!r} has {width} x {height} pixels; expected at least one")
    if limit is not None and width * height > limit:
        raise ImageError(
            f"{name!r} has {width} x {height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS = {limit}: "
            f"it may be a decompression bomb. {_BOMB_WAY_OUT}"
        )
    if max(width, height) > LONGEST * min(width, height):
        raise ImageError(
            f"{name!r} has {width} x {height} pixels, and one side is more than {LONGEST} times the other: crop it"
        )


def _from_integers(array: NDArray[Any], name: str) -> Image.Image:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name!r} holds integers from {low} to {high}; expected 0 to 65535, which is scaled to 8 bits: save it "
            "with 8 or 16 bits"
        )
    return Image.fromarray((array // 257).astype(np.uint8)).convert("RGB")


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
    made = Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
    _refuse_size(made, name)
    return made
