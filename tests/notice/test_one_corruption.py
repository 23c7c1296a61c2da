"""A row that has one corruption alone is kept for it, and every number of a corruption is of the rows that have it."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hooked_vlm.datasets import pairs
from hooked_vlm.notice import compare, effects, examples, pipeline, terminal
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.examples import NO_CORRUPT_IMAGE, NO_CORRUPT_PROMPT
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text import cautions_of
from hooked_vlm.notice.schema import Selection
from tests.notice.models import FAMILIES, questions, small
from tests.notice.test_pipeline import read

KINDS = ("attn-heads",)
LACKING: dict[str, dict[str, Any]] = {
    "": {},
    "image": {"corrupt_image": None},
    "text": {"corrupt_prompt": None},
    "text, by its length": {"corrupt_prompt": "is it ?"},
    "text, unreadable": {"corrupt_prompt": "is " * 90},
}
HAS = {"": {"image", "text"}, "image": {"text"}}  # the others have the image


def good(family: str) -> list[dict[str, Any]]:
    """Questions that the small model answers rightly."""
    rows = [(i, row) for i, row in enumerate(questions(family, 8))]
    config = NoticeConfig(model="m", tasks=("t",), kinds=KINDS).resolved(small(family))
    return [example.row for example in examples.prepared(small(family), config, rows) if example.kept]


def measured(family: str, config: NoticeConfig, rows: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The effects of each example, by its id."""
    model = small(family)
    config = config.resolved(model)
    found = [example for example in examples.prepared(model, config, list(enumerate(rows))) if example.kept]
    groups = examples.grouped(found, pipeline._shape)
    return {
        example.row["id"]: one.table.to_pandas()
        for group in groups
        for example, one in zip(group, effects.measured(model, config, group), strict=True)
    }


