"""A head's effect is told with the place it was read at, and a head that is strong elsewhere with that place."""

from __future__ import annotations

import io
import json
import re

import pandas as pd
import pytest
from rich.console import Console

from hooked_vlm.notice import report, summary, terminal
from hooked_vlm.notice.report.compare import compare
from tests.notice.made import edit_tables, number_of, run_directory
from tests.notice.report.parsed import Page

SMALL = {"kept": 5, "dropped": 1, "kinds": ["attn-heads"], "layers": 2, "heads": 3, "noise": True, "strong": False}
AT = "at the answer's word"
ELSEWHERE = {
    "subject": "at the subject",
    "last": "at the last token",
    "every position": "at every position at once",
}


@pytest.fixture(scope="module", params=["subject", "last", "every position"])
def place(request, tmp_path_factory):
    """A run in which L1.H2 moves the answer by 5 at one role, and by nothing where heads are read; and that role."""
    path = run_directory(tmp_path_factory.mktemp("runs") / "run", tasks=("shape",), **SMALL)

    def moved(rows):
        i, head = number_of(rows), (rows["layer"] == 1) & (rows["head"] == 2)
        rows.loc[head, "effect"] = 0.001 * i
        rows.loc[head & (rows["role"] == request.param), "effect"] = 5.0 + 0.1 * i
        return rows

    edit_tables(path, "effects", "shape", moved)
    summary.summarise(path)
    report.write(path)
    return path, ELSEWHERE[request.param]


def page_of(path):
    return Page((path / "report.html").read_text(encoding="utf-8"))


def printed(path):
    shown = io.StringIO()
    terminal.show_ending(Console(file=shown, width=200), path)
    return shown.getvalue()


def maps(page):
    return [chart for _, chart in page.charts if chart["layout"]["xaxis"].get("title", {}).get("text") == "head"]


def test_headline_and_terminal_name_where_heads_are_read_and_where_another_does_more(place):
    path, elsewhere = place
    text = page_of(path).text
    for told in (text[: text.index("What was tested")], printed(path)):
        told = told.replace("\N{NO-BREAK SPACE}", " ")
        assert re.search(rf"[Ss]trongest [^.]*{AT}", told)
        assert re.search(
            rf"A{elsewhere[1:]}, more is done by attn L1.H2 in shape \(5\.20 \[[^]]+\]; 0\.00 {AT}\)", told
        )


def test_a_head_that_is_strong_elsewhere_stands_in_no_map_without_saying_where(place, tmp_path):
    path, elsewhere = place
    other = run_directory(tmp_path / "other", tasks=("shape",), **SMALL)
    for page in (page_of(path), Page(compare([path, other], tmp_path / "both.html").read_text(encoding="utf-8"))):
        (first, *_) = maps(page)
        data = first["data"][0]
        assert data["text"][1][2] == "0.00 \N{BLACK RIGHT-POINTING SMALL TRIANGLE}"
        assert re.search(rf"^5\.20 \[.*\] {elsewhere}$", data["customdata"][1][2][-1])
        assert re.search(rf"\N{{BLACK RIGHT-POINTING SMALL TRIANGLE}} L1\.H2 5\.20 \[[^]]+\] {elsewhere}\.", page.text)
        rows = page.table("Strongest heads")
        assert any(row["head"] == "attn L1.H2" and elsewhere in row["mean effect, and where"] for row in rows)
        assert all(row["where the run reads heads"].endswith(AT) for row in rows)


def test_no_effect_is_printed_without_its_place(place, tmp_path):
    path, _ = place
    other = run_directory(tmp_path / "other", tasks=("shape",), **(SMALL | {"kinds": ["attn-heads", "mlp"]}))
    report.write(other)
    both = Page(compare([path, other], tmp_path / "both.html").read_text(encoding="utf-8"))
    for page in (page_of(path), page_of(other), both):
        for title, chart in page.charts:
            columns = chart["layout"]["xaxis"].get("ticktext", [])
            of_an_effect = chart["layout"]["yaxis"].get("title", {}).get("text", "")
            for one in chart["data"]:
                hovered = one["hovertemplate"] + json.dumps(one.get("customdata", ""))
                names_roles = "special" in columns or one["type"] == "bar" or "correlation" in hovered
                assert names_roles or " at " in hovered, (title, of_an_effect, hovered[:200])
        for caption, rows in page.tables.items():
            for heading in rows[0] if rows else ():
                if "effect" in heading and "where" not in heading:
                    assert AT in heading, (caption, heading)
    assert re.search(rf"run, {AT} \(±", both.sections["maps"]) or f"(run), {AT}" in both.sections["maps"]


@pytest.mark.parametrize("at", ["answer", "last", "every position"])
def test_the_place_is_that_at_which_the_run_reads_heads(at, tmp_path):
    path = run_directory(tmp_path / "run", tasks=("shape",), **SMALL)
    config = json.loads((path / "run.json").read_text())["config"] | {"select_at": at}
    found = summary.summarise(path, config=config)
    report.write(path)
    words = ELSEWHERE.get(at, AT)
    assert {row["at"] for row in found["heads"]} == {at}
    assert f"strongest single head {words} is" in page_of(path).text and f"corruption, {words}: " in printed(path)


def test_what_a_head_does_elsewhere_can_be_recomputed(place):
    path, _ = place
    found = json.loads((path / "summary.json").read_text())["heads"]
    rows = pd.concat([pd.read_parquet(file) for file in (path / "effects").glob("*.parquet")])
    rows = rows[rows["head"] >= 0]
    keys = ["corrupt", "task", "kind", "layer", "head"]
    each = rows.groupby([*keys, "role", "example"])["effect"].mean()
    size = each.abs().groupby([*keys, "role"]).mean()
    mean = each.groupby([*keys, "role"]).mean()
    for row in found:
        of_head = size[tuple(row[key] for key in keys)]
        assert row["best_abs"] == pytest.approx(of_head.max())
        assert row["best"] == pytest.approx(mean[(*(row[key] for key in keys), row["best_at"])])
        assert row["best_low"] < row["best"] < row["best_high"]
