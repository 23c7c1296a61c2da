"""Hooked models and their families. Importing anything from here registers every family."""

from hooked_vlm.models import blip, llava

__all__ = ["blip", "llava"]
