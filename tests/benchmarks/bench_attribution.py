"""How well attribution orders the heads of the zoo's models, and what it costs beside the exact sweep.

    python -m tests.benchmarks.bench_attribution

For each model, task, corruption and attention: the rank correlation (Spearman) of the estimated and the exact mean
effect of every head, patched at every position at once, over the examples that the model answers rightly; for the
plain gradient and for integrated gradients. And the time of one against that of the other, run in turn.
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch
from scipy.stats import spearmanr
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.datasets import shapes
from hooked_vlm.patching import Metric, Sites, attribution, metrics, sweep
from hooked_vlm.zoo import ZOO

STEPS = 8


def answered_rightly(
    model: HookedVLM, task: str, corrupt: str, n: int, seed: int
) -> list[tuple[VLMInputs, VLMInputs, Tensor, Tensor]]:
    """Clean and corrupt inputs with the ids of right and wrong answers, batches of equal length."""
    rows = shapes.load(task, n, seed=seed)
    lengths = [len(model.to_tokens(row["prompt"])[0]) for row in rows]
    batches = []
    for length in sorted(set(lengths)):
        same = [row for row, found in zip(rows, lengths, strict=True) if found == length]
        clean = model.to_inputs([row["image"] for row in same], [row["prompt"] for row in same])
        images = [row["corrupt_image" if corrupt == "image" else "image"] for row in same]
        prompts = [row["corrupt_prompt" if corrupt == "text" else "prompt"] for row in same]
        other = model.to_inputs(images, prompts)
        right, wrong = (
            torch.tensor([model.to_single_token(row[key]) for row in same]) for key in ("answer", "wrong_answer")
        )
        kept = (model(clean, logits_at="last")[:, -1].argmax(-1) == right).nonzero()[:, 0]
        batches.append((clean[kept], other[kept], right[kept], wrong[kept]))
    return batches


def effect(way: str, model: HookedVLM, clean: VLMInputs, corrupt: VLMInputs, sites: Sites, metric: Metric) -> Tensor:
    """Exact or estimated effects, [layer head example]."""
    if way == "exact":
        return sweep(model, clean, corrupt, sites, metric, progress=False).effect()
    return attribution(model, clean, corrupt, sites, metric, steps=None if way == "gradient" else STEPS).effect()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'model':<18}{'task':<8}{'corrupt':<9}{'heads':<26}{'gradient':>9}{f'IG, {STEPS}':>9}{'n':>5}{'largest':>9}"
    )
    spent = {"exact": 0.0, "gradient": 0.0, "integrated": 0.0}
    for name in ZOO:
        model = HookedVLM.from_pretrained(f"zoo:{name}")
        stack = model.prompt_stack
        kinds = [k for k in ("attn", "cross_attn") if hasattr(model.stacks[stack].blocks[0], k)]
        for task, corrupt, kind in itertools.product(shapes.TASKS, ("image", "text"), kinds):
            sites = Sites.heads(model, stack, kind, positions="all_at_once")
            effects: dict[str, list[Tensor]] = {key: [] for key in spent}
            with torch.no_grad():
                batches = answered_rightly(model, task, corrupt, given.examples, given.seed)
            for clean, other, right, wrong in batches:
                for key in spent:
                    start = time.perf_counter()
                    effects[key].append(effect(key, model, clean, other, sites, metrics.logit_diff(right, wrong)))
                    spent[key] += time.perf_counter() - start
            mean = {key: torch.cat(found, -1).mean(-1).flatten() for key, found in effects.items()}
            rho = [float(spearmanr(mean["exact"], mean[key]).statistic) for key in ("gradient", "integrated")]
            n = sum(len(batch[0]) for batch in batches)
            print(
                f"{name:<18}{task:<8}{corrupt:<9}{f'{stack}.{kind}':<26}{rho[0]:>9.2f}{rho[1]:>9.2f}{n:>5}"
                f"{mean['exact'].abs().max():>9.2f}",
                flush=True,
            )
    print("seconds in all: " + ", ".join(f"{key} {seconds:.1f}" for key, seconds in spent.items()))


if __name__ == "__main__":
    main()
