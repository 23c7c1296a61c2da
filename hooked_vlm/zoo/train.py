"""Make the zoo's checkpoints again from nothing: `python -m hooked_vlm.zoo.train blip-shapes --out DIR`.

Costs about half an hour a model on one quiet core where bfloat16 is built in, and 1 GB. What is trained on is a
function of the step alone, so a run that is killed at any moment goes on from its last checkpoint as if
nothing had happened, to the last bit (at the same number of threads). Checkpoints are safetensors, written
beside and moved into place. Uses the shapes world and Hugging Face, and nothing of `hooked_vlm.models`.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hooked_vlm.datasets import shapes
from hooked_vlm.datasets.scenes import Dice, Scene, render
from hooked_vlm.errors import ResumeError
from hooked_vlm.zoo import CARD, digest
from hooked_vlm.zoo.recipes import RECIPES, Recipe, Schedule, to_pixels

STATE = "state.safetensors"
LOOK_EVERY = 250
LOOK_AT = 144  # unseen scenes of each kind, at every look


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture, a question and the answer that is right of that picture."""

    scene: Scene
    prompt: str
    answer: str


def example(schedule: Schedule, step: int, number: int, seed: int) -> Example:
    """The example with a number in the batch of a step.

    Args:
        schedule: Says how many things a scene holds when, and when corrupt pictures come in.
        step: From 0.
        number: Place in the batch.
        seed: Of the run.

    Returns:
        The example, the same one whenever it is asked for.
    """
    count = step * schedule.batch + number
    dice = Dice("curriculum", seed, count)
    easy = schedule.easy_first if step < schedule.easy_steps else schedule.easy_later
    n_objects = (1,) if dice.below(100) < easy else (2, 3)
    turns = schedule.turns
    rounds, turn = divmod(count, len(turns))
    task = turns[turn]
    index = rounds * turns.count(task) + turns[:turn].count(task)
    pair = shapes.pair(task, index, seed=seed, n_objects=n_objects, split="train")
    if step >= schedule.corrupt_from and dice.below(100) < schedule.corrupt_share:
        return Example(pair.corrupt_scene, pair.prompt, pair.wrong_answer)
    return Example(pair.scene, pair.prompt, pair.answer)


def learning_rate(schedule: Schedule, step: int) -> float:
    """A short climb, then half a cosine down to nothing."""
    climb = min(1.0, (step + 1) / schedule.warmup)
    return schedule.learning_rate * climb * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))