@pytest.mark.parametrize("family", FAMILIES)
@given(st.permutations(list(LACKING)), st.booleans())
@settings(max_examples=2, deadline=None)
def test_effects_of_rows_that_lack_a_corruption_are_those_of_a_run_of_the_other(
    family: str, lacking: list[str], noise: bool
) -> None:
    rows = [row | LACKING[lack] for row, lack in zip(good(family)[: len(lacking)], lacking, strict=True)]
    options = {"model": "m", "tasks": ("t",), "kinds": KINDS, "noise": noise}
    both = measured(family, NoticeConfig(**options), rows)
    assert set(both) == {row["id"] for row in rows}
    alone = {name: measured(family, NoticeConfig(corrupt=(name,), **options), rows) for name in ("image", "text")}
    for row, lack in zip(rows, lacking, strict=True):
        has = HAS.get(lack, {"image"})
        table = both[row["id"]]
        assert set(table["corrupt"]) == {f"{name}{end}" for name in has for end in (("", "_noise") if noise else ("",))}
        for name in ("image", "text"):
            assert (row["id"] in alone[name]) == (name in has)
            if name in has:
                mine = table[table["corrupt"].str.startswith(name)].reset_index(drop=True)
                theirs = alone[name][row["id"]]
                np.testing.assert_allclose(mine["effect"], theirs["effect"], atol=1e-5)
                assert (
                    mine[["corrupt", "kind", "layer", "head", "position", "role"]]
                    .astype(str)
                    .equals(theirs[["corrupt", "kind", "layer", "head", "position", "role"]].astype(str))
                )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[NoticeConfig, Path]:
    """A run of three tasks: one in which some rows lack a corruption, one that has no text at all, and a whole one."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = good("blip")
    tables = {
        "some": [row | LACKING[lack] for row, lack in zip(rows, ["", *LACKING], strict=False)],
        "textless": [row | LACKING["text"] for row in rows],
        "whole": rows,
    }
    for name, these in tables.items():
        pairs.write_parquet(pairs.table(these), folder / f"{name}.parquet")
    tasks = tuple(str(folder / f"{name}.parquet") for name in tables)
    config = NoticeConfig(
        model="m", tasks=tasks, kinds=KINDS, examples=6, noise=True, bootstrap=20, random_draws=2, batch=4
    )
    return config, pipeline.run(config, folder / "run", progress=False, model=small("blip"))


def test_each_corruption_counts_its_own_examples(mixed: tuple[NoticeConfig, Path]) -> None:
    directory = mixed[1]
    summary = json.loads((directory / "summary.json").read_text())
    counts = {row["task"]: row for row in summary["counts"]}
    assert [(row["kept"], row["kept_image"], row["kept_text"]) for row in counts.values()] == [
        (6, 5, 3),
        (6, 6, 0),
        (6, 6, 6),
    ]
    assert counts["some"]["lacking"] == {f"image: {NO_CORRUPT_IMAGE}": 1, f"text: {NO_CORRUPT_PROMPT}": 3}
    assert counts["textless"]["lacking"] == {f"text: {NO_CORRUPT_PROMPT}": 6} and not counts["whole"]["lacking"]
    n = {(task, corrupt): counts[task].get(f"kept_{corrupt}") for task, corrupt in product(counts, ("image", "text"))}
    for table in ("behaviour", "heads"):
        for row in summary[table]:
            corrupt = row["corrupt"].removesuffix("_noise")
            assert row["n"] == n[row["task"], corrupt] > 0, table
    assert {(row["task"], row["modality"], row["n"]) for row in summary["noise"]} == {
        (task, corrupt, k) for (task, corrupt), k in n.items() if k
    }
    ablated = read(directory, "ablation").query("draw == -1").groupby(["task", "selection"])["example"].nunique()
    sets = {(row["task"], str(Selection(**row["selection"]))): row["n"] for row in summary["ablation"]}
    assert sets == ablated.drop("none", level="selection").to_dict()
    assert {n for (_, name), n in sets.items() if name == "strongest 3 image"} == {6}  # each half has some


def test_rows_of_a_corruption_that_an_example_lacks_are_absent(mixed: tuple[NoticeConfig, Path]) -> None:
    directory = mixed[1]
    rows, found = read(directory, "examples"), read(directory, "effects")
    there = found.groupby(["task", "example"])["corrupt"].agg(set)
    for row in rows.itertuples():
        has = {name for name in ("image", "text") if not getattr(row, f"{name}_lacking")}
        assert there[row.task, row.example] == has | {f"{name}_noise" for name in has}
        for name in ("image", "text", "image_noise", "text_noise"):
            assert np.isfinite(getattr(row, f"{name}_logit_diff")) == (name.removesuffix("_noise") in has)


def test_the_reader_is_told_on_how_many_examples_each_corruption_rests(mixed: tuple[NoticeConfig, Path]) -> None:
    directory = mixed[1]
    said = " ".join(cautions_of(Loaded.read(directory)))
    lacks = f"some: not every example has an image corruption ({NO_CORRUPT_IMAGE}: 1); what is said of it rests on 5"
    assert lacks in said
    assert "some: not every example has a text corruption" in said and "rests on 3 of 6" in said
    assert f"textless: not every example has a text corruption ({NO_CORRUPT_PROMPT}: 6); nothing is said of it" in said
    assert "whole: not every" not in said
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    terminal.show_ending(console, directory)
    told = console.export_text()
    for text in (told, (directory / "report.html").read_text()):
        assert "6 (image 5, text 3)" in text and "6 (image 6, text 0)" in text
    shutil.copytree(directory, directory.parent / "again")
    assert compare([directory, directory.parent / "again"], directory.parent / "both.html").is_file()


def test_what_is_computed_again_has_the_same_numbers(mixed: tuple[NoticeConfig, Path]) -> None:
    config, directory = mixed
    before = {kind: read(directory, kind) for kind in ("examples", "effects", "ablation")}
    for kind in ("effects", "examples"):
        next((directory / kind).glob("some-*.parquet")).unlink()
    pipeline.run(config, directory, progress=False, model=small("blip"))
    for kind, table in before.items():
        pd.testing.assert_frame_equal(read(directory, kind), table)


def test_a_masked_region_is_the_image_corruption_of_rows_that_have_a_mask(tmp_path: Path) -> None:
    rows = [row | ({"mask": None} if i % 2 else {}) for i, row in enumerate(good("blip"))]
    found = measured("blip", NoticeConfig(model="m", tasks=("t",), kinds=KINDS, region="mean"), rows)
    for row in rows:
        assert set(found[row["id"]]["corrupt"]) == {"text"} | ({"image"} if row["mask"] is not None else set())
