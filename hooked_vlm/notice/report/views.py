"""What the page of a run shows, section by section, as plain dictionaries from summary.json.

Each section is made from one table of a run; a table without rows, or a section that is None, is a sentence in the
template that says why. Knows no markup, and of files the run's figures alone.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast

import pandas as pd

from hooked_vlm.analysis.heads import HEAD, RULES, head_name, module_of
from hooked_vlm.notice.report import charts, text
from hooked_vlm.notice.report.blocks import View, chart, ordered, row, table
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.maps import heads, modules, words
from hooked_vlm.notice.report.published import PUBLISHED
from hooked_vlm.notice.report.text import head_label, read_at
from hooked_vlm.notice.report.text.cautions import accepted
from hooked_vlm.notice.report.text.words import (
    NEITHER,
    chance,
    corruption_name,
    counted,
    estimate,
    interval,
    kept,
    kind_name,
    listed,
    modality_name,
    number,
    percent,
    reasons,
    rules_named,
    scored,
    selection_name,
    two,
    with_interval,
)
from hooked_vlm.notice.schema import Ablation, Selection, known
from hooked_vlm.notice.vocabulary import CORRUPT

PNG: Final = b"\x89PNG\r\n\x1a\n"
PICTURES: Final = 2_000_000  # bytes of overlays in one report; base64 makes a third more of them
SHOWN: Final = 8  # heads in the first table of labels, at least
GROUPS: Final = ("no head removed", "random heads removed", "selected heads removed")
SCORES: Final = {
    "inside": "inside",
    "lift": "lift",
    "rival_lift": "rival's lift",
    "auc": "AUC",
    "pointing": "pointing",
    "outlier": "outlier",
    "cost_asked": "cost",
    "cost_rival": "rival's cost",
}


def report(run: Loaded) -> View:
    """All that the page of a run shows."""
    started = str(run.run.get("started") or "")[:10]
    about = (run.name, str(run.model.get("class") or ""), listed(run.tasks), started)
    return {
        "title": f"Which heads of {run.short} carry the answer?",
        "subtitle": ", ".join(part for part in about if part),
        "kept": run.kept,
        "because": text.because_nothing_kept(run),
        "at": read_at(run),
        "marks": charts.LEGEND,
        "answer": " ".join(text.headlines(run)),
        "basis": text.basis(run),
        "tiles": text.tiles(run),
        "findings": text.verdicts_of(run),
        "run": what_was_run(run),
        "behaviour": behaviour(run),
        "heads": heads(run),
        "words": words(run),
        "modules": modules(run),
        "universal": universal(run),
        "functions": functions(run),
        "pictures": pictures(run),
        "ablation": ablation(run),
        "noise": noise(run),
        "cautions": text.cautions_of(run),
    }


# --- what was run, and what it changed --------------------------------------------------------------


def what_was_run(run: Loaded) -> View:
    """Model, tasks, corruption, examples seen and kept, settings, versions, and the command that repeats it."""
    model, config = run.model, run.config
    size = f"{model.get('layers')} layers of {model.get('heads')} heads, d_model {model.get('d_model')}"
    given = ("model", "tasks", "corrupt", "kinds")
    versions = [("started", str(run.run["started"]))] if run.run.get("started") else []
    versions += [(str(name), str(version)) for name, version in (run.run.get("packages") or {}).items()]
    counts = [
        [str(one["task"]), number(one["seen"]), kept(one), with_interval(one, "accuracy", percent),
         reasons(one["reasons"]) or "none went"]
        for one in run.records("counts")
    ]  # fmt: skip
    noted = [
        [str(one["task"]), str(one["reason"]), number(one["n"]), "; ".join(map(str, one["names"] or []))]
        for one in run.records("noted")
    ]
    return {
        "facts": [
            ("Model", f"{run.name} ({model.get('class') or 'class unknown'})"),
            ("Patched stack", f"{model.get('stack') or 'unknown'}: {size}"),
            ("Tasks", listed(run.tasks)),
            ("Corruption", listed([corruption_name(each) for each in config.get("corrupt") or []]) or "none"),
            ("Patched", listed([kind_name(kind) for kind in config.get("kinds") or []]) or "the default kinds"),
        ],
        "counts": table(
            ["task", "seen", "kept", "accuracy", "why others went"], counts, "Examples of each task", (1, 2, 3)
        ),
        "noted": table(["task", "what", "times", "the first"], noted, "Noted while the data was read", (2,)),
        "command": text.command(config),
        "settings": [(text.setting_name(key), text.setting(config[key])) for key in config if key not in given],
        "versions": [*versions, *((f"from {when} on", listed(changes)) for when, changes in accepted(run.run))],
    }


def behaviour(run: Loaded) -> View:
    """Clean and corrupt logit differences, and how many answers flip."""
    rows = [
        [str(one["task"]), corruption_name(one["corrupt"]), number(one["n"]),
         with_interval(one, "clean_logit_diff", two), with_interval(one, "corrupt_logit_diff", two),
         with_interval(one, "flipped", percent)]
        for one in run.records("behaviour")
    ]  # fmt: skip
    header = ["task", "corruption", "examples", "clean", "corrupt", "answers that flip"]
    return table(header, rows, "Mean logit difference, clean and corrupt", (2, 3, 4, 5))


# --- universal heads --------------------------------------------------------------------------------


def universal(run: Loaded) -> View | None:
    """The universal heads under both rules with their labels, where the rules disagree, and the paper's heads."""
    if run.table("heads").empty:
        return None
    return {
        "one_task": len(run.tasks) == 1,
        "heads": _universal_heads(run),
        "disagreements": text.disagreements(run),
        "published": _published(run),
    }


