"""Effects to first order: what attribution patching and a screened sweep estimate sites by.

The mathematics is told in `attribution`. Knows what a site is, and nothing of what is done with an estimate.

Cost: a forward and a backward, or `steps` of them; one forward more for what is patched in, unless it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import einsum, repeat
from einops import reduce as einreduce
from jaxtyping import Float
from torch import Tensor

from hooked_vlm.components.embed import VisionStack
from hooked_vlm.errors import InputsError
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import refuse_non_finite
from hooked_vlm.patching.metrics import Metric, answer_logits, values_of
from hooked_vlm.patching.plan import Measure, activations, closed_sites
from hooked_vlm.patching.sites import ALL, Sites
from hooked_vlm.positions import Places

Activations = dict[str, Tensor]


def estimated(
    model: HookedVLM,
    source: VLMInputs | None,
    base: VLMInputs,
    sites: Sites,
    metric: Measure,
    *,
    steps: int | None,
    qk_fix: bool,
    new: Activations | None = None,
    source_hooks: Sequence[Any] = (),
    base_hooks: Sequence[Any] = (),
) -> tuple[Tensor, Tensor, Sites]:
    """The base run's metric [batch], the estimates [site batch], and the sites with their positions spelled out.

    Args:
        model: a `HookedVLM`.
        source: the inputs whose activations are patched in; None where `new` is all there is.
        base: the inputs that are patched into.
        sites: where.
        metric: a differentiable function of the logits.
        steps: None for the gradient at the base run; a number for integrated gradients over so many points.
        qk_fix: compute the pattern of patched queries and keys exactly; not with `steps`, nor without a source.
        new: what is patched in, by hook name, if it is known.
        source_hooks: forward hooks of the source's run.
        base_hooks: forward hooks of the base's run.

    Raises:
        InputsError: if the metric has no gradient or cannot see the sites, or a change is infinite.
    """
    fix = _softmax_fix(model, sites) if qk_fix and steps is None and source is not None else None
    if new is None or fix is not None:
        assert source is not None
        with torch.no_grad():
            new = activations(model, source, sites.hooks if fix is None else fix.read, source_hooks)
    sites = closed_sites(model, sites, new[sites.hooks[0] if fix is None else fix.patched[0]], base)
    if fix is not None:
        names = [*fix.read, *fix.patterns]
        baseline, old, grads = _gradients(model, base, metric, names, sites, wanted=fix.patterns, also=base_hooks)
        parts = [fix.contributions(layer, new, old, grads, sites) for layer in range(len(sites.hooks))]
    else:
        if steps is None:
            baseline, old, grads = _gradients(model, base, metric, sites.hooks, sites, also=base_hooks)
        else:
            assert source is not None
            with torch.no_grad(), model.hooks(fwd_hooks=list(base_hooks)):
                old = activations(model, base, sites.hooks)
                baseline = _measured(model, base, metric, sites)
            grads = _averaged_gradients(model, source, base, metric, sites, steps, source_hooks, base_hooks)
        for name in sites.hooks:
            if bool((new[name] - old[name]).isinf().any()):
                raise InputsError(
                    f"the change at {name} is infinite, which no gradient can estimate: measure every site, sweep(...) "
                    "without screen"
                )
        parts = [_product(new[name] - old[name], grads[name]) for name in sites.hooks]
    effects = torch.stack([_of_cells(part.float(), sites, summed=fix is not None) for part in parts])
    effects = effects.reshape(-1, len(base))
    return baseline.float(), effects if sites.picked is None else effects[list(sites.picked)], sites


def _product(change: Tensor, grad: Tensor) -> Tensor:
    """Change times gradient; 0 where a score is -inf in both runs, since a key that is not seen stays so."""
    return torch.where(change.isnan(), 0.0, change * grad)


# --- runs -------------------------------------------------------------------------------------------


def _measured(
    model: HookedVLM, inputs: VLMInputs, metric: Measure, sites: Sites, hooks: Sequence[tuple[str, Any]] = ()
) -> Float[Tensor, " batch"]:
    """The metric of a run. Raises InputsError if it has no gradient though the hooks began a graph."""
    at_last = isinstance(metric, Metric) and metric.n_last == 1
    unembedded = "last" if at_last and sites.stack is not None else None  # what follows the blocks sees those alone
    logits = model.run_with_hooks(inputs, fwd_hooks=hooks, logits_at=unembedded)
    name = getattr(metric, "name", "metric")
    found = values_of(name, metric, refuse_non_finite(answer_logits(model, inputs, logits) if at_last else logits))
    if hooks and not logits.requires_grad:
        raise InputsError(f"the metric cannot see {sites!r}: the logits do not depend on that stage of the model")
    if hooks and not found.requires_grad:
        raise InputsError(f"{name} has no gradient (a rank or an argmax, say): use sweep, or a logit difference")
    return found


@contextmanager
def _frozen(model: HookedVLM) -> Iterator[None]:
    """No gradients to weights while it is open: the graph begins at the first site, and no `.grad` is written."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _gradients(
    model: HookedVLM,
    inputs: VLMInputs,
    metric: Measure,
    names: Sequence[str],
    sites: Sites,
    wanted: Sequence[str] | None = None,
    also: Sequence[tuple[str, Callable[..., Tensor]]] = (),
) -> tuple[Tensor, Activations, Activations]:
    """A run's metric, its activations at some hook points, and the metric's gradient at those wanted (None: all)."""
    kept: Activations = {}
    wanted = names if wanted is None else wanted

    def track(activation: Tensor, hook: Any) -> Tensor:
        if hook.name in wanted and not activation.requires_grad:
            activation = activation.detach().requires_grad_(True)
        kept[hook.name] = activation
        return activation

    with _frozen(model):
        measured = _measured(model, inputs, metric, sites, [*also, *((name, track) for name in names)])
        at = [kept[name] for name in wanted]
        grads = torch.autograd.grad(measured.sum(), at, allow_unused=True)
    found = {
        name: torch.zeros_like(x) if grad is None else grad for name, x, grad in zip(wanted, at, grads, strict=True)
    }
    return measured.detach(), {name: x.detach() for name, x in kept.items()}, found


