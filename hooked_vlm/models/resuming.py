"""Runs that are kept, and gone on with from inside a stack. Knows no family.

Cost of a kept run: keys, values and one residual stream a layer; of a resumed one: the layers that are run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vlm.components.embed import VisionStack
from hooked_vlm.components.hook_point import PositionOffset
from hooked_vlm.components.stack import Stack, StackPass
from hooked_vlm.deprecated import renamed
from hooked_vlm.errors import InputsError, StackError
from hooked_vlm.models.config import ByStack
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.run import Run, RunState, Stopped
from hooked_vlm.models.turn import alone
from hooked_vlm.options import of_type


class Resumes:
    """`run_with_state` and `resume`, and how a run goes through one stack."""

    if TYPE_CHECKING:
        stacks: ByStack[Stack]
        outside: PositionOffset
        answer_stack: str
        prompt_stack: ClassVar[str]
        as_inputs: Callable[..., VLMInputs]
        _checked_run: Any
        _run: Any

    def run_with_state(
        self, inputs: VLMInputs | Mapping[str, Any], *, interpolate_pos_encoding: bool = False
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], RunState]:
        """Run, and keep what `resume` needs to go on from inside any stack.

        Returns:
            The logits, and the state: keys, values and a residual stream for every layer.
        """
        inputs = self.as_inputs(inputs)
        state = RunState(inputs, interpolate_pos_encoding)
        return self._checked_run(inputs, Run(interpolate=interpolate_pos_encoding, keep=state)), state

    @renamed(joins="injected")
    @alone
    def resume(
        self,
        state: RunState,
        stack: str,
        injected: Mapping[int, Tensor],
        *,
        first_position: int = 0,
        logits_at: Literal["last"] | None = None,
    ) -> Float[Tensor, "rows pos d_vocab"]:
        """Run on from inside a finished run, with altered residuals.

        Rows join before the layers named in `injected` and go on together; what they cannot change is read from
        the state and shared: all earlier stages, the keys and values of cross-attention, and in a causal stack
        those of the positions before `first_position`. Hooks fire on the rows alone. If the base run had
        hooks at or after the layers that are run again, keep them in place (`with model.hooks(...)`).

        Args:
            state: from `run_with_state`.
            stack: the stack to resume in.
            injected: for each layer, the residual stream of rows as it arrives there (n_layers: as it leaves the
                last), [batch * n_rows pos d_model], the rows of one example next to one another, positions from
                `first_position` on. Whatever reads the stream there sees it.
            first_position: in a causal stack, the first position that differs from the base run.
            logits_at: "last" to unembed each row's last real position alone.

        Returns:
            Logits of all rows, [batch * rows pos d_vocab]: each example's rows in the order in which they
            joined. Positions are those from `first_position` on where `stack` makes the logits, else all.

        Raises:
            StackError: if the stack, a layer, a shape or the first position does not fit.
            InputsError: if something is of another type or dtype, or `logits_at` is something else.
        """
        of_type(state, "state", RunState, "the state that run_with_state gives: logits, state = run_with_state(inputs)")
        if logits_at not in ("last", None):
            raise InputsError(f"logits_at is {logits_at!r}; expected 'last' or None in a resumed run")
        state.refuse_misfits(self.stacks[stack], injected, first_position)
        if isinstance(self.stacks[stack], VisionStack) and set(state.inputs.images_each) != {1}:
            raise StackError(
                f"the rows of {stack} are images, and the prompts have {state.inputs.images_each} of them: resume "
                "there with one image a prompt, or in a later stack"
            )
        run = Run(
            interpolate=state.interpolate,
            logits_at=logits_at,
            state=state,
            stack=stack,
            injected=injected,
            first_position=first_position,
        )
        with ExitStack() as rows:
            for name, other in self.stacks.items():
                rows.enter_context(other.offset.at(first_position if name == stack else 0, len(state.inputs)))
            rows.enter_context(self.outside.at(0, len(state.inputs)))
            return self._run(state.inputs, run)

    def _through(
        self,
        name: str,
        run: Run,
        embed: Callable[[], Tensor],
        given: Callable[[], StackPass],
        collect: Sequence[int] = (),
    ) -> tuple[Tensor | None, dict[int, Tensor]]:
        """One stack's part in a run; None if nothing asks for it: the run is resumed after it, or ends before.

        Raises:
            Stopped: where the run ends in this stack.
        """
        stack, order = self.stacks[name], list(self.stacks)
        if run.stop_at is not None:
            last, layer = run.stop_at
            if name == last:
                raise Stopped(stack(embed(), given(), stop_at_layer=layer)[0])
            if not self.stacks[last].reads_earlier_stacks(layer):
                return None, {}
        if run.state is not None and run.stack is not None:
            if order.index(name) < order.index(run.stack):
                return None, {}
            if name == run.stack:
                before = run.state.passes[name]
                first = run.first_position
                rotary = {kind: (cos[:, first:], sin[:, first:]) for kind, (cos, sin) in before.rotary.items()}
                again = replace(before, keep=False, first_position=run.first_position, rotary=rotary)
                makes_logits = stack.causal and name == self.answer_stack == self.prompt_stack
                again.last_alone = makes_logits and run.logits_at == "last" and run.state.inputs.rows_end_together
                return stack(None, again, injected=run.injected, collect=collect)
        new = given()
        if run.keep is not None:
            new.kv_cache, new.keep = stack.new_kv_cache(), True
            run.keep.passes[name] = new
        return stack(embed(), new, collect=collect)

    @staticmethod
    def _text_of_rows(inputs: VLMInputs, x: Tensor | None, n_before: int | None = None) -> VLMInputs:
        """The text of each example as often as `x` has rows of it; its pixels, which were read, are not repeated.

        Args:
            inputs: of the run.
            x: what the text reads, or None where it was read before.
            n_before: rows of `x` in a run from the start; one an example if None.
        """
        rows = 1 if x is None else x.shape[0] // (n_before or len(inputs))
        if rows == 1:
            return inputs
        pixels = inputs.pixel_values
        return inputs.replace(pixel_values=None if pixels is None else pixels[:, :, :1, :1]).repeat(rows)

    @staticmethod
    def _select(x: Tensor, run: Run, inputs: VLMInputs | None = None) -> Tensor:
        """The positions that are to be unembedded; `inputs` of a prompt's stack, whose rows may be padded."""
        if run.logits_at is None:
            return x
        if not isinstance(run.logits_at, str):
            (places,) = run.logits_at.spelled(x.shape[1], "positions of the logits")
            return x[:, list(places)]
        if inputs is None or inputs.rows_end_together:
            return x[:, -1:]
        last_each = inputs.last_each
        last = last_each.repeat_interleave(x.shape[0] // len(last_each)) - run.first_position
        if bool((last < 0).any()):
            raise StackError(
                f"first_position is {run.first_position}, and a row's last real position is {int(last_each.min())}: "
                "resume from there, or leave logits_at out"
            )
        return x[torch.arange(len(x), device=x.device), last.to(x.device)][:, None]
