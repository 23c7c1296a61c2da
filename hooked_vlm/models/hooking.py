"""Hooks and caches of a whole model: TransformerLens' methods, sure that every name means a live hook point.

Cost: a cache costs the activations it holds. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor
from transformer_lens import HookedRootModule

from hooked_vlm.components.attention import gated_error
from hooked_vlm.components.hook_point import HookPoint, PositionOffset, refuse_uncallable
from hooked_vlm.components.stack import Stack
from hooked_vlm.errors import HookFunctionError, HookNameError, InputsError, SilentHookError, closest
from hooked_vlm.models import placement
from hooked_vlm.models.cache import VLMCache, caching_hook, cut
from hooked_vlm.models.config import ByStack
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.turn import Turn, alone
from hooked_vlm.options import told

HookName = str | Callable[[str], bool]
Model = TypeVar("Model", bound="HasHooks")


def pairs(hooks: Any, what: str) -> list[tuple[HookName, Callable[..., Any]]]:
    """Hooks as they are listed: each a name or filter, and a function.

    Raises:
        HookFunctionError: if they are no list of such pairs, or a function cannot be called.
    """
    is_list = isinstance(hooks, Iterable) and not isinstance(hooks, (str, bytes, Mapping, Tensor))
    listed = list(hooks) if is_list else [hooks]
    for pair in listed:
        if not is_list or not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise HookFunctionError(f"{what} has {told(pair)}; expected a list of pairs, (hook name, function)")
        refuse_uncallable(*pair)
    return listed


def refuse_silent(awaited: Iterable[Sequence[str]], reached: Container[str], so: str) -> None:
    """Raise SilentHookError if of some group of hook points a run reached none; `so` says what that means."""
    silent = [group for group in awaited if not any(name in reached for name in group)]
    if silent:
        shown = [group[0] if len(group) == 1 else f"any of {', '.join(group[:3])}, ..." for group in silent]
        raise SilentHookError(f"the run never reached {', '.join(shown)}, {so}")


class HasHooks(HookedRootModule):
    """The methods of a model that name, place and watch hooks."""

    prompt_stack: ClassVar[str]  # the stack whose positions are those of `VLMInputs`
    answer_stack: str  # the stack that makes the logits
    main_stack: ClassVar[str | None] = None  # the stack whose names have no prefix
    as_inputs: Callable[..., VLMInputs]
    stages: ClassVar[tuple[str, ...]] = ()  # stacks, and modules and hook points before them, in running order
    stacks: ByStack[Stack]
    hook_dict: dict[str, HookPoint]  # type: ignore[assignment]  # to TransformerLens, a dict of its own hook points
    outside: PositionOffset  # of hook points that belong to no stack
    turn: Turn

    def setup(self) -> None:
        """Name every module of ours and list the hook points; Hugging Face's modules are left alone."""
        self.mod_dict, self.hook_dict = {}, {}
        for name, module in self.named_modules():
            if name and name.split(".")[0] != "hf_model":
                module.name = name
                self.mod_dict[name] = module
                if isinstance(module, HookPoint):
                    self.hook_dict[name] = module
        for name, point in self.hook_dict.items():
            owner = self.stack_of(name)
            point.offset = self.outside if owner is None else self.stacks[owner].offset

    def hook_names(self, name: HookName | Sequence[str]) -> list[str]:
        """The hook points that a name, a list of names or a filter means.

        Raises:
            HookNameError: if a name is unknown or a filter matches nothing.
            GatedHookError: if a hook point is named whose flag is off, or a filter matches only such.
        """
        if isinstance(name, str):
            self._refuse_unknown(name)
            return [name]
        if not callable(name):
            if not isinstance(name, Iterable):
                raise HookNameError(f"{told(name)} names no hook point; expected a name, a list of names or a filter")
            return [hook for one in name for hook in self.hook_names(one)]
        matched = [hook for hook in self.hook_dict if name(hook)]
        if not matched:
            raise HookNameError(f"the filter matches none of the {len(self.hook_dict)} hook points in model.hook_dict")
        live = [hook for hook in matched if self._is_on(hook)]
        if not live:
            raise gated_error(self.hook_dict[matched[0]])
        return live

    def _awaited(self, named: HookName | Iterable[Any]) -> list[list[str]]:
        """The hook points that a run is to reach: each that is named, and one at least of those that a filter matches.

        Raises:
            HookNameError, GatedHookError: as `hook_names`.
        """
        if isinstance(named, str) or callable(named) or not isinstance(named, Iterable):
            return [self.hook_names(named)]
        return [group for one in named for group in self._awaited(one)]

    def stack_of(self, hook: str) -> str | None:
        """The stack whose positions a hook point's are; None for pixels and image features of BLIP."""
        if hook == "hook_logits":
            return self.answer_stack
        owners = [name for name, stack in self.stacks.items() if stack.prefix and hook.startswith(stack.prefix)]
        return owners[0] if owners else self.main_stack

    def runs_before(self, hook: str, stack: str) -> bool:
        """True if a hook point is passed before a stack's first block, by the order that the family declares.

        Args:
            hook: its full name.
            stack: the stack's name.
        """
        stage = next((name for name in self.stages if hook == name or hook.startswith(f"{name}.")), None)
        if stage is None:  # what comes after all of them, and the blocks of a stack without a prefix
            return False
        if stage == stack:
            return hook.removeprefix(self.stacks[stack].prefix).partition(".")[0] in Stack.before_blocks
        return self.stages.index(stage) < self.stages.index(stack)

    def _is_on(self, hook: str) -> bool:
        gate = self.hook_dict[hook].gate
        owner = self.mod_dict.get(hook.rpartition(".")[0])
        return gate is None or bool(getattr(cast(Any, owner).cfg, gate))

    def _refuse_unknown(self, hook: str) -> None:
        if hook not in self.hook_dict:
            near = ", ".join(closest(hook, self.hook_dict))
            raise HookNameError(f"there is no hook point {hook!r}. The closest are {near}; model.hook_dict lists all")
        if not self._is_on(hook):
            raise gated_error(self.hook_dict[hook])

    @alone
    def add_hook(self, name: HookName, hook: Any, *args: Any, **kwargs: Any) -> None:
        """As TransformerLens', with the names checked. Raises `HookNameError` and `GatedHookError`."""
        for one in self.hook_names(name):
            super().add_hook(one, hook, *args, **kwargs)

    @contextmanager
    def hooks(
        self: Model, fwd_hooks: Sequence[Any] = (), bwd_hooks: Sequence[Any] = (), *args: Any, **kwargs: Any
    ) -> Iterator[Model]:
        """As TransformerLens', with the names checked; while it is open, the model is this thread's.

        Raises:
            HookNameError, GatedHookError: as `hook_names`.
            ModelBusyError: if another thread keeps one open and runs nothing.
        """
        named = self._named(fwd_hooks), self._named(bwd_hooks)
        with self.turn.taken(running=False), super().hooks(*named, *args, **kwargs):
            try:
                yield self
            finally:
                self.turn.passed_on()

    @alone
    def reset_hooks(self, *args: Any, **kwargs: Any) -> None:
        """As TransformerLens'."""
        super().reset_hooks(*args, **kwargs)

    def _named(self, hooks: Sequence[Any]) -> list[Any]:
        return [(one, fn) for name, fn in pairs(hooks, "hooks") for one in self.hook_names(name)]

    @alone
    def run_with_hooks(self, *args: Any, fwd_hooks: Sequence[Any] = (), **kwargs: Any) -> Any:
        """As TransformerLens', and sure of itself: a hook that the run never reached raises.

        Raises:
            HookNameError, GatedHookError: as `hook_names`.
            SilentHookError: if a hook point given by name was not reached, or none of those that a filter matches:
                cross-attention in a run without it, what comes after `stop_at_layer`.
        """
        asked = [(group, fn) for name, fn in pairs(fwd_hooks, "fwd_hooks") for group in self._awaited(name)]
        reached: set[str] = set()

        def watched(fn: Callable[..., Any]) -> Callable[..., Any]:
            def call(activation: Tensor, hook: Any) -> Any:
                reached.add(hook.name)
                return fn(activation, hook=hook)

            return call

        hooks: list[Any] = [(name, watched(fn)) for group, fn in asked for name in group]
        out = super().run_with_hooks(*args, fwd_hooks=hooks, **kwargs)
        refuse_silent([group for group, _ in asked], reached, "so the hooks there did nothing")
        return out

    @alone
    def run_with_cache(
        self,
        *args: Any,
        names_filter: Any = None,
        remove_batch_dim: bool = False,
        pos_slice: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, VLMCache]:
        """As TransformerLens', returning an `ActivationCache`.

        Args:
            names_filter: a name, a list of names, a filter or None for everything that is on and that the run reaches.
            device: where to keep the activations.
            remove_batch_dim: drop the batch axis; for a batch of one.
            incl_bwd: also cache gradients; with ``return_type="loss"``.
            pos_slice: keep some positions of the prompt alone. It applies to the stack the prompt runs in
                (`model.prompt_stack`); activations of other stacks are kept whole.

        Raises:
            HookNameError, GatedHookError: as `hook_names`.
            SilentHookError: as `run_with_hooks`.
            InputsError: if there is no such device, the batch axis cannot be dropped, or `incl_bwd` and
                `stop_at_layer` contradict one another.
            PositionError: if there are no such positions.
        """
        if kwargs.get("incl_bwd") and kwargs.get("stop_at_layer") is not None:
            raise InputsError(
                f"stop_at_layer is {kwargs['stop_at_layer']!r}: the run has no loss, of which incl_bwd keeps the "
                "gradients. Leave one of them out"
            )
        if remove_batch_dim and args and len(self.as_inputs(args[0])) != 1:
            raise InputsError(f"remove_batch_dim needs a batch of one, not {len(self.as_inputs(args[0]))}")
        kept, awaited = cut(pos_slice), [] if names_filter is None else self._awaited(names_filter)
        names = None if names_filter is None else [name for group in awaited for name in group]
        out, cached = super().run_with_cache(
            *args, names_filter=names, remove_batch_dim=remove_batch_dim, pos_slice=kept, **kwargs
        )
        refuse_silent(awaited, cached, "so there is nothing of them to cache")
        return out, VLMCache(cached, self, has_batch_dim=not remove_batch_dim)

    def get_caching_hooks(
        self,
        names_filter: Any = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """TransformerLens' caching hooks, for the hook points that are on, sliced along the axis that is a position."""
        cache = {} if cache is None else cache
        device = None if device is None else placement.to_device(device)
        kept = cut(pos_slice)
        names = self.hook_names((lambda _: True) if names_filter is None else names_filter)
        sliced = {n for n in names if self.stack_of(n) == self.prompt_stack}

        def hooks(suffix: str) -> list[Any]:
            return [
                (n, caching_hook(cache, suffix, device, remove_batch_dim, kept if n in sliced else None)) for n in names
            ]

        self.is_caching = True
        return cache, hooks(""), hooks("_grad") if incl_bwd else []

    @alone
    def add_caching_hooks(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As TransformerLens', for the hook points that are on."""
        cache, fwd, bwd = self.get_caching_hooks(*args, **kwargs)
        for hooks, direction in ((fwd, "fwd"), (bwd, "bwd")):
            for name, fn in hooks:
                self.hook_dict[name].add_hook(fn, direction)
        return cache
