"""Which part of a picture a position shows, whatever the processor made of it: planted, and looked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.mllama.image_processing_pil_mllama import (
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from hooked_vlm import resizing, viz
from hooked_vlm.errors import InputsError, PositionError
from hooked_vlm.models import layout
from hooked_vlm.models.layout import Role
from tests import shown

SIZES = st.tuples(st.integers(50, 260), st.integers(50, 260))
DARK, BRIGHT = 30, 250


def planted(size: tuple[int, int], region: viz.geometry.Box | None = None) -> Image.Image:
    """A dark picture, bright in a region."""
    pixels = np.full((size[1], size[0], 3), DARK, dtype=np.uint8)
    if region is not None:
        left, top, right, bottom = (round(edge) for edge in region)
        pixels[top:bottom, left:right] = BRIGHT
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", shown.WAYS)
@settings(max_examples=60)
@given(size=SIZES, data=st.data())
def test_what_is_planted_in_a_positions_region_is_what_the_position_shows(name, size, data):
    way = shown.WAYS[name]
    geometry = viz.Geometry.of(way.processor, size, way.patch, tiled=way.tiled)
    made = way.of(planted(size))
    before, roles = way.values(made), way.roles(size, made)
    assert len(roles) == len(before)
    at = data.draw(st.integers(0, len(roles) - 1), label="position")
    region, role = geometry.region(roles[at]), roles[at]
    if region is None:
        change = (way.values(way.of(planted(size, (0, 0, *size)))) - before).abs()
        assert not change[at] > 0.1 * change.nan_to_num().max()  # a patch of padding, or no number at all
        return
    left, top, right, bottom = geometry.view(role.view).where(role.row * geometry.view(role.view).grid[1] + role.column)
    seen = (region[2] - region[0]) * (region[3] - region[1]) / ((right - left) * (bottom - top))
    assume(seen > 0.6 and min(region[2] - region[0], region[3] - region[1]) >= 1.5)  # not mostly padding, nor a pixel
    change = (way.values(way.of(planted(size, region))) - before).abs()
    own = [k for k, other in enumerate(roles) if other.kind == "patch" and other.view == role.view]
    assert own[int(change[own].argmax())] == at
    far = [k for k in own if max(abs(roles[k].row - role.row), abs(roles[k].column - role.column)) > 1]
    assert not far or change[far].max() < 0.12 * change[at]
    assert all(not change[k] > 0.02 * change[at] for k, other in enumerate(roles) if other.kind != "patch")


@given(size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)), seed=st.integers(0, 99))
def test_sizes_are_rounded_as_the_processors_round_them(size, seed):
    width, height = size
    generator = np.random.default_rng(seed)
    choices = (336 * generator.integers(1, 7, (generator.integers(1, 9), 2))).tolist()
    best = resizing.best_resolution(size, [tuple(choice) for choice in choices])
    assert best == tuple(select_best_resolution((height, width), [choice[::-1] for choice in choices])[::-1])
    most = int(generator.integers(1, 9))
    tall, wide = get_optimal_tiled_canvas(height, width, most, 56)
    grid = resizing.canvas(size, 56, most)
    assert grid == (tall // 56, wide // 56)
    assert resizing.in_canvas(size, 56, grid) == get_image_size_fit_to_canvas(height, width, tall, wide, 56)[::-1]
    if max(size) / min(size) <= 200:
        assert (
            resizing.multiple(size, 28, 56**2, 28**2 * 1280)
            == smart_resize(height, width, 28, 56**2, 28**2 * 1280)[::-1]
        )


@pytest.mark.parametrize("kind", ["newline", "class token", "query", "text", "padding"])
def test_what_is_no_patch_shows_no_region(kind):
    geometry = viz.Geometry.of(shown.NEXT, (200, 80), 8)
    assert geometry.region(Role(kind, 0, 0, 0)) is None


def test_a_picture_in_tiles_has_two_views_that_both_show_it_whole():
    geometry = viz.Geometry.of(shown.NEXT, (200, 80), 8)
    tiles = geometry.view(1)
    assert (geometry.grid, geometry.box) == ((6, 6), (0, 0, 200, 80))
    assert tiles.grid == (8, 18) and tiles.box[0] == pytest.approx(0) and tiles.box[2] == pytest.approx(200)
    assert tiles.box[1] == pytest.approx(-4.14, abs=0.01) and tiles.box[3] == pytest.approx(84.14, abs=0.01)
    with pytest.raises(PositionError, match="no view 2; the picture has views 0 to 1"):
        geometry.view(2)
    with pytest.raises(PositionError, match="row 8, column 0 of image 3, and the geometry has 8 x 18"):
        geometry.region(Role("patch", 3, 8, 0, 1))


def test_patches_of_tiles_with_a_rest_leave_gaps_and_are_found_between_them():
    geometry = viz.Geometry.of(shown.ONEVISION, (96, 96), 7).view(1)
    assert geometry.where(5)[2] == pytest.approx(42) and geometry.where(6)[0] == pytest.approx(48)
    assert (geometry.patch_at(41, 1), geometry.patch_at(45, 1), geometry.patch_at(49, 1)) == (5, None, 6)
    mask = np.zeros((96, 96))
    mask[:42, 42:55] = 1
    assert geometry.shares(mask)[:8].tolist() == [0, 0, 0, 0, 0, 0, 1, 0]


def test_tiles_that_are_cropped_once_more_are_refused():
    cropped = type(shown.NEXT)(size={"shortest_edge": 60}, crop_size=48, image_grid_pinpoints=shown.PINPOINTS)
    with pytest.raises(InputsError, match=r"are cropped to .*by hand"):
        viz.Geometry.of(cropped, (200, 80), 8)
    uneven = type(shown.NEXT)(size={"shortest_edge": 48}, crop_size=48, image_grid_pinpoints=[[50, 96]])
    with pytest.raises(InputsError, match="96 x 50 pixels is not cut into tiles of 48"):
        viz.Geometry.of(uneven, (200, 80), 8)


def test_an_overlay_of_a_view_is_drawn_over_its_part_of_the_picture():
    picture = Image.new("RGB", (200, 80))
    seen = viz.Geometry.of(shown.NEXT, picture, 8)
    figure = viz.overlay(torch.arange(8.0 * 18), picture, seen.view(1))
    (cells,) = (trace for trace in figure.data if trace.type == "heatmap")
    assert np.shape(cells.z) == (8, 18)
    assert layout.unpadded((200, 80), (2, 3), 6)[-1] == Role("newline", None, 7, view=1)
