"""A summary holds numbers and names; what is said of them is made in `report.text`, and is the same in every place."""

from __future__ import annotations

import ast
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from hooked_vlm import notice
from hooked_vlm.analysis import head_labels, image_attention
from hooked_vlm.analysis.heads import HEAD_KINDS, MODALITIES, MULTIMODAL, RULES
from hooked_vlm.notice import report, terminal
from hooked_vlm.notice.claims import Alike, Concentrated, Detected, Estimate, Evidence, Harmed, Selected, Verdict
from hooked_vlm.notice.report.compare import compare
from hooked_vlm.notice.report.text.verdicts import _SENTENCES, HEADLINES, told
from hooked_vlm.notice.schema import Selection
from hooked_vlm.notice.vocabulary import CORRUPT, CORRUPTIONS, KINDS, ROLES
from tests.notice.made import edit_summary, run_directory
from tests.notice.report.parsed import Page

TASKS = ("colour", "place")
LABELS = {*head_labels.NAMED.values(), head_labels.UNDECIDED, head_labels.NONE, *head_labels.LACKS, ""}
NAMES = {
    *CORRUPTIONS, *KINDS, *ROLES, *RULES, *MODALITIES.values(), MULTIMODAL, *LABELS, *image_attention.SCORES,
    "universal", "strongest", "concentration", "detection", "harm", "noise",
}  # fmt: skip
GIVEN = {"config", "model", "figures", "noted", "reasons", "lacking"}  # what a user named, and why rows went


def strings(value: Any, at: str = "") -> list[tuple[str, str]]:
    """Every string of a plain value, with where it stands; what was given is left out."""
    if isinstance(value, dict):
        return [one for key, inner in value.items() if key not in GIVEN for one in strings(inner, f"{at}.{key}")]
    if isinstance(value, list):
        return [one for inner in value for one in strings(inner, at)]
    return [(at, value)] if isinstance(value, str) else []


