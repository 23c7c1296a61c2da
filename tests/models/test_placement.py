"""Where a model goes and in which dtype: what is asked for, else what the machine and the checkpoint have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm import HookedVLM
from hooked_vlm.errors import InputsError
from hooked_vlm.models import placement
from tests.models import checkpoints

HALF = st.sampled_from([torch.float16, torch.bfloat16])
OPEN = st.sampled_from([None, "auto"])


def config(dtype: Any = None, inner: Any = None) -> Any:
    """A config that names a dtype, or whose text part does."""
    return SimpleNamespace(dtype=dtype, text_config=SimpleNamespace(dtype=inner))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with this accelerator, or with none."""
    return lambda device: monkeypatch.setattr(
        placement, "accelerator", lambda: None if device is None else torch.device(device)
    )


@given(device=OPEN, dtype=OPEN, own=HALF)
def test_a_cpu_computes_in_float32_whatever_the_checkpoint(device: Any, dtype: Any, own: torch.dtype) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(placement, "accelerator", lambda: None)
        assert placement.placed(device, dtype, config(own)) == (torch.device("cpu"), torch.float32)


@given(where=st.sampled_from(["cuda", "mps"]), device=OPEN, dtype=OPEN, own=HALF, is_inner=st.booleans())
def test_an_accelerator_gets_the_checkpoint_in_its_own_half(
    where: str, device: Any, dtype: Any, own: torch.dtype, is_inner: bool
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(placement, "accelerator", lambda: torch.device(where))
        written = str(own).removeprefix("torch.")  # as config.json has it
        for said in (own, written):
            named = config(inner=said) if is_inner else config(said)
            assert placement.placed(device, dtype, named) == (torch.device(where), own)
        assert placement.placed(device, dtype, config(torch.float32)) == (torch.device(where), torch.float32)
        assert placement.placed(device, dtype, config(torch.float64)) == (torch.device(where), torch.float32)
        assert placement.placed(device, dtype, config()) == (torch.device(where), None)
        assert placement.placed("cpu", dtype, config(own)) == (torch.device("cpu"), torch.float32)
        assert placement.placed(device, torch.float64, config(own)) == (torch.device(where), torch.float64)


@pytest.mark.parametrize(
    "device_map, dtype",
    [
        ("auto", torch.float16),
        ({"": 0}, torch.float16),
        ({"a": "cpu", "b": "cuda:0"}, torch.float16),
        ("cpu", torch.float32),
        ({"": "cpu"}, torch.float32),
        ({"a": "cpu", "b": "disk"}, torch.float32),
    ],
)
def test_a_device_map_places_the_model_itself(machine: Any, device_map: Any, dtype: torch.dtype) -> None:
    machine("cuda")
    assert placement.placed(None, None, config(torch.float16), device_map=device_map) == (None, dtype)
    machine(None)
    assert placement.placed(None, None, config(torch.float16), device_map=device_map) == (None, torch.float32)
    for named in ("cpu", "auto"):
        with pytest.raises(InputsError, match="device and device_map were both given"):
            placement.placed(named, None, config(), device_map=device_map)


def test_a_quantised_model_stays_where_hugging_face_puts_it(machine: Any) -> None:
    machine("cuda")
    stored = SimpleNamespace(dtype=torch.float16, quantization_config={"load_in_4bit": True})
    assert placement.placed(None, None, stored) == (None, torch.float16)
    assert placement.placed(None, None, config(torch.float16), quantization_config=object()) == (None, torch.float16)


def test_the_accelerator_is_cuda_then_mps_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"cuda": True, "mps": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    assert placement.accelerator() == torch.device("cuda")
    there["cuda"] = False
    assert placement.accelerator() == torch.device("mps")
    there["mps"] = False
    assert placement.accelerator() is None


@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16, None])
def test_a_checkpoint_is_loaded_as_the_machine_says(
    own: torch.dtype | None, machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the CPU in the accelerator's place, which takes part in all of the loading."""
    hf, processor = checkpoints.blip_vqa()
    checkpoints.save(tmp_path, hf.to(own or torch.float16), processor)
    if own is None:  # a config that does not say: the weights do
        path = tmp_path / "config.json"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if '"dtype"' not in line), encoding="utf-8")
    assert HookedVLM.from_pretrained(str(tmp_path)).dtype == torch.float32
    machine("cpu")
    model = HookedVLM.from_pretrained(str(tmp_path), dtype="auto")
    assert model.dtype == torch.float32  # a CPU is a CPU
    monkeypatch.setattr(placement, "is_fast", lambda device: True)
    model = HookedVLM.from_pretrained(str(tmp_path))
    assert (model.device.type, model.dtype) == ("cpu", own or torch.float16)
    assert HookedVLM.from_pretrained(str(tmp_path), dtype="float32").dtype == torch.float32


def test_a_choice_is_told_in_words() -> None:
    assert placement.told(torch.device("cuda"), torch.float16) == "on cuda in float16"
    assert placement.told(None, None) == "where Hugging Face places it in the checkpoint's own dtype"
