"""The universal heads that the paper names (Golovanevsky et al., What Do VLMs NOTICE?, NAACL 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class PublishedHead:
    """A universal head of the paper (Golovanevsky et al. 2025): where, for which modality, what it is said to do."""

    kind: str
    layer: int
    head: int
    modality: str | None = None
    label: str | None = None


_LLAVA = ((28, 2), (31, 27), (18, 10), (16, 24), (21, 30), (19, 15), (18, 30))

PUBLISHED: Final[dict[str, tuple[PublishedHead, ...]]] = {
    "Salesforce/blip-vqa-base": (
        PublishedHead("cross_attn-heads", 5, 3, "vision-only", "object suppression"),
        PublishedHead("cross_attn-heads", 3, 0, "multimodal", "object detection"),
        PublishedHead("cross_attn-heads", 0, 11, "text-only", "outlier suppression"),
    ),
    "llava-hf/llava-1.5-7b-hf": tuple(PublishedHead("attn-heads", layer, head) for layer, head in _LLAVA),
}
