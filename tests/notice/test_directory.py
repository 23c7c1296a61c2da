"""A run's directory: whole files or none, one process at a time, and errors that say what was kept."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice import directory
from hooked_vlm.notice.directory import RunDirectory

TABLE = pa.table({"kept": [True], "word": ["red"]})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    place = RunDirectory(tmp_path / "new" / "run")
    with place.locked():
        assert place.stored() is None and place.done("colour") == {}
        place.write_json("run.json", {"version": directory.VERSION, "word": "naïve"})
        for number in (3, 11):
            place.write_table("examples", "colour", number, TABLE)
        place.write_table("examples", "colour-dark", 4, TABLE)
        assert place.stored() == {"version": 1, "word": "naïve"}
        assert place.done("colour") == {3: True, 11: True}
        assert place.numbers("examples", "colour-dark") == [4] and place.numbers("effects", "colour") == []
        assert place.file("examples", "a/b.parquet", 7).name == "b-000007.parquet"
        assert place.example("colour", 3) == {"kept": True, "word": "red"}
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = RunDirectory(tmp_path)
    with place.locked():
        place.write_table("examples", "colour", 0, TABLE)

        def cut_off(table: pa.Table, path: Path, **options: object) -> None:
            Path(path).write_bytes(b"PAR1")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(pq, "write_table", cut_off)
        with pytest.raises(RunDirectoryError, match=r"No space left on device.* 1 example that is done is kept"):
            place.write_table("examples", "colour", 1, TABLE)
        monkeypatch.undo()
        assert place.numbers("examples", "colour") == [0] and not list(tmp_path.rglob("*.part"))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "colour-000000.parquet.part").write_bytes(b"PAR1")
    (tmp_path / "run.json.part").write_text("{")
    (tmp_path / "run.json").write_text('{"version": 1}')
    with RunDirectory(tmp_path).locked() as place:
        assert not list(tmp_path.rglob("*.part")) and place.stored() == {"version": 1}


def test_a_directory_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RunDirectoryError, match=r"is no run: it holds thesis.tex"), RunDirectory(tmp_path).locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"version": 9}', "version 9 and this package writes 1"), ("{", "is damaged"), ("[]", "is no run's")],
)
def test_a_run_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with RunDirectory(tmp_path).locked() as place, pytest.raises(RunDirectoryError, match=message):
        place.stored()


def test_a_damaged_example_is_named(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).locked() as place:
        path = place.write_table("examples", "colour", 2, TABLE)
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(RunDirectoryError, match=r"colour-000002.parquet is damaged.*delete it"):
            place.done("colour")


def test_a_file_where_the_directory_should_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for path in (tmp_path / "run", tmp_path / "run" / "inside"):
        with pytest.raises(RunDirectoryError, match="cannot be made or written"), RunDirectory(path).locked():
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunDirectoryError, match="Permission denied"), RunDirectory(tmp_path / "run").locked():
        pass


HOLD = """
import sys, time
from hooked_vlm.notice.directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_in_one_directory_are_refused_and_a_killed_one_is_not_in_the_way(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunDirectoryError, match=rf"another process \(pid {holder.pid}\)"),
            RunDirectory(tmp_path).locked(),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    with RunDirectory(tmp_path).locked() as place:
        assert json.dumps(place.done("colour")) == "{}"
