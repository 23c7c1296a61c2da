"""From rows of a task to examples that can be patched, and the reasons why others cannot.

A row becomes an example where the model answers it rightly, a token tells its answers apart, and a corruption that was
asked for can be made: it is patched under those that it has. Rows are prepared in blocks: whatever a block's rows are,
they give the same examples.

Costs the processor, one generation, and the corrupt inputs. Knows models by their public face.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from hooked_vlm.analysis import answers
from hooked_vlm.analysis.answers import Scored
from hooked_vlm.analysis.corruption import GaussianNoise, RegionCorruption, SemanticImagePair, SymmetricTokenReplacement
from hooked_vlm.errors import HookedVLMError, ReplacementError, quoted
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.roles import as_published, roles
from hooked_vlm.notice.schema import Corrupt, Role
from hooked_vlm.notice.vocabulary import EVERY
from hooked_vlm.patching.metrics import with_answer

NO_CORRUPT_IMAGE = "the row has no corrupt image"
NO_CORRUPT_PROMPT = "the row has no corrupt prompt"
NO_MASK = "the row has no mask of the region to corrupt"
ANOTHER_LENGTH = "the corrupt prompt has another number of tokens"
SAME_PROMPT = "the corrupt prompt has the same tokens"
NOT_IN_PROMPT = "the answer's word is not in the prompt"
UNUSABLE = "the row cannot be given to the model"


@dataclass
class Example:
    """A row, and what the model makes of it.

    Args:
        number: its index in the source.
        row: its values.
        inputs: clean, alone and without padding, ending in what both answers share where they begin alike.
        reason: why it is not kept; "" if it is.
        generated: what the model answered.
        scored: the tokens of its answers.
        roles: of every position of the prompt.
        positions: where it is patched.
        lacks: why it has not each corruption that was asked for and that it has not; none if it has all.
        corrupt: the corruptions that it has, of those that were asked for.
        pixels: of the corrupt image, [1 channel height width].
        corrupt_ids: of the corrupt prompt, [1 pos].
    """

    number: int
    row: dict[str, Any]
    inputs: VLMInputs | None = None
    reason: str = ""
    generated: str = ""
    scored: Scored | None = None
    roles: list[Role] = field(default_factory=list)
    positions: tuple[int, ...] = ()
    lacks: dict[str, str] = field(default_factory=dict)
    corrupt: tuple[Corrupt, ...] = ()
    pixels: Tensor | None = None
    corrupt_ids: Tensor | None = None

    @property
    def kept(self) -> bool:
        """True if it is patched."""
        return not self.reason

    @property
    def clean(self) -> VLMInputs:
        """The clean inputs of an example that is kept."""
        assert self.inputs is not None
        return self.inputs

    @property
    def tokens(self) -> Scored:
        """The scored tokens of an example that is kept."""
        assert self.scored is not None
        return self.scored

    def where(self, role: str) -> list[int]:
        """Its positions of a role."""
        return [place for place, found in enumerate(self.roles) if found == role]


def prepared(model: HookedVLM, config: NoticeConfig, rows: Sequence[tuple[int, dict[str, Any]]]) -> list[Example]:
    """The examples of a block of rows.

    Args:
        model: a `HookedVLM`.
        config: the run's, resolved.
        rows: numbers and rows.
    """
    examples = given(model, config, rows)
    _answer(model, examples)
    return _laid_out(model, config, examples)


def unanswered(model: HookedVLM, config: NoticeConfig, rows: Sequence[tuple[int, dict[str, Any]]]) -> list[Example]:
    """What a block of rows would be if the model gave every right answer, in one token; only those that can be patched.

    Args:
        model: a `HookedVLM`, its weights not needed.
        config: the run's, resolved.
        rows: numbers and rows.
    """
    examples = given(model, config, rows)
    for example in examples:
        example.scored = Scored(0, 0)
    return [example for example in _laid_out(model, config, examples) if example.kept]


def _laid_out(model: HookedVLM, config: NoticeConfig, examples: list[Example]) -> list[Example]:
    """Examples with their corrupt inputs and the positions at which they are patched; some are no longer kept."""
    for example in [each for each in examples if each.kept]:
        _corrupt(model, config, example)
        if example.kept:
            _place(config, example)
    return examples


def given(model: HookedVLM, config: NoticeConfig, rows: Sequence[tuple[int, dict[str, Any]]]) -> list[Example]:
    """Rows with their clean inputs, all through the processor at once; a row that cannot be read says so.

    Args:
        model: a `HookedVLM`.
        config: the run's, resolved.
        rows: numbers and rows.
    """
    examples = [Example(number, row) for number, row in rows]
    prompts = [example.row["prompt"] for example in examples]
    try:
        together = _read(model, config, [example.row["image"] for example in examples], prompts)
        for i, example in enumerate(examples):
            example.inputs = unpadded(together[i])
    except HookedVLMError:
        for example, prompt in zip(examples, prompts, strict=True):
            try:
                example.inputs = unpadded(_read(model, config, example.row["image"], prompt))
            except HookedVLMError as error:
                example.reason = f"{UNUSABLE} ({type(error).__name__})"
    return examples


def restored(model: HookedVLM, example: Example, tokens: Scored) -> None:
    """Give an example the tokens it is scored by; what both answers begin with follows its prompt."""
    example.scored = tokens
    if not tokens.shared:
        return
    ids = torch.tensor([*tokens.shared, 0], device=example.clean.input_ids.device)
    example.inputs = with_answer(model, example.clean, ids)
    if example.corrupt_ids is not None and model.answer_stack == model.prompt_stack:
        example.corrupt_ids = torch.cat([example.corrupt_ids, ids[None, :-1]], 1)


def unpadded(inputs: VLMInputs) -> VLMInputs:
    """A batch without the columns in which every row is padding."""
    if inputs.attention_mask is None:
        return inputs
    real = inputs.attention_mask.bool().any(0)
    mask = inputs.attention_mask[:, real]
    return inputs.replace(input_ids=inputs.input_ids[:, real], attention_mask=None if bool(mask.all()) else mask)


def stacked(examples: Sequence[Example]) -> VLMInputs:
    """Clean inputs of several examples of equal length as a batch."""
    first = examples[0].clean
    decoder = None if first.decoder_input_ids is None else _cat([e.clean.decoder_input_ids for e in examples])
    return first.replace(
        pixel_values=_cat([e.clean.pixel_values for e in examples]),
        input_ids=_cat([e.clean.input_ids for e in examples]),
        decoder_input_ids=decoder,
    )


def corruptions(config: NoticeConfig, examples: Sequence[Example]) -> dict[str, Any]:
    """The corruptions of a batch of examples that have the same, by name."""
    made: dict[str, Any] = {}
    there = examples[0].corrupt
    if "image" in there:
        made["image"] = SemanticImagePair(pixel_values=_cat([e.pixels for e in examples]))
    if "text" in there:
        made["text"] = SymmetricTokenReplacement(input_ids=_cat([e.corrupt_ids for e in examples]))
    if config.noise:
        for target in there:
            seeds = [noise_seed(config.seed, target, str(e.row["id"])) for e in examples]
            where = None
            if target == "text":
                places = [noisy_places(e) for e in examples]
                longest = max(map(len, places))
                where = torch.tensor([each + each[-1:] * (longest - len(each)) for each in places])
            made[f"{target}_noise"] = GaussianNoise(target, config.noise_scale, seeds, where)
    return made


def noise_seed(seed: int, target: str, name: str) -> int:
    """The seed of an example's noise: a function of the run's seed and the example's name."""
    return zlib.crc32(f"{seed} {target} {name}".encode())


