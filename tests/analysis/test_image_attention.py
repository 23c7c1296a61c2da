"""Where heads look: masks land on the right patches, scores are what their formulas say, labels follow the truth."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hooked_vlm import HookedBLIP, HookedLLaVA, viz
from hooked_vlm.analysis.image_attention import (
    COLUMNS,
    SCORES,
    image_attention,
    patch_coverage,
    score_batch,
    score_example,
)
from hooked_vlm.errors import DataError, InputsError, PositionError
from tests.models import checkpoints

SIDE, PATCH = 32, 4  # an image of 8 x 8 patches
GRID = SIDE // PATCH
NUMBERS = list(SCORES)


@pytest.fixture(scope="module")
def blip():
    vision = {"image_size": SIDE, "patch_size": PATCH}
    return HookedBLIP.from_hf(*checkpoints.blip_vqa(vision=vision))


@pytest.fixture(scope="module")
def llava():
    """Its pictures are resized by the shortest edge, and the middle is cut out, as CLIP's are."""
    made = checkpoints.llava(
        vision_changes={"image_size": SIDE, "patch_size": PATCH}, text_changes={"max_position_embeddings": 256}
    )
    made[1].image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return HookedLLaVA.from_hf(*made)


def box(width, height, left, top, right, bottom):
    picture = np.zeros((height, width), np.uint8)
    picture[top:bottom, left:right] = 255
    return Image.fromarray(picture)


@contextmanager
def looking_at(model, kind, patches, cls=0.0, rest=0.0):
    """Every head of the kind attends evenly to some patches, and as said to the class token and to the rest."""
    attention = kind.removesuffix("-heads")

    def set_pattern(pattern, hook):
        n_keys = pattern.shape[-1]
        start = n_keys - GRID * GRID if attention == "cross_attn" else model.test_start
        new = torch.zeros_like(pattern)
        new[..., start : start + GRID * GRID] = rest / (GRID * GRID)
        new[..., [start + patch for patch in patches]] += (1 - cls - rest) / len(patches)
        if attention == "cross_attn":
            new[..., 0] += cls
        return new

    stack = model.stacks[model.prompt_stack]
    names = [f"{stack.prefix}blocks.{i}.{attention}.hook_pattern" for i in range(stack.cfg.n_layers)]
    with model.hooks(fwd_hooks=[(name, set_pattern) for name in names]):
        yield


# --- masks ------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(20, 120), st.integers(20, 120), st.data())
def test_a_mask_covers_the_patches_that_its_picture_changes(blip, llava, width, height, data):
    """Whatever the processor does to sizes: a white box on black changes those patches, and no others."""
    left, top = data.draw(st.integers(0, width - 8)), data.draw(st.integers(0, height - 8))
    right, bottom = data.draw(st.integers(left + 8, width)), data.draw(st.integers(top + 8, height))
    mask = box(width, height, left, top, right, bottom)
    for model, crops in ((blip, False), (llava, True)):
        cover = patch_coverage(model, mask)[0].reshape(GRID, GRID).numpy()
        scale = np.array([SIDE / min(width, height)] * 2 if crops else [SIDE / width, SIDE / height])
        offset = (np.round(np.array([width, height]) * scale) - SIDE) / 2 if crops else np.zeros(2)
        (x0, y0), (x1, y1) = (np.array(corner) * scale - offset for corner in ((left, top), (right, bottom)))
        along = [
            np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None) / PATCH
            for low, high, edges in ((y0, y1, np.arange(0, SIDE + 1, PATCH)), (x0, x1, np.arange(0, SIDE + 1, PATCH)))
        ]
        assert np.abs(cover - np.outer(*along)).max() < 0.35  # one pixel of a patch's four, by rounding of the crop
        assert abs(cover.mean() - np.outer(*along).mean()) < 0.06
        seen, plain = model.to_pixels([mask, Image.new("L", mask.size)])
        changed = (seen - plain).abs().mean(0).reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).numpy()
        assert ((changed > 1e-4) == (cover > 1e-4)).all()


def test_a_planted_patch_is_covered_whole_and_alone(blip, llava):
    tall = box(64, 128, 16, 40, 24, 48)  # shortest edge 64 to 32 halves it; the crop takes off 16 pixels at the top
    wanted = torch.zeros(GRID, GRID)
    wanted[1, 2] = 1.0
    assert torch.allclose(patch_coverage(llava, tall)[0].reshape(GRID, GRID).round(decimals=1), wanted, atol=0.15)
    squeezed = torch.zeros(GRID, GRID)
    squeezed[2, 2], squeezed[3, 2] = 0.5, 0.0
    found = patch_coverage(blip, tall)[0].reshape(GRID, GRID)
    assert torch.allclose(found, squeezed, atol=0.15)


