"""On LLaVA, every `blocks.*` activation equals what TransformerLens' own bridge caches under the same name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

from hooked_vlm import HookedLLaVA
from tests.models import drawn

# Names that the bridge's language blocks have in common with ours, for each block.
SHARED = 20


@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 4}, {"text": "mistral"}, {"text": "qwen2"}], ids=str)
def test_every_block_activation_equals_the_bridges(options: dict[str, Any]) -> None:
    hf = drawn.llava(**options)
    inputs = drawn.inputs_for(hf, "llava", [6])
    bridge = build_bridge_from_module(copy.deepcopy(hf), "LlavaForConditionalGeneration", hf_config=hf.config)
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(inputs.input_ids, pixel_values=inputs.pixel_values)
        _, ours = HookedLLaVA.from_hf(hf).run_with_cache(inputs)
    shared = [n for n in ours if n.startswith("blocks.") and n in theirs]
    assert len(shared) == SHARED * hf.config.text_config.num_hidden_layers
    for name in shared:
        a, b = ours[name], theirs[name]
        assert a.shape == b.shape, name
        masked = a.isneginf()  # the bridge masks with the dtype's smallest number, we with -inf
        assert (b[masked] == torch.finfo(b.dtype).min).all(), name
        a, b = a.masked_fill(masked, 0.0), b.masked_fill(masked, 0.0)
        assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max())), name
