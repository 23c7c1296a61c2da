"""The released code's threshold agrees with one written independently, ties and constant maps included."""

from __future__ import annotations

import math
from statistics import pstdev

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hooked_vlm.analysis.published import thresholded
from hooked_vlm.analysis.universal_heads import disagreements, select, universal

drawn = arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(1, 40)),
    elements=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf, -math.inf])),
)


def reference(p: np.ndarray) -> tuple[list[float], float]:
    """Sizes and threshold in plain Python, by what the released notebook is said to do."""
    known = [[abs(x) if math.isfinite(x) else 0.0 for x in column] for column in p.T.tolist()]
    sizes = [math.fsum(column) / len(column) for column in known]
    return sizes, math.fsum(sizes) / len(sizes) + 2 * pstdev(sizes)


@given(drawn)
def test_it_agrees_with_a_threshold_written_independently(p: np.ndarray) -> None:
    found = thresholded(p)
    sizes, threshold = reference(p)
    assert found.size == pytest.approx(sizes, abs=1e-6) and found.threshold == pytest.approx(threshold, abs=1e-6)
    for chosen, size in zip(found.selected, sizes, strict=True):
        assert chosen == (size >= threshold) or abs(size - threshold) < 1e-9


@pytest.mark.parametrize("n", [1, 4, 144])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_of_heads_that_are_all_alike_each_is_selected(n: int, value: float) -> None:
    assert thresholded(np.full((3, n), value)).selected.all()


def test_a_head_at_the_threshold_is_selected_and_the_sd_is_the_populations() -> None:
    p = np.array([[0.0, 0.0, 0.0, 0.0, 1.0]])  # mean 0.2, population SD 0.4, sample SD 0.45
    assert thresholded(p).threshold == 1.0
    assert thresholded(p).selected.tolist() == [False] * 4 + [True]


def test_without_examples_no_head_is_selected() -> None:
    found = thresholded(np.zeros((0, 3)))
    assert not found.selected.any() and math.isnan(found.threshold)


def table(p: np.ndarray, effect: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"task": task, "example": f"e{i}", "corrupt": "image", "kind": "attn-heads", "layer": 0, "head": h}
            | {"effect": effect[i, h], "p_patched": p[i, h]}
            for task in ("colour", "shape")
            for i, h in np.ndindex(*p.shape)
        ]
    )


def test_select_takes_it_in_place_of_the_papers_rule_and_changes_nothing_else() -> None:
    rng = np.random.default_rng(3)
    p, effect = rng.uniform(0, 0.2, (20, 12)), rng.normal(0, 0.1, (20, 12))
    p[:, 4] += 0.7
    effect[:, 7] += 3
    whole = table(p, effect)
    found, usual = select(whole), select(whole.drop(columns="p_patched"))
    sizes, threshold = reference(p)
    for _, rows in found.groupby("task"):
        assert rows["threshold"].to_numpy() == pytest.approx(threshold, abs=1e-6)
        assert rows["p_patched"].to_numpy() == pytest.approx(sizes, abs=1e-6)
        assert rows["paper"].tolist() == [size >= threshold for size in sizes]
    others = [name for name in usual.columns if name not in ("threshold", "paper", "paper_all")]
    pd.testing.assert_frame_equal(found[others], usual[others])
    assert "p_patched" not in usual and set(universal(usual).query("rule == 'paper'")["head"]) == {7}
    assert set(universal(found).query("rule == 'paper'")["head"]) == {4}
    said = disagreements(found)
    assert any("the released code's rule selects it, the FDR-controlled one does not" in each for each in said)
    assert any("mean |P_patched|" in each and "the released code's rule does not" in each for each in said)
