"""Checkpoints from a hub, a directory or the zoo, through Hugging Face's own loading, with clear errors.

Only safetensors are read: nothing is unpickled and no code of a checkpoint is run. Cost: Hugging Face's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hooked_vlm.errors import CheckpointError, InputsError, UnsupportedArchitectureError

RECOMPUTED = ("position_ids", "inv_freq")  # buffers that older checkpoints saved and the model makes itself
OURS = ("trust_remote_code", "use_safetensors", "output_loading_info", "attn_implementation", "torch_dtype")


def resolve(name: str) -> str:
    """A hub name or directory as it is; "zoo:..." as the directory of a model that ships with the package."""
    name = os.fspath(name)
    if not name.startswith("zoo:"):
        return name
    from hooked_vlm import zoo

    return str(zoo.locate(name))


def to_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A floating-point dtype by name or as it is; None is float32.

    Raises:
        InputsError: if there is none of that name.
    """
    found = torch.float32 if dtype is None else dtype
    if isinstance(found, str):
        found = getattr(torch, found.removeprefix("torch."), None)  # type: ignore[assignment]
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputsError(f"dtype is {dtype!r}; expected a floating-point one such as 'float32', 'bfloat16', 'float16'")
    return found


def to_device(device: str | torch.device | None) -> torch.device | None:
    """A device that exists here.

    Raises:
        InputsError: if it does not.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputsError(f"device is {device!r}, which is not here ({str(error).splitlines()[0]}); try 'cpu'") from error
    return found


def read_config(directory: str, *, revision: str | None = None, **options: Any) -> tuple[Any, str]:
    """The checkpoint's config and the name of its Hugging Face class.

    Raises:
        CheckpointError: if there is no checkpoint, or its config is unreadable.
        UnsupportedArchitectureError: if the config names no class.
    """
    for name in OURS:
        if name in options:
            raise InputsError(f"{name} is not yours to set here: {_why(name)}")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, revision=revision, **_hub_options(options))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory!r} is neither a directory with a config.json nor a model that the hub (or its local cache) "
            f"has: {str(error).splitlines()[0]}"
        ) from error
    names = getattr(config, "architectures", None) or []
    if not names:
        raise UnsupportedArchitectureError(f"the config of {directory!r} names no architecture (model_type {config.model_type!r})")
    return config, names[0]


def load_model(
    directory: str,
    hf_class: str,
    *,
    dtype: torch.dtype,
    device: torch.device | None,
    strict: bool,
    revision: str | None,
    device_map: Any,
    quantization_config: Any,
    **options: Any,
) -> nn.Module:
    """The Hugging Face model.

    Raises:
        CheckpointError: if weights are missing, extra, of another shape, or not safetensors.
        InputsError: if both a device and a device map are given.
    """
    if device is not None and device_map is not None:
        raise InputsError("device and device_map were both given: give one")
    import transformers

    given = {"device_map": device_map, "quantization_config": quantization_config}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        model, report = getattr(transformers, hf_class).from_pretrained(
            directory,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **given,
            **options,
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the weights of {directory!r} cannot be loaded: {error}. Only model.safetensors is read; a checkpoint "
            "that has pickled weights alone must be converted first"
        ) from error
    if strict:
        _refuse_differences(directory, report)
    return model if device is None else model.to(device)  # type: ignore[no-any-return]


def load_processor(directory: str, *, revision: str | None = None, **options: Any) -> Any:
    """The checkpoint's own processor.

    Raises:
        CheckpointError: if it has none that can be read.
    """
    from transformers import AutoProcessor

    try:
        with _quiet():
            processor = AutoProcessor.from_pretrained(
                directory, revision=revision, trust_remote_code=False, **_hub_options(options)
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the processor of {directory!r} cannot be loaded ({error}): save it beside the model with "
            "processor.save_pretrained, or pass processor="
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise CheckpointError(
            f"{directory!r} has a {type(processor).__name__} where a processor of images and text is needed: save one "
            "beside the model with processor.save_pretrained, or pass processor="
        )
    return processor


def _refuse_differences(directory: str, report: Any) -> None:
    found = {
        kind: sorted(str(key) for key in report.get(f"{kind}_keys", ()) if not str(key).endswith(RECOMPUTED))
        for kind in ("missing", "unexpected", "mismatched")
    }
    if any(found.values()):
        listed = "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for kind, keys in found.items()
            if keys
        )
        raise CheckpointError(
            f"the weights of {directory!r} are not this architecture's: {listed}. Check that config.json belongs to "
            "them; strict=False loads them all the same, with fresh values for what is missing"
        )


def _why(name: str) -> str:
    return {
        "trust_remote_code": "no code of a checkpoint is ever run",
        "use_safetensors": "only safetensors are read",
        "output_loading_info": "missing and extra weights are checked already (strict=)",
        "attn_implementation": "attention is computed by hooked_vlm, fused where nobody looks",
        "torch_dtype": "it is called dtype",
    }[name]


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    known = ("cache_dir", "token", "local_files_only", "force_download", "subfolder", "proxies")
    return {name: value for name, value in options.items() if name in known}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Hugging Face's warning that it falls back to Pillow, which is what we want."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
