"""Ablating heads: equal to one hooked run a set, and compared with random heads of the same layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm import HookedBLIP, HookedLLaVA, hooks
from hooked_vlm.analysis.ablation import COLUMNS, ReferenceMeans, ablate, hook_name, random_sets
from hooked_vlm.datasets import shapes
from hooked_vlm.errors import DataError, StackError
from tests.models import checkpoints

CROSS, SELF = "cross_attn-heads", "attn-heads"
SAME = ["is the circle red or blue?", "is the square blue or red?", "is the circle green or red?"]
OTHER = ["is it red?", "is the square blue or red or green?", "what color is it?"]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def blip():
    shape = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3}
    return HookedBLIP.from_hf(*checkpoints.blip_vqa(text=shape, vision={"hidden_size": 16}))


@pytest.fixture(scope="module")
def llava():
    text = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    return HookedLLaVA.from_hf(*checkpoints.llava(text_changes=text))


def batch(model, prompts):
    return model.to_inputs([checkpoints.picture(i) for i in range(len(prompts))], prompts)


def selections_of(model):
    kinds = [CROSS, SELF] if isinstance(model, HookedBLIP) else [SELF]
    return {"one": [(kinds[0], 1, 2)], "some": [(kinds[-1], 0, 1), (kinds[0], 2, 0), (kinds[0], 2, 3)]}


def kinds_of(model):
    return {kind for heads in selections_of(model).values() for kind, _, _ in heads}


def heads_in(spelled):
    """ "attn-heads 0.1 2.3, cross_attn-heads 1.2" as heads."""
    found = []
    for part in filter(None, spelled.split(", ")):
        kind, *places = part.split()
        found += [(kind, *map(int, place.split("."))) for place in places]
    return found


# --- exact ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["blip", "llava"])
@pytest.mark.parametrize("max_rows", [7, 256])
def test_ablation_equals_one_hooked_run_a_set_by_position(family, max_rows, request):
    """Against `hooks.mean_ablate` on prompts of one length, one example and one set at a time."""
    model = request.getfixturevalue(family)
    inputs = batch(model, SAME)
    right, wrong = [5, 6, 7], [8, 9, 10]
    chosen = selections_of(model)
    means = ReferenceMeans(model, kinds_of(model)).add(inputs)
    table = ablate(model, inputs, right, wrong, chosen, means, draws=2, max_rows=max_rows)
    assert means.positionwise and list(table.columns) == list(COLUMNS)
    _, cache = model.run_with_cache(inputs)
    for row in table.itertuples():
        by_hook = {}
        for kind, layer, head in heads_in(row.heads):
            by_hook.setdefault(hook_name(model, kind, layer), []).append(head)
        fwd = [(name, hooks.mean_ablate(cache, heads=heads)) for name, heads in by_hook.items()]
        logits = model.run_with_hooks(inputs[row.row], fwd_hooks=fwd)[0, -1]
        assert row.logit_diff == pytest.approx(float(logits[right[row.row]] - logits[wrong[row.row]]), abs=1e-4)
        assert row.correct == (int(logits.argmax()) == right[row.row])
        assert row.n_heads == len(heads_in(row.heads))


@pytest.mark.parametrize("family", ["blip", "llava"])
def test_where_lengths_differ_means_are_over_positions(family, request):
    """Text and image positions apart, padding left out."""
    model = request.getfixturevalue(family)
    inputs = batch(model, OTHER)
    chosen = {"one": selections_of(model)["one"]}
    means = ReferenceMeans(model, kinds_of(model)).add(inputs)
    assert not means.positionwise
    (kind, layer, head) = chosen["one"][0]
    name = hook_name(model, kind, layer)
    parts = {True: [], False: []}
    for prompt, picture in zip(OTHER, range(3), strict=True):
        alone = model.to_inputs(checkpoints.picture(picture), prompt)
        z = model.run_with_cache(alone)[1][name][0, :, head]
        token = alone.layout.image_token_id
        is_image = torch.zeros(len(z), dtype=torch.bool) if token is None else alone.input_ids[0] == token
        for flag, values in parts.items():
            values.append(z[is_image == flag])
    mean = {flag: torch.cat(values).mean(0) for flag, values in parts.items()}
    table = ablate(model, inputs, [5] * 3, [6] * 3, chosen, means, draws=0)
    for i, prompt in enumerate(OTHER):
        alone = model.to_inputs(checkpoints.picture(i), prompt)

        def replace(z, hook, alone=alone):
            new = z.clone()
            token = alone.layout.image_token_id
            for p in range(z.shape[1]):
                new[0, p, head] = mean[token is not None and int(alone.input_ids[0, p]) == token]
            return new

        logits = model.run_with_hooks(alone, fwd_hooks=[(name, replace)])[0, -1]
        ours = table[(table["row"] == i) & (table["selection"] == "one")]["logit_diff"].item()
        assert ours == pytest.approx(float(logits[5] - logits[6]), abs=1e-4)


@pytest.mark.parametrize("family", ["blip", "llava"])
def test_padding_and_batches_change_no_mean(family, request):
    model = request.getfixturevalue(family)
    together = ReferenceMeans(model, kinds_of(model)).add(batch(model, OTHER))
    apart = ReferenceMeans(model, kinds_of(model))
    for i, prompt in enumerate(OTHER):
        apart.add(model.to_inputs(checkpoints.picture(i), prompt))
    for name in together.hooks:
        inputs = batch(model, OTHER)
        assert torch.allclose(together.of(inputs, name), apart.of(inputs, name), atol=1e-6)


def test_nothing_ablated_is_the_whole_model(blip):
    inputs = batch(blip, SAME)
    means = ReferenceMeans(blip, [CROSS]).add(inputs)
    table = ablate(blip, inputs, [5] * 3, [6] * 3, {"empty": []}, means)
    logits = blip(inputs)[:, -1]
    assert table["selection"].tolist() == ["none"] * 3 and (table["n_heads"] == 0).all()
    assert table["logit_diff"].to_numpy() == pytest.approx((logits[:, 5] - logits[:, 6]).numpy(), abs=1e-5)


def test_every_batch_meets_the_same_random_sets(blip):
    inputs = batch(blip, SAME)
    means = ReferenceMeans(blip, [CROSS, SELF]).add(inputs)
    whole = ablate(blip, inputs, [5] * 3, [6] * 3, selections_of(blip), means, draws=4, seed=2)
    one = ablate(blip, inputs[1], [5], [6], selections_of(blip), means, draws=4, seed=2)
    ours = whole[whole["row"] == 1].drop(columns="row").reset_index(drop=True)
    np.testing.assert_allclose(ours.pop("logit_diff"), one["logit_diff"], atol=1e-5)
    assert ours.equals(one.drop(columns=["row", "logit_diff"]))


# --- random heads -----------------------------------------------------------------------------------

LAYERS = st.dictionaries(st.integers(0, 4), st.sets(st.integers(0, 5), min_size=1, max_size=6), min_size=1)


@given(LAYERS, st.integers(0, 30), st.integers(0, 5))
def test_random_sets_are_as_many_heads_of_the_same_layers(layers, draws, seed):
    selected = [(CROSS, layer, head) for layer, heads in layers.items() for head in heads]
    sets = random_sets(selected, 6, draws, seed)
    assert len(sets) <= draws and len(set(sets)) == len(sets)
    for drawn in sets:
        assert set(drawn) != set(selected) and len(set(drawn)) == len(drawn) == len(selected)
        for layer, heads in layers.items():
            mine = {head for _, at, head in drawn if at == layer}
            assert len(mine) == len(heads) <= 6
            assert len(mine & heads) == max(0, 2 * len(heads) - 6)  # others as far as there are others
    assert sets == random_sets(selected, 6, draws, seed)
    if not sets and draws:
        assert all(len(heads) == 6 for heads in layers.values())


def test_all_possible_sets_are_drawn_where_they_are_few():
    assert sorted(random_sets([(CROSS, 0, 1)], 4, 20)) == [((CROSS, 0, head),) for head in (0, 2, 3)]
    assert len(random_sets([(CROSS, 0, 0), (CROSS, 0, 1), (CROSS, 0, 2)], 4, 20)) == 3


def test_random_sets_are_drawn_evenly():
    selected = [(CROSS, 0, 0), (CROSS, 1, 0)]
    drawn = [each for seed in range(400) for each in random_sets(selected, 12, 2, seed)]
    counts = np.bincount([head for each in drawn for _, _, head in each], minlength=12)
    assert counts[0] == 0 and counts[1:].min() > 90  # of 1,600 heads, 145 each


# --- refusals ---------------------------------------------------------------------------------------


def test_what_cannot_be_ablated_is_refused(blip):
    inputs = batch(blip, SAME)
    means = ReferenceMeans(blip, [CROSS])
    with pytest.raises(DataError, match="reference batch is empty"):
        ablate(blip, inputs, [5] * 3, [6] * 3, {"one": [(CROSS, 0, 0)]}, means)
    means.add(inputs)
    with pytest.raises(DataError, match="1 right and 3 wrong"):
        ablate(blip, inputs, [5], [6] * 3, {}, means)
    with pytest.raises(StackError, match="no head 9"):
        ablate(blip, inputs, [5] * 3, [6] * 3, {"one": [(CROSS, 0, 9)]}, means, draws=0)
    with pytest.raises(StackError, match="layer 7"):
        ablate(blip, inputs, [5] * 3, [6] * 3, {"one": [(CROSS, 7, 0)]}, means, draws=0)


# --- a model that was trained -----------------------------------------------------------------------


def test_a_trained_model_loses_its_answers_with_the_heads_that_carry_them():
    model = HookedBLIP.from_pretrained("zoo:blip-shapes")
    rows = list(shapes.rows("colour", 30, seed=3))
    inputs = model.to_inputs([row["image"] for row in rows], [row["prompt"] for row in rows])
    right, wrong = ([model.to_single_token(row[name]) for row in rows] for name in ("answer", "wrong_answer"))
    means = ReferenceMeans(model, [CROSS]).add(inputs)
    table = ablate(model, inputs, right, wrong, {"two": [(CROSS, 0, 3), (CROSS, 3, 0)]}, means)
    assert table[table["selection"] == "none"]["correct"].mean() > 0.9
    chosen = table[(table["selection"] == "two") & (table["draw"] == -1)]
    others = table[(table["selection"] == "two") & (table["draw"] >= 0)].groupby("draw")["logit_diff"].mean()
    assert len(others) == 9 and (others > chosen["logit_diff"].mean() + 1).all()
    assert (table["overlap"] == np.where(table["draw"] < 0, table["n_heads"], 0)).all()
