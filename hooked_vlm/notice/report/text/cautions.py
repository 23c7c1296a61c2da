"""What the reader of a run should be careful about, in sentences. Costs nothing; knows no model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

import torch

from hooked_vlm.analysis import clusters
from hooked_vlm.analysis.answers import SENTENCE
from hooked_vlm.analysis.head_labels import NONE, UNDECIDED
from hooked_vlm.analysis.heads import head_name, module_of
from hooked_vlm.analysis.universal_heads import Rule
from hooked_vlm.notice import claims, fingerprint
from hooked_vlm.notice.report.text.words import at_place, listed, percent, two, with_interval
from hooked_vlm.notice.schema import Counts, Function, Power, known
from hooked_vlm.notice.stored import Summary
from hooked_vlm.notice.vocabulary import CORRUPT
from hooked_vlm.patching.result import ROUNDING

ONE_WORD = "Answer with one word."
FEW = 30  # examples of a task, below which intervals are wide and what they show is a hint
OFTEN = 0.1  # of the answers: sentences that are more than this are worth another run


def cautions(summary: Summary, record: Mapping[str, Any]) -> list[str]:
    """What to be careful about in a run, in sentences; the weightiest first.

    Args:
        summary: the run's; those that one of version 1 keeps are given as they are.
        record: what run.json says.
    """
    if "cautions" in summary:
        return summary["cautions"]
    tables, config, rule = summary, summary["config"], numbers_of(summary)
    asked, said = str(config["select_at"]), []
    if set(summary["select_at"].values()) - {asked}:
        said.append(f"No prompt has a token of role {asked!r}: heads are selected on every position at once instead.")
    said += about_packages(record)
    kept = {row["task"]: row["kept"] for row in tables["counts"]}
    least = {row["task"]: claims.fewest(row) for row in tables["counts"]}
    needed = rule.fewest
    if lacking := [task for task, n in least.items() if n < needed]:
        said.append(
            f"{listed(lacking)}: fewer than {needed} examples were kept, too few for the FDR-controlled rule to select "
            "anything."
        )
    if thin := [f"{task} ({n})" for task, n in least.items() if needed <= n < FEW]:
        said.append(f"Few examples: {listed(thin)}. Intervals are wide and small effects are missed.")
    said += _about_lacking(tables["counts"])
    said += about_sentences(tables["counts"], config)
    if short := [f"{task} ({n} of {config['examples']})" for task, n in kept.items() if n < config.get("examples", 0)]:
        said.append(f"Fewer examples than asked for were kept: {listed(short)}. The counts say why.")
    for row in tables["counts"]:
        if row["seen"] and row["kept"] < row["seen"] / 2:
            said.append(
                f"{row['task']}: only {row['kept']} of {row['seen']} examples were kept; what follows holds of those, "
                "which may be the easy ones."
            )
    for change in tables["behaviour"]:
        if change["corrupt"] in CORRUPT and change["flipped"] is not None and change["flipped"] < 0.5:
            said.append(
                f"{change['task']}: {change['corrupt']} corruption turns the answer round in "
                f"{with_interval(change, 'flipped', percent)} of the examples only, so patching has little to restore "
                "in the others."
            )
    said += _about_heads(summary, rule, as_published=bool(config.get("as_published")))
    said += _about_scope(summary, config)
    return said


def numbers_of(summary: Summary) -> Rule:
    """The numbers that a run's heads were selected by."""
    given, names = summary.get("rule") or {}, {one.name for one in fields(Rule)}
    return Rule(**cast(Any, {name: value for name, value in given.items() if name in names}))


def _about_lacking(counts: list[Counts]) -> list[str]:
    """Which tasks have examples without a corruption that others have, and why."""
    said = []
    for row in counts:
        for corrupt in CORRUPT:
            n = row.get(f"kept_{corrupt}")
            if n is None or n == row["kept"]:
                continue
            reasons = {each.partition(": ")[2]: k for each, k in row["lacking"].items() if each.startswith(corrupt)}
            why = f" ({'; '.join(f'{reason}: {k}' for reason, k in reasons.items())})" if reasons else ""
            rests = f"what is said of it rests on {n} of {row['kept']}" if n else "nothing is said of it here"
            said.append(f"{row['task']}: not every example has {_A[corrupt]}{why}; {rests}.")
    return said


_A = {"image": "an image corruption", "text": "a text corruption"}


