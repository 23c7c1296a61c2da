"""What the attacks are made on: small models, checkpoints and a finished run, made once, before any case is run."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from tests.models import checkpoints
from tests.models.reference import hf_logits

QUESTION = "is it red ?"
KINDS = ("blip", "llava", "llava-words")


@cache
def hugging_face(kind: str) -> tuple[Any, Any]:
    """A small random model with its processor."""
    if kind == "blip":
        return checkpoints.blip_vqa()
    return checkpoints.llava(
        tokenizer=checkpoints.byte_tokenizer() if kind == "llava" else checkpoints.word_tokenizer()
    )


@cache
def model(kind: str) -> Any:
    """The same, hooked."""
    return HookedVLM.from_hf(*hugging_face(kind))


def picture(seed: int = 0, height: int = 20, width: int = 24) -> Image.Image:
    """A picture of noise, wider than high, so that a rotation shows."""
    return checkpoints.picture(seed, height, width)


@torch.no_grad()
def said(kind: str, image: Any, text: Any = QUESTION) -> Tensor:
    """What the package makes of an image and a text: the logits of the next answer token, [batch d_vocab]."""
    return answered(model(kind), image, text)


@torch.no_grad()
def answered(of: Any, image: Any, text: Any = QUESTION) -> Tensor:
    """The same of any hooked model."""
    inputs = of.to_inputs(image, text)
    logits = of(inputs)
    if of.answer_stack == of.prompt_stack:
        return logits[torch.arange(len(inputs)), inputs.last_each]
    return logits[:, -1]


def truth(kind: str, image: Image.Image, text: str = QUESTION) -> Tensor:
    """What Hugging Face makes of an RGB picture and a text, [1 d_vocab]."""
    return truth_of(*hugging_face(kind), kind, image, text)


@torch.no_grad()
def truth_of(hf: Any, processor: Any, kind: str, image: Image.Image, text: str = QUESTION) -> Tensor:
    """The same of any model and processor of Hugging Face's."""
    if kind != "blip" and "<image>" not in text:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    row = VLMInputs.of(dict(processor(images=image, text=text, return_tensors="pt")))
    if kind == "blip":
        row = row.replace(decoder_input_ids=torch.tensor([[hf.config.text_config.bos_token_id]]))
    return hf_logits(hf, "vqa" if kind == "blip" else "llava", row)[:, -1]
