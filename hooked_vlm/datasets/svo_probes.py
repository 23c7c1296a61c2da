"""SVO-Probes as it is downloaded (Hendricks and Nematzadeh, Findings of ACL 2021): "is the girl or boy riding horse?".

The folder holds `svo_probes.csv` and the pictures, in `images` or beside it, each named by its image id
(`123.jpg`), by the SHA-256 or MD5 of its URL in hexadecimal, or as the URL names it, where that name belongs to
one URL alone. Of each line the positive picture is the clean one and the negative picture the corrupt one, if the
two differ in exactly the part that is asked about: the semantic image pair of NOTICE (Golovanevsky et al., NAACL
2025). Prepositions are not in the data set's triplets, and so not in the questions.

Of two words each is right equally often as far as the lines go; where the data set opposes them in one direction
alone, so do the questions. Costs: the table is read twice at the start, and what is asked about is kept (some 400
bytes a line); names are listed; two pictures are decoded a row. Knows no model.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, deque
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from hooked_vlm.datasets.pictures import SUFFIXES, UNREADABLE, Skips, existing_folder, names_in, same, shuffled
from hooked_vlm.datasets.questions import NEAR, SAME, Questions, Rows, in_turns
from hooked_vlm.datasets.replacements import Related
from hooked_vlm.datasets.tables import lines
from hooked_vlm.datasets.words import (
    NEAR_NOUNS,
    NEAR_VERBS,
    PARTICIPLES,
    PARTICLES,
    SPARE_OBJECTS,
    SPARE_SUBJECTS,
    SPARE_VERBS,
)
from hooked_vlm.errors import DataError, ImageError
from hooked_vlm.images import read

TASKS = ("svo_subject", "svo_verb", "svo_object")
COLUMNS = (  # and sentence, which is not read
    *("pos_triplet", "neg_triplet", "subj_neg", "verb_neg", "obj_neg"),
    *("pos_url", "neg_url", "pos_image_id", "neg_image_id"),
)
_FLAGS = ("subj_neg", "verb_neg", "obj_neg")
_WHAT = "svo_probes.csv, and the pictures in images/ named by image id (123.jpg) or by the hash of their URL"

MISSING = "there is no file of the picture"
_WORD = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")


class Line(NamedTuple):
    """What is kept of a line of the table: two answers, the rest of the triplet, and two files; or of its reverse."""

    number: int
    answer: str
    wrong_answer: str
    rest: tuple[str, str]
    image: str
    corrupt_image: str
    end: str = ""

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.number}{self.end}"

    @property
    def reverse(self) -> Line:
        """The other way round: the negative picture clean, and its word right."""
        return Line(self.number, self.wrong_answer, self.answer, self.rest, self.corrupt_image, self.image, "-reversed")


@lru_cache(maxsize=4096)
def participle(verb: str) -> str:
    """A verb's form in -ing.

    Args:
        verb: The base form, also of several words ("pick up", "ice skate"); a form in -ing stays what it is.

    Returns:
        The form, lower case.

    Example:
        >>> [participle(verb) for verb in ("ride", "sit", "lie", "pick up", "ice skate", "picnic")]
        ['riding', 'sitting', 'lying', 'picking up', 'ice skating', 'picnicking']
    """
    from lemminflect import getAllLemmas, getInflection

    words = verb.casefold().split()
    at = next((k - 1 for k, word in enumerate(words) if k and word in PARTICLES), len(words) - 1)
    base = words[at]
    verbs = getAllLemmas(base, "VERB").get("VERB", ())
    if base in PARTICIPLES:
        words[at] = PARTICIPLES[base]
    elif not base.endswith("ing") or not verbs or base in verbs:  # not "riding", a form of "ride"; but "bring"
        forms = getInflection(base, "VBG")
        words[at] = forms[0] if forms else base.removesuffix("e") + "ing"
    return " ".join(words)


def question(part: int, rest: tuple[str, str], first: str, second: str) -> str:
    """The question with two words for one part of a triplet.

    Args:
        part: 0 for the subject, 1 for the verb, 2 for the object.
        rest: The other two parts in their order; verbs in -ing.
        first: The choice that stands first.
        second: The other.

    Example:
        >>> question(0, ("riding", "horse"), "girl", "boy"), question(2, ("girl", "riding"), "horse", "bike")
        ('is the girl or boy riding horse?', 'is the girl riding horse or bike?')
    """
    words = list(rest)
    words.insert(part, f"{first} or {second}")
    return f"is the {' '.join(words)}?"


def rows(
    task: str,
    data: str | Path | None,
    *,
    seed: int = 0,
    tokenizer: Any = None,
    skips: Skips | None = None,
    as_published: bool = False,
) -> Rows:
    """The rows of a task, in the columns of `pairs` without a mask.

    Args:
        task: "svo_subject", "svo_verb" or "svo_object".
        data: The folder with `svo_probes.csv`.
        seed: Which order.
        tokenizer: The model's tokenizer; None for no corrupt prompts.
        skips: Where what is passed over is counted.
        as_published: Each line both ways round, and both answers replaced in corrupt prompts, as the released NOTICE
            code means to.

    Returns:
        A stream of rows; the pairs of words take turns.

    Raises:
        DataError: The table or the pictures are not there or not as they should be, or no line can be asked about.
    """
    skips = skips if skips is not None else Skips()
    part = TASKS.index(task)
    folder = existing_folder(data, task, _WHAT)
    table = folder / "svo_probes.csv"
    if not table.is_file():
        there = ", ".join(sorted(names_in(folder))[:10]) or "no file"
        raise DataError(f"{str(folder)!r} has no svo_probes.csv: expected {_WHAT}; found {there}.")
    related = (NEAR_NOUNS, NEAR_VERBS, NEAR_NOUNS)[part]
    chosen = _Chosen(part, _Files(folder, table), related, skips, both_ways=as_published)
    for number, line in lines(table, COLUMNS):
        chosen.take(number, line)
    if not chosen.groups:
        reasons = skips.told() or "there are no lines"
        raise DataError(f"No line of {str(table)!r} can be asked about as {task}: {reasons}.")
    draws = Questions(task, seed, tokenizer, related, skips, as_published)
    asking = _Asking(part, folder, draws, chosen.words, chosen.opposed, set())
    return in_turns([_group(name, chosen.groups[name], asking) for name in shuffled(chosen.groups, task, seed)])


class _Files:
    """Which file is the picture of an id and a URL."""

    def __init__(self, folder: Path, table: Path) -> None:
        self._by_stem: dict[str, str] = {}
        for inside in ("images", "."):
            if (folder / inside).is_dir():
                for name in sorted(names_in(folder / inside)):
                    stem, dot, _ = name.rpartition(".")
                    if name.lower().endswith(SUFFIXES) or not dot:
                        self._by_stem.setdefault(stem or name, name if inside == "." else f"{inside}/{name}")
        if not self._by_stem:
            raise DataError(f"{str(folder)!r} holds no picture: expected {_WHAT}.")
        self._urls: dict[str, str | None] = {}  # of each name that URLs end in, its URL; None if it has several
        self._ids: set[str] = set()
        for _, line in lines(table, COLUMNS):
            for which in ("pos", "neg"):
                self._ids.add(line[f"{which}_image_id"])
                url = line[f"{which}_url"]
                stem = self._stem(url)
                self._urls[stem] = url if self._urls.get(stem, url) == url else None

    def of(self, id: str, url: str) -> str | None:
        """The file's path in the folder; None if there is none, or if it may be another picture's."""
        if id and (found := self._by_stem.get(id)):
            return found
        if not url:
            return None
        for digest in (hashlib.sha256, hashlib.md5):
            if found := self._by_stem.get(digest(url.encode()).hexdigest()):
                return found
        stem = self._stem(url)
        if stem in self._ids or self._urls.get(stem) is None:
            return None
        return self._by_stem.get(stem)

    @staticmethod
    def _stem(url: str) -> str:
        try:
            return PurePosixPath(unquote(urlsplit(url).path)).stem
        except ValueError:  # not a URL at all
            return ""


class _Chosen:
    """The lines that differ in the asked part alone, by pair of answers and right answer, and all words there."""

    def __init__(self, part: int, files: _Files, related: Related, skips: Skips, *, both_ways: bool) -> None:
        self.groups: dict[str, dict[str, list[Line]]] = {}
        self.words: set[str] = set()
        self.opposed: dict[str, set[str]] = {}  # whom the data set itself sets against a word
        self._part, self._files, self._related, self._skips = part, files, related, skips
        self._both_ways = both_ways
        self._seen: set[tuple[Any, ...]] = set()

    def take(self, number: int, line: dict[str, str]) -> None:
        """Keep a line, or count why not."""
        name = f"line {number}"
        triplets = [self._triplet(line[which]) for which in ("pos_triplet", "neg_triplet")]
        if None in triplets:
            return self._skips.add("a triplet is not three words", name)
        positive, negative = (each for each in triplets if each is not None)
        self.words.update((positive[self._part], negative[self._part]))
        flags = [line[flag].casefold() in ("true", "1", "1.0", "yes") for flag in _FLAGS]
        if flags != [k == self._part for k in range(3)]:
            return self._skips.add("the pictures differ in another part", name)
        if [one != other for one, other in zip(positive, negative, strict=True)] != flags:
            return self._skips.add("the triplets differ otherwise than the line says", name)
        answer, wrong = positive[self._part], negative[self._part]
        self.opposed.setdefault(answer, set()).add(wrong)
        self.opposed.setdefault(wrong, set()).add(answer)
        if self._related(answer, wrong):
            return self._skips.add(NEAR, f"{name}: {answer}/{wrong}")
        words = Counter(word for each in (*positive, wrong) for word in each.split())
        if any(words[word] > 1 for each in (answer, wrong) for word in each.split()):
            return self._skips.add("an answer stands twice in the question", name)
        found = [self._files.of(line[f"{which}_image_id"], line[f"{which}_url"]) for which in ("pos", "neg")]
        for which, file in zip(("pos", "neg"), found, strict=True):
            if file is None:
                shown = line[f"{which}_image_id"] or line[f"{which}_url"]
                return self._skips.add(MISSING, f"{name}: {shown}")
        rest = tuple(each for k, each in enumerate(positive) if k != self._part)
        line_kept = Line(number, answer, wrong, (rest[0], rest[1]), str(found[0]), str(found[1]))
        for kept in (line_kept, line_kept.reverse) if self._both_ways else (line_kept,):
            if kept[1:-1] in self._seen:
                self._skips.add("an earlier line asks the same of the same pictures", f"{name}{kept.end}")
                continue
            self._seen.add(kept[1:-1])
            group = self.groups.setdefault("/".join(sorted((answer, wrong))), {})
            group.setdefault(kept.answer, []).append(kept)

    @staticmethod
    def _triplet(text: str) -> tuple[str, str, str] | None:
        parts = [each.strip().replace("_", " ").casefold() for each in text.split(",")]
        if len(parts) != 3 or not all(_WORD.fullmatch(each) for each in parts):
            return None
        return parts[0], participle(parts[1]), parts[2]


class _Asking(NamedTuple):
    """What every group of a task needs to make its rows."""

    part: int
    folder: Path
    draws: Questions
    words: set[str]
    opposed: dict[str, set[str]]
    damaged: set[str]


def _group(group: str, lines: dict[str, list[Line]], asking: _Asking) -> Rows:
    draws, named = asking.draws, {line.name: line for each in lines.values() for line in each}
    left = {
        answer: deque(shuffled((line.name for line in each), draws.task, draws.seed)) for answer, each in lines.items()
    }
    spare = (SPARE_SUBJECTS, tuple(map(participle, SPARE_VERBS)), SPARE_OBJECTS)[asking.part]
    while any(left.values()):
        one, other = sorted(left) if len(left) == 2 else (next(iter(left)),) * 2
        answer = draws.due(group, (one, other))
        answer = answer if left[answer] else other if answer == one else one
        line = named[left[answer].popleft()]
        pictures = [_read(file, asking) for file in (line.image, line.corrupt_image)]
        if None in pictures:
            continue
        image, corrupt_image = (each for each in pictures if each is not None)
        id = f"{draws.task}-{line.number:06d}{line.end}"
        if same(image, corrupt_image):
            draws.skips.add(SAME, id)
            continue

        def ask(first: str, second: str, rest: tuple[str, str] = line.rest) -> str:
            return question(asking.part, rest, first, second)

        # First the words that the data set itself opposes to the answer: people saw that a picture shows one only.
        opposed = asking.opposed[answer]
        words = (opposed, asking.words - opposed, spare)
        yield draws.row(id, group, answer, line.wrong_answer, ask, image, corrupt_image, words)


def _read(file: str, asking: _Asking) -> Any:
    """The picture, or None with its name counted, once however many lines have it."""
    if file in asking.damaged:
        return None
    try:
        return read(asking.folder / file)
    except ImageError:
        asking.damaged.add(file)
        asking.draws.skips.add(UNREADABLE, file)
        return None
