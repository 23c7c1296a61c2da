"""Tables of a user's own: `pairs.csv` and parquet files with one thing wrong in them, and some with nothing wrong.

Every row that is not attacked must come out as it was; the attacked one must be right, or refused, or passed over and
named with the reason.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hooked_vlm.datasets import sources
from hooked_vlm.errors import HookedVLMError
from tests.sabotage.engine import Case, Oracle, differing, draws, either, equals, refuses
from tests.sabotage.text import controls
from tests.sabotage.world import model, picture

FAMILY = "tables"
COLUMNS = ("id", "image", "corrupt_image", "prompt", "corrupt_prompt", "answer", "wrong_answer", "mask", "group")
SUFFERS = "row-2"  # the row that is attacked
Row = dict[str, str]


class PassedOver(HookedVLMError):
    """Rows were left out, and the source says which and why."""


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    from tests.sabotage import parquets  # which builds on this module

    for name, attack, oracle in (*_cells(), *_files(), *_whole_tables(), *parquets.attacks(seed)):
        yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


# --- the table that is attacked -----------------------------------------------------------------------------


def rows() -> list[Row]:
    """Four rows of a folder, each with pictures and a mask of its own."""
    return [
        {
            "id": f"row-{i}", "image": f"{i}.png", "corrupt_image": f"{i}-corrupt.png",
            "prompt": f"is the {shape} red or blue ?", "corrupt_prompt": f"is the {shape} green or blue ?",
            "answer": "red", "wrong_answer": "blue", "mask": f"{i}-mask.png", "group": "red/blue",
        }
        for i, shape in enumerate(("circle", "square", "triangle", "circle"))
    ]  # fmt: skip


def pictures(i: int) -> dict[str, Image.Image]:
    """The pictures of row `i`, by file name."""
    mask = Image.fromarray(np.pad(np.full((10, 10), 255, np.uint8), ((i, 10 - i), (i, 14 - i))))
    return {f"{i}.png": picture(i), f"{i}-corrupt.png": picture(50 + i), f"{i}-mask.png": mask}


def write_folder(folder: Path, table: list[Row] | bytes | str | None = None) -> Path:
    """The pictures, and `pairs.csv` with some rows or of some bytes."""
    for i in range(4):
        for name, image in pictures(i).items():
            image.save(folder / name)
    table = rows() if table is None else table
    content = as_csv(table) if isinstance(table, list) else table
    (folder / "pairs.csv").write_bytes(
        content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    )
    return folder


def as_csv(table: list[Row], columns: tuple[str, ...] = COLUMNS) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def read(data: Any, task: str = "folder") -> dict[str, Any]:
    """A task's rows by id: texts as they are, pictures as digests.

    Raises:
        PassedOver: some of the rows are not there, or not whole, and the rest is as it was; says what the source says.
    """
    source = sources.source(task, data=data, tokenizer=model("blip").processor.tokenizer, warn=False)
    found = {row["id"]: {name: _plain(row.get(name)) for name in COLUMNS[1:]} for row in source.rows}
    rest = {id: row for id, row in found.items() if id != SUFFERS}
    same = not differing({id: whole().get(id) for id in rest}, rest)
    if same and source.skipped and differing(whole(), found):
        raise PassedOver("; ".join(f"{why}: {', '.join(source.named.get(why, ()))}" for why in source.skipped))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return hashlib.sha256(value.tobytes()).hexdigest()[:12] + str(value.size) + value.mode
    return value


@cache
def whole() -> dict[str, Any]:
    """What a table without any damage holds, from the pictures and texts themselves."""
    found = {}
    for i, row in enumerate(rows()):
        images = pictures(i)
        plain = {
            "image": images[f"{i}.png"],
            "corrupt_image": images[f"{i}-corrupt.png"],
            "mask": images[f"{i}-mask.png"],
        }
        found[row["id"]] = {name: _plain(plain.get(name, row[name])) for name in COLUMNS[1:]}
    return found


def _changed(**cells: Any) -> list[Row]:
    """The rows, with other cells in the one that is attacked."""
    return [row | (cells if row["id"] == SUFFERS else {}) for row in rows()]


# --- pairs.csv ----------------------------------------------------------------------------------------------


def _cells() -> Found:
    """One cell of one row."""
    line = (SUFFERS, "line 4", "pairs.csv")
    for name, cells in {
        "no-image": {"image": ""}, "no-prompt": {"prompt": ""},
        "no-answer": {"answer": ""},
        "no-wrong-answer": {"wrong_answer": ""}, "blank-answer": {"answer": " \t"},
        "invisible-answer": {"answer": "\u200b"},
        "invisible-prompt": {"prompt": "\u200b\u200d"}, "answers-alike": {"wrong_answer": "red"},
        "answers-alike-but-for-case": {"wrong_answer": "RED"},
        "answer-not-offered": {"answer": "green"}, "wrong-answer-not-offered": {"wrong_answer": "yellow"},
        "answer-part-of-a-word": {"answer": "re"},
        "answer-of-control-tokens": {"answer": "[SEP]", "prompt": "is it [SEP] or blue ?"},
        "prompt-of-surrogates": {"prompt": "is the \udcff red or blue ?"},
        "prompt-beyond-the-context": {"prompt": "is it red or blue ? " + "red " * 500},
        "image-above": {"image": "../0.png"}, "image-above-and-back": {"image": "x/../../0.png"},
        "image-absolute": {"image": "/etc/hostname"},
        "image-in-zeros": {"image": "/dev/zero"}, "image-home": {"image": "~/0.png"},
        "image-missing": {"image": "absent.png"}, "image-the-table": {"image": "pairs.csv"},
        "image-the-folder": {"image": "."}, "image-web": {"image": "https://example.org/0.png"},
        "image-NUL": {"image": "0\0.png"}, "image-in-other-case": {"image": "2.PNG"},
        "image-endless": {"image": "x" * 3000 + ".png"}, "corrupt-image-above": {"corrupt_image": "../0.png"},
        "mask-above": {"mask": "../0.png"},
        "mask-missing": {"mask": "absent.png"}, "image-unchanged": {"corrupt_image": "2.png"},
        "image-windows-path": {"image": "..\\0.png"},
    }.items():  # fmt: skip
        yield f"cell-{name}", lambda folder, c=cells: read(write_folder(folder, _changed(**c))), refuses(line)
    for name, cells in {
        "prompt-with-a-separator": {"prompt": "is [SEP] it red or blue ?",
            "corrupt_prompt": "is [SEP] it red or green ?"},
        "prompt-with-padding": {"prompt": "is [PAD] it red or blue ?"},
        "corrupt-prompt-with-a-separator": {"corrupt_prompt": "is the [SEP] green or blue ?"},
    }.items():  # fmt: skip
        plain = [controls("blip", row["prompt"]) for row in rows() for _ in range(2)]
        yield (
            f"cell-{name}",
            lambda folder, c=cells: asked(write_folder(folder, _changed(**c))),
            either(plain, (*line, "[SEP]", "[PAD]")),
        )
    without = {SUFFERS: whole()[SUFFERS] | {"corrupt_image": None}}
    yield (
        "cell-no-corrupt-image",
        lambda folder: read(write_folder(folder, _changed(corrupt_image=""))),
        either(whole() | without, line),
    )
    again = whole()[SUFFERS] | {"corrupt_prompt": None}
    for name, cells in {
        "corrupt-prompt-longer": {"corrupt_prompt": "is the big triangle green or blue ?"},
        "corrupt-prompt-shorter": {"corrupt_prompt": "is it ?"},
        "corrupt-prompt-alike": {"corrupt_prompt": rows()[2]["prompt"]},
    }.items():
        yield (
            f"cell-{name}",
            lambda folder, c=cells: read(write_folder(folder, _changed(**c))),
            either(whole() | {SUFFERS: again}, line),
        )
    for name, cells in {
        "id-repeated": {"id": "row-1"}, "id-repeated-but-for-spaces": {"id": " row-1 "},
    }.items():  # fmt: skip
        yield f"cell-{name}", lambda folder, c=cells: read(write_folder(folder, _changed(**c))), refuses("row-1")
    for name, id in {
        "above": "../../escaped", "absolute": "/etc/passwd", "formula": "=1+1", "number": "007",
        "letters-of-all-scripts": "שורה 行", "quotes": "a\"b'c",
        "endless": "x" * 5000, "new-line": "a\nb",
    }.items():  # fmt: skip
        right = {name if name != SUFFERS else id: row for name, row in whole().items()}
        shown = ("id", id[:20], "line 4")
        yield f"id-{name}", lambda folder, id=id: _renamed(folder, id), either(right, shown)


def _renamed(folder: Path, id: str) -> Any:
    """What is read of a table in which the attacked row has another id, which is no row missing."""
    source = sources.source(
        "folder", data=write_folder(folder, _changed(id=id)), tokenizer=model("blip").processor.tokenizer
    )
    return {row["id"]: {name: _plain(row.get(name)) for name in COLUMNS[1:]} for row in source.rows}


def asked(folder: Path, task: str = "folder") -> list[dict[str, int]]:
    """The control tokens in what the model reads of each row."""
    found = read(folder, task)
    return [
        controls("blip", text)
        for row in found.values()
        for text in (row["prompt"], row["corrupt_prompt"] or row["prompt"])
    ]


def _files() -> Found:
    """One file of one row."""

    def of(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def attack(folder: Path) -> Any:
            write_folder(folder)
            (folder / name).unlink()
            make(folder / name)
            return read(folder)

        return attack

    def outside(folder: Path) -> Path:
        (there := folder.parent / f"{folder.name}-outside").mkdir()
        picture(9).save(there / "secret.png")
        return there

    line = (SUFFERS, "line 4", "2.png", "2-mask.png")
    for name, make in {
        "a-folder": lambda path: path.mkdir(), "a-pipe": os.mkfifo, "text": lambda path: path.write_text("no picture"),
        "empty": lambda path: path.touch(),
        "half": lambda path: path.write_bytes(png(picture(2))[:300]),
        "zeros": lambda path: path.symlink_to("/dev/zero"),
        "a-link-out": lambda path: path.symlink_to(outside(path.parent) / "secret.png"),
        "a-link-to-itself": lambda path: path.symlink_to(path.name),
        "missing": lambda path: None, "of-no-size": lambda path: path.write_bytes(b"P6\n0 0\n255\n"),
        "a-bomb": lambda path: path.write_bytes(b"P6\n100000 100000\n255\n"),
        "NaN": lambda path: Image.fromarray(np.full((20, 24), np.nan, np.float32)).save(path, format="TIFF"),
    }.items():  # fmt: skip
        yield f"picture-{name}", of("2.png", make), refuses(line)
    without = {**whole(), SUFFERS: whole()[SUFFERS] | {"mask": None}}
    for name, make in {
        "of-another-size": lambda path: Image.new("L", (5, 5), 255).save(path), "a-pipe": os.mkfifo,
        "missing": lambda path: None,
        "text": lambda path: path.write_text("no mask"),
        "a-link-out": lambda path: path.symlink_to(outside(path.parent) / "secret.png"),
        "all-black": lambda path: Image.new("L", (24, 20)).save(path),
        "all-white": lambda path: Image.new("L", (24, 20), 255).save(path),
    }.items():  # fmt: skip
        black = {
            **whole(),
            SUFFERS: whole()[SUFFERS] | {"mask": _plain(Image.new("L", (24, 20), 255 * (name == "all-white")))},
        }
        yield f"mask-{name}", of("2-mask.png", make), either(black if name.startswith("all") else without, line)
    for name, transform in {
        "RGB": lambda image: image.convert("RGB"), "1": lambda image: image.convert("1"),
        "LA": lambda image: image.convert("LA"),
        "I;16": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257),
        "P": lambda image: image.convert("P"),
        "F": lambda image: Image.fromarray(np.asarray(image).astype(np.float32) / 255),
        "I": lambda image: Image.fromarray(np.asarray(image).astype(np.int32) * 257),
    }.items():  # fmt: skip
        save = partial(_save_tiff, transform, pictures(2)["2-mask.png"])
        yield f"mask-in-mode-{name}", of("2-mask.png", save), equals(whole())
        grey = picture(2).convert("L")
        upright = Image.fromarray(np.asarray(grey)).convert("RGB")
        if name in ("I;16", "F", "I"):
            right = {**whole(), SUFFERS: whole()[SUFFERS] | {"image": _plain(upright)}}
            yield f"picture-in-mode-{name}", of("2.png", partial(_save_tiff, transform, grey)), equals(right)
    for held, transposed in (
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ):
        exif = Image.Exif()
        exif[0x0112] = held
        turned = picture(2).transpose(transposed)
        yield f"picture-exif-{held}", of("2.png", lambda path, t=turned, e=exif: t.save(path, exif=e)), equals(whole())
        mask = pictures(2)["2-mask.png"].transpose(transposed)
        yield f"mask-exif-{held}", of("2-mask.png", lambda path, t=mask, e=exif: t.save(path, exif=e)), equals(whole())


def _save_tiff(transform: Callable[[Image.Image], Image.Image], image: Image.Image, path: Path) -> None:
    transform(image).save(path, format="TIFF")


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def _whole_tables() -> Found:
    """The table as a whole."""
    plain = as_csv(rows())
    header, *lines = plain.splitlines(keepends=True)
    for name, content in {
        "BOM": b"\xef\xbb\xbf" + plain.encode(), "unix-lines": plain.replace("\r\n", "\n"),
        "blank-lines-between": "\r\n".join([header, "\r\n".join(lines)]),
        "columns-in-another-order": as_csv(rows(), COLUMNS[::-1]),
        "a-column-more": as_csv([row | {"note": "x, \"y\"\n"} for row in rows()], (*COLUMNS, "note")),
        "all-quoted": "\r\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in plain.splitlines()),
        "no-new-line-at-the-end": plain.rstrip(), "spaces-around": plain.replace(",", " , "),
    }.items():  # fmt: skip
        yield (
            f"csv-{name}",
            lambda folder, c=content: read(write_folder(folder, c)),
            equals(whole()) if "spaces" not in name else either(whole(), "pairs.csv"),
        )
    for name, content in {
        "quote-in-a-cell": plain.replace("triangle red", 'tri"angle red'),
        "quote-left-open": plain.replace("is the square", '"is the square'),
        "letters-after-a-quote": plain.replace("is the square red or blue ?", '"is the square" red or blue ?'),
        "header-twice": plain.replace("corrupt_prompt", "prompt", 1),
        "answer-twice": plain.replace("wrong_answer", "answer", 1),
        "header-empty": plain.replace("group", "", 1).replace("mask", "", 1),
        "utf-16": plain.encode("utf-16"), "latin-1": plain.replace("circle", "cërcle").encode("latin-1"),
        "NUL": plain.replace("square", "squ\0are"),
        "semicolons": plain.replace(",", ";"), "tabs": plain.replace(",", "\t"), "nothing": b"", "blank": b"\n\n",
        "header-alone": header,
        "no-header": "".join(lines), "image-column-missing": as_csv(rows(), COLUMNS[2:]),
        "prompt-column-missing": as_csv(rows(), tuple(c for c in COLUMNS if c != "prompt")),
        "zip": b"PK\x03\x04" + bytes(99), "parquet": b"PAR1" + bytes(99) + b"PAR1",
        "a-cell-too-many": plain.replace("2-mask.png,red/blue", "2-mask.png,red/blue,more,more"),
        "a-cell-too-few": plain.replace(",red,blue,2-mask.png,red/blue", ",red"),
        "cell-of-10-MB": plain.replace("is the triangle", "is the triangle" + "x" * 10_000_000),
        "carriage-return-inside": plain.replace("is the triangle", "is the\rtriangle"),
        "random-bytes": draws(0, "csv").randbytes(4000),
    }.items():  # fmt: skip
        yield (
            f"csv-{name}",
            lambda folder, c=content: read(write_folder(folder, c)),
            refuses(("pairs.csv", "line 4", "line 3", SUFFERS)),
        )
    yield "no-folder", lambda folder: read(folder / "absent"), refuses("absent")
    yield "folder-is-a-file", lambda folder: read(write_folder(folder) / "pairs.csv"), refuses("pairs.csv")
    yield "folder-without-table", lambda folder: read(folder), refuses("pairs.csv")
    yield "folder-is-nothing", lambda _: read(None), refuses("folder")
    for name, given in (("number", 7), ("list", []), ("truth", True)):
        yield f"folder-is-a-{name}", lambda _, g=given: read(g), refuses(("folder", "data"))
    for name, make in {
        "folder": lambda path: path.mkdir(), "pipe": os.mkfifo,
        "link-to-zeros": lambda path: path.symlink_to("/dev/zero"),
        "link-to-itself": lambda path: path.symlink_to(path.name),
        "link-out": lambda path: path.symlink_to("/etc/passwd"),
    }.items():  # fmt: skip

        def replaced(make: Callable[[Path], Any], folder: Path) -> Any:
            (write_folder(folder) / "pairs.csv").unlink()
            make(folder / "pairs.csv")
            return read(folder)

        yield f"table-is-a-{name}", partial(replaced, make), refuses("pairs.csv")
    for task in ("folders", "", "../x.parquet", "absent.parquet", "colour ", "svo_subject", "/dev/zero.parquet"):
        yield f"task-{task or 'empty'}".replace("/", "-"), lambda folder, t=task: read(None, t), refuses(task or "''")
