"""Pictures: patches lie where the processor puts them, both forms show the same numbers, and labels can be read."""

from __future__ import annotations

import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hooked_vlm import HookedVLM, viz
from hooked_vlm.errors import ImageError, InputsError, MissingExtraError, PositionError
from hooked_vlm.images import to_rgb
from hooked_vlm.patching import Sites, sweep
from hooked_vlm.patching.metrics import logit_diff
from hooked_vlm.viz.interactive import _text
from hooked_vlm.viz.scales import Scale
from tests.models import checkpoints
from tests.models.unchecked import unchecked

SIDE, PATCH = 48, 8
SQUARE = {"height": SIDE, "width": SIDE}
PROCESSORS = {
    "blip": checkpoints.blip_processor(SIDE).image_processor,
    "siglip": SiglipImageProcessorPil(size=SQUARE),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE),
    "clip, cropped further": CLIPImageProcessorPil(size={"shortest_edge": 61}, crop_size=SIDE),
    "clip, cropped beyond the picture": CLIPImageProcessorPil(size={"shortest_edge": 37}, crop_size=SIDE),
    "llava, padded to a square": LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE, do_pad=True),
    "not resized": CLIPImageProcessorPil(do_resize=False, crop_size=SIDE),
}


@pytest.fixture(scope="module")
def blip():
    hf, processor = checkpoints.blip_vqa()
    return HookedVLM.from_hf(hf, processor)


# --- where patches lie ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSORS)
@given(width=st.integers(60, 300), height=st.integers(60, 300), patch=st.integers(0, 35))
def test_a_bright_patch_is_found_where_the_processor_puts_it(name, width, height, patch):
    geometry = viz.Geometry.of(PROCESSORS[name], (width, height), PATCH)
    assert geometry.grid == (6, 6)
    left, top, right, bottom = (round(edge) for edge in geometry.where(patch))
    shown = (min(right, width) - max(left, 0)) * (min(bottom, height) - max(top, 0))
    if min(right, width) <= max(left, 0) or min(bottom, height) <= max(top, 0) or shown < (right - left) ** 2 / 2:
        return  # a patch of padding
    planted = np.full((height, width, 3), 40, dtype=np.uint8)
    planted[max(0, top) : bottom, max(0, left) : right] = 250
    pixels = PROCESSORS[name](Image.fromarray(planted), return_tensors="np")["pixel_values"][0].mean(0)
    brightness = pixels.reshape(6, PATCH, 6, PATCH).mean((1, 3)).reshape(-1)
    assert brightness.argmax() == patch
    assert geometry.patch_at((left + right) / 2, (top + bottom) / 2) == patch


@pytest.mark.parametrize("name", PROCESSORS)
@given(width=st.integers(60, 200), height=st.integers(60, 200), seed=st.integers(0, 9))
def test_a_patch_is_covered_as_much_as_the_processed_mask_is_bright_there(name, width, height, seed):
    generator = np.random.default_rng(seed)
    x, y = sorted(generator.integers(0, width + 1, 2)), sorted(generator.integers(0, height + 1, 2))
    mask = np.zeros((height, width), dtype=bool)
    mask[y[0] : y[1], x[0] : x[1]] = True
    shares = viz.Geometry.of(PROCESSORS[name], (width, height), PATCH).shares(mask)
    bright = Image.fromarray(np.repeat(mask[:, :, None] * np.uint8(255), 3, 2))
    plain = {"do_normalize": False, "do_rescale": True, "image_mean": [0, 0, 0], "return_tensors": "np"}
    pixels = PROCESSORS[name](bright, **plain)["pixel_values"][0].mean(0)
    processed = pixels.reshape(6, PATCH, 6, PATCH).mean((1, 3)).reshape(-1)
    np.testing.assert_allclose(shares, processed, atol=0.13)  # bicubic resizing rings at the mask's edges


def test_shares_are_exact_areas():
    geometry = viz.Geometry(size=(10, 4), grid=(1, 4), box=(0, 0, 10, 4))
    mask = np.zeros((4, 10))
    mask[:2, 3:] = 1
    assert geometry.shares(mask).tolist() == [0, 0.4, 0.5, 0.5]
    assert geometry.shares(torch.ones(4, 10)).tolist() == [1, 1, 1, 1]
    with pytest.raises(InputsError, match="mask is 4 x 10 and the picture 10 x 4"):
        geometry.shares(mask.T)


