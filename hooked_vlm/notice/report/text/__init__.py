"""What report, comparison, notebook and terminal say of a run: every sentence made from its numbers, each made once.

`words` puts numbers, heads and places, `verdicts` the verdicts, `cautions` what to be careful about, `places` where
heads are strong; here is what a first screen, a comparison and a terminal say of a whole run. Each says how sure it is;
where something was not measured, it says that. What stands on every page alike is written in its template. Knows no
chart and no markup.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from hooked_vlm.analysis import universal_heads
from hooked_vlm.analysis.heads import HEAD, RULES, head_at, head_name, of_heads
from hooked_vlm.notice import claims, selections
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.text import places, verdicts
from hooked_vlm.notice.report.text.cautions import FEW, about_sentences, cautions, numbers_of
from hooked_vlm.notice.report.text.words import (
    at_place,
    carriers,
    corruption_name,
    counted,
    first_of,
    listed,
    number,
    percent,
    selection_name,
    spread,
    two,
)
from hooked_vlm.notice.vocabulary import CORRUPT, KINDS

# Of the configuration: what a setting is called, and its option on the command line ("" for one that changes no number,
# or has a place of its own there).
SETTINGS: Final = {
    "positions": ("positions patched", "--positions"),
    "select_at": ("heads selected at", "--select-at"),
    "examples": ("examples wanted a task", "--examples"),
    "seed": ("seed", "--seed"),
    "data": ("data", "--data"),
    "noise": ("Gaussian noise as well", "--noise"),
    "noise_scale": ("standard deviations of noise", "--noise-scale"),
    "region": ("region corrupted", "--region"),
    "watch_at": ("attention watched from", "--watch-at"),
    "as_published": ("as published", "--as-published"),
    "published_off_by_one": ("published positions off by one", "--published-off-by-one"),
    "prompt_template": ("prompt template", "--template"),
    "random_draws": ("random draws of heads", "--random-draws"),
    "bootstrap": ("bootstrap resamples", "--bootstrap"),
    "device": ("device", "--device"),
    "dtype": ("number format", "--dtype"),
    "revision": ("revision", "--revision"),
    "batch": ("examples swept together", ""),
}


# --- of a run ---


def head_label(run: Loaded, kind: object, layer: Any, head: Any) -> str:
    """A head, with its kind where a run has more than one kind of heads."""
    several = run.table("heads")["kind"].nunique() > 1
    return head_name(kind, layer, head) if several else head_at(layer, head)


def read_at(run: Loaded) -> str:
    """Where a run's heads were read, in words: "at the answer's word"; "" where none was patched."""
    roles = dict.fromkeys(place for kind, place in (run.summary.get("select_at") or {}).items() if of_heads(kind))
    return listed([at_place(role) for role in roles])


def because_nothing_kept(run: Loaded) -> str:
    """Why there may be no effects at all."""
    return "" if run.kept else " (no example was kept)"


