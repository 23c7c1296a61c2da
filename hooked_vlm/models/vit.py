"""The vision transformers that families share: BLIP's, CLIP's and SigLIP's, which differ in few parts.

With the families' own files the only one that knows Hugging Face's names. Costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from hooked_vlm.components.attention import AttentionLeaves, HookedAttention
from hooked_vlm.components.block import Block, Branch
from hooked_vlm.components.embed import PatchLeaves, VisionStack
from hooked_vlm.components.mlp import HookedMLP
from hooked_vlm.components.norm import HookedNorm
from hooked_vlm.components.weights import held
from hooked_vlm.models.config import stack_config


def vision_stack(
    hf: Any,
    attention: Callable[[Any], AttentionLeaves],
    positions: Callable[[], Tensor],
    *,
    n_layers: int | None = None,
    ln_pre: HookedNorm | None = None,
    ln_final: HookedNorm | None = None,
) -> VisionStack:
    """A pre-norm ViT, with a class token where its embeddings have one.

    Args:
        hf: the Hugging Face tower.
        attention: the layers of a block's `self_attn`.
        positions: gives the learned positions, [pos d_model].
        n_layers: the first so many layers alone; None for all.
        ln_pre: as `VisionStack`'s.
        ln_final: likewise.
    """
    c, e = hf.config, hf.embeddings
    layers = list(hf.encoder.layers)[:n_layers]
    cfg = stack_config(
        d_model=c.hidden_size,
        n_heads=c.num_attention_heads,
        n_layers=len(layers),
        n_ctx=e.num_positions,
        d_mlp=c.intermediate_size,
        act_fn=str(c.hidden_act),
        eps=c.layer_norm_eps,
    )

    def block(layer: Any) -> Block:
        mlp = HookedMLP(layer.mlp.fc1, layer.mlp.fc2, layer.mlp.activation_fn)
        return Block(
            attn=Branch(HookedAttention(attention(layer.self_attn), cfg), norm=HookedNorm(layer.layer_norm1)),
            mlp=Branch(mlp, norm=HookedNorm(layer.layer_norm2)),
        )

    leaves = PatchLeaves(
        patch=e.patch_embedding,
        class_token=partial(held, e, "class_embedding") if hasattr(e, "class_embedding") else None,
        positions=positions,
        interpolate=e.interpolate_pos_encoding,
        image_size=(c.image_size, c.image_size),
    )
    blocks = [block(layer) for layer in layers]
    name = "vision_encoder"
    return VisionStack(name, f"{name}.", cfg, blocks, leaves=leaves, ln_pre=ln_pre, ln_final=ln_final)
