"""Measure the zoo's models on scenes they never saw: `python -m hooked_vlm.zoo.evaluate --n 300 --seed 7`.

Of each model and task: accuracy (the highest of all scores is the right answer's), how often a corrupt image
and a corrupt prompt turn a right answer into the wrong one, accuracy with a blank picture (a model that looks
falls to chance), and what a classifier reaches that reads the questions alone. `--figure FILE` draws a pair
of every task with the models' answers. Costs about 4 ms a run on two cores, five runs an example. Uses the
package's public face, and no name of any one model.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from hooked_vlm.datasets import shapes
from hooked_vlm.datasets.scenes import GRID, Scene, render
from hooked_vlm.zoo import PREFIX, ZOO

BATCH = 100
BLANK = (128, 128, 128)
TEXT_ONLY_TRAIN = 20_000


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
    blank: float
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
    learned: dict[str, Counter[str]] = {}
    for index in range(TEXT_ONLY_TRAIN):
        pair = shapes.pair(task, index, split="train", n_objects=(1, 2, 3))
        learned.setdefault(pair.prompt, Counter())[pair.answer] += 1
    tests = [shapes.pair(task, index, seed=seed, n_objects=(1, 2, 3)) for index in range(n)]
    right = [
        pair.prompt in learned and learned[pair.prompt].most_common(1)[0][0] == pair.answer for pair in tests
    ]
    return sum(right) / n


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
    blank = probabilities(model, [None] * n, prompts).argmax(-1) == right
    renamed = [(number, pair.corrupt_prompt) for number, pair in enumerate(pairs) if pair.corrupt_prompt]
    rows = torch.tensor([number for number, _ in renamed])
    by_prompt = probabilities(model, [scenes[row] for row in rows], [text for _, text in renamed]).argmax(-1)
    few = pairs[:BATCH]
    inputs = model.to_inputs(
        [Image.fromarray(render(pair.scene)) for pair in few], [pair.prompt for pair in few]
    )
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


def draw(models: dict[str, tuple[Answerer, Any]], path: pathlib.Path, seed: int = 2) -> None:
    """Draw a pair of every task, the mask of the thing asked about, and what the models answer.

    Args:
        models: By name, a model and its tokenizer.
        path: The picture's file; its ending says which kind.
        seed: Of the scenes.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(shapes.TASKS), 4, figsize=(10, 8.1), width_ratios=(1, 1, 1, 1.5))
    for row, (task, index) in enumerate(zip(shapes.TASKS, (9, 14, 1), strict=True)):
        pair = shapes.pair(task, index, seed=seed, n_objects=(3,))
        table = pair.to_row(4 * GRID)
        titles = ("clean", "corrupt image", "mask of the thing asked about")
        for axis, name, title in zip(axes[row], ("image", "corrupt_image", "mask"), titles, strict=False):
            axis.imshow(table[name], cmap="gray", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=10)
        axes[row, 0].set_xlabel(pair.prompt, fontsize=9, loc="left")
        axes[row, 2].set_xlabel(pair.corrupt_prompt or "", fontsize=9)
        _bars(axes[row, 3], models, pair)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axis: Any, models: dict[str, tuple[Answerer, Any]], pair: shapes.Pair) -> None:
    """Probability of the right answer to the right, of the wrong one to the left, a bar for every run."""
    labels = []
    runs = (
        ("clean", pair.scene, pair.prompt),
        ("corrupt image", pair.corrupt_scene, pair.prompt),
        ("corrupt prompt", pair.scene, pair.corrupt_prompt or pair.prompt),
        ("blank image", None, pair.prompt),
    )
    for number, (label, scene, prompt) in enumerate(runs):
        for offset, (name, (model, tokenizer)) in enumerate(models.items()):
            right, wrong = tokenizer.convert_tokens_to_ids([pair.answer, pair.wrong_answer])
            chances = probabilities(model, [scene], [prompt])[0]
            at = number + 0.36 * (offset - (len(models) - 1) / 2)
            shade = ("#1b6ca8", "#e08e2b")[offset % 2]
            axis.barh(at, float(chances[right]), 0.32, color=shade, label=name if number == 0 else None)
            axis.barh(at, -float(chances[wrong]), 0.32, color=shade)
        labels.append(label)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(-1.05, 1.05)
    axis.set_xticks((-1, 0, 1), (f"{pair.wrong_answer}", "0", f"{pair.answer}"), fontsize=9)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.legend(fontsize=7, loc="lower right", frameon=False)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _load(name: str) -> tuple[Answerer, Any]:
    from hooked_vlm import HookedVLM

    model = HookedVLM.from_pretrained(PREFIX + name)
    return model, model.processor.tokenizer


def _table(name: str, figures: Sequence[Figures]) -> Table:
    table = Table(title=name)
    for field in dataclasses.fields(Figures):
        table.add_column(field.name.replace("_", " "), justify="left" if field.name == "task" else "right")
    for each in figures:
        values = dataclasses.astuple(each)
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
    return table


def main() -> None:
    """Measure, or draw, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m hooked_vlm.zoo.evaluate", description=__doc__)
    parser.add_argument(
        "--model", action="append", choices=sorted(ZOO), help="may be given more than once; all by default"
    )
    parser.add_argument("--n", type=int, default=3000, help="unseen scenes a task")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--min-accuracy", type=float, default=0.0, help="exit 1 where a task's accuracy is below it"
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here too")
    parser.add_argument(
        "--figure", type=pathlib.Path, help="draw a pair of every task here, and measure nothing"
    )
    given = parser.parse_args()
    console = Console()
    models = {name: _load(name) for name in given.model or sorted(ZOO)}
    if given.figure:
        draw(models, given.figure)
        return
    figures: dict[str, list[Figures]] = {}
    for name, (model, tokenizer) in models.items():
        tasks = track(shapes.TASKS, description=name, console=console, transient=True)
        figures[name] = [measure(model, tokenizer, task, given.n, given.seed) for task in tasks]
        console.print(_table(name, figures[name]))
    if given.json:
        plain = {name: [dataclasses.asdict(each) for each in rows] for name, rows in figures.items()}
        given.json.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    low = [
        (name, each) for name, rows in figures.items() for each in rows if each.accuracy < given.min_accuracy
    ]
    for name, each in low:
        console.print(f"{name} {each.task}: accuracy {each.accuracy:.4f} is below {given.min_accuracy}")
    sys.exit(1 if low else 0)


if __name__ == "__main__":
    main()
