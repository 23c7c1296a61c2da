"""Every option of every family meets every public way to run it.

A batch of a drawn model (window, rotary positions, grouped heads, feature layers, flags; padded on the left, on the
right, on both sides or not) is run in each of the `WAYS`, and each of its rows is held against an oracle that knows no
batch and no padding: the row alone, through Hugging Face where that has such a way, through one plain `run_with_hooks`
where it has none. All in float64, where no draw is too close to call; the dtypes that people run are held against it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.analysis.lens import direct_logit_attribution, logit_lens
from hooked_vlm.errors import InputsError
from hooked_vlm.patching import Sites, attribution, metrics, path_patching, sweep
from hooked_vlm.positions import Places
from tests.models import checkpoints, drawn
from tests.models.reference import hf_logits, scale, unpadded
from tests.models.test_parity import hf_generate
from tests.models.test_resume import arrives_at
from tests.patching import test_paths
from tests.patching.test_sweep import at_last, kinds_of_sites, on_padding, other

Found = dict[str, Tensor]  # what a way gives for one row, by name
# Of the scale of the numbers. What is right differs by some 1e-15, and by 6e-8 where a metric is kept in float32.
TOLERANCE = 1e-6


# --- a row of a batch, and the same row alone -------------------------------------------------------


@dataclass
class Row:
    """One row of a batch.

    Args:
        number: which.
        alone: the row without its padding, a batch of one.
        places: where its real tokens stand in the batch.
    """

    number: int
    alone: VLMInputs
    places: Tensor

    def of(self, batch: Tensor, axes: list[int], first: int = 0) -> Tensor:
        """What is this row's of an activation of the batch, at its real tokens along `axes`; [1 ...]."""
        found = batch[self.number : self.number + 1]
        for axis in axes:
            found = found.index_select(axis, self.places[self.places >= first] - first)
        return found

    def position(self, p: int, counted: bool) -> int | None:
        """A position of the batch in the row alone; None where it is padding. Not `counted`: it is no prompt's."""
        if not counted:
            return p
        hits = (self.places == p).nonzero().flatten().tolist()
        return hits[0] if hits else None


def rows_of(inputs: VLMInputs) -> list[Row]:
    """The rows of a batch."""
    return [Row(i, unpadded(inputs, i), inputs.is_real[i].nonzero().flatten()) for i in range(len(inputs))]


def prompt_axes(model: HookedVLM, hook: str) -> list[int]:
    """Which axes of an activation are the prompt's positions, so that padding is among them."""
    own = model.stack_of(hook) == model.prompt_stack
    if hook == "hook_logits":
        return [1] if answers_in_prompt(model) else []
    crossed = "cross_attn" in hook
    keys = (crossed and model.stack_of(hook) == "text_decoder" != model.prompt_stack) or (own and not crossed)
    axes: list[int] = []
    for i, axis in enumerate(model.hook_dict[hook].axes):  # type: ignore[arg-type]
        if (own and axis in ("pos", "query_pos")) or (keys and axis == "key_pos"):
            axes.append(i)
    return axes


def answers_in_prompt(model: HookedVLM) -> bool:
    """True if there are logits at the prompt's positions."""
    return model.answer_stack == model.prompt_stack and "unembed" in model._modules


def numbers(x: Tensor) -> Tensor:
    """An activation with numbers only: a score of -inf stands for a key that is not seen."""
    return x.detach().masked_fill(x.isneginf(), -1e3)


# --- the ways ---------------------------------------------------------------------------------------


class Way:
    """A public way to run a model. `plan` draws what is asked of it."""

    kinds = ("llava", "vqa", "caption", "itm")
    any_size = False  # whether it takes images of another size

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        """What is asked of the way."""

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        """What it gives for each row of the batch."""
        raise NotImplementedError

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        """What it must give for a row."""
        raise NotImplementedError


class Forward(Way):
    """Logits at every position, and at the last alone; Hugging Face's."""

    any_size = True

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        options = {"interpolate_pos_encoding": case.interpolate}
        logits, last = model(case.inputs, **options), model(case.inputs, logits_at="last", **options)
        axes = prompt_axes(model, "hook_logits")
        return [{"logits": r.of(logits, axes), "last": r.of(last, [])} for r in rows_of(case.inputs)]

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        logits = hf_logits(case.hf, case.kind, row.alone, case.interpolate)
        return {"logits": logits, "last": logits[:, -1:]}


