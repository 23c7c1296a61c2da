"""A finished run, every file of which is attacked in turn, and then the same command again.

Either the numbers are those of the run that nobody touched, or an error names the file; where the error promises that
the same command makes a file anew once it is removed, it must. So too for a report or a comparison of a damaged run.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock

from hooked_vlm.errors import HookedVLMError
from hooked_vlm.notice import NoticeConfig, compare, report, run
from tests.notice.models import blip_shapes
from tests.sabotage.engine import Case, Oracle, differing, draws, either

FAMILY = "run directories"
CONFIG = NoticeConfig(
    model="zoo:blip-shapes", tasks=("colour", "shape"), corrupt=("image",), kinds=("cross_attn-heads",),
    positions="answer", examples=2, batch=2, bootstrap=20, random_draws=2,
)  # fmt: skip
UNSEEN = (".lock",)  # of a run's files, what says nothing about it
Damage = Callable[["Place", Random], None]


@dataclass(frozen=True)
class Place:
    """A file of a run that is attacked: the run, the file in it, and runs that nobody touched."""

    run: Path
    file: str
    others: Path  # holds `another-seed` and `another-model`

    @property
    def path(self) -> Path:
        return self.run / self.file


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    prepared = made(kept)
    for name, attack, oracle in (*_files(seed, prepared), *_reports(seed, prepared)):
        yield Case(FAMILY, name, attack, oracle)
    from tests.sabotage import runs  # the directory as a whole; it builds on this module

    for name, attack, oracle in runs.attacks(seed, prepared):
        yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


@cache
def made(kept: Path) -> Path:
    """A folder with the run, one of another seed, and one of a model with other weights."""
    folder = kept / "runs"
    run(CONFIG, folder / "run", progress=False, model=blip_shapes())
    run(CONFIG.__class__(**{**vars(CONFIG), "seed": 1}), folder / "another-seed", progress=False, model=blip_shapes())
    run(CONFIG, folder / "another-model", progress=False, model=other_model())
    return folder


@cache
def other_model() -> Any:
    """The same model with slightly other weights."""
    from hooked_vlm import HookedVLM

    other = HookedVLM.from_pretrained("zoo:blip-shapes")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.hf_model.parameters():
            parameter += 0.01 * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
    return other


def files_of(directory: Path) -> list[str]:
    """The files of a run, by their place in it."""
    walked = os.walk(directory, followlinks=True)
    found = ((Path(folder) / name).relative_to(directory).as_posix() for folder, _, names in walked for name in names)
    return sorted(file for file in found if file not in UNSEEN)


def numbers(directory: Path) -> dict[str, Any]:
    """What a run came to: its summary, and which files it holds."""
    return {"summary": json.loads((directory / "summary.json").read_text("utf-8")), "files": files_of(directory)}


def same_command(directory: Path, config: NoticeConfig = CONFIG, model: Any = None) -> dict[str, Any]:
    """Run the command (again), and what it came to."""
    return numbers(run(config, directory, progress=False, model=model or blip_shapes()))


def fresh(prepared: Path, folder: Path) -> Path:
    """A copy of the run, in a case's folder."""
    return Path(shutil.copytree(prepared / "run", folder / "run", symlinks=True))


# --- every file in turn -------------------------------------------------------------------------------------


def _deleted(place: Place, draw: Random) -> None:
    place.path.unlink()


def _emptied(place: Place, draw: Random) -> None:
    place.path.write_bytes(b"")


def _cut(place: Place, draw: Random) -> None:
    os.truncate(place.path, draw.randrange(1, place.path.stat().st_size))


