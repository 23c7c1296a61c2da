"""Which sets of heads a run ablates and draws, chosen from its summary, and the names they go by.

The names are "universal image", "universal image, paper's rule" and "strongest 3 image", and so for text. Costs
nothing; knows no model and no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from hooked_vlm.analysis.heads import MODALITIES, MULTIMODAL, Head
from hooked_vlm.notice.vocabulary import CORRUPT

TOP: Final = 3  # heads that are ablated as the strongest, and drawn, whatever the rules say of them
NAME: Final = re.compile(r"(?P<how>universal|strongest)(?: (?P<n>\d+))? (?P<corrupt>image|text)(?:, (?P<rule>.+))?")


def to_ablate(summary: Mapping[str, Any]) -> dict[str, list[Head]]:
    """The sets of heads to ablate, from a run's summary, by name.

    Universal heads of each corruption by the FDR-controlled rule, by the paper's where that selects others, and the
    strongest heads, so that there is something to compare where no head is universal.
    """
    found: dict[str, list[Head]] = {}
    for corrupt in CORRUPT:
        sets = {
            f"universal {corrupt}": _universal(summary, corrupt, "fdr"),
            f"universal {corrupt}, paper's rule": _universal(summary, corrupt, "paper"),
        }
        top = strongest(summary, corrupt)
        sets[f"strongest {len(top)} {corrupt}"] = top
        for name, heads in sets.items():
            if heads and sorted(heads) not in map(sorted, found.values()):
                found[name] = heads
    return dict(sorted(found.items(), key=lambda item: order(item[0])))


def strongest(summary: Mapping[str, Any], corrupt: str, n: int = TOP) -> list[Head]:
    """The heads with the largest mean |effect| over tasks, under one corruption."""
    sizes: dict[Head, list[float]] = {}
    for row in summary["heads"]:
        if row["corrupt"] == corrupt and row["mean_abs"] is not None:
            sizes.setdefault((row["kind"], row["layer"], row["head"]), []).append(row["mean_abs"])
    means = {head: sum(each) / len(each) for head, each in sizes.items()}
    return sorted(means, key=lambda head: (-means[head], head))[:n]


def _universal(summary: Mapping[str, Any], corrupt: str, rule: str) -> list[Head]:
    modalities = (MULTIMODAL, MODALITIES[corrupt])
    rows = [row for row in summary["universal"] if row["rule"] == rule and row["modality"] in modalities]
    return [(row["kind"], row["layer"], row["head"]) for row in rows]


def order(name: str) -> tuple[bool, bool, bool, str]:
    """Where a set stands: universal before strongest, the FDR-controlled rule's first, image before text."""
    match = NAME.fullmatch(name)
    if match is None:
        return True, True, True, name
    return match["how"] != "universal", match["rule"] is not None, match["corrupt"] != "image", name


def selection_name(selection: object) -> str:
    """A set of ablated heads in words.

    >>> selection_name("universal image, paper's rule"), selection_name("strongest 3 text")
    ("universal heads (image, paper's rule)", '3 strongest heads (text)')
    """
    match = NAME.fullmatch(str(selection))
    if match is None:
        return f"heads of \u201c{selection}\u201d"
    how, n, corrupt, rule = match["how"], match["n"], match["corrupt"], match["rule"]
    which = "universal" if n is None else f"{n} {how}"
    return f"{which} heads ({corrupt}{', ' + rule if rule else ''})"
