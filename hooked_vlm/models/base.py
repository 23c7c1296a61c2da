"""`HookedVLM`: a Hugging Face vision-language model in which every tensor passes a named hook point.

A family (one file each: `blip.py`, `llava.py`) maps its Hugging Face modules to stacks and says how they feed
one another; everything else is here and in the files beside this one. No weight is copied. Cost: a plain
forward costs what Hugging Face's costs; see `components.attention` for what looking costs.

The model always computes as in evaluation: dropout is never applied, not after `hf_model.train()` either, and
`model.train()` raises. Gradients do not need it.

One thread at a time has a model. Threads may share it, and wait for one another: a run (forward, run_with_hooks,
run_with_cache, generate, resume, a sweep) has it from beginning to end, and so has an open `with model.hooks(...)`,
which another thread waits for and does not see. Where the one that opened it runs nothing for `models.turn.PATIENCE`
seconds meanwhile, the other raises `ModelBusyError`. Hooks that `add_hook` leaves on the model act in every thread.
For runs side by side give each thread a `copy.deepcopy(model)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vlm.components.embed import Unembed, VisionStack
from hooked_vlm.components.hook_point import HookPoint, PositionOffset
from hooked_vlm.errors import InputsError, StackError, TrainingModeError, UnsupportedArchitectureError, quoted
from hooked_vlm.models import checkpoint, loading, memory, placement
from hooked_vlm.models.bypassed import ForeignHooks
from hooked_vlm.models.config import ByStack, VLMConfig
from hooked_vlm.models.focus import FocusedStack
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.layout import Layout
from hooked_vlm.models.resuming import Resumes
from hooked_vlm.models.run import Run, Stopped, stop_at
from hooked_vlm.models.shown import Shown
from hooked_vlm.models.signatures import Signatures
from hooked_vlm.models.text import PreparesInputs
from hooked_vlm.models.turn import Turn, alone
from hooked_vlm.positions import Places, read

FAMILIES: dict[str, type[HookedVLM]] = {}
Model = TypeVar("Model", bound="HookedVLM")


def register(*hf_classes: str) -> Callable[[type[Model]], type[Model]]:
    """Class decorator: this family reads these Hugging Face classes (by name)."""

    def add(family: type[Model]) -> type[Model]:
        FAMILIES.update(dict.fromkeys(hf_classes, family))
        return family

    return add


class HookedVLM(Shown, PreparesInputs, Resumes, placement.Placed, Signatures):
    """Base of the families, and the door to all of them: `HookedVLM.from_pretrained(name)`.

    Attributes:
        hf_model: the Hugging Face model, which owns the weights.
        processor: its processor, or None.
        stacks: the stacks by name, in the order in which they run.
        cfg: the stacks' configs; flags set here hold in every stack.
    """

    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # the model_types that a family reads, by part of the config
    hf_model: Any  # an nn.Module, with what its class names in it
    vision_encoder: VisionStack
    unembed: Unembed  # in families that make tokens

    def __init__(self, hf_model: nn.Module, processor: Any = None) -> None:
        super().__init__()
        self.hf_model, self.processor = hf_model, processor
        self.stacks, self.outside, self.turn, self.reading = ByStack(), PositionOffset(), Turn(), Turn()
        self.hook_pixel_values = HookPoint("batch channel height width", aliased=True)
        self._build()
        self.hook_logits = HookPoint("batch pos d_vocab")
        config = self.hf_model.config
        self.cfg = VLMConfig(
            getattr(config, "_name_or_path", "") or "built in memory",
            type(hf_model).__name__,
            {name: stack.cfg for name, stack in self.stacks.items()},
            self.main_stack,
        )
        self.setup()
        self._foreign = ForeignHooks(hf_model, self.mod_dict)
        self.eval()
        self._after_move()

    # --- what a family provides ---------------------------------------------------------------------

    def _build(self) -> None:
        """Fill `self.stacks` and register the stacks and hook points as attributes."""
        raise NotImplementedError

    def _run(self, inputs: VLMInputs, run: Run) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of one run."""
        raise NotImplementedError

    def _check(self, inputs: VLMInputs, run: Run) -> None:
        """Raise `InputsError` for what this family cannot run."""

    def _hf_logits(self, inputs: VLMInputs) -> Float[Tensor, "batch pos d_vocab"]:
        """What Hugging Face's own model gives for inputs without padding, in the form of `_run`'s."""
        raise NotImplementedError

    @property
    def layout(self) -> Layout:
        """How this model lays out its sequences."""
        raise NotImplementedError

    def _targets(self, inputs: VLMInputs) -> Tensor:
        """[batch pos], the token each position's logits are scored against, -100 for none."""
        raise NotImplementedError

    # --- loading ------------------------------------------------------------------------------------

    @classmethod
    def from_hf(cls: type[Model], hf_model: nn.Module, processor: Any = None, *, check_weights: bool = True) -> Model:
        """Wrap a Hugging Face model you hold. Its weights are shared, and it is set to evaluation mode.

        Raises:
            UnsupportedArchitectureError: if no family reads its class, or one of its towers.
            CheckpointError: if a weight is NaN or infinite; `check_weights=False` does not look.
        """
        family = cls._family(type(hf_model).__name__, getattr(hf_model, "config", None))
        if check_weights:
            checkpoint.refuse_non_finite(hf_model)
        return family(hf_model, processor)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name: str,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        processor: Any = None,
        strict: bool = True,
        check_weights: bool = True,
        **hf_options: Any,
    ) -> Model:
        """Load a checkpoint through Hugging Face.

        Args:
            name: a hub name, a directory, or "zoo:..." for a model that ships with the package.
            device: where to put it; None or "auto" for the accelerator that this machine has (CUDA, or Apple's
                MPS), else the CPU.
            dtype: e.g. `torch.float16` or "float16"; None or "auto" for float32 on a CPU, and on an accelerator the
                checkpoint's own if that is a half precision.
            revision: branch, tag or commit on the hub.
            device_map: passed on to Hugging Face, which then places the model; leave `device` out.
            quantization_config: passed on to Hugging Face, which then places the model if `device` is left out.
            processor: used in place of the checkpoint's own.
            strict: refuse a checkpoint with missing or extra weights.
            check_weights: refuse weights that are NaN or infinite; each is read once.
            hf_options: passed on to Hugging Face's `from_pretrained` (`cache_dir`, `token`, ...).

        Returns:
            The family's class, e.g. `HookedBLIP`. Print it to see where it is.

        Raises:
            CheckpointError: if there is no such checkpoint, or its weights are missing, extra, of another
                shape, not safetensors, or not finite.
            UnsupportedArchitectureError: if no family reads it, or one of its towers; before its weights are read.
            InputsError: if the dtype or device does not exist here.
            DoesNotFitError: if the weights do not fit the memory.
        """
        directory = loading.resolve(name)
        config, hf_class = loading.read_config(directory, revision=revision, **hf_options)
        family = cls._family(hf_class, config)
        weights_on, weights_as = placement.placed(
            device, dtype, config, device_map=device_map, quantization_config=quantization_config
        )
        if processor is None:
            processor = loading.load_processor(directory, revision=revision, **hf_options)
        ways = [] if weights_as in placement.HALF else ["dtype='bfloat16' or 'float16' halves the weights"]
        ways.append("device_map='auto' spreads them over several devices, quantization_config= shrinks them")
        with memory.told_if_out(
            lambda: f"loading {quoted(name)} {placement.told(weights_on, weights_as)}",
            lambda: weights_on or placement.accelerator() or torch.device("cpu"),
            lambda: ways,
        ):
            hf_model = loading.load_model(  # last, since it takes longest
                directory,
                hf_class,
                config,
                dtype=weights_as,
                device=weights_on,
                strict=strict,
                revision=revision,
                device_map=device_map,
                quantization_config=quantization_config,
                **hf_options,
            )
            return family.from_hf(hf_model, processor, check_weights=check_weights)

    @classmethod
    def _family(cls: type[Model], hf_class: str, config: Any) -> type[Model]:
        """The family that reads a Hugging Face class with such a config."""
        family = FAMILIES.get(hf_class)
        if family is None:
            raise UnsupportedArchitectureError(
                f"no family reads {hf_class!r}; supported are {', '.join(FAMILIES)}. CONTRIBUTING.md says how to "
                "add one in one file"
            )
        if not issubclass(family, cls):
            raise UnsupportedArchitectureError(
                f"{hf_class} is read by {family.__name__}, not by {cls.__name__}: use {family.__name__} or HookedVLM"
            )
        for part, known in family.towers.items():
            kind = getattr(getattr(config, part, None), "model_type", None)
            if kind not in known:
                raise UnsupportedArchitectureError(
                    f"no family reads a {hf_class} whose {part} has the model_type {kind!r}: expected "
                    f"{', '.join(known[:-1])} or {known[-1]}. Another tower computes something else under like "
                    "names; CONTRIBUTING.md says how a family is added"
                )
        return family

    # --- running ------------------------------------------------------------------------------------

    def forward(
        self,
        inputs: VLMInputs | Mapping[str, Any],
        return_type: str | None = "logits",
        *,
        loss_per_token: bool = False,
        interpolate_pos_encoding: bool = False,
        logits_at: str | slice | list[int] | None = None,
        stop_at_layer: int | tuple[str, int] | None = None,
    ) -> Any:
        """Run the model.

        Args:
            inputs: from `model.to_inputs`, or a mapping with the same parts.
            return_type: "logits" [batch pos d_vocab]; "loss", the mean cross-entropy of predicting each next
                text token (a scalar); "both"; or None for nothing.
            loss_per_token: return the loss of each predicted token, [batch pos - 1], 0 where none is.
            interpolate_pos_encoding: stretch learned positions over images of another size.
            logits_at: positions to unembed; "last" for each row's last real one; None for all.
            stop_at_layer: the first layer that does not run: one of `model.prompt_stack`, or a stack and one of its
                layers, ("vision_encoder", 2). Layers count as a list's, and n_layers is after the last. The residual
                stream as it arrives there, [batch pos d_model], is returned in place of logits, and neither what
                comes after nor a stack that it does not depend on is run.

        Raises:
            InputsError: if the inputs do not fit the model, or options contradict one another.
            PositionError: if there are no logits at these positions.
            StackError: if there is no such stack or layer to stop at.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise InputsError(f"return_type is {return_type!r}; expected 'logits', 'loss', 'both' or None")
        is_last = isinstance(logits_at, str) and logits_at == "last"
        at: Literal["last"] | Places | None = (
            "last" if is_last else read(logits_at, "logits_at (or 'last')", by_row=False)
        )
        if logits_at is not None and return_type in ("loss", "both"):
            raise InputsError("a loss needs the logits at every position: leave logits_at out")
        end = stop_at(stop_at_layer, self.stacks, self.prompt_stack)
        if end is not None and (return_type in ("loss", "both") or loss_per_token or logits_at is not None):
            raise InputsError(
                f"stop_at_layer is {stop_at_layer!r}: the run ends at layer {end[1]} of {end[0]} with its residual "
                f"stream and has no logits. Leave it out, or return_type {return_type!r}, loss_per_token "
                f"{loss_per_token} and logits_at {logits_at!r}"
            )
        inputs = self.as_inputs(inputs)
        logits = self._checked_run(inputs, Run(interpolate=interpolate_pos_encoding, logits_at=at, stop_at=end))
        if return_type in ("logits", None):
            return logits if return_type else None
        loss = self._loss(logits, inputs, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    @alone
    def _checked_run(self, inputs: VLMInputs, run: Run) -> Tensor:
        if not self._is_dispatched and inputs.input_ids.device != self.device:
            raise InputsError(
                f"the inputs are on {inputs.input_ids.device} and the model on {self.device}: inputs.to(model.device)"
            )
        self._check(inputs, run)
        with self._foreign.watched(stops=run.stop_at is not None):
            try:
                return self._run(inputs, run)
            except Stopped as stopped:
                return stopped.resid

    def _loss(self, logits: Tensor, inputs: VLMInputs, per_token: bool) -> Tensor:
        targets = self._targets(inputs)[:, 1:]
        if not (targets != -100).any():
            raise InputsError(
                "there is no next token to score: the sequence that the model predicts has one token. "
                "BLIP: give decoder_input_ids with the answer in them"
            )
        return nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2).to(torch.promote_types(logits.dtype, torch.float32)),
            targets.to(logits.device),
            ignore_index=-100,
            reduction="none" if per_token else "mean",
        )

    # --- the rest -----------------------------------------------------------------------------------

    def focus(self, stack: str, images: Any = None, texts: Any = None) -> FocusedStack:
        """One stack as a TransformerLens model, the rest held fixed; see `models.focus.FocusedStack`.

        Args:
            stack: which one.
            images: what the model sees in every run (text stacks).
            texts: what it is asked in every run (the vision encoder, and BLIP's answer decoder).
        """
        return FocusedStack(self, stack, images=images, texts=texts)

    def train(self, mode: bool = True) -> Any:
        """Only ``train(False)``, which is `eval()`: the model always computes as in evaluation.

        Raises:
            TrainingModeError: if `mode` is True.
        """
        if mode:
            raise TrainingModeError(
                "the model always computes as in evaluation, without dropout: leave train() out. Gradients flow as it "
                "is; for training with dropout train model.hf_model by itself, whose weights these are"
            )
        return super().train(mode)

    def set_use_attn_result(self, on: bool) -> None:
        """Set `cfg.use_attn_result` in every stack."""
        self.cfg.use_attn_result = on

    def set_use_split_qkv_input(self, on: bool) -> None:
        """Set `cfg.use_split_qkv_input` in every stack."""
        self.cfg.use_split_qkv_input = on

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding weights; a view.

        Raises:
            StackError: in a model that makes no tokens.
        """
        self._need_unembedding()
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias; a view, or zeros.

        Raises:
            StackError: in a model that makes no tokens.
        """
        self._need_unembedding()
        return self.unembed.b_U

    def _need_unembedding(self) -> None:
        if "unembed" not in self._modules:
            raise StackError(f"{type(self).__name__} makes no tokens, so it has no unembedding")
