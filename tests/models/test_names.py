"""What a user asks a model for by name: TransformerLens' names, and errors that say what there is."""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hooked_vlm import HookedBLIP, HookedVLM
from hooked_vlm.errors import AttributeNameError, HookedVLMError, InputsError, StackError, StackNameError
from hooked_vlm.patching import Sites
from tests.models import checkpoints
from tests.models.checkpoints import blip_retrieval, blip_vqa, llava
from tests.models.unchecked import unchecked

BUILD: dict[str, Callable[[], Any]] = {"vqa": blip_vqa, "llava": llava}


@pytest.fixture(params=BUILD, scope="module")
def model(request: pytest.FixtureRequest) -> HookedVLM:
    """A small model of each family."""
    return HookedVLM.from_hf(*BUILD[request.param]())


# --- stacks -------------------------------------------------------------------------------------------------


def test_a_stack_that_is_not_there_is_answered_with_those_that_are(model: HookedVLM) -> None:
    inputs = model.to_inputs(checkpoints.picture(), "is it red?")
    _, state = model.run_with_state(inputs)
    asked: list[Callable[[], Any]] = [
        lambda: model.stacks["vision"],
        lambda: model.cfg.stacks["vision"],
        lambda: model.focus("vision"),
        lambda: model.resume(state, "vision", {0: torch.zeros(1)}),
        lambda: state.resid_pre("vision", 0),
        lambda: Sites.heads(model, "vision", "attn"),
    ]
    for ask in asked:
        with pytest.raises(StackError, match=f"stack 'vision'.*{', '.join(model.stacks)}"):
            ask()


def test_stacks_are_a_dict_wherever_one_is_wanted(model: HookedVLM) -> None:
    stacks = model.stacks
    assert isinstance(stacks, dict) and "vision" not in stacks and stacks.get("vision") is None
    assert dict(**stacks) == stacks and list(stacks | {}) == list(stacks) and stacks.copy() == stacks
    assert ChainMap(stacks, {"vision": 1})["vision"] == 1  # which asks for a KeyError
    for again in (copy.copy(model.cfg.stacks), copy.deepcopy(model.cfg.stacks)):
        with pytest.raises(StackNameError):
            again["vision"]
    with pytest.raises(KeyError):
        stacks["vision"]
    assert copy.deepcopy(model).stacks.keys() == stacks.keys()


# --- attributes ---------------------------------------------------------------------------------------------


def test_a_misspelled_attribute_is_answered_with_the_closest(model: HookedVLM) -> None:
    for ask, closest in (
        (lambda: model.to_input, "to_inputs"),
        (lambda: model.run_with_cashe, "run_with_cache"),
        (lambda: model.cfg.use_atn_result, "use_attn_result"),
        (lambda: model.cfg.n_layer, "n_layers"),
    ):
        with pytest.raises(AttributeNameError, match=closest):
            ask()
    with pytest.raises(AttributeNameError, match="the flags that can be are use_attn_result"):
        model.cfg.use_atn_result = True
    assert not hasattr(model, "nonsense") and not hasattr(model, "__len__") and not hasattr(model.cfg, "nonsense")


def test_weights_of_several_stacks_are_read_from_one() -> None:
    blip = HookedVLM.from_hf(*blip_vqa())
    with pytest.raises(AttributeNameError, match=r"read model\.stacks\['vision_encoder'\]\.W_Q"):
        blip.W_Q  # noqa: B018
    assert not hasattr(blip, "W_Q")
    one = HookedVLM.from_hf(*llava())
    assert torch.equal(one.W_Q, one.stacks["language_model"].W_Q) and one.stacked("W_in", "mlp").shape[0] == 2


def test_tab_completion_offers_what_there_is(model: HookedVLM) -> None:
    offered = dir(model)
    assert {"to_inputs", "run_with_cache", "stacks", "tokenizer", "b_U", "vision_encoder"} <= set(offered)
    assert ("W_Q" in offered) == (model.main_stack is not None)
    assert "use_attn_result" in dir(model.cfg) and ("n_layers" in dir(model.cfg)) == (model.main_stack is not None)
    for name in dir(model.cfg):
        getattr(model.cfg, name)


