"""One run through the stacks of a model: from the start, or resumed inside one of them.

Cost of a kept run: keys, values and one residual stream for every layer of every stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from operator import index
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vlm.components.stack import Stack, StackPass
from hooked_vlm.errors import InputsError, NonFiniteError, StackError
from hooked_vlm.models import shown
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.options import of_type, told, whole
from hooked_vlm.positions import Places


@dataclass
class RunState:
    """A finished run, kept so that it can be resumed from any block of any stack.

    Args:
        inputs: what was run.
        interpolate: whether positions were interpolated over the image.
        passes: for each stack its masks, positions, source, and the cache of what it computed.
    """

    inputs: VLMInputs
    interpolate: bool = False
    passes: dict[str, StackPass] = field(default_factory=dict)

    def __repr__(self) -> str:
        return shown.state(self)

    def resid_pre(self, stack: str, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream as it arrived at a block, before its `hook_resid_pre`.

        Raises:
            StackError: if the run has no such stack or layer.
        """
        if stack not in self.passes:
            raise StackError(f"this run has no stack {stack!r}; it has {', '.join(self.passes)}")
        kv_cache = self.passes[stack].kv_cache
        assert kv_cache is not None
        if not isinstance(layer, Integral) or not 0 <= layer < len(kv_cache):
            raise StackError(
                f"{stack} has layers 0 to {len(kv_cache) - 2}, and {len(kv_cache) - 1} stands for what leaves the "
                f"last; {layer!r} was asked for"
            )
        resid = kv_cache[layer].resid_pre
        assert resid is not None
        return resid

    def refuse_misfits(self, stack: Stack, injected: Mapping[int, Tensor], first: int) -> None:
        """Raise an error if rows cannot join `stack` with these residuals from position `first` on.

        Raises:
            StackError: if a layer, a shape or the first position does not fit.
            InputsError: if something is of another type or dtype.
        """
        whole(first, "first_position", 0)
        if not of_type(injected, "injected", Mapping, "residuals by layer, {layer: [rows pos d_model]}"):
            raise StackError("no rows join: give residuals for at least one layer, {layer: [rows pos d_model]}")
        if first and not stack.causal:
            raise StackError(
                f"{stack.name} is bidirectional: every position sees a change at any other, so first_position must be 0"
            )
        given = self.passes.get(stack.name)
        if given is not None and (begins := given.mask.first_to_see(first)) < first:
            raise StackError(
                f"position {first} of {stack.name} is seen from position {begins} on: first_position must be {begins}"
            )
        for layer, rows in injected.items():
            base = self.resid_pre(stack.name, layer)
            if not isinstance(rows, Tensor) or (rows.dtype, rows.device) != (base.dtype, base.device):
                raise InputsError(
                    f"the rows that join {stack.name} before layer {layer} are {told(rows)}; expected a tensor of "
                    f"dtype {base.dtype} on {base.device}, as the finished run's: rows.to(resid)"
                )
            expected = (base.shape[1] - first, base.shape[2])
            if not 0 <= first < base.shape[1]:
                raise StackError(f"first_position is {first}; {stack.name} has positions 0 to {base.shape[1] - 1}")
            if rows.ndim != 3 or rows.shape[1:] != expected or rows.shape[0] % base.shape[0] or not rows.shape[0]:
                raise StackError(
                    f"the rows that join {stack.name} before layer {layer} have shape {tuple(rows.shape)}; expected "
                    f"[n * {base.shape[0]} {expected[0]} {expected[1]}], n rows for each example"
                )


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


@dataclass
class Run:
    """How one forward goes through the stacks.

    Args:
        interpolate: stretch learned positions over images of another size.
        logits_at: positions to unembed ("last": each row's last real one), None for all.
        keep: the state to write this run into, or None.
        state: the finished run to resume, or None to start at the beginning.
        stack: the stack in which to resume.
        injected: the rows that join, by layer.
        first_position: first position that is computed again in the resumed stack.
        with_cross: False to run text stacks without cross-attention (image-text similarity).
        stop_at: the stack and the layer before which the run ends, or None.
    """

    interpolate: bool = False
    logits_at: Literal["last"] | Places | None = None
    keep: RunState | None = None
    state: RunState | None = None
    stack: str | None = None
    injected: Mapping[int, Tensor] | None = None
    first_position: int = 0
    with_cross: bool = True
    stop_at: tuple[str, int] | None = None


class Stopped(BaseException):
    """A run has come to the layer at which it was to stop: no error, and nothing that catches errors catches it.

    Args:
        resid: the residual stream as it arrives there, [batch pos d_model].
    """

    def __init__(self, resid: Tensor) -> None:
        super().__init__()
        self.resid = resid


def stop_at(given: Any, stacks: Mapping[str, Stack], prompt_stack: str) -> tuple[str, int] | None:
    """What `stop_at_layer` means: a stack and the first of its layers that does not run; None if nothing was given.

    Args:
        given: a layer of the prompt's stack, or a pair of a stack's name and a layer; negative layers count from the
            end, and n_layers is after the last.
        stacks: the model's.
        prompt_stack: the stack that a layer alone means.

    Raises:
        InputsError: if it is neither.
        StackError: if there is no such stack or layer.
    """
    if given is None:
        return None
    pair = given if isinstance(given, (tuple, list)) else (prompt_stack, given)
    name, layer = pair if len(pair) == 2 else (None, None)
    try:
        number = None if isinstance(layer, bool) else index(cast(Any, layer))
    except TypeError:
        number = None
    if not isinstance(name, str) or number is None:
        raise InputsError(
            f"stop_at_layer is {told(given)}; expected a layer of {prompt_stack}, or a stack and a layer of it: "
            f"({next(iter(stacks))!r}, 1)"
        )
    n_layers = len(stacks[name].blocks)
    if not -n_layers <= number <= n_layers:
        raise StackError(
            f"stop_at_layer is {number} and {name} has layers 0 to {n_layers - 1}: expected one of them, {n_layers} "
            f"for what leaves the last, or one counted from the end, -{n_layers} to -1"
        )
    return name, number + n_layers * (number < 0)
