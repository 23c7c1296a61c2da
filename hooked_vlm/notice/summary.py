"""summary.json: every number that the report prints, made from a run directory's parquet files alone.

Top-level keys; each is a list of flat records unless said. Intervals are percentile bootstrap over examples, 95 %;
what cannot be computed is null.

- ``counts``: task, seen, answered (rows that the model gave an answer to), accuracy (of those, answered rightly),
  accuracy_low, accuracy_high, kept, reasons (dict, why rows were not kept: how many).
- ``noted``, of the data while it was read, from sources.json: task, reason, n, names (the first few). Most concern rows
  that were passed over before they were seen; those that begin "no corrupt prompt" or "no mask", rows without it.
- ``behaviour``, of kept examples: task, corrupt, n, clean_logit_diff, corrupt_logit_diff, flipped (share whose corrupt
  logit difference is below 0), each also with _low and _high. The logit difference is L(right) - L(wrong).
- ``heads``, at the tokens where heads are selected: what `universal.select` gives (corrupt, task, kind, layer, head, n,
  mean, mean_abs, sd, ci_low and ci_high of mean, abs_low and abs_high of mean_abs, threshold, paper, ratio, ratio_low,
  ratio_high, p, q, repeats, sound; p_all, q_all, repeats_all, paper_all, sound_all over all tasks), restoration (mean)
  and normalised (median, since a ratio of logit differences has no mean to rely on where they are near 0). Where the
  selected token is several positions, an example's effect is their mean.
- ``roles``: corrupt, task, kind, layer, role, n, mean, ci_low, ci_high (of the effect), mean_abs, abs_low, abs_high (of
  |effect|); an example's value is the mean over the positions of that role, and over heads where the kind has heads.
- ``universal``: kind, layer, head, modality ("vision-only", "text-only", "multimodal"), rule ("paper", "sound"), tasks,
  tested (corruptions that were run), mean_abs, q, repeats. ``disagreements``: sentences.
- ``functions``: what `labels.labels` gives: kind, layer, head, label, score, ci_low, ci_high, scored, n,
  significant, q, and every score of `functions.SCORES` with _low and _high; all tasks together.
  ``functions_by_task``: the same with task, since a head may look at the object in one task and away in another.
- ``ablation``: task, selection, n_heads, n, draws, n_overlapping (random sets that hold selected heads), accuracy_full,
  accuracy, accuracy_low, accuracy_high (over examples), accuracy_random_mean, accuracy_random_low,
  accuracy_random_high (2.5 and 97.5 % of random sets), the same for logit_diff, harm, harm_low, harm_high (mean logit
  difference under random sets less that under the selection, interval over examples), p (share of sets, the selection
  among them, whose mean logit difference is no higher than the selection's), worse (true where harm_low is above 0 and
  p at most 0.05, null where there are too few random sets for such a p, else false).
- ``noise``, semantic pairs against Gaussian noise: task, modality, kind, n, n_heads (those that either corruption
  moves by more than rounding: heads that no corruption reaches would agree by being 0), spearman (of mean |effect| over
  heads), ci_low, ci_high, top_overlap (share of the top_k heads in common), top_k, top_chance (expected by chance).
- ``figures``: file, kind, layer, head, example, caption. ``findings``: claim, holds (true, false, or null where the run
  cannot tell), evidence. ``cautions``: sentences. ``select_at`` (dict): kind to token role. ``config``, ``model``: as
  in run.json.

Cost: some 10 ms an example to read, then seconds for the resamples. Knows no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hooked_vlm.notice import findings, statistics, universal
from hooked_vlm.notice.ablation import FULL, SELECTED
from hooked_vlm.notice.answers import judged
from hooked_vlm.notice.config import file_name
from hooked_vlm.notice.directory import SOURCES, SUMMARY, RunDirectory
from hooked_vlm.notice.gathered import Gathered, gather
from hooked_vlm.notice.labels import labels_of
from hooked_vlm.notice.vocabulary import CORRUPT, CORRUPTIONS, EVERY

NAMES = 3  # of what was noted of the data, named in the report
ROUNDING = 1e-5  # of the largest effect: below, an effect is the arithmetic's and not the head's
TOP_SHARE = 0.1  # of the heads, in the overlap of the top heads


def summarise(
    directory: str | Path, *, config: Any = None, figures: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Make summary.json, in one move, and give what is in it.

    Args:
        directory: of the run, with run.json and the parquet files.
        config: the run's configuration (a mapping or a dataclass); None takes run.json's.
        figures: records of the figures; None keeps those of a summary.json that is there.

    Raises:
        RunDirectoryError: if a file of the run is missing, damaged or another run's, or summary.json cannot be
            written.
    """
    place = RunDirectory(directory).opened()
    asked = _plain(config) if config is not None else dict(place.record["config"])
    summary = made(place, asked, dict(place.record["model"]))
    summary["figures"] = figures if figures is not None else _figures(place)
    place.write_json(SUMMARY, summary)
    return summary


