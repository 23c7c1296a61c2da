"""What a run's values may be, as types: corruptions, kinds of sites, roles of tokens, sets of heads, rows of tables.

Costs nothing; knows no model and no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # which pydantic reads below Python 3.12

from hooked_vlm.analysis.heads import HeadKind
from hooked_vlm.errors import RunDirectoryError, quoted

Corrupt = Literal["image", "text"]
RuleName = Literal["fdr", "paper"]  # `analysis.heads.RULES`
Kind = Literal[HeadKind, "cross_attn", "attn", "mlp", "resid"]
Role = Literal[
    "subject", "answer", "wrong answer", "other", "punctuation", "last", "image", "template", "special",
    "every position",
]  # fmt: skip
"""Of a token in its prompt; the last one is that of a site that is every position at once."""

PAPERS: Final = ", paper's rule"  # behind the key of a set that is chosen by it


def known(value: Any) -> bool:
    """Whether there is a number: neither None nor NaN nor infinite."""
    return value is not None and not isinstance(value, str) and math.isfinite(value)


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
    rule: RuleName | None = None
    n: PositiveInt | None = None

    def __str__(self) -> str:
        """Its key, which stands in parquet files in the column `selection`.

        >>> str(Selection("universal", "image", "paper")), str(Selection("strongest", "text", n=3))
        ("universal image, paper's rule", 'strongest 3 text')
        """
        of = self.how if self.n is None else f"{self.how} {self.n}"
        return f"{of} {self.corrupt}{PAPERS * (self.rule == 'paper')}"

    @classmethod
    def parse(cls, key: str) -> Selection:
        """The set of a key.

        Raises:
            RunDirectoryError: if it is the key of none.

        >>> Selection.parse("strongest 3 text")
        Selection(how='strongest', corrupt='text', rule=None, n=3)
        """
        how, *between = key.removesuffix(PAPERS).split(" ")
        n, corrupt = (["", *between])[-2:] if between else ("", "")
        rule = None if how == "strongest" else "paper" if key.endswith(PAPERS) else "fdr"
        try:
            found = _SELECTION.validate_python({"how": how, "corrupt": corrupt, "rule": rule, "n": n or None})
        except ValidationError:
            found = None
        if found is None or str(found) != key:
            raise RunDirectoryError(
                f"heads were ablated as {quoted(key)}, a set that no run makes: run the same `hooked-vlm notice` "
                "command in another directory"
            )
        return found

    @property
    def order(self) -> tuple[bool, bool, bool, int]:
        """Where it stands: universal before strongest, the FDR-controlled rule's first, image before text."""
        return self.how != "universal", self.rule == "paper", self.corrupt != "image", self.n or 0


_SELECTION: Final = TypeAdapter(Selection)


# --- the tables of a summary: rows of a file that an earlier version wrote may lack some of a row's numbers -----------

Number = float | None  # null where it cannot be computed


