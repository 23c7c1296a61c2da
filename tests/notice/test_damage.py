"""Whatever becomes of a file of a finished run: the same command ends in the same numbers, or names the file.

Every file is deleted, cut off, changed by one bit, swapped with another of the run, and replaced by another run's in
turn. Where the way out is to move a file away, it is gone, and then the numbers are the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hooked_vlm import viz
from hooked_vlm.errors import MissingExtraError, RunDirectoryError
from hooked_vlm.notice import pipeline, report
from hooked_vlm.notice.directory import RESULTS, RunDirectory
from hooked_vlm.notice.report import text
from hooked_vlm.notice.report.compare import compare
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.schema import Selection
from hooked_vlm.notice.storage import Packed, packed
from hooked_vlm.notice.summary import summarise
from tests.notice.killed import config_of
from tests.notice.models import answerable, small
from tests.notice.test_resume import refuse_differences

HARMS = ("gone", "empty", "cut off", "one bit", "swapped", "another run's")
BESIDES = (".lock", "report.html")  # made anew each time, and read by nobody
READ = ("run.json", "summary.json")  # what a report is made from


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return answerable("blip", tmp_path_factory.mktemp("task") / "some.parquet", 12)


@pytest.fixture(scope="module", autouse=True)
def without_figures() -> Iterator[None]:
    """As where matplotlib is not installed: three quarters of a run this small are drawing."""

    def missing(*args: Any, **options: Any) -> None:
        raise MissingExtraError("no matplotlib")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(viz, "overlay", missing)
        yield


def go(task: str, path: Path, **changes: Any) -> Path:
    return pipeline.run(config_of(task, **changes), path, progress=False, model=small("blip"))


@pytest.fixture(scope="module")
def runs(task: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, and another one."""
    path = tmp_path_factory.mktemp("runs")
    return go(task, path / "run"), go(task, path / "other", seed=1)


def harmed(run: Path, name: str, harm: str, other: Path) -> list[str]:
    """Harm a file; the names of what was harmed."""
    path, data = run / name, (run / name).read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "swapped":
        names = [str(each.relative_to(run)) for each in sorted(run.rglob("*")) if each.is_file()]
        near = [each for each in names if each.endswith(path.suffix) and each not in (name, ".lock")]
        second = near[names.index(name) % len(near)] if near else "sources.json"
        path.write_bytes((run / second).read_bytes())
        (run / second).write_bytes(data)
        return [name, second]
    elif harm == "another run's":
        shutil.copy(other / name, path)
    else:
        middle = len(data) // 2
        one_bit = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"\0"
        path.write_bytes({"empty": b"", "cut off": data[: middle + 1], "one bit": one_bit}[harm])
    return [name]


def refuse_harm(task: str, runs: tuple[Path, Path], name: str, harm: str, path: Path) -> None:
    """Harm a copy of the run: who reads it says so, and the same command ends in the same numbers."""
    run = shutil.copytree(runs[0], path)
    names = harmed(run, name, harm, runs[1])
    if {*names} - {*BESIDES}:
        try:
            assert Loaded.read(run).summary == Loaded.read(runs[0]).summary  # it was not needed, or is known twice
            assert not any(each.endswith(".parquet") or each == "summary.json" for each in names)
        except RunDirectoryError as error:
            assert re.search(r"run the same|same `hooked-vlm notice` command|same command", str(error)), error
    try:
        go(task, run)
    except RunDirectoryError as error:
        assert harm == "another run's" and f"{run / name} is of another run" in str(error)
        assert "move it to where it belongs, and the same command" in str(error)
        (run / name).unlink()
        go(task, run)
    refuse_differences(run, runs[0])
    shutil.rmtree(run)


def files(run: Path) -> list[str]:
    return [str(path.relative_to(run)) for path in sorted(run.rglob("*")) if path.is_file()]