def test_what_the_crop_cuts_off_is_not_seen(llava):
    gone = box(32, 128, 0, 0, 32, 20)
    inputs = llava.to_inputs(checkpoints.picture(0, 128, 32), "is it red?")
    scores = score_example(llava, inputs, kinds=["attn-heads"], query=inputs.last, mask=gone)
    assert scores[["inside", "area", "lift", "auc", "pointing", "relative_inside"]].isna().all(axis=None)
    assert scores["image_mass"].notna().all()


def test_masks_of_several_sizes_go_together(blip):
    masks = [box(64, 64, 8, 8, 32, 32), box(100, 40, 0, 0, 50, 20)]
    together = patch_coverage(blip, masks)
    for mask, cover in zip(masks, together, strict=True):
        assert torch.equal(patch_coverage(blip, mask)[0], cover)


# --- scores -----------------------------------------------------------------------------------------


def test_attention_is_what_the_cache_holds(blip, llava):
    for model, kind in ((blip, "cross_attn-heads"), (llava, "attn-heads")):
        inputs = model.to_inputs(checkpoints.picture(1, 48, 40), "is the circle red or blue?")
        found, _ = image_attention(model, inputs, [kind], 3)
        _, cache = model.run_with_cache(inputs)
        stack = model.stacks[model.prompt_stack]
        for layer in range(stack.cfg.n_layers):
            pattern = cache[f"{stack.prefix}blocks.{layer}.{kind.removesuffix('-heads')}.hook_pattern"][:, :, 3]
            assert torch.allclose(found[kind].patches[:, layer], pattern[..., inputs.image_span], atol=1e-6)
            if model is blip:
                assert torch.allclose(found[kind].cls[:, layer], pattern[..., 0], atol=1e-6)
        assert found[kind].less_the_mean().mean((1, 2)).abs().max() < 1e-6
        assert found[kind].less_the_mean().shape[-2:] == (GRID, GRID)


def test_several_query_tokens_count_as_their_mean(blip):
    inputs = blip.to_inputs(checkpoints.picture(1), "is the circle red or blue?")
    parts = [image_attention(blip, inputs, ["cross_attn-heads"], q)[0]["cross_attn-heads"].patches for q in (3, 4)]
    both = image_attention(blip, inputs, ["cross_attn-heads"], [3, 4])[0]["cross_attn-heads"].patches
    assert torch.allclose(both, (parts[0] + parts[1]) / 2, atol=1e-6)


def test_scores_follow_their_formulas(blip):
    """Against pixels counted one by one, each with its patch's attention."""
    inputs = blip.to_inputs(checkpoints.picture(2, 50, 70), "is the circle red or blue?")
    mask = box(70, 50, 10, 10, 47, 31)
    scores = score_example(blip, inputs, kinds=["cross_attn-heads"], query=2, mask=mask, query_role="answer")
    assert list(scores.columns) == list(COLUMNS) and (scores["query_role"] == "answer").all()
    found, _ = image_attention(blip, inputs, ["cross_attn-heads"], 2)
    cover = patch_coverage(blip, mask)[0].double().numpy()
    pixels = 400
    in_mask = np.concatenate([np.arange(pixels) < round(c * pixels) for c in cover])
    insides = []
    for row in scores.itertuples():
        a = found["cross_attn-heads"].patches[0, row.layer, row.head].double().numpy()
        cls = float(found["cross_attn-heads"].cls[0, row.layer, row.head])
        per_pixel = np.repeat(a, pixels) / pixels
        inside = per_pixel[in_mask].sum() / per_pixel.sum()
        insides.append(inside)
        on, off = np.sort(per_pixel[in_mask]), np.sort(per_pixel[~in_mask])
        below, upto = np.searchsorted(off, on, "left"), np.searchsorted(off, on, "right")
        assert row.auc == pytest.approx((below + upto).mean() / 2 / len(off), abs=2e-3)
        assert row.inside == pytest.approx(inside, abs=2e-3) and row.area == pytest.approx(in_mask.mean(), abs=2e-3)
        assert row.lift == pytest.approx(row.inside / row.area)
        assert row.pointing == float(cover[a.argmax()] >= 0.5)
        assert row.image_mass == pytest.approx(1, abs=1e-5) and row.cls == pytest.approx(cls, abs=1e-6)
    assert scores["relative_inside"].to_numpy() == pytest.approx(insides - np.mean(insides), abs=2e-3)


