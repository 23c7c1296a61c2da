"""What a patched run is measured by: one number for each example, from the logits.

In the formulas L is a logit and P a probability, both at the last position, r the right answer and w the wrong
one. A metric takes logits [batch pos d_vocab] and gives [batch]: token ids are one for all or one for each row of
the batch, and so are reference logits. Logits that are NaN or infinite are refused. Cost: one softmax at most.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_vlm.deprecated import MOVED, moved
from hooked_vlm.errors import InputsError, NonFiniteError, quoted
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import refuse_non_finite
from hooked_vlm.options import told

Tokens = int | list[int] | Int[Tensor, " batch"]


@dataclass(frozen=True)
class Metric:
    """A named function of the logits at the last position or positions.

    Args:
        name: what results call it.
        measure: ``[batch n_last d_vocab] -> [batch]``.
        n_last: how many of the last positions it reads.
        partial: True if it is NaN for an example for which it means nothing; NaN is refused otherwise.
    """

    name: str
    measure: Callable[[Tensor], Tensor] = field(repr=False)
    n_last: int = 1
    partial: bool = False

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """One number for each example.

        Raises:
            InputsError: if they are no logits, or of fewer positions than the metric reads, or it was made for other
                examples or another vocabulary.
            NonFiniteError: if a logit it reads is NaN or infinite.
        """
        return self.measure(_last(logits, self.name, self.n_last))


def logit_diff(right: Tokens, wrong: Tokens) -> Metric:
    """``L(r) - L(w)``, the paper's metric: by how much the right answer leads.

    Args:
        right: token id, or one for each example.
        wrong: likewise.
    """
    leading, other = _ids(right), _ids(wrong)

    def measure(logits: Tensor) -> Tensor:
        return _at(logits[:, -1], leading) - _at(logits[:, -1], other)

    return Metric("logit_diff", measure)


def probability(token: Tokens) -> Metric:
    """``P(token)``. Its effect, patched less corrupt, is the paper's restoration probability."""
    ids = _ids(token)
    return Metric("probability", lambda logits: _at(logits[:, -1].softmax(-1), ids))


def log_probability(token: Tokens) -> Metric:
    """``log P(token)``."""
    ids = _ids(token)
    return Metric("log_probability", lambda logits: _at(logits[:, -1].log_softmax(-1), ids))


def restoration(right: Tokens, corrupt: Float[Tensor, "batch pos d_vocab"]) -> Metric:
    """``P_patched(r) - P_corrupt(r)``, the paper's restoration probability.

    Args:
        right: token id, or one for each example.
        corrupt: logits of the corrupt run.
    """
    before, after = probability(right)(corrupt), probability(right)
    return Metric("restoration", lambda logits: after(logits) - _rows(before, len(logits)))


def normalized(
    metric: Metric, clean: Float[Tensor, "batch pos d_vocab"], corrupt: Float[Tensor, "batch pos d_vocab"]
) -> Metric:
    """``(M_patched - M_corrupt) / (M_clean - M_corrupt)``: 0 changes nothing, 1 restores clean.

    NaN for an example whose clean and corrupt runs measure the same: it has nothing to restore.

    Args:
        metric: M, e.g. a logit difference.
        clean: logits of the clean run.
        corrupt: logits of the corrupt run.
    """
    high, low = metric(clean), metric(corrupt)
    span = torch.where(high == low, torch.nan, high - low)

    def measure(logits: Tensor) -> Tensor:
        return (metric(logits) - _rows(low, len(logits))) / _rows(span, len(logits))

    return Metric(f"normalized_{metric.name}", measure, metric.n_last, partial=True)


