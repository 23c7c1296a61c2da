"""The words of the data sets: data with a source, in tables that are what the code makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hooked_vlm.datasets import words

TABLES = json.loads(Path(words.__file__).with_name("words.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TABLES)
def test_every_table_says_what_it_holds_where_it_is_from_and_under_which_licence(name: str) -> None:
    table = TABLES[name]
    assert all(len(table[part]) > 3 for part in ("what", "source", "licence"))
    assert table.keys() - {"what", "source", "licence"} in ({"words"}, {"groups"})


@pytest.mark.parametrize("name", [name for name in TABLES if "groups" in TABLES[name]])
def test_any_two_words_of_a_group_are_too_near(name: str) -> None:
    near = getattr(words, name.upper())
    groups = [group.replace("_", " ").split() for groups in TABLES[name]["groups"].values() for group in groups]
    assert len(groups) > 5
    for group in groups:
        assert len(group) == len(set(group)) > 1, group
        assert all(near(one, other) for one in group for other in group)


def test_no_word_stands_in_a_table_twice() -> None:
    """Where the order or the number of words decides what is drawn."""
    for name in ("states", "spare_emotions", "people", "trades", "animals", "spare_subjects", "spare_objects"):
        listed = [word for line in TABLES[name]["words"] for word in line.split()]
        assert len(listed) == len(set(listed)) > 9, name


def test_a_person_is_near_to_a_trade_and_two_trades_are_not() -> None:
    assert words.NEAR_NOUNS("man", "surfer") and words.NEAR_NOUNS("person", "surfer")
    assert not words.NEAR_NOUNS("surfer", "farmer") and not words.NEAR_NOUNS("dog", "horse")
