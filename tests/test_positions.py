"""Positions mean one thing, the same for hook functions and sites, or they are refused by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import hooks
from hooked_vlm.errors import PositionError
from hooked_vlm.patching import Sites
from tests.models.test_hooks_live import variant
from tests.models.unchecked import unchecked
from tests.test_hooks import Z, point

N, BATCH = 5, 3
MEANT = {  # what is written, and the positions that it means in each of three rows of five
    "a numpy integer": (np.int64(3), [[3]] * 3),
    "an integer tensor": (torch.tensor(-1), [[4]] * 3),
    "a list of tensors": ([torch.tensor(1), np.int32(2)], [[1, 2]] * 3),
    "a mask": (torch.tensor([True, False, False, True, False]), [[0, 3]] * 3),
    "an array that is a mask": (np.array([False, True, False, False, False]), [[1]] * 3),
    "a mask of each row": (torch.eye(3, 5, dtype=torch.bool), [[0], [1], [2]]),
    "a mask with an empty row": (torch.tensor([[1, 0, 0, 0, 1], [0] * 5, [0] * 5]).bool(), [[0, 4], [], []]),
    "each row's own": (torch.tensor([[0, 1], [2, -1], [3, 3]]), [[0, 1], [2, 4], [3, 3]]),
    "an array of each row's own": (np.array([[2], [0], [1]]), [[2], [0], [1]]),
    "lists of each row's own": ([[2], [0], [1]], [[2], [0], [1]]),
    "a slice for each row": ([slice(0, 2), slice(4, None), slice(1, 4)], [[0, 1], [4], [1, 2, 3]]),
    "a range": (range(1, 3), [[1, 2]] * 3),
}
REFUSED = {  # what is written, and what the error says
    "last_each": (torch.tensor([2, 4, 1]), "could mean these in every row or one for each: give positions[:, None]"),
    "last_each of another batch": (torch.tensor([2, 4]), "could mean"),
    "last_each of one row": (torch.tensor([2]), "for 1 rows, and the run has 3"),
    "a column of a table": (pd.Series([1, 2, 3]), "could mean"),
    "positions of another batch": (torch.zeros(2, 1, dtype=torch.long), "for 2 rows, and the run has 3"),
    "positions of one row": (torch.zeros(1, 2, dtype=torch.long), "for 1 rows, and the run has 3"),
    "slices of another batch": ([slice(0, 2), slice(1, 3)], "for 2 rows, and the run has 3"),
    "a mask of another length": (torch.ones(4, dtype=torch.bool), "a mask of 4 was given for"),
    "a mask of nothing": (torch.zeros(5, dtype=torch.bool), "none was asked for"),
    "a bool": (True, "True was given among positions, and is a bool"),
    "a list of bools": ([True, False, True, True, True], "True was given among positions"),
    "a tensor of a bool": (torch.tensor(True), "given as bool of shape ()"),
    "a float": (1.7, "1.7 was given among positions, and is a float"),
    "a list with a float": ([0, 1.0], "1.0 was given among positions"),
    "a float tensor": (torch.tensor([[1.0], [2.0], [0.0]]), "given as float32 of shape (3, 1)"),
    "a string": ("foo", "'foo'"),
    "three axes": (torch.zeros(3, 1, 1, dtype=torch.long), "of shape (3, 1, 1)"),
    "rows of other lengths": ([[1], [2, 3], [4]], "name [1, 2, 1] places; expected as many in each"),
    "nothing": ([], "none was asked for"),
    "an empty slice": (slice(3, 3), "none was asked for"),
    "a slice of floats": (slice(0.5, 2), "0.5 was given among positions"),
    "a step of 0": (slice(0, 3, 0), "its step cannot be 0"),
    "something else": ({"from": 1}, "is a dict"),
    "out of range": (torch.tensor([[0], [5], [1]]), "are 0 to 4; [5] was asked for"),
}


def zeroed(positions: Any, n: int = N, batch: int = BATCH) -> list[list[int]]:
    """The positions of each row that `zero_ablate` zeroes."""
    out = hooks.zero_ablate(positions=positions, heads=0)(torch.ones(batch, n, 2, 1), hook=point(Z))
    assert bool(out[:, :, 1].all())
    return [[p for p in range(n) if not out[row, p, 0]] for row in range(batch)]


@pytest.mark.parametrize("name", MEANT)
def test_what_can_be_meant_is_done_in_each_row(name: str) -> None:
    positions, expected = MEANT[name]
    with unchecked():
        assert zeroed(positions) == [sorted(set(row)) for row in expected]
        sites = Sites.residual(variant("blip-vqa")[0], "text_encoder", positions=positions)
        if len({len(row) for row in expected}) > 1:
            with pytest.raises(PositionError, match=r"each site is one in every row"):
                sites.at(N, BATCH)
            return
        closed = sites.at(N, BATCH)
    found = closed.positions_of(closed.table[closed.table["layer"] == 0], BATCH)
    assert found.T.tolist() == [list(dict.fromkeys(row)) if not closed.by_row else row for row in expected]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_everywhere(name: str) -> None:
    positions, message = REFUSED[name]
    model, _ = variant("blip-vqa")
    makers = (
        lambda: hooks.zero_ablate(positions)(torch.ones(BATCH, N, 2, 1), hook=point(Z)),
        lambda: hooks.patch(torch.zeros(BATCH, N, 2, 1), positions)(torch.ones(BATCH, N, 2, 1), hook=point(Z)),
        lambda: hooks.knock_out(positions, None)(
            torch.ones(BATCH, 2, N, N), hook=point("batch head query_pos key_pos")
        ),
        lambda: Sites.heads(model, "text_encoder", positions=positions).at(N, BATCH),
        lambda: Sites.module(model, "text_encoder", "mlp_out", positions=positions).at(N, BATCH),
    )
    for make in makers:
        with unchecked(), pytest.raises(PositionError, match=re.escape(message)):
            make()


def test_key_positions_obey_the_same_rules() -> None:
    hook = point("batch head query_pos key_pos")
    rows = hooks.knock_out(None, torch.tensor([[0], [2]]))(torch.zeros(2, 1, 2, 3), hook=hook)
    assert rows[:, 0, 0].isneginf().tolist() == [[True, False, False], [False, False, True]]
    with pytest.raises(PositionError, match="could mean"):
        hooks.knock_out(None, torch.tensor([0, 2]))


@pytest.mark.parametrize("wanted", [True, 1.0, "0", [False], torch.tensor([1.0]), torch.zeros(2, 1, dtype=torch.long)])
def test_heads_and_layers_obey_the_same_rules(wanted: Any) -> None:
    model, _ = variant("blip-vqa")
    for make in (
        lambda: hooks.zero_ablate(heads=wanted),
        lambda: Sites.heads(model, "text_encoder", heads=wanted),
        lambda: Sites.heads(model, "text_encoder", layers=wanted),
    ):
        with unchecked(), pytest.raises(PositionError):
            make()


def test_heads_and_layers_of_a_table_are_taken() -> None:
    model, _ = variant("blip-vqa")
    sites = Sites.heads(model, "text_encoder", layers=np.int64(1), heads=np.array([True, False]), positions=0)
    assert sites.layers == (1,) and sites.units == (0,)
    assert Sites.heads(model, "text_encoder", layers=pd.Series([1, 0])).layers == (1, 0)


@settings(max_examples=60)
@given(rows=st.lists(st.lists(st.integers(-N, N - 1), min_size=2, max_size=2), min_size=1, max_size=4), data=st.data())
def test_every_spelling_of_the_same_rows_means_the_same(rows: list[list[int]], data: st.DataObject) -> None:
    mask = torch.zeros(len(rows), N, dtype=torch.bool)
    for i, row in enumerate(rows):
        mask[i, row] = True
    expected = [sorted({place % N for place in row}) for row in rows]
    for spelling in (torch.tensor(rows), np.array(rows), rows, mask, mask.numpy()):
        assert zeroed(spelling, batch=len(rows)) == expected


def test_positions_are_read_when_they_are_given_not_when_they_are_used() -> None:
    rows = torch.tensor([[0], [1], [2]])
    hook_fn = hooks.zero_ablate(positions=rows)
    rows += 1
    out: Tensor = hook_fn(torch.ones(BATCH, N, 2, 1), hook=point(Z))
    assert [int((out[i, :, 0, 0] == 0).nonzero()) for i in range(BATCH)] == [0, 1, 2]


def test_what_is_read_says_what_it_is() -> None:
    from hooked_vlm.positions import read

    shown = [read(wanted).shown for wanted in ([1, 3], range(2, 9), slice(None, 4), torch.tensor([[1], [3]]))]
    assert shown == ["1,3", "2-8", ":4", "1; 3"]
