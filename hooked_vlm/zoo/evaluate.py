"""Measure the zoo's models on scenes they never saw: `python -m hooked_vlm.zoo.evaluate --n 300 --seed 7`.

Of each model and task: accuracy (the highest of all scores is the right answer's), how often a corrupt image
and a corrupt prompt turn a right answer into the wrong one, which choice wins with a blank picture (a model that looks
falls to chance), and what a classifier reaches that reads the questions alone. `--figure FILE` draws a pair
of every task with the models' answers instead. Costs about 4 ms a run on two cores, five runs an example.
Uses the package's public face, and no name of any one model.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from hooked_vlm.datasets import shapes
from hooked_vlm.zoo import PREFIX, ZOO
from hooked_vlm.zoo.figure import draw
from hooked_vlm.zoo.measure import Answerer, Figures, measure


def _load(name: str) -> tuple[Answerer, Any]:
    from hooked_vlm import HookedVLM

    model = HookedVLM.from_pretrained(PREFIX + name)
    return model, model.processor.tokenizer


def _table(name: str, figures: Sequence[Figures]) -> Table:
    heads = ("task", "right", "said", "image flip", "prompt flip", "blank", "text only")
    table = Table(title=f"{name} on {figures[0].n} unseen scenes a task")
    for head in heads:
        table.add_column(head, justify="left" if head == "task" else "right")
    for each in figures:
        shares = (each.accuracy, each.generated, each.image_flip, each.prompt_flip, each.blank, each.text_only)
        table.add_row(each.task, *(f"{share:.4f}" for share in shares))
    return table


def main() -> None:
    """Measure, or draw, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m hooked_vlm.zoo.evaluate", description=__doc__)
    parser.add_argument(
        "--model", action="append", choices=sorted(ZOO), help="may be given more than once; all by default"
    )
    parser.add_argument("--n", type=int, default=3000, help="unseen scenes a task")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--min-accuracy", type=float, default=0.0, help="exit 1 where a task's accuracy is below it")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here too")
    parser.add_argument("--figure", type=pathlib.Path, help="draw a pair of every task here, and measure nothing")
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
    low = [(name, each) for name, rows in figures.items() for each in rows if each.accuracy < given.min_accuracy]
    for name, each in low:
        console.print(f"{name} {each.task}: accuracy {each.accuracy:.4f} is below {given.min_accuracy}")
    sys.exit(1 if low else 0)


if __name__ == "__main__":
    main()
