"""Which sets of heads a run ablates and draws, chosen from its summary. Costs nothing; knows no model and no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

from hooked_vlm.analysis.heads import MODALITIES, MULTIMODAL, Head
from hooked_vlm.notice.schema import Corrupt, RuleName, Selection
from hooked_vlm.notice.vocabulary import CORRUPT
from hooked_vlm.notice.wording import known

BY_RULE: Final[tuple[RuleName, ...]] = get_args(RuleName)
TOP: Final = 3  # heads that are ablated as the strongest, and drawn, whatever the rules say of them


def to_ablate(summary: Mapping[str, Any]) -> dict[Selection, list[Head]]:
    """The sets of heads to ablate, from a run's summary.

    Universal heads of each corruption by the FDR-controlled rule, by the paper's where that selects others, and the
    strongest heads, so that there is something to compare where no head is universal.
    """
    found: dict[Selection, list[Head]] = {}
    for corrupt in CORRUPT:
        top = strongest(summary, corrupt)
        sets = {Selection("universal", corrupt, rule): _universal(summary, corrupt, rule) for rule in BY_RULE}
        for selection, heads in {**sets, Selection("strongest", corrupt, n=len(top)): top}.items():
            if heads and sorted(heads) not in map(sorted, found.values()):
                found[selection] = heads
    return dict(sorted(found.items(), key=lambda item: item[0].order))


def to_draw(summary: Mapping[str, Any]) -> list[Head]:
    """The heads whose attention is drawn: the strongest under each corruption."""
    return list(dict.fromkeys(head for corrupt in CORRUPT for head in strongest(summary, corrupt)))


def strongest(summary: Mapping[str, Any], corrupt: str, n: int = TOP) -> list[Head]:
    """The heads with the largest mean |effect| over tasks, under one corruption."""
    sizes: dict[Head, list[float]] = {}
    for row in summary["heads"]:
        if row["corrupt"] == corrupt and known(row["mean_abs"]):
            sizes.setdefault((row["kind"], row["layer"], row["head"]), []).append(row["mean_abs"])
    means = {head: sum(each) / len(each) for head, each in sizes.items()}
    return sorted(means, key=lambda head: (-means[head], head))[:n]


def _universal(summary: Mapping[str, Any], corrupt: Corrupt, rule: RuleName) -> list[Head]:
    modalities = (MULTIMODAL, MODALITIES[corrupt])
    rows = [row for row in summary["universal"] if row["rule"] == rule and row["modality"] in modalities]
    return [(row["kind"], row["layer"], row["head"]) for row in rows]


# Every set that a run may have ablated, by its name in files; those of earlier versions have the same names.
NAMED: Final = {
    selection.name: selection
    for corrupt in CORRUPT
    for selection in (
        *(Selection("universal", corrupt, rule) for rule in BY_RULE),
        *(Selection("strongest", corrupt, n=n) for n in range(1, TOP + 1)),
    )
}


def order(name: str) -> tuple[Any, ...]:
    """Where the set of a name stands, see `Selection.order`; one that no run made comes last."""
    return (*(NAMED[name].order if name in NAMED else (True, True, True)), name)


def selection_name(selection: object) -> str:
    """The set of a name in words.

    >>> selection_name("universal image, paper's rule"), selection_name("strongest 3 text")
    ("universal heads (image, paper's rule)", '3 strongest heads (text)')
    """
    name = str(selection)
    return str(NAMED[name]) if name in NAMED else f"heads of \u201c{name}\u201d"
