"""Maps of layers by heads and layers by tokens. Cost: the numbers.

Where a chart takes values it takes an array or tensor, or a `transformer_lens.patching.PatchingResult` (what `sweep`
returns): then it shows the mean effect over the examples, labelled with the result's own layers, positions and heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooked_vlm.errors import InputsError
from hooked_vlm.viz.forms import To, drawn
from hooked_vlm.viz.geometry import Number, array
from hooked_vlm.viz.panels import Drawing, Panel, titles_of
from hooked_vlm.viz.scales import Collapse, Kind, Scale, collapsed, readable

IMAGE_TOKEN = "<image>"


def head_map(
    values: Any,
    *,
    kind: Kind = "diverging",
    label: str = "effect",
    title: str = "",
    titles: Sequence[str] = (),
    layers: Sequence[Any] | None = None,
    heads: Sequence[Any] | None = None,
    row_title: str = "layer",
    column_title: str = "head",
    tokens: Sequence[str] | None = None,
    framed: Sequence[tuple[int, int]] = (),
    metric: str | None = None,
    limit: Number | None = None,
    columns: int = 4,
    words: Any = None,
    customdata: Any = None,
    hovertemplate: str = "",
    to: To = "plotly",
) -> Any:
    """A layer x head map, or several on one scale.

    Args:
        values: [layer head] or [map layer head]; or a `PatchingResult` over layers and heads, which gives a map for
            each position it has.
        kind: "diverging" for what has a sign, centred at zero; "sequential" for what has none.
        label: what the numbers are.
        title: above the figure.
        titles: above each map.
        layers: the rows' labels; None for 0, 1, ...
        heads: the columns' labels; None for 0, 1, ...
        row_title: what the rows are, where they are no layers.
        column_title: what the columns are, where they are no heads.
        tokens: the prompt's tokens, by which the maps of a `PatchingResult` are called.
        framed: (row, column) of cells to put a frame around, e.g. universal heads.
        metric: which metric of a `PatchingResult` with several.
        limit: where the colours end; None at the largest number.
        columns: how many maps side by side.
        words: [layer head] or [map layer head], written into the cells, or None.
        customdata: [layer head field] or [map layer head field], texts for `hovertemplate`, or None.
        hovertemplate: what plotly shows under the mouse, where `%{x}` and `%{y}` are the cell's labels and `%{z}` its
            number; "" for these three.
        to: "plotly" or "matplotlib"; or "page", for one map that a page embeds.

    Raises:
        InputsError: if the values are no such map, or labels are not as many as rows or columns.
    """
    if hasattr(values, "index_df"):
        by, maps, found = _of_result(values, metric, ("layer", "head"))
        layers, heads = layers or found["layer"], heads or found["head"]
        named = [f"position {p}" if tokens is None else f"{readable(tokens[p])} ({p})" for p in by]
        titles = titles or (named if len(by) > 1 or tokens is not None else ())
    else:
        maps = array(values)
        maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or not maps.size:
        raise InputsError(f"a head map of shape {array(values).shape}: expected [layer head] or [map layer head]")
    scale = Scale.of(maps, kind, label=label, limit=limit)
    rows, cols = _labels(layers, maps.shape[1], "layers"), _labels(heads, maps.shape[2], "heads")
    named = titles_of(titles, len(maps))
    spelled, of_cells = _of_cells(words, maps.shape, "words"), _of_cells(customdata, (*maps.shape, -1), "customdata")
    if not hovertemplate:
        named_rows, named_columns = [f"{row_title} {r}" for r in rows], [f"{column_title} {c}" for c in cols]
        of_cells = [_hover(one, named_rows, named_columns, label) for one in maps]
    panels = [
        Panel(
            one,
            scale,
            name,
            rows,
            cols,
            row_title,
            column_title,
            hover=hover,
            words=says,
            framed=tuple(framed),
            template=hovertemplate or Panel.template,
        )
        for one, name, hover, says in zip(maps, named, of_cells, spelled, strict=True)
    ]
    return drawn(Drawing(panels, title, columns), to)


def token_map(
    values: Any,
    tokens: Sequence[str],
    *,
    kind: Kind = "diverging",
    label: str = "effect",
    title: str = "",
    layers: Sequence[Any] | None = None,
    row_title: str = "layer",
    collapse: Collapse = "largest",
    image_token: str = IMAGE_TOKEN,
    framed: Sequence[tuple[int, int]] = (),
    metric: str | None = None,
    limit: Number | None = None,
    to: To = "plotly",
) -> Any:
    """A layer x token map; a row of image tokens is one column.

    Args:
        values: [layer pos] (or [head pos]: say so in `row_title`), or a `PatchingResult` over layers and positions.
        tokens: the prompt's tokens, one a position (`inputs.str_tokens`).
        kind: "diverging" for what has a sign, centred at zero; "sequential" for what has none.
        label: what the numbers are.
        title: above the figure.
        layers: the rows' labels; None for 0, 1, ...
        row_title: what the rows are.
        collapse: what the image's column holds: the "largest" value in magnitude, the "mean" or the "sum" of its
            positions; "none" keeps all columns.
        image_token: which token stands for the image.
        framed: (row, column) of cells to put a frame around, columns as they are drawn.
        metric: which metric of a `PatchingResult` with several.
        limit: where the colours end; None at the largest number.
        to: "plotly" or "matplotlib".

    Raises:
        InputsError: if the values are no such map, or tokens or labels are not as many as columns or rows.
    """
    tokens = list(tokens)
    if hasattr(values, "index_df"):
        _, maps, found = _of_result(values, metric, ("layer", "position"))
        layers, shown = layers or found["layer"], maps[0]
        beyond = [p for p in found["position"] if not 0 <= p < len(tokens)]
        if beyond:
            raise InputsError(f"the result has positions {beyond} and there are {len(tokens)} tokens")
        tokens = [tokens[p] for p in found["position"]]
    else:
        shown = array(values)
    if shown.ndim != 2 or not shown.size:
        raise InputsError(f"a token map of shape {shown.shape}: expected [layer pos]")
    cells, labels, places = collapsed(shown, tokens, image_token, collapse)
    rows = _labels(layers, len(cells), "layers")
    hover = _hover(
        cells,
        [f"{row_title} {r}" for r in rows],
        [f"{name}, {place}" for name, place in zip(labels, places, strict=True)],
        label,
    )
    scale = Scale.of(cells, kind, label=label, limit=limit)
    panel = Panel(cells, scale, "", rows, labels, row_title, "token", hover=hover, framed=tuple(framed))
    return drawn(Drawing([panel], title), to)


def word_map(
    words: Any,
    values: Any,
    tokens: Sequence[str],
    *,
    kind: Kind = "sequential",
    label: str = "probability",
    title: str = "",
    layers: Sequence[Any] | None = None,
    limit: Number | None = None,
    to: To = "plotly",
) -> Any:
    """A layer x token map with a word in every cell: what the logit lens says where.

    Args:
        words: [layer pos].
        values: [layer pos], how strongly, e.g. the word's probability.
        tokens: the prompt's tokens at these positions.
        kind: "sequential", or "diverging" for numbers with a sign.
        label: what the numbers are.
        title: above the figure.
        layers: the rows' labels; None for 0, 1, ...
        limit: where the colours end; None at the largest number.
        to: "plotly" or "matplotlib".

    Raises:
        InputsError: if words, values, tokens and layers are not as many.
    """
    cells, spelled = array(values), np.asarray(words, dtype=object)
    if cells.ndim != 2 or spelled.shape != cells.shape or len(tokens) != cells.shape[1]:
        raise InputsError(
            f"words {spelled.shape}, values {cells.shape} and {len(tokens)} tokens: expected [layer pos] twice, and "
            "one token a position"
        )
    rows, labels = _labels(layers, len(cells), "layers"), [readable(token) for token in tokens]
    spelled = np.vectorize(readable, otypes=[object])(spelled)
    hover = _hover(
        cells,
        [f"layer {row}" for row in rows],
        [f"{name}, position {p}" for p, name in enumerate(labels)],
        label,
        spelled,
    )
    scale = Scale.of(cells, kind, label=label, limit=limit)
    panel = Panel(cells, scale, "", rows, labels, "layer", "token", hover=hover, words=spelled)
    return drawn(Drawing([panel], title), to)


# --- what they share --------------------------------------------------------------------------------


def _of_result(
    result: Any, metric: str | None, axes: tuple[str, str]
) -> tuple[list[Any], NDArray[np.float64], dict[str, list[Any]]]:
    """Mean effects of a `PatchingResult` as [map *axes].

    The maps are one for each value of the axis that is left (a position, or nothing); cells that were not patched
    are NaN.
    """
    if result.has_metric_axis:
        if metric is None and len(result.metric_names) > 1:
            raise InputsError(f"the result has the metrics {', '.join(result.metric_names)}: name one, metric=...")
        result = result[metric or result.metric_names[0]]
    effects = result.effect() if result.baseline is not None else result.values
    effects = array(effects if result.reduced else effects.mean(-1)).reshape(-1)
    table = result.index_df
    if any(axis not in table.columns for axis in axes):
        raise InputsError(f"the result is over {', '.join(table.columns)}; this chart needs {' and '.join(axes)}")
    others = [name for name in table.columns if name not in axes and table[name].nunique() > 1]
    if others not in ([], ["position"]):
        raise InputsError(
            f"the result is also over {', '.join(others)}: choose one of them when you sweep (heads=..., "
            "positions=...), or average its values and pass the array"
        )
    found = {axis: sorted(table[axis].unique().tolist()) for axis in axes}
    by = sorted(table["position"].unique().tolist()) if "position" in table and "position" not in axes else [None]
    maps = np.full((len(by), *(len(found[axis]) for axis in axes)), np.nan)
    of_map = table["position"].map(by.index) if by != [None] else np.zeros(len(table), dtype=int)
    maps[of_map, *(table[axis].map(found[axis].index) for axis in axes)] = effects
    return [] if by == [None] else by, maps, found


def _labels(labels: Sequence[Any] | None, n: int, what: str) -> list[str]:
    if labels is None:
        return [str(i) for i in range(n)]
    if len(labels) != n:
        raise InputsError(f"{len(labels)} labels for {n} {what}: expected as many")
    return [str(label) for label in labels]


def _of_cells(given: Any, shape: tuple[int, ...], what: str) -> list[Any]:
    """Texts for every cell, or None, of each map; of a single map, its axis may be left out."""
    if given is None:
        return [None] * shape[0]
    found = np.asarray(given, dtype=object)
    try:
        return list(found.reshape(shape))
    except ValueError as error:
        raise InputsError(f"{what} of shape {found.shape}: expected one for each of {shape[:3]} cells") from error


def _hover(
    values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], label: str, words: Any = None
) -> NDArray[Any]:
    """What the mouse shows at each cell."""
    found = np.empty(values.shape, dtype=object)
    for (row, column), value in np.ndenumerate(values):
        lines = [f"{rows[row]}, {columns[column]}", f"{label} {value:+.3g}" if value < 0 else f"{label} {value:.3g}"]
        if words is not None:
            lines.insert(1, f"says {words[row, column]}")
        found[row, column] = "\n".join(lines)
    return found
