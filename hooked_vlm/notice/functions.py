"""Moved to `hooked_vlm.analysis.image_attention`."""

from typing import Any

from hooked_vlm.deprecated import moved


def __getattr__(name: str) -> Any:
    return moved(__name__, name)
