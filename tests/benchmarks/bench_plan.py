"""Whether a plan tells the truth, and what it says of checkpoints that this machine cannot hold. For `make bench`.

    python -m tests.benchmarks.bench_plan [--only zoo|base|wide|published]

A run of each model is planned, and then run to its report; the ratio of the seconds that were foretold to those that
it took must lie within a factor of two. What published checkpoints cost is counted from their configs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hooked_vlm import HookedVLM
from hooked_vlm.notice import NoticeConfig, plan, run
from tests.benchmarks.models import blip_base, described, wide_llava
from tests.notice import speaking

RATE = 60e12  # operations a second that a 24 GB GPU is taken to reach in half precision: some 40 % of its peak
ANSWERED_AT = {"blip-vqa-base": "answer", "llava-1.5-7b": "last", "llava-1.5-13b": "last"}


def told(name: str, model: HookedVLM, config: NoticeConfig) -> None:
    """Plan a run, run it, and print the ratio of what was foretold to what it took."""
    foretold = plan(config, model=model)
    assert foretold.seconds is not None
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        run(config, Path(out) / "run", model=model, progress=False)
        took = time.perf_counter() - began
    ratio = foretold.seconds / took
    verdict = "ok" if 0.5 <= ratio <= 2 else "MISSED"
    print(f"{name:<28} foretold {foretold.seconds:7.1f} s, took {took:7.1f} s: {ratio:.2f}  aim 0.5 to 2  {verdict}")


def published() -> None:
    """A Markdown table of what NOTICE costs on published checkpoints, by option."""
    print("| checkpoint | option | sites an example, not run | operations an example | 1,500 examples |")
    print("|---|---|---|---|---|")
    for name, at in ANSWERED_AT.items():
        heads = ("cross_attn-heads", "attn-heads") if name.startswith("blip") else ("attn-heads",)
        options: dict[str, dict[str, Any]] = {
            "default": {},
            f"--positions {at}": {"positions": at},
            " ".join(f"--sites {kind}" for kind in heads): {"kinds": heads},
            "--screen 64": {"screen": 64},
        }
        with tempfile.TemporaryDirectory() as folder:
            directory = described(Path(folder), name)
            for option, given in options.items():
                config = NoticeConfig(
                    model=directory, tasks=("colour",), examples=1500, device="cpu", dtype="bfloat16", **given
                )
                found = plan(config, timed=False)
                hours = found.flop * 1500 / RATE / 3600
                print(
                    f"| {name} | {option} | {found.sites:,}, {found.skipped:,} | {found.flop / 1e12:,.1f} TFLOP | "
                    f"{hours:,.1f} h |"
                )


def main() -> None:
    """Run the benchmark and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("zoo", "base", "wide", "published"))
    only = parser.parse_args().only
    torch.set_num_threads(1)
    if only in (None, "zoo"):
        for name in ("zoo:blip-shapes", "zoo:llava-shapes"):
            model = HookedVLM.from_pretrained(name, device="cpu")
            told(name, model, NoticeConfig(model=name, tasks=("colour",), examples=24))
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        words = speaking.data("parquet", Path(folder) / "data", 3)
        if only in (None, "base"):
            model = blip_base()
            told("BLIP-base's dimensions", model, NoticeConfig(model="base", tasks=(words[1],), examples=1))
    if only in (None, "wide"):
        model = wide_llava()
        told("LLaVA, 32 x 32 heads", model, NoticeConfig(model="wide", tasks=("colour",), examples=1))
    if only in (None, "published"):
        published()


if __name__ == "__main__":
    main()
