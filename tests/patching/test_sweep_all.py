"""Several kinds swept together, and corruption by hooks, equal sweeps of their own and one run a site."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.hooks import add_noise
from hooked_vlm.patching import Sites, metrics, sweep
from hooked_vlm.patching.sweep import sweep_all
from tests.models.reference import scale
from tests.models.test_hooks_live import variant
from tests.patching.test_sweep import at_last, by_hand, other

MEASURE = metrics.logit_diff(7, 8)


def kinds_of(model: HookedVLM) -> dict[str, Sites]:
    stack = model.prompt_stack
    return {
        "heads": Sites.heads(model, stack, positions=[1, 2]),
        "at once": Sites.heads(model, stack, positions="all_at_once"),
        "mlp": Sites.module(model, stack, "mlp_out"),
        "tower": Sites.module(model, "vision_encoder", "mlp_out", positions=[1]),
    }


@pytest.mark.parametrize("name", ["blip-vqa", "llava-llama-clip"])
def test_kinds_swept_together_equal_their_own_sweeps(name: str) -> None:
    model, clean = variant(name)
    corrupt, kinds = other(clean, image=True), kinds_of(model)
    together = sweep_all(model, clean, corrupt, kinds, {"d": MEASURE}, progress=False)
    for kind, sites in kinds.items():
        alone = sweep(model, clean, corrupt, sites, {"d": MEASURE}, progress=False)
        assert torch.allclose(together[kind].values, alone.values, atol=1e-5)
        assert torch.allclose(together[kind].baseline, alone.baseline, atol=1e-5)


def noisy(model: HookedVLM, hook: str) -> list[Any]:
    def noise(x: torch.Tensor, hook: Any) -> torch.Tensor:  # the same in every run
        return add_noise(1.0, torch.Generator().manual_seed(3))(x, hook)

    return [(hook, noise)]


def by_hand_with(model: HookedVLM, clean: VLMInputs, sites: Sites, hooks: list[Any], direction: str) -> torch.Tensor:
    """One whole run a site, the noise added to the corrupt run alone."""
    with torch.no_grad():
        if direction == "noise":
            with model.hooks(hooks):
                _, cache = model.run_with_cache(clean, names_filter=sites.hooks)
            hooks = []
        else:
            _, cache = model.run_with_cache(clean, names_filter=sites.hooks)
        found = []
        for cell in sites.table.itertuples():

            def patch(x: torch.Tensor, hook: Any, cell: Any = cell) -> torch.Tensor:
                x[:, cell.position] = cache[hook.name][:, cell.position]
                return x

            patched = (sites.hook.format(cell.layer), patch)
            logits = model.run_with_hooks(clean, fwd_hooks=[*hooks, patched])
            found.append(MEASURE(at_last(model, clean, logits)))
    return torch.stack(found)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("name", "stack", "hook"),
    [
        ("blip-vqa", "text_encoder", "vision_encoder.hook_embed"),
        ("blip-vqa", "text_encoder", "text_encoder.hook_embed"),
        ("blip-vqa", "text_encoder", "hook_image_features"),
        ("blip-vqa", "text_encoder", "vision_encoder.blocks.1.hook_mlp_out"),
        ("blip-vqa", "text_encoder", "text_encoder.blocks.0.hook_mlp_out"),  # not before: one run a site
        ("blip-vqa", "text_encoder", "text_decoder.hook_embed"),  # not before
        ("blip-vqa", "vision_encoder", "text_encoder.hook_embed"),  # not before
        ("llava-llama-clip", "language_model", "vision_encoder.hook_embed"),
        ("llava-llama-clip", "language_model", "projector.hook_post"),
        ("llava-llama-clip", "language_model", "hook_embed"),
        ("llava-llama-clip", "language_model", "ln_final.hook_normalized"),  # not before
        ("llava-llama-clip", "vision_encoder", "hook_image_features"),  # not before
    ],
)
def test_corruption_by_hooks_equals_one_run_a_site(name: str, stack: str, hook: str, direction: str) -> None:
    model, clean = variant(name)
    n = model.stacks[stack].cfg.n_ctx if stack == "vision_encoder" else clean.input_ids.shape[1]
    last = n - 1 if stack == "vision_encoder" else int(clean.last_each.min())  # what follows is padding in some row
    sites = Sites.module(model, stack, "mlp_out", positions=[1, last]).at(n)
    hooks = noisy(model, hook)
    found = sweep(model, clean, clean, sites, MEASURE, direction=direction, progress=False, corruption=hooks)
    expected = by_hand_with(model, clean, sites, hooks, direction)
    size = scale(expected)
    assert torch.allclose(found.values.reshape(expected.shape), expected, atol=2e-5 * size)
    assert expected.std() > 0 and not model.list_hooks()


def test_upstream_corruption_costs_no_run_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = variant("blip-vqa")
    sites = Sites.module(model, "text_encoder", "mlp_out")
    monkeypatch.setattr(model, "run_with_hooks", lambda *a, **k: pytest.fail("a run of the whole model"))
    hooks = noisy(model, "vision_encoder.hook_embed")
    sweep(model, clean, clean, sites, MEASURE, progress=False, corruption=hooks)


def test_corruption_by_a_hook_equals_corrupt_inputs() -> None:
    model, clean = variant("blip-vqa")
    corrupt, sites = other(clean, image=True), Sites.heads(model, "text_encoder", "cross_attn")
    swap = ("hook_pixel_values", lambda x, hook: corrupt.pixel_values)
    by_hook = sweep(model, clean, clean, sites, MEASURE, progress=False, corruption=[swap])
    by_input = sweep(model, clean, corrupt, sites, MEASURE, progress=False)
    assert torch.allclose(by_hook.values, by_input.values, atol=1e-5)
    assert by_hand(model, clean, corrupt, sites, MEASURE).std() > 0
