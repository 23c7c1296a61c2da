"""Pictures as real image processors show them to a model, a number for each position: what each position is made of.

Each way of showing is a `Way`: a processor, and how its model orders what it gets, by transformers' own code where
there is some. What a number a patch becomes there is what a feature becomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange, reduce
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hooked_vlm import resizing
from hooked_vlm.models import layout
from hooked_vlm.models.layout import Role

SIDE = 48
PINPOINTS = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144], [96, 144], [144, 144]]
NO_REGION = float("nan")
Size = tuple[int, int]


@dataclass(frozen=True)
class Way:
    """One way of showing a picture.

    Args:
        processor: as `viz.Geometry.of` takes it.
        values: [position], what each position shows of the pixels that the processor makes of a picture.
        roles: what stands at each position, from the picture's size and what the processor returned.
        patch: side of what one position shows.
        tiled: as for `viz.Geometry.of`.
    """

    processor: Any
    values: Callable[[Any], Tensor]
    roles: Callable[[Size, Any], tuple[Role, ...]]
    patch: int
    tiled: bool = True

    def of(self, picture: Image.Image) -> Any:
        """What the processor makes of a picture."""
        pictures = getattr(self.processor, "image_processor", self.processor)
        given = [picture] if self.tiled else [[picture, picture]]
        return pictures(given, return_tensors="pt")


def patches(pixels: Tensor, side: int) -> Tensor:
    """[... channel height width] to [... patch]: the mean of each, row by row."""
    kept = pixels[..., : pixels.shape[-2] // side * side, : pixels.shape[-1] // side * side]
    return reduce(kept, "... c (r p) (k q) -> ... (r k)", "mean", p=side, q=side)


def tiles_of(size: Size) -> tuple[int, int]:
    """Tiles down and across of the best resolution."""
    best = resizing.best_resolution(size, [(width, height) for height, width in PINPOINTS])
    return best[1] // SIDE, best[0] // SIDE


def packed(family: Any, features: list[Tensor], sizes: Tensor, side: int, *options: Any) -> Tensor:
    """[image][tile patch] in the order in which a family of transformers packs features."""
    vision = SimpleNamespace(image_size=SIDE, patch_size=side)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=PINPOINTS))
    given = [each[..., None] for each in features]
    found, _ = family.pack_image_features(model, given, sizes, *options)
    return torch.cat([each[:, 0] for each in found])


def next_values(made: Any) -> Tensor:
    """LLaVA-NeXT's: the whole picture, then its tiles, unpadded."""
    features = [patches(made["pixel_values"][0], 8)]
    newline = torch.tensor([NO_REGION])
    return packed(LlavaNextModel, features, made["image_sizes"], 8, "default", newline)


def onevision_values(side: int, most: str) -> Callable[[Any], Tensor]:
    """LLaVA-OneVision's: likewise, thinned out where there is much of it."""

    def values(made: Any) -> Tensor:
        features = [patches(made["pixel_values"][0], side)]
        newline = torch.tensor([NO_REGION])
        return packed(LlavaOnevisionModel, features, made["image_sizes"][:1], side, newline, most)

    return values


def onevision_roles(size: Size, side: int, most: int) -> tuple[Role, ...]:
    """LLaVA-OneVision's layout."""
    n = SIDE // side
    return layout.grid(n, n) + layout.unpadded(size, tiles_of(size), n, most=most)


def merged(values: Tensor, of: int) -> Tensor:
    """Qwen-VL's merger: so many successive patches become one position."""
    return reduce(values, "(n m) -> n", "mean", m=of)


def qwen_roles(made: Any, merge: int) -> tuple[Role, ...]:
    """Qwen-VL's layout, of the prompt if merged by two, of its tower if by one."""
    _, rows, columns = made["image_grid_thw"][0].tolist()
    return layout.grid(rows // merge, columns // merge, blocks=1 if merge == 2 else 2)


def mllama_values(made: Any) -> Tensor:
    """Llama-3.2-Vision's: a class token before the patches of each tile, and places for four tiles."""
    each = patches(made["pixel_values"][0, 0], 8)
    return torch.nn.functional.pad(each, (1, 0), value=NO_REGION).flatten()


def mllama_roles(size: Size) -> tuple[Role, ...]:
    """Llama-3.2-Vision's layout."""
    down, across = resizing.canvas(size, SIDE, 4)
    return layout.tiles(down, across, 6, 6, class_token=True, n_tiles=4)


def gemma_roles(made: Any) -> tuple[Role, ...]:
    """Gemma 3's: the whole picture, then its crops."""
    return sum((layout.grid(6, 6, view=view) for view in range(1 + int(made["num_crops"][0]))), ())


QWEN = Qwen2VLImageProcessorPil(size={"shortest_edge": 48 * 48, "longest_edge": 144 * 144}, patch_size=6)
NEXT = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS)
ONEVISION = LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS)
PAN_AND_SCAN = {"min_crop_size": 30, "max_num_crops": 4, "min_ratio_to_activate": 1.2}


def once(processor: Any, patch: int = 8) -> Way:
    """A processor that makes one square image."""
    return Way(
        processor, lambda made: patches(made["pixel_values"][0], patch), lambda size, made: layout.grid(6, 6), patch
    )


def qwen_patches(made: Any) -> Tensor:
    """[patch], in the order of the tower."""
    return rearrange(made["pixel_values"], "n (c t p q) -> n c t p q", c=3, t=2, p=6).mean((1, 2, 3, 4))


WAYS = {
    "resized to a square": once(SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})),
    "its centre": once(CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)),
    "padded to a square": once(LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE, do_pad=True)),
    "pooled patches": once(Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})),
    "tiles, unpadded": Way(
        NEXT, next_values, lambda size, made: layout.grid(6, 6) + layout.unpadded(size, tiles_of(size), 6), 8
    ),
    "tiles that end in no whole patch": Way(
        ONEVISION, onevision_values(7, "anyres_max_9"), lambda size, made: onevision_roles(size, 7, 9), 7
    ),
    "tiles, thinned out": Way(
        SimpleNamespace(image_processor=ONEVISION, vision_aspect_ratio="anyres_max_2"),
        onevision_values(8, "anyres_max_2"),
        lambda size, made: onevision_roles(size, 8, 2),
        8,
    ),
    "no tiles, of several": Way(
        ONEVISION,
        onevision_values(8, "anyres_max_9"),
        lambda size, made: (*layout.grid(6, 6), Role("newline")),
        8,
        tiled=False,
    ),
    "ragged": Way(QWEN, lambda made: merged(qwen_patches(made), 4), lambda size, made: qwen_roles(made, 2), 12),
    "ragged, in the tower": Way(QWEN, qwen_patches, lambda size, made: qwen_roles(made, 1), 6),
    "tiles in a canvas": Way(
        MllamaImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_image_tiles=4),
        mllama_values,
        lambda size, made: mllama_roles(size),
        8,
    ),
    "crops besides": Way(
        Gemma3ImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            do_pan_and_scan=True,
            **{f"pan_and_scan_{name}": value for name, value in PAN_AND_SCAN.items()},
        ),
        lambda made: patches(made["pixel_values"], 8).flatten(),
        lambda size, made: gemma_roles(made),
        8,
    ),
}
