"""What a run's values may be, as types: its corruptions, kinds of sites, roles of tokens, sets of heads, its summary.

Costs nothing; knows no model and no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # which pydantic reads below Python 3.12

from hooked_vlm.analysis.heads import HeadKind
from hooked_vlm.errors import RunDirectoryError, quoted

SUMMARY_VERSION: Final = 2  # of summary.json

Corrupt = Literal["image", "text"]
RuleName = Literal["fdr", "paper"]  # `analysis.heads.RULES`
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
    rule: RuleName | None = None
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


Records = list[dict[str, Any]]


class Summary(TypedDict, total=False):
    """summary.json: every number that the report prints.

    Each key is a list of flat records unless said. Intervals are 95 %, over examples: exact (Clopper-Pearson) of
    shares, percentile bootstrap of the rest unless said. What cannot be computed is null; so is the interval of numbers
    that are all equal.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    version: int
    """Of what stands below; a summary of before there was one has none."""
    counts: Records
    """task, seen, answered (rows that the model gave an answer to), accuracy (of those, answered rightly),
    accuracy_low, accuracy_high, kept, kept_image, kept_text (those that have the corruption, where it was run), reasons
    (dict, why rows were not kept: how many), lacking (dict, why kept ones have not a corruption that was asked for)."""
    noted: Records
    """Of the data while it was read, from sources.json: task, reason, n, names (the first few). Most concern rows that
    were passed over before they were seen; those that begin "no corrupt prompt" or "no mask", rows without it."""
    behaviour: Records
    """Of kept examples: task, corrupt, n, clean_logit_diff, corrupt_logit_diff, flipped (share whose corrupt logit
    difference is below 0), each also with _low and _high. The logit difference is L(right) - L(wrong)."""
    heads: Records
    """At the tokens where heads are selected: what `universal_heads.select` and `places.best_places` give, restoration
    (mean) and normalized (median, since a ratio of logit differences has no mean to rely on where they are near 0).
    Where the selected token is several positions, an example's effect is their mean."""
    roles: Records
    """corrupt, task, kind, layer, role, n, mean, ci_low, ci_high (of the effect), mean_abs, abs_low, abs_high (of
    |effect|); an example's value is the mean over the positions of that role, and over heads where the kind has
    heads."""
    universal: Records
    """kind, layer, head, modality ("vision-only", "text-only", "multimodal"), rule ("paper", "fdr"), tasks, tested
    (corruptions that were run), mean_abs, q, repeats."""
    functions: Records
    """What `head_labels.labels` gives: kind, layer, head, label, score, ci_low, ci_high, scored, n, significant, q, and
    every score of `image_attention.SCORES` with _low and _high; all tasks together."""
    functions_by_task: Records
    """The same with task, since a head may look at the object in one task and away in another."""
    ablation: Records
    """task, selection (`Selection.name`), n_heads, n, draws, n_overlapping (random sets that hold selected heads),
    accuracy_full, and accuracy, each also with _low and _high (over examples), accuracy_random_mean,
    accuracy_random_low, accuracy_random_high (2.5 and 97.5 % of random sets), the same for logit_diff, harm, harm_low,
    harm_high (mean logit difference under random sets less that under the selection, interval over examples), p (share
    of sets, the selection among them, whose mean logit difference is no higher than the selection's), worse
    (`claims.hurts_more`: true, false, or null where that cannot be told)."""
    noise: Records
    """Semantic pairs against Gaussian noise: task, modality, kind, n, n_heads (those that either corruption moves by
    more than rounding: heads that no corruption reaches would agree by being 0), spearman (of mean |effect| over
    heads), ci_low, ci_high, top_overlap (share of the top_k heads in common), top_k, top_chance (expected by
    chance)."""
    strongest: Records
    """What `places.strongest` gives of the heads, by corrupt and task."""
    disagreements: list[str]
    """Sentences: where the rules select other heads."""
    findings: Records
    """`claims.Verdict`s: about, claim, holds (true, false, or null where the run cannot tell), told (a sentence),
    evidence, subject, parts (task: holds)."""
    cautions: list[str]
    select_at: dict[str, str]
    """Kind to token role."""
    config: dict[str, Any]
    """As in run.json, and so the model."""
    model: dict[str, Any]
    figures: Records
    """file, kind, layer, head, example, caption."""


def checked(values: Any) -> Summary:
    """Plain values as a summary.

    Raises:
        RunDirectoryError: if they are none; it names the first part that is something else.
    """
    try:
        return TypeAdapter(Summary).validate_python(values)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        part = ".".join(map(str, wrong["loc"])) or "all of it"
        raise RunDirectoryError(
            f"summary.json is damaged ({part} is {quoted(wrong['input'])}): run the same `hooked-vlm notice` command, "
            "which computes it again"
        ) from None
