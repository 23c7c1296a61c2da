"""Training: a killed run goes on as if nothing had happened, and what it writes is what the zoo loads."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hooked_vlm.datasets import shapes
from hooked_vlm.datasets.scenes import COLOURS, SHAPES
from hooked_vlm.zoo import digest, train
from hooked_vlm.zoo.recipes import RECIPES, Recipe, Schedule

TINY = Schedule(steps=6, learning_rate=1e-3, batch=6, warmup=2, easy_steps=3, corrupt_from=4)
PLACE_WORDS = ("above", "below", "left", "right")
both = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums come out alike only at the same number of threads
    yield
    torch.set_num_threads(before)


def run(recipe: Recipe, state: pathlib.Path, **options: Any) -> list[int]:
    return [done for done, _, _ in train.train(recipe, TINY, state, save_every=2, **options)]


def same_tensors(one: pathlib.Path, other: pathlib.Path) -> bool:
    left, right = load_file(one / train.STATE), load_file(other / train.STATE)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@both
def test_a_run_that_was_stopped_ends_where_an_unbroken_one_does(recipe: Recipe, tmp_path: pathlib.Path) -> None:
    assert run(recipe, tmp_path / "whole") == [1, 2, 3, 4, 5, 6]
    assert run(recipe, tmp_path / "broken", stop_after=3) == [1, 2, 3]
    assert not same_tensors(tmp_path / "whole", tmp_path / "broken")
    assert run(recipe, tmp_path / "broken") == [3, 4, 5, 6]  # from the checkpoint of step 2
    assert same_tensors(tmp_path / "whole", tmp_path / "broken")


def test_a_run_that_was_killed_ends_where_an_unbroken_one_does(tmp_path: pathlib.Path) -> None:
    code = f"""
import pathlib, time, torch
from hooked_vlm.zoo import train
from hooked_vlm.zoo.recipes import RECIPES, Schedule
torch.set_num_threads(1)
state = pathlib.Path({str(tmp_path / "killed")!r})
for done, _, _ in train.train(RECIPES["blip-shapes"], {TINY!r}, state, save_every=1):
    if done == 4:
        time.sleep(600)  # it is killed at some moment before, or here
"""
    file = tmp_path / "killed" / train.STATE
    child = subprocess.Popen([sys.executable, "-c", code])
    while not file.exists() and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run(RECIPES["blip-shapes"], tmp_path / "killed")
    run(RECIPES["blip-shapes"], tmp_path / "whole")
    assert same_tensors(tmp_path / "whole", tmp_path / "killed")


def test_a_checkpoint_cut_short_in_writing_is_never_read(tmp_path: pathlib.Path) -> None:
    recipe = RECIPES["blip-shapes"]
    run(recipe, tmp_path, stop_after=2)
    (tmp_path / train.STATE).with_suffix(".part").write_bytes(b"half a checkp")
    assert run(recipe, tmp_path) == [3, 4, 5, 6]


def test_another_run_in_the_same_folder_is_refused(tmp_path: pathlib.Path) -> None:
    recipe = RECIPES["blip-shapes"]
    run(recipe, tmp_path, stop_after=2)
    with pytest.raises(train.ResumeError, match=r'"seed": 0.*"seed": 1.*another state folder'):
        run(recipe, tmp_path, seed=1)
    longer = dataclasses.replace(TINY, steps=7)
    with pytest.raises(train.ResumeError, match=r'"steps": 6.*"steps": 7'):
        next(train.train(recipe, longer, tmp_path))


@both
def test_a_few_steps_on_one_batch_learn_it(
    recipe: Recipe, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss reaches what it should: a model that is shown four scenes over and over knows them."""
    first = train.example
    monkeypatch.setattr(train, "example", lambda schedule, step, number, seed: first(schedule, 0, number, seed))
    schedule = Schedule(steps=60, learning_rate=2e-3, batch=4, warmup=5)
    losses = [loss for _, loss, _ in train.train(recipe, schedule, tmp_path, save_every=1000)]
    assert losses[0] > 2.0
    assert losses[-1] < 0.1


