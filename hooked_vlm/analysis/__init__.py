"""What is measured and concluded, each part usable in a notebook by itself: no run, no configuration, no directory.

    from hooked_vlm.analysis import SemanticImagePair, ablate, logit_lens, select, statistics

- `corruption`: what turns a clean run into a corrupt one, as hook functions.
- `answers`: what a model answered, and by which tokens its two answers are told apart.
- `ablation`: what heads are worth, against as many random ones.
- `image_attention`, `causes`, `head_labels`: where heads look, what the answer owes to it, and what that
  makes of them.
- `lens`: what a stream would say, and which part of the model says it.
- `effect_tables`: the effect of every head in every example, as a table. `universal_heads`, `heads_compared` (against
  the answer, from task to task, image against text, example by example) and `by_answer` read it.
- `head_sets`, `circuits`: heads patched together; both directions, pairs, self-repair.
- `rankings`: how much of an answer the first few heads of a ranking carry.
- `universal_heads`: which heads matter in every task, from a table of effects.
- `statistics`: intervals and tests over examples.

Cost: what takes a model runs it, some forwards a batch of examples; what takes a table takes seconds of arithmetic.
Nothing heavy is imported until a name is used. Knows no run, no file and no family.
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
    "answer_specific": "by_answer",
    "attention_causes": "causes",
    "by_cluster": "by_answer",
    "carriers": "heads_compared",
    "denoise_and_noise": "circuits",
    "direct_logit_attribution": "lens",
    "faithfulness": "rankings",
    "head_effects": "effect_tables",
    "labels": "head_labels",
    "logit_lens": "lens",
    "negative_heads": "heads_compared",
    "pair_interactions": "circuits",
    "patch_sets": "head_sets",
    "ranking": "effect_tables",
    "score_batch": "image_attention",
    "score_example": "image_attention",
    "select": "universal_heads",
    "self_repair": "circuits",
    "strongest_by_example": "heads_compared",
    "transfer": "heads_compared",
    "universal": "universal_heads",
}

if TYPE_CHECKING:
    from hooked_vlm.analysis.ablation import ReferenceMeans, ablate
    from hooked_vlm.analysis.by_answer import answer_specific, by_cluster
    from hooked_vlm.analysis.causes import attention_causes
    from hooked_vlm.analysis.circuits import denoise_and_noise, pair_interactions, self_repair
    from hooked_vlm.analysis.corruption import (
        GaussianNoise,
        RegionCorruption,
        SemanticImagePair,
        SymmetricTokenReplacement,
    )
    from hooked_vlm.analysis.effect_tables import head_effects, ranking
    from hooked_vlm.analysis.head_labels import labels
    from hooked_vlm.analysis.head_sets import patch_sets
    from hooked_vlm.analysis.heads_compared import carriers, negative_heads, strongest_by_example, transfer
    from hooked_vlm.analysis.image_attention import score_batch, score_example
    from hooked_vlm.analysis.lens import direct_logit_attribution, logit_lens
    from hooked_vlm.analysis.rankings import faithfulness
    from hooked_vlm.analysis.universal_heads import Rule, select, universal

__all__ = [
    "GaussianNoise",
    "ReferenceMeans",
    "RegionCorruption",
    "Rule",
    "SemanticImagePair",
    "SymmetricTokenReplacement",
    "ablate",
    "answer_specific",
    "attention_causes",
    "by_cluster",
    "carriers",
    "denoise_and_noise",
    "direct_logit_attribution",
    "faithfulness",
    "head_effects",
    "labels",
    "logit_lens",
    "negative_heads",
    "pair_interactions",
    "patch_sets",
    "ranking",
    "score_batch",
    "score_example",
    "select",
    "self_repair",
    "strongest_by_example",
    "transfer",
    "universal",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
