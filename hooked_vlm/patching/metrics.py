"""What a patched run is measured by: one number for each example, from the logits.

In the formulas L is a logit and P a probability, both at the last position, r the right answer and w the wrong
one. A metric takes logits [batch pos d_vocab] and gives [batch]: token ids are one for all or one for each row of
the batch, and so are reference logits. Logits that are NaN or infinite are refused. Cost: one softmax at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_vlm.errors import InputsError, NonFiniteError
from hooked_vlm.models.inputs import VLMInputs

Tokens = int | list[int] | Int[Tensor, " batch"]


@dataclass(frozen=True)
class Metric:
    """A named function of the logits at the last position or positions.

    Args:
        name: what results call it.
        measure: ``[batch n_last d_vocab] -> [batch]``.
        n_last: how many of the last positions it reads.
    """

    name: str
    measure: Callable[[Tensor], Tensor] = field(repr=False)
    n_last: int = 1

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """One number for each example.

        Raises:
            InputsError: if there are fewer positions than the metric reads, or it was made for other examples.
            NonFiniteError: if a logit it reads is NaN or infinite.
        """
        if logits.shape[1] < self.n_last:
            raise InputsError(f"{self.name} reads {self.n_last} positions and the logits have {logits.shape[1]}")
        exact = torch.promote_types(logits.dtype, torch.float32)
        return self.measure(refuse_non_finite(logits[:, -self.n_last :]).to(exact))


def logit_diff(right: Tokens, wrong: Tokens) -> Metric:
    """``L(r) - L(w)``, the paper's metric: by how much the right answer leads.

    Args:
        right: token id, or one for each example.
        wrong: likewise.
    """

    def measure(logits: Tensor) -> Tensor:
        return _at(logits[:, -1], right) - _at(logits[:, -1], wrong)

    return Metric("logit_diff", measure)


def probability(token: Tokens) -> Metric:
    """``P(token)``. Its effect, patched less corrupt, is the paper's restoration probability."""
    return Metric("probability", lambda logits: _at(logits[:, -1].softmax(-1), token))


def log_probability(token: Tokens) -> Metric:
    """``log P(token)``."""
    return Metric("log_probability", lambda logits: _at(logits[:, -1].log_softmax(-1), token))


def restoration(right: Tokens, corrupt: Float[Tensor, "batch pos d_vocab"]) -> Metric:
    """``P_patched(r) - P_corrupt(r)``, the paper's restoration probability.

    Args:
        right: token id, or one for each example.
        corrupt: logits of the corrupt run.
    """
    before, after = probability(right)(corrupt), probability(right)
    return Metric("restoration", lambda logits: after(logits) - _rows(before, len(logits)))


def normalised(
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

    return Metric(f"normalised_{metric.name}", measure, metric.n_last)


def kl_divergence(reference: Float[Tensor, "batch pos d_vocab"]) -> Metric:
    """``KL(P_reference || P_patched)`` in nats: 0 where a run predicts what the reference does.

    Args:
        reference: logits of the run to compare with.
    """
    p = reference[:, -1].float().log_softmax(-1)

    def measure(logits: Tensor) -> Tensor:
        q, target = logits[:, -1].log_softmax(-1), _rows(p, len(logits)).to(logits.device)
        return (target.exp() * (target - q)).sum(-1)

    return Metric("kl_divergence", measure)


def rank(token: Tokens) -> Metric:
    """How many tokens have a larger logit: 0 for the likeliest."""

    def measure(logits: Tensor) -> Tensor:
        return (logits[:, -1] > _at(logits[:, -1], token)[:, None]).sum(-1).float()

    return Metric("rank", measure)


def answer_log_probability(answer: Int[Tensor, " n_tokens"] | Int[Tensor, "batch n_tokens"] | list[int]) -> Metric:
    """``sum_i log P(a_i | a_<i)``, the log-probability of a whole answer of several tokens, teacher-forced.

    The run must have been given the answer's tokens but the last: see `with_answer`. The paper scores an
    answer by its first token alone; that is `logit_diff` or `probability` with that token.

    Args:
        answer: its token ids; one answer, or one for each example.
    """
    ids = torch.as_tensor(answer)
    ids = ids if ids.ndim == 2 else ids[None]

    def measure(logits: Tensor) -> Tensor:
        asked = _rows(ids, len(logits)).to(logits.device)
        return logits.log_softmax(-1).gather(-1, asked[:, :, None])[..., 0].sum(-1)

    return Metric("answer_log_probability", measure, n_last=ids.shape[1])


def answering(
    model: Any, inputs: VLMInputs, logits: Float[Tensor, "batch pos d_vocab"]
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


def with_answer(model: Any, inputs: VLMInputs, answer: Tensor | list[int]) -> VLMInputs:
    """Inputs that end in an answer's tokens but the last, so that the last positions score all of them.

    Args:
        model: a `HookedVLM`.
        inputs: the question.
        answer: token ids [n_tokens], or [batch n_tokens].

    Raises:
        InputsError: if a row is padded on the right, so that an answer cannot follow it.
    """
    ids = torch.as_tensor(answer, device=inputs.input_ids.device)
    ids = (ids if ids.ndim == 2 else ids[None]).expand(len(inputs), -1)[:, :-1]
    so_far, real = model._answer_so_far(inputs)
    grown = torch.cat([so_far, ids], 1)
    if model.answer_stack != model.prompt_stack:
        return inputs.replace(decoder_input_ids=grown)
    if real is not None and not bool(real[:, -1].all()):
        raise InputsError("an answer cannot follow prompts that are padded on the right: pad them on the left")
    mask = None if real is None else torch.cat([real, torch.ones_like(ids, dtype=torch.bool)], 1).long()
    return inputs.replace(input_ids=grown, attention_mask=mask)


def refuse_non_finite(logits: Tensor) -> Tensor:
    """Logits as they are.

    Raises:
        NonFiniteError: if one of them is NaN or infinite.
    """
    odd = ~torch.isfinite(logits).flatten(1).all(1)
    if bool(odd.any()):
        rows = odd.nonzero()[:, 0].tolist()
        raise NonFiniteError(
            f"logits of rows {rows[:8]} of {len(logits)} are NaN or infinite, so nothing measured on them means "
            "anything. A weight may be, a hook may have made them so, or half precision overflowed: try "
            "dtype=torch.float32"
        )
    return logits


def _rows(per_example: Tensor, n_rows: int) -> Tensor:
    """One entry for each row, from one for all or one for each."""
    if len(per_example) not in (1, n_rows):
        raise InputsError(f"a metric for {len(per_example)} examples was given logits with {n_rows} rows")
    return per_example.expand(n_rows, *per_example.shape[1:])


def _at(scores: Tensor, token: Tokens) -> Tensor:
    """The score of each row's token."""
    ids = torch.as_tensor(token, device=scores.device).reshape(-1)
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputsError(f"token ids {token!r} were given; expected integers: model.to_single_token('red')")
    if int(ids.min()) < 0 or int(ids.max()) >= scores.shape[-1]:
        raise InputsError(f"token ids {ids.tolist()} are not all in the vocabulary, 0 to {scores.shape[-1] - 1}")
    return scores.gather(-1, _rows(ids, len(scores))[:, None])[:, 0]
