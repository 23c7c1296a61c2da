"""Tables of effects of heads: measured here, or read from a run; and what all that read them have in common.

One row an example and head. `head_effects` makes one from clean and corrupt inputs and a metric, what `sweep` takes;
``run.effects`` of a NOTICE run is one as soon as one place is chosen in it. The columns:

| column | what it holds |
|---|---|
| task, example, corrupt | the question asked, the example, what was corrupted ("image", "text", ...) |
| kind, layer, head | the head, as everywhere in `analysis` |
| effect | ``L_patched - L_corrupt``, in logits (Golovanevsky et al. 2025) |
| span | ``L_clean - L_corrupt`` of the example, in logits; where shares of it are asked for |
| answer, group, template | what clusters the examples; may be missing |

A *share* of the span is a ratio of means, ``mean effect / mean span``: that of each example would be divided by spans
near 0. Its interval is that of its linearisation (the delta method), so that examples and clusters count as anywhere.

Cost: `head_effects` three forwards and a pass; all else arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.clusters import CLUSTERS
from hooked_vlm.analysis.head_sets import Direction, as_heads, heads_of, patch_sets
from hooked_vlm.analysis.heads import HEAD, Head, head_name
from hooked_vlm.analysis.universal_heads import NEEDED
from hooked_vlm.errors import DataError, quoted
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.patching.plan import Measure
from hooked_vlm.patching.sites import ALL, Index

Array = statistics.Array
ID = ("id", "example")  # how tasks, and tables of effects, call an example's name


# --- making one -------------------------------------------------------------------------------------


def about(rows: Any, n: int) -> pd.DataFrame:
    """What a task's rows say of examples: task, example, and those of answer, group, template that they have.

    Args:
        rows: a task (`datasets.Dataset`), a table, a mapping of columns, a list of rows; None for nothing known.
        n: examples there are.

    Raises:
        DataError: if they have other than `n` entries.
    """
    rows, names = columns_of(rows)
    found: dict[str, list[Any]] = {"task": ["task"] * n, "example": list(range(n))}
    for name in ("task", "example", *CLUSTERS):
        if theirs := next((one for one in (ID if name == "example" else (name,)) if one in names), None):
            found[name] = list(rows[theirs])
    if odd := {name: len(values) for name, values in found.items() if len(values) != n}:
        raise DataError(f"the rows have {odd} entries for {n} examples: give the rows that the inputs were made from")
    return pd.DataFrame(found)


def columns_of(rows: Any) -> tuple[Any, list[str]]:
    """What has columns, and their names; rows one by one as a table.

    Args:
        rows: as in `about`.
    """
    if isinstance(rows, Sequence) and not isinstance(rows, str):
        rows = pd.DataFrame(list(rows))
    return rows, [] if rows is None else [str(name) for name in getattr(rows, "column_names", rows)]


def head_effects(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs,
    metric: Measure,
    rows: Any = None,
    *,
    corrupted: str = "image",
    heads: Sequence[Head] | None = None,
    positions: Index = ALL,
    direction: Direction = "denoise",
    corruption: Sequence[Any] = (),
    budget: int | None = None,
) -> pd.DataFrame:
    """The effect of every head in every example, as a table.

    Args:
        model: a `HookedVLM`.
        clean: inputs that the model answers rightly.
        corrupt: inputs of the same shape, with the image or the text corrupted.
        metric: of the logits, e.g. `patching.metrics.logit_diff(right, wrong)`.
        rows: what is known of the examples: the task (see `about`).
        corrupted: what was, for the table: "image", "text".
        heads: which; None for every head of the prompt's stack.
        positions: "all_at_once", or as `Sites` takes them; several are patched together.
        direction: "denoise", or "noise" (effects are then ``L_clean - L_patched``).
        corruption: forward hooks of the corrupt run.
        budget: bytes that a pass may take.

    Returns:
        The columns above.

    Raises:
        InputsError, StackError, PositionError: as `head_sets.patch_sets`.
        DataError: if there are not as many rows as examples.
    """
    chosen = heads_of(model) if heads is None else as_heads(model, heads)
    known = about(rows, len(clean))
    found = patch_sets(
        model, clean, corrupt, metric, [[head] for head in chosen],
        positions=positions, direction=direction, corruption=corruption, budget=budget,
    )  # fmt: skip
    each = known.assign(corrupt=corrupted, span=found.span)
    table = each.merge(pd.DataFrame(chosen, columns=HEAD), how="cross").assign(effect=found.effects.ravel())
    order = ["task", "example", "corrupt", *HEAD, "effect", "span"]
    return table[[*order, *(name for name in CLUSTERS if name in table)]]


# --- reading one ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effects:
    """Effects of heads in one task under one corruption.

    Args:
        task: which.
        corrupt: what was corrupted.
        heads: the columns of `effects`.
        effects: [example head], NaN where a head was not measured.
        examples: a row an example: example, and span, answer, group, template or whatever else was asked for.
    """

    task: str
    corrupt: str
    heads: list[Head]
    effects: Float[np.ndarray, "example head"]
    examples: pd.DataFrame

    @property
    def cell(self) -> dict[str, str]:
        """Which these are."""
        return {"task": self.task, "corrupt": self.corrupt}

    @property
    def span(self) -> Array:
        """Of each example.

        Raises:
            DataError: if the table has none.
        """
        if "span" not in self.examples:
            raise DataError(
                "the table of effects has no column span, each example's clean less corrupt logit difference"
            )
        return self.examples["span"].to_numpy(np.float64)

    @property
    def codes(self) -> list[clusters.Codes]:
        """Ways to cluster the examples."""
        return codes_of(self.examples)

    def named(self, **columns: Any) -> pd.DataFrame:
        """A row a head: what these are, the head, and columns [head]."""
        return pd.DataFrame(self.heads, columns=HEAD).assign(**self.cell, **columns)[
            ["task", "corrupt", *HEAD, *columns]
        ]


def codes_of(examples: pd.DataFrame) -> list[clusters.Codes]:
    """Ways to cluster examples: each alone, by answer, by group, by template."""
    return clusters.codes(*(examples[name] for name in CLUSTERS if name in examples), n=len(examples))


def each_task(table: pd.DataFrame, *more: str) -> Iterator[Effects]:
    """The effects of each task and corruption in a table.

    Args:
        table: see the module; rows that are no heads' are left out.
        more: columns of examples that are needed.

    Raises:
        DataError: if a column is missing, or an example has two effects of a head, two answers or the like.
    """
    if missing := [name for name in (*NEEDED, *more) if name not in table.columns]:
        raise DataError(
            f"the table of effects has no {', '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )
    table = table if "kind" in table.columns else table.assign(kind="attn-heads")
    table = table[table["head"] >= 0]
    columns = list(dict.fromkeys(name for name in ("span", *CLUSTERS, *more) if name in table.columns))
    for (task, corrupt), rows in table.groupby(["task", "corrupt"], observed=True, sort=True):
        if rows.duplicated(["example", *HEAD]).any():
            one = rows[rows.duplicated(["example", *HEAD])].iloc[0]
            name = head_name(one["kind"], one["layer"], one["head"])
            raise DataError(
                f"example {quoted(one['example'])} of {task} has several effects of head {name}: choose one place, "
                "e.g. table[table.role == 'every position']"
            )
        wide = rows.astype({"kind": str}).pivot(index="example", columns=HEAD, values="effect").sort_index()
        examples = rows.drop_duplicates(["example", *columns]).set_index("example")[columns]
        if twice := examples.index[examples.index.duplicated()].tolist():
            raise DataError(f"example {quoted(twice[0])} of {task} has several values of {', '.join(columns)}")
        examples = examples.loc[wide.index].reset_index()
        heads = [(str(kind), int(layer), int(head)) for kind, layer, head in wide.columns]
        yield Effects(str(task), str(corrupt), heads, wide.to_numpy(np.float64), examples)


def ranking(table: pd.DataFrame, task: str | None = None, corrupt: str | None = None) -> list[Head]:
    """Heads by their mean effect, the one that restores most first.

    Args:
        table: of effects.
        task: of which task; None where the table has one.
        corrupt: under which corruption; None where it has one.

    Raises:
        DataError: if that leaves no effects, or those of several.
    """
    found = [each for each in each_task(table) if task in (None, each.task) and corrupt in (None, each.corrupt)]
    if len(found) != 1:
        told_of = ", ".join(f"{each.task} under {each.corrupt}" for each in found) or "none"
        raise DataError(f"a ranking is of one task under one corruption, and there are {told_of}: name them")
    means = np.nan_to_num(statistics.means(found[0].effects), nan=-np.inf)
    return [found[0].heads[i] for i in np.argsort(-means, kind="stable")]


# --- arithmetic -------------------------------------------------------------------------------------


def linearised(values: Float[np.ndarray, "example cell"], span: ArrayLike) -> Float[np.ndarray, "example cell"]:
    """Numbers whose mean is ``mean value / mean span``, and whose spread is that of this ratio (the delta method).

    NaN where the mean span is 0, or an example was not measured.
    """
    below = np.where(np.isnan(values), np.nan, np.broadcast_to(np.asarray(span, np.float64)[:, None], values.shape))
    mean = statistics.means(below)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = statistics.means(values) / mean
        found = share + (values - share * below) / mean
    return np.where(np.isfinite(found), found, np.nan)


def spread(low: Array, high: Array, at: Array) -> tuple[Array, Array]:
    """Ends of intervals, a point where nothing varies."""
    return np.where(np.isnan(low), at, low), np.where(np.isnan(high), at, high)


def verdicts(yes: ArrayLike, no: ArrayLike) -> pd.Series:
    """True, False, or None where the data decide neither."""
    told = [True if y else False if n else None for y, n in zip(np.asarray(yes), np.asarray(no), strict=True)]
    return pd.Series(told, dtype=object)  # or a column without None would be of another type