def made(place: RunDirectory, config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run directory that is open, without its figures; nothing is written."""
    data, notes = _gathered(place, str(config["select_at"]))
    rule = _rule(config)
    seed, times = rule.seed, rule.bootstrap
    families = data.families("effect")
    selection = universal.select_matrices(families, rule)
    chosen = universal.universal(selection)
    significant = None
    if len(selection):
        tested = selection[selection["corrupt"].isin(CORRUPT) & (selection["q"] <= rule.alpha)]
        significant = set(tested[["kind", "layer", "head"]].itertuples(index=False, name=None))
    functions = labels_of(data.attention, significant=significant, times=times, seed=seed)
    by_task = [
        labels_of(grids, significant=significant, times=times, seed=seed).assign(task=task)
        for task, grids in data.attention_by_task().items()
    ]
    asked = [file_name(str(task)) for task in config.get("tasks") or []]
    tables = {
        "counts": _as_asked(_counts(data, times, seed), asked),
        "noted": _as_asked(_noted(place), asked),
        "behaviour": _as_asked(_behaviour(data, times, seed), asked),
        "heads": _heads(data, selection),
        "roles": _roles(data, times, seed),
        "universal": chosen.to_dict("records"),
        "functions": functions.to_dict("records"),
        "functions_by_task": [row for table in by_task for row in table.to_dict("records")],
        "ablation": _as_asked(_ablation(data, times, seed), asked),
        "noise": _as_asked(_noise(families, data, times, seed), asked),
    }
    summary: dict[str, Any] = {
        **tables,
        "disagreements": universal.disagreements(selection, rule),
        "findings": findings.findings(data, tables, significant, times=times, seed=seed),
        "cautions": notes + findings.cautions(data, tables, config, rule),
        "select_at": dict.fromkeys(data.head_kinds, data.at),
        "config": dict(config),
        "model": dict(model),
    }
    return _without_nan(summary)


def _as_asked(records: list[dict[str, Any]], tasks: list[str]) -> list[dict[str, Any]]:
    """Records in the order in which tasks were asked for, else as they were."""
    places = {task: place for place, task in enumerate(tasks)}
    return sorted(records, key=lambda record: places.get(record["task"], len(places)))


def _rule(config: Mapping[str, Any]) -> universal.Rule:
    return universal.Rule(
        seed=int(config.get("seed") or 0), bootstrap=int(config.get("bootstrap") or statistics.BOOTSTRAP)
    )


def _gathered(place: RunDirectory, at: str) -> tuple[Gathered, list[str]]:
    """A run's grids; where no prompt has a token of role `at`, those of every position at once, and a note."""
    data = gather(place, at)
    if data.n_effects and not data.heads and at != EVERY:
        again = gather(place, EVERY)
        if again.heads:
            return again, [
                f"No prompt has a token of role {at!r}: heads are selected on every position at once instead."
            ]
    return data, []


# --- tables -----------------------------------------------------------------------------------------


def _named(name: str, values: np.ndarray, times: int, seed: int) -> dict[str, float]:
    """A mean with its interval, as name, name_low and name_high."""
    found = statistics.mean_with_interval(values, times, seed)
    return {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def _counts(data: Gathered, times: int, seed: int) -> list[dict[str, Any]]:
    records = []
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
                **_named("accuracy", np.array(right), times, seed),
                "kept": int(rows["kept"].sum()),
                "reasons": {
                    str(k): int(n) for k, n in rows.loc[~rows["kept"].astype(bool), "reason"].value_counts().items()
                },
            }
        )
    return records


def _noted(place: RunDirectory) -> list[dict[str, Any]]:
    of_tasks = place.values(SOURCES) if place.lists(SOURCES) else {}
    return [
        {
            "task": file_name(task),
            "reason": reason,
            "n": n,
            "names": list(found.get("named", {}).get(reason, []))[:NAMES],
        }
        for task, found in of_tasks.items()
        for reason, n in found.get("skipped", {}).items()
    ]


def _behaviour(data: Gathered, times: int, seed: int) -> list[dict[str, Any]]:
    records = []
    kept = data.examples[data.examples["kept"].astype(bool)]
    for task, rows in kept.groupby("task", sort=False):
        for corrupt in CORRUPTIONS:
            there = rows[rows[f"{corrupt}_logit_diff"].notna()]
            if there.empty:
                continue
            after = there[f"{corrupt}_logit_diff"].to_numpy(np.float64)
            clean = there["clean_logit_diff"].to_numpy(np.float64)
            records.append(
                {
                    "task": task,
                    "corrupt": corrupt,
                    "n": len(there),
                    **_named("clean_logit_diff", clean, times, seed),
                    **_named("corrupt_logit_diff", after, times, seed),
                    **_named("flipped", (after < 0).astype(np.float64), times, seed),
                }
            )
    return records


