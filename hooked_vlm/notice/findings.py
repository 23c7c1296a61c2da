"""What a run shows: its verdicts, each with the evidence and the sentence that it is told in.

The verdicts are decided here by the rules of `claims`, once. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hooked_vlm.analysis import statistics
from hooked_vlm.analysis.grid import Grid
from hooked_vlm.analysis.head_labels import OBJECT, SHARES, labels_of
from hooked_vlm.analysis.heads import RULES, Head, head_name, module_of, of_heads
from hooked_vlm.analysis.universal_heads import Rule
from hooked_vlm.notice import selections
from hooked_vlm.notice.claims import Holds, Verdict, above, by_task, every, fewest, smallest_p, told
from hooked_vlm.notice.run_tables import RunTables
from hooked_vlm.notice.schema import Records
from hooked_vlm.notice.selections import selection_name
from hooked_vlm.notice.vocabulary import EVERY, MODALITY_NAME, at_place, listed
from hooked_vlm.notice.wording import carriers, counted, estimate, first_of, percent, two, with_interval

CONTENT = ("answer", "wrong answer", "subject")  # the words that a question about a picture turns on
AGREE = 0.5  # rank correlation above which two maps are said to agree


def findings(
    data: RunTables, tables: Mapping[str, Records], significant: Iterable[Head] | None, rule: Rule
) -> list[Verdict]:
    """The verdicts of a run.

    Args:
        data: from `run_tables.gather`.
        tables: the tables of the summary.
        significant: heads whose patching has an effect, as `head_labels.labels` takes them.
        rule: the numbers of the rules; its resamples and seed are used.
    """
    kinds = sorted({kind for corrupt, kind, _ in data.roles if corrupt == "image" and of_heads(kind)})
    found = [_concentration(data, kind, rule.bootstrap, rule.seed) for kind in kinds]
    found.append(_detection(data, significant, rule.bootstrap, rule.seed))
    found.append(_universal(data, tables, rule))
    found += _harm(tables["ablation"])
    found.append(_noise(tables["noise"], data.at))
    return found


def _shown(found: Mapping[str, float], digits: int = 3) -> str:
    if math.isnan(found["low"]):
        return f"{found['mean']:.{digits}g}"
    return f"{found['mean']:.{digits}g} [{found['low']:.{digits}g}, {found['high']:.{digits}g}]"


def _concentration(data: RunTables, kind: str, times: int, seed: int) -> Verdict:
    """Whether |effect| under image corruption is larger at the tokens that should carry it."""
    expected = ("last",) if data.at == "last" else CONTENT
    what = module_of(kind)
    where = "the last token" if expected == ("last",) else f"{listed(expected)} tokens"
    claim = f"Image corruption: patching {what} heads has a larger effect at {where} than at others"
    per_role: dict[str, list[np.ndarray]] = {}
    on, off = [], []
    for (corrupt, of_kind, _), grid in sorted(data.roles.items()):
        if corrupt != "image" or of_kind != kind:
            continue
        sizes = _by_role(grid)
        for role, values in sizes.items():
            per_role.setdefault(role, []).append(values)
        mine = [values for role, values in sizes.items() if role in expected]
        others = [values for role, values in sizes.items() if role not in (*expected, EVERY, "image")]
        if mine and others:
            on.append(_rowwise_mean(mine))
            off.append(_rowwise_mean(others))
    if not on:
        return Verdict("concentration", claim, None, "", "The run patched no such tokens beside others.", what)
    here, there = np.concatenate(on), np.concatenate(off)
    gap = statistics.mean_with_interval(here - there, times, seed)
    ends = [statistics.mean_with_interval(each, times, seed) for each in (here, there)]
    means = {role: float(np.nanmean(np.concatenate(each))) for role, each in per_role.items() if role != EVERY}
    ranked = ", ".join(f"{role} {value:.3g}" for role, value in sorted(means.items(), key=lambda one: -one[1]))
    ratio = f", {ends[0]['mean'] / ends[1]['mean']:.3g} times as much" if ends[1]["mean"] > 0 else ""
    evidence = (
        f"Mean |effect| of a head at one such token {_shown(ends[0])}, at any other {_shown(ends[1])}{ratio}; "
        f"difference {_shown(gap)}, {gap['n']} examples. By role: {ranked}."
    )
    return Verdict("concentration", claim, above(gap["low"], gap["high"], 0.0), "", evidence, what)


def _by_role(grid: Grid) -> dict[str, np.ndarray]:
    """|effect| of each example by role, over layers."""
    sizes, cells = grid.matrix("size"), grid.cells
    roles = sorted({role for _, role in cells})
    return {role: _rowwise_mean(list(sizes[:, [i for i, (_, r) in enumerate(cells) if r == role]].T)) for role in roles}


def _rowwise_mean(columns: list[np.ndarray]) -> np.ndarray:
    return statistics.means(np.array(columns))  # NaN where an example has none of them


def _detection(data: RunTables, significant: Any, times: int, seed: int) -> Verdict:
    """Heads are labelled on one half of the examples and measured on the other, so that the choice cannot help."""
    claim = "Object-detection heads look at the object: their attention overlaps its mask more than evenly"
    parts: dict[str, list[np.ndarray]] = {"lift": [], "auc": [], "pointing": []}
    heads: list[str] = []
    usual: list[np.ndarray] = []
    for kind, grid in sorted(data.attention.items()):
        masked = ~np.isnan(grid.matrix("auc")).all(1)
        order = np.random.default_rng((seed, 10)).permutation(np.flatnonzero(masked))
        if len(order) < 4:
            continue
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        labelled = labels_of({kind: grid.rows(first)}, significant=significant, times=times, seed=seed)
        cells = list(labelled[labelled["label"] == OBJECT][["layer", "head"]].itertuples(index=False, name=None))
        if cells:
            held_out = grid.rows(second)
            heads += [head_name(kind, *cell) for cell in cells]
            usual.append(statistics.means(held_out.matrix("lift").T))
            for score, values in parts.items():
                values.append(statistics.means(held_out.matrix(score, cells).T))
    if not data.attention or all(np.isnan(grid.matrix("auc")).all() for grid in data.attention.values()):
        return Verdict("detection", claim, None, "", "The tasks have no masks.")
    if not heads:
        return Verdict("detection", claim, None, "", "No head is labelled so on one half of the examples.")
    seen = {
        score: statistics.mean_with_interval(np.concatenate(each), times, seed, scores=score in SHARES)
        for score, each in parts.items()
    }
    mean, low, high = (seen["pointing"][name] for name in ("mean", "low", "high"))
    evidence = (
        f"{listed(heads)}, labelled on half of the examples, on the other half ({seen['lift']['n']}) with "
        f"a lift of {_shown(seen['lift'])} (1 is even attention; the average head of the kind has "
        f"{np.nanmean(np.concatenate(usual)):.3g}), an AUC of {_shown(seen['auc'])} (0.5 is even) and the largest "
        f"attention on the object in {estimate(mean, low, high, percent)}."
    )
    holds = every(above(seen[score]["low"], seen[score]["high"], even) for score, even in (("lift", 1.0), ("auc", 0.5)))
    return Verdict("detection", claim, holds, "", evidence)


def _universal(data: RunTables, tables: Mapping[str, Records], rule: Rule) -> Verdict:
    """Undecided where no head is selected and a task has too few examples for the FDR-controlled rule."""
    claim = "Some heads matter in every task, by the FDR-controlled rule"
    if not tables["heads"]:
        told = "No head was patched, so no head can be called universal." if tables["roles"] else ""
        return Verdict("universal", claim, None, told, "No heads were patched.")
    by_rule = {name: [row for row in tables["universal"] if row["rule"] == name] for name in RULES}
    tasks = {row["task"] for row in tables["heads"]}
    counts = [row for row in tables["counts"] if row["task"] in tasks]
    few = [row["task"] for row in counts if fewest(row) < rule.fewest_examples]
    holds = True if by_rule["fdr"] else None if few else False
    said = []
    for name, whose in (("fdr", RULES["fdr"]), ("paper", "the paper's")):
        said.append(f"{whose}: {listed(carriers(by_rule[name])) or 'none'}")
    why = f"fewer than {rule.fewest_examples} examples of {listed(few)} are too few for {RULES['fdr']} to select any"
    evidence = f"By {'; by '.join(said)}; read {at_place(data.at)}.{f' Here {why}.' if holds is None else ''}"
    n = len({(row["kind"], row["layer"], row["head"]) for row in tables["heads"]})
    what = f"{counted(n, 'head')}, read {at_place(data.at)},"
    where = _everywhere(len(tasks))
    return Verdict("universal", claim, holds, _who_stands_out(by_rule, holds, what, where, why), evidence)


def _who_stands_out(by_rule: Mapping[str, Records], holds: Holds, what: str, where: str, why: str) -> str:
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


def _names(rows: Records) -> str:
    return first_of(head_name(row["kind"], row["layer"], row["head"]) for row in rows)


def _everywhere(n: int) -> str:
    return "in the one task that was run" if n == 1 else "in both tasks" if n == 2 else f"in all {n} tasks"


def _harm(rows: Records) -> list[Verdict]:
    claim = "Ablating the {} hurts more than ablating as many random heads of the same layers"
    found = []
    for selection in sorted({row["selection"] for row in rows}, key=selections.order):
        mine = [row for row in rows if row["selection"] == selection]
        compared = [row for row in mine if not math.isnan(row["harm"])]
        parts = {row["task"]: row["worse"] for row in mine}
        holds = every(parts.values())
        few = min(row["draws"] for row in mine)
        why = _too_few(few) if smallest_p(few) > statistics.ALPHA else ""
        evidence = f"{'; '.join(map(_harm_in, compared))}.{f' Undecided: {why}.' if why else ''}"
        if not compared:
            evidence = "Its layers have no other set of as many heads to compare with."
        name = selection_name(selection)
        spelled = claim.format(name) + (" in every task" if len(mine) > 1 else "")
        told = _told_harm(name, mine, parts, why) if compared else ""
        found.append(Verdict("harm", spelled, holds, told, evidence, selection, parts))
    if not any(verdict.subject.startswith("universal") for verdict in found):
        reason = f"No head is universal{'; the strongest were ablated instead' if rows else ''}."
        found.insert(0, Verdict("harm", claim.format("universal heads"), None, "", reason, "universal"))
    return found


def _too_few(draws: int) -> str:
    sets = f"only {counted(draws, 'other set')}" if draws else "no other set"
    return f"their layers have {sets} of as many heads, so that no p can be below {smallest_p(draws):.2g}"


def _harm_in(row: Mapping[str, Any]) -> str:
    """The numbers of one task."""
    full, after = (with_interval(row, name, percent) for name in ("accuracy_full", "accuracy"))
    harm = _shown({"mean": row["harm"], "low": row["harm_low"], "high": row["harm_high"]})
    return (
        f"{row['task']}: accuracy {full} whole, {after} without, {percent(row['accuracy_random_mean'])} without random "
        f"ones; logit difference {row['logit_diff_full']:.3g}, {row['logit_diff']:.3g}, "
        f"{row['logit_diff_random_mean']:.3g} (worse than random by {harm}, p = {row['p']:.2g}, "
        f"{counted(row['draws'], 'set')})"
    )


def _told_harm(name: str, rows: Records, parts: Mapping[str, Holds], why: str) -> str:
    than, where = "more than removing as many random heads", " in every task" if len(rows) > 1 else ""
    sentence = told(
        every(parts.values()),
        yes=f"Removing the {name} hurts {than}{where}",
        no=f"Removing the {name} does not hurt {than}{where}",
        whether=f"removing the {name} hurts {than}{where}",
    )
    full, after, drawn = (
        percent(float(np.mean([row[column] for row in rows])))
        for column in ("accuracy_full", "accuracy", "accuracy_random_mean")
    )
    average = ", on average over tasks" if len(rows) > 1 else ""
    return (
        f"{sentence}{by_task(parts)}{f': {why}' if why else ''}. Accuracy goes from {full} to {after}, with "
        f"random heads to {drawn}{average}."
    )


def _noise(rows: Records, at: str) -> Verdict:
    """Whether noise finds the same heads, in every task, corruption and kind of heads."""
    claim = f"Semantic pairs and Gaussian noise rank the heads alike (rank correlation above {AGREE:g} in every task)"
    known = [row for row in rows if not math.isnan(row["spearman"])]
    if not known:
        return Verdict("noise", claim, None, "", "The run has no Gaussian noise.")
    evidence = "; ".join(
        f"{row['task']}, {row['modality']}, {module_of(row['kind'])}: "
        f"{estimate(row['spearman'], row['ci_low'], row['ci_high'], two)}, "
        f"top {row['top_k']} heads in common {percent(row['top_overlap'])}"
        for row in known
    )
    parts = {
        task: every(above(row["ci_low"], row["ci_high"], AGREE) for row in known if row["task"] == task)
        for task in dict.fromkeys(row["task"] for row in known)
    }
    holds = every(parts.values())
    sentence = told(
        holds,
        yes="Semantic pairs and Gaussian noise rank the heads alike",
        no="Semantic pairs and Gaussian noise do not rank the heads alike in every task",
        whether="semantic pairs and Gaussian noise rank the heads alike in every task",
    )
    ends = [two(end([row["spearman"] for row in known])) for end in (min, max)]
    rho = " to ".join(dict.fromkeys(ends))
    said = f"{sentence}{by_task(parts)}: Spearman {rho} {at_place(at)}."
    return Verdict("noise", claim, holds, said, f"Effects {at_place(at)}. {evidence}.", parts=parts)
