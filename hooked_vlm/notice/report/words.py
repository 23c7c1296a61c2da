"""The report's sentences: what was patched and corrupted in words, the answer on the first screen and its figures.

Every sentence is made from summary.json and says how sure it is; where something was not measured, it says that.
Knows no chart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pandas as pd

from hooked_vlm.analysis.heads import HEAD, RULES, head_at, head_name, module_of, of_heads
from hooked_vlm.notice import claims, places, selections
from hooked_vlm.notice.claims import Verdict, fewest
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.page import Markup, paragraph, tag
from hooked_vlm.notice.selections import selection_name
from hooked_vlm.notice.vocabulary import CORRUPT, FEW, at_place, listed
from hooked_vlm.notice.wording import UNIT, counted, interval, known, number, percent, two

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

SHADE: Final = {True: "yes", False: "no", None: "open"}  # of a verdict, in the style sheet


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
    found = {verdict.about: verdict.told for verdict in claims.headlines(run.verdicts)}
    sentences = [found.get("universal"), *strongest(run), found.get("harm"), *_labelled(run), found.get("noise")]
    text = " ".join(sentence for sentence in sentences if sentence)
    return tag("div", paragraph(text), paragraph(_basis(run), class_="note"), class_="answer")


def strongest(run: Loaded) -> list[str]:
    """The strongest heads under the first corruption that was run: where they were read, and elsewhere."""
    records = run.summary.get("strongest") or []
    told = (places.told(records, corrupt) for corrupt in CORRUPT)
    return next((sentences for sentences in told if sentences), [])


def _nothing_kept(run: Loaded) -> str:
    if not run.seen:
        return "No example was seen, so there is nothing to say about this model yet."
    return (
        f"Nothing could be patched: none of the {counted(run.seen, 'example')} could be kept, and patching asks where "
        "a right answer comes from. The reasons are counted below."
    )


def _labelled(run: Loaded) -> list[str]:
    rows, chosen = run.table("functions"), run.table("universal")[HEAD].drop_duplicates()
    if rows.empty:
        return []
    whose = "Of the universal heads" if len(chosen) else "Of all heads"
    rows = chosen.merge(rows, on=HEAD) if len(chosen) else rows
    named = rows[rows["label"].fillna("none") != "none"]
    if named.empty:
        return [f"{whose}, none has an attention on the image that one of the paper's labels fits."]
    counts = [f"{len(part)} as {label} ({_names(part)})" for label, part in named.groupby("label", sort=True)]
    return [f"{whose}, attention on the image marks {listed(counts)}."]


def _names(rows: pd.DataFrame, most: int = 4) -> str:
    names = [head_name(row["kind"], row["layer"], row["head"]) for row in rows.head(most).to_dict("records")]
    return listed([*names, f"{len(rows) - most} more"] if len(rows) > most else names)


def _basis(run: Loaded) -> str:
    counts = run.table("counts")
    least = min(fewest(row) for row in counts.fillna({"kept": 0}).to_dict("records"))
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
        fdr, paper = (len(universal_heads(run, rule)) for rule in RULES)
        shown.append((f"{fdr} and {paper}", "universal heads, by the FDR-controlled rule and by the paper's"))
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


def verdict(found: Verdict) -> Markup:
    """Whether a claim holds, in words and in a colour."""
    return tag("span", found.word, class_=f"verdict {SHADE[found.holds]}")


def read_at(run: Loaded) -> str:
    """Where a run's heads were read, in words: "at the answer's word"; "" where none was patched."""
    roles = dict.fromkeys(place for kind, place in (run.summary.get("select_at") or {}).items() if of_heads(kind))
    return listed(at_place(role) for role in roles)


def because_nothing_kept(run: Loaded) -> str:
    """Why there may be no effects at all."""
    return "" if run.kept else " (no example was kept)"


def missing(text: str) -> Markup:
    """A part that is not there, and why."""
    return paragraph(text, class_="missing")


def scored(function: Mapping[str, Any]) -> str:
    """What a head's label rests on, with its interval.

    >>> scored({"scored": "lift", "score": 3.1, "ci_low": 2.4, "ci_high": 3.9})
    'lift 3.10 [2.40,\N{NO-BREAK SPACE}3.90]'
    """
    if not known(function.get("score")):
        return ""
    span = interval(function.get("ci_low"), function.get("ci_high"), two)
    return f"{function.get('scored') or ''} {two(function['score'])} {span}".strip()