@pytest.mark.parametrize("family", ["blip", "llava"])
def test_a_batch_scores_as_its_examples_do(family, request):
    model = request.getfixturevalue(family)
    kinds = ["cross_attn-heads", "attn-heads"]
    pictures = [checkpoints.picture(i, 40 + 9 * i, 60) for i in range(3)]
    prompts = ["is it red?", "is the circle red or blue or green?", "what color is it?"]
    masks = [box(60, 40, 5, 5, 40, 30), None, box(60, 58, 20, 8, 33, 50)]
    inputs = model.to_inputs(pictures, prompts)
    queries = inputs.last_each.tolist() if family == "llava" else [2, [2, 4], 3]
    together = score_batch(model, inputs, kinds=kinds, queries=queries, masks=masks)
    for i in range(3):
        alone = model.to_inputs(pictures[i], prompts[i])
        query = alone.last if family == "llava" else queries[i]
        one = score_example(model, alone, kinds=kinds, query=query, mask=masks[i])
        ours = together[together["row"] == i]
        np.testing.assert_allclose(ours[NUMBERS].to_numpy(), one[NUMBERS].to_numpy(), atol=2e-5)
    assert set(together["kind"]) == {"cross_attn-heads" if family == "blip" else "attn-heads"}


def test_even_attention_has_no_lift(blip):
    inputs = blip.to_inputs(checkpoints.picture(0), "is it red?")
    with looking_at(blip, "cross_attn-heads", range(GRID * GRID)):
        scores = score_example(blip, inputs, kinds=["cross_attn-heads"], query=1, mask=box(64, 64, 8, 8, 24, 24))
    assert scores["lift"].to_numpy() == pytest.approx(1, abs=1e-4)
    assert scores["auc"].to_numpy() == pytest.approx(0.5, abs=1e-4)
    assert scores["relative_inside"].to_numpy() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("family", ["blip", "llava"])
def test_a_head_on_the_object_scores_highest_and_one_off_it_lowest(family, request):
    model = request.getfixturevalue(family)
    kind = "cross_attn-heads" if family == "blip" else "attn-heads"
    inputs = model.to_inputs(checkpoints.picture(0, SIDE, SIDE), "is it red?")
    model.test_start = inputs.image_span.start
    mask = box(SIDE, SIDE, 8, 4, 16, 8)  # patches (1, 2) and (1, 3)
    for patches, inside, auc, pointing in (([10, 11], 1.0, 1.0, 1.0), ([40, 41], 0.0, 0.484, 0.0)):
        with looking_at(model, kind, patches):
            scores = score_example(model, inputs, kinds=[kind], query=1, mask=mask)
        assert scores["inside"].to_numpy() == pytest.approx(inside, abs=0.1)
        assert scores["auc"].to_numpy() == pytest.approx(auc, abs=0.02)
        assert (scores["pointing"] == pointing).all()


def test_high_norm_background_patches_and_the_class_token_are_outliers(blip):
    inputs = blip.to_inputs(checkpoints.picture(0, SIDE, SIDE), "is it red?")
    last = f"vision_encoder.blocks.{blip.stacks['vision_encoder'].cfg.n_layers - 1}.hook_resid_post"

    def raise_two(activation, hook):
        new = activation.clone()
        new[:, [1 + 5, 1 + 10]] *= 1000.0
        return new

    mask = box(SIDE, SIDE, 8, 4, 16, 8)  # holds patch 10, which is then no background
    with looking_at(blip, "cross_attn-heads", [5, 10, 20, 30], cls=0.2), blip.hooks(fwd_hooks=[(last, raise_two)]):
        with_mask = score_example(blip, inputs, kinds=["cross_attn-heads"], query=1, mask=mask)
        without = score_example(blip, inputs, kinds=["cross_attn-heads"], query=1)
    assert with_mask["outlier"].to_numpy() == pytest.approx(0.2 + 0.8 / 4, abs=1e-5)
    assert without["outlier"].to_numpy() == pytest.approx(0.2 + 0.8 / 2, abs=1e-5)
    assert without["cls"].to_numpy() == pytest.approx(0.2, abs=1e-5) and without["inside"].isna().all()


def test_self_attention_of_blip_has_no_image_to_look_at(blip):
    inputs = blip.to_inputs(checkpoints.picture(0), "is it red?")
    assert score_example(blip, inputs, kinds=["attn-heads", "mlp"], query=1).empty


def test_a_query_out_of_the_prompt_is_refused(blip):
    inputs = blip.to_inputs(checkpoints.picture(0), "is it red?")
    with pytest.raises(PositionError, match="queries of row 0"):
        score_example(blip, inputs, kinds=["cross_attn-heads"], query=99)
    with pytest.raises(PositionError, match="queries for 2"):
        score_batch(blip, inputs, kinds=["cross_attn-heads"], queries=[[1], [2]])
    with pytest.raises(DataError, match="2 masks were given for 1"):
        score_batch(blip, inputs, kinds=["cross_attn-heads"], queries=1, masks=[None, None])


