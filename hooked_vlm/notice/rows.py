"""The rows that a run may use, looked through before anything is computed, and the same rows again.

`survey` draws every row that a task may come to, checks it, and keeps its id and its fingerprint: what is wrong with a
row is said before the first example, and not after the last. `Survey.again` draws them once more and refuses one that
is not the row it was, so that an example is always the row that its number, id and fingerprint say.

Cost: every picture is decoded once before the run begins (some 5 ms a photograph, where patching an example takes
seconds), and 200 bytes a row are kept. Knows no model but its tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.sources import Source, source
from hooked_vlm.errors import ResumeError, TaskSchemaError, quoted
from hooked_vlm.notice import fingerprint
from hooked_vlm.notice.config import SEEN_FOR_EACH, NoticeConfig
from hooked_vlm.notice.storage import digest_of

NAMED = 3  # rows that differ, named in an error
_NEEDED = ("id", "prompt", "answer", "wrong_answer")


@dataclass(frozen=True)
class Survey:
    """The rows of a task that a run may use.

    Args:
        task: as the configuration names it.
        ids: of the rows, in order.
        prints: their fingerprints.
        skipped: how many cases were passed over for which reason.
        named: the first of each reason.
    """

    task: str
    ids: tuple[str, ...]
    prints: tuple[str, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    named: Mapping[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.ids)

    @property
    def digest(self) -> str:
        """Of all rows in their order."""
        return digest_of([self.ids, self.prints])

    def again(self, config: NoticeConfig, model: Any, numbers: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of some numbers once more, in order.

        Raises:
            ResumeError: if one is not the row that was surveyed.
        """
        if not numbers:
            return
        last, number = max(numbers), -1
        for number, row in enumerate(rows_of(config, model, self.task).rows):
            if number in numbers:
                if (str(row["id"]), fingerprint.of_row(row)) != (self.ids[number], self.prints[number]):
                    raise ResumeError(
                        f"row {number} of {self.task} was {quoted(self.ids[number])} when the run began, and is "
                        f"{quoted(str(row['id']))} now or holds something else: leave the data alone while a run "
                        "reads it, bring it back, and the same command goes on"
                    )
                yield number, row
            if number >= last:
                return
        if number < last:
            raise ResumeError(
                f"{self.task} had {len(self)} rows when the run began, and has {number + 1} now: leave the data alone "
                "while a run reads it, bring it back, and the same command goes on"
            )

    def changes(self, ids: Sequence[str], prints: Sequence[str]) -> list[str]:
        """What differs from rows of other ids and fingerprints, in words; nothing if they are the same rows."""
        before = dict(zip(ids, prints, strict=True))
        now = dict(zip(self.ids, self.prints, strict=True))
        found = {
            "gone": [each for each in before if each not in now],
            "changed": [each for each in before if each in now and before[each] != now[each]],
            "new": [each for each in now if each not in before],
        }
        told = []
        for what, names in found.items():
            if names:
                more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                told.append(
                    f"{', '.join(map(quoted, names[:NAMED]))}{more} {'is' if len(names) == 1 else 'are'} {what}"
                )
        return told or (["they stand in another order"] if tuple(ids) != self.ids else [])


def rows_of(config: NoticeConfig, model: Any, task: str) -> Source:
    """A task's rows, as many as a run looks at; row number k is always the same."""
    tokenizer = getattr(model.processor, "tokenizer", None)
    n = SEEN_FOR_EACH * config.examples
    return source(task, data=config.data, n=n, seed=config.seed, tokenizer=tokenizer, warn=False)


def survey(config: NoticeConfig, model: Any, task: str) -> Survey:
    """Look through the rows of a task.

    Args:
        config: the run's, resolved.
        model: a `HookedVLM`.
        task: as the configuration names it.

    Raises:
        TaskSchemaError: if a row is none of a task, or two have one id.
        DataError, ...: as the task's source raises.
    """
    drawn = rows_of(config, model, task)
    places: dict[str, int] = {}
    prints = []
    for number, row in enumerate(drawn.rows):
        name = f"row {number} of {task}"
        check(row, name)
        if row["id"] in places:
            raise TaskSchemaError(
                f"rows {places[row['id']]} and {number} of {task} are both called {quoted(row['id'])}: ids differ in "
                "a task"
            )
        places[row["id"]] = number
        prints.append(fingerprint.of_row(row))
    return Survey(task, tuple(places), tuple(prints), dict(drawn.skipped), dict(drawn.named))


def check(row: Mapping[str, Any], name: str) -> None:
    """Refuse a row that no run can use.

    Args:
        row: with the columns of `pairs.COLUMNS`, pictures as PIL images.
        name: what errors call it.

    Raises:
        TaskSchemaError: if a column is missing or of another type, or a mask does not fit its picture.
    """
    name = f"{name} ({quoted(row['id'])})" if isinstance(row.get("id"), str) else name
    for column in pairs.COLUMNS:
        value = row.get(column)
        if column == "image" or (column in pairs.PICTURES and value is not None):
            if not isinstance(value, Image.Image):
                raise TaskSchemaError(f"{name} has a {type(value).__name__} as its {column}: expected a picture")
        elif not (isinstance(value, str) and value.strip() if column in _NEEDED else isinstance(value, str | None)):
            raise TaskSchemaError(f"{name} has {quoted(value)} as its {column}: expected a text")
    mask, image = row.get("mask"), row["image"]
    if mask is not None and mask.size != image.size:
        raise TaskSchemaError(
            f"the mask of {name} is {' x '.join(map(str, mask.size))} pixels and its picture "
            f"{' x '.join(map(str, image.size))}: a mask has its picture's size"
        )
