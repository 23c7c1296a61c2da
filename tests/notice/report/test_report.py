"""The report of a run: its numbers are summary.json's, it opens offline, it escapes, and what is missing is said."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice import report
from hooked_vlm.notice.report import render, views
from hooked_vlm.notice.report.charts import ELSEWHERE, MARKS, strongest_place
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text import cautions_of, verdicts_of
from hooked_vlm.notice.report.text.verdicts import Told
from hooked_vlm.notice.report.text.words import (
    chance,
    corruption_name,
    interval,
    number,
    percent,
    rule_of,
    scored,
    two,
    with_interval,
)
from hooked_vlm.notice.schema import Selection
from hooked_vlm.notice.summary import summarise
from tests.notice import made
from tests.notice.report.parsed import Page

IMAGE = Selection("universal", "image", "fdr")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return made.run_directory(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def summary(directory):
    return json.loads((directory / "summary.json").read_text())


@pytest.fixture(scope="module")
def text(directory):
    return report.write(directory).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture
def copy(directory, tmp_path):
    """The run, to be spoiled."""
    return shutil.copytree(directory, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))


def seen(path) -> Page:
    return Page(report.html_of(Loaded.read(path)))


def in_order(records: list[dict]) -> list[dict]:
    """Records by task, in the order in which tasks were asked for."""
    return sorted(records, key=lambda record: ["colour", "shape", "place"].index(record["task"]))


# --- the numbers are those of the summary ---------------------------------------------------------------


def test_counts_are_the_summarys(page, summary):
    rows = page.table("Examples of each task")
    assert [(row["task"], row["seen"], row["kept"], row["accuracy"]) for row in rows] == [
        (count["task"], number(count["seen"]), number(count["kept"]), with_interval(count, "accuracy", percent))
        for count in in_order(summary["counts"])
    ]
    assert all(row["why others went"] == "wrong answer: 2" for row in rows)


def test_behaviour_is_the_summarys(page, summary):
    assert page.table("Mean logit difference") == [
        {
            "task": row["task"],
            "corruption": corruption_name(row["corrupt"]),
            "examples": number(row["n"]),
            "clean": with_interval(row, "clean_logit_diff", two),
            "corrupt": with_interval(row, "corrupt_logit_diff", two),
            "answers that flip": with_interval(row, "flipped", percent),
        }
        for row in in_order(summary["behaviour"])
    ]


def head_maps(page: Page) -> list[dict]:
    return [chart for _, chart in page.charts if chart["layout"]["xaxis"].get("title", {}).get("text") == "head"]


def test_every_head_stands_in_its_map_with_what_hovering_shows(page, summary):
    drawn = [
        (z, *hover)
        for chart in head_maps(page)
        for zs, hovers in zip(chart["data"][0]["z"], chart["data"][0]["customdata"], strict=True)
        for z, hover in zip(zs, hovers, strict=True)
    ]
    wanted = [
        (
            float(f"{row['mean']:.5g}"),
            interval(row["ci_low"], row["ci_high"]),
            *(html.escape(chance(row[key])) for key in ("p", "q")),
            *(number(row[key]) for key in ("n", "mean_abs")),
            two(row["ratio"]),
            *(number(row[key]) for key in ("restoration", "normalized")),
            rule_of(row["paper"], row["fdr"]),
            percent(row["repeats"]),
            "at the answer's word",
            html.escape(strongest_place(row), quote=False),
        )
        for row in summary["heads"]
    ]
    assert sorted(drawn) == sorted(wanted)
    assert len(drawn) == 3 * 4 * 2 * 4 * 3  # layers, heads, kinds, corruptions with noise, tasks


def test_a_map_marks_the_heads_that_rules_select(page, summary):
    first = head_maps(page)[0]["data"][0]["text"]
    there = {"corrupt": "image", "kind": "cross_attn-heads", "task": "colour"}
    rows = [row for row in summary["heads"] if there.items() <= row.items()]
    for row in rows:
        mark = MARKS[rule_of(row["paper"], row["fdr"])]
        more = ELSEWHERE if row["elsewhere"] else ""
        assert first[row["layer"]][row["head"]].split() == [two(row["mean"]), *([mark] if mark else []), *more]
    assert sum(row["fdr"] for row in rows) == 2


def test_maps_are_centred_at_zero_and_share_a_scale(page):
    bounds = [
        (chart["data"][0]["zmin"], chart["data"][0]["zmax"]) for _, chart in page.charts if "zmin" in chart["data"][0]
    ]
    assert len(bounds) > 20
    assert all(low == -high < 0 for low, high in bounds)
    assert len(set(bounds[:3])) == 1  # a map a task, of one kind and corruption


def test_universal_heads_stand_with_label_and_score(page, summary):
    rows = {row["head"]: row for row in page.table("Universal heads")}
    functions = {(row["kind"], row["layer"], row["head"]): row for row in summary["functions"]}
    assert rows.keys() == {"cross_attn L1.H2", "cross_attn L2.H0", "attn L1.H1"}
    assert rows["cross_attn L1.H2"]["corruption"] == "image and text"
    assert rows["cross_attn L1.H2"]["selected by"] == "the FDR-controlled rule and the paper's rule"
    record = functions["attn-heads", 1, 1]
    assert rows["attn L1.H1"]["score and interval"] == scored(record) != ""
    assert rows["attn L1.H1"]["label"] == record["label"] == "object detection"


def test_functions_are_the_summarys(page, summary):
    rows = {row["head"]: row for row in page.table("All heads")}
    assert len(rows) == len(summary["functions"])
    for record in summary["functions"]:
        row = rows[f"{record['kind'].removesuffix('-heads')} L{record['layer']}.H{record['head']}"]
        shown = [row[name] for name in ("inside", "lift", "AUC", "pointing", "outlier", "n")]
        assert shown == [
            *(two(record[name]) for name in ("inside", "lift", "auc", "pointing", "outlier")),
            number(record["n"]),
        ]
        assert (row["label"], row["score and interval"]) == (record["label"], scored(record))
        assert row["effect at the answer's word"] == ("yes" if record["significant"] else "not\u00a0shown")


NAMES = {"universal image": "universal heads (image)", "universal text": "universal heads (text)"}


def test_ablation_is_the_summarys_in_table_and_bars(page, summary):
    rows = page.tables["Mean ablation"][1:]
    assert len(rows) == len(summary["ablation"])
    for row in rows:
        (record,) = [
            one
            for one in summary["ablation"]
            if (NAMES[str(Selection(**one["selection"]))], one["task"]) == (row[0], row[1])
        ]
        assert row[3:5] == [with_interval(record, name, percent) for name in ("accuracy_full", "accuracy")]
        low, high = record["accuracy_random_low"], record["accuracy_random_high"]
        assert row[9] == with_interval(record, "harm")
        assert row[5] == f"{percent(record['accuracy_random_mean'])} {interval(low, high, percent)}".strip()
    (chart,) = [chart for title, chart in page.charts if title == "universal heads (image), 2 heads: accuracy"]
    full, drawn, chosen = chart["data"]
    records = {one["task"]: one for one in summary["ablation"] if one["selection"] == asdict(IMAGE)}
    for i, task in enumerate(chosen["x"]):
        assert chosen["y"][i] == pytest.approx(records[task]["accuracy"], rel=1e-4)
        assert drawn["y"][i] + drawn["error_y"]["array"][i] == pytest.approx(
            records[task]["accuracy_random_high"], rel=1e-3
        )
        assert full["y"][i] == records[task]["accuracy_full"]


def test_noise_is_the_summarys(page, summary):
    rows = page.table("Rank correlation")
    assert [(row["task"], row["Spearman"]) for row in rows] == [
        (row["task"], two(row["spearman"])) for row in in_order(summary["noise"])
    ]
    scatters = [chart for _, chart in page.charts if chart["data"][0].get("mode") == "markers+text"]
    effects = sorted(z for chart in scatters for z in chart["data"][0]["y"])
    noisy = [row["mean"] for row in summary["heads"] if row["corrupt"].endswith("_noise")]
    assert effects == pytest.approx(sorted(noisy), rel=1e-4)


def test_findings_say_whether_they_hold_and_why(page, summary, directory):
    verdicts = [
        attributes["class"] for tag, attributes in page.elements if "verdict" in (attributes.get("class") or "")
    ]
    wanted = {True: "verdict yes", False: "verdict no", None: "verdict open"}
    assert verdicts == [wanted[row["holds"]] for row in summary["findings"]]
    for one in verdicts_of(Loaded.read(directory)):
        assert one.claim in page.sections["findings"] and one.evidence in page.sections["findings"]


def test_cautions_are_all_there(page, directory):
    said = cautions_of(Loaded.read(directory))
    assert said
    for sentence in said:
        assert sentence in page.sections["care"]


def test_where_the_rules_disagree_is_all_there_the_most_folded_away(copy):
    sentences = [f"L0.H{i}: the paper's rule selects it, the FDR-controlled one does not." for i in range(9)]
    made.edit_summary(copy, disagreements=sentences)
    page = seen(copy)
    assert all(sentence in page.sections["universal"] for sentence in sentences)
    assert "3 more" in page.sections["universal"]


def test_the_answer_comes_first_and_hedges(page, summary):
    first = page.text[: page.text.index("What was tested")]
    assert "Of 24 heads, read at the answer's word, 3 stand out in all 3 tasks" in first
    assert "cross_attn L1.H2 for image and text" in first
    assert "the strongest single head at the answer's word is" in first
    assert "Removing the universal heads (image) hurts more than removing as many random heads in every task" in first
    after = sum(row["accuracy"] for row in summary["ablation"] if row["selection"] == asdict(IMAGE)) / 3
    assert f"Accuracy goes from 100\N{NO-BREAK SPACE}% to {percent(after)}" in first
    assert "So few examples a task give hints, not results." in first
    assert "42 of 48" in first


# --- a page that stands alone ---------------------------------------------------------------------------

LOADS = {"src", "href", "data", "poster", "srcset", "action", "xlink:href"}


def test_nothing_is_loaded_from_outside(page, text):
    for tag, attributes in page.elements:
        for name in LOADS & attributes.keys():
            assert re.match(r"#|data:image/png;base64,", attributes[name] or ""), (tag, name, attributes[name][:80])
        assert tag not in ("link", "iframe", "object", "embed", "base")
    head = text[: text.index("</head>")]
    assert "@import" not in head and "url(" not in head
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy


def test_plotly_is_there_once_and_the_file_is_of_a_sensible_size(text):
    assert text.count("plotly.js v") == 1
    assert len(text.encode()) < 8_000_000


def test_every_chart_is_one_that_plotly_accepts(page):
    assert len(page.charts) > 40
    for _, chart in page.charts:
        go.Figure(chart)


def test_every_entry_of_the_contents_leads_somewhere(page):
    targets = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert {target.removeprefix("#") for target in targets} == page.sections.keys()
    assert len(targets) >= 10


def test_the_page_says_how_wide_and_in_which_language_it_is(page):
    assert ("html", {"lang": "en"}) in page.elements
    assert any(attributes.get("name") == "viewport" for tag, attributes in page.elements if tag == "meta")
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")


def test_the_same_run_gives_the_same_file(directory, text):
    assert report.write(directory).read_text(encoding="utf-8") == text
    assert not list(directory.glob("*.part"))


def test_overlays_are_in_the_file(page, summary):
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [one["alt"] for one in images] == [figure["caption"] for figure in summary["figures"]]
    assert all(one["src"].startswith("data:image/png;base64,iVBOR") for one in images)


EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;'


def test_what_users_wrote_is_escaped_everywhere(copy):
    def spoiled(value):
        if isinstance(value, dict):
            return {key: spoiled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoiled(inner) for inner in value]
        return EVIL if value == "colour" else value

    for name in ("run.json", "summary.json"):
        content = spoiled(json.loads((copy / name).read_text()))
        if name == "run.json":
            content["config"]["prompt_template"] = content["model"]["name"] = content["model"]["stack"] = EVIL
            content["packages"] = {EVIL: EVIL}
        else:
            content["counts"][0]["reasons"] = {EVIL: 2}
            content["cautions"] = content["disagreements"] = [EVIL]
            content["findings"][0]["evidence"] = {"about": "earlier", "claim": EVIL, "evidence": EVIL}
            content["figures"][0]["caption"] = EVIL
            content["roles"][0]["role"] = EVIL
            content["functions"][0]["label"] = EVIL
        made.write_json(copy / name, content)
    page = seen(copy)
    assert page.text.count(EVIL) > 20
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert all(attributes in ({}, {"type": "application/json"}) for attributes in scripts)
    assert sum(attributes == {} for attributes in scripts) == 2  # plotly.js and ours
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert len([1 for tag, _ in page.elements if tag == "img"]) == 3
    for _, chart in page.charts:  # plotly reads a few tags in what it writes
        assert "<img" not in json.dumps([chart["layout"], [one.get("x") for one in chart["data"]]])


def test_no_template_takes_text_for_markup():
    """What is markup already is `Markup` where it is made, which is where it can be seen to be ours."""
    templates = sorted((Path(report.__file__).parent / "templates").glob("*.j2"))
    assert len(templates) >= 4
    for template in templates:
        assert not re.search(r"\bsafe\b|autoescape", template.read_text(encoding="utf-8")), template.name
    assert render.ENVIRONMENT.autoescape is True
    with pytest.raises(UndefinedError):
        render.rendered("verdicts", sentences="")


@pytest.mark.parametrize("kept", [0, 3])
def test_what_a_page_shows_is_plain(tmp_path, kept):
    """Text, numbers, lists and dictionaries, all the way down, but for verdicts and the bytes of charts."""
    view = views.report(Loaded.read(made.run_directory(tmp_path / "run", kept=kept, tasks=["colour"])))

    def plain(value, at="view"):
        if isinstance(value, dict):
            for key, inner in value.items():
                assert isinstance(key, str), at
                plain(inner, f"{at}.{key}")
        elif isinstance(value, list | tuple):
            for i, inner in enumerate(value):
                plain(inner, f"{at}[{i}]")
        else:
            known = (str, int, float, bool, type(None), Told, np.ndarray, np.generic)
            assert isinstance(value, known) and not isinstance(value, Markup), (at, type(value))

    plain(view)


# --- what is missing reads well -------------------------------------------------------------------------


SMALL = {"tasks": ["colour"], "kept": 4}


def test_a_run_that_kept_nothing_says_so(tmp_path):
    page = seen(made.run_directory(tmp_path / "run", kept=0))
    assert "Nothing could be patched" in page.text
    assert "none of the 6 examples" in page.text
    assert page.charts == []
    for name in ("heads", "words", "modules", "universal", "functions", "ablation", "behaviour"):
        assert "no example was kept" in page.sections[name].lower() or "Nothing was ablated" in page.sections[name]


def test_a_report_without_charts_carries_no_plotly(tmp_path):
    path = report.write(made.run_directory(tmp_path / "run", kept=0))
    assert path.stat().st_size < 100_000


def test_no_universal_head_reads_well(tmp_path):
    page = seen(made.run_directory(tmp_path / "run", strong=False, kept=4))
    assert "It is undecided whether any of 24 heads, read at the answer's word, stands out in all 3 tasks" in page.text
    assert "fewer than 12 examples of colour, shape and place are too few" in page.text
    assert "No head is universal in this run" in page.sections["universal"]
    assert "Nothing was ablated: no head was selected." in page.sections["ablation"]
    assert "No overlay was drawn" in page.sections["functions"]


def test_heads_of_the_papers_rule_alone_are_not_called_confirmed(tmp_path):
    path = made.run_directory(tmp_path / "run", kept=12, layers=4, noise=False, masks=False, kinds=["cross_attn-heads"])
    for task in ("colour", "shape", "place"):  # each head helps as often as it harms
        made.edit_tables(
            path, "effects", task, lambda rows: rows.assign(effect=rows["effect"] * (-1) ** made.number_of(rows))
        )
    summarise(path)
    page = seen(path)
    assert "It is undecided whether any of 16 heads" in page.text  # on average they may do something
    named = page.text.split("neither in nor out; the paper's rule names ", 1)[1].split(".\n", 1)[0]
    assert "cross_attn L1.H2" in named and "cross_attn L2.H0" in named
    assert "By the FDR-controlled rule: none; by the paper's: cross_attn L" in page.text


def test_heads_that_the_data_rule_out_are_denied_whatever_the_papers_rule_names(tmp_path):
    path = made.run_directory(tmp_path / "run", kept=12, layers=4, noise=False, masks=False, kinds=["cross_attn-heads"])
    for task in ("colour", "shape", "place"):  # half as much again as the median head, beyond doubt

        def alike(rows):
            high = (rows["layer"] == 1) & (rows["head"] == 2)
            return rows.assign(effect=np.where(high, 1.5, 1.0) + 0.001 * made.number_of(rows))

        made.edit_tables(path, "effects", task, alike)
    summarise(path)
    page = seen(path)
    assert (
        "stands out in all 3 tasks once chance is accounted for. The paper's rule names cross_attn L1.H2" in page.text
    )
    assert "this data does not confirm it" in page.text


def test_no_noise_reads_well(tmp_path):
    page = seen(made.run_directory(tmp_path / "run", noise=False, **SMALL))
    assert "not asked for Gaussian noise" in page.sections["noise"]
    assert "Spearman" not in page.text[: page.text.index("What was tested")]
    assert "under Gaussian noise" not in page.sections["heads"]


def test_no_masks_reads_well(tmp_path):
    page = seen(made.run_directory(tmp_path / "run", masks=False, **SMALL))
    assert "no masks" in page.sections["functions"]
    columns = next(rows[0] for caption, rows in page.tables.items() if caption.startswith("All heads"))
    assert "outlier" in columns and "inside" not in columns
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)


def test_one_task_reads_well(tmp_path):
    page = seen(made.run_directory(tmp_path / "run", corrupt=["image"], **SMALL))
    assert "Only one task was run" in page.sections["universal"]
    assert "in the one task that was run" in page.text
    assert "word replaced" not in page.sections["behaviour"]


def test_modules_alone_read_well(tmp_path):
    page = seen(made.run_directory(tmp_path / "run", kinds=["mlp"], **SMALL))
    assert "No head was patched" in page.sections["heads"]
    assert "no head can be called universal" in page.text
    assert any(title.startswith("colour, at") for title, _ in page.charts)


def test_heads_alone_read_well(tmp_path):
    page = seen(made.run_directory(tmp_path / "run", kinds=["attn-heads"], **SMALL))
    assert "No whole module was patched" in page.sections["modules"]


def test_a_summary_with_nothing_in_it_still_makes_a_page(copy):
    made.write_json(copy / "summary.json", {})
    page = seen(copy)
    assert "No example was seen" in page.text
    assert page.charts == []


def test_nan_and_null_are_dashes(copy):
    summary = json.loads((copy / "summary.json").read_text())
    summary["behaviour"][0] |= {"flipped": float("nan"), "corrupt_logit_diff": None}
    summary["heads"][0] |= {"p": None, "q": float("nan"), "ci_low": None}
    made.write_json(copy / "summary.json", summary)
    page = seen(copy)
    row = page.table("Mean logit difference")[0]
    assert row["answers that flip"] == row["corrupt"] == "\N{EN DASH}"
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)


# --- published heads, command, pictures, errors ---------------------------------------------------------


def test_published_heads_stand_beside_ours_for_the_papers_checkpoints(tmp_path):
    blip = {"kinds": ["cross_attn-heads"], "tasks": ["colour"], "corrupt": ["image"], "kept": 2, "noise": False}
    path = made.run_directory(tmp_path / "run", model="Salesforce/blip-vqa-base", layers=6, heads=12, **blip)
    rows = seen(path).table("Heads named by Golovanevsky")
    assert [row["published head"] for row in rows] == ["cross_attn L5.H3", "cross_attn L3.H0", "cross_attn L0.H11"]
    assert [row["function there"] for row in rows] == ["object suppression", "object detection", "outlier suppression"]
    assert all(
        re.fullmatch(r"image: \d+ of 72", row["rank by mean |effect| at the answer's word here"]) for row in rows
    )


def test_published_heads_are_not_named_for_other_checkpoints(page):
    assert not any(caption.startswith("Heads named by") for caption in page.tables)


def test_pictures_that_are_missing_elsewhere_or_no_png_are_named(copy, tmp_path):
    (tmp_path / "secret.png").write_bytes((copy / "figures" / "head-0.png").read_bytes())
    (copy / "figures" / "text.png").write_text("no picture")
    figures = [{"file": name, "caption": name} for name in ("figures/gone.png", "../secret.png", "figures/text.png")]
    made.edit_summary(copy, figures=figures)
    page = seen(copy)
    assert not [1 for tag, _ in page.elements if tag == "img"]
    assert "figures/gone.png, ../secret.png and figures/text.png" in page.sections["functions"]


def test_pictures_stop_before_the_file_grows_too_large(copy, monkeypatch):
    size = (copy / "figures" / "head-0.png").stat().st_size
    monkeypatch.setattr("hooked_vlm.notice.report.views.PICTURES", 2 * size + 1)
    page = seen(copy)
    assert sum(tag == "img" for tag, _ in page.elements) == 2
    assert "1 more picture" in page.sections["functions"]


def test_the_command_repeats_the_run(page):
    command = (
        "hooked-vlm notice zoo:blip-shapes --task colour --task shape --task place --corrupt both --select-at answer"
    )
    assert f"{command} --examples 14 --seed 0 --noise --bootstrap 100 --out DIR" in page.text


@pytest.mark.parametrize("name", ["run.json", "summary.json"])
def test_a_directory_without_a_file_of_a_run_is_refused(copy, name):
    (copy / name).unlink()
    if name == "run.json":
        (copy / "manifest.jsonl").unlink()  # which holds it too
    with pytest.raises(RunDirectoryError, match=name):
        report.write(copy)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_summary_is_refused_by_name(copy, content):
    (copy / "summary.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"summary\.json"):
        report.write(copy)


def test_a_place_that_is_no_directory_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="no directory"):
        report.write(tmp_path / "nowhere")


def test_a_report_that_cannot_be_written_is_reported(copy):
    (copy / "report.html.part").mkdir()
    with pytest.raises(RunDirectoryError, match=r"report\.html cannot be written"):
        report.write(copy)
