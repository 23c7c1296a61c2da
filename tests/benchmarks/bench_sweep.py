"""What the exact sweep saves, measured beside the loop it replaces. `make bench` runs this file too.

    python -m tests.benchmarks.bench_sweep [--only blip|llava|skipping] [--rounds 3]

Random weights in the dimensions of BLIP-VQA-base (12 x 12 cross-attention heads x 9 tokens = 1,296 sites, and the
self-attention's with them) and of LLaVA-1.5-7B with 4 language layers (128 heads at the last of 600 positions, and at
every text position), float32. The loop is three whole Hugging Face models a site (clean, corrupt, patched), as
published; a few of its sites are timed, the sweep whole, in turn. The floor is the counted minimum of floating-point
operations at the measured matrix-multiply rate. Skipping is measured on a LLaVA of 32 x 32 heads, against the same
sweep with every site run.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.datasets.sources import source
from hooked_vlm.patching import Sites, metrics, moving, sweep
from hooked_vlm.patching.cost import block_flop, cross_flop, keys_values_flop, lengths_of, run_flop, source_flop
from hooked_vlm.patching.sweep import sweep_all
from tests.benchmarks.bench_forward import blip, in_turn, llava, peak_bytes, seconds
from tests.benchmarks.models import wide_llava

MOVED = moving.moved
IMAGE = 32000  # the placeholder of the LLaVA that is measured


def matmul_rate(n: int = 2048, rounds: int = 5) -> float:
    """Floating-point operations a second of a large square product."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / min(seconds(lambda: a @ b) for _ in range(rounds))


def blip_floor(model: Any, n_tokens: int) -> float:
    """The least that the sweep must compute: two images, two questions, and what each site changes."""
    vision, text, decoder = (model.stacks[n].cfg for n in ("vision_encoder", "text_encoder", "text_decoder"))
    n_patches = vision.n_ctx
    question = block_flop(text, n_tokens, n_tokens) + cross_flop(text, n_tokens, n_patches)
    keys_values = 2 * 2 * vision.d_model * text.d_model * n_patches * text.n_layers
    runs = 2 * (vision.n_layers * block_flop(vision, n_patches, n_patches) + text.n_layers * question + keys_values)
    n_sites = text.n_heads * n_tokens
    # A site at layer l changes one position of that block's MLP, then every position of the blocks after it.
    later = sum(n_sites * (text.n_layers - 1 - layer) * question for layer in range(text.n_layers))
    own = text.n_layers * n_sites * 2 * text.d_model * (text.d_model + 2 * text.d_mlp)
    answer = block_flop(decoder, 1, 1) + cross_flop(decoder, 1, n_tokens)
    answer = decoder.n_layers * (answer + source_flop(decoder, text.d_model, 1, n_tokens))
    unembed = 2 * decoder.d_model * (decoder.d_model + decoder.d_vocab)
    return runs + later + own + text.n_layers * n_sites * (answer + unembed)


def llava_floor(model: Any, input_ids: torch.Tensor) -> float:
    """The least that a sweep at every text position must compute: two runs, and what each site after the image changes.

    A site's own position goes through the rest of its block, and alone through queries, keys and values of the next;
    then all positions from it on do, of which the last block computes keys and values, and the last one the rest. In
    the last block a site matters at the last position alone.
    """
    cfg, n = model.stacks["language_model"].cfg, len(input_ids)
    places = (input_ids != IMAGE).nonzero()[:, 0]
    places = places[places > (input_ids == IMAGE).nonzero()[-1, 0]].tolist()
    whole, keys_values = block_flop(cfg, 1, n), keys_values_flop(cfg)
    queries = 2 * cfg.d_model * cfg.d_head * cfg.n_heads
    own = whole - keys_values - queries - 4 * n * cfg.d_head * cfg.n_heads
    flop, unembed = 0.0, 2.0 * cfg.d_model * cfg.d_vocab
    for left in (n - place for place in places):
        for blocks in range(cfg.n_layers):  # that come after the site's
            if blocks == 0 and left > 1:
                continue
            flop += own + unembed
            if blocks == 1:
                flop += whole
            if blocks > 1:
                flop += keys_values + queries + (whole - keys_values - queries) * left  # the next
                flop += (blocks - 2) * whole * left + keys_values * left + whole - keys_values  # and the last
    return 2 * run_flop(model, lengths_of(model, n)) + cfg.n_heads * flop


