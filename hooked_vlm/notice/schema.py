"""What a run's values may be, as types: its corruptions, kinds of sites, roles of tokens, sets of heads.

Costs nothing; knows no model and no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from hooked_vlm.analysis.heads import HeadKind

Corrupt = Literal["image", "text"]
Rule = Literal["fdr", "paper"]  # `analysis.heads.RULES`
Kind = Literal[HeadKind, "cross_attn", "attn", "mlp", "resid"]
Role = Literal[
    "subject", "answer", "wrong answer", "other", "punctuation", "last", "image", "template", "special",
    "every position",
]  # fmt: skip
"""Of a token in its prompt; the last one is that of a site that is every position at once."""

PAPERS: Final = ", paper's rule"  # behind the name of a set that is chosen by it


@dataclass(frozen=True)
class Selection:
    """How a set of heads was chosen that a run ablates.

    Args:
        how: because they are universal, or the strongest.
        corrupt: under which corruption.
        rule: by which rule they are universal; None for the strongest.
        n: how many of the strongest; None for universal ones.
    """

    how: Literal["universal", "strongest"]
    corrupt: Corrupt
    rule: Rule | None = None
    n: int | None = None

    @property
    def name(self) -> str:
        """By what it goes in files: in the column `selection` and in summary.json.

        >>> Selection("universal", "image", "paper").name, Selection("strongest", "text", n=3).name
        ("universal image, paper's rule", 'strongest 3 text')
        """
        of = self.how if self.n is None else f"{self.how} {self.n}"
        return f"{of} {self.corrupt}{PAPERS * (self.rule == 'paper')}"

    def __str__(self) -> str:
        """In words: "universal heads (image, paper's rule)", "3 strongest heads (text)"."""
        which = self.how if self.n is None else f"{self.n} {self.how}"
        return f"{which} heads ({self.corrupt}{PAPERS * (self.rule == 'paper')})"

    @property
    def order(self) -> tuple[bool, bool, bool]:
        """Where it stands: universal before strongest, the FDR-controlled rule's first, image before text."""
        return self.how != "universal", self.rule == "paper", self.corrupt != "image"
