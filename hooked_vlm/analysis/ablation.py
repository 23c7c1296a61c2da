"""What selected heads are worth: accuracy and logit difference without them, against as many random heads.

A head is *mean-ablated* (Wang et al. 2022): at every position of the prompt its output z is replaced by its mean over
a reference batch of the same task. Where all reference prompts have one length the mean is taken position by position
(`hooks.mean_ablate`'s); where lengths differ positions do not correspond, and the mean is over examples and
positions, of image positions and of text positions apart. Each selection is compared with random sets of as many
heads of the same layers, so that depth and number are the same and only the choice differs.

Cost: one forward a batch, then one resumed pass of the prompt's stack (and what follows it) a chunk of
``rows = examples x head sets``, from the first layer that holds an ablated head; the vision tower runs once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vlm.analysis.heads import Head, module_of, of_heads
from hooked_vlm.errors import DataError, StackError, quoted
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import RunState
from hooked_vlm.patching.metrics import answer_logits

HeadSet = tuple[Head, ...]
Means = dict[str, Float[Tensor, "at head d_head"]]

COLUMNS = ("row", "selection", "draw", "n_heads", "correct", "logit_diff", "overlap", "heads")
FULL = "none"  # the selection that ablates nothing
SELECTED = -1  # the draw that is the selection itself


def hook_name(model: HookedVLM, kind: str, layer: int) -> str:
    """The `hook_z` of a kind of heads of the prompt's stack.

    Raises:
        StackError: if the model has none such.
    """
    name = f"{model.stacks[model.prompt_stack].prefix}blocks.{layer}.{module_of(kind)}.hook_z"
    if name not in model.hook_dict:
        raise StackError(
            f"there is no {name}: {model.prompt_stack} has no heads of kind {quoted(kind)} in layer {layer}"
        )
    return name


# --- means ------------------------------------------------------------------------------------------


class ReferenceMeans:
    """The mean z of every head over a reference batch, gathered batch by batch in constant memory.

    Args:
        model: a `HookedVLM`.
        kinds: of heads.
    """

    def __init__(self, model: HookedVLM, kinds: Iterable[str]) -> None:
        layers = range(model.stacks[model.prompt_stack].cfg.n_layers)
        self.model = model
        self.hooks = [hook_name(model, kind, layer) for kind in kinds if of_heads(kind) for layer in layers]
        self.lengths: set[int] = set()
        self._by_position: dict[str, Tensor] = {}  # sums [pos head d_head], while lengths agree
        self._by_class: dict[str, Tensor] = {}  # sums [2 head d_head]: text, image
        self._n_rows = 0
        self._n_class = torch.zeros(2, dtype=torch.float64)

    @property
    def positionwise(self) -> bool:
        """True while all reference prompts have one length."""
        return len(self.lengths) <= 1

    def add(self, inputs: VLMInputs) -> ReferenceMeans:
        """Take a batch of clean examples into the means."""
        real, is_image = inputs.is_real, inputs.is_image
        self.lengths |= set(real.sum(1).tolist())
        groups = torch.stack([real & ~is_image, real & is_image])  # [2 batch pos]

        def keep(activation: Tensor, hook: Any) -> None:
            z = activation.double()
            by_class = torch.einsum("cbp,bphd->chd", groups.to(z), z)
            self._by_class[hook.name] = self._by_class.get(hook.name, 0) + by_class
            if self.positionwise:
                packed = _packed(z, real)
                self._by_position[hook.name] = self._by_position.get(hook.name, 0) + packed.sum(0)

        with torch.no_grad():
            self.model.run_with_hooks(inputs, fwd_hooks=[(name, keep) for name in self.hooks], logits_at="last")
        self._n_rows += len(inputs)
        self._n_class += groups.sum((1, 2)).double().cpu()
        return self

    def of(self, inputs: VLMInputs, hook: str) -> Float[Tensor, "batch pos head d_head"]:
        """The mean that stands in for a head's z, at every position of some inputs.

        Raises:
            DataError: if nothing was added yet.
        """
        if not self._n_rows:
            raise DataError("the reference batch is empty: add clean examples of the task before ablating")
        lengths = set(inputs.is_real.sum(1).tolist())
        if self.positionwise and lengths == self.lengths:
            mean = self._by_position[hook] / self._n_rows
            return mean[inputs.position_ids.to(mean.device)]
        sums = self._by_class[hook]
        mean = sums / self._n_class.clamp(min=1).to(sums)[:, None, None]
        if not (self._n_class[1]):
            mean = mean[[0, 0]]
        return mean[inputs.is_image.long().to(mean.device)]


def _packed(z: Tensor, real: Tensor) -> Float[Tensor, "batch n_real head d_head"]:
    """The real positions of rows of one length, padding left out on whichever side it is."""
    return z[real.to(z.device)].reshape(len(z), -1, *z.shape[2:])


# --- random heads -----------------------------------------------------------------------------------


def random_sets(selected: Sequence[Head], n_heads: int, draws: int, seed: int = 0) -> list[HeadSet]:
    """Random sets of as many heads of the same layers and kinds, never the selected set itself, each set once.

    Each layer gives as many other heads as were selected in it. Where it has too few others, it gives all of them and
    fills up with selected ones; where it has none, it gives what was selected, as no other set of that size is in it.

    Args:
        selected: heads of one selection.
        n_heads: heads in a layer.
        draws: how many sets.
        seed: which.

    Returns:
        `draws` different sets, or all that there are if they are fewer; none if every layer was selected whole.
    """
    layers: dict[tuple[str, int], list[int]] = {}
    for kind, layer, head in selected:
        layers.setdefault((kind, layer), []).append(head)
    others = {at: [h for h in range(n_heads) if h not in chosen] for at, chosen in layers.items()}
    choices: list[list[tuple[int, ...]]] = []
    n_possible, generator = 1, np.random.default_rng((seed, 6))
    for at, chosen in layers.items():
        n = math.comb(len(others[at]), len(chosen)) or math.comb(len(chosen), len(chosen) - len(others[at]))
        n_possible *= n
    own = tuple(sorted(set(selected)))
    if n_possible <= max(4 * draws, 64):
        for at, chosen in layers.items():
            free, n = others[at], len(chosen)
            few = n > len(free)
            kept = combinations(chosen, n - len(free)) if few else combinations(free, n)
            choices.append([tuple(sorted((*free, *k) if few else k)) for k in kept])
        every = [_as_set(layers, each) for each in product(*choices)]
        possible = [each for each in every if each != own]
        order = generator.permutation(len(possible))[:draws]
        return [possible[i] for i in order]
    found: dict[HeadSet, None] = {}
    while len(found) < draws:
        each = []
        for at, chosen in layers.items():
            free, n = others[at], len(chosen)
            some = generator.permutation(free)[:n].tolist()
            filled = generator.permutation(chosen)[: n - len(some)].tolist()
            each.append(tuple(sorted(int(h) for h in (*some, *filled))))
        if (drawn := _as_set(layers, each)) != own:
            found[drawn] = None
    return list(found)


def _as_set(layers: Mapping[tuple[str, int], list[int]], heads: Iterable[tuple[int, ...]]) -> HeadSet:
    return tuple(sorted((kind, layer, h) for (kind, layer), each in zip(layers, heads, strict=True) for h in each))


# --- ablating ---------------------------------------------------------------------------------------


def ablate(
    model: HookedVLM,
    inputs: VLMInputs,
    right: Sequence[int],
    wrong: Sequence[int],
    selections: Mapping[str, Sequence[Head]],
    means: ReferenceMeans,
    *,
    draws: int = 20,
    seed: int = 0,
    max_rows: int = 256,
) -> pd.DataFrame:
    """Accuracy and logit difference of clean examples, whole and without each selection and its random counterparts.

    Args:
        model: a `HookedVLM`.
        inputs: clean examples of one task.
        right: token id of each example's right answer.
        wrong: of its wrong one.
        selections: heads by name; an empty selection is left out.
        means: of the same task.
        draws: random sets for each selection.
        seed: which; the same sets are drawn for every batch.
        max_rows: rows in one pass.

    Returns:
        A row for each example (row, its place in the batch) and head set: selection ("none" for the whole model),
        draw (-1 for the selection, 0.. for random sets), n_heads, correct (the right token has the largest logit of
        the vocabulary at the last position), logit_diff (L(right) - L(wrong)), overlap (how many of the heads are
        selected ones), heads (e.g. "cross_attn-heads 1.3 2.0").

    Raises:
        DataError: if there are not as many answers as examples.
        StackError: if the model has no such heads.
    """
    if not len(right) == len(wrong) == len(inputs):
        raise DataError(f"{len(right)} right and {len(wrong)} wrong answers were given for {len(inputs)} examples")
    n_heads = model.stacks[model.prompt_stack].cfg.n_heads
    named: list[tuple[str, int, HeadSet]] = []
    for name, heads in selections.items():
        if heads:
            own = tuple(sorted({(str(kind), int(layer), int(head)) for kind, layer, head in heads}))
            named.append((name, SELECTED, own))
            named += [(name, i, each) for i, each in enumerate(random_sets(own, n_heads, draws, seed))]
    with torch.no_grad():
        logits, state = model.run_with_state(inputs)
        ids = torch.stack([torch.as_tensor(list(right)), torch.as_tensor(list(wrong))], 1)
        last = answer_logits(model, inputs, logits)[:, -1]
        parts = [_measured(last, ids, [(FULL, SELECTED, ())], selections)]
        size = max(1, max_rows // len(inputs))
        ordered = sorted(named, key=lambda one: one[2][0][1])  # sets that begin in deep layers go together
        for start in range(0, len(ordered), size):
            chunk = ordered[start : start + size]
            out = _without(model, state, [heads for _, _, heads in chunk], means)
            parts.append(_measured(out, ids, chunk, selections))
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(["row", "selection", "draw"], ignore_index=True)[list(COLUMNS)]


def _without(
    model: HookedVLM, state: RunState, sets: Sequence[HeadSet], means: ReferenceMeans
) -> Float[Tensor, "rows d_vocab"]:
    """Logits at the last position without each set of heads; rows of one example next to one another."""
    stack = model.prompt_stack
    masks: dict[str, Tensor] = {}
    for i, heads in enumerate(sets):
        for kind, layer, head in heads:
            name = hook_name(model, kind, layer)
            mask = masks.setdefault(name, torch.zeros(len(sets), model.stacks[stack].cfg.n_heads, dtype=torch.bool))
            if not 0 <= head < mask.shape[1]:
                raise StackError(f"there is no head {head} in {name}, which has {mask.shape[1]}")
            mask[i, head] = True
    first = min(layer for heads in sets for _, layer, _ in heads)

    def replaced(name: str) -> Any:
        mean, mask = means.of(state.inputs, name), masks[name]

        def hook_fn(z: Tensor, hook: Any) -> Tensor:
            n = len(state.inputs)
            here = mask.to(z.device).repeat(n, 1)[:, None, :, None]
            return torch.where(here, mean.to(z).repeat_interleave(len(mask), 0), z)

        return hook_fn

    rows = state.resid_pre(stack, first).repeat_interleave(len(sets), 0)
    with model.hooks(fwd_hooks=[(name, replaced(name)) for name in masks]):
        return model.resume(state, stack, {first: rows}, logits_at="last")[:, -1]


def _measured(
    logits: Tensor, ids: Tensor, sets: Sequence[tuple[str, int, HeadSet]], selections: Mapping[str, Sequence[Head]]
) -> pd.DataFrame:
    n_sets = len(sets)
    of_rows = ids.repeat_interleave(n_sets, 0).to(logits.device)
    scores = logits.float().gather(-1, of_rows)
    own = {name: {tuple(head) for head in heads} for name, heads in selections.items()}
    about = pd.DataFrame(
        {
            "selection": [name for name, _, _ in sets],
            "draw": [draw for _, draw, _ in sets],
            "n_heads": [len(heads) for _, _, heads in sets],
            "overlap": [len(own.get(name, set()) & set(heads)) for name, _, heads in sets],
            "heads": [spelled(heads) for _, _, heads in sets],
        }
    )
    table = pd.concat([about] * len(ids), ignore_index=True)
    return table.assign(
        row=np.repeat(np.arange(len(ids)), n_sets),
        correct=(logits.argmax(-1) == of_rows[:, 0]).cpu().numpy(),
        logit_diff=(scores[:, 0] - scores[:, 1]).cpu().double().numpy(),
    )


def spelled(heads: Iterable[Head]) -> str:
    """Heads in one line, as layer.head after their kind: "cross_attn-heads 1.3 2.0"."""
    kinds: dict[str, list[str]] = {}
    for kind, layer, head in heads:
        kinds.setdefault(kind, []).append(f"{layer}.{head}")
    return ", ".join(f"{kind} {' '.join(each)}" for kind, each in kinds.items())