def _bit(place: Place, draw: Random) -> None:
    content = bytearray(place.path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    place.path.write_bytes(content)


def _swapped(place: Place, draw: Random) -> None:
    """With a sibling: a file of the same folder, of the same kind if there is one."""
    siblings = [path for path in sorted(place.path.parent.iterdir()) if path.is_file() and path != place.path]
    alike = [path for path in siblings if path.suffix == place.path.suffix] or siblings
    if not alike:  # alone in its folder: with any file of its kind
        alike = [path for path in sorted(place.run.rglob(f"*{place.path.suffix}")) if path != place.path]
    other = draw.choice(alike)
    mine, theirs = place.path.read_bytes(), other.read_bytes()
    place.path.write_bytes(theirs)
    other.write_bytes(mine)


def _of_another(which: str, place: Place, draw: Random) -> None:
    there = place.others / which / place.file
    if not there.exists():  # a file that has the seed in its name: any of its folder
        there = draw.choice(sorted(path for path in there.parent.iterdir() if path.is_file()))
    shutil.copyfile(there, place.path)


def _link(place: Place, draw: Random) -> None:
    """A link to the very same bytes elsewhere, which nothing may be written through."""
    there = place.run.parent / f"elsewhere{place.path.suffix}"
    shutil.move(place.path, there)
    place.path.symlink_to(there)


def _folder(place: Place, draw: Random) -> None:
    place.path.unlink()
    place.path.mkdir()


def _pipe(place: Place, draw: Random) -> None:
    place.path.unlink()
    os.mkfifo(place.path)


def _edited(place: Place, draw: Random) -> None:
    """Other numbers, in a file that is whole."""
    if place.path.suffix == ".json":
        text = place.path.read_text("utf-8")
        digits = [found.start() for found in re.finditer(r"(?<=[ \[.])\d(?=[\d.,\n])", text)] or [text.index("0")]
        at = draw.choice(digits)
        place.path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}", "utf-8")
        return
    if place.path.suffix != ".parquet":
        place.path.write_bytes(place.path.read_bytes() + b"more")
        return
    table = pq.read_table(place.path)
    floats = [name for name in table.column_names if pa.types.is_floating(table.schema.field(name).type)]
    name = draw.choice(floats or table.column_names)
    column = table[name].to_pylist()
    changed = [value + 1.0 for value in column] if floats else column[::-1]
    at = table.column_names.index(name)
    table = table.set_column(at, table.schema.field(name), pa.array(changed, table.schema.field(name).type))
    pq.write_table(table, place.path, compression="zstd")


def _without_a_row(place: Place, draw: Random) -> None:
    """A table that is whole but for its last row."""
    if place.path.suffix == ".parquet":
        table = pq.read_table(place.path)
        pq.write_table(table.slice(0, table.num_rows - 1), place.path, compression="zstd")
    else:
        lines = place.path.read_bytes().splitlines(keepends=True)
        place.path.write_bytes(b"".join(lines[:-1]))


DAMAGE: dict[str, Damage] = {
    "deleted": _deleted,
    "emptied": _emptied,
    "cut": _cut,
    "bit": _bit,
    "swapped": _swapped,
    "of-another-seed": partial(_of_another, "another-seed"),
    "of-another-model": partial(_of_another, "another-model"),
    "link": _link,
    "folder": _folder,
    "pipe": _pipe,
    "edited": _edited,
    "without-a-row": _without_a_row,
}
EVERY_FILE = (
    "deleted",
    "cut",
    "bit",
    "swapped",
)  # the rest is done to one drawn file of each folder, and to each at the top
OF_TABLES = ("edited", "without-a-row")


def _files(seed: int, prepared: Path) -> Found:
    reference = numbers(prepared / "run")
    files = files_of(prepared / "run")
    for name, damage in DAMAGE.items():
        folders: dict[str, list[str]] = {}
        for file in files:
            folders.setdefault(file if "/" not in file else file.partition("/")[0], []).append(file)
        drawn = [draws(seed, "run", folder, name).choice(own) for folder, own in folders.items()]
        for file in files if name in EVERY_FILE else drawn:
            if name not in OF_TABLES or not file.endswith((".png", ".html")):
                draw = draws(seed, "run", file, name)
                yield (
                    f"{file}-{name}",
                    partial(_again, prepared, file, damage, draw),
                    either(reference, _name(file, files, name)),
                )