def test_boxes_are_numbered_row_by_row():
    geometry = viz.Geometry(size=(6, 4), grid=(2, 3), box=(0, 0, 6, 4))
    assert [geometry.where(k)[:2] for k in range(6)] == [(0, 0), (2, 0), (4, 0), (0, 2), (2, 2), (4, 2)]
    assert [geometry.patch_at(*box[:2]) for box in geometry.boxes] == list(range(6))
    with pytest.raises(PositionError, match="no patch 6; the grid has 6"):
        geometry.where(6)


def test_a_geometry_that_cannot_be_is_refused():
    with pytest.raises(InputsError, match="left < right"):
        viz.Geometry(size=(6, 4), grid=(2, 3), box=(6, 0, 6, 4))
    with pytest.raises(InputsError, match="no patch of 64"):
        viz.Geometry.of(PROCESSORS["blip"], (100, 100), 64)
    thumbnail = SiglipImageProcessorPil(size={"shortest_edge": 30, "longest_edge": 40})
    with pytest.raises(InputsError, match="by hand"):
        viz.Geometry.of(thumbnail, (100, 100), 8)


def test_a_turned_photograph_is_seen_upright():
    turned = Image.new("RGB", (80, 40))
    turned.getexif()[0x0112] = 6  # a camera held upright
    assert viz.picture(turned).size == (40, 80)
    assert viz.Geometry.of(PROCESSORS["blip"], turned, PATCH).size == (40, 80)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 6, 3), np.uint8),
        np.zeros((4, 6)),
        torch.zeros(3, 4, 6),
        torch.zeros(4, 6, 1),
        Image.new("L", (6, 4)),
    ],
    ids=["uint8", "floats", "channels first", "one channel", "greyscale"],
)
def test_what_a_picture_may_be(image):
    assert viz.picture(image).size == (6, 4)
    assert viz.picture(image).mode == "RGB"


def test_a_picture_is_drawn_as_the_model_is_given_it():
    deep = Image.fromarray(np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16))  # 16 bits a pixel
    np.testing.assert_array_equal(np.asarray(viz.picture(deep)), np.asarray(to_rgb(deep)))


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    for bad in (tmp_path / "a.png", tmp_path / "missing.png", np.zeros(4), np.full((4, 4), 7.0)):
        with pytest.raises(ImageError, match=r"a\.png|missing\.png|shape|floats from 7 to 7"):
            viz.picture(bad)


# --- both forms show the same -----------------------------------------------------------------------


def cells_of(figure):
    return [trace for trace in figure.data if trace.type == "heatmap"]


def drawn_at(figure, ax, x, y):
    """The colour that matplotlib draws at a point of an axes."""
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())
    column, row = ax.transData.transform((x, y))
    return image[image.shape[0] - 1 - int(row), int(column), :3] / 255


