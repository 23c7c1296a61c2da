"""Modules whose attributes are all declared, so that a type checker finds a misspelled one. Costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


class Declared:
    """Stands before `nn.Module`, which tells type checkers that it has every attribute there could be."""

    if TYPE_CHECKING:
        __getattr__: Any
