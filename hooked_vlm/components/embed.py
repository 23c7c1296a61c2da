"""Stacks that make their own input: patches of an image, or words and positions. Knows no model.

Cost: one convolution or two look-ups; an interpolated position table where an image has another size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_vlm.components.head import TransformHead
from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.components.norm import HookedNorm
from hooked_vlm.components.stack import Stack
from hooked_vlm.components.weights import Projection, dense_weight
from hooked_vlm.errors import InputsError


@dataclass(frozen=True)
class PatchLeaves:
    """The Hugging Face parts that turn pixels into the first residual stream.

    Args:
        patch: the convolution whose stride is the patch size.
        class_token: gives the class token, [... d_model], or None in towers without one.
        positions: gives the learned positions, [pos d_model] (a leading axis of 1 allowed).
        interpolate: ``(embeddings, height, width) -> [1 pos d_model]`` for images of another size.
        image_size: height and width that `positions` was learned for.
    """

    patch: nn.Conv2d
    class_token: Callable[[], Tensor] | None
    positions: Callable[[], Tensor]
    interpolate: Callable[[Tensor, int, int], Tensor]
    image_size: tuple[int, int]


class VisionStack(Stack):
    """A vision tower. Position 0 is the class token where there is one, then the patches row by row.

    Args:
        leaves: what embeds the pixels.
        ln_pre: the norm before the first block (CLIP), or None.
        ln_final: the norm after the last block where its output is used, or None.
        others: the arguments of `Stack`.
    """

    def __init__(
        self, *others: Any, leaves: PatchLeaves, ln_pre: HookedNorm | None, ln_final: HookedNorm | None
    ) -> None:
        super().__init__(*others, causal=False)
        self._embed = leaves
        self.hook_embed = HookPoint("batch pos d_model")
        self.hook_pos_embed = HookPoint("batch pos d_model", aliased=True)
        if ln_pre is not None:
            self.ln_pre = ln_pre
        if ln_final is not None:
            self.ln_final = ln_final

    @property
    def has_class_token(self) -> bool:
        """True if position 0 is a class token."""
        return self._embed.class_token is not None

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self._embed.patch.kernel_size[0])

    def embed(
        self, pixel_values: Float[Tensor, "batch channel height width"], interpolate: bool = False
    ) -> Float[Tensor, "batch pos d_model"]:
        """Pixels to what the first block receives.

        Args:
            pixel_values: preprocessed images.
            interpolate: stretch the learned positions over images of another size.

        Raises:
            InputsError: if the images have other channels, or another size than the positions and `interpolate` is off.
        """
        leaves, (height, width) = self._embed, pixel_values.shape[-2:]
        if pixel_values.shape[1] != leaves.patch.in_channels:
            raise InputsError(
                f"pixel_values are {tuple(pixel_values.shape)}, of {pixel_values.shape[1]} channels; {self.name} reads "
                f"[batch {leaves.patch.in_channels} height width]: model.to_inputs makes them"
            )
        if (height, width) != leaves.image_size and not interpolate:
            raise InputsError(
                f"pixel_values are {height} x {width} and {self.name} was trained on "
                f"{leaves.image_size[0]} x {leaves.image_size[1]}: let model.to_inputs resize the images, or "
                "pass interpolate_pos_encoding=True"
            )
        x = leaves.patch(pixel_values.to(leaves.patch.weight.dtype)).flatten(2).transpose(1, 2)
        if leaves.class_token is not None:
            token = leaves.class_token().reshape(1, 1, -1).expand(x.shape[0], 1, -1)
            x = torch.cat([token.to(x.dtype), x], 1)
        x = self.hook_embed(x)
        positions = leaves.interpolate(x, height, width) if interpolate else leaves.positions()
        positions = positions.reshape(1, -1, x.shape[-1]).to(x.dtype)
        x = x + self.hook_pos_embed(positions.expand_as(x))
        return self.ln_pre(x) if hasattr(self, "ln_pre") else x


class TextStack(Stack):
    """A text stack with learned positions (BERT's kind).

    Args:
        words: the token embedding. positions: the position embedding. ln_embed: the norm over their sum.
        others: the arguments of `Stack`.
    """

    head: TransformHead  # between the last block and the unembedding, in a stack that makes logits

    def __init__(
        self, *others: Any, words: nn.Embedding, positions: nn.Embedding, ln_embed: HookedNorm, causal: bool
    ) -> None:
        super().__init__(*others, causal=causal)
        self._words = (words, positions)
        self.hook_embed = HookPoint("batch pos d_model")
        self.hook_pos_embed = HookPoint("batch pos d_model")
        self.ln_embed = ln_embed

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding; the parameter itself."""
        return dense_weight(self._words[0])

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Position embedding; the parameter itself."""
        return dense_weight(self._words[1])

    def embed(
        self, ids: Int[Tensor, "batch pos"], position_ids: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Tokens to what the first block receives."""
        words, positions = self._words
        return self.ln_embed(self.hook_embed(words(ids)) + self.hook_pos_embed(positions(position_ids)))


class Unembed(nn.Module):
    """The map from the residual stream to logits.

    Args:
        linear: the Hugging Face layer.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self._linear = Projection(linear)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits."""
        return self._linear(x)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding weights; a view."""
        return self._linear.weight.T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias; a view, or zeros."""
        return self._linear.bias