class Loss(Way):
    """The loss of each token that has one before it, and of no other; from Hugging Face's logits."""

    kinds = ("llava", "vqa", "caption")
    any_size = True

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        inputs = self.asked(case.inputs, case.kind)
        losses = model(inputs, "loss", loss_per_token=True, interpolate_pos_encoding=case.interpolate)
        found = []
        for r in rows_of(inputs):
            own = losses[r.number]
            found.append({"losses": own[r.places[1:] - 1] if answers_in_prompt(model) else own, "sum": own.sum()})
        return found

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        asked = self.asked(row.alone, case.kind)
        logits = hf_logits(case.hf, case.kind, asked, case.interpolate)[0]
        ids = asked.input_ids[0] if case.kind != "vqa" else asked.decoder_input_ids[0]  # type: ignore[index]
        targets = ids.masked_fill(ids == drawn.IMAGE, -100) if case.kind == "llava" else ids
        losses = cross_entropy(logits[:-1], targets[1:], reduction="none")
        return {"losses": losses, "sum": losses.sum()}

    @staticmethod
    def asked(inputs: VLMInputs, kind: str) -> VLMInputs:
        """Inputs that have something to predict."""
        answer = torch.tensor([[drawn.BOS, 7, 9, 11]]).expand(len(inputs), -1)
        return inputs.replace(decoder_input_ids=answer) if kind == "vqa" else inputs


class Cache(Way):
    """Every activation there is, at the row's tokens."""

    any_size = True

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        _, cache = model.run_with_cache(case.inputs, interpolate_pos_encoding=case.interpolate)
        return [
            {name: numbers(row.of(x, prompt_axes(model, name))) for name, x in cache.items()}
            for row in rows_of(case.inputs)
        ]

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        _, cache = model.run_with_cache(row.alone, interpolate_pos_encoding=case.interpolate)
        return {name: numbers(x) for name, x in cache.items()}


class StopAtLayer(Way):
    """The residual stream as it arrives at a layer of any stack; what a whole run of the row has there."""

    any_size = True

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        stack = draw(st.sampled_from(list(model.stacks)))
        n_layers = model.stacks[stack].cfg.n_layers
        return SimpleNamespace(stack=stack, layer=draw(st.integers(-n_layers, n_layers)), n_layers=n_layers)

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        options = {"interpolate_pos_encoding": case.interpolate}
        resid = model(case.inputs, stop_at_layer=(plan.stack, plan.layer), **options)
        axes = [1] if plan.stack == model.prompt_stack else []
        return [{"resid": row.of(resid, axes)} for row in rows_of(case.inputs)]

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        layer = plan.layer if plan.layer == plan.n_layers else plan.layer % plan.n_layers
        name, options = arrives_at(model, plan.stack, layer), {"interpolate_pos_encoding": case.interpolate}
        return {"resid": model.run_with_cache(row.alone, names_filter=name, **options)[1][name]}


class Generate(Way):
    """Greedy tokens: those of Hugging Face's generate, or the likeliest by its forward, one after the other."""

    kinds = ("llava", "vqa", "caption")
    any_size = True
    n = 5

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        options = {"return_type": "tokens", "interpolate_pos_encoding": case.interpolate}
        _, pad = model._stop_tokens()
        tokens = model.generate(case.inputs, self.n, **options)
        tokens = torch.nn.functional.pad(tokens, (0, self.n - tokens.shape[1]), value=pad)
        return [{"tokens": row.double()} for row in tokens]

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        stop, pad = model._stop_tokens()
        asked, tokens = row.alone, list[int]()
        if case.kind == "llava" and not case.interpolate:
            tokens = hf_generate(case.hf, case.kind, asked, self.n)
            tokens += [pad] * (self.n - len(tokens))
        elif case.kind == "llava":  # a forward of the longer row would take its first keys for those of a longer one
            assume(case.hf.config.text_config.rope_parameters["rope_type"] != "longrope")
        while len(tokens) < self.n:
            token = int(hf_logits(case.hf, case.kind, asked, case.interpolate)[0, -1].argmax())
            assume(case.kind != "llava" or token != drawn.IMAGE)  # an answer with an image token in it is no prompt
            tokens.append(token)
            if token in stop:
                tokens += [pad] * (self.n - len(tokens))
            asked = followed_by(asked, token, case.kind)
        return {"tokens": torch.tensor(tokens).double()}


