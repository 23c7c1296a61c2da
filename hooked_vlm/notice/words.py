"""The report's sentences: what was patched and corrupted in words, the answer on the first screen and its figures.

Every sentence is made from summary.json and says how sure it is; where something was not measured, it says that.
Knows no chart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pandas as pd

from hooked_vlm.notice.loaded import Loaded, head_name
from hooked_vlm.notice.page import Markup, counted, interval, known, listed, number, paragraph, percent, tag

KINDS: Final = {
    "cross_attn-heads": "cross-attention heads",
    "attn-heads": "self-attention heads",
    "cross_attn": "cross-attention",
    "attn": "self-attention",
    "mlp": "MLP",
    "resid": "residual stream",
}
CORRUPTIONS: Final = {
    "image": "image swapped for its pair",
    "text": "word replaced in the prompt",
    "image_noise": "Gaussian noise on the image",
    "text_noise": "Gaussian noise on the prompt",
}
MODALITY: Final = {"vision-only": "image alone", "text-only": "text alone", "multimodal": "image and text"}
RULES: Final = {"paper": "the paper's rule", "sound": "the sound rule"}
UNIT: Final = "\N{NO-BREAK SPACE}%"
FEW: Final = 30  # kept examples of a task, below which the report calls its figures hints


def kind_name(kind: object) -> str:
    """A kind of site in words."""
    return KINDS.get(str(kind), str(kind))


def corruption_name(corrupt: object) -> str:
    """A corruption in words."""
    return CORRUPTIONS.get(str(corrupt), str(corrupt))


def short_kind(kind: object) -> str:
    """The kind of a head in one word, to tell heads of two attentions apart.

    >>> short_kind("cross_attn-heads")
    'cross'
    """
    return kind_name(kind).removesuffix(" heads").removesuffix("-attention")


def head_label(run: Loaded, row: Mapping[str, Any]) -> str:
    """A head with its kind, where a run has more than one kind of heads."""
    name = head_name(row["layer"], row["head"])
    return f"{name} ({short_kind(row['kind'])})" if run.table("heads")["kind"].nunique() > 1 else name


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
    sentences = [_universal(run), *_ablated(run), *_labelled(run), *_noise(run)]
    return tag("div", paragraph(" ".join(sentences)), paragraph(_basis(run), class_="note"), class_="answer")


def _nothing_kept(run: Loaded) -> str:
    if not run.seen:
        return "No example was seen, so there is nothing to say about this model yet."
    return (
        f"Nothing could be patched: the model answered none of the {counted(run.seen, 'example')} in a way that "
        "could be kept, and patching asks where a right answer comes from. The reasons are counted below."
    )


def _names(run: Loaded, rows: pd.DataFrame, most: int = 4) -> str:
    names = [head_label(run, row) for row in rows.head(most).to_dict("records")]
    return listed([*names, f"{len(rows) - most} more"]) if len(rows) > most else listed(names)


def _every_task(run: Loaded) -> str:
    return "in the one task that was run" if len(run.tasks) == 1 else f"in all {len(run.tasks)} tasks"


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


def _ablated(run: Loaded) -> list[str]:
    rows = run.table("ablation").dropna(subset=["accuracy", "accuracy_random_mean"])
    if rows.empty:
        return []
    # The first selection of the run is told here, whatever it shows; the section on ablation has them all.
    selection = rows["selection"].iloc[0]
    rows = rows[rows["selection"] == selection]
    full, after, drawn = (
        rows[column].astype(float).mean() for column in ("accuracy_full", "accuracy", "accuracy_random_mean")
    )
    ps = rows["p"].dropna().astype(float)
    sure = f"; p < 0.05 in {int((ps < 0.05).sum())} of {counted(len(ps), 'task')}" if len(ps) else ""
    on_average = ", on average over tasks" if len(rows) > 1 else ""
    told = f"accuracy goes from {percent(full)} to {percent(after)}{on_average}, with random heads to {percent(drawn)}"
    verb = "hurts more than" if after < drawn else "hurts no more than"
    return [f"Removing heads ({selection}) {verb} removing as many random ones: {told}{sure}."]


def _labelled(run: Loaded) -> list[str]:
    rows, chosen = run.table("functions"), run.table("universal")[["kind", "layer", "head"]].drop_duplicates()
    if rows.empty or chosen.empty:
        return []
    labels = chosen.merge(rows, on=["kind", "layer", "head"])["label"].dropna()
    named = labels[labels != "none"]
    if named.empty:
        return ["None of them has a function in the image that its attention shows clearly."] if len(labels) else []
    counts = [f"{n} {label}" for label, n in named.value_counts(sort=False).sort_index().items()]
    if rest := len(labels) - len(named):
        counts.append(f"{rest} with no clear function")
    return [f"Labels, by where they look in the image: {listed(counts)}."]


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
    for corrupt in ("image", "text"):
        shares = behaviour.loc[behaviour["corrupt"] == corrupt, "flipped"].dropna().astype(float)
        if len(shares):
            shown.append((spread(shares, percent), f"of answers flip: {corruption_name(corrupt)}"))
    if selection_was_possible(run):
        sound, paper = (len(universal_heads(run, rule)) for rule in ("sound", "paper"))
        shown.append((f"{sound} and {paper}", "universal heads, by the sound rule and by the paper's"))
    rows = run.table("ablation").dropna(subset=["accuracy", "accuracy_full", "accuracy_random_mean"])
    if len(rows):
        rows = rows[rows["selection"] == rows["selection"].iloc[0]]
        losses = [
            100 * (rows[column].astype(float) - rows["accuracy_full"].astype(float)).mean()
            for column in ("accuracy", "accuracy_random_mean")
        ]
        shown.append(
            (
                f"{number(losses[0], 1)} and {number(losses[1], 1)}",
                f"points of accuracy, without {rows['selection'].iloc[0]} heads and without random ones",
            )
        )
    rho = run.table("noise")["spearman"].dropna().astype(float)
    if len(rho):
        shown.append((spread(rho, lambda x: number(x, 2)), "rank correlation with Gaussian noise"))
    return tag("ul", [tag("li", tag("b", figure), tag("span", text)) for figure, text in shown], class_="tiles")


def spread(values: pd.Series[float], written: Callable[[Any], str]) -> str:
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


def with_interval(row: Mapping[str, Any], column: str = "mean", low: str = "ci_low", high: str = "ci_high") -> str:
    """A number followed by its interval, where there is one."""
    span = interval(row.get(low), row.get(high)) if known(row.get(column)) else ""
    return f"{number(row.get(column))} {span}".strip()
