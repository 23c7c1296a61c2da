"""Pictures: formats, modes, rotations, files that are no files, damage, bombs, and arrays that hold anything."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.sabotage.engine import Case, Oracle, draws, either, equals, refuses
from tests.sabotage.world import QUESTION, model, picture, said, truth

Make = Callable[[Path], Any]  # in a folder, what is given as an image
FAMILY = "images"
SUFFIX = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "PPM": "ppm"}
LOSSLESS = {
    "png": {"format": "PNG"}, "webp": {"format": "WEBP", "lossless": True}, "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"}, "bmp": {"format": "BMP"}, "ppm": {"format": "PPM"},
    "tga": {"format": "TGA"}, "interlaced.png": {"format": "PNG", "interlace": 1},
}  # fmt: skip
# What a camera that was held this way stores, of the picture that it saw.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    for kinds, family in (
        (("blip",), _formats()),
        (("blip",), _modes()),
        (("blip", "llava"), _rotations()),
        (("blip",), _sizes()),
        (("blip", "llava"), _no_files()),
        (("blip",), _damaged(seed)),
        (("blip",), _bombs()),
        (("blip", "llava"), _arrays()),
        (("blip",), _lists()),
    ):
        for i, (name, make, oracle) in enumerate(family):
            kind = kinds[i % len(kinds)]
            right = oracle.expected
            if isinstance(right, Image.Image):
                oracle = Oracle(partial(truth, kind, right), oracle.names)
            yield Case(FAMILY, name, partial(_asked, kind, make), oracle)


def _asked(kind: str, make: Make, folder: Path) -> Any:
    return said(kind, make(folder))


Found = Iterator[tuple[str, Make, Oracle]]


def _file(name: str, content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _saved(image: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, **options)
    return data.getvalue()


def _reread(content: bytes) -> Image.Image | None:
    """What Pillow itself makes of a file, upright; None if it cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as image:
                return image.convert("RGB")
        except Exception:
            return None


# --- what is legal ------------------------------------------------------------------------------------------


def _formats() -> Found:
    upright = picture()
    for suffix, options in LOSSLESS.items():
        yield f"format-{suffix}", _file(f"picture.{suffix}", _saved(upright, **options)), equals(upright)
    yield "png-called-jpg", _file("picture.jpg", _saved(upright, format="PNG")), equals(upright)
    yield "png-without-a-suffix", _file("picture", _saved(upright, format="PNG")), equals(upright)
    yield "a-name-in-another-script", _file("صورة 圖 \u202e.png", _saved(upright, format="PNG")), equals(upright)
    twice = _saved(upright, format="GIF", save_all=True, append_images=[picture(1)])
    yield "animated-gif", _file("moving.gif", twice), either(_reread(twice), "moving.gif")
    pages = _saved(upright, format="TIFF", save_all=True, append_images=[picture(1)])
    yield "tiff-of-two-pages", _file("pages.tif", pages), either(upright, "pages.tif")
    jpeg = _saved(upright, format="JPEG", quality=80)
    yield "jpeg", _file("photo.jpg", jpeg), equals(_reread(jpeg))
    cmyk = _saved(upright.convert("CMYK"), format="JPEG", quality=95)
    yield "jpeg-in-cmyk", _file("print.jpg", cmyk), equals(_reread(cmyk))


