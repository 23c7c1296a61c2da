"""A run's directory as a whole: another configuration, model, data or package in it, strangers, links, full disks."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from hooked_vlm.datasets import pairs, shapes
from hooked_vlm.errors import HookedVLMError
from hooked_vlm.notice import compare
from tests.notice.models import blip_shapes
from tests.sabotage import links
from tests.sabotage.engine import Oracle, draws, either, equals, refuses
from tests.sabotage.run_directories import CONFIG, files_of, fresh, numbers, other_model, same_command
from tests.sabotage.world import picture

Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


def attacks(seed: int, prepared: Path) -> Found:
    """Every attack on the directory as a whole."""
    for part in (_other_runs, _other_files, _strangers, _outs, _disks):
        yield from part(seed, prepared)
    yield from _data(prepared)
    yield from links.attacks(prepared)


def _other_runs(seed: int, prepared: Path) -> Found:
    """The same directory with something else in hand."""
    reference = numbers(prepared / "run")
    for name, changes in {
        "tasks": {"tasks": ("colour", "place")}, "tasks-fewer": {"tasks": ("colour",)},
        "tasks-turned": {"tasks": ("shape", "colour")},
        "corrupt": {"corrupt": ("text",)}, "kinds": {"kinds": ("attn-heads",)}, "positions": {"positions": "text"},
        "examples": {"examples": 3},
        "seed": {"seed": 2}, "noise": {"noise": True}, "noise_scale": {"noise_scale": 2.0},
        "region": {"region": "blur"}, "random_draws": {"random_draws": 3},
        "bootstrap": {"bootstrap": 21}, "prompt_template": {"prompt_template": "{prompt} now"},
        "dtype": {"dtype": "float64"}, "revision": {"revision": "other"},
        "model": {"model": "zoo:llava-shapes"}, "select_at": {"select_at": "every position"},
        "data": {"data": "/elsewhere"},
    }.items():  # fmt: skip
        config = dataclasses.replace(CONFIG, **changes)
        word = next(iter(changes))
        yield f"another-{name}", lambda folder, c=config: same_command(fresh(prepared, folder), c), refuses(word)
    bigger = dataclasses.replace(CONFIG, batch=1)
    yield "another-batch", lambda folder: same_command(fresh(prepared, folder), bigger), either(reference, "batch")
    yield "other-weights", lambda folder: same_command(fresh(prepared, folder), model=other_model()), refuses("weights")

    def one_weight(folder: Path) -> Any:
        with torch.no_grad():
            next(iter(blip_shapes().hf_model.parameters())).view(-1)[0] += 1e-3
        return same_command(fresh(prepared, folder))

    def processor(folder: Path) -> Any:
        blip_shapes().processor.image_processor.image_mean = [0.3, 0.4, 0.5]
        return same_command(fresh(prepared, folder))

    def tokenizer(folder: Path) -> Any:
        blip_shapes().processor.tokenizer.add_tokens(["brandnew"])
        return same_command(fresh(prepared, folder))

    yield "one-other-weight", one_weight, refuses("weights")
    yield "another-processor", processor, refuses("processor")
    yield "another-tokenizer", tokenizer, refuses(("tokenizer", "processor"))
    for package in ("torch", "transformers", "hooked-vlm", "transformer-lens"):

        def updated(package: str, folder: Path) -> Any:
            asked = importlib.metadata.version
            importlib.metadata.version = lambda name: "0.0.1" if name == package else asked(name)
            return same_command(fresh(prepared, folder))

        yield f"another-{package}", partial(updated, package), refuses(package)


def _other_files(seed: int, prepared: Path) -> Found:
    """Other values in the files that say what a run is."""
    reference = numbers(prepared / "run")
    for name, change in {
        "version": {"version": 99},
        "no-version": {"version": None},
        "config-a-list": {"config": []},
        "no-config": {"config": None},
    }.items():

        def written(change: dict[str, Any], folder: Path) -> Any:
            path = fresh(prepared, folder) / "run.json"
            path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
            return same_command(path.parent)

        yield f"run.json-with-{name}", partial(written, change), either(reference, "run.json")
    for name, text in {
        "a-list": "[]",
        "a-word": '"run"',
        "deep": "[" * 100_000,
        "NaN": '{"version": NaN}',
        "bytes": "\udcff\udcfe",
    }.items():
        for file in ("run.json", "summary.json", "sources.json"):

            def filled(file: str, text: str, folder: Path) -> Any:
                (fresh(prepared, folder) / file).write_bytes(text.encode("utf-8", "surrogateescape"))
                return same_command(folder / "run")

            if (prepared / "run" / file).exists():
                yield f"{file}-of-{name}", partial(filled, file, text), either(reference, file)


def _strangers(seed: int, prepared: Path) -> Found:
    """Files that are not the run's, and the run at other places."""
    reference = numbers(prepared / "run")
    own = files_of(prepared / "run")
    table = next(file for file in own if file.endswith(".parquet"))
    parent = Path(table).parent.as_posix()
    for name, file, make in (
        ("notes", "notes.txt", lambda path: path.write_text("mine")),
        ("hidden-file", f"{parent}/.DS_Store", lambda path: path.write_bytes(b"\0")),
        ("copy-under-the-next-number", f"{parent}/colour-000099.parquet", None),
        ("copy-of-a-copy", f"{parent}/{Path(table).stem} (copy).parquet", None),
        ("copy-of-another-task", f"{parent}/place-000000.parquet", None),
        ("text-called-parquet", f"{parent}/colour-000098.parquet", lambda path: path.write_text("no")),
        ("huge-number", f"{parent}/colour-99999999999999999999.parquet", None),
        ("folder-called-parquet", f"{parent}/colour-000097.parquet", lambda path: path.mkdir()),
        ("digits-of-another-script", f"{parent}/colour-٠٠٠٠٠٣.parquet", None),
        ("pipe", f"{parent}/colour-000096.parquet", os.mkfifo),
    ):  # fmt: skip

        def added(file: str, make: Callable[[Path], Any] | None, folder: Path) -> Any:
            path = fresh(prepared, folder) / file
            shutil.copyfile(folder / "run" / table, path) if make is None else make(path)
            found = same_command(folder / "run")
            return found | {"files": [each for each in found["files"] if each in own]}

        yield f"stranger-{name}", partial(added, file, make), either(reference, Path(file).name)

    def left(folder: Path) -> Any:
        (fresh(prepared, folder) / f"{table}.part").write_bytes(b"PAR1")
        return same_command(folder / "run")

    def renamed(folder: Path) -> Any:
        return same_command(fresh(prepared, folder).rename(folder / "moved to إلى"))

    def touched(folder: Path) -> Any:
        for path in fresh(prepared, folder).rglob("*"):
            os.utime(path, (0, 0))
        return same_command(folder / "run")

    yield "file-of-a-killed-process", left, equals(reference)
    yield "moved", renamed, equals(reference)
    yield "of-1970", touched, equals(reference)
    for kind in sorted({Path(file).parts[0] for file in own if "/" in file}):

        def gone(kind: str, folder: Path) -> Any:
            shutil.rmtree(fresh(prepared, folder) / kind)
            return same_command(folder / "run")

        def elsewhere(kind: str, folder: Path) -> Any:
            (place := fresh(prepared, folder) / kind).rename(folder / "elsewhere")
            place.symlink_to(folder / "elsewhere")
            return same_command(folder / "run")

        def foreign(kind: str, folder: Path) -> Any:
            shutil.rmtree(place := fresh(prepared, folder) / kind)
            shutil.copytree(prepared / "another-model" / kind, place)
            return same_command(folder / "run")

        yield f"{kind}-all-gone", partial(gone, kind), either(reference, kind)
        yield f"{kind}-a-link", partial(elsewhere, kind), either(reference, kind)
        yield f"{kind}-of-another-model", partial(foreign, kind), either(reference, kind)


