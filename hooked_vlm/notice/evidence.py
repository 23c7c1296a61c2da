"""The report's sections on what selected heads do: attention in the image, ablation, and noise as the other corruption.

Each is made from one table of a run; without data it is a sentence that says why. Knows summary.json and figures/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hooked_vlm.notice import charts
from hooked_vlm.notice.loaded import Loaded
from hooked_vlm.notice.maps import grid, in_order, legend, ordered
from hooked_vlm.notice.page import (
    Child,
    chance,
    chart,
    counted,
    details,
    image,
    interval,
    known,
    listed,
    number,
    paragraph,
    percent,
    table,
    tag,
)
from hooked_vlm.notice.words import corruption_name, head_label, missing, short_kind

PNG: Final = b"\x89PNG\r\n\x1a\n"
PICTURES: Final = 2_000_000  # bytes of overlays in one report; base64 makes a third more of them
GROUPS: Final = ("no head removed", "random heads removed", "selected heads removed")
WITH_MASKS: Final = (
    "Scores of each head's attention on image positions in the clean run. Inside is the share of image attention "
    "in the mask of the object asked about; lift divides it by the mask's share of the image (1 is chance); AUC "
    "and pointing ask whether attention is highest on the mask; outlier is the share on a few high-norm "
    "background patches."
)
WITHOUT_MASKS: Final = (
    "The data has no masks of the objects asked about, so object detection and suppression cannot be scored. "
    "What remains is the share of image attention on a few high-norm background patches (outlier)."
)
FUNCTION_COLUMNS: Final = (
    ("inside", "inside mask"),
    ("lift", "lift"),
    ("auc", "AUC"),
    ("pointing", "pointing"),
    ("outlier", "outlier share"),
)


def functions(run: Loaded) -> list[Child]:
    """Scores of what heads do to the image, those of universal heads first, and overlays."""
    rows = run.table("functions")
    told: list[Child] = []
    if rows.empty:
        why = "No attention was scored" + ("" if run.kept else " (no example was kept)")
        told.append(missing(f"{why}, so nothing can be said about what the heads do in the image."))
        return [*told, *_overlays(run)]
    masks = any(known(value) for value in rows["inside"])
    told.append(paragraph(WITH_MASKS if masks else WITHOUT_MASKS))
    chosen = run.table("universal")[["kind", "layer", "head"]].drop_duplicates().assign(chosen=True)
    rows = rows.merge(chosen, on=["kind", "layer", "head"], how="left") if len(chosen) else rows.assign(chosen=None)
    rows = rows.assign(
        chosen=rows["chosen"].notna(),
        named=rows["label"].fillna("none") != "none",
        size=rows["score"].astype(float).abs(),
    )
    rows = rows.sort_values(
        ["chosen", "named", "size", "kind", "layer", "head"], ascending=[False, False, False, True, True, True]
    )
    columns = [(column, name) for column, name in FUNCTION_COLUMNS if rows[column].map(known).any()]
    cells = [
        [
            head_label(run, row),
            "yes" if row["chosen"] else "no",
            str(row["label"] or "none"),
            number(row["score"]),
            interval(row["ci_low"], row["ci_high"]),
            number(row["n"]),
            *(number(row[column]) for column, _ in columns),
        ]
        for row in rows.to_dict("records")
    ]
    header = ["head", "universal", "label", "score", "interval", "examples", *(name for _, name in columns)]
    right = (3, 5, *range(6, 6 + len(columns)))
    shown = max(8, int(rows["chosen"].sum()))
    first = cells[:shown]
    title = "Heads and their labels" + (
        f": universal heads first, {len(first)} of {len(cells)}" if len(cells) > len(first) else ""
    )
    told.append(table(header, first, caption=title, numeric=right))
    if len(cells) > len(first):
        told.append(
            details(
                f"All {counted(len(cells), 'head')}",
                table(header, cells, caption="All heads and their labels", numeric=right),
            )
        )
    return [*told, *_overlays(run)]


def _overlays(run: Loaded) -> list[Child]:
    shown, room, left, lost = [], PICTURES, 0, []
    for row in run.table("figures").to_dict("records"):
        name, caption = str(row["file"]), str(row["caption"] or row["file"])
        picture = _picture(run.directory, name)
        if picture is None:
            lost.append(name)
        elif len(picture) > room:
            left += 1
        else:
            room -= len(picture)
            shown.append(image(picture, caption))
    told: list[Child] = [tag("h3", "Attention on images")]
    if shown:
        told += [paragraph("Attention of single heads, laid over the image they look at."), grid(shown)]
    if left:
        told.append(
            paragraph(
                f"{counted(left, 'more picture')} would make this file too large: see the run's figures folder.",
                class_="note",
            )
        )
    if lost:
        told.append(missing(f"Not found, or no PNG: {listed(lost)}."))
    return told if len(told) > 1 else [*told, missing("No overlay was drawn in this run.")]


def _picture(directory: Path, name: str) -> bytes | None:
    """The bytes of a PNG among the run's figures; None for what is missing, elsewhere or no PNG."""
    folder = (directory / "figures").resolve()
    for path in (directory / name, folder / name):
        resolved = path.resolve()
        if resolved.is_relative_to(folder) and resolved.is_file():
            content = resolved.read_bytes()
            return content if content.startswith(PNG) else None
    return None


