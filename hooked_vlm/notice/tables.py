"""The tables of a run's summary, from its grids: counts, behaviour, heads, roles, ablation, noise.

Shares have exact intervals and means those of `clusters`, which say why. Cost: seconds for the resamples. Knows no
model and no file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.ablation import FULL, SELECTED
from hooked_vlm.analysis.answers import judged
from hooked_vlm.analysis.grid import Grid
from hooked_vlm.analysis.head_labels import labels_of, over_tasks
from hooked_vlm.analysis.heads import Head
from hooked_vlm.notice import claims, places
from hooked_vlm.notice.run_tables import RunTables
from hooked_vlm.notice.schema import (
    Ablation,
    Behaviour,
    Counts,
    Function,
    Grounding,
    HeadEffect,
    Noise,
    RoleEffect,
    Selection,
)
from hooked_vlm.notice.vocabulary import CORRUPT, CORRUPTIONS

ROUNDING = 1e-5  # of the largest effect: below, an effect is the arithmetic's and not the head's
TOP_SHARE = 0.1  # of the heads, in the overlap of the top heads


def _named(name: str, values: np.ndarray, ways: Sequence[clusters.Codes], seed: int) -> dict[str, float]:
    """A mean with its interval, as name, name_low and name_high."""
    found = clusters.interval_of(values, ways, seed=seed)
    return {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def _share(name: str, hits: np.ndarray) -> dict[str, float]:
    """A share with its interval, as name, name_low and name_high."""
    found = statistics.share(hits)
    return {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def counts(data: RunTables) -> list[Counts]:
    """Rows seen, answered rightly and kept, under which corruptions, and why others went, of each task."""
    records: list[Any] = []
    run = [name for name in CORRUPT if data.examples[f"{name}_logit_diff"].notna().any()]
    for task, rows in data.examples.groupby("task", sort=False):
        said = rows[rows["generated"].fillna("").astype(str) != ""]
        right = [
            float(bool(kept) or judged(str(text), str(answer), str(wrong)) == "")
            for kept, text, answer, wrong in zip(
                said["kept"], said["generated"], said["answer"], said["wrong_answer"], strict=True
            )
        ]
        records.append(
            {
                "task": task,
                "seen": len(rows),
                "answered": len(said),
                **_share("accuracy", np.array(right)),
                "kept": int(rows["kept"].sum()),
                **{
                    f"kept_{name}": int(rows.loc[rows["kept"].astype(bool), f"{name}_logit_diff"].notna().sum())
                    for name in run
                },
                "lacking": _lacking(rows),
                "reasons": {
                    str(k): int(n) for k, n in rows.loc[~rows["kept"].astype(bool), "reason"].value_counts().items()
                },
            }
        )
    return records


def _lacking(rows: pd.DataFrame) -> dict[str, int]:
    """Of one task's kept rows, how many have not each corruption that was asked for, and why."""
    kept = rows[rows["kept"].astype(bool)]
    return {
        f"{name}: {reason}": int(n)
        for name in CORRUPT
        if f"{name}_lacking" in kept
        for reason, n in kept[f"{name}_lacking"].fillna("").value_counts().items()
        if reason
    }


def behaviour(data: RunTables, seed: int) -> list[Behaviour]:
    """Clean and corrupt logit differences of kept examples, and the share of answers that flip."""
    records: list[Any] = []
    kept = data.examples[data.examples["kept"].astype(bool)]
    for task, rows in kept.groupby("task", sort=False):
        for corrupt in CORRUPTIONS:
            there = rows[rows[f"{corrupt}_logit_diff"].notna()]
            if there.empty:
                continue
            after = there[f"{corrupt}_logit_diff"].to_numpy(np.float64)
            clean = there["clean_logit_diff"].to_numpy(np.float64)
            ways = data.clusters(str(task), there["example"])
            records.append(
                {
                    "task": task,
                    "corrupt": corrupt,
                    "n": len(there),
                    **_named("clean_logit_diff", clean, ways, seed),
                    **_named("corrupt_logit_diff", after, ways, seed),
                    **_share("flipped", after < 0),
                }
            )
    return records


