"""What arguments are, looked at before anything is run: one reading for each kind of them.

Each function gives back what it was given, or raises an `InputsError` that names the argument, what it is and what was
expected. Costs nothing; knows no model.
"""

from __future__ import annotations

import inspect
import math
import operator
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from hooked_vlm.errors import InputsError, quoted

Bound = int | float
T = TypeVar("T")


def whole(given: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number in a range, its ends included.

    Raises:
        InputsError: if it is none: a bool, a float, a string, or out of the range.

    Example:
        >>> whole(3, "steps", 1)
        3
    """
    reach = f"of at least {least}" if most is None else f"from {least} to {most}"
    try:
        found = None if isinstance(given, (bool, np.bool_)) else operator.index(given)
    except TypeError:
        found = None
    if found is None or found < least or (most is not None and found > most):
        raise InputsError(f"{name} is {told(given)}; expected a whole number {reach}")
    return found


def number(given: Any, name: str, *, above: Bound = -math.inf, least: Bound = -math.inf, most: Bound = math.inf) -> Any:
    """A finite number in a range, as it is.

    Raises:
        InputsError: if it is none: a bool, a string, NaN, infinite, or out of the range.

    Example:
        >>> number(0.9, "top_p", above=0, most=1)
        0.9
    """
    is_number = isinstance(given, Real) and not isinstance(given, (bool, np.bool_))
    if not is_number or not math.isfinite(given) or not (above < given and least <= given <= most):
        reach = [f"above {above:g}"] if above > -math.inf else []
        reach += [f"of at least {least:g}"] if least > -math.inf else []
        reach += [f"of at most {most:g}"] if most < math.inf else []
        raise InputsError(f"{name} is {told(given)}; expected a finite number {' and '.join(reach)}".rstrip())
    return given


def of_type(given: T, name: str, kind: type | tuple[type, ...], expected: str) -> T:
    """Something of one of these types, as it is. Raises InputsError otherwise, and says what was expected."""
    if not isinstance(given, kind):
        raise InputsError(f"{name} is {told(given)}; expected {expected}")
    return given


def takes(fn: Any, *args: Any, **options: Any) -> bool:
    """Whether it can be called with so many arguments, and options of these names; True where nobody can tell.

    Example:
        >>> takes(len, []), takes(round, 1, 2, 3), takes(3)
        (True, False, False)
    """
    if not callable(fn):
        return False
    try:
        inspect.signature(fn).bind(*args, **options)
    except TypeError:
        return False
    except ValueError:  # a built-in without a signature
        pass
    return True


def told(given: Any) -> str:
    """What was given, in a few words that name its type.

    Example:
        >>> told(None), told(1.5), told(np.zeros((2, 3)))
        ('None, a NoneType', '1.5, a float', 'an ndarray of shape (2, 3) and float64')
    """
    if isinstance(given, Tensor):
        return f"a Tensor of shape {tuple(given.shape)} and {given.dtype}"
    if isinstance(given, np.ndarray):
        return f"an ndarray of shape {given.shape} and {given.dtype}"
    kind = type(given).__name__
    return f"{' '.join(quoted(given, 60).split())}, a{'n' * (kind[0] in 'aeiou')} {kind}"
