"""A stretch without the run-time type checks that the test suite puts around every function.

A user has none of those checks, so what we say of an argument of the wrong type is tested without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import config


@contextmanager
def unchecked() -> Iterator[None]:
    """While it is open, functions run as they do for a user: wrong types reach our own errors."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