def _averaged_gradients(
    model: HookedVLM,
    source: VLMInputs,
    base: VLMInputs,
    metric: Measure,
    sites: Sites,
    steps: int,
    source_hooks: Sequence[Any],
    base_hooks: Sequence[Any],
) -> Activations:
    """The gradients' mean over the midpoints of `steps` pieces of the line from base to source inputs.

    Hook points where a run is corrupted by hooks are on the line as the inputs are.
    """
    corrupted = {name for name, _ in (*source_hooks, *base_hooks) if isinstance(name, str)}
    corrupted.add("hook_pixel_values")
    starts = [name for name in model.hook_dict if name in corrupted or _embeds_text(model, name)]
    with torch.no_grad():
        ends = [activations(model, base, starts, base_hooks), activations(model, source, starts, source_hooks)]
    moving = [name for name in starts if not torch.equal(ends[0][name], ends[1][name])]
    total: Activations = {}
    for step in range(steps):
        share = (step + 0.5) / steps
        mixed = {name: torch.lerp(ends[0][name], ends[1][name], share) for name in moving}

        def move(activation: Tensor, hook: Any, mixed: Activations = mixed) -> Tensor:
            return mixed[hook.name]

        also = [*base_hooks, *((name, move) for name in moving)]
        _, _, grads = _gradients(model, base, metric, sites.hooks, sites, also=also)
        total = {name: grad / steps + total.get(name, 0.0) for name, grad in grads.items()}
    return total


def _embeds_text(model: HookedVLM, name: str) -> bool:
    owner = model.stacks.get(model.stack_of(name) or "")
    return name.endswith("hook_embed") and "image" not in name and not isinstance(owner, VisionStack)


# --- from activations to sites ----------------------------------------------------------------------


def _of_cells(part: Tensor, sites: Sites, *, summed: bool) -> Float[Tensor, "*cells batch"]:
    """One layer's products, summed over what a site holds; [position? unit? batch].

    Args:
        part: a product for each entry of the activation.
        sites: which cells.
        summed: True if the last axis (d_head) is summed already.
    """
    axes = list(sites.axes[:-1] if summed else sites.axes)
    kept = ["batch"]
    if isinstance(sites.positions, Places) and sites.position_axis is not None:
        kept.insert(0, sites.axes[sites.position_axis])
        rows = torch.tensor(sites.positions.rows, device=part.device)  # [batch or 1, position]
        axis = axes.index(kept[0])
        shape = [rows.shape[1] if i == axis else size for i, size in enumerate(part.shape)]
        broadcast = [len(rows), *(size if i == axis else 1 for i, size in enumerate(shape) if i)]
        part = part.gather(axis, rows.reshape(broadcast).expand(shape))
    if sites.units != ALL and sites.unit is not None:
        assert not isinstance(sites.units, str)
        kept.insert(-1, sites.unit)
        part = part.index_select(axes.index(sites.unit), torch.tensor(sites.units, device=part.device))
    return einreduce(part, f"{' '.join(axes)} -> {' '.join(kept)}", "sum")


