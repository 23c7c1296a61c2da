"""What a model reads: a batch of prompts and their images. Knows no model. Cost: the tensors themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_vlm.errors import InputsError, PositionError, RowError, closest
from hooked_vlm.models import placement, shown
from hooked_vlm.models.layout import Layout
from hooked_vlm.models.naming import NamesPositions
from hooked_vlm.options import whole
from hooked_vlm.positions import read

PARTS = ("pixel_values", "input_ids", "attention_mask", "decoder_input_ids")
UNREAD = ("token_type_ids", "mm_token_type_ids", "image_sizes")  # what Hugging Face's processors may give besides


def _members(sizes: Sequence[int], groups: Sequence[int]) -> list[int]:
    """The members of some groups, where all groups' members are numbered through."""
    ends = list(accumulate(sizes))
    return [member for group in groups for member in range(ends[group] - sizes[group], ends[group])]


def _is_integral(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


@dataclass(eq=False)
class VLMInputs(NamesPositions):
    """A batch of texts and their images, ready for the model.

    Args:
        pixel_values: [image channel height width], preprocessed: one a row; where images stand in the prompt (LLaVA)
            as many as each row has places for, row by row, and None for texts alone. A family whose processor makes
            other axes says so in `layout.pixel_axes`.
        input_ids: [batch pos], the prompt (BLIP: the question).
        attention_mask: [batch pos], 1 for tokens and 0 for padding; None for no padding.
        decoder_input_ids: [batch answer_pos], what BLIP's answer decoder has so far; None: its start token.
        layout: filled in by `model.to_inputs`; `model.layout` for inputs built by hand.
        image_parts: what else the processor says of the images, a row each: those that `layout.image_parts` names.

    Raises:
        InputsError: if shapes, dtypes or batch sizes do not fit one another, or the mask holds more than 0 and 1.
    """

    pixel_values: Float[Tensor, "..."] | None
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Tensor | None = None
    decoder_input_ids: Int[Tensor, "batch answer_pos"] | None = None
    layout: Layout = field(default_factory=Layout)
    image_parts: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ndims = {"input_ids": 2, "pixel_values": len(self.layout.pixel_axes)}
        for name, ndim in (ndims | {"attention_mask": 2, "decoder_input_ids": 2}).items():
            value = getattr(self, name)
            if value is None and name != "input_ids":
                continue
            if not isinstance(value, Tensor):
                raise InputsError(f"{name} is a {type(value).__name__}; expected a tensor. model.to_inputs makes them")
            if value.ndim != ndim:
                raise InputsError(f"{name} has shape {tuple(value.shape)}; expected {ndim} axes")
            if not value.numel():
                raise InputsError(f"{name} has shape {tuple(value.shape)}, which is empty; expected at least one row")
            batch, device = self.input_ids.shape[0], self.input_ids.device
            if value.shape[0] != batch and (name != "pixel_values" or len(value) != sum(self._pixel_rows)):
                way = ". For several images in a prompt, layout=model.layout says where" * (name == "pixel_values")
                raise InputsError(f"{name} has {value.shape[0]} rows and input_ids {batch}; they must be as many{way}")
            if value.device != device:
                raise InputsError(f"{name} is on {value.device} and input_ids on {device}: put all on one device")
            if value.layout != torch.strided:
                raise InputsError(f"{name} is sparse ({value.layout}); expected a dense tensor: {name}.to_dense()")
        for name in ("input_ids", "decoder_input_ids"):
            value = getattr(self, name)
            if value is not None and not _is_integral(value):
                raise InputsError(f"{name} has dtype {value.dtype}; expected integer token ids")
        if self.pixel_values is not None and not self.pixel_values.is_floating_point():
            raise InputsError(
                f"pixel_values has dtype {self.pixel_values.dtype}; expected preprocessed floats. "
                "Raw images go through model.to_inputs"
            )
        if self.attention_mask is not None:
            self._refuse_other_mask(self.attention_mask)

    def _refuse_other_mask(self, mask: Tensor) -> None:
        if mask.shape != self.input_ids.shape:
            raise InputsError(
                f"attention_mask has shape {tuple(mask.shape)} and input_ids {tuple(self.input_ids.shape)}; they must "
                "be alike"
            )
        odd = () if mask.is_meta else mask[(mask != 0) & (mask != 1)][:4].tolist()
        if odd:
            raise InputsError(
                f"attention_mask holds {odd}; expected 1 for tokens and 0 for padding, and nothing else (no additive "
                "mask, and no weights)"
            )

    @classmethod
    def of(cls, given: Any, layout: Layout | None = None) -> VLMInputs:
        """`given` itself, or the inputs in a mapping such as a Hugging Face processor returns.

        Args:
            given: either.
            layout: the model's, for a mapping, which has none.

        Raises:
            InputsError: if it is neither, or a part is missing.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise InputsError(
                f"the model was given a {type(given).__name__}; expected VLMInputs: "
                "inputs = model.to_inputs(image, 'a question?')"
            )
        if given.get("input_ids") is None:
            raise InputsError("the inputs lack input_ids; model.to_inputs makes them all")
        layout = layout or Layout()
        known = (*PARTS, *layout.image_parts, *UNREAD)
        unknown = [name for name in given if name not in known and given[name] is not None]
        if unknown:
            raise InputsError(
                f"the inputs hold {unknown[0]!r}, which no model here reads; expected {', '.join(PARTS)} (closest: "
                f"{closest(str(unknown[0]), PARTS, 1)[0]})"
            )
        parts: dict[str, Any] = {name: given.get(name) for name in PARTS}
        of_images = {name: given[name] for name in layout.image_parts if given.get(name) is not None}
        return cls(**parts, layout=layout, image_parts=of_images)

    # --- as a batch ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batch size."""
        return int(self.input_ids.shape[0])

    def __getitem__(self, rows: int | slice | list[int] | Tensor) -> VLMInputs:
        """Some rows, padding included; an int gives a batch of one.

        Args:
            rows: an int (negative ones count from the end), a slice, a list of ints or a mask [batch].

        Raises:
            RowError: if there is no such row, or none is left.
        """
        try:
            places = read(rows, "rows", by_row=False)
            if places is None:
                raise PositionError("None was given as rows; expected an int, a slice, a list of ints or a mask")
            (chosen,) = places.spelled(len(self), "rows of this batch")
        except PositionError as error:
            raise RowError(str(error)) from error
        return self._of_rows(chosen)

    def __iter__(self) -> Iterator[VLMInputs]:
        """The rows, each a batch of one."""
        return (self[i] for i in range(len(self)))

    def repeat(self, n: int) -> VLMInputs:
        """Every row `n` times, its copies next to one another.

        Raises:
            InputsError: if `n` is no whole number, or below 1.
        """
        times = whole(n, "n, how often rows are repeated,", 1)
        return self._of_rows([row for row in range(len(self)) for _ in range(times)])

    def to(
        self,
        *where: Any,
        device: str | torch.device | int | None = None,
        dtype: torch.dtype | str | None = None,
        non_blocking: bool = False,
    ) -> VLMInputs:
        """On another device or in another dtype, as `torch.Tensor.to`; the dtype goes to the pixels alone.

        Args:
            where: a device, a dtype, both, or a model, tensor or other inputs to be like.
            device: a device that is here, such as "cuda".
            dtype: a floating-point one, such as `torch.float16`.
            non_blocking: as for tensors.

        Raises:
            InputsError: if there is no such device or dtype, or it is named twice.
        """
        place, kind = placement.asked(where, device, dtype)

        def moved(t: Tensor) -> Tensor:
            return t.to(device=place, dtype=kind if t.is_floating_point() else None, non_blocking=non_blocking)

        return self._each(moved)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.input_ids.device

    @property
    def dtype(self) -> torch.dtype | None:
        """The pixels' floating-point type; None where there are none."""
        return None if self.pixel_values is None else self.pixel_values.dtype

    def replace(self, **changes: Any) -> VLMInputs:
        """A copy with some parts exchanged."""
        return replace(self, **changes)

    def _of_rows(self, rows: Sequence[int]) -> VLMInputs:
        of_images = list(rows) if self.layout.pixel_axes[0] == "batch" else _members(self.images_each, rows)
        pixels = None
        if self.pixel_values is not None and of_images:
            by_image = self.layout.pixel_rows is not None
            pixels = self.pixel_values[_members(self._pixel_rows, of_images) if by_image else of_images]
        parts: dict[str, Any] = {
            name: None if (t := getattr(self, name)) is None else t[list(rows)] for name in PARTS[1:]
        }
        of_each = {name: part[of_images] for name, part in self.image_parts.items()} if of_images else {}
        return replace(self, pixel_values=pixels, image_parts=of_each, **parts)

    @property
    def _pixel_rows(self) -> list[int]:
        """How many rows of `pixel_values` each row of the batch has, or each image if the layout counts so."""
        return self.images_each if self.layout.pixel_rows is None else list(self.layout.pixel_rows(self))

    def _each(self, fn: Any) -> VLMInputs:
        given = {name: getattr(self, name) for name in PARTS}
        changed: dict[str, Any] = {name: None if t is None else fn(t) for name, t in given.items()}
        return replace(self, **changed, image_parts={name: fn(t) for name, t in self.image_parts.items()})

    def __repr__(self) -> str:
        return shown.inputs(self)

    def _repr_html_(self) -> str:
        return shown.inputs_html(self)