def _labels(run: Loaded) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The records of what heads do, by head."""
    return {tuple(one[name] for name in HEAD): one for one in reversed(run.records("functions"))}


def _universal_heads(run: Loaded) -> View:
    labels, rows = _labels(run), run.table("universal")
    merged: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    rows = rows.assign(first=rows["rule"].map({rule: i for i, rule in enumerate(RULES)}))
    for one in rows.sort_values(["first", "mean_abs"], ascending=[True, False]).to_dict("records"):
        merged.setdefault((one["kind"], one["layer"], one["head"], one["modality"]), []).append(one)
    cells = []
    for (*head, modality), found in merged.items():
        function, tasks = labels.get(tuple(head), {}), found[0]["tasks"]
        cells.append(
            [
                head_label(run, *head),
                modality_name(modality),
                listed(rules_named(one["rule"] for one in found)),
                listed([str(task) for task in tasks]) if isinstance(tasks, list) else str(tasks),
                number(found[0]["mean_abs"]),
                str(function.get("label") or "not scored"),
                scored(function),
            ]
        )
    header = ["head", "corruption", "selected by", "tasks", f"mean |effect| {read_at(run)}", "label",
              "score and interval"]  # fmt: skip
    return table(header, cells, "Universal heads, strongest first", (4,))


def _published(run: Loaded) -> View:
    rows, chosen, measured, labels = [], run.table("universal"), run.table("heads"), _labels(run)
    for head in PUBLISHED.get(run.name, ()):
        of_kind = measured[(measured["kind"] == head.kind) & measured["corrupt"].isin(CORRUPT)]
        means = of_kind.groupby(["corrupt", "layer", "head"])["mean_abs"].mean()
        ranks = []
        for corrupt in ordered(of_kind["corrupt"], CORRUPT):
            ranked = means.loc[corrupt].rank(ascending=False, method="min")
            if (head.layer, head.head) in ranked.index:
                ranks.append(f"{corrupt}: {int(ranked.loc[(head.layer, head.head)])} of {len(ranked)}")
        key = (head.kind, head.layer, head.head)
        rules = ordered(chosen.loc[(chosen[HEAD] == list(key)).all(axis=1), "rule"], tuple(RULES))
        rows.append(
            [
                head_name(*key),
                modality_name(head.modality or "not stated"),
                head.label or "not stated",
                "; ".join(ranks) or "not measured",
                listed(rules_named(rules)) or NEITHER,
                str(labels[key]["label"]) if key in labels else "not scored",
            ]
        )
    header = ["published head", "modality there", "function there", f"rank by mean |effect| {read_at(run)} here",
              "universal here by", "label here"]  # fmt: skip
    return table(header, rows, "Heads named by Golovanevsky et al. (NAACL 2025) for this checkpoint")


# --- what heads do, and what happens without them ---------------------------------------------------


def functions(run: Loaded) -> View:
    """Scores of what heads do to the image: a table of all heads, and its first rows."""
    rows = run.table("functions")
    chosen = set(run.table("universal")[HEAD].itertuples(index=False, name=None))
    rows = rows.assign(
        chosen=[key in chosen for key in rows[HEAD].itertuples(index=False, name=None)],
        named=~rows["label"].fillna("none").isin(["none", "undecided"]),
        size=rows["score"].astype(float).abs(),
    )
    first = ["chosen", "named", "size"]
    rows = rows.sort_values([*first, *HEAD], ascending=[False] * len(first) + [True] * len(HEAD))
    columns = [column for column in SCORES if rows[column].map(known).any()]
    cells = [
        [head_label(run, one["kind"], one["layer"], one["head"]), "yes" if one["chosen"] else "no",
         "not tested" if one["significant"] is None else "yes" if one["significant"] else "not\u00a0shown",
         str(one["label"] or "none"), scored(one), number(one["n"]), *(two(one[column]) for column in columns)]
        for one in rows.to_dict("records")
    ]  # fmt: skip
    header = ["head", "universal", f"effect {read_at(run)}", "label", "score and interval", "n",
              *map(SCORES.__getitem__, columns)]  # fmt: skip
    right = range(5, 6 + len(columns))
    shown = max(SHOWN, int(rows["chosen"].sum()))
    part = f": universal and labelled heads first, {shown} of {len(cells)}" if len(cells) > shown else ""
    return table(header, cells, "All heads and their labels", right) | {
        "first": table(header, cells[:shown], f"Heads and their labels{part}", right),
        "masks": "inside" in columns,
        "how_many": f"All {counted(len(cells), 'head')}",
    }


def pictures(run: Loaded) -> View:
    """Overlays as data with their captions, as many as a page can hold, and which are not to be had."""
    shown, room, left, lost = [], PICTURES, 0, []
    for one in run.records("figures"):
        name, caption = str(one["file"]), str(one["caption"] or one["file"])
        picture = _picture(run.directory, name)
        if picture is None:
            lost.append(name)
        elif len(picture) > room:
            left += 1
        else:
            room -= len(picture)
            shown.append(("data:image/png;base64," + base64.b64encode(picture).decode("ascii"), caption))
    return {"shown": shown, "left": counted(left, "more picture") if left else "", "lost": listed(lost)}


def _picture(directory: Path, name: str) -> bytes | None:
    """The bytes of a PNG among the run's figures; None for what is missing, elsewhere or no PNG."""
    folder = (directory / "figures").resolve()
    for path in (directory / name, folder / name):
        resolved = path.resolve()
        if resolved.is_relative_to(folder) and resolved.is_file():
            content = resolved.read_bytes()
            return content if content.startswith(PNG) else None
    return None


