"""The command line, with options out of range: exit code, one line on what is wrong, and nothing computed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from hooked_vlm.cli import main
from hooked_vlm.errors import HookedVLMError
from tests.sabotage import tables
from tests.sabotage.engine import Case, Name, Oracle, equals, refuses

FAMILY = "cli"
NOTICE = (
    "notice",
    "zoo:blip-shapes",
    "--task",
    "colour",
    "--examples",
    "1",
    "--sites",
    "attn-heads",
    "--positions",
    "answer",
    "--out",
    "out",
)
WIDEST = 900  # letters that a command may say of a mistake, a usage line included


class Refused(HookedVLMError):
    """A command that ended with an exit code and said why."""


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    for name, attack, oracle in (*_notice(), *_data(), *_others()):
        yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


def command(*words: str) -> str:
    """What a command prints.

    Raises:
        Refused: it ends with an exit code other than 0; with what it said on standard error.
    """
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["hooked-vlm", *words]
    os.environ.update(COLUMNS="200", NO_COLOR="1", TERM="dumb")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code: Any = 0
    except SystemExit as stop:
        code = stop.code
    assert "Traceback" not in err.getvalue(), f"a traceback: {err.getvalue()[-300:]}"
    if code not in (0, None):
        _nothing_computed()
        raise Refused(_said(err.getvalue()))
    return out.getvalue()


def _said(error: str) -> str:
    """The line that says what is wrong, without the frame that usage errors come in."""
    text = " ".join(error.translate(dict.fromkeys(map(ord, "╭╮╰╯│─"), " ")).split())
    assert len(text) <= WIDEST, f"{len(text)} letters: {text[:300]}"
    if text.startswith("hooked-vlm:"):
        assert error.strip().count("\n") == 0, f"more than a line: {error[:300]}"
    return text


def _nothing_computed() -> None:
    found = [
        str(path)
        for path in Path("out").rglob("*")
        if path.is_file() and path.name not in (".lock", "run.json", "thesis.tex")
    ]
    assert not found, f"computed before it was refused: {found[:3]}"


def _run(changes: dict[str, Any], folder: Path) -> str:
    """The command with some options changed; a list gives one several times, None leaves it out."""
    words = list(NOTICE[:2])
    options = dict(zip(NOTICE[2::2], NOTICE[3::2], strict=True)) | changes
    for name, values in options.items():
        for value in values if isinstance(values, list) else [values]:
            words += [] if value is None else [name] if value is True else [name, str(value)]
    return command(*words)


def _notice() -> Found:
    for option, values in {
        "--examples": ("0", "-1", "x", "1.5", "", "9" * 30), "--seed": ("-1", "x", "1.5"),
        "--noise-scale": ("0", "-1", "nan", "inf", "x"), "--bootstrap": ("0", "-5", "x"), "--random-draws": ("-1", "x"),
        "--batch": ("0", "-1", "x"), "--positions": ("foo", "", "TEXT"), "--select-at": ("foo", "subject"),
        "--corrupt": ("sound", "", "image,text"),
        "--task": ("colours", "", "absent.parquet", "/dev/zero.parquet", ["colour", "colour"], ["colour", "all"], None),
        "--sites": ("mlps", ["mlp", "mlp"], ""),
        "--region": ("blurr", "inpaint2"),
        "--template": ("", "no place", "{prompt", "{prompt!r}", "{0}", "{prompt} " + "red " * 99,
            "<image> <image>"), "--device": ("cuda:99", "gpu", "meta", ""), "--dtype": ("int8", "float99", ""),
        "--out": (None, "", "/dev/null", "/proc/run", "x" * 300),
    }.items():  # fmt: skip
        for value in values:
            shown = "-".join(value) if isinstance(value, list) else repr(value)[:24]
            changes: dict[str, Any] = {option: value}
            if option in ("--noise-scale",):
                changes["--noise"] = True
            names: Name = (
                option,
                option[2:].replace("-", "_"),
                *([] if value is None or isinstance(value, list) or len(value) < 3 else [value[:40]]),
                *({"--template": ("prompt", "text 0"), "--out": ("directory",), "--sites": ("kinds",)}.get(option, ())),
            )
            yield f"{option[2:]}-{shown}", partial(_run, changes), refuses(names)
    for name, changes, word in (
        ("region-of-text", {"--region": "blur", "--corrupt": "text"}, "region"),
        ("select-elsewhere", {"--positions": "answer", "--select-at": "last"}, "last"),
        ("data-missing", {"--task": "folder"}, "data"),
        ("data-absent", {"--task": "folder", "--data": "absent"}, "absent"),
        ("data-a-file", {"--task": "folder", "--data": "/etc/hostname"}, "/etc/hostname"),
        ("cross-in-llava", {}, "cross_attn"), ("unknown-option", {"--exemples": "3"}, "--exemples"),
        ("revision", {"--revision": "a b"}, ("revision", "a b")),
    ):  # fmt: skip
        if name == "cross-in-llava":
            yield (
                name,
                lambda _: command(
                    "notice", "zoo:llava-shapes", "--task", "colour", "--sites", "cross_attn-heads", "--out", "out"
                ),
                refuses(word),
            )
        elif name != "revision":
            yield name, partial(_run, changes), refuses(word)

    def templated(folder: Path) -> list[str]:
        """The first tokens of the prompt, where a template begins with a control token: it is read as what it is."""
        _run({"--template": "[SEP] {prompt}", "--positions": "text"}, folder)
        (table,) = Path("out", "effects").iterdir()
        rows = pq.read_table(table, columns=["position", "token"]).to_pylist()
        tokens = {row["position"]: row["token"] for row in rows}
        return [tokens[position] for position in range(3)]

    yield "template-with-a-control-token", templated, equals(["[CLS]", "[SEP]", "is"])

    def taken(folder: Path) -> str:
        (folder / "out").mkdir()
        (folder / "out" / "thesis.tex").write_text("mine")
        return _run({}, folder)

    def a_file(folder: Path) -> str:
        (folder / "out").write_text("mine")
        return command(*NOTICE)

    def link(folder: Path) -> str:
        (folder / "out").symlink_to(folder / "absent")
        return command(*NOTICE)

    yield "out-taken", taken, refuses("thesis.tex")
    yield "out-a-file", a_file, refuses("out")
    yield "out-a-dangling-link", link, refuses("out")
    for name in ("", "zoo:", "zoo:nothing", "absent/model", "/dev/zero", "https://example.org/m", "../..", "x" * 3000):
        yield (
            f"model-{name[:20] or 'empty'}".replace("/", "_"),
            lambda _, n=name: command("notice", n, *NOTICE[2:]),
            refuses((name[:30] or "''", "model")),
        )


def _data() -> Found:
    """Rows that no run can use are refused before the first one is computed."""

    def of(change: Callable[[Path], Any], folder: Path) -> str:
        tables.write_folder(folder)
        change(folder)
        return _run({"--task": "folder", "--data": str(folder), "--examples": "4"}, folder)

    def cells(**changes: str) -> Callable[[Path], Any]:
        return lambda folder: tables.write_folder(
            folder, [row | (changes if row["id"] == tables.SUFFERS else {}) for row in tables.rows()]
        )

    line = (tables.SUFFERS, "line 4", "2-mask.png", "2.png")
    for name, change in {
        "mask-of-another-size": lambda folder: Image.new("L", (5, 5), 255).save(folder / "2-mask.png"),
        "mask-of-nothing": lambda folder: Image.new("L", (24, 20)).save(folder / "2-mask.png"),
        "mask-absent": lambda folder: (folder / "2-mask.png").unlink(),
    }.items():  # fmt: skip

        def masked(change: Callable[[Path], Any], folder: Path) -> str:
            tables.write_folder(folder)
            change(folder)
            options = {"--task": "folder", "--data": str(folder), "--examples": "4", "--region": "blur"}
            printed = _run({**options, "--corrupt": "image"}, folder)
            if "mask" in printed:  # the row does without, or was left out, and what is printed says why
                raise Refused(f"{tables.SUFFERS}: {printed}"[:WIDEST])
            return printed

        yield f"data-{name}", partial(masked, change), refuses(line)
    for name, change, word in (
        ("quotes", lambda folder: tables.write_folder(folder,
            tables.as_csv(tables.rows()).replace("is the triangle red or blue ?", '"is the triangle" red or blue ?')),
            ("pairs.csv", "line 4")),
        ("no-rows", lambda folder: tables.write_folder(folder, []), "pairs.csv"),
        ("no-column", lambda folder: tables.write_folder(folder, tables.as_csv(tables.rows(), tables.COLUMNS[1:4])),
            "pairs.csv"), ("ids-alike", cells(id="row-1"), "row-1"),
    ):  # fmt: skip
        yield f"data-{name}", partial(of, change), refuses(word)


def _others() -> Found:
    for name, words, word in (
        ("no-command", ("notise",), "notise"), ("hooks-of-nothing", ("hooks",), "model"),
        ("hooks-unknown", ("hooks", "zoo:nothing"), "zoo:nothing"),
        ("hooks-absent", ("hooks", "absent/model"), "absent/model"),
        ("hooks-filter", ("hooks", "zoo:blip-shapes", "--filter", "nowhere"), "nowhere"),
        ("hooks-device", ("hooks", "/dev/zero"), "/dev/zero"),
        ("compare-one", ("compare", "absent", "--out", "x.html"), "two"),
        ("compare-none", ("compare", "--out", "x.html"), ("DIR", "directories")),
        ("compare-absent", ("compare", "absent", "there", "--out", "x.html"), "absent"),
        ("compare-without-out", ("compare", "a", "b"), "--out"),
        ("compare-twice", ("compare", ".", ".", "--out", "x.html"), "twice"),
        ("compare-devices", ("compare", "/dev/null", "/dev/zero", "--out", "x.html"), "/dev/null"),
        ("notice-of-nothing", ("notice",), ("MODEL", "model")), ("demo-with-words", ("demo", "please"), "please"),
    ):  # fmt: skip
        yield name, lambda _, w=words: command(*w), refuses(word)
