"""How many sites screening must measure to find the largest: the K of `sweep(..., screen=K)`.

    python -m tests.benchmarks.bench_screening [MODEL ...] [--examples 4] [--tasks colour,place] [--at-once]

For each model (the zoo's, or any checkpoint of the shapes world), task and corruption every site is swept and
estimated: each head at each text position, each head at the last one, and with `--at-once` each head at every
position together. The K of an estimate is the rank, among the sites that can differ, that the worst placed of the 5
or 10 largest exact effects has in it. Each example is a screen of its own, as in a NOTICE run; in "together" sites are
ranked by the mean |effect| over a task's examples, as in one sweep of a batch (the worst task is shown). A Markdown
table, a row for each kind of sites and estimate, with the seconds that estimate and sweep took.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import torch
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.datasets import shapes
from hooked_vlm.patching import Sites, attribution, metrics, sweep
from hooked_vlm.zoo import ZOO
from tests.benchmarks.bench_attribution import answered_rightly

STEPS = 8
WAYS = {"gradient": None, f"integrated, {STEPS}": STEPS}
TOPS = (5, 10)
KINDS = [f"{of} x {at}" for of in ("attn", "cross_attn") for at in ("the last", "text positions", "all at once")]


def needed(exact: Tensor, estimate: Tensor, top: int) -> int:
    """How many of the largest estimates hold the `top` largest exact effects, [site] each."""
    best = exact.argsort(descending=True)[:top]
    place = estimate.argsort(descending=True, stable=True).argsort()
    return int(place[best].max()) + 1


def sites_of(kind: str, model: HookedVLM, inputs: VLMInputs) -> Sites | None:
    """Sites of a kind; the inputs have no padding. None if the model has no such attention."""
    attention, _, places = kind.partition(" x ")
    if not hasattr(model.stacks[model.prompt_stack].blocks[0], attention):
        return None
    image = inputs.replace(layout=model.layout).is_image[0].tolist()
    text = [i for i, is_image in enumerate(image) if not is_image]
    positions = {"the last": [text[-1]], "text positions": text, "all at once": "all_at_once"}[places]
    return Sites.heads(model, model.prompt_stack, attention, positions=positions)


def few(model: HookedVLM, task: str, corrupt: str, n: int, seed: int) -> tuple[VLMInputs, VLMInputs, Tensor, Tensor]:
    """Clean and corrupt inputs of one length, with right and wrong answers: at most `n` that the model answers."""
    with torch.no_grad():
        batches = answered_rightly(model, task, corrupt, 8 * n, seed)
    clean, other, right, wrong = max(batches, key=lambda batch: len(batch[0]))
    return clean[:n], other[:n], right[:n], wrong[:n]


class Table:
    """Ranks and seconds as they come in."""

    def __init__(self) -> None:
        self.ks: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.seconds: dict[tuple[str, ...], float] = defaultdict(float)
        self.n: dict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(
        self,
        row: tuple[str, ...],
        model: HookedVLM,
        clean: VLMInputs,
        corrupt: VLMInputs,
        sites: Sites,
        measure: metrics.Metric,
    ) -> None:
        """One sweep and its estimates."""
        start = time.perf_counter()
        found = sweep(model, clean, corrupt, sites, measure, progress=False)
        self.seconds[row] += time.perf_counter() - start
        exact = found.effect().abs().flatten(0, -2)
        open_ = (exact > 0).any(1)
        self.n[row].append(int(open_.sum()))
        for way, steps in WAYS.items():
            start = time.perf_counter()
            estimate = attribution(model, clean, corrupt, sites, measure, steps=steps).effect().abs().flatten(0, -2)
            self.seconds[(*row, way)] += time.perf_counter() - start
            for top in TOPS:
                if int(open_.sum()) > top:
                    of_each = [needed(exact[open_, i], estimate[open_, i], top) for i in range(exact.shape[1])]
                    self.ks[(*row, way, f"{top}")] += of_each
                    self.ks[(*row, way, f"{top} together")].append(
                        needed(exact[open_].mean(1), estimate[open_].mean(1), top)
                    )

    def show(self, row: tuple[str, ...]) -> None:
        """Print a row that is complete, once for each estimate."""
        if row not in self.n:
            return
        for way in WAYS:
            said = [*row, f"{statistics.median(self.n[row]):.0f}", way]
            for top in TOPS:
                ks = self.ks[(*row, way, f"{top}")]
                said.append(f"{statistics.median(ks):.0f}, {max(ks)}" if ks else "-")
            for top in TOPS:
                ks = self.ks[(*row, way, f"{top} together")]
                said.append(f"{max(ks)}" if ks else "-")
            took = f"{self.seconds[(*row, way)]:.1f} / {self.seconds[row]:.1f}"
            print(f"| {' | '.join(said)} | {took} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[f"zoo:{name}" for name in ZOO], help="checkpoints or directories")
    parser.add_argument("--examples", type=int, default=4, help="of each task")
    parser.add_argument("--tasks", default=",".join(shapes.TASKS))
    parser.add_argument("--at-once", action="store_true", help="also each head at every position together")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    table = Table()
    head = ["model", "corrupt", "heads", "sites", "estimate"]
    head += [f"K for the top {top}: median, worst" for top in TOPS] + [f"top {top} together" for top in TOPS]
    print(f"| {' | '.join(head)} | seconds, estimate / sweep |\n|{'---|' * (len(head) + 1)}")
    for name in given.models:
        model = HookedVLM.from_pretrained(name)
        said = name if name.startswith("zoo:") else "the directory given"
        for corrupt in ("image", "text"):
            batches = {task: few(model, task, corrupt, given.examples, given.seed) for task in given.tasks.split(",")}
            for kind in KINDS:
                for clean, other, right, wrong in batches.values():
                    sites = sites_of(kind, model, clean)
                    if sites is not None and (given.at_once or not kind.endswith("once")):
                        measure = metrics.logit_diff(right, wrong)
                        table.add((said, corrupt, kind), model, clean, other, sites, measure)
                table.show((said, corrupt, kind))


if __name__ == "__main__":
    main()