def bench(name: str, hf: Any, given: dict[str, Any], make: Any, rounds: int, aim: float, floor: Any = None) -> float:
    """Time the sweep and the loop in turn and print what it saves."""
    model, clean = HookedVLM.from_hf(hf), VLMInputs(**given)
    corrupt = clean.replace(pixel_values=clean.pixel_values.flip(-1))
    kinds, measure = make(model, clean), metrics.logit_diff(100, 200)
    n_sites = sum(len(sites.at(clean.input_ids.shape[1])) for sites in kinds.values())

    def loop() -> None:
        for _ in range(3):
            hf(**given)

    def whole() -> None:
        sweep_all(model, clean, corrupt, kinds, measure, progress=False)

    loop(), whole()
    pairs = [(seconds(loop), seconds(whole)) for _ in range(rounds)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [n_sites * x / y for x, y in pairs]
    ratio = statistics.median(ratios)
    print(f"{name}: {n_sites} sites, loop {a:.2f} s a site, sweep {b:.2f} s in all ({b / n_sites * 1e3:.2f} ms a site)")
    verdict = "ok" if ratio >= aim else "MISSED"
    print(f"  {ratio:.0f}x [{min(ratios):.0f}, {max(ratios):.0f}]  aim >= {aim:.0f}x  {verdict}")
    if floor is not None:
        rate = matmul_rate()
        share = floor(model) / rate / b
        print(f"  {floor(model) / 1e12:.2f} TFLOP at least; matmul {rate / 1e9:.0f} GFLOP/s; share reached {share:.0%}")
        n_tokens = clean.input_ids.shape[1]
        n_logits = n_tokens if model.answer_stack == model.prompt_stack else 1
        loop_flop = 3 * n_sites * run_flop(model, lengths_of(model, n_tokens), n_logits=n_logits)
        print(f"  the loop's {loop_flop / 1e12:.0f} TFLOP are {loop_flop / floor(model):.0f}x as many")
    return b


def by_number_of_sites(model: Any, clean: VLMInputs) -> None:
    """Cost of one more site, and memory beside the budget, as the number of sites grows."""
    corrupt = clean.replace(pixel_values=clean.pixel_values.flip(-1))
    for heads in ([0], [0, 1, 2], None):
        sites = Sites.heads(model, "text_encoder", "cross_attn", heads=heads)
        took = seconds(lambda s=sites: sweep(model, clean, corrupt, s, metrics.logit_diff(1, 2), progress=False))
        n = len(sites.at(clean.input_ids.shape[1]))
        print(f"  {n:5d} sites: {took / n * 1e3:.2f} ms a site")
    for budget in (2**28, 2**30):
        run = partial(sweep, model, clean, corrupt, sites, metrics.logit_diff(1, 2), budget=budget, progress=False)
        print(f"  budget {budget / 2**20:.0f} MiB: peak {peak_bytes(run) / 2**20:.0f} MiB")


def project(hf: Any, given: dict[str, Any], layers: int = 32, rows: int = 256) -> None:
    """What the whole language model would take, from the measured parts: tower, a layer, a resumed row in a layer."""
    model, inputs = HookedVLM.from_hf(hf), VLMInputs(**given)
    measured = model.stacks["language_model"].cfg.n_layers
    tower = seconds(lambda: hf.model.get_image_features(pixel_values=given["pixel_values"]))
    layer = (seconds(lambda: hf(**given)) - tower) / measured
    _, state = model.run_with_state(inputs)
    injected = {0: state.resid_pre("language_model", 0)[:, inputs.last :].expand(rows, -1, -1).contiguous()}
    last = {"first_position": int(inputs.last), "logits_at": "last"}
    row = seconds(lambda: model.resume(state, "language_model", injected, **last)) / rows / measured
    heads = model.stacks["language_model"].cfg.n_heads
    passes = heads * layers * (layers - 1) / 2  # a site at layer l goes on through the layers after it
    whole = tower + layers * layer
    swept = 2 * whole + passes * row
    print(f"  parts: image {tower:.2f} s, a layer {layer:.3f} s, a row in a layer {row * 1e3:.2f} ms")
    ratio = layers * heads * 3 * whole / swept
    n = layers * heads
    print(f"  projected to {layers} layers: loop {3 * whole:.1f} s a site, {n} sites in {swept:.0f} s: {ratio:.0f}x")


def skipping(rounds: int) -> None:
    """What it saves that sites which cannot differ are not run: heads of some layers at every text position."""
    model = wide_llava()
    row = next(iter(source("colour", n=4, seed=0, tokenizer=model.tokenizer).rows))
    clean = model.to_inputs(row["image"], row["prompt"])
    places = (~clean.is_image[0]).nonzero()[:, 0].tolist()
    sites = Sites.heads(model, "language_model", layers=range(0, 32, 8), positions=places)
    by_image = model.to_inputs(row["corrupt_image"], row["prompt"])
    by_text = model.to_inputs(row["image"], row["corrupt_prompt"])
    for name, corrupt, aim in (("image", by_image, 1 / 5), ("text", by_text, 1 / 8)):
        found = []

        def run(which: Any, corrupt: VLMInputs = corrupt, found: list[Any] = found) -> None:
            moving.moved = which
            found.append(sweep(model, clean, corrupt, sites, metrics.logit_diff(5, 6), progress=False))

        print(in_turn(f"skipping, {name}", partial(run, MOVED), partial(run, every), rounds, aim))
        moving.moved = MOVED
        apart = (found[-2].values - found[-1].values).abs().max()
        print(f"  {found[-2].skipped} of {len(found[-2].index_df)} sites not run; largest difference {apart:.1e}")


def every(sites: Sites, source: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """As `moving.moved`, were every site to differ."""
    return torch.ones_like(MOVED(sites, source, base))


def main() -> None:
    """Run the benchmarks and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("blip", "llava", "skipping"))
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        if options.only in (None, "blip"):
            hf, given = blip()
            crossed = lambda m, i: {"": Sites.heads(m, "text_encoder", "cross_attn")}  # noqa: E731
            both = lambda m, i: {k: Sites.heads(m, "text_encoder", k) for k in ("cross_attn", "attn")}  # noqa: E731
            bench("BLIP", hf, given, crossed, options.rounds, 250, lambda m: blip_floor(m, given["input_ids"].shape[1]))
            bench("BLIP, cross- and self-attention", hf, given, both, options.rounds, 320)
            by_number_of_sites(HookedVLM.from_hf(hf), VLMInputs(**given))
        if options.only in (None, "llava"):
            hf, given = llava()
            last = lambda m, i: {"": Sites.heads(m, "language_model", positions=i.last)}  # noqa: E731
            text = lambda m, i: {  # noqa: E731
                "": Sites.heads(
                    m, "language_model", positions=(given["input_ids"][0] != IMAGE).nonzero()[:, 0].tolist()
                )
            }
            bench("LLaVA, 4 layers", hf, given, last, options.rounds, 140)
            floor = lambda m: llava_floor(m, given["input_ids"][0])  # noqa: E731
            bench("LLaVA, 4 layers, every text position", hf, given, text, 1, 2000, floor)
            project(hf, given)
        if options.only in (None, "skipping"):
            skipping(options.rounds)


if __name__ == "__main__":
    main()
