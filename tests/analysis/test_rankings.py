"""Faithfulness along a ranking is what plain runs give, and is judged on other examples, task by task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_vlm import HookedVLM
from hooked_vlm.analysis import ReferenceMeans, faithfulness, head_effects, ranking
from hooked_vlm.analysis.head_sets import heads_of
from hooked_vlm.analysis.rankings import random_rankings
from hooked_vlm.datasets import shapes
from hooked_vlm.errors import DataError
from hooked_vlm.patching.metrics import logit_diff
from tests.analysis.test_circuits import setting
from tests.analysis.test_head_sets import METRIC, one_run, z_of
from tests.models import drawn
from tests.patching.test_sweep import at_last, other

ROWS = {"id": list("abcdef"), "task": ["one"] * 4 + ["two"] * 2}


@given(st.data())
@settings(max_examples=10)
def test_faithfulness_is_what_whole_runs_without_the_other_heads_give(data: st.DataObject) -> None:
    case = data.draw(drawn.cases(("llava", "vqa"), max_batch=3)).exactly()
    model, clean = case.hooked(), case.inputs
    corrupt, heads = other(clean, image=data.draw(st.booleans())), heads_of(model)
    ranked = data.draw(st.permutations(heads))[: data.draw(st.integers(1, len(heads)))]
    meant = data.draw(st.booleans())
    with torch.no_grad():
        kinds = {kind for kind, _, _ in ranked}
        means = ReferenceMeans(model, kinds).add(clean) if meant else None
        source = {name: means.of(clean, name) for name in means.hooks} if means else z_of(model, corrupt)
        found = faithfulness(model, clean, None if meant else corrupt, METRIC, rankings=ranked, means=means, draws=3)
        every = [head for head in heads if head[0] in kinds]

        def m(circuit: Any) -> Any:
            return float(one_run(model, clean, source, [h for h in every if h not in circuit], None).mean())

        full, empty = m(every), m([])
        assert full == pytest.approx(float(METRIC(at_last(model, clean, model(clean))).mean()), abs=1e-5)
        if abs(full - empty) < 1e-3:  # nothing to be faithful to
            return
        expected = [(m(ranked[:k]) - empty) / (full - empty) for k in range(len(ranked) + 1)]
    tolerance = 1e-4 * (1 + np.abs(expected).max()) / min(1.0, abs(full - empty))
    np.testing.assert_allclose(found.curve["f"], expected, atol=tolerance)
    assert found.curve["f"].iloc[0] == 0.0
    area = np.trapezoid(expected) / len(ranked)
    assert found.areas["area"].item() == pytest.approx(area, abs=tolerance)


def test_each_task_is_told_alone() -> None:
    """Its examples alone: as if the others were not there."""
    model, clean, corrupt = setting("vqa")
    heads, options = heads_of(model), {"draws": 9}
    both = faithfulness(model, clean, corrupt, METRIC, ROWS, rankings=heads, **options)  # type: ignore[arg-type]
    assert both.areas["task"].tolist() == ["one", "two"] and both.areas["n"].tolist() == [4, 2]
    for task, rows in {"one": slice(0, 4), "two": slice(4, 6)}.items():
        alone = faithfulness(model, clean[rows], corrupt[rows], METRIC, rankings=heads, **options)  # type: ignore[arg-type]
        for name in ("f", "random", "random_high"):
            ours = both.curve[both.curve["task"] == task][name]
            np.testing.assert_allclose(ours, alone.curve[name], atol=1e-5)
        np.testing.assert_allclose(both.random[both.random["task"] == task]["area"], alone.random["area"], atol=1e-5)


def test_several_rankings_meet_the_same_random_ones() -> None:
    model, clean, corrupt = setting("vqa")
    heads = heads_of(model)
    named = {"forth": heads, "back": heads[::-1]}
    found = faithfulness(model, clean, corrupt, METRIC, rankings=named, draws=19)
    assert found.areas["ranking"].tolist() == ["forth", "back"] and found.areas["random"].nunique() == 1
    alone = faithfulness(model, clean, corrupt, METRIC, rankings=heads[::-1], draws=19)
    assert found.areas["area"][1] == pytest.approx(alone.areas["area"].item(), abs=1e-6)
    hits = (found.random["area"].to_numpy() >= found.areas["area"][0]).sum()
    assert found.areas["p"][0] == pytest.approx((1 + hits) / 20)
    gain = found.areas["area"] - found.random["area"].mean()
    np.testing.assert_allclose(found.areas["gain"], gain, atol=1e-9)


def test_what_was_ranked_on_is_not_judged_on() -> None:
    model, clean, corrupt = setting("vqa")
    heads = heads_of(model)
    for ranked_on in (["f", "x"], {"id": ["f"]}, [{"id": "f"}], np.array(["f"]).tolist()):
        with pytest.raises(DataError, match=r"1 of 6 examples are among .* the first 'f': judge a ranking on other"):
            faithfulness(model, clean, corrupt, METRIC, ROWS, rankings=heads, ranked_on=ranked_on)
    effects = head_effects(model, clean, corrupt, METRIC, ROWS)
    with pytest.raises(DataError, match="6 of 6 examples"):
        faithfulness(model, clean, corrupt, METRIC, ROWS, rankings=heads, ranked_on=effects)
    with pytest.raises(DataError, match="rows have no column id or example"):
        faithfulness(model, clean, corrupt, METRIC, {"task": ["one"] * 6}, rankings=heads, ranked_on=["a"])
    assert (
        faithfulness(model, clean, corrupt, METRIC, ROWS, rankings=heads, ranked_on=["x"], ks=[8], draws=1)
        .areas["n"]
        .sum()
        == 6
    )


def test_rankings_without_heads_and_ks_beyond_them_are_refused() -> None:
    model, clean, corrupt = setting("vqa", 2)
    with pytest.raises(DataError, match="no ranking, or an empty one"):
        faithfulness(model, clean, corrupt, METRIC, rankings=[])
    with pytest.raises(DataError, match="k goes up to 9, and the shortest ranking has 2 heads"):
        faithfulness(model, clean, corrupt, METRIC, rankings=heads_of(model)[:2], ks=[9])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(0, 3))
def test_random_rankings_differ_and_are_all_where_they_are_few(n: int, length: int, draws: int, seed: int) -> None:
    heads = [("attn-heads", 0, i) for i in range(n)]
    found = random_rankings(heads, min(length, n), draws, seed)
    possible = int(np.prod(range(n, n - min(length, n), -1)))
    assert len(found) == min(draws, possible) == len(set(found))
    assert all(len(set(each)) == min(length, n) for each in found)
    assert found == random_rankings(heads, min(length, n), draws, seed)


def test_a_ranking_over_every_position_is_better_than_chance_on_held_out_examples() -> None:
    """On the zoo's BLIP, shape: ranked on some scenes, judged on others."""
    model = HookedVLM.from_pretrained("zoo:blip-shapes")

    def batch(seed: int) -> Any:
        rows = shapes.load("shape", 12, seed=seed)
        clean = model.to_inputs(list(rows["image"]), list(rows["prompt"]))
        corrupt = model.to_inputs(list(rows["corrupt_image"]), list(rows["prompt"]))
        right, wrong = ([model.to_single_token(word) for word in rows[name]] for name in ("answer", "wrong_answer"))
        return (model, clean, corrupt, logit_diff(right, wrong)), rows

    given_on, made_from = batch(3)
    judged_on, rows = batch(4)
    ranked = [head for head in ranking(head_effects(*given_on, made_from)) if head[0] == "cross_attn-heads"]
    found = faithfulness(*judged_on, rows, rankings=ranked, ranked_on=made_from, ks=[0, 1, 2, 4, 8, 16], draws=99)
    assert found.areas["p"].item() <= 0.05 and found.areas["gain_low"].item() > 0
    assert found.curve["f"].iloc[-1] == pytest.approx(1.0, abs=1e-4)
