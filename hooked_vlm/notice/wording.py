"""Numbers and heads in words, as report, terminal, notebook and findings write them: shares, p-values, intervals.

Costs nothing; knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from hooked_vlm.analysis.heads import head_name
from hooked_vlm.notice.vocabulary import CORRUPT, listed

DASH: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
UNIT: Final = "\N{NO-BREAK SPACE}%"


def known(value: Any) -> bool:
    """Whether there is a number: neither None nor NaN nor infinite."""
    return value is not None and not isinstance(value, str) and math.isfinite(value)


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


def kept(row: Mapping[str, Any]) -> str:
    """How many examples of a task were kept, and under each corruption where some have one of two alone.

    >>> kept({"kept": 50, "kept_image": 50, "kept_text": 50}), kept({"kept": 50, "kept_image": 50, "kept_text": 38})
    ('50', '50 (image 50, text 38)')
    """
    counts = {name: int(row[f"kept_{name}"]) for name in CORRUPT if known(row.get(f"kept_{name}"))}
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


def carriers(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Heads of the summary's table of universal heads, each with what it carries.

    >>> carriers([{"kind": "attn-heads", "layer": 1, "head": 2, "modality": "text-only"}])
    ['attn L1.H2 (text-only)']
    """
    return [f"{head_name(row['kind'], row['layer'], row['head'])} ({row['modality']})" for row in rows]
