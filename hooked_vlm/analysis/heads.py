"""The words for heads, each spelled in one place: their kinds, their names, what selects them, what they carry.

Costs nothing; knows no model.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

Head = tuple[str, int, int]  # kind, layer, head
HEAD: Final = ["kind", "layer", "head"]  # in which columns of a table

HeadKind = Literal["cross_attn-heads", "attn-heads"]
HEAD_KINDS: Final = get_args(HeadKind)
RULES: Final = {"fdr": "the FDR-controlled rule", "paper": "the paper's rule"}
MODALITIES: Final = {"image": "vision-only", "text": "text-only"}  # of heads that matter under one corruption alone
MULTIMODAL: Final = "multimodal"  # of heads that matter under both


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
