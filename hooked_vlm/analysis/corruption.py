"""Corruptions as hook functions: what turns a clean run into a corrupt one.

    model.run_with_hooks(clean, fwd_hooks=corruption.fwd_hooks(model, clean) + patches)

is the whole method: running the corruption as a hook equals running the corrupt inputs. Each class holds what it
puts in place and knows the model by its public face alone; the hook functions are those of `hooked_vlm.hooks`.

Costs: the preprocessing of a picture, or the tokens of a prompt, when the hooks are made; a copy of one activation
when they run. Inpainting needs OpenCV (the extra `inpaint`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from PIL import Image, ImageFilter, ImageStat
from torch import Tensor

from hooked_vlm.errors import ImageError, InputsError, MissingExtraError, ReplacementError, quoted
from hooked_vlm.hooks import swap_image, swap_tokens, where
from hooked_vlm.images import to_rgb, to_rgb_list
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.positions import Index

Hooks = list[tuple[str, Callable[..., Tensor]]]

PIXELS = "hook_pixel_values"
IMAGE_EMBEDDING = "vision_encoder.hook_embed"
_LENGTH = (
    "the corrupt prompt of {} has {} tokens and its prompt {}: a symmetric replacement keeps their number; choose "
    "another word"
)


def text_embedding(model: HookedVLM) -> str:
    """Name of the hook point at which the prompt's words are embedded."""
    return f"{model.stacks[model.prompt_stack].prefix}hook_embed"


@dataclass(frozen=True, eq=False)
class SemanticImagePair:
    """Another picture of the same kind, in which the wrong answer is right (Golovanevsky et al. 2025).

    Args:
        image: a picture as `model.to_inputs` takes them, or one for each example; or
        pixel_values: the same preprocessed, [batch channel height width].
    """

    image: Any = None
    pixel_values: Float[Tensor, "batch channel height width"] | None = field(default=None, repr=False)

    def fwd_hooks(self, model: HookedVLM, inputs: VLMInputs) -> Hooks:
        """Hooks that show the model the other picture.

        Raises:
            ImageError: if the picture cannot be read.
            InputsError: if there is none, there are two, or they do not fit the examples.
        """
        if (self.image is None) == (self.pixel_values is None):
            raise InputsError("SemanticImagePair takes a picture or its pixel_values: give one of the two")
        if inputs.pixel_values is None:
            raise InputsError("the prompts have no image that another could take the place of")
        pixels = model.to_pixels(self.image) if self.pixel_values is None else self.pixel_values
        pixels = pixels.to(inputs.pixel_values)
        if pixels.shape[1:] != inputs.pixel_values.shape[1:] or len(pixels) not in (1, len(inputs.pixel_values)):
            raise InputsError(
                f"the corrupt pictures have shape {tuple(pixels.shape)} and the clean ones "
                f"{tuple(inputs.pixel_values.shape)}: expected the same, or one for all"
            )
        return [(PIXELS, swap_image(pixels))]


