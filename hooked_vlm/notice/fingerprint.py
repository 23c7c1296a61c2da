"""What a run is a run of: digests of the model, of the rows and of the packages, each part under its own name.

- *weights*: SHA-256 over the name, shape, dtype and every byte of each tensor of the loaded state dict, so that a model
  handed in is known as one from a checkpoint is, and nothing is missed: a single changed bit is another digest. What
  is *not* seen is what is no weight: hooks put on by hand, and code.
- *config*, *tokenizer*, *chat template*, *image processor*: what each of them says of itself, without paths, versions
  and what calls leave behind (padding, truncation).
- *device*: the kind of device it is on, since arithmetic differs between them.
- *rows*: texts and pixels of each row.

Cost: 1.7 GB/s of weights on one core, 0.9 s for BLIP-VQA-base and 8 s for LLaVA-1.5-7B in half precision, which is less
than loading them takes; a millisecond a photograph.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from hooked_vlm.datasets import pairs
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.notice.storage import digest_of

PACKAGES = (
    "hooked-vlm", "torch", "transformers", "tokenizers", "transformer-lens", "numpy", "pandas", "pyarrow", "pillow",
)  # fmt: skip
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # where from, by what, how loaded
_LEFT_BY_CALLS = ("padding", "truncation")


def of_model(model: HookedVLM) -> dict[str, str]:
    """Digests of a model's parts, by name.

    Args:
        model: a `HookedVLM`.
    """
    tokenizer = getattr(model.processor, "tokenizer", None)
    template = getattr(model.processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    pictures = getattr(model.processor, "image_processor", None)
    parts = {
        "config": _without(model.hf_model.config.to_dict(), _NOT_THE_MODEL),
        "tokenizer": None if tokenizer is None else _tokenizer(tokenizer),
        "chat template": template,
        "image processor": None if pictures is None else _without(pictures.to_dict(), _NOT_THE_MODEL),
    }
    found = {name: digest_of(_said(part)) for name, part in parts.items()}
    device = next(model.hf_model.parameters()).device.type
    return {"weights": of_weights(model.hf_model), **found, "device": device}


def of_weights(module: torch.nn.Module) -> str:
    """The digest of every byte of a module's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def of_row(row: Mapping[str, Any]) -> str:
    """The digest of a row's texts and pixels."""
    found = hashlib.sha256()
    for name in pairs.COLUMNS:
        value = row.get(name)
        found.update(f"{name} {_kind(value)}\n".encode())
        if isinstance(value, Image.Image):
            found.update(value.tobytes())
            found.update(repr(value.getpalette()).encode() if value.mode == "P" else b"")
        elif value is not None:
            found.update(str(value).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def packages() -> dict[str, str]:
    """The versions of what numbers depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names whose values differ."""
    return [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]


def _kind(value: Any) -> str:
    """What a value is, and how long, so that no two rows run together into one digest."""
    if isinstance(value, Image.Image):
        return f"picture {value.mode} {value.size}"
    return "none" if value is None else f"text {len(str(value))}"


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    return {
        "words": words if backend is None else {name: words[name] for name in words if name not in _LEFT_BY_CALLS},
        "special": tokenizer.special_tokens_map,
        "padding_side": tokenizer.padding_side,
        "longest": tokenizer.model_max_length,
    }


def _without(values: Mapping[Any, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Values without those of some names, at any depth."""
    return {
        str(name): _without(value, names) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name not in names
    }


def _said(value: Any) -> Any:
    """A value as JSON holds it; what JSON does not know by what it says of itself, or its class."""
    return json.loads(json.dumps(value, default=_named, sort_keys=True))


def _named(value: Any) -> str:
    said = str(value)
    return type(value).__name__ if " at 0x" in said else said  # an address is another one each time
