"""Where things stand in what a model reads: no offset is ever counted by hand. Knows no model.

The few facts that are needed (which id is the image, how large a patch is) come with the inputs, in their `Layout`.
Cost: a walk along the tokens of a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_vlm.errors import InputsError, PositionError, quoted
from hooked_vlm.models import layout as described
from hooked_vlm.models import spelling
from hooked_vlm.models.layout import Layout, Role

_NAMED = "make them with model.to_inputs, or inputs.replace(layout=model.layout), to name positions"
_UNFINISHED = "\ufffd"  # what the first bytes of a letter decode to


def _with_free_spaces(text: str) -> str:
    """A pattern for `text` in which spaces are needed only between two words."""
    parts = re.findall(r"\w+|[^\w\s]", text)
    joints = [r"\s+" if a[-1].isalnum() and b[0].isalnum() else r"\s*" for a, b in pairwise(parts)]
    return "".join(re.escape(part) + joint for part, joint in zip(parts, [*joints, ""], strict=False))


class NamesPositions:
    """What `VLMInputs` knows of its positions."""

    pixel_values: Float[Tensor, "..."] | None
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Tensor | None
    layout: Layout
    image_parts: Mapping[str, Tensor]

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
            return torch.arange(self.input_ids.shape[1], device=self.input_ids.device)[None].expand(
                len(self.input_ids), -1
            )
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
            return torch.full((len(self.input_ids),), n - 1, device=self.input_ids.device)
        return n - 1 - self.real.flip(1).long().argmax(1)

    @property
    def rows_end_together(self) -> bool:
        """True if no row is padded on the right."""
        return self.real is None or bool(self.real[:, -1].all())

    @property
    def images_each(self) -> list[int]:
        """How many images each row has."""
        n_rows, n_images = len(self.input_ids), self.n_images
        if not n_images or self.layout.image_token_id is None:
            return [n_images // n_rows if self.layout.images else min(n_images, 1)] * n_rows
        n_tokens = self.is_image.sum(1).tolist()
        if self.layout.images is not None:
            ends = [0, *accumulate(len(image) for image in self._images)]
            stops = [0, *accumulate(n_tokens)]
            fits = set(stops) <= set(ends) and stops[-1] == ends[-1]
            return [ends.index(b) - ends.index(a) for a, b in pairwise(stops)] if fits else [1] * n_rows
        size, over = divmod(sum(n_tokens), n_images)
        fits = bool(size) and not over and not any(n % size for n in n_tokens)
        return [n // size for n in n_tokens] if fits else [1] * n_rows  # what does not fit, the model refuses

    @property
    def n_images(self) -> int:
        """How many images there are in all."""
        if self.pixel_values is None:
            return 0
        return len(self.pixel_values if self.layout.images is None else self.layout.images(self))

    @property
    def image_span(self) -> slice:
        """Where the image's patches stand among the positions that text attends to.

        LLaVA: in the prompt. BLIP: among the keys of cross-attention, after the class token.

        Raises:
            PositionError: if the rows differ, or a row has another number of images than one; use `image_spans`.
        """
        spans = self.image_spans
        if set(self.images_each) != {1}:
            raise PositionError(f"the rows have {self.images_each} images; use image_spans, one for each image")
        if any(span != spans[0] for span in spans):
            raise PositionError(f"the image spans differ from row to row ({spans}); use image_spans")
        return spans[0]

    @property
    def image_spans(self) -> list[slice]:
        """Where each image's patches stand in its row, as `image_span`: the images of row 0, of row 1, ...

        Raises:
            PositionError: if a row has no place for its image, or text between the tokens of one, or the layout is
                not known yet.
        """
        spans = []
        if self.layout.image_token_id is None:  # of the keys of cross-attention, those that show the picture
            for (_, places), roles in zip(self._places, self._images, strict=True):
                shown = [at for at, role in zip(places, roles, strict=True) if role.kind == "patch"]
                spans.append(slice(shown[0], shown[-1] + 1))
            return spans
        for row, places in self._places:
            if places[-1] - places[0] >= len(places):
                raise PositionError(
                    f"row {row} has image tokens from {places[0]} to {places[-1]} and others between them, so they are "
                    "no span: use inputs.is_image"
                )
            spans.append(slice(places[0], places[-1] + 1))
        return spans

    def grid(self, image: int | None = None, view: int = 0) -> Int[Tensor, "row column"]:
        """The positions of an image's patches as they lie in the picture: ``inputs.grid(0)[0, -1]`` is top right.

        What else an image has (class tokens, newlines) is in no grid; `roles` says where it stands.

        Args:
            image: its number in the batch: the images of row 0, of row 1, ...; may be left out where every row has
                one, and they stand at the same positions.
            view: which of the image's views, where it is seen in several: LLaVA-NeXT's whole picture is view 0, its
                tiles together are view 1.

        Raises:
            PositionError: if there is no such image or view, none was named and the rows differ, or as `image_spans`.
        """
        n_images = len(self._images)
        if image is None:
            grids = [self.grid(each, view) for each in range(n_images)]
            alike = all(torch.equal(each, grids[0]) for each in grids)
            if set(self.images_each) == {1} and alike:
                return grids[0]
            raise PositionError(
                f"the rows have {self.images_each} images{'' if alike else ', at differing positions'}: name one of "
                f"the batch's, inputs.grid(0) to inputs.grid({n_images - 1})"
            )
        if isinstance(image, bool) or not isinstance(image, Integral) or not -n_images <= image < n_images:
            raise PositionError(f"image {quoted(image)} was asked for; these inputs have images 0 to {n_images - 1}")
        (_, places), roles = self._places[int(image)], self._images[int(image)]
        patches = {
            (role.row, role.column): at
            for at, role in zip(places, roles, strict=True)
            if role.kind == "patch" and role.view == view
        }
        if not patches:
            views = sorted({role.view for role in roles if role.kind == "patch"})
            raise PositionError(f"image {image} has no patches of view {quoted(view)}; it has views {views}")
        rows, columns = (1 + max(side) for side in zip(*patches, strict=True))
        if len(patches) < rows * columns:
            raise PositionError(
                f"image {image} has {len(places)} positions for {rows} x {columns} patches: the model drops "
                "the first, so they are no grid; inputs.roles says which stands where"
            )
        ordered = [patches[row, column] for row in range(rows) for column in range(columns)]
        return torch.tensor(ordered, device=self.input_ids.device).view(rows, columns)

    @property
    def roles(self) -> list[list[Role]]:
        """What stands at each position of each row of the prompt."""
        found = [[Role("text" if real else "padding") for real in row] for row in self.is_real.tolist()]
        if self.layout.image_token_id is None:
            return found
        for image, ((row, places), roles) in enumerate(zip(self._places, self._images, strict=True)):
            for at, role in zip(places, roles, strict=True):
                found[row][at] = role._replace(image=image)
        return found

    @property
    def _images(self) -> list[described.Image]:
        """What stands at each position of each image, in order."""
        if self.layout.images is not None:
            return list(self.layout.images(self)) if self.n_images else []
        return [self._square(len(places)) for _, places in self._places]

    def _square(self, n: int) -> described.Image:
        """An image that is one grid: a class token may stand before it, and the first patch may be dropped."""
        if self.layout.patch_size is None:
            raise PositionError(f"these inputs know no size of a patch: {_NAMED}")
        patches = described.grid(*self._grid_size)
        return (Role("class token"),) * (n - len(patches)) + patches[-n:]

    @property
    def _grid_size(self) -> tuple[int, int]:
        assert self.pixel_values is not None and self.layout.patch_size is not None
        height, width = (side // self.layout.patch_size for side in self.pixel_values.shape[-2:])
        return height, width

    @property
    def _places(self) -> list[tuple[int, list[int]]]:
        """The row that each image is in, and its positions there."""
        token, each, found = self.layout.image_token_id, self.images_each, list[tuple[int, list[int]]]()
        sizes = None if self.layout.images is None else [len(image) for image in self._images]
        if token is None and sizes is None:
            if self.layout.patch_size is None:
                raise PositionError(f"these inputs were built by hand and know no layout: {_NAMED}")
            sizes = [1 + self._grid_size[0] * self._grid_size[1]] * sum(each)
        for row, n_images in enumerate(each):
            own = None if sizes is None else sizes[len(found) : len(found) + n_images]
            at = list(range(sum(own or ()))) if token is None else self.is_image[row].nonzero()[:, 0].tolist()
            if n_images and not at:
                raise PositionError(f"row {row} has no image token {token} in its prompt")
            own = [len(at) // max(n_images, 1)] * n_images if own is None else own
            if self.layout.images is not None and sum(own) != len(at):
                raise PositionError(
                    f"row {row} has {len(at)} image tokens and its images {own} positions: make the inputs with "
                    "model.to_inputs, or model.processor, which count alike"
                )
            found += [(row, at[stop - size : stop]) for size, stop in zip(own, accumulate(own), strict=True)]
        return found

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
        rows = [self._find_in_row(i, text, occurrence) for i in range(len(self.input_ids))]
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
