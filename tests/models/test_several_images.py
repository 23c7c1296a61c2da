"""A prompt with any number of images: it equals Hugging Face's, and every position of it has a meaning."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, VLMInputs
from hooked_vlm.errors import ImageError, InputsError, PositionError, StackError, TextError
from hooked_vlm.models.layout import Role
from hooked_vlm.patching import Sites, sweep
from hooked_vlm.patching.metrics import logit_diff
from tests.models import drawn
from tests.models.checkpoints import blip_vqa as saved_blip
from tests.models.checkpoints import llava as saved_llava
from tests.models.checkpoints import picture
from tests.models.reference import scale
from tests.patching.test_sweep import by_hand

LEFT_AND_RIGHT = ("left", "right")


@st.composite
def batches(draw: st.DrawFn, most: int = 3) -> tuple[HookedVLM, VLMInputs, list[int]]:
    """A LLaVA, and prompts with drawn numbers of images between drawn words, padded."""
    hf = draw(drawn.llava_models()).double()
    model = HookedVLM.from_hf(hf)
    each = draw(st.lists(st.integers(0, most), min_size=1, max_size=3))
    seed, size = draw(st.integers(0, 99)), drawn.n_image_tokens(hf)
    rows = []
    for i, n_images in enumerate(each):
        parts = [drawn.words(1, draw(st.integers(1, 2)), seed + i)[0]]
        for k in range(n_images):
            after = drawn.words(1, draw(st.integers(k == n_images - 1, 2)), seed + k)[0]
            parts += [torch.full((size,), drawn.IMAGE), after]
        rows.append(torch.cat(parts))
    ids, mask = drawn.pad(rows, draw(st.sampled_from(LEFT_AND_RIGHT)))
    pixels = drawn.pixels(hf, sum(each), seed).double() if sum(each) else None
    return model, VLMInputs(pixels, ids, mask, layout=model.layout), each


def given_to_both(inputs: VLMInputs) -> dict[str, Tensor]:
    """A row without its padding, as Hugging Face's models take it."""
    found = {"input_ids": inputs.input_ids[inputs.is_real][None]}
    return found if inputs.pixel_values is None else found | {"pixel_values": inputs.pixel_values}


@settings(max_examples=25)
@given(drawn_batch=batches())
def test_any_number_of_images_equals_hugging_face_in_batches_and_alone(drawn_batch: Any) -> None:
    model, inputs, each = drawn_batch
    assert inputs.images_each == each
    with torch.no_grad():
        found, twice = model(inputs), model(inputs.repeat(2))
        for i, row in enumerate(inputs):
            assert row.images_each == [each[i]]
            expected = model.hf_model(**given_to_both(row)).logits[0]
            close = {"rtol": 1e-4, "atol": 1e-5 * scale(expected)}
            torch.testing.assert_close(model(given_to_both(row))[0], expected, **close)
            for logits in (model(row)[0], found[i], twice[2 * i], twice[2 * i + 1]):
                torch.testing.assert_close(logits[row.is_real[0]], expected, **close)


def drops_a_patch(model: HookedVLM) -> bool:
    """Whether the model drops the first of the tower's outputs though it is no class token (SigLIP, "default")."""
    return not model.vision_encoder.has_class_token and model._drops_first


@settings(max_examples=25)
@given(drawn_batch=batches())
def test_every_position_has_a_meaning(drawn_batch: Any) -> None:
    model, inputs, each = drawn_batch
    owners = [row for row, n_images in enumerate(each) for _ in range(n_images)]
    spans, roles = inputs.image_spans, inputs.roles
    assert len(spans) == len(owners)
    for row in range(len(inputs)):
        inside = torch.zeros_like(inputs.input_ids[row], dtype=torch.bool)
        for span, owner in zip(spans, owners, strict=True):
            if owner == row:
                assert not inside[span].any()
                inside[span] = True
        assert torch.equal(inside, inputs.is_image[row])
        kinds = {True: {"patch", "class token"}, False: {"text", "padding"}}
        assert all(role.kind in kinds[image] for role, image in zip(roles[row], inside.tolist(), strict=True))
        assert [role.kind != "padding" for role in roles[row]] == inputs.is_real[row].tolist()
    for image, owner in enumerate(owners):
        if drops_a_patch(model):
            with pytest.raises(PositionError, match="the model drops the first, so they are no grid"):
                inputs.grid(image)
            assert roles[owner][spans[image].start] == Role("patch", image, 0, 1)
            continue
        grid = inputs.grid(image)
        for r, c in product(*map(range, grid.shape)):
            at = int(grid[r, c])
            assert roles[owner][at] == Role("patch", image, r, c)
    if set(each) != {1}:
        with pytest.raises(PositionError, match="images; use image_spans"):
            _ = inputs.image_span
    with pytest.raises(PositionError, match=f"image {len(owners)} was asked for"):
        inputs.grid(len(owners))


