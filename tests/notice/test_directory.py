"""A run's directory: whole files or none, one process at a time, and errors that say what was kept."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice import compare, storage
from hooked_vlm.notice.directory import VERSION, RunDirectory
from hooked_vlm.notice.storage import sealed
from tests.models.unchecked import unchecked

TABLE = pa.table({"kept": [True], "word": ["red"]})
RECORD = {"version": VERSION, "id": "a" * 64, "block": 16, "config": {"model": "naïve"}}


def begun(path: Path, **changes: Any) -> RunDirectory:
    """A run that has begun, not locked."""
    path.mkdir(exist_ok=True)
    place = RunDirectory(path)
    place.begin(RECORD | changes)
    return place


def again(path: Path, tasks: tuple[str, ...] = ("colour",)) -> RunDirectory:
    """The run as another process finds it that goes on with it."""
    with RunDirectory(path).locked() as place:
        record = place.stored()
        assert record is not None
        place.record = record
        place.verify(tasks)
        return place


def test_what_is_written_is_read(tmp_path: Path) -> None:
    place = RunDirectory(tmp_path / "new" / "run")
    with place.locked():
        assert place.stored() is None
        place.begin(RECORD)
        assert place.numbers("examples", "colour") == []
        for number in (3, 11, 16):
            place.add("examples", "colour", {number: TABLE})
        place.add("examples", "colour-dark", {4: TABLE})
        place.add("effects", "a/b.parquet", {40: TABLE, 7: TABLE})
    tasks = ("colour", "colour-dark", "a/b.parquet")
    for found in (place, again(tmp_path / "new" / "run", tasks), RunDirectory(tmp_path / "new" / "run").opened()):
        assert {name: found.record[name] for name in RECORD} == RECORD
        assert found.numbers("examples", "colour") == [3, 11, 16] and found.tasks == ["b", "colour", "colour-dark"]
        assert found.numbers("examples", "colour-dark") == [4] and found.numbers("effects", "colour") == []
        assert found.example("colour", 3) == {"kept": True, "word": "red"} and found.n_examples == 4
        assert [n for n, _ in found.tables("effects", "a/b.parquet", ["word"])] == [7, 40]
    names = {str(path.relative_to(tmp_path / "new" / "run")) for path in (tmp_path / "new").rglob("*.parquet")}
    files = ["colour-000000", "colour-000001", "colour-dark-000000"]
    assert names == {
        *(f"examples/{name}.parquet" for name in files),
        "effects/b-000000.parquet",
        "effects/b-000002.parquet",
    }


def test_a_files_bytes_depend_on_its_tables_alone(tmp_path: Path) -> None:
    """However it grew: so that a run that was killed has the files of one that was not."""
    words = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), pa.array(["b", "a"]))
    tables = {n: pa.table({"word": words, "ids": [[n], []], "x": [0.5, None]}).slice(0, n % 3) for n in range(6)}
    one, other = begun(tmp_path / "one"), begun(tmp_path / "other")
    one.add("effects", "colour", tables)
    for number in (5, 0, 3, 1, 2, 4):
        other.add("effects", "colour", {number: tables[number]})
    file = "effects/colour-000000.parquet"
    assert (one.path / file).read_bytes() == (other.path / file).read_bytes()


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_bit_is_noticed_wherever_it_is(at: float, bit: int) -> None:
    data = bytearray(storage.packed({2: TABLE, 5: TABLE}, {"run": "a"}))
    storage.Packed(bytes(data))
    data[int(at * len(data))] ^= 1 << bit
    with pytest.raises(ValueError, match=r"no table that a run wrote|its content is not what was written"):
        storage.Packed(bytes(data))


def test_a_page_of_a_file_has_a_checksum(tmp_path: Path) -> None:
    """So that any reader of Parquet notices, not ours alone."""
    data = storage.packed({0: pa.table({"x": list(range(999))})}, {})
    file = pq.ParquetFile(pa.BufferReader(data))
    middle = file.metadata.row_group(0).column(0).data_page_offset + 200
    harmed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(pa.BufferReader(harmed), page_checksum_verification=True)


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = begun(tmp_path)
    place.add("examples", "colour", {0: TABLE})
    before = (tmp_path / "examples" / "colour-000000.parquet").read_bytes()

    def cut_off(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(RunDirectoryError, match=r"No space left on device.* 1 example that is done is kept"):
        place.add("examples", "colour", {1: TABLE})
    monkeypatch.undo()
    assert (tmp_path / "examples" / "colour-000000.parquet").read_bytes() == before
    assert again(tmp_path).numbers("examples", "colour") == [0] and not list(tmp_path.rglob("*.part"))


def test_a_file_is_on_the_disk_before_and_after_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, told = begun(tmp_path), []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        told.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def moved(source: Path, target: Path) -> None:
        told.append("move")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    place.add("examples", "colour", {0: TABLE})
    assert told == ["manifest.jsonl", "colour-000000.parquet.part", "move", "examples"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    begun(tmp_path).add("examples", "colour", {0: TABLE})
    (tmp_path / "examples" / "colour-000000.parquet.part").write_bytes(b"PAR1")
    (tmp_path / "run.json.part").write_text("{")
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b'\n0123 {"file": "exam')
    place = again(tmp_path)
    assert not list(tmp_path.rglob("*.part")) and place.numbers("examples", "colour") == [0]
    place.add("examples", "colour", {1: TABLE})  # behind a line that was cut off
    assert RunDirectory(tmp_path).opened().numbers("examples", "colour") == [0, 1]


def test_a_directory_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RunDirectoryError, match=r"is no run: it holds thesis.tex"), RunDirectory(tmp_path).locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- of which run it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["gone", "empty", "cut off", "one bit", "another run's", "half", "no object"])
def test_a_damaged_run_json_is_written_anew(harm: str, tmp_path: Path) -> None:
    place = begun(tmp_path)
    place.add("examples", "colour", {0: TABLE})
    path, text = tmp_path / "run.json", (tmp_path / "run.json").read_bytes()
    other = sealed(RECORD | {"id": "b" * 64})
    half = RECORD | {"version": 2, "id": "b"}
    harmed = {"empty": b"", "cut off": text[:40], "one bit": text.replace(b"na", b"nb"), "no object": b"[]"}
    path.write_bytes(harmed.get(harm, json.dumps(half if harm == "half" else other).encode()))
    if harm == "gone":
        path.unlink()
    assert RunDirectory(tmp_path).opened().record == place.record  # the manifest holds it too
    assert again(tmp_path).numbers("examples", "colour") == [0]
    assert path.read_bytes() == text


def test_where_the_manifest_is_gone_as_well_a_way_out_is_named(tmp_path: Path) -> None:
    begun(tmp_path).add("examples", "colour", {0: TABLE})
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "manifest.jsonl").unlink()
    with pytest.raises(RunDirectoryError, match=r"run\.json is damaged, and manifest.*another directory; the same"):
        again(tmp_path)


def test_the_manifest_alone_may_be_lost(tmp_path: Path) -> None:
    begun(tmp_path).add("examples", "colour", {0: TABLE})
    (tmp_path / "manifest.jsonl").write_bytes(b"\x00" * 99)
    assert again(tmp_path).numbers("examples", "colour") == [0]
    assert RunDirectory(tmp_path).opened().numbers("examples", "colour") == [0]


@pytest.mark.parametrize("version", [1, 9])
def test_a_run_of_another_version_is_refused_with_the_way_out(version: int, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"version": version, "config": {}}))
    (tmp_path / "examples").mkdir()
    with pytest.raises(RunDirectoryError, match=rf"version {version} and this package writes 2.*another directory"):
        again(tmp_path)


# --- what is in it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["cut off", "one bit", "of another block", "of another kind", "older", "empty"])
def test_what_is_damaged_or_out_of_place_is_to_be_computed_again(harm: str, tmp_path: Path) -> None:
    place = begun(tmp_path)
    for kind in ("effects", "examples"):
        for number in (0, 16):
            place.add(kind, "colour", {number: TABLE})
    path = tmp_path / "examples" / "colour-000001.parquet"
    whole = path.read_bytes()
    others = {"of another block": "examples/colour-000000.parquet", "of another kind": "effects/colour-000001.parquet"}
    if harm == "older":
        place.add("examples", "colour", {17: TABLE})
    bit = whole[:50] + bytes([whole[50] ^ 4]) + whole[51:]
    harmed = {"cut off": whole[:-4], "one bit": bit, "older": whole, "empty": b""}
    path.write_bytes(harmed[harm] if harm in harmed else (tmp_path / others[harm]).read_bytes())
    found = again(tmp_path)
    assert found.numbers("examples", "colour") == ([0, 16] if harm == "older" else [0])  # 16 is right, 17 to be done
    assert found.numbers("effects", "colour") == [0, 16] and path.exists() == (harm == "older")
    found.add("examples", "colour", {16: TABLE})
    assert path.read_bytes() == whole and RunDirectory(tmp_path).opened().n_examples == 2


def test_files_that_were_swapped_are_to_be_computed_again(tmp_path: Path) -> None:
    place = begun(tmp_path)
    for number in (0, 16, 32):
        place.add("examples", "colour", {number: TABLE})
    one, other = (tmp_path / "examples" / f"colour-00000{block}.parquet" for block in (0, 1))
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert again(tmp_path).numbers("examples", "colour") == [32]


def test_another_runs_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    begun(tmp_path / "one").add("examples", "colour", {0: TABLE})
    begun(tmp_path / "other", id="b" * 64).add("examples", "colour", {0: TABLE})
    file = "examples/colour-000000.parquet"
    shutil.copy(tmp_path / "other" / file, tmp_path / "one" / file)
    with pytest.raises(RunDirectoryError, match=rf"{file} is of another run \(bbbbbbbbbbbb.*move it to where it"):
        again(tmp_path / "one")
    (tmp_path / "one" / file).unlink()
    assert again(tmp_path / "one").numbers("examples", "colour") == []


@pytest.mark.parametrize("name", ["mine.txt", "colour-1.parquet", "colour-000000 (1).parquet", "folder"])
def test_a_strangers_file_among_the_results_is_refused(name: str, tmp_path: Path) -> None:
    begun(tmp_path).add("examples", "colour", {0: TABLE})
    path = tmp_path / "examples" / name
    path.mkdir() if name == "folder" else path.touch()
    for look in (again, lambda path: RunDirectory(path).opened()):
        with pytest.raises(RunDirectoryError, match=r"was not written by this run: move it away"):
            look(tmp_path)


@pytest.mark.parametrize(
    "name", [".", ".lock", "run.json", "manifest.jsonl", "summary.json", "examples", "examples/colour-000000.parquet"]
)
def test_nothing_is_written_through_a_symbolic_link(name: str, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    begun(run).add("examples", "colour", {0: TABLE})
    RunDirectory(run).write_json("summary.json", {})
    with RunDirectory(run).locked():
        pass
    path = run if name == "." else run / name
    path.rename(outside)
    path.symlink_to(outside)
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with pytest.raises(RunDirectoryError, match=r"is a symbolic link to .*outside.*remove the link"):
        again(run)
    assert {each: each.read_bytes() for each in before} == before


def test_a_lock_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(RunDirectoryError, match=r"\.lock is no ordinary file"), RunDirectory(tmp_path).locked():
        pass


@pytest.mark.parametrize("name", ["run.json", "manifest.jsonl"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_file_of_the_run_that_is_no_file_is_refused_and_the_way_out_leads_out(
    name: str, make: Any, tmp_path: Path
) -> None:
    begun(tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(
        RunDirectoryError, match=rf"{name} is no ordinary file: remove it, and the same command goes on"
    ):
        again(tmp_path)
    (tmp_path / name).rmdir() if make is os.mkdir else (tmp_path / name).unlink()
    assert again(tmp_path).record["config"] == RECORD["config"]


@pytest.mark.parametrize("given", ["", None, 7, ["run"]], ids=repr)
def test_what_is_no_path_is_no_directory(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the working directory is not taken in its place."""
    monkeypatch.chdir(tmp_path)
    with unchecked(), pytest.raises(RunDirectoryError, match=rf"out, is {re.escape(repr(given))}; expected a path"):
        RunDirectory(given)
    with unchecked(), pytest.raises(RunDirectoryError, match=r"a run's directory is .*; expected a path"):
        compare([given, "run"], "out.html")
    with unchecked(), pytest.raises(RunDirectoryError, match=r"the comparison's file, out, is .*; expected a path"):
        compare(["run", "other"], given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "mappings"])
def test_a_record_that_is_nested_without_end_is_a_damaged_one(text: str, tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "run.json").write_text(text)
    assert again(tmp_path).record["config"] == RECORD["config"]  # the manifest knows it
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "manifest.jsonl").unlink()
    (tmp_path / "examples").mkdir()
    with pytest.raises(RunDirectoryError, match=r"run\.json is damaged"):
        again(tmp_path)


def test_an_error_about_a_directory_is_a_line_however_long_its_name(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"x \.\.\. x.*File name too long") as error:
        RunDirectory("x" * 3000).locked().__enter__()
    assert len(str(error.value)) < 500


# --- the disk and other processes -----------------------------------------------------------------------------


def test_a_file_where_the_directory_should_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for path in (tmp_path / "run", tmp_path / "run" / "inside", tmp_path / "a\0b"):
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
        assert place.stored() is None
