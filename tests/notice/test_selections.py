"""A set of heads is a value: how it was chosen, by which rule, under which corruption; its files know it by a key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hooked_vlm.errors import RunDirectoryError
from hooked_vlm.notice.report.text.words import selection_name
from hooked_vlm.notice.schema import Selection
from hooked_vlm.notice.selections import BY_RULE, to_ablate
from hooked_vlm.notice.vocabulary import CORRUPT

# As files hold them since the first version, in the order in which they are told of, and what they say to a reader.
WRITTEN = {
    "universal image": "universal heads (image)",
    "universal text": "universal heads (text)",
    "universal image, paper's rule": "universal heads (image, paper's rule)",
    "universal text, paper's rule": "universal heads (text, paper's rule)",
    "strongest 1 image": "1 strongest heads (image)",
    "strongest 2 image": "2 strongest heads (image)",
    "strongest 3 image": "3 strongest heads (image)",
    "strongest 1 text": "1 strongest heads (text)",
    "strongest 2 text": "2 strongest heads (text)",
    "strongest 3 text": "3 strongest heads (text)",
}


def test_every_key_in_files_is_one_set_and_says_what_it_said() -> None:
    sets = [Selection.parse(key) for key in WRITTEN]
    assert {str(one): selection_name(one) for one in sets} == WRITTEN
    assert sorted(sets, key=lambda one: one.order) == sets


universal = st.builds(Selection, st.just("universal"), st.sampled_from(CORRUPT), st.sampled_from(BY_RULE))
strongest = st.builds(Selection, st.just("strongest"), st.sampled_from(CORRUPT), n=st.integers(1, 10**6))


@given(universal | strongest)
def test_a_set_is_the_one_that_its_key_is_of(selection: Selection) -> None:
    assert Selection.parse(str(selection)) == selection


@given(st.lists(universal | strongest, unique=True, max_size=6))
def test_different_sets_have_different_keys_names_and_places(sets: list[Selection]) -> None:
    for told in (str, selection_name, lambda one: one.order):
        assert len(set(map(told, sets))) == len(sets)


@example("none")
@example("universal sound")
@example("strongest 0 image")
@example("strongest 03 image")
@example("strongest image, paper's rule")
@example("universal")
@given(st.text(max_size=30))
def test_a_key_that_no_run_wrote_is_refused(key: str) -> None:
    with pytest.raises(RunDirectoryError, match="a set that no run makes"):
        Selection.parse(key)


def test_the_strongest_are_ablated_where_no_head_is_universal() -> None:
    heads: list[Any] = [
        {"corrupt": "image", "kind": "attn-heads", "layer": layer, "head": 0, "task": "colour", "mean_abs": 1.0 - layer}
        for layer in range(2)
    ]
    row: Any = {"kind": "attn-heads", "layer": 0, "head": 0, "rule": "paper", "modality": "vision-only"}
    both = [("attn-heads", 0, 0), ("attn-heads", 1, 0)]
    strongest = Selection("strongest", "image", n=2)
    assert to_ablate(heads, []) == {strongest: both}
    found = to_ablate(heads, [row])
    assert list(found.items()) == [(Selection("universal", "image", "paper"), both[:1]), (strongest, both)]