def test_every_file_that_is_harmed_is_made_again_or_named(task: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Each file in one way, the ways in turn; below, each in every way."""
    for place, name in enumerate(files(runs[0])):
        refuse_harm(task, runs, name, HARMS[place % len(HARMS)], tmp_path / str(place))


@pytest.mark.slow(reason="every file in every way")
@pytest.mark.parametrize("harm", HARMS)
def test_every_file_may_be_harmed_in_every_way(harm: str, task: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    for place, name in enumerate(files(runs[0])):
        refuse_harm(task, runs, name, harm, tmp_path / str(place))


def as_before(run: Path, n_rows: int) -> None:
    """Leave of a run what an earlier version would have written of its first rows, a column by its old name."""
    place = RunDirectory(run).opened()
    for path in [path for kind in RESULTS for path in (run / kind).iterdir()]:
        found = Packed(path.read_bytes())
        names = ["normalised" if name == "normalized" else name for name in found.columns]
        tables = {number: found.tables()[number].rename_columns(names) for number in found.numbers if number < n_rows}
        place.write(str(path.relative_to(run)), packed(tables, found.about))
    summary = place.values("summary.json") | {"version": 1}
    heads = [{key.replace("normalized", "normalised"): value for key, value in row.items()} for row in summary["heads"]]
    ablation = [row | {"selection": str(Selection(**row["selection"]))} for row in summary["ablation"]]
    verdicts = [
        {"about": one.about, "holds": one.holds, "parts": one.verdict.parts, "subject": str(one.verdict.subject or "")}
        | {"claim": one.claim, "told": one.told, "evidence": one.evidence}
        for one in text.verdicts_of(Loaded.read(run))
    ]
    place.write_json("summary.json", summary | {"heads": heads, "ablation": ablation, "findings": verdicts})


def test_an_earlier_versions_run_is_read_in_todays_words(task: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    as_before(run, 12)
    effects = next((run / "effects").iterdir())
    assert "normalised" in pq.read_schema(effects).names and b'"normalised"' in (run / "summary.json").read_bytes()
    assert any("normalized" in row for row in Loaded.read(run).summary["heads"])
    then, now = Loaded.read(run), Loaded.read(runs[0])
    told_anew = ("findings", "cautions", "disagreements")  # which were kept as sentences
    assert {k: v for k, v in then.summary.items() if k not in told_anew} == {
        k: v for k, v in now.summary.items() if k not in told_anew
    }
    said = [[(one.claim, one.word, one.told, one.evidence) for one in text.verdicts_of(each)] for each in (then, now)]
    assert said[0] == said[1]
    assert summarise(run, figures=Loaded.read(run).summary["figures"]) == Loaded.read(runs[0]).summary
    assert "normalised" in pq.read_schema(effects).names  # who only reads changes nothing


@pytest.mark.parametrize("n_rows", [6, 12])
def test_an_earlier_versions_run_goes_on_in_todays_words(
    n_rows: int, task: str, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    as_before(run, n_rows)
    refuse_differences(go(task, run), runs[0])


def test_a_run_json_that_is_cut_off_is_written_anew(task: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    refuse_harm(task, runs, "run.json", "cut off", tmp_path / "run")


def test_another_runs_results_do_not_count(task: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    name = str(next((runs[0] / "examples").iterdir()).relative_to(runs[0]))
    refuse_harm(task, runs, name, "another run's", tmp_path / "run")


def test_one_bit_of_a_result_is_noticed(task: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    name = str(next((runs[0] / "effects").iterdir()).relative_to(runs[0]))
    refuse_harm(task, runs, name, "one bit", tmp_path / "run")


@pytest.mark.parametrize("name", [".lock", "summary.json", "examples"])
def test_a_run_writes_through_no_symbolic_link(name: str, task: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    (run / name).rename(tmp_path / "outside")
    (run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(RunDirectoryError, match=r"is a symbolic link to .*outside.*remove the link"):
        go(task, run)


def test_every_file_is_on_the_disk_before_it_is_moved(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace, synced, moved = os.fsync, os.replace, set[str](), list[str]()

    def noted(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def moving(source: Any, target: Any) -> None:
        moved.append(str(source))
        assert moved[-1] in synced, f"{target} was moved before it was on the disk"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", moving)
    run = go(task, tmp_path / "run")
    assert {Path(path).name.removesuffix(".part") for path in moved} >= {path.name for path in run.rglob("*.parquet")}


def test_a_report_and_a_comparison_of_a_harmed_run_name_the_file(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    effects = next((run / "effects").iterdir()).relative_to(run)
    for name in (str(effects), "summary.json"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[:-2])
        for read in (lambda: report.write(run), lambda: compare([run, runs[1]], tmp_path / "compared.html")):
            with pytest.raises(RunDirectoryError, match=rf"{name} is damaged.*run the same"):
                read()
        (run / name).write_bytes(whole)
    assert compare([run, runs[1]], tmp_path / "compared.html").is_file()


@pytest.mark.parametrize("name", ["summary.json", "new.html", "examples/new.html", "run.json"])
def test_a_comparison_takes_no_place_in_a_run(name: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (tmp_path / "linked").symlink_to(run)
    for out in (run / name, tmp_path / "linked" / name):
        with pytest.raises(RunDirectoryError, match="holds a run, and no file of a run is overwritten"):
            compare(runs, out)
    (tmp_path / "compared.html").symlink_to(run / name)
    with pytest.raises(RunDirectoryError, match=r"holds a run|is a symbolic link"):
        compare(runs, tmp_path / "compared.html")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_was_counted_is_counted_again(task: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A file is deleted after the run is finished: its examples do not silently drop out of the counts."""
    run = shutil.copytree(runs[0], tmp_path / "run")
    before = json.loads((run / "summary.json").read_text())
    for path in [*run.glob("examples/*.parquet")][:1]:
        path.unlink()
    go(task, run)
    assert json.loads((run / "summary.json").read_text()) == before
