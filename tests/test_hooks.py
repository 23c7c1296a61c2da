"""Hook functions: pure, composable, exact about where they act, in a run and at every step of generation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import hooks
from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.errors import PositionError
from tests.models.reference import scale
from tests.models.test_hooks_live import VARIANTS, variant

Z, SCORES, RESID = "batch pos head d_head", "batch head query_pos key_pos", "batch pos d_model"


def point(axes: str) -> HookPoint:
    """A hook point of these axes."""
    made = HookPoint(axes)
    made.name = "blocks.0.here"
    return made


def every_function(like: Tensor) -> dict[str, Callable[..., hooks.HookFunction]]:
    """Every hook function that acts on any activation, by name, with a source like `like`."""
    other = like.flip(0) + 1
    return {
        "patch": lambda **at: hooks.patch(other, **at),
        "zero_ablate": lambda **at: hooks.zero_ablate(**at),
        "mean_ablate": lambda **at: hooks.mean_ablate(other, **at),
        "resample_ablate": lambda **at: hooks.resample_ablate(other, torch.Generator().manual_seed(3), **at),
        "add_noise": lambda **at: hooks.add_noise(2.0, torch.Generator().manual_seed(3), **at),
        "steer": lambda **at: hooks.steer(torch.arange(1.0, like.shape[-1] + 1), 3.0, **at),
    }


indices = st.one_of(
    st.none(),
    st.integers(-4, 3),
    st.builds(slice, st.integers(-4, 4), st.integers(-4, 4)),
    st.builds(range, st.integers(0, 2), st.integers(2, 4)),
    st.lists(st.integers(-4, 3), max_size=3),
)


def chosen(wanted: Any, size: int) -> list[int]:
    """The places that an index means, by Python's own rules."""
    places = list(range(size))
    if wanted is None:
        return places
    if isinstance(wanted, int):
        return [places[wanted]]
    return places[wanted] if isinstance(wanted, slice) else [places[i] for i in wanted]


@settings(max_examples=60)
@given(positions=indices, heads=indices, axes=st.sampled_from([Z, SCORES]), data=st.data())
def test_a_function_acts_where_it_is_told_and_nowhere_else(
    positions: Any, heads: Any, axes: str, data: st.DataObject
) -> None:
    given_activation = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    before = given_activation.clone()
    makers = every_function(given_activation)
    name = data.draw(st.sampled_from(sorted(makers)))
    if not (chosen(positions, 4) and chosen(heads, 4)):  # a hook that would do nothing
        with pytest.raises(PositionError, match="none was asked for"):
            makers[name](positions=positions, heads=heads)(given_activation, hook=point(axes))
        return
    out = makers[name](positions=positions, heads=heads)(given_activation, hook=point(axes))
    assert torch.equal(given_activation, before), "what was given is never edited"
    expected = torch.zeros(4, 4, dtype=torch.bool)
    for p in chosen(positions, 4):
        for h in chosen(heads, 4):
            expected[(h, p) if axes == SCORES else (p, h)] = True
    changed = (out != before).any(-1).all(0)
    assert torch.equal(changed, expected)
    assert not (out != before).any(-1).any(0)[~expected].any()


