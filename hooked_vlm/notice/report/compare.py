"""Several runs in one report: what differs between them, which heads recur, how alike their head maps are.

Reads run.json and summary.json of each run directory and nothing else. Heads are matched by layer and head, which
means the same head only within one checkpoint; maps of different checkpoints of one shape are correlated all the
same, and the report says what that is worth. Costs a second, and 5 MB of disk for plotly.js.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hooked_vlm.analysis.heads import HEAD, RULES, head_name, module_of
from hooked_vlm.errors import RunDirectoryError, cut
from hooked_vlm.notice.claims import Verdict
from hooked_vlm.notice.directory import RUN
from hooked_vlm.notice.files import MANIFEST
from hooked_vlm.notice.report.head_maps import HeadMap, Named, alike, correlation_between, head_maps, side_by_side
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.maps import ordered, strongest_heads
from hooked_vlm.notice.report.page import Child, Part, details, page, paragraph, section, table, tag
from hooked_vlm.notice.report.words import (
    corruption_name,
    missing,
    read_at,
    spread,
    verdict,
)
from hooked_vlm.notice.report.writing import NAMED, setting
from hooked_vlm.notice.selections import selection_name
from hooked_vlm.notice.storage import place_of, whole
from hooked_vlm.notice.vocabulary import MODALITY_NAME, NOISES, listed
from hooked_vlm.notice.wording import DASH, chance, counted, interval, number, percent, two, with_interval


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
    runs = named([Loaded.read(path) for path in paths])
    text = html_of(runs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return whole(target, text.encode())
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
    maps = head_maps(runs)
    parts: list[tuple[str, str, str, list[Child]]] = [
        ("runs", "The runs", "The runs", the_runs(runs)),
        ("findings", "Findings", "What held in which run", findings(runs)),
        ("recurring", "Recurring heads", "Which heads recur", recurring(runs)),
        ("maps", "Head maps", "Head maps side by side", side_by_side(maps)),
        ("alike", "How alike", "How alike the head maps are", alike(maps)),
        ("behaviour", "The corruption", "Does the corruption change the answer?", behaviour(runs)),
        ("ablation", "Ablation", "What happens without the heads", ablation(runs)),
        ("noise", "Gaussian noise", "Semantic pairs against Gaussian noise", noise(runs)),
        ("care", "Be careful about", "What to be careful about", cautions(runs)),
    ]
    models = list(dict.fromkeys(one.run.short for one in runs))
    return page(
        f"{len(runs)} NOTICE runs compared",
        listed([one.name for one in runs]),
        tag("div", paragraph(in_short(runs, models, maps)), class_="answer"),
        [Part(id, name, section(id, title, *body)) for id, name, title, body in parts],
        tag("p", "Made by hooked-vlm from run.json and summary.json of each run. Each run has a report of its own."),
    )


def in_short(runs: Sequence[Named], models: Sequence[str], maps: Sequence[HeadMap]) -> str:
    """The comparison in a few sentences."""
    kept = sum(one.run.kept for one in runs)
    of = counted(len(models), "model")
    said = [f"{len(runs)} runs of {of} ({listed(models)}) patched {counted(kept, 'kept example')}."]
    found = selections(runs)
    short = {one.run.name: one.run.short for one in runs}
    repeated = [f"{head} of {short[model]}" for (model, head), cells in found.items() if len(cells) > 1]
    models_run = Counter(one.run.name for one in runs)
    if max(models_run.values()) < 2:
        said.append(
            "No checkpoint was run twice, so no head can recur between runs; patterns can be looked at side by side."
        )
    elif repeated:
        more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
        said.append(
            f"Universal in more than one run: {listed(repeated[:5]) if not more else ', '.join(repeated[:5]) + more}."
        )
    else:
        said.append("No head is universal in more than one run.")
    same = correlation_between(maps, same_model=True)
    other = correlation_between(maps, same_model=False)
    for values, whose in ((same, "one checkpoint"), (other, "different checkpoints of one shape")):
        if len(values):
            text = spread(values, two)
            said.append(f"Head maps of {whose}, in different runs, have rank correlations of {text}.")
    return " ".join(said)


def selections(runs: Sequence[Named]) -> dict[tuple[str, str], dict[str, str]]:
    """By model and head, the runs in which the head is universal: for which corruption and by which rule."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for one in runs:
        for (kind, layer, head), rows in one.run.table("universal").groupby(HEAD, sort=True):
            said = []
            for modality, part in rows.groupby("modality", sort=False):
                rules = ordered(part["rule"], tuple(RULES))
                by = "both rules" if len(rules) > 1 else RULES.get(rules[0], rules[0])
                said.append(f"{MODALITY_NAME.get(str(modality), str(modality))}, {by}, {read_at(one.run)}")
            key = (one.run.name, head_name(kind, layer, head))
            found.setdefault(key, {})[one.name] = "; ".join(said)
    return dict(sorted(found.items(), key=lambda entry: -len(entry[1])))


def the_runs(runs: Sequence[Named]) -> list[Child]:
    """Each run's model, tasks and examples, and the settings that differ."""
    cells = []
    for one in runs:
        model, config = one.run.model, one.run.config
        cells.append(
            [
                one.name,
                f"{model.get('layers', DASH)} layers of {model.get('heads', DASH)} heads "
                f"({model.get('stack', 'stack unknown')})",
                listed(one.run.tasks),
                listed([corruption_name(corrupt) for corrupt in config.get("corrupt") or []]),
                number(one.run.seen),
                number(one.run.kept),
            ]
        )
    header = ["run", "patched stack", "tasks", "corruption", "seen", "kept"]
    names = list(dict.fromkeys(name for one in runs for name in one.run.config))
    differ = [name for name in names if len({setting(one.run.config.get(name)) for one in runs}) > 1]
    told: list[Child] = [
        table(header, cells, caption="What was run", numeric=(4, 5)),
        tag("h3", "Settings that differ"),
    ]
    if not differ:
        return [*told, missing("All runs have the same settings.")]
    rows = [[NAMED.get(name, name), *(setting(one.run.config.get(name)) for one in runs)] for name in differ]
    return [*told, table(["setting", *(one.name for one in runs)], rows, caption="All other settings are the same")]


