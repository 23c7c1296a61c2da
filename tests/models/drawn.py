"""Hypothesis strategies: small Hugging Face models with random configurations and weights, and inputs for them.

Weights are large enough that heads attend sharply and logits differ: with Hugging Face's initial values every
pattern is flat, and a test of a hook would pass on rounding.

Where two ways of running are said to give the same numbers, draw them `exactly`: in float64 what is right differs by
1e-13 and what is wrong by far more, so that no draw is too close to call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MethodType
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

from hooked_vlm import HookedVLM, VLMInputs

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
        inputs: a batch, padded or not.
        kind: "llava", or a key of `BLIP_CLASSES`.
        flags: the `cfg` flags that are on.
        interpolate: whether the images have another size than the model's.
    """

    hf: Any
    inputs: VLMInputs
    kind: str
    flags: tuple[str, ...] = ()
    interpolate: bool = False

    def hooked(self) -> HookedVLM:
        """The hooked model, its flags on."""
        model = HookedVLM.from_hf(self.hf)
        for flag in self.flags:
            setattr(model.cfg, flag, True)
        return model

    def exactly(self) -> Case:
        """This case in float64."""
        return replace(self, hf=exact(self.hf), inputs=self.inputs.to(dtype=torch.float64))

    def __repr__(self) -> str:
        text = getattr(self.hf.config, "text_config", None)
        window = f", window {text.sliding_window}" if getattr(text, "sliding_window", None) else ""
        mask = "" if self.inputs.real is None else f", mask {self.inputs.real.int().tolist()}"
        flags = "".join(f", {flag}" for flag in self.flags) + ", interpolated" * self.interpolate
        return f"Case({self.kind}, {self.inputs}{window}{mask}{flags})"