def test_every_row_can_have_positions_of_its_own() -> None:
    z = torch.ones(3, 4, 2, 5)
    rows = torch.tensor([[0, 1], [2, 3], [-1, 0]])
    out = hooks.zero_ablate(positions=rows, heads=1)(z, hook=point(Z))
    for i, row in enumerate(rows.tolist()):
        assert {p for p in range(4) if not out[i, p, 1].any()} == {p % 4 for p in row}
    assert out[:, :, 0].all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hooks.zero_ablate(positions=4), "pos of blocks.0.here are 0 to 3; [4] was asked for"),
        (lambda: hooks.zero_ablate(positions=[0, -5]), "are 0 to 3; [-5] was"),
        (lambda: hooks.zero_ablate(heads=2), "head of blocks.0.here are 0 to 1"),
        (lambda: hooks.patch(torch.zeros(3, 5, 2, 5)), "clean and corrupt must have the same length"),
        (lambda: hooks.patch({}), "no blocks.0.here: cache it"),
        (lambda: hooks.knock_out(0, 0), "knock_out acts on scores"),
        (
            lambda: hooks.zero_ablate(positions=torch.zeros(2, 1, dtype=torch.long)),
            "given for 2 rows, and the run has 3",
        ),
        (lambda: hooks.patch(torch.zeros(2, 4, 2, 5)), "the source at blocks.0.here is for 2 rows, and the run has 3"),
        (lambda: hooks.patch(torch.zeros(6, 4, 2, 5)), "the source at blocks.0.here is for 6 rows, and the run has 3"),
        (lambda: hooks.swap_image(torch.zeros(2, 4, 2, 5)), "is for 2 rows, and the run has 3"),
    ],
    ids=range(10),
)
def test_what_cannot_be_done_raises(make: Callable[[], hooks.HookFunction], message: str) -> None:
    with pytest.raises(PositionError, match=re.escape(message)):
        make()(torch.ones(3, 4, 2, 5), hook=point(Z))


def test_heads_of_a_residual_stream_do_not_exist() -> None:
    with pytest.raises(PositionError, match="has no axis among head"):
        hooks.zero_ablate(heads=0)(torch.ones(1, 4, 8), hook=point(RESID))


