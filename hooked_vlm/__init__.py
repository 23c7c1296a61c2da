"""TransformerLens for vision-language models: every head of every stack hooked, cross-attention included.

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hooked_vlm.deprecated import MOVED, moved

__version__ = "0.1.0"

_PUBLIC = {
    "HookedVLM": "hooked_vlm.models.base",
    "HookedBLIP": "hooked_vlm.models.blip",
    "HookedLLaVA": "hooked_vlm.models.llava",
    "VLMInputs": "hooked_vlm.models.inputs",
    "RunState": "hooked_vlm.models.run",
}
_ROOMS = ("analysis", "datasets", "errors", "hooks", "notice", "patching", "viz")

if TYPE_CHECKING:
    from hooked_vlm import analysis, datasets, errors, hooks, notice, patching, viz
    from hooked_vlm.models.base import HookedVLM
    from hooked_vlm.models.blip import HookedBLIP
    from hooked_vlm.models.inputs import VLMInputs
    from hooked_vlm.models.llava import HookedLLaVA
    from hooked_vlm.models.run import RunState

__all__ = [
    "HookedBLIP",
    "HookedLLaVA",
    "HookedVLM",
    "RunState",
    "VLMInputs",
    "__version__",
    "analysis",
    "datasets",
    "errors",
    "hooks",
    "notice",
    "patching",
    "viz",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if f"{__name__}.{name}" in MOVED:
        return moved(__name__, name)
    raise AttributeError(f"module 'hooked_vlm' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
