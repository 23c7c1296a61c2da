"""What a NOTICE run is: one frozen, typed, validated configuration, which goes to JSON and back.

Each option stands here once: its type, values, range and default, and the sentence below it, which the command line
gives as its help. Two runs with equal configurations give equal results. Costs nothing; knows no model until
`resolved` is given one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from hooked_vlm.errors import InputsError, ResumeError, TextError, closest, cut, quoted
from hooked_vlm.given import is_blank, unwritable
from hooked_vlm.notice.schema import Corrupt, Kind
from hooked_vlm.notice.vocabulary import CORRUPT, EVERY, KINDS

if TYPE_CHECKING:
    import hooked_vlm.models.base  # named in full, as run-time checks look a name up that is not imported

SEEN_FOR_EACH = 4  # rows seen for each example wanted, before a task is given up
SMALL = 20_000_000  # weights; below, Python takes longer than the arithmetic, and examples run together
BATCH = 16
OPEN = (None, "auto")  # a device or dtype that is left to the machine and the checkpoint
_LEFT: Final = (
    "kinds",
    "select_at",
    "watch_at",
    "every_position",
    "batch",
    "device",
    "dtype",
)  # what may be left to the model
_SAYS_NOTHING: Final = "a text that says something"
_ONCE: Final = "each name once, and at least one"
_EXPECTED: Final = {  # by pydantic's name of an error
    "bool_type": "True or False",
    "int_type": "a whole number",
    "greater_than_equal": "{ge} or more, and {le} at most",
    "less_than_equal": "{ge} or more, and {le} at most",
    "float_type": "a number above {gt}",
    "finite_number": "a number above {gt}",
    "greater_than": "a number above {gt}",
    "too_short": _ONCE,
}


class Flag(str):
    """How the command line spells an option, where it does so otherwise than by its name."""


def _text(given: Any, *, lines: bool = False) -> str:
    if not isinstance(given, str):
        raise ValueError("a text")
    if is_blank(given):
        raise ValueError(_SAYS_NOTHING)
    if not (lines or given.isprintable()) or unwritable(given):
        raise ValueError("a text that can be written and read")
    return given


def _template(given: Any) -> str:
    if "{prompt}" not in _text(given, lines=True):
        raise ValueError("a text with {prompt} in it")
    return str(given)


def _names(given: Any) -> tuple[str, ...]:
    names = None if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if names is None or not all(isinstance(each, str) and not unwritable(each) for each in names):
        raise ValueError("a sequence of names")
    if len(set(names)) < len(names):
        raise ValueError(_ONCE)
    return names


SelectAt = Literal["auto", "answer", "last", "every position"]
_Text = Annotated[str, BeforeValidator(_text)]
_Names = BeforeValidator(_names)
_OneOf = BeforeValidator(_text)
_C = TypeVar("_C", bound=type)


def _refusing(made: _C) -> _C:
    """A class whose instances raise InputsError where pydantic finds something else than was declared."""
    begin = made.__init__  # type: ignore[misc]

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        try:
            begin(self, *args, **options)
        except ValidationError as error:
            raise _refusal(error.errors(include_url=False)) from None

    made.__init__ = __init__  # type: ignore[misc]
    return made


@_refusing
@dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True),
)
class NoticeConfig:
    """A NOTICE run: the options below, by name.

    Raises:
        InputsError: if an option has no such value, or two contradict each other.
    """

    model: _Text
    """A hub name, a directory, or "zoo:..." for a model that ships here."""
    tasks: Annotated[tuple[str, ...], _Names, Field(min_length=1), Flag("--task")]
    """Of `datasets.sources.TASKS`, or parquet files; --task again for more, "all" for those of the shapes world."""
    corrupt: Annotated[tuple[Corrupt, ...], _Names, Field(min_length=1)] = CORRUPT
    """What is corrupted, one at a time: image, text or both; a row is kept for those that it has."""
    kinds: Annotated[tuple[Kind, ...], _Names, Flag("--sites")] = ()
    """What is patched: cross_attn-heads, attn-heads, cross_attn, attn, mlp, resid; all that there are if left out."""
    positions: Annotated[Literal["text", "answer", "last", "all"], _OneOf] = "text"
    """Where: text (all but the image's), answer (the right answer's word), last or all."""
    select_at: Annotated[SelectAt, _OneOf] = "auto"
    """Where heads are selected: answer, last, 'every position', or auto: 'every position' where heads are patched so,
    else as watch_at."""
    watch_at: Annotated[SelectAt, _OneOf] = "auto"
    """Whose attention on the image is scored: answer, last, 'every position', or auto: where heads are selected if that
    is a single one, else answer in BLIP and last, where it begins to answer, in LLaVA."""
    every_position: bool | None = None
    """Patch heads at every position at once, too; if left out, where it is affordable and single positions were not
    asked for."""
    screen: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Estimate every site, and measure the largest so many of each kind, and as many drawn at random."""
    examples: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Examples wanted of each task, answered rightly; four times as many rows are seen at most."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of the rows, the noise and every draw."""
    data: _Text | None = None
    """The data set's folder, for tasks that read one."""
    noise: bool = False
    """Also Gaussian noise, the method that NOTICE is compared with."""
    noise_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    """Its standard deviation, in those of the embeddings."""
    region: Annotated[Literal["blur", "mean", "inpaint"], _OneOf] | None = None
    """Corrupt the masked region of the image instead of taking the task's corrupt image: blur, mean or inpaint."""
    as_published: bool = False
    """As the released NOTICE code does: both answers replaced in corrupt prompts, heads read at the answer (BLIP: its
    first token, LLaVA: its last), its threshold on P_patched, SVO-Probes both ways round, its 58 states."""
    published_off_by_one: bool = False
    """With as_published: read the token before the answer's, as positions do that were counted without [CLS]."""
    prompt_template: Annotated[Annotated[str, BeforeValidator(_template)] | None, Flag("--template")] = None
    """A text with {prompt}; with <image> in it, in place of the model's own template, else inside it. Control tokens in
    it (</s>) are read as such, those in a row's prompt are refused."""
    random_draws: Annotated[int, Field(ge=0, le=10_000)] = 199
    """Random sets of heads to compare with."""
    bootstrap: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Resamples for every interval."""
    device: _Text | None = None
    """Such as cuda or cpu; "auto" or left out, the accelerator that is here, else the CPU."""
    dtype: _Text | None = None
    """Such as float16; "auto" or left out, the checkpoint's own half, float32 on a CPU."""
    revision: _Text | None = None
    """Branch, tag or commit on the hub."""
    batch: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Examples swept together; by the model's size if left out."""

    def __post_init__(self) -> None:
        if self.positions in ("answer", "last") and self.select_at not in ("auto", self.positions, EVERY):
            raise InputsError(
                f"heads cannot be selected at {self.select_at!r} where positions is {self.positions!r}: nothing is "
                "patched there. Take positions='text', or the same for both"
            )
        if self.select_at == EVERY and self.every_position is False:
            raise InputsError(
                "heads cannot be selected at every position where every_position is False: nothing is patched there"
            )
        if self.region is not None and "image" not in self.corrupt:
            raise InputsError(
                f"region is {self.region!r}, and the image is not corrupted: leave it out, or corrupt 'image'"
            )
        if self.published_off_by_one and not self.as_published:
            raise InputsError(
                "published_off_by_one is True and as_published is not: it is a property of the released code's "
                "positions. Take as_published=True as well, or leave it out"
            )
        if self.as_published and (self.positions == "last" or self.select_at not in ("auto", "answer")):
            raise InputsError(
                f"as_published reads heads at the answer, and positions is {self.positions!r}, select_at "
                f"{self.select_at!r}: leave these out, or as_published"
            )
        if len({file_name(task) for task in self.tasks}) < len(self.tasks):
            raise InputsError(f"tasks {quoted(self.tasks)} would be written to files of the same names: rename one")

    def resolved(self, model: hooked_vlm.models.base.HookedVLM) -> NoticeConfig:
        """The same with "auto" and empty choices decided by a model.

        Args:
            model: a `HookedVLM`.

        Raises:
            InputsError: if the model's prompt stack has no such kind.
            TextError: if the model cannot read a prompt, in the template where there is one.
            MissingExtraError: if a package is needed that is not installed.
        """
        from PIL import Image

        picture = Image.new("RGB", (8, 8))
        asked = (self.prompt_template or "{prompt}").replace("{prompt}", "is it?")
        try:
            model.to_inputs(picture, asked, allow_special_tokens=self.prompt_template is not None)
        except TextError as error:
            raise TextError(
                f"{cut(self.model)} cannot be asked anything: {error}. --template (prompt_template) writes the whole "
                "prompt, with {prompt} where a row's stands"
            ) from error
        if self.region is not None:
            from hooked_vlm.analysis.corruption import RegionCorruption

            mask = Image.new("L", (8, 8))
            mask.paste(255, (2, 2, 6, 6))
            RegionCorruption(picture, mask, self.region).pictures()
        there = available(model)
        for kind in self.kinds:
            if kind not in there:
                raise InputsError(
                    f"{type(model).__name__} has no {kind!r} in its {model.prompt_stack}: it has {', '.join(there)}"
                )
        in_sequence = model.layout.image_token_id is not None
        own: SelectAt = "last" if in_sequence and not self.as_published else "answer"
        single: SelectAt = self.positions if self.positions in ("answer", "last") else own
        every = bool(self.every_position) if self.as_published else self.every_position
        if every is None and self.positions in ("answer", "last"):
            every = self.select_at == EVERY
        if every is None and self.select_at == EVERY:
            every = True
        at = self.select_at if self.select_at != "auto" or every is None else EVERY if every else single
        at = own if self.as_published else at
        watched = single if at in ("auto", EVERY) else at
        size = sum(parameter.numel() for parameter in model.hf_model.parameters())
        batch = self.batch or (BATCH if size < SMALL else 1)
        device, dtype = str(model.device), str(model.dtype).removeprefix("torch.")
        return replace(
            self,
            kinds=self.kinds or there,
            select_at=at,
            watch_at=watched if self.watch_at == "auto" else self.watch_at,
            every_position=every,
            batch=batch,
            device=device if self.device in OPEN else self.device,
            dtype=dtype if self.dtype in OPEN else self.dtype,
        )

    @property
    def corruptions(self) -> tuple[str, ...]:
        """What is run, one at a time: the corruptions asked for, and Gaussian noise in the same places."""
        return (*self.corrupt, *(f"{name}_noise" for name in self.corrupt if self.noise))

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        plain: dict[str, Any] = TypeAdapter(NoticeConfig).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> NoticeConfig:
        """From what `to_json` gave.

        Raises:
            InputsError: if an option is missing, unknown, or of another type.
        """
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise InputsError(f"the configuration is {quoted(given)}; expected options by name, as to_json gives them")
        return cls(**{"watch_at": given.get("select_at", "auto"), **given})  # one option in earlier versions

    def differences(self, other: NoticeConfig) -> list[str]:
        """What differs in another configuration, in words: "seed was 0 and is 1"; what it leaves open does not."""
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{name} was {quoted(mine[name])} and is {quoted(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name] and not (name in _LEFT and theirs[name] in ([], *OPEN))
        ]

    def refuse_another(self, other: NoticeConfig, directory: Path) -> None:
        """Raise ResumeError if a directory holds this configuration's run and another one is asked for."""
        if differences := self.differences(other):
            raise ResumeError(
                f"{directory} holds a run of another configuration ({'; '.join(differences)}): take another directory, "
                "or the same options"
            )