def ablation(run: Loaded) -> View:
    """Accuracy and logit difference without the selected heads, against random heads of the same layers."""
    rows = run.measured("ablation", "accuracy")
    order = sorted(set(rows["selection"]), key=lambda each: each.order)
    records = rows.to_dict("records")
    records.sort(key=lambda one: (order.index(one["selection"]), run.tasks.index(one["task"])))
    header = [
        "removed", "task", "heads", "accuracy, all heads", "without them",
        "without random ones (range over sets)", "logit difference, all heads", "without them",
        "without random ones (range over sets)", "worse than random by", "p",
    ]  # fmt: skip
    bars = [one for each in order for one in _bars(run, each, rows[[one == each for one in rows["selection"]]])]
    return {
        "selected": not run.table("universal").empty,
        "bars": row(bars, legend=zip(GROUPS, charts.BARS, strict=True), wide=True),
        "numbers": table(header, map(_removed, records), "Mean ablation", range(2, 11)),
        "tested": rows["p"].map(known).any(),
    }


def _bars(run: Loaded, selection: Selection, rows: pd.DataFrame) -> Iterable[View]:
    """Charts of one set of heads."""
    tasks = run.tasks_of(rows)
    rows = rows.set_index("task").loc[tasks]
    sizes = listed(sorted({counted(int(n), "head") for n in rows["n_heads"].dropna()}))
    for column, axis in (("accuracy", "accuracy"), ("logit_diff", "logit difference")):
        if not rows[column].map(known).any():
            continue
        drawn = (f"{column}_full", f"{column}_random_mean", column)
        groups = {name: _known(rows[each]) for name, each in zip(GROUPS, drawn, strict=True)}
        ends = (_known(rows[f"{column}_random_{end}"]) for end in ("low", "high"))
        figure = charts.bars(tasks, groups, {GROUPS[1]: list(zip(*ends, strict=True))}, axis)
        yield chart(figure, f"{selection_name(selection)}, {sizes}: {axis}", 260)


