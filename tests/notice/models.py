"""Small models with processors for the tests of the pipeline, made once."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from hooked_vlm import HookedVLM
from hooked_vlm.analysis import answers
from hooked_vlm.datasets import pairs, shapes
from hooked_vlm.zoo.recipes import RECIPES
from tests.models import checkpoints

FAMILIES = ["blip", "llava"]
SPOKEN = checkpoints.WORDS.lower().split()[:24]


@cache
def small(family: str) -> HookedVLM:
    """A random model of a family."""
    hf, processor = checkpoints.blip_vqa() if family == "blip" else checkpoints.llava()
    return HookedVLM.from_hf(hf, processor)


@cache
def blip_shapes() -> HookedVLM:
    """The BLIP that ships with the package."""
    return HookedVLM.from_pretrained("zoo:blip-shapes")


@cache
def untrained_llava() -> HookedVLM:
    """A LLaVA of the zoo's architecture, before training."""
    recipe = RECIPES["llava-shapes"]
    return HookedVLM.from_hf(recipe.build(0), recipe.processor())


def pictures(n: int, first: int = 0) -> list[Image.Image]:
    return [checkpoints.picture(first + i) for i in range(n)]


def row(task: str = "colour", index: int = 0) -> dict:
    return shapes.pair(task, index, seed=5).to_row()


def answerable(family: str, path: Path, n: int = 8) -> str:
    """A task's file of questions, three quarters of which a small random model answers "rightly"."""
    pairs.write_parquet(pairs.table(questions(family, n)), path)
    return str(path)


@cache
def questions(family: str, n: int) -> list[dict]:
    """The rows of `answerable`: questions whose answer is what the model says to them, and some whose is not."""
    model, candidates = small(family), []
    asked = model.to_inputs(pictures(12), "is it the red or blue ?")
    said = Counter(text.split()[0] for text in model.generate(asked, max_new_tokens=1) if text[:1].isalnum())
    likely = [word for word, _ in said.most_common(3)]
    answers_of = [(right, wrong) for right, wrong in product(likely, SPOKEN) if right != wrong]
    drawn = Random(0).sample(list(product(pictures(12), answers_of)), 600)
    for i, (image, (right, wrong)) in enumerate(drawn):
        first, second = (right, wrong) if i % 2 else (wrong, right)
        candidates.append(
            {
                "id": f"row-{i}",
                "task": "anything",
                "group": f"{right}/{wrong}",
                "image": image,
                "corrupt_image": checkpoints.picture(100 + i),
                "prompt": f"is it the {first} or {second} ?" if i % 3 else f"is this {first} or {second} ?",
                "corrupt_prompt": f"is it a {first} or {second} ?" if i % 3 else f"is it {first} or {second} ?",
                "answer": right,
                "wrong_answer": wrong,
                "mask": Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), ((0, 8), (8, 0)))),
            }
        )
    inputs = model.to_inputs([row["image"] for row in candidates], [row["prompt"] for row in candidates])
    said = model.generate(inputs, max_new_tokens=answers.MAX_NEW_TOKENS)
    both = zip(said, candidates, strict=True)
    verdicts = [answers.judged(text, row["answer"], row["wrong_answer"]) for text, row in both]
    good = [row for row, verdict in zip(candidates, verdicts, strict=True) if not verdict]
    bad = [row for row, verdict in zip(candidates, verdicts, strict=True) if verdict]
    assert len(good) >= n - n // 4, Counter(said).most_common(5)
    rows = good[: n - n // 4]
    for place, row in enumerate(bad[: n // 4]):
        rows.insert(3 * place, row)
    return rows
