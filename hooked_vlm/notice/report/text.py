"""What report, comparison, notebook and terminal say of a run: its words, and every sentence made from its numbers.

Each sentence is made here once, from summary.json, and says how sure it is; where something was not measured, it says
that. Verdicts bring sentences of their own (`claims.Verdict.told`), the strongest heads theirs (`places.told`). What
stands on every page alike is written in its template. Knows no chart and no markup.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from hooked_vlm.analysis.heads import HEAD, RULES, head_at, head_name, module_of, of_heads
from hooked_vlm.notice import claims, places, selections
from hooked_vlm.notice.cautions import about_sentences
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.selections import selection_name
from hooked_vlm.notice.vocabulary import CORRUPT, FEW, KINDS, MODALITY_NAME, at_place, listed
from hooked_vlm.notice.wording import (
    UNIT,
    carriers,
    counted,
    estimate,
    first_of,
    known,
    number,
    percent,
    two,
)

KIND: Final = {
    "cross_attn-heads": "cross-attention heads",
    "attn-heads": "self-attention heads",
    "cross_attn": "cross-attention",
    "attn": "self-attention",
    "mlp": "MLP",
    "resid": "residual stream",
}
CORRUPTION: Final = {
    "image": "image swapped for its pair",
    "text": "word replaced in the prompt",
    "image_noise": "Gaussian noise on the image",
    "text_noise": "Gaussian noise on the prompt",
}
FDR, PAPER, BOTH, NEITHER = *RULES.values(), "both rules", "neither rule"
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
    "prompt_template": ("prompt template", "--template"),
    "random_draws": ("random draws of heads", "--random-draws"),
    "bootstrap": ("bootstrap resamples", "--bootstrap"),
    "device": ("device", "--device"),
    "dtype": ("number format", "--dtype"),
    "revision": ("revision", "--revision"),
    "batch": ("examples swept together", ""),
}


# --- words ------------------------------------------------------------------------------------------


def kind_name(kind: object) -> str:
    """A kind of site in words."""
    return KIND.get(str(kind), str(kind))


def kind_title(kind: object) -> str:
    """A kind of heads in words, with the spelling that names of heads use.

    >>> kind_title("attn-heads")
    'self-attention heads (attn)'
    """
    return f"{kind_name(kind)} ({module_of(kind)})" if of_heads(kind) else kind_name(kind)


def corruption_name(corrupt: object) -> str:
    """A corruption in words."""
    return CORRUPTION.get(str(corrupt), str(corrupt))


def modality_name(modality: object) -> str:
    """What a head carries, in words."""
    return MODALITY_NAME.get(str(modality), str(modality))


def rules_named(rules: Iterable[object]) -> list[str]:
    """Rules in words."""
    return [RULES.get(str(rule), str(rule)) for rule in rules]


def rule_of(paper: object, fdr: object) -> str:
    """Which rule selects a head, in words."""
    if paper is True or fdr is True:
        return BOTH if paper is fdr else PAPER if paper is True else FDR
    return NEITHER


def head_label(run: Loaded, kind: object, layer: Any, head: Any) -> str:
    """A head, with its kind where a run has more than one kind of heads."""
    several = run.table("heads")["kind"].nunique() > 1
    return head_name(kind, layer, head) if several else head_at(layer, head)


def read_at(run: Loaded) -> str:
    """Where a run's heads were read, in words: "at the answer's word"; "" where none was patched."""
    roles = dict.fromkeys(place for kind, place in (run.summary.get("select_at") or {}).items() if of_heads(kind))
    return listed([at_place(role) for role in roles])


def heading(*parts: str) -> str:
    """The heading of a row of charts."""
    text = ", ".join(parts)
    return text[0].upper() + text[1:]


def because_nothing_kept(run: Loaded) -> str:
    """Why there may be no effects at all."""
    return "" if run.kept else " (no example was kept)"


def spread(values: pd.Series, written: Callable[[Any], str]) -> str:
    """The least and the greatest of some numbers, or the one there is.

    >>> spread(pd.Series([0.97, 1.0]), percent)
    '97 to 100\N{NO-BREAK SPACE}%'
    """
    low, high = written(values.min()), written(values.max())
    return low if low == high else f"{low.removesuffix(UNIT)} to {high}"


def scored(function: Mapping[str, Any]) -> str:
    """What a head's label rests on, with its interval.

    >>> scored({"scored": "lift", "score": 3.1, "ci_low": 2.4, "ci_high": 3.9})
    'lift 3.10 [2.40,\N{NO-BREAK SPACE}3.90]'
    """
    if not known(function.get("score")):
        return ""
    value = estimate(function["score"], function.get("ci_low"), function.get("ci_high"), two)
    return f"{function.get('scored') or ''} {value}".strip()


def reasons(of: object) -> str:
    """Why examples of a task were not kept, the most frequent reason first; "" where all were."""
    counts = of if isinstance(of, Mapping) else {}
    return "; ".join(f"{reason}: {n}" for reason, n in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


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


# --- a run's first screen ---------------------------------------------------------------------------


def headlines(run: Loaded) -> list[str]:
    """What a reader who sees nothing else is told: the headline verdicts, and the strongest heads after the first."""
    if not run.seen:
        return ["No example was seen, so there is nothing to say about this model yet."]
    if not run.kept:
        return [
            f"Nothing could be patched: none of the {counted(run.seen, 'example')} could be kept, and patching asks "
            "where a right answer comes from. The reasons are counted below."
        ]
    found = {verdict.about: verdict.told for verdict in claims.headlines(run.verdicts)}
    told = [found.get("universal"), *strongest(run), found.get("harm"), *_labelled(run), found.get("noise")]
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


def _labelled(run: Loaded) -> list[str]:
    rows, chosen = run.table("functions"), run.table("universal")[HEAD].drop_duplicates()
    if rows.empty:
        return []
    whose = "Of the universal heads" if len(chosen) else "Of all heads"
    rows = chosen.merge(rows, on=HEAD) if len(chosen) else rows
    named = rows[rows["label"].fillna("none") != "none"]
    if named.empty:
        return [f"{whose}, none has an attention on the image that one of the paper's labels fits."]
    counts = [
        f"{len(part)} as {label} ({first_of(head_name(*head) for head in part[HEAD].itertuples(index=False))})"
        for label, part in named.groupby("label", sort=True)
    ]
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
        selection = min(rows["selection"], key=selections.order)
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
    said += [
        f"Head maps of {whose}, in different runs, have rank correlations of {spread(values, two)}."
        for whose, values in alike.items()
        if len(values)
    ]
    return " ".join(said)


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
        if heads := selections.strongest(summary, corrupt):
            named = ", ".join(head_name(*head) for head in heads)
            said.append(f"Strongest under {corrupt} corruption, {read_at(run)}: {named}")
            said += [f"  {sentence}" for sentence in places.told(summary["strongest"], corrupt)]
    for rule in RULES if summary["heads"] else ():
        told = carriers(row for row in summary["universal"] if row["rule"] == rule)
        alone = ", in the one task there is" if told and len(summary["counts"]) == 1 else ""
        said.append(f"Universal by {RULES[rule]}{alone}: {', '.join(told) or 'none'}")
    return said