def findings(runs: Sequence[Named]) -> list[Child]:
    """Claims by run: whether each holds there, and on what evidence."""
    verdicts: dict[str, dict[str, Verdict]] = {}
    for one in runs:
        for found in one.run.verdicts:
            verdicts.setdefault(found.claim, {})[one.name] = found
    if not verdicts:
        return [missing("No run has a claim that could be tested.")]
    rows: list[list[Child]] = []
    evidence: list[list[Child]] = []
    for claim, by_run in verdicts.items():
        rows.append([claim, *(verdict(by_run[one.name]) if one.name in by_run else "not tested" for one in runs)])
        evidence += [[claim, name, found.evidence] for name, found in by_run.items()]
    shown = table(["claim", *(one.name for one in runs)], rows, caption="Whether a claim holds, by run", prose=True)
    return [
        shown,
        details("The evidence", table(["claim", "run", "evidence"], evidence, caption="On what evidence", prose=True)),
    ]


def recurring(runs: Sequence[Named]) -> list[Child]:
    """Universal heads of each checkpoint, by run."""
    strongest = strongest_heads([(one.name, one.run) for one in runs])
    found = selections(runs)
    if not found:
        return [missing("No head is universal in any of these runs."), *strongest]
    told: list[Child] = [
        paragraph(
            "A head is the same head only within one checkpoint: L1.H2 of one model has nothing to do with L1.H2 "
            "of another, unless one was trained from the other."
        )
    ]
    rows = []
    for (model, head), cells in found.items():
        where = [cells.get(one.name, "no" if one.run.name == model else "other model") for one in runs]
        rows.append([head, model, f"{len(cells)} of {sum(one.run.name == model for one in runs)}", *where])
    header = ["head", "model", "runs", *(one.name for one in runs)]
    return [
        *told,
        table(header, rows, caption="Heads that are universal in at least one run, those of most runs first"),
        *strongest,
    ]


def records(runs: Sequence[Named], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of one table of every run, with the run's name."""
    for one in runs:
        yield from ((one.name, row) for row in one.run.table(name).to_dict("records"))


def behaviour(runs: Sequence[Named]) -> list[Child]:
    """Share of answers that each corruption flips, by run."""
    rows = [
        [name, str(row["task"]), corruption_name(row["corrupt"]), number(row["n"]), two(row["clean_logit_diff"]),
         two(row["corrupt_logit_diff"]), with_interval(row, "flipped", percent)]
        for name, row in records(runs, "behaviour")
        if row["corrupt"] not in NOISES
    ]  # fmt: skip
    if not rows:
        return [missing("No example was kept in any of these runs.")]
    header = ["run", "task", "corruption", "examples", "clean", "corrupt", "answers that flip"]
    return [table(header, rows, caption="Mean logit difference, clean and corrupt", numeric=(3, 4, 5, 6))]


def ablation(runs: Sequence[Named]) -> list[Child]:
    """Accuracy without the selected heads, against random heads, by run."""
    rows = [
        [name, selection_name(row["selection"]), str(row["task"]), number(row["n_heads"]),
         with_interval(row, "accuracy_full", percent), with_interval(row, "accuracy", percent),
         percent(row["accuracy_random_mean"]),
         interval(row["accuracy_random_low"], row["accuracy_random_high"], percent), chance(row["p"])]
        for name, row in records(runs, "ablation")
    ]  # fmt: skip
    if not rows:
        return [missing("Nothing was ablated in any of these runs.")]
    header = [
        "run",
        "removed",
        "task",
        "heads",
        "all heads",
        "without them",
        "without random ones",
        "range over sets",
        "p",
    ]
    return [table(header, rows, caption="Accuracy under mean ablation", numeric=(3, 4, 5, 6, 8))]


def noise(runs: Sequence[Named]) -> list[Child]:
    """Rank correlations between semantic pairs and Gaussian noise, by run."""
    rows = [
        [name, str(row["task"]), corruption_name(row["modality"]), module_of(row["kind"]), two(row["spearman"]),
         interval(row["ci_low"], row["ci_high"], two), percent(row["top_overlap"])]
        for name, row in records(runs, "noise")
    ]  # fmt: skip
    if not rows:
        return [missing("None of these runs was made with Gaussian noise as well.")]
    header = ["run", "task", "corruption", "attention", "Spearman", "interval", "strongest heads shared"]
    return [table(header, rows, caption="Semantic pairs against Gaussian noise", numeric=(4, 6))]


def cautions(runs: Sequence[Named]) -> list[Child]:
    """What holds for comparisons, and what each run warns of."""
    always = [
        "Runs with different settings or examples differ for that reason too; see the settings that differ.",
        "Many correlations and heads stand here side by side. Some agree by chance.",
    ]
    said: dict[str, list[str]] = {}
    for one in runs:
        for sentence in one.run.sentences("cautions"):
            said.setdefault(sentence, []).append(one.name)
    own = [sentence if len(names) == len(runs) else f"{sentence} ({listed(names)})" for sentence, names in said.items()]
    return [tag("ul", [tag("li", sentence) for sentence in (*always, *own)])]
