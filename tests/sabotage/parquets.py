"""Tasks in parquet files: columns and cells that no task has, and files whose bytes are damaged."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hooked_vlm.datasets import pairs
from tests.sabotage.engine import Oracle, draws, either, equals, refuses
from tests.sabotage.tables import SUFFERS, as_csv, asked, pictures, png, read, rows, whole
from tests.sabotage.text import controls
from tests.sabotage.world import picture

Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


def attacks(seed: int) -> Found:
    """Every attack on them."""
    yield from _parquets()
    yield from _cells()
    yield from _parquet_files(seed)


@cache
def _table() -> pa.Table:
    """The rows as a parquet file's table, as `pairs.write_parquet` writes it."""
    full = []
    for i, row in enumerate(rows()):
        images = pictures(i)
        full.append(
            row
            | {
                "task": "folder",
                "image": images[f"{i}.png"],
                "corrupt_image": images[f"{i}-corrupt.png"],
                "mask": images[f"{i}-mask.png"],
            }
        )
    buffer = io.BytesIO()
    pairs.table(full).to_parquet(buffer)
    return pq.read_table(buffer)


def _written(folder: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, folder / "task.parquet", **options)
    return folder


def _with(name: str, values: list[Any], type: pa.DataType | None = None) -> pa.Table:
    return _table().set_column(_table().column_names.index(name), name, pa.array(values, type))


def _cell(name: str, value: Any) -> pa.Table:
    values = _table()[name].to_pylist()
    values[2] = value
    return _with(name, values, _table().schema.field(name).type)


def _parquets() -> Found:
    """Tables that pyarrow wrote, with columns or cells that no task has."""
    ids = _table().column_names.index("id")
    legal: Mapping[str, tuple[pa.Table, dict[str, Any]]] = {
        "as-it-is": (_table(), {}), "columns-turned-round": (_table().select(_table().column_names[::-1]), {}),
        "row-groups-of-one": (_table(), {"row_group_size": 1}),
        "gzip": (_table(), {"compression": "gzip"}),
        "plain": (_table(), {"compression": "none", "use_dictionary": False}),
        "a-column-more": (_table().append_column("note", pa.array([1, 2, 3, 4])), {}),
        "large-strings": (_with("prompt", _table()["prompt"].to_pylist(), pa.large_string()), {}),
        "dictionary": (_table().set_column(ids, "id", _table()["id"].dictionary_encode()), {}),
        "no-metadata": (_table().replace_schema_metadata(None), {}),
    }  # fmt: skip
    for name, (table, options) in legal.items():
        yield f"parquet-{name}", lambda folder, t=table, o=options: _read_parquet(folder, t, **o), equals(whole())
    for name in pairs.COLUMNS:
        if name not in pairs.OPTIONAL:
            yield (
                f"parquet-without-{name}",
                lambda folder, n=name: _read_parquet(folder, _table().drop_columns([n])),
                refuses("task.parquet", name),
            )
        yield (
            f"parquet-{name}-as-numbers",
            lambda folder, n=name: _read_parquet(folder, _with(n, [1, 2, 3, 4])),
            refuses(name),
        )
        yield (
            f"parquet-{name}-as-lists",
            lambda folder, n=name: _read_parquet(folder, _with(n, [["a"]] * 4)),
            refuses(name),
        )
        yield (
            f"parquet-{name}-of-nothing",
            lambda folder, n=name: _read_parquet(folder, _with(n, [None] * 4)),
            _none_at_all(name),
        )
    yield "parquet-no-rows", lambda folder: _read_parquet(folder, _table().slice(0, 0)), refuses("task.parquet")
    yield "parquet-no-columns", lambda folder: _read_parquet(folder, pa.table({"x": [1]})), refuses("task.parquet")
    double = pa.Table.from_arrays([*_table().columns, _table()["prompt"]], [*_table().column_names, "prompt"])
    yield "parquet-a-column-twice", lambda folder: _read_parquet(folder, double), refuses("task.parquet", "prompt")


