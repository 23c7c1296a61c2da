"""A hostile case, what must come of it, and the processes in which cases are run.

A case attacks the package and must end in the right result or in a `HookedVLMError` that names the culprit. Any other
exception, a death, a hang, memory without bound, a silently different number or code of the attacker's being run is a
failure. Each case runs in a process forked from this one, where models and reference numbers are made already: what
it does to itself (threads, patched modules, a full memory) ends with it, and a hang in C is killed like any other.

Knows nothing of `hooked_vlm` but the base of its errors.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from hooked_vlm.errors import HookedVLMError

RIGHT, NAMED, FAILURE = "right result", "named error", "failure"
LIMIT = 20.0  # seconds, after which a case hangs
MEMORY = 4 << 30  # bytes that a case may take on top of what is there when it begins
LONGEST = 900  # letters of an error; more is no error but a page
CLOSE = 1e-4  # relative to the largest number compared
CANARY = "canary"  # a file that only an attacker's code makes

Name = str | tuple[str, ...]  # what a message must contain, or one of several
_NOTHING = object()


@dataclass(frozen=True)
class Oracle:
    """What may come of a case.

    Args:
        expected: the result, or a function that gives it; `_NOTHING` if no result is right.
        names: what an error must name, each of them; None if no error is right.
    """

    expected: Any = _NOTHING
    names: tuple[Name, ...] | None = None


def equals(expected: Any) -> Oracle:
    """Only this result is right."""
    return Oracle(expected)


def refuses(*names: Name) -> Oracle:
    """Only an error is right, which names all of these."""
    return Oracle(names=names)


def either(expected: Any, *names: Name) -> Oracle:
    """This result, or an error that names all of these."""
    return Oracle(expected, names)


@dataclass(frozen=True)
class Case:
    """One attack.

    Args:
        family: the family.
        id: its name in the family.
        attack: called with an empty folder of its own, which is also the working directory; gives the result.
        oracle: what may come of it.
    """

    family: str
    id: str
    attack: Callable[[Path], Any]
    oracle: Oracle

    @property
    def name(self) -> str:
        return f"{self.family}/{self.id}"


@dataclass(frozen=True)
class Verdict:
    """What came of a case: `RIGHT`, `NAMED` or `FAILURE`, and a line on it."""

    name: str
    outcome: str
    text: str
    seconds: float = 0.0


def draws(seed: int, *key: object) -> Random:
    """What a case draws from: its own draws do not depend on which other cases there are."""
    return Random("/".join(map(str, (seed, *key))))


# --- judging ------------------------------------------------------------------------------------------------


def judged(case: Case, folder: Path) -> tuple[str, str]:
    """The outcome of a case that is run here and now, and a line on it."""
    outcome, text = _attacked(case, folder)
    if (folder / CANARY).exists():
        return FAILURE, f"code of the attacker's was run; then: {text}"
    return outcome, text


def _attacked(case: Case, folder: Path) -> tuple[str, str]:
    oracle = case.oracle
    try:
        found = case.attack(folder)
    except HookedVLMError as error:
        return _refused(oracle, error)
    except BaseException as error:
        return FAILURE, f"{type(error).__name__} in {_place(error)}: {' '.join(str(error).split())[:200]}"
    if oracle.expected is _NOTHING:
        return FAILURE, f"silent: gave {_shown(found)} and no error"
    try:
        expected = oracle.expected() if callable(oracle.expected) else oracle.expected
    except Exception as error:
        return FAILURE, f"the case itself is wrong: what is expected raises {type(error).__name__}: {error}"
    difference = differing(expected, found)
    return (FAILURE, f"silent: {difference}") if difference else (RIGHT, "")


def _refused(oracle: Oracle, error: HookedVLMError) -> tuple[str, str]:
    text = str(error)
    line = f"{type(error).__name__}: {' '.join(text.split())}"
    if oracle.names is None:
        return FAILURE, f"refused what is legal: {line[:300]}"
    missing = [name for name in oracle.names if not any(_in(each, text) for each in _alternatives(name))]
    if missing:
        return FAILURE, f"names not {missing}: {line[:300]}"
    if len(text) > LONGEST:
        return FAILURE, f"an error of {len(text)} letters: {line[:200]}"
    return NAMED, line


def _alternatives(name: Name) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name


def _in(name: str, text: str) -> bool:
    return name.casefold() in text.casefold()


def _place(error: BaseException) -> str:
    """The last line of the package's own that an exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}hooked_vlm{os.sep}" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "nowhere"


