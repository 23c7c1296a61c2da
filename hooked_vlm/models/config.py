"""Configs: one TransformerLens config for each stack, and a front for all of them. Costs nothing."""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens.config import TransformerLensConfig

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

    def __init__(
        self, model_name: str, architecture: str, stacks: dict[str, TransformerLensConfig], main: str | None
    ) -> None:
        self.__dict__.update(model_name=model_name, architecture=architecture, stacks=stacks, main=main)

    def __getattr__(self, name: str) -> Any:
        stacks = self.__dict__.get("stacks", {})
        if name in FLAGS:
            return all(getattr(cfg, name) for cfg in stacks.values())
        if name in ("device", "dtype"):
            return getattr(next(iter(stacks.values())), name)
        main = self.__dict__.get("main")
        if main is None:
            one = next(iter(stacks), "...")
            raise AttributeError(
                f"this model has several stacks ({', '.join(stacks)}) and no {name} of its own: "
                f"read model.stacks[{one!r}].cfg.{name}"
            )
        return getattr(stacks[main], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in FLAGS:
            raise AttributeError(f"cfg.{name} cannot be set; the flags that can be are {' and '.join(FLAGS)}")
        for cfg in self.stacks.values():
            setattr(cfg, name, bool(value))

    def sync(self, device: torch.device, dtype: torch.dtype) -> None:
        """Tell every stack's config where the weights are now."""
        for cfg in self.stacks.values():
            cfg.device, cfg.dtype = str(device), dtype

    def __repr__(self) -> str:
        shapes = (
            f"  {name}: {c.n_layers} layers x {c.n_heads} heads x {c.d_head}, d_model {c.d_model}"
            for name, c in self.stacks.items()
        )
        flags = (f"  {name}: {getattr(self, name)}" for name in FLAGS)
        return "\n".join([f"{self.architecture} ({self.model_name})", *shapes, *flags])
