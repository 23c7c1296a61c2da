"""What is measured and concluded, each part usable in a notebook by itself: no run, no configuration, no directory.

    from hooked_vlm.analysis import SemanticImagePair, ablate, logit_lens, select, statistics

- `corruption`: what turns a clean run into a corrupt one, as hook functions.
- `answers`: what a model answered, and by which tokens its two answers are told apart.
- `ablation`: what heads are worth, against as many random ones.
- `image_attention`, `causes`, `head_labels`: where heads look, what the answer owes to it, and what that
  makes of them.
- `lens`: what a stream would say, and which part of the model says it.
- `universal_heads`: which heads matter in every task, from a table of effects.
- `statistics`: intervals and tests over examples.

Cost: the first five run a model, some forwards a batch of examples; the last two take seconds of arithmetic. Nothing
heavy is imported until a name is used. Knows no run, no file and no family.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "GaussianNoise": "corruption",
    "ReferenceMeans": "ablation",
    "RegionCorruption": "corruption",
    "Rule": "universal_heads",
    "SemanticImagePair": "corruption",
    "SymmetricTokenReplacement": "corruption",
    "ablate": "ablation",
    "attention_causes": "causes",
    "direct_logit_attribution": "lens",
    "labels": "head_labels",
    "logit_lens": "lens",
    "score_batch": "image_attention",
    "score_example": "image_attention",
    "select": "universal_heads",
    "universal": "universal_heads",
}

if TYPE_CHECKING:
    from hooked_vlm.analysis.ablation import ReferenceMeans, ablate
    from hooked_vlm.analysis.causes import attention_causes
    from hooked_vlm.analysis.corruption import (
        GaussianNoise,
        RegionCorruption,
        SemanticImagePair,
        SymmetricTokenReplacement,
    )
    from hooked_vlm.analysis.head_labels import labels
    from hooked_vlm.analysis.image_attention import score_batch, score_example
    from hooked_vlm.analysis.lens import direct_logit_attribution, logit_lens
    from hooked_vlm.analysis.universal_heads import Rule, select, universal

__all__ = [
    "GaussianNoise",
    "ReferenceMeans",
    "RegionCorruption",
    "Rule",
    "SemanticImagePair",
    "SymmetricTokenReplacement",
    "ablate",
    "attention_causes",
    "direct_logit_attribution",
    "labels",
    "logit_lens",
    "score_batch",
    "score_example",
    "select",
    "universal",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
