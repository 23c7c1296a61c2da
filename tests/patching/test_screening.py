"""A screened sweep: what is measured is exact, the rest is the estimate, and what was missed lies in the interval."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from hooked_vlm import hooks
from hooked_vlm.errors import InputsError
from hooked_vlm.patching import Screen, Sites, attribution, metrics, path_patching, sweep
from hooked_vlm.patching.screening import _missed
from hooked_vlm.patching.sweep import sweep_all
from tests.models import drawn
from tests.models.reference import scale
from tests.models.test_hooks_live import variant
from tests.models.unchecked import unchecked
from tests.patching.test_skipped import TEXT, llava, rows_run
from tests.patching.test_sweep import other, sites_of_one_activation
from tests.patching.test_sweep_all import noisy

MEASURE = metrics.logit_diff(1, 0)


@settings(max_examples=15)
@given(data=st.data())
def test_what_is_measured_is_exact_and_the_rest_is_the_estimate(data: st.DataObject) -> None:
    case = data.draw(drawn.cases(max_batch=2)).exactly()
    model, clean = case.hooked(), case.inputs
    sites = data.draw(sites_of_one_activation(model, clean))
    corrupt = other(clean, data.draw(st.booleans()))
    direction = data.draw(st.sampled_from(["denoise", "noise"]))
    screen = Screen(data.draw(st.integers(1, 6)), data.draw(st.integers(0, 4)), data.draw(st.sampled_from([None, 2])))
    given = (model, clean, corrupt, sites, MEASURE)
    exact = sweep(*given, direction=direction, progress=False)
    rough = attribution(*given, direction=direction, steps=screen.steps)
    found = sweep(*given, direction=direction, screen=screen, progress=False)
    flat = [x.values.reshape(-1, len(clean)).double() for x in (found, exact, rough)]
    measured = found.measured.flatten()
    assert found.measured.shape == found.values.shape[:-1] and exact.measured.all() and not rough.measured.any()
    size = scale(flat[1])
    assert torch.allclose(flat[0][measured], flat[1][measured], atol=1e-5 * size)
    assert torch.allclose(flat[0][~measured], flat[2][~measured], atol=1e-4 * scale(flat[2]))
    differing = len(measured) - exact.skipped
    assert found.skipped == exact.skipped
    assert int(measured.sum()) == exact.skipped + min(differing, screen.top + screen.drawn)
    sizes = rough.effect().reshape(flat[0].shape).abs().mean(-1)
    assert (sizes[~measured] <= sizes[measured].topk(min(screen.top, int(measured.sum()))).values.min() + 1e-5).all()


def test_only_the_chosen_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = llava()
    corrupt, sites = other(clean, True), Sites.heads(model, TEXT)
    passes = rows_run(model, monkeypatch)
    found = sweep(model, clean, corrupt, sites, MEASURE, screen=Screen(4, drawn=3), progress=False)
    assert sum(rows for rows, _ in passes) == 7
    assert "estimates: not measured" in repr(found) and str(found.missed) in repr(found)
    again = sweep(model, clean, corrupt, sites, MEASURE, screen=Screen(4, drawn=3), progress=False)
    other_draw = sweep(model, clean, corrupt, sites, MEASURE, screen=Screen(4, drawn=3, seed=1), progress=False)
    assert torch.equal(found.measured, again.measured) and not torch.equal(found.measured, other_draw.measured)
    assert (found.measured & other_draw.measured).sum() >= 4
    passes.clear()
    sweep(model, clean, corrupt, sites, MEASURE, screen=5, progress=False)
    assert sum(rows for rows, _ in passes) == 10


def test_a_screen_of_every_site_is_the_sweep_and_asks_for_no_gradient() -> None:
    model, clean = variant("blip-vqa")
    corrupt, sites = other(clean, True), Sites.heads(model, "text_encoder", "cross_attn")
    asked = {"rank": metrics.rank(7), "lead": metrics.logit_diff(7, 8)}
    whole = sweep(model, clean, corrupt, sites, asked, progress=False)
    found = sweep(model, clean, corrupt, sites, asked, screen=10_000, progress=False)
    assert torch.equal(found.values, whole.values) and found.measured.all()
    assert found.missed is not None and (found.missed.share, found.missed.high, found.missed.left) == (0.0, 0.0, 0)
    with pytest.raises(InputsError, match="rank has no gradient"):
        sweep(model, clean, corrupt, sites, asked, screen=2, progress=False)


def test_several_metrics_kinds_and_picks_are_screened() -> None:
    model, clean = variant("blip-vqa")
    corrupt = other(clean, True)
    sites = Sites.heads(model, "text_encoder", "cross_attn").at(clean.input_ids.shape[1])
    kinds = {"all": sites, "some": sites.pick([7, 3, 5, 11]), "mlp": Sites.module(model, "text_encoder", "mlp_out")}
    asked = {"lead": metrics.logit_diff(7, 8), "p": metrics.probability(7)}
    found = sweep_all(model, clean, corrupt, kinds, asked, screen=Screen(2, drawn=1), progress=False)
    exact = sweep_all(model, clean, corrupt, kinds, asked, progress=False)
    for kind, part in found.items():
        assert part.measured.sum() == 3 and part.measured.shape == part.values.shape[1:-1]
        for name in asked:
            rough = attribution(model, clean, corrupt, kinds[kind], asked[name])
            assert torch.allclose(part[name].values[part.measured], exact[kind][name].values[part.measured], atol=1e-5)
            assert torch.allclose(part[name].values[~part.measured], rough.values[~part.measured], atol=1e-5)
            assert torch.equal(part[name].measured, part.measured) and part[name].missed == part.missed
    averaged = sweep(model, clean, corrupt, sites, asked, screen=Screen(2, drawn=1), reduce="mean", progress=False)
    assert torch.allclose(averaged.values, found["all"].values.mean(-1))
    assert torch.equal(averaged.measured, found["all"].measured)


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("hook", ["text_encoder.hook_embed", "vision_encoder.hook_embed", "hook_image_features"])
def test_corruption_by_hooks_is_screened_as_corrupt_inputs_are(hook: str, direction: Any, steps: int | None) -> None:
    model, clean = variant("blip-vqa")
    sites = Sites.heads(model, "text_encoder", "cross_attn")
    given: dict[str, Any] = {"corruption": noisy(model, hook), "direction": direction, "progress": False}
    screen = Screen(3, drawn=0, steps=steps)
    exact = sweep(model, clean, clean, sites, MEASURE, **given)
    found = sweep(model, clean, clean, sites, MEASURE, screen=screen, **given)
    assert found.measured.sum() == 3 + exact.skipped and found.missed is None
    assert torch.allclose(found.values[found.measured], exact.values[found.measured], atol=1e-5)
    x, y = (r.effect().abs().mean(-1).flatten() for r in (found, exact))
    assert torch.corrcoef(torch.stack([x, y]))[0, 1] > 0.5  # an estimate of these very effects
    assert not model.list_hooks()


def test_an_intervention_is_estimated_by_what_it_changes() -> None:
    model, inputs = variant("blip-vqa")
    sites = Sites.heads(model, "text_encoder", "cross_attn")
    exact = sweep(model, inputs, None, sites, MEASURE, intervention=hooks.zero_ablate(), progress=False)
    little = {
        "intervention": lambda z, hook: z * (1 - 1e-3),
        "progress": False,
    }  # where the first order is all there is
    small = sweep(model, inputs, None, sites, MEASURE, **little)
    found = sweep(model, inputs, None, sites, MEASURE, screen=Screen(1, drawn=0), **little)
    assert (found.effect() - small.effect()).abs().max() < 0.05 * small.effect().abs().max()
    found = sweep(model, inputs, None, sites, MEASURE, intervention=hooks.zero_ablate(), screen=3, progress=False)
    assert torch.allclose(found.values[found.measured], exact.values[found.measured], atol=1e-5)
    scores = Sites.heads(model, "text_encoder", activation="attn_scores", positions="all_at_once")
    with pytest.raises(InputsError, match="infinite, which no gradient can estimate"):
        sweep(
            model,
            inputs,
            None,
            scores,
            MEASURE,
            intervention=hooks.knock_out(0, 1),
            screen=Screen(1, 0),
            progress=False,
        )
    with pytest.raises(InputsError, match="an intervention has one"):
        sweep(
            model, inputs, None, sites, MEASURE, intervention=hooks.zero_ablate(), screen=Screen(1, steps=2),
            progress=False,
        )  # fmt: skip


def test_what_is_missed_is_told_by_the_formula() -> None:
    sizes = torch.tensor([9.0, 8.0, 1.0, 7.0, 0.0, 2.0, 0.0])
    top, sample = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5, 6])
    found = _missed(sizes, top, sample, 30, None)  # the median of 9, 8, 1 is 8: nothing of the sample reaches it
    high = float(beta.ppf(0.975, 1, 4))
    assert found is not None and (found.threshold, found.hits, found.share, found.low) == (8.0, 0, 0.0, 0.0)
    assert found.high == pytest.approx(34 * high / (34 * high + 2))
    found = _missed(sizes, top, sample, 30, 5.0)  # one of four, so 8.5 of 34: 7.5 sites beside the three found
    high = float(beta.ppf(0.975, 2, 3))
    assert found is not None and (found.hits, found.low) == (1, 0.0) and found.share == pytest.approx(7.5 / 10.5)
    assert found.high == pytest.approx((34 * high - 1) / (34 * high + 2))
    found = _missed(sizes, top, sample, 1, 5.0)  # no more than are left
    assert found is not None and found.high == pytest.approx(1 / 4)
    assert _missed(sizes, top, sample[:0], 7, None) is None
    assert _missed(torch.zeros(7), top, sample, 3, None).hits == 0  # nothing is important where nothing has an effect


def test_the_interval_holds_the_share_that_was_missed() -> None:
    generator, inside, n = torch.Generator().manual_seed(3), [], 400
    for trial in range(300):
        exact = torch.randn(n, generator=generator).abs() ** 3
        estimate = exact * torch.randn(n, generator=generator).exp()
        order = estimate.argsort(descending=True)
        top, rest = order[:40], order[40:]
        rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(trial))]
        found = _missed(exact, top, rest[:60], len(rest) - 60, 1.5)
        important = exact >= 1.5
        truth = float(important[rest[60:]].sum() / important.sum())
        assert found is not None
        inside.append(found.low <= truth <= found.high)
    assert sum(inside) >= 0.95 * len(inside)


def test_every_result_says_what_is_exact() -> None:
    model, clean = variant("blip-vqa")
    corrupt, heads = other(clean, True), Sites.heads(model, "text_encoder", positions=[1])
    receivers = Sites.heads(model, "text_encoder", positions=[1], activation="q")
    paths = path_patching(model, clean, corrupt, heads, receivers, MEASURE, progress=False)
    assert paths.measured.all() and paths.measured.shape == paths.values.shape[:-1]
    rough = attribution(model, clean, corrupt, Sites.heads(model, "text_encoder", "cross_attn"), MEASURE, verify_top=2)
    assert rough.measured.sum() == 2 and torch.equal(
        rough.measured.flatten(), torch.tensor(rough.index_df["exact"].to_numpy())
    )
    assert "18 of 20 sites are estimates" in repr(rough)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 0, "screen is 0"), (lambda: "5", "screen is '5'"), (lambda: True, "screen is True"),
        (lambda: Screen(3, drawn=-1), "drawn is -1"), (lambda: Screen(3, steps=0), "steps is 0"),
        (lambda: Screen(3, important=0.0), "important is 0.0"), (lambda: Screen(3, seed=-1), "seed is -1"),
    ],
)  # fmt: skip
def test_a_screen_that_means_nothing_is_named(make: Any, message: str) -> None:
    model, clean = variant("blip-vqa")
    with unchecked(), pytest.raises(InputsError, match=message):
        sweep(model, clean, other(clean, True), Sites.heads(model, "text_encoder"), MEASURE, screen=make())


def test_where_no_site_can_differ_nothing_is_chosen() -> None:
    model, clean = variant("blip-vqa")
    sites = Sites.heads(model, "text_encoder")
    found = sweep(model, clean, clean, sites, MEASURE, screen=2, progress=False)
    assert found.measured.all() and found.missed is None and not found.effect().any()