def kl_divergence(reference: Float[Tensor, "batch pos d_vocab"]) -> Metric:
    """``KL(P_reference || P_patched)`` in nats: 0 where a run predicts what the reference does.

    Args:
        reference: logits of the run to compare with.
    """
    p = _last(reference, "kl_divergence's reference", 1)[:, -1].log_softmax(-1)

    def measure(logits: Tensor) -> Tensor:
        if logits.shape[-1] != p.shape[-1]:
            raise InputsError(f"the reference has logits of {p.shape[-1]} tokens and this run of {logits.shape[-1]}")
        q, target = logits[:, -1].log_softmax(-1), _rows(p, len(logits)).to(logits.device)
        return (target.exp() * (target - q)).sum(-1)

    return Metric("kl_divergence", measure)


def rank(token: Tokens) -> Metric:
    """How many tokens have a larger logit: 0 for the likeliest."""
    ids = _ids(token)

    def measure(logits: Tensor) -> Tensor:
        return (logits[:, -1] > _at(logits[:, -1], ids)[:, None]).sum(-1).float()

    return Metric("rank", measure)


def answer_log_probability(answer: Int[Tensor, " n_tokens"] | Int[Tensor, "batch n_tokens"] | list[int]) -> Metric:
    """``sum_i log P(a_i | a_<i)``, the log-probability of a whole answer of several tokens, teacher-forced.

    The run must have been given the answer's tokens but the last: see `with_answer`. The paper scores an
    answer by its first token alone; that is `logit_diff` or `probability` with that token.

    Args:
        answer: its token ids; one answer, or one for each example.
    """
    ids = _answers(answer)

    def measure(logits: Tensor) -> Tensor:
        asked = _rows(_known(ids, logits), len(logits))
        return logits.log_softmax(-1).gather(-1, asked[:, :, None])[..., 0].sum(-1)

    return Metric("answer_log_probability", measure, n_last=ids.shape[1])


def answer_logits(
    model: HookedVLM, inputs: VLMInputs, logits: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, "batch 1 d_vocab"]:
    """The logits that score the next answer token.

    They are the last; where logits stand at the prompt's positions, those of each row's last real one.

    Args:
        model: a `HookedVLM`.
        inputs: what the logits are of.
        logits: at every position, or at the last one alone.

    Raises:
        NonFiniteError: if one of them is NaN or infinite.
    """
    logits = refuse_non_finite(logits)
    if logits.shape[1] == 1 or model.answer_stack != model.prompt_stack:
        return logits[:, -1:]
    return logits[torch.arange(len(logits)), inputs.last_each.to(logits.device)][:, None]


def with_answer(model: HookedVLM, inputs: VLMInputs, answer: Tensor | list[int]) -> VLMInputs:
    """Inputs that end in an answer's tokens but the last, so that the last positions score all of them.

    Args:
        model: a `HookedVLM`.
        inputs: the question.
        answer: token ids [n_tokens], or [batch n_tokens].

    Raises:
        InputsError: if a row is padded on the right, so that an answer cannot follow it.
    """
    ids = _rows(_answers(answer).to(inputs.input_ids), len(inputs))[:, :-1]
    so_far, real = model._answer_so_far(inputs)
    grown = torch.cat([so_far, ids], 1)
    if model.answer_stack != model.prompt_stack:
        return inputs.replace(decoder_input_ids=grown)
    if real is not None and not bool(real[:, -1].all()):
        raise InputsError("an answer cannot follow prompts that are padded on the right: pad them on the left")
    mask = None if real is None else torch.cat([real, torch.ones_like(ids, dtype=torch.bool)], 1).long()
    return inputs.replace(input_ids=grown, attention_mask=mask)


def _answers(answer: Any) -> Int[Tensor, "batch n_tokens"]:
    """Answers of several tokens, one for all or one for each example."""
    ids = _ids(answer, axes=(1, 2))
    return ids if ids.ndim == 2 else ids[None]


def _rows(per_example: Tensor, n_rows: int) -> Tensor:
    """One entry for each row, from one for all or one for each."""
    if len(per_example) not in (1, n_rows):
        raise InputsError(f"a metric for {len(per_example)} examples was given logits with {n_rows} rows")
    return per_example.expand(n_rows, *per_example.shape[1:])


