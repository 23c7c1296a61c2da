"""A user's own pairs: a folder with `pairs.csv` and pictures.

`pairs.csv` has the columns `image, corrupt_image, prompt, answer, wrong_answer`, pictures as paths inside the
folder (no link out of it is followed); and, where wanted, `id`, `task`, `group`, `corrupt_prompt`, `mask` (white
where the thing asked about stands) and `rival_mask` (white where the thing stands of which the wrong answer is
right). What is missing is made: a group of the two answers, an id of the line's number, and, with a tokenizer, a
corrupt prompt in which an answer of another line replaces the right one. A line without a corrupt_image has its text
corrupted alone.

Costs: the table's texts are kept; pictures are decoded one row at a time. Knows no model.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hooked_vlm.datasets import tables, words
from hooked_vlm.datasets.pairs import MASKS
from hooked_vlm.datasets.pictures import Skips, existing_folder, names_in, shuffled
from hooked_vlm.datasets.questions import Questions, Rows, in_turns
from hooked_vlm.datasets.replacements import same_part_of_speech
from hooked_vlm.datasets.rows import NEEDED, unusable, whole
from hooked_vlm.errors import DataError, TaskSchemaError, quoted

TASK = "folder"
OPTIONAL = ("id", "task", "group", "corrupt_prompt", *MASKS)
_WHAT = f"pairs.csv with the columns {', '.join(NEEDED)} (and {', '.join(OPTIONAL)}, where wanted), and the pictures"


def rows(
    data: str | Path | None,
    *,
    seed: int = 0,
    tokenizer: Any = None,
    skips: Skips | None = None,
    as_published: bool = False,
) -> Rows:
    """The rows of the folder, in the columns of `pairs`; a mask is None where there is none.

    Args:
        data: The folder with `pairs.csv`.
        seed: Which order.
        tokenizer: The model's tokenizer; None to make no corrupt prompts beside those of the table.
        skips: Where what is passed over is counted.
        as_published: Both answers replaced in the corrupt prompts made here, as the released NOTICE code does.

    Returns:
        A stream of rows; the groups take turns.

    Raises:
        DataError: There is no such folder or table, or no line of it can be used.
        TaskSchemaError: The table lacks a column, or two lines have one id.
    """
    skips = skips if skips is not None else Skips()
    folder = place(data)
    usable = [line for _, line in lines(folder, skips)]
    if not usable:
        raise DataError(f"No line of {str(folder / 'pairs.csv')!r} can be used: {skips.told() or 'there are none'}.")
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for line in usable:
        groups.setdefault(line["group"], {})[line["id"]] = line
    draws = Questions(TASK, seed, tokenizer, _near, skips, as_published)
    vocabulary = sorted({line[name] for line in usable for name in ("answer", "wrong_answer")})
    return in_turns(
        [
            _group([groups[name][id] for id in shuffled(groups[name], TASK, seed)], folder, draws, vocabulary)
            for name in shuffled(groups, TASK, seed)
        ]
    )


def place(data: str | Path | None) -> Path:
    """The folder of the task.

    Raises:
        DataError: None was given, or there is no such folder.
    """
    return existing_folder(data, TASK, _WHAT)


def _near(one: str, other: str) -> bool:
    """Whether any table of ours has the two words as too near."""
    tables = (words.NEAR_STATES, words.NEAR_EMOTIONS, words.NEAR_NOUNS, words.NEAR_VERBS)
    return any(table(one, other) for table in tables)


def lines(folder: Path, skips: Skips) -> Iterator[tuple[int, dict[str, str]]]:
    """The usable lines of the folder's table as raw rows, with what was left out filled in, and their numbers.

    Raises:
        DataError: There is no table, or it is damaged.
        TaskSchemaError: The table lacks a column, or two lines have one id.
    """
    table = folder / "pairs.csv"
    if not table.is_file():
        there = ", ".join(sorted(names_in(folder))[:10]) or "no file"
        raise DataError(f"{str(folder)!r} has no pairs.csv: expected {_WHAT}; found {there}.")
    seen: dict[str, int] = {}
    for number, line in tables.lines(table, NEEDED, OPTIONAL):
        if reason := unusable(line, folder):
            skips.add(reason, f"line {number}")
            continue
        line["id"] = line["id"] or f"{TASK}-{number:06d}"
        line["task"] = line["task"] or TASK
        line["group"] = line["group"] or "/".join(sorted((line["answer"], line["wrong_answer"])))
        if line["id"] in seen:
            raise TaskSchemaError(
                f"Lines {seen[line['id']]} and {number} of {str(table)!r} are both called {quoted(line['id'])}: "
                "ids differ in a task."
            )
        seen[line["id"]] = number
        yield number, line


def _group(lines: list[dict[str, str]], folder: Path, draws: Questions, vocabulary: list[str]) -> Rows:
    for line in lines:
        if (row := whole(line, folder, draws.skips)) is None:
            continue
        row["corrupt_prompt"] = line["corrupt_prompt"] or draws.corrupt(
            line["id"],
            line["prompt"],
            line["answer"],
            line["wrong_answer"],
            ([word for word in vocabulary if same_part_of_speech(word, line["answer"])],),
        )
        yield row
