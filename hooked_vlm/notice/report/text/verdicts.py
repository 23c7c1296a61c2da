"""Verdicts in words: the claim, the verdict in a word, the sentence of a first screen, and the evidence.

Each kind of evidence has one function here; report, terminal, notebook and comparison show what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hooked_vlm.analysis.decided import Holds
from hooked_vlm.analysis.head_labels import OBJECT
from hooked_vlm.analysis.heads import RULES, Head, head_name, module_of
from hooked_vlm.notice.claims import (
    Alike,
    Concentrated,
    Detected,
    Earlier,
    Estimate,
    Harmed,
    Selected,
    Verdict,
)
from hooked_vlm.notice.report.text.words import (
    DASH,
    MODALITY_NAME,
    at_place,
    carriers,
    counted,
    estimate,
    first_of,
    listed,
    percent,
    selection_name,
    two,
    with_interval,
)
from hooked_vlm.notice.schema import Ablation, Function, Selection, Universal, known

WORD: Final = {True: "holds", False: "does not hold", None: "undecided"}
HEADLINES: Final = ("universal", "harm", "noise")  # kinds of claims that a first screen tells of

Sentences = tuple[str, str, str]  # claim, told, evidence


@dataclass(frozen=True)
class Told:
    """A verdict in words.

    Args:
        verdict: the value.
        claim: the claim, as a sentence without a full stop.
        told: the verdict in a sentence or two, for a reader who sees nothing else; "" for none.
        evidence: its numbers, in a sentence.
    """

    verdict: Verdict
    claim: str
    told: str
    evidence: str

    @property
    def about(self) -> str:
        """What kind of claim it is, see `claims.Verdict`."""
        return self.verdict.about

    @property
    def holds(self) -> Holds:
        """Whether it holds; None where the run cannot tell."""
        return self.verdict.holds

    @property
    def word(self) -> str:
        """The verdict in a word or three: "holds", "does not hold", "undecided"."""
        return WORD[self.holds]


def told(verdict: Verdict) -> Told:
    """A verdict in words."""
    claim, said, evidence = _SENTENCES[type(verdict.evidence)](verdict, verdict.evidence)
    return Told(verdict, claim, said, evidence + _corrected(verdict))


def _corrected(verdict: Verdict) -> str:
    if verdict.p is None or verdict.p_adjusted is None:
        return ""
    return f" p = {verdict.p:.2g}, among all claims of the run {verdict.p_adjusted:.2g} (Holm)."


def headlines(verdicts: Iterable[Told]) -> dict[str, str]:
    """What is told to a reader who sees nothing else: of each kind of claim, the first verdict that has a sentence.

    Of ablations that is the first set in `Selection.order`, whatever it shows.
    """
    first: dict[str, str] = {}
    for one in verdicts:
        if one.told:
            first.setdefault(one.about, one.told)
    return {about: first[about] for about in HEADLINES if about in first}


# --- the field's claims -----------------------------------------------------------------------------


def _concentrated(verdict: Verdict, found: Concentrated) -> Sentences:
    where = "the last token" if found.expected == ["last"] else f"{listed(found.expected)} tokens"
    claim = f"Image corruption: patching {module_of(found.kind)} heads has a larger effect at {where} than at others"
    if found.here is None or found.elsewhere is None or found.gap is None:
        return claim, "", "The run patched no such tokens beside others."
    ranked = ", ".join(f"{role} {value:.3g}" for role, value in sorted(found.by_role.items(), key=lambda one: -one[1]))
    here, there = found.here.mean, found.elsewhere.mean
    ratio = f", {here / there:.3g} times as much" if here is not None and there else ""
    return claim, "", (
        f"Mean |effect| of a head at one such token {_shown(found.here)}, at any other {_shown(found.elsewhere)}"
        f"{ratio}; difference {_shown(found.gap)}, {found.gap.n} examples. By role: {ranked}."
    )  # fmt: skip


def _detected(verdict: Verdict, found: Detected) -> Sentences:
    claim = (
        "In every task some head finds the object asked about: it looks there more than at its rival, and the answer "
        "needs what it sees there more than what it sees of the rival"
    )
    if not found.masked:
        return claim, "", "Not testable: the tasks have no masks."
    if not found.rivals:
        return (
            claim,
            "",
            "Not testable: the tasks have no masks of rivals, the things of which wrong answers are right.",
        )
    said = []
    for task, holds in verdict.parts.items():
        mine = [row for row in found.heads if row["task"] == task]
        finds, looks = ([row for row in mine if (row["label"] == OBJECT) is which] for which in (True, False))
        n = found.tested.get(task, 0)
        parts = [f"{_finding(row)} finds it" for row in finds]
        if looks:
            parts.append(f"at objects, the one asked about or not, {_verb(looks)} {listed(map(_finding, looks))}")
        if not n:
            parts.append("no head was tested: none has a clear effect on half of the examples, or they are too few")
        elif not finds:
            finds_it = "finds it" if holds is False else "is shown to find it"
            parts.append(f"of {counted(n, 'head')} tested none {finds_it}")
        said.append(f"{task}: {'; '.join(parts)}")
    return claim, "", (
        "Heads that matter on one half of the examples, tested on the other; lift 1 is even attention, and cost what "
        f"the logit difference loses when the head no longer sees the thing. {'. '.join(said)}."
    )  # fmt: skip


def _verb(rows: Sequence[object]) -> str:
    return "looks" if len(rows) == 1 else "look"


def _finding(row: Function) -> str:
    """A head with what it sees of the object and of its rival, and what that is worth."""
    name = head_name(row["kind"], row["layer"], row["head"])
    lift, rival = two(row["lift"]), two(row["rival_lift"])
    return (
        f"{name} (lift {lift}, of the rival {rival}, difference {with_interval(row, 'grounding', two)}; cost "
        f"{two(row['cost_asked'])}, of the rival {two(row['cost_rival'])}, difference "
        f"{with_interval(row, 'cost_gap', two)})"
    )


def _selected(verdict: Verdict, found: Selected) -> Sentences:
    claim = "Some heads matter in every task, by the FDR-controlled rule"
    if not found.n_heads:
        said = "No head was patched, so no head can be called universal." if found.patched else ""
        return claim, said, "No heads were patched."
    by_rule = {name: [row for row in found.selected if row["rule"] == name] for name in RULES}
    why = (
        f"fewer than {found.fewest} examples of {listed(found.few)} are too few for {RULES['fdr']} to select any"
        if found.few
        else f"the data rule {_named(found.open)} neither in nor out"
    )
    said = "; by ".join(
        f"{whose}: {listed(carriers(by_rule[name])) or 'none'}"
        for name, whose in (("fdr", RULES["fdr"]), ("paper", "the paper's"))
    )
    undecided = f" Here {why}." if verdict.holds is None else ""
    what = f"{counted(found.n_heads, 'head')}, read {at_place(found.at)},"
    who = _who_stands_out(by_rule, verdict.holds, what, _everywhere(found.n_tasks), why)
    partly = [
        f"{head_name(row['kind'], row['layer'], row['head'])} in {listed(row['tasks'])} ({row['modality']})"
        for row in found.partly
    ]
    some = f"In some of the tasks, two at least, matter {listed(partly)}." if partly else ""
    return claim, " ".join(filter(None, (who, some))), f"By {said}; read {at_place(found.at)}.{undecided}"


def _named(heads: Iterable[Head]) -> str:
    return first_of(head_name(*head) for head in heads)


def _who_stands_out(by_rule: Mapping[str, list[Universal]], holds: Holds, what: str, where: str, why: str) -> str:
    fdr, paper = by_rule["fdr"], by_rule["paper"]
    named = f"the paper's rule names {_names(paper)}" if paper else "nor does the paper's rule name any"
    if holds:
        groups = [
            f"{_names([row for row in fdr if row['modality'] == modality])} for {MODALITY_NAME[modality]}"
            for modality in dict.fromkeys(row["modality"] for row in fdr)
        ]
        verb = "stands" if len(fdr) == 1 else "stand"
        also = f" The paper's rule would name {len(paper)}." if len(paper) != len(fdr) else ""
        return f"Of {what} {len(fdr)} {verb} out {where}: {listed(groups)}.{also}"
    if holds is None:
        return f"It is undecided whether any of {what} stands out {where}: {why}; {named}."
    if paper:
        return (
            f"None of {what} stands out {where} once chance is accounted for. The paper's rule names {_names(paper)}; "
            "this data does not confirm it."
        )
    return f"None of {what} stands out {where}, by the paper's rule or by the FDR-controlled one."


def _names(rows: Iterable[Universal]) -> str:
    return first_of(head_name(row["kind"], row["layer"], row["head"]) for row in rows)


def _everywhere(n: int) -> str:
    return "in the one task that was run" if n == 1 else "in both tasks" if n == 2 else f"in all {n} tasks"


def _harmed(verdict: Verdict, found: Harmed) -> Sentences:
    known_set = isinstance(verdict.subject, Selection)
    name = selection_name(verdict.subject) if isinstance(verdict.subject, Selection) else "universal heads"
    where = " in every task" if len(found.rows) > 1 else ""
    claim = f"Ablating the {name} hurts more than ablating as many random heads of the same layers{where}"
    if not known_set:
        return claim, "", f"No head is universal{'; the strongest were ablated instead' if found.others else ''}."
    compared = [row for row in found.rows if known(row["harm"])]
    if not compared:
        return claim, "", "Its layers have no other set of as many heads to compare with."
    sets = f"only {counted(found.draws, 'other set')}" if found.draws else "no other set"
    why = ""
    if found.least_p is not None:
        why = f"their layers have {sets} of as many heads, so that no p can be below {found.least_p:.2g}"
    than = f"more than removing as many random heads{where}"
    sentence = answered(
        verdict.holds,
        yes=f"Removing the {name} hurts {than}",
        no=f"Removing the {name} does not hurt {than}",
        whether=f"removing the {name} hurts {than}",
    )
    full, after, drawn = (
        percent(_average(found.rows, column)) for column in ("accuracy_full", "accuracy", "accuracy_random_mean")
    )
    average = ", on average over tasks" if len(found.rows) > 1 else ""
    said = (
        f"{sentence}{by_task(verdict.parts)}{f': {why}' if why else ''}. Accuracy goes from {full} to {after}, with "
        f"random heads to {drawn}{average}."
    )
    return claim, said, f"{'; '.join(map(_harm_in, compared))}.{f' Undecided: {why}.' if why else ''}"


def _average(rows: Iterable[Mapping[str, Any]], column: str) -> float:
    return float(np.mean([float("nan") if row[column] is None else row[column] for row in rows]))


def _harm_in(row: Ablation) -> str:
    """The numbers of one task."""
    full, after = (with_interval(row, name, percent) for name in ("accuracy_full", "accuracy"))
    harm = _shown(Estimate(row["harm"], row["harm_low"], row["harm_high"], row["n"]))
    chosen = row.get("chosen")  # older summaries do not say
    heads = f" ({'; on the other half '.join(chosen)})" if chosen else ""
    return (
        f"{row['task']}{heads}: accuracy {full} whole, {after} without, {percent(row['accuracy_random_mean'])} "
        f"without random ones; logit difference {row['logit_diff_full']:.3g}, {row['logit_diff']:.3g}, "
        f"{row['logit_diff_random_mean']:.3g} (worse than random by {harm}, p = {row['p']:.2g}, "
        f"{counted(row['draws'], 'set')})"
    )


def _alike(verdict: Verdict, found: Alike) -> Sentences:
    alike = "emantic pairs and Gaussian noise rank the heads alike"
    claim = f"S{alike} (rank correlation above {found.bound:g} in every task)"
    if not found.rows:
        return claim, "", "The run has no Gaussian noise."
    evidence = "; ".join(
        f"{row['task']}, {row['modality']}, {module_of(row['kind'])}: "
        f"{estimate(row['spearman'], row['ci_low'], row['ci_high'], two)}, "
        f"top {row['top_k']} heads in common {percent(row['top_overlap'])}"
        for row in found.rows
    )
    sentence = answered(
        verdict.holds,
        yes=f"S{alike}",
        no="Semantic pairs and Gaussian noise do not rank the heads alike in every task",
        whether=f"s{alike} in every task",
    )
    correlations = [row["spearman"] for row in found.rows if row["spearman"] is not None]
    rho = " to ".join(dict.fromkeys(two(end) for end in (min(correlations), max(correlations))))
    said = f"{sentence}{by_task(verdict.parts)}: Spearman {rho} {at_place(found.at)}."
    return claim, said, f"Effects {at_place(found.at)}. {evidence}."


def _earlier(verdict: Verdict, found: Earlier) -> Sentences:
    return found.claim, found.told, found.evidence


_SENTENCES: Final[Mapping[type, Callable[[Verdict, Any], Sentences]]] = {
    Concentrated: _concentrated,
    Detected: _detected,
    Selected: _selected,
    Harmed: _harmed,
    Alike: _alike,
    Earlier: _earlier,
}


# --- how a verdict is put ---------------------------------------------------------------------------


def _shown(found: Estimate, digits: int = 3) -> str:
    mean = f"{found.mean:.{digits}g}" if known(found.mean) else DASH
    return (
        f"{mean} [{found.low:.{digits}g}, {found.high:.{digits}g}]" if known(found.low) and known(found.high) else mean
    )


def by_task(parts: Mapping[str, Holds]) -> str:
    """Where tasks differ, which says what: " (it does in colour; not in place; undecided in shape)".

    >>> by_task({"colour": True, "place": True}), by_task({"colour": True, "place": None})
    ('', ' (it does in colour; undecided in place)')
    """
    if len(set(parts.values())) < 2:
        return ""
    words: dict[Holds, str] = {True: "it does", False: "not", None: "undecided"}
    groups = {word: [task for task, holds in parts.items() if holds is value] for value, word in words.items()}
    return f" ({'; '.join(f'{word} in {listed(tasks)}' for word, tasks in groups.items() if tasks)})"


def answered(holds: Holds, *, yes: str, no: str, whether: str) -> str:
    """The sentence that a verdict gets, without its full stop.

    Args:
        holds: the verdict.
        yes: the claim.
        no: the claim denied.
        whether: the claim after "It is undecided whether".
    """
    return {True: yes, False: no, None: f"It is undecided whether {whether}"}[holds]