def followed_by(row: VLMInputs, token: int, kind: str) -> VLMInputs:
    """A row's inputs with one more token of the answer."""
    new = torch.tensor([[token]])
    if kind != "vqa":
        return row.replace(input_ids=torch.cat([row.input_ids, new], 1))
    so_far = torch.tensor([[drawn.BOS]]) if row.decoder_input_ids is None else row.decoder_input_ids
    return row.replace(decoder_input_ids=torch.cat([so_far, new], 1))


class Resume(Way):
    """Rows that join a finished run anywhere: whole runs with the same change."""

    any_size = True

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        stack = draw(st.sampled_from(list(model.stacks)))
        n_layers = model.stacks[stack].cfg.n_layers
        layers = draw(st.lists(st.integers(0, n_layers), min_size=1, max_size=3, unique=True).map(sorted))
        return SimpleNamespace(
            stack=stack,
            rows={layer: draw(st.integers(1, 3)) for layer in layers},
            first=draw(st.floats(0, 0.99)) if model.stacks[stack].causal else 0.0,
        )

    def changes(self, base: Tensor, plan: Any) -> tuple[int, dict[int, Tensor]]:
        """The first position that changes, and by layer what is added to the stream, [batch row pos d_model]."""
        first, generator = int(plan.first * base.shape[1]), torch.Generator().manual_seed(0)
        changes = {}
        for layer, n in plan.rows.items():
            noise = torch.randn((len(base), n, *base.shape[1:]), generator=generator, dtype=torch.float64).to(base)
            noise[:, :, :first] = 0
            changes[layer] = noise
        return first, changes

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        _, state = model.run_with_state(case.inputs, interpolate_pos_encoding=case.interpolate)
        first, changes = self.changes(state.resid_pre(plan.stack, 0), plan)
        injected = {layer: (state.resid_pre(plan.stack, layer)[:, None] + x) for layer, x in changes.items()}
        injected = {layer: x[:, :, first:].flatten(0, 1) for layer, x in injected.items()}
        logits = model.resume(state, plan.stack, injected, first_position=first)
        logits = logits.unflatten(0, (len(case.inputs), -1))
        first = first if plan.stack == model.answer_stack and case.kind != "itm" else 0
        axes = [2] if prompt_axes(model, "hook_logits") else []
        return [{"logits": row.of(logits, axes, first)[0]} for row in rows_of(case.inputs)]

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        _, cache = model.run_with_cache(case.inputs, interpolate_pos_encoding=case.interpolate)
        first, changes = self.changes(cache[arrives_at(model, plan.stack, 0)], plan)
        counted, found = plan.stack == model.prompt_stack, []
        for layer, noise in changes.items():
            for change in row.of(noise, [2] if counted else [])[0]:
                hook = (arrives_at(model, plan.stack, layer), lambda x, hook, change=change: x + change)
                options = {"interpolate_pos_encoding": case.interpolate}
                found.append(model.run_with_hooks(row.alone, fwd_hooks=[hook], **options)[0])
        logits = torch.stack(found)
        if plan.stack != model.answer_stack or case.kind == "itm":
            return {"logits": logits}
        before = int((row.places < first).sum()) if counted else first
        return {"logits": logits[:, before:]}


