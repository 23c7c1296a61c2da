"""`hooked-vlm notice`: what it runs and prints, and that what cannot be run is one clear line."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer

from hooked_vlm.cli import app
from hooked_vlm.notice import files, pipeline, storage
from hooked_vlm.notice.config import NoticeConfig, options
from hooked_vlm.notice.directory import RunDirectory
from tests.models import checkpoints
from tests.notice.models import answerable


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NoticeConfig, str]]:
    """The runs that were asked for, none of which runs."""
    asked: list[tuple[NoticeConfig, str]] = []

    def record(config: NoticeConfig, out: str, *, accept_versions: bool) -> None:
        assert not accept_versions
        asked.append((config, out))
        raise KeyboardInterrupt("stopped; 3 examples are in DIR")

    monkeypatch.setattr(pipeline, "run", record)
    return asked


def test_the_options_are_the_configuration(command: Any, recorded: list[tuple[NoticeConfig, str]]) -> None:
    words = "M --task colour --task place --corrupt image --sites mlp --sites attn-heads --positions last --examples 24"
    rest = "--seed 5 --out D --noise --noise-scale 2 --select-at last --data F --device cpu --dtype float16 --batch 3"
    command(*words.split(), *rest.split(), "--watch-at", "answer", "--template", "Q: {prompt}", "--region", "blur")
    expected = NoticeConfig(
        model="M",
        tasks=("colour", "place"),
        corrupt=("image",),
        kinds=("mlp", "attn-heads"),
        positions="last",
        select_at="last",
        watch_at="answer",
        examples=24,
        seed=5,
        data="F",
        noise=True,
        noise_scale=2.0,
        region="blur",
        prompt_template="Q: {prompt}",
        device="cpu",
        dtype="float16",
        batch=3,
    )
    assert recorded == [(expected, "D")]


def test_what_is_left_out_is_the_configurations_default(command: Any, recorded: list[tuple[NoticeConfig, str]]) -> None:
    code, _, err = command("M", "--task", "all", "--out", "D")
    assert recorded == [(NoticeConfig(model="M", tasks=("colour", "shape", "place")), "D")]
    assert (code, err) == (130, "hooked-vlm: stopped; 3 examples are in DIR\n")


def test_the_command_offers_every_option_with_the_configurations_words() -> None:
    """Name, default and help: whoever adds an option to the configuration adds it to the command."""
    offered = {each.name: each for each in typer.main.get_command(app).commands["notice"].params}  # type: ignore[attr-defined]
    assert set(offered) == {*options(), "out", "plan", "accept_versions"}
    for name, option in options().items():
        assert offered[name].help == " ".join(str(option.description).split())
        assert offered[name].required == option.is_required()
        if not offered[name].required and name != "corrupt":
            assert offered[name].default in (option.default, *([None] if option.default == () else []))
    assert offered["kinds"].opts == ["--sites"] and offered["random_draws"].opts == ["--random-draws"]
    assert offered["every_position"].secondary_opts == ["--no-every-position"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--corrupt", "sound"], "corrupt has no 'sound'"),
        (["--sites", "heads"], "kinds has no 'heads': expected 'cross_attn-heads'"),
        (["--task", "colour"], "each name once"),
        (["--examples", "0"], "examples is 0"),
        (["--template", "Q:"], "expected a text with {prompt}"),
    ],
)
def test_what_cannot_be_run_is_one_line(command: Any, words: list[str], message: str, tmp_path: Path) -> None:
    code, out, err = command("zoo:blip-shapes", "--task", "colour", "--out", str(tmp_path / "run"), *words)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert err.startswith("hooked-vlm: ") and message in err
    assert not (tmp_path / "run").exists()


# --- what stands in the way of a run is one line, which says what is kept and how to go on ---------------

ONE_TASK = ("zoo:blip-shapes", "--task", "colour", "--corrupt", "image", "--sites", "attn-heads")
QUICK = ("--examples", "2", "--batch", "1", "--bootstrap", "20", "--random-draws", "2")


def one_line(outcome: tuple[int, str, str], code: int = 1) -> str:
    """The line that a command wrote to the error stream, and nothing else."""
    assert outcome[:2] == (code, "")
    (line,) = outcome[2].splitlines()
    return line.removeprefix("hooked-vlm: ")


def test_a_directory_under_a_file_is_one_line(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = one_line(command(*ONE_TASK, "--out", str(tmp_path / "file" / "run")))
    assert "file/run cannot be made or written (Not a directory): make it writable, or take another" in line


def test_a_directory_on_a_disk_that_takes_no_writing_is_one_line(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    line = one_line(command(*ONE_TASK, "--out", str(tmp_path / "run")))
    assert "run cannot be made or written (Read-only file system): make it writable, or take another" in line


@pytest.mark.parametrize("done", [0, 1])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    done: int, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, left = [*ONE_TASK, *QUICK, "--out", str(tmp_path / "run")], 3 * done

    def full(path: Path, data: bytes) -> Path:
        nonlocal left
        left -= path.suffix == ".parquet"
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return storage.whole(path, data)

    monkeypatch.setattr(files, "whole", full)
    line = one_line(command(*words))
    assert "No space left on device" in line and "make room on the disk" in line
    assert ("the 1 example that is done is kept" if done else "or take another directory") in line
    monkeypatch.undo()
    code, printed, _ = command(*words)
    assert code == 0 and "Report: " in printed and not list((tmp_path / "run").rglob("*.part"))


def test_a_second_run_in_a_directory_is_one_line(command: Any, tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run").locked():
        line = one_line(command(*ONE_TASK, "--out", str(tmp_path / "run")))
    assert f"run is being written by another process (pid {os.getpid()}): wait for it" in line


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = pipeline.measured

    def pressed(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return measured(*args, **options)

    monkeypatch.setattr(pipeline, "measured", pressed)
    code, printed, told = command(*ONE_TASK, *QUICK, "--out", str(tmp_path / "run"))
    assert (code, printed) == (130, "")
    first, last = told.split("\n")[1:3]
    assert first == "Stopping when the examples in flight are done; Ctrl-C again to stop at once."
    assert last.startswith("hooked-vlm: stopped; 1 example is in") and last.endswith(
        "the same command goes on from there"
    )


def test_a_checkpoint_on_disk_is_run_to_the_report(command: Any, tmp_path: Path) -> None:
    checkpoint = checkpoints.save(tmp_path / "checkpoint", *checkpoints.blip_vqa())
    task = answerable("blip", tmp_path / "some.parquet", 8)
    words = [checkpoint, "--task", task, "--examples", "4", "--out", str(tmp_path / "run"), "--bootstrap", "20"]
    code, out, _ = command(*words, "--random-draws", "2", "--noise")
    assert code == 0
    assert "some" in out and "Strongest under image corruption" in out and "Universal by the FDR-controlled rule" in out
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in out and (tmp_path / "run" / "report.html").is_file()
    assert pd.read_parquet(tmp_path / "run" / "effects")["example"].nunique() == 4
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    where = [record["config"][name] for name in ("select_at", "watch_at", "every_position")]
    assert where == ["every position", "answer", True]
    code, _, err = command(*words, "--random-draws", "3", "--noise")
    assert code == 1 and "random_draws was 2 and is 3" in err and err.count("\n") == 1
