"""A set of heads is a value: how it was chosen, by which rule, under which corruption; its files know it by a name."""

from __future__ import annotations

import ast
import inspect

import pytest

from hooked_vlm.notice import selections
from hooked_vlm.notice.schema import Selection
from hooked_vlm.notice.selections import NAMED, order, selection_name, to_ablate

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


def test_every_name_in_files_is_one_set_and_says_what_it_said() -> None:
    assert sorted(NAMED) == sorted(WRITTEN)
    assert {name: selection_name(name) for name in NAMED} == {name: WRITTEN[name] for name in NAMED}
    assert all(NAMED[name].name == name for name in NAMED) and len(set(NAMED.values())) == len(NAMED)
    assert sorted(WRITTEN, key=order) == list(WRITTEN)


@pytest.mark.parametrize("name", ["none", "universal sound", "strongest 0 image", "strongest 9 image", "universal"])
def test_what_no_run_chose_is_told_as_it_stands_and_last(name: str) -> None:
    assert selection_name(name) == f"heads of \u201c{name}\u201d"
    assert max([*WRITTEN, name], key=order) == name


def test_no_phrase_is_taken_apart() -> None:
    tree = ast.parse(inspect.getsource(selections))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and node.names[0].name == "re"]


def test_the_strongest_are_ablated_where_no_head_is_universal() -> None:
    heads = [
        {"corrupt": "image", "kind": "attn-heads", "layer": layer, "head": 0, "task": "colour", "mean_abs": 1.0 - layer}
        for layer in range(2)
    ]
    row = {"kind": "attn-heads", "layer": 0, "head": 0, "rule": "paper", "modality": "vision-only"}
    both = [("attn-heads", 0, 0), ("attn-heads", 1, 0)]
    strongest = Selection("strongest", "image", n=2)
    assert to_ablate({"heads": heads, "universal": []}) == {strongest: both}
    found = to_ablate({"heads": heads, "universal": [row]})
    assert list(found.items()) == [(Selection("universal", "image", "paper"), both[:1]), (strongest, both)]
