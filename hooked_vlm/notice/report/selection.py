"""The report's section on universal heads: both rules, where they disagree, and the heads that the paper names.

Knows summary.json alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from hooked_vlm.analysis.heads import RULES, head_name
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.maps import ordered
from hooked_vlm.notice.report.page import Child, Markup, details, items, paragraph, table, tag
from hooked_vlm.notice.report.words import (
    because_nothing_kept,
    head_label,
    missing,
    read_at,
    scored,
)
from hooked_vlm.notice.vocabulary import CORRUPT, MODALITY_NAME, listed
from hooked_vlm.notice.wording import number

DISAGREEMENTS: Final = 6  # shown before the rest is folded away


@dataclass(frozen=True)
class PublishedHead:
    """A universal head of the paper (Golovanevsky et al. 2025): where, for which modality, what it is said to do."""

    kind: str
    layer: int
    head: int
    modality: str | None = None
    label: str | None = None


_LLAVA = ((28, 2), (31, 27), (18, 10), (16, 24), (21, 30), (19, 15), (18, 30))

PUBLISHED: Final[dict[str, tuple[PublishedHead, ...]]] = {
    "Salesforce/blip-vqa-base": (
        PublishedHead("cross_attn-heads", 5, 3, "vision-only", "object suppression"),
        PublishedHead("cross_attn-heads", 3, 0, "multimodal", "object detection"),
        PublishedHead("cross_attn-heads", 0, 11, "text-only", "outlier suppression"),
    ),
    "llava-hf/llava-1.5-7b-hf": tuple(PublishedHead("attn-heads", layer, head) for layer, head in _LLAVA),
}


def universal(run: Loaded) -> list[Child]:
    """The universal heads under both rules with their labels, where the rules disagree, and the paper's heads."""
    rows, measured = run.table("universal"), run.table("heads")
    if measured.empty:
        return [missing(f"No head was patched{because_nothing_kept(run)}, so no head could be selected.")]
    told: list[Child] = [
        paragraph(
            "A head is universal if a rule selects it in every task. The paper's rule selects heads whose mean "
            "|effect| lies more than two standard deviations above the mean of all heads; it says nothing of "
            "chance. The FDR-controlled rule asks that the effect is systematic (sign-flip test, false "
            "discovery rate 5\u00a0%), large (at least twice the average head, by its interval), and repeats in random "
            "halves of the examples. With fewer than a dozen examples a task it selects nothing."
        )
    ]
    if len(run.tasks) == 1:
        told.append(
            paragraph(
                "Only one task was run, so \u201cin every task\u201d says no more than \u201cin this task\u201d.",
                class_="note",
            )
        )
    if rows.empty:
        told.append(
            missing(
                "No head is universal in this run, under either rule. The maps above show how strong single "
                "heads are in each task."
            )
        )
    else:
        told.append(_universal_table(run, rows))
    sentences = run.sentences("disagreements")
    if sentences:
        told += [tag("h3", "Where the two rules disagree"), items(sentences[:DISAGREEMENTS])]
        if more := sentences[DISAGREEMENTS:]:
            told.append(details(f"{len(more)} more", items(more)))
    elif len(rows):
        told.append(paragraph("The two rules select the same heads."))
    published = PUBLISHED.get(run.name)
    if published:
        told += [tag("h3", "The paper's heads in this run"), _published(run, measured)]
    return told


def _universal_table(run: Loaded, rows: pd.DataFrame) -> Markup:
    functions = run.table("functions").set_index(["kind", "layer", "head"])
    cells = []
    order = {rule: i for i, rule in enumerate(RULES)}
    rows = rows.assign(first=rows["rule"].map(order)).sort_values(["first", "mean_abs"], ascending=[True, False])
    merged: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows.to_dict("records"):
        merged.setdefault((row["kind"], row["layer"], row["head"], row["modality"]), []).append(row)
    for (kind, layer, head, modality), found in merged.items():
        row, rules = found[0], [str(one["rule"]) for one in found]
        known_function = (
            functions.loc[[(kind, layer, head)]].iloc[0].to_dict() if (kind, layer, head) in functions.index else {}
        )
        cells.append(
            [
                head_label(run, kind, layer, head),
                MODALITY_NAME.get(str(modality), str(modality)),
                listed([RULES.get(rule, rule) for rule in rules]),
                listed([str(task) for task in row["tasks"]]) if isinstance(row["tasks"], list) else str(row["tasks"]),
                number(row["mean_abs"]),
                str(known_function.get("label") or "not scored"),
                scored(known_function),
            ]
        )
    header = [
        "head",
        "corruption",
        "selected by",
        "tasks",
        f"mean |effect| {read_at(run)}",
        "label",
        "score and interval",
    ]
    return table(header, cells, caption="Universal heads, strongest first", numeric=(4,))


def _published(run: Loaded, measured: pd.DataFrame) -> Markup:
    rows, chosen = [], run.table("universal")
    functions = run.table("functions").set_index(["kind", "layer", "head"])
    for head in PUBLISHED[run.name]:
        of_kind = measured[(measured["kind"] == head.kind) & measured["corrupt"].isin(CORRUPT)]
        means = of_kind.groupby(["corrupt", "layer", "head"])["mean_abs"].mean()
        ranks = []
        for corrupt in ordered(of_kind["corrupt"], CORRUPT):
            ranked = means.loc[corrupt].rank(ascending=False, method="min")
            if (head.layer, head.head) in ranked.index:
                ranks.append(f"{corrupt}: {int(ranked.loc[(head.layer, head.head)])} of {len(ranked)}")
        mine = chosen[(chosen["kind"] == head.kind) & (chosen["layer"] == head.layer) & (chosen["head"] == head.head)]
        rules = [RULES.get(rule, rule) for rule in ordered(mine["rule"], tuple(RULES))]
        key = (head.kind, head.layer, head.head)
        rows.append(
            [
                head_name(head.kind, head.layer, head.head),
                MODALITY_NAME[head.modality] if head.modality else "not stated",
                head.label or "not stated",
                "; ".join(ranks) or "not measured",
                listed(rules) or "neither rule",
                str(functions.loc[[key], "label"].iloc[0]) if key in functions.index else "not scored",
            ]
        )
    header = [
        "published head",
        "modality there",
        "function there",
        f"rank by mean |effect| {read_at(run)} here",
        "universal here by",
        "label here",
    ]
    return table(header, rows, caption="Heads named by Golovanevsky et al. (NAACL 2025) for this checkpoint")
