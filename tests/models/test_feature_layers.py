"""`vision_feature_layer`: what Hugging Face cannot run is refused when the model is made, the rest gives its logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.errors import CheckpointError
from tests.models import drawn

LAYERS = st.integers(-6, 6)


@settings(max_examples=40)
@given(
    vision=st.sampled_from(["clip", "siglip"]),
    n_layers=st.integers(1, 4),
    asked=st.just(0) | LAYERS | st.lists(LAYERS, min_size=1, max_size=3),
)
def test_the_layers_that_hugging_face_cannot_run_are_refused_and_no_others(
    vision: str, n_layers: int, asked: int | list[int]
) -> None:
    hf = drawn.llava(vision=vision, n_vision_layers=n_layers, feature_layer=asked)
    inputs: VLMInputs = drawn.inputs_for(hf, "llava", [4])
    with torch.no_grad():
        try:
            expected = hf(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits
        except (IndexError, TypeError):
            expected = None
    event(f"Hugging Face {'raises' if expected is None else 'runs'}")
    if expected is None:
        with pytest.raises(CheckpointError, match="vision_feature_layer is ") as caught:
            HookedVLM.from_hf(hf)
        assert repr(asked) in str(caught.value) and str(n_layers) in str(caught.value)
    else:
        found = HookedVLM.from_hf(hf)(inputs)
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_bare_zero_is_told_how_it_can_be_meant() -> None:
    with pytest.raises(CheckpointError, match=r"write \[0\]"):
        HookedVLM.from_hf(drawn.llava(feature_layer=0))
    HookedVLM.from_hf(drawn.llava(feature_layer=[0]))