def train(
    recipe: Recipe,
    schedule: Schedule,
    state: pathlib.Path,
    *,
    seed: int = 0,
    save_every: int = LOOK_EVERY,
    stop_after: int | None = None,
) -> Iterator[tuple[int, float, nn.Module]]:
    """Train, from the checkpoint in the state folder if there is one.

    Args:
        recipe: Which organism.
        schedule: How long and how fast.
        state: Folder of the checkpoint; made if it is not there.
        seed: Of weights and data.
        save_every: Steps from one checkpoint to the next; the last step always has one.
        stop_after: Leave off after this step, as a kill would.

    Yields:
        The number of steps done, the last one's loss, and the model, after every step.

    Raises:
        ResumeError: The checkpoint there is of another recipe, seed or schedule.
    """
    state.mkdir(parents=True, exist_ok=True)
    model = recipe.build(seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=schedule.weight_decay)
    run = json.dumps({"recipe": recipe.name, "seed": seed, **dataclasses.asdict(schedule)}, sort_keys=True)
    file = state / STATE
    first = _restore(file, run, model, optimizer) if file.exists() else 0
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step)
        batch = [example(schedule, step, number, seed) for number in range(schedule.batch)]
        pixels = to_pixels([render(each.scene) for each in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
            loss = recipe.loss(model, pixels, [each.prompt for each in batch], [each.answer for each in batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % save_every == 0 or done == schedule.steps:
            _store(file, run, done, model, optimizer)
        yield done, float(loss.detach()), model
        if done == stop_after:
            return


def _store(file: pathlib.Path, run: str, done: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        tensors[f"weight/{name}"] = weight.detach().contiguous()
        for key, value in optimizer.state.get(weight, {}).items():
            tensors[f"{key}/{name}"] = value.detach().contiguous()
    beside = file.with_suffix(".part")
    save_file(tensors, beside, metadata={"run": run, "done": str(done)})
    os.replace(beside, file)


def _restore(file: pathlib.Path, run: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    with safe_open(file, framework="pt") as held:
        metadata = held.metadata()
        if metadata["run"] != run:
            raise ResumeError(
                f"{file} holds a run with {metadata['run']}, and this one has {run}: "
                "go on with the same settings, or name another state folder."
            )
        keys = set(held.keys())
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(held.get_tensor(f"weight/{name}"))
                if f"exp_avg/{name}" in keys:
                    kept = ("step", "exp_avg", "exp_avg_sq")
                    optimizer.state[weight] = {key: held.get_tensor(f"{key}/{name}").clone() for key in kept}
    return int(metadata["done"])


@torch.inference_mode()
def look(recipe: Recipe, model: nn.Module, n: int, seed: int = 1) -> dict[str, float]:
    """Accuracy on unseen scenes, by Hugging Face's modules alone.

    Args:
        recipe: Which organism.
        model: Its weights.
        n: Scenes of each kind.
        seed: Of the scenes.

    Returns:
        Three shares for each task: by its name, of scenes with a rival; with "_corrupt", of their corrupt
        images, where the wrong answer is the right one; with "_easy", of scenes without a rival.
    """
    model.eval()
    shares: dict[str, float] = {}
    for task in shapes.TASKS:
        hard = [shapes.pair(task, index, seed=seed) for index in range(n)]
        easy = [shapes.pair(task, index, seed=seed, n_objects=(1,)) for index in range(n)]
        for name, asked in (
            (task, [Example(each.scene, each.prompt, each.answer) for each in hard]),
            (
                f"{task}_corrupt",
                [Example(each.corrupt_scene, each.prompt, each.wrong_answer) for each in hard],
            ),
            (f"{task}_easy", [Example(each.scene, each.prompt, each.answer) for each in easy]),
        ):
            pixels = to_pixels([render(each.scene) for each in asked])
            said = recipe.answer_logits(model, pixels, [each.prompt for each in asked]).argmax(-1)
            shares[name] = float((said == recipe.word_ids([each.answer for each in asked])).float().mean())
    model.train()
    return shares


def export(recipe: Recipe, state: pathlib.Path, out: pathlib.Path) -> None:
    """Write the checkpoint of a finished run as Hugging Face does, and list its bytes in the folder above.

    Args:
        recipe: Which organism.
        state: Folder of the run.
        out: The checkpoint's folder. `checksums.json` beside it gets the SHA-256 of every file but the model
            card.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = recipe.build(0)
    with safe_open(state / STATE, framework="pt") as held, torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(held.get_tensor(f"weight/{name}"))
    model.eval().save_pretrained(out)
    recipe.processor().save_pretrained(out)
    listing = out.parent / "checksums.json"
    listed = json.loads(listing.read_text(encoding="utf-8")) if listing.exists() else {}
    files = sorted(file for file in out.iterdir() if file.is_file() and file.name != CARD)
    listed[out.name] = {file.name: digest(file) for file in files}
    listing.write_text(json.dumps(listed, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Train a checkpoint as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m hooked_vlm.zoo.train", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the finished checkpoint")
    parser.add_argument("--state", type=pathlib.Path, help="folder of the unfinished one (OUT.training)")
    parser.add_argument("--steps", type=int, help="how many steps, in place of the recipe's")
    parser.add_argument("--float32", action="store_true", help="no bfloat16: twice the time where it is built in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = RECIPES[given.name]
    schedule = recipe.schedule
    if given.steps is not None:
        schedule = dataclasses.replace(schedule, steps=given.steps)
    if given.float32:
        schedule = dataclasses.replace(schedule, bfloat16=False)
    state = given.state or given.out.with_name(given.out.name + ".training")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(recipe.name, total=schedule.steps)
        for done, loss, model in train(recipe, schedule, state, seed=given.seed):
            progress.update(bar, completed=done, description=f"{recipe.name}  loss {loss:.3f}")
            if done % LOOK_EVERY == 0 or done == schedule.steps:
                shares = look(recipe, model, LOOK_AT)
                told = "  ".join(f"{name} {share:.3f}" for name, share in shares.items() if name in shapes.TASKS)
                progress.console.print(f"{done}: {told}")
                with (state / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps({"done": done, "loss": loss, **shares}) + "\n")
    export(recipe, state, given.out)


if __name__ == "__main__":
    main()