class _Row(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    task: str


class Counts(_Row, total=False):
    """Of a task: rows seen, those that the model gave an answer to, those kept, and why others were not."""

    seen: int
    answered: int
    accuracy: Number
    """Of those answered, the share answered rightly."""
    accuracy_low: Number
    accuracy_high: Number
    kept: int
    kept_image: int
    kept_text: int
    """Those that have the corruption, where it was run."""
    reasons: dict[str, int]
    """Why rows were not kept: how many."""
    lacking: dict[str, int]
    """Why kept ones have not a corruption that was asked for: how many."""


class Noted(_Row, total=False):
    """What was noted of the data while it was read, from sources.json.

    Most concern rows that were passed over before they were seen; those that begin "no corrupt prompt" or "no
    mask", rows without it.
    """

    reason: str
    n: int
    names: list[str]
    """The first few."""


class Behaviour(_Row, total=False):
    """Of kept examples. The logit difference is L(right) - L(wrong)."""

    corrupt: str
    n: int
    clean_logit_diff: Number
    clean_logit_diff_low: Number
    clean_logit_diff_high: Number
    corrupt_logit_diff: Number
    corrupt_logit_diff_low: Number
    corrupt_logit_diff_high: Number
    flipped: Number
    """Share whose corrupt logit difference is below 0."""
    flipped_low: Number
    flipped_high: Number


class _OfHead(_Row, total=False):
    corrupt: str
    kind: str
    layer: int
    head: int


class HeadEffect(_OfHead, total=False):
    """A head at the tokens where heads are selected: what `universal_heads.select` and `places.best_places` give.

    Restoration is a mean, normalized a median, since a ratio of logit differences has no mean to rely on where they are
    near 0. Where the selected token is several positions, an example's effect is their mean.
    """

    n: int
    clusters: int
    """The fewest that its interval rests on."""
    mean: Number
    mean_abs: Number
    sd: Number
    se: Number
    span: Number
    ci_low: Number
    ci_high: Number
    abs_low: Number
    abs_high: Number
    threshold: Number
    paper: bool
    p_patched: Number
    """Of a run as published: the mean |P_patched|, which threshold and paper are of."""
    ratio: Number
    ratio_low: Number
    ratio_high: Number
    p: Number
    p_each: Number
    q: Number
    repeats: Number
    fdr: bool
    undecided: bool
    p_all: Number
    q_all: Number
    repeats_all: Number
    paper_all: bool
    fdr_all: bool
    at_least: int
    restoration: Number
    normalized: Number
    at: str | None
    best_at: str | None
    best: Number
    best_low: Number
    best_high: Number
    best_abs: Number
    here_abs: Number
    elsewhere: bool | None


class Power(TypedDict, total=False):
    """The power that a run had for a head whose effect varies over examples as the strongest heads' does."""

    corrupt: str
    kind: str
    cv: Number
    """SD of an effect by the size of its mean: the median over the strongest heads of each task."""
    n: int
    """Examples, of the task with fewest."""
    tasks: int
    power: Number
    """The chance that such a head is found in every task."""
    needed: int | None
    """Examples a task for a chance of 0.8."""
    clusters: int
    """The fewest values of what clusters the examples."""


class Localised(_OfHead, total=False):
    """Where a head that was selected at every position at once acts, one position at a time."""

    role: str
    n: int
    mean: Number
    ci_low: Number
    ci_high: Number
    p: Number
    q: Number
    """Within the head's roles, raised for the choice of heads (Benjamini & Bogomolov 2014)."""
    acts: bool


class ByAnswer(_OfHead, total=False):
    """The effect of a head, where heads are selected, in the examples of one answer."""

    answer: str
    n: int
    mean: Number
    ci_low: Number
    ci_high: Number
    most: bool
    """Whether this is the answer that the head does most for."""
    alone: bool | None
    """Of that answer, whether the head acts for it alone: `by_answer.answer_specific`."""
    rest: Number
    """Its mean effect for the other answers than that."""
    p: Number
    """Of that answer, that it is as the others; over all heads and answers (Holm)."""


class RoleEffect(_Row, total=False):
    """Effects by layer and token role: the effect, and |effect|.

    An example's value is the mean over the positions of that role, and over heads where the kind has heads.
    """

    corrupt: str
    kind: str
    layer: int
    role: str
    n: int
    mean: Number
    ci_low: Number
    ci_high: Number
    mean_abs: Number
    abs_low: Number
    abs_high: Number


class Universal(TypedDict, total=False):
    """A head that a rule selects in every task, see `universal_heads.universal`."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    kind: str
    layer: int
    head: int
    modality: str
    rule: str
    tasks: list[str]
    tested: list[str]
    """The corruptions that were run."""
    mean_abs: Number
    q: Number
    repeats: Number


class Function(_Row, total=False):
    """What `head_labels.labels` gives of a head, with a task in the table by task alone.

    Every score of `image_attention.SCORES` and every cost of `head_labels.COSTS` has its _low and _high. Claims are
    true, false or null, where the run cannot tell. Of all tasks together, a claim is one of every task in which the
    head matters.
    """

    kind: str
    layer: int
    head: int
    label: str | None
    score: Number
    ci_low: Number
    ci_high: Number
    scored: str | None
    n: int
    significant: bool | None
    tasks: list[str]
    """Those in which the head matters; of all tasks together alone."""
    lacks: str | None
    """What is missing to say whether it detects: "mask", "rival mask", "causes" or ""."""
    looks_at_objects: bool | None
    looks_at_asked: bool | None
    detects: bool | None
    suppresses: bool | None
    parks: bool | None
    q: Number
    objects_q: Number
    grounding_q: Number
    gap_q: Number
    inside: Number
    lift: Number
    lift_low: Number
    lift_high: Number
    rival_lift: Number
    rival_lift_low: Number
    rival_lift_high: Number
    grounding: Number
    grounding_low: Number
    grounding_high: Number
    objects_lift: Number
    auc: Number
    pointing: Number
    outlier: Number
    relative_inside: Number
    n_causes: int
    """Examples in which its attention was changed; none of them had a say in its being chosen for that."""
    cost_asked: Number
    cost_asked_low: Number
    cost_asked_high: Number
    cost_rival: Number
    cost_rival_low: Number
    cost_rival_high: Number
    cost_gap: Number
    cost_gap_low: Number
    cost_gap_high: Number
    """cost_asked less cost_rival."""
    cost_outliers: Number
    cost_to_asked: Number
    cost_to_rival: Number


class Grounding(_Row, total=False):
    """Attention of the average head on the object asked about and on its rival, over examples with masks of both."""

    kind: str
    n: int
    lift: Number
    lift_low: Number
    lift_high: Number
    rival_lift: Number
    rival_lift_low: Number
    rival_lift_high: Number
    grounding: Number
    grounding_low: Number
    grounding_high: Number
    """lift less rival_lift."""


class Ablation(_Row, total=False):
    """Accuracy and logit difference whole, without a set of heads, and without random sets of as many."""

    selection: Selection
    n_heads: int
    chosen: list[str]
    """The heads: one text, or one for each half of the examples that judged them, where those differ."""
    n: int
    draws: int
    n_overlapping: int
    """Random sets that hold selected heads."""
    accuracy_full: Number
    accuracy_full_low: Number
    accuracy_full_high: Number
    accuracy: Number
    accuracy_low: Number
    accuracy_high: Number
    """Over examples."""
    accuracy_random_mean: Number
    accuracy_random_low: Number
    accuracy_random_high: Number
    """2.5 and 97.5 % of random sets."""
    logit_diff_full: Number
    logit_diff_full_low: Number
    logit_diff_full_high: Number
    logit_diff: Number
    logit_diff_low: Number
    logit_diff_high: Number
    logit_diff_random_mean: Number
    logit_diff_random_low: Number
    logit_diff_random_high: Number
    harm: Number
    harm_low: Number
    harm_high: Number
    """Mean logit difference under random sets less that under the selection, interval over examples."""
    harm_p: Number
    p: Number
    """Share of sets, the selection among them, whose mean logit difference is no higher than the selection's."""
    worse: bool | None
    """`claims.hurts_more`: null where that cannot be told."""


class Noise(_Row, total=False):
    """Semantic pairs against Gaussian noise, in the ranks of mean |effect| over heads."""

    modality: str
    kind: str
    n: int
    n_heads: int
    """Those that either corruption moves by more than rounding: heads that no corruption reaches would agree by being
    0."""
    spearman: Number
    ci_low: Number
    ci_high: Number
    top_overlap: Number
    """Share of the top_k heads in common."""
    top_k: int
    p: Number
    """Two-sided, that the rank correlation is `claims.AGREE`."""
    top_chance: Number
    """Expected by chance."""


class Strongest(_OfHead, total=False):
    """What `places.strongest` gives."""

    role: str
    mean: Number
    mean_low: Number
    mean_high: Number
    mean_abs: Number
    at: str
    here: Number


class Figure(TypedDict, total=False):
    """An overlay in figures/."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    file: str
    kind: str
    layer: int
    head: int
    example: str
    caption: str