def setting(value: Any) -> str:
    """A setting's value in words."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return listed([str(one) for one in value]) if isinstance(value, list | tuple) else str(value)


def setting_name(name: str) -> str:
    """What a setting is called."""
    return SETTINGS.get(name, (name, ""))[0]


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
    for name, (_, option) in SETTINGS.items():
        value = config.get(name)
        if option and (name in ("examples", "seed") or (value is not None and value != usual.get(name))):
            words += [option] if value is True else [option, str(value)]
    return " ".join([shlex.quote(word) for word in words] + ["--out DIR"])


def verdicts_of(run: Loaded) -> list[verdicts.Told]:
    """What a run shows, in words."""
    return [verdicts.told(verdict) for verdict in run.summary.get("findings") or []]


def cautions_of(run: Loaded) -> list[str]:
    """What to be careful about."""
    return cautions(run.summary, run.run)


def disagreements(run: Loaded) -> list[str]:
    """Where the two rules select other heads, and why."""
    if "disagreements" in run.summary:
        return run.summary["disagreements"]
    rows = pd.DataFrame(run.summary["heads"])
    rows = rows.where(rows.notna(), float("nan"))  # a number that is missing is null there
    return universal_heads.disagreements(rows, numbers_of(run.summary), at=read_at(run)) if len(rows) else []


# --- a run's first screen ---------------------------------------------------------------------------


def as_published(run: Loaded) -> str:
    """That a run is as published, and what that means; "" where it is not."""
    if not run.config.get("as_published"):
        return ""
    where = "the token before the answer's" if run.config.get("published_off_by_one") else "the answer's token alone"
    return (
        f"This run is as published, to be compared with the released NOTICE code: heads are read at {where} (BLIP: its "
        "first, LLaVA: its last), corrupt prompts have other words for both answers, and what is called the paper's "
        "rule here is the released code's: a mean |P_patched|, which is no effect, of at least the mean plus 2 "
        "population SD over all heads. The FDR-controlled rule is the same as ever."
    )


def headlines(run: Loaded) -> list[str]:
    """What a reader who sees nothing else is told: the headline verdicts, and the strongest heads after the first."""
    return [sentence for sentence in (as_published(run), *_headlines(run)) if sentence]


def _headlines(run: Loaded) -> list[str]:
    if not run.seen:
        return ["No example was seen, so there is nothing to say about this model yet."]
    if not run.kept:
        return [
            f"Nothing could be patched: none of the {counted(run.seen, 'example')} could be kept, and patching asks "
            "where a right answer comes from. The reasons are counted below."
        ]
    found = verdicts.headlines(verdicts_of(run))
    summary = run.summary
    where = places.localised(summary.get("localised") or [])[:1]
    alone = places.for_one_answer(summary.get("answers") or [])
    heads = [found.get("universal"), *strongest(run), *where, *alone]
    told = [*heads, found.get("harm"), *_labelled(run), found.get("noise")]
    return [sentence for sentence in told if sentence]


def basis(run: Loaded) -> str:
    """How much stands behind the answer of a run that kept examples."""
    counts = run.table("counts")
    least = min((claims.fewest(row) for row in counts.fillna({"kept": 0}).to_dict("records")), default=0)
    text = f"This rests on {run.kept:,} of {counted(run.seen, 'example')} in {counted(len(counts), 'task')}"
    text += f", {least} in the smallest. " if len(counts) > 1 else ". "
    if least < FEW:
        return text + "So few examples a task give hints, not results."
    return text + "It describes this checkpoint on these tasks; whether it holds beyond them was not tested here."


def strongest(run: Loaded) -> list[str]:
    """The strongest heads under the first corruption that was run: where they were read, and elsewhere."""
    records = run.summary.get("strongest") or []
    told = (places.told(records, corrupt) for corrupt in CORRUPT)
    return next((sentences for sentences in told if sentences), [])


MARKS: Final = {"looks at objects": "looking at objects, whichever is asked about", "undecided": "undecided as yet"}


def _labelled(run: Loaded) -> list[str]:
    rows, chosen = run.table("functions"), run.table("universal")[HEAD].drop_duplicates()
    if rows.empty:
        return []
    whose = "Of the universal heads" if len(chosen) else "Of all heads"
    rows = chosen.merge(rows, on=HEAD) if len(chosen) else rows
    named = rows[rows["label"].fillna("none") != "none"]
    if named.empty:
        return [f"{whose}, none has an attention on the image that one of the paper's labels fits."]
    counts = []
    for label, part in named.groupby("label", sort=True):
        heads = first_of(head_name(*head) for head in part[HEAD].itertuples(index=False))
        counts.append(f"{len(part)} as {MARKS.get(str(label), label)} ({heads})")
    return [f"{whose}, attention on the image marks {listed(counts)}."]


def tiles(run: Loaded) -> list[tuple[str, str]]:
    """The figures that a reader looks for first, and what they are."""
    shown = [(f"{run.kept:,} of {run.seen:,}", "examples seen were kept")]
    behaviour = run.table("behaviour")
    for corrupt in CORRUPT:
        shares = behaviour.loc[behaviour["corrupt"] == corrupt, "flipped"].dropna().astype(float)
        if len(shares):
            shown.append((spread(shares, percent), f"of answers flip: {corruption_name(corrupt)}"))
    if len(run.table("heads")):
        fdr, paper = ((run.table("universal")["rule"] == rule).sum() for rule in RULES)
        shown.append((f"{fdr} and {paper}", "universal heads, by the FDR-controlled rule and by the paper's"))
    rows = run.table("ablation").dropna(subset=["accuracy", "accuracy_full", "accuracy_random_mean"])
    if len(rows):
        selection = min(rows["selection"], key=lambda each: each.order)
        rows = rows[rows["selection"] == selection].set_index("task")
        losses = [
            number(100 * (rows[column].astype(float) - rows["accuracy_full"].astype(float)).mean(), 1)
            for column in ("accuracy", "accuracy_random_mean")
        ]
        what = f"points of accuracy without the {selection_name(selection)} and without random ones"
        shown.append((" and ".join(losses), what))
    rho = run.table("noise")["spearman"].dropna().astype(float)
    return [*shown, (spread(rho, two), "rank correlation with Gaussian noise")] if len(rho) else shown


# --- several runs -----------------------------------------------------------------------------------


def compared(runs: Sequence[Loaded], recurring: Sequence[str], alike: Mapping[str, pd.Series]) -> str:
    """A comparison in a few sentences.

    Args:
        runs: all of them.
        recurring: heads that are universal in more than one run, with their models.
        alike: rank correlations of head maps in different runs, by whose maps they are.
    """
    models = list(dict.fromkeys(run.short for run in runs))
    kept = counted(sum(run.kept for run in runs), "kept example")
    said = [f"{len(runs)} runs of {counted(len(models), 'model')} ({listed(models)}) patched {kept}."]
    if len({run.name for run in runs}) == len(runs):
        said.append(
            "No checkpoint was run twice, so no head can recur between runs; patterns can be looked at side by side."
        )
    elif recurring:
        said.append(f"Universal in more than one run: {first_of(recurring, 5)}.")
    else:
        said.append("No head is universal in more than one run.")
    said += _of_methods(runs)
    said += [
        f"Head maps of {whose}, in different runs, have rank correlations of {spread(values, two)}."
        for whose, values in alike.items()
        if len(values)
    ]
    looks = [look for run in runs if (look := _average_look(run))]
    if looks:
        said.append(
            "Lift of the average head on the object asked about and on its rival, mean over tasks: "
            f"{listed(dict.fromkeys(looks))}."
        )
    return " ".join(said)


def _average_look(run: Loaded) -> str:
    """Where the average head of a run looks; "" where there are no masks of both objects."""
    rows = run.table("grounding")
    if rows.empty:
        return ""
    return f"{two(rows['lift'].mean())} and {two(rows['rival_lift'].mean())} in {run.short}"


def _of_methods(runs: Sequence[Loaded]) -> list[str]:
    """Which of several runs are as published, and what that means for a comparison; nothing where none is."""
    published = [run for run in runs if run.config.get("as_published")]
    if not published:
        return []
    if len(published) < len(runs):
        return [
            f"{len(published)} of the {len(runs)} runs {'is' if len(published) == 1 else 'are'} as published: corrupt "
            "prompts, positions and what is called the paper's rule are others there, so heads and ranks that differ "
            "between the two may be the method's and not the model's."
        ]
    said = ["All of them are as published: what is called the paper's rule is the released code's."]
    if len({bool(run.config.get("published_off_by_one")) for run in published}) > 1:
        said.append("Some of them read the token before the answer's.")
    return said


# --- the terminal -----------------------------------------------------------------------------------


def ending(run: Loaded) -> list[str]:
    """The lines that a finished run leaves on the terminal, between the counts and the verdicts."""
    summary, said = run.summary, []
    for row in summary["noted"]:
        names = [*row["names"], *(["..."] if row["n"] > len(row["names"]) else [])]
        said.append(f"Noted in the data of {row['task']}, {row['n']} times: {row['reason']} ({'; '.join(names)})")
    said += about_sentences(summary["counts"], summary["config"])
    if not any(row["kept"] for row in summary["counts"]):
        said.append("Nothing was patched: no example was kept, for the reasons above")
    for corrupt in CORRUPT:
        if heads := selections.strongest(summary["heads"], corrupt):
            named = ", ".join(head_name(*head) for head in heads)
            said.append(f"Strongest under {corrupt} corruption, {read_at(run)}: {named}")
            said += [f"  {sentence}" for sentence in places.told(summary["strongest"], corrupt)]
    said += places.localised(summary.get("localised") or [])
    said += places.for_one_answer(summary.get("answers") or [])
    for rule in RULES if summary["heads"] else ():
        told = carriers(row for row in summary["universal"] if row["rule"] == rule)
        alone = ", in the one task there is" if told and len(summary["counts"]) == 1 else ""
        said.append(f"Universal by {RULES[rule]}{alone}: {', '.join(told) or 'none'}")
    return said
