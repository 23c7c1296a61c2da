"""Every error class of the package: each message names what was given, what was expected and the way out.

All derive from `HookedVLMError` and from the built-in that fits (`ValueError`, `KeyError`, ...), so both
`except ValueError` and `except HookedVLMError` work. Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable
from typing import Any

_QUOTED = 200  # letters of what was given that a message repeats: a path has room, a message stays one
_CUT = " ... "


class HookedVLMError(Exception):
    """Base of every error that `hooked_vlm` raises on purpose."""

    def __str__(self) -> str:
        """The message as it was written, also where a KeyError would quote it."""
        return Exception.__str__(self)


class HookNameError(HookedVLMError, KeyError):
    """A hook point was asked for that the model does not have."""


class GatedHookError(HookedVLMError, ValueError):
    """A hook point was asked for whose `cfg` flag is off, so that it would never fire."""


class SilentHookError(HookedVLMError, RuntimeError):
    """A hook was given by name, the model ran, and the hook point was never reached."""


class NonFiniteError(HookedVLMError, ValueError):
    """Logits, or what a metric gives, are NaN or infinite, so that no number measured means anything."""


class HookFunctionError(HookedVLMError, ValueError):
    """A hook cannot be called, or gave back something else than a tensor of the form it was given."""


class NotCachedError(HookedVLMError, KeyError):
    """An activation that the model has was asked of a cache that does not hold it."""


class ModelBusyError(HookedVLMError, TimeoutError):
    """Another thread holds the model in an open `hooks()` and does nothing with it."""


class TrainingModeError(HookedVLMError, NotImplementedError):
    """Training mode was asked for, and the model always computes as in evaluation."""


class DenseWeightError(HookedVLMError, ValueError):
    """A weight was asked for as a matrix, and its layer stores none (it is quantised, say)."""


class CheckpointError(HookedVLMError, ValueError):
    """A checkpoint cannot be loaded as it stands: missing, extra or mismatched weights, no safetensors."""


class UnknownCheckpointError(HookedVLMError, KeyError):
    """No checkpoint of the zoo has this name: the message lists those there are."""


class DamagedCheckpointError(HookedVLMError, ValueError):
    """A file of a checkpoint of the zoo is not the one that was shipped."""


class UnsupportedArchitectureError(HookedVLMError, ValueError):
    """The checkpoint or Hugging Face model belongs to no registered family."""


class ImageError(HookedVLMError, ValueError):
    """An image cannot be read or has no form that can be turned into RGB."""


class TextError(HookedVLMError, ValueError):
    """A text is empty, too long for the context, or has the wrong number of image placeholders."""


class InputsError(HookedVLMError, ValueError):
    """Inputs do not fit one another or the model: counts, shapes, dtypes, devices, missing parts."""


class RowError(InputsError, IndexError):
    """Rows of a batch were asked for that it does not have, or in a way that means no rows."""


class PositionError(HookedVLMError, ValueError):
    """A position was asked for that the inputs do not have, or that differs from row to row."""


class StackError(HookedVLMError, ValueError):
    """A stack, layer or row was asked for that the model or the finished run does not have."""


class StackNameError(StackError, KeyError):
    """A stack was asked for by a name that the model does not have."""


class AttributeNameError(HookedVLMError, AttributeError):
    """A model was asked for an attribute that it does not have."""


class ResidualError(HookedVLMError, ValueError):
    """A decomposition of the residual stream was asked for where the mathematics does not hold."""


class DataError(HookedVLMError, ValueError):
    """A data set's folder, file or row cannot be read, or holds nothing that can be asked about."""


class TaskSchemaError(DataError):
    """A table is not a task: a column is missing, twice or of another type, or a row does not fit."""


class ReplacementError(HookedVLMError, ValueError):
    """No word can stand in for another: none of the same part of speech and token count is left."""


class ResumeError(HookedVLMError, ValueError):
    """What an interrupted training or run left behind belongs to another one."""


class DoesNotFitError(HookedVLMError, MemoryError):
    """A run needs more memory than there is.

    Args:
        found: what was asked for and what there is; kept as `found`.
        ways: ways out, which follow in the message.
    """

    def __init__(self, found: str, *ways: str) -> None:
        super().__init__(f"{found}: {'; '.join(ways)}" if ways else found)
        self.found = found


class RunDirectoryError(HookedVLMError, OSError):
    """A run's directory cannot be written or read, or what is in it is no run."""


class MissingExtraError(HookedVLMError, ImportError):
    """What was asked for needs a package that only an extra installs: the message names the extra."""


def closest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The `n` known names most like `name`, best first.

    >>> closest("blocks.0.atn.hook_z", ["blocks.0.attn.hook_z", "hook_logits"], n=1)
    ['blocks.0.attn.hook_z']
    """
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.0)


def quoted(value: Any, longest: int = _QUOTED) -> str:
    """What was given as a message repeats it: its `repr`, a path's in quotation marks, cut in the middle where long.

    Of a long list or text only the ends are read; a `repr` that raises is named by its type.

    Args:
        value: what was given, of any type.
        longest: letters, about.

    >>> quoted("a question?"), quoted("x" * 3000, 20)
    ("'a question?'", "'xxxxxx ... xxxxxxx'")
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return _Bounded(longest).repr(value)


def cut(text: object, longest: int = _QUOTED) -> str:
    """What another package says, cut in the middle where long: it may repeat the whole of what was given.

    >>> cut("no such file"), cut("x" * 3000, 20)
    ('no such file', 'xxxxxxx ... xxxxxxxx')
    """
    said = str(text)
    head = (longest - len(_CUT)) // 2
    return said if len(said) <= longest else said[:head] + _CUT + said[head + len(_CUT) - longest :]


class _Bounded(reprlib.Repr):
    def __init__(self, longest: int) -> None:
        super().__init__()
        self.fillvalue = _CUT
        self.maxstring = self.maxother = self.maxlong = longest
        self.maxlevel = 3
        self._longest = longest

    def repr(self, x: Any) -> str:
        return cut(super().repr(x), self._longest)

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # more digits than Python writes
            return f"an integer of {x.bit_length()} bits"
