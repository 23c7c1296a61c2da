"""One verdict, in every place that tells it: the report's first screen and list, terminal, notebook and comparison.

The evidence is drawn: how much worse the chosen heads are than random ones in each task, and how many random sets there
are. Verdicts are made from parquet files, as for a real run.
"""

from __future__ import annotations

import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from hooked_vlm import notice
from hooked_vlm.analysis.ablation import FULL, SELECTED
from hooked_vlm.analysis.decided import every
from hooked_vlm.notice import report, summary, terminal
from hooked_vlm.notice.claims import Harmed, Verdict, corrected, of_parts
from hooked_vlm.notice.report.compare import compare
from hooked_vlm.notice.report.text.verdicts import told
from tests.notice.made import run_directory, write_tables
from tests.notice.report.parsed import Page

SMALL = {"kinds": ["attn-heads"], "corrupt": ["image"], "layers": 2, "heads": 3, "dropped": 0}
TASKS = ("colour", "place")
SELECTION = "strongest 3 image"
CLAIM = re.compile(r"^Ablating the .*strongest.*heads")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run whose ablation is rewritten for each draw, and another to compare with."""
    root = tmp_path_factory.mktemp("runs")
    first = run_directory(root / "run", tasks=TASKS, kept=6, strong=False, noise=False, masks=False, **SMALL)
    return first, shutil.copytree(first, root / "other")


def write_ablation(path, harms, draws, seed):
    """Ablation tables: in each task the chosen heads cost so much more than random ones do, on average."""
    draw = np.random.default_rng(seed)
    for task, harm in zip(TASKS, harms, strict=True):
        tables = {}
        for number in range(6):
            key = {"task": task, "example": f"{task}-{number}", "group": "g", "overlap": 0}
            rows = [{**key, "selection": FULL, "draw": SELECTED, "n_heads": 0, "correct": True, "logit_diff": 6.0}]
            for which in range(SELECTED, draws):
                left = 5.0 - (harm if which == SELECTED else 0.0) + draw.normal(0, 0.4)
                rows.append(
                    {
                        **key,
                        "selection": SELECTION,
                        "draw": which,
                        "n_heads": 3,
                        "correct": left > 0,
                        "logit_diff": left,
                    }
                )
            tables[number] = pd.DataFrame(rows)
        write_tables(path, "ablation", task, tables)


def of_headline(text):
    """The verdict that the report's first screen gives on the ablated heads."""
    first = text[: text.index("What was tested")]
    (told,) = re.findall(r"[^.:]*[Rr]emoving the 3 strongest heads[^.:;]*", first)
    if "undecided whether" in told or "may hurt" in told:
        return "undecided"
    return "does not hold" if " not " in told else "holds"


def of_list(source):
    found = re.findall(r'class="verdict \w+">([^<]+)</span><div><p><strong>([^<]+)', source)
    return {claim: word for word, claim in found}


def of_comparison(path, other, out):
    rows = Page(compare([path, other], out).read_text(encoding="utf-8")).table("Whether a claim holds")
    return {row["claim"]: row[next(name for name in row if "(run)" in name)] for row in rows}


def of_terminal(path, claims):
    shown = io.StringIO()
    terminal.show_ending(Console(file=shown, width=300), path)
    lines = [line.strip() for line in shown.getvalue().splitlines()]
    return {claim: line.removeprefix(claim).strip() for claim in claims for line in lines if line.startswith(claim)}


harm = st.sampled_from([-3.0, -0.3, 0.0, 0.3, 3.0])


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(harms=(-0.3, 3.0), draws=3, seed=0)  # LLaVA: a headline said "may hurt more", a list "no"
@example(harms=(3.0, 3.0), draws=20, seed=1)
@example(harms=(3.0, -3.0), draws=20, seed=2)
@given(st.tuples(harm, harm), st.sampled_from([0, 1, 3, 18, 19, 25]), st.integers(0, 99))
def test_every_place_gives_the_same_verdict(runs, tmp_path_factory, harms, draws, seed):
    path, other = runs
    write_ablation(path, harms, draws, seed)
    found = summary.summarise(path)["findings"]
    source = report.write(path).read_text(encoding="utf-8")
    words = {True: "holds", False: "does not hold", None: "undecided"}
    verdicts = {told(verdict).claim: words[verdict.holds] for verdict in found}
    (of_heads,) = [word for claim, word in verdicts.items() if CLAIM.match(claim)]
    compared = of_comparison(path, other, tmp_path_factory.mktemp("out") / "both.html")
    assert of_list(source) == compared == verdicts
    if draws:
        assert of_headline(Page(source).text) == of_heads
    if draws < 19:
        assert of_heads == "undecided"  # no p below 0.05 can be had
    assert of_terminal(path, verdicts) == verdicts
    shown = notice.verdicts(path)
    assert {verdict.claim: verdict.word for verdict in shown} == verdicts
    assert " ".join(shown.sentences) in Page(source).text  # the first screen, word for word
    assert all(claim in shown._repr_html_() and claim in repr(shown) for claim in verdicts)


