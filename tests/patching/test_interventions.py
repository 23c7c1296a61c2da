"""A sweep with an intervention equals one `run_with_hooks` a site, and runs as one growing pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs, hooks
from hooked_vlm.errors import HookFunctionError, InputsError, PositionError, SilentHookError
from hooked_vlm.patching import Sites, attribution, metrics, path_patching, sweep
from tests.models import drawn
from tests.models.reference import scale
from tests.models.test_hooks_live import variant
from tests.models.unchecked import unchecked
from tests.patching.test_skipped import TEXT, llava, rows_run
from tests.patching.test_sweep import at_last, entries, other, sites_of_one_activation

MEASURE = metrics.logit_diff(1, 0)


def by_hand(model: HookedVLM, inputs: VLMInputs, sites: Sites, groups: list[list[int]], make: Any) -> Tensor:
    """One whole run a site: in each layer of its window, what a fresh intervention makes of the site's cells."""
    _, cache = model.run_with_cache(inputs, names_filter=sites.hooks)
    axis = sites.position_axis
    closed = sites.at(1 if axis is None else cache[sites.hooks[0]].shape[axis], len(inputs))
    per_group = len(closed.table) // len(groups)
    found = []
    for number, cell in closed.table.iterrows():

        def fn(x: Tensor, hook: Any, cell: Any = cell) -> Tensor:
            new, edited = make()(x.clone(), hook=hook), x.clone()
            for at in entries(closed, cell, len(x)):
                edited[at] = new[at]
            return edited

        names = [sites.hook.format(layer) for layer in groups[number // per_group]]
        found.append(MEASURE(at_last(model, inputs, model.run_with_hooks(inputs, fwd_hooks=[(n, fn) for n in names]))))
    return torch.stack(found)


@st.composite
def interventions(draw: st.DrawFn, model: HookedVLM, reference: VLMInputs, sites: Sites) -> Callable[[], Any]:
    """Any intervention that fits the sites: a maker, so that each run can have one with a fresh generator."""
    _, cache = model.run_with_cache(reference, names_filter=sites.hooks)
    kinds: dict[str, Callable[[], Any]] = {
        "zero": hooks.zero_ablate,
        "mean": partial(hooks.mean_ablate, cache),
        "patch": partial(hooks.patch, cache),
        "halve": lambda: lambda x, hook: x * 0.5,
        "in place": lambda: lambda x, hook: x.mul_(-1),
        "steer": partial(hooks.steer, torch.linspace(-1, 2, cache[sites.hooks[0]].shape[-1]).double(), 0.7),
    }
    if "key_pos" in sites.axes and "query_pos" in sites.axes:
        some = st.sampled_from([None, 0, slice(1, 3), [-1]])
        kinds["knock out"] = partial(hooks.knock_out, draw(some), draw(some))
    else:
        # Of one row, since each layer draws anew: what is drawn of several has a test of its own.
        row = {name: cache[name][:1] for name in sites.hooks}
        kinds["resample"] = lambda: hooks.resample_ablate(row, torch.Generator().manual_seed(3))
    if "scores" in sites.hook:
        return kinds[draw(st.sampled_from(["knock out", "patch"]))]
    lawful = ["halve", "mean", "patch"] if "scale" in sites.hook else [name for name in kinds if name != "knock out"]
    return kinds[draw(st.sampled_from(lawful))]


@settings(max_examples=20)
@given(data=st.data())
def test_every_intervention_equals_one_run_a_site(data: st.DataObject) -> None:
    case = data.draw(drawn.cases(max_batch=2)).exactly()
    model, inputs = case.hooked(), case.inputs
    sites = data.draw(sites_of_one_activation(model, inputs))
    groups = [[layer] for layer in sites.layers]
    if data.draw(st.booleans()):
        layer = st.sampled_from(sites.layers)
        groups = data.draw(
            st.lists(st.lists(layer, min_size=1, unique=True).map(sorted), min_size=1, max_size=3, unique_by=str)
        )
        sites = sites.windows(groups)
    make = data.draw(interventions(model, other(inputs, True), sites))
    found = sweep(model, inputs, None, sites, MEASURE, intervention=make(), progress=False)
    expected = by_hand(model, inputs, sites, groups, make)
    assert torch.allclose(found.values.reshape(expected.shape).double(), expected, atol=1e-5 * scale(expected))
    assert torch.allclose(found.baseline.double(), MEASURE(at_last(model, inputs, model(inputs))), atol=1e-5)


def test_an_intervention_is_one_growing_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = llava()
    passes = rows_run(model, monkeypatch)
    monkeypatch.setattr(model, "run_with_hooks", lambda *a, **k: pytest.fail("a run of the whole model"))
    n, n_layers, n_heads = inputs.input_ids.shape[1], model.cfg.n_layers, model.cfg.n_heads
    sites = Sites.heads(model, TEXT, positions=[n - 2, n - 1])
    found = sweep(model, inputs, None, sites, MEASURE, intervention=hooks.zero_ablate(), progress=False)
    unread = n_heads  # what the last layer puts out at a position that no metric reads
    assert found.skipped == unread and passes == [((2 * n_layers - 1) * n_heads, n - 2)]
    scores = Sites.heads(model, TEXT, activation="attn_scores", positions="all_at_once")
    cut = hooks.knock_out([n - 1], slice(1, 3))
    for sites, rows in ((scores, n_layers * n_heads), (scores.windows(n_layers), n_heads)):
        passes.clear()
        sweep(model, inputs, None, sites, MEASURE, intervention=cut, progress=False)
        assert passes == [(rows, n - 1)]


def test_what_an_intervention_leaves_as_it_is_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = llava()
    passes = rows_run(model, monkeypatch)
    sites = Sites.heads(model, TEXT, activation="attn_scores")
    unseen = hooks.knock_out(slice(0, 3), slice(3, None))  # keys after the queries, which those never see
    for at in (sites, sites.windows(2)):
        found = sweep(model, inputs, None, at, MEASURE, intervention=unseen, progress=False)
        assert not passes and (found.effect() == 0).all() and found.skipped == len(found.index_df)
    heads = Sites.heads(model, TEXT)
    found = sweep(model, inputs, None, heads, MEASURE, intervention=lambda z, hook: z, progress=False)
    assert not passes and found.skipped == len(found.index_df)


def test_a_knocked_out_route_equals_its_hooks_in_every_layer_of_the_window() -> None:
    model, inputs = variant("llava-llama-clip")
    routes = {"words to end": (inputs.last_each[:, None], inputs.replace(layout=model.layout).image_spans)}
    scores = Sites.heads(model, TEXT, activation="attn_scores", heads="all_at_once", positions="all_at_once")
    for route in routes.values():
        found = sweep(
            model, inputs, None, scores.windows([[0], [0, 1]]), MEASURE, intervention=hooks.knock_out(*route), budget=1,
            progress=False,
        )  # fmt: skip
        assert found.index_df["layers"].to_list() == ["0", "0-1"] and found.axis_names == ["layers"]
        for value, layers in zip(found.values, ([0], [0, 1]), strict=True):
            cut = [(scores.hook.format(layer), hooks.knock_out(*route)) for layer in layers]
            logits = model.run_with_hooks(inputs, fwd_hooks=cut)
            assert torch.allclose(value, MEASURE(at_last(model, inputs, logits)), atol=1e-5)
        assert (found.effect().abs() > 1e-3).any()


def test_all_sites_of_a_hook_point_share_one_draw() -> None:
    model, inputs = variant("blip-vqa")
    _, cache = model.run_with_cache(other(inputs, True))
    sites = Sites.heads(model, "text_encoder", positions=[1, 2])
    drawn_once = torch.Generator().manual_seed(5)
    found = sweep(
        model, inputs, None, sites, MEASURE, intervention=hooks.resample_ablate(cache, drawn_once), progress=False
    )
    again = torch.Generator().manual_seed(5)
    taken = {}
    for name in sites.hooks:
        rows = torch.randint(len(inputs), (len(inputs),), generator=again)
        taken[name] = cache[name][rows]
    assert torch.equal(again.get_state(), drawn_once.get_state())
    expected = sweep(model, inputs, None, sites, MEASURE, intervention=hooks.patch(taken), progress=False)
    assert torch.equal(found.values, expected.values)


def test_patching_is_the_intervention_that_puts_the_other_run_in() -> None:
    model, clean = variant("blip-vqa")
    corrupt, sites = other(clean, True), Sites.heads(model, "text_encoder", "cross_attn")
    _, cache = model.run_with_cache(clean, names_filter=sites.hooks)
    patched = sweep(model, clean, corrupt, sites, MEASURE, progress=False)
    found = sweep(model, corrupt, None, sites, MEASURE, intervention=hooks.patch(cache), progress=False)
    assert torch.equal(found.values, patched.values) and found.skipped == patched.skipped
    windows = sites.windows(2)
    patched = sweep(model, clean, corrupt, windows, MEASURE, progress=False)
    found = sweep(model, corrupt, None, windows, MEASURE, intervention=hooks.patch(cache), progress=False)
    assert torch.equal(found.values, patched.values) and (patched.effect() != 0).any()


@pytest.mark.parametrize("windowed", [False, True])
def test_hooks_of_the_users_own_are_kept(windowed: bool) -> None:
    model, inputs = variant("blip-vqa")
    sites, groups = Sites.heads(model, "text_encoder", positions=[1, 2]), [[0], [1]]
    if windowed:
        sites, groups = sites.windows(2), [[0, 1]]
    with model.hooks([("text_encoder.blocks.1.attn.hook_v", lambda v, hook: v * 0.5)]):
        with pytest.warns(UserWarning, match="hooks of its own"):
            found = sweep(model, inputs, None, sites, MEASURE, intervention=hooks.zero_ablate(), progress=False)
        expected = by_hand(model, inputs, sites, groups, hooks.zero_ablate)
    assert torch.allclose(found.values.reshape(expected.shape), expected, atol=1e-5) and not model.list_hooks()


def test_hook_points_outside_of_blocks_are_acted_on_too() -> None:
    for name, hook in (("blip-vqa", "hook_image_features"), ("llava-llama-clip", "projector.hook_pre")):
        model, inputs = variant(name)
        sites = Sites.point(model, hook, positions=[0, -1])
        found = sweep(model, inputs, None, sites, MEASURE, intervention=hooks.zero_ablate(), progress=False)
        for value, position in zip(found.values, (0, -1), strict=True):
            logits = model.run_with_hooks(inputs, fwd_hooks=[(hook, hooks.zero_ablate(position))])
            assert torch.allclose(value, MEASURE(at_last(model, inputs, logits)), atol=1e-5)
        assert found.effect().abs().max() > 1e-3


def test_an_intervention_acts_on_a_corrupted_run() -> None:
    model, clean = variant("blip-vqa")
    corrupt, sites = other(clean, True), Sites.heads(model, "text_encoder", "cross_attn")
    swap = [("hook_pixel_values", hooks.swap_image(corrupt.pixel_values))]
    act = hooks.zero_ablate()
    by_hook = sweep(model, clean, None, sites, MEASURE, intervention=act, corruption=swap, progress=False)
    by_input = sweep(model, corrupt, None, sites, MEASURE, intervention=act, progress=False)
    assert torch.allclose(by_hook.values, by_input.values, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"intervention": hooks.zero_ablate}, InputsError, r"expected a function of \(activation, hook\)"),
        ({"intervention": "zero_ablate"}, InputsError, "intervention is 'zero_ablate', a str"),
        ({"intervention": lambda z: z}, InputsError, r"function of \(activation, hook\)"),
        ({"intervention": lambda z, hook: z[:1, :1]}, HookFunctionError, "must give back the same shape"),
        ({"intervention": hooks.knock_out(None, None)}, PositionError, "knock_out acts on scores .*attn_scores"),
        ({"intervention": hooks.steer(torch.ones(5))}, PositionError, r"the direction is \(5,\)"),
        ({"intervention": hooks.zero_ablate(), "direction": "noise"}, InputsError, "direction='noise'"),
        ({}, InputsError, "corrupt is None"),
    ],
    ids=range(8),
)
def test_options_that_contradict_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, inputs = variant("blip-vqa")
    sites = Sites.heads(model, "text_encoder")
    with unchecked(), pytest.raises(error, match=message):
        sweep(model, inputs, None, sites, MEASURE, progress=False, **options)
    with unchecked(), pytest.raises(InputsError, match="an intervention acts in one run, and corrupt inputs"):
        sweep(model, inputs, inputs, sites, MEASURE, intervention=hooks.zero_ablate())
    assert not model.list_hooks()


