"""The report's maps: layers by heads, layers by token roles, whole modules by layer.

Each section is made from one table of a run; without data it is a sentence that says why. Knows summary.json alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hooked_vlm.analysis.heads import HEAD_KINDS, head_at, head_name
from hooked_vlm.notice import places
from hooked_vlm.notice.report import charts
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.page import Child, Markup, chart, details, paragraph, table, tag
from hooked_vlm.notice.report.style import SHADES
from hooked_vlm.notice.report.words import (
    because_nothing_kept,
    corruption_name,
    kind_name,
    kind_title,
    missing,
    read_at,
)
from hooked_vlm.notice.vocabulary import CORRUPT, CORRUPTIONS, EVERY, KINDS, MODULE_KINDS, NOISES, at_place
from hooked_vlm.notice.wording import known, number, two

ELSEWHERE = 3  # heads that do much more elsewhere, named under a map
CROWDED = 16  # heads a layer, above which a map needs more room


def scale(bound: float, what: str = "mean effect") -> Markup:
    """The colour scale that a row of maps shares."""
    return tag(
        "div",
        tag("span", number(-bound, 2)),
        tag("i", aria_hidden="true"),
        tag("span", f"{number(bound, 2)} {what}"),
        class_="scale",
    )


def grid(figures: list[Markup], wide: bool = False) -> Markup:
    """Charts beside one another, as many as there is room for."""
    return tag("div", figures, class_="grid wide" if wide else "grid")


def in_order(run: Loaded, rows: pd.DataFrame) -> list[str]:
    """The tasks of some rows in the run's order."""
    return [task for task in run.tasks if task in set(rows["task"])]


def ordered(values: pd.Series, order: tuple[str, ...]) -> list[str]:
    """The distinct values, those of `order` first."""
    return sorted(set(values), key=lambda value: (order.index(value) if value in order else len(order), str(value)))


def legend(names: Sequence[str], shades: Sequence[str]) -> Markup:
    """The legend that a row of charts shares."""
    return tag(
        "ul",
        [
            tag("li", tag("i", style=f"background:{shade}", aria_hidden="true"), name)
            for name, shade in zip(names, shades, strict=False)
        ],
        class_="legend",
    )


def titled(*parts: str) -> Markup:
    """A heading of a row of charts."""
    text = ", ".join(parts)
    return tag("h3", text[0].upper() + text[1:])


def heads(run: Loaded) -> list[Child]:
    """Layer x head maps: a row of maps a kind and corruption, a map a task, one colour scale a row."""
    rows = run.table("heads")
    rows = rows[rows["mean"].map(known)]
    if rows.empty:
        return [missing(f"No head was patched in this run{because_nothing_kept(run)}, so there is no map of heads.")]
    told: list[Child] = [
        paragraph(
            f"Each cell is one head. The run is corrupted, the head's clean output is put back {read_at(run)}, and "
            "the cell shows how far the logit difference between the right and the wrong answer moves back. Red "
            "restores the right answer, blue pushes away from it. Hover or tap for interval, p, q and the number "
            "of examples."
        ),
        paragraph(
            f"{charts.MARKS[charts.BOTH]} selected by both rules, {charts.MARKS[charts.FDR]} by the FDR-controlled "
            f"rule alone, {charts.MARKS[charts.PAPER]} by the paper's rule alone, in this task and corruption. "
            f"{charts.ELSEWHERE} does much more elsewhere: the line under the map says where."
        ),
    ]
    shape = run.shape(rows)
    noisy: list[Child] = []
    for kind in ordered(rows["kind"], HEAD_KINDS):
        for corrupt in ordered(rows.loc[rows["kind"] == kind, "corrupt"], CORRUPTIONS):
            part = rows[(rows["kind"] == kind) & (rows["corrupt"] == corrupt)]
            bound = charts.limit(part["mean"].astype(float))
            maps = []
            for task in in_order(run, part):
                maps.append(head_map(part[part["task"] == task], task, shape, bound))
            block = [
                titled(kind_title(kind), corruption_name(corrupt)),
                scale(bound, f"mean effect {read_at(run)}"),
                grid(maps, wide=shape[1] > CROWDED),
            ]
            (noisy if corrupt in NOISES else told).extend(block)
    told += strongest_heads([("", run)])
    if noisy:
        told.append(details("The same maps under Gaussian noise", noisy))
    return told


def head_map(rows: pd.DataFrame, title: str, shape: tuple[int, int], bound: float) -> Markup:
    """A map of one corruption, task and kind, with a line on the heads that do much more elsewhere."""
    figure, height = charts.head_map(rows, shape, bound)
    others = places.stronger_elsewhere(rows.to_dict("records"))
    named = [f"{head_at(row['layer'], row['head'])} {places.there(row)}" for row in others[:ELSEWHERE]]
    more = [f"{len(others) - ELSEWHERE} more"] if len(others) > ELSEWHERE else []
    note = f"{charts.ELSEWHERE} {'; '.join([*named, *more])}." if others else None
    return chart(figure, title, note, height=height)


