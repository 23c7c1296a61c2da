"""What heads do together and apart: both directions of patching, interactions of pairs, self-repair.

Each function takes what `sweep` takes, ``(model, clean, corrupt, metric)``: a batch of clean inputs, one of corrupt
inputs of the same shape, and a metric that gives a number for each example. Whoever has swept has them; nothing in
them is the matter of a data set or of a run; and rows of a batch are paired by their place. `rows`, the task that
the inputs were made from, is asked for where examples have names and clusters:

    denoise_and_noise(model, clean, corrupt, logit_diff(right, wrong), rows)
    pair_interactions(model, clean, corrupt, logit_diff(right, wrong), rows, top=4)

Every table has a row a head (or pair) and its columns say: n, the examples; a mean over them in logits, or as a share
of the span (mean effect / mean span); `_low` and `_high`, its interval, by `clusters.judge`, which answer, group and
template of the rows cluster. An effect is positive where heads speak for the right answer, in both directions.

Cost: a run for each head, pair and direction, in growing passes (`head_sets`); self-repair two for each head more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.effect_tables import about, codes_of, linearised, spread
from hooked_vlm.analysis.head_sets import Direction, as_heads, heads_of, patch_sets
from hooked_vlm.analysis.heads import HEAD, Head, module_of
from hooked_vlm.errors import DataError, PositionError
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.patching.paths import path_patching
from hooked_vlm.patching.plan import Measure
from hooked_vlm.patching.sites import ALL, Index, Sites
from hooked_vlm.positions import Places

Matrix = Float[np.ndarray, "example cell"]


def denoise_and_noise(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs,
    metric: Measure,
    rows: Any = None,
    *,
    heads: Sequence[Head] | None = None,
    positions: Index | Mapping[str, Index] = ALL,
    corruption: Sequence[Any] = (),
    level: float = statistics.LEVEL,
    budget: int | None = None,
) -> pd.DataFrame:
    """What each head restores and what is lost without it: sufficiency and necessity side by side.

    Denoising patches the clean head into the corrupt run, ``L_patched - L_corrupt``; noising the corrupt head into
    the clean run, ``L_clean - L_patched`` (Heimersheim & Nanda 2024). Heads that stand in for one another restore
    much and are missed little; heads that act one after the other are missed much and restore little.

    Args:
        model: a `HookedVLM`.
        clean: inputs that the model answers rightly.
        corrupt: inputs of the same shape, with the image or the text corrupted.
        metric: of the logits, e.g. `patching.metrics.logit_diff(right, wrong)`.
        rows: the task that the inputs were made from.
        heads: which; None for every head of the prompt's stack.
        positions: "all_at_once" or as `Sites` takes them, several patched together; or a mapping of such by name:
            ``{"last": clean.last_each[:, None], "every position": "all_at_once"}``.
        corruption: forward hooks of the corrupt run.
        level: of both intervals of a row at once: each is at ``1 - (1 - level) / 2`` (Bonferroni).
        budget: bytes that a pass may take.

    Returns:
        positions (their name), kind, layer, head, n, denoise, denoise_share, noise, noise_share, each with its
        interval.

    Raises:
        InputsError, StackError, PositionError: as `head_sets.patch_sets`.
        DataError: if there are not as many rows as examples.
    """
    chosen = heads_of(model) if heads is None else as_heads(model, heads)
    named = positions if isinstance(positions, Mapping) else {_name(positions): positions}
    codes, parts = codes_of(about(rows, len(clean))), []
    for name, at in named.items():
        table = pd.DataFrame(chosen, columns=HEAD).assign(n=len(clean))
        for direction in ("denoise", "noise"):
            found = patch_sets(
                model, clean, corrupt, metric, [[head] for head in chosen],
                positions=at, direction=direction, corruption=corruption, budget=budget,
            )  # fmt: skip
            table = table.assign(**_told(direction, found.effects, found.span, codes, 1 - (1 - level) / 2))
        table.insert(0, "positions", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def pair_interactions(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs,
    metric: Measure,
    rows: Any = None,
    *,
    heads: Sequence[Head] | None = None,
    top: int = 6,
    positions: Index = ALL,
    direction: Direction = "denoise",
    corruption: Sequence[Any] = (),
    level: float = statistics.LEVEL,
    budget: int | None = None,
) -> pd.DataFrame:
    """By how much two heads patched together do more, or less, than each alone: ``I_ij = e_ij - e_i - e_j``.

    0 where heads add up; positive where each needs the other; negative where they do the same work. It is the second
    difference of the metric in the two patches (the interaction of a two by two design, Fisher 1935).

    Args:
        model: as in `denoise_and_noise`, and so the rest.
        clean: likewise.
        corrupt: likewise.
        metric: likewise.
        rows: likewise.
        heads: whose pairs; None for the `top` heads of largest |mean effect|, chosen on these examples. That choice
            makes their effects look larger than they are, and says nothing of the sign of their interactions.
        top: how many.
        positions: likewise.
        direction: "denoise" or "noise".
        corruption: likewise.
        level: of each interval; p_holm is of all pairs at once.
        budget: likewise.

    Returns:
        kind_i, layer_i, head_i, kind_j, layer_j, head_j, n, effect_i, effect_j, effect_ij, interaction with its
        interval, interaction_share with its interval, p, p_holm; the largest |interaction| first.

    Raises:
        InputsError, StackError, PositionError: as `head_sets.patch_sets`.
        DataError: if there are fewer than two heads, or not as many rows as examples.
    """
    codes = codes_of(about(rows, len(clean)))
    options: dict[str, Any] = {
        "positions": positions, "direction": direction, "corruption": corruption, "budget": budget,
    }  # fmt: skip
    asked = heads_of(model) if heads is None else as_heads(model, heads)
    alone = patch_sets(model, clean, corrupt, metric, [[head] for head in asked], **options)
    order = range(len(asked))
    if heads is None:
        order = np.argsort(-np.abs(alone.effects.mean(0)), kind="stable")[:top].tolist()
    pairs = list(combinations(order, 2))
    if not pairs:
        raise DataError(f"{len(asked)} heads were given (top={top}), and a pair has two")
    both = patch_sets(model, clean, corrupt, metric, [[asked[i], asked[j]] for i, j in pairs], **options)
    first, second = (alone.effects[:, [pair[k] for pair in pairs]] for k in (0, 1))
    interaction = both.effects - first - second
    table = pd.DataFrame(
        [(*asked[i], *asked[j]) for i, j in pairs], columns=[f"{name}_{at}" for at in "ij" for name in HEAD]
    )
    table = table.assign(n=len(clean), effect_i=first.mean(0), effect_j=second.mean(0), effect_ij=both.effects.mean(0))
    return _with_p(table, "interaction", interaction, alone.span, codes, level)


def self_repair(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs,
    metric: Measure,
    rows: Any = None,
    *,
    heads: Sequence[Head] | None = None,
    positions: Index = ALL,
    level: float = statistics.LEVEL,
    budget: int | None = None,
) -> pd.DataFrame:
    """What later parts of the stack make up for when a head is taken from the clean run: direct less total effect.

    The head is resampled from the corrupt run (noising). ``total`` is what is lost if all that follows responds;
    ``direct`` what is lost through the head's own path alone, every later sub-layer of its stack held at what it put
    out in the clean run (`path_patching`; Wang et al. 2022). ``repair = direct - total`` (McGrath et al. 2023; Rushing
    & Nanda 2024): positive where later heads and MLPs stand in, negative where they pass the head's effect on. A
    head's path ends where its stack is read: at the logits, or at what BLIP's decoder attends to.

    Args:
        model: as in `denoise_and_noise`, and so the rest.
        clean: likewise.
        corrupt: likewise.
        metric: likewise.
        rows: likewise.
        heads: likewise.
        positions: "all_at_once", or one position for each example.
        level: of each interval; p_holm is of all heads at once.
        budget: likewise.

    Returns:
        kind, layer, head, n, direct, total, repair, each with its interval, repair_share with its interval, p, p_holm;
        the largest |repair| first.

    Raises:
        InputsError, StackError: as `head_sets.patch_sets`.
        PositionError: likewise; or if several positions are given.
        DataError: if there are not as many rows as examples.
    """
    chosen = heads_of(model) if heads is None else as_heads(model, heads)
    codes = codes_of(about(rows, len(clean)))
    found = patch_sets(
        model, clean, corrupt, metric, [[head] for head in chosen], positions=positions, direction="noise",
        budget=budget,
    )  # fmt: skip
    ends: Any = "logits"
    if model.answer_stack != model.prompt_stack:
        hook = "normalized_resid_post" if model.stacks[model.prompt_stack].post_norm else "resid_post"
        ends = Sites.residual(model, model.prompt_stack, layers=-1, positions=ALL, hook=hook)
    direct = np.zeros_like(found.effects)
    for kind in dict.fromkeys(kind for kind, _, _ in chosen):
        at = [i for i, head in enumerate(chosen) if head[0] == kind]
        senders = _picked(model, kind, [chosen[i] for i in at], positions)
        paths = path_patching(
            model, clean, corrupt, senders, ends, metric, direction="noise", budget=budget, progress=False
        )
        direct[:, at] = found.clean[:, None] - paths.values.double().cpu().numpy().T
    table = pd.DataFrame(chosen, columns=HEAD).assign(n=len(clean))
    for name, values in {"direct": direct, "total": found.effects}.items():
        table = table.assign(**_told(name, values, None, codes, level))
    return _with_p(table, "repair", direct - found.effects, found.span, codes, level)


def _picked(model: HookedVLM, kind: str, heads: Iterable[Head], positions: Index) -> Sites:
    """Heads of a kind as sites, in their order, each at one place.

    Raises:
        PositionError: if they have several.
    """
    sites = Sites.heads(model, model.prompt_stack, module_of(kind), positions=ALL if positions is None else positions)
    if isinstance(sites.positions, Places) and any(isinstance(r, slice) or len(r) > 1 for r in sites.positions.rows):
        raise PositionError(
            f"positions {sites.positions.shown}: a path starts at one position of each example, or at all of them: "
            'give one ([batch 1]), or "all_at_once"'
        )
    at = {(layer, head): i for i, (layer, head) in enumerate(zip(*(sites.table[k] for k in HEAD[1:]), strict=True))}
    return sites.pick([at[layer, head] for _, layer, head in heads])


def _name(positions: Index) -> str:
    everywhere = positions is None or (isinstance(positions, str) and positions == ALL)
    return "every position" if everywhere else "given"


def _told(name: str, values: Matrix, span: Any, codes: Any, level: float) -> dict[str, Any]:
    """Means with their intervals; and their shares of the span, unless it is None."""
    found: dict[str, Any] = {}
    for column, each in {name: values, f"{name}_share": None if span is None else linearised(values, span)}.items():
        if each is not None:
            judged = clusters.judge(each, codes, level=level)
            low, high = spread(judged.low, judged.high, judged.mean)
            found |= {column: judged.mean, f"{column}_low": low, f"{column}_high": high}
    return found


def _with_p(table: pd.DataFrame, name: str, values: Matrix, span: Any, codes: Any, level: float) -> pd.DataFrame:
    """A table with one more mean, its interval, share and p-values; sorted by its size."""
    p = clusters.judge(values, codes, flips=statistics.flips_needed(values.shape[1]), level=level).p
    table = table.assign(**_told(name, values, span, codes, level), p=p, p_holm=statistics.holm(p))
    return table.sort_values(name, key=abs, ascending=False, kind="stable", ignore_index=True)
