"""What a NOTICE run is: one frozen, typed, validated configuration, which goes to JSON and back.

Two runs with equal configurations give equal results. Costs nothing; knows no model until `resolved` is given one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooked_vlm.errors import InputsError, ResumeError, TextError, closest, cut, quoted
from hooked_vlm.given import is_blank
from hooked_vlm.notice.vocabulary import CORRUPT, EVERY, KINDS

POSITIONS = ("text", "answer", "last", "all")
SELECT_AT = ("auto", "answer", "last", EVERY)
REGIONS = ("blur", "mean", "inpaint")
SEEN_FOR_EACH = 4  # rows seen for each example wanted, before a task is given up
SMALL = 20_000_000  # weights; below, Python takes longer than the arithmetic, and examples run together
BATCH = 16
OPEN = (None, "auto")  # a device or dtype that is left to the machine and the checkpoint
_OPEN: dict[str, tuple[Any, ...]] = {  # what leaves an option to the model, the machine or the plan
    "kinds": ((),),
    "select_at": ("auto",),
    "every_position": (None,),
    "batch": (None,),
    "device": OPEN,
    "dtype": OPEN,
}

_CHOICES: dict[str, tuple[str, ...]] = {"corrupt": CORRUPT, "kinds": KINDS}
_CHOICE: dict[str, tuple[str | None, ...]] = {
    "positions": POSITIONS,
    "select_at": SELECT_AT,
    "region": (None, *REGIONS),
}
_WHOLE = {  # whole numbers, from and to: every row is looked through, and every draw of a table is in memory
    "examples": (1, 100_000),
    "seed": (0, 2**63 - 1),
    "random_draws": (0, 10_000),
    "bootstrap": (1, 100_000),
    "batch": (1, 100_000),
    "screen": (1, 1_000_000),
}
_LEFT_OUT = (
    "batch",
    "screen",
    "data",
    "region",
    "prompt_template",
    "device",
    "dtype",
    "revision",
)  # None is a value of them
_TEXTS = ("model", "positions", "select_at", "data", "region", "prompt_template", "device", "dtype", "revision")


@dataclass(frozen=True, kw_only=True)
class NoticeConfig:
    """A NOTICE run.

    Args:
        model: a hub name, a directory, or "zoo:...".
        tasks: names of `datasets.sources.TASKS`, or parquet files.
        corrupt: what is corrupted, one at a time: "image", "text". A row is kept for those that it has.
        kinds: what is patched, of `vocabulary.KINDS`; empty for all that the model's prompt stack has.
        positions: where: "text" for every prompt position that is not the image's, "answer" for the right answer's
            word, "last", or "all".
        select_at: where heads are selected: "answer", "last", "every position", or "auto", the paper's choice: the
            answer's word in BLIP, the last prompt token in LLaVA.
        every_position: also patch heads at every position at once: True, False, or None for where the plan finds it
            affordable, and not where single positions were asked for.
        screen: estimate every site, and measure so many of each kind, those of the largest estimates, and as many
            drawn at random; None measures every site.
        examples: kept examples wanted of each task, 100,000 at most; four times as many rows are seen at most.
        seed: of the rows, the noise and every random draw.
        data: the folder of the data set, for tasks that read one.
        noise: also run Gaussian noise, the method that NOTICE is compared with.
        noise_scale: its standard deviation, in those of the embeddings.
        region: corrupt the masked region of the image instead of taking the task's corrupt image: "blur", "mean",
            "inpaint".
        prompt_template: a text with {prompt}. Where it holds the image's placeholder ("<image>" in LLaVA) it stands in
            place of the model's own template, else inside of it. Control tokens in it ("</s>") are read as such, those
            in a row's prompt are refused.
        random_draws: draws of random heads that the selected ones are compared with.
        bootstrap: resamples for every interval.
        device: where the model runs; None or "auto" for the accelerator that is here, else the CPU.
        dtype: of the weights; None or "auto" for float32 on a CPU, else the checkpoint's own half precision.
        revision: branch, tag or commit on the hub.
        batch: examples that are swept together; None decides by the model's size.

    Raises:
        InputsError: if an option has no such value, or two contradict each other.
    """

    model: str
    tasks: tuple[str, ...]
    corrupt: tuple[str, ...] = CORRUPT
    kinds: tuple[str, ...] = ()
    positions: str = "text"
    select_at: str = "auto"
    every_position: bool | None = None
    screen: int | None = None
    examples: int = 50
    seed: int = 0
    data: str | None = None
    noise: bool = False
    noise_scale: float = 3.0
    region: str | None = None
    prompt_template: str | None = None
    random_draws: int = 20
    bootstrap: int = 1000
    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        self._refuse_other_types()
        for name in ("tasks", "corrupt", "kinds"):
            given = getattr(self, name)
            names = None if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
            if names is None or not all(isinstance(each, str) and _sayable(each) for each in names):
                raise InputsError(f"{name} is {quoted(given)}; expected a sequence of names")
            object.__setattr__(self, name, names)
            if len(set(names)) < len(names) or (not names and name != "kinds"):
                raise InputsError(f"{name} is {quoted(names)}; expected each name once, and at least one")
        for name, known in _CHOICES.items():
            for each in getattr(self, name):
                _refuse_unknown(name, each, known)
        for name, values in _CHOICE.items():
            _refuse_unknown(name, getattr(self, name), values)
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise InputsError(
                f"prompt_template is {quoted(self.prompt_template)}; expected a text with {{prompt}} in it"
            )
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
        if len(set(stems := [file_name(task) for task in self.tasks])) < len(stems):
            raise InputsError(f"tasks {quoted(self.tasks)} would be written to files of the same names: rename one")

    def _refuse_other_types(self) -> None:
        """Raise InputsError if an option is of another type than its values, or a number out of its range."""
        for name in _TEXTS:
            given = getattr(self, name)
            if not isinstance(given, str) and not (given is None and name in _LEFT_OUT):
                raise InputsError(f"{name} is {quoted(given)}; expected a text")
            if given is not None and is_blank(given):
                way = "; leave it out for what is decided without it" if name in _LEFT_OUT else ""
                raise InputsError(f"{name} is {quoted(given)}; expected a text that says something{way}")
            if given is not None and ((not given.isprintable() and name != "prompt_template") or not _sayable(given)):
                raise InputsError(f"{name} is {quoted(given)}; expected a text that can be written and read")
        for name in ("noise", "every_position"):
            given = getattr(self, name)
            if not isinstance(given, bool) and not (given is None and name == "every_position"):
                raise InputsError(f"{name} is {quoted(given)}; expected True or False")
        for name, (least, most) in _WHOLE.items():
            given = getattr(self, name)
            if given is None and name in _LEFT_OUT:
                continue
            if isinstance(given, bool) or not isinstance(given, int):
                raise InputsError(f"{name} is {quoted(given)}; expected a whole number")
            if not least <= given <= most:
                raise InputsError(f"{name} is {quoted(given)}; expected {least} or more, and {most} at most")
        scale = self.noise_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise InputsError(f"noise_scale is {quoted(scale)}; expected a number above 0")

    def resolved(self, model: Any) -> NoticeConfig:
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
            RegionCorruption(picture, mask, self.region).pictures()  # type: ignore[arg-type]
        there = available(model)
        for kind in self.kinds:
            if kind not in there:
                raise InputsError(
                    f"{type(model).__name__} has no {kind!r} in its {model.prompt_stack}: it has {', '.join(there)}"
                )
        at = self.select_at
        if at == "auto":
            own = "last" if model.layout.image_token_id is not None else "answer"
            at = self.positions if self.positions in ("answer", "last") else own
        every = self.every_position
        if every is None and self.positions in ("answer", "last"):
            every = at == EVERY
        size = sum(parameter.numel() for parameter in model.hf_model.parameters())
        batch = self.batch or (BATCH if size < SMALL else 1)
        device, dtype = str(model.device), str(model.dtype).removeprefix("torch.")
        return dataclasses.replace(
            self,
            kinds=self.kinds or there,
            select_at=at,
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
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> NoticeConfig:
        """From what `to_json` gave.

        Raises:
            InputsError: if an option is missing, unknown, or of another type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise InputsError(f"the configuration is {quoted(given)}; expected options by name, as to_json gives them")
        if unknown := [name for name in given if name not in fields]:
            raise InputsError(
                f"a run has no option {quoted(unknown[0])}: the closest are {', '.join(closest(unknown[0], fields))}"
            )
        if missing := [name for name in ("model", "tasks") if name not in given]:
            raise InputsError(f"the configuration lacks {' and '.join(missing)}")
        options: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
        return cls(**options)

    def differences(self, other: NoticeConfig) -> list[str]:
        """What differs in another configuration, in words: "seed was 0 and is 1"; what it leaves open does not."""
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{name} was {quoted(mine[name])} and is {quoted(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name] and getattr(other, name) not in _OPEN.get(name, ())
        ]

    def refuse_another(self, other: NoticeConfig, directory: Path) -> None:
        """Raise ResumeError if a directory holds this configuration's run and another one is asked for."""
        if differences := self.differences(other):
            raise ResumeError(
                f"{directory} holds a run of another configuration ({'; '.join(differences)}): take another directory, "
                "or the same options"
            )


def available(model: Any) -> tuple[str, ...]:
    """The kinds that a model's prompt stack has, in the order of `vocabulary.KINDS`."""
    crossed = getattr(model.stacks[model.prompt_stack].blocks[0], "has_cross_attn", False)
    return tuple(kind for kind in KINDS if crossed or not kind.startswith("cross_attn"))


def file_name(task: str) -> str:
    """A task's name in file names."""
    stem = Path(task).stem if task.endswith(".parquet") else task
    return "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in stem)


def _sayable(text: str) -> bool:
    """Whether a text has no half of a character, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unknown(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise InputsError(f"{name} has no {quoted(value)}: expected {', '.join(map(repr, known))}")
