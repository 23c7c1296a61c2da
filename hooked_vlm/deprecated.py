"""Old spellings, kept for one version: where each stands now.

A name under an old spelling is the very object that stands under the new one, and using it warns. Costs nothing until
then; knows no other module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pkgutil import resolve_name
from typing import Any, Final, ParamSpec, TypeVar
from warnings import warn

P = ParamSpec("P")
R = TypeVar("R")

MOVED: Final = {
    "hooked_vlm.lens": "hooked_vlm.analysis.lens",
    "hooked_vlm.notice.ablation": "hooked_vlm.analysis.ablation",
    "hooked_vlm.notice.answers": "hooked_vlm.analysis.answers",
    "hooked_vlm.notice.corruption": "hooked_vlm.analysis.corruption",
    "hooked_vlm.notice.functions": "hooked_vlm.analysis.image_attention",
    "hooked_vlm.notice.labels": "hooked_vlm.analysis.head_labels",
    "hooked_vlm.notice.statistics": "hooked_vlm.analysis.statistics",
    "hooked_vlm.notice.universal": "hooked_vlm.analysis.universal_heads",
    "hooked_vlm.patching.metrics.answering": "hooked_vlm.patching.metrics.answer_logits",
    "hooked_vlm.patching.metrics.normalised": "hooked_vlm.patching.metrics.normalized",
    **{
        f"hooked_vlm.notice.{name}": f"hooked_vlm.analysis.{name}"
        for name in (
            "GaussianNoise",
            "ReferenceMeans",
            "RegionCorruption",
            "Rule",
            "SemanticImagePair",
            "SymmetricTokenReplacement",
            "ablate",
            "score_example",
            "select",
        )
    },
}


def moved(module: str, name: str) -> Any:
    """What `module.name` is now, with a warning that says so; for a module's `__getattr__` to give back.

    Raises:
        AttributeError: if there is no such name, old or new.
    """
    now = f"{MOVED[module]}.{name}" if module in MOVED else MOVED[f"{module}.{name}"]
    found = resolve_name(now)
    warn(f"{module}.{name} is deprecated: it is {now} now", DeprecationWarning, stacklevel=3)
    return found


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a function that also takes arguments by their old names, with a warning: old name = new name."""

    def with_old(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, now in names.items():
                if old in kwargs and now not in kwargs:
                    kwargs[now] = kwargs.pop(old)
                    said = f"{function.__name__}'s {old} is deprecated: it is {now} now"
                    warn(said, DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        return called

    return with_old
