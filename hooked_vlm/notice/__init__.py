"""NOTICE, end to end: from pairs of images to universal heads.

    from hooked_vlm.notice import NoticeConfig, run

    run(NoticeConfig(model="zoo:blip-shapes", tasks=("colour", "shape"), examples=24), "runs/blip")

is `hooked-vlm notice zoo:blip-shapes --task colour --task shape --examples 24 --out runs/blip`. `summarise`,
`verdicts`, `report.write` and `compare` take any run's directory; what needs no run is in `hooked_vlm.analysis`.

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hooked_vlm.deprecated import MOVED, moved

_PUBLIC = {
    "NoticeConfig": "config",
    "compare": "report.compare",
    "plan": "planning",
    "run": "pipeline",
    "summarise": "summary",
    "verdicts": "report.notebook",
}

if TYPE_CHECKING:
    from hooked_vlm.notice.config import NoticeConfig
    from hooked_vlm.notice.pipeline import run
    from hooked_vlm.notice.planning import plan
    from hooked_vlm.notice.report.compare import compare
    from hooked_vlm.notice.report.notebook import verdicts
    from hooked_vlm.notice.summary import summarise

__all__ = [
    "NoticeConfig",
    "compare",
    "plan",
    "run",
    "summarise",
    "verdicts",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    if f"{__name__}.{name}" in MOVED:
        return moved(__name__, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