@settings(max_examples=15)
@given(drawn_batch=batches(most=2), data=st.data())
def test_a_planted_patch_stands_where_the_grid_says(drawn_batch: Any, data: st.DataObject) -> None:
    model, inputs, each = drawn_batch
    if not sum(each) or drops_a_patch(model):
        return
    image = data.draw(st.integers(0, sum(each) - 1), label="image")
    grid, patch = inputs.grid(image), model.vision_encoder.patch_size
    row, column = (data.draw(st.integers(0, n - 1)) for n in grid.shape)
    pixels = inputs.pixel_values.clone()
    pixels[image, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 3
    owner = [row for row, n_images in enumerate(each) for _ in range(n_images)][image]
    stream: list[Tensor] = []
    # Without what the tower's attention moves about, a patch reaches its own position alone.
    alone = (lambda name: name.endswith("hook_attn_out") and name.startswith("vision"), lambda x, hook: x * 0)
    seen = ("blocks.0.hook_resid_pre", lambda x, hook: stream.append(x.clone()))
    with torch.no_grad(), model.hooks([alone, seen]):
        model(inputs), model(inputs.replace(pixel_values=pixels))
    moved = (stream[0] != stream[1]).any(-1).nonzero().tolist()
    assert moved == [[owner, int(grid[row, column])]]


@settings(max_examples=10)
@given(drawn_batch=batches(most=2))
def test_a_sweep_over_prompts_of_any_number_of_images_equals_one_run_a_site(drawn_batch: Any) -> None:
    model, clean, each = drawn_batch
    changed = torch.where(clean.input_ids > drawn.FIRST_WORD + 1, clean.input_ids - 1, clean.input_ids)
    corrupt = clean.replace(input_ids=changed)
    places = clean.last_each[:, None]
    sites = Sites.heads(model, "language_model", positions=places)
    measure = logit_diff(1, 0)
    with torch.no_grad():
        found = sweep(model, clean, corrupt, sites, measure, progress=False)
        expected = by_hand(model, clean, corrupt, sites, measure)
    torch.testing.assert_close(found.values.reshape(expected.shape).double(), expected, rtol=1e-4, atol=1e-5)
    if set(each) != {1}:
        inside = Sites.heads(model, "vision_encoder")
        with pytest.raises(InputsError, match="lie in images, and the prompts have"):
            sweep(model, clean, corrupt, inside, measure, progress=False)
        _, state = model.run_with_state(clean)
        if "vision_encoder" in state.passes:
            with pytest.raises(StackError, match="the rows of vision_encoder are images"):
                model.resume(state, "vision_encoder", {0: state.resid_pre("vision_encoder", 0)})


# --- from pictures and words -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava() -> HookedLLaVA:
    return HookedLLaVA.from_hf(*saved_llava())


def test_images_of_one_text_are_a_list_in_the_list(llava: HookedLLaVA) -> None:
    a, b = picture(1), picture(2)
    both = llava.to_inputs([[a, b]], "is it red ?")
    written = llava.to_inputs([[a, b]], "USER : <image> <image> is it red ? ASSISTANT :")
    assert both.images_each == written.images_each == [2] and len(both) == 1
    mixed = llava.to_inputs([[a, b], [], b], ["is it red ?", "is it blue ?", "is it red ?"])
    assert mixed.images_each == [2, 0, 1] and "2, 0, 1" in repr(mixed)
    with torch.no_grad():
        found = llava(mixed)
        for i, alone in enumerate((both, llava.to_inputs(None, "is it blue ?"), llava.to_inputs(b, "is it red ?"))):
            assert torch.allclose(found[i][mixed.is_real[i]], llava(alone)[0], atol=1e-4)
    assert torch.equal(both.pixel_values[1], llava.to_pixels(b)[0])


def test_a_text_alone_is_answered_as_hugging_face_answers_it(llava: HookedLLaVA) -> None:
    inputs = llava.to_inputs(None, "is it red ?")
    assert inputs.pixel_values is None and inputs.images_each == [0] and not inputs.is_image.any()
    with torch.no_grad():
        assert torch.allclose(llava(inputs), llava.hf_model(input_ids=inputs.input_ids).logits, atol=1e-5)
    expected = llava.hf_model.generate(input_ids=inputs.input_ids, max_new_tokens=4, do_sample=False)
    found = llava.generate(inputs, max_new_tokens=4, return_type="tokens")
    assert found[0].tolist() == expected[0, inputs.input_ids.shape[1] :].tolist()[: found.shape[1]]
    assert "no image" in repr(inputs)


def test_a_conversation_is_what_the_template_makes_of_it(llava: HookedLLaVA) -> None:
    a, b = picture(1), picture(2)
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it red ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it blue ?"}]},
    ]
    written = llava.processor.apply_chat_template(talk, add_generation_prompt=True)
    expected = llava.to_inputs([[a, b]], written)
    held = [dict(turn) for turn in talk]
    held[0] = {"role": "user", "content": [{"type": "image", "image": a}, {"type": "text", "text": "is it red ?"}]}
    held[2] = {"role": "user", "content": [{"type": "image", "image": b}, {"type": "text", "text": "is it blue ?"}]}
    for found in (llava.to_inputs([[a, b]], talk), llava.to_inputs([[a, b]], [talk]), llava.to_inputs(None, held)):
        assert torch.equal(found.input_ids, expected.input_ids)
        assert torch.equal(found.pixel_values, expected.pixel_values)
    plain = llava.to_inputs(a, [{"role": "user", "content": "is it red ?"}])
    assert torch.equal(plain.input_ids, llava.to_inputs(a, "is it red ?").input_ids)


