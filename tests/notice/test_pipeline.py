"""A run's numbers are those of single runs with hooks, whatever the batch; what is not kept says why."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hooked_vlm import HookedVLM
from hooked_vlm.analysis.answers import Scored
from hooked_vlm.analysis.corruption import GaussianNoise, SemanticImagePair, SymmetricTokenReplacement
from hooked_vlm.datasets import pairs
from hooked_vlm.errors import DataError, ResumeError
from hooked_vlm.hooks import patch
from hooked_vlm.notice import effects, examples, pipeline
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.vocabulary import EVERY, KINDS
from hooked_vlm.patching import metrics, moving
from tests.notice.models import FAMILIES, answerable, blip_shapes, row, small

NAMED = ["task", "example", "group"]
SITE = ["corrupt", "kind", "stack", "layer", "head", "position", "role", "token"]
EFFECT_COLUMNS = [*NAMED, *SITE, "effect", "restoration", "normalized"]
ASKED = ["prompt", "corrupt_prompt", "answer", "wrong_answer", "generated", "kept", "reason"]
DIFFERENCES = [f"{run}_logit_diff" for run in ("clean", "image", "text", "image_noise", "text_noise")]
EXAMPLE_COLUMNS = ["task", "example", "number", "fingerprint", "group", *ASKED]
EXAMPLE_COLUMNS += ["right_token", "wrong_token", "shared_tokens", *DIFFERENCES, "image_lacking", "text_lacking"]


def read(directory: Path, kind: str) -> pd.DataFrame:
    parts = [pd.read_parquet(path) for path in sorted((directory / kind).glob("*.parquet"))]
    return pd.concat(parts, ignore_index=True).astype({"task": str, "example": str})


def config_for(family: str, path: Path, **changes: Any) -> NoticeConfig:
    task = answerable(family, path / "some.parquet")
    options = {"noise": True, "bootstrap": 20, "random_draws": 2, "examples": 5, "kinds": ("attn-heads", "mlp")}
    return NoticeConfig(model=family, tasks=(task,), **options | changes)


def examples_of(config: NoticeConfig, model: HookedVLM, path: Path, **options: Any) -> Path:
    """A run's directory with its examples done, without what comes after them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "_conclude", lambda *args: None)
        return pipeline.run(config, path, progress=False, model=model, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[HookedVLM, Path]:
    """A model and the examples of a run of it."""
    path = tmp_path_factory.mktemp(request.param)
    model = small(request.param)
    return model, examples_of(config_for(request.param, path, kinds=()), model, path / "run")


def test_the_tables_have_their_columns_and_kinds(done: tuple[HookedVLM, Path]) -> None:
    model, directory = done
    rows, found, attention = (read(directory, kind) for kind in ("examples", "effects", "attention"))
    assert list(rows.columns) == EXAMPLE_COLUMNS and list(found.columns) == EFFECT_COLUMNS
    assert rows["kept"].sum() == 5 and set(rows.loc[rows["kept"], "reason"]) == {""}
    assert set(rows.loc[rows["kept"], "example"]) == set(found["example"]) == set(attention["example"])
    assert set(found["corrupt"]) == {"image", "text", "image_noise", "text_noise"}
    config = NoticeConfig.from_json(json.loads((directory / "run.json").read_text())["config"])
    assert set(found["kind"]) == set(config.kinds) and set(found["task"]) == {"some"}
    every = found[found["role"] == EVERY]
    assert set(every["position"]) == {-1} and set(every["kind"]) == {k for k in config.kinds if k.endswith("-heads")}
    assert (found.loc[~found["kind"].str.endswith("-heads"), "head"] == -1).all()
    assert not found.duplicated(["example", "corrupt", "kind", "layer", "head", "position"]).any()
    prompt = found[found["position"] >= 0]
    assert "image" not in set(prompt["role"])
    assert (prompt.groupby("example")["role"].nunique() > 3).all()
    cfg = model.stacks[model.prompt_stack].cfg
    of_one = found[(found["example"] == found["example"][0]) & (found["corrupt"] == "image")]
    n = of_one["position"].nunique() - 1
    heads = sum(kind.endswith("-heads") for kind in config.kinds)
    places = cfg.n_heads * heads * (n + 1) + (len(config.kinds) - heads) * n
    assert len(of_one) == cfg.n_layers * places
    assert set(of_one["layer"]) == set(range(cfg.n_layers))


def test_effects_are_those_of_one_run_a_site_with_hooks(done: tuple[HookedVLM, Path]) -> None:
    model, directory = done
    config = NoticeConfig.from_json(json.loads((directory / "run.json").read_text())["config"])
    found = read(directory, "effects")
    rows = read(directory, "examples").set_index("example")
    shown = {row["id"]: row for row in pairs.read_parquet(config.tasks[0])}
    names = {
        "cross_attn-heads": "cross_attn.hook_z",
        "attn-heads": "attn.hook_z",
        "cross_attn": "hook_cross_attn_out",
        "attn": "hook_attn_out",
        "mlp": "hook_mlp_out",
        "resid": f"hook_{effects.resid_hook(model)}",
    }
    picked = found.groupby(["corrupt", "kind"], observed=True).sample(2, random_state=1)
    picked = pd.concat([picked, found[found["position"] < 0].sample(6, random_state=2)])
    for cell in picked.itertuples():
        row, tokens = shown[cell.example], rows.loc[cell.example]
        clean = model.to_inputs(row["image"], row["prompt"])
        hooks = _corruption(cell.corrupt, row, clean, model).fwd_hooks(model, clean)
        name = f"{model.stacks[model.prompt_stack].prefix}blocks.{cell.layer}.{names[cell.kind]}"
        _, cache = model.run_with_cache(clean, names_filter=name)
        patches = [
            (name, patch(cache, None if cell.position < 0 else cell.position, None if cell.head < 0 else cell.head))
        ]
        with torch.no_grad():
            before = model.run_with_hooks(clean, fwd_hooks=hooks, logits_at="last")[0, -1]
            after = model.run_with_hooks(clean, fwd_hooks=hooks + patches, logits_at="last")[0, -1]
            whole = model(clean, logits_at="last")[0, -1]
        right, wrong = int(tokens["right_token"]), int(tokens["wrong_token"])
        effect = float((after[right] - after[wrong]) - (before[right] - before[wrong]))
        assert cell.effect == pytest.approx(effect, abs=2e-5), cell
        restored = float(after.softmax(-1)[right] - before.softmax(-1)[right])
        assert cell.restoration == pytest.approx(restored, abs=1e-5)
        span = float((whole[right] - whole[wrong]) - (before[right] - before[wrong]))
        assert cell.normalized == pytest.approx(effect / span, abs=1e-3 + 1e-4 / abs(span))
        assert tokens["clean_logit_diff"] == pytest.approx(float(whole[right] - whole[wrong]), abs=1e-5)
        assert tokens[f"{cell.corrupt}_logit_diff"] == pytest.approx(float(before[right] - before[wrong]), abs=1e-5)
    assert picked["effect"].abs().max() > 1e-3


def _corruption(name: str, row: dict[str, Any], clean: Any, model: HookedVLM) -> Any:
    if name == "image":
        return SemanticImagePair(row["corrupt_image"])
    if name == "text":
        return SymmetricTokenReplacement(row["corrupt_prompt"])
    target = name.removesuffix("_noise")
    where = None
    if target == "text":
        other = model.to_inputs(row["image"], row["corrupt_prompt"])
        where = (other.input_ids != clean.input_ids)[0].nonzero()[:, 0].tolist()
    return GaussianNoise(target, seed=examples.noise_seed(0, target, row["id"]), positions=where)  # type: ignore[arg-type]


def test_the_batch_changes_no_number(done: tuple[HookedVLM, Path], tmp_path: Path) -> None:
    model, together = done
    family = "blip" if "BLIP" in type(model).__name__ else "llava"
    seeing = "cross_attn-heads" if family == "blip" else "attn-heads"  # heads whose attention is scored
    config = config_for(family, tmp_path, batch=1, kinds=(seeing, "mlp"))
    alone = examples_of(config, model, tmp_path / "alone")
    for part in ("examples", "effects", "attention"):
        one, other = (read(directory, part) for directory in (alone, together))
        if part != "examples":
            other = other[other["kind"].isin(config.kinds)].reset_index(drop=True).astype({"kind": str})
            one = one.astype({"kind": str})
        kept = [column for column in one if column != "normalized"]  # a quotient, at times of small numbers
        assert len(one) == len(other) > 0
        pd.testing.assert_frame_equal(one[kept], other[kept], rtol=1e-4, atol=2e-5, check_categorical=False)


def test_positions_that_a_causal_stack_cannot_change_are_zero_and_swept_alike(tmp_path: Path, monkeypatch) -> None:
    config = config_for("llava", tmp_path, positions="all")
    fast = read(examples_of(config, small("llava"), tmp_path / "fast"), "effects")
    moved = moving.moved
    monkeypatch.setattr(moving, "moved", lambda sites, source, base: torch.ones_like(moved(sites, source, base)))
    slow = read(examples_of(config, small("llava"), tmp_path / "slow"), "effects")
    assert np.allclose(fast["effect"], slow["effect"], atol=2e-5)
    assert (fast.loc[(fast["position"] == 0), "effect"] == 0).all() and "image" in set(fast["role"])


@pytest.mark.parametrize(("positions", "roles"), [("answer", {"answer"}), ("last", {"last"})])
def test_positions_that_were_asked_for_are_patched(positions: str, roles: set[str], tmp_path: Path) -> None:
    config = config_for("llava", tmp_path, positions=positions, corrupt=("text",))
    directory = examples_of(config, small("llava"), tmp_path / "run")
    found = read(directory, "effects")
    assert set(found["role"]) == roles and set(found["corrupt"]) == {"text", "text_noise"}
    assert read(directory, "examples")["image_logit_diff"].isna().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_begin_alike_are_scored_where_they_differ(family: str, tmp_path: Path) -> None:
    model = small(family)
    config = config_for(family, tmp_path).resolved(model)
    rows = list(enumerate(pairs.read_parquet(config.tasks[0])))
    example = next(each for each in examples.prepared(model, config, rows) if each.kept)
    plain, corrupt = example.clean, example.corrupt_ids
    examples.restored(model, example, Scored(9, 8, (7,)))
    (found,) = effects.measured(model, config, [example])
    assert corrupt is not None
    for inputs, measured in (
        (plain, found.clean),
        (plain.replace(input_ids=corrupt), found.corrupt["text"]),
        (plain.replace(pixel_values=example.pixels), found.corrupt["image"]),
    ):
        with torch.no_grad():
            logits = model(metrics.with_answer(model, inputs, [7, 9]))[0, -1]  # after the 7 that both begin with
        assert measured == pytest.approx(float(logits[9] - logits[8]), abs=1e-5)
    positions = found.table["position"].to_numpy()
    assert positions.max() == len(example.roles) - 1 == plain.input_ids.shape[1] - 1


# --- what is not kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({}, {}, ""),
        ({"corrupt_image": None}, {}, ""),
        ({"corrupt_image": None}, {"corrupt": ("image",)}, examples.NO_CORRUPT_IMAGE),
        ({"corrupt_image": None, "corrupt_prompt": None}, {}, examples.NO_CORRUPT_PROMPT),
        ({"corrupt_image": None}, {"corrupt": ("text",)}, ""),
        ({"corrupt_prompt": None}, {}, ""),
        ({"corrupt_prompt": None}, {"corrupt": ("text",)}, examples.NO_CORRUPT_PROMPT),
        ({"corrupt_prompt": None}, {"corrupt": ("image",)}, ""),
        ({"corrupt_prompt": "is the big triangle red or green?"}, {"corrupt": ("text",)}, examples.ANOTHER_LENGTH),
        ({"corrupt_prompt": "is the big triangle red or green?"}, {"corrupt": ("image",)}, ""),
        ({"corrupt_prompt": "Is the square red or green?"}, {"corrupt": ("text",)}, examples.SAME_PROMPT),
        ({"corrupt_prompt": "is " * 40}, {"corrupt": ("text",)}, f"{examples.UNUSABLE} (TextError)"),
        ({"corrupt_prompt": "is " * 40}, {}, ""),
        ({"mask": None}, {"region": "mean", "corrupt": ("image",)}, examples.NO_MASK),
        ({}, {"region": "mean", "corrupt": ("image",)}, ""),
        ({"answer": "green", "wrong_answer": "red"}, {}, "the model gives the wrong answer"),
        ({"answer": "blue", "wrong_answer": "yellow"}, {}, "the model gives neither answer"),
        ({"wrong_answer": "purplish"}, {}, "a word of the answers is not in the vocabulary"),
        ({"prompt": "is " * 40}, {}, f"{examples.UNUSABLE} (TextError)"),
    ],
)
def test_what_is_not_kept_says_why(changes: dict, options: dict, reason: str) -> None:
    model = blip_shapes()
    config = NoticeConfig(model="m", tasks=("t",), **options).resolved(model)
    first, second = examples.prepared(model, config, [(0, row() | changes), (1, row(index=3))])
    assert (first.reason, second.kept) == (reason, True)