class Patching(Way):
    """What the ways that patch have in common: clean and corrupt inputs, sites and a metric."""

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        return SimpleNamespace(
            image=draw(st.booleans()),
            direction=draw(st.sampled_from(["denoise", "noise"])),
            everywhere=draw(st.booleans()),
        )

    def ends(self, plan: Any, inputs: VLMInputs) -> tuple[VLMInputs, VLMInputs]:
        """Clean and corrupt."""
        return inputs, other(inputs, plan.image)

    def runs(self, plan: Any, inputs: VLMInputs) -> tuple[VLMInputs, VLMInputs]:
        """What is patched in, and what it is patched into."""
        ends = self.ends(plan, inputs)
        return ends if plan.direction == "denoise" else ends[::-1]

    def metric(self, plan: Any, model: HookedVLM, inputs: VLMInputs) -> Any:
        """A number that is read at the last position, or one that is read at every token."""
        if not plan.everywhere:
            return metrics.Metric("at_last", lambda x: x[:, -1, 1].tanh() - x[:, -1, 0])
        real = inputs.is_real if answers_in_prompt(model) else torch.ones(len(inputs), 1, dtype=torch.bool)
        return lambda logits: ((logits[..., 1].tanh() - logits[..., 0]) * real).sum(1)

    def measured(self, plan: Any, model: HookedVLM, inputs: VLMInputs, logits: Tensor) -> Tensor:
        """The metric of a run."""
        logits = logits if plan.everywhere else at_last(model, inputs, logits)
        return self.metric(plan, model, inputs)(logits)

    def sites(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Sites:
        """Any sites there are, their positions spelled out."""
        kind, at = draw(kinds_of_sites(model, case.inputs))
        if at.get("activation") == "result":
            model.cfg.use_attn_result = True
        if at.get("hook", "").startswith("ln1."):  # has no one activation while each head has its own
            model.cfg.use_split_qkv_input = False
        sites = getattr(Sites, kind)(model, **at)
        assume(not on_padding(model, case.inputs, sites))  # which is refused
        return self.closed(model, case.inputs, sites)

    @staticmethod
    def closed(model: HookedVLM, inputs: VLMInputs, sites: Sites) -> Sites:
        """Sites with their positions spelled out."""
        axis = sites.position_axis
        if axis is None:
            return sites.at(1)
        activation = model.run_with_cache(inputs, names_filter=sites.hooks)[1][sites.hooks[0]]
        return sites.at(activation.shape[axis], len(inputs))

    @staticmethod
    def counted(model: HookedVLM, sites: Sites) -> bool:
        """True if the sites' positions are the prompt's."""
        return sites.position_axis in prompt_axes(model, sites.hooks[0])

    def cell_alone(self, model: HookedVLM, sites: Sites, cell: Any, row: Row) -> dict[str, int] | None:
        """A site of the batch as a site of a row alone; None where it is padding."""
        place = {name: int(value) for name, value in cell.items()}
        if "place" in place:
            place["position"] = sites.positions.rows[row.number][place.pop("place")]
        if "position" in place:
            position = row.position(place["position"], self.counted(model, sites))
            if position is None:
                return None
            place["position"] = position
        return place


def edited(x: Tensor, new: Tensor, sites: Sites, cell: dict[str, int]) -> Tensor:
    """An activation with one site of it taken from another run."""
    at: list[Any] = [slice(None)] * x.ndim
    if "position" in cell:
        at[sites.position_axis] = cell["position"]  # type: ignore[index]
    if "head" in cell or "neuron" in cell:
        at[sites.axes.index(sites.unit)] = cell.get("head", cell.get("neuron"))  # type: ignore[arg-type]
    x = x.clone()
    x[tuple(at)] = new[tuple(at)]
    return x


class Sweep(Patching):
    """Sites patched in one pass: one run each."""

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        plan = super().plan(draw, case, model)
        plan.sites = self.sites(draw, case, model)
        plan.cells = sorted(draw(st.sets(st.integers(0, len(plan.sites) - 1), min_size=1, max_size=3)))
        plan.budget = draw(st.sampled_from([1, 3, 1000])) * 2**13
        return plan

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        clean, corrupt = self.ends(plan, case.inputs)
        measure = {"m": self.metric(plan, model, case.inputs)}
        options = {"direction": plan.direction, "budget": plan.budget, "progress": False}
        found = sweep(model, clean, corrupt, plan.sites, measure, **options)
        assert found.values.shape == (1, *plan.sites.shape, len(clean))
        values = found.values.reshape(-1, len(clean))[plan.cells]
        return [{"baseline": found.baseline[0, i], "values": values[:, i]} for i in range(len(clean))]

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        source, base = self.runs(plan, row.alone)
        _, cache = model.run_with_cache(source, names_filter=plan.sites.hooks)
        baseline = self.measured(plan, model, base, model(base))
        values = []
        for number in plan.cells:
            cell = self.cell_alone(model, plan.sites, plan.sites.table.iloc[number], row)
            if cell is None:
                values.append(baseline)
                continue
            name = plan.sites.hook.format(cell.get("layer"))
            hook = (name, lambda x, hook, cell=cell: edited(x, cache[hook.name], plan.sites, cell))
            values.append(self.measured(plan, model, base, model.run_with_hooks(base, fwd_hooks=[hook])))
        return {"baseline": baseline[0], "values": torch.cat(values)}


class Intervention(Sweep):
    """Activations halved in a window of layers in one pass: one run each."""

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        plan = super().plan(draw, case, model)
        plan.sites = plan.sites.windows(draw(st.integers(1, len(plan.sites.layers))))
        plan.cells = sorted(draw(st.sets(st.integers(0, len(plan.sites) - 1), min_size=1, max_size=3)))
        return plan

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        inputs, _ = self.runs(plan, case.inputs)
        measure = self.metric(plan, model, case.inputs)
        options = {"intervention": lambda x, hook: x * 0.5, "budget": plan.budget, "progress": False}
        found = sweep(model, inputs, None, plan.sites, measure, **options)
        values = found.values.reshape(-1, len(inputs))[plan.cells]
        return [{"baseline": found.baseline[i], "values": values[:, i]} for i in range(len(inputs))]

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        inputs, _ = self.runs(plan, row.alone)
        baseline = self.measured(plan, model, inputs, model(inputs))
        values = []
        for number in plan.cells:
            cells = plan.sites.table.iloc[[number]]
            cell = self.cell_alone(model, plan.sites, cells.drop(columns="layers").iloc[0], row)

            def halve(x: Tensor, hook: Any, cell: Any = cell) -> Tensor:
                return x if cell is None else edited(x, x * 0.5, plan.sites, cell)

            hooked = [(plan.sites.hook.format(layer), halve) for layer in plan.sites.layers_of(cells)[0]]
            values.append(self.measured(plan, model, inputs, model.run_with_hooks(inputs, fwd_hooks=hooked)))
        return {"baseline": baseline[0], "values": torch.cat(values)}


class Attribution(Patching):
    """Estimates of all sites: those of the rows alone, which `test_attribution` holds against the gradient."""

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        plan = super().plan(draw, case, model)
        plan.sites = self.sites(draw, case, model)
        plan.options = {"steps": draw(st.sampled_from([None, None, 2])), "qk_fix": draw(st.booleans())}
        return plan

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        found = self.estimates(model, plan, case.inputs, plan.sites)
        return [{"values": found.values[..., i], "baseline": found.baseline[i]} for i in range(len(case.inputs))]

    def estimates(self, model: HookedVLM, plan: Any, inputs: VLMInputs, sites: Sites) -> Any:
        measure = self.metric(plan, model, inputs)
        return attribution(model, *self.ends(plan, inputs), sites, measure, direction=plan.direction, **plan.options)

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        sites = plan.sites
        if not isinstance(sites.positions, Places):
            found = self.estimates(model, plan, row.alone, sites)
            return {"values": found.values[..., 0], "baseline": found.baseline[0]}
        own = sites.positions.rows[row.number if sites.by_row else 0]
        at = [row.position(p, self.counted(model, sites)) for p in own]
        real = [i for i, p in enumerate(at) if p is not None]
        there = Places((tuple(p for p in at if p is not None),), by_row=True)  # of the one row there is
        found = self.estimates(model, plan, row.alone, replace(sites, positions=there))
        values = found.baseline[0].expand(sites.shape).clone()  # a patch on padding changes nothing
        values.index_copy_(int(len(sites.layers) > 0), torch.tensor(real), found.values[..., 0])
        return {"values": values, "baseline": found.baseline[0]}


class Paths(Patching):
    """Paths from a head to another, to the stream, to a sub-layer, to the logits: two whole runs each."""

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        plan, order = super().plan(draw, case, model), list(model.stacks)
        plan.everywhere, plan.through_mlps = False, draw(st.booleans())
        start = draw(st.integers(0, len(order) - 1))
        kind_of = partial(test_paths.kind_of, draw, model, case.inputs)
        senders = kind_of(order[start : start + 1], ["z", "v", "pattern"], [[-1, 0], "all_at_once"])
        receivers = test_paths.receivers_of(draw, model, case.inputs, order[start:], [[0, -1], [0], "all_at_once"])
        ends = [sites for sites in (senders, receivers) if sites != "logits"]
        assume(not any(on_padding(model, case.inputs, sites) for sites in ends))
        plan.sites = [self.closed(model, case.inputs, sites) for sites in ends]
        plan.receivers = plan.sites[1] if len(ends) == 2 else "logits"
        n = math.prod(map(len, plan.sites))
        plan.cells = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=2)))
        return plan

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        options = {"through_mlps": plan.through_mlps, "direction": plan.direction, "progress": False}
        found = path_patching(
            model,
            *self.ends(plan, case.inputs),
            plan.sites[0],
            plan.receivers,
            {"m": self.metric(plan, model, case.inputs)},
            **options,
        )
        values = found.values.reshape(-1, len(case.inputs))[plan.cells]
        return [{"values": values[:, i]} for i in range(len(case.inputs))]

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        source, base = self.runs(plan, row.alone)
        values = []
        for number in plan.cells:
            numbers = divmod(number, len(plan.sites[1])) if len(plan.sites) == 2 else (number,)
            pair: list[Any] = [
                self.cell_alone(model, sites, sites.table.iloc[n], row)
                for sites, n in zip(plan.sites, numbers, strict=True)
            ]
            if None in pair:
                values.append(self.measured(plan, model, base, model(base)))
            else:
                pair, ends = [*pair, None][:2], (plan.sites[0], plan.receivers)
                logits = test_paths.by_hand(model, source, base, pair, ends, plan.through_mlps)
                values.append(self.metric(plan, model, base)(logits))
        return {"values": torch.cat(values)}