def strongest_heads(runs: Sequence[tuple[str, Loaded]]) -> list[Child]:
    """A table of the strongest head of each task: where heads were read, and where another one does more.

    Args:
        runs: each with the name that tells it from others; "" for a run alone.
    """
    rows: list[list[Child]] = []
    for name, run in runs:
        for record in run.summary.get("strongest") or []:
            about: list[Child] = [name] if name else []
            about += [str(record["task"]), corruption_name(record["corrupt"])]
            head = head_name(record["kind"], record["layer"], record["head"])
            read = f"{two(record['here'])} {at_place(record['at'])}"
            rows.append([*about, head, f"{places.effect(record)} {at_place(record['role'])}", read])
    if not rows:
        return []
    header = ["task", "corruption", "head", "mean effect, and where", "where the run reads heads"]
    header = ["run", *header] if len(rows[0]) > len(header) else header
    return [table(header, rows, caption="Strongest heads: where heads are read, and those that do more elsewhere")]


def roles(run: Loaded) -> list[Child]:
    """Layer x token-role maps of the head kinds: how strong heads are at which words."""
    rows = run.table("roles")
    rows = rows[rows["kind"].isin(HEAD_KINDS) & rows["mean_abs"].map(known)]
    if rows.empty:
        why = because_nothing_kept(run)
        return [missing(f"No head was patched at single positions{why}, so there is no map of words.")]
    single = rows[rows["role"] != EVERY]
    told: list[Child] = []
    if len(single):
        told.append(
            paragraph(
                "The same patches, sorted by the word they were made at: the mean of the absolute effect over the "
                "heads of a layer, one position at a time. The subject is what the question asks about."
            )
        )
        told += _role_maps(run, single, "mean_abs", "mean |effect| of a layer's heads")
    together = _together(run, rows[(rows["role"] == EVERY) & ~rows["corrupt"].isin(NOISES)])
    if together:
        told.append(details("The same heads patched at every position at once", *together, open=single.empty))
    return told


def _together(run: Loaded, rows: pd.DataFrame) -> list[Child]:
    """Lines over layers of heads that were patched at every position at once."""
    told: list[Child] = []
    kinds = ordered(rows["kind"], HEAD_KINDS)
    for corrupt in ordered(rows["corrupt"], CORRUPT):
        part, plots = rows[rows["corrupt"] == corrupt], []
        for task in in_order(run, part):
            of_task = part[part["task"] == task]
            series = {kind_name(kind): of_task[of_task["kind"] == kind] for kind in kinds}
            figure = charts.lines(series, "mean effect of a head", at_place(EVERY))
            plots.append(chart(figure, f"{task}, {at_place(EVERY)}", height=230))
        told += [titled(corruption_name(corrupt)), legend([kind_name(kind) for kind in kinds], SHADES), grid(plots)]
    return told


def modules(run: Loaded) -> list[Child]:
    """Whole modules (attention, MLP, residual stream) by layer, and by layer and token role."""
    rows = run.table("roles")
    rows = rows[~rows["kind"].isin(HEAD_KINDS) & rows["mean"].map(known)]
    if rows.empty:
        return [missing(f"No whole module was patched in this run{because_nothing_kept(run)}.")]
    told: list[Child] = [
        paragraph(
            "Here a whole module's output is put back: all heads of an attention at once, the MLP, or the whole "
            "residual stream after a layer. The residual stream carries everything computed so far, so no part "
            "of it is expected to restore more. Lines are drawn at the token role where attention or MLP "
            "restores most."
        )
    ]
    kinds = ordered(rows["kind"], MODULE_KINDS)
    for corrupt in ordered(rows["corrupt"], CORRUPT):
        if corrupt in NOISES:
            continue
        part = rows[rows["corrupt"] == corrupt]
        plots = []
        for task in in_order(run, part):
            of_task = part[part["task"] == task]
            role = strongest_role(of_task)
            series = {kind_name(kind): of_task[(of_task["kind"] == kind) & (of_task["role"] == role)] for kind in kinds}
            figure = charts.lines(series, "mean effect", at_place(role))
            plots.append(chart(figure, f"{task}, {at_place(role)}", height=230))
        told += [
            titled(corruption_name(corrupt)),
            legend([kind_name(kind) for kind in kinds], SHADES),
            grid(plots),
        ]
    return [*told, details("Modules by layer and token role", *_role_maps(run, rows, "mean", "mean effect"))]


def strongest_role(rows: pd.DataFrame) -> str:
    """The token role at which modules other than the residual stream restore most; where a line chart looks."""
    parts = rows[rows["kind"] != "resid"]
    means = (parts if len(parts) else rows).groupby("role")["mean_abs"].max()
    return str(means.astype(float).idxmax())


def _role_maps(run: Loaded, rows: pd.DataFrame, value: str, what: str) -> list[Child]:
    told: list[Child] = []
    for kind in ordered(rows["kind"], KINDS):
        for corrupt in ordered(rows.loc[rows["kind"] == kind, "corrupt"], CORRUPT):
            if corrupt in NOISES:
                continue
            part = rows[(rows["kind"] == kind) & (rows["corrupt"] == corrupt)]
            bound = charts.limit(part[value].astype(float))
            layers = run.shape(part)[0]
            maps = []
            for task in in_order(run, part):
                figure, height = charts.role_map(part[part["task"] == task], layers, value, bound)
                maps.append(chart(figure, task, height=height))
            told += [titled(kind_title(kind), corruption_name(corrupt)), scale(bound, what), grid(maps)]
    return told
