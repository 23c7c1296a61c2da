"""Hooks that somebody put on Hugging Face's own modules, and that our order of computation passes by.

We call Hugging Face's leaves (Linear, LayerNorm, Embedding, ...), so hooks there fire. What holds them (an attention, a
layer, a tower) is never called, and a hook there would be silent. Which is which is observed in the run itself. Cost:
one comparison a run while no hook is registered anywhere, a walk over the modules after one was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import takewhile
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

SHOWN = 3  # modules that a warning names


class ForeignHooks:
    """The hooks on a Hugging Face model's modules, and which of them a run called.

    Args:
        hf_model: the Hugging Face model.
        ours: the modules of the hooked model by name, to say where a bypassed module's layers are called.
    """

    def __init__(self, hf_model: nn.Module, ours: Mapping[str, nn.Module]) -> None:
        self._modules = {f"hf_model.{name}".rstrip("."): module for name, module in hf_model.named_modules()}
        self._ours = ours
        self._hooked: dict[str, nn.Module] = {}
        self._seen = -1  # PyTorch's count of the hooks ever registered, when the modules were last looked through
        self._warned: set[int] = set()

    @contextmanager
    def watched(self, *, stops: bool = False) -> Iterator[None]:
        """While it is open, one run runs; warns of hooks which it did not call, once a hook.

        Args:
            stops: whether the run ends before the model does, so that it tells nothing of what it did not call.
        """
        if self._seen != RemovableHandle.next_id:
            self._hooked = {
                name: m
                for name, m in self._modules.items()
                if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            }
            self._seen = RemovableHandle.next_id
        waiting = {name: module for name, module in self._hooked.items() if hook_ids(module) - self._warned}
        if not waiting or stops:
            yield
            return
        silent = dict(waiting)
        handles = [module.register_forward_pre_hook(_forgets(silent, name)) for name, module in waiting.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen += len(handles)
        if silent:
            self._warned.update(*map(hook_ids, silent.values()))
            self._warn(silent)

    def _warn(self, silent: Mapping[str, nn.Module]) -> None:
        shown = [f"{name}{self._instead(module)}" for name, module in list(silent.items())[:SHOWN]]
        more = "" if len(silent) <= SHOWN else f", and {len(silent) - SHOWN} more"
        warnings.warn(
            f"the run never called {', '.join(shown)}{more}, so the hooks on these Hugging Face modules did nothing: "
            "their layers are called in an order of our own. Put the hooks on hook points, model.hook_dict",
            stacklevel=1,
        )

    def _instead(self, module: nn.Module) -> str:
        """Which module of ours does a module's work, if one does."""
        inside = set(module.modules())
        callers = [name for name, one in self._ours.items() if inside & set(held_in(vars(one)))]
        common = _common(callers)
        return f" ({common} does its work)" if common else ""


def hook_ids(module: nn.Module) -> set[int]:
    """The numbers of the hooks on a module that a call of it would fire; those of Hugging Face's own do not count."""
    tables = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return {key for table in tables for key, hook in table.items() if not _is_hugging_faces(hook)}


def held_in(value: Any) -> Iterator[nn.Module]:
    """The modules that a component keeps beside its own submodules: its leaves."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, (tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from held_in(one)
    elif is_dataclass(value):
        for part in fields(value):
            yield from held_in(getattr(value, part.name))


def _is_hugging_faces(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).split(".")[0] in ("transformers", "accelerate")


def _forgets(silent: dict[str, nn.Module], name: str) -> Any:
    def called(module: nn.Module, args: Any) -> None:
        silent.pop(name, None)

    return called


def _common(names: list[str]) -> str:
    """The longest path that several dotted names begin with."""
    parts = [name.split(".") for name in names]
    return ".".join(here[0] for here in takewhile(lambda here: len(set(here)) == 1, zip(*parts, strict=False)))
