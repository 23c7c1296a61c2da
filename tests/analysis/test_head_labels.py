"""What heads do: labels follow sight and cause, task by task, and are undecided where the data cannot tell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_vlm import HookedVLM
from hooked_vlm.analysis import attention_causes, labels
from hooked_vlm.analysis.causes import INTERVENTIONS
from hooked_vlm.analysis.head_labels import CLAIMS, over_tasks
from hooked_vlm.analysis.image_attention import RIVAL_SCORES, SCORES, score_batch
from hooked_vlm.datasets import shapes

SIGHT = {"lift": 1.0, "auc": 0.5, "relative_inside": 0.0, "outlier": 0.0, "grounding": 0.0, "objects_lift": 1.0}
ON_ASKED = {"lift": 5.0, "auc": 0.9, "relative_inside": 0.2, "grounding": 4.0, "objects_lift": 4.0}
ON_BOTH = {**ON_ASKED, "grounding": -0.9}
OFF = {"lift": 0.2, "auc": 0.2, "relative_inside": -0.2, "grounding": 0.0, "objects_lift": 0.2}
OUTLIERS = {"outlier": 0.9}
NEEDS = {"asked": 2.0, "rival": 0.0}


def scored(heads, n=30, seed=0, task="colour"):
    """Scores and causes of heads {(layer, head): (scores, costs)}, with some spread over examples."""
    generator = np.random.default_rng(seed)
    rows, causes = [], []
    for example in range(n):
        for (layer, head), (scores, costs) in heads.items():
            about = {"task": task, "example": str(example), "kind": "attn-heads", "layer": layer, "head": head}
            values = {name: value + 0.05 * generator.standard_normal() for name, value in {**SIGHT, **scores}.items()}
            rows.append(dict.fromkeys(SCORES, 0.5) | values | about)
            if costs is not None:
                for name in INTERVENTIONS:
                    cost = costs.get(name, 0.0) + 0.05 * generator.standard_normal()
                    causes.append({**about, "intervention": name, "cost": cost})
    return pd.DataFrame(rows), pd.DataFrame(causes)


def test_labels_follow_sight_and_cause():
    heads = {
        (0, 0): (ON_ASKED, NEEDS),
        (0, 1): (OFF, {"asked": -2.0}),
        (1, 0): (OUTLIERS, {"outliers": 2.0}),
        (1, 1): ({"objects_lift": 0.5}, {"asked": -2.0, "rival": 2.0, "outliers": -2.0}),
        (2, 0): ({**ON_ASKED, "relative_inside": -0.2}, NEEDS),
    }
    made = labels(*scored(heads))
    expected = ["object detection", "object suppression", "outlier suppression", "none", "looks at objects"]
    assert made["label"].tolist() == expected
    assert made["scored"].tolist() == ["lift", "lift", "outlier", "lift", "lift"]
    assert ((made["ci_low"] < made["score"]) & (made["score"] < made["ci_high"])).all()
    assert [value is True for value in made["detects"]] == [True, False, False, False, False]
    assert (made["lacks"] == "").all() and (made["n_causes"] == 30).all()


def test_what_looks_at_the_rival_as_much_detects_nothing():
    """Two labels: it looks at objects, and not at the one that is asked about."""
    row = labels(*scored({(0, 0): (ON_ASKED, NEEDS), (0, 1): (ON_BOTH, NEEDS)})).iloc[1]
    assert row["label"] == "looks at objects"
    assert (row["looks_at_objects"], row["looks_at_asked"], row["detects"]) == (True, False, False)


@pytest.mark.parametrize("costs", [{"asked": 2.0, "rival": 2.0}, {}, None])
def test_sight_without_cause_detects_nothing(costs):
    row = labels(*scored({(0, 0): (ON_ASKED, costs), (0, 1): ({}, NEEDS)})).iloc[0]
    assert row["label"] == "looks at objects" and row["looks_at_asked"] is True and not row["detects"]
    assert row["lacks"] == ("causes" if costs is None else "")


def test_a_head_whose_object_is_no_loss_suppresses_only_where_the_answer_gains():
    heads = {(0, 0): (OFF, {"asked": -2.0}), (0, 1): (OFF, {"asked": 2.0}), (0, 2): (OFF, {})}
    assert labels(*scored(heads))["suppresses"].tolist() == [True, False, None]


@settings(max_examples=15)
@given(st.sampled_from(["grounding", "lift", "asked"]), st.integers(0, 99))
def test_what_an_interval_spans_is_undecided(which, seed):
    sight, costs = dict(ON_ASKED), dict(NEEDS)
    if which == "asked":
        costs["asked"] = 0.0
    else:
        sight[which] = {"grounding": 0.0, "lift": 1.0}[which]
    table, causes = scored({(0, 0): (sight, costs)}, seed=seed)
    (row,) = labels(table, causes).to_dict("records")
    name, bound = {"grounding": ("grounding", 0), "lift": ("lift", 1), "asked": ("cost_gap", 0)}[which]
    spans = row[f"{name}_low"] <= bound <= row[f"{name}_high"]
    assert (row["detects"] is None) == spans
    assert row["label"] == ("looks at objects" if spans or not row["detects"] else "object detection")


def test_heads_without_a_significant_effect_in_the_task_have_no_label_there():
    one, other = (scored({(0, 0): (ON_ASKED, NEEDS)}, task=task) for task in ("colour", "place"))
    head = ("attn-heads", 0, 0)
    tables = [pd.concat(each) for each in zip(one, other, strict=True)]
    made = labels(*tables, significant={"colour": [head]})
    assert made["label"].tolist() == ["object detection", "none"] and made["task"].tolist() == ["colour", "place"]
    assert made["significant"].tolist() == [True, False] and made["detects"].tolist() == [True, None]
    assert labels(*tables, significant=[head])["label"].tolist() == ["object detection"] * 2


def test_over_tasks_a_label_holds_where_the_head_matters():
    parts = [scored({(0, 0): (sight, NEEDS)}, task=task) for task, sight in (("a", ON_ASKED), ("b", ON_BOTH))]
    tables = [pd.concat(each) for each in zip(*parts, strict=True)]
    head = ("attn-heads", 0, 0)
    for tasks, label in ((["a"], "object detection"), (["b"], "looks at objects"), (["a", "b"], "looks at objects")):
        each = labels(*tables, significant={task: [head] for task in tasks})
        together = each.iloc[[0]].drop(columns="task")
        (row,) = over_tasks(together, each).to_dict("records")
        assert row["tasks"] == tasks and row["label"] == label and row["significant"] is True
    assert over_tasks(together, labels(*tables, significant={})).iloc[0]["label"] == "none"


def test_without_masks_only_what_rests_on_outliers_is_known():
    table, causes = scored({(0, 0): (ON_ASKED, NEEDS), (0, 1): (OUTLIERS, {"outliers": 2.0})})
    table[["inside", "area", "lift", "auc", "pointing", "relative_inside", *RIVAL_SCORES]] = np.nan
    causes["cost"] = causes["cost"].where(causes["intervention"] == "outliers")
    made = labels(table, causes)
    assert made["label"].tolist() == ["undecided", "outlier suppression"] and (made["lacks"] == "mask").all()
    assert (made["scored"] == "outlier").all() and made["score"].notna().all()


def test_without_a_rivals_mask_it_cannot_be_told_what_is_asked_about():
    table, causes = scored({(0, 0): (ON_ASKED, NEEDS), (0, 1): (OFF, {})})
    table[["rival_lift", "grounding"]] = np.nan
    causes["cost"] = causes["cost"].where(~causes["intervention"].isin(["rival", "to rival"]))
    made = labels(table, causes)
    assert made["looks_at_objects"].tolist() == [True, False] and (made["lacks"] == "rival mask").all()
    assert made["looks_at_asked"].tolist() == [None, False] and made["detects"].tolist() == [None, False]


def test_one_example_decides_nothing():
    (row,) = labels(*scored({(0, 0): ({**ON_ASKED, **OUTLIERS}, NEEDS)}, n=1)).to_dict("records")
    assert row["label"] == "undecided" and all(row[name] is None for name in CLAIMS)


def test_heads_that_look_anywhere_are_rarely_labelled():
    named = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        table, causes = scored({(layer, head): ({}, NEEDS) for layer in range(4) for head in range(4)}, seed=seed)
        for name, even in (("auc", 0.5), ("objects_lift", 1.0), ("grounding", 0.0), ("lift", 1.0)):
            table[name] = even + 0.2 * generator.standard_normal(len(table))
        named += not set(labels(table, causes)["label"]) <= {"none", "undecided"}
    assert named <= 3


def test_examples_that_hang_together_count_as_their_clusters():
    """One answer of eight carries the grounding: the other seven show none."""
    table, causes = scored({(0, 0): (ON_ASKED, NEEDS)}, n=80)
    answer = table["example"].astype(int) % 8
    table["grounding"] = np.where(answer == 0, 4.0, 0.0) + 0.05 * (np.arange(len(table)) % 3)
    assert labels(table, causes)["looks_at_asked"].tolist() == [True]
    assert labels(table.assign(answer=answer), causes)["looks_at_asked"].tolist() == [None]


# --- models that were trained -----------------------------------------------------------------------


def measured(name, kind, head, task, n=48):
    model = HookedVLM.from_pretrained(name)
    rows = list(shapes.rows(task, n, seed=3))
    inputs = model.to_inputs([row["image"] for row in rows], [row["prompt"] for row in rows])
    last = inputs.last_each.tolist()
    queries = [inputs[i].find(row["answer"]) if "blip" in name else [last[i]] for i, row in enumerate(rows)]
    masks = {"masks": [row["mask"] for row in rows], "rival_masks": [row["rival_mask"] for row in rows]}
    answers = [[model.to_single_token(row[side]) for row in rows] for side in ("answer", "wrong_answer")]
    scores = score_batch(model, inputs, kinds=[kind], queries=queries, **masks)
    causes = attention_causes(model, inputs, *answers, [(kind, *head)], queries=queries, **masks)
    about = {"task": task}
    made = labels(scores.assign(**about, example=scores["row"]), causes.assign(**about, example=causes["row"]))
    return made.set_index(["layer", "head"]).loc[head], made


def test_a_trained_blip_has_a_head_that_finds_the_object():
    best, made = measured("zoo:blip-shapes", "cross_attn-heads", (0, 3), "colour")
    assert best["label"] == "object detection" and best["lift_low"] > 10 and best["pointing"] > 0.9
    assert best["grounding_low"] > 10 and best["cost_gap_low"] > 1
    others = made.drop((0, 3), errors="ignore") if made.index.nlevels > 1 else made
    assert (others["lacks"] == "causes").sum() == 15  # the other heads were not tested


@pytest.mark.parametrize("task", ["colour", "shape", "place"])
def test_a_trained_llava_has_a_head_that_looks_at_objects_and_not_at_the_one_asked_about(task):
    row, _ = measured("zoo:llava-shapes", "attn-heads", (0, 1), task)
    assert row["lift_low"] > 1 and row["auc_low"] > 0.5  # by sight of the object alone it detects it
    assert row["looks_at_objects"] and not row["looks_at_asked"] and not row["detects"]
    assert row["label"] == "looks at objects"


def test_a_trained_blip_grounds_more_than_a_trained_llava():
    """The paper's contrast, over all heads."""
    gaps = {}
    for name, kind in (("zoo:blip-shapes", "cross_attn-heads"), ("zoo:llava-shapes", "attn-heads")):
        gaps[name] = measured(name, kind, (0, 1), "colour")[1]["grounding"].mean()
    assert gaps["zoo:blip-shapes"] > 2 * gaps["zoo:llava-shapes"]
