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


def needed(exact: Tensor, estimate: Tensor, top: int) -> int:
    """How many of the largest estimates hold the `top` largest exact effects, [site] each."""
    best = exact.argsort(descending=True)[:top]
    place = estimate.argsort(descending=True, stable=True).argsort()
    return int(place[best].max()) + 1


def kinds(model: HookedVLM, inputs: VLMInputs, at_once: bool) -> dict[str, Sites]:
    """Sites by what the table calls them; the inputs have no padding."""
    stack, found = model.prompt_stack, {}
    image = inputs.replace(layout=model.layout).is_image[0]
    text = [i for i in range(inputs.input_ids.shape[1]) if not image[i]]
    for attention in ("attn", "cross_attn"):
        if hasattr(model.stacks[stack].blocks[0], attention):
            places = {"text positions": text, "the last": [text[-1]]} | (
                {"all at once": "all_at_once"} if at_once else {}
            )
            for said, positions in places.items():
                found[f"{attention} x {said}"] = Sites.heads(model, stack, attention, positions=positions)
    return found


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

    def show(self) -> None:
        """Print it."""
        head = ["model", "corrupt", "heads x", "sites", "estimate"]
        head += [f"K for the top {top}: median, worst" for top in TOPS] + [f"top {top} together" for top in TOPS]
        print(f"| {' | '.join(head)} | seconds, estimate / sweep |\n|{'---|' * (len(head) + 1)}")
        for row, sizes in self.n.items():
            for way in WAYS:
                said = [*row, f"{statistics.median(sizes):.0f}", way]
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
    for name in given.models:
        model = HookedVLM.from_pretrained(name)
        said = name if name.startswith("zoo:") else "the directory given"
        for task in given.tasks.split(","):
            for corrupt in ("image", "text"):
                with torch.no_grad():
                    batches = answered_rightly(model, task, corrupt, 8 * given.examples, given.seed)
                clean, other, right, wrong = max(batches, key=lambda batch: len(batch[0]))
                n = min(given.examples, len(clean))
                few = slice(0, n)
                for kind, sites in kinds(model, clean[few], given.at_once).items():
                    measure = metrics.logit_diff(right[few], wrong[few])
                    table.add((said, corrupt, kind), model, clean[few], other[few], sites, measure)
    table.show()


if __name__ == "__main__":
    main()