def _modes() -> Found:
    upright = picture()
    grey = np.asarray(upright.convert("L"))
    as_rgb = Image.fromarray(grey).convert("RGB")
    for mode in ("1", "L", "LA", "P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"):
        try:
            held = upright.convert(mode)
        except ValueError:
            held = upright.convert("RGBA" if mode == "RGBa" else "L").convert(mode) if mode != "LAB" else None
        if held is None:
            held = Image.frombytes("LAB", upright.size, upright.tobytes())
            yield "mode-LAB-held", lambda _, held=held: held, either(None, "image")
            continue
        try:
            rgb = held.convert("RGB")
        except ValueError:
            rgb = held.convert("RGBA").convert("RGB")
        yield f"mode-{mode}-held", lambda _, held=held: held, equals(rgb)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    whole = Image.fromarray(grey.astype(np.int32) * 257)
    fractions = Image.fromarray((grey / 255).astype(np.float32))
    for name, held in {"I;16": deep, "I": whole, "F": fractions}.items():
        yield f"mode-{name}-held", lambda _, held=held: held, equals(as_rgb)
        yield f"mode-{name}-tiff", _file("deep.tif", _saved(held, format="TIFF")), equals(as_rgb)
    yield "mode-I;16-png", _file("deep.png", _saved(deep, format="PNG")), equals(as_rgb)
    for name, numbers in {
        "I-negative": grey.astype(np.int32) - 1000,
        "I-beyond-16-bits": grey.astype(np.int32) * 10_000_000,
        "F-beyond-1": grey.astype(np.float32),
        "F-negative": -grey.astype(np.float32),
        "F-NaN": np.where(grey > 200, np.nan, grey / 255).astype(np.float32),
        "F-infinite": np.where(grey > 200, np.inf, grey / 255).astype(np.float32),
    }.items():
        yield f"mode-{name}", _file("deep.tif", _saved(Image.fromarray(numbers), format="TIFF")), refuses("deep.tif")
    clear = upright.convert("RGBA")
    clear.putalpha(0)
    yield "transparent-all-over", _file("clear.png", _saved(clear, format="PNG")), equals(upright)
    flat = upright.convert("P")
    yield (
        "palette-with-transparency",
        _file("flat.png", _saved(flat, format="PNG", transparency=bytes(range(256)))),
        equals(flat.convert("RGB")),
    )


def _rotations() -> Found:
    upright = picture()
    for held, transposed in STORED.items():
        stored = upright if transposed is None else upright.transpose(transposed)
        exif = Image.Exif()
        exif[0x0112] = held
        for suffix in ("png", "webp", "tif"):
            content = _saved(stored, exif=exif, **LOSSLESS[suffix])
            yield f"exif-{held}-{suffix}", _file(f"camera.{suffix}", content), equals(upright)
    for wrong in (0, 9, 255, 65535):
        exif = Image.Exif()
        exif[0x0112] = wrong
        yield (
            f"exif-{wrong}",
            _file("camera.png", _saved(upright, format="PNG", exif=exif)),
            either(upright, "camera.png"),
        )
    noise = b"Exif\0\0" + bytes(range(200))
    jpeg = _saved(upright, format="JPEG", exif=noise)
    yield "exif-of-noise", _file("camera.jpg", jpeg), either(_reread(jpeg), "camera.jpg")


def _sizes() -> Found:
    for size in ((0, 0), (0, 5), (5, 0)):
        yield f"{size[0]}x{size[1]}", lambda _, size=size: Image.new("RGB", size), refuses("image", ("0", "empty"))
    for size in ((1, 1), (1, 900), (900, 1), (2, 3)):
        held = Image.effect_noise(size, 90).convert("RGB")
        yield f"{size[0]}x{size[1]}", lambda _, held=held: held, either(held, "image")


# --- what is no picture -------------------------------------------------------------------------------------


def _no_files() -> Found:
    def fifo(folder: Path) -> Path:
        os.mkfifo(folder / "pipe.png")
        return folder / "pipe.png"

    def socket(folder: Path) -> Path:
        import socket

        socket.socket(socket.AF_UNIX).bind("wire.png")
        return folder / "wire.png"

    def link(to: str, make: Make | None = None) -> Make:
        def make_link(folder: Path) -> Path:
            if make is not None:
                make(folder)
            (folder / "link.png").symlink_to(to)
            return folder / "link.png"

        return make_link

    def a_folder(folder: Path) -> Path:
        (folder / "shots.png").mkdir()
        return folder / "shots.png"

    upright = picture()
    png = _file("real.png", _saved(upright, format="PNG"))
    yield "link-to-a-picture", link("real.png", png), either(upright, "link.png")
    for name, make, word in (
        ("fifo", fifo, "pipe.png"), ("socket", socket, "wire.png"), ("folder", a_folder, "shots.png"),
        ("link-to-nowhere", link("absent.png"), "link.png"), ("link-to-itself", link("link.png"), "link.png"),
        ("link-to-zeros", link("/dev/zero"), "link.png"),
    ):  # fmt: skip
        yield name, make, refuses(word)
    for path in ("/dev/zero", "/dev/null", "/dev/urandom", "/dev/full", "/proc/self/mem", "/proc/self/environ"):
        yield path[1:].replace("/", "-"), lambda _, path=path: path, refuses(path)
    for name, path, word in (
        ("empty-path", "", ("''", "empty", "image")), ("blank-path", " ", ("' '", "image")),
        ("missing", "absent.png", "absent.png"),
        ("NUL-in-the-path", "a\0b.png", "a"), ("endless-path", "x" * 5000 + ".png", "xxx"),
        ("surrogate-path", "\udcff.png", ".png"), ("web-address", "https://example.org/cat.png", "cat.png"),
        ("file-address", "file:///etc/passwd", "passwd"), ("data-address", "data:image/png;base64,AAAA", "base64"),
    ):  # fmt: skip
        yield name, lambda _, path=path: path, refuses(word)
    for name, content in {
        "empty": b"", "one-byte": b"\x89", "text": b"no pixels here", "html": b"<html><body>404</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>', "zip": b"PK\x03\x04" + bytes(60),
        "elf": b"\x7fELF" + bytes(60),
        "pickle": b"\x80\x04\x95\x00",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch canary) run\n",
        "zeros": bytes(10_000), "png-header-alone": b"\x89PNG\r\n\x1a\n",
    }.items():  # fmt: skip
        yield f"file-of-{name}", _file("thing.png", content), refuses("thing.png")


