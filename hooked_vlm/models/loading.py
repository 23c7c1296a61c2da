"""Checkpoints from a hub, a directory or the zoo, through Hugging Face's own loading, with clear errors.

Only safetensors are read: nothing is unpickled and no code of a checkpoint is run (`checkpoint` sees to it; one of
pickles alone is converted first, by `conversion`). Cost: Hugging Face's, and that of `checkpoint`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from hooked_vlm.errors import CheckpointError, InputsError, UnsupportedArchitectureError, quoted
from hooked_vlm.given import line, told
from hooked_vlm.models import checkpoint, memory

OURS = {
    "trust_remote_code": "no code of a checkpoint is ever run",
    "use_safetensors": "only safetensors are read",
    "output_loading_info": "missing and extra weights are checked already (strict=)",
    "ignore_mismatched_sizes": "strict=False does that",
    "attn_implementation": "attention is computed by hooked_vlm, fused where nobody looks",
    "torch_dtype": "it is called dtype",
    "config": "the checkpoint's own is read, and held against its weights",
    "gguf_file": "only safetensors are read",
    "state_dict": "only safetensors are read; HookedVLM.from_hf wraps a model that you hold",
    "weights_only": "only safetensors are read",
    "adapter_kwargs": "no adapter is loaded; merge it into the weights first",
    "use_kernels": "no code of a hub is ever run",
    "kernel_config": "no code of a hub is ever run",
    "allow_all_kernels": "no code of a hub is ever run",
}


def resolve(name: str) -> str:
    """A hub name or directory as it is; "zoo:..." as the directory of a model that ships with the package.

    Raises:
        CheckpointError: if it is no name at all.
    """
    name = os.fspath(name) if isinstance(name, (str, os.PathLike)) else name
    if not isinstance(name, str) or not name.strip():
        raise CheckpointError(
            f"a checkpoint was asked for by {quoted(name)}; expected a hub name, a directory or 'zoo:...'"
        )
    if not name.startswith("zoo:"):
        return name
    from hooked_vlm import zoo

    return str(zoo.locate(name))


def read_config(directory: str, *, revision: str | None = None, **options: Any) -> tuple[Any, str]:
    """The checkpoint's config and the name of its Hugging Face class.

    Raises:
        CheckpointError: if there is no checkpoint, or its config is unreadable.
        UnsupportedArchitectureError: if the config names no class.
    """
    for name in OURS:
        if name in options:
            raise InputsError(f"{name} is not yours to set here: {OURS[name]}")
    from transformers import AutoConfig

    files = _files(directory, revision, options)
    checkpoint.refuse_untrusted(files)
    checkpoint.refuse_absurd_config(files)
    try:
        config = AutoConfig.from_pretrained(
            directory, revision=revision, trust_remote_code=False, **_hub_options(options)
        )
    except Exception as error:  # of a config that means nothing, anything
        if os.path.isfile(os.path.join(directory, options.get("subfolder") or "", "config.json")):
            raise CheckpointError(
                f"the config.json of {files} cannot be read: {line(error)}. Get the file again, or save it with "
                "config.save_pretrained"
            ) from error
        raise CheckpointError(
            f"{files} is neither a directory with a config.json nor a model that the hub (or its local cache) "
            f"has: {line(error)}"
        ) from error
    names = getattr(config, "architectures", None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"the config.json of {files} says architectures = {quoted(names)}; expected a list with the name of "
            'its Hugging Face class, "architectures": ["..."]'
        )
    if not names:
        raise UnsupportedArchitectureError(
            f"the config of {files} names no architecture (model_type {config.model_type!r}): write the name of "
            'its Hugging Face class into config.json, "architectures": ["..."]'
        )
    return config, names[0]


def load_model(
    directory: str,
    hf_class: str,
    config: Any,
    *,
    dtype: torch.dtype | None,
    device: torch.device | None,
    strict: bool,
    revision: str | None,
    device_map: Any,
    quantization_config: Any,
    **options: Any,
) -> nn.Module:
    """The Hugging Face model.

    Raises:
        CheckpointError: if weights are missing, extra, of another shape, damaged, not safetensors or not the
            checkpoint's own, or if the config describes no model, or one that the weights cannot fill.
        InputsError: if there is an option that Hugging Face does not know.
    """
    import transformers
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if quantization_config is not None and not isinstance(quantization_config, (Mapping, QuantizationConfigMixin)):
        raise InputsError(
            f"quantization_config is {quoted(quantization_config)}; expected one of Hugging Face's, such as "
            "transformers.BitsAndBytesConfig(load_in_4bit=True), or a dictionary of its values"
        )
    given = {"device_map": device_map, "quantization_config": quantization_config}
    given = {name: value for name, value in given.items() if value is not None}
    family, files = getattr(transformers, hf_class), _files(directory, revision, options)
    weights = checkpoint.weight_files(files, config, options.get("variant"))
    if not weights:
        checkpoint.refuse_pickles(files)
    whole = strict and quantization_config is None and not hasattr(config, "quantization_config")
    try:
        checkpoint.refuse_oversized(files, family, config, weights, whole=whole)
        model, report = family.from_pretrained(
            directory,
            revision=revision,
            dtype="auto" if dtype is None else dtype,  # auto: as the weights are stored
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them; refused below
            **given,
            **options,
        )
    except (torch.OutOfMemoryError, MemoryError, CheckpointError):
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if memory.ran_out(error):
            raise
        raise CheckpointError(
            f"the weights of {files} cannot be loaded: {line(error)}. Only safetensors are read: "
            "pickled weights (.bin) must be converted first (`hooked-vlm convert`), and a damaged file fetched again"
        ) from error
    except Exception as error:
        if isinstance(error, TypeError) and options:
            raise InputsError(
                f"{hf_class} cannot be loaded with the options {', '.join(options)}: {line(error)}"
            ) from error
        raise CheckpointError(
            f"{files} cannot be built as its config.json and the options given say ({told(error)}): check both"
        ) from error
    if strict:
        _refuse_differences(files, report)
    return model if device is None else model.to(device)


def load_processor(directory: str, *, revision: str | None = None, **options: Any) -> Any:
    """The checkpoint's own processor.

    Raises:
        CheckpointError: if it has none that can be read.
    """
    from transformers import AutoProcessor

    files = _files(directory, revision, options)
    try:
        with _quiet():
            processor = AutoProcessor.from_pretrained(
                directory, revision=revision, trust_remote_code=False, **_hub_options(options)
            )
    except Exception as error:  # a damaged tokenizer is told with a bare Exception
        raise CheckpointError(
            f"the processor of {files} cannot be loaded ({line(error)}): save it beside the model with "
            "processor.save_pretrained, or pass processor="
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise CheckpointError(
            f"{files} has a {type(processor).__name__} where a processor of images and text is needed: save one "
            "beside the model with processor.save_pretrained, or pass processor="
        )
    tokenizer = processor.tokenizer
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what Hugging Face makes of a missing vocabulary
        raise CheckpointError(
            f"the tokenizer of {files} knows no words: its tokenizer.json (or vocabulary) is missing. Save the "
            "processor beside the model with processor.save_pretrained, or pass processor="
        )
    return processor


def _refuse_differences(files: checkpoint.Files, report: Any) -> None:
    keys_of = {kind: report.get(f"{kind}_keys", ()) for kind in ("missing", "unexpected", "mismatched")}
    keys_of["mismatched"] = [
        f"{key} is {tuple(has)} and not {tuple(wants)}" for key, has, wants in keys_of["mismatched"]
    ]
    found = {kind: sorted(keys) for kind, keys in keys_of.items()}
    if any(found.values()):
        listed = "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for kind, keys in found.items()
            if keys
        )
        raise CheckpointError(
            f"the weights of {files} are not this architecture's: {listed}. Check that config.json belongs to "
            "them; strict=False loads them all the same, with fresh values for what is missing or mismatched"
        )


def _files(directory: str, revision: str | None, options: dict[str, Any]) -> checkpoint.Files:
    return checkpoint.Files(directory, {"revision": revision, **_hub_options(options)})


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
