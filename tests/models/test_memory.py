"""Whatever runs out of memory says what ran and the ways out, and leaves the model as it was."""

from __future__ import annotations

import copy
import errno
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering

from hooked_vlm import HookedVLM
from hooked_vlm.errors import CheckpointError, DoesNotFitError, HookedVLMError
from hooked_vlm.models import memory
from hooked_vlm.patching import Sites, attribution, metrics, path_patching, sweep
from tests.models.test_hooks_live import variant
from tests.patching.test_sweep import other


def on_the_cpu() -> None:
    torch.empty(2**62, dtype=torch.uint8)


def in_numpy() -> None:
    np.empty(2**62, np.uint8)


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


FAILURES = {
    "the CPU's allocator": on_the_cpu,
    "NumPy": in_numpy,
    "CUDA": raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
    "cuBLAS": raising(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    "MPS": raising(RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)")),
    "Python": raising(MemoryError()),
    "the system": raising(OSError(errno.ENOMEM, "Cannot allocate memory")),
}
OTHERS = [
    RuntimeError("something else"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4), both allocated on cpu"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("out of memory"),
    KeyboardInterrupt(),
]


def steps(model: HookedVLM, inputs: Any) -> dict[str, Callable[[], Any]]:
    """Every way to run a model, by how it is called in the message."""
    stack, measure = model.prompt_stack, metrics.logit_diff(7, 8)
    sites, last = Sites.heads(model, stack, "attn"), Sites.heads(model, stack, "attn", positions=[-1])
    corrupt = other(inputs, image=True)
    return {
        "a forward": lambda: model(inputs),
        "run_with_hooks": lambda: model.run_with_hooks(inputs),
        "run_with_cache": lambda: model.run_with_cache(inputs),
        "generate": lambda: model.generate(inputs, 2, return_type="tokens"),
        "sweep_all": lambda: sweep(model, inputs, corrupt, sites, measure, progress=False),
        "attribution": lambda: attribution(model, inputs, corrupt, sites, measure),
        "path_patching": lambda: path_patching(model, inputs, corrupt, last, "logits", measure, progress=False),
    }


STEPS = ["a forward", "run_with_hooks", "run_with_cache", "generate", "sweep_all", "attribution", "path_patching"]


def llava() -> tuple[HookedVLM, Any]:
    model, inputs = variant("llava-llama-clip")
    return model, inputs[:1].repeat(2)


def failing(model: HookedVLM, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]) -> None:
    """A model whose second block fails."""
    block = model.stacks[model.prompt_stack].blocks[1]
    monkeypatch.setattr(block, "forward", lambda *args, **options: fail())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("allocation", FAILURES)
def test_a_run_out_of_memory_says_what_ran_and_the_ways_out(
    step: str, allocation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = llava()
    before = model(inputs)
    with monkeypatch.context() as patched:
        failing(model, patched, FAILURES[allocation])
        with pytest.raises(DoesNotFitError) as caught:
            steps(model, inputs)[step]()
    said = str(caught.value)
    assert said.startswith(f"{step} with 2 rows in float32 ran out of memory on cpu, where ")
    assert "fewer rows at a time (inputs[:1])" in said and "half precision" in said
    assert ("names_filter=" in said) == (step == "run_with_cache")
    assert ("fewer layers of sites" in said) == (step in ("sweep_all", "attribution", "path_patching"))
    assert ("torch.no_grad()" in said) == (step in ("a forward", "run_with_hooks", "run_with_cache"))
    assert memory.ran_out(caught.value) and memory.ran_out(caught.value.__cause__)
    assert str(copy.copy(caught.value)) == said
    assert torch.equal(model(inputs), before) and not list(model.list_hooks())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_no_other_error_is_taken_for_a_lack_of_memory(
    step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = llava()
    failing(model, monkeypatch, raising(error))
    with pytest.raises(type(error)) as caught:
        steps(model, inputs)[step]()
    assert caught.value is error


def test_what_needs_nothing_less_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = llava()
    model.to(torch.bfloat16)
    failing(model, monkeypatch, on_the_cpu)
    with pytest.raises(DoesNotFitError) as caught, torch.no_grad():
        model(inputs[:1])
    said = str(caught.value)
    assert said.startswith("a forward with 1 row in bfloat16 ran out of memory on cpu")
    assert not any(way in said for way in ("fewer rows", "half precision", "no_grad"))


def test_what_a_failed_run_held_is_free_when_the_error_is_caught() -> None:
    model, inputs = llava()
    held: list[Any] = []

    def large(activation: Tensor, hook: Any) -> None:
        mine = torch.ones_like(activation)
        held.append(weakref.ref(mine))
        on_the_cpu()

    try:
        model.run_with_hooks(inputs, fwd_hooks=[(lambda name: name.endswith("1.hook_resid_pre"), large)])
    except DoesNotFitError:
        assert [ref() for ref in held] == [None]  # here, where a smaller batch is tried
    else:
        pytest.fail("nothing was raised")


@pytest.mark.parametrize("allocation", FAILURES)
def test_weights_that_do_not_fit_are_no_damaged_checkpoint(allocation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlipForQuestionAnswering, "from_pretrained", lambda *args, **options: FAILURES[allocation]())
    with pytest.raises(DoesNotFitError, match=r"^loading 'zoo:blip-shapes' on cpu in float32 ran out .*bfloat16"):
        HookedVLM.from_pretrained("zoo:blip-shapes", device="cpu", dtype="float32")
    with pytest.raises(HookedVLMError) as caught:
        HookedVLM.from_pretrained("zoo:blip-shapes", device="cpu", dtype="float16")
    assert "halves the weights" not in str(caught.value)


def test_other_errors_of_loading_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlipForQuestionAnswering, "from_pretrained", lambda *args, **options: raising(OTHERS[0])())
    with pytest.raises(CheckpointError, match="something else"):
        HookedVLM.from_pretrained("zoo:blip-shapes")
