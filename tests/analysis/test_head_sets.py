"""Heads patched together are equal to one whole run a set, whatever the model, the batch and the direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm import HookedVLM, VLMInputs, hooks
from hooked_vlm.analysis import head_effects, patch_sets
from hooked_vlm.analysis.ablation import ReferenceMeans, hook_name
from hooked_vlm.analysis.head_sets import heads_of
from hooked_vlm.errors import InputsError, PositionError, StackError
from hooked_vlm.patching import Sites, sweep
from hooked_vlm.patching.metrics import Metric, logit_diff
from tests.models import drawn
from tests.models.unchecked import unchecked
from tests.patching.test_sweep import at_last, other

METRIC = logit_diff(1, 0)
READS_ALL = Metric("all", lambda logits: logits[:, -1, 1] - logits[:, -2:, 0].mean(-1), n_last=2)


def one_run(model: HookedVLM, base: VLMInputs, source: Any, heads: Any, positions: Any, metric: Any = METRIC) -> Any:
    """The metric of one whole run with some heads patched."""
    by_name: dict[str, list[int]] = {}
    for kind, layer, head in heads:
        by_name.setdefault(hook_name(model, kind, layer), []).append(head)
    patches = [(name, hooks.patch(source, positions, own)) for name, own in by_name.items()]
    logits = model.run_with_hooks(base, fwd_hooks=patches)
    return metric(logits if metric.n_last > 1 else at_last(model, base, logits)).detach().numpy()


def z_of(model: HookedVLM, inputs: VLMInputs) -> Any:
    return model.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_z"))[1]


@st.composite
def sets_of(draw: st.DrawFn, model: HookedVLM) -> list[list[Any]]:
    known = heads_of(model)
    some = draw(st.lists(st.lists(st.sampled_from(known), unique=True, max_size=6), min_size=1, max_size=5))
    return [*some, known, []]


@given(st.data())
def test_sets_of_heads_equal_one_whole_run_a_set(data: st.DataObject) -> None:
    case = data.draw(drawn.cases()).exactly()
    model, clean = case.hooked(), case.inputs
    corrupt, sets = other(clean, image=data.draw(st.booleans())), data.draw(sets_of(model))
    direction: Any = data.draw(st.sampled_from(["denoise", "noise"]))
    each_last = clean.last_each[:, None]
    positions = data.draw(st.sampled_from(["all_at_once", None, each_last, torch.cat([each_last, each_last - 1], 1)]))
    source, base = (clean, corrupt) if direction == "denoise" else (corrupt, clean)
    with torch.no_grad():
        found = patch_sets(
            model, clean, corrupt, METRIC, sets, positions=positions, direction=direction,
            budget=data.draw(st.sampled_from([None, 1])),
        )  # fmt: skip
        where = None if isinstance(positions, str) else positions
        cache = z_of(model, source)
        expected = np.stack([one_run(model, base, cache, heads, where) for heads in sets], 1)
        high, low = (METRIC(at_last(model, x, model(x))).numpy() for x in (clean, corrupt))
    np.testing.assert_allclose(found.values, expected, atol=1e-5 * (1 + np.abs(expected).max()))
    np.testing.assert_allclose(found.clean, high, atol=1e-5 * (1 + np.abs(high).max()))
    assert found.corrupt is not None
    np.testing.assert_allclose(found.span, high - low, atol=1e-5 * (1 + np.abs(high).max()))
    gained = expected - low[:, None] if direction == "denoise" else high[:, None] - expected
    np.testing.assert_allclose(found.effects, gained, atol=2e-5 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("kind", ["llava", "vqa"])
@pytest.mark.parametrize("way", ["own hooks", "every logit", "corruption"])
def test_whatever_cannot_be_shared_gives_the_same(kind: str, way: str) -> None:
    """Hooks of the user's own, a metric of several positions, a corruption that acts as a hook."""
    hf = drawn.llava() if kind == "llava" else drawn.blip()
    model, clean = HookedVLM.from_hf(hf), drawn.inputs_for(hf, kind, [5, 5], n_answer=2)
    corrupt, metric = other(clean, image=True), READS_ALL if way == "every logit" else METRIC
    sets = [heads_of(model)[1:3], heads_of(model)]
    with torch.no_grad():
        cache = z_of(model, clean)
        expected = np.stack([one_run(model, corrupt, cache, heads, None, metric) for heads in sets], 1)
        if way == "own hooks":
            model.add_hook(hook_name(model, "attn-heads", 0), lambda z, hook: z * 1.0)
            with pytest.warns(UserWarning, match="hooks of its own"):
                found = patch_sets(model, clean, corrupt, metric, sets)
        elif way == "corruption":
            swap = [("hook_pixel_values", hooks.swap_image(corrupt.pixel_values))]
            found = patch_sets(model, clean, clean, metric, sets, corruption=swap)
        else:
            found = patch_sets(model, clean, corrupt, metric, sets)
    np.testing.assert_allclose(found.values, expected, atol=1e-4 * (1 + np.abs(expected).max()))


