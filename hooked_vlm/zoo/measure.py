"""What is measured of the models: accuracy, flips under both corruptions, and what not looking reaches.

Works with any model that has the public face of a `HookedVLM`, and names none. Costs five runs an example.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hooked_vlm.datasets import shapes
from hooked_vlm.datasets.scenes import GRID, Scene, render

BATCH = 100
BLANK = (128, 128, 128)
TEXT_ONLY_TRAIN = 5_000


@runtime_checkable
class Answerer(Protocol):
    """What is measured: any `HookedVLM`."""

    def to_inputs(self, images: Any, text: Any) -> Any:
        """Pictures and questions as the model takes them."""

    def __call__(self, inputs: Any) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits; the last position scores the next answer token."""

    def generate(self, inputs: Any, max_new_tokens: int) -> list[str]:
        """Answers in words."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a model does on a task; shares from 0 to 1."""

    task: str
    n: int
    accuracy: float
    generated: float  # generate() gives the answer and nothing after it
    image_flip: float  # of the scenes answered rightly, the corrupt image gives the wrong answer
    prompt_flip: float  # of those that have a rival, the corrupt prompt does
    n_prompt: int
    blank: float  # of a grey picture, the right choice scores above the wrong one: one half is chance
    text_only: float


def text_only_accuracy(task: str, n: int, seed: int) -> float:
    """What a classifier reaches that sees no picture: of each question, the most frequent answer.

    Args:
        task: One of the shapes world's.
        n: Unseen examples.
        seed: Of their stream.

    Returns:
        Share of right answers; one half is chance.
    """
    learned = _answers_by_prompt(task)
    tests = [shapes.pair(task, index, seed=seed, n_objects=(1, 2, 3)) for index in range(n)]
    right = [pair.prompt in learned and learned[pair.prompt].most_common(1)[0][0] == pair.answer for pair in tests]
    return sum(right) / n


@functools.cache
def _answers_by_prompt(task: str) -> dict[str, Counter[str]]:
    learned: dict[str, Counter[str]] = {}
    for index in range(TEXT_ONLY_TRAIN):
        pair = shapes.pair(task, index, split="train", n_objects=(1, 2, 3))
        learned.setdefault(pair.prompt, Counter())[pair.answer] += 1
    return learned


@torch.inference_mode()
def probabilities(
    model: Answerer, scenes: Sequence[Scene | None], prompts: Sequence[str]
) -> Float[Tensor, "batch d_vocab"]:
    """How likely each token is to be the answer.

    Args:
        model: Who answers.
        scenes: What is seen; None for a blank picture.
        prompts: A question for each.

    Returns:
        Softmax over the vocabulary, [batch d_vocab].
    """
    parts = []
    for start in range(0, len(scenes), BATCH):
        pictures = [
            Image.fromarray(render(scene)) if scene else Image.new("RGB", (GRID, GRID), BLANK)
            for scene in scenes[start : start + BATCH]
        ]
        logits = model(model.to_inputs(pictures, list(prompts[start : start + BATCH])))
        parts.append(logits[:, -1].float().softmax(-1))
    return torch.cat(parts)


def measure(model: Answerer, tokenizer: Any, task: str, n: int, seed: int) -> Figures:
    """Measure a model on unseen scenes of one to three things.

    Args:
        model: Who answers.
        tokenizer: Knows the token of every answer word.
        task: One of the shapes world's.
        n: How many scenes.
        seed: Of their stream.

    Returns:
        The figures.
    """
    pairs = [shapes.pair(task, index, seed=seed, n_objects=(1, 2, 3)) for index in range(n)]
    prompts = [pair.prompt for pair in pairs]
    right = torch.tensor(tokenizer.convert_tokens_to_ids([pair.answer for pair in pairs]))
    wrong = torch.tensor(tokenizer.convert_tokens_to_ids([pair.wrong_answer for pair in pairs]))
    scenes = [pair.scene for pair in pairs]

    known = probabilities(model, scenes, prompts).argmax(-1) == right
    turned = probabilities(model, [pair.corrupt_scene for pair in pairs], prompts).argmax(-1) == wrong
    unseeing = probabilities(model, [None] * n, prompts)
    blank = unseeing.gather(1, right[:, None]) > unseeing.gather(1, wrong[:, None])
    renamed = [(number, pair.corrupt_prompt) for number, pair in enumerate(pairs) if pair.corrupt_prompt]
    rows = torch.tensor([number for number, _ in renamed])
    by_prompt = probabilities(model, [scenes[row] for row in rows], [text for _, text in renamed]).argmax(-1)
    few = pairs[:BATCH]
    inputs = model.to_inputs([Image.fromarray(render(pair.scene)) for pair in few], [pair.prompt for pair in few])
    said = model.generate(inputs, max_new_tokens=4)
    return Figures(
        task=task,
        n=n,
        accuracy=_share(known),
        generated=sum(text.strip() == pair.answer for text, pair in zip(said, few, strict=True)) / len(few),
        image_flip=_share(turned[known]),
        prompt_flip=_share((by_prompt == wrong[rows])[known[rows]]),
        n_prompt=len(renamed),
        blank=_share(blank),
        text_only=text_only_accuracy(task, n, seed),
    )


def _share(hits: Tensor) -> float:
    return float(hits.float().mean()) if hits.numel() else 0.0