def ablation(run: Loaded) -> list[Child]:
    """Accuracy and logit difference without the selected heads, against random heads of the same layers."""
    rows = run.table("ablation")
    rows = rows[rows["accuracy"].map(known)]
    if rows.empty:
        why = "no head was selected" if run.table("universal").empty else "no ablation was recorded"
        return [missing(f"Nothing was ablated: {why}.")]
    told: list[Child] = [
        paragraph(
            "The selected heads are replaced by their mean output. They are compared with as many random heads "
            "of the same layers, drawn many times; the black line on a bar spans those draws. If the selected "
            "heads matter, accuracy falls further without them than without random ones."
        ),
        legend(GROUPS, charts.BARS),
    ]
    plots = []
    for selection, part in rows.groupby("selection", sort=False):
        tasks = in_order(run, part)
        part = part.set_index("task").loc[tasks]
        sizes = listed(sorted({counted(int(n), "head") for n in part["n_heads"].dropna()}))
        for column, axis in (("accuracy", "accuracy"), ("logit_diff", "logit difference")):
            if not part[column].map(known).any():
                continue
            heights = [part[f"{column}_full"], part[f"{column}_random_mean"], part[column]]
            groups = {name: list(height) for name, height in zip(GROUPS, heights, strict=True)}
            spans = list(zip(part[f"{column}_random_low"], part[f"{column}_random_high"], strict=True))
            figure = charts.bars(tasks, groups, {GROUPS[1]: spans}, axis)
            plots.append(chart(figure, f"{selection} ({sizes}): {axis}", height=260))
    header = [
        "selection", "task", "heads", "accuracy, all heads", "selected out", "random out",
        "logit difference, all heads", "selected out", "random out", "p",
    ]  # fmt: skip
    cells = [_removed(row) for row in rows.to_dict("records")]
    numbers = table(header, cells, caption="Mean ablation", numeric=range(2, 10))
    return [*told, grid(plots, wide=True), details("The same as numbers", numbers)]


def _removed(row: dict[str, Any]) -> list[Child]:
    """A row of the table of ablations."""

    def drawn(measure: str, written: Callable[[Any], str]) -> str:
        span = interval(row[f"{measure}_random_low"], row[f"{measure}_random_high"], written)
        return f"{written(row[f'{measure}_random_mean'])} {span}".strip()

    return [
        str(row["selection"]), str(row["task"]), number(row["n_heads"]),
        percent(row["accuracy_full"]), percent(row["accuracy"]), drawn("accuracy", percent),
        number(row["logit_diff_full"]), number(row["logit_diff"]), drawn("logit_diff", number), chance(row["p"]),
    ]  # fmt: skip


def noise(run: Loaded) -> list[Child]:
    """Head maps under semantic pairs against those under Gaussian noise: rank correlations and scatters."""
    rows = run.table("noise")
    if rows.empty:
        why = (
            "The run was not asked for Gaussian noise (option noise)"
            if not run.config.get("noise")
            else "Gaussian noise left no effects to compare"
        )
        return [missing(f"{why}, so semantic pairs cannot be compared with it here.")]
    cells = [
        [
            str(row["task"]),
            corruption_name(row["modality"]),
            short_kind(row["kind"]),
            number(row["spearman"], 2),
            interval(row["ci_low"], row["ci_high"], lambda x: number(x, 2)),
            number(row["n_heads"]),
            percent(row["top_overlap"]),
        ]
        for row in rows.to_dict("records")
    ]
    header = ["task", "corruption", "attention", "Spearman", "interval", "heads", "strongest heads shared"]
    told: list[Child] = [
        paragraph(
            "Older work corrupts a run with Gaussian noise on the embeddings. If both corruptions found the same "
            "heads, their ranks would agree (Spearman near 1)."
        ),
        table(
            header,
            cells,
            caption="Rank correlation of head effects, semantic pair against Gaussian noise",
            numeric=(3, 5, 6),
        ),
    ]
    measured, plots = run.table("heads"), []
    key = ["task", "kind", "layer", "head"]
    for modality in ordered(rows["modality"], ("image", "text")):
        pairs = measured[measured["corrupt"] == modality].merge(
            measured[measured["corrupt"] == f"{modality}_noise"], on=key, suffixes=("", "_noise")
        )
        for (kind, task), part in pairs.groupby(["kind", "task"], sort=False):
            title = f"{task}, {short_kind(kind)}: {corruption_name(modality)}"
            plots.append(chart(charts.scatter(part, "mean", "mean_noise"), title, height=290))
    if plots:
        told.append(details(f"Head by head: {counted(len(plots), 'scatter plot')}", grid(plots), open=len(plots) <= 6))
    return told