def about_sentences(counts: list[Counts], config: Mapping[str, Any]) -> list[str]:
    """How to ask for a word where a model answers in sentences.

    Args:
        counts: the summary's.
        config: the run's.
    """
    told = [
        f"{row['task']}: {row['reasons'][SENTENCE]} of {row['answered']} answers are sentences, whose first token "
        "tells nothing."
        for row in counts
        if row["reasons"].get(SENTENCE, 0) > OFTEN * row["answered"]
    ]
    before = str(config.get("prompt_template") or "{prompt}")
    if not told or ONE_WORD in before:
        return told
    asked = before.replace("{prompt}", f"{{prompt}} {ONE_WORD}")
    way = f'--template "{asked}" asks for a word; it is another run, in another directory.'
    if set(asked) & set('"\\$`\n'):
        way = f"{ONE_WORD!r} behind {{prompt}} in the template asks for a word."
    return [*told, way]


def about_packages(record: Mapping[str, Any]) -> list[str]:
    """With which packages a run went on that it did not begin with, in sentences.

    Args:
        record: what run.json says.
    """
    return [
        f"Accepted on demand: from {when} on, the run was made with {listed(changes)}. Its numbers are of both."
        for when, changes in accepted(record)
    ]


def accepted(record: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """When a run went on with other packages than it began with, and with which: "torch 2.9 in place of 2.8"."""
    began = record.get("packages") or {}
    return [
        (
            str(each["when"]),
            [
                f"{name} {each['packages'].get(name, 'none')} in place of {began.get(name, 'none')}"
                for name in fingerprint.differences(began, each["packages"])
            ],
        )
        for each in record.get("accepted") or []
    ]


def _about_heads(tables: Summary, rule: Rule, *, as_published: bool) -> list[str]:
    said = []
    for kind in () if as_published else tables["select_at"]:  # the bounds are those of a sample's SD
        n = len({(row["layer"], row["head"]) for row in tables["heads"] if row["kind"] == kind})
        most = (n - 1) / math.sqrt(n) if n else 0.0
        what = module_of(kind)
        if n and most <= rule.sds:
            said.append(
                f"{what}: with {n} heads none can lie {rule.sds:g} SD above the mean; the paper's rule is void."
            )
        elif n < 50:
            said.append(
                f"{what}: among {n} heads none can lie more than {most:.2f} SD above the mean, and at most "
                f"{_most_above(n, rule.sds)} can pass mean + {rule.sds:g} SD together: the paper's rule was made for "
                "models of 144 heads and more."
            )
    n_tests = len([row for row in tables["heads"] if row["corrupt"] in CORRUPT and known(row["p"])])
    if n_tests:
        said.append(
            f"{n_tests} effects (heads, tasks, corruptions) were tested. In each corruption and kind of heads, not "
            f"over the whole report, the false discovery rate over tasks is held at {rule.alpha:g}, and so is the "
            "chance of any false universal head; the paper's rule corrects for nothing. Verdicts are corrected "
            "together (Holm)."
        )
        roles = listed(map(at_place, dict.fromkeys(tables["select_at"].values())))
        said.append(f"Heads are read {roles}, and selected, ablated and drawn by that alone.")
    said += _about_clusters(tables)
    if len({row["task"] for row in tables["heads"]}) == 1:
        said.append("There is one task: 'universal' says no more than that a head stands out in it.")
    corrupts = {row["corrupt"] for row in tables["heads"]} & set(CORRUPT)
    if len(corrupts) == 1:
        (one,) = corrupts
        said.append(f"Only {one} corruption was run: the other modality was not tested, whatever a head is called.")
    return said


def _about_clusters(tables: Summary) -> list[str]:
    """Tasks of few answers, and what a run of so many examples could find."""
    fewest: dict[str, int] = {}
    alone: dict[str, None] = {}  # tasks of so few that no test asks of others
    for row in tables["heads"]:
        if 1 < (n := row.get("clusters") or 0) < clusters.FEW:
            fewest[row["task"]] = min(n, fewest.get(row["task"], n))
        elif known(row.get("p_each")):
            alone[row["task"]] = None
    said = []
    if alone:
        said.append(
            f"Fewer than {clusters.FEWEST} answers, groups or templates: {listed(alone)}. A head has to act in each of "
            "them, and what is said of it holds for these alone: so few tell nothing of others."
        )
    if fewest:
        said.append(
            f"Few answers, groups or templates: {listed(f'{task} ({n})' for task, n in fewest.items())}. What is "
            "said of a head in one task holds for these answers, in each of which it has to act; whether it is "
            "universal, and how far its interval reaches, is asked of answers in general, by a test that takes the "
            "means of so few as normal. More answers would tell more than more examples."
        )
    for verdict in tables["findings"]:
        if isinstance(verdict.evidence, claims.Selected):
            said += [_about_power(row) for row in verdict.evidence.power if known(row["power"])]
    return said


def _about_power(row: Power) -> str:
    where = "" if row["tasks"] == 1 else " in both tasks" if row["tasks"] == 2 else f" in all {row['tasks']} tasks"
    needed = "no number of examples is enough" if row["needed"] is None else f"it takes {row['needed']} examples a task"
    return (
        f"Power, {row['corrupt']} corruption, {module_of(row['kind'])}: were every example independent, a head whose "
        f"effect varies as the strongest ones' here (SD {two(row['cv'])} times the mean) would be found{where} with a "
        f"chance of {percent(row['power'])} by {row['n']} examples; for {percent(0.8)}, {needed}."
    )


def _about_scope(tables: Summary, config: Mapping[str, Any]) -> list[str]:
    said = []
    if tables["ablation"]:
        halves = "on examples that had no say in their choice: each half is judged by what was chosen on the other; "
        same = "on the examples that they were chosen by, and hurt by the luck of that choice, too; "  # older summaries
        said.append(
            f"Heads are ablated {halves if all('chosen' in row for row in tables['ablation']) else same}"
            "all are examples that the model had answered rightly, where accuracy can only fall."
        )
        few: dict[str, str] = {}
        for row in tables["ablation"]:  # the sets are the same in every task
            if 0 < row["draws"] < int(config.get("random_draws") or 0):
                few[f"{row['selection']} ({row['draws']})"] = ""
            if row["n_overlapping"]:
                few[f"{row['selection']} ({row['draws']})"] = (
                    " Some random sets hold some of the selected heads, since their layers have too few others."
                )
        if few:
            said.append(
                f"Few other sets of as many heads are in the layers of a selection: {listed(few)}. No p can be less "
                f"than 1 / (sets + 1).{max(few.values())}"
            )
    if tables["functions"]:
        said.append(_about_masks(tables["functions_by_task"]))
    said += _about_labels(tables["functions_by_task"])
    if config.get("screen"):
        said.append(
            f"Screened: of each kind of sites in each example, those with the {config['screen']} largest estimates and "
            "as many drawn at random were measured; the effects of all others are first-order estimates."
        )
    if config.get("every_position") is False:
        said.append(
            "Heads were patched at single positions; every position at once was not swept, so what a head does through "
            "several positions together is not known."
        )
    rounding = ROUNDING.get(getattr(torch, str(config.get("dtype")), torch.float32))
    if rounding is not None:
        said.append(
            f"Computed in {config['dtype']}: whatever its size, an effect in one example is off from float32 "
            f"by up to {percent(rounding)} of the largest logit, as measured on the models that ship with the package; "
            "means over examples are off by less."
        )
    if config.get("noise"):
        said.append("Gaussian noise takes the model off its data: its effects and those of pairs differ in scale.")
    return said


def _about_masks(rows: list[Function]) -> str:
    """What the data's masks let one tell of what heads do."""
    if not any(known(row["lift"]) for row in rows):
        return "There are no masks: of what heads do, only the share on outlier patches and the class token is known."
    if not any(known(row.get("rival_lift")) for row in rows):
        return (
            "There are no masks of the rivals, the things of which wrong answers are right: a head that looks at "
            "objects cannot be told from one that looks at the object asked about, and no head is labelled object "
            "detection."
        )
    if not any(row.get("n_causes") for row in rows):
        return (
            "No head's attention was changed, since none has a clear effect on half of the examples or they are too "
            "few: labels that need to know what the attention is worth are undecided."
        )
    return (
        "What a head's attention to an object is worth is measured in that head alone, at the tokens from which heads "
        "are watched: heads that see the object as well make up for it, and what the others do with it is not asked."
    )


def _about_labels(rows: list[Function]) -> list[str]:
    """Heads that are called one thing in one task and another in another."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if (label := row["label"]) not in (NONE, UNDECIDED, None):
            of_head = found.setdefault(head_name(row["kind"], row["layer"], row["head"]), {})
            of_head.setdefault(str(label), []).append(str(row["task"]))
    parted = [
        f"{head}: {listed(f'{label} in {listed(tasks)}' for label, tasks in of_head.items())}"
        for head, of_head in found.items()
        if len(of_head) > 1
    ]
    return (
        [f"Labels of all tasks are those of each in which the head matters; some differ. {'; '.join(parted)}."]
        if parted
        else []
    )


def _most_above(n: int, sds: float) -> int:
    """How many of `n` equal outliers can lie `sds` sample SDs above the mean: z = sqrt((n - k)(n - 1) / (n k))."""
    return max((k for k in range(1, n) if math.sqrt((n - k) * (n - 1) / (n * k)) > sds), default=0)
