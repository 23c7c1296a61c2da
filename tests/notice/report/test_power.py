"""What a run could find, and for which answers what it found holds, in words."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hooked_vlm.analysis.power import power
from hooked_vlm.notice import summary
from hooked_vlm.notice.claims import Selected, Verdict
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text import cautions_of
from hooked_vlm.notice.report.text.verdicts import told
from hooked_vlm.notice.report.text.words import percent
from tests.notice.made import edit_tables, run_directory

ONE = {"tasks": ("colour",), "corrupt": ("image",), "kinds": ("attn-heads",), "noise": False, "masks": False}


def with_answers(path: Path, n: int) -> list[str]:
    """What is cautioned of a run of one task with so many answers."""
    run_directory(path, kept=24, layers=2, **ONE)

    def answered(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(answer="abcdefghijkl"[int(rows["number"].iloc[0]) % n], group="")

    edit_tables(path, "examples", "colour", answered)
    summary.summarise(path)
    return cautions_of(Loaded.read(path))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 12])
def test_a_reader_is_told_where_answers_are_few(n: int, tmp_path: Path) -> None:
    said = with_answers(tmp_path, n)
    few = [line for line in said if line.startswith("Few answers, groups or templates: colour")]
    fewer = [line for line in said if line.startswith("Fewer than 4 answers, groups or templates: colour.")]
    assert len(few) == (4 <= n < 8) and len(fewer) == (1 < n < 4)
    assert not few or f"colour ({n})" in few[0]


def test_a_reader_is_told_the_power_that_a_run_had(tmp_path: Path) -> None:
    path = run_directory(tmp_path, kept=14, layers=2, **(ONE | {"tasks": ("colour", "shape")}))
    made = summary.summarise(path)
    (found,) = [one.evidence for one in made["findings"] if isinstance(one.evidence, Selected)]
    (row,) = found.power
    heads = pd.DataFrame(made["heads"])
    top = heads.sort_values("mean_abs", ascending=False).groupby("task").head(3)
    assert row["cv"] == pytest.approx((top["sd"] / top["mean"].abs()).median())
    assert row["n"] == 14 and row["tasks"] == 2 and row["needed"] is not None
    rivals = max(1, (heads.drop_duplicates(["layer", "head"])["at_least"] >= 1).sum())
    assert row["power"] == pytest.approx(power(row["cv"], 14, tasks=2, rivals=int(rivals)))
    (line,) = [line for line in cautions_of(Loaded.read(path)) if line.startswith("Power, image corruption, attn")]
    assert f"in both tasks with a chance of {percent(row['power'])} by" in line and "by 14 examples" in line
    assert f"it takes {row['needed']} examples a task" in line


def test_heads_of_some_tasks_are_named_with_their_tasks() -> None:
    row = {"kind": "attn-heads", "layer": 1, "head": 2, "rule": "fdr", "modality": "vision-only"}
    evidence = Selected([], 12, 3, "answer", [], 12, True, partly=[row | {"tasks": ["colour", "shape"]}])
    said = told(Verdict(evidence, False)).told
    assert said.endswith("In some of the tasks, two at least, matter attn L1.H2 in colour and shape (vision-only).")
    assert "In some of the tasks" not in told(Verdict(Selected([], 12, 3, "answer", [], 12, True), False)).told


def test_a_head_that_acts_in_two_of_three_tasks_is_told_of(tmp_path: Path) -> None:
    path = run_directory(tmp_path, kept=16, layers=3, **(ONE | {"tasks": ("colour", "shape", "place")}))

    def loud(rows: pd.DataFrame) -> pd.DataFrame:
        here = (rows["layer"] == 0) & (rows["head"] == 3)
        return rows.assign(effect=rows["effect"] + here * 2.0)

    for task in ("colour", "place"):
        edit_tables(path, "effects", task, loud)
    (found,) = [one.evidence for one in summary.summarise(path)["findings"] if isinstance(one.evidence, Selected)]
    assert [(row["layer"], row["head"], row["tasks"]) for row in found.partly] == [(0, 3, ["colour", "place"])]
