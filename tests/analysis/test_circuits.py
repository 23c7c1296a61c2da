"""Both directions, pairs and self-repair are what plain runs give; means come with intervals that hold together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.analysis import clusters, denoise_and_noise, pair_interactions, self_repair
from hooked_vlm.analysis.head_sets import heads_of
from hooked_vlm.errors import DataError, PositionError
from hooked_vlm.patching import Sites, path_patching, sweep
from hooked_vlm.patching.metrics import logit_diff
from tests.analysis.test_head_sets import METRIC, one_run, z_of
from tests.models import drawn
from tests.patching.test_paths import by_hand
from tests.patching.test_sweep import at_last, other


def setting(kind: str, n: int = 6) -> tuple[HookedVLM, VLMInputs, VLMInputs]:
    hf = drawn.exact(drawn.llava() if kind == "llava" else drawn.blip())
    clean = drawn.inputs_for(hf, kind, [5] * n, seed=3).to(dtype=torch.float64)
    return HookedVLM.from_hf(hf), clean, other(clean, image=True)


def at(table: pd.DataFrame, head: Any, column: str) -> Any:
    return table.set_index(["kind", "layer", "head"])[column][head]


@pytest.mark.parametrize("kind", ["llava", "vqa"])
def test_both_directions_are_two_sweeps(kind: str) -> None:
    model, clean, corrupt = setting(kind)
    policies: Any = {"last": clean.last_each[:, None], "every": "all_at_once"}
    table = denoise_and_noise(model, clean, corrupt, METRIC, positions=policies)
    assert len(table) == 2 * len(heads_of(model)) and (table["n"] == 6).all()
    high, low = (METRIC(at_last(model, x, model(x))).detach().numpy() for x in (clean, corrupt))
    for name, positions in policies.items():
        ours = table[table["positions"] == name]
        sites = Sites.heads(model, model.prompt_stack, "attn", positions=positions)
        for direction, sign in (("denoise", 1.0), ("noise", -1.0)):
            found = sweep(model, clean, corrupt, sites, METRIC, direction=direction, progress=False)  # type: ignore[arg-type]
            effect = sign * found.effect().reshape(*found.values.shape[0:1], -1, 6).numpy()
            for layer, head in np.ndindex(*effect.shape[:2]):
                mean = at(ours, ("attn-heads", layer, head), direction)
                assert mean == pytest.approx(effect[layer, head].mean(), abs=1e-5)
                share = at(ours, ("attn-heads", layer, head), f"{direction}_share")
                assert share == pytest.approx(mean / (high - low).mean(), abs=1e-4)


def test_the_two_intervals_hold_together() -> None:
    """Each at half the error, so that both hold at once at the level asked for."""
    model, clean, corrupt = setting("vqa", 9)
    head = heads_of(model)[0]
    table = denoise_and_noise(model, clean, corrupt, METRIC, heads=[head], level=0.9)
    for direction in ("denoise", "noise"):
        base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
        patched = one_run(model, base, z_of(model, source), [head], None)
        own = METRIC(at_last(model, base, model(base))).detach().numpy()
        effects = patched - own if direction == "denoise" else own - patched
        judged = clusters.judge(effects.astype(np.float64)[:, None], clusters.codes(n=9), level=0.95)
        assert table[f"{direction}_low"].item() == pytest.approx(judged.low[0], rel=1e-3, abs=1e-6)
        assert table[f"{direction}_high"].item() == pytest.approx(judged.high[0], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_an_interaction_is_what_two_heads_do_beyond_their_sum(direction: Any) -> None:
    model, clean, corrupt = setting("vqa")
    chosen = heads_of(model)[::2]
    table = pair_interactions(model, clean, corrupt, METRIC, heads=chosen, direction=direction)
    assert len(table) == len(chosen) * (len(chosen) - 1) // 2 and (table["p_holm"] >= table["p"]).all()
    source, base, sign = (clean, corrupt, 1) if direction == "denoise" else (corrupt, clean, -1)
    cache, own = z_of(model, source), METRIC(at_last(model, base, model(base))).detach().numpy()

    def effect(*heads: Any) -> float:
        return float(sign * (one_run(model, base, cache, heads, None) - own).mean())

    for row in table.itertuples():
        i, j = (row.kind_i, row.layer_i, row.head_i), (row.kind_j, row.layer_j, row.head_j)
        assert row.effect_ij == pytest.approx(effect(i, j), abs=1e-5)
        assert row.interaction == pytest.approx(effect(i, j) - effect(i) - effect(j), abs=2e-5)
        assert row.interaction_low <= row.interaction <= row.interaction_high
    assert table["interaction"].abs().is_monotonic_decreasing


def test_the_pairs_are_those_of_the_strongest_heads() -> None:
    model, clean, corrupt = setting("vqa")
    table = denoise_and_noise(model, clean, corrupt, METRIC)
    best = table.loc[table["denoise"].abs().nlargest(3).index, ["kind", "layer", "head"]]
    pairs = pair_interactions(model, clean, corrupt, METRIC, top=3)
    named = {tuple(row[:3]) for row in pairs.to_numpy()} | {tuple(row[3:6]) for row in pairs.to_numpy()}
    assert len(pairs) == 3 and named == set(best.itertuples(index=False, name=None))
    with pytest.raises(DataError, match="a pair has two"):
        pair_interactions(model, clean, corrupt, METRIC, top=1)


@pytest.mark.parametrize("positions", ["all_at_once", "last"])
@pytest.mark.parametrize("kind", ["llava", "vqa"])
def test_self_repair_is_the_direct_less_the_total_effect(kind: str, positions: Any) -> None:
    """Direct: two whole runs by hand, the head's path to the end of its stack alone. Total: one."""
    model, clean, corrupt = setting(kind)
    where = clean.last_each[:, None] if positions == "last" else positions
    chosen = heads_of(model)[1::2]
    table = self_repair(model, clean, corrupt, METRIC, heads=chosen, positions=where)
    high = METRIC(at_last(model, clean, model(clean))).detach().numpy()
    cache = z_of(model, corrupt)
    stack, ends = model.prompt_stack, "normalized_resid_post" if kind == "vqa" else "resid_post"
    end = Sites.residual(model, stack, layers=-1, positions="all_at_once", hook=ends).at(1)
    for head in chosen:
        sites = Sites.heads(
            model, stack, head[0].removesuffix("-heads"), layers=head[1], heads=head[2], positions=where
        ).at(clean.input_ids.shape[1], len(clean))
        pair = (sites.table.iloc[0], end.table.iloc[0])
        with torch.no_grad():
            logits = by_hand(model, corrupt, clean, pair, (sites, end), False)
        direct = (high - METRIC(at_last(model, clean, logits)).numpy()).mean()
        total = (high - one_run(model, clean, cache, [head], None if positions == "all_at_once" else where)).mean()
        assert at(table, head, "direct") == pytest.approx(direct, abs=1e-5)
        assert at(table, head, "total") == pytest.approx(total, abs=1e-5)
        assert at(table, head, "repair") == pytest.approx(direct - total, abs=2e-5)
    assert table["total"].abs().max() > 1e-3 and table["direct"].abs().max() > 1e-4


def test_where_the_stack_makes_the_logits_the_direct_effect_is_the_one_on_them() -> None:
    model, clean, corrupt = setting("llava")
    table = self_repair(model, clean, corrupt, METRIC)
    senders = Sites.heads(model, "language_model", positions="all_at_once")
    paths = path_patching(model, clean, corrupt, senders, "logits", METRIC, direction="noise", progress=False)
    for layer, head in np.ndindex(2, 4):
        direct = -float(paths.effect()[layer, head].mean())
        assert at(table, ("attn-heads", layer, head), "direct") == pytest.approx(direct, abs=1e-6)
    with pytest.raises(PositionError, match="at one position of each example, or at all"):
        self_repair(model, clean, corrupt, METRIC, positions=[-1, -2])


def test_rows_that_are_not_the_inputs_are_refused() -> None:
    model, clean, corrupt = setting("vqa", 3)
    with pytest.raises(DataError, match="for 3 examples"):
        denoise_and_noise(model, clean, corrupt, logit_diff(1, 0), {"id": ["a", "b"]})
