"""What a run shows, in claims with evidence, and what its reader should be careful about.

A claim holds, does not hold, or cannot be told from the run (None); the evidence is its numbers. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hooked_vlm.notice import statistics
from hooked_vlm.notice.gathered import Gathered, Grid
from hooked_vlm.notice.labels import NONE, OBJECT, labels_of
from hooked_vlm.notice.universal import Rule
from hooked_vlm.notice.vocabulary import CORRUPT, EVERY, FEW, RULES, head_name, listed, module_of, of_heads

CONTENT = ("answer", "wrong answer", "subject")  # the words that a question about a picture turns on
AGREE = 0.5  # rank correlation above which two maps are said to agree

Records = list[dict[str, Any]]


def findings(
    data: Gathered,
    tables: Mapping[str, Records],
    significant: Iterable[tuple[str, int, int]] | None,
    *,
    times: int = statistics.BOOTSTRAP,
    seed: int = 0,
) -> Records:
    """The claims: claim, holds (True, False, None), evidence.

    Args:
        data: from `gathered.gather`.
        tables: the tables of the summary.
        significant: heads whose patching has an effect, as `labels.labels` takes them.
        times: resamples.
        seed: of the resamples and of the halves.
    """
    kinds = sorted({kind for corrupt, kind, _ in data.roles if corrupt == "image" and of_heads(kind)})
    found = [_concentration(data, kind, times, seed) for kind in kinds]
    found.append(_detection(data, significant, times, seed))
    found.append(_universal(tables["universal"], bool(tables["heads"])))
    found += _harm(tables["ablation"])
    found.append(_noise(tables["noise"]))
    return found


def _shown(found: Mapping[str, float], digits: int = 3) -> str:
    if math.isnan(found["low"]):
        return f"{found['mean']:.{digits}g}"
    return f"{found['mean']:.{digits}g} [{found['low']:.{digits}g}, {found['high']:.{digits}g}]"


def _concentration(data: Gathered, kind: str, times: int, seed: int) -> dict[str, Any]:
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
        return {"claim": claim, "holds": None, "evidence": "The run patched no such tokens beside others."}
    here, there = np.concatenate(on), np.concatenate(off)
    gap = statistics.mean_with_interval(here - there, times, seed)
    ends = [statistics.mean_with_interval(each, times, seed) for each in (here, there)]
    means = {role: float(np.nanmean(np.concatenate(each))) for role, each in per_role.items() if role != EVERY}
    ranked = ", ".join(f"{role} {value:.3g}" for role, value in sorted(means.items(), key=lambda one: -one[1]))
    ratio = f", {ends[0]['mean'] / ends[1]['mean']:.3g} times as much" if ends[1]["mean"] > 0 else ""
    return {
        "claim": claim,
        "holds": _above(gap, 0.0),
        "evidence": (
            f"Mean |effect| of a head at one such token {_shown(ends[0])}, at any other {_shown(ends[1])}{ratio}; "
            f"difference {_shown(gap)}, {gap['n']} examples. By role: {ranked}."
        ),
    }


def _by_role(grid: Grid) -> dict[str, np.ndarray]:
    """|effect| of each example by role, over layers."""
    sizes, cells = grid.matrix("size"), grid.cells
    roles = sorted({role for _, role in cells})
    return {role: _rowwise_mean(list(sizes[:, [i for i, (_, r) in enumerate(cells) if r == role]].T)) for role in roles}


def _rowwise_mean(columns: list[np.ndarray]) -> np.ndarray:
    return statistics.means(np.array(columns))  # NaN where an example has none of them


def _detection(data: Gathered, significant: Any, times: int, seed: int) -> dict[str, Any]:
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
        return {"claim": claim, "holds": None, "evidence": "The tasks have no masks."}
    if not heads:
        return {"claim": claim, "holds": None, "evidence": "No head is labelled so on one half of the examples."}
    seen = {score: statistics.mean_with_interval(np.concatenate(each), times, seed) for score, each in parts.items()}
    return {
        "claim": claim,
        "holds": _above(seen["lift"], 1.0) and _above(seen["auc"], 0.5),
        "evidence": (
            f"{listed(heads)}, labelled on half of the examples, on the other half ({seen['lift']['n']}) with "
            f"a lift of {_shown(seen['lift'])} (1 is even attention; the average head of the kind has "
            f"{np.nanmean(np.concatenate(usual)):.3g}), an AUC of {_shown(seen['auc'])} (0.5 is even) and the largest "
            f"attention on the object in {seen['pointing']['mean']:.0%}."
        ),
    }


def _universal(rows: Records, any_heads: bool) -> dict[str, Any]:
    claim = "Some heads matter in every task, by the sound rule"
    if not any_heads:
        return {"claim": claim, "holds": None, "evidence": "No heads were patched."}
    by_rule = {rule: [row for row in rows if row["rule"] == rule] for rule in RULES}
    said = []
    for rule, whose in (("sound", "the sound rule"), ("paper", "the paper's")):
        heads = [f"{head_name(row['kind'], row['layer'], row['head'])} ({row['modality']})" for row in by_rule[rule]]
        said.append(f"{whose}: {listed(heads) or 'none'}")
    return {"claim": claim, "holds": bool(by_rule["sound"]), "evidence": f"By {'; by '.join(said)}."}


def _harm(rows: Records) -> Records:
    claim = "Ablating the {} heads hurts more than ablating as many random heads of the same layers"
    found = []
    for selection in dict.fromkeys(row["selection"] for row in rows):
        mine = [row for row in rows if row["selection"] == selection]
        told = [row for row in mine if not math.isnan(row["harm"])]
        evidence = "; ".join(
            f"{row['task']}: accuracy {row['accuracy_full']:.0%} whole, {row['accuracy']:.0%} without, "
            f"{row['accuracy_random_mean']:.0%} without random ones; logit difference {row['logit_diff_full']:.3g}, "
            f"{row['logit_diff']:.3g}, {row['logit_diff_random_mean']:.3g} (worse than random by {row['harm']:.3g} "
            f"[{row['harm_low']:.3g}, {row['harm_high']:.3g}], p = {row['p']:.2g}, {row['draws']} sets"
            f"{', too few for a smaller p' if row['worse'] is None else ''})"
            for row in told
        )
        verdicts = [row["worse"] for row in mine]
        holds = False if False in verdicts else None if None in verdicts else True
        if not told:
            evidence = "Its layers have no other set of as many heads to compare with."
        found.append({"claim": claim.format(selection), "holds": holds, "evidence": evidence})
    if not any(row["selection"].startswith("universal") for row in rows):
        reason = f"No head is universal{'; the strongest were ablated instead' if rows else ''}."
        found.insert(0, {"claim": claim.format("universal"), "holds": None, "evidence": reason})
    return found


def _noise(rows: Records) -> dict[str, Any]:
    claim = f"Semantic pairs and Gaussian noise rank the heads alike (rank correlation above {AGREE:g} in every task)"
    known = [row for row in rows if not math.isnan(row["spearman"])]
    if not known:
        return {"claim": claim, "holds": None, "evidence": "The run has no Gaussian noise."}
    evidence = "; ".join(
        f"{row['task']}, {row['modality']}, {module_of(row['kind'])}: {row['spearman']:.2f} "
        f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}], top {row['top_k']} heads in common {row['top_overlap']:.0%}"
        for row in known
    )
    return {"claim": claim, "holds": all(row["ci_low"] > AGREE for row in known), "evidence": f"{evidence}."}


def _above(found: Mapping[str, float], bound: float) -> bool | None:
    return None if math.isnan(found["low"]) else bool(found["low"] > bound)


# --- cautions ---------------------------------------------------------------------------------------


def cautions(data: Gathered, tables: Mapping[str, Records], config: Mapping[str, Any], rule: Rule) -> list[str]:
    """What to be careful about in this run, in sentences; the weightiest first."""
    said = []
    kept = {row["task"]: row["kept"] for row in tables["counts"]}
    fewest = rule.fewest_examples
    if lacking := [task for task, n in kept.items() if n < fewest]:
        said.append(
            f"{listed(lacking)}: fewer than {fewest} examples were kept, too few for the sound rule to hold out a "
            "half: it can select nothing."
        )
    if thin := [f"{task} ({n})" for task, n in kept.items() if fewest <= n < FEW]:
        said.append(f"Few examples: {listed(thin)}. Intervals are wide and small effects are missed.")
    if short := [f"{task} ({n} of {config['examples']})" for task, n in kept.items() if n < config.get("examples", 0)]:
        said.append(f"Fewer examples than asked for were kept: {listed(short)}. The counts say why.")
    for row in tables["counts"]:
        if row["seen"] and row["kept"] < row["seen"] / 2:
            said.append(
                f"{row['task']}: only {row['kept']} of {row['seen']} examples were kept; what follows holds of those, "
                "which may be the easy ones."
            )
    for row in tables["behaviour"]:
        if row["flipped"] < 0.5 and row["corrupt"] in CORRUPT:
            said.append(
                f"{row['task']}: {row['corrupt']} corruption turns the answer round in {row['flipped']:.0%} of the "
                "examples only, so patching has little to restore in the others."
            )
    said += _about_heads(data, tables, rule)
    said += _about_scope(data, tables, config)
    return said


def _about_heads(data: Gathered, tables: Mapping[str, Records], rule: Rule) -> list[str]:
    said = []
    for kind in data.head_kinds:
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
    n_tests = len([row for row in tables["heads"] if row["corrupt"] in CORRUPT and not math.isnan(row["p"])])
    if n_tests:
        said.append(
            f"{n_tests} effects (heads, tasks, corruptions) were tested. The false discovery rate is held at "
            f"{rule.alpha:g} in each corruption and kind of heads, not over the whole report; the paper's rule "
            "corrects for nothing."
        )
        said.append(f"Effects of heads are those at {data.at!r} tokens alone: a head may matter elsewhere.")
    if len({row["task"] for row in tables["heads"]}) == 1:
        said.append("There is one task: 'universal' says no more than that a head stands out in it.")
    corrupts = {row["corrupt"] for row in tables["heads"]} & set(CORRUPT)
    if len(corrupts) == 1:
        (one,) = corrupts
        said.append(f"Only {one} corruption was run: the other modality was not tested, whatever a head is called.")
    return said


def _about_scope(data: Gathered, tables: Mapping[str, Records], config: Mapping[str, Any]) -> list[str]:
    said = []
    if tables["ablation"]:
        said.append(
            "Heads are ablated on the examples that they were selected on, which favours them a little over random "
            "heads; and on those that the model had answered rightly, where accuracy can only fall."
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
        masked = any(not math.isnan(row["lift"]) for row in tables["functions"])
        said.append(
            "Labels say where attention goes, not why: a head that looks at whatever stands out, or always at the "
            "middle, overlaps objects that stand out or stand there."
            if masked
            else "There are no masks: of what heads do, only the share on outlier patches and the class token is known."
        )
    said += _about_labels(tables["functions_by_task"])
    if config.get("noise"):
        said.append("Gaussian noise takes the model off its data: its effects and those of pairs differ in scale.")
    return said


def _about_labels(rows: Records) -> list[str]:
    """Heads that are called one thing in one task and another in another."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row["label"] != NONE:
            of_head = found.setdefault(head_name(row["kind"], row["layer"], row["head"]), {})
            of_head.setdefault(row["label"], []).append(str(row["task"]))
    parted = [
        f"{head}: {listed(f'{label} in {listed(tasks)}' for label, tasks in of_head.items())}"
        for head, of_head in found.items()
        if len(of_head) > 1
    ]
    return (
        [f"Labels are of all tasks together, and some heads differ between tasks. {'; '.join(parted)}."]
        if parted
        else []
    )


def _most_above(n: int, sds: float) -> int:
    """How many of `n` equal outliers can lie `sds` sample SDs above the mean: z = sqrt((n - k)(n - 1) / (n k))."""
    return max((k for k in range(1, n) if math.sqrt((n - k) * (n - 1) / (n * k)) > sds), default=0)
