"""Sets of heads patched together: single heads, pairs, everything but a circuit. What `circuits` rests on.

A set's heads are taken from the source run at the same time, in every example, and the rest follows freely. Each set
is equal to one `run_with_hooks`; together they ride in one growing pass, as the sites of a sweep do: a set's rows join
before the first layer in which it changes anything, earlier stages and (in a causal stack) earlier positions are
shared, and a set that cannot differ from the base run is not run. With means (`ablation.ReferenceMeans`) heads are
mean-ablated in the clean run instead.

Heads are those of the prompt's stack, (kind, layer, head) as everywhere in `analysis`.

Cost: three forwards, and for each set the blocks from its first layer on. Memory: `budget` bytes; running out of it
halves the chunks. Models that carry hooks of the user's own take a run of the whole model a set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_vlm import hooks
from hooked_vlm.analysis.ablation import ReferenceMeans, hook_name
from hooked_vlm.analysis.heads import Head, head_name, module_of, of_heads
from hooked_vlm.errors import InputsError, StackError
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.memory import free_bytes, ran_out
from hooked_vlm.models.turn import a_model, alone
from hooked_vlm.options import told
from hooked_vlm.patching.cost import row_numbers
from hooked_vlm.patching.engine import WASTE
from hooked_vlm.patching.metrics import answer_logits, measured
from hooked_vlm.patching.plan import Measure, SweepPlan, asked, prepared
from hooked_vlm.patching.sites import ALL, Index, Sites
from hooked_vlm.positions import Places

Direction = Literal["denoise", "noise"]
PerExample = Float[np.ndarray, "example"]
PerSet = Float[np.ndarray, "example set"]


@dataclass(frozen=True)
class SetsPatched:
    """What the metric was with each set of heads patched.

    Args:
        values: of the patched runs, [example set].
        clean: of the clean run, [example].
        corrupt: of the corrupt run, [example]; None where heads were mean-ablated and there is none.
        direction: "denoise" (clean into the corrupt run) or "noise" (corrupt, or the mean, into the clean one).
    """

    values: PerSet
    clean: PerExample
    corrupt: PerExample | None
    direction: Direction

    @property
    def effects(self) -> PerSet:
        """By how much the sets restore the answer (denoise), or take it away (noise); [example set].

        ``L_patched - L_corrupt`` or ``L_clean - L_patched``: positive where the heads speak for the right answer.
        """
        if self.direction == "noise":
            return self.clean[:, None] - self.values
        assert self.corrupt is not None
        return self.values - self.corrupt[:, None]

    @property
    def span(self) -> PerExample:
        """``L_clean - L_corrupt``, [example].

        Raises:
            InputsError: if there is no corrupt run.
        """
        if self.corrupt is None:
            raise InputsError("heads were mean-ablated without a corrupt run, so that there is no span: give corrupt")
        return self.clean - self.corrupt


def heads_of(model: HookedVLM, kinds: Iterable[str] | None = None) -> list[Head]:
    """Every head of the prompt's stack, by kind, layer and head.

    Args:
        model: a `HookedVLM`.
        kinds: "cross_attn-heads", "attn-heads"; None for those there are.

    Raises:
        StackError: if it has no heads of a kind.
    """
    stack = a_model(model).stacks[model.prompt_stack]
    if kinds is None:
        crossed = any(getattr(block, "has_cross_attn", False) for block in stack.blocks)
        kinds = ["cross_attn-heads", "attn-heads"] if crossed else ["attn-heads"]
    found = []
    for kind in dict.fromkeys(kinds):
        known = _sites(model, kind, ALL)
        found += [(kind, layer, head) for layer in known.layers for head in range(stack.cfg.n_heads)]
    return found


def as_heads(model: HookedVLM, heads: Iterable[Any]) -> list[Head]:
    """Heads as they were given, each once, and looked at: every one is there.

    Raises:
        StackError: if one is not a head of the prompt's stack, or is given twice.
        InputsError: if one is no (kind, layer, head).
    """
    found: list[Head] = []
    known: dict[str, set[Head]] = {}
    for given in heads:
        try:
            kind, layer, head = given
            one = (str(kind), int(layer), int(head))
        except (TypeError, ValueError) as error:
            raise InputsError(f"a head is {told(given)}; expected (kind, layer, head): ('attn-heads', 1, 3)") from error
        if one[0] not in known:
            known[one[0]] = set(heads_of(model, [one[0]]))
        if one not in known[one[0]]:
            cfg = model.stacks[model.prompt_stack].cfg
            raise StackError(
                f"there is no head {head_name(*one)}: {model.prompt_stack} has {cfg.n_layers} layers of {cfg.n_heads}"
            )
        if one in found:
            raise StackError(f"head {head_name(*one)} was given twice")
        found.append(one)
    return found


@alone
def patch_sets(
    model: HookedVLM,
    clean: VLMInputs,
    corrupt: VLMInputs | None,
    metric: Measure,
    sets: Sequence[Iterable[Head]],
    *,
    positions: Index = ALL,
    direction: Direction = "denoise",
    means: ReferenceMeans | None = None,
    corruption: Sequence[Any] = (),
    budget: int | None = None,
) -> SetsPatched:
    """Patch sets of heads, the heads of each together, and measure.

    Args:
        model: a `HookedVLM`.
        clean: inputs that the model answers rightly.
        corrupt: inputs of the same shape, with the image or the text corrupted; may be None with `means`.
        metric: of the logits, e.g. `patching.metrics.logit_diff(right, wrong)`.
        sets: heads (kind, layer, head) of the prompt's stack; an empty set patches nothing.
        positions: "all_at_once", or as `Sites` takes them; several are patched together.
        direction: "denoise" patches clean into the corrupt run, "noise" corrupt into the clean one.
        means: puts these in the place of heads of the clean run; `direction` has to be "noise".
        corruption: forward hooks that are in place while the corrupt inputs run, as `sweep`'s.
        budget: bytes that a pass may take; None for a quarter of what is free.

    Raises:
        InputsError: if clean and corrupt do not fit one another, or options contradict one another.
        StackError: if the model has no such heads.
        PositionError: if a position is out of range, or padding.
    """
    wanted = [as_heads(model, heads) for heads in sets]
    kinds = list(dict.fromkeys(kind for heads in wanted for kind, _, _ in heads)) or ["attn-heads"]
    sites = {kind: _sites(model, kind, ALL if positions is None else positions) for kind in kinds}
    _refuse_contradictions(corrupt, direction, means)
    named = asked(
        model, clean, clean if corrupt is None else corrupt, sites, metric, direction=direction, reduce="none",
        budget=budget,
    )  # fmt: skip
    source, base = (clean, corrupt) if direction == "denoise" else (corrupt, clean)
    assert base is not None
    into, out_of = (corruption, ()) if direction == "denoise" else ((), corruption)
    with torch.no_grad():
        if means is None:
            plans = prepared(model, source, base, sites, named, out_of, into)
        else:
            plans = prepared(model, None, base, sites, named, (), (), lambda z, hook: means.of(base, hook.name).to(z))
        pass_ = _Pass(plans, wanted)
        values = pass_.run(budget)
        ours = pass_.plan.baseline[0].cpu()
        theirs = None if source is None else _measured_alone(pass_.plan, source, out_of)
    high, low = (ours, theirs) if direction == "noise" else (theirs, ours)
    assert high is not None
    return SetsPatched(_array(values), _array(high), None if low is None else _array(low), direction)


def _sites(model: HookedVLM, kind: str, positions: Index) -> Sites:
    if not of_heads(kind):
        raise StackError(f"there are no heads of kind {kind!r}; expected 'cross_attn-heads' or 'attn-heads'")
    hook_name(model, kind, 0)  # raises where there are none
    return Sites.heads(model, model.prompt_stack, module_of(kind), positions=positions)


def _refuse_contradictions(corrupt: VLMInputs | None, direction: str, means: ReferenceMeans | None) -> None:
    if means is not None and direction != "noise":
        raise InputsError(f"means take the place of clean heads, and direction={direction!r}: give direction='noise'")
    if corrupt is None and means is None:
        raise InputsError("there is nothing to patch in: give corrupt inputs, or means (ReferenceMeans)")


def _measured_alone(plan: SweepPlan, inputs: VLMInputs, hooked: Sequence[Any]) -> Tensor:
    """The metric of a run that nothing is patched into."""
    logits = plan.model.run_with_hooks(inputs, fwd_hooks=list(hooked))
    logits = answer_logits(plan.model, inputs, logits) if plan.reads_last else logits
    ((name, fn),) = plan.metrics.items()
    return measured(name, fn, logits, len(inputs)).cpu()


def _array(values: Tensor) -> np.ndarray:
    return values.double().numpy()


class _Pass:
    """Sets of heads in the base run of a sweep, those of one pass side by side.

    Args:
        plans: by kind of heads; they share their runs.
        sets: of heads.
    """

    def __init__(self, plans: dict[str, SweepPlan], sets: Sequence[Sequence[Head]]) -> None:
        self.plan, self.sets = next(iter(plans.values())), sets
        model, self.stack = self.plan.model, self.plan.model.prompt_stack
        cfg = model.stacks[self.stack].cfg
        self.begins = [cfg.n_layers] * len(sets)  # the first layer in which a set changes anything; none if n_layers
        self.first = [0] * len(sets)  # the first position that it changes there
        self.positions = {kind: _spelled(plan.sites.positions) for kind, plan in plans.items()}
        self.masks: dict[str, Bool[Tensor, "set head"]] = {}
        self.kinds: dict[str, str] = {}
        moves = {kind: _moving(plan) for kind, plan in plans.items()}
        for i, heads in enumerate(sets):
            moved = [(layer, moves[kind][layer, head]) for kind, layer, head in heads if (layer, head) in moves[kind]]
            if moved:
                self.begins[i] = min(layer for layer, _ in moved)
                self.first[i] = min(at for _, at in moved) if self.plan.reads_last else 0
            for kind, layer, head in heads:
                name = hook_name(model, kind, layer)
                self.kinds[name] = kind
                mask = self.masks.setdefault(name, torch.zeros(len(sets), cfg.n_heads, dtype=torch.bool))
                mask[i, head] = True

    def run(self, budget: int | None) -> Float[Tensor, "example set"]:
        """The metric with each set patched."""
        values = self.plan.baseline[0].cpu()[:, None].repeat(1, len(self.sets))
        waiting = self._chunks(budget)
        while waiting:
            chunk = waiting.pop()
            try:
                values[:, chunk] = (self._alone if self.plan.state is None else self._grown)(chunk).to(values)
            except Exception as error:
                if not ran_out(error) or len(chunk) == 1:
                    raise
                waiting += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
        return values

    def _chunks(self, budget: int | None) -> list[list[int]]:
        """Sets that run together: as many as fit, and where a stack is causal none that would begin much later."""
        plan, n = self.plan, len(self.plan.base)
        last = plan.model.stacks[self.stack].cfg.n_layers
        runs = [i for i, layer in enumerate(self.begins) if layer < last]
        if plan.state is None or not runs:
            return [[i] for i in runs]
        budget = free_bytes(plan.model.device) // 4 if budget is None else budget
        n_logits = 1 if plan.reads_last else plan.logits.shape[1]
        earliest = min(self.first[i] for i in runs)
        row = row_numbers(plan.model, plan.sites, plan.lengths, earliest, n_logits=n_logits, shared=True)
        size = max(1, int(budget // (row * plan.logits.element_size() * n)))
        found: list[list[int]] = []
        for i in sorted(runs, key=lambda i: -self.first[i]):
            late = bool(found) and (self.first[found[-1][0]] - self.first[i]) * len(found[-1]) * n > WASTE
            if not found or late or len(found[-1]) == size:
                found.append([])
            found[-1].append(i)
        return found

    def _grown(self, chunk: list[int]) -> Float[Tensor, "example set"]:
        """One growing pass: rows join before the layers that their sets begin in."""
        plan, n = self.plan, len(self.plan.base)
        assert plan.state is not None
        order = sorted(range(len(chunk)), key=lambda i: self.begins[chunk[i]])
        sets = [chunk[i] for i in order]
        first = min(self.first[i] for i in sets)
        joining = {layer: sum(self.begins[i] == layer for i in sets) for layer in {self.begins[i] for i in sets}}
        injected = {
            layer: plan.state.resid_pre(self.stack, layer)[:, first:].repeat_interleave(k, 0)
            for layer, k in joining.items()
        }
        with plan.model.hooks(fwd_hooks=self._hooks(sets)):
            logits = plan.model.resume(
                plan.state,
                self.stack,
                injected,
                first_position=first,
                logits_at="last" if plan.reads_last else None,
            )
        ((name, fn),) = plan.metrics.items()
        found = measured(name, fn, logits, n).reshape(n, len(sets))
        return found[:, torch.tensor(order).argsort().to(found.device)]

    def _alone(self, chunk: list[int]) -> Float[Tensor, "example set"]:
        """One run of the whole model a set."""
        plan = self.plan
        ((name, fn),) = plan.metrics.items()
        each = []
        for i in chunk:
            logits = plan.model.run_with_hooks(plan.base, fwd_hooks=[*plan.hooks, *self._hooks([i])])
            each.append(measured(name, fn, plan.read(logits), len(plan.base)))
        return torch.stack(each, 1)

    def _hooks(self, sets: list[int]) -> list[tuple[str, Any]]:
        """Hook functions that patch each row's own heads; the rows of an example are as many of the sets as joined."""
        n = len(self.plan.base)

        def patching(name: str, mask: Tensor) -> Any:
            everywhere = hooks.patch(self.plan.source, self.positions[self.kinds[name]])

            def hook_fn(z: Tensor, hook: Any) -> Tensor:
                here = mask[: len(z) // n].to(z.device).repeat(n, 1)
                return torch.where(here[:, None, :, None], everywhere(z, hook), z)

            return hook_fn

        own = {name: mask[sets] for name, mask in self.masks.items()}
        return [(name, patching(name, mask)) for name, mask in own.items() if bool(mask.any())]


def _spelled(positions: Places | str | None) -> Index:
    """The positions of closed sites as hook functions take them."""
    if not isinstance(positions, Places):
        return None
    return list(positions.rows) if positions.by_row else positions.rows[0]


def _moving(plan: SweepPlan) -> dict[tuple[int, int], int]:
    """The heads that a patch changes in any example, with the first position that it changes."""
    found: dict[tuple[int, int], int] = {}
    table = plan.sites.table
    rows = zip(
        table["layer"].tolist(), table["head"].tolist(), plan.matters.any(1).tolist(), plan.first.tolist(), strict=True
    )
    for layer, head, matters, first in rows:
        if matters:
            found[layer, head] = min(first, found.get((layer, head), first))
    return found
