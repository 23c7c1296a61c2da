"""What comes back, to a type checker: by what `return_type` is, and an error for every name that is not there.

TransformerLens and `nn.Module` promise `Any` here. At run time there is one method: what a missing name raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from hooked_vlm.errors import AttributeNameError, closest
from hooked_vlm.models.cache import VLMCache
from hooked_vlm.models.generation import Generates
from hooked_vlm.models.hooking import HasHooks
from hooked_vlm.models.inputs import VLMInputs

Given = VLMInputs | Mapping[str, Any]
One = Literal["logits", "loss", "similarity"]
Hooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]


class RunOptions(TypedDict, total=False):
    """The options of `HookedVLM.forward`, but for its return type."""

    loss_per_token: bool
    interpolate_pos_encoding: bool
    logits_at: str | slice | list[int] | None
    stop_at_layer: int | tuple[str, int] | None


class GenerateOptions(TypedDict, total=False):
    """The options of `generate`, but for its return type."""

    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop_at_eos: bool
    interpolate_pos_encoding: bool


if TYPE_CHECKING:

    class HookOptions(RunOptions, total=False):
        """Those, and the options of `run_with_hooks`."""

        fwd_hooks: Hooks
        bwd_hooks: Hooks
        reset_hooks_end: bool
        clear_contexts: bool

    class CacheOptions(RunOptions, total=False):
        """Those of `forward`, and the options of `run_with_cache`."""

        names_filter: str | Sequence[str] | Callable[[str], bool] | None
        device: str | torch.device | None
        remove_batch_dim: bool
        incl_bwd: bool
        pos_slice: Any
        reset_hooks_end: bool
        clear_contexts: bool


class Signatures(Generates, HasHooks):
    """What runs a model, with what comes back."""

    if TYPE_CHECKING:
        __getattr__: Any  # not nn.Module's, by which every name is there

        @overload
        def __call__(self, inputs: Given, return_type: One = "logits", **options: Unpack[RunOptions]) -> Tensor: ...
        @overload
        def __call__(
            self, inputs: Given, return_type: Literal["both"], **options: Unpack[RunOptions]
        ) -> tuple[Tensor, Tensor]: ...
        @overload
        def __call__(self, inputs: Given, return_type: None, **options: Unpack[RunOptions]) -> None: ...
        def __call__(self, *args: Any, **options: Any) -> Any:
            """Run the model; see `HookedVLM.forward`."""

        @overload  # type: ignore[override] # its own classes say less
        def run_with_hooks(
            self, inputs: Given, return_type: One = "logits", **options: Unpack[HookOptions]
        ) -> Tensor: ...
        @overload
        def run_with_hooks(
            self, inputs: Given, return_type: Literal["both"], **options: Unpack[HookOptions]
        ) -> tuple[Tensor, Tensor]: ...
        @overload
        def run_with_hooks(self, inputs: Given, return_type: None, **options: Unpack[HookOptions]) -> None: ...
        def run_with_hooks(self, *args: Any, **options: Any) -> Any:
            """See `HasHooks.run_with_hooks`."""

        @overload  # type: ignore[override] # its own classes say less
        def run_with_cache(
            self, inputs: Given, return_type: One = "logits", **options: Unpack[CacheOptions]
        ) -> tuple[Tensor, VLMCache]: ...
        @overload
        def run_with_cache(
            self, inputs: Given, return_type: Literal["both"], **options: Unpack[CacheOptions]
        ) -> tuple[tuple[Tensor, Tensor], VLMCache]: ...
        @overload
        def run_with_cache(
            self, inputs: Given, return_type: None, **options: Unpack[CacheOptions]
        ) -> tuple[None, VLMCache]: ...
        def run_with_cache(self, *args: Any, **options: Any) -> Any:
            """See `HasHooks.run_with_cache`."""

        @overload  # type: ignore[override] # its own classes say less
        def generate(
            self,
            inputs: Given,
            max_new_tokens: int = 20,
            *,
            return_type: Literal["str"] = "str",
            **options: Unpack[GenerateOptions],
        ) -> list[str]: ...
        @overload
        def generate(
            self,
            inputs: Given,
            max_new_tokens: int = 20,
            *,
            return_type: Literal["tokens"],
            **options: Unpack[GenerateOptions],
        ) -> Tensor: ...
        def generate(self, *args: Any, **options: Any) -> Any:
            """See `Generates.generate`."""

    else:

        def __getattr__(self, name: str) -> Any:
            """A module, parameter or buffer by its name, as nn.Module does it.

            Raises:
                AttributeNameError: if there is none; it names the closest.
            """
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("_"):  # what Python, torch and notebooks ask any object for
                    raise
            stacks = self.__dict__.get("stacks", {})
            owner = next((key for key, stack in stacks.items() if name in dir(stack)), None)
            if owner is not None:
                way = f" of its own: read model.stacks[{owner!r}].{name}"
            else:
                near = closest(name, [known for known in dir(self) if not known.startswith("_")])
                way = f". The closest are {', '.join(near)}"
            raise AttributeNameError(f"{type(self).__name__} has no {name!r}{way}")