class _SoftmaxFix:
    """The QK fix: what patching a query or a key does to the pattern, exactly; the rest to first order.

    Args:
        sites: on `hook_q`, `hook_k`, `hook_rot_q` or `hook_rot_k`.
        attentions: the attention of each layer of the sites.
        names: their names.
    """

    def __init__(self, sites: Sites, attentions: Sequence[Any], names: Sequence[str]) -> None:
        self.keys = sites.hook.endswith("_k")
        self.scale = [attention.scale for attention in attentions]
        rotary = "rot_" if hasattr(attentions[0], "hook_rot_q") else ""  # what the scores are made of
        self.q, self.k, self.scores = (
            [f"{name}.hook_{point}" for name in names] for point in (f"{rotary}q", f"{rotary}k", "attn_scores")
        )
        self.patched = self.k if self.keys else self.q
        self.patterns = [f"{name}.hook_pattern" for name in names]
        self.read = [*self.q, *self.k, *self.scores]

    def contributions(
        self, layer: int, new: Activations, kept: Activations, grads: Activations, sites: Sites
    ) -> Float[Tensor, "batch pos head"]:
        """Each query's or key's estimate, by head (by key-value head for keys), in the axes of the activation."""
        q = (kept if self.keys else new)[self.q[layer]].double()
        k = (new if self.keys else kept)[self.k[layer]].double()
        groups = q.shape[2] // k.shape[2]
        moved = einsum(
            q * self.scale[layer], repeat(k, "b k g d -> b k (g n) d", n=groups), "b q h d, b k h d -> b h q k"
        )
        scores = kept[self.scores[layer]].double()
        unseen = scores.isneginf()
        moved = moved.masked_fill(unseen, -torch.inf)
        grad = grads[self.patterns[layer]].double()
        pattern = _softmax(scores)
        if not self.keys:
            return einreduce((_softmax(moved) - pattern) * grad, "b h q k -> b q h", "sum")
        if sites.positions == ALL:  # every key at once: one pattern
            by_key = (_softmax(moved) - pattern) * grad
        else:
            by_key = _one_key_at_a_time(pattern, (moved - scores).masked_fill(unseen, 0.0), grad)
        return einreduce(by_key, "b (g n) q k -> b k g", "sum", n=groups)


def _softmax(scores: Tensor) -> Tensor:
    """Rows that see nothing attend to nothing."""
    return scores.softmax(-1).nan_to_num(0.0)


def _one_key_at_a_time(pattern: Tensor, change: Tensor, grad: Tensor) -> Float[Tensor, "batch head query_pos key_pos"]:
    """sum_k (p'_k - p_k) g_k, where p' is the pattern with the score of one key changed; for each key.

    The key's own weight w becomes p e^c / (1 - p + p e^c), and every other weight shrinks by (1 - w) / (1 - p).
    """
    tiny = torch.finfo(pattern.dtype).tiny
    rest = (1 - pattern).clamp(min=torch.finfo(pattern.dtype).eps)
    w = torch.sigmoid(pattern.clamp(min=tiny).log() - rest.log() + change)
    mean = (pattern * grad).sum(-1, keepdim=True)
    others = (mean - pattern * grad) / rest  # the gradient's mean over the other keys
    return torch.where(pattern > 0, w * grad + (1 - w) * others - mean, 0.0)


def _softmax_fix(model: HookedVLM, sites: Sites) -> _SoftmaxFix | None:
    """The fix, if the sites are queries or keys."""
    attention, _, point = sites.hook.rpartition(".")
    if point not in ("hook_q", "hook_k", "hook_rot_q", "hook_rot_k"):
        return None
    names = [attention.format(layer) for layer in sites.layers]
    return _SoftmaxFix(sites, [model.mod_dict[name] for name in names], names)
