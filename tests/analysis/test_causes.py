"""What a head's attention is worth: equal to one hooked run an intervention, each example alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, hooks
from hooked_vlm.analysis import attention_causes
from hooked_vlm.analysis.causes import COLUMNS, INTERVENTIONS, KNOCK_OUTS
from hooked_vlm.datasets import shapes
from hooked_vlm.errors import DataError, PositionError, StackError
from tests.models import checkpoints
from tests.models.drawn import exact

SIDE, PATCH = 32, 4
GRID = SIDE // PATCH
KIND = {"blip": "cross_attn-heads", "llava": "attn-heads"}
PROMPTS = ["is it red?", "is the circle red or blue or green?", "what color is it?"]
RIGHT, WRONG = [5, 6, 7], [8, 9, 10]


def made(family, layers, groups, seed=0):
    vision = {"image_size": SIDE, "patch_size": PATCH}
    shape = {"num_attention_heads": 4, "num_hidden_layers": layers}
    if family == "blip":
        text = {**shape, "hidden_size": 16}
        hf, processor = checkpoints.blip_vqa(seed, text=text, vision={**vision, "hidden_size": 16})
        return HookedBLIP.from_hf(exact(hf), processor)
    text = {**shape, "num_key_value_heads": groups, "max_position_embeddings": 128}
    hf, processor = checkpoints.llava(seed, vision_changes=vision, text_changes=text)
    return HookedLLaVA.from_hf(exact(hf), processor)


def patches_of(box):
    """The patches of a box of whole patches, row by row of the grid."""
    top, left, bottom, right = box
    return [row * GRID + column for row in range(top, bottom) for column in range(left, right)]


def mask_of(box):
    if box is None:
        return None
    picture = np.zeros((SIDE, SIDE), np.uint8)
    top, left, bottom, right = (edge * PATCH for edge in box)
    picture[top:bottom, left:right] = 255
    return Image.fromarray(picture)


def expected(model, inputs, head, name, query, boxes):
    """The logit difference of one example in one hooked run, or NaN where it has no such object."""
    kind, layer, number = head
    start = inputs.image_span.start
    before = [0] if kind == KIND["blip"] else []
    of = {"asked": boxes[0], "rival": boxes[1]}.get(name.removeprefix("to "))
    if name != "outliers" and of is None:
        return np.nan
    keys = before if name == "outliers" else [start + patch for patch in patches_of(of)]
    if not keys:
        return np.nan
    image = before + [start + patch for patch in range(GRID * GRID)]

    def redirect(pattern, hook):
        new = pattern.clone()
        mass = pattern[:, number, query][..., image].sum(-1)
        for at, position in enumerate(query):
            new[:, number, position, image] = 0.0
            new[:, number, position, keys] = mass[:, at, None] / len(keys)
        return new

    module = f"{model.stacks[model.prompt_stack].prefix}blocks.{layer}.{kind.removesuffix('-heads')}"
    hook = (f"{module}.hook_pattern", redirect)
    if name in KNOCK_OUTS:
        hook = (f"{module}.hook_attn_scores", hooks.knock_out(query, keys, heads=number))
    logits = model.run_with_hooks(inputs, fwd_hooks=[hook])[0, -1]
    return logits


corner = st.integers(0, GRID - 2)
box = st.tuples(corner, corner, st.integers(1, 2), st.integers(1, 2)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=6)
@given(
    st.sampled_from(["blip", "llava"]),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.lists(st.tuples(st.none() | box, st.none() | box), min_size=3, max_size=3),
    st.integers(1, 40),
    st.data(),
)
def test_causes_equal_one_hooked_run_an_intervention(family, layers, groups, boxes, max_rows, data):
    model, kind = made(family, layers, groups), KIND[family]
    pictures = [checkpoints.picture(i, SIDE, SIDE) for i in range(3)]
    together = model.to_inputs(pictures, PROMPTS)
    each = [model.to_inputs(*one) for one in zip(pictures, PROMPTS, strict=True)]
    queries = []  # of each example alone, some of its positions behind the image
    for one in each:
        first = one.image_span.stop if family == "llava" else 0
        places = st.lists(st.integers(first, one.last), min_size=1, max_size=3, unique=True)
        queries.append(sorted(data.draw(places)))
    shifts = (together.last_each - torch.tensor([one.last for one in each])).tolist()  # padding on the left
    heads = data.draw(
        st.lists(st.tuples(st.just(kind), st.integers(0, layers - 1), st.integers(0, 3)), min_size=1, max_size=3)
    )
    table = attention_causes(
        model,
        together,
        RIGHT,
        WRONG,
        heads,
        queries=[[place + shift for place in query] for query, shift in zip(queries, shifts, strict=True)],
        masks=[mask_of(asked) for asked, _ in boxes],
        rival_masks=[mask_of(rival) for _, rival in boxes],
        max_rows=max_rows,
    )
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == len(set(heads)) * len(INTERVENTIONS) * 3
    with torch.no_grad():
        for row in table.itertuples():
            alone, ids = each[row.row], [RIGHT[row.row], WRONG[row.row]]
            clean = model(alone)[0, -1, ids]
            assert row.clean_logit_diff == pytest.approx(float(clean[0] - clean[1]), abs=1e-9)
            head = (row.kind, row.layer, row.head)
            found = expected(model, alone, head, row.intervention, queries[row.row], boxes[row.row])
            if not isinstance(found, torch.Tensor):
                assert np.isnan(row.logit_diff) and np.isnan(row.cost) and np.isnan(row.attention)
                continue
            wanted = float(found[ids[0]] - found[ids[1]])
            assert row.logit_diff == pytest.approx(wanted, abs=1e-9)
            assert row.cost == pytest.approx(row.clean_logit_diff - wanted, abs=1e-9)


def test_other_heads_compute_as_ever_from_what_they_read():
    """In its own layer the z of every other head stays as it was, bit for bit; that of the head does not."""
    model, seen = made("blip", 2, 4), {}
    inputs = model.to_inputs(checkpoints.picture(0, SIDE, SIDE), PROMPTS[1])
    name = "text_encoder.blocks.1.cross_attn.hook_z"
    query = [2, 3]
    with model.hooks(fwd_hooks=[(name, lambda z, hook: seen.update({len(seen): z.clone()}))]):
        attention_causes(
            model,
            inputs,
            [5],
            [6],
            [("cross_attn-heads", 1, 2)],
            queries=query,
            masks=[mask_of((0, 0, 2, 2))],
            rival_masks=[mask_of((4, 4, 6, 6))],
        )
    clean, edited = list(seen.values())[-2:]
    assert len(edited) == len(INTERVENTIONS)
    others = [head for head in range(4) if head != 2]
    assert torch.allclose(edited[:, :, others], clean[:, :, others].expand(len(edited), -1, -1, -1), atol=1e-12)
    away = [place for place in range(clean.shape[1]) if place not in query]
    assert torch.allclose(edited[:, away], clean[:, away].expand(len(edited), -1, -1, -1), atol=1e-12)
    moved = (edited[:, query, 2] - clean[:, query, 2]).abs().amax((1, 2))
    assert (moved > 1e-6).all()


def test_high_norm_patches_count_as_outliers_where_there_is_no_class_token():
    model = made("llava", 2, 2)
    inputs = model.to_inputs(checkpoints.picture(0, SIDE, SIDE), PROMPTS[0])
    last = f"vision_encoder.blocks.{model.stacks['vision_encoder'].cfg.n_layers - 1}.hook_resid_post"

    def raise_one(activation, hook):
        new = activation.clone()
        new[:, int(model.vision_encoder.has_class_token) + 5] *= 1000.0
        return new

    asked = {"queries": inputs.last, "masks": [mask_of((4, 4, 6, 6))]}
    with model.hooks(fwd_hooks=[(last, raise_one)]), torch.no_grad():
        table = attention_causes(model, inputs, [5], [6], [("attn-heads", 0, 1)], **asked).set_index("intervention")
        knock = hooks.knock_out(inputs.last, inputs.image_span.start + 5, heads=1)
        logits = model.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_attn_scores", knock)])[0, -1]
    assert table.loc["outliers", "logit_diff"] == pytest.approx(float(logits[5] - logits[6]), abs=1e-9)
    assert 0 < table.loc["outliers", "attention"] < 1


def test_heads_that_see_no_image_are_left_out():
    model = made("blip", 1, 4)
    inputs = model.to_inputs(checkpoints.picture(0, SIDE, SIDE), PROMPTS[0])
    found = attention_causes(model, inputs, [5], [6], [("attn-heads", 0, 1)], queries=1)
    assert found.empty and list(found.columns) == list(COLUMNS)


def test_what_does_not_fit_is_refused_by_name():
    model, head = made("blip", 1, 4), ("cross_attn-heads", 0, 1)
    inputs = model.to_inputs(checkpoints.picture(0, SIDE, SIDE), PROMPTS[0])
    with pytest.raises(DataError, match="2 right and 1 wrong answers were given for 1"):
        attention_causes(model, inputs, [5, 6], [6], [head], queries=1)
    with pytest.raises(DataError, match="2 masks were given for 1"):
        attention_causes(model, inputs, [5], [6], [head], queries=1, rival_masks=[None, None])
    with pytest.raises(StackError, match="no head 9"):
        attention_causes(model, inputs, [5], [6], [("cross_attn-heads", 0, 9)], queries=1)
    with pytest.raises(StackError, match=r"no text_encoder\.blocks\.7"):
        attention_causes(model, inputs, [5], [6], [("cross_attn-heads", 7, 0)], queries=1)
    with pytest.raises(PositionError, match="queries of row 0"):
        attention_causes(model, inputs, [5], [6], [head], queries=99)


def test_a_trained_head_reads_the_object_asked_about_and_not_its_rival():
    """Cross-attention L0.H3 of the BLIP that ships: its colour answers rest on what it sees of the object."""
    model = HookedVLM.from_pretrained("zoo:blip-shapes")
    rows = list(shapes.rows("colour", 24, seed=3))
    inputs = model.to_inputs([row["image"] for row in rows], [row["prompt"] for row in rows])
    table = attention_causes(
        model,
        inputs,
        [model.to_single_token(row["answer"]) for row in rows],
        [model.to_single_token(row["wrong_answer"]) for row in rows],
        [("cross_attn-heads", 0, 3)],
        queries=[inputs[i].find(row["answer"]) for i, row in enumerate(rows)],
        masks=[row["mask"] for row in rows],
        rival_masks=[row["rival_mask"] for row in rows],
    )
    cost = table.pivot(index="row", columns="intervention", values="cost").mean()
    assert cost["asked"] > 2 and abs(cost["rival"]) < 0.1 and cost["to rival"] > cost["to asked"]
