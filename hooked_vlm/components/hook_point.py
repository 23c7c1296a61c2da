"""The hook point of this package: TransformerLens' own, which also knows its axes and where it stands.

What a hook leaves behind must be what it was given in all but its numbers: a tensor of the same shape, dtype and
device. That is checked where every hook is registered, whichever way it came. Costs nothing when no hook is
attached. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint as LensHookPoint

from hooked_vlm.errors import HookFunctionError
from hooked_vlm.options import told

HookFunction = Callable[..., Any]
Form = tuple[torch.Size, torch.dtype, torch.device, torch.layout]  # what a hook must leave as it was


class PositionOffset:
    """What part of a whole run the pass that runs now is, in a stack or outside of all.

    In a plain forward it is all of it. In a cached generation step, or in a resumed run that shares a causal
    prefix, a stack sees only the positions from `first_position` on. In a resumed run there are several rows
    of each of `n_examples` examples, those of one example next to one another; None where each row is one.
    """

    def __init__(self) -> None:
        self.first_position = 0
        self.n_examples: int | None = None

    @contextmanager
    def at(self, first_position: int = 0, n_examples: int | None = None) -> Iterator[None]:
        """While it is open, passes begin at this position and hold rows of so many examples."""
        before = self.first_position, self.n_examples
        self.first_position, self.n_examples = first_position, n_examples
        try:
            yield
        finally:
            self.first_position, self.n_examples = before


class HookPoint(LensHookPoint):
    """A TransformerLens `HookPoint` that knows the names of its axes.

    Args:
        axes: names of the activation's axes, e.g. ``"batch pos head d_head"``.
        gate: the `cfg` flag that must be on for this hook point to fire, or None.
        aliased: True where the activation shares memory with something an in-place edit must not
            reach (a weight, the residual stream); hooks are then handed a copy.
    """

    def __init__(self, axes: str, *, gate: str | None = None, aliased: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes = tuple(axes.split())
        self.gate = gate
        self.aliased = aliased
        self.offset: PositionOffset | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Identity; a copy where the activation is aliased and somebody may edit it in place."""
        return x.clone() if self.aliased and self._forward_hooks else x

    def add_hook(self, hook: Any, *args: Any, **options: Any) -> Any:
        """As TransformerLens'. Raises HookFunctionError if the hook cannot be called."""
        refuse_uncallable(self.name, hook)
        return super().add_hook(hook, *args, **options)

    def remove_hooks(self, *given: Any, **options: Any) -> None:
        """As TransformerLens'; at once where there are none, since every run ends by asking every hook point."""
        if self.fwd_hooks or self.bwd_hooks:
            super().remove_hooks(*given, **options)

    def register_forward_hook(self, hook: HookFunction, **options: Any) -> RemovableHandle:
        """As PyTorch's, for a hook that gives back what it was given in all but its numbers.

        Raises:
            HookFunctionError: in the run, if what it returned, or left behind in place, is no tensor or one of
                another shape, dtype or device.
        """

        @wraps(hook)
        def checked(module: HookPoint, *given: Any) -> Any:
            x: Tensor = given[-1]
            before = _form(x)  # read now: a hook may resize the activation in place
            result = hook(module, *given)
            module._refuse_other(before, x if result is None else result)
            return result

        return super().register_forward_hook(checked, **options)

    def register_full_backward_hook(self, hook: HookFunction, prepend: bool = False) -> RemovableHandle:
        """As PyTorch's, for a hook that gives back a gradient of the same form, or none.

        Raises:
            HookFunctionError: in the backward pass, as `register_forward_hook`.
        """

        @wraps(hook)
        def checked(module: HookPoint, grad_input: Any, grad_output: Any) -> Any:
            x: Tensor = grad_output[0]
            before = _form(x)
            result = hook(module, grad_input, grad_output)
            new = result[0] if isinstance(result, tuple) and len(result) == 1 else result
            module._refuse_other(before, x if new is None else new, "a gradient of ")
            return result

        return super().register_full_backward_hook(cast(Any, checked), prepend)

    def register_forward_pre_hook(self, *given: Any, **options: Any) -> NoReturn:
        """Not offered: nothing comes before a hook point, which changes nothing itself. Raises HookFunctionError."""
        raise HookFunctionError(
            f"{self.name} takes no pre-hook, which the fused paths would not see: use add_hook or register_forward_hook"
        )

    register_full_backward_pre_hook = register_forward_pre_hook

    def edited(self, hook: HookFunction, x: Tensor) -> Tensor:
        """What a hook function makes of an activation, which stays as it is.

        Raises:
            HookFunctionError: as `register_forward_hook`.
        """
        given = x.clone()
        result = hook(given, hook=self)
        after = given if result is None else result
        self._refuse_other(_form(x), after)
        return cast(Tensor, after)

    def _refuse_other(self, before: Form, after: Any, kind: str = "") -> None:
        if not isinstance(after, Tensor) or _form(after) != before:
            found = _told(_form(after)) if isinstance(after, Tensor) else f"a {type(after).__name__}"
            raise HookFunctionError(
                f"a hook at {self.name} was given {kind}{_told(before)} and gave back {found}: it must give back the "
                "same shape, dtype and device. Edit a part of a copy (z = z.clone(); z[:, 3] = 0; return z), convert "
                "with .to(activation), or return None to change nothing"
            )

    @property
    def first_position(self) -> int:
        """Absolute position of the activation's first position in the pass that runs now."""
        return 0 if self.offset is None else self.offset.first_position

    @property
    def n_examples(self) -> int | None:
        """Of how many examples a resumed run holds rows, each example's together; None where each row is one."""
        return None if self.offset is None else self.offset.n_examples

    def layer(self) -> int:
        """Layer index in this hook point's name, with or without a stack's prefix.

        Raises:
            ValueError: if the hook point belongs to no block.
        """
        match = re.search(r"(?:^|\.)blocks\.(\d+)\.", self.name or "")
        if match is None:
            raise ValueError(f"{self.name} belongs to no block, so it has no layer")
        return int(match.group(1))


def _form(x: Tensor) -> Form:
    return x.shape, x.dtype, x.device, x.layout


def _told(form: Form) -> str:
    shape, dtype, device, layout = form
    return f"{'' if layout == torch.strided else 'sparse '}{list(shape)} {dtype} on {device}"


def refuse_uncallable(name: Any, fn: Any) -> None:
    """Raise HookFunctionError if what is to be a hook cannot be called."""
    if not callable(fn):
        raise HookFunctionError(
            f"the hook at {name!r} is {told(fn)}; expected a function of (activation, hook), e.g. hooks.zero_ablate()"
        )


@contextmanager
def unhooked(points: Iterable[LensHookPoint]) -> Iterator[None]:
    """While it is open, no forward hook at `points` fires: what runs then is no part of a run that is being watched.

    Args:
        points: hook points; the hooks come back when it closes.
    """
    kept = [(point, point._forward_hooks) for point in points if point._forward_hooks]
    try:
        for point, hooks in kept:
            point._forward_hooks = type(hooks)()
        yield
    finally:
        for point, hooks in kept:
            point._forward_hooks = hooks


def hooked(*points: LensHookPoint) -> bool:
    """True if any of `points` has a forward or backward hook."""
    return any(p._forward_hooks or p._backward_hooks for p in points)