def _outs(seed: int, prepared: Path) -> Found:
    """Where a new run cannot be."""

    def of(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda folder: same_command(make(folder))

    def made(folder: Path, name: str, write: Callable[[Path], Any]) -> Path:
        write(folder / name)
        return folder / name

    for name, make, word in (
        ("a-file", lambda f: made(f, "taken", lambda p: p.write_text("x")), "taken"),
        ("under-a-file", lambda f: made(f, "taken", lambda p: p.write_text("x")) / "run", "taken"),
        ("a-folder-of-others", lambda f: made(f, "home", lambda p: (p.mkdir(), (p / "thesis.tex").write_text("x"))),
            "thesis.tex"), ("a-link-to-nowhere", lambda f: made(f, "link", lambda p: p.symlink_to("absent")), "link"),
        ("a-link-to-itself", lambda f: made(f, "link", lambda p: p.symlink_to("link")), "link"),
        ("a-pipe", lambda f: made(f, "pipe", os.mkfifo), "pipe"), ("null", lambda f: "/dev/null", "/dev/null"),
        ("proc", lambda f: "/proc/run", "/proc/run"), ("endless", lambda f: f / ("x" * 300), "xxx"),
        ("NUL", lambda f: f"{f}/a\0b", ("\0", "NUL", "null", "a\\x00b")),
        ("nothing", lambda f: "", ("directory", "out", "''")),
        ("none", lambda f: None, ("directory", "out", "None")), ("number", lambda f: 7, ("directory", "out", "7")),
    ):  # fmt: skip
        yield f"out-is-{name}", of(make), refuses(word)
    for name, given, word in (
        ("one", ["run"], "two"), ("none", [], "two"), ("the-same-twice", ["run", "run"], "twice"),
        ("the-same-by-another-path", ["run", "other/../run"], "twice"),
        ("no-run", ["run", "."], (".", "run.json")), ("a-missing-one", ["run", "absent"], "absent"),
        ("a-file", ["run", "run/run.json"], "run.json"),
    ):  # fmt: skip

        def compared(given: list[str], folder: Path) -> Any:
            fresh(prepared, folder)
            (folder / "other").mkdir()
            return compare(given, "out.html")

        yield f"compare-{name}", partial(compared, given), refuses(word)


def _disks(seed: int, prepared: Path) -> Found:
    """Disks that are full at some moment, and the same command when there is room."""
    reference = numbers(prepared / "run")

    def refused(folder: Path, n: int, code: int) -> Any:
        moved, move = [0], os.replace

        def full(source: Any, target: Any, **more: Any) -> None:
            moved[0] += 1
            if moved[0] == n:
                raise OSError(code, os.strerror(code), str(target))
            move(source, target, **more)

        os.replace = full
        try:
            same_command(folder / "new")
        except HookedVLMError as error:
            said = str(error)
            assert os.strerror(code) in said, said
        finally:
            os.replace = move
        return same_command(folder / "new")

    draw = draws(seed, "disk")
    for code in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT):
        n = draw.randrange(1, 14)
        yield f"{errno.errorcode[code]}-at-file-{n}", partial(refused, n=n, code=code), equals(reference)

    def small(bytes: int, folder: Path) -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, before[1]))
        try:
            same_command(folder / "new")
            raise AssertionError("the files were larger than the disk")
        except HookedVLMError:
            pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return same_command(folder / "new")

    for bytes in (100, 5_000, 20_000):
        yield f"files-of-{bytes}-bytes-at-most", partial(small, bytes), equals(reference)


