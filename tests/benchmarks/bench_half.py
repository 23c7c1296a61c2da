"""What half precision costs in exactness: effects in float16 and bfloat16 beside those in float32.

    python -m tests.benchmarks.bench_half [MODEL ...] [--examples 4] [--tasks colour,shape,place]

The same sweep is run by the same checkpoint loaded in float32 and in half precision (so that its weights are rounded
too), on examples that it answers rightly in float32: each head at each text position, image and text corruption. With
all sites and examples of a sweep,

    error = max |half - float32|
    of the largest effect = error / max |float32|
    of the largest logit = error / max |L|

where L are the base run's logits in float32 where the answer is read. An effect is a difference of logits, and those
are rounded in proportion to their own size, whatever the effect: so the last of the three is alike everywhere, and
the second is as large as effects are small.

Beside the sweep stand its estimates (gradient, integrated gradients, each against itself in float32) and path patching
(each head at the last position, to the logits). A row is a task's sweep; the last column is how many of the ten
heads and positions of largest mean |effect| are the same. The medians and the worst rows are printed at the end; what
`patching.result` states is the worst, rounded up: `ROUNDING` of the largest logit for what is measured, sweeps and
paths, and `ROUNDING_OF_ESTIMATES` of the largest estimate, which is a product and no difference of logits.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.datasets import shapes
from hooked_vlm.patching import Metric, Sites, attribution, metrics, path_patching, sweep
from hooked_vlm.zoo import ZOO
from tests.benchmarks.bench_screening import few, sites_of

TOP = 10
STEPS = 8
HALVES = (torch.float16, torch.bfloat16)
Measured = Callable[[HookedVLM, VLMInputs, VLMInputs, Sites, Metric], Tensor]


def error(half: Tensor, full: Tensor) -> float:
    """The largest difference of effects."""
    return float((half - full).abs().max())


def largest_logit(model: HookedVLM, inputs: VLMInputs) -> float:
    """The largest |logit| where the answer is read."""
    with torch.no_grad():
        return float(model(inputs, logits_at="last").abs().max())


def shared(half: Tensor, full: Tensor) -> int:
    """How many of the `TOP` sites of largest mean |effect| are the same, of effects [*sites example]."""
    first, second = (set(x.abs().mean(-1).flatten().topk(TOP).indices.tolist()) for x in (half, full))
    return len(first & second)


def _swept(model: HookedVLM, clean: VLMInputs, corrupt: VLMInputs, sites: Sites, metric: Metric) -> Tensor:
    return sweep(model, clean, corrupt, sites, metric, progress=False).effect()


def _by_gradient(model: HookedVLM, clean: VLMInputs, corrupt: VLMInputs, sites: Sites, metric: Metric) -> Tensor:
    return attribution(model, clean, corrupt, sites, metric).effect()


def _integrated(model: HookedVLM, clean: VLMInputs, corrupt: VLMInputs, sites: Sites, metric: Metric) -> Tensor:
    return attribution(model, clean, corrupt, sites, metric, steps=STEPS).effect()


def _by_path(model: HookedVLM, clean: VLMInputs, corrupt: VLMInputs, sites: Sites, metric: Metric) -> Tensor:
    return path_patching(model, clean, corrupt, sites, "logits", metric, progress=False).effect()


MEASURED = ("sweep", "path to the logits")  # the others are estimates
WAYS: dict[str, Measured] = {
    "sweep": _swept,
    "gradient": _by_gradient,
    f"integrated, {STEPS}": _integrated,
    "path to the logits": _by_path,
}


def kinds_of(way: str, model: HookedVLM) -> list[str]:
    """Which sites are measured in a way; BLIP's logits read no stack of heads directly."""
    places = "text positions"
    if way.startswith("path"):
        if model.prompt_stack != model.answer_stack:
            return []
        places = "the last"
    return [f"{kind} x {places}" for kind in ("attn", "cross_attn")]


class Table:
    """Errors as they come in."""

    def __init__(self) -> None:
        self.of_logit: dict[tuple[torch.dtype, bool], list[float]] = {}
        self.of_effect: dict[tuple[torch.dtype, bool], list[float]] = {}

    def add(self, row: list[str], way: str, dtype: torch.dtype, found: Tensor, expected: Tensor, logit: float) -> None:
        """Print a row."""
        off, largest = error(found, expected), float(expected.abs().max())
        key = (dtype, way in MEASURED)
        self.of_logit.setdefault(key, []).append(off / logit)
        self.of_effect.setdefault(key, []).append(off / largest)
        cells = [*row, way, str(dtype).removeprefix("torch."), f"{largest:.3f}", f"{off:.4f}"]
        cells += [f"{off / largest:.1e}", f"{off / logit:.1e}", f"{shared(found, expected)}"]
        print(f"| {' | '.join(cells)} |", flush=True)

    def show(self) -> None:
        """Print the median and the worst."""
        for key in self.of_logit:
            said = f"{str(key[0]).removeprefix('torch.')}, {'measured' if key[1] else 'estimated'}"
            for of, found in (("logit", self.of_logit[key]), ("effect", self.of_effect[key])):
                print(f"{said}, of the largest {of}: median {statistics.median(found):.1e}, worst {max(found):.1e}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[f"zoo:{name}" for name in ZOO], help="checkpoints or directories")
    parser.add_argument("--examples", type=int, default=4, help="of each task")
    parser.add_argument("--tasks", default=",".join(shapes.TASKS))
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(1)
    head = [
        "model",
        "task",
        "corrupt",
        "heads",
        "way",
        "dtype",
        "largest effect",
        "error",
        "of it",
        "of the largest logit",
    ]
    print(f"| {' | '.join([*head, f'same top {TOP}'])} |\n|{'---|' * (len(head) + 1)}")
    table = Table()
    for name in given.models:
        full = HookedVLM.from_pretrained(name, dtype=torch.float32)
        halves = {dtype: HookedVLM.from_pretrained(name, dtype=dtype) for dtype in HALVES}
        said = name if name.startswith("zoo:") else "the directory given"
        for corrupt, task in itertools.product(("image", "text"), given.tasks.split(",")):
            clean, other, right, wrong = few(full, task, corrupt, given.examples, given.seed)
            metric, logit = metrics.logit_diff(right, wrong), largest_logit(full, other)
            for way, measured in WAYS.items():
                for kind in kinds_of(way, full):
                    sites = sites_of(kind, full, clean)
                    if sites is None:
                        continue
                    expected = measured(full, clean, other, sites, metric)
                    for dtype, model in halves.items():
                        found = measured(model, clean, other, sites, metric)
                        table.add([said, task, corrupt, kind], way, dtype, found, expected, logit)
    table.show()


if __name__ == "__main__":
    main()
