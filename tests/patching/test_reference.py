"""Scores of the published NOTICE implementation on a small BLIP, agreed with to 1e-4.

The scores stand beside the repository, not in it; the test skips where they are not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BlipForQuestionAnswering

from hooked_vlm import HookedBLIP, VLMInputs
from hooked_vlm.patching import Sites, metrics, sweep

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
STACK = "text_encoder"

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published scores are not beside the repository")


@pytest.fixture(scope="module")
def model() -> HookedBLIP:
    """The small checkpoint that was scored."""
    return HookedBLIP.from_hf(BlipForQuestionAnswering.from_pretrained(REFERENCE / "blip", dtype=torch.float32))


@pytest.fixture(scope="module")
def scores() -> dict[str, torch.Tensor]:
    """The published scores, [token layer 4] each."""
    return load_file(REFERENCE / "scores.safetensors")


def pair(mode: str) -> tuple[VLMInputs, VLMInputs, int, int]:
    """Clean and corrupt inputs, and the ids of the right and the wrong answer."""
    given = load_file(REFERENCE / "inputs.safetensors")
    ids, pixels = given[f"{mode}.ex0.input_ids"], given[f"{mode}.ex0.pixel_values"]
    clean, corrupt = (VLMInputs(pixels[i : i + 1].float(), ids[i : i + 1]) for i in range(2))
    right, wrong = given["answer_ids.ex0"].flatten().tolist()
    return clean, corrupt, right, wrong


def sites(model: HookedBLIP, kind: str, head: str) -> Sites:
    """What a `kind` of the published code is here."""
    if kind == "output":
        return Sites.residual(model, STACK, hook="normalized_resid_post")
    attention = {"crossattention_block": "cross_attn", "attention_block": "attn"}[kind]
    return Sites.heads(model, STACK, attention, heads="all_at_once" if head == "all" else int(head[1:]))


@pytest.mark.parametrize("mode", ["image", "text"])
def test_the_runs_are_the_published_ones(model: HookedBLIP, mode: str) -> None:
    given = load_file(REFERENCE / "inputs.safetensors")
    clean, corrupt, _, _ = pair(mode)
    for i, inputs in enumerate((clean, corrupt)):
        logits, cache = model.run_with_cache(inputs)
        states = cache[f"{STACK}.blocks.1.hook_normalized_resid_post"][0]
        assert torch.allclose(cache["hook_image_features"][0], given[f"{mode}.ex0.image_embeds"][i].float(), atol=1e-4)
        assert torch.allclose(states, given[f"{mode}.ex0.encoder_last_hidden_state"][i].float(), atol=1e-4)
        assert torch.allclose(logits[0, -1], given[f"{mode}.ex0.logits"][i].float().flatten(), atol=1e-4)


@pytest.mark.parametrize("mode", ["image", "text"])
def test_sweeps_agree_with_every_published_score(model: HookedBLIP, scores: dict[str, torch.Tensor], mode: str) -> None:
    clean, corrupt, right, wrong = pair(mode)
    difference = metrics.logit_diff(right, wrong)
    clean_logits, corrupt_logits = model(clean), model(corrupt)
    asked = {
        "probability": metrics.probability(right),
        "restoration": metrics.restoration(right, corrupt_logits),
        "difference": difference,
        "normalized": metrics.normalized(difference, clean_logits, corrupt_logits),
    }
    names = [name for name in scores if name.startswith(f"{mode}.") and ".low_score." not in name]
    assert len(names) >= 2
    for name in names:
        _, kind, head, _ = name.split(".")
        found = sweep(model, clean, corrupt, sites(model, kind, head), asked, progress=False)
        ours = found.values.clone()
        ours[2] -= found.baseline[2]
        ours = ours.reshape(4, model.stacks[STACK].cfg.n_layers, -1).permute(2, 1, 0)  # [token layer 4]
        assert torch.allclose(ours, scores[name], atol=1e-4), name