def _damaged(seed: int) -> Found:
    """Files cut at several places, and with bits turned in their heads, where formats keep what they are."""
    for name in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = _saved(picture(3, 40, 50), format=name)
        draw = draws(seed, "damaged", name)
        for i, part in enumerate((0.02, draw.uniform(0.1, 0.4), draw.uniform(0.4, 0.7), draw.uniform(0.7, 0.97))):
            cut = max(4, int(len(whole) * part))
            yield f"{name.lower()}-cut-{i}", *_damage(name, whole[:cut])
        yield f"{name.lower()}-cut-by-one", *_damage(name, whole[:-1])
        for i in range(3):
            bad, place = bytearray(whole), draw.randrange(40)
            bad[place] ^= 1 << draw.randrange(8)
            yield f"{name.lower()}-bit-{i}", *_damage(name, bytes(bad))


def _damage(name: str, content: bytes) -> tuple[Make, Oracle]:
    """A file that must be read as Pillow reads it, or refused by its name."""
    file = f"broken.{SUFFIX[name]}"
    rest = _reread(content)
    return _file(file, content), refuses(file) if rest is None else either(rest, file)


def _bombs() -> Found:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    zeros = zlib.compress(bytes(30_000_000), 9)
    yield "bomb-claimed", _file("bomb.png", png(100_000, 100_000, data=zeros[:200])), refuses("bomb.png", "bomb")
    yield "bomb-of-2-billion-a-side", _file("bomb.png", png(2**31 - 1, 2**31 - 1)), refuses("bomb.png")
    yield "bomb-just-over", _file("bomb.png", png(10_000, 9_000, data=zeros)), refuses("bomb.png", "bomb")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9))
    yield "bomb-in-the-comment", _file("bomb.png", png(4, 4, text, data=zeros[:50])), refuses("bomb.png")
    yield (
        "bomb-in-an-icc-profile",
        _file("bomb.png", png(4, 4, chunk(b"iCCP", b"p\0\0" + zeros), data=b"")),
        refuses("bomb.png"),
    )
    tags = b"II*\0\x08\0\0\0\xff\xff" + (b"\x00\x01\x04\0\xff\xff\xff\x7f\xff\xff\xff\x7f" * 50)
    yield "tiff-of-2-billion-tags", _file("tags.tif", tags), refuses("tags.tif")
    yield "held-image-over-the-limit", lambda _: Image.new("1", (30_000, 6_000)), refuses("image", "bomb")


# --- arrays -------------------------------------------------------------------------------------------------


