"""Whatever may be called an image becomes the same RGB pixels, or an error that names it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hooked_vlm.datasets.sources import source
from hooked_vlm.errors import HookedVLMError, ImageError
from hooked_vlm.images import read, to_rgb, to_rgb_list
from tests.models.checkpoints import blip_processor, picture

RGB = picture(3, height=10, width=14)
ARRAY = np.asarray(RGB)
EXAMPLES = settings(max_examples=60, deadline=None)


def same(got: Image.Image, expected: Image.Image = RGB) -> bool:
    return got.mode == "RGB" and got.size == expected.size and np.array_equal(got, expected)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- arrays and tensors -----------------------------------------------------------------------------

LAYOUTS = {
    "uint8 array, channels last": ARRAY,
    "uint8 array, channels first": ARRAY.transpose(2, 0, 1),
    "array that is not contiguous": np.flip(np.flip(ARRAY, 0).copy(), 0),
    "float32 array": (ARRAY / 255).astype(np.float32),
    "float64 array": ARRAY / 255,
    "uint8 tensor, channels last": torch.tensor(ARRAY),
    "uint8 tensor, channels first": torch.tensor(ARRAY).permute(2, 0, 1),
    "float tensor with a gradient": (torch.tensor(ARRAY) / 255).requires_grad_(),
    "RGBA array": np.dstack([ARRAY, np.full(ARRAY.shape[:2], 7, np.uint8)]),
    "RGBA array, channels first": np.dstack([ARRAY, np.full(ARRAY.shape[:2], 7, np.uint8)]).transpose(2, 0, 1),
}
GREY = ARRAY[:, :, 0]
GREY_LAYOUTS = {
    "[height width]": GREY,
    "[height width 1]": GREY[:, :, None],
    "[1 height width]": GREY[None],
    "tensor [height width]": torch.tensor(GREY),
    "float [1 height width]": torch.tensor(GREY)[None] / 255,
}


@pytest.mark.parametrize("image", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_arrays_and_tensors_of_every_layout_equal_the_picture(image: object) -> None:
    assert same(to_rgb(image))


@pytest.mark.parametrize("image", GREY_LAYOUTS.values(), ids=GREY_LAYOUTS.keys())
def test_greyscale_arrays_have_three_equal_channels(image: object) -> None:
    assert same(to_rgb(image), Image.fromarray(np.dstack([GREY] * 3)))


def test_half_precision_tensors_are_rounded_to_the_nearest_of_256_levels() -> None:
    levels = torch.arange(256).reshape(16, 16)
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert np.array_equal(np.asarray(to_rgb((levels / 255).to(dtype)))[:, :, 0], levels)


def test_booleans_are_black_and_white() -> None:
    assert np.array_equal(np.asarray(to_rgb(GREY > 99))[:, :, 1], np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["array", "tensor"])
def test_a_batch_in_one_array_is_a_list_of_images(make: object) -> None:
    batch = make(np.stack([ARRAY, ARRAY[::-1]]))  # type: ignore[operator]
    first, second = to_rgb_list(batch)
    assert same(first) and same(second, Image.fromarray(ARRAY[::-1].copy()))


def test_one_image_is_a_list_of_one_and_a_tuple_keeps_its_order() -> None:
    other = picture(4)
    assert len(to_rgb_list(RGB)) == 1
    assert [image.size for image in to_rgb_list((RGB, other, ARRAY))] == [RGB.size, other.size, RGB.size]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((5, 6, 2), np.uint8), ["(5, 6, 2)", "[height width 3]"]),
        (np.zeros((5,), np.uint8), ["(5,)", "[height width]"]),
        (np.zeros((0, 4, 3), np.uint8), ["(0, 4, 3)"]),
        (np.zeros((4, 4), np.int64), ["int64", "uint8"]),
        (torch.zeros(4, 4, 3, dtype=torch.int32), ["int32", "uint8"]),
        (np.full((4, 4), "x"), ["dtype", "uint8"]),
        (np.full((4, 4), 200.0), ["200", "0 to 1", "uint8"]),
        (np.full((4, 4), -0.5), ["-0.5", "0 to 1", "VLMInputs"]),
        (np.full((4, 4), np.nan), ["nan", "0 to 1"]),
        (np.full((4, 4), np.inf), ["inf", "0 to 1"]),
        (None, ["NoneType", "PIL image"]),
        (7, ["int", "PIL image"]),
        (b"not a path", ["bytes", "path"]),
        ({"image": RGB}, ["dict", "tensor"]),
    ],
)
def test_what_is_no_image_is_refused_by_shape_dtype_or_range(image: object, words: list[str]) -> None:
    with pytest.raises(ImageError) as caught:
        to_rgb_list(image)
    assert all(word in str(caught.value) for word in words)


def test_a_bad_image_in_a_list_is_named_by_its_place() -> None:
    with pytest.raises(ImageError, match=r"image 2 has shape \(5, 6, 2\)"):
        to_rgb_list([RGB, ARRAY, np.zeros((5, 6, 2), np.uint8)])


@pytest.mark.parametrize("empty", [[], (), np.zeros((0, 8, 8, 3), np.uint8)])
def test_an_empty_list_of_images_is_refused(empty: object) -> None:
    with pytest.raises(ImageError, match="empty; expected at least one"):
        to_rgb_list(empty)


def test_image_errors_are_value_errors_and_ours() -> None:
    assert issubclass(ImageError, ValueError) and issubclass(ImageError, HookedVLMError)


# --- modes ------------------------------------------------------------------------------------------

GREEN = Image.new("RGB", (3, 2), (0, 255, 0))
MODES = {
    "RGBA, half transparent": (Image.new("RGBA", (3, 2), (0, 255, 0, 128)), GREEN),
    "palette": (GREEN.convert("P", palette=Image.Palette.ADAPTIVE), GREEN),
    "CMYK": (GREEN.convert("CMYK"), GREEN),
    "greyscale": (Image.new("L", (3, 2), 77), Image.new("RGB", (3, 2), (77, 77, 77))),
    "greyscale with alpha": (Image.new("LA", (3, 2), (77, 9)), Image.new("RGB", (3, 2), (77, 77, 77))),
    "1-bit": (Image.new("1", (3, 2), 1), Image.new("RGB", (3, 2), "white")),
    "32-bit integers": (Image.new("I", (3, 2), 257 * 77), Image.new("RGB", (3, 2), (77, 77, 77))),
    "16-bit": (Image.fromarray(np.full((2, 3), 257 * 77, np.uint16)), Image.new("RGB", (3, 2), (77, 77, 77))),
    "16-bit, the other end first": (
        Image.frombytes("I;16B", (3, 2), np.full((2, 3), 257 * 77, ">u2").tobytes()),
        Image.new("RGB", (3, 2), (77, 77, 77)),
    ),
    "floats in 0..1": (Image.new("F", (3, 2), 77 / 255), Image.new("RGB", (3, 2), (77, 77, 77))),
}


@pytest.mark.parametrize(("image", "expected"), MODES.values(), ids=MODES.keys())
def test_every_mode_is_converted_to_the_rgb_it_shows(image: Image.Image, expected: Image.Image) -> None:
    assert same(to_rgb(image), expected)


def test_16_bit_files_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    got = np.asarray(to_rgb(tmp_path / "ramp.png"))[:, :, 0]
    assert np.array_equal(got, ramp // 257) and len(np.unique(got)) == 64


def test_float_pictures_beyond_one_are_refused_by_name(tmp_path: Path) -> None:
    Image.new("F", (3, 2), 40.0).save(tmp_path / "depth.tiff")
    with pytest.raises(ImageError, match=r"depth\.tiff.*floats from 40"):
        to_rgb(tmp_path / "depth.tiff")


@pytest.mark.parametrize("mode", ["F", "I"])
def test_deep_tiffs_are_the_same_picture_for_a_model_and_for_a_data_set(mode: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    array = ramp.astype(np.float32) if mode == "F" else (ramp * 65535).astype(np.int32)
    Image.fromarray(array).save(tmp_path / "deep.tiff")
    picture(9, 8, 8).save(tmp_path / "other.png")
    lines = "image,corrupt_image,prompt,answer,wrong_answer\ndeep.tiff,other.png,a or b?,a,b\n"
    (tmp_path / "pairs.csv").write_text(lines)
    (row,) = source("folder", data=tmp_path).rows
    assert same(row["image"], to_rgb(tmp_path / "deep.tiff")) and same(
        row["image"], read((tmp_path / "deep.tiff").read_bytes())
    )
    grey = np.asarray(row["image"])[:, :, 0].astype(int)
    assert np.abs(grey - ramp * 255).max() <= 1 and len(np.unique(grey)) == 64


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_integers_beyond_16_bits_are_refused_by_name(value: int, tmp_path: Path) -> None:
    Image.new("I", (3, 2), value).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match=rf"deep\.tiff.*integers from {value} to {value}; expected 0 to 65535"):
        to_rgb(tmp_path / "deep.tiff")


def test_a_mode_that_is_no_picture_is_named() -> None:
    with pytest.raises(ImageError, match=r"image' has mode La, which Pillow does not turn into RGB"):
        to_rgb(Image.new("La", (3, 2)))


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "1", "CMYK"])
def test_pixels_equal_those_of_hugging_face_for_the_same_picture(mode: str) -> None:
    processor, image = blip_processor().image_processor, RGB.convert(mode)
    ours = processor(images=to_rgb(image), return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, processor(images=image, return_tensors="pt")["pixel_values"])


ORIENTED = {
    1: ARRAY,
    2: ARRAY[:, ::-1],
    3: ARRAY[::-1, ::-1],
    4: ARRAY[::-1],
    5: ARRAY.transpose(1, 0, 2),
    6: np.rot90(ARRAY, -1),
    7: ARRAY.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(ARRAY),
}


@pytest.mark.parametrize("orientation", ORIENTED)
def test_a_cameras_rotation_is_undone(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    RGB.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(to_rgb(tmp_path / "photo.png"), ORIENTED[orientation])


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_a_path_and_its_string_equal_the_picture(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{kind}"
    RGB.save(path)
    assert same(to_rgb(path)) and same(to_rgb(str(path)))


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert same(to_rgb(tmp_path / "two.gif"), frames[0])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no image file .*absent\.png.*check the path"):
        to_rgb(tmp_path / "absent.png")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"{tmp_path.name}.*is a directory and cannot be read"):
        to_rgb(tmp_path)


def test_a_pipe_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for look in (to_rgb, read):
        with pytest.raises(ImageError, match=r"pipe\.png' is a FIFO and cannot be read"):
            look(tmp_path / "pipe.png")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(path: str) -> None:
    with pytest.raises(ImageError, match=rf"{path}' is a device and cannot be read"):
        to_rgb(path)


def test_a_link_that_leads_nowhere_and_a_name_that_no_file_has_are_named(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere.png")
    with pytest.raises(ImageError, match=r"no image file .*link\.png.*its link leads nowhere"):
        to_rgb(tmp_path / "link.png")
    for name in ("a\0b.png", "a" * 5000):
        with pytest.raises(ImageError, match="cannot be read"):
            to_rgb(name)


def test_a_drawing_that_another_program_would_run_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "drawing.eps", encoded(RGB, "eps"))
    with pytest.raises(ImageError, match=r"drawing\.eps' is EPS, which another program would have to draw"):
        to_rgb(path)


def test_a_picture_without_pixels_is_refused() -> None:
    for shape in ((0, 0), (0, 5), (5, 0)):
        with pytest.raises(ImageError, match=rf"image 1' has {shape[0]} x {shape[1]} pixels"):
            to_rgb_list([RGB, Image.new("RGB", shape)])


def test_a_picture_far_longer_than_wide_is_refused() -> None:
    assert to_rgb(Image.new("L", (500, 1))).size == (500, 1)
    for image in (Image.new("L", (501, 1)), np.zeros((2000, 3), np.uint8)):
        with pytest.raises(ImageError, match="one side is more than 500 times the other"):
            to_rgb(image)


def test_a_text_that_is_called_an_image_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "notes.png", b"these are no pixels")
    with pytest.raises(ImageError, match=r"notes\.png.*not an image.*convert it to PNG or JPEG"):
        to_rgb(path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"empty\.jpg.*not an image"):
        to_rgb(written(tmp_path / "empty.jpg", b""))


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "webp"])
def test_a_truncated_file_is_named(kind: str, tmp_path: Path) -> None:
    content = encoded(picture(0, 64, 64), kind)
    path = written(tmp_path / f"half.{kind}", content[: len(content) // 2])
    with pytest.raises(ImageError, match=rf"half\.{kind}"):
        to_rgb(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, before it raises
@EXAMPLES
@given(st.sampled_from(["jpeg", "png", "gif", "webp", "bmp", "tiff"]), st.floats(0, 1))
def test_a_file_cut_anywhere_is_an_image_error_or_the_whole_picture(tmp_path_factory, kind, share) -> None:
    image = picture(1, 24, 24)
    content = encoded(image, kind)
    path = written(tmp_path_factory.mktemp("cut") / f"cut.{kind}", content[: int(share * len(content))])
    try:
        got = to_rgb(path)
    except ImageError as error:
        assert f"cut.{kind}" in str(error)
    else:
        assert same(got, Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@EXAMPLES
@given(st.sampled_from(["jpeg", "png", "gif", "webp", "bmp", "tiff"]), st.integers(0), st.integers(0, 255))
def test_a_file_with_a_wrong_byte_is_read_or_is_an_image_error(tmp_path_factory, kind, place, byte) -> None:
    content = bytearray(encoded(picture(1, 24, 24), kind))
    content[place % min(len(content), 400)] = byte
    path = written(tmp_path_factory.mktemp("bad") / f"bad.{kind}", bytes(content))
    try:
        assert to_rgb(path).mode == "RGB"
    except ImageError as error:
        assert f"bad.{kind}" in str(error)


@pytest.mark.parametrize("limit", [100, 10], ids=["a little over the limit", "far over it"])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_with_the_limit(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RGB.save(tmp_path / "bomb.png")
    with Image.open(tmp_path / "bomb.png") as held:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for image in (tmp_path / "bomb.png", held):
            with pytest.raises(ImageError, match=r"bomb\.png.*decompression bomb.*raise PIL\.Image\.MAX_IMAGE_PIXELS"):
                to_rgb(image)


def test_a_picture_at_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.width * RGB.height)
    assert same(to_rgb(RGB))


def test_an_open_picture_with_a_damaged_file_is_named_by_its_file(tmp_path: Path) -> None:
    content = encoded(picture(0, 64, 64), "png")
    path = written(tmp_path / "half.png", content[: len(content) // 2])
    damaged = pytest.raises(ImageError, match=r"half\.png.*truncated.*get the file again")
    with Image.open(path) as image, damaged:
        to_rgb_list([RGB, image])


def test_a_closed_picture_is_refused(tmp_path: Path) -> None:
    RGB.save(tmp_path / "closed.png")
    image = Image.open(tmp_path / "closed.png")
    image.close()
    with pytest.raises(ImageError, match=r"closed\.png.*closed"):
        to_rgb(image)


@pytest.mark.parametrize("tensor", [torch.empty(4, 4, 3, device="meta"), torch.rand(4, 4, 3).to_sparse()])
def test_a_tensor_that_holds_no_dense_numbers_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ImageError, match=r"image is a tensor that cannot be read .*; expected a dense one"):
        to_rgb(tensor)


def test_an_endless_name_is_not_repeated() -> None:
    for name in ("x" * 5000 + ".png", "a/" * 2000 + "b.png"):
        with pytest.raises(ImageError) as raised:
            to_rgb(name)
        assert len(str(raised.value)) < 600 and name[:20] in str(raised.value)
