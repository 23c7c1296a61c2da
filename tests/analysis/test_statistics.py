"""Intervals that can be believed, and p-values that are what they say: against scipy's, and under the null."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hooked_vlm.analysis import statistics

# --- intervals --------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.data())
def test_a_share_has_the_exact_interval(n, data):
    hits = data.draw(st.integers(0, n))
    found = statistics.share([1.0] * hits + [0.0] * (n - hits))
    ends = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert (found["mean"], found["n"]) == (hits / n, n)
    assert (found["low"], found["high"]) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert found["low"] < found["high"]


@given(st.integers(2, 60), st.floats(0.01, 0.99))
def test_equal_scores_leave_room_for_what_was_not_seen(n, value):
    """Between those of n of n and none of n hits, which are its ends at 1 and at 0."""
    low, high = statistics.of_scores(np.full((n, 1), value))
    unseen = statistics.share([0.0] * n)["high"]
    assert low[0] == pytest.approx(value * (1 - unseen))
    assert high[0] == pytest.approx(value + (1 - value) * unseen)


@given(st.integers(2, 40), st.floats(-5, 5))
def test_equal_numbers_have_no_interval(n, value):
    low, high = statistics.bootstrap(np.full((n, 1), value), times=50)
    assert np.isnan([low, high]).all()


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_intervals_of_moments_are_students(values):
    x = np.array(values)
    if np.ptp(x) < 1e-3:
        return
    low, high = statistics.of_moments(np.array([float(len(x))]), np.array([x.mean()]), np.array([x.std(ddof=1)]))
    ends = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert (low[0], high[0]) == (pytest.approx(ends.low), pytest.approx(ends.high))


# --- tests ------------------------------------------------------------------------------------------


@given(st.integers(2, 10), st.integers(0, 1000))
def test_p_values_of_few_examples_are_exact(n, seed):
    values = np.random.default_rng(seed).standard_normal((n, 3)) + 0.5
    ours = statistics.sign_flip(values)
    theirs = [
        stats.permutation_test(
            (column,), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
        ).pvalue
        for column in values.T
    ]
    assert ours == pytest.approx(np.minimum(theirs, 1))


def test_random_sign_flips_agree_with_all_of_them():
    values = np.random.default_rng(0).standard_normal((14, 20)) + 0.3
    exact, drawn = statistics.sign_flip(values, flips=2**13), statistics.sign_flip(values, flips=8000)
    assert np.abs(exact - drawn).max() < 0.02


def test_p_values_are_uniform_under_the_null():
    p = statistics.sign_flip(np.random.default_rng(0).standard_t(2, (30, 2000)), flips=999)
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_bootstrap_intervals_cover_the_mean():
    generator = np.random.default_rng(0)
    low, high = statistics.bootstrap(generator.normal(1.0, 1.0, (60, 500)), times=500)
    assert 0.9 < np.mean((low <= 1.0) & (high >= 1.0)) < 0.98


def test_flips_are_enough_for_one_head_among_many():
    cells = 3 * 1024
    assert 1 / (statistics.flips_needed(cells) + 1) <= 0.05 / cells


def test_false_discovery_leaves_out_what_was_not_tested():
    q = statistics.benjamini_hochberg([0.01, np.nan, 0.04])
    assert q[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(q[1])


def test_rank_correlation_is_spearmans_with_ties():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 5, (4, 12)).astype(float), generator.standard_normal((4, 12))
    assert statistics.spearman(a, b) == pytest.approx(
        [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    )
