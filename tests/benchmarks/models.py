"""Models that benchmarks are run on, made from nothing or from the zoo; no checkpoint is fetched."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from hooked_vlm import HookedVLM
from tests.notice import speaking
from tests.notice.speaking import BASE


def blip_base() -> HookedVLM:
    """BLIP-VQA-base's dimensions, random but for one word, which it says to everything."""
    vision = BASE | {"image_size": 384, "patch_size": 16}
    return HookedVLM.from_hf(*speaking.blip("red", text=BASE, vision=vision))


def wide_llava(n_layers: int = 32, n_heads: int = 32) -> HookedVLM:
    """zoo:llava-shapes with more layers and heads, none of which writes anything: it answers as the zoo's does."""
    zoo = HookedVLM.from_pretrained("zoo:llava-shapes", device="cpu", dtype=torch.float32)
    old, config = zoo.hf_model, copy.deepcopy(zoo.hf_model.config)
    text, own = config.text_config, zoo.hf_model.config.text_config
    text.num_hidden_layers = n_layers
    text.num_attention_heads = text.num_key_value_heads = n_heads
    text.head_dim = own.hidden_size // own.num_attention_heads
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[0]] * n_layers
    torch.manual_seed(0)
    new = type(old)(config).eval()
    weights, known = new.state_dict(), old.state_dict()
    spread = (n_layers - 1) / (own.num_hidden_layers - 1)
    place = {round(i * spread): i for i in range(own.num_hidden_layers)}
    for name, weight in weights.items():
        before, layers, after = name.partition("language_model.layers.")
        number, _, rest = after.partition(".")
        if not layers:
            weight.copy_(known[name])
        elif int(number) in place:
            mine = known[f"{before}{layers}{place[int(number)]}.{rest}"]
            weight.zero_()[tuple(slice(n) for n in mine.shape)] = mine
        elif "norm" not in name and ("o_proj" in name or "down_proj" in name):
            weight.zero_()
    new.load_state_dict(weights)
    return HookedVLM.from_hf(new, zoo.processor)


def described(path: Path, name: str) -> str:
    """A directory with the config of a published checkpoint's size and a small processor, and no weights.

    Args:
        path: where.
        name: "blip-vqa-base", "llava-1.5-7b" or "llava-1.5-13b".
    """
    zoo = HookedVLM.from_pretrained("zoo:blip-shapes" if name.startswith("blip") else "zoo:llava-shapes", device="cpu")
    config, processor = copy.deepcopy(zoo.hf_model.config), copy.deepcopy(zoo.processor)
    text, vision = config.text_config, config.vision_config
    if name.startswith("blip"):
        side = 384
        given: dict[str, Any] = BASE | {"vocab_size": 30524}
        _set(vision, BASE | {"image_size": side, "patch_size": 16})
        _set(text, given | {"encoder_hidden_size": 768})
    else:
        side, large = 336, name.endswith("13b")
        width, heads, layers, mlp = (5120, 40, 40, 13824) if large else (4096, 32, 32, 11008)
        _set(vision, {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24})
        _set(vision, {"num_attention_heads": 16, "image_size": side, "patch_size": 14})
        _set(text, {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads})
        _set(text, {"num_hidden_layers": layers, "intermediate_size": mlp, "head_dim": width // heads})
        text.vocab_size, text.max_position_embeddings, config.vision_feature_layer = 32064, 4096, -2
        if getattr(text, "layer_types", None):
            text.layer_types = [text.layer_types[0]] * layers
        processor.patch_size = 14
    pictures = processor.image_processor
    for part in ("size", "crop_size"):
        if (size := getattr(pictures, part, None)) is not None:
            setattr(pictures, part, {key: side for key, value in dict(size).items() if value})
    config.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def _set(config: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)