def test_a_run_without_an_example_ends_in_a_report_that_says_why(tmp_path: Path) -> None:
    model = small("blip")
    task = answerable("blip", tmp_path / "a.parquet", 4)
    rows = [row | {"corrupt_prompt": "is it ?"} for row in pairs.read_parquet(task)]
    pairs.write_parquet(pairs.table(rows), tmp_path / "b.parquet")
    config = NoticeConfig(model="m", tasks=(str(tmp_path / "b.parquet"),), examples=3, corrupt=("text",))
    directory = pipeline.run(config, tmp_path / "run", progress=False, model=model)
    assert set(read(directory, "examples")["kept"]) == {False}
    (counts,) = json.loads((directory / "summary.json").read_text())["counts"]
    assert counts["kept"] == 0 and counts["reasons"]["the row has no corrupt prompt"] == 3
    text = (directory / "report.html").read_text()
    assert "Nothing could be patched" in text and "the row has no corrupt prompt: 3" in text


def test_a_task_that_is_not_there_leaves_no_run_behind(tmp_path: Path) -> None:
    config = NoticeConfig(model="m", tasks=("colours",))
    with pytest.raises(DataError, match="no task 'colours'"):
        pipeline.run(config, tmp_path / "run", progress=False, model=small("blip"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    config = config_for("blip", tmp_path)
    examples_of(config, small("blip"), tmp_path / "run")
    with pytest.raises(ResumeError, match="seed was 0 and is 3"):
        pipeline.run(dataclasses.replace(config, seed=3), tmp_path / "run", progress=False, model=small("blip"))


def test_a_whole_run_ends_in_a_report(tmp_path: Path) -> None:
    config = NoticeConfig(model="zoo:blip-shapes", tasks=("colour",), examples=3, bootstrap=20, random_draws=2)
    before = signal.getsignal(signal.SIGINT)
    directory = pipeline.run(config, tmp_path / "run", progress=False, model=blip_shapes())
    assert signal.getsignal(signal.SIGINT) is before
    assert (directory / "report.html").read_text().startswith("<!")
    summary = json.loads((directory / "summary.json").read_text())
    assert [row["kept"] for row in summary["counts"]] == [3] and summary["ablation"] and summary["figures"]
    assert all((directory / row["file"]).is_file() for row in summary["figures"])
    ablated = read(directory, "ablation")
    assert set(ablated["example"]) == set(read(directory, "effects")["example"])
    record = json.loads((directory / "run.json").read_text())
    assert record["model"] == {
        "name": "zoo:blip-shapes",
        "class": "HookedBLIPForQuestionAnswering",
        "stack": "text_encoder",
        "layers": 4,
        "heads": 4,
        "d_model": 96,
    }
    where = [record["config"][name] for name in ("select_at", "watch_at")]
    assert record["config"]["kinds"] == list(KINDS) and where == ["every position", "answer"]
    counted = json.loads((directory / "sources.json").read_text())["colour"]
    assert counted == {"rows": 12, "skipped": {}, "named": {}}