# --- TransformerLens' names ---------------------------------------------------------------------------------


def test_a_token_goes_to_its_string_and_back(model: HookedVLM) -> None:
    assert model.to_single_str_token(model.to_single_token("red")) == "red"
    for token in range(len(model.tokenizer)):
        assert model.to_single_str_token(token) == model.to_str_tokens(torch.tensor([token]))[0]
    assert model.tokenizer is model.processor.tokenizer
    view = model.focus(model.prompt_stack, images=checkpoints.picture())
    assert view.tokenizer is model.tokenizer and view.to_single_str_token(7) == model.to_single_str_token(7)
    for wrong in (len(model.tokenizer), -1, True, "red", [1, 2], 1.5):
        with unchecked(), pytest.raises(InputsError):
            model.to_single_str_token(wrong)  # type: ignore[arg-type]


def test_a_model_without_a_processor_says_that_it_has_no_tokenizer() -> None:
    model = HookedVLM.from_hf(blip_vqa()[0])
    for ask in (lambda: model.tokenizer, lambda: model.to_single_str_token(7)):
        with pytest.raises(InputsError, match="this model has no tokenizer"):
            ask()


def test_the_logits_are_the_stream_through_w_u_and_b_u(model: HookedVLM) -> None:
    inputs = model.to_inputs(checkpoints.picture(), "is it red?")
    logits, cache = model.run_with_cache(inputs)
    if isinstance(model, HookedBLIP):
        head = model.text_decoder.head
        end = head.ln(cache["text_decoder.head.hook_post"])
        assert model.b_U.abs().max() > 0
    else:
        end = cache["ln_final.hook_normalized"] * model.ln_final.w
        assert not model.b_U.any()
    assert model.b_U.shape == (model.W_U.shape[1],)
    assert torch.allclose(end @ model.W_U + model.b_U, logits, atol=1e-4)


def test_a_model_that_makes_no_tokens_has_no_unembedding() -> None:
    model = HookedVLM.from_hf(*blip_retrieval())
    for ask in (lambda: model.W_U, lambda: model.b_U):
        with pytest.raises(StackError, match="makes no tokens"):
            ask()


# --- moving inputs ------------------------------------------------------------------------------------------


def test_inputs_move_as_tensors_do(model: HookedVLM) -> None:
    inputs = model.to_inputs(checkpoints.picture(), "is it red?")
    half, double = inputs.to(torch.float16), inputs.to("cpu", torch.float64)
    assert (half.dtype, double.dtype, inputs.dtype) == (torch.float16, torch.float64, torch.float32)
    assert half.input_ids.dtype == torch.int64 and half.layout == inputs.layout
    assert half.to(model).dtype == torch.float32 and inputs.to(half).dtype == torch.float16
    assert inputs.to(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert inputs.to(torch.device("meta")).device.type == "meta" and inputs.to().dtype == torch.float32
    assert inputs.to(device="cpu", dtype="float16", non_blocking=True).dtype == torch.float16
    assert inputs.to("cpu", dtype=torch.float16).dtype == inputs.to(None, torch.float16).dtype == torch.float16


@pytest.mark.parametrize(
    "where, options, says",
    [
        (("gpu",), {}, "device is 'gpu', which is not here"),
        (("cuda:99",), {}, "device is 'cuda:99', which is not here"),
        ((), {"device": "nonsense"}, "device is 'nonsense'"),
        ((torch.int64,), {}, "dtype is torch.int64; expected a floating-point one"),
        ((), {"dtype": "float17"}, "dtype is 'float17'"),
        ((3.5,), {}, "given a float, 3.5; expected a device, a dtype"),
        ((True,), {}, "given a bool"),
        (([1],), {}, "given a list"),
        (("cpu", "cpu"), {}, "two devices"),
        ((torch.float16,), {"dtype": torch.float32}, "two dtypes"),
    ],
)
def test_inputs_refuse_to_go_where_nothing_is(where: Any, options: Any, says: str) -> None:
    inputs = HookedVLM.from_hf(*blip_vqa()).to_inputs(checkpoints.picture(), "is it red?")
    with unchecked(), pytest.raises(HookedVLMError, match=says):
        inputs.to(*where, **options)
