"""Sweeps, metrics and hook functions are asked for things that there are not: the error names what was given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from hooked_vlm import HookedVLM, VLMInputs, hooks
from hooked_vlm.errors import HookedVLMError, InputsError, NonFiniteError
from hooked_vlm.patching import Sites, attribution, metrics, path_patching, sweep
from tests.models import checkpoints
from tests.models.unchecked import unchecked

Z = "text_encoder.blocks.0.attn.hook_z"
NAN = float("nan")
TOKENS = {
    "logit_diff": lambda ids: metrics.logit_diff(ids, 3),
    "wrong": lambda ids: metrics.logit_diff(3, ids),
    "probability": metrics.probability,
    "log_probability": metrics.log_probability,
    "rank": metrics.rank,
    "restoration": lambda ids: metrics.restoration(ids, torch.zeros(4, 1, 11)),
    "answer": lambda ids: metrics.answer_log_probability(ids if np.ndim(ids) else [ids]),
}


@pytest.fixture(scope="module")
def blip() -> HookedVLM:
    return HookedVLM.from_hf(*checkpoints.blip_vqa())


@pytest.fixture(scope="module")
def pair(blip: HookedVLM) -> tuple[VLMInputs, VLMInputs]:
    asked = ["is it red ?", "is it two ?"]
    clean, corrupt = (blip.to_inputs([checkpoints.picture(i), checkpoints.picture(i + 1)], asked) for i in (0, 2))
    return clean, corrupt


def sites(blip: HookedVLM, activation: str = "z") -> Sites:
    return Sites.heads(blip, "text_encoder", layers=0, positions=1, activation=activation)


def refused(call: Callable[[], Any], word: str) -> None:
    with unchecked(), pytest.raises(HookedVLMError, match=word):
        call()


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize(
    ("ids", "word"),
    [
        ("red", "'red'"), (["red"] * 4, "'red'"), (None, "None"), (2**70, "1180591620717411303424"), (NAN, "nan"),
        (1.5, "1.5"), (True, "True"), (11, "11"), (-1, "-1"), ([], r"\[\]"), (torch.tensor([1j]), "complex"),
    ],
)  # fmt: skip
def test_token_ids_are_integers_of_the_vocabulary(name: str, ids: Any, word: str) -> None:
    refused(lambda: TOKENS[name](ids)(torch.zeros(4, 1, 11)), word)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_token_ids_of_any_integer_type_are_read(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 1, 11)
    ids = torch.tensor([1, 2, 3, 4])
    with unchecked():
        for given in (ids.to(dtype), ids.to(dtype).numpy(), np.int64(1)):
            found = metrics.probability(given)(logits)
            right = ids if np.ndim(given) else torch.tensor(1).expand(4)
            assert torch.allclose(found, logits[:, 0].softmax(-1).gather(1, right[:, None])[:, 0])


@pytest.mark.parametrize("given", [None, np.zeros((2, 1, 9)), torch.zeros(2, 9), torch.zeros(2, 0, 9), "x"])
def test_a_metric_reads_logits(given: Any) -> None:
    refused(lambda: metrics.logit_diff(1, 2)(given), "logit_diff reads .*logits")
    refused(lambda: metrics.kl_divergence(given), "kl_divergence's reference reads .*logits")


METRICS = [
    (metrics.logit_diff, "logit_diff"),
    (3, "3, an int"),
    (lambda x: None, "None"),
    (lambda x: x[:, -1, 0].detach().numpy(), "ndarray"),
    (lambda x: x[:, -1, 0] * 1j, "complex"),
    (lambda x: x[:, -1, 0] * NAN, "is nan for example 0 of 2"),
    (lambda x: x[:, -1, 0] / 0, "is -?inf for example 0 of 2"),
    (lambda x: x.mean(), r"shape \(\)"),
]


@pytest.mark.parametrize(("metric", "word"), METRICS)
def test_a_metric_gives_a_finite_number_for_each_example(
    blip: HookedVLM, pair: tuple[VLMInputs, VLMInputs], metric: Any, word: str
) -> None:
    for by in (partial(sweep, progress=False), attribution):
        refused(lambda by=by: by(blip, *pair, sites(blip), metric), f"metric.*{word}")


def test_a_metric_that_means_nothing_for_some_example_says_so(
    blip: HookedVLM, pair: tuple[VLMInputs, VLMInputs]
) -> None:
    clean, corrupt = pair
    same = clean.replace(pixel_values=torch.cat([clean.pixel_values[:1], corrupt.pixel_values[1:]]))
    restored = metrics.normalized(metrics.logit_diff(5, 6), blip(clean), blip(same))
    found = sweep(blip, clean, same, sites(blip), restored, progress=False).values
    assert found[..., 0].isnan().all() and found[..., 1].isfinite().all()

    def own(x: torch.Tensor) -> torch.Tensor:
        return x[:, -1, 0].masked_fill(torch.tensor([True, False]), torch.nan)

    with pytest.raises(NonFiniteError, match=r"own.*partial=True"):
        sweep(blip, clean, corrupt, sites(blip), metrics.Metric("own", own), progress=False)
    said = sweep(blip, clean, corrupt, sites(blip), metrics.Metric("own", own, partial=True), progress=False)
    assert said.values[..., 0].isnan().all()


BY = {
    "sweep": lambda model, clean, corrupt, at, **options: sweep(
        model, clean, corrupt, at, metrics.logit_diff(5, 6), progress=False, **options
    ),
    "attribution": lambda model, clean, corrupt, at, **options: attribution(
        model, clean, corrupt, at, metrics.logit_diff(5, 6), **options
    ),
    "path_patching": lambda model, clean, corrupt, at, **options: path_patching(
        model, clean, corrupt, at, at, metrics.logit_diff(5, 6), progress=False, **options
    ),
}


@pytest.mark.parametrize("by", BY)
def test_what_is_no_model_no_inputs_and_no_sites_is_refused(
    blip: HookedVLM, pair: tuple[VLMInputs, VLMInputs], by: str
) -> None:
    clean, corrupt = pair
    at = sites(blip)
    for model in (None, blip.hf_model):
        refused(lambda model=model: BY[by](model, clean, corrupt, at), f"model is .*{type(model).__name__}")
    for other in (None, vars(clean), "x"):
        refused(lambda other=other: BY[by](blip, other, corrupt, at), f"clean is .*{type(other).__name__}")
        refused(lambda other=other: BY[by](blip, clean, other, at), f"corrupt is .*{type(other).__name__}")
    for other in (None, [at], Z):
        refused(lambda other=other: BY[by](blip, clean, corrupt, other), f"(sites|senders) is .*{type(other).__name__}")


@pytest.mark.parametrize("maker", ["heads", "residual", "neurons", "module", "point"])
def test_sites_are_of_a_model(blip: HookedVLM, maker: str) -> None:
    rest = {"module": ("text_encoder", "mlp_out"), "point": ("hook_image_features",)}.get(maker, ("text_encoder",))
    for model in (None, blip.hf_model, "blip"):
        refused(lambda model=model: getattr(Sites, maker)(model, *rest), "model is .*expected a HookedVLM")


@pytest.mark.parametrize(
    ("by", "options", "word"),
    [
        *(("sweep", {"budget": b}, "budget is") for b in (0, -1, "1GB", NAN)),
        *(("path_patching", {"budget": b}, "budget is") for b in (0, NAN)),
        *(("attribution", {"steps": n}, "steps is") for n in (0, 1.5, "9")),
        *(("attribution", {"verify_top": n}, "verify_top is") for n in (-1, 0.5, None)),
        ("sweep", {"corruption": 3}, "corruption has 3"),
        ("sweep", {"corruption": [Z]}, "pairs"),
        ("sweep", {"corruption": [(Z, 3)]}, f"{Z}.*3, an int"),
    ],
)
def test_an_option_of_a_sweep_is_named(
    blip: HookedVLM, pair: tuple[VLMInputs, VLMInputs], by: str, options: dict[str, Any], word: str
) -> None:
    refused(lambda: BY[by](blip, *pair, sites(blip), **options), word)


def test_a_path_ends_at_queries_keys_or_values(blip: HookedVLM, pair: tuple[VLMInputs, VLMInputs]) -> None:
    for activation in ("pattern", "z", "attn_scores"):
        to = Sites.heads(blip, "text_encoder", layers=1, positions=1, activation=activation)
        with pytest.raises(InputsError, match=f"hook_{activation}.*cannot be receivers.*query, key or value"):
            path_patching(blip, *pair, sites(blip), to, metrics.logit_diff(5, 6), progress=False)


def test_hook_functions_are_made_of_what_they_need() -> None:
    generator = torch.Generator()
    for std in (NAN, -1.0, float("inf"), "x", None):
        refused(lambda std=std: hooks.add_noise(std, generator), "std is")
    for other in (None, 0):
        refused(lambda other=other: hooks.add_noise(1.0, other), "generator is")
        refused(lambda other=other: hooks.resample_ablate(torch.zeros(1), other), "generator is")
    refused(lambda: hooks.steer([1.0] * 8), "direction is .*list")
    refused(lambda: hooks.steer(torch.ones(8), "x"), "scale is 'x'")
    for source in (None, "cache", 3):
        for make in (hooks.patch, hooks.mean_ablate, lambda s: hooks.resample_ablate(s, generator)):
            refused(lambda make=make, source=source: make(source), f"source is .*{type(source).__name__}")
    refused(lambda: hooks.swap_image(None), "pixel_values is None")
    refused(lambda: hooks.swap_tokens([3]), "embeddings is .*list")


def test_a_source_has_rows_and_a_direction_fits(blip: HookedVLM, pair: tuple[VLMInputs, VLMInputs]) -> None:
    empty = blip.run_with_cache(pair[0])[1][Z][:0]
    for fn in (hooks.mean_ablate(empty), hooks.resample_ablate(empty, torch.Generator()), hooks.patch(empty)):
        refused(lambda fn=fn: blip.run_with_hooks(pair[0], fwd_hooks=[(Z, fn)]), r"\(0, .*at least one row")
    refused(lambda: blip.run_with_hooks(pair[0], fwd_hooks=[(Z, hooks.steer(torch.ones(5)))]), rf"\(5,\).*{Z}")