def _heads(data: Gathered, selection: pd.DataFrame) -> list[dict[str, Any]]:
    if selection.empty:
        return []
    extra = []
    for (corrupt, kind, task), grid in data.heads.items():
        cells = grid.cells
        normalised = grid.matrix("normalised")
        bare = np.isnan(normalised).all(0)
        part = pd.DataFrame(cells, columns=["layer", "head"]).assign(corrupt=corrupt, kind=kind, task=task)
        part["restoration"] = statistics.means(grid.matrix("restoration"))
        part["normalised"] = np.where(bare, np.nan, np.nanmedian(np.where(bare, 0.0, normalised), axis=0))
        extra.append(part)
    keys = ["corrupt", "kind", "task", "layer", "head"]
    records: list[dict[str, Any]] = selection.merge(pd.concat(extra), on=keys, how="left").to_dict("records")
    return records


def _roles(data: Gathered, times: int, seed: int) -> list[dict[str, Any]]:
    records = []
    for (corrupt, kind, task), grid in sorted(data.roles.items()):
        cells, effect, size = grid.cells, grid.matrix("effect"), grid.matrix("size")
        ends = [statistics.bootstrap(values, times=times, seed=(seed, 8)) for values in (effect, size)]
        table = pd.DataFrame(cells, columns=["layer", "role"]).assign(corrupt=corrupt, task=task, kind=kind)
        table = table.assign(n=(~np.isnan(effect)).sum(0), mean=statistics.means(effect))
        table = table.assign(ci_low=ends[0][0], ci_high=ends[0][1], mean_abs=statistics.means(size))
        records += table.assign(abs_low=ends[1][0], abs_high=ends[1][1]).to_dict("records")
    return records


def _ablation(data: Gathered, times: int, seed: int) -> list[dict[str, Any]]:
    records = []
    for task, grid in data.ablation.items():
        for name in sorted({name for name, _ in grid.cells if name != FULL}):
            sets = [draw for selection, draw in grid.cells if selection == name and draw != SELECTED]
            drawn = [(name, draw) for draw in sets]
            about = [data.sets[task, name, draw] for draw in sets]
            record: dict[str, Any] = {
                "task": task,
                "selection": name,
                "n_heads": data.sets[task, name, SELECTED]["n_heads"],
                "n": len(grid.examples),
                "draws": len(sets),
                "n_overlapping": sum(each.get("overlap", 0) > 0 for each in about),
            }
            for measure, column in (("accuracy", "correct"), ("logit_diff", "logit_diff")):
                full = grid.matrix(column, [(FULL, SELECTED)])[:, 0]
                record[f"{measure}_full"] = statistics.mean_with_interval(full, times, seed)["mean"]
                record |= _named(measure, grid.matrix(column, [(name, SELECTED)])[:, 0], times, seed)
                means = statistics.means(grid.matrix(column, drawn)) if drawn else np.array([])
                low, high = statistics.interval(means[:, None])
                record[f"{measure}_random_mean"] = float(means.mean()) if len(means) else math.nan
                record |= {f"{measure}_random_low": float(low[0]), f"{measure}_random_high": float(high[0])}
            if drawn:
                chosen = grid.matrix("logit_diff", [(name, SELECTED)])[:, 0]
                others = grid.matrix("logit_diff", drawn)
                record |= _named("harm", others.mean(1) - chosen, times, seed)
                record["p"] = float((1 + (statistics.means(others) <= np.nanmean(chosen)).sum()) / (1 + len(drawn)))
                record["worse"] = _worse(record["harm_low"], record["p"], len(drawn))
            else:
                record |= dict.fromkeys(("harm", "harm_low", "harm_high", "p"), math.nan) | {"worse": None}
            records.append(record)
    return records


def _worse(harm_low: float, p: float, draws: int) -> bool | None:
    """Whether a selection hurts more than random heads; None where there are too few random sets to tell."""
    least = 1 / (1 + draws)
    if harm_low > 0 and p <= least and least > statistics.ALPHA:
        return None
    return None if math.isnan(harm_low) else harm_low > 0 and p <= statistics.ALPHA


def _noise(families: Any, data: Gathered, times: int, seed: int) -> list[dict[str, Any]]:
    records = []
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
                    "top_overlap": len(best[0] & best[1]) / top,
                    "top_k": top,
                    "top_chance": top / max(1, int(moved.sum())),
                }
            )
    return records


def _moves(means: np.ndarray) -> np.ndarray:
    """Which heads a patch moves the answer at, beyond rounding: those that no corruption reaches have no rank."""
    return means > ROUNDING * np.nanmax(means, initial=0.0)


# --- files ------------------------------------------------------------------------------------------


def _figures(place: RunDirectory) -> list[dict[str, Any]]:
    """Figures that an earlier summary.json names and that are still there."""
    if not place.has(SUMMARY):
        return []
    before = place.values(SUMMARY).get("figures") or []
    return [record for record in before if place.has(str(record.get("file")))]


def _plain(config: Any) -> dict[str, Any]:
    given = config.to_json() if hasattr(config, "to_json") else vars(config) if hasattr(config, "__dict__") else config
    plain: dict[str, Any] = json.loads(json.dumps(dict(given)))
    return plain


def _without_nan(value: Any) -> Any:
    """Plain Python values, null where a number is missing: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