def _arrays() -> Found:
    upright = picture()
    pixels = np.array(upright)
    parts = (pixels / 255).astype(np.float32)
    bits = np.array(upright.convert("1"))
    for name, held, right in (
        ("reversed", pixels[::-1, ::-1], Image.fromarray(pixels[::-1, ::-1].copy())),
        ("every-second", pixels[::2, ::2], Image.fromarray(pixels[::2, ::2].copy())),
        ("fortran", np.asfortranarray(pixels), upright), ("floats", parts, upright),
        ("doubles", parts.astype(float), upright),
        ("halves", parts.astype(np.float16), upright), ("channels-first", pixels.transpose(2, 0, 1), upright),
        ("bools", bits, Image.fromarray(bits.astype(np.uint8) * 255).convert("RGB")),
        ("big-endian-floats", parts.astype(">f4"), upright), ("tensor", torch.tensor(pixels), upright),
        ("tensor-that-learns", torch.tensor(parts, requires_grad=True), upright),
        ("tensor-conjugated", torch.tensor(parts).permute(2, 0, 1), upright),
    ):  # fmt: skip
        yield f"array-{name}", lambda _, held=held: held, equals(right)
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32):
        held = pixels.astype(dtype)
        right = either(upright, np.dtype(dtype).name) if dtype != np.int8 else refuses("int8")
        yield f"array-{np.dtype(dtype).name}", lambda _, held=held: held, right
    holed = parts.copy()
    holed[3, 4, 1] = np.nan
    for name, held, word in (
        ("NaN", holed, "nan"), ("infinite", np.where(parts > 0.9, np.inf, parts), "inf"),
        ("floats-to-255", parts * 255, "255"),
        ("floats-just-over-1", parts * 1.5, "1."), ("floats-below-0", parts - 0.5, "-0.5"),
        ("ints-to-1000", pixels.astype(int) * 4, "int64"),
        ("ints-below-0", pixels.astype(int) - 9, "int64"), ("complex", parts.astype(complex), "complex"),
        ("objects", parts.astype(object), "object"), ("strings", pixels.astype(str), ("str", "<U")),
        ("dates", pixels.astype("datetime64[s]"), "datetime"),
        ("void", pixels.view([("r", "u1"), ("g", "u1"), ("b", "u1")]), ("void", "[(", "shape")),
        ("one-axis", pixels[0, :, 0], "(24,)"), ("no-axis", np.array(3), "()"),
        ("five-axes", pixels[None, None], "(1, 1, 20, 24, 3)"),
        ("two-channels", pixels[:, :, :2], "(20, 24, 2)"),
        ("five-channels", np.concatenate([pixels, pixels[:, :, :2]], 2), "(20, 24, 5)"),
        ("channels-in-the-middle", pixels.transpose(0, 2, 1), "(20, 3, 24)"), ("empty", pixels[:0], "(0, 24, 3)"),
        ("empty-batch", pixels[None][:0], ("0", "empty")),
        ("meta-tensor", torch.empty(20, 24, 3, device="meta"), ("meta", "image")),
        ("sparse-tensor", torch.tensor(parts).to_sparse(), ("sparse", "image")),
        ("bfloat-beyond-1", torch.tensor(parts).bfloat16() * 3, ("bfloat16", "float", "3")),
        ("complex-tensor", torch.tensor(parts).to(torch.complex64), "complex"),
    ):  # fmt: skip
        yield f"array-{name}", lambda _, held=held: held, refuses(word)


def _lists() -> Found:
    upright = picture()
    closed = picture()
    closed.close()
    for name, given, word in (
        ("nothing", [], "empty"), ("none", None, "NoneType"), ("none-in-a-list", [upright, None], "image 1"),
        ("lists-in-lists", [[upright]], "list"), ("numbers", [[1, 2], [3, 4]], "list"),
        ("dict", {"image": upright}, "dict"),
        ("closed", closed, "image"), ("number", 7, "int"), ("set", {1, 2}, "set"), ("function", picture, "function"),
        ("bytes-of-no-picture", b"abc", "bytes"), ("second-path-missing", [upright, "absent.png"], "absent.png"),
    ):  # fmt: skip
        yield f"list-of-{name}", lambda _, given=given: given, refuses(word)
    content = _saved(upright, format="PNG")
    for name, given in {
        "bytes": content,
        "stream": io.BytesIO(content),
        "generator": (upright for _ in range(1)),
    }.items():
        yield f"given-as-{name}", lambda _, given=given: given, either(upright, ("bytes", "BytesIO", "generator"))

    def cut_later(folder: Path) -> Any:
        held = Image.open(_file("late.png", _saved(picture(2, 200, 200), format="PNG"))(folder))
        os.truncate("late.png", 9000)
        return held

    yield "cut-after-it-was-opened", cut_later, refuses("late.png")

    def too_few(_: Path) -> Any:
        return model("blip").to_inputs([upright, upright], [QUESTION] * 3)

    yield "two-images-three-texts", too_few, refuses("2", "3")
