"""What a type checker says of a user's script: nothing of what is right, and an error at every misspelled name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

from hooked_vlm import HookedVLM
from hooked_vlm.models import signatures
from tests.test_readme import BLOCKS

ROOT = Path(__file__).parent.parent
START = """
from typing import assert_type

import torch
from torch import Tensor

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, RunState, VLMInputs
from hooked_vlm.models.cache import StackCache, VLMCache

m = HookedVLM.from_pretrained("zoo:blip-shapes")
b = HookedBLIP.from_pretrained("zoo:blip-shapes", device="auto", dtype=torch.float16)
v = HookedLLaVA.from_hf(torch.nn.Linear(2, 3))
inputs = m.to_inputs("a.png", "is it?")
_, cache = m.run_with_cache(inputs, names_filter=["hook_embed"], remove_batch_dim=True)
_, state = m.run_with_state(inputs)
"""
RIGHT = """
assert_type(m, HookedVLM)
assert_type(b, HookedBLIP)
assert_type(v.to("cpu"), HookedLLaVA)
assert_type(inputs.to(torch.float16).to(m), VLMInputs)
assert_type(m(inputs), Tensor)
assert_type(m(inputs, "both", loss_per_token=True), tuple[Tensor, Tensor])
assert_type(m.run_with_hooks(inputs, fwd_hooks=[("hook_embed", lambda x, hook: x)]), Tensor)
assert_type(cache, VLMCache)
assert_type(cache["pattern", 1], Tensor)
assert_type(cache.focus("text_encoder"), StackCache)
assert_type(state, RunState)
assert_type(m.resume(state, "text_encoder", {1: m(inputs)}), Tensor)
assert_type(m.generate(inputs), list[str])
assert_type(m.generate(inputs, return_type="tokens", do_sample=True, top_k=3), Tensor)
assert_type(b.text_encoder.blocks[3].cross_attn.W_V, Tensor)
assert_type(m.stacks["text_encoder"].W_Q, Tensor)
assert_type(v.W_Q, Tensor)
assert_type(v.blocks[0].attn.W_O, Tensor)
assert_type(m.W_U + m.b_U[:, None], Tensor)
assert_type(m.cfg.use_attn_result, bool)
assert_type(m.to_single_str_token(m.to_single_token("red")), str)
with m.hooks([("hook_embed", lambda x, hook: x)]) as hooked:
    assert_type(hooked, HookedVLM)
"""
WRONG = """
m.nonsense()
m.nonsense
b.to_input("a.png", "is it?")
v.W_q
HookedVLM.from_pretrain("zoo:blip-shapes")
m(inputs, "logit")
m(inputs, logits_att="last")
m.run_with_hooks(inputs, fwd_hook=[])
m.run_with_cache(inputs, name_filter="hook_embed")
m.generate(inputs, return_types="tokens")
m.cfg.use_atn_result
cache.focuss("text_encoder")
inputs.fnd("red")
m.stacks["text_encoder"].nonsense
m.stacks["text_encoder"].blocks[0].atn
"""


def lines(text: str) -> list[str]:
    """The lines that are not empty."""
    return [line for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """The lines of each file at which mypy reports an error: one run for all, on what `make types` left behind."""
    path = tmp_path_factory.mktemp("scripts")
    # A reader's hook functions need no annotations, and TransformerLens' decompose_resid gives a tensor or a pair.
    unannotated = '# mypy: disable-error-code="no-untyped-def, arg-type"\n'
    files = {"right": START + RIGHT, "wrong": START + WRONG}
    files |= {f"block_{i}": unannotated + block for i, block in enumerate(BLOCKS)}
    for name, text in files.items():
        (path / f"{name}.py").write_text(text, encoding="utf-8")
    paths = [str(path / f"{name}.py") for name in files]
    out, problems, _ = api.run(
        ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"), *paths]
    )
    assert not problems, problems
    found: dict[str, list[int]] = {name: [] for name in files}
    for name, line in re.findall(r"(\w+)\.py:(\d+): error", out):
        found[name].append(int(line))
    return found


def test_every_misspelled_name_is_an_error(said: dict[str, list[int]]) -> None:
    first = len(START.splitlines()) + 2
    assert sorted(set(said["wrong"])) == list(range(first, first + len(lines(WRONG))))


def test_no_right_line_is_an_error(said: dict[str, list[int]]) -> None:
    assert said["right"] == []


def test_the_blocks_of_the_readme_are_without_an_error(said: dict[str, list[int]]) -> None:
    assert {name: at for name, at in said.items() if name.startswith("block") and at} == {}


@pytest.mark.parametrize(
    "method, declared, apart",
    [
        ("forward", signatures.RunOptions, {"inputs", "return_type"}),
        ("generate", signatures.GenerateOptions, {"inputs", "max_new_tokens", "return_type"}),
    ],
)
def test_the_options_declared_are_those_that_there_are(method: str, declared: type, apart: set[str]) -> None:
    code = getattr(HookedVLM, method)
    while hasattr(code, "__wrapped__"):
        code = code.__wrapped__
    names = code.__code__.co_varnames[1 : code.__code__.co_argcount + code.__code__.co_kwonlyargcount]
    assert set(declared.__annotations__) | apart == set(names)