def test_a_stage_that_the_run_does_not_pass_raises() -> None:
    model, inputs = variant("blip-retrieval")
    with pytest.raises(SilentHookError, match="never reached hook_image_embed"):
        sweep(model, inputs, None, Sites.point(model, "hook_image_embed"), MEASURE, intervention=hooks.zero_ablate())


def test_windows_are_sites_in_several_layers() -> None:
    model, inputs = variant("llava-llama-clip")
    sites = Sites.heads(model, TEXT, positions=[1, 2])
    assert sites.windows(1).windows is not None and len(sites.windows(2)) == len(sites) // 2
    assert sites.windows([range(2), 1]).table["layers"].unique().tolist() == ["0-1", "1"]
    assert "windows of layers 0-1" in repr(sites.windows(2))
    for wanted, message in (
        (0, "windows of 1 to 2"), (3, "windows of 1 to 2"), ([], "none was asked for"), ([[5]], r"\[5\] was asked for"),
        ("all", "the windows are 'all'"), (True, "the windows are True"), ([[]], "none was asked for"),
    ):  # fmt: skip
        with unchecked(), pytest.raises(PositionError, match=message):
            sites.windows(wanted)
    for fixed in (sites.windows(2), sites.pick([0]), Sites.point(model, "hook_image_features")):
        with pytest.raises(PositionError, match="cannot be put into windows"):
            fixed.windows(2)
    corrupt, windows = other(inputs, True), sites.windows(2)
    for run in (
        lambda: attribution(model, inputs, corrupt, windows, MEASURE),
        lambda: path_patching(model, inputs, corrupt, windows, windows, MEASURE),
        lambda: sweep(model, inputs, corrupt, windows, MEASURE, screen=2),
    ):
        with pytest.raises(InputsError, match="only a sweep of every site takes windows"):
            run()
    picked = windows.pick([1])
    found = sweep(model, inputs, None, picked, MEASURE, intervention=hooks.zero_ablate(), progress=False)
    whole = sweep(model, inputs, None, windows, MEASURE, intervention=hooks.zero_ablate(), progress=False)
    assert torch.allclose(found.values[0], whole.values.reshape(-1, len(inputs))[1], atol=1e-5)
