"""Several runs in one report: what differs between them, which heads recur, how alike their head maps are.

Reads run.json and summary.json of each run directory and nothing else. Heads are matched by layer and head, which
means the same head only within one checkpoint; maps of different checkpoints of one shape are correlated all the
same, and the report says what that is worth. Costs a second, and 5 MB of disk for plotly.js.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hooked_vlm.analysis.heads import HEAD, HEAD_KINDS, RULES, head_name, module_of
from hooked_vlm.errors import RunDirectoryError, cut
from hooked_vlm.notice.directory import RUN
from hooked_vlm.notice.files import MANIFEST
from hooked_vlm.notice.report import charts, maps, render, text
from hooked_vlm.notice.report.blocks import View, chart, ordered, table
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text import read_at
from hooked_vlm.notice.report.text.verdicts import Told
from hooked_vlm.notice.report.text.words import (
    BOTH,
    DASH,
    chance,
    corruption_name,
    heading,
    interval,
    kind_name,
    kind_title,
    listed,
    modality_name,
    number,
    percent,
    rules_named,
    selection_name,
    two,
    with_interval,
)
from hooked_vlm.notice.storage import place_of, whole
from hooked_vlm.notice.vocabulary import CORRUPT, NOISES


def compare(directories: Iterable[str | Path], out: str | Path) -> Path:
    """Write one report on several runs.

    Args:
        directories: of finished runs, two or more.
        out: the HTML file to write; its folder is made if it is not there.

    Returns:
        The report's path.

    Raises:
        RunDirectoryError: There are fewer than two directories, one stands there twice or holds no finished run
            or a damaged one, or the file cannot be written or lies among the files of a run.
    """
    given = [directories] if isinstance(directories, str | os.PathLike) else directories
    paths = [place_of(directory, "a run's directory") for directory in given]
    if len(paths) < 2:
        raise RunDirectoryError(f"{len(paths)} run directories are nothing to compare: give two or more")
    twice = [path for path, n in Counter(path.resolve() for path in paths).items() if n > 1]
    if twice:
        raise RunDirectoryError(f"{twice[0]} was given twice: a run agrees with itself")
    target = place_of(out, "the comparison's file, out,")
    refuse_place(target)
    written = html_of(named([Loaded.read(path) for path in paths]))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return whole(target, written.encode())
    except RunDirectoryError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunDirectoryError(f"{cut(target)} cannot be written: {cut(reason)}; nothing else was changed") from error


def refuse_place(target: Path) -> None:
    """Raise RunDirectoryError if a comparison would take the place of something else.

    Args:
        target: the file that is to be written.
    """
    if target.is_dir():
        raise RunDirectoryError(f"{cut(target)} is a directory: name a file, such as {target / 'compare.html'}")
    for folder in target.resolve().parents:
        if (folder / RUN).exists() or (folder / MANIFEST).exists():
            raise RunDirectoryError(
                f"{target} lies in {folder}, which holds a run, and no file of a run is overwritten: name a file "
                "outside of it"
            )


@dataclass(frozen=True)
class Named:
    """A run under the name that the comparison gives it."""

    name: str
    run: Loaded


def named(runs: Sequence[Loaded]) -> list[Named]:
    """Names for runs, as short as tells them apart: the model's, with the directory's where models repeat."""
    short = Counter(run.short for run in runs)
    names = [run.short if short[run.short] == 1 else f"{run.short} ({run.directory.resolve().name})" for run in runs]
    again = Counter(names)
    return [
        Named(name if again[name] == 1 else f"{run.short} ({run.directory})", run)
        for name, run in zip(names, runs, strict=True)
    ]


def html_of(runs: Sequence[Named]) -> str:
    """The comparison as text."""
    return render.page("compare", view_of(runs))


def view_of(runs: Sequence[Named]) -> View:
    """All that the page shows."""
    found, universal = head_maps(runs), selections(runs)
    short = {one.run.name: one.run.short for one in runs}
    recurring = [f"{head} of {short[model]}" for (model, head), cells in universal.items() if len(cells) > 1]
    correlations = {
        "one checkpoint": correlation_between(found, same_model=True),
        "different checkpoints of one shape": correlation_between(found, same_model=False),
    }
    return {
        "title": f"{len(runs)} NOTICE runs compared",
        "subtitle": listed([one.name for one in runs]),
        "marks": charts.LEGEND,
        "answer": text.compared([one.run for one in runs], recurring, correlations),
        "runs": the_runs(runs),
        "settings": settings(runs),
        **findings(runs),
        "recurring": recurring_heads(runs, universal),
        "strongest": maps.strongest_heads([(one.name, one.run) for one in runs]),
        "maps": side_by_side(found),
        "alike": alike(found),
        "behaviour": behaviour(runs),
        "ablation": ablation(runs),
        "noise": noise(runs),
        "grounding": grounding(runs),
        "cautions": cautions(runs),
    }


# --- the runs ---------------------------------------------------------------------------------------


def records(runs: Sequence[Named], name: str) -> Iterator[tuple[str, Any]]:
    """The records of one table of every run, with the run's name."""
    for one in runs:
        yield from ((one.name, row) for row in one.run.records(name))


