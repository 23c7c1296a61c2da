"""Every error class of the package: each message names what was given, what was expected and the way out.

All derive from `HookedVLMError` and from the built-in that fits (`ValueError`, `KeyError`, ...), so both
`except ValueError` and `except HookedVLMError` work. Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HookedVLMError(Exception):
    """Base of every error that `hooked_vlm` raises on purpose."""


class HookNameError(HookedVLMError, KeyError):
    """A hook point was asked for that the model does not have."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message


class GatedHookError(HookedVLMError, ValueError):
    """A hook point was asked for whose `cfg` flag is off, so that it would never fire."""


class SilentHookError(HookedVLMError, RuntimeError):
    """A hook was given by name, the model ran, and the hook point was never reached."""


class DenseWeightError(HookedVLMError, ValueError):
    """A weight was asked for as a matrix, and its layer stores none (it is quantised, say)."""


class CheckpointError(HookedVLMError, ValueError):
    """A checkpoint cannot be loaded as it stands: missing, extra or mismatched weights, no safetensors."""


class UnsupportedArchitectureError(HookedVLMError, ValueError):
    """The checkpoint or Hugging Face model belongs to no registered family."""


class ImageError(HookedVLMError, ValueError):
    """An image cannot be read or has no form that can be turned into RGB."""


class TextError(HookedVLMError, ValueError):
    """A text is empty, too long for the context, or has the wrong number of image placeholders."""


class InputsError(HookedVLMError, ValueError):
    """Inputs do not fit one another or the model: counts, shapes, dtypes, devices, missing parts."""


class PositionError(HookedVLMError, ValueError):
    """A position was asked for that the inputs do not have, or that differs from row to row."""


class StackError(HookedVLMError, ValueError):
    """A stack, layer or row was asked for that the model or the finished run does not have."""


class ResidualError(HookedVLMError, ValueError):
    """A decomposition of the residual stream was asked for where the mathematics does not hold."""


def closest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The `n` known names most like `name`, best first.

    >>> closest("blocks.0.atn.hook_z", ["blocks.0.attn.hook_z", "hook_logits"], n=1)
    ['blocks.0.attn.hook_z']
    """
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.0)