@pytest.fixture
def drawable(monkeypatch):
    """matplotlib figures with a canvas that can be read."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def canvas(figure):
        FigureCanvasAgg(figure)
        return figure

    return canvas


@pytest.mark.parametrize("name", ["blip", "clip, cropped further", "llava, padded to a square"])
@pytest.mark.parametrize("patch", [0, 14, 35])
def test_an_overlay_colours_the_planted_patch_of_the_original_picture(name, patch, drawable):
    image = Image.new("RGB", (220, 160), "#404040") if "padded" not in name else Image.new("RGB", (170, 160))
    geometry = viz.Geometry.of(PROCESSORS[name], image, PATCH)
    left, top, right, bottom = geometry.where(patch)
    planted = np.array(image)
    planted[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)] = 255
    pixels = PROCESSORS[name](Image.fromarray(planted), return_tensors="np")["pixel_values"][0].mean(0)
    brightness = pixels.reshape(6, PATCH, 6, PATCH).mean((1, 3)).reshape(-1)
    brightness = brightness - brightness.min()
    x, y = (max(left, 0) + right) / 2, (max(top, 0) + bottom) / 2

    interactive = viz.overlay(brightness, planted, geometry)
    (cells,) = cells_of(interactive)
    row, column = np.unravel_index(np.argmax(cells.z), cells.z.shape)
    assert abs(cells.x[column] - (left + right) / 2) < 1e-9 and abs(cells.y[row] - (top + bottom) / 2) < 1e-9
    (image_trace,) = [trace for trace in interactive.data if trace.type == "image"]
    assert image_trace.x0 - image_trace.dx / 2 == 0 == image_trace.y0 - image_trace.dy / 2

    paper = drawable(viz.overlay(brightness, planted, geometry, to="matplotlib"))
    red, green, blue = drawn_at(paper, paper.axes[0], x, y)
    assert red > 0.7 and green > 0.7 and blue < 0.45  # the scale's last colour, yellow
    wide, high = image.size
    elsewhere = (0.5, 0.6) if patch != 14 else (0.95, 0.95)
    assert drawn_at(paper, paper.axes[0], elsewhere[0] * wide, elsewhere[1] * high)[0] < 0.5


def test_both_forms_hold_the_same_numbers(drawable):
    values = np.random.default_rng(0).normal(size=(3, 4, 5))
    interactive = viz.head_map(values, titles=["a", "b", "c"])
    np.testing.assert_array_equal([cells.z for cells in cells_of(interactive)], values)
    paper = drawable(viz.head_map(values, titles=["a", "b", "c"], to="matplotlib"))
    scale = Scale.of(values, "diverging")
    for one, ax in zip(values, paper.axes, strict=False):
        np.testing.assert_allclose(ax.images[0].get_array(), scale.colours(one))
        np.testing.assert_allclose(drawn_at(paper, ax, 3, 1), scale.colours(one[1, 3])[:3], atol=0.01)
    assert [ax.get_title() for ax in paper.axes[:3]] == ["a", "b", "c"]


def test_effects_are_centred_at_zero_and_attention_starts_there():
    axis = viz.head_map([[0.5, -2.0]]).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-2, 2)
    axis = viz.head_map([[0.5, 0.2]], kind="sequential").layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0, 0.5)
    axis = viz.head_map([[0.5, -2.0]], limit=5).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-5, 5)


def test_nothing_but_zeros_and_missing_numbers_can_be_drawn(drawable):
    for values in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.array([[np.nan, 1.0]])):
        for kind in ("diverging", "sequential"):
            viz.head_map(values, kind=kind)
            drawable(viz.head_map(values, kind=kind, to="matplotlib")).canvas.draw()


# --- colours ----------------------------------------------------------------------------------------

# What a reader without green cones sees, in linear RGB (Viénot, Brettel & Mollon 1999, table 1 and eq. 4).
DEUTERANOPE = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
PROTANOPE = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])


def seen_by(rgb, matrix):
    return np.clip(rgb, 0, 1) ** 2.2 @ matrix.T


@pytest.mark.parametrize("matrix", [np.eye(3), DEUTERANOPE, PROTANOPE], ids=["all cones", "no green", "no red"])
def test_colours_stay_apart_for_every_reader(matrix):
    sequential = seen_by(Scale("sequential", 0, 1).table[:, :3], matrix) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(sequential) < 0).all()
    luminous = seen_by(Scale("luminous", 0, 1).table[:, :3], matrix) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminous) > 0).all()
    diverging = seen_by(Scale("diverging", -1, 1).table[:, :3], matrix)
    assert np.linalg.norm(diverging[50] - diverging[205]) > 0.25  # a blue and a red of the same strength
    assert diverging[128].min() > 0.85


# --- tokens -----------------------------------------------------------------------------------------

TOKENS = ["<s>", *["<image>"] * 4, "is", "red", "or", "red", "$"]


def test_a_repeated_token_keeps_its_columns(drawable):
    values = np.arange(20.0).reshape(2, 10)
    interactive = viz.token_map(values, TOKENS)
    (cells,) = cells_of(interactive)
    assert cells.z.shape == (2, 7) and len(set(cells.x)) == 7
    assert list(interactive.layout.xaxis.ticktext) == [
        "&lt;s&gt;", "&lt;image&gt; x 4", "is", "red", "or", "red", "$",
    ]  # fmt: skip
    paper = drawable(viz.token_map(values, TOKENS, to="matplotlib"))
    paper.canvas.draw()
    assert [label.get_text() for label in paper.axes[0].get_xticklabels()][1:] == [
        "<image> x 4", "is", "red", "or", "red", r"\$",
    ]  # fmt: skip


@pytest.mark.parametrize(("how", "expected"), [("largest", -9), ("mean", -1), ("sum", -4)])
def test_the_images_column_holds_what_is_asked_for(how, expected):
    values = np.array([[0.0, 3, -9, 1, 1, 0, 0, 0, 0, 0]])
    (cells,) = cells_of(viz.token_map(values, TOKENS, collapse=how))
    assert cells.z[0, 1] == expected
    assert f"positions 1 to 4, {how}" in cells.customdata[0][1]


def test_image_tokens_can_be_kept():
    (cells,) = cells_of(viz.token_map(np.zeros((2, 10)), TOKENS, collapse="none"))
    assert cells.z.shape == (2, 10)


def test_a_token_is_no_tag():
    assert _text("<image>") == "&lt;image&gt;"


def test_the_lens_is_written_into_the_cells(drawable):
    words = [["Ġred", "the"], ["blue", " "]]
    interactive = viz.word_map(words, [[0.1, 0.9], [0.5, 0.2]], ["a", "a"], layers=["embedding", 0])
    (text,) = [trace for trace in interactive.data if trace.type == "scatter"]
    assert list(text.text) == ["▁red", "the", "blue", "▁"]
    assert list(text.textfont.color) == ["#111111", "#ffffff", "#111111", "#111111"]
    assert "says ▁red" in cells_of(interactive)[0].customdata[0][0]
    paper = viz.word_map(words, [[0.1, 0.9], [0.5, 0.2]], ["a", "a"], to="matplotlib")
    assert [text.get_text() for text in paper.axes[0].texts] == ["▁red", "the", "blue", "▁"]


def test_words_over_a_picture_have_an_ink_that_can_be_read():
    geometry = viz.Geometry(size=(60, 60), grid=(2, 2), box=(0, 0, 60, 60))
    figure = viz.overlay([0, 0, 1, 1], Image.new("RGB", (60, 60)), geometry, words=["a", "<b>", "c", "d"])
    (text,) = [trace for trace in figure.data if trace.type == "scatter"]
    assert list(text.text) == ["a", "&lt;b&gt;", "c", "d"]
    assert list(text.textfont.color) == ["#ffffff", "#ffffff", "#111111", "#111111"]  # dark below, yellow at the top


# --- results of sweeps ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(blip):
    clean, corrupt = (blip.to_inputs(checkpoints.picture(seed), "is the circle red or blue?") for seed in (0, 1))
    return blip, clean, corrupt, {"first": logit_diff(3, 4), "second": logit_diff(5, 6)}


def test_a_sweeps_result_is_drawn_as_its_mean_effects(swept):
    model, clean, corrupt, metrics = swept
    sites = Sites.heads(model, "text_encoder", "cross_attn", positions=[2, 5], heads=[1])
    result = sweep(model, clean, corrupt, sites, metrics, progress=False)
    figure = viz.head_map(result, metric="second", tokens=clean.str_tokens)
    effect = result["second"].effect().mean(-1)  # [layer position head]
    for i, cells in enumerate(cells_of(figure)):
        np.testing.assert_allclose(cells.z, effect[:, i], rtol=1e-6)
    assert [note.text for note in figure.layout.annotations] == [f"{clean.str_tokens[p]} ({p})" for p in (2, 5)]
    assert list(figure.layout.xaxis.ticktext) == ["1"]
    with pytest.raises(InputsError, match="first, second"):
        viz.head_map(result)


def test_a_sweep_over_tokens_is_drawn_with_its_tokens(swept):
    model, clean, corrupt, metrics = swept
    sites = Sites.module(model, "text_encoder", "cross_attn_out", positions=[1, 4])
    result = sweep(model, clean, corrupt, sites, metrics["first"], progress=False)
    figure = viz.token_map(result, clean.str_tokens)
    np.testing.assert_allclose(cells_of(figure)[0].z, result.effect().mean(-1), rtol=1e-6)
    assert list(figure.layout.xaxis.ticktext) == [clean.str_tokens[p] for p in (1, 4)]
    with pytest.raises(InputsError, match=r"positions \[4\]"):
        viz.token_map(result, clean.str_tokens[:3])
    with pytest.raises(InputsError, match="needs layer and head"):
        viz.head_map(result)


def test_a_chart_says_which_axis_is_left_over(swept):
    model, clean, corrupt, metrics = swept
    sites = Sites.heads(model, "text_encoder", positions=[1, 4])
    result = sweep(model, clean, corrupt, sites, metrics["first"], progress=False)
    with pytest.raises(InputsError, match="also over head"):
        viz.token_map(result, clean.str_tokens)


# --- heads over the picture -------------------------------------------------------------------------


def test_the_class_token_is_said_and_not_drawn():
    image, geometry = Image.new("RGB", (60, 60)), viz.Geometry(size=(60, 60), grid=(2, 2), box=(0, 0, 60, 60))
    pattern = torch.tensor([[0.5, 0.5, 0, 0, 0], [0.2, 0, 0, 0.8, 0]])
    figure = viz.attention_over_image(pattern, image, geometry, query=3)
    assert [note.text for note in figure.layout.annotations] == ["head 0 (50% on [CLS])", "head 1 (20% on [CLS])"]
    np.testing.assert_allclose(cells_of(figure)[1].z, [[0, 0], [0.8, 0]])
    assert {(s.x0, s.y0, s.x1, s.y1) for s in figure.layout.shapes} == {(30, 30, 60, 60)}
    with pytest.raises(InputsError, match=r"6 values for 2 x 2 = 4 patches.*inputs\.image_span"):
        viz.attention_over_image(torch.zeros(6), image, geometry)
    with pytest.raises(InputsError, match="the geometry is for one of"):
        viz.attention_over_image(torch.zeros(4), Image.new("RGB", (60, 61)), geometry)


def test_one_head_can_be_shown_on_several_pictures():
    images = [Image.new("RGB", (60, 60)), Image.new("RGB", (80, 40))]
    seen = [viz.Geometry.of(PROCESSORS["blip"], image, 24) for image in images]
    figure = viz.attention_over_image(np.eye(4)[:2], images, seen, titles=["a", "b"], outline=[None, np.ones((40, 80))])
    first, second = cells_of(figure)
    assert (first.x[0], second.x[0]) == (15, 20)
    with pytest.raises(InputsError, match="2 pictures for 3 maps"):
        viz.overlay(np.zeros((3, 4)), images, seen[0])


@pytest.mark.parametrize("to", ["plotly", "matplotlib"])
def test_clean_stands_against_corrupt_and_the_change(to):
    image, geometry = Image.new("RGB", (60, 60)), viz.Geometry(size=(60, 60), grid=(2, 2), box=(0, 0, 60, 60))
    mask = np.eye(60)
    clean, corrupt = torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1]), torch.tensor([0.1, 0.1, 0.5, 0.2, 0.1])
    figure = viz.clean_against_corrupt(clean, corrupt, image, image, geometry, outline=mask, to=to)
    if to == "plotly":
        change = cells_of(figure)[2]
        np.testing.assert_allclose(change.z, [[-0.3, 0.3], [0, 0]], atol=1e-6)
        first, last = figure.layout.coloraxis, figure.layout.coloraxis2
        assert (first.cmin, last.cmin) == (0, pytest.approx(-0.3)) and last.cmax == pytest.approx(0.3)
    else:
        assert [ax.get_title() for ax in figure.axes[:3]] == ["clean", "corrupt", "corrupt less clean"]


# --- graphs -----------------------------------------------------------------------------------------


def drawn_both_ways(draw, *given, **options):
    """A chart as plotly draws it, checked against what a page embeds, and as matplotlib does."""
    figure, page, paper = (draw(*given, **options, to=to) for to in ("plotly", "page", "matplotlib"))
    assert [trace.type for trace in figure.data] == [trace["type"] for trace in page["data"]]
    for trace, one in zip(go.Figure(page).data, figure.data, strict=True):
        assert trace.hovertemplate == one.hovertemplate
        np.testing.assert_array_equal(trace.y, one.y)
    return figure, page, paper.axes[0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(1, 3))
def test_lines_hold_their_numbers_and_intervals_in_every_form(values, n):
    ys = np.array(values)
    series = {f"series <{i}>": ys + i for i in range(n)}
    spans = {"series <0>": (ys - 1, ys + 2)}
    figure, page, ax = drawn_both_ways(viz.lines, series, spans=spans, y_title="<effect>", title="$x$")
    for i, line in enumerate(figure.data):
        np.testing.assert_array_equal(line.y, ys + i)
        np.testing.assert_array_equal(ax.containers[i].lines[0].get_ydata(), ys + i)
    np.testing.assert_allclose(figure.data[0].error_y.array, 2)
    np.testing.assert_allclose(figure.data[0].error_y.arrayminus, 1)
    assert page["layout"]["yaxis"]["title"]["text"] == "&lt;effect&gt;" and ax.get_ylabel() == "<effect>"
    assert figure.layout.showlegend is (n > 1) and page["layout"]["showlegend"] is False
    assert len(page["layout"]["xaxis"]["tickvals"]) <= 12  # none is turned on its side


def test_bars_leave_out_what_is_missing():
    groups = {"whole": [1.0, 0.5], "without": [0.25, float("nan")]}
    spans = {"without": ([0.125, float("nan")], [0.5, float("nan")])}
    figure, _, ax = drawn_both_ways(viz.bars, ["<colour>", "place"], groups, spans=spans, y_title="accuracy")
    assert list(figure.data[0].x) == ["&lt;colour&gt;", "place"]
    np.testing.assert_array_equal(figure.data[1].y, [0.25, np.nan])
    np.testing.assert_array_equal(figure.data[1].error_y.arrayminus, [0.125, np.nan])
    assert [bar.get_height() for bar in ax.containers[0]] == [1.0, 0.5]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["<colour>", "place"]


def test_a_scatter_names_the_points_that_are_farthest_out():
    x, y = np.array([0.1, 3.0, -2.0, np.nan]), np.array([0.1, 0.0, -2.0, 1.0])
    figure, _, ax = drawn_both_ways(viz.scatter, x, y, ["a", "b", "c<", "d"], labelled=2)
    (points,) = figure.data
    assert list(points.text) == ["", "b", "c&lt;", ""] and list(points.customdata) == ["a", "b", "c&lt;", "d"]
    assert [text.get_text() for text in ax.texts] == ["b", "c<"]
    np.testing.assert_array_equal(np.asarray(ax.collections[0].get_offsets())[:3], np.stack([x, y], 1)[:3])


# --- what a page embeds -----------------------------------------------------------------------------


def test_a_map_in_a_page_holds_the_numbers_labels_and_colours_of_the_map_alone():
    values = np.random.default_rng(0).normal(size=(3, 20))
    alone, page = viz.head_map(values, limit=2), viz.head_map(values, limit=2, to="page")
    (cells,), (embedded,) = cells_of(alone), page["data"]
    for name in ("z", "x", "y", "customdata"):
        np.testing.assert_array_equal(embedded[name], cells[name])
    axis = alone.layout.coloraxis
    assert (embedded["zmin"], embedded["zmax"]) == (axis.cmin, axis.cmax)
    assert tuple(map(tuple, embedded["colorscale"])) == axis.colorscale
    assert page["layout"]["xaxis"]["ticktext"] == ["0", "4", "8", "12", "16"]
    assert page["layout"]["yaxis"]["range"] == [2.5, -0.5]  # the first layer stands at the top
    go.Figure(page)


def test_what_the_mouse_shows_can_be_given_and_is_no_tag():
    more = [[["<i>", "a"], ["b", "c"]]]
    page = viz.head_map([[1.0, 2.0]], customdata=more, hovertemplate="%{customdata[0]}", words=[["<u>", ""]], to="page")
    (cells,) = page["data"]
    assert cells["customdata"].tolist() == [[["&lt;i&gt;", "a"], ["b", "c"]]]
    assert cells["text"].tolist() == [["&lt;u&gt;", ""]] and cells["hovertemplate"] == "%{customdata[0]}"


def test_rooms_of_pictures_import_one_another_one_way():
    """Imports within functions count: a circle of those is a circle."""
    package = Path(viz.__file__).parent
    found = {
        path.stem: set(re.findall(r"from hooked_vlm\.viz(?:\.(\w+))? import", path.read_text(encoding="utf-8")))
        | set(re.findall(r"from hooked_vlm\.viz import (\w+)", path.read_text(encoding="utf-8"))) - {""}
        for path in package.glob("*.py")
        if path.stem != "__init__"
    }
    list(TopologicalSorter(found).static_order())  # raises CycleError


# --- what is asked wrongly --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: viz.head_map([1.0, 2.0]), r"expected \[layer head\]"),
        (lambda: viz.head_map([["a", "b"]]), "no table of numbers"),
        (lambda: viz.head_map(np.zeros((2, 2)), heads=["one"]), "1 labels for 2 heads"),
        (lambda: viz.head_map(np.zeros((2, 2)), titles=["a", "b"]), "2 titles for 1 panels"),
        (lambda: viz.head_map(np.zeros((2, 2)), kind="rainbow"), "'diverging' or 'sequential'"),
        (lambda: viz.head_map(np.zeros((2, 2)), limit=0), "above 0"),
        (lambda: viz.head_map(np.zeros((2, 2)), framed=[(2, 0)]), "2 rows and 2 columns"),
        (lambda: viz.head_map(np.zeros((2, 2)), to="gnuplot"), "'plotly' or 'matplotlib'"),
        (lambda: viz.head_map(np.zeros((2, 2)), columns=0), "0 columns"),
        (lambda: viz.head_map(np.zeros((2, 2)), words=["a"]), r"words of shape \(1,\).*\(1, 2, 2\) cells"),
        (lambda: viz.head_map(np.zeros((2, 2, 2)), to="page"), "one map without a picture at a time"),
        (lambda: viz.lines({"a": [1, 2]}, x={"a": [1]}), r"a: numbers of shape \(2,\) beside others of shape \(1,\)"),
        (lambda: viz.lines({"a": [[1, 2]]}), r"shape \(1, 2\)"),
        (lambda: viz.bars(["one"], {"a": [1, 2]}), "expected as many of each"),
        (lambda: viz.bars(["one"], {"a": [1]}, to="gnuplot"), "'plotly' or 'matplotlib'"),
        (lambda: viz.scatter([1, 2], [1], ["a", "b"]), "a scatter: numbers"),
        (lambda: viz.scatter([1, 2], [1, 2], ["a"]), "1 names for 2 points"),
        (lambda: viz.token_map(np.zeros((2, 2)), ["a"]), "1 tokens for 2 positions"),
        (lambda: viz.token_map(np.zeros((2, 1)), ["a"], collapse="median"), "'largest', 'mean'"),
        (lambda: viz.token_map(np.zeros(2), ["a", "b"]), r"expected \[layer pos\]"),
        (lambda: viz.word_map([["a"]], np.zeros((1, 2)), ["a", "b"]), "one token a position"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with unchecked(), pytest.raises(InputsError, match=message):
        draw()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"hooked-vlm\[figures\]"):
        viz.head_map([[1.0]], to="matplotlib")


def test_figures_are_saved_in_the_forms_they_have(tmp_path):
    paper, interactive = viz.head_map([[1.0]], to="matplotlib"), viz.head_map([[1.0]])
    assert viz.save(paper, tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in viz.save(paper, tmp_path / "a.svg").read_bytes()
    page = viz.save(interactive, tmp_path / "a.html").read_text()
    assert 'src="http' not in page
    for figure, name in ((paper, "a.html"), (interactive, "a.png")):
        with pytest.raises(InputsError, match=name):
            viz.save(figure, tmp_path / name)
    with pytest.raises(InputsError, match="no figure"):
        viz.save([], tmp_path / "a.png")


def test_a_map_of_other_things_is_called_by_its_names():
    figure = viz.head_map([[1.0, 2.0]], layers=["a"], heads=["0-1", "2-3"], row_title="route", column_title="layers")
    assert (figure.layout.yaxis.title.text, figure.layout.xaxis.title.text) == ("route", "layers")
    assert cells_of(figure)[0].customdata[0][1] == "route a, layers 2-3<br>effect 2"
