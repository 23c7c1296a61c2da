"""What a terminal and a notebook show of a model, its inputs, a finished run and a cache: a screenful each.

Cost: that of a few lines; a notebook's pictures of the inputs are made small first.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from hooked_vlm.models import spelling
from hooked_vlm.models.config import FLAGS

if TYPE_CHECKING:
    import hooked_vlm.models.base  # named in full, as run-time checks look a name up that is not imported

N_ROWS = 4  # of a batch
N_TOKENS = 40  # of a row, a run of image tokens counted once
N_LINES = 36  # of a cache
N_LETTERS = 400  # of a name
SIDE = 96  # of a thumbnail, in pixels
CELL = "padding:2px 8px;text-align:left"
HEADING = ("stack", "names begin with", "layers x heads x d_head", "d_model", "d_mlp", "attention", "norm")


def collapsed(name: str) -> str:
    """A hook point's name with its layer left open.

    >>> collapsed("text_encoder.blocks.11.cross_attn.hook_z")
    'text_encoder.blocks.{l}.cross_attn.hook_z'
    """
    return re.sub(r"(^|\.)blocks\.\d+\.", r"\1blocks.{l}.", name)


# --- models -------------------------------------------------------------------------------------------------


class Shown:
    """A model as it is printed. Everything is read from what every `HookedVLM` has."""

    def __repr__(self: Any) -> str:
        head, *rows = _stack_rows(self)
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        padded = ([cell.ljust(n) for cell, n in zip(row, widths, strict=True)] for row in (head, *rows))
        return "\n".join([_title(self), *(f"  {'  '.join(row).rstrip()}" for row in padded), _ending(self)])

    def _repr_html_(self: Any) -> str:
        head, *rows = _stack_rows(self)
        body = [_row(head, "th"), *(_row(row, "td") for row in rows)]
        return f"<div><b>{escape(_title(self))}</b><table>{''.join(body)}</table>{escape(_ending(self))}</div>"


def _title(model: hooked_vlm.models.base.HookedVLM) -> str:
    n = sum(parameter.numel() for parameter in model.hf_model.parameters())
    count = next((f"{n / size:.1f} {unit}" for size, unit in ((1e9, "B"), (1e6, "M")) if n >= size), f"{n:,}")
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{type(model).__name__} ({_cut(model.cfg.model_name)}): {count} weights, {dtype} on {model.device}"


def _ending(model: hooked_vlm.models.base.HookedVLM) -> str:
    flags = "; ".join(f"cfg.{name} is {getattr(model.cfg, name)}" for name in FLAGS)
    return f"{len(model.hook_dict)} hook points, in model.hook_dict; {flags}"


def _stack_rows(model: hooked_vlm.models.base.HookedVLM) -> list[tuple[str, ...]]:
    """A line for each stack, under a heading."""
    rows: list[tuple[str, ...]] = [HEADING]
    for name, stack in model.stacks.items():
        cfg = stack.cfg
        kv = "" if not cfg.n_key_value_heads else f" ({cfg.n_key_value_heads} kv)"
        attention = ", ".join(filter(None, (_having(stack, kind) for kind in ("attn", "cross_attn"))))
        norm = "RMS" if str(cfg.normalization_type).startswith("RMS") else "LN"
        rows.append(
            (
                name,
                f"{stack.prefix}blocks.",
                f"{cfg.n_layers} x {cfg.n_heads}{kv} x {cfg.d_head}",
                str(cfg.d_model),
                str(cfg.d_mlp),
                attention + (", causal" if stack.causal else ""),
                f"{'post' if stack.post_norm else 'pre'}-{norm}",
            )
        )
    return rows


def _having(stack: Any, kind: str) -> str:
    """A kind of attention, with the layers that have it where others do not."""
    layers = [layer for layer, block in enumerate(stack.blocks) if block.has(kind)]
    return kind if len(layers) == len(stack.blocks) else f"{kind} of layers {layers}" if layers else ""


# --- inputs -------------------------------------------------------------------------------------------------


def inputs(given: Any) -> str:
    """A `VLMInputs` in a line, and its first rows as tokens where a tokenizer is known."""
    answer = "" if given.decoder_input_ids is None else f", {given.decoder_input_ids.shape[1]} answer tokens"
    where = given.input_ids.device
    place = "" if where.type == "cpu" else f" on {where}"
    head = f"VLMInputs({len(given)} x {_images(given)}, {given.input_ids.shape[1]} tokens{answer}){place}"
    if given.layout.tokenizer is None:
        return head
    lines = [f"  {i}: {_cut(' '.join(text for text, _ in _tokens(given, i)))}" for i in _first_rows(given)]
    return "\n".join([head, *lines, *_more(given)])


def _images(given: Any) -> str:
    """The images of each row in a few words."""
    if given.pixel_values is None:
        return "no image"
    shape = " ".join(map(str, given.pixel_values.shape[1:]))
    kind = "" if given.dtype == torch.float32 else f" {str(given.dtype).removeprefix('torch.')}"
    each = given.images_each
    several = "" if set(each) == {1} else f"{each[0] if len(set(each)) == 1 else each} "
    return f"{several}[{shape}]{kind} pixels"


def inputs_html(given: Any) -> str:
    """A `VLMInputs` as its first pictures, small, and the tokens beside them."""
    rows = []
    for i in _first_rows(given):
        tokens = " ".join(
            f'<span style="background:#8882;padding:0 3px;opacity:{1 if is_real else 0.4}">{escape(text)}</span>'
            for text, is_real in _tokens(given, i)
        )
        rows.append(f"<tr><td>{i}</td><td>{_thumbnails(given, i)}</td><td style='{CELL}'>{tokens}</td></tr>")
    head = escape(inputs(given).partition("\n")[0])
    return f"<div><b>{head}</b><table>{''.join(rows)}</table>{''.join(_more(given))}</div>"


def _first_rows(given: Any) -> range:
    return range(min(len(given), N_ROWS))


def _more(given: Any) -> list[str]:
    return [f"  ... and {len(given) - N_ROWS} more rows"] if len(given) > N_ROWS else []


def _tokens(given: Any, i: int) -> list[tuple[str, bool]]:
    """The tokens of a row as strings, and whether each is real; what repeats, as an image's tokens do, once."""
    ids, real = given.input_ids[i].tolist(), [True] * given.input_ids.shape[1]
    if given.attention_mask is not None:
        real = given.attention_mask[i].bool().tolist()
    tokenizer = given.layout.tokenizer
    words = [_printable(str(token)) for token in (ids if tokenizer is None else spelling.strings(tokenizer, ids))]
    runs = [(key, len(list(run))) for key, run in groupby(zip(words, real, strict=True))]
    found = [(f"{word} x {n}" if n > 1 else word, is_real) for (word, is_real), n in runs]
    return found if len(found) <= N_TOKENS else [*found[: N_TOKENS // 2], ("...", True), *found[-N_TOKENS // 2 :]]


def _printable(token: str) -> str:
    """A token without what would break a line: a newline as Python writes it."""
    return token if token.isprintable() else repr(token)[1:-1]


def _thumbnails(given: Any, i: int) -> str:
    """A row's pictures, or their tiles, as HTML images; nothing where the pixels are single patches."""
    pixels = given[i].pixel_values
    if pixels is None or pixels.ndim < 4:
        return ""
    return "".join(_thumbnail(each, given.layout.image_processor) for each in pixels.flatten(0, -4))


def _thumbnail(pixels: Tensor, processor: Any) -> str:
    """A picture as an HTML image; the processor's normalisation is undone where it is known."""
    pixels = pixels.detach().float().cpu().nan_to_num()
    scale = [getattr(processor, name, None) for name in ("image_std", "image_mean")]
    if all(isinstance(part, list | tuple) and len(part) == len(pixels) for part in scale):
        std, mean = (torch.tensor(part)[:, None, None] for part in scale)
        pixels = pixels * std + mean
    else:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp(min=1e-9)
    pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
    picture = Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


# --- runs and caches ----------------------------------------------------------------------------------------


def state(given: Any) -> str:
    """A finished run: its inputs, and what is kept of each stack."""
    of = inputs(given.inputs).partition("\n")[0]
    lines = [f"RunState of {of}: model.resume(state, stack, ...) goes on from it"]
    for name, kept in given.passes.items():
        kv_cache = kept.kv_cache or []
        stream = next((layer.resid_pre for layer in kv_cache if layer.resid_pre is not None), None)
        shape = "" if stream is None else f", resid_pre {_shape(stream)}"
        lines.append(f"  {name}: {max(len(kv_cache) - 1, 0)} layers{shape}")
    return "\n".join(lines)


def cache(kind: str, given: Mapping[str, Tensor], about: str) -> str:
    """A cache: its activations with their shapes, the layers of one kind in one line."""
    n_bytes = sum(each.numel() * each.element_size() for each in given.values())
    found: dict[tuple[str, str], list[str]] = {}
    for name, activation in given.items():
        found.setdefault((collapsed(name), _shape(activation)), []).append(name)
    lines = [f"  {name} {shape}{_layers(name, names)}" for (name, shape), names in found.items()]
    if len(lines) > N_LINES:
        lines = [*lines[:N_LINES], f"  ... and {len(lines) - N_LINES} more kinds: list(cache.keys())"]
    return "\n".join([f"{kind} of {about}: {len(given)} activations, {n_bytes / 2**20:.1f} MiB", *lines])


def _layers(name: str, names: Iterable[str]) -> str:
    if "{l}" not in name:
        return ""
    layers = [int(found[1]) for each in names if (found := re.search(r"(?:^|\.)blocks\.(\d+)\.", each))]
    is_range = layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 2
    return f", l = {f'{layers[0]} to {layers[-1]}' if is_range else ', '.join(map(str, layers[:20]))}"


def _shape(t: Tensor) -> str:
    return f"[{' '.join(map(str, t.shape))}]"


def _cut(text: str) -> str:
    return text if len(text) <= N_LETTERS else f"{text[: N_LETTERS // 2]} ... {text[-N_LETTERS // 2 :]}"


def _row(cells: Iterable[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag} style={chr(34)}{CELL}{chr(34)}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