def exact(hf: Any) -> Any:
    """The model in float64, its RMS norms too, which Hugging Face computes in float32 whatever they are given."""
    for module in hf.double().modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = MethodType(rms_norm, module)
    return hf


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    """An RMS norm in the dtype of what it is given."""
    normed: Tensor = norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return normed


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
    d_vision: int | None = None,
    grid: int = 3,
    patch: int = 4,
    act: str = "gelu",
    n_ctx: int = 24,
) -> Any:
    """A small BLIP. Vision and text have the same width unless `d_vision` says otherwise, which "vqa" cannot have."""
    d_model = n_heads * d_head
    d_vision = d_vision or d_model
    vision = BlipVisionConfig(
        hidden_size=d_vision,
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
        encoder_hidden_size=d_vision,
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
    n_full_layers: int = 1,
    rope: dict[str, Any] | None = None,
    n_ctx: int = 64,
) -> Any:
    """A small LLaVA. `window` is the sliding window of Mistral, and of Qwen2 after `n_full_layers`."""
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
        "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default", **(rope or {})},
    }
    if text == "llama":
        text_config: Any = LlamaConfig(**language, attention_bias=bias, mlp_bias=bias)
    elif text == "mistral":
        text_config = MistralConfig(**language, sliding_window=window)
    else:
        sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": n_full_layers}
        sliding = {} if window is None else sliding
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
    """Rows of different length in one tensor, and their attention mask; on both sides, one more at each end."""
    longest = max(len(r) for r in rows) + 2 * (side == "both")
    ids, mask = torch.full((len(rows), longest), PAD), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        spare = longest - len(row)
        start = {"left": spare, "right": 0, "both": spare // 2}[side]
        ids[i, start : start + len(row)], mask[i, start : start + len(row)] = row, 1
    return ids, mask


def n_image_tokens(hf: Any, size: int | None = None) -> int:
    """How many image tokens a LLaVA prompt needs, for images of the model's size or another."""
    vision = hf.config.vision_config
    n = ((size or vision.image_size) // vision.patch_size) ** 2 + (vision.model_type == "clip_vision_model")
    return n - (hf.config.vision_feature_select_strategy == "default")


def prompt(hf: Any, kind: str, length: int, seed: int, size: int | None = None) -> Tensor:
    """One row of ids: words, with the image's tokens among them for LLaVA."""
    row = words(1, length, seed)[0]
    if kind == "llava":
        start = min(2, length - 1)
        row = torch.cat([row[:start], torch.full((n_image_tokens(hf, size),), IMAGE), row[start:]])
    return row


def inputs_for(
    hf: Any,
    kind: str,
    lengths: list[int],
    *,
    side: str = "right",
    n_answer: int = 0,
    seed: int = 0,
    size: int | None = None,
) -> VLMInputs:
    """A batch with prompts of these lengths (words, image tokens not counted); `size` is that of its images."""
    ids, mask = pad([prompt(hf, kind, n, seed + i, size) for i, n in enumerate(lengths)], side)
    answer = None
    if kind == "vqa" and n_answer:
        answer = torch.cat([torch.full((len(lengths), 1), BOS), words(len(lengths), n_answer, seed + 99)], 1)
    return VLMInputs(pixels(hf, len(lengths), seed, size), ids, mask, answer)


@st.composite
def ropes(draw: st.DrawFn, d_head: int) -> dict[str, Any]:
    """Every kind of rotary positions; in "longrope" they depend on how long the row is."""
    kind = draw(st.sampled_from(["default", "default", "linear", "dynamic", "yarn", "llama3", "longrope"]))
    parameters: dict[str, Any] = {"rope_type": kind}
    if kind != "default":
        parameters["factor"] = 2.0
    if kind in ("yarn", "llama3", "longrope"):
        parameters["original_max_position_embeddings"] = draw(st.sampled_from([12, 32]))
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        parameters |= {"short_factor": [1.0] * (d_head // 2), "long_factor": [3.0] * (d_head // 2)}
    return parameters


@st.composite
def llava_models(draw: st.DrawFn, *, windowed: bool = False) -> Any:
    """Text tower, vision tower, heads, GQA, biases, activations, feature layers, sizes, windows, rotary positions.

    Windows end beyond the longest prompt; `windowed` ones are there in every layer and shorter than it. None is of one
    token: Hugging Face's cache then keeps every key, so that its generate is not its forward.
    """
    vision = draw(st.sampled_from(["clip", "siglip"]))
    n_layers, n_vision_layers = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    one = st.integers(-n_vision_layers, -1) | st.integers(1, n_vision_layers)
    n_heads, d_head = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([4, 8]))
    return llava(
        seed=draw(st.integers(0, 99)),
        text=draw(st.sampled_from(["mistral", "qwen2"] if windowed else ["llama", "mistral", "qwen2"])),
        vision=vision,
        n_layers=n_layers,
        n_vision_layers=n_vision_layers,
        n_heads=n_heads,
        n_kv_heads=draw(st.sampled_from([k for k in (1, 2, 4) if n_heads % k == 0])),
        d_head=d_head,
        grid=draw(st.integers(2, 4)),
        patch=draw(st.sampled_from([2, 4])),
        feature_layer=draw(one | st.lists(one, min_size=1, max_size=3)),
        strategy=draw(st.sampled_from(["default", "full"])),
        vision_act=draw(st.sampled_from(["quick_gelu", "gelu", "gelu_pytorch_tanh"])),
        bias=draw(st.booleans()),
        window=draw(st.integers(2, 6) if windowed else st.none() | st.integers(2, 6) | st.integers(7, 30)),
        n_full_layers=0 if windowed else draw(st.integers(0, n_layers)),
        rope=draw(ropes(d_head)),
    )


@st.composite
def blip_models(draw: st.DrawFn, kind: str = "vqa") -> Any:
    """Layers, heads, widths, activations, patch and image sizes."""
    n_heads = draw(st.sampled_from([1, 2, 4]))
    return blip(
        kind,
        seed=draw(st.integers(0, 99)),
        n_layers=draw(st.integers(1, 3)),
        n_vision_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        d_head=draw(st.sampled_from([8, 16])),
        n_vision_heads=draw(st.sampled_from([1, 2])) if n_heads % 2 == 0 else 1,
        d_vision=None if kind == "vqa" else draw(st.sampled_from([None, 12])),
        grid=draw(st.integers(2, 4)),
        patch=draw(st.sampled_from([2, 4])),
        act=draw(st.sampled_from(["gelu", "relu", "gelu_new"])),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = ("llava", "vqa", "caption", "itm"),
    max_batch: int = 4,
    *,
    any_size: bool = False,
    windowed: bool = False,
) -> Case:
    """A model of one of the kinds, its flags on or off, and a batch for it, padded on either side, both, or not.

    Args:
        draw: given by hypothesis.
        kinds: "llava", and keys of `BLIP_CLASSES`.
        max_batch: the most rows.
        any_size: also draw images of another size than the model's.
        windowed: a LLaVA with a short sliding window, in a padded batch.
    """
    kind = "llava" if windowed else draw(st.sampled_from(kinds))
    hf = draw(llava_models(windowed=windowed) if kind == "llava" else blip_models(kind))
    padded = windowed or draw(st.booleans())
    batch = draw(st.integers(1 + windowed, max_batch))
    length = draw(st.integers(2, 7))
    lengths = [draw(st.integers(2, 7)) for _ in range(batch)] if padded else [length] * batch
    vision = hf.config.vision_config
    more = draw(st.sampled_from([0, 0, -1, 1])) if any_size else 0
    inputs = inputs_for(
        hf,
        kind,
        lengths,
        side=draw(st.sampled_from(["left", "right", "both"])) if padded else "right",
        n_answer=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 99)),
        size=vision.image_size + more * vision.patch_size,
    )
    flags = tuple(flag for flag in ("use_attn_result", "use_split_qkv_input") if draw(st.booleans()))
    return Case(hf, inputs, kind, flags, interpolate=more != 0)