def noisy_places(example: Example) -> list[int]:
    """Where an example's words get noise: what is replaced in its corrupt prompt (Meng et al. noise the subject).

    Where that is not known, every word of the question.
    """
    if example.corrupt_ids is not None:
        return first_changed(example)
    words = ("answer", "wrong answer", "subject", "other")
    return [place for place, role in enumerate(example.roles) if role in words]


def first_changed(example: Example) -> list[int]:
    """The positions at which an example's corrupt prompt differs."""
    assert example.corrupt_ids is not None
    changed: list[int] = (example.corrupt_ids[0] != example.clean.input_ids[0]).nonzero()[:, 0].tolist()
    return changed


def query(config: NoticeConfig, example: Example) -> list[int]:
    """The positions from which an example's heads are watched."""
    if config.watch_at == EVERY:
        return [place for place, role in enumerate(example.roles) if role != "image"]
    return example.where(config.watch_at)


def refuse_unreadable(
    model: HookedVLM, config: NoticeConfig, task: str, rows: Iterable[tuple[int, dict[str, Any]]]
) -> None:
    """Refuse a task of whose rows none can be given to the model; the first that can ends the search.

    Args:
        model: a `HookedVLM`.
        config: the run's, resolved.
        task: as the configuration names it.
        rows: numbers and rows.

    Raises:
        TextError, ImageError, ...: what the first row raises, with the row.
    """
    first: HookedVLMError | None = None
    where = ""
    for number, row in rows:
        try:
            _read(model, config, row["image"], row["prompt"])
            return
        except HookedVLMError as error:
            if first is None:
                first, where = error, f"row {number} ({quoted(row['id'])})"
    if first is not None:
        raise type(first)(f"no row of {task} can be given to the model; of {where}: {first}") from first


# --- steps ----------------------------------------------------------------------------------------------


