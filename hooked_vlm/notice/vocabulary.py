"""The words of a run, each spelled in one place: corruptions, kinds of sites, roles, rules, names of heads.

They stand in configurations, parquet files, summary.json and reports. Costs nothing; knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

Head = tuple[str, int, int]  # kind, layer, head

CORRUPT: Final = ("image", "text")
NOISES: Final = ("image_noise", "text_noise")  # the same modalities under Gaussian noise
CORRUPTIONS: Final = (*CORRUPT, *NOISES)
MODALITIES: Final = {"image": "vision-only", "text": "text-only"}  # of heads that matter under one corruption alone
MULTIMODAL: Final = "multimodal"  # of heads that matter under both
MODALITY_NAME: Final = {
    "vision-only": "image alone",
    "text-only": "text alone",
    MULTIMODAL: "image and text",
}  # what they carry

HEAD_KINDS: Final = ("cross_attn-heads", "attn-heads")
MODULE_KINDS: Final = ("cross_attn", "attn", "mlp", "resid")
KINDS: Final = (*HEAD_KINDS, *MODULE_KINDS)

EVERY: Final = "every position"  # the role of a site that is every position at once
ROLES: Final = (
    "subject", "answer", "wrong answer", "other", "punctuation", "last", "image", "template", "special", EVERY
)  # fmt: skip

RULES: Final = ("sound", "paper")
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


def of_heads(kind: object) -> bool:
    """Whether a kind has a site for every head.

    >>> of_heads("attn-heads"), of_heads("attn")
    (True, False)
    """
    return kind in HEAD_KINDS


def module_of(kind: object) -> str:
    """The module that a kind's sites are in, as hook names spell it.

    >>> module_of("cross_attn-heads"), module_of("mlp")
    ('cross_attn', 'mlp')
    """
    return str(kind).removesuffix("-heads")


def head_at(layer: Any, head: Any) -> str:
    """A head as the field writes it.

    >>> head_at(5, 3)
    'L5.H3'
    """
    return f"L{int(layer)}.H{int(head)}"


def head_name(kind: object, layer: Any, head: Any) -> str:
    """A head with the attention that it is in, to tell heads of two attentions apart.

    >>> head_name("cross_attn-heads", 3, 0)
    'cross_attn L3.H0'
    """
    return f"{module_of(kind)} {head_at(layer, head)}"


def listed(names: Iterable[str]) -> str:
    """Names as English lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last
