"""Images and texts in, tokens and strings out: the processor's side of a model.

Cost: that of the Hugging Face processor. Which words surround a question is the family's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from hooked_vlm.components.stack import Stack
from hooked_vlm.errors import HookedVLMError, InputsError, TextError, quoted
from hooked_vlm.given import told
from hooked_vlm.images import to_rgb_list
from hooked_vlm.models import spelling
from hooked_vlm.models.config import ByStack
from hooked_vlm.models.conversations import Prompt, asked, said
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.layout import Layout
from hooked_vlm.models.prompts import listed, refuse_endless, refuse_huge, refuse_special_tokens, refuse_unread
from hooked_vlm.models.turn import Turn

_FEW = 8  # tokens that an error repeats


class PreparesInputs:
    """The methods of a model that need its processor. A family provides `_prepare`."""

    processor: Any
    reading: Turn  # a tokenizer pads as its last caller said, so one thread at a time reads; runs go on meanwhile
    processor_parts: ClassVar[tuple[str, ...]] = ("image_processor", "tokenizer")
    if TYPE_CHECKING:
        prompt_stack: ClassVar[str]
        stacks: ByStack[Stack]

        @property
        def device(self) -> torch.device:
            """Where the model is."""

        @property
        def layout(self) -> Layout:
            """How the model lays out its sequences."""

    def _prepare(self, images: list[list[Image.Image]], texts: list[Prompt] | None) -> VLMInputs:
        """The images of each text, and the texts (None where the family can do without), through the processor."""
        raise NotImplementedError

    def as_inputs(self, given: VLMInputs | Mapping[str, Any]) -> VLMInputs:
        """Inputs themselves, or those in a mapping as the model's Hugging Face processor returns it.

        Raises:
            InputsError: if it is neither, or a part is missing.
        """
        return VLMInputs.of(given, self.layout)

    def to_inputs(
        self, images: Any, texts: Prompt | Sequence[Prompt] | None = None, *, allow_special_tokens: bool = False
    ) -> VLMInputs:
        """Images and texts as the model reads them, on its device.

        Args:
            images: a PIL image, a path, an array or a tensor (see `images.to_rgb`), or a list of them, one for each
                text. LLaVA also takes a list of lists, the images of each text, of which there may be none; None in
                place of all is no image, or those that conversations hold.
            texts: a text or a list. One image is asked every text, one text is asked of every image.
                LLaVA: a text without "<image>" goes through the chat template, after its images; one that has it is
                taken as it stands. A conversation, a list of messages ``{"role": ..., "content": ...}`` as Hugging
                Face's templates take them, stands in a text's place.
            allow_special_tokens: take control tokens in a text ("</s>", "[SEP]") for what they are. Prompts that are
                written out whole, turn by turn, may need it; in a question they are mostly an accident.

        Raises:
            ImageError: if an image cannot be read.
            TextError: if a text is empty, beyond the context, holds a control token, or has another number of image
                placeholders than images; or a message is none.
            InputsError: if there are different numbers of images and texts, no processor, or one that fails on them.
        """
        self._need("processor")
        prompts, pictures = asked(images, texts)
        if prompts is not None:
            self.refuse_unfit(
                [text for prompt in prompts for text in said(prompt)], allow_special_tokens=allow_special_tokens
            )
        with self._reads():
            inputs = self._prepare(pictures, prompts)
        return inputs.to(self.device).replace(layout=self.layout)

    def refuse_unfit(self, texts: str | Sequence[str], *, allow_special_tokens: bool = False) -> None:
        """Refuse texts that can be no prompt, as `to_inputs` does, without making inputs of them.

        Args:
            texts: one or several, as `to_inputs` takes them.
            allow_special_tokens: as `to_inputs`.

        Raises:
            TextError: naming the text.
        """
        words, tokenizer = listed(texts), self._need("tokenizer")
        refuse_endless(tokenizer, words, self.stacks[self.prompt_stack].cfg.n_ctx)
        with self._reads():
            ids = tokenizer(words, add_special_tokens=False)["input_ids"]
            refuse_unread(words, map(len, ids))
            if not allow_special_tokens:
                placeholder = self.processor.image_token if "image_token" in self.processor_parts else None
                refuse_special_tokens(tokenizer, words, ids, placeholder)

    def to_pixels(self, images: Any) -> Float[Tensor, "batch channel height width"]:
        """Images alone, preprocessed, on the model's device.

        Raises:
            ImageError: as `to_inputs`.
            InputsError: if there is no processor, or one that fails on them.
        """
        pictures = to_rgb_list(images)
        processor = self._need("processor")
        with self._reads():
            pixels: Tensor = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels.to(self.device)

    def to_tokens(self, texts: str | Sequence[str], prepend_bos: bool | None = None) -> Int[Tensor, "batch pos"]:
        """Texts as token ids, padded on the tokenizer's side, without any prompt template.

        Args:
            texts: one or several, beyond the context too; control tokens in them are read as such.
            prepend_bos: True or None for the tokenizer's own special tokens, False for none.

        Raises:
            TextError: if a text is empty, no string, or longer than a million characters, which would take minutes.
        """
        tokenizer = self._need("tokenizer")
        words = listed(texts)
        refuse_huge(words)
        with self._reads():
            read = tokenizer(
                words,
                padding=len(words) > 1,
                add_special_tokens=prepend_bos is not False,
                return_attention_mask=True,
            )
            refuse_unread(words, map(sum, read["attention_mask"]))
            return torch.tensor(read["input_ids"], device=self.device)

    def to_string(self, tokens: Any) -> Any:
        """Token ids as text: a string for one row (or one id), a list of strings for [batch pos].

        An id of the model that its tokenizer does not name, as padded vocabularies have, is "<unnamed 32003>".

        Raises:
            InputsError: if they are no ids of the vocabulary.
        """
        tokenizer = self._need("tokenizer")
        ids = self._ids(tokens)
        if ids.ndim == 2:
            return [spelling.text(tokenizer, row, clean_up_tokenization_spaces=False) for row in ids.tolist()]
        return spelling.text(tokenizer, ids.reshape(-1).tolist(), clean_up_tokenization_spaces=False)

    def to_str_tokens(self, given: Any, prepend_bos: bool | None = None) -> Any:
        """The tokens of a text (or of ids) as strings; a list of lists for several.

        Raises:
            TextError: if a text is empty.
            InputsError: if ids are none of the vocabulary.
        """
        tokenizer = self._need("tokenizer")
        is_text = isinstance(given, str) or (
            isinstance(given, (list, tuple)) and isinstance(next(iter(given), ""), str)
        )
        ids = self.to_tokens(given, prepend_bos) if is_text else self._ids(given)
        rows = [spelling.strings(tokenizer, row) for row in ids.reshape(-1, ids.shape[-1] if ids.ndim else 1).tolist()]
        return rows[0] if len(rows) == 1 else rows

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            TextError: if it takes several tokens, or none, or is not in the vocabulary.
        """
        tokenizer = self._need("tokenizer")
        refuse_huge(listed(text))
        with self._reads():
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = tokenizer.convert_ids_to_tokens(ids[:_FEW])
            more = " and more" if len(ids) > _FEW else ""
            raise TextError(
                f"{quoted(text)} is {len(ids)} tokens {pieces}{more}, not one; take to_tokens, or another word"
            )
        if ids[0] == tokenizer.unk_token_id:
            raise TextError(
                f"{quoted(text)} is not in the vocabulary: the tokenizer reads it as {tokenizer.unk_token!r}"
            )
        return int(ids[0])

    def to_single_str_token(self, token: int) -> str:
        """One token id as its string, as `to_str_tokens` gives it.

        Raises:
            InputsError: if it is not one id of the vocabulary.
        """
        ids = self._ids(token)
        if ids.numel() != 1:
            raise InputsError(f"{ids.numel()} ids were given; expected one. to_str_tokens takes several")
        return spelling.strings(self.tokenizer, [int(ids)])[0]

    def _ids(self, tokens: Any) -> Tensor:
        """Token ids as a tensor. Raises InputsError if they are no integers, or none of the model's."""
        return _ids(tokens, spelling.n_ids(self.tokenizer, self.stacks[self.prompt_stack].cfg.d_vocab))

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, a Hugging Face one.

        Raises:
            InputsError: if the model has no processor.
        """
        return self._need("tokenizer")

    def _need(self, part: str) -> Any:
        """The processor, or its tokenizer. Raises InputsError where there is none."""
        found = self.processor if part == "processor" else getattr(self.processor, "tokenizer", None)
        if found is None:
            raise InputsError(f"this model has no {part}: pass one, {type(self).__name__}.from_hf(hf_model, processor)")
        lacks = [name for name in self.processor_parts if part == "processor" and not hasattr(found, name)]
        if lacks:
            raise InputsError(
                f"this model's processor is a {type(found).__name__}, which has no {' and no '.join(lacks)}: pass the "
                f"one that its checkpoint has, {type(self).__name__}.from_hf(hf_model, processor)"
            )
        return found

    @contextmanager
    def _reads(self) -> Iterator[None]:
        """The turn to read; what the processor raises meanwhile, and that may be anything, becomes an `InputsError`."""
        with self.reading.taken(running=True):
            try:
                yield
            except (HookedVLMError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                whose = getattr(getattr(self.processor, "tokenizer", None), "name_or_path", "")
                called = type(self.processor).__name__ + (f" of {quoted(whose)}" if whose else "")
                raise InputsError(
                    f"this model's processor, a {called}, fails on what it was given: {told(error)}. Check its files "
                    "(tokenizer.json, processor_config.json and, where there is one, chat_template.jinja), or pass the "
                    "processor that belongs to the model"
                ) from error

    @staticmethod
    def _refuse_long(texts: list[str] | None, lengths: list[int], limit: int) -> None:
        """Raise TextError if a row has more tokens than the context."""
        for i, n in enumerate(lengths):
            if n > limit:
                shown = "" if texts is None else f" ({texts[i][:40]!r}...)"
                raise TextError(
                    f"text {i}{shown} takes {n} tokens and the context is {limit}: shorten it by {n - limit}"
                )


def _ids(tokens: Any, n_known: int) -> Tensor:
    """Token ids as a tensor. Raises InputsError if they are no integers, or beyond the vocabulary."""
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputsError(
            f"the tokens cannot be read as ids ({told(error)}); expected integers, [pos] or [batch pos]"
        ) from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.ndim > 2 or not ids.numel():
        raise InputsError(
            f"the tokens have dtype {ids.dtype} and shape {tuple(ids.shape)}; expected integer ids, "
            "[pos] or [batch pos]"
        )
    if not 0 <= int(ids.min()) <= int(ids.max()) < n_known:
        raise InputsError(
            f"the tokens run from {int(ids.min())} to {int(ids.max())}; the vocabulary is 0 to {n_known - 1}"
        )
    return ids