def _known(values: Iterable[Any]) -> list[float | None]:
    return [float(value) if known(value) else None for value in values]


def _removed(one: Ablation) -> list[str]:
    """A row of the table of ablations."""

    def drawn(measure: str, written: Callable[[Any], str]) -> str:
        mean, low, high = (cast(Any, one)[f"{measure}_random_{name}"] for name in ("mean", "low", "high"))
        return estimate(mean, low, high, written)

    return [
        selection_name(one["selection"]), str(one["task"]), number(one["n_heads"]),
        with_interval(one, "accuracy_full", percent), with_interval(one, "accuracy", percent),
        drawn("accuracy", percent),
        number(one["logit_diff_full"]), number(one["logit_diff"]), drawn("logit_diff", number),
        with_interval(one, "harm"), chance(one["p"]),
    ]  # fmt: skip


def noise(run: Loaded) -> View:
    """Head maps under semantic pairs against those under Gaussian noise: rank correlations and scatters."""
    rows, measured, scatters = run.table("noise"), run.table("heads"), []
    cells = [
        [str(one["task"]), corruption_name(one["modality"]), module_of(one["kind"]), two(one["spearman"]),
         interval(one["ci_low"], one["ci_high"], two), number(one["n_heads"]), number(one["n"]),
         f"{percent(one['top_overlap'])} of {number(one['top_k'])}", percent(one["top_chance"])]
        for one in rows.to_dict("records")
    ]  # fmt: skip
    for modality in ordered(rows["modality"], CORRUPT):
        pairs = measured[measured["corrupt"] == modality].merge(
            measured[measured["corrupt"] == f"{modality}_noise"], on=["task", *HEAD], suffixes=("", "_noise")
        )
        for (kind, task), part in pairs.groupby(["kind", "task"], sort=False):
            title = f"{task}, {module_of(kind)}: {corruption_name(modality)}, {read_at(run)}"
            scatters.append(chart(charts.scatter(part, "mean", "mean_noise", read_at(run)), title, 290))
    header = ["task", "corruption", "attention", "Spearman", "interval", "heads", "examples", "strongest shared",
              "by chance"]  # fmt: skip
    caption = f"Rank correlation of head effects {read_at(run)}, semantic pair against Gaussian noise"
    return {
        "asked": bool(run.config.get("noise")),
        "table": table(header, cells, caption, (3, 5, 6, 7, 8)),
        "scatters": scatters,
        "how_many": f"Head by head: {counted(len(scatters), 'scatter plot')}",
    }
