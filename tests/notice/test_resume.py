"""A run that is killed at any moment goes on: nothing double, nothing lost, the same numbers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice import effects, pipeline
from hooked_vlm.notice.directory import RunDirectory
from hooked_vlm.notice.report.loaded import Loaded
from tests.notice.killed import MOMENTS, Server, config_of
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
    """Every file is there once, bit for bit the same; only when the run began, and in which steps, differs."""
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) for root in (found, expected)]
    assert names[0] == names[1]
    started = [json.loads((root / "run.json").read_text())["started"] for root in (found, expected)]
    for name in names[0]:
        mine, theirs = ((root / name).read_bytes() for root in (found, expected))
        if name == "report.html":
            mine, theirs = (text.replace(s.encode(), b"") for text, s in zip((mine, theirs), started, strict=True))
        assert mine == theirs or name in ("run.json", "manifest.jsonl", ".lock"), name
    records = [json.loads((root / "run.json").read_text()) for root in (found, expected)]
    assert [record.pop("started") for record in records] == started
    for record in records:
        record.pop("checksum", None)  # of when it began, too
    assert records[0] == records[1]
    assert Loaded.read(found).summary == Loaded.read(expected).summary


@pytest.fixture(scope="module")
def server(task: str) -> Iterator[Server]:
    with Server(task) as server:
        yield server


@pytest.fixture(scope="module")
def killed(server: Server, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, float]:
    """How many lines and moves a run makes that nobody kills, and how long it takes."""
    path = tmp_path_factory.mktemp("alone") / "run"
    server.start(path)  # which answers when it has imported everything
    began = time.monotonic()
    assert server.wait() == 0
    took = time.monotonic() - began
    refuse_differences(path, whole)
    return int(path.with_name("run.moves").read_text()), took


def test_a_run_that_is_killed_at_some_moves_goes_on(
    server: Server, killed: tuple[int, float], whole: Path, tmp_path: Path
) -> None:
    """Three moves in one directory; of every move below, with a directory each."""
    draw = random.Random(0)
    for moment in MOMENTS:
        assert server.go(tmp_path / "run", draw.randrange(8, killed[0] // 2), moment) == -signal.SIGKILL
    assert server.go(tmp_path / "run") == 0
    refuse_differences(tmp_path / "run", whole)


@pytest.mark.slow(reason="some 200 runs")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_at_any_move_goes_on(
    moment: str, server: Server, killed: tuple[int, float], whole: Path, tmp_path: Path
) -> None:
    for at in range(killed[0]):
        path = tmp_path / f"run-{at}"
        assert server.go(path, at, moment) == -signal.SIGKILL
        assert server.go(path) == 0
        refuse_differences(path, whole)
        shutil.rmtree(path)


@pytest.mark.slow(reason="two hundred runs")
def test_a_run_that_is_killed_at_any_moment_goes_on(
    server: Server, killed: tuple[int, float], whole: Path, tmp_path: Path
) -> None:
    draw, kills, finished = random.Random(), 0, 0
    while kills < 200:
        path = tmp_path / f"run-{finished}"
        while True:
            pid = server.start(path)
            time.sleep(draw.uniform(0, killed[1]))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if not server.wait():
                break
            kills += 1
        refuse_differences(path, whole)
        finished += 1
    assert finished


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
    kept = set(rows.loc[rows["kept"], "example"])
    for kind in KINDS[1:]:
        assert set(pd.concat([pd.read_parquet(path) for path in (whole / kind).iterdir()])["example"]) == kept


def test_a_block_is_a_file_and_not_an_example(whole: Path) -> None:
    """A paper's 18,000 files are 1,100."""
    assert all(len(list((whole / kind).iterdir())) == 1 for kind in KINDS)
    from hooked_vlm.notice.directory import block_size

    assert block_size(1) == block_size(16) == 16 and block_size(7) == 21 and block_size(20) == 20


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
    assert 0 < RunDirectory(tmp_path / "run").opened().n_examples <= 2
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
    replace, left = os.replace, 11

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