def options() -> dict[str, FieldInfo]:
    """The options of a run by name: of each its `annotation`, `default`, `description`, and what else is said of it."""
    found: dict[str, FieldInfo] = NoticeConfig.__pydantic_fields__  # type: ignore[attr-defined]
    return found


def available(model: hooked_vlm.models.base.HookedVLM) -> tuple[Kind, ...]:
    """The kinds that a model's prompt stack has, in the order of `vocabulary.KINDS`."""
    crossed = any(block.has_cross_attn for block in model.stacks[model.prompt_stack].blocks)
    return tuple(kind for kind in KINDS if crossed or not kind.startswith("cross_attn"))


def file_name(task: str) -> str:
    """A task's name in file names."""
    stem = Path(task).stem if task.endswith(".parquet") else task
    return "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in stem)


def _refusal(found: list[Any]) -> InputsError:
    """What is wrong with the options that were given, in our words: the name, what was given, what was expected."""
    kinds = [each["type"] for each in found]
    if "unexpected_keyword_argument" in kinds:
        name = found[kinds.index("unexpected_keyword_argument")]["loc"][0]
        return InputsError(
            f"a run has no option {quoted(name)}: the closest are {', '.join(closest(str(name), options()))}"
        )
    if missing := [str(each["loc"][0]) for each in found if each["type"] == "missing"]:
        return InputsError(f"the configuration lacks {' and '.join(missing)}")
    wrong = found[0]
    given, why = wrong["input"], wrong.get("ctx", {})
    if isinstance(why.get("error"), InputsError):  # of two options together
        return why["error"]
    name = str(wrong["loc"][0])
    option = options()[name]
    open_too = option.default is None
    if wrong["type"] == "literal_error":
        known = why["expected"].replace(" or ", ", ")
        return InputsError(f"{name} has no {quoted(given)}: expected {'None, ' * open_too}{known}")
    marks = [*option.metadata, *_marks(option.annotation)]
    reach = {side: getattr(mark, side) for mark in marks for side in ("ge", "gt", "le") if hasattr(mark, side)}
    expected = str(why["error"]) if "error" in why else _EXPECTED.get(wrong["type"], wrong["msg"]).format(**reach)
    way = "; leave it out for what is decided without it" if open_too and expected == _SAYS_NOTHING else ""
    return InputsError(f"{name} is {quoted(given)}; expected {expected}{way}")


def _marks(annotation: Any) -> list[Any]:
    """What an annotation says besides a type, at any depth."""
    found = [each for part in get_args(annotation) for each in (part, *_marks(part))]
    return [mark for each in found for mark in getattr(each, "metadata", (each,))]
