"""What hooks cost, as ratios of two things run in turn. `make bench` runs this file.

    python tests/benchmarks/bench_forward.py [--rounds 7] [--only blip|llava|bridge|import]

Random weights in the dimensions of BLIP-VQA-base (384 px, a 9-token question) and of LLaVA-1.5-7B cut to 4
language layers (336 px, 600 positions), float32, no gradients. Times are ratios A/B of neighbouring runs:
median, and the smallest and largest in brackets. Memory is the peak of what one forward allocates.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]


@dataclass
class Row:
    """One line of the result: what is compared, the ratio, and the ratio that it must not exceed."""

    what: str
    ratio: float
    spread: tuple[float, float] | None
    aim: float | None
    detail: str

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" [{self.spread[0]:.2f}, {self.spread[1]:.2f}]"
        aim = "" if self.aim is None else f"aim <= {self.aim:.2f}  {'ok' if self.ratio <= self.aim else 'MISSED'}"
        return f"{self.what:<58} {self.ratio:6.3f}{spread:<15} {aim:<22} {self.detail}"


def seconds(run: Run) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(what: str, a: Run, b: Run, rounds: int, aim: float | None) -> Row:
    """A and B in turn, after one of each that is not counted."""
    a(), b()
    pairs = [(seconds(a), seconds(b)) for _ in range(rounds)]
    ratios = [x / y for x, y in pairs]
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    detail = f"{medians[0] * 1e3:.0f} ms against {medians[1] * 1e3:.0f} ms"
    return Row(what, statistics.median(ratios), (min(ratios), max(ratios)), aim, detail)


def peak_bytes(run: Run) -> int:
    """Largest sum of what torch had allocated at once during a run, beyond what was there before it."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = run()
    del out
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    level, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def memory(what: str, a: Run, b: Run, aim: float | None) -> Row:
    """Peak memory of A over that of B."""
    x, y = peak_bytes(a), peak_bytes(b)
    return Row(what, x / y, None, aim, f"{x / 2**20:.0f} MiB against {y / 2**20:.0f} MiB")


def blip() -> tuple[Any, dict[str, Any]]:
    """BLIP-VQA-base's dimensions with random weights, and Hugging Face's arguments for one example."""
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipTextConfig, BlipVisionConfig

    text = BlipTextConfig(encoder_hidden_size=768, num_attention_heads=12, is_decoder=True)  # else the defaults
    config = BlipConfig(text_config=text.to_dict(), vision_config=BlipVisionConfig(image_size=384).to_dict())
    hf = BlipForQuestionAnswering(config).eval()
    ids = torch.randint(1000, 30000, (1, 9))
    bos = torch.tensor([[text.bos_token_id]])
    return hf, {"input_ids": ids, "pixel_values": torch.randn(1, 3, 384, 384), "decoder_input_ids": bos}


def llava(n_layers: int = 4) -> tuple[Any, dict[str, Any]]:
    """LLaVA-1.5-7B's widths with fewer language layers, and Hugging Face's arguments for 600 positions."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(vocab_size=32064, num_hidden_layers=n_layers)  # the defaults are Llama-7B's
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)
    hf = LlavaForConditionalGeneration(config).eval()
    words = torch.randint(5, 30000, (1, 24))
    ids = torch.cat([words[:, :5], torch.full((1, 576), 32000), words[:, 5:]], 1)
    return hf, {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336)}


def bench(name: str, hf: Any, given: dict[str, Any], rounds: int, aim: float) -> list[Row]:
    """Plain forward, full cache and memory of one model against Hugging Face's own forward."""
    from hooked_vlm import HookedVLM, VLMInputs

    model, inputs = HookedVLM.from_hf(hf), VLMInputs(**given)
    theirs, ours, cached = lambda: hf(**given), lambda: model(inputs), lambda: model.run_with_cache(inputs)
    return [
        in_turn(f"{name}: plain forward / Hugging Face's", ours, theirs, rounds, aim),
        in_turn(f"{name}: run_with_cache, everything / Hugging Face's", cached, theirs, rounds, 2.0),
        in_turn(f"{name}: run_with_cache, everything / plain forward", cached, ours, rounds, 2.0),
        memory(f"{name}: memory of a plain forward / Hugging Face's", ours, theirs, 1.1),
    ]


def bench_bridge(hf: Any, given: dict[str, Any], rounds: int) -> list[Row]:
    """LLaVA against TransformerLens' bridge around a model of the same size."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    from hooked_vlm import HookedLLaVA, VLMInputs

    model, inputs = HookedLLaVA.from_hf(hf), VLMInputs(**given)
    other, _ = llava()
    bridge = build_bridge_from_module(other, "LlavaForConditionalGeneration", hf_config=other.config)
    ids, pixels = given["input_ids"], given["pixel_values"]
    return [
        in_turn(
            "LLaVA: plain forward / TransformerLens' bridge's",
            lambda: model(inputs),
            lambda: bridge(ids, pixel_values=pixels),
            rounds,
            1.0,
        ),
        in_turn(
            "LLaVA: run_with_cache, everything / the bridge's",
            lambda: model.run_with_cache(inputs),
            lambda: bridge.run_with_cache(ids, pixel_values=pixels),
            rounds,
            None,
        ),
    ]


def bench_import(rounds: int) -> list[Row]:
    """Seconds that importing the package and asking the command line for help add to Python's start."""

    def start(*arguments: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))

    rows = []
    for what, arguments in {
        "import hooked_vlm": ("-c", "import hooked_vlm"),
        "hooked-vlm --help": ("-c", "import sys; sys.argv[1:] = ['--help']; from hooked_vlm.cli import main; main()"),
    }.items():
        added = [start(*arguments) - start("-c", "pass") for _ in range(rounds + 1)][1:]
        rows.append(
            Row(f"{what}: seconds above Python's start", statistics.median(added), (min(added), max(added)), 0.3, "")
        )
    return rows


def main() -> None:
    """Run the benchmarks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("blip", "llava", "bridge", "import"))
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    with torch.inference_mode():
        if options.only in (None, "import"):
            print(*bench_import(options.rounds), sep="\n")
        if options.only in (None, "blip"):
            print(*bench("BLIP", *blip(), options.rounds, 1.0), sep="\n", flush=True)
        if options.only in (None, "llava", "bridge"):
            hf, given = llava()
        if options.only in (None, "llava"):
            print(*bench("LLaVA", hf, given, options.rounds, 1.05), sep="\n", flush=True)
        if options.only in (None, "bridge"):
            print(*bench_bridge(hf, given, options.rounds), sep="\n")


if __name__ == "__main__":
    main()
