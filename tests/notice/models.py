"""Small models with processors for the tests of the pipeline, made once."""

from __future__ import annotations

from functools import cache

from PIL import Image

from hooked_vlm import HookedVLM
from hooked_vlm.datasets import shapes
from hooked_vlm.zoo.recipes import RECIPES
from tests.models import checkpoints

FAMILIES = ["blip", "llava"]


@cache
def small(family: str) -> HookedVLM:
    """A random model of a family."""
    hf, processor = checkpoints.blip_vqa() if family == "blip" else checkpoints.llava()
    return HookedVLM.from_hf(hf, processor)


@cache
def blip_shapes() -> HookedVLM:
    """The BLIP that ships with the package."""
    return HookedVLM.from_pretrained("zoo:blip-shapes")


@cache
def untrained_llava() -> HookedVLM:
    """A LLaVA of the zoo's architecture, before training."""
    recipe = RECIPES["llava-shapes"]
    return HookedVLM.from_hf(recipe.build(0), recipe.processor())


def pictures(n: int, first: int = 0) -> list[Image.Image]:
    return [checkpoints.picture(first + i) for i in range(n)]


def row(task: str = "colour", index: int = 0) -> dict:
    return shapes.pair(task, index, seed=5).to_row()
