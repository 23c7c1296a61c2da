"""Configs: one TransformerLens config for each stack, and a front for all of them. Costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from transformer_lens.config import TransformerLensConfig

from hooked_vlm.errors import AttributeNameError, StackNameError, closest
from hooked_vlm.options import of_type

T = TypeVar("T")
FLAGS = ("use_attn_result", "use_split_qkv_input")


def stack_config(
    *,
    d_model: int,
    n_heads: int,
    n_layers: int,
    n_ctx: int,
    d_mlp: int,
    act_fn: str,
    eps: float,
    norm: str = "LN",
    positions: str = "standard",
    d_head: int | None = None,
    n_key_value_heads: int | None = None,
    d_vocab: int = -1,
    gated_mlp: bool = False,
) -> TransformerLensConfig:
    """The TransformerLens config of a stack. `norm` is "LN" or "RMS"."""
    return TransformerLensConfig(
        d_model=d_model,
        d_head=d_head or d_model // n_heads,
        n_layers=n_layers,
        n_ctx=n_ctx,
        n_heads=n_heads,
        d_mlp=d_mlp,
        d_vocab=d_vocab,
        device="cpu",
        positional_embedding_type=positions,
        n_key_value_heads=None if n_key_value_heads == n_heads else n_key_value_heads,
        gated_mlp=gated_mlp,
        uses_rms_norm=norm == "RMS",
        final_rms=norm == "RMS",
        normalization_type=norm,
        eps=eps,
        act_fn=act_fn,
    )


class ByStack(dict[str, T]):
    """Something for each stack, by its name, in the order in which the stacks run: a dict that names what it has.

    Raises:
        StackNameError: from `[...]`, for any other name.
    """

    def __missing__(self, name: str) -> NoReturn:
        raise StackNameError(f"there is no stack {name!r}; this model has {', '.join(self)}")


class VLMConfig:
    """The configs of a model's stacks behind one name.

    The two flags set here are set in every stack. Every other field is that of the main stack, in models
    that have one (LLaVA: the language model); in the others it must be read from a stack.

    Args:
        model_name: where the model came from.
        architecture: its Hugging Face class.
        stacks: the stacks' configs.
        main: the stack that a plain field means, or None.
    """

    model_name: str
    architecture: str
    stacks: ByStack[TransformerLensConfig]
    main: str | None
    use_attn_result: bool
    use_split_qkv_input: bool
    device: str
    dtype: torch.dtype
    n_layers: int
    n_heads: int
    n_key_value_heads: int | None
    n_ctx: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    act_fn: str
    eps: float
    normalization_type: str
    positional_embedding_type: str

    def __init__(
        self, model_name: str, architecture: str, stacks: dict[str, TransformerLensConfig], main: str | None
    ) -> None:
        self.__dict__.update(model_name=model_name, architecture=architecture, stacks=ByStack(stacks), main=main)

    def _field(self, name: str) -> Any:
        stacks = self.__dict__.get("stacks", {})
        if name in FLAGS:
            return all(getattr(cfg, name) for cfg in stacks.values())
        one = next(iter(stacks), None)
        if one is None or not hasattr(stacks[one], name):
            known = [] if one is None else [*FLAGS, *vars(stacks[one])]
            raise AttributeNameError(f"a config has no {name!r}. The closest are {', '.join(closest(name, known))}")
        if name in ("device", "dtype"):
            return getattr(stacks[one], name)
        if self.main is None:
            raise AttributeNameError(
                f"this model has several stacks ({', '.join(stacks)}) and no {name} of its own: "
                f"read model.stacks[{one!r}].cfg.{name}"
            )
        return getattr(stacks[self.main], name)

    if not TYPE_CHECKING:  # the fields above are all that a type checker should know
        __getattr__ = _field

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in FLAGS:
            raise AttributeNameError(f"cfg.{name} cannot be set; the flags that can be are {' and '.join(FLAGS)}")
        of_type(value, f"cfg.{name}", bool, "True or False")
        for cfg in self.stacks.values():
            setattr(cfg, name, value)

    def sync(self, device: torch.device, dtype: torch.dtype) -> None:
        """Tell every stack's config where the weights are now."""
        for cfg in self.stacks.values():
            cfg.device, cfg.dtype = str(device), dtype

    def __dir__(self) -> list[str]:
        """What can be read here: the flags, and the fields where there is a main stack."""
        fields = [name for cfg in list(self.stacks.values())[:1] for name in vars(cfg)]
        return [*super().__dir__(), *FLAGS, *(fields if self.main is not None else ("device", "dtype"))]

    def __repr__(self) -> str:
        shapes = (
            f"  {name}: {c.n_layers} layers x {c.n_heads} heads x {c.d_head}, d_model {c.d_model}"
            for name, c in self.stacks.items()
        )
        flags = (f"  {name}: {getattr(self, name)}" for name in FLAGS)
        return "\n".join([f"{self.architecture} ({self.model_name})", *shapes, *flags])
