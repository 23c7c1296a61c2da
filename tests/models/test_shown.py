"""What is printed of a model, its inputs, a run, a cache and a result: a screenful, and true."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from PIL import Image
from transformer_lens.patching import PatchingResult

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.patching import Sites, sweep
from hooked_vlm.patching.metrics import logit_diff
from tests.models import checkpoints, drawn

LINES, WIDTH = 45, 520  # a screen, and a line that a terminal breaks a few times at most


def refuse_long(text: str) -> None:
    """Fail unless a text is a screenful."""
    assert len(text.splitlines()) <= LINES and max(map(len, text.splitlines())) <= WIDTH, text


class Closed(HTMLParser):
    """Fails unless every element that is opened is closed; gathers what is read and the pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.pictures = "", []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(max_examples=12, phases=[Phase.reuse, Phase.generate])  # a smaller model prints no less
@given(case=drawn.cases())
def test_everything_prints_as_a_screenful(case: drawn.Case) -> None:
    model = HookedVLM.from_hf(case.hf)
    _, state = model.run_with_state(case.inputs)
    _, cache = model.run_with_cache(case.inputs)
    for shown in (model, state, cache, case.inputs, cache.focus("vision_encoder"), state.passes):
        refuse_long(repr(shown))
    for name, stack in model.stacks.items():
        (line,) = [line for line in repr(model).splitlines() if line.split()[0] == name]
        assert f" {stack.cfg.n_layers} x {stack.cfg.n_heads}" in line
        assert f"{name}: {len(stack.blocks)} layers" in repr(state)
    assert f"{len(model.hook_dict)} hook points" in repr(model) and f"{len(cache)} activations" in repr(cache)
    assert Closed(model._repr_html_()).text and Closed(case.inputs._repr_html_()).text


def test_a_model_says_where_it_is_and_in_which_dtype() -> None:
    model = HookedVLM.from_hf(*checkpoints.blip_vqa()).to(torch.bfloat16)
    assert "bfloat16 on cpu" in repr(model).splitlines()[0]
    model.cfg.use_attn_result = True
    assert "cfg.use_attn_result is True" in repr(model)


@pytest.fixture(scope="module")
def zoo() -> Any:
    """The LLaVA that ships, and inputs with a long text and a tag in another."""
    model = HookedVLM.from_pretrained("zoo:llava-shapes")
    pictures = [Image.fromarray(np.full((64, 64, 3), shade, np.uint8)) for shade in (0, 90, 255, 30, 9, 9)]
    texts = ["is the circle red or blue?", 'a <b>bold</b> & "circle"?', *["is it red?"] * 4]
    return model, model.to_inputs(pictures, texts)


def test_inputs_print_their_first_rows_as_tokens(zoo: Any) -> None:
    _, inputs = zoo
    head, *rows, more = repr(inputs).splitlines()
    assert head == f"VLMInputs(6 x [3 64 64] pixels, {inputs.input_ids.shape[1]} tokens)"
    assert len(rows) == 4 and more == "  ... and 2 more rows"
    assert "<image> x 64" in rows[0] and rows[0].endswith("is the circle red or blue ? ASSISTANT :")


def test_a_notebook_shows_the_pictures_as_they_were(zoo: Any) -> None:
    _, inputs = zoo
    shown = Closed(inputs._repr_html_())
    assert len(shown.pictures) == 4
    for picture, shade in zip(shown.pictures, (0, 90, 255, 30), strict=True):
        data = base64.b64decode(picture.removeprefix("data:image/png;base64,"))
        seen = np.asarray(Image.open(io.BytesIO(data)))
        assert seen.shape == (64, 64, 3) and np.abs(seen.astype(int) - shade).max() <= 1


def test_what_a_tokenizer_says_is_escaped(zoo: Any) -> None:
    class Hostile:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["<script>alert(1)</script>"] * len(ids)

    _, inputs = zoo
    layout = type(inputs.layout)(Hostile())
    html = inputs.replace(layout=layout)._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and "<script>" in Closed(html).text


def test_inputs_by_hand_are_shown_without_a_layout() -> None:
    inputs = VLMInputs(torch.full((1, 1, 4, 4), torch.nan), torch.arange(5)[None]).to(torch.float16)
    assert repr(inputs) == "VLMInputs(1 x [1 4 4] float16 pixels, 5 tokens)"
    assert len(Closed(inputs._repr_html_()).pictures) == 1


def test_a_result_prints_its_largest_effects_and_is_transformer_lens_own() -> None:
    model = HookedVLM.from_hf(*checkpoints.blip_vqa())
    clean, corrupt = (
        model.to_inputs([checkpoints.picture(i), checkpoints.picture(i + 1)], "is it red?") for i in (0, 5)
    )
    sites = Sites.heads(model, "text_encoder", "cross_attn")
    metric = logit_diff(7, 8)
    for metrics in (metric, {"a": metric, "b": metric}):
        for reduce in ("none", "mean"):
            result = sweep(model, clean, corrupt, sites, metrics, reduce=reduce, progress=False)
            assert isinstance(result, PatchingResult)
            refuse_long(repr(result))
            one = result["a"] if isinstance(metrics, dict) else result
            effect = one.effect() if reduce == "mean" else one.effect().mean(-1)
            largest = effect.flatten()[effect.abs().argmax()]
            assert re.search(re.escape(f"{largest:+.4f}") + "$", repr(one).splitlines()[2])
            assert Closed(result._repr_html_()).text and type(one) is type(result)