def test_batches_hold_every_task_and_the_curriculum_is_kept() -> None:
    schedule = Schedule(steps=100, learning_rate=1e-3, easy_steps=10, corrupt_from=20)

    def drawn(steps: range) -> list[train.Example]:
        return [train.example(schedule, step, number, 0) for step in steps for number in range(schedule.batch)]

    def one_thing(examples: list[train.Example]) -> float:
        asked = [each for each in examples if each.answer not in PLACE_WORDS]
        assert len(asked) * 8 == len(examples) * 5
        return sum(len(each.scene.things) == 1 for each in asked) / len(asked)

    early, late = drawn(range(10)), drawn(range(10, 20))
    assert abs(one_thing(early) - 0.8) < 0.06
    assert abs(one_thing(late) - 0.2) < 0.06


def test_training_offers_every_answer_equally_often_first_and_second() -> None:
    schedule = Schedule(steps=10, learning_rate=1e-3)
    counts: Counter[tuple[str, bool]] = Counter()
    for step in range(4):
        for number in range(schedule.batch):
            drawn = train.example(schedule, step, number, 0)
            words = drawn.prompt.rstrip("?").split()
            counts[drawn.answer, words.index(drawn.answer) < words.index("or")] += 1
    assert {counts[word, first] for word in COLOURS for first in (True, False)} == {12}
    assert {counts[word, first] for word in (*SHAPES, *PLACE_WORDS) for first in (True, False)} == {18}


def test_no_training_scene_is_a_test_scene() -> None:
    schedule = Schedule(steps=10, learning_rate=1e-3, corrupt_from=0)
    scenes = [train.example(schedule, step, number, 0).scene for step in range(10) for number in range(96)]
    assert all(scene.digest() % shapes.TEST_SHARE != 0 for scene in scenes)


def test_the_learning_rate_climbs_and_comes_down_to_nothing() -> None:
    rates = [train.learning_rate(TINY, step) for step in range(TINY.steps + 1)]
    assert rates[0] < rates[1] == max(rates)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


@both
def test_a_finished_run_is_written_with_its_digests(recipe: Recipe, tmp_path: pathlib.Path) -> None:
    run(recipe, tmp_path / "state")
    out = tmp_path / recipe.name
    train.export(recipe, tmp_path / "state", out)
    listed = json.loads((tmp_path / "checksums.json").read_text())[recipe.name]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= listed.keys()
    assert all(digest(out / name) == value for name, value in listed.items())
    weights, trained = load_file(out / "model.safetensors"), load_file(tmp_path / "state" / train.STATE)
    name = next(name for name in weights if name.endswith("patch_embedding.weight"))
    (held,) = [
        value for key, value in trained.items() if key.startswith("weight/") and key.endswith("patch_embedding.weight")
    ]
    assert torch.equal(weights[name], held)


def test_looking_counts_right_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["blip-shapes"]
    model = recipe.build(0)
    monkeypatch.setattr(type(recipe), "answer_logits", lambda self, model, pixels, prompts: _scores(recipe, prompts))
    shares = train.look(recipe, model, 48)
    assert (
        shares["colour"] == shares["colour_corrupt"] == shares["colour_easy"] == 0.5
    )  # the first choice is right so often
    assert shares["place"] == 0
    assert set(shares) == {f"{task}{end}" for task in shapes.TASKS for end in ("", "_corrupt", "_easy")}
    assert model.training


def _scores(recipe: Recipe, prompts: list[str]) -> torch.Tensor:
    """Certain of the first choice in a colour question."""
    scores = torch.zeros(len(prompts), len(recipe.tokenizer))
    colours = ("red", "green", "blue", "yellow")
    for row, prompt in enumerate(prompts):
        offered = [word for word in prompt.split() if word in colours]
        scores[row, recipe.tokenizer.convert_tokens_to_ids(offered[0] if offered else "is")] = 1
    return scores