class Focus(Way):
    """One stack as a TransformerLens model: its logits and its activations, the rest held fixed."""

    def plan(self, draw: Any, case: drawn.Case, model: HookedVLM) -> Any:
        return SimpleNamespace(stack=draw(st.sampled_from(list(model.stacks))))

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        view, tokens = self.view(case, model, plan.stack)
        logits, cache = view.run_with_cache(tokens)
        found = []
        for row in rows_of(case.inputs):
            full = {name: prompt_axes(model, view._full_names[name]) for name in cache}
            acts = {name: numbers(row.of(x, full[name])) for name, x in cache.items()}
            found.append({"logits": row.of(logits, prompt_axes(model, "hook_logits")), **acts})
        return found

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        begun = plan.stack != model.prompt_stack  # a view of the prompt begins each answer anew
        logits, cache = model.run_with_cache(row.alone if begun else row.alone.replace(decoder_input_ids=None))
        return {"logits": logits, **{name: numbers(x) for name, x in cache.focus(plan.stack).items()}}

    @staticmethod
    def view(case: drawn.Case, model: HookedVLM, stack: str) -> tuple[Any, Tensor]:
        """A view, and what it runs on. The model's processor is one that knows these images and texts."""
        pictures = [checkpoints.picture(i) for i in range(len(case.inputs))]
        model.processor = SimpleNamespace(
            image_processor=lambda images, return_tensors: {"pixel_values": case.inputs.pixel_values},
            tokenizer=SimpleNamespace(pad_token_id=drawn.PAD),
            image_token="<image>",
        )
        model.to_inputs = lambda images, texts: case.inputs.replace(layout=model.layout)  # type: ignore[method-assign]
        view = model.focus(stack, images=pictures, texts=["what?"] * len(pictures))
        if stack == "vision_encoder":
            view._texts = ["what?"] * len(pictures)
            return view, view.to_tokens(pictures)
        if stack == model.prompt_stack:
            return view, case.inputs.input_ids
        return view, model._answer_so_far(case.inputs)[0]


