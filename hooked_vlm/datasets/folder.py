"""A user's own pairs: a folder with `pairs.csv` and pictures.

`pairs.csv` has the columns `image, corrupt_image, prompt, answer, wrong_answer`, pictures as paths inside the
folder; and, where wanted, `id`, `task`, `group`, `corrupt_prompt` and `mask` (white where the thing asked about
stands). What is missing is made: a group of the two answers, an id of the line's number, and, with a tokenizer, a
corrupt prompt in which an answer of another line replaces the right one.

Costs: the table's texts are kept; pictures are decoded one row at a time. Knows no model.
"""

import csv
import re
from pathlib import Path
from typing import Any

from PIL import Image

from hooked_vlm.datasets import words
from hooked_vlm.datasets.pictures import UNREADABLE, Skips, existing_folder, names_in, read, same, shuffled
from hooked_vlm.datasets.questions import SAME, Questions, Rows, in_turns
from hooked_vlm.datasets.replacements import same_part_of_speech
from hooked_vlm.errors import DataError, ImageError, TaskSchemaError

TASK = "folder"
NEEDED = ("image", "corrupt_image", "prompt", "answer", "wrong_answer")
OPTIONAL = ("id", "task", "group", "corrupt_prompt", "mask")
_WHAT = f"pairs.csv with the columns {', '.join(NEEDED)} (and {', '.join(OPTIONAL)}, where wanted), and the pictures"


def rows(data: str | Path | None, *, seed: int = 0, tokenizer: Any = None, skips: Skips | None = None) -> Rows:
    """The rows of the folder, in the columns of `pairs`; `mask` is None where there is none.

    Args:
        data: The folder with `pairs.csv`.
        seed: Which order.
        tokenizer: The model's tokenizer; None to make no corrupt prompts beside those of the table.
        skips: Where what is passed over is counted.

    Returns:
        A stream of rows; the groups take turns.

    Raises:
        DataError: There is no such folder or table, or no line of it can be used.
        TaskSchemaError: The table lacks a column, or two lines have one id.
    """
    skips = skips if skips is not None else Skips()
    folder = existing_folder(data, TASK, _WHAT)
    lines = _lines(folder, skips)
    if not lines:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in skips.counts.most_common())
        raise DataError(f"No line of {str(folder / 'pairs.csv')!r} can be used: {reasons or 'there are none'}.")
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for line in lines:
        groups.setdefault(line["group"], {})[line["id"]] = line
    draws = Questions(TASK, seed, tokenizer, _near, skips)
    vocabulary = sorted({line[name] for line in lines for name in ("answer", "wrong_answer")})
    return in_turns(
        [
            _group([groups[name][id] for id in shuffled(groups[name], TASK, seed)], folder, draws, vocabulary)
            for name in shuffled(groups, TASK, seed)
        ]
    )


def _near(one: str, other: str) -> bool:
    """Whether any table of ours has the two words as too near."""
    tables = (words.NEAR_STATES, words.NEAR_EMOTIONS, words.NEAR_NOUNS, words.NEAR_VERBS)
    return any(table(one, other) for table in tables)


def _lines(folder: Path, skips: Skips) -> list[dict[str, str]]:
    table = folder / "pairs.csv"
    if not table.is_file():
        there = ", ".join(sorted(names_in(folder))[:10]) or "no file"
        raise DataError(f"{str(folder)!r} has no pairs.csv: expected {_WHAT}; found {there}.")
    lines: list[dict[str, str]] = []
    seen: dict[str, int] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            columns = reader.fieldnames or []
            if missing := [name for name in NEEDED if name not in columns]:
                raise TaskSchemaError(
                    f"{str(table)!r} has no column {', '.join(missing)}: expected {_WHAT}; "
                    f"found {', '.join(columns) or 'nothing'}."
                )
            for each in reader:
                line = {name: (each.get(name) or "").strip() for name in (*NEEDED, *OPTIONAL)}
                number = reader.line_num
                if reason := _unusable(line):
                    skips.add(reason, f"line {number}")
                    continue
                line["id"] = line["id"] or f"{TASK}-{number:06d}"
                line["task"] = line["task"] or TASK
                line["group"] = line["group"] or "/".join(sorted((line["answer"], line["wrong_answer"])))
                if line["id"] in seen:
                    raise TaskSchemaError(
                        f"Lines {seen[line['id']]} and {number} of {str(table)!r} are both called {line['id']!r}: "
                        "ids differ in a task."
                    )
                seen[line["id"]] = number
                lines.append(line)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{str(table)!r} cannot be read as a table of comma-separated UTF-8: {error}") from error
    return lines


def _unusable(line: dict[str, str]) -> str:
    """Why a line is no row; empty if it is one."""
    if empty := [name for name in NEEDED if not line[name]]:
        return f"the line has no {', '.join(empty)}"
    answers = [line[name].casefold() for name in ("answer", "wrong_answer")]
    if answers[0] == answers[1]:
        return "the answer is the wrong answer too"
    if not all(re.search(rf"(?<!\w){re.escape(each)}(?!\w)", line["prompt"].casefold()) for each in answers):
        return "the question does not offer both answers"
    for name in ("image", "corrupt_image", "mask"):
        path = Path(line[name])
        if path.is_absolute() or ".." in path.parts:
            return "a path leads out of the folder"
    return ""


def _group(lines: list[dict[str, str]], folder: Path, draws: Questions, vocabulary: list[str]) -> Rows:
    for line in lines:
        pictures: dict[str, Image.Image | None] = {"mask": None}
        try:
            for name in ("image", "corrupt_image", "mask"):
                if line[name]:
                    pictures[name] = read(folder / line[name])
        except ImageError as error:
            draws.skips.add(UNREADABLE, f"{line['id']}: {error}")
            continue
        image, corrupt_image, mask = pictures["image"], pictures["corrupt_image"], pictures["mask"]
        if image is None or corrupt_image is None or same(image, corrupt_image):
            draws.skips.add(SAME, line["id"])
            continue
        if mask is not None and mask.size != image.size:
            draws.skips.add("no mask: it has another size than its picture", line["id"])
            mask = None
        answer, wrong = line["answer"], line["wrong_answer"]
        corrupt = line["corrupt_prompt"] or draws.corrupt(
            line["id"],
            line["prompt"],
            answer,
            wrong,
            ([word for word in vocabulary if same_part_of_speech(word, answer)],),
        )
        row: dict[str, Any] = {name: line[name] for name in ("id", "task", "group", "prompt", "answer", "wrong_answer")}
        yield row | {
            "image": image,
            "corrupt_image": corrupt_image,
            "corrupt_prompt": corrupt,
            "mask": None if mask is None else mask.convert("L"),
        }
