"""What a model reads, and where things stand in it: no offset is ever counted by hand.

Cost: the tensors themselves. Knows no model; the few facts it needs (which id is the image, how many
positions an image takes) come with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_vlm.errors import InputsError, PositionError, RowError, closest, quoted
from hooked_vlm.models import placement, shown, spelling
from hooked_vlm.options import whole
from hooked_vlm.positions import read

PARTS = ("pixel_values", "input_ids", "attention_mask", "decoder_input_ids")
UNREAD = ("token_type_ids", "mm_token_type_ids", "image_sizes")  # what Hugging Face's processors may give besides
_NAMED = "make them with model.to_inputs, or inputs.replace(layout=model.layout), to name positions"
_UNFINISHED = "\ufffd"  # what the first bytes of a letter decode to


def _is_integral(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _with_free_spaces(text: str) -> str:
    """A pattern for `text` in which spaces are needed only between two words."""
    parts = re.findall(r"\w+|[^\w\s]", text)
    joints = [r"\s+" if a[-1].isalnum() and b[0].isalnum() else r"\s*" for a, b in pairwise(parts)]
    return "".join(re.escape(part) + joint for part, joint in zip(parts, [*joints, ""], strict=False))


@dataclass(frozen=True)
class Layout:
    """How a model family lays out its sequence: what `VLMInputs` needs to name positions.

    Args:
        tokenizer: a Hugging Face tokenizer, or None.
        image_processor: a Hugging Face image processor, or None.
        image_token_id: the placeholder's id where image and text share one sequence (LLaVA), else None.
        patch_size: side of a patch in pixels where the patches are keys of cross-attention, after a class
            token (BLIP), else None.
    """

    tokenizer: Any = None
    image_processor: Any = None
    image_token_id: int | None = None
    patch_size: int | None = None


@dataclass(eq=False)
class VLMInputs:
    """A batch of images and texts, ready for the model.

    Args:
        pixel_values: [batch channel height width], preprocessed.
        input_ids: [batch pos], the prompt (BLIP: the question).
        attention_mask: [batch pos], 1 for tokens and 0 for padding; None for no padding.
        decoder_input_ids: [batch answer_pos], what BLIP's answer decoder has so far; None: its start token.
        layout: filled in by `model.to_inputs`; `model.layout` for inputs built by hand.

    Raises:
        InputsError: if shapes, dtypes or batch sizes do not fit one another, or the mask holds more than 0 and 1.
    """

    pixel_values: Float[Tensor, "batch channel height width"]
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Tensor | None = None
    decoder_input_ids: Int[Tensor, "batch answer_pos"] | None = None
    layout: Layout = Layout()

    def __post_init__(self) -> None:
        for name, ndim in (("input_ids", 2), ("pixel_values", 4), ("attention_mask", 2), ("decoder_input_ids", 2)):
            value = getattr(self, name)
            if value is None and name in ("attention_mask", "decoder_input_ids"):
                continue
            if not isinstance(value, Tensor):
                raise InputsError(f"{name} is a {type(value).__name__}; expected a tensor. model.to_inputs makes them")
            if value.ndim != ndim:
                raise InputsError(f"{name} has shape {tuple(value.shape)}; expected {ndim} axes")
            if not value.numel():
                raise InputsError(f"{name} has shape {tuple(value.shape)}, which is empty; expected at least one row")
            batch, device = self.input_ids.shape[0], self.input_ids.device
            if value.shape[0] != batch:
                raise InputsError(f"{name} has {value.shape[0]} rows and input_ids {batch}; they must be as many")
            if value.device != device:
                raise InputsError(f"{name} is on {value.device} and input_ids on {device}: put all on one device")
            if value.layout != torch.strided:
                raise InputsError(f"{name} is sparse ({value.layout}); expected a dense tensor: {name}.to_dense()")
        for name in ("input_ids", "decoder_input_ids"):
            value = getattr(self, name)
            if value is not None and not _is_integral(value):
                raise InputsError(f"{name} has dtype {value.dtype}; expected integer token ids")
        if not self.pixel_values.is_floating_point():
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
    def of(cls, given: Any) -> VLMInputs:
        """`given` itself, or the inputs in a mapping such as a Hugging Face processor returns.

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
        missing = [name for name in PARTS[:2] if given.get(name) is None]
        if missing:
            raise InputsError(f"the inputs lack {' and '.join(missing)}; model.to_inputs makes them all")
        unknown = [name for name in given if name not in (*PARTS, *UNREAD) and given[name] is not None]
        if unknown:
            raise InputsError(
                f"the inputs hold {unknown[0]!r}, which no model here reads; expected {', '.join(PARTS)} (closest: "
                f"{closest(str(unknown[0]), PARTS, 1)[0]})"
            )
        return cls(**{name: given[name] for name in PARTS if given.get(name) is not None})

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
        return self._each(lambda t: t[list(chosen)])

    def __iter__(self) -> Iterator[VLMInputs]:
        """The rows, each a batch of one."""
        return (self[i] for i in range(len(self)))

    def repeat(self, n: int) -> VLMInputs:
        """Every row `n` times, its copies next to one another.

        Raises:
            InputsError: if `n` is no whole number, or below 1.
        """
        times = whole(n, "n, how often rows are repeated,", 1)
        return self._each(lambda t: t.repeat_interleave(times, 0))

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
    def dtype(self) -> torch.dtype:
        """The pixels' floating-point type."""
        return self.pixel_values.dtype

    def replace(self, **changes: Any) -> VLMInputs:
        """A copy with some parts exchanged."""
        return replace(self, **changes)

    def _each(self, fn: Any) -> VLMInputs:
        given = {name: getattr(self, name) for name in PARTS}
        changed: dict[str, Any] = {name: None if t is None else fn(t) for name, t in given.items()}
        return replace(self, **changed)

    def __repr__(self) -> str:
        return shown.inputs(self)

    def _repr_html_(self) -> str:
        return shown.inputs_html(self)

    @property
    def real(self) -> Tensor | None:
        """[batch pos], False where there is padding; None where there is none at all.

        Raises:
            InputsError: if a row is nothing but padding.
        """
        if self.attention_mask is None or bool(self.attention_mask.all()):
            return None
        real = self.attention_mask.bool()
        if not bool(real.any(1).all()):
            rows = (~real.any(1)).nonzero()[:, 0].tolist()
            raise InputsError(f"attention_mask leaves no token in rows {rows}; expected at least one 1 in each")
        return real

    @property
    def is_real(self) -> Bool[Tensor, "batch pos"]:
        """False where there is padding."""
        return torch.ones_like(self.input_ids, dtype=torch.bool) if self.real is None else self.real

    @property
    def is_image(self) -> Bool[Tensor, "batch pos"]:
        """True at the prompt's image tokens; nowhere where the image is not in the prompt (BLIP)."""
        token = self.layout.image_token_id
        return torch.zeros_like(self.input_ids, dtype=torch.bool) if token is None else self.input_ids == token

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Each token's place among the real tokens of its row: padding on the left shifts nothing."""
        if self.real is None:
            return torch.arange(self.input_ids.shape[1], device=self.input_ids.device)[None].expand(len(self), -1)
        return (self.real.long().cumsum(1) - 1).clamp(min=0)

    # --- positions ----------------------------------------------------------------------------------

    @property
    def str_tokens(self) -> Any:
        """The prompt as strings, one a token; a list for each row if there are several."""
        rows = [spelling.strings(self._tokenizer, row) for row in self.input_ids.tolist()]
        return rows[0] if len(rows) == 1 else rows

    @property
    def last(self) -> int:
        """Position of the last real token of the prompt.

        Raises:
            PositionError: if the rows differ (padding on the right); use `last_each`.
        """
        return int(self._common(self.last_each[:, None], "last", "last_each")[0])

    @property
    def last_each(self) -> Int[Tensor, " batch"]:
        """Position of the last real token of each row."""
        n = self.input_ids.shape[1]
        if self.real is None:
            return torch.full((len(self),), n - 1, device=self.input_ids.device)
        return n - 1 - self.real.flip(1).long().argmax(1)

    @property
    def rows_end_together(self) -> bool:
        """True if no row is padded on the right."""
        return self.real is None or bool(self.real[:, -1].all())

    @property
    def image_span(self) -> slice:
        """Where the image's patches stand among the positions that text attends to.

        LLaVA: in the prompt. BLIP: among the keys of cross-attention, after the class token.

        Raises:
            PositionError: if the rows differ; use `image_spans`.
        """
        spans = self.image_spans
        if any(span != spans[0] for span in spans):
            raise PositionError(f"the image spans differ from row to row ({spans}); use image_spans")
        return spans[0]

    @property
    def image_spans(self) -> list[slice]:
        """`image_span` of each row.

        Raises:
            PositionError: if a row has no image, or text between its image tokens, or the layout is not known yet.
        """
        if self.layout.patch_size is not None:
            height, width = (side // self.layout.patch_size for side in self.pixel_values.shape[-2:])
            return [slice(1, 1 + height * width)] * len(self)
        if self.layout.image_token_id is None:
            raise PositionError(f"these inputs were built by hand and know no layout: {_NAMED}")
        spans = []
        for i, row in enumerate(self.input_ids == self.layout.image_token_id):
            places = row.nonzero()[:, 0].tolist()
            if not places:
                raise PositionError(f"row {i} has no image token {self.layout.image_token_id} in its prompt")
            if places[-1] - places[0] >= len(places):
                raise PositionError(
                    f"row {i} has image tokens from {places[0]} to {places[-1]} and others between them, so they are "
                    "no span: use inputs.is_image"
                )
            spans.append(slice(places[0], places[-1] + 1))
        return spans

    def find(self, text: str, occurrence: int | None = None) -> list[int]:
        """Positions of the tokens that spell `text`.

        Args:
            text: a word or several, whole: "red" is not found in "bored". Case matters only where it decides,
                and spaces only between words: tokenizers part "cat's" and "red?" in their own ways.
            occurrence: which one, from 0; may be left out if there is one.

        Raises:
            PositionError: if it is not there, is there more often and no occurrence was named, or stands
                elsewhere in other rows (use `find_each`).
        """
        return self._common(self.find_each(text, occurrence), f"find({quoted(text)})", f"find_each({quoted(text)})")

    def find_each(self, text: str, occurrence: int | None = None) -> Int[Tensor, "batch n_tokens"]:
        """`find` in each row.

        Raises:
            PositionError: as `find`; or if `text` takes more tokens in one row than in another.
        """
        if not isinstance(text, str):
            raise PositionError(f"find was asked for a {type(text).__name__}; expected a text that the prompt holds")
        if occurrence is not None and (isinstance(occurrence, bool) or not isinstance(occurrence, Integral)):
            raise PositionError(f"find was asked for occurrence {quoted(occurrence)}; expected a whole number, from 0")
        rows = [self._find_in_row(i, text, occurrence) for i in range(len(self))]
        if len({len(row) for row in rows}) > 1:
            raise PositionError(
                f"{quoted(text)} takes {[len(row) for row in rows]} tokens in the rows; expected as many"
            )
        return torch.tensor(rows, device=self.input_ids.device)

    def _common(self, each: Tensor, name: str, instead: str) -> list[int]:
        if (each != each[0]).any():
            raise PositionError(f"{name} differs from row to row ({each.tolist()}); use {instead}")
        row: list[int] = each[0].tolist()
        return row

    def _find_in_row(self, i: int, text: str, occurrence: int | None) -> list[int]:
        spelled, spans = self._spelled(i)
        hits, sought, shown = list[tuple[int, int]](), quoted(text), quoted(spelled)
        if text.strip() and len("".join(text.split())) <= len(spelled):  # no pattern is made of what cannot be there
            word = rf"(?<!\w){_with_free_spaces(text)}(?!\w)"
            hits = self._hits(i, word, spelled, spans) or self._hits(i, f"(?i:{word})", spelled, spans)
        if not hits:
            raise PositionError(f"{sought} is not in row {i}, whose tokens spell {shown}")
        if occurrence is None and len(hits) > 1:
            raise PositionError(f"{sought} is {len(hits)} times in row {i} ({shown}); name one: occurrence=0")
        if not -len(hits) <= (occurrence or 0) < len(hits):
            raise PositionError(
                f"{sought} is {len(hits)} times in row {i}; there is no occurrence {quoted(occurrence)}"
            )
        start, stop = hits[int(occurrence or 0)]
        return [p for p, (a, b) in enumerate(spans) if a < stop and b > start]

    def _hits(self, i: int, word: str, spelled: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where `word` is spelled in row `i`, but not as a part of a special token: the s of "<s>" is no word."""
        special = set(self._tokenizer.all_special_ids)
        closed = [span for span, token in zip(spans, self.input_ids[i].tolist(), strict=True) if token in special]
        found = [m.span() for m in re.finditer(word, spelled)]
        return [
            (a, b)
            for a, b in found
            if not any(c <= a and b <= d and spelled[a:b] != spelled[c:d].strip() for c, d in closed)
        ]

    def _spelled(self, i: int) -> tuple[str, list[tuple[int, int]]]:
        """Row `i` as text, and what of it each token spells (image tokens and padding nothing).

        Tokens that share one letter, each a byte of it, all spell that letter.
        """
        ids, silent = self.input_ids[i].tolist(), set()
        if self.real is not None:
            silent = {p for p, is_real in enumerate(self.real[i].tolist()) if not is_real}
        text, seen, spans = "", list[int](), [(0, 0)] * len(ids)
        start, sharing = 0, list[int]()
        for p, token in enumerate(ids):
            if p in silent or token == self.layout.image_token_id:
                continue
            seen.append(token)
            sharing.append(p)
            text = spelling.text(self._tokenizer, seen, clean_up_tokenization_spaces=False)
            for other in sharing:
                spans[other] = (start, len(text))
            if not text.endswith(_UNFINISHED):
                start, sharing = len(text), []
        return text, spans

    @property
    def _tokenizer(self) -> Any:
        if self.layout.tokenizer is None:
            raise PositionError(f"these inputs know no tokenizer: {_NAMED}")
        return self.layout.tokenizer