class Lens(Way):
    """What the stream would say after every layer, and which part of the model says it."""

    kinds = ("llava", "vqa", "caption")

    def run(self, case: drawn.Case, model: HookedVLM, plan: Any) -> list[Found]:
        read = logit_lens(model, case.inputs, follow=[5, 9])
        logits = read.followed_logits.transpose(0, 1)
        axes = [2] if prompt_axes(model, "hook_logits") else []
        found = [{"read": row.of(logits, axes)} for row in rows_of(case.inputs)]
        if case.kind == "llava":
            parts = direct_logit_attribution(model, case.inputs, 7)
            for i, row in enumerate(found):
                row |= {"heads": parts.heads[..., i], "mlps": parts.mlps[..., i], "logit": parts.logit[i]}
        return found

    def alone(self, case: drawn.Case, model: HookedVLM, plan: Any, row: Row) -> Found:
        single = replace(case, inputs=row.alone)
        return self.run(single, model, plan)[0]


WAYS: dict[str, Way] = {
    "forward": Forward(),
    "loss": Loss(),
    "run_with_cache": Cache(),
    "stop_at_layer": StopAtLayer(),
    "generate": Generate(),
    "resume": Resume(),
    "sweep": Sweep(),
    "intervention": Intervention(),
    "attribution": Attribution(),
    "path_patching": Paths(),
    "focus": Focus(),
    "lens": Lens(),
}


