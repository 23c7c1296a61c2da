"""The README tells the truth: its code runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import checkpoints

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures and, in place of the hub's, small checkpoints that the README's code names."""
    path = tmp_path_factory.mktemp("readme")
    for seed, name in enumerate(("red_circle.png", "blue_circle.png")):
        checkpoints.picture(seed).save(path / name)
    checkpoints.save(path / "blip", *checkpoints.blip_vqa(text={"num_hidden_layers": 4}))
    checkpoints.save(path / "llava", *checkpoints.llava())
    return path


def numbers(line: str) -> list[float]:
    """The signed numbers in a line."""
    return [float(number) for number in re.findall(r"[+-]\d+\.\d+", line)]


def test_the_code_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(workplace)
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(code) >= 6
    assert len([line for line in code[0].splitlines() if line]) == 10, "the first screen promises ten lines"
    names: dict[str, Any] = {"torch": torch}
    for block in code:
        block = block.replace("Salesforce/blip-vqa-base", "blip").replace("llava-hf/llava-1.5-7b-hf", "llava")
        exec(compile(block.replace(', device="cuda", dtype="float16"', ""), "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("tensor(")
    promised = re.findall(r"^layer \d head \d: .*$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line, shown in zip(promised, [line for line in printed if line.startswith("layer")], strict=True):
        assert line.partition(":")[0] == shown.partition(":")[0]
        assert numbers(line) == pytest.approx(numbers(shown), abs=0.03)
    assert names["effects"].shape == (2, 2) and names["over_image"].shape == (4,)
    assert names["logits"].shape[:2] == (64, 1) and names["parts"].shape[0] > 2
    assert names["paths"].values.shape == (1, 4, 1, 4, 24) and names["estimate"].index_df["exact"].sum() == 8
    assert names["noisy"].effect().abs().max() > 0.1
    expected = names["model"](names["corrupt"])
    assert torch.allclose(names["corrupted"], expected, atol=1e-4)