def test_rivals_are_scored_as_the_object_is(blip):
    """With the masks exchanged lift and rival_lift change places, grounding its sign, and both together nothing."""
    inputs = blip.to_inputs(checkpoints.picture(2, 64, 64), "is the circle red or blue?")
    one, other = box(64, 64, 8, 8, 24, 24), box(64, 64, 40, 32, 56, 48)
    asked = {"kinds": ["cross_attn-heads"], "query": 2}
    scores = score_example(blip, inputs, mask=one, rival_mask=other, **asked)
    turned = score_example(blip, inputs, mask=other, rival_mask=one, **asked)
    both = Image.fromarray(np.maximum(np.asarray(one), np.asarray(other)))
    np.testing.assert_allclose(scores["lift"], turned["rival_lift"])
    np.testing.assert_allclose(scores["grounding"], scores["lift"] - scores["rival_lift"])
    np.testing.assert_allclose(scores["grounding"], -turned["grounding"])
    together = score_example(blip, inputs, mask=both, **asked)["lift"]
    np.testing.assert_allclose(scores["objects_lift"], together, rtol=1e-5)
    alone = score_example(blip, inputs, mask=one, **asked)
    assert alone[["rival_lift", "grounding"]].isna().all(axis=None)
    np.testing.assert_allclose(alone["objects_lift"], alone["lift"])


# --- several images in a prompt -----------------------------------------------------------------------


@settings(max_examples=10)
@given(size=st.tuples(st.integers(40, 120), st.integers(40, 120)), image=st.integers(0, 1), data=st.data())
def test_of_several_images_the_one_that_is_named_is_mapped(llava, size, image, data):
    seen = viz.Geometry.of(llava.processor, size, PATCH)
    plain = [Image.new("RGB", (64, 64), "grey"), Image.new("RGB", (64, 64), "grey")]
    plain[image] = Image.new("RGB", size, "black")
    inputs = llava.to_inputs([plain, plain], ["is it red ?", "what color is it ?"])
    row = data.draw(st.integers(0, 1), label="row")
    grid = inputs.grid(2 * row + image)
    at = int(grid[data.draw(st.integers(0, GRID - 1)), data.draw(st.integers(0, GRID - 1))])
    role = inputs.roles[row][at]
    assert role.image == 2 * row + image
    left, top, right, bottom = (round(edge) for edge in seen.region(role))
    planted = Image.new("RGB", size, "black")
    planted.paste("white", (left, top, right, bottom))
    changed = llava.to_pixels(planted)[0] - inputs.pixel_values[role.image]
    brightness = changed.mean(0).reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
    assert divmod(int(brightness.argmax()), GRID) == (role.row, role.column)

    def looks_at(pattern, hook):
        return torch.zeros_like(pattern).index_fill_(-1, torch.tensor([at]), 1.0)

    names = [f"blocks.{i}.attn.hook_pattern" for i in range(llava.stacks["language_model"].cfg.n_layers)]
    with llava.hooks(fwd_hooks=[(name, looks_at) for name in names]):
        found, norms = image_attention(llava, inputs, ["attn-heads"], inputs.last_each[:, None].tolist(), image=image)
    maps = found["attn-heads"].patches[row]
    assert (maps.argmax(-1) == role.row * GRID + role.column).all() and torch.allclose(maps.sum(-1), torch.ones(()))
    other, of_other = image_attention(llava, inputs, [], 1, image=1 - image)
    alone, expected = image_attention(llava, llava.to_inputs(plain[image], "is it red ?"), [], 1)
    assert not other and not alone and torch.allclose(norms, expected.expand_as(norms), atol=1e-4)
    assert of_other.shape == norms.shape


def test_which_of_several_images_is_meant_must_be_said(llava):
    picture = Image.new("RGB", (40, 40))
    inputs = llava.to_inputs([[picture, picture], [picture, picture]], ["is it red ?", "is it blue ?"])
    ask = {"kinds": ["attn-heads"], "queries": 1}
    with pytest.raises(InputsError, match=r"have \[2, 2\] images: expected one in each; .* image=0 to image=1"):
        score_batch(llava, inputs, **ask)
    with pytest.raises(InputsError, match=r"image 2 of each prompt was asked for, and the prompts have \[2, 2\]"):
        score_batch(llava, inputs, **ask, image=2)
    with pytest.raises(PositionError, match=r"have \[2, 2\] images.*name one.*grid\(0\) to inputs\.grid\(3\)"):
        inputs.grid()
    scored = score_batch(llava, inputs, **ask, image=1, masks=[picture, picture])
    assert sorted(scored["row"].unique()) == [0, 1]
