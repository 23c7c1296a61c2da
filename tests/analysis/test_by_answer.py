"""Heads that act for one answer alone are told from heads that act for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hooked_vlm import HookedVLM
from hooked_vlm.analysis import answer_specific, by_cluster, head_effects
from hooked_vlm.datasets import shapes
from hooked_vlm.errors import DataError
from hooked_vlm.patching.metrics import logit_diff

ANSWERS = ("red", "blue", "green", "black")


def table_of(means: Any, n_each: int = 12, sd: float = 0.5, seed: int = 0) -> pd.DataFrame:
    """Effects of heads, [head answer] their means."""
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {"task": "colour", "example": f"{answer}-{i}", "corrupt": "image", "layer": 0, "head": h, "answer": answer}
        | {"effect": means[h][a] + (means[h][a] != 0) * sd * generator.normal(), "span": 10.0}
        for h in range(len(means))
        for a, answer in enumerate(ANSWERS)
        for i in range(n_each)
    )


def test_a_head_of_one_answer_is_told_from_one_of_all() -> None:
    means = [
        [0.5, 9.0, 0.4, 0.6],
        [3.0, 3.2, 2.9, 3.1],
        [0, 0, 0, 0],
        [-0.4, -5.0, -0.3, -0.2],
        [0.0001, 0.02, 0.0001, 0.0001],
    ]
    found = answer_specific(table_of(means, sd=0.4)).set_index("head")
    assert found["answer"][0] == "blue" and found["mean"][0] == pytest.approx(9.0, abs=0.5)
    assert found["rest"][0] == pytest.approx(0.5, abs=0.3) and found["share"][0] < 0.1
    assert found["answer_specific"][0] is True and found["answer_specific"][1] is False
    assert found["answer_specific"][2] is False  # does nothing at all
    assert found["answer_specific"][3] is True and found["mean"][3] < 0 and found["difference_high"][3] < 0
    assert (found["difference_low"] <= found["difference"]).all() and (found["n"] == 12).all()


def test_next_to_nothing_is_no_answers_head() -> None:
    means = [[0.001, 0.05, 0.001, 0.001], [3, 3, 3, 3]]
    assert answer_specific(table_of(means, sd=0.001)).set_index("head")["answer_specific"][0] is None
    assert answer_specific(table_of(means, sd=0.001), floor=0.0).set_index("head")["answer_specific"][0] is True


def test_what_few_or_noisy_examples_cannot_tell_is_undecided() -> None:
    found = answer_specific(table_of([[1.0, 3.0, 1.0, 1.0]], n_each=6, sd=3.0))
    assert found["answer_specific"].tolist() == [None]


def test_the_answer_chosen_by_looking_is_paid_for() -> None:
    """Of heads with no answer of their own, hardly any is called one's: 10 tables of 12 heads."""
    tables = [answer_specific(table_of([[1.0] * 4] * 12, sd=2.0, seed=seed)) for seed in range(10)]
    assert sum((each["answer_specific"] == True).any() for each in tables) <= 1  # noqa: E712
    assert sum((each["p_holm"] <= 0.05).any() for each in tables) <= 3


def test_means_by_answer_are_the_means_by_answer() -> None:
    table = table_of([[1, 2, 3, 4], [0, 0, 5, 0]])
    table["subject"] = np.where(table["example"].str[-1].isin(list("02468")), "even", "odd")
    for column in ("answer", "subject"):
        found = by_cluster(table, column).set_index(["head", column])
        expected = table.groupby(["head", column])["effect"].agg(["mean", "count"])
        np.testing.assert_allclose(found["mean"].loc[expected.index], expected["mean"])
        assert (found["n"].loc[expected.index] == expected["count"]).all()
        assert ((found["low"] <= found["mean"]) & (found["mean"] <= found["high"])).all()


def test_one_example_has_no_interval() -> None:
    table = table_of([[1, 2, 3, 4]])
    table = table[(table["answer"] != "red") | (table["example"] == "red-0")]
    found = by_cluster(table).set_index("answer")
    assert found["n"]["red"] == 1 and np.isnan(found["low"]["red"]) and not np.isnan(found["low"]["blue"])
    assert set(answer_specific(table)["answer"]) <= {"blue", "green", "black"}


def test_a_table_without_answers_is_refused() -> None:
    table = table_of([[1, 2, 3, 4]])
    with pytest.raises(DataError, match="no answer; it has task"):
        by_cluster(table.drop(columns="answer"))
    with pytest.raises(DataError, match="no task has two values of 'answer' with 5 examples"):
        answer_specific(table[table["answer"] == "red"])
    two = pd.concat([table, table.assign(layer=1, answer="red")])
    with pytest.raises(DataError, match="several values of span, answer"):
        by_cluster(two)


def test_the_zoos_strongest_colour_head_is_a_blue_head() -> None:
    """What LLaVA's colour rests on at the last position: one head that writes blue and no other colour."""
    model = HookedVLM.from_pretrained("zoo:llava-shapes")
    rows = shapes.load("colour", 48, seed=5)
    clean = model.to_inputs(list(rows["image"]), list(rows["prompt"]))
    corrupt = model.to_inputs(list(rows["corrupt_image"]), list(rows["prompt"]))
    right, wrong = ([model.to_single_token(word) for word in rows[name]] for name in ("answer", "wrong_answer"))
    with torch.no_grad():
        table = head_effects(model, clean, corrupt, logit_diff(right, wrong), rows, positions=clean.last_each[:, None])
    found = answer_specific(table)
    blue = found.iloc[0]  # the largest
    assert (blue["layer"], blue["head"], blue["answer"], blue["answer_specific"]) == (3, 3, "blue", True)
    assert (found["answer_specific"].iloc[1:] != True).all()  # noqa: E712
    means = by_cluster(table).query("layer == 3 and head == 3").set_index("answer")["mean"]
    assert means["blue"] > 8 and means.drop("blue").max() < 2