@settings(max_examples=3)
@example(harms=(0.0, 3.0), draws=20, seed=0)
@given(st.tuples(harm, harm), st.integers(19, 25), st.integers(0, 99))
def test_what_an_interval_spans_is_undecided_and_not_refuted(runs, harms, draws, seed):
    path, _ = runs
    write_ablation(path, harms, draws, seed)
    made = summary.summarise(path)
    wanted = []
    for row in made["ablation"]:
        spans = row["harm_low"] <= 0 <= row["harm_high"]
        wanted.append(None if spans or (row["harm_low"] > 0 and row["p"] > 0.05) else row["harm_low"] > 0)
    (found,) = [verdict for verdict in made["findings"] if CLAIM.match(told(verdict).claim)]
    decided = False if False in wanted else None if None in wanted else True
    assert found.holds is (decided if found.p is None or found.p_adjusted <= 0.05 else None)
    if decided is True:
        assert found.p == max(max(row["p"], row["harm_p"]) for row in made["ablation"])


p_value = st.floats(0, 1)
claim = st.builds(
    Verdict,
    st.just(Harmed([])),
    st.sampled_from([True, False, None]),
    p=st.none() | p_value,
)


@given(st.lists(claim, max_size=8), st.sampled_from([0.01, 0.05, 0.2]), st.randoms())
def test_claims_are_corrected_together_by_holms_method(verdicts, alpha, order):
    found = corrected(verdicts, alpha)
    p = sorted(one.p for one in verdicts if one.p is not None)
    for before, after in zip(verdicts, found, strict=True):
        if before.p is None:
            assert after == before
            continue
        largest = max((len(p) - i) * each for i, each in enumerate(p) if each <= before.p)
        assert after.p == before.p and after.p_adjusted == pytest.approx(min(1.0, largest))
        assert after.holds is (before.holds if after.p_adjusted <= alpha else None)
    shuffled = order.sample(verdicts, len(verdicts))
    key = repr
    assert sorted(map(key, corrected(shuffled, alpha))) == sorted(map(key, found))
    assert corrected(found, alpha) == found  # once decided, it stays


@given(st.dictionaries(st.sampled_from("abcde"), st.tuples(st.sampled_from([True, False, None]), st.none() | p_value)))
def test_a_claim_of_parts_is_as_sure_as_its_parts_allow(parts):
    holds = {name: each for name, (each, _) in parts.items()}
    p = {name: each for name, (_, each) in parts.items()}
    found = of_parts(every(holds.values()), holds, p)
    if every(holds.values()) is False:  # the surest denial, among as many as could have been it
        denied = [value for name, value in p.items() if holds[name] is False and value is not None]
        assert found == (min(1.0, len(parts) * min(denied)) if denied else None)
    elif parts and None not in p.values():
        assert found == max(p.values())
    else:
        assert found is None  # a part that nothing tested leaves the whole without a p-value


def test_what_fails_the_correction_is_undecided_and_says_its_p(tmp_path):
    verdicts = corrected([Verdict(Harmed([]), True, p=0.03), Verdict(Harmed([]), False, p=0.001)], 0.05)
    assert [one.holds for one in verdicts] == [True, False]
    verdicts = corrected([*verdicts, Verdict(Harmed([]), True, p=0.02)], 0.05)
    assert [one.holds for one in verdicts] == [True, False, True]
    verdicts = corrected([Verdict(Harmed([]), True, p=0.03), Verdict(Harmed([]), True, p=0.04)], 0.05)
    assert [one.holds for one in verdicts] == [None, None]
    assert told(verdicts[0]).evidence.endswith(" p = 0.03, among all claims of the run 0.06 (Holm).")


def test_a_rule_that_can_select_nothing_refutes_nothing(tmp_path):
    """With fewer than twelve examples the FDR-controlled rule selects no head, whatever there is."""
    bare = {"tasks": ("colour",), "noise": False, "masks": False, "strong": False, **SMALL}
    few, enough = (run_directory(tmp_path / str(n), kept=n, **bare) for n in (11, 12))
    for path, holds in ((few, None), (enough, False)):
        findings = json.loads((path / "summary.json").read_text())["findings"]
        (found,) = [row for row in findings if row["evidence"]["about"] == "universal"]
        assert found["holds"] is holds
    text = Page(report.write(few).read_text(encoding="utf-8")).text
    assert "It is undecided whether any of 6 heads" in text[: text.index("What was tested")]


def test_a_notebook_says_what_the_first_screen_says_of_a_run_that_kept_nothing(tmp_path):
    path = run_directory(tmp_path / "run", kept=0)
    (sentence,) = notice.verdicts(path).sentences
    assert "none of the 6 examples could be kept" in sentence
    assert sentence in Page(report.write(path).read_text(encoding="utf-8")).text
