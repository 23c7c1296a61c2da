"""The table of defects names tests that exist."""

from __future__ import annotations

import ast

import pytest

from tests.defects import CLASSES, ROOT

NAMED = [test for part in CLASSES.values() for test in part.values()]


@pytest.mark.parametrize("test", NAMED)
def test_each_class_of_defects_has_its_test(test: str) -> None:
    file, *classes, name = test.split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert not classes and name.partition("[")[0] in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_no_class_is_shown_by_the_test_of_another() -> None:
    assert len(set(NAMED)) == len(NAMED)
