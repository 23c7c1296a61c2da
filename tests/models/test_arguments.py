"""What runs a model is asked for things that there are not: the error names the argument and what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs, hooks
from hooked_vlm.errors import HookedVLMError, InputsError, NonFiniteError, RowError
from tests.models import checkpoints
from tests.models.unchecked import unchecked

Z = "text_encoder.blocks.0.attn.hook_z"


@pytest.fixture(scope="module")
def blip() -> HookedVLM:
    return HookedVLM.from_hf(*checkpoints.blip_vqa())


@pytest.fixture(scope="module")
def inputs(blip: HookedVLM) -> VLMInputs:
    return blip.to_inputs([checkpoints.picture(0), checkpoints.picture(1)], ["is it red ?", "two ?"])


def numbered() -> VLMInputs:
    return VLMInputs(torch.zeros(3, 3, 4, 4), torch.arange(15).reshape(3, 5))


def refused(call: Callable[[], Any], word: str) -> None:
    with unchecked(), pytest.raises(HookedVLMError, match=word):
        call()


NAN = float("nan")
OPTIONS = [
    *(({"max_new_tokens": n}, "max_new_tokens is") for n in (0, 1.5, "5", None, True, NAN)),
    *(({"do_sample": True, "temperature": t}, "temperature .* is") for t in (0, -1.0, NAN, "hot", True)),
    *(({"do_sample": True, "top_k": k}, "top_k is") for k in (0, 1.5, "all")),
    *(({"do_sample": True, "top_p": p}, "top_p is") for p in (0.0, 2, NAN, "0.9")),
    *(({"do_sample": True, "seed": seed}, "seed is") for seed in ("x", 0.5, 2**70)),
]


@pytest.mark.parametrize(("options", "word"), OPTIONS, ids=str)
def test_generate_names_an_option_out_of_its_range(
    blip: HookedVLM, inputs: VLMInputs, options: dict[str, Any], word: str
) -> None:
    refused(lambda: blip.generate(inputs, **options), word)


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("odd", [NAN, float("inf")])
def test_generating_from_logits_that_are_not_finite_raises_at_that_step(
    blip: HookedVLM, inputs: VLMInputs, step: int, odd: float
) -> None:
    seen = []

    def spoil(logits: Tensor, hook: Any) -> Tensor | None:
        seen.append(hook.first_position)
        return logits.index_fill(-1, torch.tensor([3]), odd) if len(seen) > step else None

    with blip.hooks(fwd_hooks=[("hook_logits", spoil)]), pytest.raises(NonFiniteError, match=r"rows \[0, 1\] of 2"):
        blip.generate(inputs, 6, stop_at_eos=False)
    assert len(seen) == step + 1


@pytest.mark.parametrize(
    ("at", "word"), [([99], "99"), (99, "99"), (1.5, "1.5"), ([None], "None"), (True, "True"), ("first", "'first'")]
)
def test_logits_are_asked_for_at_positions(blip: HookedVLM, inputs: VLMInputs, at: Any, word: str) -> None:
    refused(lambda: blip(inputs, logits_at=at), word)


def test_one_position_of_the_logits_keeps_its_axis() -> None:
    llava = HookedVLM.from_hf(*checkpoints.llava())
    given = llava.to_inputs(checkpoints.picture(0), "<image> is it red ?")
    whole = llava(given)
    for at in (1, [1], slice(1, 2), range(1, 2)):
        with unchecked():
            assert torch.allclose(llava(given, logits_at=at), whole[:, 1:2], atol=1e-5)


def test_a_run_is_resumed_with_what_it_left_and_nothing_else(blip: HookedVLM, inputs: VLMInputs) -> None:
    _, state = blip.run_with_state(inputs)
    stack, resid = "text_encoder", state.resid_pre("text_encoder", 1)
    assert blip.resume(state, stack, {1: resid}).shape[0] == 2
    for injected, word in (
        ({1: resid.double()}, "float64"), ({1: resid.long()}, "int64"), ({1: resid.detach().numpy()}, "ndarray"),
        ({1: None}, "None"), (resid, "injected is a Tensor"), ({0.5: resid}, "0.5"), ({"1": resid}, "'1'"),
    ):  # fmt: skip
        refused(lambda injected=injected: blip.resume(state, stack, injected), word)
    refused(lambda: blip.resume(state, stack, {1: resid}, logits_at="first"), "'first'")
    refused(lambda: blip.resume(state, stack, {1: resid}, first_position=0.5), "first_position is 0.5")
    for other in (None, resid):
        refused(lambda other=other: blip.resume(other, stack, {1: resid}), "state is")


def test_a_model_is_moved_to_what_is_here(blip: HookedVLM, inputs: VLMInputs) -> None:
    refused(lambda: blip.to("cuda:99"), "cuda:99")
    refused(lambda: blip.to(torch.int32), "int32")
    refused(lambda: setattr(blip.cfg, "use_attn_result", "yes"), "use_attn_result is 'yes'")
    assert not blip.cfg.use_attn_result
    for where in ((), ("cpu",), (torch.float32,), ("cpu", torch.float32, True), (inputs,)):
        assert blip.to(*where) is blip
    assert blip.to(dtype=torch.float32, device="cpu", non_blocking=True).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"names_filter": 3}, "3, an int"),
        ({"pos_slice": "last"}, "'last'"),
        ({"pos_slice": 1.5}, "1.5"),
        ({"pos_slice": 99}, "pos_slice is .*99.*positions 0 to"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_a_cache_is_asked_for_what_there_is(
    blip: HookedVLM, inputs: VLMInputs, options: dict[str, Any], word: str
) -> None:
    refused(lambda: blip.run_with_cache(inputs, **options), word)


@pytest.mark.parametrize("given", [[Z], [(Z, hooks.zero_ablate(), 1)], {Z: hooks.zero_ablate()}, 3, Z])
def test_hooks_are_a_list_of_pairs(blip: HookedVLM, inputs: VLMInputs, given: Any) -> None:
    refused(lambda: blip.run_with_hooks(inputs, fwd_hooks=given), "pairs")
    refused(lambda: blip.hooks(fwd_hooks=given).__enter__(), "pairs")
    view = blip.focus("text_encoder", images=checkpoints.picture(0))
    refused(lambda: view.run_with_hooks(inputs.input_ids, fwd_hooks=given), "pairs")


@pytest.mark.parametrize("fn", [3, None, torch.zeros(1)])
def test_a_hook_can_be_called(blip: HookedVLM, inputs: VLMInputs, fn: Any) -> None:
    refused(lambda: blip.run_with_hooks(inputs, fwd_hooks=[(Z, fn)]), Z)
    refused(lambda: blip.add_hook(Z, fn), Z)
    refused(lambda: blip.hook_dict[Z].add_hook(fn), Z)
    assert not blip.list_hooks()


def test_a_hook_gives_back_no_sparse_tensor(blip: HookedVLM, inputs: VLMInputs) -> None:
    for name in (Z, "hook_logits"):
        hook = (name, lambda x, hook: x.to_sparse())
        refused(lambda hook=hook: blip.run_with_hooks(inputs, fwd_hooks=[hook]), f"{name}.*sparse")


def test_pixels_have_the_channels_that_the_model_reads(blip: HookedVLM, inputs: VLMInputs) -> None:
    refused(lambda: blip(inputs.replace(pixel_values=inputs.pixel_values[:, :1])), "1 channel")


def test_ids_are_dense_integers(inputs: VLMInputs) -> None:
    refused(lambda: inputs.replace(input_ids=inputs.input_ids.to(torch.complex64)), "complex64")
    refused(lambda: inputs.replace(input_ids=inputs.input_ids.to_sparse()), "input_ids is sparse")


def test_the_id_of_no_image_is_refused(blip: HookedVLM) -> None:
    view = blip.focus("vision_encoder", texts="is it red ?")
    seen = view.to_tokens(checkpoints.picture(0))
    assert view(seen).shape[0] == 1
    refused(lambda: view(seen + 1), "the id 1 stands for no image of this view, which has seen 1")


def test_padding_is_what_leads_or_trails_and_no_token_inside_a_prompt(blip: HookedVLM) -> None:
    view, pad = blip.focus("text_encoder", images=checkpoints.picture(0)), blip.tokenizer.pad_token_id
    rows = torch.tensor([[5, pad, 6, 7], [pad, 5, pad, 6], [5, 6, pad, pad]])
    assert view.to_inputs(rows).attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (slice(3, None), "none was asked for"),
        ([0, 9], r"\[9\] was asked for"),
        (0.5, "0.5 was given among rows, and is a float"),
        ("a", "'a' was given among rows"),
        (None, "None was given as rows"),
        (torch.tensor([True, False]), "a mask of 2 was given for rows of this batch, which are 3"),
        (torch.tensor([[0, 1]]), "with one axis"),
    ],
)
def test_what_means_no_rows_is_a_row_error(rows: Any, word: str) -> None:
    with unchecked(), pytest.raises(RowError, match=word):
        numbered()[rows]


@pytest.mark.parametrize("n", [0, -1, 1.5, "x", True])
def test_rows_are_repeated_a_whole_number_of_times(n: Any) -> None:
    with unchecked(), pytest.raises(InputsError, match=f"is {n!r}.*expected a whole number of at least 1"):
        numbered().repeat(n)


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), -1e9])
def test_a_mask_holds_zeros_and_ones_alone(value: float) -> None:
    given = numbered()
    mask = torch.ones(given.input_ids.shape)
    assert given.replace(attention_mask=mask).real is None
    mask[1, 0] = value
    with pytest.raises(InputsError, match=r"attention_mask holds .*expected 1 for tokens and 0 for padding"):
        given.replace(attention_mask=mask)


def test_a_typo_in_a_mapping_is_named_and_what_processors_add_is_passed_over() -> None:
    given = numbered()
    parts = {"input_ids": given.input_ids, "pixel_values": given.pixel_values}
    assert len(VLMInputs.of({**parts, "token_type_ids": given.input_ids, "labels": None})) == 3
    with pytest.raises(InputsError, match=r"'attentionmask'.*closest: attention_mask"):
        VLMInputs.of({**parts, "attentionmask": given.input_ids})
