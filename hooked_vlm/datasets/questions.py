"""Two-choice questions drawn evenly: what every adapter of pictures in folders has in common.

Which answer is right, and where in the question it stands, is drawn so that counts stay level: of each group,
each answer stands first and last equally often, and so over all groups. Groups take turns. Every draw is a
function of the seed and of what was drawn before, so the same folder gives the same rows.

Costs: two counts per group and answer. Knows no data set and no model.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from hooked_vlm.datasets.pictures import Skips
from hooked_vlm.datasets.replacements import replacement
from hooked_vlm.datasets.scenes import Dice
from hooked_vlm.errors import ReplacementError

Rows = Iterator[dict[str, Any]]

NO_TOKENIZER = "no corrupt prompt: no tokenizer was given"
NO_WORD = "no corrupt prompt: no word of the same part of speech and token count fits"
SAME = "the two pictures are the same picture"
NEAR = "the two answers mean nearly the same"


@dataclass
class Questions:
    """The state from which a task's rows are drawn.

    Args:
        task: The task's name.
        seed: Which draws.
        tokenizer: The model's tokenizer, or None for no corrupt prompts.
        related: Whether two words are too near to stand against each other.
        skips: What is passed over is counted here.
        both: Whether corrupt prompts have other words for both answers, as the released NOTICE code does, and not for
            the right one alone.
    """

    task: str
    seed: int
    tokenizer: Any
    related: Callable[[str, str], bool]
    skips: Skips
    both: bool = False
    _asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    _first: Counter[tuple[str, str]] = field(default_factory=Counter)
    _firsts: int = 0  # rows with the answer in the first place, less those with it in the second

    def due(self, group: str, answers: Sequence[str]) -> str:
        """Which of two answers should be right next in a group: the one that was right less often."""
        one, other = answers
        lead = self._asked[group, one] - self._asked[group, other]
        if lead == 0:
            return self._dice("due", group, self._asked[group, one]).pick((one, other))
        return other if lead > 0 else one

    def row(
        self,
        id: str,
        group: str,
        answer: str,
        wrong_answer: str,
        ask: Callable[[str, str], str],
        image: Image.Image,
        corrupt_image: Image.Image,
        words: Sequence[Collection[str]],
    ) -> dict[str, Any]:
        """A row of the task's table.

        Args:
            id: The row's name.
            group: The group it belongs to.
            answer: What is right of the clean picture.
            wrong_answer: The other choice.
            ask: Makes the question from the choice that stands first and the one that stands second.
            image: The clean picture.
            corrupt_image: The picture of which the wrong answer is right.
            words: Words that may replace the answer; of a later collection only if none of those before fits.

        Returns:
            The row, without a mask; its corrupt prompt is None if there can be none, and the reason is counted.
        """
        first = self._stands_first(group, answer)
        prompt = ask(answer, wrong_answer) if first else ask(wrong_answer, answer)
        return {
            "id": id,
            "task": self.task,
            "group": group,
            "image": image,
            "corrupt_image": corrupt_image,
            "prompt": prompt,
            "corrupt_prompt": self.corrupt(id, prompt, answer, wrong_answer, words),
            "answer": answer,
            "wrong_answer": wrong_answer,
        }

    def corrupt(
        self, id: str, prompt: str, answer: str, wrong_answer: str, words: Sequence[Collection[str]]
    ) -> str | None:
        """The prompt with the right answer replaced, or both, or None with the reason counted."""
        if self.tokenizer is None:
            self.skips.add(NO_TOKENIZER, id)
            return None
        # A synonym of an answer would offer the same choice twice.
        found = self._replaced(id, "replacement", prompt, answer, [wrong_answer], words)
        if found and self.both:
            found = self._replaced(id, "other replacement", found, wrong_answer, [answer], words)
        if found is None:
            self.skips.add(NO_WORD, id)
        return found

    def _replaced(
        self, id: str, what: str, prompt: str, word: str, near: Sequence[str], words: Sequence[Collection[str]]
    ) -> str | None:
        """The prompt with a word replaced by one that is near to none of some; None if there is none."""
        for number, candidates in enumerate(words):
            apart = [each for each in candidates if not any(self.related(each, other) for other in near)]
            dice = Dice(what, self.seed, ascii(id), number)
            try:
                return replacement(prompt, word, apart, self.tokenizer, dice, related=self.related)
            except ReplacementError:
                continue
        return None

    def _stands_first(self, group: str, answer: str) -> bool:
        """Whether the answer comes first in the question: as it did less often of its own, then over all."""
        asked = self._asked[group, answer]
        lead = 2 * self._first[group, answer] - asked or self._firsts
        first = lead < 0 if lead else self._dice("first", group, answer, asked).pick((True, False))
        self._asked[group, answer] += 1
        self._first[group, answer] += first
        self._firsts += 1 if first else -1
        return first

    def _dice(self, what: str, *key: str | int) -> Dice:
        return Dice(what, self.seed, self.task, *(ascii(each) for each in key))  # Dice reads ASCII


def in_turns(groups: Sequence[Rows]) -> Rows:
    """One row of each group in turn, until every group is at its end."""
    left = deque(groups)
    while left:
        group = left.popleft()
        if (row := next(group, None)) is not None:
            left.append(group)
            yield row
