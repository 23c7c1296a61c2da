"""Heads side by side, from tables whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm.analysis import carriers, negative_heads, ranking, strongest_by_example, transfer
from hooked_vlm.analysis.effect_tables import linearised
from hooked_vlm.analysis.statistics import holm
from hooked_vlm.errors import DataError


def table_of(
    means: Any,
    n: int = 30,
    *,
    task: str = "t",
    corrupt: str = "image",
    span: float = 10.0,
    sd: float = 0.3,
    seed: int = 0,
) -> pd.DataFrame:
    """Effects of heads of known means, a row an example and head."""
    generator = np.random.default_rng(seed)
    values = np.asarray(means) + sd * generator.normal(size=(n, len(means)))
    rows = [
        {
            "task": task,
            "example": f"{task}-{i}",
            "corrupt": corrupt,
            "kind": "attn-heads",
            "layer": h // 4,
            "head": h % 4,
        }
        | {"effect": values[i, h], "span": span}
        for i in range(n)
        for h in range(len(means))
    ]
    return pd.DataFrame(rows)


def of(table: pd.DataFrame, head: int, column: str) -> Any:
    """A head's entry, by its number."""
    return table[(table["layer"] == head // 4) & (table["head"] == head % 4)][column].item()


def test_negative_heads_are_those_against_the_answer() -> None:
    table = table_of([1.0, -1.0, -0.05, 0.0, 0.4, 0.0])
    table.loc[table["head"].eq(1) & table["layer"].eq(1), "effect"] = 0.0  # head 5 does nothing
    found = negative_heads(table)
    assert of(found, 1, "negative") is True and of(found, 0, "negative") is False
    assert of(found, 2, "negative") is None and of(found, 5, "negative") is False
    assert found["mean"].is_monotonic_increasing and of(found, 1, "against") == 1.0
    assert (of(found, 1, "against_low"), of(found, 1, "p_holm")) < (1.0, 0.05)


def test_one_example_that_weighs_makes_no_negative_head() -> None:
    """The mean is far below 0, and in most examples the head speaks for the answer."""
    table = table_of([0.2, 0.5], sd=0.01)
    table.loc[(table["head"] == 0) & (table["example"] == "t-3"), "effect"] = -300.0
    assert of(negative_heads(table), 0, "mean") < -5 and of(negative_heads(table), 0, "negative") is False


def test_heads_of_the_same_task_carry_over_and_others_do_not() -> None:
    one, other = [3, 2, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 2, 3]
    parts = [("a", one), ("b", one), ("c", other)]
    table = pd.concat([table_of(means, 40, task=task, seed=i) for i, (task, means) in enumerate(parts)])
    found = transfer(table, 3).pivot(index="ranked_in", columns="judged_in", values=["share", "rank_correlation"])
    share, rho = found["share"], found["rank_correlation"]
    assert np.allclose(np.diag(share), 1.0) and share.loc["a", "b"] == pytest.approx(1.0, abs=0.02)
    assert abs(share.loc["a", "c"]) < 0.1 and abs(share.loc["c", "b"]) < 0.1
    assert rho.loc["a", "a"] > 0.5 and rho.loc["a", "b"] > 0.5 and rho.loc["a", "c"] < 0


def test_what_is_noise_carries_over_no_better_than_to_itself() -> None:
    """Ranked and judged on the same examples the top heads of noise look strong: each task's own share is 1 of it."""
    table = pd.concat([table_of([0.0] * 12, 20, task=t, sd=1.0, seed=i) for i, t in enumerate("ab")])
    found = transfer(table, 3).set_index(["ranked_in", "judged_in"])["rank_correlation"]
    assert abs(found["a", "a"]) < 0.35 and abs(found["a", "b"]) < 0.35


def test_an_example_of_two_tasks_is_in_one_half() -> None:
    """Else a head would be judged on examples that it was ranked by, under another task's name."""
    table = table_of([0.0] * 12, 20, task="a", sd=1.0)
    same = table.assign(task="b")
    found = transfer(pd.concat([table, same]), 3).set_index(["ranked_in", "judged_in"])
    pd.testing.assert_series_equal(found.loc["a", "b"], found.loc["a", "a"], check_names=False)


def test_what_cannot_be_carried_over_is_refused() -> None:
    with pytest.raises(DataError, match="2 heads in common, and k=5"):
        transfer(table_of([1, 2]))
    with pytest.raises(DataError, match=r"one half of a task's examples; too few: t \(1\)"):
        transfer(table_of([1, 2], 1), 1)
    with pytest.raises(DataError, match="has no effect"):
        transfer(table_of([1, 2]).drop(columns="effect"), 1)
    twice = pd.concat([table_of([1, 2]), table_of([1, 2])])
    with pytest.raises(DataError, match=r"several effects of head attn L0\.H0: choose one place"):
        transfer(twice, 1)


@pytest.mark.parametrize("paired", [True, False])
def test_carriers_are_told_from_shares_of_the_span(paired: bool) -> None:
    """A head that restores 2 of 10 logits of the image and 4 of 20 of the text carries both alike."""
    image = table_of([3, 0, 2, 0.0], span=10.0)
    text = table_of([0, 6, 4, 0.0], span=20.0, corrupt="text", seed=1)
    text = text if paired else text.assign(example="other " + text["example"])
    found = carriers(pd.concat([image, text]))
    assert (found["paired"] == paired).all() and (found["n"] == (30 if paired else 60)).all()
    assert [of(found, head, "carries") for head in range(4)] == ["image", "text", None, None]
    assert of(found, 0, "difference") == pytest.approx(0.3, abs=0.03)
    assert of(found, 2, "difference_low") < 0 < of(found, 2, "difference_high")
    with pytest.raises(DataError, match="no task has effects under both 'image' and 'text'; there are image"):
        carriers(image)


def test_pairing_takes_out_what_examples_share() -> None:
    """Both corruptions' effects go up and down with the example; their difference is constant."""
    image = table_of([2.0], sd=2.0)
    text = image.assign(corrupt="text", effect=image["effect"] - 0.5)
    apart = text.assign(example="other " + text["example"])
    assert carriers(pd.concat([image, text]))["p"].item() < 1e-3 < carriers(pd.concat([image, apart]))["p"].item()


def test_the_strongest_head_is_counted_by_example() -> None:
    table = table_of([0.0, 0.0, 0.0], 8, sd=0.0)
    wide = table.set_index(["example", "head"])["effect"]
    for i in range(8):
        wide[f"t-{i}", i % 2] = 3.0 if i < 6 else -1.0
        wide[f"t-{i}", 2] = 1.0 if i < 6 else 0.0
    found = strongest_by_example(table.assign(effect=wide.to_numpy()))
    (row,) = found.summary.to_dict("records")
    assert (row["n"], row["none"], row["heads"]) == (6, 2, 2)
    assert (row["entropy"], row["effective_heads"]) == pytest.approx((1.0, 2.0))
    assert row["within"] == pytest.approx(2 ** -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert found.how_often["times"].tolist() == [3, 3] and (found.how_often["low"] < 0.5).all()
    assert found.by_example["head"].tolist() == [0, 1, 0, 1, 0, 1] and (found.by_example["lead"] == 2.0).all()
    assert (found.by_example["share"] == 0.75).all()


def test_a_head_that_is_always_strongest_is_not_told_as_certain() -> None:
    found = strongest_by_example(table_of([5.0, 0.0], 20)).how_often
    assert found["share"].tolist() == [1.0] and 0.8 < found["low"].item() < 0.9 and found["high"].item() == 1.0


def test_a_ranking_is_of_one_task_under_one_corruption() -> None:
    table = pd.concat([table_of([1, 3, 2], task="a"), table_of([3, 1, 2], task="b")])
    assert [head for _, _, head in ranking(table, "a")] == [1, 2, 0]
    assert [head for _, _, head in ranking(table, "b", "image")] == [0, 2, 1]
    with pytest.raises(DataError, match="there are a under image, b under image"):
        ranking(table)
    with pytest.raises(DataError, match="there are none"):
        ranking(table, "c")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_lies_between_the_p_values_and_bonferronis(p: list[float]) -> None:
    adjusted, given_p = holm(p), np.array(p)
    assert (adjusted >= given_p).all() and (adjusted <= np.minimum(1.0, len(p) * given_p) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(given_p, kind="stable")]) >= 0).all()
    assert np.isnan(holm([np.nan, 0.5])[0]) and holm([np.nan, 0.5])[1] == 0.5


def test_a_share_has_the_interval_of_a_ratio() -> None:
    """The delta method's standard error is the spread of the ratio over fresh samples."""
    generator = np.random.default_rng(0)

    def draw() -> tuple[Any, Any]:
        span = 10 + 3 * generator.normal(size=80)
        return 0.3 * span + generator.normal(size=80), span

    ratios, errors = [], []
    for _ in range(300):
        effect, span = draw()
        values = linearised(effect[:, None], span)[:, 0]
        assert values.mean() == pytest.approx(effect.mean() / span.mean())
        ratios.append(values.mean())
        errors.append(values.std(ddof=1) / np.sqrt(80))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.15)
