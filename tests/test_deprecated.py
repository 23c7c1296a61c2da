"""Old spellings: each gives what stands under the new one, and says where that is."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

from hooked_vlm.deprecated import MOVED

ROOT = Path(__file__).parents[1]
MODULES = sorted(old for old in MOVED if (ROOT / f"{old.replace('.', '/')}.py").exists())
NAMES = sorted(set(MOVED) - set(MODULES))


def own(module):
    """The names that a module defines."""
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]


@pytest.mark.parametrize("old", NAMES)
def test_an_old_name_is_the_new_one_and_warns(old):
    home, _, name = old.rpartition(".")
    module = import_module(home)
    with pytest.warns(DeprecationWarning, match=f"^{old} is deprecated: it is {MOVED[old]} now$"):
        assert getattr(module, name) is resolve_name(MOVED[old])
    assert name not in dir(module)


@pytest.mark.parametrize("old", MODULES)
def test_an_old_modules_names_are_the_new_ones_and_warn(old):
    there, now = import_module(old), import_module(MOVED[old])
    assert len(own(now)) > 3
    for name in own(now):
        with pytest.warns(DeprecationWarning, match=f"^{old}.{name} is deprecated: it is {MOVED[old]}.{name} now$"):
            assert getattr(there, name) is getattr(now, name)


def test_every_import_of_an_old_spelling_warns_where_it_stands():
    """In a fresh Python, where nothing was imported under it yet."""
    some = {old: next(iter(own(import_module(MOVED[old])))) for old in MODULES}
    lines = [f"from {old.rpartition('.')[0]} import {old.rpartition('.')[2]}" for old in MOVED]
    lines += [f"import {old}; {old}.{name}" for old, name in some.items()]
    lines += [f"from {old} import {name}" for old, name in some.items()]
    expected = list(MOVED.items())
    expected += 2 * [(f"{old}.{name}", f"{MOVED[old]}.{name}") for old, name in some.items()]
    ran = subprocess.run(
        [sys.executable, "-W", "default::DeprecationWarning", "-c", "\n".join(lines)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    said = [line for line in ran.stderr.splitlines() if " is deprecated: it is hooked_vlm." in line]
    assert said == [
        f"<string>:{n}: DeprecationWarning: {old} is deprecated: it is {now} now"
        for n, (old, now) in enumerate(expected, 1)
    ]


RENAMED = """
from hooked_vlm.deprecated import renamed

@renamed(old="new")
def called(new):
    print(new)

called(old=1)
called(2)
called(new=3)
"""


def test_an_old_argument_is_the_new_one_and_warns_where_it_stands():
    ran = subprocess.run(
        [sys.executable, "-W", "default::DeprecationWarning", "-c", RENAMED],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout.split() == ["1", "2", "3"]
    assert ran.stderr.splitlines() == ["<string>:8: DeprecationWarning: called's old is deprecated: it is new now"]


def test_a_name_that_never_was_is_no_old_name():
    module = import_module("hooked_vlm.lens")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AttributeError, match="nothing"):
            _ = module.nothing
