"""The report's sections on what selected heads do: attention in the image, ablation, and noise as the other corruption.

Each is made from one table of a run; without data it is a sentence that says why. Knows summary.json and figures/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from hooked_vlm.analysis.heads import HEAD, module_of
from hooked_vlm.notice.report import charts
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.maps import grid, in_order, legend, ordered
from hooked_vlm.notice.report.page import Child, chart, details, image, paragraph, table, tag
from hooked_vlm.notice.report.words import ablated, corruption_name, head_label, missing, read_at, scored
from hooked_vlm.notice.selections import selection_name
from hooked_vlm.notice.vocabulary import CORRUPT, listed
from hooked_vlm.notice.wording import chance, counted, interval, known, number, percent, two, with_interval

PNG: Final = b"\x89PNG\r\n\x1a\n"
PICTURES: Final = 2_000_000  # bytes of overlays in one report; base64 makes a third more of them
HARM: Final = (
    "Worse than random by: mean logit difference without random heads less that without the selected ones, with "
    "its interval over examples. p: the share of sets of heads, the selected one among them, that hurt as much."
)
GROUPS: Final = ("no head removed", "random heads removed", "selected heads removed")
WITH_MASKS: Final = (
    "Scores of each head's attention on image positions in the clean run. Inside is the share of image attention "
    "in the mask of the object asked about; lift divides it by the mask's share of the image (1 is chance); AUC "
    "and pointing ask whether attention is highest on the mask; outlier is the share on a few high-norm "
    "background patches and the class token. A head is labelled object detection where lift lies above 1, AUC above "
    "0.5 and inside above that of the average head, each by its interval and AUC at FDR 5\u00a0% as well; object "
    "suppression where all lie below; outlier suppression where outlier lies above a half. Effect says whether "
    "patching the head changes the answer at all (FDR 5\u00a0%): a head that does not show an effect gets no label."
)
WITHOUT_MASKS: Final = (
    "The data has no masks of the objects asked about, so detection and suppression of objects cannot be scored. "
    "What remains is the share of image attention on a few high-norm background patches (outlier)."
)
PAPER: Final = 100  # rows, above which a table of all heads stays folded on paper
SHOWN: Final = 8  # heads in the first table of labels, at least
FUNCTION_COLUMNS: Final = {
    "inside": "inside",
    "lift": "lift",
    "auc": "AUC",
    "pointing": "pointing",
    "outlier": "outlier",
}


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
    chosen = set(run.table("universal")[HEAD].itertuples(index=False, name=None))
    rows = rows.assign(
        chosen=[key in chosen for key in rows[HEAD].itertuples(index=False, name=None)],
        named=rows["label"].fillna("none") != "none",
        size=rows["score"].astype(float).abs(),
    )
    first = ["chosen", "named", "size"]
    rows = rows.sort_values([*first, *HEAD], ascending=[False] * len(first) + [True] * len(HEAD))
    columns = [column for column in FUNCTION_COLUMNS if rows[column].map(known).any()]
    cells = [_scored(run, row, columns) for row in rows.to_dict("records")]
    header = [
        "head",
        "universal",
        f"effect {read_at(run)}",
        "label",
        "score and interval",
        "n",
        *map(FUNCTION_COLUMNS.__getitem__, columns),
    ]
    right = range(5, 6 + len(columns))
    shown = max(SHOWN, int(rows["chosen"].sum()))
    part = f": universal and labelled heads first, {shown} of {len(cells)}" if len(cells) > shown else ""
    told.append(table(header, cells[:shown], caption=f"Heads and their labels{part}", numeric=right))
    if part:
        whole = table(header, cells, caption="All heads and their labels", numeric=right)
        told.append(details(f"All {counted(len(cells), 'head')}", whole, on_paper=len(cells) <= PAPER))
    return [*told, *_overlays(run)]


def _scored(run: Loaded, row: dict[str, Any], columns: Sequence[str]) -> list[Child]:
    """A row of the table of labels."""
    effect = "not tested" if row["significant"] is None else "yes" if row["significant"] else "not\u00a0shown"
    return [
        head_label(run, row["kind"], row["layer"], row["head"]),
        "yes" if row["chosen"] else "no",
        effect,
        str(row["label"] or "none"),
        scored(row),
        number(row["n"]),
        *(two(row[column]) for column in columns),
    ]


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
        told += [
            paragraph(
                "Attention of single heads on the image, less that of the average head: red is more, blue is less. A "
                "dotted line, where there is one, is the mask of the object asked about."
            ),
            grid(shown),
        ]
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
    for selection in ablated(run):
        part = rows[rows["selection"] == selection]
        tasks = in_order(run, part)
        part = part.set_index("task").loc[tasks]
        sizes = listed(sorted({counted(int(n), "head") for n in part["n_heads"].dropna()}))
        for column, axis in (("accuracy", "accuracy"), ("logit_diff", "logit difference")):
            if not part[column].map(known).any():
                continue
            heights = [part[f"{column}_full"], part[f"{column}_random_mean"], part[column]]
            groups = {name: _known(height) for name, height in zip(GROUPS, heights, strict=True)}
            ends = (_known(part[f"{column}_random_{end}"]) for end in ("low", "high"))
            spans = list(zip(*ends, strict=True))
            figure = charts.bars(tasks, groups, {GROUPS[1]: spans}, axis)
            plots.append(chart(figure, f"{selection_name(selection)}, {sizes}: {axis}", height=260))
    header = [
        "removed", "task", "heads", "accuracy, all heads", "without them",
        "without random ones (range over sets)", "logit difference, all heads", "without them",
        "without random ones (range over sets)", "worse than random by", "p",
    ]  # fmt: skip
    order = ablated(run)
    records = sorted(
        rows.to_dict("records"), key=lambda row: (order.index(row["selection"]), run.tasks.index(row["task"]))
    )
    numbers = table(header, [_removed(row) for row in records], caption="Mean ablation", numeric=range(2, 11))
    told += [grid(plots, wide=True), details("The same as numbers", numbers)]
    return [*told, paragraph(HARM, class_="note")] if rows["p"].map(known).any() else told


def _known(values: Iterable[Any]) -> list[float | None]:
    return [float(value) if known(value) else None for value in values]


def _removed(row: dict[str, Any]) -> list[Child]:
    """A row of the table of ablations."""

    def drawn(measure: str, written: Callable[[Any], str]) -> str:
        span = interval(row[f"{measure}_random_low"], row[f"{measure}_random_high"], written)
        return f"{written(row[f'{measure}_random_mean'])} {span}".strip()

    return [
        selection_name(row["selection"]), str(row["task"]), number(row["n_heads"]),
        with_interval(row, "accuracy_full", percent), with_interval(row, "accuracy", percent),
        drawn("accuracy", percent),
        number(row["logit_diff_full"]), number(row["logit_diff"]), drawn("logit_diff", number),
        with_interval(row, "harm"), chance(row["p"]),
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
            module_of(row["kind"]),
            two(row["spearman"]),
            interval(row["ci_low"], row["ci_high"], two),
            number(row["n_heads"]),
            number(row["n"]),
            f"{percent(row['top_overlap'])} of {number(row['top_k'])}",
            percent(row["top_chance"]),
        ]
        for row in rows.to_dict("records")
    ]
    header = [
        "task",
        "corruption",
        "attention",
        "Spearman",
        "interval",
        "heads",
        "examples",
        "strongest shared",
        "by chance",
    ]
    told: list[Child] = [
        paragraph(
            "Older work corrupts a run with Gaussian noise on the embeddings. If both corruptions found the same "
            "heads, their ranks would agree (Spearman near 1)."
        ),
        table(
            header,
            cells,
            caption=f"Rank correlation of head effects {read_at(run)}, semantic pair against Gaussian noise",
            numeric=(3, 5, 6, 7, 8),
        ),
    ]
    measured, plots = run.table("heads"), []
    key = ["task", "kind", "layer", "head"]
    for modality in ordered(rows["modality"], CORRUPT):
        pairs = measured[measured["corrupt"] == modality].merge(
            measured[measured["corrupt"] == f"{modality}_noise"], on=key, suffixes=("", "_noise")
        )
        for (kind, task), part in pairs.groupby(["kind", "task"], sort=False):
            title = f"{task}, {module_of(kind)}: {corruption_name(modality)}, {read_at(run)}"
            plots.append(chart(charts.scatter(part, "mean", "mean_noise", read_at(run)), title, height=290))
    if plots:
        told.append(details(f"Head by head: {counted(len(plots), 'scatter plot')}", grid(plots), open=len(plots) <= 6))
    return told