def _read(model: HookedVLM, config: NoticeConfig, images: Any, prompts: str | list[str]) -> VLMInputs:
    """Images and the rows' prompts, in the run's template, through the processor; rows hold no control tokens."""
    if config.prompt_template is None:
        return model.to_inputs(images, prompts)
    model.refuse_unfit(prompts)
    listed = [prompts] if isinstance(prompts, str) else prompts
    filled = [config.prompt_template.replace("{prompt}", prompt) for prompt in listed]
    return model.to_inputs(images, filled, allow_special_tokens=True)  # those of the template


def _answer(model: HookedVLM, examples: list[Example]) -> None:
    """Let the model answer, those of equal length together; keep what it answers rightly."""
    for group in grouped([example for example in examples if example.kept], lambda e: e.clean.input_ids.shape[1]):
        tokens, said = answers.generated_tokens(model, stacked(group))
        for example, ids, text in zip(group, tokens, said, strict=True):
            example.generated = text
            answer, wrong = example.row["answer"], example.row["wrong_answer"]
            example.reason = answers.judged(text, answer, wrong)
            if not example.kept:
                continue
            found = answers.scored(model.processor.tokenizer, ids, answer, wrong)
            if isinstance(found, str):
                example.reason = found
            else:
                example.scored = found


def _corrupt(model: HookedVLM, config: NoticeConfig, example: Example) -> None:
    """Make the corruptions that were asked for; an example that has none of them is not kept."""
    row, clean = example.row, example.clean
    corrupt, reasons = None, dict.fromkeys(("text", "image"), "")
    if row.get("corrupt_prompt") is None:
        reasons["text"] = NO_CORRUPT_PROMPT
    else:
        try:
            corrupt = unpadded(_read(model, config, row["image"], row["corrupt_prompt"]))
            example.corrupt_ids = SymmetricTokenReplacement(input_ids=corrupt.input_ids).tokens(model, clean)
            reasons["text"] = "" if first_changed(example) else SAME_PROMPT
        except ReplacementError:
            reasons["text"] = ANOTHER_LENGTH
        except HookedVLMError as error:
            reasons["text"] = f"{UNUSABLE} ({type(error).__name__})"
    if "image" in config.corrupt:
        reasons["image"] = _corrupt_image(model, config, example)
    example.lacks = {name: reason for name, reason in reasons.items() if reason and name in config.corrupt}
    example.corrupt = tuple(name for name in config.corrupt if name not in example.lacks)
    if not example.corrupt:
        example.reason = next(iter(example.lacks.values()))
        return
    example.roles = roles(clean, row["prompt"], row["answer"], row["wrong_answer"], corrupt)
    if config.as_published:
        in_sequence = clean.layout.image_token_id is not None
        example.roles = as_published(example.roles, last=in_sequence, off_by_one=config.published_off_by_one)
    restored(model, example, example.tokens)


def _corrupt_image(model: HookedVLM, config: NoticeConfig, example: Example) -> str:
    row = example.row
    picture = row.get("corrupt_image")
    if config.region is not None:
        if row.get("mask") is None:
            return NO_MASK
        try:
            (picture,) = RegionCorruption(row["image"], row["mask"], config.region).pictures()
        except HookedVLMError as error:
            if isinstance(error, ImportError):
                raise
            return f"{UNUSABLE} ({type(error).__name__})"
    if picture is None:
        return NO_CORRUPT_IMAGE
    try:
        example.pixels = model.to_pixels(picture)
    except HookedVLMError as error:
        return f"{UNUSABLE} ({type(error).__name__})"
    return ""


def _place(config: NoticeConfig, example: Example) -> None:
    """Decide where an example is patched."""
    places = {
        "all": list(range(len(example.roles))),
        "text": [place for place, role in enumerate(example.roles) if role != "image"],
        "answer": example.where("answer"),
        "last": example.where("last"),
    }[config.positions]
    if not example.where("answer") and "answer" in (config.positions, config.select_at, config.watch_at):
        example.reason = NOT_IN_PROMPT
    example.positions = tuple(places)


def grouped(examples: Sequence[Example], key: Any) -> list[list[Example]]:
    """Examples with the same key together, in the order of their first."""
    groups: dict[Any, list[Example]] = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example)
    return list(groups.values())


def own_rows(table: pd.DataFrame, i: int, about: Mapping[str, str]) -> pa.Table:
    """The rows of example `i` of a batch's table, behind columns that say which example it is."""
    own = table[table["row"] == i].drop(columns="row")
    for place, (name, value) in enumerate(about.items()):
        own.insert(place, name, value)
    return pa.Table.from_pandas(own, preserve_index=False)


def _cat(tensors: Sequence[Any]) -> Tensor:
    return torch.cat(list(tensors))
