"""Moved to `hooked_vlm.analysis.universal_heads`."""

from typing import Any

from hooked_vlm.deprecated import moved


def __getattr__(name: str) -> Any:
    return moved(__name__, name)
