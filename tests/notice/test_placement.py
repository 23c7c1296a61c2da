"""Where a run's model is and in which dtype: decided once, said, recorded, and kept when the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm import HookedVLM
from hooked_vlm.errors import ResumeError
from hooked_vlm.models import placement
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.report.text.cautions import cautions
from hooked_vlm.notice.summary import summarise
from hooked_vlm.notice.terminal import Progress
from tests.models import checkpoints
from tests.notice.made import run_directory
from tests.notice.models import answerable, small

DEVICES = st.sampled_from([None, "auto", "cpu", "cuda"])
DTYPES = st.sampled_from([None, "auto", "float32", "bfloat16"])


@given(device=DEVICES, dtype=DTYPES, again_on=DEVICES, again_as=DTYPES)
def test_what_was_decided_is_recorded_and_another_choice_is_refused(
    device: str | None, dtype: str | None, again_on: str | None, again_as: str | None
) -> None:
    config = NoticeConfig(model="m", tasks=("colour",), device=device, dtype=dtype).resolved(small("blip"))
    assert config.device == ("cpu" if device in (None, "auto") else device)
    assert config.dtype == ("float32" if dtype in (None, "auto") else dtype)
    stored = NoticeConfig.from_json(config.to_json())
    again = NoticeConfig(model="m", tasks=("colour",), device=again_on, dtype=again_as)
    if again_on in (None, "auto", config.device) and again_as in (None, "auto", config.dtype):
        stored.refuse_another(again, Path("runs"))
    else:
        with pytest.raises(ResumeError, match=r"(device|dtype) was '\w+' and is '\w+'"):
            stored.refuse_another(again, Path("runs"))


def test_a_terminal_is_told_before_the_first_example(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    with Progress(1, 1, shown=True) as bar:
        bar.tell("m runs on cuda in float16")
    assert "m runs on cuda in float16" in capsys.readouterr().err


def test_the_command_line_says_where_the_model_runs_and_the_run_records_it(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.save(tmp_path / "model", *checkpoints.blip_vqa())
    task = answerable("blip", tmp_path / "anything.parquet", 2)
    monkeypatch.setattr(placement, "accelerator", lambda: None)
    options = [
        "--corrupt",
        "image",
        "--sites",
        "cross_attn",
        "--examples",
        "1",
        "--bootstrap",
        "9",
        "--random-draws",
        "1",
    ]
    out = tmp_path / "run"
    code, said, _ = command(checkpoint, "--task", task, "--out", str(out), *options)
    assert code == 0 and f"{checkpoint} ran on cpu in float32\n" in said
    recorded = json.loads((out / "run.json").read_text(encoding="utf-8"))["config"]
    assert (recorded["device"], recorded["dtype"]) == ("cpu", "float32")
    # The run goes on where it began, whatever another machine would choose.
    monkeypatch.setattr(placement, "accelerator", lambda: torch.device("cuda"))
    code, said, _ = command(checkpoint, "--task", task, "--out", str(out), *options)
    assert code == 0 and f"{checkpoint} ran on cpu in float32\n" in said


def test_auto_is_what_is_left_out_and_is_told(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "accelerator", lambda: None)
    checkpoint = checkpoints.save(tmp_path / "model", *checkpoints.blip_vqa())
    task = answerable("blip", tmp_path / "anything.parquet", 2)
    words = [checkpoint, "--task", task, "--corrupt", "image", "--sites", "cross_attn", "--examples", "1", "--plan"]
    outcomes = [command(*words, *more)[:2] for more in ([], ["--device", "auto", "--dtype", "auto"])]
    for code, said in outcomes:
        assert code == 0 and said.startswith(f"{checkpoint} on cpu in float32; ")
    model = HookedVLM.from_pretrained(checkpoint, device="auto", dtype="auto")
    assert (model.device.type, model.dtype) == ("cpu", torch.float32) and "cpu" in repr(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_report_of_half_precision_says_what_it_rounds(dtype: str, tmp_path: Path) -> None:
    path = run_directory(tmp_path, kept=2, tasks=("colour",), corrupt=("image",), noise=False)
    config = json.loads((path / "run.json").read_text())["config"] | {"dtype": dtype}
    said = [line for line in cautions(summarise(path, config=config), {}) if line.startswith("Computed in ")]
    share = {"float32": None, "bfloat16": "3", "float16": "0.5"}[dtype]
    assert len(said) == (share is not None)
    assert all(f"Computed in {dtype}: " in line and f"by up to {share}\N{NO-BREAK SPACE}% of" in line for line in said)
