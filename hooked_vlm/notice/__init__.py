"""NOTICE, end to end: from pairs of images to universal heads.

    from hooked_vlm.notice import NoticeConfig, run

    run(NoticeConfig(model="zoo:blip-shapes", tasks=("colour", "shape"), examples=24), "runs/blip")

is `hooked-vlm notice zoo:blip-shapes --task colour --task shape --examples 24 --out runs/blip`. The parts serve alone:
corruptions are hook functions, `ablate` and `score_example` take any model and any heads, `select` any table of
effects, `summarise`, `verdicts`, `report.write` and `compare` any run's directory.

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "GaussianNoise": "corruption",
    "NoticeConfig": "config",
    "ReferenceMeans": "ablation",
    "RegionCorruption": "corruption",
    "Rule": "universal",
    "SemanticImagePair": "corruption",
    "SymmetricTokenReplacement": "corruption",
    "ablate": "ablation",
    "compare": "report.compare",
    "plan": "planning",
    "run": "pipeline",
    "score_example": "functions",
    "select": "universal",
    "summarise": "summary",
    "verdicts": "report.notebook",
}

if TYPE_CHECKING:
    from hooked_vlm.notice.ablation import ReferenceMeans, ablate
    from hooked_vlm.notice.config import NoticeConfig
    from hooked_vlm.notice.corruption import (
        GaussianNoise,
        RegionCorruption,
        SemanticImagePair,
        SymmetricTokenReplacement,
    )
    from hooked_vlm.notice.functions import score_example
    from hooked_vlm.notice.pipeline import run
    from hooked_vlm.notice.planning import plan
    from hooked_vlm.notice.report.compare import compare
    from hooked_vlm.notice.report.notebook import verdicts
    from hooked_vlm.notice.summary import summarise
    from hooked_vlm.notice.universal import Rule, select

__all__ = [
    "GaussianNoise",
    "NoticeConfig",
    "ReferenceMeans",
    "RegionCorruption",
    "Rule",
    "SemanticImagePair",
    "SymmetricTokenReplacement",
    "ablate",
    "compare",
    "plan",
    "run",
    "score_example",
    "select",
    "summarise",
    "verdicts",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
