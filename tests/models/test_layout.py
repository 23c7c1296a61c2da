"""Positions of images in tiles, ragged grids and canvases: a layout declares them, as transformers packs them."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from hooked_vlm import VLMInputs
from hooked_vlm.errors import InputsError, PositionError
from hooked_vlm.models import layout
from hooked_vlm.models.layout import Layout, Role
from tests import shown
from tests.models import drawn
from tests.test_geometry import planted

IMAGE, WORD = 77, 5
SIZES = st.tuples(st.integers(50, 260), st.integers(50, 260))


def sizes_of(inputs: Any) -> list[tuple[int, int]]:
    return [(width, height) for height, width in inputs.image_parts["image_sizes"].tolist()]


TILES = Layout(
    image_token_id=IMAGE,
    images=lambda inputs: [
        layout.grid(6, 6) + layout.unpadded(size, shown.tiles_of(size), 6) for size in sizes_of(inputs)
    ],
    image_parts=("image_sizes",),
    pixel_axes=("image", "tile", "channel", "height", "width"),
)
RAGGED = Layout(
    image_token_id=IMAGE,
    images=lambda inputs: [
        layout.grid(rows // 2, columns // 2) for _, rows, columns in inputs.image_parts["image_grid_thw"].tolist()
    ],
    image_parts=("image_grid_thw",),
    pixel_axes=("patch", "value"),
    pixel_rows=lambda inputs: inputs.image_parts["image_grid_thw"].prod(1).tolist(),
)
WAYS = {"tiles": (shown.NEXT, TILES), "ragged": (shown.QWEN, RAGGED)}


def batch(name: str, rows: list[list[tuple[int, int]]], side: str = "right") -> VLMInputs:
    """Rows of pictures of such sizes between words, as a family's processor would return them."""
    processor, of_family = WAYS[name]
    pictures = [planted(size) for row in rows for size in row]
    made = dict(processor(pictures, return_tensors="pt")) if pictures else {}
    lengths, ids = iter([]), []
    if pictures:
        lone = torch.tensor([[WORD]])
        alone = {part: made[part] for part in of_family.image_parts}
        lengths = iter([len(image) for image in of_family.images(Described(lone, alone))])
    for row in rows:
        parts = [torch.tensor([WORD])]
        for _ in row:
            parts += [torch.full((next(lengths),), IMAGE), torch.tensor([WORD])]
        ids.append(torch.cat(parts))
    padded, mask = drawn.pad(ids, side)
    return VLMInputs.of({**made, "input_ids": padded, "attention_mask": mask}, of_family)


class Described(NamedTuple):
    """What a layout reads of inputs."""

    input_ids: Tensor
    image_parts: dict[str, Tensor]


ROWS = st.lists(st.lists(SIZES, max_size=2), min_size=1, max_size=3)


@pytest.mark.parametrize("name", WAYS)
@settings(max_examples=15)
@given(rows=ROWS, side=st.sampled_from(("left", "right")))
def test_images_of_any_shape_are_counted_and_stand_where_their_tokens_do(name: str, rows: Any, side: str) -> None:
    inputs = batch(name, rows, side)
    assert inputs.images_each == [len(row) for row in rows]
    owners = [i for i, row in enumerate(rows) for _ in row]
    roles, spans = inputs.roles, inputs.image_spans
    for image, (owner, span) in enumerate(zip(owners, spans, strict=True)):
        assert {role.image for role in roles[owner][span]} == {image}
        for view in {role.view for role in roles[owner][span]}:
            grid = inputs.grid(image, view)
            for (row, column), at in zip(product(*map(range, grid.shape)), grid.flatten().tolist(), strict=True):
                role = roles[owner][at]
                assert (role.kind, role.image, role.row, role.column, role.view) == ("patch", image, row, column, view)
    for i, row in enumerate(roles):
        assert [role.image is not None for role in row] == inputs.is_image[i].tolist()
        assert [role.kind == "padding" for role in row] == (~inputs.is_real[i]).tolist()


@pytest.mark.parametrize("name", WAYS)
@settings(max_examples=15)
@given(rows=ROWS, data=st.data())
def test_rows_take_their_images_with_them(name: str, rows: Any, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=3), label="rows")
    found, expected = batch(name, rows)[chosen], batch(name, [rows[i] for i in chosen])
    assert found.images_each == expected.images_each
    assert set(found.image_parts) == set(expected.image_parts)
    assert all(torch.equal(part, expected.image_parts[key]) for key, part in found.image_parts.items())
    if expected.pixel_values is None:
        assert found.pixel_values is None
    elif name == "tiles":  # padded to as many tiles as the largest picture of the batch has
        n_tiles = expected.pixel_values.shape[1]
        assert torch.equal(found.pixel_values[:, :n_tiles], expected.pixel_values)
    else:
        assert torch.equal(found.pixel_values, expected.pixel_values)
    assert [[role for role in row if role.image is not None] for row in found.roles] == [
        [role for role in row if role.image is not None] for row in expected.roles
    ]


