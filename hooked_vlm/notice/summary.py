"""summary.json: every number that the report prints, made from a run directory's parquet files alone.

`stored.Summary` says what is in it. Cost: some 10 ms an example to read, then seconds for the resamples. Knows no
model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import pandas as pd

from hooked_vlm.analysis import statistics, universal_heads
from hooked_vlm.analysis.heads import HEAD
from hooked_vlm.notice import findings, places, selected_heads, selections, tables
from hooked_vlm.notice.config import file_name
from hooked_vlm.notice.directory import SOURCES, SUMMARY, RunDirectory
from hooked_vlm.notice.run_tables import RunTables, gather, gather_ablation
from hooked_vlm.notice.schema import Figure, HeadEffect, Noted, Universal
from hooked_vlm.notice.selections import HeldOut, Tested
from hooked_vlm.notice.stored import VERSION, Summary, checked, plain
from hooked_vlm.notice.vocabulary import CORRUPT, EVERY

Row = TypeVar("Row")
NAMES: Final = 3  # of what was noted of the data, named in the report


@dataclass(frozen=True)
class Selected:
    """What selecting a run's heads gave, and what it was selected from.

    Args:
        config: the run's, as plain values.
        rule: by which they were selected.
        tables: the run's.
        families: of effects, as `universal_heads.select_matrices` takes them.
        effects: what that gave.
        heads: the table of the summary.
        universal: the table of the summary.
    """

    config: dict[str, Any]
    rule: universal_heads.Rule
    tables: RunTables
    families: Any
    effects: pd.DataFrame
    heads: list[HeadEffect]
    universal: list[Universal]


@dataclass(frozen=True)
class Half:
    """Heads selected on one half of the examples.

    Args:
        effects: what `universal_heads.select_matrices` gave.
        judges: of each task the examples of the other half.
    """

    effects: pd.DataFrame
    judges: dict[str, frozenset[str]]


def summarise(directory: str | Path, *, config: Any = None, figures: list[Figure] | None = None) -> Summary:
    """Make summary.json, in one move, and give what is in it.

    Args:
        directory: of the run, with run.json and the parquet files.
        config: the run's configuration (a mapping or a `NoticeConfig`); None takes run.json's.
        figures: records of the figures; None keeps those of a summary.json that is there.

    Raises:
        RunDirectoryError: if a file of the run is missing, damaged or another run's, or summary.json cannot be
            written.
    """
    place = RunDirectory(directory).opened()
    plain = place.record["config"] if config is None else config.to_json() if hasattr(config, "to_json") else config
    return conclude(place, select(place, dict(plain)), _figures(place) if figures is None else figures)


def select(place: RunDirectory, config: dict[str, Any]) -> Selected:
    """Select heads by what the examples of a run gave.

    Args:
        place: the run's directory, open.
        config: the run's, as plain values.

    Raises:
        RunDirectoryError: if a file is missing, damaged or another run's, or lacks a column.
    """
    rule = universal_heads.Rule(
        seed=int(config.get("seed") or 0), bootstrap=int(config.get("bootstrap") or statistics.BOOTSTRAP)
    )
    data = _gathered(place, str(config["select_at"]))
    families = data.families()
    effects = universal_heads.select_matrices(families, rule)
    universal = universal_heads.universal(effects).to_dict("records")
    return Selected(config, rule, data, families, effects, tables.heads(data, effects), universal)


def halved(selected: Selected) -> list[Half]:
    """What selecting gives on each half of the examples, and those of the other half, which may judge it.

    What is chosen and judged on the same examples does well by the luck that it was chosen for.
    """
    halves = selected.tables.halves(selected.rule.seed)
    rule, found = replace(selected.rule, splits=0), []
    for half in range(2):
        only = {task: parts[half] for task, parts in halves.items()}
        effects = universal_heads.select_matrices(selected.tables.families(only), rule)
        found.append(Half(effects, {task: frozenset(parts[1 - half]) for task, parts in halves.items()}))
    return found


def to_ablate(halves: list[Half]) -> dict[str, list[HeldOut]]:
    """Of each task, in two halves, the sets of heads to ablate: chosen on one half, judged on the other."""
    found: dict[str, list[HeldOut]] = {}
    for half in halves:
        universal: Any = universal_heads.universal(half.effects).to_dict("records")
        records: Any = half.effects.to_dict("records")
        for task, judges in half.judges.items():
            mine = [row for row in records if row["task"] == task]
            found.setdefault(task, []).append(HeldOut(judges, selections.to_ablate(mine, universal)))
    return found


def to_test(selected: Selected, halves: list[Half]) -> dict[str, list[Tested]]:
    """Of each task, in two halves, the heads whose attention to the image is tested: those that matter most.

    They are chosen on one half and tested on the other; a half with too few examples for the rule tests none.
    """
    found: dict[str, list[Tested]] = {}
    for half in halves:
        cells = half.effects
        if len(cells):
            cells = cells[cells["corrupt"].isin(CORRUPT) & cells["kind"].isin(list(selected.tables.attention))]
            cells = cells[cells["matters"]].sort_values("mean_abs", ascending=False)
        for task, judges in half.judges.items():
            mine = cells[cells["task"] == task][HEAD].itertuples(index=False, name=None) if len(cells) else ()
            found.setdefault(task, []).append(Tested(judges, list(dict.fromkeys(mine))[: selections.LABELLED]))
    return found


def conclude(place: RunDirectory, selected: Selected, figures: list[Figure]) -> Summary:
    """Make summary.json of a run whose heads are selected and ablated, and give what is in it.

    Args:
        place: the run's directory, open.
        selected: its heads.
        figures: records of the figures.

    Raises:
        RunDirectoryError: as `select`, or if summary.json cannot be written.
    """
    data, rule, config = selected.tables, selected.rule, selected.config
    gather_ablation(data, place)
    seed, times, chosen = rule.seed, rule.bootstrap, selected.effects
    significant = None
    if len(chosen):
        tested = chosen[chosen["corrupt"].isin(CORRUPT) & chosen["matters"]]
        significant = {
            task: set(tested[tested["task"] == task][HEAD].itertuples(index=False, name=None)) for task in data.tasks
        }
    functions, by_task = tables.functions(data, significant, seed)
    asked = [file_name(str(task)) for task in config.get("tasks") or []]
    made_of: Summary = {
        "counts": _as_asked(tables.counts(data), asked),
        "noted": _as_asked(_noted(place), asked),
        "behaviour": _as_asked(tables.behaviour(data, seed), asked),
        "heads": selected.heads,
        "localised": _as_asked(selected_heads.localised(place, data, chosen, rule), asked),
        "answers": _as_asked(selected_heads.by_answers(data, chosen), asked),
        "roles": tables.roles(data, seed),
        "universal": selected.universal,
        "functions": functions,
        "functions_by_task": _as_asked(by_task, asked),
        "grounding": _as_asked(tables.grounding(data, seed), asked),
        "ablation": _as_asked(tables.ablation(data, seed), asked),
        "noise": _as_asked(tables.noise(selected.families, data, times, seed), asked),
    }
    verdicts = findings.findings(data, made_of, rule, chosen)
    summary = checked(
        _plain(
            {
                "version": VERSION,
                **made_of,
                "strongest": _as_asked(places.strongest(made_of["heads"]), asked),
                "findings": verdicts,
                "rule": rule,
                "select_at": dict.fromkeys(data.head_kinds, data.at),
                "config": config,
                "model": place.record["model"],
                "figures": figures,
            }
        )
    )
    place.write_json(SUMMARY, plain(summary))
    return summary


def _as_asked(records: list[Row], tasks: list[str]) -> list[Row]:
    """Records in the order in which tasks were asked for, else as they were."""
    places = {task: place for place, task in enumerate(tasks)}
    return sorted(records, key=lambda record: places.get(cast(Any, record)["task"], len(places)))


def _gathered(place: RunDirectory, at: str) -> RunTables:
    """A run's grids; where no prompt has a token of role `at`, those of every position at once."""
    data = gather(place, at)
    if data.n_effects and not data.heads and at != EVERY and (again := gather(place, EVERY)).heads:
        return again
    return data


# --- files ------------------------------------------------------------------------------------------


def _noted(place: RunDirectory) -> list[Noted]:
    of_tasks = place.values(SOURCES) if place.lists(SOURCES) else {}
    return [
        {"task": file_name(task), "reason": reason, "n": n, "names": found.get("named", {}).get(reason, [])[:NAMES]}
        for task, found in of_tasks.items()
        for reason, n in found.get("skipped", {}).items()
    ]


def _figures(place: RunDirectory) -> list[Figure]:
    """Figures that an earlier summary.json names and that are still there."""
    if not place.has(SUMMARY):
        return []
    before = place.values(SUMMARY).get("figures") or []
    return [record for record in before if place.has(str(record.get("file")))]


def _plain(value: Any) -> Any:
    """Plain Python values, null where a number is missing: JSON has no NaN."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
