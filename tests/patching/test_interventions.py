"""A sweep with an intervention equals one `run_with_hooks` a site, and runs as one growing pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs, hooks
from hooked_vlm.errors import HookFunctionError, InputsError, PositionError, SilentHookError
from hooked_vlm.patching import Sites, attribution, metrics, path_patching, sweep
from tests.models import drawn
from tests.models.reference import scale
from tests.models.test_hooks_live import variant
from tests.models.unchecked import unchecked
from tests.patching.test_skipped import llava, rows_run
from tests.patching.test_sweep import at_last, entries, kinds_of_sites, on_padding, other

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
        kinds["resample"] = lambda: hooks.resample_ablate(cache, torch.Generator().manual_seed(3))
    if "scores" in sites.hook:
        return kinds[draw(st.sampled_from(["knock out", "patch"]))]
    lawful = ["halve", "mean", "patch"] if "scale" in sites.hook else [name for name in kinds if name != "knock out"]
    return kinds[draw(st.sampled_from(lawful))]


@settings(max_examples=25)
@given(data=st.data())
def test_every_intervention_equals_one_run_a_site(data: st.DataObject) -> None:
    case = data.draw(drawn.cases(max_batch=2)).exactly()
    model, inputs = case.hooked(), case.inputs
    kind, at = data.draw(kinds_of_sites(model, inputs))
    model.cfg.use_attn_result = at.get("activation") == "result"
    sites = getattr(Sites, kind)(model, **at)
    assume(not on_padding(model, inputs, sites))
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
