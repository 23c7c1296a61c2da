"""Numbers, heads, places, kinds and corruptions in words: what every sentence and table cell is made of.

Costs nothing; knows no run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pandas as pd

from hooked_vlm.analysis.heads import MULTIMODAL, RULES, head_name, module_of, of_heads
from hooked_vlm.notice.schema import PAPERS, Counts, Selection, Universal, known
from hooked_vlm.notice.vocabulary import EVERY

MODALITY_NAME: Final = {
    "vision-only": "image alone",
    "text-only": "text alone",
    MULTIMODAL: "image and text",
}  # what heads carry
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
PLACE: Final = {
    "subject": "the subject", "answer": "the answer's word", "wrong answer": "the wrong answer's word",
    "other": "other words", "punctuation": "punctuation", "last": "the last token", "image": "image tokens",
    "template": "the template's tokens", "special": "special tokens", EVERY: EVERY + " at once",
}  # fmt: skip
DASH: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
UNIT: Final = "\N{NO-BREAK SPACE}%"


def number(value: Any, digits: int = 3) -> str:
    """A number with a real minus sign, or a dash where there is none.

    >>> number(-0.12345), number(float("nan")), number(12)
    ('\N{MINUS SIGN}0.123', '\N{EN DASH}', '12')
    """
    if not known(value):
        return DASH
    if isinstance(value, int):
        return str(value).replace("-", MINUS)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


def percent(share: Any) -> str:
    """A share of one as per cent, a decimal only where it says something.

    >>> percent(0.98).replace("\N{NO-BREAK SPACE}", " "), percent(None)
    ('98 %', '\N{EN DASH}')
    """
    return f"{100 * share:.1f}".removesuffix(".0").replace("-", MINUS) + "\N{NO-BREAK SPACE}%" if known(share) else DASH


def interval(low: Any, high: Any, written: Any = number) -> str:
    """An interval in brackets, or nothing where there is none."""
    return f"[{written(low)},\N{NO-BREAK SPACE}{written(high)}]" if known(low) and known(high) else ""


def estimate(value: Any, low: Any, high: Any, written: Callable[[Any], str] = number) -> str:
    """A number followed by its interval, where there is one.

    >>> estimate(0.5, 0.25, 0.75, two), estimate(0.5, None, None, two)
    ('0.50 [0.25,\N{NO-BREAK SPACE}0.75]', '0.50')
    """
    return f"{written(value)} {interval(low, high, written) if known(value) else ''}".strip()


def chance(p: Any) -> str:
    """A p-value (or q-value) as it is usually written.

    >>> chance(0.0004), chance(0.031)
    ('< 0.001', '0.031')
    """
    if not known(p):
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def counted(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun.

    >>> counted(1, "head"), counted(3, "head")
    ('1 head', '3 heads')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def kept(row: Counts) -> str:
    """How many examples of a task were kept, and under each corruption where some have one of two alone.

    >>> kept({"kept": 50, "kept_image": 50, "kept_text": 50}), kept({"kept": 50, "kept_image": 50, "kept_text": 38})
    ('50', '50 (image 50, text 38)')
    """
    both = {"image": row.get("kept_image"), "text": row.get("kept_text")}
    counts = {name: int(n) for name, n in both.items() if n is not None and known(n)}
    if set(counts.values()) <= {int(row["kept"])}:
        return number(int(row["kept"]))
    return f"{number(int(row['kept']))} ({', '.join(f'{name} {number(n)}' for name, n in counts.items())})"


def with_interval(row: Mapping[str, Any], column: str, written: Callable[[Any], str] = number) -> str:
    """A number of a row followed by its interval, where summary.json has one."""
    return estimate(row.get(column), row.get(f"{column}_low"), row.get(f"{column}_high"), written)


def two(value: Any) -> str:
    """A number with two decimals."""
    return number(value, 2)


def first_of(names: Iterable[str], most: int = 4) -> str:
    """Names as English lists them, the first few and how many more there are.

    >>> first_of("abc"), first_of("abcdef")
    ('a, b and c', 'a, b, c, d and 2 more')
    """
    every = list(names)
    return listed([*every[:most], f"{len(every) - most} more"] if len(every) > most else every)


def carriers(rows: Iterable[Universal]) -> list[str]:
    """Heads of the summary's table of universal heads, each with what it carries.

    >>> carriers([{"kind": "attn-heads", "layer": 1, "head": 2, "modality": "text-only"}])
    ['attn L1.H2 (text-only)']
    """
    return [f"{head_name(row['kind'], row['layer'], row['head'])} ({row['modality']})" for row in rows]


# --- names ---


def at_place(role: object) -> str:
    """Where something was patched, in words: an effect is the effect at a place.

    >>> at_place("answer"), at_place("every position")
    ("at the answer's word", 'at every position at once')
    """
    return f"at {PLACE.get(str(role), f'{role} tokens')}"


def listed(names: Iterable[str]) -> str:
    """Names as English lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last


def selection_name(selection: Selection) -> str:
    """A set of heads in words.

    >>> selection_name(Selection("universal", "image", "paper")), selection_name(Selection("strongest", "text", n=3))
    ("universal heads (image, paper's rule)", '3 strongest heads (text)')
    """
    which = selection.how if selection.n is None else f"{selection.n} {selection.how}"
    return f"{which} heads ({selection.corrupt}{PAPERS * (selection.rule == 'paper')})"


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


def heading(*parts: str) -> str:
    """The heading of a row of charts."""
    text = ", ".join(parts)
    return text[0].upper() + text[1:]


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
