"""What a model is asked: each prompt, a text or a conversation, with its images. Knows no model.

Cost: that of reading the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from hooked_vlm.errors import ImageError, InputsError, TextError, quoted
from hooked_vlm.images import to_rgb, to_rgb_list
from hooked_vlm.models.prompts import listed
from hooked_vlm.options import told

Message = Mapping[str, Any]  # {"role": "user", "content": a text, or a list of parts {"type": "text" or "image", ...}}
Prompt = str | Sequence[Message]


def asked(images: Any, texts: Any) -> tuple[list[Prompt] | None, list[list[Image.Image]]]:
    """The prompts (None if no text was given), and the images of each; see `model.to_inputs`.

    Raises:
        ImageError: if an image cannot be read.
        TextError: if a text is none, or a message is none.
        InputsError: if there are different numbers of images and texts.
    """
    prompts = None if texts is None else _prompts(texts)
    if images is None and prompts is not None:
        return prompts, [_inside(prompt) for prompt in prompts]
    pictures = _of_each(images)
    if prompts is None:
        return None, pictures
    pictures = pictures * len(prompts) if len(pictures) == 1 else pictures
    prompts = prompts * len(pictures) if len(prompts) == 1 else prompts
    if len(prompts) != len(pictures):
        raise InputsError(
            f"{len(pictures)} images and {len(prompts)} texts: give as many of each, or one of either. Several images "
            "of one text are a list in the list: [[image, image]]"
        )
    for i, prompt in enumerate(prompts):
        if held := _inside(prompt):
            raise InputsError(
                f"conversation {i} holds {len(held)} images itself, and others were given: to_inputs(None, texts)"
            )
    return prompts, pictures


def said(prompt: Prompt) -> list[str]:
    """The texts in a prompt: itself, or those of its messages."""
    if isinstance(prompt, str):
        return [prompt]
    parts = [part for message in prompt for part in content(message)]
    return [part["text"] for part in parts if part["type"] == "text"]


def content(message: Message) -> list[dict[str, Any]]:
    """The parts of a message, each a dict with its "type"."""
    given = message["content"]
    return [{"type": "text", "text": given}] if isinstance(given, str) else [dict(part) for part in given]


def as_many(n_images: int) -> str:
    """How many placeholders are expected, in words."""
    return "one, for its one image" if n_images == 1 else f"{n_images}, one for each of its images"


def turns(i: int, prompt: Prompt, n_images: int) -> list[dict[str, Any]]:
    """A prompt as messages for a chat template. Images without a place in a conversation stand in its first turn.

    Raises:
        TextError: if a conversation has places for another number of images.
    """
    places: list[dict[str, Any]] = [{"type": "image"}] * n_images
    if isinstance(prompt, str):
        return [{"role": "user", "content": [*places, {"type": "text", "text": prompt}]}]
    n = sum(part["type"] == "image" for message in prompt for part in content(message))
    if n not in (0, n_images):
        raise TextError(f"the conversation of text {i} has {n} places for images; expected {as_many(n_images)}")
    found = [
        {**message, "content": [{"type": "image"} if part["type"] == "image" else part for part in content(message)]}
        for message in prompt
    ]
    if not n:
        first = next((turn for turn in found if turn["role"] == "user"), found[0])
        first["content"] = [*places, *first["content"]]
    return found


def one_each(images: Sequence[Sequence[Image.Image]]) -> list[Image.Image]:
    """The one image of each prompt, for a model that reads no more and no less. Raises ImageError."""
    for i, own in enumerate(images):
        if len(own) != 1:
            raise ImageError(
                f"text {i} has {len(own) or 'no'} images; this model reads one with each text: expected one"
            )
    return [image for (image,) in images]


def plain(prompts: Sequence[Prompt]) -> list[str]:
    """Prompts that are texts, for a model that knows no turns. Raises TextError."""
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TextError(f"text {i} is a conversation, and this model reads plain texts")
    return [prompt for prompt in prompts if isinstance(prompt, str)]


def _inside(prompt: Prompt) -> list[Image.Image]:
    """The images that a conversation holds itself."""
    if isinstance(prompt, str):
        return []
    parts = [part for message in prompt for part in content(message) if part["type"] == "image"]
    given = [next((part[key] for key in ("image", "path") if part.get(key) is not None), None) for part in parts]
    return [to_rgb(image, f"image {i} of a conversation") for i, image in enumerate(given) if image is not None]


def _of_each(images: Any) -> list[list[Image.Image]]:
    nested = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    if nested and any(isinstance(each, (list, tuple)) for each in images):
        rows = [each if isinstance(each, (list, tuple)) else [each] for each in images]
        return [[to_rgb(image, f"image {k} of text {i}") for k, image in enumerate(row)] for i, row in enumerate(rows)]
    return [[image] for image in to_rgb_list(images)]


def _prompts(texts: Any) -> list[Prompt]:
    if isinstance(texts, (list, tuple)) and texts:
        texts = [texts] if all(isinstance(each, Mapping) for each in texts) else texts
        if any(isinstance(each, (list, tuple)) for each in texts):
            talks = {i: _conversation(i, each) for i, each in enumerate(texts) if isinstance(each, (list, tuple))}
            words = listed([said(talks[i])[0] if i in talks else each for i, each in enumerate(texts)])
            return [talks.get(i, word) for i, word in enumerate(words)]
    return list(listed(texts))


def _conversation(i: int, given: Any) -> Sequence[Message]:
    expected = (
        "a text, or a list of messages {'role': 'user', 'content': a text, or parts {'type': 'text', 'text': ...} and "
        "{'type': 'image'}}"
    )
    if not isinstance(given, Sequence) or isinstance(given, bytes) or not given:
        raise TextError(f"text {i} is {told(given)}; expected {expected}")
    for k, message in enumerate(given):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TextError(f"message {k} of text {i} is {told(message)}; expected {expected}")
        inside = message.get("content")
        parts = [{"type": "text", "text": inside}] if isinstance(inside, str) else inside
        if not isinstance(parts, Sequence) or not all(_is_part(part) for part in parts):
            raise TextError(f"the content of message {k} of text {i} is {quoted(inside)}; expected {expected}")
    if not said(given):
        raise TextError(f"text {i} is a conversation in which nothing is said; expected {expected}")
    return given


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))
