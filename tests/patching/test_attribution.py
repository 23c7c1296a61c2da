"""Attribution is the first order of the exact effect, with the softmax mended, and its verified sites are exact."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.errors import InputsError, PositionError
from hooked_vlm.patching import Sites, attribution, metrics, sweep
from tests.models import drawn
from tests.models.test_hooks_live import VARIANTS, variant
from tests.models.unchecked import unchecked
from tests.patching.test_sweep import at_last, by_hand, entries, kinds_of_sites, on_padding, other


def exactly(case: drawn.Case) -> tuple[HookedVLM, VLMInputs]:
    """A drawn model and its inputs in float64, where small differences mean something."""
    return HookedVLM.from_hf(case.hf.double()), case.inputs.to(dtype=torch.float64)


def along(model: HookedVLM, source: VLMInputs, base: VLMInputs, sites: Sites, measure: Any, share: float) -> Tensor:
    """The effect of a small share of the patch, less that of as much the other way, over both shares."""
    _, there = model.run_with_cache(source, names_filter=sites.hooks)
    found = []
    axis = sites.position_axis
    sites = sites.at(1 if axis is None else there[sites.hooks[0]].shape[axis], len(base))
    for _, cell in sites.table.iterrows():

        def fn(x: Tensor, hook: Any, cell: Any, share: float) -> Tensor:
            moved = x.clone()
            for at in entries(sites, cell, len(x)):
                change = there[hook.name][at] - x[at]
                moved[at] += torch.where(change.isnan(), 0.0, change) * share
            return moved

        name = sites.hook.format(cell.get("layer"))
        ends = [
            measure(
                at_last(model, base, model.run_with_hooks(base, fwd_hooks=[(name, partial(fn, cell=cell, share=s))]))
            )
            for s in (share, -share)
        ]
        found.append((ends[0] - ends[1]) / (2 * share))
    return torch.stack(found)


@settings(max_examples=30)
@given(
    case=drawn.cases(max_batch=2),
    data=st.data(),
    image=st.booleans(),
    direction=st.sampled_from(["denoise", "noise"]),
)
def test_attribution_is_the_first_order_of_the_effect(
    case: drawn.Case, data: st.DataObject, image: bool, direction: str
) -> None:
    (model, clean), corrupt = exactly(case), other(case.inputs, image).to(dtype=torch.float64)
    kind, at = data.draw(kinds_of_sites(model, clean))
    at["layers"] = at["layers"] or 0
    at["positions"] = slice(0, 2) if at["positions"] is None else at["positions"]
    model.cfg.use_attn_result = at.get("activation") == "result"
    sites = getattr(Sites, kind)(model, **at)
    assume(not on_padding(model, clean, sites))
    measure = metrics.Metric("product", lambda x: x[:, -1, 1].tanh() - x[:, -1, 0])
    found = attribution(model, clean, corrupt, sites, measure, direction=direction, qk_fix=False)
    source, base = (clean, corrupt) if direction == "denoise" else (corrupt, clean)
    with torch.no_grad():
        expected = along(model, source, base, sites, measure, 2e-4)
    estimate = found.effect().reshape(expected.shape)
    assert (estimate - expected).abs().max() <= 1e-2 * (1 + expected.abs().max())
    assert not found.index_df["exact"].any() and all(p.grad is None for p in model.parameters())


@settings(max_examples=30)
@given(
    case=drawn.cases(max_batch=2),
    image=st.booleans(),
    crossed=st.booleans(),
    point=st.sampled_from(["q", "k", "rot_q", "rot_k"]),
    positions=st.sampled_from([slice(0, 3), [-1, 0], "all_at_once"]),
    together=st.booleans(),
)
def test_the_softmax_fix_takes_the_pattern_as_it_would_be(
    case: drawn.Case, image: bool, crossed: bool, point: str, positions: Any, together: bool
) -> None:
    (model, clean), corrupt = exactly(case), other(case.inputs, image).to(dtype=torch.float64)
    stack = list(model.stacks)[-1]
    attention = model.stacks[stack].blocks[0]
    attention, name = (
        (attention.cross_attn, "cross_attn")
        if crossed and getattr(attention, "has_cross_attn", False)
        else (attention.attn, "attn")
    )
    point = point if hasattr(attention, f"hook_{point}") else point.removeprefix("rot_")
    heads = "all_at_once" if together else None
    sites = Sites.heads(model, stack, name, layers=0, activation=point, positions=positions, heads=heads)
    assume(not on_padding(model, clean, sites))
    measure = metrics.Metric("product", lambda x: x[:, -1, 1].tanh() - x[:, -1, 0])
    found = attribution(model, clean, corrupt, sites, measure)
    expected = with_true_patterns(model, clean, corrupt, sites, measure)
    assert (found.effect().reshape(expected.shape) - expected).abs().max() <= 2e-5 * (1 + expected.abs().max())


def with_true_patterns(model: HookedVLM, source: VLMInputs, base: VLMInputs, sites: Sites, measure: Any) -> Tensor:
    """(pattern with the site patched - pattern) * dM/dpattern, one run a site; [site example]."""
    patterns = [hook.rpartition(".")[0] + ".hook_pattern" for hook in sites.hooks]
    kept: dict[str, Tensor] = {}

    def track(x: Tensor, hook: Any) -> Tensor:
        kept[hook.name] = x if x.requires_grad else x.requires_grad_(True)
        return kept[hook.name]

    logits = model.run_with_hooks(base, fwd_hooks=[(name, track) for name in patterns])
    grads = torch.autograd.grad(measure(at_last(model, base, logits)).sum(), [kept[name] for name in patterns])
    found: list[Tensor] = []
    seen: dict[str, Tensor] = {}

    def look(logits: Tensor) -> Tensor:
        name = patterns[len(found) // (len(sites_at) // len(sites.hooks))]
        change = (seen[name] - kept[name].detach()) * grads[patterns.index(name)]
        found.append(change.sum((1, 2, 3)))
        return found[-1]

    sites_at = sites.at(
        base.input_ids.shape[1] if sites.position_axis is None else n_positions(model, base, sites), len(base)
    )
    watch = [(name, lambda x, hook: seen.__setitem__(hook.name, x.detach())) for name in patterns]
    with torch.no_grad(), model.hooks(watch):
        return by_hand(model, source, base, sites, look)


def n_positions(model: HookedVLM, inputs: VLMInputs, sites: Sites) -> int:
    _, cache = model.run_with_cache(inputs, names_filter=sites.hooks)
    return cache[sites.hooks[0]].shape[sites.position_axis]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("image", [True, False])
def test_integrated_gradients_over_the_inputs_add_up_to_the_whole_effect(name: str, image: bool) -> None:
    model, clean = variant(name)
    corrupt = other(clean, image)
    measure = metrics.logit_diff(1, 0)
    start = "hook_pixel_values" if image else f"{model.stacks[model.prompt_stack].prefix}hook_embed"
    sites = Sites.point(model, start, positions="all_at_once")
    whole = measure(model(clean, logits_at="last")) - measure(model(corrupt, logits_at="last"))
    found = attribution(model, clean, corrupt, sites, measure, steps=64).effect().reshape(-1, len(clean)).sum(0)
    assert (found - whole).abs().max() < 0.02 * whole.abs().max() + 1e-4
    assert whole.abs().max() > 0.01


def test_a_metric_that_is_linear_in_the_site_is_exact() -> None:
    model, clean = variant("llava-llama-clip")
    corrupt = other(clean, image=True)
    sites = Sites.point(model, "ln_final.hook_normalized")
    measure = metrics.logit_diff(7, 8)
    exact = sweep(model, clean, corrupt, sites, measure, progress=False)
    assert torch.allclose(attribution(model, clean, corrupt, sites, measure).values, exact.values, atol=1e-4)


def test_the_largest_are_measured_again() -> None:
    model, clean = variant("blip-vqa")
    corrupt = other(clean, image=True)
    sites = Sites.heads(model, "text_encoder", "cross_attn")
    measure = metrics.logit_diff([7, 9], [8, 10])
    exact = sweep(model, clean, corrupt, sites, measure, progress=False)
    rough = attribution(model, clean, corrupt, sites, measure)
    found = attribution(model, clean, corrupt, sites, measure, verify_top=3)
    again = found.index_df["exact"].to_numpy().copy()
    flat = [result.values.reshape(-1, len(clean)) for result in (found, exact, rough)]
    assert again.sum() == 3
    assert torch.allclose(flat[0][again], flat[1][again], atol=1e-5)
    assert torch.equal(flat[0][~again], flat[2][~again])
    order = rough.effect().abs().mean(-1).flatten().argsort(descending=True)[:3]
    assert set(order.tolist()) == set(again.nonzero()[0].tolist())
    assert (flat[1] - flat[2]).abs().max() > 1e-3
    picked = attribution(model, clean, corrupt, sites.at(clean.input_ids.shape[1]).pick([5, 2]), measure, verify_top=1)
    assert picked.axis_names == [] and picked.values.shape == (2, 2)
    assert torch.allclose(
        picked.values[~picked.index_df["exact"].to_numpy()], flat[2][[5, 2]][~picked.index_df["exact"].to_numpy()]
    )
    averaged = attribution(model, clean, corrupt, sites, measure, reduce="mean")
    assert torch.allclose(averaged.values, rough.values.mean(-1))


def test_weights_keep_their_flags_and_gradients() -> None:
    model, clean = variant("blip-vqa")
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    attribution(model, clean, other(clean, True), Sites.heads(model, "text_encoder"), metrics.logit_diff(7, 8))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags and any(flags.values())
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_attributed_raises() -> None:
    model, clean = variant("blip-vqa")
    corrupt = other(clean, image=True)
    sites = Sites.heads(model, "text_encoder", "cross_attn")
    with pytest.raises(InputsError, match="rank has no gradient"):
        attribution(model, clean, corrupt, sites, metrics.rank(7))
    with pytest.raises(InputsError, match=r"gave a Tensor of shape .* one number for each of"):
        attribution(model, clean, corrupt, sites, lambda logits: logits[:, -1])
    with pytest.raises(InputsError, match="steps is 0"):
        attribution(model, clean, corrupt, sites, metrics.logit_diff(7, 8), steps=0)
    with pytest.raises(PositionError, match="positions of"):
        attribution(
            model, clean, corrupt, Sites.residual(model, "text_encoder", positions=99), metrics.logit_diff(7, 8)
        )
    with unchecked(), pytest.raises(InputsError, match="'logit_diff', a str; expected a function"):
        attribution(model, clean, corrupt, sites, "logit_diff")
    with pytest.raises(InputsError, match="has no gradient"):
        attribution(model, clean, corrupt, sites, metrics.Metric("constant", lambda x: x[:, -1, 0].detach() * 0 + 1))