@dataclass(frozen=True, eq=False)
class SymmetricTokenReplacement:
    """The prompt with a word replaced by another of as many tokens (Zhang & Nanda 2024; Golovanevsky et al. 2025).

    Args:
        prompt: as `model.to_inputs` takes it, so with the model's own template around it, or one for each example; or
        input_ids: its tokens, [batch pos], where the examples have theirs.
    """

    prompt: str | Sequence[str] | None = None
    input_ids: Int[Tensor, "batch pos"] | None = field(default=None, repr=False)

    def fwd_hooks(self, model: HookedVLM, inputs: VLMInputs) -> Hooks:
        """Hooks that give the model the other words; image tokens keep the image's features.

        Raises:
            ReplacementError: if a prompt has another number of tokens than its example's.
            InputsError: if there is none, there are two, or they are not as many as the examples.
        """
        ids = self.tokens(model, inputs)
        return [(text_embedding(model), swap_tokens(word_embeddings(model)[ids]))]

    def tokens(self, model: HookedVLM, inputs: VLMInputs) -> Int[Tensor, "batch pos"]:
        """The corrupt prompt's token ids, standing where each example's are; padding stays.

        Raises:
            ReplacementError, InputsError: as `fwd_hooks`.
        """
        if (self.prompt is None) == (self.input_ids is None):
            raise InputsError("SymmetricTokenReplacement takes a prompt or its input_ids: give one of the two")
        real = inputs.is_real
        if self.prompt is None:
            assert self.input_ids is not None
            ids, theirs = self.input_ids.to(real.device), real
        else:
            other = model.to_inputs(Image.new("RGB", (8, 8)), self.prompt)
            ids, theirs = other.input_ids, other.is_real
        if len(ids) == 1:
            ids, theirs = ids.expand(len(inputs), -1), theirs[:1].expand(len(inputs), -1)
        if len(ids) != len(inputs):
            raise InputsError(f"there are {len(ids)} corrupt prompts for {len(inputs)} examples: give one, or as many")
        if self.prompt is None and ids.shape != inputs.input_ids.shape:
            raise ReplacementError(_LENGTH.format("example 0", ids.shape[1], inputs.input_ids.shape[1]))
        for row, (its, mine) in enumerate(zip(theirs.sum(1).tolist(), real.sum(1).tolist(), strict=True)):
            if mine != its:
                raise ReplacementError(_LENGTH.format(f"example {row}", its, mine) + f" ({quoted(self.prompt)})")
        new = inputs.input_ids.clone()
        new[real] = ids[theirs].to(new)
        if bool((inputs.replace(input_ids=new).is_image != inputs.is_image).any()):
            raise ReplacementError("the corrupt prompt has its image elsewhere: it must have the same template")
        return new


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Noise on the embeddings of the image or of the text, the method that NOTICE is compared with (Meng et al. 2022).

    Its standard deviation is `scale` times that of the embeddings it is added to, each example's own. Each example's
    noise is a function of its seed alone: a batch, padded or not, gets what its examples get alone, in every run.

    Args:
        target: "text" or "image".
        scale: in standard deviations of the embeddings; Meng et al. take 3.
        seed: one for all, or one for each example.
        positions: which positions get it, as in `hooked_vlm.hooks`; None for all that are real and, in the text, no
            image tokens.
    """

    target: Literal["text", "image"]
    scale: float = 3.0
    seed: int | Sequence[int] = 0
    positions: Index = field(default=None, repr=False)

    def fwd_hooks(self, model: HookedVLM, inputs: VLMInputs) -> Hooks:
        """Hooks that add the noise.

        Raises:
            InputsError: if the target is none, or there are other numbers of seeds than examples.
        """
        if self.target not in ("text", "image"):
            raise InputsError(f"noise on {quoted(self.target)}: expected 'text' or 'image'")
        seeds = [self.seed] * len(inputs) if isinstance(self.seed, int) else list(self.seed)
        if len(seeds) != len(inputs):
            raise InputsError(f"there are {len(seeds)} seeds for {len(inputs)} examples: give one, or as many")
        of_text = self.target == "text"
        spoken = inputs.is_real & ~inputs.is_image if of_text else None  # where there are words

        def noisy(activation: Tensor, hook: Any) -> Tensor:
            if of_text and hook.first_position:  # a later step of generation: the noise is in the prompt
                return activation
            rows = len(activation) // len(seeds)
            chosen = where(activation, hook, self.positions)[..., 0].expand(activation.shape[:2])
            if spoken is not None:
                chosen = chosen & spoken.repeat_interleave(rows, 0).to(chosen.device)
            noise = torch.zeros_like(activation)
            for i in range(len(activation)):
                generator = torch.Generator().manual_seed(seeds[i // rows])
                here = activation[i, chosen[i]]
                drawn = torch.randn(here.shape, generator=generator, dtype=torch.float32).to(here)
                noise[i, chosen[i]] = drawn * here.float().std().to(here) * self.scale
            return activation + noise

        return [(text_embedding(model) if of_text else IMAGE_EMBEDDING, noisy)]


@dataclass(frozen=True, eq=False)
class RegionCorruption:
    """The same picture without the thing that is asked about, for data without a natural pair.

    Args:
        image: a picture, or one for each example.
        mask: white (or True) where the thing stands, of the picture's size; as many.
        how: "blur" with a Gaussian of half the region's smaller side; "mean", the mean colour of what is outside of
            it; "inpaint" from the region's surroundings (Telea 2004, by OpenCV).
    """

    image: Any
    mask: Any
    how: Literal["blur", "mean", "inpaint"] = "blur"

    def fwd_hooks(self, model: HookedVLM, inputs: VLMInputs) -> Hooks:
        """Hooks that show the model the corrupted picture.

        Raises:
            ImageError: if a mask marks nothing, everything, or has another size than its picture.
            MissingExtraError: if OpenCV is needed and not installed.
        """
        return SemanticImagePair(self.pictures()).fwd_hooks(model, inputs)

    def pictures(self) -> list[Image.Image]:
        """The corrupted pictures.

        Raises:
            ImageError, MissingExtraError: as `fwd_hooks`.
            InputsError: if `how` is none of the three, or there are other numbers of masks than pictures.
        """
        fills = {"blur": _blurred, "mean": _mean, "inpaint": _inpainted}
        if self.how not in fills:
            raise InputsError(f"a region corrupted by {quoted(self.how)}: expected {', '.join(map(repr, fills))}")
        images = to_rgb_list(self.image)
        masks = list(self.mask) if isinstance(self.mask, (list, tuple)) else [self.mask]
        if len(masks) != len(images):
            raise InputsError(f"there are {len(masks)} masks for {len(images)} pictures: give as many")
        made = []
        for number, (image, given) in enumerate(zip(images, masks, strict=True)):
            mask = _binary(given, image, number)
            made.append(Image.composite(fills[self.how](image, mask), image, mask))
        return made


def word_embeddings(model: HookedVLM) -> Float[Tensor, "d_vocab d_model"]:
    """The embedding of the prompt's words."""
    stack = model.prompt_stack
    holder: Any = model if stack == model.main_stack else model.stacks[stack]  # a main stack's weights are the model's
    return holder.W_E


