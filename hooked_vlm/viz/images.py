"""Numbers over the picture: what a head attends to, what a patch says, clean against corrupt.

Pictures are drawn as they were given to the model, before its resizing and cropping; `Geometry` says where the patches
lie in them. They are greyed, so that colour means a number and nothing else. Cost: one copy of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooked_vlm.errors import InputsError
from hooked_vlm.viz.forms import To, drawn
from hooked_vlm.viz.geometry import Geometry, Number, array, picture
from hooked_vlm.viz.panels import Drawing, Panel, titles_of
from hooked_vlm.viz.scales import Kind, Scale, readable


def overlay(
    values: Any,
    image: Any,
    geometry: Geometry | Sequence[Geometry],
    *,
    kind: Kind = "sequential",
    label: str = "",
    title: str = "",
    titles: Sequence[str] = (),
    words: Any = None,
    framed: Sequence[int] = (),
    outline: Any = None,
    limit: Number | None = None,
    columns: int = 4,
    to: To = "plotly",
) -> Any:
    """One number a patch over the picture, or several such maps side by side on one scale.

    Args:
        values: [patch] or [map patch], row by row from the top left.
        image: the picture as it was given to the model, anything `picture` reads; or a list, one for each map.
        geometry: where the patches lie, `Geometry.of(model.processor, image, patch_size)`; for pictures of different
            sizes a list, with as many patches each.
        kind: "sequential", or "diverging" for numbers with a sign.
        label: what the numbers are.
        title: above the figure.
        titles: above each map.
        words: [patch] or [map patch], written into the cells, or None.
        framed: patches to put a frame around.
        outline: [height width], a mask whose edge is drawn, or None; or a list, one for each map.
        limit: where the colours end; None at the largest number.
        columns: how many maps side by side.
        to: "plotly" or "matplotlib".

    Raises:
        InputsError: if there are not as many values as patches or pictures as maps, or a picture is not the
            geometry's.
        ImageError: if a picture cannot be read.
    """
    maps = (geometry if isinstance(geometry, Geometry) else geometry[0]).cells(values)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3:
        raise InputsError(f"values of shape {array(values).shape}: expected [patch] or [map patch]")
    scale = Scale.of(maps, kind, label=label, limit=limit, over_picture=True)
    named = titles_of(titles, len(maps))
    spelled = None
    if words is not None:
        spelled = np.asarray(words, dtype=object).reshape(maps.shape)
        spelled = np.vectorize(readable, otypes=[object])(spelled)
    each = zip(
        maps,
        _for_each(image, len(maps), "pictures"),
        _for_each(geometry, len(maps), "geometries"),
        _for_each(outline, len(maps), "outlines"),
        named,
        [None] * len(maps) if spelled is None else spelled,
        strict=True,
    )
    panels = [
        _panel(one, below, where, scale, name, framed, edge, says) for one, below, where, edge, name, says in each
    ]
    return drawn(Drawing(panels, title, columns), to)


def attention_over_image(
    weights: Any,
    image: Any,
    geometry: Geometry | Sequence[Geometry],
    *,
    query: int | None = None,
    titles: Sequence[str] = (),
    label: str = "attention",
    **options: Any,
) -> Any:
    """What heads attend to in the picture: from a text token, or from one of its own patches.

    Args:
        weights: [patch] or [map patch], a row of `hook_pattern` for each head or each picture; with one position
            more than there are patches the first is the class token, whose share is said in the title and not drawn.
        image: as for `overlay`.
        geometry: as for `overlay`.
        query: the patch that looks, in self-attention of the vision tower: it gets a frame.
        titles: above each map; left out for the numbers of the heads.
        label: what the numbers are.
        options: the others of `overlay`.

    Raises:
        InputsError: as `overlay`.
        ImageError: if the picture cannot be read.
    """
    rows = array(weights)
    rows = rows[None] if rows.ndim == 1 else rows
    named = list(titles) or ([f"head {h}" for h in range(len(rows))] if len(rows) > 1 else [""])
    if rows.shape[-1] == (geometry if isinstance(geometry, Geometry) else geometry[0]).n_patches + 1:
        shares = [f"{cls:.0%} on [CLS]" for cls in rows[:, 0]]
        named = [f"{name} ({share})" if name else share for name, share in zip(named, shares, strict=False)]
        rows = rows[:, 1:]
    framed = () if query is None else (query,)
    return overlay(rows, image, geometry, label=label, titles=named, framed=framed, **options)


def clean_against_corrupt(
    clean: Any,
    corrupt: Any,
    image: Any,
    corrupt_image: Any,
    geometry: Geometry,
    *,
    label: str = "attention",
    title: str = "",
    outline: Any = None,
    corrupt_outline: Any = None,
    limit: Number | None = None,
    to: To = "plotly",
) -> Any:
    """One head in the clean and in the corrupt run, and what changed, side by side.

    Args:
        clean: [patch], or [1 + patch] with the class token first.
        corrupt: likewise.
        image: the clean picture.
        corrupt_image: the corrupt one, of the same size.
        geometry: where the patches lie in both.
        label: what the numbers are.
        title: above the figure.
        outline: [height width], a mask whose edge is drawn on the clean picture and on the difference.
        corrupt_outline: the same for the corrupt picture; None for `outline`.
        limit: where the colours of the first two end.
        to: "plotly" or "matplotlib".

    Raises:
        InputsError: if there are not as many values as patches, or a picture is not the geometry's.
        ImageError: if a picture cannot be read.
    """
    skip = array(clean).shape[-1] - geometry.n_patches
    before, after = (geometry.cells(array(v)[skip:] if skip == 1 else v) for v in (clean, corrupt))
    scale = Scale.of(np.stack([before, after]), "sequential", label=label, limit=limit, over_picture=True)
    change = Scale.of(after - before, "diverging", label="corrupt less clean", over_picture=True)
    other = outline if corrupt_outline is None else corrupt_outline
    panels = [
        _panel(before, image, geometry, scale, "clean", (), outline, None),
        _panel(after, corrupt_image, geometry, scale, "corrupt", (), other, None),
        _panel(after - before, corrupt_image, geometry, change, "corrupt less clean", (), other, None),
    ]
    return drawn(Drawing(panels, title, 3), to)


def _for_each(given: Any, n: int, what: str) -> list[Any]:
    """One for each map, from one for all or a list."""
    if not isinstance(given, (list, tuple)):
        return [given] * n
    if len(given) != n:
        raise InputsError(f"{len(given)} {what} for {n} maps: give one, or one for each")
    return list(given)


def _panel(
    cells: NDArray[np.float64],
    image: Any,
    geometry: Geometry,
    scale: Scale,
    title: str,
    framed: Sequence[int],
    outline: Any,
    words: NDArray[Any] | None,
) -> Panel:
    seen = picture(image)
    if seen.size != geometry.size:
        raise InputsError(f"the picture is {seen.size} and the geometry is for one of {geometry.size} pixels")
    hover = np.empty(cells.shape, dtype=object)
    for (row, column), value in np.ndenumerate(cells):
        patch = row * geometry.grid[1] + column
        says = "" if words is None else f"says {words[row, column]}\n"
        hover[row, column] = f"patch {patch}: row {row}, column {column}\n{says}{scale.label or 'value'} {value:.3g}"
    region = None
    if outline is not None:
        region = np.asarray(array(outline) != 0)
        if region.shape != geometry.size[::-1]:
            raise InputsError(f"the outline's mask is {region.shape} and the picture {geometry.size[::-1]} pixels")
    return Panel(
        cells,
        scale,
        title,
        hover=hover,
        words=words,
        framed=[divmod(geometry._known(patch), geometry.grid[1]) for patch in framed],
        image=_greyed(np.asarray(seen), geometry),
        box=geometry.box,
        outline=region,
    )


def _greyed(image: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """A picture with most of its colour gone and its range narrowed, darkest where the model does not see it."""
    grey = image @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    kept = 40 + 0.5 * (0.75 * grey[..., None] + 0.25 * image)
    left, top, right, bottom = (max(0, round(edge)) for edge in geometry.box)
    unseen = np.ones(grey.shape, dtype=bool)
    unseen[top:bottom, left:right] = False
    kept[unseen] *= 0.45
    return kept.astype(np.uint8)