def differing(expected: Any, found: Any, at: str = "result") -> str:
    """Where two results differ, in words; empty if they are alike."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        if expected.keys() != found.keys():
            only = sorted(map(str, expected.keys() ^ found.keys()))
            return f"{at} differs in what it has: {', '.join(only[:4])}"
        return _first(differing(expected[key], found[key], f"{at}.{key}") for key in expected)
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        if len(expected) != len(found):
            return f"{at} has {len(found)} entries and not {len(expected)}"
        pairs = enumerate(zip(expected, found, strict=True))
        return _first(differing(one, other, f"{at}[{i}]") for i, (one, other) in pairs)
    numbers = [_numbers(each) for each in (expected, found)]
    if numbers[0] is None or numbers[1] is None:
        return "" if type(expected) is type(found) and expected == found else f"{at} is {_shown(found)}, not {expected}"
    return _apart(numbers[0], numbers[1], at)


def _apart(expected: np.ndarray, found: np.ndarray, at: str) -> str:
    if expected.shape != found.shape:
        return f"{at} has shape {found.shape} and not {expected.shape}"
    size = max(1e-3, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    if np.allclose(found, expected, rtol=0.0, atol=CLOSE * size, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        worst = float(np.nanmax(np.abs(found - expected))) if np.isfinite(found).any() else float("nan")
    return f"{at} is off by {worst:.3g} (size {size:.3g}; {int(np.isnan(found).sum())} NaN)"


def _numbers(value: Any) -> np.ndarray | None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy()
    if isinstance(value, (int, float, np.ndarray, np.number)) and not isinstance(value, bool):
        array = np.asarray(value)
        return array.astype(np.float64) if array.dtype.kind in "iufb" else None
    return None


def _first(differences: Iterator[str]) -> str:
    return next(filter(None, differences), "")


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    return " ".join(repr(value).split())[:120]


# --- running ------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    case: Case
    pid: int
    pipe: int
    folder: Path
    began: float
    said: bytes = b""


def run(
    cases: Sequence[Case],
    folder: Path,
    *,
    jobs: int = 2,
    limit: float = LIMIT,
    tell: Callable[[Verdict], None] = lambda _: None,
) -> list[Verdict]:
    """Run cases, `jobs` at a time, each in a process of its own.

    Args:
        cases: the cases.
        folder: where each is given a folder.
        jobs: processes at a time.
        limit: seconds after which a case is killed.
        tell: called with each verdict as it comes.
    """
    waiting, running = list(reversed(cases)), dict[int, _Running]()
    verdicts: list[Verdict] = []
    with selectors.DefaultSelector() as pipes:
        while waiting or running:
            while waiting and len(running) < jobs:
                one = _started(waiting.pop(), folder / f"case-{len(verdicts) + len(running)}-{len(waiting)}")
                running[one.pipe] = one
                pipes.register(one.pipe, selectors.EVENT_READ)
            for key, _ in pipes.select(timeout=0.5):
                one = running[key.fd]
                if said := os.read(one.pipe, 1 << 16):
                    one.said += said
                    continue
                verdicts.append(_ended(one, running, pipes, ""))
                tell(verdicts[-1])
            now = time.monotonic()
            for one in [one for one in running.values() if now - one.began > limit]:
                verdicts.append(_ended(one, running, pipes, f"hung: killed after {limit:.0f} s"))
                tell(verdicts[-1])
    return verdicts


def _started(case: Case, folder: Path) -> _Running:
    folder.mkdir(parents=True)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        _child(case, folder, write)
    os.close(write)
    return _Running(case, pid, read, folder, time.monotonic())


def _child(case: Case, folder: Path, pipe: int) -> None:
    """What the forked process does: never returns."""
    try:
        os.setsid()  # so that what it starts is killed with it
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
        os.chdir(folder)
        told = json.dumps(judged(case, folder)).encode()
        while told:
            told = told[os.write(pipe, told) :]
    finally:
        os._exit(0)


def _ended(one: _Running, running: dict[int, _Running], pipes: selectors.BaseSelector, failure: str) -> Verdict:
    """Bury a process and read what it said."""
    seconds = time.monotonic() - one.began
    with contextlib.suppress(ProcessLookupError):  # it has gone, and left nobody
        os.killpg(one.pid, signal.SIGKILL)
    _, status = os.waitpid(one.pid, 0)
    pipes.unregister(one.pipe)
    os.close(one.pipe)
    del running[one.pipe]
    shutil.rmtree(one.folder, ignore_errors=True)
    if not failure and not one.said:
        failure = f"died without a word (status {status})"
    outcome, text = (FAILURE, failure) if failure else json.loads(one.said)
    return Verdict(one.case.name, outcome, text, seconds)