# --- data that changes under a run --------------------------------------------------------------------------


@cache
def _rows() -> list[dict[str, Any]]:
    return [shapes.pair("colour", k, seed=5).to_row() for k in range(5)]


def _data(prepared: Path) -> Found:
    """Rows of a task's file that are others when the command is given again."""
    config = dataclasses.replace(CONFIG, tasks=("task.parquet",), examples=3)

    def attack(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], folder: Path) -> Any:
        here = dataclasses.replace(config, data=str(folder))
        pairs.write_parquet(pairs.table(_rows()), folder / "task.parquet")
        first = same_command(folder / "run", here)
        pairs.write_parquet(pairs.table(change([dict(row) for row in _rows()])), folder / "task.parquet")
        second = same_command(folder / "run", here)
        return "the same" if first == second else "others"

    def with_row(**changes: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
        return lambda rows: [rows[0], rows[1] | changes, *rows[2:]]

    there = ("task.parquet", "data", "row", *(row["id"] for row in _rows()))
    yield "data-as-it-was", partial(attack, list), equals("the same")
    yield (
        "data-with-a-row-more",
        partial(attack, lambda rows: [*rows, shapes.pair("colour", 9, seed=5).to_row()]),
        either("the same", there),
    )
    for name, change in {
        "first-row-gone": lambda rows: rows[1:], "rows-turned-round": lambda rows: rows[::-1],
        "a-row-in-front": lambda rows: [shapes.pair("colour", 9, seed=5).to_row(), *rows],
        "another-picture": with_row(image=picture(1, 64, 64)),
        "another-corrupt-picture": with_row(corrupt_image=picture(1, 64, 64)), "another-id": with_row(id="other"),
        "another-group": with_row(group="other"), "another-mask": with_row(mask=picture(1, 64, 64).convert("L")),
        "answers-turned": lambda rows: [rows[0],
            rows[1] | {"answer": rows[1]["wrong_answer"], "wrong_answer": rows[1]["answer"]}, *rows[2:]],
    }.items():  # fmt: skip
        yield f"data-with-{name}", partial(attack, change), refuses(there)

    def no_data(folder: Path) -> Any:
        here = dataclasses.replace(config, data=str(folder))
        pairs.write_parquet(pairs.table(_rows()), folder / "task.parquet")
        first = same_command(folder / "run", here)
        (folder / "task.parquet").unlink()
        return "the same" if first == same_command(folder / "run", here) else "others"

    yield "data-gone", no_data, either("the same", "task.parquet")