def heads(data: RunTables, selection: pd.DataFrame) -> list[HeadEffect]:
    """What `universal_heads.select` gives, with restoration and the place at which each head is strongest."""
    if selection.empty:
        return []
    extra = []
    for (corrupt, kind, task), grid in data.heads.items():
        cells = grid.cells
        normalized = grid.matrix("normalized")
        bare = np.isnan(normalized).all(0)
        part = pd.DataFrame(cells, columns=["layer", "head"]).assign(corrupt=corrupt, kind=kind, task=task)
        part["restoration"] = statistics.means(grid.matrix("restoration"))
        part["normalized"] = np.where(bare, np.nan, np.nanmedian(np.where(bare, 0.0, normalized), axis=0))
        extra.append(part)
    table = selection.merge(pd.concat(extra), on=places.KEY, how="left")
    table = table.merge(places.best_places(data), on=places.KEY, how="left")
    records: list[HeadEffect] = table.to_dict("records")
    return records


def roles(data: RunTables, seed: int) -> list[RoleEffect]:
    """Effects by layer and token role, over heads where a kind has heads."""
    records: list[Any] = []
    for (corrupt, kind, task), grid in sorted(data.roles.items()):
        cells, effect, size = grid.cells, grid.matrix("effect"), grid.matrix("size")
        ways = data.clusters(task, grid.examples)
        of_effect, of_size = (
            clusters.granted(clusters.judge_each(each, ways, flips=clusters.INTERVALS, seed=(seed, 8)), clusters.FEW)
            for each in (effect, size)
        )
        table = pd.DataFrame(cells, columns=["layer", "role"]).assign(corrupt=corrupt, task=task, kind=kind)
        table = table.assign(n=(~np.isnan(effect)).sum(0), mean=of_effect.mean)
        table = table.assign(ci_low=of_effect.low, ci_high=of_effect.high, mean_abs=of_size.mean)
        records += table.assign(abs_low=of_size.low, abs_high=of_size.high).to_dict("records")
    return records


def functions(
    data: RunTables, significant: Mapping[str, Collection[Head]] | None, seed: int
) -> tuple[list[Function], list[Function]]:
    """What heads do, over all tasks and in each.

    Args:
        data: from `run_tables.gather`.
        significant: of each task the heads whose patching has an effect; None if none was patched.
        seed: of the resamples.
    """
    parts = []
    for task in data.tasks:
        grids = data.of_task(data.attention, task)
        mine = None if significant is None else significant.get(task, ())
        part = labels_of(grids, data.of_task(data.causes, task), ways=data.ways, significant=mine, seed=seed)
        parts.append(part.assign(task=task))
    by_task = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    together = over_tasks(labels_of(data.attention, data.causes, ways=data.ways, seed=seed), by_task)
    records: list[list[Any]] = [each.to_dict("records") for each in (together, by_task)]
    return records[0], records[1]


def grounding(data: RunTables, seed: int) -> list[Grounding]:
    """How much more the average head looks at the object asked about than at its rival, in each task."""
    records: list[Any] = []
    for task in data.tasks:
        for kind, grid in sorted(data.of_task(data.attention, task).items()):
            values = {name: statistics.means(grid.matrix(name).T) for name in ("lift", "rival_lift", "grounding")}
            both = ~np.isnan(values["grounding"])
            if not both.any():
                continue
            ids = [name.removeprefix(f"{task} ") for name, there in zip(grid.examples, both, strict=True) if there]
            ways = data.clusters(task, ids)
            record: dict[str, Any] = {"task": task, "kind": kind, "n": int(both.sum())}
            for name, each in values.items():
                record |= _named(name, each[both], ways, seed)
            records.append(record)
    return records


