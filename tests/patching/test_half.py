"""Half precision says by how much its effects may be off, and they are not off by more."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from hooked_vlm import HookedVLM
from hooked_vlm.patching import Screen, Sites, attribution, metrics, path_patching, sweep
from hooked_vlm.patching.result import ROUNDING, ROUNDING_OF_ESTIMATES, SitesResult
from hooked_vlm.zoo import ZOO
from tests.benchmarks.bench_half import error, largest_logit
from tests.benchmarks.bench_screening import few
from tests.models.test_hooks_live import variant
from tests.patching.test_sweep import other

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MEASURE = metrics.logit_diff(7, 8)


def ways(dtype: torch.dtype) -> tuple[float, dict[str, SitesResult]]:
    """The base run's largest logit, and the same sites measured and estimated in every way."""
    model, clean = variant("llava-llama-clip")
    clean = clean[:1].repeat(2)
    corrupt = other(clean, image=True)
    model.to(dtype)
    sites = Sites.heads(model, model.prompt_stack, "attn", positions=[-2, -1])
    options: dict[str, Any] = {"progress": False}
    return largest_logit(model, corrupt), {
        "sweep": sweep(model, clean, corrupt, sites, MEASURE, **options),
        "mean": sweep(model, clean, corrupt, sites, MEASURE, reduce="mean", **options),
        "metric": sweep(model, clean, corrupt, sites, {"a": MEASURE, "b": MEASURE}, **options)["a"],
        "paths": path_patching(model, clean, corrupt, sites, "logits", MEASURE, **options),
        "screened": sweep(model, clean, corrupt, sites, MEASURE, screen=Screen(2, drawn=0), **options),
        "estimate": attribution(model, clean, corrupt, sites, MEASURE),
        "verified": attribution(model, clean, corrupt, sites, MEASURE, verify_top=2),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_result_says_in_which_dtype_it_was_computed_and_what_that_rounds(dtype: torch.dtype) -> None:
    logit, found = ways(dtype)
    for way, result in found.items():
        assert result.dtype == dtype
        if dtype not in ROUNDING:
            assert result.rounding is None and "computed in" not in repr(result)
            continue
        measured = 0.0 if way == "estimate" else ROUNDING[dtype] * logit
        estimates = result.effect()[~result.measured]
        estimated = ROUNDING_OF_ESTIMATES[dtype] * float(estimates.abs().max()) if len(estimates) else 0.0
        assert result.rounding == pytest.approx(max(measured, estimated))
        said = str(dtype).removeprefix("torch.")
        assert f"computed in {said}: an effect on a logit in one example is off by up to " in repr(result)


@cache
def loaded(name: str, dtype: torch.dtype) -> HookedVLM:
    return HookedVLM.from_pretrained(f"zoo:{name}", dtype=dtype)


@pytest.mark.parametrize("corrupt", ["image", "text"])
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_effects_are_off_from_float32_by_no_more_than_the_result_says(
    dtype: torch.dtype, name: str, corrupt: str
) -> None:
    full, half = loaded(name, torch.float32), loaded(name, dtype)
    clean, other_inputs, right, wrong = few(full, "shape", corrupt, 2, seed=3)
    measure = metrics.logit_diff(right, wrong)
    sites = Sites.heads(full, full.prompt_stack, "attn", positions=[-2, -1])
    for estimate in (False, True):
        first, second = (
            attribution(model, clean, other_inputs, sites, measure)
            if estimate
            else sweep(model, clean, other_inputs, sites, measure, progress=False)
            for model in (half, full)
        )
        assert first.rounding is not None and second.rounding is None
        off = error(first.effect(), second.effect())
        assert 0 < off <= first.rounding
        assert estimate or off > first.rounding / 100  # it is not said of anything
