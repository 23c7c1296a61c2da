"""A run's report: one HTML file that opens offline, for a reader who was not there.

Made from run.json, summary.json and figures/*.png of a run directory, and from nothing else: the same directory gives
the same file, byte for byte. Costs a second, and 5 MB of disk for plotly.js. Loads no model and reads no parquet.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hooked_vlm.notice.cautions import accepted
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.directory import REPORT, RunDirectory
from hooked_vlm.notice.report import evidence, maps, selection
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.page import Child, Markup, Part, details, facts, page, paragraph, section, table, tag
from hooked_vlm.notice.report.words import (
    answer,
    because_nothing_kept,
    corruption_name,
    kind_name,
    missing,
    tiles,
    verdict,
)
from hooked_vlm.notice.vocabulary import KINDS, listed
from hooked_vlm.notice.wording import kept, number, percent, two, with_interval

# Of the command, by name in the configuration; batch is left out, since it changes no number.
OPTIONS: Final = {
    "positions": "--positions", "select_at": "--select-at", "examples": "--examples", "seed": "--seed",
    "data": "--data", "noise": "--noise", "noise_scale": "--noise-scale", "region": "--region",
    "prompt_template": "--template", "random_draws": "--random-draws", "bootstrap": "--bootstrap",
    "device": "--device", "dtype": "--dtype", "revision": "--revision",
}  # fmt: skip
LONG: Final = 330  # letters of evidence, above which it is folded away
CLAIMS: Final = (
    "A claim holds where its interval, or its test, lies on its side, and does not hold where the interval lies on the "
    "other. Where neither is so, the run cannot tell: that is no evidence against the claim."
)
NAMED: Final = {
    "examples": "examples wanted a task",
    "seed": "seed",
    "positions": "positions patched",
    "select_at": "heads selected at",
    "data": "data",
    "noise": "Gaussian noise as well",
    "noise_scale": "standard deviations of noise",
    "prompt_template": "prompt template",
    "random_draws": "random draws of heads",
    "bootstrap": "bootstrap resamples",
    "dtype": "number format",
    "device": "device",
    "region": "region corrupted",
    "revision": "revision",
    "batch": "examples swept together",
}


def write(directory: str | Path) -> Path:
    """Write report.html of a finished run.

    Args:
        directory: of the run; holds run.json, summary.json and, where overlays were drawn, figures/.

    Returns:
        The report's path.

    Raises:
        RunDirectoryError: There is no finished run, or the file cannot be written.
    """
    run = Loaded.read(directory)
    return RunDirectory(directory).write_text(REPORT, html_of(run))


def html_of(run: Loaded) -> str:
    """The report as text."""
    parts: list[tuple[str, str, str, list[Child]]] = [
        ("findings", "Findings", "What was tested, and what held", findings(run)),
        ("run", "What was run", "What was run", what_was_run(run)),
        ("behaviour", "The corruption", "Does the corruption change the answer?", behaviour(run)),
        ("heads", "Heads", "Which heads carry the answer", maps.heads(run)),
        ("words", "Words", "At which words", maps.roles(run)),
        ("modules", "Modules", "Which modules, in which layers", maps.modules(run)),
        ("universal", "Universal heads", "Universal heads", selection.universal(run)),
        ("functions", "What heads do", "What the heads do in the image", evidence.functions(run)),
        ("ablation", "Ablation", "What happens without the heads", evidence.ablation(run)),
        ("noise", "Gaussian noise", "Semantic pairs against Gaussian noise", evidence.noise(run)),
        ("care", "Be careful about", "What to be careful about", cautions(run)),
        ("terms", "Terms", "Terms and formulas", terms()),
    ]
    started = str(run.run.get("started") or "")[:10]
    subtitle = ", ".join(
        part for part in (run.name, str(run.model.get("class") or ""), listed(run.tasks), started) if part
    )
    top = tag("div", answer(run), tiles(run))
    foot = tag(
        "p",
        "Made by hooked-vlm from run.json, summary.json and figures/. Every number can be traced to rows of the "
        "parquet files beside them: examples, effects, attention and ablation.",
    )
    return page(
        f"Which heads of {run.short} carry the answer?",
        subtitle,
        top,
        [Part(id, name, section(id, title, *body)) for id, name, title, body in parts],
        foot,
    )


def what_was_run(run: Loaded) -> list[Child]:
    """Model, tasks, corruption, examples seen and kept, settings, versions, and the command that repeats it."""
    model, config = run.model, run.config
    size = f"{model.get('layers')} layers of {model.get('heads')} heads, d_model {model.get('d_model')}"
    rows: list[tuple[str, Child]] = [
        ("Model", f"{run.name} ({model.get('class') or 'class unknown'})"),
        ("Patched stack", f"{model.get('stack') or 'unknown'}: {size}"),
        ("Tasks", listed(run.tasks)),
        ("Corruption", listed([corruption_name(corrupt) for corrupt in config.get("corrupt") or []]) or "none"),
        ("Patched", listed([kind_name(kind) for kind in config.get("kinds") or []]) or "the default kinds"),
    ]
    settings = [
        (NAMED.get(key, key), setting(value))
        for key, value in config.items()
        if key not in ("model", "tasks", "corrupt", "kinds")
    ]
    versions = [(str(name), str(version)) for name, version in (run.run.get("packages") or {}).items()]
    versions += [(f"from {when} on", listed(changes)) for when, changes in accepted(run.run)]
    if run.run.get("started"):
        versions.insert(0, ("started", str(run.run["started"])))
    return [
        facts(rows),
        tag("h3", "Examples"),
        _counts(run),
        tag("h3", "To repeat it"),
        tag("pre", tag("code", command(config)), tabindex="0"),
        details("All settings", facts(settings)),
        details("Versions", facts(versions)) if versions else None,
    ]


def _counts(run: Loaded) -> Markup:
    rows = run.table("counts").to_dict("records")
    if not rows:
        return missing("No example was seen.")
    cells: list[list[Child]] = [
        [
            str(row["task"]),
            number(row["seen"]),
            kept(row),
            with_interval(row, "accuracy", percent),
            _reasons(row["reasons"]),
        ]
        for row in rows
    ]
    return tag(
        "div",
        paragraph(
            "Patching asks where a right answer comes from, so only examples that the model answers rightly on "
            "the clean input are kept."
        ),
        table(
            ["task", "seen", "kept", "accuracy", "why others went"],
            cells,
            caption="Examples of each task",
            numeric=(1, 2, 3),
        ),
        _noted(run),
    )


def _noted(run: Loaded) -> Markup | None:
    """What was passed over in the data before it became an example."""
    rows = run.table("noted").to_dict("records")
    if not rows:
        return None
    cells: list[list[Child]] = [
        [str(row["task"]), str(row["reason"]), number(row["n"]), "; ".join(map(str, row["names"] or []))]
        for row in rows
    ]
    return details(
        "What was noted while the data was read",
        table(["task", "what", "times", "the first"], cells, caption="Noted while the data was read", numeric=(2,)),
    )


def _reasons(reasons: object) -> str:
    if not isinstance(reasons, Mapping) or not reasons:
        return "none went"
    return "; ".join(f"{reason}: {n}" for reason, n in sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0])))


def setting(value: Any) -> str:
    """A setting's value in words."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return listed([str(one) for one in value])
    return str(value)


