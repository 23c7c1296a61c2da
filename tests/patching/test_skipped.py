"""Sites where clean and corrupt are equal bit for bit have the base run's value, and are not run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.patching import Sites, metrics, path_patching, sweep
from tests.models import drawn
from tests.models.reference import unpadded
from tests.models.test_hooks_live import variant
from tests.patching.test_sweep import by_hand, entries, other, sites_of_one_activation

MEASURE = metrics.logit_diff(7, 8)
TEXT = "language_model"


def llava() -> tuple[HookedVLM, VLMInputs]:
    """A small LLaVA and one prompt without padding."""
    model, inputs = variant("llava-llama-clip")
    return model, unpadded(inputs, 0)


def rows_run(model: HookedVLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For each resumed pass, how many rows joined and where it began; filled as they run."""
    passes, whole = [], model.resume

    def counted(state: Any, stack: str, injected: Any, **options: Any) -> Tensor:
        passes.append((sum(map(len, injected.values())), options["first_position"]))
        return whole(state, stack, injected, **options)

    monkeypatch.setattr(model, "resume", counted)
    return passes


@settings(max_examples=30)
@given(data=st.data())
def test_what_is_equal_in_both_runs_has_the_value_of_the_base_run(data: st.DataObject) -> None:
    case = data.draw(drawn.cases(max_batch=2))
    model, clean = case.hooked(), case.inputs
    sites = data.draw(sites_of_one_activation(model, clean))
    corrupt = other(clean, data.draw(st.booleans()))
    found = sweep(model, clean, corrupt, sites, metrics.logit_diff(0, 1), progress=False)
    (_, source), (_, base) = (model.run_with_cache(x, names_filter=sites.hooks) for x in (clean, corrupt))
    axis = sites.position_axis
    closed = sites.at(1 if axis is None else source[sites.hooks[0]].shape[axis], len(clean))
    values = found.values.reshape(-1, len(clean))
    n_equal = 0
    for number, cell in closed.table.iterrows():
        name = sites.hook.format(cell["layer"])
        same = [torch.equal(source[name][i], base[name][i]) for i in entries(closed, cell, len(clean))]
        for row in (i for i, equal in enumerate(same) if equal):
            assert values[number, row] == found.baseline[row]
        n_equal += all(same)
    assert found.skipped >= n_equal


def test_a_text_corruption_skips_the_image_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = llava()
    span = [i for i, image in enumerate(clean.replace(layout=model.layout).is_image[0]) if image]
    corrupt = clean.replace(input_ids=clean.input_ids.clone())
    corrupt.input_ids[:, -1] = torch.where(clean.input_ids[:, -1] > 20, 6, 21)
    passes = rows_run(model, monkeypatch)
    sites = Sites.heads(model, TEXT, positions=span)
    found = sweep(model, clean, corrupt, sites, MEASURE, progress=False)
    assert not passes and found.skipped == len(sites) and (found.effect() == 0).all()
    assert f"{len(sites)} of {len(sites)} sites cannot differ: not run" in repr(found)
    sites = Sites.heads(model, TEXT)
    found = sweep(model, clean, corrupt, sites, {"a": MEASURE, "b": metrics.probability(7)}, progress=False)
    n_heads, n = model.cfg.n_heads * model.cfg.n_layers, clean.input_ids.shape[1]
    assert found.skipped == n_heads * (n - 1) == found["b"].skipped
    assert passes == [(n_heads * len(clean), n - 1)] and (found.effect()[0, :, -1] != 0).any()


def test_a_site_of_all_positions_begins_at_the_first_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = llava()
    corrupt, passes = other(clean, image=True), rows_run(model, monkeypatch)
    sites = Sites.heads(model, TEXT, positions="all_at_once")
    found = sweep(model, clean, corrupt, sites, MEASURE, progress=False)
    begins = int(clean.replace(layout=model.layout).is_image.long().argmax(1).min())
    assert begins > 0 and [first for _, first in passes] == [begins] and not found.skipped
    _, cache = model.run_with_cache(clean, names_filter=sites.hooks)
    for layer in range(model.cfg.n_layers):

        def whole(z: Tensor, hook: Any) -> Tensor:
            return torch.cat([cache[hook.name][:, :, :1], z[:, :, 1:]], 2)

        logits = model.run_with_hooks(corrupt, fwd_hooks=[(sites.hooks[layer], whole)])
        assert torch.allclose(found.values[layer, 0], MEASURE(logits), atol=1e-5)


def test_the_last_block_is_run_only_where_its_output_is_read() -> None:
    model, clean = llava()
    corrupt, last = other(clean, image=True), model.cfg.n_layers - 1
    n = clean.input_ids.shape[1]
    sites = Sites.module(model, TEXT, "mlp_out", layers=last, positions=[n - 2, n - 1])
    read = sweep(model, clean, corrupt, sites, MEASURE, progress=False)
    assert read.skipped == 1 and (read.effect()[0, 0] == 0).all() and (read.effect()[0, 1] != 0).all()
    seen = sweep(model, clean, corrupt, sites, lambda logits: logits[:, -2, 7], progress=False)
    assert not seen.skipped and (seen.effect()[0, 0] != 0).all()
    keys = Sites.heads(model, TEXT, layers=last, positions=[n - 2, n - 1], activation="v")
    assert not sweep(model, clean, corrupt, keys, MEASURE, progress=False).skipped


def test_the_last_block_of_a_retrieval_is_run_where_its_logits_are_read() -> None:
    """They stand at one position, the class token's, and not at the prompt's."""
    model, clean = variant("blip-retrieval")
    corrupt, measure = other(clean, image=True), metrics.logit_diff(1, 0)
    for hook in ("attn_out", "mlp_out"):
        sites = Sites.module(model, "text_encoder", hook, layers=-1, positions=[0, 1])
        found = sweep(model, clean, corrupt, sites, measure, progress=False)
        assert torch.allclose(found.values[0], by_hand(model, clean, corrupt, sites, measure), atol=1e-5)
        assert (found.effect()[0, 0] != 0).all()


def test_a_receiver_before_the_sender_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = llava()
    corrupt = other(clean, image=True)
    last = model.cfg.n_layers - 1
    senders = Sites.heads(model, TEXT, layers=last, positions=-1)
    receivers = Sites.heads(model, TEXT, layers=0, positions=-1, activation="q")
    found = path_patching(model, clean, corrupt, senders, receivers, MEASURE, progress=False)
    assert found.skipped == found.values[..., 0].numel() and (found.effect() == 0).all()
