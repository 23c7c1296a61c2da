"""The report's sentences: what was patched and corrupted in words, the answer on the first screen and its figures.

Every sentence is made from summary.json and says how sure it is; where something was not measured, it says that.
Knows no chart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pandas as pd

from hooked_vlm.notice import selections
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.page import Markup, counted, interval, known, number, paragraph, percent, tag
from hooked_vlm.notice.vocabulary import CORRUPT, FEW, RULES, head_at, head_name, listed, module_of, of_heads

KIND: Final = {
    "cross_attn-heads": "cross-attention heads",
    "attn-heads": "self-attention heads",
    "cross_attn": "cross-attention",
    "attn": "self-attention",
    "mlp": "MLP",
    "resid": "residual stream",
}
CORRUPTION: Final = {
    "image": "image swapped for its pair",
    "text": "word replaced in the prompt",
    "image_noise": "Gaussian noise on the image",
    "text_noise": "Gaussian noise on the prompt",
}
CORRUPTED: Final = {"image": "image swapped", "text": "word replaced"}
HEAD: Final = ["kind", "layer", "head"]
MODALITY: Final = {"vision-only": "image alone", "text-only": "text alone", "multimodal": "image and text"}
RULE: Final = {"paper": "the paper's rule", "sound": "the sound rule"}
UNIT: Final = "\N{NO-BREAK SPACE}%"


def kind_name(kind: object) -> str:
    """A kind of site in words."""
    return KIND.get(str(kind), str(kind))


def kind_title(kind: object) -> str:
    """A kind of heads in words, with the spelling that names of heads use.

    >>> kind_title("attn-heads")
    'self-attention heads (attn)'
    """
    return f"{kind_name(kind)} ({module_of(kind)})" if of_heads(kind) else kind_name(kind)


def corruption_name(corrupt: object) -> str:
    """A corruption in words."""
    return CORRUPTION.get(str(corrupt), str(corrupt))


def head_label(run: Loaded, kind: object, layer: Any, head: Any) -> str:
    """A head, with its kind where a run has more than one kind of heads."""
    several = run.table("heads")["kind"].nunique() > 1
    return head_name(kind, layer, head) if several else head_at(layer, head)


def selection_name(selection: object) -> str:
    """A set of ablated heads in words.

    >>> selection_name("universal image, paper's rule"), selection_name("strongest 3 text")
    ("universal heads (image, paper's rule)", '3 strongest heads (text)')
    """
    match = selections.NAME.fullmatch(str(selection))
    if match is None:
        return f"heads of \u201c{selection}\u201d"
    how, n, corrupt, rule = match["how"], match["n"], match["corrupt"], match["rule"]
    which = "universal" if n is None else f"{n} {how}"
    return f"{which} heads ({corrupt}{', ' + rule if rule else ''})"


def ablated(run: Loaded) -> list[str]:
    """The sets of heads that were ablated, the first to be told of first."""
    return sorted({str(name) for name in run.table("ablation")["selection"]}, key=selections.order)


def universal_heads(run: Loaded, rule: str) -> pd.DataFrame:
    """The universal heads under one rule, strongest first."""
    rows = run.table("universal")
    return rows[rows["rule"] == rule].sort_values(["mean_abs", "layer", "head"], ascending=[False, True, True])


def selection_was_possible(run: Loaded) -> bool:
    """Whether any head was measured, so that rules could select."""
    return bool(len(run.table("heads")))


def answer(run: Loaded) -> Markup:
    """What was found, in plain words: one paragraph, and a line on how much stands behind it."""
    if not run.kept:
        return tag("div", paragraph(_nothing_kept(run)), class_="answer")
    sentences = [_universal(run), *_strongest(run), *_ablated(run), *_labelled(run), *_noise(run)]
    return tag("div", paragraph(" ".join(sentences)), paragraph(_basis(run), class_="note"), class_="answer")


def _nothing_kept(run: Loaded) -> str:
    if not run.seen:
        return "No example was seen, so there is nothing to say about this model yet."
    return (
        f"Nothing could be patched: none of the {counted(run.seen, 'example')} could be kept, and patching asks where "
        "a right answer comes from. The reasons are counted below."
    )


def _names(run: Loaded, rows: pd.DataFrame, most: int = 4) -> str:
    names = [head_label(run, row["kind"], row["layer"], row["head"]) for row in rows.head(most).to_dict("records")]
    return listed([*names, f"{len(rows) - most} more"]) if len(rows) > most else listed(names)


def _every_task(run: Loaded) -> str:
    n = len(run.tasks)
    return "in the one task that was run" if n == 1 else "in both tasks" if n == 2 else f"in all {n} tasks"


def _universal(run: Loaded) -> str:
    if not selection_was_possible(run):
        return "No head was patched in this run, so no head can be called universal."
    sound, paper = universal_heads(run, "sound"), universal_heads(run, "paper")
    total = counted(len(run.table("heads")[["kind", "layer", "head"]].drop_duplicates()), "head")
    if len(sound):
        groups = [
            f"{_names(run, rows)} for {MODALITY.get(str(modality), str(modality))}"
            for modality, rows in sound.groupby("modality", sort=False)
        ]
        verb = "stands" if len(sound) == 1 else "stand"
        text = f"Of {total} of {run.short}, {len(sound)} {verb} out {_every_task(run)}: {listed(groups)}."
        return text + (f" The paper's rule would name {len(paper)}." if len(paper) != len(sound) else "")
    if len(paper):
        return (
            f"No head of {run.short} stands out {_every_task(run)} once chance is accounted for. The paper's rule "
            f"names {_names(run, paper)}; this data does not confirm it."
        )
    neither = "by the paper's rule or by the sound one"
    return f"None of the {total} of {run.short} stands out {_every_task(run)}, {neither}."


def _strongest(run: Loaded) -> list[str]:
    """The head with the largest effect in each task, under the first corruption that was run."""
    rows = run.table("heads")
    corrupts = [corrupt for corrupt in CORRUPT if (rows["corrupt"] == corrupt).any()]
    if not corrupts:
        return []
    rows = rows[(rows["corrupt"] == corrupts[0]) & rows["mean_abs"].map(known)]
    leaders: dict[str, list[str]] = {}
    for task in run.tasks:
        part = rows[rows["task"] == task]
        if len(part):
            best = part.loc[part["mean_abs"].astype(float).idxmax()]
            leaders.setdefault(head_label(run, best["kind"], best["layer"], best["head"]), []).append(task)
    told = [f"{head} in {listed(tasks)}" for head, tasks in leaders.items()]
    return [f"With the {CORRUPTED[corrupts[0]]}, the strongest single head is {listed(told)}."]


def _ablated(run: Loaded) -> list[str]:
    rows = run.table("ablation").dropna(subset=["accuracy", "accuracy_random_mean"])
    if rows.empty:
        return []
    # One selection is told here, the first in a fixed order, whatever it shows; the section on ablation has them all.
    selection = next(name for name in ablated(run) if (rows["selection"] == name).any())
    rows = rows[rows["selection"] == selection]
    full, after, drawn = (
        percent(rows[column].astype(float).mean()) for column in ("accuracy_full", "accuracy", "accuracy_random_mean")
    )
    worse, better = int(rows["worse"].eq(True).sum()), int((rows["harm_high"].astype(float) < 0).sum())
    among, than = counted(len(rows), "task"), "more than removing as many random heads"
    if worse == len(rows):
        verb = f"hurts {than} in every task"
    elif worse:
        verb = f"hurts {than} in {worse} of {among}"
    elif rows["worse"].isna().any():
        verb = f"may hurt {than}, but their layers have too few other heads to tell"
    else:
        less = f" (less in {better} of {among})" if better else ""
        verb = f"does not clearly hurt {than}{less}"
    average = ", on average over tasks" if len(rows) > 1 else ""
    return [
        f"Removing the {selection_name(selection)} {verb}: accuracy goes from {full} to {after}, with random heads "
        f"to {drawn}{average}."
    ]


def _labelled(run: Loaded) -> list[str]:
    rows, chosen = run.table("functions"), run.table("universal")[HEAD].drop_duplicates()
    if rows.empty:
        return []
    whose = "Of the universal heads" if len(chosen) else "Of all heads"
    rows = chosen.merge(rows, on=HEAD) if len(chosen) else rows
    named = rows[rows["label"].fillna("none") != "none"]
    if named.empty:
        return [f"{whose}, none has an attention on the image that one of the paper's labels fits."]
    counts = [f"{len(part)} as {label} ({_names(run, part)})" for label, part in named.groupby("label", sort=True)]
    return [f"{whose}, attention on the image marks {listed(counts)}."]


def _noise(run: Loaded) -> list[str]:
    rho = run.table("noise")["spearman"].dropna().astype(float)
    if rho.empty:
        return []
    alike = "much alike" if rho.min() > 0.7 else "quite differently" if rho.max() < 0.4 else "only partly alike"
    found = spread(rho, lambda x: number(x, 2))
    return [f"Semantic pairs and Gaussian noise rank the heads {alike} (Spearman {found})."]


def _basis(run: Loaded) -> str:
    counts = run.table("counts")
    least = int(counts["kept"].fillna(0).astype(int).min())
    text = f"This rests on {run.kept:,} of {counted(run.seen, 'example')} in {counted(len(counts), 'task')}"
    text += f", {least} in the smallest. " if len(counts) > 1 else ". "
    if least < FEW:
        return text + "So few examples a task give hints, not results."
    return text + "It describes this checkpoint on these tasks; whether it holds beyond them was not tested here."


def tiles(run: Loaded) -> Markup:
    """The figures that a reader looks for first."""
    shown = [(f"{run.kept:,} of {run.seen:,}", "examples seen were kept")]
    behaviour = run.table("behaviour")
    for corrupt in CORRUPT:
        shares = behaviour.loc[behaviour["corrupt"] == corrupt, "flipped"].dropna().astype(float)
        if len(shares):
            shown.append((spread(shares, percent), f"of answers flip: {corruption_name(corrupt)}"))
    if selection_was_possible(run):
        sound, paper = (len(universal_heads(run, rule)) for rule in RULES)
        shown.append((f"{sound} and {paper}", "universal heads, by the sound rule and by the paper's"))
    rows = run.table("ablation").dropna(subset=["accuracy", "accuracy_full", "accuracy_random_mean"])
    if len(rows):
        selection = next(name for name in ablated(run) if (rows["selection"] == name).any())
        rows = rows[rows["selection"] == selection].set_index("task")
        losses = [
            number(100 * (rows[column].astype(float) - rows["accuracy_full"].astype(float)).mean(), 1)
            for column in ("accuracy", "accuracy_random_mean")
        ]
        what = f"points of accuracy without the {selection_name(selection)} and without random ones"
        shown.append((" and ".join(losses), what))
    rho = run.table("noise")["spearman"].dropna().astype(float)
    if len(rho):
        shown.append((spread(rho, lambda x: number(x, 2)), "rank correlation with Gaussian noise"))
    return tag("ul", [tag("li", tag("b", figure), tag("span", text)) for figure, text in shown], class_="tiles")


def spread(values: pd.Series, written: Callable[[Any], str]) -> str:
    """The least and the greatest of some numbers, or the one there is.

    >>> spread(pd.Series([0.97, 1.0]), percent)
    '97 to 100\N{NO-BREAK SPACE}%'
    """
    low, high = written(values.min()), written(values.max())
    return low if low == high else f"{low.removesuffix(UNIT)} to {high}"


def verdict(holds: object) -> Markup:
    """Whether a finding holds, in words and in a colour."""
    if holds is True:
        return tag("span", "holds", class_="verdict yes")
    if holds is False:
        return tag("span", "does not hold", class_="verdict no")
    return tag("span", "undecided", class_="verdict open")


def because_nothing_kept(run: Loaded) -> str:
    """Why there may be no effects at all."""
    return "" if run.kept else " (no example was kept)"


def missing(text: str) -> Markup:
    """A part that is not there, and why."""
    return paragraph(text, class_="missing")


def with_interval(row: Mapping[str, Any], column: str, written: Callable[[Any], str] = number) -> str:
    """A number followed by its interval, where summary.json has one."""
    span = interval(row.get(f"{column}_low"), row.get(f"{column}_high"), written) if known(row.get(column)) else ""
    return f"{written(row.get(column))} {span}".strip()


def two(value: Any) -> str:
    """A number with two decimals."""
    return number(value, 2)


def scored(function: Mapping[str, Any]) -> str:
    """What a head's label rests on, with its interval.

    >>> scored({"scored": "lift", "score": 3.1, "ci_low": 2.4, "ci_high": 3.9})
    'lift 3.10 [2.40,\N{NO-BREAK SPACE}3.90]'
    """
    if not known(function.get("score")):
        return ""
    span = interval(function.get("ci_low"), function.get("ci_high"), two)
    return f"{function.get('scored') or ''} {two(function['score'])} {span}".strip()
