"""A run that runs out of memory says what it was at, what is kept and what needs less, and goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_vlm.errors import DoesNotFitError
from hooked_vlm.notice import pipeline
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.directory import REPORT
from tests.models import checkpoints
from tests.notice.models import answerable

QUICK = ("--corrupt", "image", "--sites", "cross_attn", "--examples", "3", "--batch", "1", "--bootstrap", "9")


def too_much(*args: Any, **options: Any) -> None:
    torch.empty(2**62, dtype=torch.uint8)


def at_the_third(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs out of memory when it is called for the third time."""
    calls: list[int] = []

    def scarce(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return too_much() if len(calls) == 3 else fn(*args, **options)

    return scarce


@pytest.mark.parametrize("inside", [True, False], ids=["in a sweep", "beside the model"])
def test_a_run_out_of_memory_is_one_line_and_the_same_command_goes_on(
    inside: bool, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.save(tmp_path / "model", *checkpoints.blip_vqa())
    task = answerable("blip", tmp_path / "anything.parquet", 8)
    out = tmp_path / "run"
    words = [checkpoint, "--task", task, "--out", str(out), *QUICK, "--random-draws", "1"]
    where, name = (import_module("hooked_vlm.patching.sweep"), "run_sweep") if inside else (pipeline, "_attention")
    with monkeypatch.context() as patched:
        patched.setattr(where, name, at_the_third(getattr(where, name)))
        code, printed, told = command(*words)
    assert (code, printed) == (1, "") and told.count("\n") == 1
    what = "sweep_all with 1 row in float32" if inside else "the run"
    assert told.startswith(f"hooked-vlm: {task}: {what} ran out of memory on cpu, where ")
    assert "--batch 1" in told and "--plan" in told and "inputs[" not in told
    kept = int(told.partition(" examples are kept in")[0].rpartition(" ")[2])
    assert kept >= 2 and str(out) in told
    code, printed, _ = command(*words)
    assert code == 0 and (out / REPORT).exists()


def test_weights_that_do_not_fit_are_one_line(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooked_vlm.models.loading.load_model", too_much)
    code, _, told = command("zoo:blip-shapes", "--task", "colour", "--out", str(tmp_path / "run"))
    assert code == 1 and told.count("\n") == 1
    assert told.startswith("hooked-vlm: loading 'zoo:blip-shapes' on cpu in float32 ran out of memory on cpu")


def test_whatever_else_runs_out_of_memory_is_one_line_too(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooked_vlm.notice.planning.plan", too_much)
    code, printed, told = command("zoo:blip-shapes", "--task", "colour", "--plan")
    assert (code, printed) == (1, "") and told.count("\n") == 1
    assert told.startswith("hooked-vlm: out of memory (RuntimeError: ") and "can't allocate memory" in told


def test_a_run_raises_it_to_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "started", too_much)
    with pytest.raises(DoesNotFitError, match=r"^reading the rows: the run ran out .* 0 examples are kept in "):
        pipeline.run(NoticeConfig(model="zoo:blip-shapes", tasks=("colour",)), tmp_path / "run", progress=False)