@pytest.mark.parametrize(
    ("images", "texts", "error", "message"),
    [
        ([["a", "b"]], "<image> is it red ?", TextError, "has 1 '<image>' placeholders; expected 2"),
        (None, "<image> is it red ?", TextError, "has 1 '<image>' placeholders; expected 0"),
        ("a", [{"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "red"}]}], TextError,
         "has 2 places for images; expected one"),
        ("a", [{"role": "user"}], TextError, "content of message 0 of text 0 is None; expected a text, or a list"),
        ("a", [[{"content": "red"}]], TextError, "message 0 of text 0 is"),
        ("a", [[]], TextError, "text 0 is"),
        ("a", [[{"role": "user", "content": [{"type": "video"}]}]], TextError, "content of message 0 of text 0"),
        ([["a", None]], "is it red ?", ImageError, "image 1 of text 0"),
        ("a", [{"role": "user", "content": [{"type": "image", "image": "a"}, {"type": "text", "text": "red"}]}],
         InputsError, "conversation 0 holds 1 images itself"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_or_has_other_images_is_refused(
    llava: HookedLLaVA, images: Any, texts: Any, error: type[Exception], message: str
) -> None:
    def drawn_in(given: Any) -> Any:
        if isinstance(given, list):
            return [drawn_in(each) for each in given]
        if isinstance(given, dict):
            return {key: drawn_in(value) for key, value in given.items()}
        return picture() if given in ("a", "b") else given

    with pytest.raises(error, match=message):
        llava.to_inputs(drawn_in(images), drawn_in(texts) if not isinstance(texts, str) else texts)


def test_blip_reads_one_image_with_each_plain_text() -> None:
    blip = HookedBLIP.from_hf(*saved_blip())
    with pytest.raises(ImageError, match="text 0 has 2 images; this model reads one with"):
        blip.to_inputs([[picture(), picture()]], "is it red ?")
    with pytest.raises(TextError, match="text 0 is a conversation, and this model reads plain texts"):
        blip.to_inputs(picture(), [{"role": "user", "content": "is it red ?"}])
