"""How much of a sweep's time on a small model goes to Python and not to torch's kernels. For `make bench`.

    python -m tests.benchmarks.bench_overhead

NOTICE's sweeps of sixteen examples on the models that ship here, one thread, in turn: processor time without a
profiler, and the time that torch's operators take of themselves, their dispatch included, under torch's profiler.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from hooked_vlm import HookedVLM
from hooked_vlm.datasets.sources import source
from hooked_vlm.notice import NoticeConfig, effects
from hooked_vlm.notice.examples import grouped, unanswered
from hooked_vlm.notice.pipeline import _shape

EXAMPLES, ROUNDS, AIM = 16, 7, 0.15


def overhead(name: str) -> None:
    """Print the share of the time of a zoo model's sweeps that no operator takes."""
    model = HookedVLM.from_pretrained(f"zoo:{name}", device="cpu")
    config = NoticeConfig(model=f"zoo:{name}", tasks=("colour",), examples=EXAMPLES).resolved(model)
    rows = source("colour", n=EXAMPLES, seed=0, tokenizer=model.tokenizer).rows
    examples = unanswered(model, config, [(i, {**row, "task": "colour"}) for i, row in enumerate(rows)][:EXAMPLES])
    groups = list(grouped(examples, _shape))

    def work() -> float:
        began = time.process_time()
        for group in groups:
            effects.measured(model, config, group)
        return time.process_time() - began

    def in_operators() -> float:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            work()
        return sum(each.self_cpu_time_total for each in seen.key_averages()) / 1e6

    work()
    shares = sorted(1 - in_operators() / work() for _ in range(ROUNDS))
    share = statistics.median(shares)
    verdict = "ok" if share <= AIM else "MISSED"
    print(f"{name:<14} {share:.0%} [{shares[0]:.0%}, {shares[-1]:.0%}] outside  aim <= {AIM:.0%}  {verdict}")


def main() -> None:
    """Run the benchmark and print what it found."""
    torch.set_num_threads(1)
    with torch.no_grad():
        for name in ("blip-shapes", "llava-shapes"):
            overhead(name)


if __name__ == "__main__":
    main()