def _cells() -> Found:
    """One cell of one row."""
    line = (SUFFERS, "row 2", "row 3")
    for name, value in (
        ("id", None), ("id", "row-1"), ("prompt", None), ("prompt", ""), ("prompt", "\u200b"),
        ("answer", None), ("answer", ""),
        ("answer", " "), ("answer", "blue"), ("answer", "BLUE"), ("answer", "green"), ("wrong_answer", "yellow"),
        ("wrong_answer", None), ("image", None), ("image", {"bytes": None, "path": ""}),
        ("image", {"bytes": b"", "path": None}), ("image", {"bytes": b"no picture", "path": None}),
        ("image", {"bytes": png(picture(2))[:300], "path": None}),
        ("image", {"bytes": None, "path": "/etc/hostname"}), ("image", {"bytes": None, "path": "../secret.png"}),
        ("image", {"bytes": None, "path": "link.png"}), ("image", {"bytes": None, "path": "/dev/zero"}),
        ("image", {"bytes": None, "path": "pipe.png"}), ("image", {"bytes": None, "path": "absent.png"}),
        ("image", {"bytes": b"P6\n0 0\n255\n", "path": None}), ("corrupt_image", None),
        ("corrupt_image", {"bytes": png(picture(2)), "path": None}),
        ("corrupt_image", {"bytes": None, "path": "../secret.png"}), ("mask", {"bytes": None, "path": "../secret.png"}),
        ("mask", {"bytes": b"no mask", "path": None}),
    ):  # fmt: skip
        shown = _shown(value)
        named = ("row-1", *line) if name == "id" else line
        if name == "mask" or (name, value) == ("corrupt_image", None):  # a row may do without
            without = {**whole(), SUFFERS: whole()[SUFFERS] | {name: None}}
            yield (
                f"parquet-cell-{name}-{shown}".replace("/", "-"),
                partial(_read_cell, name, value),
                either(without, named),
            )
        else:
            yield f"parquet-cell-{name}-{shown}".replace("/", "-"), partial(_read_cell, name, value), refuses(named)
    small = {"bytes": png(Image.new("L", (5, 5), 255)), "path": None}
    without = {**whole(), SUFFERS: whole()[SUFFERS] | {"mask": None}}
    yield "parquet-mask-of-another-size", partial(_read_cell, "mask", small), either(without, line)
    plain = [controls("blip", row["prompt"]) for row in rows() for _ in range(2)]
    parted = _cell("prompt", "is it [SEP] red or blue ?")
    yield (
        "parquet-prompt-with-a-separator",
        lambda folder: asked(_written(folder, parted), "task.parquet"),
        either(plain, (*line, "[SEP]")),
    )


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    return value["path"] if value["bytes"] is None else f"{len(value['bytes'])}-bytes"


def _none_at_all(column: str) -> Oracle:
    if column in ("mask", "corrupt_image", "corrupt_prompt", "group", "task"):
        right = {name: row | ({column: None} if column in row else {}) for name, row in whole().items()}
        return either(right, column)
    return refuses(column)


def _read_cell(name: str, value: Any, folder: Path) -> Any:
    picture(9).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    os.mkfifo(folder / "pipe.png")
    return _read_parquet(folder, _cell(name, value))


def _read_parquet(folder: Path, table: pa.Table, **options: Any) -> Any:
    return read(_written(folder, table, **options), "task.parquet")


def _parquet_files(seed: int) -> Found:
    """Files whose bytes are damaged."""
    buffer = io.BytesIO()
    pq.write_table(_table(), buffer)
    content, draw = buffer.getvalue(), draws(seed, "parquet")
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    damaged = {
        "empty": b"",
        "magic-alone": b"PAR1",
        "csv": as_csv(rows()).encode(),
        "footer-alone": content[footer:],
        "head-alone": content[:4] + content[footer:],
    }
    damaged |= {f"cut-{i}": content[: draw.randrange(4, len(content))] for i in range(5)}
    damaged |= {
        "cut-by-one": content[:-1],
        "length-absurd": content[:-8] + b"\xff\xff\xff\x7fPAR1",
        "twice": content + content,
    }
    for i in range(12):
        turned = bytearray(content)
        turned[draw.randrange(footer, len(content))] ^= 1 << draw.randrange(8)
        damaged[f"bit-{i}"] = bytes(turned)

    def attack(content: bytes, folder: Path) -> Any:
        (folder / "task.parquet").write_bytes(content)
        return read(folder, "task.parquet")

    for name, bad in damaged.items():
        yield (
            f"parquet-file-{name}",
            partial(attack, bad),
            refuses("task.parquet")
            if "bit" not in name and name != "twice"
            else either(whole(), ("task.parquet", "row-")),
        )
