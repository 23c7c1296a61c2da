"""The rows that a run may use, looked through before anything is computed, and the same rows again.

`TaskRows.survey` draws every row that a task may come to, checks it, and notes its id and its fingerprint: what is
wrong with a row is said before the first example, and not after the last. The rows stay in memory while their pictures
fit in it, and a source is opened once. Where they do not, `TaskRows.again` draws them anew and refuses one that is not
the row it was, so that an example is always the row that its number, id and fingerprint say.

Cost: every picture is decoded once before the run begins (some 5 ms a photograph, where patching an example takes
seconds); `KEPT` bytes of pictures are kept at most, and 200 bytes of every row. Knows no model but its tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from PIL import Image

from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.sources import Source, source
from hooked_vlm.errors import DataError, ResumeError, TaskSchemaError, quoted
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.notice import fingerprint
from hooked_vlm.notice.config import SEEN_FOR_EACH, NoticeConfig
from hooked_vlm.notice.storage import digest_of

KEPT = 2**28  # bytes of pictures that a run keeps in memory
NAMED = 3  # rows that differ, named in an error
NO_PROMPTS = "its corrupt prompts are empty"
_NEEDED = ("id", "prompt", "answer", "wrong_answer")
Row = dict[str, Any]


class TaskRows:
    """The rows of a task that a run may use.

    Args:
        config: the run's; its task, data, seed and number of examples say which rows.
        task: as the configuration names it.

    Attributes:
        ids: of the rows, in order, once they were surveyed.
        prints: their fingerprints.
    """

    def __init__(self, config: NoticeConfig, task: str) -> None:
        self.task, self.ids, self.prints = task, list[str](), list[str]()
        self._config, self._left = config, KEPT // len(config.tasks)
        self._source: Source | None = None
        self._kept: list[Row] | None = []  # from the first on; None where they are too large

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.ids)

    @property
    def digest(self) -> str:
        """Of all rows in their order."""
        return digest_of([self.ids, self.prints])

    @property
    def noted(self) -> dict[str, Any]:
        """How many rows there are, how many cases were passed over for which reason, and the first of each."""
        assert self._source is not None
        return {"rows": len(self), "skipped": dict(self._source.skipped), "named": dict(self._source.named)}

    def first(self, model: HookedVLM, n: int) -> list[Row]:
        """The first rows, as they come.

        Args:
            model: a `HookedVLM`, its weights not needed.
            n: how many.
        """
        assert self._kept is not None
        self._kept += islice(self._opened(model).rows, max(0, n - len(self._kept)))
        return self._kept[:n]

    def survey(self, model: HookedVLM) -> None:
        """Look through the rows.

        Args:
            model: a `HookedVLM`.

        Raises:
            TaskSchemaError: if a row is none of a task, or two have one id.
            DataError, ...: as the task's source raises, or if a run as published has no corrupt prompt.
        """
        places: dict[str, int] = {}
        replaced = False
        for number, row in enumerate(self._every(model)):
            name = f"row {number} of {self.task}"
            check(row, name)
            if row["id"] in places:
                raise TaskSchemaError(
                    f"rows {places[row['id']]} and {number} of {self.task} are both called {quoted(row['id'])}: ids "
                    "differ in a task"
                )
            places[row["id"]] = number
            self.prints.append(fingerprint.of_row(row))
            replaced = replaced or row["corrupt_prompt"] is not None
        if self._config.as_published and "text" in self._config.corrupt and places and not replaced:
            why = "; ".join(self.noted["skipped"]) or NO_PROMPTS
            raise DataError(
                f"no row of {self.task} has a corrupt prompt in which both answers are replaced, as published ({why}): "
                "give some that offer two other words and have as many tokens, take --corrupt image, or leave out "
                "--as-published"
            )
        self.ids += places

    def _opened(self, model: HookedVLM) -> Source:
        if self._source is None:
            self._source = rows_of(self._config, model, self.task)
        return self._source

    def _every(self, model: HookedVLM) -> Iterator[Row]:
        """Every row, those that were drawn already first; it is kept while there is room."""
        rest = self._opened(model).rows
        for row in self._kept or []:
            self._left -= _size(row)
            yield row
        for row in rest:
            self._left -= _size(row)
            if self._left < 0:
                self._kept = None
            elif self._kept is not None:
                self._kept.append(row)
            yield row

    def again(self, model: HookedVLM, numbers: Collection[int]) -> Iterator[tuple[int, Row]]:
        """The rows of some numbers once more, in order.

        Raises:
            ResumeError: if one is not the row that was surveyed.
        """
        if not numbers:
            return
        if self._kept is not None:
            yield from ((number, self._kept[number]) for number in sorted(numbers))
            return
        last, number = max(numbers), -1
        for number, row in enumerate(rows_of(self._config, model, self.task).rows):
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
        return told or (["they stand in another order"] if list(ids) != self.ids else [])


def rows_of(config: NoticeConfig, model: HookedVLM, task: str) -> Source:
    """A task's rows, as many as a run looks at; row number k is always the same."""
    tokenizer = getattr(model.processor, "tokenizer", None)
    n = SEEN_FOR_EACH * config.examples
    return source(
        task,
        data=config.data,
        n=n,
        seed=config.seed,
        tokenizer=tokenizer,
        warn=False,
        as_published=config.as_published,
    )


def _size(row: Mapping[str, Any]) -> int:
    """Bytes of a row's pictures."""
    pictures = [value for value in row.values() if isinstance(value, Image.Image)]
    return sum(picture.width * picture.height * len(picture.getbands()) for picture in pictures)


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
    for column in pairs.MASKS:
        mask, image = row.get(column), row["image"]
        if mask is not None and mask.size != image.size:
            raise TaskSchemaError(
                f"the {column.replace('_', ' ')} of {name} is {' x '.join(map(str, mask.size))} pixels and its picture "
                f"{' x '.join(map(str, image.size))}: a mask has its picture's size"
            )
