"""What `generate` takes: each option does what it says, and one out of its range is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.errors import InputsError
from tests.models.checkpoints import blip_captioner, blip_retrieval, blip_vqa, llava, picture
from tests.models.unchecked import unchecked

MAKERS = {"vqa": blip_vqa, "captioner": blip_captioner, "llava": llava}
TEXTS = ["is it red ?", "what color is the circle ?"]


@pytest.fixture(scope="module", params=MAKERS)
def model(request: pytest.FixtureRequest) -> HookedVLM:
    return HookedVLM.from_hf(*MAKERS[request.param]())


@pytest.fixture(scope="module")
def inputs(model: HookedVLM) -> VLMInputs:
    return model.to_inputs([picture(0), picture(1)], TEXTS)


def tokens(model: HookedVLM, inputs: VLMInputs, n: int = 6, **options: Any) -> list[list[int]]:
    return model.generate(inputs, n, return_type="tokens", stop_at_eos=False, **options).tolist()


# --- sampling ---------------------------------------------------------------------------------------


def test_a_seed_repeats_a_draw_and_another_seed_does_not(model: HookedVLM, inputs: VLMInputs) -> None:
    drawn = [tokens(model, inputs, do_sample=True, seed=seed, temperature=3.0) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_draw_with_a_seed_leaves_the_global_generator_alone(model: HookedVLM, inputs: VLMInputs) -> None:
    before = torch.get_rng_state()
    tokens(model, inputs, do_sample=True, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_decides(model: HookedVLM, inputs: VLMInputs) -> None:
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(tokens(model, inputs, do_sample=True, temperature=3.0))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_draws_from_the_likeliest_alone_are_greedy(model: HookedVLM, inputs: VLMInputs, options: Any) -> None:
    assert tokens(model, inputs, do_sample=True, seed=0, **options) == tokens(model, inputs)


def drawn_often(model: HookedVLM, inputs: VLMInputs, **options: Any) -> set[int]:
    """The first tokens of many draws for the first row."""
    return {row[0] for row in tokens(model, inputs[0].repeat(64), 1, do_sample=True, seed=0, **options)}


def test_top_k_draws_among_the_k_likeliest(model: HookedVLM, inputs: VLMInputs) -> None:
    likeliest = model(inputs[0], logits_at="last")[0, -1].topk(3).indices.tolist()
    assert drawn_often(model, inputs, top_k=3, temperature=100.0) == set(likeliest)


def test_top_p_draws_among_the_fewest_that_hold_that_probability(model: HookedVLM, inputs: VLMInputs) -> None:
    by_size, ids = model(inputs[0], logits_at="last")[0, -1].softmax(-1).sort(descending=True)
    n_kept = int((by_size.cumsum(0) < 0.3).sum()) + 1
    assert drawn_often(model, inputs, top_p=0.3) <= set(ids[:n_kept].tolist())
    assert not drawn_often(model, inputs) <= set(ids[:n_kept].tolist())


def test_options_of_sampling_change_nothing_while_it_is_off(model: HookedVLM, inputs: VLMInputs) -> None:
    assert tokens(model, inputs, temperature=9.0, top_k=2, top_p=0.5, seed=3) == tokens(model, inputs)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_p": -0.1}],
)
def test_an_option_out_of_its_range_is_named_with_the_range(
    model: HookedVLM, inputs: VLMInputs, options: dict[str, float]
) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InputsError, match=rf"{name}.* is {value}, an? .*expected a .*(above 0|of at least 1)"):
        model.generate(inputs, do_sample=True, **options)


# --- length and end ---------------------------------------------------------------------------------


def test_as_many_tokens_come_as_were_asked_for(model: HookedVLM, inputs: VLMInputs) -> None:
    for n in (1, 3):
        assert [len(row) for row in tokens(model, inputs, n)] == [n, n]
    assert [row[:3] for row in tokens(model, inputs, 6)] == tokens(model, inputs, 3)


@pytest.mark.parametrize("n", [0, -1])
def test_no_tokens_at_all_cannot_be_asked_for(model: HookedVLM, inputs: VLMInputs, n: int) -> None:
    with pytest.raises(InputsError, match=f"max_new_tokens is {n}, an int; expected a whole number of at least 1"):
        model.generate(inputs, n)


def test_the_context_is_filled_to_its_end_and_not_beyond(model: HookedVLM, inputs: VLMInputs) -> None:
    n_context = model.stacks[model.answer_stack].cfg.n_ctx
    n_before = 1 if model.prompt_stack != model.answer_stack else inputs.input_ids.shape[1]
    most = n_context - n_before + 1  # the last token is read off and never read
    assert len(tokens(model, inputs, most)[0]) == most
    with pytest.raises(InputsError, match=rf"beyond the context of {n_context}: ask for at most {most}"):
        model.generate(inputs, most + 1)


def ending_at_first(model: HookedVLM, inputs: VLMInputs, end: int | None) -> VLMInputs:
    """The inputs, and a hook in the model that makes `end` the likeliest first token of row 0."""

    def force(logits: torch.Tensor, hook: Any) -> torch.Tensor:
        if hook.ctx.setdefault("step", 0) == 0:
            logits[0, -1, end] = 1e4
        hook.ctx["step"] += 1
        return logits

    model.hook_dict["hook_logits"].clear_context()
    model.add_hook("hook_logits", force)
    return inputs


def test_a_row_that_ended_is_padded_and_the_others_go_on(model: HookedVLM, inputs: VLMInputs) -> None:
    (end, *_), pad = model._stop_tokens()
    unended = tokens(model, inputs)
    assert end not in unended[1]
    try:
        ending_at_first(model, inputs, end)
        stopped = model.generate(inputs, 6, return_type="tokens").tolist()
        ending_at_first(model, inputs, end)
        went_on = model.generate(inputs, 6, return_type="tokens", stop_at_eos=False).tolist()
        ending_at_first(model, inputs, end)
        answers = model.generate(inputs, 6)
    finally:
        model.reset_hooks(clear_contexts=True)
    assert stopped == [[end, pad, pad, pad, pad, pad], unended[1]]
    assert went_on[0][0] == end and went_on[0][1:] != [pad] * 5 and went_on[1] == unended[1]
    assert answers[0] == "" and answers[1]


def test_generation_stops_when_every_row_has_ended(model: HookedVLM, inputs: VLMInputs) -> None:
    (end, *_), _ = model._stop_tokens()
    try:
        ending_at_first(model, inputs, end)
        assert model.generate(inputs[0], 6, return_type="tokens").tolist() == [[end]]
    finally:
        model.reset_hooks(clear_contexts=True)


# --- what comes back --------------------------------------------------------------------------------


def test_strings_are_the_tokens_decoded(model: HookedVLM, inputs: VLMInputs) -> None:
    ids = model.generate(inputs, 5, return_type="tokens")
    decoded = model.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert model.generate(inputs, 5) == [text.strip() for text in decoded]


def test_another_return_type_is_refused(model: HookedVLM, inputs: VLMInputs) -> None:
    with pytest.raises(InputsError, match="return_type is 'text'; expected 'str' or 'tokens'"):
        model.generate(inputs, return_type="text")


def test_tokens_need_no_processor_and_strings_do(model: HookedVLM, inputs: VLMInputs) -> None:
    bare = HookedVLM.from_hf(model.hf_model)
    assert tokens(bare, inputs) == tokens(model, inputs)
    with pytest.raises(InputsError, match=r"no tokenizer: pass one, .*from_hf\(hf_model, processor\)"):
        bare.generate(inputs)


def test_an_encoding_is_answered_as_inputs_are(model: HookedVLM, inputs: VLMInputs) -> None:
    encoding = {name: getattr(inputs, name) for name in ("pixel_values", "input_ids", "attention_mask")}
    assert model.generate(encoding, 4) == model.generate(inputs, 4)


def test_what_is_no_inputs_is_refused(model: HookedVLM) -> None:
    for given in ([1], "is it red?"):
        with unchecked(), pytest.raises(InputsError, match=r"expected VLMInputs: inputs = model\.to_inputs"):
            model.generate(given)


def test_no_gradient_is_kept(model: HookedVLM, inputs: VLMInputs) -> None:
    seen = []
    with model.hooks([("hook_logits", lambda logits, hook: seen.append(logits.requires_grad))]):
        model.generate(inputs, 2, stop_at_eos=False)
    assert seen == [False, False]


def test_a_retrieval_model_says_that_it_makes_no_text() -> None:
    model = HookedVLM.from_hf(*blip_retrieval())
    with pytest.raises(InputsError, match="makes no text; load a BlipForQuestionAnswering or a captioning checkpoint"):
        model.generate(model.to_inputs(picture(), "is it red?"))
