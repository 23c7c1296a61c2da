"""Every task through the command, from data in its original format and a checkpoint on disk to the report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.datasets.folders import damaged, picture
from tests.models import checkpoints
from tests.notice import speaking
from tests.notice.report.parsed import Page
from tests.notice.speaking import BASE

Command = Callable[..., tuple[int, str, str]]
QUICK = ("--bootstrap", "20", "--random-draws", "2", "--batch", "4")
QUESTIONS = {
    "svo_subject": r"is the (\w+) or (\w+) \w+ing \w+\?",
    "svo_verb": r"is the \w+ (\w+ing) or (\w+ing) \w+\?",
    "svo_object": r"is the \w+ \w+ing (\w+) or (\w+)\?",
    "mit_states": r"is this \w+ (\w+) or (\w+)\?",
    "facial_expressions": r"is this person feeling (\w+) or (\w+)\?",
    "folder": r"is this (\w+) or (\w+) \?",
    "parquet": r"is this (\w+) or (\w+) \?",
}


def read(directory: Path, kind: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((directory / kind).glob("*.parquet"))])


def checkpoint(family: str, word: str | None, path: Path) -> str:
    return checkpoints.save(path, *getattr(speaking, family)(word))


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *(("blip", task) for task in speaking.TASKS),
        ("llava", "svo_verb"),
        ("llava", "mit_states"),
        ("llava", "facial_expressions"),
    ],
)
def test_a_task_is_run_from_its_data_to_the_report(family: str, task: str, command: Command, tmp_path: Path) -> None:
    word, out = speaking.TASKS[task], tmp_path / "run"
    words = [checkpoint(family, word, tmp_path / "checkpoint"), *speaking.data(task, tmp_path / "data")]
    code, printed, told = command(*words, "--out", str(out), "--examples", "2", *QUICK)
    assert (code, told) == (0, "")
    rows = read(out, "examples")
    kept, others = rows[rows["kept"]], rows[~rows["kept"]]
    assert len(kept) == 2 and set(kept["answer"]) == {word} and len(others)
    assert not set(others["answer"]) & {word} and set(others["reason"]) <= {
        "the model gives the wrong answer",
        "the model gives neither answer",
    }
    for row in rows.itertuples():
        asked = re.fullmatch(QUESTIONS[task], row.prompt)
        assert asked is not None and set(asked.groups()) == {row.answer, row.wrong_answer}
        assert row.corrupt_prompt is None or row.answer not in row.corrupt_prompt.split()
    effects = read(out, "effects")
    assert set(effects["example"]) == set(kept["example"]) == set(read(out, "ablation")["example"])
    assert set(effects["corrupt"]) == {"image", "text"} and set(effects["role"]) >= {"answer", "wrong answer", "last"}
    assert (effects.groupby("corrupt", observed=True)["effect"].agg(lambda each: each.abs().max()) > 1e-4).all()
    assert re.search(rf"{rows['task'].iloc[0]}\s+{len(rows)}\s+[\d.]+\s*%.*\s2\s", printed)
    page = Page((out / "report.html").read_text())
    assert page.table("Examples of each task")[0]["kept"] == "2" and len(page.charts) > 10


@pytest.mark.parametrize(("family", "task"), [("blip", "svo_subject"), ("llava", "facial_expressions")])
def test_a_model_that_answers_nothing_rightly_ends_in_a_report_that_says_so(
    family: str, task: str, command: Command, tmp_path: Path
) -> None:
    words = [checkpoint(family, None, tmp_path / "checkpoint"), *speaking.data(task, tmp_path / "data")]
    for _ in range(2):  # the second time, all is there already
        code, printed, told = command(*words, "--out", str(tmp_path / "run"), "--examples", "3", *QUICK)
        assert (code, told) == (0, "")
        assert "Nothing was patched: no example was kept" in printed and "Universal" not in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (counts,) = summary["counts"]
    assert counts["kept"] == counts["accuracy"] == 0 and sum(counts["reasons"].values()) == counts["seen"] > 5
    assert not any(summary[name] for name in ("behaviour", "heads", "universal", "functions", "ablation", "figures"))
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert f"none of the {counts['seen']} examples could be kept" in page.text and not page.charts
    assert all(reason in page.text for reason in counts["reasons"])


# --- one's own folder, as the README has it --------------------------------------------------------------

HEADER = "image,corrupt_image,prompt,answer,wrong_answer"
GOOD = "0.png,1.png,is this red or blue ?,red,blue"


def own(path: Path, *lines: str) -> str:
    """A folder with pairs.csv of these lines, and four pictures."""
    for number in range(4):
        picture(path / f"{number}.png", number)
    (path / "pairs.csv").write_text("\n".join(lines) + "\n")
    return str(path)


def test_what_is_wrong_with_lines_and_pictures_of_ones_own_is_told(command: Command, tmp_path: Path) -> None:
    data = own(
        tmp_path / "data",
        HEADER,
        GOOD,
        "2.png,3.png,is this blue or red ?,red,blue",
        "gone.png,1.png,is this red or blue ?,red,blue",
        "cut.png,1.png,is this red or blue ?,red,blue",
        "0.png,1.png,is this red ?,red,blue",
        "../0.png,1.png,is this red or blue ?,red,blue",
        "0.png,,is this red or blue ?,red,blue",
        "0.png,1.png,is this red or green ?,red,green",
    )
    damaged(tmp_path / "data" / "cut.png")
    words = [checkpoint("blip", "red", tmp_path / "checkpoint"), "--task", "folder", "--data", data, *QUICK]
    code, printed, told = command(*words, "--out", str(tmp_path / "run"), "--random-draws", "0")
    assert (code, told) == (0, "")
    noted = [line for line in printed.splitlines() if line.startswith("Noted in the data of folder")]
    expected = {
        "the picture cannot be read": ("2 times", "gone.png", "cut.png"),
        "the question does not offer both answers": ("1 times", "line 6"),
        "a path leads out of the folder": ("1 times", "line 7"),
    }
    for reason, words_of in expected.items():
        (line,) = [line for line in noted if reason in line]
        assert all(word in line for word in words_of), line
    text = Page((tmp_path / "run" / "report.html").read_text()).sections["run"]
    assert all(reason in text for reason in expected) and "gone.png" in text
    lacking = read(tmp_path / "run", "examples")["image_lacking"]
    assert list(lacking[lacking != ""]) == ["the row has no corrupt image"]  # kept for its words


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((HEADER.removesuffix(",wrong_answer"), GOOD), "pairs.csv' has no column wrong_answer: expected"),
        ((HEADER,), "No line of '"),
        ((HEADER, "0.png,1.png,is this red ?,red,blue"), "the question does not offer both answers (1)"),
    ],
)
def test_a_folder_that_cannot_be_read_at_all_is_one_line(
    lines: tuple[str, ...], message: str, command: Command, tmp_path: Path
) -> None:
    words = ["zoo:blip-shapes", "--task", "folder", "--out", str(tmp_path / "run"), "--data"]
    code, printed, told = command(*words, own(tmp_path / "data", *lines))
    assert (code, printed, told.count("\n")) == (1, "", 1) and message in told
    (tmp_path / "data" / "pairs.csv").unlink()
    assert "has no pairs.csv: expected pairs.csv with the columns" in command(*words, str(tmp_path / "data"))[2]
    assert "does not exist: the task 'folder' needs a folder" in command(*words, str(tmp_path / "nowhere"))[2]


# --- the size of the published checkpoint ---------------------------------------------------------------


@pytest.mark.slow(reason="three checkpoints of BLIP base's size are written, loaded and swept")
@pytest.mark.parametrize("task", ["svo_verb", "mit_states", "facial_expressions"])
def test_a_checkpoint_of_blip_bases_size_runs_on_the_original_formats(
    task: str, command: Command, tmp_path: Path
) -> None:
    word, out = speaking.TASKS[task], tmp_path / "run"
    vision = BASE | {"image_size": 96, "patch_size": 16}
    saved = checkpoints.save(tmp_path / "checkpoint", *speaking.blip(word, text=BASE, vision=vision))
    sites = [word for kind in ("cross_attn-heads", "mlp") for word in ("--sites", kind)]
    words = [saved, *speaking.data(task, tmp_path / "data", 3), *sites, "--positions", "answer", "--examples", "1"]
    code, printed, told = command(*words, "--out", str(out), *QUICK)
    assert (code, told) == (0, "") and "Strongest under text corruption, at the answer's word: cross_attn L" in printed
    effects = read(out, "effects")
    assert effects["layer"].max() == effects["head"].max() == 11
    heads = effects.query("role == 'answer' and kind == 'cross_attn-heads' and corrupt == 'image'")
    assert len(heads) == 144 and heads["effect"].abs().max() > 1e-3
    assert (out / "report.html").stat().st_size > 1_000_000
