"""What a page shows of effects by layer: maps of heads and of token roles, lines of whole modules.

Each section is made from one table of a run, and is None without rows. Knows no markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import pandas as pd

from hooked_vlm.analysis.heads import HEAD_KINDS, head_name
from hooked_vlm.notice.report import charts
from hooked_vlm.notice.report.blocks import View, chart, ordered, row, table
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text import places, read_at
from hooked_vlm.notice.report.text.words import (
    at_place,
    corruption_name,
    heading,
    kind_name,
    kind_title,
    number,
    two,
)
from hooked_vlm.notice.vocabulary import CORRUPT, CORRUPTIONS, EVERY, KINDS, MODULE_KINDS, NOISES
from hooked_vlm.viz.scales import SHADES

CROWDED: Final = 16  # heads a layer, above which a map needs more room


def heads(run: Loaded) -> View | None:
    """Layer x head maps: a row of maps a kind and corruption, a map a task, one colour scale a row."""
    rows = run.measured("heads", "mean")
    if rows.empty:
        return None
    shape = run.shape(rows)
    found: dict[bool, list[View]] = {True: [], False: []}
    for (kind, corrupt), part in families(rows, HEAD_KINDS, CORRUPTIONS):
        bound = charts.limit(part["mean"].astype(float))
        maps = [head_map(part[part["task"] == task], task, shape, bound) for task in run.tasks_of(part)]
        title = heading(kind_title(kind), corruption_name(corrupt))
        ends = _ends(bound, f"mean effect {read_at(run)}")
        found[corrupt in NOISES].append(row(maps, title, ends, wide=shape[1] > CROWDED))
    return {"maps": found[False], "noisy": found[True], "strongest": strongest_heads([("", run)])}


def families(rows: pd.DataFrame, kinds: Sequence[str], corruptions: Sequence[str]) -> Iterable[tuple[Any, Any]]:
    """The rows of each kind and corruption that there are."""
    for kind in ordered(rows["kind"], kinds):
        of_kind = rows[rows["kind"] == kind]
        for corrupt in ordered(of_kind["corrupt"], corruptions):
            yield (kind, corrupt), of_kind[of_kind["corrupt"] == corrupt]


def _ends(bound: float, what: str) -> tuple[str, str]:
    """The numbers at both ends of a colour scale, and what they are of."""
    return number(-bound, 2), f"{number(bound, 2)} {what}"


def head_map(rows: pd.DataFrame, title: str, shape: tuple[int, int], bound: float) -> View:
    """A map of one corruption, task and kind, with a line on the heads that do much more elsewhere."""
    figure, height = charts.head_map(rows, shape, bound)
    return chart(figure, title, height, charts.elsewhere(rows.to_dict("records")))


def strongest_heads(runs: Sequence[tuple[str, Loaded]]) -> View:
    """A table of the strongest head of each task: where heads were read, and where another one does more.

    Args:
        runs: each with the name that tells it from others; "" for a run alone.
    """
    rows = [
        [*([name] if name else []), str(one["task"]), corruption_name(one["corrupt"]),
         head_name(one["kind"], one["layer"], one["head"]), f"{places.effect(one)} {at_place(one['role'])}",
         f"{two(one['here'])} {at_place(one['at'])}"]
        for name, run in runs
        for one in run.summary.get("strongest") or []
    ]  # fmt: skip
    header = ["task", "corruption", "head", "mean effect, and where", "where the run reads heads"]
    header = ["run", *header] if any(name for name, _ in runs) else header
    return table(header, rows, "Strongest heads: where heads are read, and those that do more elsewhere")


def words(run: Loaded) -> View | None:
    """Layer x token-role maps of the head kinds, and lines of heads patched at every position at once."""
    rows = run.measured("roles", "mean_abs")
    rows = rows[rows["kind"].isin(HEAD_KINDS)]
    if rows.empty:
        return None
    at_once = rows["role"] == EVERY
    title, kinds = "mean effect of a head", ordered(rows.loc[at_once, "kind"], HEAD_KINDS)
    return {
        "single": _role_maps(run, rows[~at_once], "mean_abs", "mean |effect| of a layer's heads"),
        "together": _lines(run, rows[at_once], kinds, title, lambda _: EVERY),
    }


def modules(run: Loaded) -> View | None:
    """Whole modules (attention, MLP, residual stream) by layer, and by layer and token role."""
    rows = run.measured("roles", "mean")
    rows = rows[~rows["kind"].isin(HEAD_KINDS)]
    if rows.empty:
        return None
    kinds = ordered(rows["kind"], MODULE_KINDS)
    return {
        "lines": _lines(run, rows, kinds, "mean effect", strongest_role),
        "maps": _role_maps(run, rows, "mean", "mean effect"),
    }


def strongest_role(rows: pd.DataFrame) -> str:
    """The token role at which modules other than the residual stream restore most; where a line chart looks."""
    parts = rows[rows["kind"] != "resid"]
    means = (parts if len(parts) else rows).groupby("role")["mean_abs"].max()
    return str(means.astype(float).idxmax())


def _lines(
    run: Loaded, rows: pd.DataFrame, kinds: Sequence[str], title: str, role_of: Callable[[pd.DataFrame], str]
) -> list[View]:
    """Lines over layers, a row of charts a corruption, a chart a task, a line a kind of sites."""
    found = []
    for corrupt in ordered(rows.loc[~rows["corrupt"].isin(NOISES), "corrupt"], CORRUPT):
        part, plots = rows[rows["corrupt"] == corrupt], []
        for task in run.tasks_of(part):
            of_task = part[part["task"] == task]
            role = role_of(of_task)
            here = of_task[of_task["role"] == role]
            series = {kind_name(kind): here[here["kind"] == kind] for kind in kinds}
            plots.append(chart(charts.lines(series, title, at_place(role)), f"{task}, {at_place(role)}", 230))
        legend = zip(map(kind_name, kinds), SHADES, strict=False)
        found.append(row(plots, heading(corruption_name(corrupt)), legend=legend))
    return found


def _role_maps(run: Loaded, rows: pd.DataFrame, value: str, what: str) -> list[View]:
    found = []
    for (kind, corrupt), part in families(rows[~rows["corrupt"].isin(NOISES)], KINDS, CORRUPT):
        bound, layers = charts.limit(part[value].astype(float)), run.shape(part)[0]
        maps = []
        for task in run.tasks_of(part):
            figure, height = charts.role_map(part[part["task"] == task], layers, value, bound)
            maps.append(chart(figure, task, height))
        title = heading(kind_title(kind), corruption_name(corrupt))
        found.append(row(maps, title, _ends(bound, what)))
    return found
