"""Ids that a model has and its tokenizer does not, as padded vocabularies have, are spelled wherever tokens are."""

from __future__ import annotations

import json
import re
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hooked_vlm import HookedVLM
from hooked_vlm.errors import InputsError
from tests.models.checkpoints import _llava_tokenizer, byte_tokenizer, llava, picture, word_tokenizer


@given(st.integers(0, 9), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=12, deadline=None)
def test_every_id_of_the_model_is_spelled(padded: int, gap: bool, random: Random) -> None:
    tokenizer = byte_tokenizer()
    n_known = len(tokenizer)
    hf, processor = llava(tokenizer=tokenizer, text_changes={"vocab_size": n_known + padded})
    model = HookedVLM.from_hf(hf, processor)
    ids = random.sample(range(n_known + padded), 6) + list(range(n_known, n_known + padded))
    strings = model.to_str_tokens(torch.tensor(ids))
    named = tokenizer.convert_ids_to_tokens(ids)
    assert strings == [f"<unnamed {id}>" if name is None else name for id, name in zip(ids, named, strict=True)]
    assert [model.to_single_str_token(id) for id in ids] == strings
    assert model.to_string(torch.tensor([ids, ids])) == [model.to_string(ids)] * 2
    for id in range(n_known, n_known + padded):
        assert f"<unnamed {id}>" in model.to_string(ids)
    with pytest.raises(InputsError, match=f"the vocabulary is 0 to {n_known + padded - 1}"):
        model.to_string([n_known + padded])


def test_prompts_and_answers_spell_what_no_tokenizer_names() -> None:
    tokenizer = word_tokenizer()
    hf, processor = llava(tokenizer=tokenizer, text_changes={"vocab_size": len(tokenizer) + 3})
    with torch.no_grad():
        hf.lm_head.weight[: len(tokenizer)] = 0.0  # so that the likeliest are those behind the tokenizer's
        hf.lm_head.weight[len(tokenizer)] = -hf.lm_head.weight[len(tokenizer) + 1]
    model = HookedVLM.from_hf(hf, processor)
    inputs = model.to_inputs(picture(), "is it red ?")
    (answer,) = model.generate(inputs, max_new_tokens=2)
    assert re.fullmatch(r"(<unnamed \d+>){2}", answer)
    ids = model.generate(inputs, max_new_tokens=2, return_type="tokens")
    longer = inputs.replace(input_ids=torch.cat([inputs.input_ids, ids], 1), attention_mask=None)
    assert longer.str_tokens[-2:] == model.to_str_tokens(ids) and None not in longer.str_tokens
    assert longer.find("red") == inputs.find("red") and "unnamed" in repr(longer)


def test_ids_in_a_gap_of_the_tokenizer_are_spelled() -> None:
    tokenizer = word_tokenizer()
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values["model"]["vocab"]["zebra"] = len(tokenizer) + 4
    gapped = _llava_tokenizer(Tokenizer.from_str(json.dumps(values)))
    model = HookedVLM.from_hf(*llava(tokenizer=gapped, text_changes={"vocab_size": len(tokenizer) + 5}))
    n = len(tokenizer)
    assert model.to_str_tokens([n, n + 3, n + 4]) == [f"<unnamed {n}>", f"<unnamed {n + 3}>", "zebra"]
    assert model.to_string([n + 4, n]) == f"zebra<unnamed {n}>"
