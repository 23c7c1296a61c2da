"""Greedy and sampled generation, step by step with a KV cache, hooks active at every step.

Cost: one full run and then one position a step. A hook sees the whole prompt at the first step and one new
position at each later one; `hook.first_position` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_vlm.components.attention import Rotary
from hooked_vlm.components.masks import AttentionMask
from hooked_vlm.components.stack import Stack
from hooked_vlm.errors import InputsError
from hooked_vlm.models import spelling
from hooked_vlm.models.config import ByStack
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import Run, RunState, refuse_non_finite
from hooked_vlm.models.turn import alone
from hooked_vlm.options import number, whole


class Generates:
    """`generate`. A family provides `answer_stack`, `_embed_next`, `_logits` and its stop tokens."""

    hf_model: Any
    answer_stack: str  # the stack that makes the logits
    if TYPE_CHECKING:
        stacks: ByStack[Stack]
        _need: Any
        as_inputs: Callable[..., VLMInputs]
        _checked_run: Any

    def _embed_next(
        self, tokens: Int[Tensor, "batch 1"], position_ids: Int[Tensor, "batch 1"]
    ) -> tuple[Float[Tensor, "batch 1 d_model"], dict[str, Rotary]]:
        """One new token's residual stream, and its rotary positions, of each kind that the stack has."""
        raise NotImplementedError

    def _logits(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """The residual stream after the last block, unembedded."""
        raise NotImplementedError

    def _answer_so_far(self, inputs: VLMInputs) -> tuple[Tensor, Tensor | None]:
        """The ids that the answer stack starts from, [batch pos], and which of them are real (None: all)."""
        raise NotImplementedError

    def _stop_tokens(self) -> tuple[list[int], int]:
        """Ids that end an answer, and the id that pads one which ended."""
        raise NotImplementedError

    @alone
    @torch.no_grad()
    def generate(
        self,
        inputs: VLMInputs | Mapping[str, Any],
        max_new_tokens: int = 20,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_at_eos: bool = True,
        return_type: str = "str",
        interpolate_pos_encoding: bool = False,
    ) -> Any:
        """Answer.

        Args:
            inputs: from `model.to_inputs`.
            max_new_tokens: longest answer, in tokens.
            do_sample: draw each token instead of taking the likeliest.
            temperature: divides the logits before drawing; Hugging Face's warpers do this and the next two.
            top_k: draw among the k likeliest tokens alone; None for all.
            top_p: draw among the likeliest tokens that together have this probability; None for all.
            seed: makes the draws repeatable; None draws from torch's global generator.
            stop_at_eos: end each answer at the model's stop token.
            return_type: "str" for a list of answers; "tokens" for [batch new_tokens], padded after the end.
            interpolate_pos_encoding: stretch learned positions over images of another size.

        Raises:
            InputsError: if the inputs do not fit, or an option is out of its range.
            NonFiniteError: if the logits of a step are NaN or infinite.
        """
        max_new_tokens = whole(max_new_tokens, "max_new_tokens", 1)
        seed = None if seed is None else whole(seed, "seed", -(2**63), 2**64 - 1)
        if return_type not in ("str", "tokens"):
            raise InputsError(f"return_type is {return_type!r}; expected 'str' or 'tokens'")
        warp = _warpers(temperature, top_k, top_p) if do_sample else None
        tokenizer = self._need("tokenizer") if return_type == "str" else None
        inputs = self.as_inputs(inputs)
        answer = self._decode(inputs, max_new_tokens, warp, seed, stop_at_eos, interpolate_pos_encoding)
        if tokenizer is None:
            return answer
        return [spelling.text(tokenizer, row, skip_special_tokens=True).strip() for row in answer.tolist()]

    def _decode(
        self,
        inputs: VLMInputs,
        max_new_tokens: int,
        warp: Any,
        seed: int | None,
        stop_at_eos: bool,
        interpolate: bool,
    ) -> Int[Tensor, "batch new_tokens"]:
        stop, pad = self._stop_tokens()
        state = RunState(inputs, interpolate)
        logits = self._checked_run(inputs, Run(interpolate=interpolate, keep=state, logits_at="last"))[:, -1]
        generator = None if seed is None else torch.Generator(device=logits.device).manual_seed(seed)
        so_far, real = self._answer_so_far(inputs)
        n_context = self.stacks[self.answer_stack].cfg.n_ctx
        if so_far.shape[1] + max_new_tokens - 1 > n_context:
            raise InputsError(
                f"{so_far.shape[1]} tokens and {max_new_tokens} new ones go beyond the context of {n_context}: "
                f"ask for at most {n_context - so_far.shape[1] + 1}"
            )
        done = torch.zeros(len(inputs), dtype=torch.bool, device=logits.device)
        answer: list[Tensor] = []
        while True:
            token = _pick(torch.cat([so_far, *answer], 1), refuse_non_finite(logits), warp, generator).to(so_far.device)
            token = token.masked_fill(done[:, None].to(token.device), pad) if stop_at_eos else token
            answer.append(token)
            if stop_at_eos:
                done |= torch.isin(token[:, 0], torch.tensor(stop, device=token.device)).to(done.device)
            if len(answer) == max_new_tokens or bool(done.all()):
                return torch.cat(answer, 1)
            if real is not None:
                real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
            logits = self._step(state, token, so_far.shape[1] + len(answer) - 1, real)

    def _step(self, state: RunState, token: Tensor, position: int, real: Tensor | None) -> Tensor:
        """Logits after one more token at absolute `position`, [batch d_vocab]."""
        place = torch.full_like(token, position) if real is None else real.long().sum(1, keepdim=True) - 1
        stack = self.stacks[self.answer_stack]
        with stack.offset.at(position):
            x, rotary = self._embed_next(token, place)
            given = replace(
                state.passes[stack.name], mask=AttentionMask(real, causal=True), rotary=rotary, first_position=position
            )
            x, _ = stack(x, given)
            return self._logits(x)[:, -1]


def _warpers(temperature: float, top_k: int | None, top_p: float | None) -> Any:
    from transformers.generation import logits_process as hf

    number(temperature, "temperature (for no randomness leave do_sample off)", above=0)
    warpers = hf.LogitsProcessorList([hf.TemperatureLogitsWarper(float(temperature))])
    if top_k is not None:
        warpers.append(hf.TopKLogitsWarper(whole(top_k, "top_k", 1)))
    if top_p is not None:
        warpers.append(hf.TopPLogitsWarper(float(number(top_p, "top_p", above=0, most=1))))
    return warpers


def _pick(so_far: Tensor, logits: Tensor, warp: Any, generator: torch.Generator | None) -> Int[Tensor, "batch 1"]:
    if warp is None:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(warp(so_far, logits.float()).softmax(-1), 1, generator=generator)
