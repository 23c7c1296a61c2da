"""Running a corruption as a hook equals running the corrupt inputs; noise is each example's own."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.analysis.corruption import (
    GaussianNoise,
    RegionCorruption,
    SemanticImagePair,
    SymmetricTokenReplacement,
    text_embedding,
)
from hooked_vlm.errors import ImageError, InputsError, MissingExtraError, ReplacementError
from hooked_vlm.hooks import patch
from hooked_vlm.patching import Sites, metrics, sweep
from tests.models.unchecked import unchecked
from tests.notice.models import FAMILIES, pictures, row, small

PROMPTS = ["is the circle red or blue ?", "is this a square ?"]  # of different length: the batch is padded
CORRUPT = ["is the square red or blue ?", "is this a circle ?"]


def logits(model: HookedVLM, inputs: VLMInputs, hooks: Any = ()) -> torch.Tensor:
    with torch.no_grad():
        return model.run_with_hooks(inputs, fwd_hooks=list(hooks), logits_at="last")[:, -1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2])
def test_an_image_corrupted_by_a_hook_equals_the_corrupt_image(family: str, n: int) -> None:
    model = small(family)
    clean, corrupt = (model.to_inputs(pictures(n, first), PROMPTS[:n]) for first in (0, 5))
    for corruption in (SemanticImagePair(pictures(n, 5)), SemanticImagePair(pixel_values=corrupt.pixel_values)):
        hooks = corruption.fwd_hooks(model, clean)
        assert torch.equal(logits(model, clean, hooks), logits(model, corrupt))
    assert not torch.allclose(logits(model, clean), logits(model, corrupt))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2])
def test_words_replaced_by_a_hook_equal_the_corrupt_prompt(family: str, n: int) -> None:
    model = small(family)
    clean, corrupt = (model.to_inputs(pictures(n), prompts[:n]) for prompts in (PROMPTS, CORRUPT))
    hooks = SymmetricTokenReplacement(CORRUPT[:n]).fwd_hooks(model, clean)
    assert torch.equal(logits(model, clean, hooks), logits(model, corrupt))
    by_ids = SymmetricTokenReplacement(input_ids=corrupt.input_ids).fwd_hooks(model, clean)
    assert torch.equal(logits(model, clean, by_ids), logits(model, corrupt))
    assert not torch.allclose(logits(model, clean), logits(model, corrupt))
    padded = model.to_inputs(pictures(2), PROMPTS)[1]  # padding that the corrupt prompt alone has not
    own = SymmetricTokenReplacement(CORRUPT[1]).fwd_hooks(model, padded)
    alone = logits(model, model.to_inputs(pictures(2)[1], CORRUPT[1]))
    assert torch.allclose(logits(model, padded, own), alone, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_corruption_and_patches_in_one_run_are_the_whole_method(family: str) -> None:
    model = small(family)
    clean = model.to_inputs(pictures(1), PROMPTS[0])
    stack = model.stacks[model.prompt_stack]
    name = f"{stack.prefix}blocks.0.attn.hook_z"
    _, cache = model.run_with_cache(clean, names_filter=name)
    for corruption in (SemanticImagePair(pictures(1, 5)), SymmetricTokenReplacement(CORRUPT[0])):
        patches = [(name, patch(cache, clean.last, 1))]
        found = logits(model, clean, corruption.fwd_hooks(model, clean) + patches)
        corrupt = model.to_inputs(pictures(1, 5), PROMPTS[0])
        if isinstance(corruption, SymmetricTokenReplacement):
            corrupt = model.to_inputs(pictures(1), CORRUPT[0])
        sites = Sites.heads(model, model.prompt_stack, layers=0, heads=1, positions=clean.last)
        swept = sweep(model, clean, corrupt, sites, metrics.logit_diff(7, 9), progress=False)
        assert float(found[0, 7] - found[0, 9]) == pytest.approx(float(swept.values.squeeze()), abs=1e-5)


def test_a_replacement_of_another_length_is_refused() -> None:
    model = small("blip")
    clean = model.to_inputs(pictures(2), PROMPTS)
    with pytest.raises(ReplacementError, match=r"example 1 has 8 tokens and its prompt 7.*another word"):
        SymmetricTokenReplacement([CORRUPT[0], "is this a red circle ?"]).fwd_hooks(model, clean)
    with pytest.raises(ReplacementError, match="has 4 tokens and its prompt 9"):
        SymmetricTokenReplacement(input_ids=clean.input_ids[:, :4]).fwd_hooks(model, clean)
    with pytest.raises(InputsError, match="3 corrupt prompts for 2 examples"):
        SymmetricTokenReplacement([CORRUPT[0]] * 3).fwd_hooks(model, clean)
    for corruption in (SymmetricTokenReplacement(), SemanticImagePair()):
        with pytest.raises(InputsError, match="give one of the two"):
            corruption.fwd_hooks(model, clean)
    with pytest.raises(InputsError, match="corrupt pictures have shape"):
        SemanticImagePair(pixel_values=clean.pixel_values[..., :8]).fwd_hooks(model, clean)


# --- noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["image", "text"])
def test_a_batch_gets_the_noise_that_its_examples_get_alone(family: str, target: str) -> None:
    model = small(family)
    batch = model.to_inputs(pictures(2), PROMPTS)
    together = logits(model, batch, GaussianNoise(target, seed=[3, 4]).fwd_hooks(model, batch))
    for i, seed in enumerate([3, 4]):
        alone = model.to_inputs(pictures(2)[i], PROMPTS[i])
        hooks = GaussianNoise(target, seed=seed).fwd_hooks(model, alone)
        assert torch.allclose(logits(model, alone, hooks)[0], together[i], atol=1e-5)
        assert torch.equal(logits(model, alone, hooks), logits(model, alone, hooks))  # in every run the same
        other = GaussianNoise(target, seed=9).fwd_hooks(model, alone)
        assert not torch.allclose(logits(model, alone, other), logits(model, alone, hooks))
    assert not torch.allclose(together, logits(model, batch))


@pytest.mark.parametrize("target", ["image", "text"])
def test_the_noise_has_the_embeddings_own_size_where_it_was_asked_for(target: str) -> None:
    model = small("llava")
    inputs = model.to_inputs(pictures(1), PROMPTS[0])
    positions = [1, 2] if target == "image" else inputs.find("circle red")
    ((name, noisy),) = GaussianNoise(target, scale=3.0, positions=positions).fwd_hooks(model, inputs)
    _, cache = model.run_with_cache(inputs, names_filter=name)
    clean = cache[name]
    with model.hooks([(name, noisy)]):
        _, cache = model.run_with_cache(inputs, names_filter=name)
    added = cache[name] - clean
    assert set(added.abs().sum(-1)[0].nonzero()[:, 0].tolist()) == set(positions)
    here = clean[0, positions]
    assert float(added[0, positions].std() / here.std()) == pytest.approx(3.0, rel=0.4)


def test_noise_on_the_text_leaves_the_image_tokens_and_what_is_generated_alone() -> None:
    model = small("llava")
    inputs = model.to_inputs(pictures(1), PROMPTS[0])
    ((name, noisy),) = GaussianNoise("text").fwd_hooks(model, inputs)
    assert name == text_embedding(model) == "hook_embed"
    seen = []

    def watched(x: torch.Tensor, hook: Any) -> torch.Tensor:
        new = noisy(x, hook)
        seen.append((hook.first_position, (new - x).abs().sum(-1)[0]))
        return new

    with model.hooks([(name, watched)]):
        model.generate(inputs, max_new_tokens=3, stop_at_eos=False)
    assert seen[0][1][inputs.image_span].abs().max() == 0 < seen[0][1].max()
    assert len(seen) == 3 and all(first > 0 and added.max() == 0 for first, added in seen[1:])


def test_wrong_noise_is_refused() -> None:
    model = small("blip")
    inputs = model.to_inputs(pictures(2), PROMPTS)
    with pytest.raises(InputsError, match="3 seeds for 2 examples"):
        GaussianNoise("text", seed=[1, 2, 3]).fwd_hooks(model, inputs)
    with unchecked(), pytest.raises(InputsError, match="expected 'text' or 'image'"):
        GaussianNoise("sound").fwd_hooks(model, inputs)  # type: ignore[arg-type]


# --- regions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["blur", "mean", "inpaint"])
def test_a_region_is_changed_and_nothing_else(how: str) -> None:
    shown = row()
    (changed,) = RegionCorruption(shown["image"], shown["mask"], how).pictures()
    before, after, inside = (np.asarray(x) for x in (shown["image"].convert("RGB"), changed, shown["mask"]))
    inside = inside > 127
    assert (before[~inside] == after[~inside]).all()
    moved = np.abs(before[inside].astype(float) - after[inside]).mean()
    assert moved > 20
    if how == "mean":
        assert np.abs(after[inside] - before[~inside].mean(0)).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_region_corrupted_by_a_hook_equals_the_corrupted_picture(family: str) -> None:
    model, shown = small(family), row()
    corruption = RegionCorruption([shown["image"]] * 2, [shown["mask"]] * 2, "mean")
    clean = model.to_inputs([shown["image"]] * 2, PROMPTS)
    corrupt = model.to_inputs(corruption.pictures(), PROMPTS)
    assert torch.equal(logits(model, clean, corruption.fwd_hooks(model, clean)), logits(model, corrupt))


def test_masks_that_mark_no_region_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (8, 8))
    for mask, message in (
        (Image.new("L", (8, 8)), "mask 0 marks nothing"),
        (Image.new("L", (8, 8), 255), "marks the whole picture"),
        (Image.new("L", (4, 8), 255), r"\(4, 8\) and its picture \(8, 8\)"),
    ):
        with pytest.raises(ImageError, match=message):
            RegionCorruption(picture, mask).pictures()
    with pytest.raises(InputsError, match="2 masks for 1 pictures"):
        RegionCorruption(picture, [picture, picture]).pictures()
    with unchecked(), pytest.raises(InputsError, match="expected 'blur', 'mean', 'inpaint'"):
        RegionCorruption(picture, picture, "erase").pictures()  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"hooked-vlm\[inpaint\]"):
        RegionCorruption(row()["image"], row()["mask"], "inpaint").pictures()