def command(config: Mapping[str, Any]) -> str:
    """The command line that repeats a run: what it was given, and every option that is not the default."""
    words = ["hooked-vlm", "notice", str(config.get("model") or "MODEL")]
    for task in config.get("tasks") or []:
        words += ["--task", str(task)]
    corrupt = list(config.get("corrupt") or [])
    words += ["--corrupt", "both" if len(corrupt) > 1 else str(corrupt[0])] if corrupt else []
    kinds = list(config.get("kinds") or [])
    for kind in kinds if set(kinds) != set(KINDS) else ():
        words += ["--sites", str(kind)]
    usual = {field.name: field.default for field in dataclasses.fields(NoticeConfig)}
    for name, option in OPTIONS.items():
        value = config.get(name)
        if name in ("examples", "seed") or (value is not None and value != usual.get(name)):
            words += [option] if value is True else [option, str(value)]
    return " ".join([shlex.quote(word) for word in words] + ["--out DIR"])


def behaviour(run: Loaded) -> list[Child]:
    """Clean and corrupt logit differences, and how many answers flip."""
    rows = run.table("behaviour").to_dict("records")
    if not rows:
        return [
            missing(
                "No example was kept, so there is no corrupted run to look at."
                if not run.kept
                else "Nothing was recorded about it."
            )
        ]
    cells: list[list[Child]] = [
        [
            str(row["task"]),
            corruption_name(row["corrupt"]),
            number(row["n"]),
            with_interval(row, "clean_logit_diff", two),
            with_interval(row, "corrupt_logit_diff", two),
            with_interval(row, "flipped", percent),
        ]
        for row in rows
    ]
    return [
        paragraph(
            "The logit difference is logit(right) less logit(wrong). A corruption that works makes it negative: "
            "the model then prefers the other answer, and there is something for a patch to restore."
        ),
        table(
            ["task", "corruption", "examples", "clean", "corrupt", "answers that flip"],
            cells,
            caption="Mean logit difference, clean and corrupt",
            numeric=(2, 3, 4, 5),
        ),
    ]


def findings(run: Loaded) -> list[Child]:
    """Claims, whether they hold, and the evidence."""
    if not run.verdicts:
        return [missing(f"No claim could be tested{because_nothing_kept(run)}.")]
    entries = []
    for found in run.verdicts:
        said = paragraph(found.evidence, class_="note")
        shown = details("The evidence", said) if len(found.evidence) > LONG else said
        entries.append(tag("li", verdict(found), tag("div", paragraph(tag("strong", found.claim)), shown)))
    return [paragraph(CLAIMS), tag("ul", entries, class_="findings")]


def cautions(run: Loaded) -> list[Child]:
    """What the summary warns of, and what holds for every run."""
    told = run.sentences("cautions")
    always = (
        "A patch shows that a head's output suffices to move the answer here, not that it is needed; the "
        "ablation asks the second question.",
    )
    return [tag("ul", [tag("li", sentence) for sentence in (*told, *always)])]


def terms() -> list[Child]:
    """The formulas behind the numbers."""
    return [
        facts(
            [
                ("Logit difference L", "logit(right answer) less logit(wrong answer), at the position that answers."),
                ("Patching effect", "L(patched) less L(corrupt): one clean activation put into the corrupt run."),
                ("Restoration", "P(right answer) in the patched run less P(right answer) in the corrupt run."),
                (
                    "Normalised effect",
                    "(L(patched) less L(corrupt)) / (L(clean) less L(corrupt)); 1 restores everything.",
                ),
                (
                    "p and q",
                    "p: sign-flip permutation over examples; q: p after Benjamini and Hochberg's correction over "
                    "all heads.",
                ),
                (
                    "Interval",
                    "95 %, over examples: exact (Clopper and Pearson) for shares; Student's for a head elsewhere than "
                    "where it is read; by resampling for the rest. None where all examples gave the same number.",
                ),
                ("LX.HY", "layer X, head Y, both counted from 0."),
                ("Source", "Golovanevsky et al., What Do VLMs NOTICE?, NAACL 2025."),
            ]
        )
    ]
