"""Hypothesis strategies: small Hugging Face models with random configurations and weights, and inputs for them.

Weights are large enough that heads attend sharply and logits differ: with Hugging Face's initial values every
pattern is flat, and a test of a hook would pass on rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from hooked_vlm import VLMInputs

PAD, BOS, EOS, SEP, IMAGE, D_VOCAB = 0, 1, 2, 3, 4, 53
FIRST_WORD = 5
BLIP_CLASSES = {
    "vqa": BlipForQuestionAnswering,
    "caption": BlipForConditionalGeneration,
    "itm": BlipForImageTextRetrieval,
}


@dataclass
class Case:
    """A drawn model and inputs for it.

    Args:
        hf: the Hugging Face model.
        inputs: a batch, padded if `padded`.
        kind: "llava", or a key of `BLIP_CLASSES`.
    """

    hf: Any
    inputs: VLMInputs
    kind: str

    def __repr__(self) -> str:
        return f"Case({self.kind}, {self.inputs}, padded={self.inputs.real is not None})"


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn from a seed, scaled so that activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = torch.randn(p.shape, generator=generator)
            if p.ndim >= 2 and "embed" not in name:
                values = values * (1.0 / p[0].numel() ** 0.5)
            elif p.ndim < 2:
                is_scale = name.endswith("weight")
                values = 0.3 * values + (1.0 if is_scale else 0.0)
            p.copy_(values)
    return model.eval()


def blip(
    kind: str = "vqa",
    *,
    seed: int = 0,
    n_layers: int = 2,
    n_vision_layers: int = 2,
    n_heads: int = 2,
    d_head: int = 8,
    n_vision_heads: int = 2,
    grid: int = 3,
    patch: int = 4,
    act: str = "gelu",
    n_ctx: int = 24,
) -> Any:
    """A small BLIP. Vision and text have the same width, as in every checkpoint of this kind."""
    d_model = n_heads * d_head
    vision = BlipVisionConfig(
        hidden_size=d_model,
        intermediate_size=2 * d_model + 4,
        num_hidden_layers=n_vision_layers,
        num_attention_heads=n_vision_heads,
        image_size=grid * patch,
        patch_size=patch,
        hidden_act=act,
    )
    text = BlipTextConfig(
        vocab_size=D_VOCAB,
        hidden_size=d_model,
        encoder_hidden_size=d_model,
        intermediate_size=3 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        max_position_embeddings=n_ctx,
        hidden_act=act,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        sep_token_id=SEP,
        is_decoder=True,
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_text_hidden_size=12)
    return randomise(BLIP_CLASSES[kind](config), seed)


def llava(
    *,
    seed: int = 0,
    text: str = "llama",
    vision: str = "clip",
    n_layers: int = 2,
    n_vision_layers: int = 3,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    d_head: int = 8,
    d_model: int = 24,
    grid: int = 3,
    patch: int = 4,
    feature_layer: int | list[int] = -2,
    strategy: str = "default",
    vision_act: str = "quick_gelu",
    bias: bool = False,
    window: int | None = None,
    n_ctx: int = 64,
) -> Any:
    """A small LLaVA. `window` is the sliding window of Mistral and Qwen2."""
    d_vision = 16
    shared = {
        "hidden_size": d_vision,
        "intermediate_size": 20,
        "num_hidden_layers": n_vision_layers,
        "num_attention_heads": 2,
        "image_size": grid * patch,
        "patch_size": patch,
        "hidden_act": vision_act,
    }
    vision_config = CLIPVisionConfig(**shared) if vision == "clip" else SiglipVisionConfig(**shared)
    language = {
        "vocab_size": D_VOCAB,
        "hidden_size": d_model,
        "intermediate_size": 40,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": d_head,
        "max_position_embeddings": n_ctx,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    if text == "llama":
        text_config: Any = LlamaConfig(**language, attention_bias=bias, mlp_bias=bias)
    elif text == "mistral":
        text_config = MistralConfig(**language, sliding_window=window)
    else:
        sliding = (
            {} if window is None else {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
        )
        text_config = Qwen2Config(**language, **sliding)
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=IMAGE,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        multimodal_projector_bias=bias,
    )
    return randomise(LlavaForConditionalGeneration(config), seed)


def pixels(hf: Any, n: int, seed: int, size: int | None = None) -> Tensor:
    """Random pixels of the model's image size."""
    size = size or hf.config.vision_config.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def words(n: int, length: int, seed: int) -> Tensor:
    """Random word ids, [n length]."""
    return torch.randint(FIRST_WORD, D_VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


def pad(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Rows of different length in one tensor, and their attention mask."""
    longest = max(len(r) for r in rows)
    ids, mask = torch.full((len(rows), longest), PAD), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def n_image_tokens(hf: Any) -> int:
    """How many image tokens a LLaVA prompt needs."""
    vision = hf.config.vision_config
    n = (vision.image_size // vision.patch_size) ** 2 + (vision.model_type == "clip_vision_model")
    return n - (hf.config.vision_feature_select_strategy == "default")


def prompt(hf: Any, kind: str, length: int, seed: int) -> Tensor:
    """One row of ids: words, with the image's tokens among them for LLaVA."""
    row = words(1, length, seed)[0]
    if kind == "llava":
        start = min(2, length - 1)
        row = torch.cat([row[:start], torch.full((n_image_tokens(hf),), IMAGE), row[start:]])
    return row


def inputs_for(
    hf: Any, kind: str, lengths: list[int], *, side: str = "right", n_answer: int = 0, seed: int = 0
) -> VLMInputs:
    """A batch with prompts of these lengths (words, image tokens not counted)."""
    ids, mask = pad([prompt(hf, kind, n, seed + i) for i, n in enumerate(lengths)], side)
    answer = None
    if kind == "vqa" and n_answer:
        answer = torch.cat([torch.full((len(lengths), 1), BOS), words(len(lengths), n_answer, seed + 99)], 1)
    return VLMInputs(pixels(hf, len(lengths), seed), ids, mask, answer)


@st.composite
def llava_models(draw: st.DrawFn) -> Any:
    """Text tower, vision tower, heads, GQA, biases, activations, feature layers, sizes."""
    vision = draw(st.sampled_from(["clip", "siglip"]))
    n_vision_layers = draw(st.integers(2, 3))
    one = st.integers(-n_vision_layers, -1) | st.integers(1, n_vision_layers)
    n_heads = draw(st.sampled_from([1, 2, 4]))
    return llava(
        seed=draw(st.integers(0, 99)),
        text=draw(st.sampled_from(["llama", "mistral", "qwen2"])),
        vision=vision,
        n_layers=draw(st.integers(1, 3)),
        n_vision_layers=n_vision_layers,
        n_heads=n_heads,
        n_kv_heads=draw(st.sampled_from([k for k in (1, 2, 4) if n_heads % k == 0])),
        d_head=draw(st.sampled_from([4, 8])),
        grid=draw(st.integers(2, 4)),
        patch=draw(st.sampled_from([2, 4])),
        feature_layer=draw(one | st.lists(one, min_size=1, max_size=3)),
        strategy=draw(st.sampled_from(["default", "full"])),
        vision_act=draw(st.sampled_from(["quick_gelu", "gelu", "gelu_pytorch_tanh"])),
        bias=draw(st.booleans()),
        window=draw(st.none() | st.integers(2, 6)),
    )


@st.composite
def blip_models(draw: st.DrawFn, kind: str = "vqa") -> Any:
    """Layers, heads, activations, patch and image sizes."""
    n_heads = draw(st.sampled_from([1, 2, 4]))
    return blip(
        kind,
        seed=draw(st.integers(0, 99)),
        n_layers=draw(st.integers(1, 3)),
        n_vision_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        d_head=draw(st.sampled_from([8, 16])),
        n_vision_heads=draw(st.sampled_from([1, 2])) if n_heads % 2 == 0 else 1,
        grid=draw(st.integers(2, 4)),
        patch=draw(st.sampled_from([2, 4])),
        act=draw(st.sampled_from(["gelu", "relu", "gelu_new"])),
    )


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = ("llava", "vqa", "caption", "itm"), max_batch: int = 4) -> Case:
    """A model of one of the kinds and a batch for it, padded on either side or not."""
    kind = draw(st.sampled_from(kinds))
    hf = draw(llava_models() if kind == "llava" else blip_models(kind))
    padded = draw(st.booleans())
    batch = draw(st.integers(1, max_batch))
    length = draw(st.integers(2, 7))
    lengths = [draw(st.integers(2, 7)) for _ in range(batch)] if padded else [length] * batch
    inputs = inputs_for(
        hf,
        kind,
        lengths,
        side=draw(st.sampled_from(["left", "right"])),
        n_answer=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 99)),
    )
    return Case(hf, inputs, kind)