@given(st.data())
def test_means_take_the_place_of_heads(data: st.DataObject) -> None:
    case = data.draw(drawn.cases(("llava", "vqa"))).exactly()
    model, clean, sets = case.hooked(), case.inputs, data.draw(sets_of(case.hooked()))
    with torch.no_grad():
        means = ReferenceMeans(model, {kind for kind, _, _ in heads_of(model)}).add(clean)
        found = patch_sets(model, clean, None, METRIC, sets, direction="noise", means=means)
        replaced = {name: means.of(clean, name) for name in means.hooks}
        expected = np.stack([one_run(model, clean, replaced, heads, None) for heads in sets], 1)
    np.testing.assert_allclose(found.values, expected, atol=1e-5 * (1 + np.abs(expected).max()))
    assert found.corrupt is None
    with pytest.raises(InputsError, match="no span"):
        _ = found.span


def test_a_table_of_effects_is_a_sweeps() -> None:
    hf = drawn.blip(n_layers=3)
    model, clean = HookedVLM.from_hf(hf), drawn.inputs_for(hf, "vqa", [5, 4, 6])
    corrupt = other(clean, image=True)
    rows = {"id": ["a", "b", "c"], "answer": ["x", "y", "x"], "task": ["t"] * 3}
    with torch.no_grad():
        table = head_effects(model, clean, corrupt, METRIC, rows, positions=clean.last_each[:, None])
    assert list(table["example"].unique()) == ["a", "b", "c"] and set(table["answer"]) == {"x", "y"}
    for kind, attention in {"attn-heads": "attn", "cross_attn-heads": "cross_attn"}.items():
        sites = Sites.heads(model, "text_encoder", attention, positions=clean.last_each[:, None])
        effect = sweep(model, clean, corrupt, sites, METRIC, progress=False).effect()[:, 0]  # [layer head example]
        ours = table[table["kind"] == kind].set_index(["layer", "head", "example"])["effect"]
        for layer, head, i in np.ndindex(*effect.shape):
            assert ours[layer, head, "abc"[i]] == pytest.approx(float(effect[layer, head, i]), abs=1e-5)


def test_what_cannot_be_patched_together_is_refused() -> None:
    hf = drawn.llava()
    model, clean = HookedVLM.from_hf(hf), drawn.inputs_for(hf, "llava", [5, 3])
    head = ("attn-heads", 0, 1)
    with unchecked():
        with pytest.raises(StackError, match=r"no head attn L0\.H9: language_model has 2 layers of 4"):
            patch_sets(model, clean, clean, METRIC, [[("attn-heads", 0, 9)]])
        with pytest.raises(StackError, match="has no heads of kind 'cross_attn-heads'"):
            patch_sets(model, clean, clean, METRIC, [[("cross_attn-heads", 0, 1)]])
        with pytest.raises(StackError, match="expected 'cross_attn-heads' or 'attn-heads'"):
            patch_sets(model, clean, clean, METRIC, [[("attn", 0, 1)]])
        with pytest.raises(StackError, match="given twice"):
            patch_sets(model, clean, clean, METRIC, [[head, head]])
        with pytest.raises(InputsError, match=r"expected \(kind, layer, head\)"):
            patch_sets(model, clean, clean, METRIC, [["L0.H1"]])
        with pytest.raises(InputsError, match="nothing to patch in"):
            patch_sets(model, clean, None, METRIC, [[head]], direction="noise")
        with pytest.raises(InputsError, match="direction='noise'"):
            patch_sets(model, clean, clean, METRIC, [[head]], means=ReferenceMeans(model, ["attn-heads"]))
        with pytest.raises(PositionError, match="padding"):
            patch_sets(model, clean, clean, METRIC, [[head]], positions=-1)