def the_runs(runs: Sequence[Named]) -> View:
    """Each run's model, tasks and examples."""
    rows = []
    for one in runs:
        model = one.run.model
        stack = f"{model.get('layers', DASH)} layers of {model.get('heads', DASH)} heads"
        corruptions = listed([corruption_name(each) for each in one.run.config.get("corrupt") or []])
        rows.append(
            [one.name, f"{stack} ({model.get('stack', 'stack unknown')})", listed(one.run.tasks), corruptions,
             number(one.run.seen), number(one.run.kept)]
        )  # fmt: skip
    return table(["run", "patched stack", "tasks", "corruption", "seen", "kept"], rows, "What was run", (4, 5))


def settings(runs: Sequence[Named]) -> View:
    """The settings that differ."""
    rows = []
    for name in dict.fromkeys(name for one in runs for name in one.run.config):
        values = [text.setting(one.run.config.get(name)) for one in runs]
        if len(set(values)) > 1:
            rows.append([text.setting_name(name), *values])
    return table(["setting", *(one.name for one in runs)], rows, "All other settings are the same")


def findings(runs: Sequence[Named]) -> dict[str, View]:
    """Claims by run, whether each holds there, and the evidence."""
    verdicts: dict[str, dict[str, Told]] = {}
    for one in runs:
        for found in text.verdicts_of(one.run):
            verdicts.setdefault(found.claim, {})[one.name] = found
    rows = [[claim, *(by_run.get(one.name, "not tested") for one in runs)] for claim, by_run in verdicts.items()]
    evidence = [[claim, name, found.evidence] for claim, by_run in verdicts.items() for name, found in by_run.items()]
    header = ["claim", *(one.name for one in runs)]
    return {
        "findings": table(header, rows, "Whether a claim holds, by run", prose=True),
        "evidence": table(["claim", "run", "evidence"], evidence, "On what evidence", prose=True),
    }


def cautions(runs: Sequence[Named]) -> list[str]:
    """What each run warns of."""
    said: dict[str, list[str]] = {}
    for one in runs:
        for sentence in text.cautions_of(one.run):
            said.setdefault(sentence, []).append(one.name)
    return [
        sentence if len(names) == len(runs) else f"{sentence} ({listed(names)})" for sentence, names in said.items()
    ]


# --- heads that recur -------------------------------------------------------------------------------


def selections(runs: Sequence[Named]) -> dict[tuple[str, str], dict[str, str]]:
    """By model and head, the runs in which the head is universal: for which corruption and by which rule."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for one in runs:
        for (kind, layer, head), rows in one.run.table("universal").groupby(HEAD, sort=True):
            said = []
            for modality, part in rows.groupby("modality", sort=False):
                rules = rules_named(ordered(part["rule"], tuple(RULES)))
                by = BOTH if len(rules) > 1 else rules[0]
                said.append(f"{modality_name(modality)}, {by}, {read_at(one.run)}")
            key = (one.run.name, head_name(kind, layer, head))
            found.setdefault(key, {})[one.name] = "; ".join(said)
    return dict(sorted(found.items(), key=lambda entry: -len(entry[1])))


def recurring_heads(runs: Sequence[Named], found: dict[tuple[str, str], dict[str, str]]) -> View:
    """Universal heads of each checkpoint, by run."""
    rows = []
    for (model, head), cells in found.items():
        where = [cells.get(one.name, "no" if one.run.name == model else "other model") for one in runs]
        rows.append([head, model, f"{len(cells)} of {sum(one.run.name == model for one in runs)}", *where])
    header = ["head", "model", "runs", *(one.name for one in runs)]
    return table(header, rows, "Heads that are universal in at least one run, those of most runs first")


# --- head maps --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadMap:
    """The mean effects of all heads of one kind, in one run, task and corruption, read at one place."""

    run: str
    task: str
    model: str
    kind: str
    corrupt: str
    shape: tuple[int, int]
    at: str
    rows: pd.DataFrame

    @property
    def values(self) -> pd.Series:
        """The mean effects by layer and head."""
        return self.rows.set_index(["layer", "head"])["mean"].astype(float)


def head_maps(runs: Sequence[Named]) -> list[HeadMap]:
    """Every head map of every run, noise left out."""
    found = []
    for name, run in ((one.name, one.run) for one in runs):
        rows = run.measured("heads", "mean")
        rows = rows[~rows["corrupt"].isin(NOISES)]
        for (kind, corrupt), part in maps.families(rows, HEAD_KINDS, CORRUPT):
            for task in run.tasks_of(part):
                of_task = part[part["task"] == task]
                found.append(HeadMap(name, task, run.name, kind, corrupt, run.shape(rows), read_at(run), of_task))
    return found


def groups(found: Sequence[HeadMap]) -> dict[tuple[str, str], list[HeadMap]]:
    """Maps by kind and corruption."""
    grouped: dict[tuple[str, str], list[HeadMap]] = {}
    for one in found:
        grouped.setdefault((one.kind, one.corrupt), []).append(one)
    return grouped


def side_by_side(found: Sequence[HeadMap]) -> list[tuple[str, list[tuple[str, list[View]]]]]:
    """All head maps of one kind and corruption beside one another, each run's on a scale of its own."""
    shown = []
    for (kind, corrupt), part in groups(found).items():
        of_runs = []
        for run in dict.fromkeys(one.run for one in part):
            own = [one for one in part if one.run == run]
            bound = charts.limit(pd.concat([one.values for one in own]))
            drawn = [maps.head_map(one.rows, one.task, one.shape, bound) for one in own]
            of_runs.append((f"{run}, {own[0].at} (\u00b1{number(bound, 2)})", drawn))
        shown.append((heading(kind_title(kind), corruption_name(corrupt)), of_runs))
    return shown