def _name(file: str, files: Sequence[str] = (), damage: str = "") -> tuple[str, ...]:
    """What an error may call a file: its name, its folder's, or that of a file which it was swapped with."""
    path = Path(file)
    alike = [Path(other).name for other in files if damage == "swapped" and Path(other).suffix == path.suffix]
    listed = ("list of files",) if path.name.startswith("manifest") else ()  # what a manifest is in plain words
    return path.name, f"{path.parent.name}/" if path.parent.name else path.stem, *alike, *listed


def _again(prepared: Path, file: str, damage: Damage, draw: Random, folder: Path) -> Any:
    place = Place(fresh(prepared, folder), file, prepared)
    damage(place, draw)
    try:
        return same_command(place.run)
    except HookedVLMError as error:
        _keep_promise(place, str(error), numbers(prepared / "run"))
        raise


def _keep_promise(place: Place, error: str, reference: Any) -> None:
    """Do what an error says, if it says that a file is made anew once it is removed."""
    if not re.search(r"\b(delete|remove)\b.*\bsame command\b", error, re.DOTALL):
        return
    named = [path for path in place.run.rglob("*") if path.is_symlink() or not path.is_dir() or path == place.path]
    for path in [path for path in named if str(path) in error]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    try:
        difference = differing(reference, same_command(place.run))
    except HookedVLMError as again:
        raise AssertionError(f"a promise was not kept: first {error}; then {again}") from again
    assert not difference, f"a promise was not kept: first {error}; then {difference}"


# --- reports of damaged runs --------------------------------------------------------------------------------


def _reports(seed: int, prepared: Path) -> Found:
    for file in files_of(prepared / "run"):
        for name in ("deleted", "cut", "bit"):
            draw = draws(seed, "report", file, name)
            for what, write in {"report": _report, "compare": _compare}.items():
                attack = partial(_written, prepared, file, DAMAGE[name], draw, write)
                yield f"{what}-{file}-{name}", attack, either(partial(_untouched, prepared, write), _name(file))


def _report() -> str:
    return report.write("run").read_text("utf-8")


def _compare() -> str:
    return compare(["run", "other"], "compared.html").read_text("utf-8")


def _written(prepared: Path, file: str, damage: Damage, draw: Random, write: Callable[[], str], folder: Path) -> str:
    place = Place(fresh(prepared, folder), file, prepared)
    shutil.copytree(prepared / "another-seed", folder / "other")
    damage(place, draw)
    return _without_notes(words(write()), _untouched(prepared, write), Path(file).name)


def _without_notes(page: str, reference: str, name: str) -> str:
    """A page without what it says more than the reference does, if all of that is about one file."""
    ours, theirs = page.split(), reference.split()
    changes = difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes()
    more = [ours[start:stop] for kind, _, _, start, stop in changes if kind != "equal"]
    only = all(kind in ("equal", "insert") for kind, *_ in changes)
    return reference if only and all(any(name in word for word in words) for words in more) else page


@cache
def _untouched(prepared: Path, write: Callable[[], str]) -> str:
    """What is written of the run that nobody touched, under the same names."""
    os.mkdir("untouched")
    os.chdir("untouched")
    fresh(prepared, Path.cwd())
    shutil.copytree(prepared / "another-seed", "other")
    return words(write())


def words(html: str) -> str:
    """A page without its pictures and scripts: the words and numbers that a reader sees."""
    return " ".join(re.sub(r"(?s)<(script|style|figure).*?</\1>|<[^>]*>", " ", html).split())


def locked(directory: Path) -> FileLock:
    """The lock of a run, held as another process would hold it."""
    lock = FileLock(directory / ".lock")
    lock.acquire()
    return lock
