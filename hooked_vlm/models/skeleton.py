"""Models of a checkpoint without its weights: what a config alone tells, for tables of hooks and for plans.

`skeleton` lies on torch's meta device and costs nothing. `shallow` can be run: two layers of the checkpoint's own
widths with a constant in every weight, which takes as long as its weights would; it costs the memory of those layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from hooked_vlm.models import loading
from hooked_vlm.models.base import HookedVLM

N_LAYERS = 2  # of `shallow`
_WEIGHT = 0.01


def skeleton(name: str, *, processor: Any = None, revision: str | None = None, **hf_options: Any) -> HookedVLM:
    """A checkpoint's model as its config describes it, on torch's meta device: hook points, and no weights.

    Args:
        name: as in `HookedVLM.from_pretrained`.
        processor: as there, so that inputs can be made; none by default.
        revision: branch, tag or commit on the hub.
        hf_options: passed on to Hugging Face.

    Raises:
        CheckpointError: if there is no such checkpoint.
        UnsupportedArchitectureError: if no family reads it.
    """
    config, hf_class = loading.read_config(loading.resolve(name), revision=revision, **hf_options)
    HookedVLM._family(hf_class, config)  # raises before anything is built
    with torch.device("meta"):
        hf_model = _class(hf_class)(config)
    return HookedVLM.from_hf(hf_model, processor)


def shallow(model: HookedVLM, *, device: torch.device, dtype: torch.dtype) -> HookedVLM:
    """A model like another one with `N_LAYERS` layers a stack at most, on a device, in a dtype; its words mean nothing.

    Args:
        model: whose widths; a skeleton will do.
        device: where it is to run.
        dtype: of its weights.
    """
    from accelerate import init_empty_weights

    hf = model.hf_model
    config = copy.deepcopy(hf.config)
    for part in (config.text_config, config.vision_config):
        part.num_hidden_layers = min(N_LAYERS, part.num_hidden_layers)
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[: part.num_hidden_layers]
    if hasattr(config, "vision_feature_layer"):
        config.vision_feature_layer = -1
    with init_empty_weights(include_buffers=False):  # buffers hold what positions are made of
        small = _class(type(hf).__name__)(config)
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in small.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(torch.full(weight.shape, _WEIGHT, dtype=dtype, device=device))
                module._parameters[name] = made[id(weight)]
    return HookedVLM.from_hf(small.to(device).eval(), model.processor)


def _class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)
