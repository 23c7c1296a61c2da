"""Numbers that are none: in weights, poured in by hooks and inputs, and in front of a metric."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooked_vlm import HookedVLM, hooks
from hooked_vlm.patching import Sites, sweep
from hooked_vlm.patching import metrics as measures
from tests.sabotage.calls import of_blip
from tests.sabotage.engine import Oracle, either, refuses
from tests.sabotage.positions import batch
from tests.sabotage.world import hugging_face, model

Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


def attacks() -> Found:
    """Every attack of the kind."""
    yield from _not_finite()
    yield from _poured_in()


def _not_finite() -> Found:
    """One weight that is NaN: refused when the model is made, or every number that it reaches is refused or NaN."""
    names = (
        "text_encoder.encoder.layer.0.attention.self.query.weight",
        "text_decoder.cls.predictions.bias",
        "vision_model.encoder.layers.1.mlp.fc1.weight",
        "text_encoder.embeddings.LayerNorm.bias",
    )
    for name in names:
        for shown, value in {"NaN": float("nan"), "infinite": float("inf")}.items():

            def spoilt(name: str, value: float) -> Any:
                hf = copy.deepcopy(hugging_face("blip")[0])
                with torch.no_grad():
                    hf.get_parameter(name).view(-1)[3] = value
                return HookedVLM.from_hf(hf, hugging_face("blip")[1])

            def forward(name: str, value: float, _: Path) -> Any:
                logits = spoilt(name, value)(of_blip())
                return (
                    "not finite"
                    if not torch.isfinite(logits[:, -1]).any()
                    or (name.endswith("predictions.bias") and not torch.isfinite(logits).all())
                    else "finite"
                )

            def measured(name: str, value: float, _: Path) -> Any:
                of = spoilt(name, value)
                sites = Sites.heads(of, "text_encoder", layers=0, positions=1)
                return sweep(
                    of, of_blip(), batch("blip", "corrupt"), sites, measures.logit_diff(3, 4), progress=False
                ).values

            words = (name, "finite", "nan", "inf")
            yield f"{shown}-in-{name}-forward", partial(forward, name, value), either("not finite", words)
            yield f"{shown}-in-{name}-sweep", partial(measured, name, value), refuses(words)
    bad = torch.zeros(2, 1, 9)
    bad[1, 0, 4] = float("nan")
    for name, metric in {
        "logit_diff": measures.logit_diff(1, 2),
        "probability": measures.probability(1),
        "log_probability": measures.log_probability(1),
        "rank": measures.rank(1),
        "kl_divergence": measures.kl_divergence(torch.zeros(2, 1, 9)),
    }.items():
        yield f"NaN-logits-{name}", lambda _, m=metric: m(bad), refuses(("finite", "nan"))
    for name, given in {
        "none": None,
        "array": np.zeros((2, 1, 9)),
        "two-axes": torch.zeros(2, 9),
        "no-positions": torch.zeros(2, 0, 9),
    }.items():
        yield f"metric-of-{name}", lambda _, g=given: measures.logit_diff(1, 2)(g), refuses(("logits", "logit_diff"))


def _poured_in() -> Found:
    """NaN and infinity that a user pours in: they come out again, or are refused."""
    blip, inputs = model("blip"), of_blip()
    z = "text_encoder.blocks.0.attn.hook_z"
    state = blip.run_with_state(inputs)[1]
    resid = state.resid_pre("text_encoder", 1)

    def pixels(change: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: blip(inputs.replace(pixel_values=change(inputs.pixel_values)))

    for name, call in {
        "NaN-pixels": pixels(lambda x: x * float("nan")), "infinite-pixels": pixels(lambda x: x / 0),
        "huge-pixels": pixels(lambda x: x * 1e38),
        "one-NaN-pixel": pixels(lambda x: x.index_fill(3, torch.tensor([3]), float("nan"))),
        "steered-by-NaN": lambda: blip.run_with_hooks(inputs,
            fwd_hooks=[(z, hooks.steer(torch.ones(8), float("nan")))]),
        "patched-with-NaN": lambda: blip.run_with_hooks(inputs,
            fwd_hooks=[(z, hooks.patch(torch.full((1, 10, 2, 8), float("nan"))))]),
        "resumed-from-NaN": lambda: blip.resume(state, "text_encoder", {1: resid * float("nan")}),
        "queries-of-NaN": lambda: blip.run_with_hooks(inputs,
            fwd_hooks=[("text_encoder.blocks.0.attn.hook_q", lambda x, hook: x * float("nan"))]),
        "keys-of-NaN": lambda: blip.run_with_hooks(inputs,
            fwd_hooks=[("text_encoder.blocks.0.attn.hook_k", lambda x, hook: x * float("nan"))]),
    }.items():  # fmt: skip

        def honest(call: Callable[[], Any], _: Path) -> Any:
            return "finite" if torch.isfinite(call()).any() else "not finite"

        yield name, partial(honest, call), either("not finite", ("nan", "inf", "finite"))
    plain = blip(inputs).detach()
    yield "pixels-double", lambda _: pixels(lambda x: x.double())().detach(), either(plain, ("float64", "dtype"))
    half = blip(inputs.replace(pixel_values=inputs.pixel_values.half().float())).detach()
    yield "pixels-half", lambda _: pixels(lambda x: x.half())().detach(), either(half, ("float16", "dtype"))
