"""What Hugging Face computes, row by row and without padding: the truth that hooked models are held against.

One row at a time because Hugging Face's BLIP drops the question's padding mask on its way into cross-attention
and counts padding on the left as positions, so that its padded batches are not its single runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hooked_vlm import VLMInputs
from tests.models.drawn import BOS


def unpadded(inputs: VLMInputs, i: int) -> VLMInputs:
    """Row `i` without its padding."""
    row = inputs[i]
    return row.replace(input_ids=row.input_ids[:, inputs.is_real[i]], attention_mask=None)


@torch.no_grad()
def hf_logits(hf: Any, kind: str, row: VLMInputs, interpolate: bool = False) -> Tensor:
    """Hugging Face's logits for a batch of one without padding, [1 pos d_vocab] (retrieval: [1 1 2])."""
    image_size: dict[str, Any] = {"interpolate_pos_encoding": True} if interpolate else {}
    if kind == "llava" and interpolate:  # its forward does not pass the option on
        features = hf.get_image_features(row.pixel_values, return_dict=True, **image_size)
        return hf(input_ids=row.input_ids, mm_encoder_outputs={"image": features}).logits
    if kind in ("llava", "caption"):
        return hf(input_ids=row.input_ids, pixel_values=row.pixel_values, **image_size).logits
    if kind == "itm":
        return hf(input_ids=row.input_ids, pixel_values=row.pixel_values, **image_size).itm_score[:, None]
    answer = row.decoder_input_ids
    answer = torch.tensor([[BOS]]) if answer is None else answer
    image = hf.vision_model(row.pixel_values, **image_size).last_hidden_state
    question = hf.text_encoder(input_ids=row.input_ids, encoder_hidden_states=image).last_hidden_state
    return hf.text_decoder(input_ids=answer, encoder_hidden_states=question).logits


def scale(logits: Tensor) -> float:
    """The size of the logits that differences are measured against."""
    return max(1e-3, float(logits.detach().float().abs().max()))


def real_logits(logits: Tensor, inputs: VLMInputs, kind: str, i: int) -> Tensor:
    """Row `i` of hooked logits, at its real positions, [1 pos d_vocab]."""
    if kind in ("llava", "caption") and inputs.real is not None:
        return logits[i, inputs.real[i]][None]
    return logits[i : i + 1]
