"""Both rules of selecting universal heads, on effects whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hooked_vlm.analysis.universal_heads import Rule, disagreements, partial_conjunction, select, universal
from hooked_vlm.errors import DataError

TASKS = ("colour", "place", "shape")
QUICK = Rule(bootstrap=200, flips=999, splits=20)


def effects(planted=None, *, tasks=TASKS, corrupt=("image",), layers=4, heads=4, n=40, seed=0, scales=None):
    """Effects of heads without a mean, but those of `planted`: {(corrupt, task, layer, head): mean}."""
    generator = np.random.default_rng(seed)
    scales = np.ones(layers * heads) if scales is None else scales
    rows = []
    for kind_of in corrupt:
        for task in tasks:
            drawn = generator.standard_normal((n, layers * heads)) * scales * 0.1
            for (c, t, layer, head), mean in (planted or {}).items():
                if (c, t) == (kind_of, task):
                    drawn[:, layer * heads + head] += mean
            index = pd.MultiIndex.from_product(
                [[f"{task}-{i}" for i in range(n)], range(layers), range(heads)], names=["example", "layer", "head"]
            )
            rows.append(pd.DataFrame({"effect": drawn.ravel()}, index).reset_index().assign(task=task, corrupt=kind_of))
    return pd.concat(rows, ignore_index=True)


def everywhere(layer, head, mean=1.0, corrupt=("image",), tasks=TASKS):
    return {(c, t, layer, head): mean for c in corrupt for t in tasks}


def heads_of(found, rule):
    rows = found[found["rule"] == rule]
    return {(row.layer, row.head): row.modality for row in rows.itertuples()}


# --- what is there is found -------------------------------------------------------------------------


def test_a_planted_head_is_universal_by_both_rules():
    found = universal(select(effects(everywhere(2, 1)), QUICK))
    assert heads_of(found, "paper") == heads_of(found, "fdr") == {(2, 1): "vision-only"}


def test_heads_are_told_apart_by_modality():
    planted = {
        **everywhere(0, 0, 2.0, corrupt=("image", "text")),
        **everywhere(1, 1, 2.0, corrupt=("image",)),
        **everywhere(2, 2, 2.0, corrupt=("text",)),
    }
    found = universal(select(effects(planted, corrupt=("image", "text"), layers=8), QUICK))
    expected = {(0, 0): "multimodal", (1, 1): "vision-only", (2, 2): "text-only"}
    assert heads_of(found, "fdr") == heads_of(found, "paper") == expected


def test_a_head_of_one_task_is_not_universal():
    table = select(effects({("image", "shape", 1, 1): 1.0}), QUICK)
    there = table.query("task == 'shape' and layer == 1 and head == 1").iloc[0]
    assert there["paper"] and there["fdr"] and there["p_all"] > 0.05
    assert universal(table).empty


def test_a_head_of_another_sign_in_another_task_is_universal_since_size_is_what_is_asked():
    planted = {("image", t, 3, 3): mean for t, mean in zip(TASKS, (1.0, -1.0, 1.0), strict=True)}
    assert heads_of(universal(select(effects(planted), QUICK)), "fdr") == {(3, 3): "vision-only"}


def test_many_strong_heads_hide_one_another_from_the_papers_rule_alone():
    planted = {k: v for head in range(4) for k, v in everywhere(2, head).items()}
    table = select(effects(planted), QUICK)
    assert heads_of(universal(table), "paper") == {}
    assert set(heads_of(universal(table), "fdr")) == {(2, head) for head in range(4)}
    assert any("below mean + 2 SD" in line and "attn" not in line for line in disagreements(table, QUICK))


def test_a_head_that_helps_as_often_as_it_harms_is_selected_by_the_papers_rule_alone():
    table = effects()
    here = (table["layer"] == 1) & (table["head"] == 2)
    table.loc[here, "effect"] = np.where(np.arange(here.sum()) % 2, 1.0, -1.0)
    made = select(table, QUICK)
    assert heads_of(universal(made), "paper") == {(1, 2): "vision-only"}
    assert heads_of(universal(made), "fdr") == {}
    (said,) = {line.split(": ", 1)[0] for line in disagreements(made, QUICK) if "in task shape" in line}
    assert said == "heads L1.H2 in task shape (image)"
    assert any("not systematic" in line for line in disagreements(made, QUICK))


def test_a_giant_hides_nobody_from_the_fdr_controlled_rule():
    planted = everywhere(0, 0, 100.0) | {k: v for head in range(3) for k, v in everywhere(1, head, 0.5).items()}
    made = universal(select(effects(planted), QUICK))
    assert heads_of(made, "paper") == {(0, 0): "vision-only"}
    assert set(heads_of(made, "fdr")) == {(0, 0), (1, 0), (1, 1), (1, 2)}


def test_a_head_that_matters_in_some_tasks_is_told_so():
    planted = everywhere(1, 1, tasks=TASKS[:2]) | everywhere(2, 2) | everywhere(3, 3, tasks=TASKS[2:])
    made = select(effects(planted), QUICK)
    first = made[made["task"] == "colour"].set_index(["layer", "head"])["at_least"]
    assert first[2, 2] == 3 and first[1, 1] == 2 and first[3, 3] == 1 and (first > 0).sum() == 3
    two = universal(made, at_least=2).query("rule == 'fdr'").set_index(["layer", "head"])["tasks"]
    assert dict(two) == {(2, 2): list(TASKS), (1, 1): list(TASKS[:2])}


# --- answers ----------------------------------------------------------------------------------------


def with_answers(table, answers, carried_by=None):
    """Each example with one of some answers; head 2.1 with an effect of 1 (under one answer alone), of both signs."""
    number = table["example"].str.rsplit("-", n=1).str[1].astype(int)
    table = table.assign(answer=[f"answer {i % answers}" for i in number])
    here = (table["layer"] == 2) & (table["head"] == 1)
    return table.assign(effect=table["effect"] + here * (carried_by is None or table["answer"] == carried_by))


def test_a_head_of_one_answer_is_not_a_head_of_the_task():
    blue = with_answers(effects(), 4, "answer 1").assign(effect=lambda t: t["effect"])
    cells = select(blue, QUICK).query("layer == 2 and head == 1")
    assert (select(blue.drop(columns="answer"), QUICK).query("layer == 2 and head == 1")["fdr"]).all()
    assert not cells["fdr"].any() and (cells["p_each"] > 0.05).all() and (cells["ci_low"] < 0).all()
    assert any("in each value" in line for line in disagreements(select(blue, QUICK), QUICK))


def test_a_head_of_all_of_few_answers_is_universal():
    cells = select(with_answers(effects(), 4), QUICK).query("layer == 2 and head == 1")
    assert cells["fdr_all"].all() and (cells["clusters"] == 4).all()


def test_many_answers_are_clusters():
    table, generator = effects(n=48), np.random.default_rng(0)
    table = with_answers(table, 12, "none")
    common = {key: generator.standard_normal() for key in table.groupby(["answer", "layer", "head", "task"]).groups}
    keys = zip(table["answer"], table["layer"], table["head"], table["task"], strict=True)
    table = table.assign(effect=table["effect"] + [common[key] for key in keys])
    alone, clustered = select(table.drop(columns="answer"), QUICK), select(table, QUICK)
    assert (alone["p"] <= 0.05).mean() > 0.3 > 0.12 > (clustered["p"] <= 0.05).mean()
    assert (clustered["se"] > 1.4 * alone["se"]).mean() > 0.9


# --- the span ---------------------------------------------------------------------------------------


def test_among_inert_heads_a_trace_is_no_head_where_the_span_is_known():
    table = effects(everywhere(2, 1, 0.002), scales=np.full(16, 1e-3))
    assert heads_of(universal(select(table, QUICK)), "fdr") == {(2, 1): "vision-only"}
    made = select(table.assign(span=5.0), QUICK)
    assert heads_of(universal(made), "fdr") == {} and not made["fdr"].any() and not made["undecided"].any()
    assert any("of the span of 5" in line for line in disagreements(made, QUICK))


def test_an_example_has_one_span():
    table = effects(n=12).assign(span=range(3 * 12 * 16))
    with pytest.raises(DataError, match="two different values of span"):
        select(table, QUICK)


# --- what is not there is not found -----------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_partial_conjunction_is_at_most_bonferroni_and_at_least_the_claim(seed, tasks):
    p = np.random.default_rng(seed).random((tasks, 9)) ** 3
    for u in range(1, tasks + 1):
        claim, adjusted = partial_conjunction(p, u)
        assert (claim <= adjusted).all() and (adjusted <= np.minimum(1, 9 * claim) + 1e-12).all()
        np.testing.assert_allclose(claim, np.minimum(1, (tasks - u + 1) * np.sort(p, 0)[u - 1]))
    gone = np.where(np.arange(9) == 4, np.nan, p)
    assert np.isnan(partial_conjunction(gone, tasks)[1][4])


def test_what_too_few_examples_leave_open_is_undecided():
    made = select(effects(everywhere(2, 1, 3.0), n=10), QUICK)
    here = (made["layer"] == 2) & (made["head"] == 1)
    assert made.loc[here, "undecided"].all() and not made["fdr"].any()


def test_under_the_null_the_fdr_controlled_rule_rarely_finds_a_head_where_the_papers_often_does():
    """One task, so that "in every task" helps nobody; heads differ in size, and the large ones are large by noise."""
    times = 80
    false = dict.fromkeys(("paper", "fdr"), 0)
    for seed in range(times):
        generator = np.random.default_rng((7, seed))
        scales = np.exp(1.5 * generator.standard_normal(16))
        found = universal(select(effects(tasks=("colour",), n=20, seed=seed, scales=scales), QUICK))
        for rule in false:
            false[rule] += (found["rule"] == rule).any()
    assert stats.binomtest(false["fdr"], times, 0.05, alternative="greater").pvalue > 0.01
    assert false["paper"] > times / 2


def test_the_share_of_false_universal_heads_is_held_where_true_ones_are_found():
    """True heads in every task; others in all tasks but one, which are false if called universal."""
    true = {(0, h) for h in range(2)}
    planted = {k: v for layer, head in true for k, v in everywhere(layer, head, 0.6).items()}
    planted |= {k: v for head in range(2) for k, v in everywhere(1, head, 0.6, tasks=TASKS[:2]).items()}
    shares, found_all = [], []
    for seed in range(20):
        scales = np.ones(16)
        scales[4:6] = 6.0  # in the task without them they are as large, by noise
        found = set(heads_of(universal(select(effects(planted, n=30, seed=seed, scales=scales), QUICK)), "fdr"))
        shares.append(len(found - true) / max(len(found), 1))
        found_all.append(true <= found)
    assert np.mean(shares) <= 0.05
    assert np.mean(found_all) > 0.9


@given(st.integers(1, 11), st.integers(0, 100))
def test_too_few_examples_select_nothing_by_the_fdr_controlled_rule(n, seed):
    table = select(effects(everywhere(2, 1, 3.0), n=n, seed=seed), QUICK)
    assert not table["fdr"].any() and table["repeats"].isna().all()
    if n == 1:
        assert (table["p"] == 1).all() and table[["ci_low", "ci_high", "ratio_low", "sd"]].isna().all(axis=None)
    assert all("examples are too few" in line for line in disagreements(table, QUICK) if "the paper's rule" in line)


# --- degenerate input -------------------------------------------------------------------------------


def test_effects_that_are_missing_are_left_out_of_their_own_head():
    table = effects(everywhere(2, 1))
    here = (table["layer"] == 0) & (table["head"] == 0)
    gone = here & (table["example"].str.endswith(("-1", "-2")))
    table.loc[gone, "effect"] = [np.nan, np.inf] * (gone.sum() // 2)
    row = select(table, QUICK).query("task == 'colour' and layer == 0 and head == 0").iloc[0]
    kept = table[here & ~gone & (table["task"] == "colour")]["effect"]
    assert row["n"] == 38 and row["mean"] == pytest.approx(kept.mean()) and row["sd"] == pytest.approx(kept.std())


def test_a_head_without_any_effect_measured_is_no_test():
    table = effects(everywhere(2, 1))
    table.loc[(table["layer"] == 0) & (table["head"] == 0), "effect"] = np.nan
    made = select(table, QUICK)
    row = made.query("task == 'colour' and layer == 0 and head == 0").iloc[0]
    assert row["n"] == 0 and math.isnan(row["p"]) and math.isnan(row["q"]) and not row["paper"] and not row["fdr"]
    assert heads_of(universal(made), "fdr") == {(2, 1): "vision-only"}


def test_effects_that_are_all_zero_select_nothing():
    made = select(effects().assign(effect=0.0), QUICK)
    assert (made["p"] == 1).all() and not made["paper"].any() and not made["fdr"].any()
    assert disagreements(made, QUICK) == []


def test_an_effect_that_never_varies_is_found():
    table = effects().assign(effect=0.0)
    table.loc[(table["layer"] == 2) & (table["head"] == 1), "effect"] = 1.0
    assert heads_of(universal(select(table, QUICK)), "fdr") == {(2, 1): "vision-only"}


def test_fewer_than_six_heads_can_never_pass_the_papers_rule():
    made = select(effects(everywhere(0, 1, 100.0), layers=1, heads=5), QUICK)
    assert not made["paper"].any()
    assert heads_of(universal(made), "fdr") == {(0, 1): "vision-only"}


def test_kinds_are_families_of_their_own():
    a, b = effects(everywhere(2, 1)), effects(everywhere(1, 1, 50.0), seed=1)
    both = select(pd.concat([a.assign(kind="attn-heads"), b.assign(kind="cross_attn-heads")]), QUICK)
    alone = select(a.assign(kind="attn-heads"), QUICK)
    pd.testing.assert_frame_equal(both[both["kind"] == "attn-heads"].reset_index(drop=True), alone)


def test_the_same_seed_gives_the_same_selection_and_rows_may_come_in_any_order():
    table = effects(everywhere(2, 1))
    shuffled = table.sample(frac=1.0, random_state=3)
    pd.testing.assert_frame_equal(select(table, QUICK), select(shuffled, QUICK))


def test_an_empty_table_gives_an_empty_selection():
    made = select(effects().iloc[:0], QUICK)
    assert made.empty and universal(made).empty and disagreements(made) == []


def test_a_table_without_a_column_is_refused():
    with pytest.raises(DataError, match="no corrupt"):
        select(effects().drop(columns="corrupt"))


def test_two_effects_of_one_head_in_one_example_are_refused():
    table = effects()
    with pytest.raises(DataError, match=r"colour-0.*two effects of layer 0 head 0"):
        select(pd.concat([table, table.iloc[:1]]))


# --- the numbers are what they say ------------------------------------------------------------------


def test_the_papers_rule_is_mean_plus_two_sd_over_heads():
    table = effects(everywhere(2, 1))
    made = select(table, QUICK).query("task == 'shape'")
    expected = table[table["task"] == "shape"].assign(size=lambda t: t["effect"].abs())
    expected = expected.groupby(["layer", "head"])["size"].mean()
    assert made["mean_abs"].to_numpy() == pytest.approx(expected.to_numpy())
    assert made["threshold"].to_numpy() == pytest.approx(expected.mean() + 2 * expected.std())
    assert made["ratio"].to_numpy() == pytest.approx((expected / expected.median()).to_numpy())
