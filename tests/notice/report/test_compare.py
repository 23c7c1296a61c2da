"""Several runs in one report: what recurs, what differs, how alike the maps are, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pandas as pd
import plotly.graph_objects as go
import pytest
from scipy.stats import spearmanr

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice.report import compare as comparison
from hooked_vlm.notice.report.compare import compare
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text import verdicts_of
from tests.notice import made
from tests.notice.report.parsed import Page


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        made.run_directory(root / "first", kinds=made.HEAD_KINDS, kept=12),
        made.run_directory(root / "second", seed=1, tasks=["colour", "place"], kinds=made.HEAD_KINDS, kept=12),
        made.run_directory(
            root / "third", seed=2, model="zoo:llava-shapes", kinds=["attn-heads"], kept=12, layers=4, noise=False
        ),
    ]


@pytest.fixture(scope="module")
def text(directories, tmp_path_factory):
    return compare(directories, tmp_path_factory.mktemp("out") / "deep" / "all.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


NAMES = ["blip-shapes (first)", "blip-shapes (second)", "llava-shapes"]


def test_runs_are_named_by_model_and_by_directory_where_models_repeat(page):
    rows = page.table("What was run")
    assert [row["run"] for row in rows] == NAMES
    assert [(row["seen"], row["kept"]) for row in rows] == [("42", "36"), ("28", "24"), ("42", "36")]


def test_only_settings_that_differ_are_shown(page):
    rows = {row["setting"]: row for row in page.table("All other settings")}
    assert rows["seed"] == {"setting": "seed", NAMES[0]: "0", NAMES[1]: "1", NAMES[2]: "2"}
    assert rows["Gaussian noise as well"][NAMES[2]] == "no"
    assert "bootstrap resamples" not in rows


def test_heads_recur_within_a_checkpoint_and_not_across(page):
    rows = {(row["head"], row["model"]): row for row in page.table("Heads that are universal")}
    assert rows["cross_attn L1.H2", "zoo:blip-shapes"]["runs"] == "2 of 2"
    assert rows["cross_attn L1.H2", "zoo:blip-shapes"][NAMES[1]] == "image and text, both rules, at the answer's word"
    assert rows["attn L1.H1", "zoo:llava-shapes"]["runs"] == "1 of 1"
    assert rows["attn L1.H1", "zoo:llava-shapes"][NAMES[0]] == "other model"
    assert "attn L1.H1 of blip-shapes" in page.text[: page.text.index("The runs")]


def test_maps_of_one_shape_are_correlated_as_scipy_does(page, directories):
    (chart,) = [
        chart
        for title, chart in page.charts
        if title.startswith("cross-attention heads, image swapped") and "3 layers" in title
    ]
    names = chart["layout"]["xaxis"]["ticktext"]
    assert names == [f"{NAMES[0]}, {task}" for task in ("colour", "shape", "place")] + [
        f"{NAMES[1]}, {task}" for task in ("colour", "place")
    ]
    effects = []
    for directory, task in ((directories[0], "shape"), (directories[1], "place")):
        rows = pd.DataFrame(json.loads((directory / "summary.json").read_text())["heads"])
        rows = rows[(rows["kind"] == "cross_attn-heads") & (rows["corrupt"] == "image") & (rows["task"] == task)]
        effects.append(rows.sort_values(["layer", "head"])["mean"])
    assert chart["data"][0]["z"][1][4] == pytest.approx(spearmanr(*effects).statistic, abs=1e-4)
    assert all(chart["data"][0]["z"][i][i] == pytest.approx(1.0) for i in range(len(names)))


def test_every_map_of_every_run_is_there(page):
    maps = [chart for _, chart in page.charts if str(chart["layout"]["xaxis"].get("title")).count("head")]
    assert len(maps) == 2 * 2 * (3 + 2) + 2 * 3
    for _, chart in page.charts:
        go.Figure(chart)


def test_tables_name_run_and_number(page, directories):
    summary = json.loads((directories[1] / "summary.json").read_text())
    rows = [row for row in page.table("Accuracy under mean ablation") if row["run"] == NAMES[1]]
    assert len(rows) == len(summary["ablation"]) > 0
    assert len(page.table("Semantic pairs against")) == (3 + 2) * 2 * 2
    rows = {row["claim"]: row for row in page.table("Whether a claim holds")}
    for one in verdicts_of(Loaded.read(directories[1])):
        wanted = {True: "holds", False: "does not hold", None: "undecided"}[one.holds]
        assert rows[one.claim][NAMES[1]] == wanted


def test_the_comparison_is_the_same_each_time_and_offline(text, page, directories, tmp_path):
    assert compare(directories, tmp_path / "again.html").read_text(encoding="utf-8") == text
    assert text.count("plotly.js v") == 1
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe")
        assert (attributes.get("href") or "#").startswith("#") and "src" not in attributes


def test_runs_of_nothing_read_well(tmp_path):
    runs = [made.run_directory(tmp_path / name, kept=0) for name in ("a", "b")]
    page = Page(comparison.html_of(comparison.named([Loaded.read(run) for run in runs])))
    assert page.charts == []
    assert "None of these runs patched a head" in page.sections["maps"]
    assert "All runs have the same settings." in page.sections["runs"]
    assert "No head is universal in any of these runs." in page.sections["recurring"]


def test_runs_of_one_directory_name_are_told_apart(tmp_path):
    runs = [made.run_directory(tmp_path / name / "run", kept=0) for name in ("a", "b")]
    names = [one.name for one in comparison.named([Loaded.read(run) for run in runs])]
    assert len(set(names)) == 2


@pytest.mark.parametrize("given", [[], ["first"], ["first", "first"], ["first", "first/../first"]])
def test_less_than_two_runs_are_refused(directories, given, tmp_path):
    root = directories[0].parent
    with pytest.raises(RunDirectoryError, match=r"two or more|twice"):
        compare([root / name for name in given], tmp_path / "out.html")


def test_a_directory_that_is_no_run_is_refused_by_name(directories, tmp_path):
    with pytest.raises(RunDirectoryError, match=rf"{tmp_path}/run\.json: it is no run"):
        compare([directories[0], tmp_path], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_an_unfinished_run_is_refused(directories, tmp_path):
    made.run_directory(tmp_path / "half", kept=0)
    (tmp_path / "half" / "summary.json").unlink()
    with pytest.raises(RunDirectoryError, match="not finished"):
        compare([directories[0], tmp_path / "half"], tmp_path / "out.html")


def test_a_directory_for_a_file_is_refused(directories, tmp_path):
    with pytest.raises(RunDirectoryError, match=r"compare\.html"):
        compare(directories, tmp_path)


def test_the_command_names_the_file_or_says_in_one_line_what_is_wrong(directories, tmp_path):
    def called(*words):
        command = [sys.executable, "-c", "from hooked_vlm.cli import main; main()", "compare", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    out = tmp_path / "all.html"
    ran = called(directories[0], directories[1], "--out", out)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert str(out) in ran.stdout and out.stat().st_size > 1_000_000
    ran = called(directories[0], tmp_path, "--out", out)
    assert ran.returncode == 1
    assert ran.stderr.startswith("hooked-vlm: there is no ") and ran.stderr.count("\n") == 1
