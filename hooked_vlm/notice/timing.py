"""How long a run's parts take on its own device, from a few timed passes of its own widths.

Costs a second or so a pass, and as much memory as a pass of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.notice.foreseen import Foreseen
from hooked_vlm.patching import cost

TRIAL_FLOP = 1e11  # operations of the timed pass: about a second on a CPU


@dataclass(frozen=True)
class Rates:
    """Seconds of a run's parts.

    Args:
        forward: one forward of one example.
        position: one position of one row through one block of the prompt's stack.
        row: what follows that stack, for one row.
        in_pass: what a growing pass takes whatever its rows, for each block.
    """

    forward: float
    position: float
    row: float
    in_pass: float


def rates(timed: Any, model: HookedVLM, inputs: VLMInputs, found: Foreseen, most_rows: int) -> Rates:
    """Time a forward and two growing passes.

    Args:
        timed: a `HookedVLM` that can be run; with fewer layers than `model`, what a layer takes is counted up.
        model: the run's.
        inputs: of one batch of the run.
        found: what will be swept.
        most_rows: sites of an example that fit the memory.
    """
    name = model.prompt_stack
    stack, n_batch = timed.stacks[name], len(inputs)
    n_layers, n = stack.cfg.n_layers, inputs.input_ids.shape[1]
    with torch.no_grad():
        timed(inputs, logits_at="last")  # what is only slow the first time
        forward = _whole(timed, model, *_spent(timed, lambda: timed(inputs, logits_at="last")))
        _, state = timed.run_with_state(inputs)
        left = min(n, max(1, round(found.n_left)))
        first = n - left if stack.causal else 0
        left = n - first
        flop = n_batch * (
            n_layers * cost.block_flop(stack.cfg, left, n) + cost.run_flop(timed, cost.lengths_of(timed, n), after=name)
        )
        n_rows = max(1, min(most_rows, max(1, found.n_run), int(TRIAL_FLOP / flop)))

        def passed(rows: int, begin: int) -> Callable[[], object]:
            injected = {0: state.resid_pre(name, 0)[:, begin:].repeat_interleave(rows, 0)}
            return lambda: timed.resume(state, name, injected, first_position=begin, logits_at="last")

        small, large = passed(1, n - 1 if stack.causal else 0), passed(n_rows, first)
        small(), large()
        (few, _), (many, many_all) = _spent(timed, small), _spent(timed, large)
    in_pass = few[name] / n_layers
    position = max(many[name] - few[name], 0.05 * many[name]) / (n_rows * n_batch * left * n_layers)
    after = {each: spent for each, spent in many.items() if each != name}
    row = _whole(timed, model, after, many_all - many[name]) / (n_rows * n_batch)
    return Rates(forward / n_batch, position, row, in_pass)


def _spent(model: HookedVLM, call: Callable[[], object]) -> tuple[dict[str, float], float]:
    """Seconds between the first and the last block of each stack that a call passes, and of the call in all."""
    marks: dict[str, float] = {}

    def mark(activation: torch.Tensor, hook: Any) -> None:
        marks[str(hook.name)] = _now(model)

    ends = {
        name: (f"{s.prefix}blocks.0.hook_resid_pre", f"{s.prefix}blocks.{s.cfg.n_layers - 1}.hook_resid_post")
        for name, s in model.stacks.items()
    }
    with model.hooks(fwd_hooks=[(name, mark) for pair in ends.values() for name in pair]):
        began = _now(model)
        call()
        whole = _now(model) - began
    return {name: marks[last] - marks[first] for name, (first, last) in ends.items() if last in marks}, whole


def _whole(timed: Any, model: HookedVLM, spent: dict[str, float], whole: float) -> float:
    """What a call would take with every layer of the run's model."""
    more = {name: model.stacks[name].cfg.n_layers / timed.stacks[name].cfg.n_layers - 1 for name in spent}
    return whole + sum(more[name] * seconds for name, seconds in spent.items())


def _now(model: HookedVLM) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
