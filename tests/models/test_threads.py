"""Threads may share a model: one at a time has it, and none sees another's hooks."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_vlm import HookedVLM
from hooked_vlm.errors import ModelBusyError
from hooked_vlm.hooks import zero_ablate
from hooked_vlm.models import turn
from hooked_vlm.patching import Sites, sweep
from hooked_vlm.patching.metrics import logit_diff
from tests.models import checkpoints
from tests.models.test_hooks_live import VARIANTS, variant

LONG_ENOUGH = 0.4  # seconds in which the other thread would be done, if nothing held it back


@contextmanager
def beside(run: Callable[[], Any]) -> Iterator[list[Any]]:
    """What `run` gives in a thread of its own, which has begun and is over when it closes."""
    found: list[Any] = []

    def ran() -> None:
        try:
            with torch.no_grad():
                found.append(run())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=ran)
    thread.start()
    thread.join(LONG_ENOUGH)
    yield found
    thread.join()


def hooks_of(model: HookedVLM) -> list[tuple[str, Any]]:
    """An edit that shows, in the stack that makes the logits."""
    prefix = model.stacks[model.answer_stack].prefix
    return [(f"{prefix}blocks.{layer}.attn.hook_z", zero_ablate()) for layer in range(2)]


@pytest.mark.parametrize("name", ["blip-vqa", "llava-llama-clip"])
def test_an_open_context_is_not_seen_by_another_threads_run(name: str) -> None:
    model, inputs = variant(name)
    with torch.no_grad():
        plain = model(inputs)
        with model.hooks(hooks_of(model)):
            other = beside(lambda: model(inputs))
            found = other.__enter__()
            edited = model(inputs)
        other.__exit__(None, None, None)
    assert not torch.equal(edited, plain)
    assert torch.equal(found[0], plain)


RUNS: dict[str, Callable[[Any, Any], Any]] = {
    "forward": lambda m, i: m(i),
    "run_with_cache": lambda m, i: m.run_with_cache(i, names_filter="hook_logits")[0],
    "run_with_hooks": lambda m, i: m.run_with_hooks(i),
    "generate": lambda m, i: m.generate(i, 3, return_type="tokens"),
    "run_with_state": lambda m, i: m.run_with_state(i)[0],
    "resume": lambda m, i: m.resume(*resumable(m, i)),
    "sweep": lambda m, i: torch.as_tensor(swept(m, i)),
}


def resumable(model: HookedVLM, inputs: Any) -> tuple[Any, str, dict[int, Tensor]]:
    """A finished run, and rows that join it as they were."""
    _, state = model.run_with_state(inputs)
    return state, model.answer_stack, {1: state.resid_pre(model.answer_stack, 1)}


def swept(model: HookedVLM, inputs: Any) -> Any:
    """Every head of the answer stack patched from the reversed batch."""
    sites = Sites.heads(model, model.answer_stack, "attn", positions=-1)
    other = inputs.replace(pixel_values=inputs.pixel_values.flip(0))
    return sweep(model, inputs, other, sites, logit_diff(7, 8), progress=False).values


@pytest.mark.parametrize("run", RUNS)
def test_a_run_waits_for_the_run_of_another_thread(run: str) -> None:
    """The other thread begins in the middle of a hooked run, and would be done before it goes on."""
    model, inputs = variant("blip-vqa")
    others = []

    def begin(z: Tensor, hook: Any) -> Tensor:
        if not others:
            others.append(beside(lambda: RUNS[run](model, inputs)))
            others.append(others[0].__enter__())
        return z * 0

    with torch.no_grad():
        expected = RUNS[run](model, inputs)
        model.run_with_hooks(inputs, fwd_hooks=[(hooks_of(model)[0][0], begin), *hooks_of(model)[1:]])
        others[0].__exit__(None, None, None)
    assert torch.equal(others[1][0], expected)
    assert not model.list_hooks() and model.context_level == 0


def test_hooked_runs_of_many_threads_give_what_each_gives_alone() -> None:
    model, inputs = variant("blip-vqa")
    names = model.hook_names(lambda n: "text_decoder.blocks" in n and n.endswith("hook_z"))

    def run(k: int) -> Tensor:
        with torch.no_grad():
            return model.run_with_hooks(inputs, fwd_hooks=[(names[k % len(names)], zero_ablate(heads=k % 2))])

    expected = [run(k) for k in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(run, [*range(8)] * 3))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 3, strict=True))
    assert not model.list_hooks() and model.context_level == 0


def test_hooks_that_are_added_wait_until_the_run_is_over() -> None:
    model, inputs = variant("blip-vqa")
    (first, _), second = hooks_of(model)
    others = []

    def begin(z: Tensor, hook: Any) -> None:
        if not others:
            others.append(beside(lambda: model.add_hook(*second)))
            others.append(others[0].__enter__())

    with torch.no_grad():
        plain = model(inputs)
        assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=[(first, begin)]), plain)
        others[0].__exit__(None, None, None)
        assert list(model.list_hooks()) == [second[0]]


def test_a_context_that_waits_for_the_thread_it_started_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.2)
    model, inputs = variant("blip-vqa")
    with ThreadPoolExecutor(1, "worker") as pool, model.hooks(hooks_of(model)):
        waited = pool.submit(lambda: model(inputs))
        with pytest.raises(ModelBusyError, match=r"worker_0 waited 0\.2 s .* MainThread holds in an open"):
            waited.result()


def test_a_context_that_goes_on_running_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.2)
    model, inputs = variant("blip-vqa")
    with torch.no_grad():
        plain = model(inputs)
        with ThreadPoolExecutor(1) as pool, model.hooks(hooks_of(model)):
            other = pool.submit(lambda: model(inputs))
            end = time.monotonic() + 3 * turn.PATIENCE
            while time.monotonic() < end:
                model(inputs)
            assert not other.done()
    assert torch.equal(other.result(), plain)


def test_a_context_may_be_closed_by_another_thread() -> None:
    model, inputs = variant("blip-vqa")
    with torch.no_grad():
        plain = model(inputs)
        context = model.hooks(hooks_of(model))
        context.__enter__()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(context.__exit__, None, None, None).result()
            assert torch.equal(pool.submit(lambda: model(inputs)).result(), plain)
        assert torch.equal(model(inputs), plain)


def test_a_run_that_fails_gives_the_model_back() -> None:
    model, inputs = variant("blip-vqa")

    def fail(z: Tensor, hook: Any) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(inputs, fwd_hooks=[(hooks_of(model)[0][0], fail)])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: model(inputs)).result().shape[0] == len(inputs)


def test_texts_are_read_by_one_thread_at_a_time() -> None:
    """A tokenizer pads as its last caller said, which between threads may be another one."""
    model = HookedVLM.from_hf(*checkpoints.blip_vqa())
    picture, asked = checkpoints.picture(), [["is it red?"], ["is it red?", "is the circle red or blue?"]]
    expected = [model.to_inputs(picture, texts).input_ids for texts in asked]
    reading, most = [0, 0], [0]
    prepare = model._prepare

    def watched(*given: Any) -> Any:
        reading[0] += 1
        most[0] = max(most[0], reading[0])
        threading.Event().wait(0.02)
        try:
            return prepare(*given)
        finally:
            reading[0] -= 1

    model._prepare = watched
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: model.to_inputs(picture, asked[k % 2]).input_ids, range(8)))
    assert most == [1]
    assert all(torch.equal(ids, expected[k % 2]) for k, ids in enumerate(found))


def pickled(model: HookedVLM) -> Any:
    """Through bytes and back."""
    return pickle.loads(pickle.dumps(model))  # noqa: S301


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["copy", "pickle"])
def test_a_copy_computes_the_same_and_has_a_turn_of_its_own(name: str, copied: Any) -> None:
    model, inputs = variant(name)
    with torch.no_grad():
        plain = model(inputs)
        twin = copied(model)
        with model.hooks(hooks_of(model)), beside(lambda: twin(inputs)) as found:
            pass
        assert torch.equal(found[0], plain)
        assert torch.equal(twin.run_with_hooks(inputs), plain)
