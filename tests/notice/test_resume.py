"""A run that is killed at any moment goes on: nothing double, nothing lost, the same numbers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice import effects, pipeline
from hooked_vlm.notice.directory import RunDirectory
from tests.notice.killed import config_of
from tests.notice.models import answerable, small

KINDS = ("examples", "effects", "attention", "ablation")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return answerable("blip", tmp_path_factory.mktemp("task") / "some.parquet", 12)


@pytest.fixture(scope="module")
def whole(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never stopped."""
    return go(task, tmp_path_factory.mktemp("whole") / "run")


def go(task: str, path: Path) -> Path:
    return pipeline.run(config_of(task), path, progress=False, model=small("blip"))


def refuse_differences(found: Path, expected: Path) -> None:
    """Every file is there once, with the same rows; only when it was begun differs."""
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) for root in (found, expected)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".parquet"):
            pd.testing.assert_frame_equal(pd.read_parquet(found / name), pd.read_parquet(expected / name))
        elif name in ("summary.json", "sources.json"):
            assert json.loads((found / name).read_text()) == json.loads((expected / name).read_text())


class Stop(BaseException):
    """A kill, as nothing catches it."""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow(reason="five runs and more"))])
def test_a_run_that_dies_between_any_two_files_goes_on(
    seed: int, task: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, replace, deaths = random.Random(seed), os.replace, 0
    while True:
        left = draw.randrange(2, 14)

        def die(source: Any, target: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Stop
            replace(source, target)

        monkeypatch.setattr(os, "replace", die)
        try:
            go(task, tmp_path / "run")
            break
        except Stop:
            deaths += 1
    assert deaths > 1
    refuse_differences(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "n", [1, pytest.param(20, marks=pytest.mark.slow(reason="twenty processes that import everything"))]
)
def test_a_run_that_is_killed_at_any_moment_goes_on(n: int, task: str, whole: Path, tmp_path: Path) -> None:
    draw, kills = random.Random(n), 0
    path = tmp_path / "run"
    for _ in range(n):
        command = [sys.executable, "-m", "tests.notice.killed", str(path), task, "0.15"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            before, wait = len(list(path.rglob("*.parquet"))), draw.uniform(0, 0.25)
            while process.poll() is None and len(list(path.rglob("*.parquet"))) <= before:
                time.sleep(0.01)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            kills += process.wait(30) == -signal.SIGKILL
    assert kills >= min(n, 6)
    go(task, path)
    refuse_differences(path, whole)


def test_what_is_done_is_not_done_again(
    task: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(task, tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.parquet")}
    monkeypatch.setattr(effects, "sweep_all", lambda *args, **options: pytest.fail("a sweep of what is done"))
    go(task, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    refuse_differences(tmp_path / "run", whole)


def test_no_example_is_double_or_lost(task: str, whole: Path) -> None:
    rows = pd.concat([pd.read_parquet(path) for path in sorted((whole / "examples").glob("*"))])
    assert not rows["example"].duplicated().any() and rows["kept"].sum() == 4
    assert sorted(rows["number"]) == list(range(len(rows)))
    kept = {kind: Counter(path.name for path in (whole / kind).glob("*.parquet")) for kind in KINDS[1:]}
    assert all(names == kept["effects"] and sum(names.values()) == 4 for names in kept.values())


def test_ctrl_c_finishes_what_is_in_flight_and_says_what_is_kept(
    task: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = pipeline.measured

    def pressed(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return measured(*args, **options)

    monkeypatch.setattr(pipeline, "measured", pressed)
    with pytest.raises(KeyboardInterrupt, match=r"[12] examples? (is|are) in .*the same command goes on"):
        go(task, tmp_path / "run")
    examples = RunDirectory(tmp_path / "run").done("some")
    assert 0 < len(examples) <= 2 and any(examples.values())
    monkeypatch.undo()
    refuse_differences(go(task, tmp_path / "run"), whole)


def test_a_run_outside_of_the_main_thread_leaves_signals_alone(task: str, whole: Path, tmp_path: Path) -> None:
    before, failed = signal.getsignal(signal.SIGINT), []

    def one() -> None:
        try:
            go(task, tmp_path / "run")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=one)
    thread.start()
    thread.join()
    assert not failed and signal.getsignal(signal.SIGINT) is before
    refuse_differences(tmp_path / "run", whole)


def test_a_full_disk_is_reported_and_the_run_goes_on_when_there_is_room(
    task: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = os.replace, 9

    def full(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        RunDirectoryError, match=r"No space left on device\): the \d examples? that (is|are) done (is|are) kept"
    ):
        go(task, tmp_path / "run")
    monkeypatch.undo()
    refuse_differences(go(task, tmp_path / "run"), whole)


def test_two_runs_in_one_directory_are_refused(task: str, tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path / "run").locked(),
        pytest.raises(RunDirectoryError, match=rf"another process \(pid {os.getpid()}\)"),
    ):
        go(task, tmp_path / "run")