def _at(scores: Tensor, ids: Int[Tensor, " batch"]) -> Tensor:
    """The score of each row's token."""
    return scores.gather(-1, _rows(_known(ids, scores), len(scores))[:, None])[:, 0]


def _known(ids: Tensor, scores: Tensor) -> Tensor:
    """Token ids where the scores are. Raises InputsError if one is not in their vocabulary."""
    if int(ids.min()) < 0 or int(ids.max()) >= scores.shape[-1]:
        raise InputsError(f"token ids {_few(ids.tolist())} are not all in the vocabulary, 0 to {scores.shape[-1] - 1}")
    return ids.to(scores.device)


def _ids(given: Any, axes: Collection[int] = (0, 1)) -> Tensor:
    """Token ids as a tensor, [1] for a single one.

    Raises:
        InputsError: if they are no whole numbers, too large for one, none at all, or have other axes.
    """
    way_out = "expected integers, one or one for each example: model.to_single_token('red')"
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        beyond = " beyond any vocabulary" if "verflow" in str(error) else ""
        raise InputsError(f"token ids {_few(given)} were given{beyond}; {way_out}") from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.layout != torch.strided:
        raise InputsError(f"token ids {_few(given)} were given, of {ids.dtype}; {way_out}")
    if ids.ndim not in axes or not ids.numel():
        raise InputsError(f"token ids of shape {tuple(ids.shape)} were given, {_few(given)}; {way_out}")
    return (ids if ids.ndim else ids[None]).long()


def _few(given: Any) -> str:
    return told(given) if isinstance(given, Tensor) and given.numel() > 8 else quoted(given, 80)


def _last(logits: Tensor, name: str, n: int) -> Float[Tensor, "batch n d_vocab"]:
    """The last `n` positions of logits, in float32 at least.

    Raises:
        InputsError: if they are no logits, or have fewer positions.
        NonFiniteError: if one of them is NaN or infinite.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 3 or not logits.is_floating_point():
        raise InputsError(f"{name} reads logits [batch pos d_vocab] and was given {told(logits)}")
    if logits.shape[1] < n:
        raise InputsError(f"{name} reads {n} positions and the logits have {logits.shape[1]}")
    return refuse_non_finite(logits[:, -n:]).to(torch.promote_types(logits.dtype, torch.float32))


def measured(name: str, fn: Callable[[Tensor], Tensor], logits: Tensor, n: int) -> Tensor:
    """A metric's value for each row of logits; it sees one row of each of `n` examples at a time.

    Raises:
        InputsError, NonFiniteError: as `values_of`; the latter also if a logit is NaN or infinite.
    """
    per_row = refuse_non_finite(logits).reshape(n, -1, *logits.shape[1:]).unbind(1)
    return torch.stack([values_of(name, fn, row) for row in per_row], -1).flatten().float()


def values_of(name: str, fn: Callable[[Tensor], Tensor], logits: Tensor) -> Float[Tensor, " batch"]:
    """What a metric gives for logits, with its gradient.

    Raises:
        InputsError: if it gives no real number for each example.
        NonFiniteError: if one is infinite, or NaN where the metric does not say that it may be (`Metric.partial`).
    """
    found = fn(logits)
    if not isinstance(found, Tensor) or found.is_complex() or found.shape != logits.shape[:1]:
        raise InputsError(
            f"metric {name!r} gave {told(found)}; expected one number for each of {len(logits)} examples, a real "
            "tensor [batch]"
        )
    odd = found.isinf() if getattr(fn, "partial", False) else ~found.isfinite()
    if bool(odd.any()):
        rows = odd.nonzero()[:, 0].tolist()
        raise NonFiniteError(
            f"metric {name!r} is {found.detach()[rows[0]].item()} for example {rows[0]} of {len(logits)}, and no "
            "finite number. One that means nothing for some example says so: Metric(name, measure, partial=True)"
        )
    return found


if not TYPE_CHECKING:  # to a type checker no name but those above is here

    def __getattr__(name: str) -> Any:
        if f"{__name__}.{name}" in MOVED:
            return moved(__name__, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
