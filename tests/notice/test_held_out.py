"""Nothing is chosen and judged on the same examples: heads are chosen on one half and ablated on the other."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm import viz
from hooked_vlm.analysis import ablation
from hooked_vlm.errors import MissingExtraError
from hooked_vlm.notice import NoticeConfig, pipeline, summary
from hooked_vlm.notice.directory import RunDirectory
from hooked_vlm.notice.run_tables import _template, gather
from hooked_vlm.notice.selections import HeldOut
from tests.notice.made import edit_tables, run_directory
from tests.notice.models import answerable, small

KIND = "cross_attn-heads"
TOP = "strongest 3 image"


@pytest.fixture(scope="module", autouse=True)
def without_figures() -> Iterator[None]:
    def missing(*args: Any, **options: Any) -> None:
        raise MissingExtraError("no matplotlib")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(viz, "overlay", missing)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> NoticeConfig:
    folder = tmp_path_factory.mktemp("tasks")
    tasks = tuple(answerable("blip", folder / f"{name}.parquet", 12) for name in ("one", "two"))
    quick = {"bootstrap": 10, "random_draws": 4, "examples": 7, "batch": 4}
    return NoticeConfig(model="blip", tasks=tasks, kinds=(KIND,), corrupt=("image",), **quick)


def go(config: NoticeConfig, path: Path) -> Path:
    return pipeline.run(config, path, progress=False, model=small("blip"))


@pytest.fixture(scope="module")
def directory(config: NoticeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(config, tmp_path_factory.mktemp("run") / "run")


def read(directory: Path, kind: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((directory / kind).glob("*.parquet"))])


def selected(path: Path) -> summary.Selected:
    place = RunDirectory(path).opened()
    return summary.select(place, place.record["config"])


def named(heads: Any) -> set[tuple[int, int]]:
    return {(int(layer), int(head)) for layer, head in re.findall(r"(\d+)\.(\d+)", str(heads))}


def test_an_example_is_ablated_without_the_heads_that_the_other_half_chose(directory: Path) -> None:
    effects = read(directory, "effects").query("role == 'every position' and corrupt == 'image'")
    ablated = read(directory, "ablation").query("selection == @TOP")
    halves = selected(directory).tables.halves(0)
    assert set(halves) == {"one", "two"}
    for task, parts in halves.items():
        assert [len(part) for part in parts] == [4, 3]
        for judged, chose in (parts, parts[::-1]):
            mine = effects[(effects["task"] == task) & effects["example"].isin(chose)]
            sizes = mine.assign(size=mine["effect"].abs()).groupby(["layer", "head"])["size"].mean()
            rows = ablated[(ablated["task"] == task) & ablated["example"].isin(judged)]
            assert set(rows["example"]) == set(judged)
            of_selection = rows[rows["draw"] == -1]["heads"]
            assert of_selection.nunique() == 1 and named(of_selection.iloc[0]) == set(sizes.nlargest(3).index)


def test_random_sets_are_as_large_in_each_layer_as_the_set_that_the_example_judges(directory: Path) -> None:
    rows = read(directory, "ablation").query("selection != 'none'")
    for _, each in rows.groupby(["task", "example", "selection"]):
        layers = [sorted(layer for layer, _ in named(heads)) for heads in each["heads"]]
        assert len(layers) > 1 and all(one == layers[0] for one in layers)
        assert each["heads"].map(lambda heads: frozenset(named(heads))).nunique() == len(each)


def test_the_summary_names_both_sets_where_the_halves_chose_others(directory: Path) -> None:
    rows = read(directory, "ablation").query("draw == -1 and selection != 'none'")
    there = rows.groupby(["task", "selection"])["heads"].unique()
    found = summary.summarise(directory)["ablation"]
    assert {(row["task"], str(row["selection"])): sorted(row["chosen"]) for row in found} == {
        key: sorted(heads) for key, heads in there.items()
    }


def test_only_where_the_choice_changed_is_ablated_again(
    config: NoticeConfig, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = go(config, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (path / "ablation").iterdir()}
    asked: list[Any] = []
    of = ablation.ablate
    monkeypatch.setattr(ablation, "ablate", lambda *given, **options: asked.append(given[4]) or of(*given, **options))
    go(config, path)
    assert not asked and {file.name: file.read_bytes() for file in (path / "ablation").iterdir()} == before

    first = selected(path).tables.halves(0)["two"][0]
    weakest = read(path, "effects").query("role == 'every position' and task == 'two' and example in @first")
    sizes = weakest.assign(size=weakest["effect"].abs()).groupby(["layer", "head"])["size"].mean()
    layer, head = sizes.idxmin()

    def loud(rows: pd.DataFrame) -> pd.DataFrame:
        here = (rows["layer"] == layer) & (rows["head"] == head) & rows["example"].isin(first)
        return rows.assign(effect=rows["effect"].where(~here, 50.0))

    def chosen() -> dict[str, Any]:
        rows = read(path, "ablation").query("selection == @TOP and draw == -1 and task == 'two'")
        return dict(zip(rows["example"], rows["heads"], strict=True))

    earlier = chosen()
    edit_tables(path, "effects", "two", loud)
    go(config, path)
    assert asked
    after = {file.name: file.read_bytes() for file in (path / "ablation").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {name for name in after if name[:3] == "two"}
    for example, heads in chosen().items():  # the first half chose anew, and the second judges it
        if example in first:
            assert heads == earlier[example]
        else:
            assert (layer, head) in named(heads) and (layer, head) not in named(earlier[example])


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_run_of_hardly_any_example_is_halved_without_a_warning(kept: int, tmp_path: Path) -> None:
    path = run_directory(tmp_path, kept=kept, tasks=("colour",), layers=2, noise=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = selected(path)
        sets = summary.to_ablate(summary.halved(found))["colour"]
    judged = [held.examples for held in sets]
    assert sorted(map(len, judged)) == sorted([kept // 2, kept - kept // 2])
    assert not judged[0] & judged[1]
    for mine, other in (sets, sets[::-1]):  # what no example chose is not ablated
        assert bool(mine.sets) == bool(other.examples)


def test_halves_hold_every_example_once_and_are_drawn_by_the_seed(tmp_path: Path) -> None:
    path = run_directory(tmp_path, kept=9, tasks=("colour", "shape"), layers=1, kinds=("attn-heads",), noise=False)
    tables = gather(RunDirectory(path).opened(), "answer")
    for task, (first, second) in tables.halves(3).items():
        assert sorted([*first, *second]) == sorted(f"{task}-{number}" for number in range(9))
        assert (len(first), len(second)) == (5, 4)
    assert tables.halves(3) == tables.halves(3) != tables.halves(4)


def test_a_half_that_chose_nothing_leaves_its_examples_out_of_both_sides(tmp_path: Path) -> None:
    """The whole model and random sets are told of the examples in which the set was ablated, and of no others."""
    path = run_directory(tmp_path, kept=8, tasks=("colour",), corrupt=("image",), layers=1, noise=False)

    def half(rows: pd.DataFrame) -> pd.DataFrame:
        number = int(rows["example"].iloc[0].rpartition("-")[2])
        rows = rows.assign(logit_diff=rows["logit_diff"] + number)
        return rows if number < 5 else rows[rows["selection"] == "none"]

    def fewer(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["draw"] < (9 if rows["example"].iloc[0] == "colour-0" else 10**6)]

    edit_tables(path, "ablation", "colour", lambda rows: fewer(half(rows)))
    (row,) = summary.summarise(path)["ablation"]
    rows = read(path, "ablation")
    there = rows[rows["selection"] != "none"]["example"].unique()
    rows = rows[rows["example"].isin(there)]
    assert row["n"] == 5 and row["draws"] == 9  # sets that some examples lack are no comparison of all
    assert row["logit_diff_full"] == pytest.approx(rows.query("selection == 'none'")["logit_diff"].mean(), rel=1e-5)
    drawn = rows.query("selection != 'none' and 0 <= draw < 9").groupby("draw")["logit_diff"].mean()
    assert row["logit_diff_random_mean"] == pytest.approx(drawn.mean(), rel=1e-5)


def test_held_out_sets_are_a_value() -> None:
    held = HeldOut(frozenset({"a"}), {})
    assert held == HeldOut(frozenset({"a"}), {}) and dataclasses.replace(held, examples=frozenset()) != held


# --- templates ----------------------------------------------------------------------------------------

word = st.sampled_from(["circle", "square", "dog", "tree", "cup"])
colour = st.sampled_from(["red", "blue", "green"])


@given(word, word, colour, colour)
def test_prompts_that_differ_in_subject_and_answers_are_of_one_template(a: str, b: str, right: str, wrong: str) -> None:
    other = {"circle": "square"}.get(a, "circle")
    asked = f"Is the {a} {right} or {wrong}?"
    assert _template(asked, f"Is the {other} {right} or {wrong}?", right, wrong) == "Is the _ _ or _?"
    elsewhere = {"circle": "square"}.get(b, "circle")
    again = _template(f"Is the {b} pink or grey?", f"Is the {elsewhere} pink or grey?", "pink", "grey")
    assert again == "Is the _ _ or _?"


@pytest.mark.parametrize("corrupt", [None, float("nan"), "", "What of another one, which has more words?"])
def test_without_a_corrupt_prompt_of_as_many_words_only_the_answers_are_left_out(corrupt: Any) -> None:
    assert _template("Is the cup Red or blue?", corrupt, "red", "blue") == "Is the cup _ or _?"
    assert _template("Is it reddish?", corrupt, "red", "") == "Is it reddish?"


def test_templates_and_answers_cluster_a_tasks_examples(tmp_path: Path) -> None:
    path = run_directory(tmp_path, kept=8, tasks=("colour",), layers=1, kinds=("attn-heads",), noise=False)

    def asked(rows: pd.DataFrame) -> pd.DataFrame:
        number = int(rows["number"].iloc[0])
        answer, form = ["red", "blue"][number % 2], ["is the cup {}?", "the cup: {}?"][number // 4 % 2]
        return rows.assign(
            prompt=form.format(answer), corrupt_prompt=None, answer=answer, wrong_answer="pink", group=""
        )

    edit_tables(path, "examples", "colour", asked)
    tables = gather(RunDirectory(path).opened(), "answer")
    found = tables.clusters("colour", [f"colour-{number}" for number in range(8)])
    expected = [np.arange(8), np.arange(8) % 2, np.arange(8) // 4]
    assert len(found) == 3 and all(map(np.array_equal, found, expected))
    turned = tables.clusters("colour", [f"colour-{number}" for number in reversed(range(8))])
    assert np.array_equal(turned[1], [0, 1] * 4)
