"""Every number of summary.json can be recomputed from the parquet files: here it is, with pandas."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hooked_vlm.analysis.image_attention import SCORES
from hooked_vlm.analysis.universal_heads import Rule, disagreements, select_matrices
from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice import report, summary
from hooked_vlm.notice.directory import RunDirectory
from hooked_vlm.notice.report import text
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text.verdicts import told
from hooked_vlm.notice.stored import plain
from tests.notice.made import edit_tables, number_of, run_directory

CLOSE = {"rel": 1e-5, "abs": 1e-6}  # effects are kept in single precision while they are gathered
FILES = ("examples", "effects", "attention", "ablation")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return run_directory(tmp_path_factory.mktemp("run"), kept=14)


@pytest.fixture(scope="module")
def made(directory):
    before = json.loads((directory / "summary.json").read_text())
    found = summary.summarise(directory)
    assert found["figures"] == before["figures"]  # what is drawn stays, and the rest is made anew
    return found


@pytest.fixture(scope="module")
def frames(directory):
    return {name: read(directory, name) for name in FILES}


def read(directory, name):
    return pd.concat([pd.read_parquet(path) for path in sorted((directory / name).glob("*.parquet"))])


def cautions_of(path):
    return text.cautions_of(Loaded.read(path))


def records(made, name, *keys):
    return {tuple(row[key] for key in keys): row for row in made[name]}


# --- recomputed -------------------------------------------------------------------------------------


def test_counts_can_be_recomputed(made, frames):
    for row in made["counts"]:
        rows = frames["examples"].query("task == @row['task']")
        assert (row["seen"], row["kept"]) == (len(rows), rows["kept"].sum())
        assert row["accuracy"] == pytest.approx((rows["generated"] == rows["answer"]).mean())
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert row["reasons"] == rows[~rows["kept"]]["reason"].value_counts().to_dict()


def test_behaviour_can_be_recomputed(made, frames):
    kept = frames["examples"].query("kept")
    assert len(made["behaviour"]) == 3 * 4
    for row in made["behaviour"]:
        rows = kept[kept["task"] == row["task"]]
        after = rows[f"{row['corrupt']}_logit_diff"].dropna()
        assert row["n"] == len(after) and row["corrupt_logit_diff"] == pytest.approx(after.mean(), **CLOSE)
        assert row["clean_logit_diff"] == pytest.approx(rows["clean_logit_diff"].mean(), **CLOSE)
        assert row["flipped"] == pytest.approx((after < 0).mean())


def test_every_head_can_be_recomputed(made, frames):
    rows = frames["effects"].query("role == 'answer' and head >= 0")
    keys = ["corrupt", "task", "kind", "layer", "head"]
    found = records(made, "heads", *keys)
    groups = rows.groupby(keys)
    assert len(found) == len(groups) == 4 * 3 * 2 * 12
    sizes = groups["effect"].apply(lambda each: each.abs().mean())
    over_heads = sizes.groupby(level=["corrupt", "task", "kind"])
    threshold = over_heads.mean() + 2 * over_heads.std()
    for key, each in groups:
        row = found[key]
        assert row["n"] == len(each) and row["mean"] == pytest.approx(each["effect"].mean(), **CLOSE)
        assert row["mean_abs"] == pytest.approx(sizes[key], **CLOSE)
        assert row["sd"] == pytest.approx(each["effect"].std(), **CLOSE)
        assert row["restoration"] == pytest.approx(each["restoration"].mean(), **CLOSE)
        assert row["normalized"] == pytest.approx(each["normalized"].median(), **CLOSE)
        assert row["ci_low"] < row["mean"] < row["ci_high"]
        assert row["abs_low"] < row["mean_abs"] < row["abs_high"]
        assert row["threshold"] == pytest.approx(threshold[key[:3]], **CLOSE)
        assert row["paper"] == (row["mean_abs"] > row["threshold"])
        assert row["ratio"] == pytest.approx(sizes[key] / over_heads.median()[key[:3]], **CLOSE)
        span = frames["examples"].query("kept and task == @row['task']")
        span = (span["clean_logit_diff"] - span[f"{row['corrupt']}_logit_diff"]).abs().mean()
        assert row["span"] == pytest.approx(span, **CLOSE)
        assert row["se"] == pytest.approx(each["effect"].sem(), **CLOSE)


def test_p_values_and_q_values_can_be_recomputed(made, frames):
    found = pd.DataFrame(made["heads"])
    rows = frames["effects"].query("role == 'answer' and head >= 0 and corrupt == 'text' and kind == 'attn-heads'")
    ours = found.query("corrupt == 'text' and kind == 'attn-heads'").set_index(["task", "layer", "head"])
    for key, each in rows[rows["task"] == "colour"].groupby(["task", "layer", "head"]):
        effect = each["effect"].to_numpy()
        flipped = stats.permutation_test(
            (effect,), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=20000
        ).pvalue
        drawn, seen = studentised(effect), effect.mean() / stats.sem(effect)
        resampled = 2 * min((drawn <= seen).mean(), (drawn >= seen).mean())
        assert ours.loc[key, "p"] == pytest.approx(min(max(flipped, resampled), 1), abs=0.04)
        halves = [half["effect"] for _, half in each.groupby("group")]  # two values: it has to act in both
        one_sign = len({np.sign(half.mean()) for half in halves}) == 1
        in_each = [stats.permutation_test((half,), np.sum, permutation_type="samples").pvalue for half in halves]
        assert ours.loc[key, "p_each"] == pytest.approx(max(in_each) if one_sign else 1.0, abs=1e-6)
    assert ours["q"].to_numpy() == pytest.approx(stats.false_discovery_control(ours["p"]))
    largest = ours.groupby(["layer", "head"])["p"].max()
    assert ours.loc["colour", "p_all"].to_numpy() == pytest.approx(largest.to_numpy())
    second = ours.groupby(["layer", "head"])["p"].apply(lambda each: each.nlargest(2).min())
    rivals = [(second <= claim).sum() for claim in largest]
    assert ours.loc["colour", "q_all"].to_numpy() == pytest.approx(np.minimum(1, largest.to_numpy() * rivals))


def studentised(effect):
    """(mean in a resample - mean) / its standard error there."""
    drawn = effect[np.random.default_rng(1).integers(0, len(effect), (20000, len(effect)))]
    return (drawn.mean(1) - effect.mean()) / (drawn.std(1, ddof=1) / len(effect) ** 0.5)


def test_bootstrap_intervals_can_be_recomputed(made, frames):
    rows = frames["effects"].query(
        "role == 'answer' and kind == 'cross_attn-heads' and corrupt == 'image' and task == 'shape' and layer == 1"
    )
    found = records(made, "heads", "corrupt", "task", "kind", "layer", "head")
    for head, each in rows.groupby("head"):
        effect = each["effect"].to_numpy()
        mean, se = effect.mean(), stats.sem(effect)
        reach = stats.t.ppf(0.975, len(effect) - 1)
        above, below = np.percentile(studentised(effect), [2.5, 97.5])
        low, high = mean - max(reach, below) * se, mean + max(reach, -above) * se  # what both methods grant
        ours = found["image", "shape", "cross_attn-heads", 1, head]
        assert ours["ci_low"] == pytest.approx(low, abs=0.6 * se) and ours["ci_high"] == pytest.approx(
            high, abs=0.6 * se
        )
        assert ours["ci_low"] <= mean - reach * se + 1e-6 and ours["ci_high"] >= mean + reach * se - 1e-6


def test_every_role_can_be_recomputed(made, frames):
    rows = frames["effects"].assign(size=frames["effects"]["effect"].abs())
    keys = ["corrupt", "task", "kind", "layer", "role"]
    per_example = rows.groupby([*keys, "example"])[["effect", "size"]].mean()
    expected = per_example.groupby(level=keys).agg(["mean", "size"])
    found = records(made, "roles", *keys)
    assert len(found) == len(expected)
    for key, row in found.items():
        assert row["mean"] == pytest.approx(expected.loc[key, ("effect", "mean")], **CLOSE)
        assert row["mean_abs"] == pytest.approx(expected.loc[key, ("size", "mean")], **CLOSE)
        assert row["n"] == expected.loc[key, ("size", "size")]


def test_universal_heads_are_those_selected_in_every_task(made):
    heads = pd.DataFrame(made["heads"])
    for rule, column in (("paper", "paper"), ("fdr", "fdr")):
        rows = heads[heads["corrupt"].isin(["image", "text"])]
        everywhere = rows.groupby(["kind", "layer", "head", "corrupt"])[column].all()
        expected = {key[:3] for key, value in everywhere.items() if value}
        found = [row for row in made["universal"] if row["rule"] == rule]
        assert {(row["kind"], row["layer"], row["head"]) for row in found} == expected
        assert expected
        for row in found:
            where = [c for c in ("image", "text") if everywhere[row["kind"], row["layer"], row["head"], c]]
            names = {"image": "vision-only", "text": "text-only"}
            assert row["modality"] == (names[where[0]] if len(where) == 1 else "multimodal")


def test_every_function_can_be_recomputed(made, frames):
    found = records(made, "functions", "kind", "layer", "head")
    groups = frames["attention"].groupby(["kind", "layer", "head"])
    assert len(found) == len(groups)
    for key, each in groups:
        row = found[key]
        for score in SCORES:
            assert row[score] == pytest.approx(each[score].mean(), **CLOSE)
        assert row["n"] == len(each) and row["score"] == row[row["scored"]]
    assert {row["label"] for row in made["functions"]} >= {"object detection", "none"}


def test_functions_of_each_task_can_be_recomputed(made, frames):
    found = records(made, "functions_by_task", "task", "kind", "layer", "head")
    groups = frames["attention"].groupby(["task", "kind", "layer", "head"])
    assert set(found) == set(groups.groups)
    for key, each in groups:
        assert found[key]["lift"] == pytest.approx(each["lift"].mean(), **CLOSE) and found[key]["n"] == len(each)


def test_heads_that_differ_between_tasks_are_named(tmp_path):
    path = run_directory(tmp_path, kept=14, tasks=("colour", "shape"), corrupt=("image",), noise=False)

    def elsewhere(rows: pd.DataFrame) -> pd.DataFrame:
        here = (rows["layer"] == 2) & (rows["head"] == 0) & (rows["kind"] == "cross_attn-heads")
        rows.loc[here, ["lift", "auc", "relative_inside"]] = [0.1, 0.1, -0.2]
        rows.loc[here, ["lift", "objects_lift", "auc", "relative_inside"]] += 0.01 * (number_of(rows) % 3)
        return rows

    edit_tables(path, "attention", "shape", elsewhere)
    edit_tables(path, "causes", "shape", lambda rows: rows.assign(cost=-rows["cost"]))
    summary.summarise(path)
    said = cautions_of(path)
    assert any("cross_attn L2.H0: object detection in colour and object suppression in shape" in line for line in said)


def test_every_ablation_can_be_recomputed(made, frames):
    found = {(row["task"], str(row["selection"])): row for row in made["ablation"]}
    rows = frames["ablation"].query("selection != 'none'")
    assert set(found) == set(rows.groupby(["task", "selection"]).groups)
    for (task, selection), each in rows.groupby(["task", "selection"]):
        row, own, drawn = found[task, selection], each.query("draw == -1"), each.query("draw >= 0")
        assert row["accuracy"] == pytest.approx(own["correct"].mean()) and row["accuracy_full"] == 1.0
        assert row["logit_diff"] == pytest.approx(own["logit_diff"].mean(), **CLOSE)
        whole = frames["ablation"].query("selection == 'none' and task == @task")
        assert row["logit_diff_full"] == pytest.approx(whole["logit_diff"].mean(), **CLOSE)
        means = drawn.groupby("draw")[["correct", "logit_diff"]].mean()
        for name, column in (("accuracy", "correct"), ("logit_diff", "logit_diff")):
            assert row[f"{name}_random_mean"] == pytest.approx(means[column].mean(), **CLOSE)
            low, high = np.percentile(means[column], [2.5, 97.5])
            assert row[f"{name}_random_low"] == pytest.approx(low, **CLOSE)
            assert row[f"{name}_random_high"] == pytest.approx(high, **CLOSE)
        gap = drawn.groupby("example")["logit_diff"].mean() - own.set_index("example")["logit_diff"]
        assert row["harm"] == pytest.approx(gap.mean(), **CLOSE)
        hits = (means["logit_diff"] <= own["logit_diff"].mean()).sum()
        assert row["p"] == pytest.approx((1 + hits) / (1 + len(means))) and row["draws"] == len(means)


def test_the_comparison_with_noise_can_be_recomputed(made, frames):
    rows = frames["effects"].query("role == 'answer' and head >= 0")
    sizes = rows.assign(size=rows["effect"].abs()).groupby(["task", "corrupt", "kind", "layer", "head"])["size"].mean()
    assert len(made["noise"]) == 3 * 2 * 2
    for row in made["noise"]:
        a = sizes[row["task"], row["modality"], row["kind"]]
        b = sizes[row["task"], f"{row['modality']}_noise", row["kind"]]
        assert row["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic) and row["n_heads"] == len(a)
        assert row["ci_low"] <= row["ci_high"]
        best = [set(each.nlargest(row["top_k"]).index) for each in (a, b)]
        assert row["top_overlap"] == len(best[0] & best[1]) / row["top_k"]


# --- findings and cautions --------------------------------------------------------------------------


def test_findings_say_what_was_made(made):
    verdicts = [told(verdict) for verdict in made["findings"]]
    holds = {row.claim.split(",")[0].split(":")[0]: row.holds for row in verdicts}
    assert holds["Image corruption"] is True
    assert holds["In every task some head finds the object asked about"] is True
    assert holds["Some heads matter in every task"] is True
    assert all(row.evidence and "nan" not in row.evidence for row in verdicts)


def test_without_strong_heads_nothing_is_universal_and_the_findings_say_so(tmp_path):
    path = run_directory(tmp_path, kept=14, strong=False, noise=False, masks=False)
    found = summary.summarise(path)
    assert [row for row in found["universal"] if row["rule"] == "fdr"] == []
    holds = {row.claim: (row.holds, row.evidence) for row in map(told, found["findings"])}
    assert holds["Some heads matter in every task, by the FDR-controlled rule"][0] is False
    assert any(said == (None, "Not testable: the tasks have no masks.") for said in holds.values())
    assert any(said == (None, "The run has no Gaussian noise.") for said in holds.values())
    assert any("no masks" in line for line in cautions_of(path))


def test_a_run_of_few_examples_heads_and_tasks_is_cautioned(tmp_path):
    path = run_directory(tmp_path, kept=3, dropped=9, tasks=("colour",), corrupt=("image",), layers=1, noise=False)
    said = " ".join(cautions_of(path))
    for words in ("too few for the FDR-controlled rule", "only 3 of 12", "is void", "one task", "Only image"):
        assert words in said
    assert not any(row["fdr"] for row in json.loads((path / "summary.json").read_text())["heads"])


@pytest.mark.parametrize("kept", [0, 1])
def test_a_run_with_hardly_any_example_is_summarised(tmp_path, kept):
    found = summary.summarise(run_directory(tmp_path, kept=kept, tasks=("colour",)))
    assert found["counts"][0]["kept"] == kept and all(row["rule"] == "paper" for row in found["universal"])
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == plain(found) and "NaN" not in text


def test_a_prompt_without_the_role_selects_at_every_position(tmp_path):
    path = run_directory(tmp_path, kept=2, tasks=("colour",), corrupt=("image",))
    edit_tables(path, "effects", "colour", lambda rows: rows[rows["role"] != "answer"])
    found = summary.summarise(path)
    assert set(found["select_at"].values()) == {"every position"}
    assert cautions_of(path)[0].startswith("No prompt has a token of role 'answer'")


@pytest.mark.parametrize("at", ["last", "every position"])
def test_heads_may_be_selected_elsewhere(tmp_path, at):
    path = run_directory(tmp_path, kept=2, tasks=("colour",), corrupt=("image",), noise=False)
    config = json.loads((path / "run.json").read_text())["config"] | {"select_at": at}
    found = summary.summarise(path, config=config)
    rows = read(path, "effects").query("role == @at and head >= 0")
    expected = rows.groupby(["kind", "layer", "head"])["effect"].mean()
    means = records(found, "heads", "kind", "layer", "head")
    assert all(means[key]["mean"] == pytest.approx(value, **CLOSE) for key, value in expected.items())
    claims = [row.claim for row in map(told, found["findings"]) if row.claim.startswith("Image corruption")]
    assert all(("the last token" in claim) == (at == "last") for claim in claims) and claims


# --- files ------------------------------------------------------------------------------------------


def test_the_order_and_number_of_writes_change_nothing(tmp_path, directory, made):
    """What was killed and went on has the same files and the same summary: only what is in them counts."""
    copy = RunDirectory(tmp_path / "copy")
    copy.path.mkdir()
    copy.begin(json.loads((directory / "run.json").read_text()))
    there = RunDirectory(directory).opened()
    for name in (*FILES, "causes"):
        for task in there.tasks:
            columns = pd.read_parquet(directory / name / f"{task}-000000.parquet").columns
            for number, table in reversed(list(there.tables(name, task, list(columns)))):
                copy.add(name, task, {number: table})
            file = f"{name}/{task}-000000.parquet"
            assert (copy.path / file).read_bytes() == (directory / file).read_bytes()
            (copy.path / f"{file}.part").write_bytes(b"cut off")
    assert summary.summarise(copy.path, figures=made["figures"]) == made


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("harm", ["gone", "cut off", "one bit", "older", "renamed", "of another block", "no list"])
def test_a_file_that_is_not_as_the_run_wrote_it_is_named(harm, kind, tmp_path):
    path = run_directory(tmp_path / "run", kept=20, tasks=("colour",), layers=1, kinds=("attn-heads",))
    file, other = (path / kind / f"colour-00000{block}.parquet" for block in (0, 1))
    whole = file.read_bytes()
    if harm == "gone":
        file.unlink()
    elif harm == "cut off":
        file.write_bytes(whole[:-9])
    elif harm == "one bit":
        file.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    elif harm == "older":
        edit_tables(path, kind, "colour", lambda rows: rows.assign(task="red"))
        file.write_bytes(whole)
    elif harm == "renamed":
        file.rename(path / kind / "colour-000007.parquet")
    elif harm == "of another block":
        file.write_bytes(other.read_bytes())
    else:
        (path / "manifest.jsonl").unlink()
    at = kind if harm != "no list" else r"\w+"  # without the list, none of the files is known
    with pytest.raises(RunDirectoryError, match=rf"/{at}/colour-00000\d\.parquet.*run the same"):
        summary.summarise(path)


def test_a_file_of_another_run_is_named(tmp_path):
    paths = [run_directory(tmp_path / name, kept=2, tasks=("colour",), layers=1) for name in ("a", "b")]
    shutil.copy(paths[1] / "effects" / "colour-000000.parquet", paths[0] / "effects" / "colour-000009.parquet")
    with pytest.raises(RunDirectoryError, match=r"colour-000009\.parquet is of another run .*move it"):
        summary.summarise(paths[0])


def test_an_example_without_what_was_measured_of_it_is_named(tmp_path):
    path = run_directory(tmp_path / "run", kept=3, tasks=("colour",), layers=1)
    place = RunDirectory(path).opened()
    rows = dict(place.tables("examples", "colour", pd.read_parquet(path / "examples").columns.tolist()))
    place.add("examples", "colour", {9: rows[0]})
    with pytest.raises(RunDirectoryError, match=r"has nothing of example 9.*run the same"):
        summary.summarise(path)


def test_a_file_without_a_column_is_named(tmp_path):
    path = run_directory(tmp_path, kept=1, tasks=("colour",))
    edit_tables(path, "attention", "colour", lambda rows: rows.drop(columns="lift"))
    with pytest.raises(RunDirectoryError, match="has no column lift"):
        summary.summarise(path)


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"run\.json"):
        summary.summarise(tmp_path)


def test_summary_json_is_written_in_one_move(tmp_path, monkeypatch):
    path = run_directory(tmp_path, kept=1, tasks=("colour",))
    before = (path / "summary.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunDirectoryError, match="No space left"):
        summary.summarise(path)
    assert (path / "summary.json").read_text() == before


def test_no_number_is_kept_of_what_is_not_used(directory):
    """What is held grows by a few kilobytes an example: single heads elsewhere than where they are selected do not."""
    place = RunDirectory(directory).opened()
    data = summary.gather(place, "answer")
    summary.gather_ablation(data, place)
    held = sum(
        values.nbytes
        for grids in (data.heads, data.roles, data.attention, data.ablation)
        for grid in grids.values()
        for _, values in grid._rows
    )
    per_example = held / data.n_effects
    assert per_example < 64 * 1024
    assert math.isclose(data.n_effects, 3 * 14)


def test_the_rules_numbers_reach_the_summary(directory, made):
    rule = Rule(seed=0, bootstrap=made["config"]["bootstrap"])
    families = summary.gather(RunDirectory(directory).opened(), "answer").families()
    selection = select_matrices(families, rule)
    assert selection["repeats"].tolist() == [row["repeats"] for row in made["heads"]]
    assert made["rule"] == dataclasses.asdict(rule)
    said = text.disagreements(Loaded.read(directory))
    assert disagreements(selection, rule, at="at the answer's word") == said


def test_a_summary_of_an_earlier_version_is_read_in_todays_form_with_its_own_sentences(directory, made, tmp_path):
    """Before version 1 the FDR-controlled rule was "sound"; before 2 a summary held sentences."""
    shutil.copytree(directory, tmp_path / "run")
    now = Loaded.read(directory)
    verdicts = [
        {"about": one.about, "claim": one.claim, "told": one.told, "evidence": one.evidence}
        | {"holds": one.holds, "subject": str(one.verdict.subject or ""), "parts": one.verdict.parts}
        for one in text.verdicts_of(now)
    ]
    said = {"findings": verdicts, "cautions": text.cautions_of(now), "disagreements": text.disagreements(now)}
    earlier = plain(made) | json.loads(json.dumps(said).replace("the FDR-controlled rule", "the sound rule"))
    del earlier["version"], earlier["rule"]
    before = {"fdr": "sound", "fdr_all": "sound_all", "normalized": "normalised"}
    earlier["heads"] = [{before.get(key, key): value for key, value in row.items()} for row in made["heads"]]
    earlier["universal"] = [{**row, "rule": before.get(row["rule"], row["rule"])} for row in made["universal"]]
    earlier["ablation"] = [{**row, "selection": str(row["selection"])} for row in made["ablation"]]
    assert any(row["sound"] for row in earlier["heads"])
    assert {row["rule"] for row in earlier["universal"]} == {"sound", "paper"}
    assert any("the sound rule" in row["claim"] for row in earlier["findings"])
    RunDirectory(tmp_path / "run").opened().write_json("summary.json", earlier)
    then = Loaded.read(tmp_path / "run")
    words = [(one.claim, one.word, one.told, one.evidence) for one in text.verdicts_of(then)]
    assert words == [(one.claim, one.word, one.told, one.evidence) for one in text.verdicts_of(now)]
    assert report.html_of(then) == report.html_of(now)
    told_anew = {"findings", "rule", "cautions", "disagreements"}
    assert {key: value for key, value in then.summary.items() if key not in told_anew} == {
        key: value for key, value in now.summary.items() if key not in told_anew
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 3}, "summary.json has version 3 and this package reads 2 and earlier ones"),
        ({"version": "1"}, "summary.json has version '1'"),
        ({"heads": "all"}, r"summary.json is damaged \(heads is 'all'\): run the same `hooked-vlm notice` command"),
        ({"counts": [3]}, r"summary.json is damaged \(counts.0 is 3\)"),
        ({"version": 1, "cautions": [None]}, r"summary.json is damaged \(cautions.0 is None\)"),
    ],
)
def test_a_summary_of_a_later_version_or_another_form_is_refused(changes, said, directory, made, tmp_path):
    shutil.copytree(directory, tmp_path / "run")
    RunDirectory(tmp_path / "run").opened().write_json("summary.json", plain(made) | changes)
    with pytest.raises(RunDirectoryError, match=said):
        Loaded.read(tmp_path / "run")
    assert summary.summarise(tmp_path / "run", figures=made["figures"]) == made  # the way out
