"""The README tells the truth: each block of code runs by itself, as shown, and prints what the page says.

What a reader without a network does, the tests do: they stand in the root of a clone, and put a small checkpoint in the
place of the one that only the hub has. Nothing else is added to a block.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_vlm import HookedVLM
from tests.models import checkpoints

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
HUB = {"Salesforce/blip-vqa-base": "blip", "llava-hf/llava-1.5-7b-hf": "llava"}  # what takes their place


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a block needs of a clone's root: the pictures that it names, and checkpoints in place of the hub's."""
    path = tmp_path_factory.mktemp("clone")
    for name in sorted(set(re.findall(r'"(docs/\w+\.png)"', "".join(BLOCKS)))):
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, path / name)
    checkpoints.save(path / "blip", *checkpoints.blip_vqa(text={"num_hidden_layers": 4}))
    checkpoints.save(path / "llava", *checkpoints.llava())
    return path


@pytest.fixture(scope="module")
def ran(clone: Path) -> Callable[[str], tuple[dict[str, Any], str]]:
    """Runs a block, each once, in a namespace of its own: the names that it leaves behind, and what it prints."""

    @cache
    def run(block: str) -> tuple[dict[str, Any], str]:
        for name, here in HUB.items():
            block = block.replace(f'"{name}"', f'"{here}"')
        names: dict[str, Any] = {"__name__": "__main__"}
        with chdir(clone), redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, "README.md", "exec"), names)
        return names, printed.getvalue()

    return run


def the_block(containing: str) -> str:
    """The one block that contains a text."""
    (found,) = [block for block in BLOCKS if containing in block]
    return found


def numbers(line: str) -> list[float]:
    """The signed numbers in a line."""
    return [float(number) for number in re.findall(r"[+-]\d+\.\d+", line)]


def test_the_first_screen_keeps_its_ten_lines() -> None:
    assert len(BLOCKS) >= 10
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 10


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_block_runs_by_itself(block: str, ran: Callable[..., Any]) -> None:
    assert ran(block)


@pytest.mark.parametrize("zoo", ["zoo:blip-shapes", "zoo:llava-shapes"])
def test_the_models_that_ship_answer_the_question_about_the_pictures_that_ship(zoo: str) -> None:
    model = HookedVLM.from_pretrained(zoo)
    pictures = [ROOT / "docs" / f"{colour}_circle.png" for colour in ("red", "blue")]
    assert model.generate(model.to_inputs(pictures, "is the circle red or blue?")) == ["red", "blue"]


def test_the_sweep_prints_what_the_page_says(ran: Callable[..., Any]) -> None:
    printed = ran(the_block('shapes.load("shape", 24'))[1].splitlines()
    promised = re.findall(r"^layer \d head \d: .*$", TEXT, flags=re.MULTILINE)
    for line, shown in zip(promised, printed, strict=True):
        assert line.partition(":")[0] == shown.partition(":")[0]
        assert numbers(line) == pytest.approx(numbers(shown), abs=0.03)


def test_shapes_are_those_that_the_comments_name(ran: Callable[..., Any]) -> None:
    assert ran(the_block("over_image = "))[0]["over_image"].shape == (4,)
    focused, _ = ran(the_block("get_act_patch_attn_head_out_all_pos"))
    assert focused["effects"].shape == (4, 4) and focused["parts"].shape[0] > 2
    assert ran(the_block("run_with_state"))[0]["logits"].shape[:2] == (64, 1)
    found, _ = ran(the_block("path_patching"))
    assert found["paths"].values.shape == (1, 4, 1, 4, 1) and found["estimate"].index_df["exact"].sum() == 8


def test_a_corruption_by_hooks_equals_the_corrupt_inputs(ran: Callable[..., Any]) -> None:
    names, printed = ran(the_block("SemanticImagePair"))
    model = names["model"]
    expected = model(model.to_inputs(ROOT / "docs" / "blue_circle.png", "is the circle red or blue?"))
    assert torch.allclose(names["corrupted"], expected, atol=1e-4)
    assert names["noisy"].effect().abs().max() > 0.1 and "mean effect" in printed
