"""What a run's values may be, as types: its corruptions, kinds of sites, roles of tokens.

Costs nothing; knows no model and no file.
"""

from __future__ import annotations

from typing import Literal

from hooked_vlm.analysis.heads import HeadKind

Corrupt = Literal["image", "text"]
Kind = Literal[HeadKind, "cross_attn", "attn", "mlp", "resid"]
Role = Literal[
    "subject", "answer", "wrong answer", "other", "punctuation", "last", "image", "template", "special",
    "every position",
]  # fmt: skip
"""Of a token in its prompt; the last one is that of a site that is every position at once."""
