"""Colours, letters and labels of charts: what a number looks like, and what a token is called on an axis.

Two kinds of scale. Effects, which have a sign, get a diverging one from blue through white to red, always centred at
zero; attention and probabilities, which have none, get a sequential one. Both are ColorBrewer's and told apart by
readers with any kind of colour blindness (Harrower & Brewer 2003, colorbrewer2.org: RdBu, YlGnBu); over pictures the
sequential one runs from dark to light (viridis; van der Walt & Smith 2015), since pictures are drawn in grey. Lines and
bars, which are told apart and not measured, have Okabe and Ito's colours.
Cost: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hooked_vlm.errors import InputsError
from hooked_vlm.viz.geometry import Number, array

# From low to high, evenly spaced.
PALETTES = {
    "diverging": "#053061 #2166ac #4393c3 #92c5de #d1e5f0 #f7f7f7 #fddbc7 #f4a582 #d6604d #b2182b #67001f",
    "sequential": "#ffffd9 #edf8b1 #c7e9b4 #7fcdbb #41b6c4 #1d91c0 #225ea8 #253494 #081d58",
    "luminous": "#440154 #472d7b #3b528b #2c728e #21918c #28ae80 #5ec962 #addc30 #fde725",
}
SHADES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#a0522d")  # of things apart
INK, FAINT, LINE = "#1f2933", "#5f6c7b", "#dde3ea"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
Kind = Literal["diverging", "sequential"]
Collapse = Literal["largest", "mean", "sum", "none"]


@dataclass(frozen=True)
class Scale:
    """What colour a number has.

    Args:
        palette: a name in `PALETTES`.
        low: the number with the first colour.
        high: the number with the last one.
        label: what the numbers are, e.g. "effect on the logit difference".
        see_through: let the picture beneath show where the number is near zero (or the scale's low end).
    """

    palette: str
    low: Number
    high: Number
    label: str = ""
    see_through: bool = False

    @classmethod
    def of(
        cls, values: Any, kind: Kind, *, label: str = "", limit: Number | None = None, over_picture: bool = False
    ) -> Scale:
        """The scale for some numbers.

        Args:
            values: the numbers; NaN is no number.
            kind: "diverging", centred at zero, or "sequential", from zero (or the lowest, if that is below).
            label: what they are.
            limit: the largest number that gets a colour of its own; None for the largest there is.
            over_picture: whether it is drawn over a picture.

        Raises:
            InputsError: if the kind is neither, or the limit is not above zero.
        """
        if kind not in ("diverging", "sequential"):
            raise InputsError(f"a scale of kind {kind!r}: expected 'diverging' or 'sequential'")
        if limit is not None and not limit > 0:
            raise InputsError(f"a scale's limit is {limit}: expected a number above 0")
        finite = array(values)
        finite = finite[np.isfinite(finite)]
        largest = float(np.abs(finite).max()) if finite.size and kind == "diverging" else 0.0
        largest = float(finite.max()) if finite.size and kind == "sequential" else largest
        high = limit or largest or 1.0
        if kind == "diverging":
            return cls("diverging", -high, high, label, over_picture)
        low = min(0.0, float(finite.min())) if finite.size else 0.0
        return cls("luminous" if over_picture else "sequential", low, max(high, low + 1e-12), label, over_picture)

    @property
    def table(self) -> NDArray[np.float64]:
        """256 colours from low to high, [colour red_green_blue_alpha], each in 0..1."""
        anchors = np.array([_rgb(colour) for colour in PALETTES[self.palette].split()])
        places, at = np.linspace(0, 1, len(anchors)), np.linspace(0, 1, 256)
        rgb = np.stack([np.interp(at, places, anchors[:, i]) for i in range(3)], 1)
        alpha = np.ones(256)
        if self.see_through:
            strength = np.abs(2 * at - 1) if self.palette == "diverging" else at
            alpha = np.clip(0.05 + 1.3 * strength, 0, 0.8)
        return np.concatenate([rgb, alpha[:, None]], 1)

    @property
    def stops(self) -> list[list[Any]]:
        """The colours as plotly takes them, from [0, colour] to [1, colour]."""
        if not self.see_through:
            anchors = PALETTES[self.palette].split()
            return [[i / (len(anchors) - 1), colour] for i, colour in enumerate(anchors)]
        chosen = self.table[::5]  # 256 = 51 * 5 + 1
        return [
            [i / (len(chosen) - 1), "rgba({:.0f},{:.0f},{:.0f},{:.3f})".format(*(c[:3] * 255), c[3])]
            for i, c in enumerate(chosen)
        ]

    def colours(self, values: Any) -> NDArray[np.float64]:
        """[...] numbers to [... red_green_blue_alpha]; what is no number is wholly transparent."""
        numbers = array(values)
        place = np.nan_to_num((numbers - self.low) / (self.high - self.low))
        found: NDArray[np.float64] = self.table[np.clip(np.round(place * 255), 0, 255).astype(int)]
        found[np.isnan(numbers)] = 0
        return found

    @property
    def on_grey(self) -> NDArray[np.float64]:
        """The colours as they look over a greyed picture, [colour red_green_blue]."""
        table = self.table
        found: NDArray[np.float64] = table[:, 3:] * table[:, :3] + (1 - table[:, 3:]) * 0.4
        return found


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


# --- tokens on an axis ------------------------------------------------------------------------------


def collapsed(
    values: NDArray[np.float64], tokens: Sequence[str], image_token: str, how: Collapse
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """A row of image tokens as one column.

    Args:
        values: [... pos].
        tokens: one a position.
        image_token: which one stands for the image.
        how: what a collapsed column holds of its positions: the "largest" in magnitude, with its sign, their "mean"
            or their "sum"; "none" collapses nothing.

    Returns:
        [... column], the columns' labels, and what to say of each column's position.

    Raises:
        InputsError: if there are not as many tokens as positions, or `how` is none of these.
    """
    if how not in ("largest", "mean", "sum", "none"):
        raise InputsError(f"collapse is {how!r}; expected 'largest', 'mean', 'sum' or 'none'")
    if len(tokens) != values.shape[-1]:
        raise InputsError(f"{len(tokens)} tokens for {values.shape[-1]} positions: expected one a position")
    columns, labels, places, start = [], [], [], 0
    for token, group in groupby(tokens):
        length = len(list(group))
        part = values[..., start : start + length]
        if token == image_token and length > 1 and how != "none":
            columns.append(_in_one(part, how)[..., None])
            labels.append(f"{token} x {length}")
            places.append(f"positions {start} to {start + length - 1}, {how}")
        else:
            columns.append(part)
            labels += [readable(token)] * length
            places += [f"position {p}" for p in range(start, start + length)]
        start += length
    return np.concatenate(columns, -1), labels, places


def _in_one(part: NDArray[np.float64], how: str) -> NDArray[np.float64]:
    if how == "sum":
        return np.asarray(part.sum(-1))
    if how == "mean":
        return np.asarray(part.mean(-1))
    return np.asarray(np.take_along_axis(part, np.abs(part).argmax(-1)[..., None], -1)[..., 0])


def readable(token: str) -> str:
    """A token as it is spelled, with its space shown: byte-pair and SentencePiece marks become one sign."""
    shown = token.replace("Ġ", "▁").replace("Ċ", "\\n").replace("\n", "\\n")
    return shown if shown.strip() else "▁"