@pytest.mark.parametrize("strong", [True, False])
@pytest.mark.parametrize("kept", [0, 13])
def test_every_string_of_a_summary_is_a_name(kept: int, strong: bool, tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", tasks=TASKS, kept=kept, strong=strong, layers=2, heads=3)
    found = strings(json.loads((path / "summary.json").read_text()))
    assert [one for one in found if one[1] not in NAMES | set(TASKS)] == []
    assert kept == 0 or len(found) > 100


def test_no_module_outside_of_text_says_what_was_found() -> None:
    """Of the modules between the parquet files and the report: text stands in docstrings and errors alone."""
    folder = Path(notice.__file__).parent
    names = "findings claims places selections tables run_tables schema stored summary vocabulary"
    for path in (folder / f"{name}.py" for name in names.split()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        apart = [node for node in ast.walk(tree) if isinstance(node, ast.Raise | ast.Expr)]
        inside = {id(inner) for node in apart for inner in ast.walk(node) if isinstance(node, ast.Raise)}
        inside |= {id(node.value) for node in apart if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                assert len(node.value.split()) < 5, (path.name, node.lineno, node.value)


# --- one verdict, everywhere ------------------------------------------------------------------------

number = st.floats(-9, 9).map(lambda value: round(value, 3))
holds = st.sampled_from([True, False, None])
estimate = st.builds(Estimate, number, st.none() | number, st.none() | number, st.integers(1, 99))
task = st.sampled_from(TASKS)
kind = st.sampled_from(HEAD_KINDS)
head = st.tuples(kind, st.integers(0, 3), st.integers(0, 3))
share = st.floats(0, 1)
rule = st.sampled_from([*RULES])


@st.composite
def universal(draw: st.DrawFn) -> dict[str, Any]:
    of, layer, which = draw(head)
    modality = draw(st.sampled_from(["vision-only", "text-only", "multimodal"]))
    return {"kind": of, "layer": layer, "head": which, "rule": draw(rule), "modality": modality, "tasks": list(TASKS)}


@st.composite
def function(draw: st.DrawFn) -> dict[str, Any]:
    of, layer, which = draw(head)
    label = draw(st.sampled_from([head_labels.OBJECT, head_labels.LOOKS]))
    scores = ("lift", "rival_lift", "grounding", "cost_asked", "cost_rival", "cost_gap")
    about = {"task": draw(task), "kind": of, "layer": layer, "head": which, "label": label}
    return about | {name: draw(st.none() | number) for name in scores}


@st.composite
def verdict(draw: st.DrawFn) -> Verdict:
    """A verdict of any kind of claim, whatever its numbers are."""
    evidence = draw(st.sampled_from([Concentrated, Detected, Selected, Harmed, Alike]))
    if evidence is Concentrated:
        some = [draw(estimate) for _ in range(3)] if draw(st.booleans()) else []
        return Verdict(Concentrated(draw(kind), ["answer", "subject"], *some), draw(holds))
    if evidence is Detected:
        parts = {each: draw(holds) for each in TASKS}
        tested = {each: draw(st.integers(0, 3)) for each in TASKS}
        rows = draw(st.lists(function(), max_size=3))
        return Verdict(Detected(draw(st.booleans()), draw(st.booleans()), rows, tested), draw(holds), parts=parts)
    if evidence is Selected:
        n, rows = draw(st.integers(0, 9)), draw(st.lists(universal(), min_size=1, max_size=6))
        few = draw(st.lists(task, min_size=1, unique=True))
        answer = True if any(row["rule"] == "fdr" for row in rows) else draw(st.sampled_from([False, None]))
        some = {"open": draw(st.lists(head, max_size=3)), "partly": draw(st.lists(universal(), max_size=2))}
        return Verdict(Selected(rows, n, 2, "answer", few, 12, draw(st.booleans()), **some), answer)
    parts = {each: draw(holds) for each in TASKS}
    if evidence is Alike:
        row = {"modality": "image", "kind": "attn-heads", "ci_low": 0.1, "ci_high": 0.9, "top_k": 1, "top_overlap": 1.0}
        rows = [{"task": each, "spearman": draw(share), **row} for each in TASKS[: draw(st.integers(0, 2))]]
        return Verdict(Alike(rows, 0.5, "answer"), draw(holds), None, parts)
    columns = "accuracy_full accuracy accuracy_random_mean logit_diff_full logit_diff logit_diff_random_mean harm_low"
    rows = [
        {"task": each, "draws": 3, "n": 9, "harm": draw(st.none() | number), "p": draw(share), "harm_high": 2.0}
        | {column: draw(share) for column in columns.split()}
        | draw(
            st.sampled_from([{}, {"chosen": ["L0.H1"]}, {"chosen": ["L0.H1", "L0.H1, L1.H0"]}])
        )  # older rows lack it
        for each in TASKS
    ]
    subject = Selection("strongest", draw(st.sampled_from(CORRUPT)), n=draw(st.integers(1, 3)))
    return Verdict(Harmed(rows, 3, draw(st.none() | share)), draw(holds), subject, parts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    small = {"tasks": TASKS, "kept": 2, "layers": 1, "heads": 2, "noise": False, "kinds": ("attn-heads",)}
    return [run_directory(root / name, **small) for name in ("first", "second")]


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(verdict(), min_size=1, max_size=6, unique_by=lambda one: told(one).claim))
def test_a_verdict_is_worded_alike_in_every_place(runs: list[Path], tmp_path: Path, verdicts: list[Verdict]) -> None:
    path, other = runs
    edit_summary(path, findings=[asdict(one) for one in verdicts])
    words = [told(one) for one in verdicts]
    shown, printed = notice.verdicts(path), io.StringIO()
    terminal.show_ending(Console(file=printed, width=400), path)
    first = Page(report.write(path).read_text(encoding="utf-8"))
    both = Page(compare([path, other], tmp_path / "both.html").read_text(encoding="utf-8"))
    assert list(shown) == words
    screen = first.text[: first.text.index("What was tested")]
    for about in HEADLINES:
        said = [one.told for one in words if one.about == about and one.told]
        assert said[:1] == [sentence for sentence in said if sentence in screen and sentence in shown.sentences][:1]
    compared = {row["claim"]: row for row in both.table("Whether a claim holds")}
    for one in words:
        assert one.claim in first.sections["findings"] and one.evidence in first.sections["findings"]
        assert one.word in compared[one.claim].values() and one.evidence in both.sections["findings"]
        (line,) = (
            line.strip() for line in printed.getvalue().splitlines() if line.strip().startswith(one.claim + "  ")
        )
        assert line.endswith(one.word)
        assert "nan" not in one.evidence + one.told and "None" not in one.evidence.replace("None of", "")


def test_every_kind_of_evidence_has_its_sentences() -> None:

    assert set(_SENTENCES) == set(get_args(get_args(Evidence)[0]))
