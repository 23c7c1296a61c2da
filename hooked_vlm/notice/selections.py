"""Which sets of heads a run ablates and draws, chosen from its summary. Costs nothing; knows no model and no file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, get_args

from hooked_vlm.analysis.heads import MODALITIES, MULTIMODAL, Head
from hooked_vlm.notice.schema import Corrupt, HeadEffect, RuleName, Selection, Universal, known
from hooked_vlm.notice.vocabulary import CORRUPT

BY_RULE: Final[tuple[RuleName, ...]] = get_args(RuleName)
LABELLED: Final = 8  # heads of a task whose attention is changed: those that matter most
TOP: Final = 3  # heads that are ablated as the strongest, and drawn, whatever the rules say of them


@dataclass(frozen=True)
class HeldOut:
    """Sets of heads, and the examples that judge them.

    Args:
        examples: ids of a task's examples, none of which had a say in the choice.
        sets: heads by how they were chosen.
    """

    examples: frozenset[str]
    sets: dict[Selection, list[Head]]


@dataclass(frozen=True)
class Tested:
    """Heads whose attention is changed, and the examples in which it is.

    Args:
        examples: ids of a task's examples, none of which had a say in the choice.
        heads: those that matter most in the others.
    """

    examples: frozenset[str]
    heads: list[Head]


def to_ablate(heads: Iterable[HeadEffect], universal: Iterable[Universal]) -> dict[Selection, list[Head]]:
    """The sets of heads to ablate in a task.

    Universal heads of each corruption by the FDR-controlled rule, by the paper's where that selects others, and the
    strongest heads, so that there is something to compare where no head is universal.

    Args:
        heads: of the task, as they are in other examples than those that judge them.
        universal: universal heads, in those examples.
    """
    found: dict[Selection, list[Head]] = {}
    for corrupt in CORRUPT:
        top = strongest(heads, corrupt)
        sets = {Selection("universal", corrupt, rule): _universal(universal, corrupt, rule) for rule in BY_RULE}
        if top:
            sets[Selection("strongest", corrupt, n=len(top))] = top
        for selection, chosen in sets.items():
            if chosen and sorted(chosen) not in map(sorted, found.values()):
                found[selection] = chosen
    return dict(sorted(found.items(), key=lambda item: item[0].order))


def to_draw(heads: Iterable[HeadEffect]) -> list[Head]:
    """The heads whose attention is drawn: the strongest under each corruption."""
    return list(dict.fromkeys(head for corrupt in CORRUPT for head in strongest(heads, corrupt)))


def strongest(heads: Iterable[HeadEffect], corrupt: str, n: int = TOP) -> list[Head]:
    """The heads with the largest mean |effect| over tasks, under one corruption."""
    sizes: dict[Head, list[float]] = {}
    for row in heads:
        if row["corrupt"] == corrupt and (size := row["mean_abs"]) is not None and known(size):
            sizes.setdefault((row["kind"], row["layer"], row["head"]), []).append(size)
    means = {head: sum(each) / len(each) for head, each in sizes.items()}
    return sorted(means, key=lambda head: (-means[head], head))[:n]


def _universal(universal: Iterable[Universal], corrupt: Corrupt, rule: RuleName) -> list[Head]:
    modalities = (MULTIMODAL, MODALITIES[corrupt])
    rows = [row for row in universal if row["rule"] == rule and row["modality"] in modalities]
    return [(row["kind"], row["layer"], row["head"]) for row in rows]
