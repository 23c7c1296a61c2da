"""Means over examples that hang together: tests hold their level, intervals cover, and nothing depends on form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hooked_vlm.analysis import clusters

DRAWS = {
    "normal": lambda g, shape: g.standard_normal(shape),
    "t3": lambda g, shape: g.standard_t(3, shape),
    "log-normal(1)": lambda g, shape: np.exp(g.standard_normal(shape)) - np.exp(0.5),
}


def clustered(generator, groups, size, times, icc):
    """Effects of mean 0, [groups * size times], with what examples of a group share; and their groups."""
    common = np.repeat(generator.standard_normal((groups, times)), size, 0)
    own = generator.standard_normal((groups * size, times))
    return np.sqrt(icc) * common + np.sqrt(1 - icc) * own, np.repeat(np.arange(groups), size)


@pytest.mark.parametrize("name", DRAWS)
def test_intervals_of_fifty_examples_cover_under_tails_and_skew(name):
    values = DRAWS[name](np.random.default_rng(3), (50, 3000))
    found = clusters.judge(values)
    misses = ((found.low > 0) | (found.high < 0)).sum()
    assert stats.binomtest(int(misses), 3000, 0.07, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("groups", [4, 6, 8, 12])
def test_examples_of_one_cluster_do_not_count_as_many(groups):
    values, group = clustered(np.random.default_rng(groups), groups, 8, 3000, icc=0.5)
    alone, judged = clusters.judge(values), clusters.judge(values, clusters.codes(group, n=len(values)))
    assert (alone.p <= 0.05).mean() > 0.15
    for level in (0.05, 0.01):
        found = int((judged.p <= level).sum())
        assert stats.binomtest(found, 3000, level, alternative="greater").pvalue > 0.01, level
    assert np.mean((judged.low <= 0) & (judged.high >= 0)) > 0.93


def test_a_few_clusters_are_judged_by_t_of_their_means():
    values, group = clustered(np.random.default_rng(0), 5, 6, 40, icc=0.9)
    values += 1.5
    found = clusters.judge(values, clusters.codes(group, n=30)[1:])
    means = values.reshape(5, 6, 40).mean(1)
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0.0).pvalue)
    ends = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert found.low == pytest.approx(ends.low) and found.high == pytest.approx(ends.high)
    assert (found.clusters == 5).all()


def test_an_effect_of_one_answer_alone_is_not_an_effect_of_answers():
    answer = np.repeat(np.arange(4), 12)
    generator = np.random.default_rng(1)
    blue = np.where(answer == 0, 9.4, 0.8)[:, None] + generator.standard_normal((48, 1))
    every = 5.4 + generator.standard_normal((48, 1))
    found = clusters.judge(np.hstack([blue, every]), clusters.codes(answer, n=48))
    assert found.p[0] > 0.1 and found.low[0] < 0 and found.p[1] < 1e-3


shapes = st.tuples(st.integers(1, 30), st.integers(1, 4), st.integers(0, 10**6), st.integers(1, 12))


@given(shapes)
@settings(max_examples=40)
def test_nothing_depends_on_units_sign_order_or_names(drawn):
    n, cells, seed, groups = drawn
    generator = np.random.default_rng(seed)
    values, group = generator.standard_normal((n, cells)) + 0.3, generator.integers(0, groups, n)
    ways = clusters.codes(group, n=n)
    found = clusters.judge(values, ways, flips=99)
    scaled = clusters.judge(-1e3 * values, clusters.codes([f"g{one}" for one in group], n=n), flips=99)
    np.testing.assert_allclose(scaled.low, -1e3 * found.high, rtol=1e-6)
    np.testing.assert_allclose(scaled.high, -1e3 * found.low, rtol=1e-6)
    np.testing.assert_allclose(scaled.p, found.p)
    gone = np.vstack([values, np.full((3, cells), np.nan)])  # examples that were not measured
    again = clusters.judge(gone, clusters.codes([*group, 90, 91, 92], n=n + 3), flips=99)
    np.testing.assert_allclose(again.mean, found.mean)
    np.testing.assert_allclose(again.se, found.se)


@given(st.integers(2, 60), st.floats(0.1, 100) | st.floats(-100, -0.1))
@settings(max_examples=20)
def test_where_nothing_varies_the_examples_alone_limit_what_is_known(n, value):
    found = clusters.judge(np.full((n, 1), value), flips=999)
    assert np.isnan(found.low[0]) and found.p[0] == pytest.approx(2.0 ** (1 - n))


def test_zeros_have_no_effect_and_nothing_measured_no_p():
    values = np.stack([np.zeros(20), np.full(20, np.nan)], 1)
    found = clusters.judge(values)
    assert found.p[0] == 1 and np.isnan(found.p[1]) and np.isnan(found.low).all() and np.isnan(found.mean[1])
    assert clusters.judge(np.full((1, 1), 3.0)).p[0] == 1


def test_codes_leave_out_what_tells_nothing():
    n = 12
    answers, one, own = np.arange(n) % 4, np.zeros(n), [f"row {i}" for i in range(n)]
    found = clusters.codes(answers, one, own, [str(each) for each in answers], n=n)
    assert len(found) == 2
    np.testing.assert_array_equal(found[0], np.arange(n))
    np.testing.assert_array_equal(found[1], answers)


def test_two_clusters_have_no_say():
    values, pair = np.random.default_rng(2).standard_normal((30, 5)), np.arange(30) % 2
    both, alone = clusters.judge(values, clusters.codes(pair, n=30)), clusters.judge(values)
    np.testing.assert_array_equal(both.p, alone.p)
    np.testing.assert_array_equal(both.low, alone.low)


def test_an_effect_in_every_cluster_needs_each_of_them_and_one_sign():
    answer = np.repeat(np.arange(4), 12)
    noise = np.random.default_rng(5).standard_normal((48, 3)) * 0.3
    means = np.array([[5, 5, 5, 5], [5, 5, 5, 0], [5, 5, 5, -5]], float)
    p = clusters.in_every_cluster(noise + means[:, answer].T, answer)
    assert p[0] < 0.01 and p[1] > 0.05 and p[2] == 1
    assert np.isnan(clusters.in_every_cluster(noise, np.arange(48) // 5)).all()


def test_the_same_arguments_give_the_same_numbers_and_more_flips_the_same_p_but_for_chance():
    values = np.random.default_rng(5).standard_normal((40, 30)) + 0.4
    first, again, more = (clusters.judge(values, flips=flips) for flips in (4999, 4999, 19999))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.abs(first.p - more.p).max() < 0.02


def test_interval_of_leaves_out_what_was_not_measured():
    values = [1.0, np.nan, 2.0, 4.0, 3.0, 2.5, 1.5, 3.5, 2.2, 1.8]
    found = clusters.interval_of(values, clusters.codes(["a", "b"] * 5, n=10))
    assert found["n"] == 9 and found["low"] < found["mean"] < found["high"]
    assert found["mean"] == pytest.approx(np.nanmean(values))
    assert clusters.interval_of([np.nan])["n"] == 0
