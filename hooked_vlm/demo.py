"""`hooked-vlm demo`: a cache, a hook and a patch in the cross-attention of a small BLIP, on any machine.

The functions on display print their own source, so what is read is what ran. Cost: some seconds, most of
them imports. Knows one question about two pictures, and no more of the model than its public face.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from torch import Tensor

from hooked_vlm.models.blip import HookedBLIP
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.table import collapsed

CHECKPOINT = "zoo:blip-shapes"
QUESTION, RIGHT, WRONG = "is the circle red or blue?", "red", "blue"
STACK = "text_encoder"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "is", "the", "circle", "red", "or", "blue", "?"]


def run(console: Console) -> None:
    """Print the demo."""
    model, origin = demo_model()
    clean = model.to_inputs(picture(RIGHT), QUESTION)
    corrupt = model.to_inputs(picture(WRONG), QUESTION)
    console.print(Panel(f"{model.cfg}\n\n{origin}", title="the model", expand=False))
    with torch.no_grad():
        console.print(cached(model, clean))
        console.print(zeroed(model, clean))
        console.print(patched(model, clean, corrupt))


def demo_model() -> tuple[HookedBLIP, str]:
    """The model on display, and a sentence about it: the shipped one, or a random one where none is shipped."""
    if find_spec("hooked_vlm.zoo") is None:
        return random_blip(), "Its weights are random: the numbers below are exact, and mean nothing."
    model: HookedBLIP = HookedBLIP.from_pretrained(CHECKPOINT)
    return model, f"{CHECKPOINT}, trained on questions about coloured shapes."


def random_blip(seed: int = 35) -> HookedBLIP:
    """A `BlipForQuestionAnswering` of 3 layers and 4 heads with random weights and a tokenizer of 13 words."""
    from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    # Large initial weights: heads attend sharply, so that taking one away shows. The default seed is one of
    # the few for which the random answer is right on both pictures.
    shared = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.3}
    text = {
        **shared,
        "encoder_hidden_size": 32,
        "num_hidden_layers": 3,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 16,
        "bos_token_id": WORDS.index("[DEC]"),
        "pad_token_id": WORDS.index("[PAD]"),
        "sep_token_id": WORDS.index("[SEP]"),
        "eos_token_id": WORDS.index("[SEP]"),
    }
    vision = {**shared, "num_hidden_layers": 2, "image_size": 64, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf_model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, bos_token="[DEC]")
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), tokenizer)
    model: HookedBLIP = HookedBLIP.from_hf(hf_model, processor)
    return model


def picture(colour: str) -> Image.Image:
    """A circle of a colour on grey, 64 x 64 pixels."""
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    ImageDraw.Draw(image).ellipse((6, 6, 26, 26), fill=colour)
    return image


# --- what is shown, with its source ---------------------------------------------------------------------


def logit_difference(model: HookedBLIP, logits: Float[Tensor, "1 pos d_vocab"]) -> float:
    """How much likelier the right answer is than the wrong one, in logits."""
    right, wrong = model.to_single_token(RIGHT), model.to_single_token(WRONG)
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


def cached(model: HookedBLIP, inputs: VLMInputs) -> Group:
    """What a cache holds: the cross-attention of one layer, by name."""
    logits, cache = model.run_with_cache(inputs)
    table = Table("in the cache", "shape", box=box.SIMPLE, pad_edge=False)
    for name, activation in cache.cache_dict.items():
        if collapsed(name).startswith(f"{STACK}.blocks.{{l}}.cross_attn") and ".blocks.0." in name:
            table.add_row(Text(name), Text(" x ".join(map(str, activation.shape))))
    pattern = cache[f"{STACK}.blocks.0.cross_attn.hook_pattern"]
    word, image = inputs.find("circle")[0], inputs.image_span
    head, patch = divmod(int(pattern[0, :, word, image].argmax()), image.stop - image.start)
    return section(
        "cache",
        "logits, cache = model.run_with_cache(inputs)",
        table,
        f"{len(cache.cache_dict)} activations of {len(model.stacks)} stacks. In layer 0 'circle' looks hardest at "
        f"image patch {patch}, with head {head}. {QUESTION} {RIGHT} over {WRONG} by "
        f"{logit_difference(model, logits):+.3f} logits.",
    )


def zeroed(model: HookedBLIP, inputs: VLMInputs) -> Group:
    """What each cross-attention head is worth: the logit difference without it."""
    before = logit_difference(model, model(inputs))

    def effect(name: str, head: int) -> float:
        logits = model.run_with_hooks(inputs, fwd_hooks=[(name, partial(zero_head, head=head))])
        return logit_difference(model, logits) - before

    return section(
        "hook",
        source(zero_head)
        + "\nhook = partial(zero_head, head=head)\nmodel.run_with_hooks(inputs, fwd_hooks=[(name, hook)])",
        head_table(model, effect),
        f"Change of the logit difference ({before:+.3f}) when a cross-attention head is zeroed.",
    )


def patched(model: HookedBLIP, clean: VLMInputs, corrupt: VLMInputs) -> Group:
    """How much of the clean answer each cross-attention head brings back into the corrupt run."""
    clean_logits, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("cross_attn.hook_z"))
    high, low = logit_difference(model, clean_logits), logit_difference(model, model(corrupt))

    def restored(name: str, head: int) -> float:
        logits = model.run_with_hooks(corrupt, fwd_hooks=[(name, partial(patch_head, head=head, clean=cache))])
        return (logit_difference(model, logits) - low) / (high - low)

    return section(
        "patch",
        source(patch_head)
        + "\nhook = partial(patch_head, head=head, clean=cache)"
        + "\nmodel.run_with_hooks(corrupt, fwd_hooks=[(name, hook)])",
        head_table(model, restored),
        f"Clean image: a {RIGHT} circle ({high:+.3f}). Corrupt: a {WRONG} one ({low:+.3f}). Shown is the share of the "
        "way back to clean that a single head restores.",
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