def correlation(first: HeadMap, second: HeadMap) -> float:
    """Spearman's rank correlation of two head maps over the heads that both have; NaN where one is constant."""
    both = pd.concat([first.values, second.values], axis=1, join="inner")
    return float(both.iloc[:, 0].corr(both.iloc[:, 1], method="spearman")) if len(both) > 2 else float("nan")


def correlation_between(found: Sequence[HeadMap], same_model: bool) -> pd.Series:
    """Correlations of head maps of the same task and shape in different runs."""
    values = []
    for part in groups(found).values():
        for i, first in enumerate(part):
            for second in part[i + 1 :]:
                alike = first.task == second.task and first.run != second.run and first.shape == second.shape
                if alike and (first.model == second.model) is same_model:
                    values.append(correlation(first, second))
    return pd.Series(values, dtype=float).dropna()


def alike(found: Sequence[HeadMap]) -> list[View]:
    """Rank correlations between all head maps of one shape, kind and corruption."""
    plots = []
    for (kind, corrupt), part in groups(found).items():
        for shape in sorted({one.shape for one in part}):
            same = [one for one in part if one.shape == shape]
            if len(same) < 2:
                continue
            values = [[correlation(first, second) for second in same] for first in same]
            figure, height = charts.correlations([f"{one.run}, {one.task}" for one in same], values)
            title = f"{kind_name(kind)}, {corruption_name(corrupt)}, {shape[0]} layers of {shape[1]} heads"
            plots.append(chart(figure, title, height))
    return plots


# --- numbers by run ---------------------------------------------------------------------------------


def behaviour(runs: Sequence[Named]) -> View:
    """Share of answers that each corruption flips, by run."""
    rows = [
        [name, str(row["task"]), corruption_name(row["corrupt"]), number(row["n"]), two(row["clean_logit_diff"]),
         two(row["corrupt_logit_diff"]), with_interval(row, "flipped", percent)]
        for name, row in records(runs, "behaviour")
        if row["corrupt"] not in NOISES
    ]  # fmt: skip
    header = ["run", "task", "corruption", "examples", "clean", "corrupt", "answers that flip"]
    return table(header, rows, "Mean logit difference, clean and corrupt", (3, 4, 5, 6))


def ablation(runs: Sequence[Named]) -> View:
    """Accuracy without the selected heads, against random heads, by run."""
    rows = [
        [name, selection_name(row["selection"]), str(row["task"]), number(row["n_heads"]),
         with_interval(row, "accuracy_full", percent), with_interval(row, "accuracy", percent),
         percent(row["accuracy_random_mean"]),
         interval(row["accuracy_random_low"], row["accuracy_random_high"], percent), chance(row["p"])]
        for name, row in records(runs, "ablation")
    ]  # fmt: skip
    header = ["run", "removed", "task", "heads", "all heads", "without them", "without random ones", "range over sets",
              "p"]  # fmt: skip
    return table(header, rows, "Accuracy under mean ablation", (3, 4, 5, 6, 8))


def grounding(runs: Sequence[Named]) -> View:
    """What the average head looks at, by run: the object asked about, and its rival."""
    rows = [
        [name, str(row["task"]), kind_name(row["kind"]), number(row["n"]), with_interval(row, "lift", two),
         with_interval(row, "rival_lift", two), with_interval(row, "grounding", two)]
        for name, row in records(runs, "grounding")
    ]  # fmt: skip
    header = ["run", "task", "heads", "examples", "lift, object asked about", "lift, its rival", "difference"]
    return table(header, rows, "Attention of the average head", (3, 4, 5, 6))


def noise(runs: Sequence[Named]) -> View:
    """Rank correlations between semantic pairs and Gaussian noise, by run."""
    rows = [
        [name, str(row["task"]), corruption_name(row["modality"]), module_of(row["kind"]), two(row["spearman"]),
         interval(row["ci_low"], row["ci_high"], two), percent(row["top_overlap"])]
        for name, row in records(runs, "noise")
    ]  # fmt: skip
    header = ["run", "task", "corruption", "attention", "Spearman", "interval", "strongest heads shared"]
    return table(header, rows, "Semantic pairs against Gaussian noise", (4, 6))
