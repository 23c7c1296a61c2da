"""The pages tell the truth: their code runs as shown, and prints what they say.

The README's blocks run each by itself, those of a page of the documentation from top to bottom in one namespace. What a
reader without a network does, the tests do: they stand in the root of a clone, and put a small checkpoint in the place
of the one that only the hub has. Nothing else is added to a block. A block that is not run has a comment above it that
says why.
"""

from __future__ import annotations

import io
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from hooked_vlm import HookedVLM
from tests.models import checkpoints

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"])
HUB = {"Salesforce/blip-vqa-base": "blip", "llava-hf/llava-1.5-7b-hf": "llava"}  # what takes their place
NOT_RUN = {"circuitsvis is no dependency; tried with 1.43.3", "nnsight is no dependency; tried with 0.8.1", "a sketch"}


class Block(NamedTuple):
    """A block of code on a page, and why it is not run, if it is not."""

    code: str
    not_run: str


def blocks(page: Path) -> list[Block]:
    """A page's blocks of Python, from top to bottom."""
    found = re.findall(
        r"(?:<!-- not run: ([^\n]*) -->\n)?```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL
    )
    return [Block(code, why) for why, code in found]


BLOCKS = [block.code for block in blocks(README)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a block needs of a clone's root: the pictures that it names, and checkpoints in place of the hub's."""
    path = tmp_path_factory.mktemp("clone")
    code = "".join(block.code for page in (README, *PAGES) for block in blocks(page))
    for name in sorted(set(re.findall(r'"(docs/\w+\.png)"', code))):
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, path / name)
    checkpoints.save(path / "blip", *checkpoints.blip_vqa(text={"num_hidden_layers": 4}))
    checkpoints.save(path / "llava", *checkpoints.llava())
    return path


Ran = Callable[[Path], tuple[dict[str, Any], list[str]]]


def executed(code: str, page: Path, clone: Path, names: dict[str, Any]) -> str:
    """What a block prints; what it defines is left in `names`."""
    for name, here in HUB.items():
        code = code.replace(f'"{name}"', f'"{here}"')
    above = page.read_text("utf-8").partition(code)[0].count("\n")  # so that an error names the page's own line
    with chdir(clone), redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.filterwarnings("error", ".*hooked_vlm", DeprecationWarning)  # pages teach the names that stay
        warnings.filterwarnings("ignore", "A hook on self_attn.hook_pattern")  # the bridge says what the page shows
        exec(compile("\n" * above + code, str(page), "exec"), names)
    return printed.getvalue()


@pytest.fixture(scope="module")
def ran(clone: Path) -> Callable[[str], tuple[dict[str, Any], str]]:
    """Runs a block of the README, each once, in a namespace of its own: the names it leaves, and what it prints."""

    @cache
    def run(block: str) -> tuple[dict[str, Any], str]:
        names: dict[str, Any] = {"__name__": "__main__"}
        return names, executed(block, README, clone, names)

    return run


@pytest.fixture(scope="module")
def read(clone: Path) -> Ran:
    """Runs a page, once, from top to bottom: the names that it leaves behind, and what each block prints."""

    @cache
    def run(page: Path) -> tuple[dict[str, Any], list[str]]:
        names: dict[str, Any] = {"__name__": "__main__"}
        return names, [executed(block.code, page, clone, names) for block in blocks(page) if not block.not_run]

    return run


def the_block(containing: str) -> str:
    """The README's one block that contains a text."""
    (found,) = [block for block in BLOCKS if containing in block]
    return found


def numbers(line: str) -> list[float]:
    """The signed numbers in a line."""
    return [float(number) for number in re.findall(r"[+-]\d+\.\d+", line)]


def test_the_first_screen_keeps_its_ten_lines() -> None:
    assert len(BLOCKS) >= 2
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 10
    assert len(README.read_text("utf-8").splitlines()) <= 160


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_block_runs_by_itself(block: str, ran: Callable[..., Any]) -> None:
    assert ran(block)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_each_page_runs_from_top_to_bottom(page: Path, read: Ran) -> None:
    assert len(read(page)[1]) + sum(bool(block.not_run) for block in blocks(page)) == len(blocks(page))


def test_few_blocks_are_not_run_and_say_why() -> None:
    left_out = [block.not_run for page in (README, *PAGES) for block in blocks(page) if block.not_run]
    assert set(left_out) == NOT_RUN and len(left_out) == len(NOT_RUN)


@pytest.mark.parametrize("zoo", ["zoo:blip-shapes", "zoo:llava-shapes"])
def test_the_models_that_ship_answer_the_question_about_the_pictures_that_ship(zoo: str) -> None:
    model = HookedVLM.from_pretrained(zoo)
    pictures = [ROOT / "docs" / f"{colour}_circle.png" for colour in ("red", "blue")]
    assert model.generate(model.to_inputs(pictures, "is the circle red or blue?")) == ["red", "blue"]


@pytest.mark.parametrize("page", ["README.md", "docs/sweeps.md"])
def test_the_sweep_prints_what_the_page_says(page: str, ran: Callable[..., Any], read: Ran) -> None:
    text = (ROOT / page).read_text("utf-8")
    printed = read(ROOT / page)[1][0] if page.startswith("docs") else ran(the_block('shapes.load("shape", 24'))[1]
    promised = re.findall(r"^layer \d head \d: .*$", text, flags=re.MULTILINE)
    assert promised
    for line, shown in zip(promised, printed.splitlines(), strict=True):
        assert line.partition(":")[0] == shown.partition(":")[0]
        assert numbers(line) == pytest.approx(numbers(shown), abs=0.03)


def test_shapes_are_those_that_the_comments_name(read: Ran) -> None:
    caches, _ = read(ROOT / "docs" / "caches.md")
    assert caches["over_image"].shape == (4,) and caches["logits"].shape[:2] == (64, 1)
    assert caches["resid"].ndim == 3
    tools, _ = read(ROOT / "docs" / "tools.md")
    assert tools["effects"].shape == (4, 4) and tools["parts"].shape[0] > 2
    sweeps, _ = read(ROOT / "docs" / "sweeps.md")
    assert sweeps["paths"].values.shape == (1, 4, 1, 4, 1) and sweeps["estimate"].index_df["exact"].sum() == 8


def test_a_corruption_by_hooks_equals_the_corrupt_inputs(read: Ran) -> None:
    names, printed = read(ROOT / "docs" / "notice.md")
    model = names["model"]
    expected = model(model.to_inputs(ROOT / "docs" / "blue_circle.png", "is the circle red or blue?"))
    assert torch.allclose(names["corrupted"], expected, atol=1e-4)
    assert names["noisy"].effect().abs().max() > 0.1 and "mean effect" in printed[-1]


def test_an_aligned_subspace_carries_the_colour_and_a_random_one_does_not(read: Ran) -> None:
    flipped = read(ROOT / "docs" / "tools.md")[0]["flipped"]
    assert flipped["found"].float().mean() > 0.5 > 0.1 > flipped["placebo"].float().mean()


def test_the_bridge_discards_an_edit_of_the_vision_towers_pattern_that_acts_here(read: Ran) -> None:
    names, printed = read(ROOT / "docs" / "tools.md")
    assert torch.equal(names["by_bridge"], names["without_hook"])
    assert not torch.allclose(names["here"], names["plain"], atol=1e-2)
    assert "bridge's logits by 0.00" in printed[-1]


def test_a_universal_head_is_found_where_one_was_put(read: Ran) -> None:
    rules = read(ROOT / "docs" / "statistics.md")[0]["rules"]
    assert set(rules[rules.fdr_all & rules.paper_all]["head"]) == {3}