def test_a_hook_point_that_fires_several_times_is_no_site() -> None:
    hf = drawn.llava()
    model, clean = HookedVLM.from_hf(hf), drawn.inputs_for(hf, "llava", [4])
    sites = Sites.module(model, "language_model", "ln1.hook_scale")
    model.cfg.use_split_qkv_input = True
    for way in (sweep, attribution):
        with pytest.raises(InputsError, match=r"ln1\.hook_scale fires several times.*use_split_qkv_input = False"):
            way(model, clean, other(clean, image=True), sites, metrics.logit_diff(7, 8))


def largest_difference(found: Found, expected: Found) -> float:
    """Largest difference, as a share of the scale of what was expected."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, there in expected.items():
        here = found[name].detach().double()
        assert here.shape == there.shape, name
        assert here.isfinite().all(), name
        if here.numel():
            worst = max(worst, float((here - there.detach().double()).abs().max()) / max(1.0, scale(there)))
    return worst


@pytest.mark.parametrize("windowed", [False, True], ids=["any", "windowed"])
@pytest.mark.parametrize("name", WAYS)
@settings(max_examples=7)
@given(data=st.data())
def test_every_row_of_a_batch_is_what_it_is_alone(name: str, windowed: bool, data: st.DataObject) -> None:
    way = WAYS[name]
    case = data.draw(drawn.cases(way.kinds, max_batch=3, any_size=way.any_size, windowed=windowed)).exactly()
    model = case.hooked()
    plan = way.plan(data.draw, case, model)
    found = way.run(case, model, plan)
    for row in rows_of(case.inputs):
        assert largest_difference(found[row.number], way.alone(case, model, plan, row)) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", WAYS)
@settings(max_examples=4)
@given(data=st.data())
def test_every_way_runs_in_the_dtypes_that_people_run(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Float32 is as float64 to its rounding, with room for 10,000 of them; bfloat16 gives numbers in every place."""
    way = WAYS[name]
    drawn_case = data.draw(drawn.cases(way.kinds, max_batch=2, any_size=way.any_size))
    case = replace(drawn_case, hf=copy.deepcopy(drawn_case.hf)).exactly()
    model = case.hooked()
    plan = way.plan(data.draw, case, model)
    rounded = replace(drawn_case, hf=drawn_case.hf.to(dtype), inputs=drawn_case.inputs.to(dtype=dtype))
    other_model = rounded.hooked()
    for flag in ("use_attn_result", "use_split_qkv_input"):
        setattr(other_model.cfg, flag, getattr(model.cfg, flag))
    pairs = list(zip(way.run(rounded, other_model, plan), way.run(case, model, plan), strict=True))
    for found, expected in pairs:
        difference = largest_difference(found, expected)
        assert dtype != torch.float32 or name == "generate" or difference <= 1e-3
