"""Intervals that can be believed: a sample without spread does not make a number certain."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from hooked_vlm.notice import report, summary
from hooked_vlm.notice.report.compare import compare
from tests.notice.made import edit_tables, run_directory
from tests.notice.report.parsed import Page


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run in which all that can be constant is: all right, all flipped, a head that always has the same effect."""
    path = tmp_path_factory.mktemp("alike") / "run"
    run_directory(path, kept=50, dropped=0, tasks=("colour",), kinds=["attn-heads"], layers=2, heads=3)
    alike = {
        "effects": lambda rows: rows.assign(
            effect=rows["effect"].mask(rows["head"] == 0, 1.5).mask(rows["head"] == 1, 0)
        ),
        "attention": lambda rows: rows.assign(
            pointing=1.0, inside=0.4, lift=2.5, outlier=(rows["head"] == 2).astype(float)
        ),
        "ablation": lambda rows: rows.assign(
            correct=rows["draw"] >= 0, logit_diff=np.where(rows["draw"] < 0, 1.0, 3.0)
        ),
    }
    for kind, change in alike.items():
        edit_tables(path, kind, "colour", change)
    summary.summarise(path)
    report.write(path)
    return path


@pytest.fixture(scope="module")
def made(directory):
    return json.loads((directory / "summary.json").read_text())


def test_fifty_of_fifty_are_not_certain(made):
    (counts,), behaviour = made["counts"], made["behaviour"]
    assert (counts["accuracy"], counts["accuracy_high"]) == (1.0, 1.0)
    assert counts["accuracy_low"] == pytest.approx(0.929, abs=5e-4)
    for row in behaviour:
        assert (row["flipped"], row["flipped_high"]) == (1.0, 1.0)
        assert row["flipped_low"] == pytest.approx(0.929, abs=5e-4)
    for row in made["ablation"]:
        assert (row["accuracy"], row["accuracy_low"]) == (0.0, 0.0)
        assert row["accuracy_high"] == pytest.approx(0.071, abs=5e-4)
    for row in made["functions"]:
        assert row["pointing_low"] == pytest.approx(0.929, abs=5e-4)


def test_no_interval_of_a_summary_is_a_point(made):
    seen = 0
    for name, rows in made.items():
        for row in rows if isinstance(rows, list) and rows and isinstance(rows[0], dict) else ():
            for key, low in row.items():
                high = row.get(f"{key.removesuffix('_low')}_high") if key.endswith("_low") else None
                if low is not None and high is not None and key != "ratio_low":  # to the average: held by arithmetic
                    seen += 1
                    assert low < high, (name, key, row)
    assert seen > 100


def test_no_interval_that_is_printed_is_a_point(directory, made, tmp_path):
    other = run_directory(tmp_path / "other", kept=4, tasks=("colour",), kinds=["attn-heads"], layers=2, heads=3)
    compared = compare([directory, other], tmp_path / "compared.html")
    for page in (Page(path.read_text(encoding="utf-8")) for path in (directory / "report.html", compared)):
        hovered = [str(cell) for _, chart in page.charts for one in chart["data"] for cell in one.get("customdata", ())]
        for text in (page.text, " ".join(hovered).replace("\\xa0", " ")):
            pairs = re.findall(r"\[([^\[\],']+),\s([^\[\],']+)\]", text)
            assert pairs and not [pair for pair in pairs if pair[0].strip() == pair[1].strip()]
