"""What a message repeats of what was given: whole where it is short, bounded where it is not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm.errors import cut, quoted

SHORT = st.text(max_size=60) | st.integers() | st.floats() | st.binary(max_size=60) | st.none()


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@given(SHORT)
def test_what_is_short_is_repeated_as_it_is(value: Any) -> None:
    assert quoted(value) == repr(value)


@given(SHORT, st.integers(1, 300))
def test_a_message_repeats_a_bounded_part_of_anything(value: Any, times: int) -> None:
    for many in ([value] * times, (value,) * times, {str(i): [value] * 9 for i in range(times)}, repr(value) * times):
        assert len(quoted(many)) <= 200


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    name = "first/" + "x" * 3000 + "/last.png"
    for shown in (quoted(name), quoted(Path(name)), cut(name)):
        assert "first/x" in shown
        assert "x/last.png" in shown
        assert len(shown) <= 200


UNPRINTABLE = [10**5000, -(10**5000), 1 << 10**6, Unprintable(), [Unprintable()], itertools.count()]


@pytest.mark.parametrize("value", UNPRINTABLE, ids=lambda value: type(value).__name__)
def test_what_cannot_be_printed_is_named_all_the_same(value: Any) -> None:
    assert 0 < len(quoted(value)) <= 200


def test_what_refers_to_itself_is_quoted() -> None:
    value: list[Any] = []
    value.append(value)
    assert len(quoted(value)) <= 200


def test_a_path_is_quoted_as_a_text() -> None:
    assert quoted(Path("a b/c")) == "'a b/c'"


@given(st.text(max_size=200))
def test_what_another_package_says_is_whole_where_it_is_short(text: str) -> None:
    assert cut(text) == text