@pytest.mark.parametrize("name", VARIANTS)
def test_functions_compose_in_the_order_in_which_they_are_listed(name: str) -> None:
    model, inputs = variant(name)
    hook = f"{model.stacks[model.prompt_stack].prefix}blocks.1.attn.hook_z"
    generator = torch.Generator().manual_seed(0)
    z = model.run_with_cache(inputs, names_filter=hook)[1][hook]
    source = torch.randn(z.shape, generator=generator)
    both = [(hook, hooks.patch(source, positions=1)), (hook, hooks.steer(torch.ones(z.shape[-1]), heads=0))]
    with model.hooks(both):
        _, cache = model.run_with_cache(inputs, names_filter=hook)
    expected = z.clone()
    expected[:, 1] = source[:, 1]
    expected[:, :, 0] += 1
    assert torch.allclose(cache[hook], expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_knocking_out_leaves_no_attention_between_the_two_spans(name: str) -> None:
    model, inputs = variant(name)
    inputs = inputs[0]
    for stack in model.stacks.values():
        kinds = ["attn", *(["cross_attn"] if hasattr(stack.blocks[0], "cross_attn") else [])]
        for kind in kinds:
            at = f"{stack.prefix}blocks.0.{kind}."
            keys = slice(1, 3)
            with model.hooks([(at + "hook_attn_scores", hooks.knock_out([0, -1], keys, heads=1))]):
                _, cache = model.run_with_cache(inputs, names_filter=at + "hook_pattern")
            _, plain = model.run_with_cache(inputs, names_filter=at + "hook_pattern")
            pattern, before = cache[at + "hook_pattern"], plain[at + "hook_pattern"]
            assert (pattern[:, 1, [0, -1], keys] == 0).all()
            assert torch.equal(pattern[:, 0], before[:, 0])
            assert torch.allclose(pattern[:, 1, [0, -1]].sum(-1), torch.ones(1))


@pytest.mark.parametrize("name", VARIANTS)
def test_swapping_the_image_equals_running_the_other_image(name: str) -> None:
    model, inputs = variant(name)
    other = inputs.replace(pixel_values=inputs.pixel_values.flip(0) * 0.5)
    found = model.run_with_hooks(inputs, fwd_hooks=[("hook_pixel_values", hooks.swap_image(other.pixel_values))])
    assert torch.equal(found, model(other))


@pytest.mark.parametrize("name", ["blip-vqa", "blip-captioning", "llava-llama-clip"])
def test_swapping_tokens_equals_running_the_other_words_also_in_generation(name: str) -> None:
    model, inputs = variant(name)
    inputs = inputs[0].replace(decoder_input_ids=None)
    other = inputs.replace(input_ids=torch.where(inputs.input_ids > 10, inputs.input_ids - 3, inputs.input_ids))
    table = model.W_E if name.startswith("llava") else model.stacks[model.prompt_stack].W_E
    hook = "hook_embed" if name.startswith("llava") else f"{model.prompt_stack}.hook_embed"
    swap = [(hook, hooks.swap_tokens(table[other.input_ids]))]
    assert torch.allclose(model.run_with_hooks(inputs, fwd_hooks=swap), model(other), atol=1e-5)
    expected = model.generate(other, 4, return_type="tokens", stop_at_eos=False)
    with model.hooks(swap):
        assert torch.equal(model.generate(inputs, 4, return_type="tokens", stop_at_eos=False), expected)


@pytest.mark.parametrize("name", ["blip-captioning", "llava-llama-clip"])
def test_positions_are_absolute_while_the_model_answers(name: str) -> None:
    model, inputs = variant(name)
    inputs = inputs[0]
    stack = model.stacks[model.answer_stack]
    hook, n = f"{stack.prefix}blocks.0.attn.hook_z", inputs.input_ids.shape[1]
    seen: list[Tensor] = []
    fns = [(hook, hooks.zero_ablate(positions=[2, n + 1], heads=0)), (hook, lambda z, hook: seen.append(z))]
    later = [(hook, hooks.zero_ablate(positions=[2, n - 1], heads=0)), (hook, lambda z, hook: seen.append(z))]
    with pytest.raises(PositionError, match=f"are 0 to {n - 1}"), model.hooks(fns):
        model.generate(inputs, 3, return_type="tokens", stop_at_eos=False)
    seen.clear()
    with model.hooks(later):
        model.generate(inputs, 3, return_type="tokens", stop_at_eos=False)
    prompt, first, second = seen
    assert not prompt[:, [2, n - 1], 0].any() and prompt[:, 1, 0].all()
    assert first.shape[1] == second.shape[1] == 1 and first.any() and second.any()


def test_patching_from_a_cache_equals_patching_by_hand() -> None:
    model, clean = variant("blip-vqa")
    corrupt = clean.replace(pixel_values=clean.pixel_values.flip(0))
    hook = "text_encoder.blocks.0.cross_attn.hook_z"
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)

        def by_hand(z: Tensor, hook: Any) -> Tensor:
            z[:, 2, 1] = cache[hook.name][:, 2, 1]
            return z

        expected = model.run_with_hooks(corrupt, fwd_hooks=[(hook, by_hand)])
        found = model.run_with_hooks(corrupt, fwd_hooks=[(hook, hooks.patch(cache, positions=2, heads=1))])
    assert torch.equal(found, expected)
    assert (found - model(corrupt)).abs().max() > 1e-4 * scale(found)


def test_drawn_functions_repeat_with_their_generator() -> None:
    z = torch.randn(2, 4, 2, 5)
    for make in (
        lambda seed: hooks.add_noise(1.0, torch.Generator().manual_seed(seed)),
        lambda seed: hooks.resample_ablate(
            torch.randn(50, 4, 2, 5, generator=torch.Generator().manual_seed(9)), torch.Generator().manual_seed(seed)
        ),
    ):
        a, b, c = (make(seed)(z, hook=point(Z)) for seed in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
    noise = hooks.add_noise(3.0, torch.Generator().manual_seed(0))(torch.zeros(1, 2000, 4, 4), hook=point(Z))
    assert abs(float(noise.std()) - 3.0) < 0.1
    mean = hooks.mean_ablate(torch.arange(12.0).reshape(3, 4, 1, 1).expand(3, 4, 2, 5))(z, hook=point(Z))
    assert torch.equal(mean[:, :, 0, 0], torch.tensor([4.0, 5, 6, 7]).expand(2, 4))