def _binary(given: Any, image: Image.Image, number: int) -> Image.Image:
    """A mask as black and white, checked against its picture."""
    mask = to_rgb(given).convert("L").point(lambda v: 255 * (v > 127))
    if mask.size != image.size:
        raise ImageError(f"mask {number} is {mask.size} and its picture {image.size} pixels: expected the same size")
    if mask.getbbox() is None or mask.getextrema()[0] == 255:
        raise ImageError(f"mask {number} marks {'nothing' if mask.getbbox() is None else 'the whole picture'}")
    return mask


def _blurred(image: Image.Image, mask: Image.Image) -> Image.Image:
    left, top, right, bottom = mask.getbbox() or (0, 0, *image.size)
    return image.filter(ImageFilter.GaussianBlur(min(right - left, bottom - top) / 2))


def _mean(image: Image.Image, mask: Image.Image) -> Image.Image:
    outside = ImageStat.Stat(image, mask.point(lambda v: 255 - v))
    return Image.new("RGB", image.size, tuple(round(value) for value in outside.mean))


def _inpainted(image: Image.Image, mask: Image.Image) -> Image.Image:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            "inpainting needs OpenCV: pip install 'hooked-vlm[inpaint]', or take how='blur' or 'mean'"
        ) from error
    import numpy as np

    return Image.fromarray(cv2.inpaint(np.asarray(image), np.asarray(mask), 3, cv2.INPAINT_TELEA))
