"""The hostile cases, in a process of their own: they fork, and a user has none of the tests' type checks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hooked_vlm.errors import DataError
from tests.sabotage.engine import CANARY, FAILURE, NAMED, RIGHT, Case, differing, either, equals, refuses, run

ROOT = Path(__file__).parents[1]


def sabotage(*options: str) -> None:
    """Run `python -m tests.sabotage`; fails with what it says."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.sabotage", *options]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, f"{found.stdout[-8000:]}\n{found.stderr[-2000:]}"


@pytest.mark.slow(reason="two thousand cases, of which many reload or run a model")
def test_every_hostile_case_ends_right_or_names_the_culprit() -> None:
    sabotage("--jobs", "2")


def test_a_sample_of_the_cheap_families_does() -> None:
    sabotage("--family", "images", "--family", "positions", "--sample", "60")


# --- the judge itself ---------------------------------------------------------------------------------------


def _raise(error: BaseException) -> None:
    raise error


JUDGED = {
    "the right number": (lambda _: 1.0, equals(1.0), RIGHT, ""),
    "another number": (lambda _: 1.1, equals(1.0), FAILURE, "silent: result is off by 0.1"),
    "a number in place of an error": (lambda _: 1.0, refuses("x"), FAILURE, "silent: gave 1.0 and no error"),
    "an error that names it": (lambda _: _raise(DataError("row-2 has no answer")), refuses("row-2"), NAMED, "row-2"),
    "an error that does not": (lambda _: _raise(DataError("no")), refuses("row-2"), FAILURE, "names not ['row-2']"),
    "an error in place of a number": (lambda _: _raise(DataError("no")), equals(1.0), FAILURE, "refused what is legal"),
    "either": (lambda _: _raise(DataError("row-2")), either(1.0, ("row-1", "row-2")), NAMED, ""),
    "a page": (lambda _: _raise(DataError("row-2" * 500)), refuses("row-2"), FAILURE, "an error of 2500 letters"),
    "another exception": (lambda _: _raise(ValueError("row-2")), refuses("row-2"), FAILURE, "ValueError in"),
    "an exit": (lambda _: _raise(SystemExit(0)), either(1.0, "x"), FAILURE, "SystemExit"),
    "a death": (lambda _: os._exit(0), either(1.0, "x"), FAILURE, "died without a word"),
    "a kill": (lambda _: os.kill(os.getpid(), 9), either(1.0, "x"), FAILURE, "died without a word"),
    "a hang": (lambda _: Path("/dev/zero").read_bytes(), either(1.0, "x"), FAILURE, "hung|MemoryError"),
    "a wait": (lambda _: signal.pause(), either(1.0, "x"), FAILURE, "hung: killed after 2 s"),
    "code that was run": (lambda folder: (folder / CANARY).touch(), equals(None), FAILURE, "attacker's was run"),
}


@pytest.mark.parametrize("name", JUDGED)
def test_the_judge_sees(name: str, tmp_path: Path) -> None:
    attack, oracle, outcome, text = JUDGED[name]
    (verdict,) = run([Case("judge", name, attack, oracle)], tmp_path, limit=2)
    assert verdict.outcome == outcome, verdict
    assert re.search(text.replace("[", r"\["), verdict.text), verdict


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([1, 2], [1]),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.tensor([1.0, float("nan")])),
        ("a", "b"),
        (None, 0),
        (True, 1),
    ],
)
def test_what_differs_is_seen(expected: object, found: object) -> None:
    assert differing(expected, found)
    assert not differing(expected, expected)
