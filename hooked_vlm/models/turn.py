"""Whose turn it is: one thread at a time has a model to itself.

Hooks, the flags in `cfg` and the position at which a pass begins are on the model, so what one thread puts there
another thread's run would meet. A run therefore has the model from its beginning to its end, and an open
`with model.hooks(...)` from its opening to its close; other threads wait. Cost: two uncontended locks a run.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from hooked_vlm.errors import InputsError, ModelBusyError
from hooked_vlm.models import memory
from hooked_vlm.options import told

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 10.0  # seconds for which a thread waits for one that holds the model and runs nothing


class Turn:
    """A lock that its thread may take again, and that knows a run from a context which only stands open.

    A thread that waits for another's run waits until it is over. A thread that waits for a context in which nothing
    runs would wait for ever if that context in turn waits for it (it started the thread, and joins it): it waits
    `PATIENCE` seconds, and raises. A copy of a model, or a pickled one, has a turn of its own.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._owner: int | None = None
        self._called = ""  # the owner's name
        self._depth = 0  # how often the owner has taken it
        self._running = 0  # how many of these are runs
        self._started = 0  # runs begun, ever

    @property
    def inside(self) -> bool:
        """Whether the run that has the model is part of another one; meant for the thread whose turn it is."""
        return self._running > 1

    @contextmanager
    def taken(self, *, running: bool) -> Iterator[None]:
        """While it is open, the model is this thread's.

        Args:
            running: True for a run, False for what may stand open while nothing runs.

        Raises:
            ModelBusyError: if another thread holds the model and runs nothing.
        """
        with self._free:
            self._wait()
            self._owner, self._called = threading.get_ident(), threading.current_thread().name
            self._depth += 1
            self._running += running
            self._started += running
        try:
            yield
        finally:
            with self._free:
                self._depth -= 1
                self._running -= running
                if not self._depth:
                    self._owner = None
                    self._free.notify_all()

    def passed_on(self) -> None:
        """The turn is this thread's now: it closes what another opened, as some frameworks' threads do."""
        with self._free:
            self._owner, self._called = threading.get_ident(), threading.current_thread().name

    def _wait(self) -> None:
        mine = (None, threading.get_ident())
        while self._owner not in mine:
            started = self._started
            idle = not self._free.wait_for(lambda: self._owner in mine, PATIENCE)
            if idle and not self._running and self._started == started:
                raise ModelBusyError(
                    f"{threading.current_thread().name} waited {PATIENCE:g} s for the model, which {self._called} "
                    "holds in an open `with model.hooks(...)` without running it: close it before another thread runs "
                    "the model, run in that same thread, or give each thread a copy.deepcopy(model)"
                )

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


def a_model(given: Any) -> Any:
    """The model that it is. Raises InputsError if it is none of this package's."""
    if not isinstance(getattr(given, "turn", None), Turn):
        raise InputsError(
            f"model is {told(given)}; expected a HookedVLM: HookedVLM.from_pretrained(name) or "
            "HookedVLM.from_hf(hf_model, processor)"
        )
    return given


def alone(run: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a function or method whose first argument is a model: it has the model to itself while it runs.

    What runs out of memory raises a DoesNotFitError, of the outermost of such runs.
    """
    takes = set(inspect.signature(run).parameters)

    @wraps(run)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        model = a_model(args[0] if args else kwargs["model"])
        with model.turn.taken(running=True):
            if model.turn.inside:
                return run(*args, **kwargs)
            n = _rows((*args, *kwargs.values()))

            def what() -> str:
                called = run.__name__.replace("_checked_run", "a forward")
                rows = f" with {n} row{'s' * (n != 1)}" if n else ""
                return f"{called}{rows} in {model.dtype}".replace("torch.", "")

            with memory.told_if_out(what, lambda: model.device, lambda: _ways(model.dtype, takes, n)):
                return run(*args, **kwargs)

    return held


def _rows(given: Iterable[Any]) -> int:
    """Rows of the first inputs among some arguments; 0 where there are none."""
    for each in given:
        ids = each.get("input_ids") if isinstance(each, Mapping) else getattr(each, "input_ids", None)
        if isinstance(ids, Tensor):
            return len(ids)
    return 0


def _ways(dtype: torch.dtype, takes: set[str], n_rows: int) -> list[str]:
    """Out of a lack of memory, for a run with arguments of these names."""
    ways = [f"fewer rows at a time (inputs[:{n_rows // 2}])"] if n_rows > 1 else []
    if "names_filter" in takes:
        ways.append("names_filter= keeps the activations that are looked at alone, device='cpu' keeps them elsewhere")
    if takes & {"sites", "kinds", "senders"}:
        ways.append("fewer layers of sites at a time, since what is patched in is held for all of them")
    elif torch.is_grad_enabled() and "max_new_tokens" not in takes:
        ways.append("with torch.no_grad() nothing is held for gradients")
    return [*ways, *memory.general_ways(dtype)]