@pytest.mark.parametrize("family", [LlavaNextModel, LlavaOnevisionModel])
@given(size=SIZES)
def test_tiles_stand_in_the_order_in_which_transformers_packs_them(family: Any, size: tuple[int, int]) -> None:
    down, across = shown.tiles_of(size)
    numbered = torch.arange(36.0 * (1 + down * across)).view(-1, 36)
    options = ("default",) if family is LlavaNextModel else ()
    order = shown.packed(family, [numbered], torch.tensor([size[::-1]]), 8, *options, torch.tensor([-1.0])).long()
    roles = layout.grid(6, 6) + layout.unpadded(size, (down, across), 6)
    assert len(order) == len(roles)
    kept = (order[36:][order[36:] >= 0] - 36).tolist()
    top = min(at // 36 // across * 6 + at % 36 // 6 for at in kept)
    left = min(at // 36 % across * 6 + at % 6 for at in kept)
    for at, role in zip(order.tolist(), roles, strict=True):
        if at < 0:
            assert role.kind == "newline"
        elif at < 36:
            assert role == Role("patch", None, at // 6, at % 6)
        else:
            tile, row, column = (at - 36) // 36, at % 36 // 6, at % 6
            place = (tile // across * 6 + row - top, tile % across * 6 + column - left)
            assert role == Role("patch", None, *place, 1, tile)


@given(rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_blocks_stand_in_the_order_in_which_qwens_processor_puts_them(rows: int, columns: int) -> None:
    numbered = torch.arange(4 * rows * columns).view(2 * rows, 2 * columns)
    order = rearrange(numbered, "(r m) (c n) -> (r c m n)", m=2, n=2).tolist()
    found = [role.row * 2 * columns + role.column for role in layout.grid(2 * rows, 2 * columns, blocks=2)]
    assert found == order


# --- keys, queries, and what does not fit ------------------------------------------------------------


def test_tiles_that_are_keys_of_cross_attention_know_their_tile_and_their_padding() -> None:
    rows = [[(200, 60)], [(40, 40)]]
    processor = shown.WAYS["tiles in a canvas"].processor
    made = processor([[planted(size) for size in row] for row in rows], return_tensors="pt")
    sizes = [size for row in rows for size in row]
    of_family = Layout(
        images=lambda inputs: [shown.mllama_roles(size) for size in sizes],
        image_parts=("aspect_ratio_ids",),
        pixel_axes=("batch", "image", "tile", "channel", "height", "width"),
    )
    ids = torch.ones(2, 3, dtype=torch.long)
    known = {part: made[part] for part in ("pixel_values", "aspect_ratio_ids")}
    inputs = VLMInputs.of({**known, "input_ids": ids}, of_family)
    assert inputs.images_each == [1, 1]
    wide, small = inputs.grid(0), inputs.grid(1)
    assert wide.shape == (6, 24) and small.shape == (6, 6)
    assert wide[0, :8].tolist() == [1, 2, 3, 4, 5, 6, 38, 39] and small[1, 0] == 7
    assert inputs.image_spans == [slice(1, 4 * 37), slice(1, 37)]
    assert torch.equal(inputs[1].pixel_values, made["pixel_values"][1:])


def test_queries_are_positions_without_a_grid() -> None:
    of_family = Layout(image_token_id=IMAGE, images=lambda inputs: [layout.queries(3)] * len(inputs.pixel_values))
    ids = torch.tensor([[IMAGE] * 3 + [WORD]])
    inputs = VLMInputs(torch.zeros(1, 3, 8, 8), ids, layout=of_family)
    assert inputs.image_span == slice(0, 3) and inputs.roles[0][0] == Role("query", 0)
    with pytest.raises(PositionError, match=r"image 0 has no patches of view 0; it has views \[\]"):
        inputs.grid(0)


def test_image_tokens_that_do_not_fit_the_images_are_named() -> None:
    inputs = batch("ragged", [[(60, 60)]])
    short = inputs.replace(input_ids=inputs.input_ids[:, 2:], attention_mask=None)
    with pytest.raises(PositionError, match=r"row 0 has .* image tokens and its images .* positions"):
        short.grid(0)
    with pytest.raises(InputsError, match=r"pixel_values has shape .*; expected 5 axes"):
        inputs.replace(layout=TILES)


def test_a_view_that_an_image_has_not_is_named() -> None:
    with pytest.raises(PositionError, match=r"image 0 has no patches of view 2; it has views \[0, 1\]"):
        batch("tiles", [[(60, 60)]]).grid(0, 2)