def ablation(data: RunTables, seed: int) -> list[Ablation]:
    """Accuracy and logit difference without each set of heads and without random ones, task by task."""
    records: list[Any] = []
    for task, grid in data.ablation.items():
        ways = data.clusters(task, grid.examples)
        for name in sorted({name for name, _ in grid.cells if name != FULL}):
            there = ~np.isnan(grid.matrix("logit_diff", [(name, SELECTED)])[:, 0])
            sets = _of_all(grid, name, there)
            drawn = [(name, draw) for draw in sets]
            about = [data.sets[task, name, draw] for draw in sets]
            record: dict[str, Any] = {
                "task": task,
                "selection": Selection.parse(name),
                "n_heads": data.sets[task, name, SELECTED]["n_heads"],
                "chosen": data.chosen.get((task, name), []),
                "n": int(there.sum()),
                "draws": len(sets),
                "n_overlapping": sum(each.get("overlap", 0) > 0 for each in about),
            }
            for measure, column in (("accuracy", "correct"), ("logit_diff", "logit_diff")):
                for which, cell in ((f"{measure}_full", (FULL, SELECTED)), (measure, (name, SELECTED))):
                    values = np.where(there, grid.matrix(column, [cell])[:, 0], np.nan)
                    shares = column == "correct"
                    record |= _share(which, values) if shares else _named(which, values, ways, seed)
                means = statistics.means(grid.matrix(column, drawn)) if drawn else np.array([])
                low, high = statistics.interval(means[:, None])
                record[f"{measure}_random_mean"] = float(means.mean()) if len(means) else math.nan
                record |= {f"{measure}_random_low": float(low[0]), f"{measure}_random_high": float(high[0])}
            record |= dict.fromkeys(("harm", "harm_low", "harm_high", "harm_p", "p"), math.nan)
            if drawn:
                chosen = grid.matrix("logit_diff", [(name, SELECTED)])[:, 0]
                others = grid.matrix("logit_diff", drawn)
                harm = clusters.interval_of(statistics.means(others.T) - chosen, ways, seed=seed)
                record |= {"harm": harm["mean"], **{f"harm_{end}": harm[end] for end in ("low", "high", "p")}}
                hits = (statistics.means(others) <= np.nanmean(chosen)).sum()
                record["p"] = float((1 + hits) / (1 + len(drawn)))
            record["worse"] = claims.hurts_more(record["harm_low"], record["harm_high"], record["p"], len(drawn))
            records.append(record)
    return records


def _of_all(grid: Grid, name: str, there: np.ndarray) -> list[int]:
    """The random sets that every example has in which the selection was ablated: each half may have others."""
    draws = sorted(draw for selection, draw in grid.cells if selection == name and draw != SELECTED)
    known = ~np.isnan(grid.matrix("logit_diff", [(name, draw) for draw in draws]))
    return [draw for draw, column in zip(draws, known.T, strict=True) if column[there].all()]


def noise(families: Any, data: RunTables, times: int, seed: int) -> list[Noise]:
    """How alike semantic pairs and Gaussian noise rank the heads."""
    records: list[Any] = []
    for corrupt, kind in sorted(families):
        if (f"{corrupt}_noise", kind) not in families:
            continue
        heads = families[corrupt, kind][0]
        for task in data.tasks:
            grids = [data.heads.get((name, kind, task)) for name in (corrupt, f"{corrupt}_noise")]
            if grids[0] is None or grids[1] is None:
                continue
            places = [{example: i for i, example in enumerate(grid.examples)} for grid in grids if grid is not None]
            both = [example for example in places[0] if example in places[1]]
            rows = [[place[example] for example in both] for place in places]
            sizes = [np.abs(grid.matrix("effect", heads))[at] for grid, at in zip(grids, rows, strict=True) if grid]
            moved = np.any([_moves(statistics.means(size)) for size in sizes], 0)
            sizes = [size[:, moved] for size in sizes]
            maps = [statistics.means(size) for size in sizes]
            top = max(1, round(TOP_SHARE * int(moved.sum())))
            weights = statistics.resamples(len(both), times, (seed, 9)) if len(both) > 1 else np.empty((0, len(both)))
            drawn = statistics.spearman(*(statistics.means(size, weights) for size in sizes))
            low, high = statistics.interval(drawn[:, None])
            beyond = min((drawn <= claims.AGREE).sum(), (drawn >= claims.AGREE).sum())
            best = [set(np.argsort(-each, kind="stable")[:top].tolist()) for each in maps]
            records.append(
                {
                    "task": task,
                    "modality": corrupt,
                    "kind": kind,
                    "n": len(both),
                    "n_heads": int(moved.sum()),
                    "spearman": float(statistics.spearman(*(each[None] for each in maps))[0]),
                    "ci_low": float(low[0]),
                    "ci_high": float(high[0]),
                    "p": min(1.0, 2 * float(1 + beyond) / (1 + len(drawn))),
                    "top_overlap": len(best[0] & best[1]) / top,
                    "top_k": top,
                    "top_chance": top / max(1, int(moved.sum())),
                }
            )
    return records


def _moves(means: np.ndarray) -> np.ndarray:
    """Which heads a patch moves the answer at, beyond rounding: those that no corruption reaches have no rank."""
    return means > ROUNDING * np.nanmax(means, initial=0.0)
