"""The words of a run, each spelled in one place: corruptions, kinds of sites, roles.

They stand in configurations, parquet files, summary.json and reports. Costs nothing; knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, get_args

from hooked_vlm.analysis.heads import HEAD_KINDS, MULTIMODAL
from hooked_vlm.notice.schema import Corrupt, Kind, Role

CORRUPT: Final[tuple[Corrupt, ...]] = get_args(Corrupt)
NOISES: Final = ("image_noise", "text_noise")  # the same modalities under Gaussian noise
CORRUPTIONS: Final = (*CORRUPT, *NOISES)
MODALITY_NAME: Final = {
    "vision-only": "image alone",
    "text-only": "text alone",
    MULTIMODAL: "image and text",
}  # what they carry

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MODULE_KINDS: Final = KINDS[len(HEAD_KINDS) :]

EVERY: Final = "every position"  # the role of a site that is every position at once
ROLES: Final[tuple[Role, ...]] = get_args(Role)

FEW: Final = 30  # examples of a task, below which intervals are wide and what they show is a hint


PLACE: Final = {
    "subject": "the subject", "answer": "the answer's word", "wrong answer": "the wrong answer's word",
    "other": "other words", "punctuation": "punctuation", "last": "the last token", "image": "image tokens",
    "template": "the template's tokens", "special": "special tokens", EVERY: EVERY + " at once",
}  # fmt: skip


def at_place(role: object) -> str:
    """Where something was patched, in words: an effect is the effect at a place.

    >>> at_place("answer"), at_place("every position")
    ("at the answer's word", 'at every position at once')
    """
    return f"at {PLACE.get(str(role), f'{role} tokens')}"


def listed(names: Iterable[str]) -> str:
    """Names as English lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last
