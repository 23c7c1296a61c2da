"""`hooked-vlm demo`: a cache, a hook and a patch in the cross-attention of the BLIP that ships with the package.

The functions on display print their own source, so what is read is what ran. Cost: some seconds, most of
them imports. Knows one question about two pictures, and no more of the model than its public face.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from torch import Tensor

from hooked_vlm.datasets import shapes
from hooked_vlm.models.blip import HookedBLIP
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.shown import collapsed

CHECKPOINT = "zoo:blip-shapes"
STACK = "text_encoder"


@dataclass(frozen=True)
class Pair:
    """A question about two pictures that differ in what it asks about, and its two answers."""

    prompt: str
    right: str
    wrong: str
    clean: VLMInputs
    corrupt: VLMInputs


def run(console: Console) -> None:
    """Print the demo."""
    model = HookedBLIP.from_pretrained(CHECKPOINT)
    pair = first_pair(model)
    about = f"{CHECKPOINT}, trained on questions about coloured shapes.\n{pair.prompt} {model.generate(pair.clean)[0]}"
    console.print(Panel(Text(f"{model}\n\n{about}"), title="the model", expand=False))
    with torch.no_grad():
        console.print(cached(model, pair))
        console.print(zeroed(model, pair))
        console.print(patched(model, pair))


def first_pair(model: HookedBLIP) -> Pair:
    """A semantic image pair from the shapes world."""
    row = shapes.load("colour", 1, seed=5)[0]
    clean, corrupt = (model.to_inputs(row[image], row["prompt"]) for image in ("image", "corrupt_image"))
    return Pair(row["prompt"], row["answer"], row["wrong_answer"], clean, corrupt)


# --- what is shown, with its source ---------------------------------------------------------------------


def logit_difference(model: HookedBLIP, pair: Pair, logits: Float[Tensor, "1 pos d_vocab"]) -> float:
    """How much likelier the right answer is than the wrong one, in logits."""
    right, wrong = model.to_single_token(pair.right), model.to_single_token(pair.wrong)
    return (logits[0, -1, right] - logits[0, -1, wrong]).item()


def zero_head(z: Float[Tensor, "batch pos head d_head"], hook: Any, head: int) -> Tensor:
    """Take away what one head reads from the image."""
    z[:, :, head] = 0
    return z


def patch_head(z: Float[Tensor, "batch pos head d_head"], hook: Any, head: int, clean: Any) -> Tensor:
    """Give one head what it read from the clean image."""
    z[:, :, head] = clean[hook.name][:, :, head]
    return z


# --- the three parts ------------------------------------------------------------------------------------


def cached(model: HookedBLIP, pair: Pair) -> Group:
    """What a cache holds: the cross-attention of one layer, by name."""
    inputs = pair.clean
    logits, cache = model.run_with_cache(inputs)
    table = Table("in the cache", "shape", box=box.SIMPLE, pad_edge=False)
    for name, activation in cache.cache_dict.items():
        if collapsed(name).startswith(f"{STACK}.blocks.{{l}}.cross_attn") and ".blocks.0." in name:
            table.add_row(Text(name), Text(" x ".join(map(str, activation.shape))))
    pattern = cache[f"{STACK}.blocks.0.cross_attn.hook_pattern"]
    subject = pair.prompt.split()[2]  # "is the triangle green or yellow?"
    word, image = inputs.find(subject)[0], inputs.image_span
    head, patch = divmod(int(pattern[0, :, word, image].argmax()), image.stop - image.start)
    return section(
        "cache",
        "logits, cache = model.run_with_cache(inputs)",
        table,
        f"{len(cache.cache_dict)} activations of {len(model.stacks)} stacks. In layer 0 {subject!r} looks hardest at "
        f"image patch {patch}, with head {head}. {pair.prompt} {pair.right} over {pair.wrong} by "
        f"{logit_difference(model, pair, logits):+.3f} logits.",
    )


def zeroed(model: HookedBLIP, pair: Pair) -> Group:
    """What each cross-attention head is worth: the logit difference without it."""
    inputs = pair.clean
    before = logit_difference(model, pair, model(inputs))

    def effect(name: str, head: int) -> float:
        logits = model.run_with_hooks(inputs, fwd_hooks=[(name, partial(zero_head, head=head))])
        return logit_difference(model, pair, logits) - before

    return section(
        "hook",
        source(zero_head)
        + "\nhook = partial(zero_head, head=head)\nmodel.run_with_hooks(inputs, fwd_hooks=[(name, hook)])",
        head_table(model, effect),
        f"Change of the logit difference ({before:+.3f}) when a cross-attention head is zeroed at all positions.",
    )


def patched(model: HookedBLIP, pair: Pair) -> Group:
    """How much of the clean answer each cross-attention head brings back into the corrupt run."""
    clean, corrupt = pair.clean, pair.corrupt
    clean_logits, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("cross_attn.hook_z"))
    high, low = (logit_difference(model, pair, logits) for logits in (clean_logits, model(corrupt)))

    def restored(name: str, head: int) -> float:
        logits = model.run_with_hooks(corrupt, fwd_hooks=[(name, partial(patch_head, head=head, clean=cache))])
        return (logit_difference(model, pair, logits) - low) / (high - low)

    return section(
        "patch",
        source(patch_head)
        + "\nhook = partial(patch_head, head=head, clean=cache)"
        + "\nmodel.run_with_hooks(corrupt, fwd_hooks=[(name, hook)])",
        head_table(model, restored),
        f"Clean image: it is {pair.right} ({high:+.3f}). Corrupt: it is {pair.wrong} ({low:+.3f}). Shown is the share "
        "of the way back to clean that a single head restores, patched at all positions.",
    )


# --- how it is laid out ---------------------------------------------------------------------------------


def section(title: str, code: str, table: Table, words: str) -> Group:
    """One part of the demo: the code, what it gave, and what that says."""
    return Group(
        Text(f"\n{title}", style="bold"),
        Panel(Syntax(code, "python", background_color="default", word_wrap=True), box=box.ROUNDED, expand=False),
        Text(words),
        table,
    )


def source(fn: Callable[..., Any]) -> str:
    """A function's source."""
    return inspect.getsource(inspect.unwrap(fn))


def head_table(model: HookedBLIP, number: Callable[[str, int], float]) -> Table:
    """A number for each cross-attention head of the stack, [layer head], the largest ones in bold."""
    cfg = model.stacks[STACK].cfg
    table = Table("", *(f"head {h}" for h in range(cfg.n_heads)), box=box.SIMPLE, pad_edge=False)
    rows = [
        [number(f"{STACK}.blocks.{layer}.cross_attn.hook_z", head) for head in range(cfg.n_heads)]
        for layer in range(cfg.n_layers)
    ]
    largest = max(abs(value) for row in rows for value in row)
    for layer, row in enumerate(rows):
        cells = [Text(f"{v:+.3f}", style=_style(v, largest), justify="right") for v in row]
        table.add_row(f"layer {layer}", *cells)
    return table


def _style(value: float, largest: float) -> str:
    if abs(value) < largest / 2:
        return "" if abs(value) > largest / 10 else "dim"
    return "bold green" if value > 0 else "bold red"
