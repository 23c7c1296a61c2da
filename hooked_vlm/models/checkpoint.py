"""What a checkpoint's files say, looked at before Hugging Face sees them, and its weights, once they are loaded.

Hugging Face unpickles what a `model.safetensors.index.json`, the `transformers_weights` of a config, an adapter or
another model named by a processor lead it to, and builds whatever a config describes. So here is refused, in a hub's
cache as in a directory: weights that are not safetensors, files outside the checkpoint (by their spelling or by a
link), parts that only code or a second model would give, and sizes that the files cannot hold.

Costs: the JSON files and the heads of the weights are read; the model is laid out once without its numbers (0.3 s for
BLIP-base and LLaVA-1.5 alike); `refuse_non_finite` reads each weight once (0.2 s for BLIP-base on one core).
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hooked_vlm.errors import CheckpointError, cut, quoted
from hooked_vlm.given import leads_out

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_READ = (".json", ".safetensors", ".jinja", ".txt", ".model")  # endings of the files that Hugging Face reads
_ONE_PIECE = "save the model whole, with save_pretrained, and load that"
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_OF_HUB = ("revision", "token", "cache_dir", "local_files_only", "proxies")
_SHOWN = 200  # letters of a name that a command repeats
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")

_COUNT = re.compile(r"(^|_)(layers|heads|labels|blocks|experts|channels|depths?|n_layer|n_head)$")
_MOST = 100_000  # of anything that a config counts: lists of so many are made before a model is
_SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "image_size", "patch_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_channels", "head_dim"),
    *("encoder_hidden_size", "projection_dim", "image_text_hidden_size"),
)
_LARGEST = 2**40
_EDGES = ("height", "width", "shortest_edge")  # of the pictures that a processor makes
_LONGEST_EDGE = 2**14
_INTEGERS = 2**63  # beyond which no number is an index, and torch takes none
_DESCRIBE = ("config.json", "processor_config.json", "preprocessor_config.json")
_PACKED = 16  # of weights quantised to 2 bits, a number of 32 holds so many
_SPARE = 10_000_000  # numbers that a small model may have besides those its files hold, such as tables of positions


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint by name, in a directory or through the hub's cache.

    Args:
        name: a directory or a hub name; errors call the files by it, shortened (`str`).
        options: which revision, cache and subfolder, as Hugging Face takes them.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return quoted(self.name)

    @property
    def folder(self) -> Path | None:
        """Where its files are, if it is a directory."""
        return Path(self.name, self.options.get("subfolder") or "") if os.path.isdir(self.name) else None

    def find(self, file: str) -> Path | None:
        """Where a file is; None where there is none. One that leads out of the checkpoint is refused.

        Raises:
            CheckpointError: if it is outside.
        """
        from transformers.utils import cached_file

        if self.folder is not None:
            root = Path(self.name)
            if leads_out(root, Path(self.options.get("subfolder") or "", file)):
                raise CheckpointError(
                    f"{file!r} of {self} leads out of it (to {os.path.realpath(self.folder / file)!r}): copy "
                    "the file into the directory, or name the directory that it is in"
                )
        elif leads_out(".", file):
            raise CheckpointError(f"{file!r} of {self} leads out of it; a checkpoint names its own files alone")
        quiet = ("gated_repo", "missing_entries", "connection_errors")
        try:
            found = cached_file(
                self.name, file, **{f"_raise_exceptions_for_{each}": False for each in quiet}, **self.options
            )
        except (OSError, ValueError):  # there is no such checkpoint: its config is asked for next, and says so
            return None
        return None if found is None else Path(found)

    def read(self, file: str) -> dict[str, Any]:
        """A JSON file's values; empty where there is none, or where Hugging Face will say that it is damaged.

        Raises:
            CheckpointError: if it is outside, or nested beyond measure.
        """
        path = self.find(file)
        try:
            values = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
            deque(_entries(values), maxlen=0)  # all of them can be reached
        except RecursionError as error:
            raise CheckpointError(f"the {file} of {self} is nested too deeply to be read") from error
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}


def refuse_untrusted(files: Files) -> None:
    """Refuse a checkpoint whose files would have Hugging Face read anything but safetensors of its own.

    Raises:
        CheckpointError: naming the file.
    """
    if os.path.isfile(files.name):
        raise CheckpointError(f"{files} is a file; expected a directory, a hub name or 'zoo:...'")
    if files.folder is not None and files.folder.is_dir():
        for file in sorted(os.listdir(files.folder)):
            if file.endswith(_READ):
                files.find(file)
            if _DISTRIBUTED.fullmatch(file):
                raise CheckpointError(f"{files} holds a part of a distributed checkpoint, {file}: {_ONE_PIECE}")
    if files.find("adapter_config.json") is not None:
        raise CheckpointError(
            f"{files} holds an adapter (adapter_config.json), which changes the model's layers: merge it into "
            "the weights (merge_and_unload) and save that, or take the file away"
        )
    if "audio_tokenizer" in files.read("processor_config.json") or files.find("audio_tokenizer_config.json"):
        raise CheckpointError(f"the processor of {files} names a second model (audio_tokenizer): leave it out")
    listed = files.read("tokenizer_config.json").get("fast_tokenizer_files")
    for file in listed if isinstance(listed, list) else []:
        if isinstance(file, str):
            files.find(file)


def refuse_absurd_config(files: Files) -> None:
    """Refuse a config that counts or measures what no model has: before it is parsed, since lists are made of counts.

    The processor's is looked at too: pictures would be scaled to whatever it says.

    Raises:
        CheckpointError: naming the file, the entry, its value and what was expected.
    """
    for file in _DESCRIBE:
        for name, value in _entries(files.read(file)):
            _refuse_absurd(name, value, f"the {file} of {files} says {cut(name)} = {quoted(value)}")


def _refuse_absurd(name: str, value: Any, where: str) -> None:
    key = name.rpartition(".")[2]
    if key in _KERNELS and isinstance(value, str) and "/" in value:
        raise CheckpointError(f"{where}, which is code from a hub: take the entry out")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    counts, measures = bool(_COUNT.search(key)), key in _SIZES
    if measures and not (value >= 1 and (isinstance(value, int) or value.is_integer())):
        raise CheckpointError(f"{where}; expected a whole number, at least 1")
    most = _MOST if counts else _LARGEST if measures else _LONGEST_EDGE if key in _EDGES else None
    if (most is not None and abs(value) > most) or (isinstance(value, int) and abs(value) >= _INTEGERS):
        raise CheckpointError(f"{where}, more than any model has. Get the file again")


def weight_files(files: Files, config: Any, variant: str | None = None) -> list[Path]:
    """The safetensors that Hugging Face will read, in its order of preference; none if there are none.

    Raises:
        CheckpointError: if a file is pickled, outside the checkpoint or missing, or an index is none.
    """
    named = getattr(config, "transformers_weights", None)
    if named is not None and not (
        isinstance(named, str) and named.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise CheckpointError(f"the config.json of {files} names the weights {named!r}: only safetensors are read")
    for file in [str(named)] if named else [_variant(WEIGHTS, variant), _variant(INDEX, variant)]:
        if (found := files.find(file)) is not None:
            return _parts(files, file) if file.endswith(".json") else [found]
    return []


def refuse_pickles(files: Files) -> None:
    """Refuse a checkpoint without safetensors that has pickles, with the command that converts it; fetches nothing.

    Raises:
        CheckpointError: naming the pickle, and the command.
    """
    from transformers.utils import has_file

    known = {name: value for name, value in files.options.items() if name in _OF_HUB and value is not None}
    there = None
    for file in (PICKLED_INDEX, PICKLES):
        path = f"{files.options['subfolder']}/{file}" if files.options.get("subfolder") else file
        with suppress(OSError, ValueError):  # the hub has no such checkpoint: its loading says so
            there = file if has_file(files.name, path, **known) else there
    if there is not None:
        name = shlex.quote(files.name) if len(files.name) <= _SHOWN else "NAME"
        revision = f" --revision {shlex.quote(known['revision'])}" if "revision" in known else ""
        raise CheckpointError(
            f"{files} has pickled weights alone ({there}), and only safetensors are read: a pickle can run code. "
            f"Convert it once, safely, and load what that makes: `hooked-vlm convert {name} OUT{revision}`"
        )


def _variant(file: str, variant: str | None) -> str:
    stem, dot, ending = file.rpartition(".")
    return f"{stem}.{variant}{dot}{ending}" if variant else file


def _parts(files: Files, index: str) -> list[Path]:
    values = files.read(index)
    parts = values.get("weight_map")
    if not (isinstance(parts, dict) and parts and isinstance(values.get("metadata"), dict)):
        raise CheckpointError(
            f"the {index} of {files} is damaged: expected metadata, and a weight_map from names to files"
        )
    for weight, part in parts.items():
        if not isinstance(part, str) or not part.endswith(".safetensors"):
            raise CheckpointError(
                f"the {index} of {files} names {part!r} for {weight}: only safetensors are read, so pickled "
                "weights must be converted first"
            )
    found = {part: files.find(part) for part in sorted(set(parts.values()))}
    if missing := [part for part, path in found.items() if path is None]:
        raise CheckpointError(
            f"the {index} of {files} names {', '.join(missing[:3])}, which is not there: get the file again"
        )
    return [path for path in found.values() if path is not None]


def refuse_oversized(files: Files, hf_class: Any, config: Any, weights: list[Path], *, whole: bool) -> None:
    """Refuse a config that describes more than the weights' files hold, before a model of that size is made.

    Args:
        files: of the checkpoint.
        hf_class: the Hugging Face class that will be built.
        config: its config.
        weights: the safetensors.
        whole: whether every weight must be in the files, in full precision.

    Raises:
        CheckpointError: naming both sizes.
    """
    shapes = [shape for path in weights for shape in _shapes(path)]
    if not shapes:
        return
    for name, value in _entries(config.to_dict()):
        if name.endswith("num_hidden_layers") and isinstance(value, int) and value > len(shapes):
            raise CheckpointError(
                f"the config.json of {files} says {name} = {value}, and its weights are {len(shapes)} tensors: "
                "a layer has at least one. Check that config.json belongs to them"
            )
    with torch.device("meta"):
        model = hf_class(copy.deepcopy(config))
    described = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    held = sum(map(prod, shapes))
    if described > (2 if whole else _PACKED) * held + _SPARE:
        raise CheckpointError(
            f"the config.json of {files} describes a model of {described:,} numbers, and its weights are "
            f"{held:,}: check that config.json belongs to them"
        )


def _shapes(path: Path) -> Iterator[list[int]]:
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (it is no mapping)
            yield opened.get_slice(name).get_shape()


def _entries(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of nested values by its dotted name; those of a list by the list's."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _entries(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _entries(value, name)
    else:
        yield name, values


def refuse_non_finite(model: nn.Module) -> None:
    """Refuse a model with a weight that is NaN or infinite: attention may make a finite answer of it.

    Weights that are not in memory (offloaded), and whole numbers (quantised), are not looked at.

    Raises:
        CheckpointError: naming the first three tensors, and how many of their numbers it is.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    bad = {key: tensor.detach() for key, tensor in tensors.items() if not _is_finite(tensor.detach())}
    if bad:
        listed = ", ".join(
            f"{key}: {int((~tensor.float().isfinite()).sum()):,} of {tensor.numel():,}"
            for key, tensor in list(bad.items())[:3]
        )
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        raise CheckpointError(
            f"the weights of {name!r} are not all numbers: {len(bad)} tensors hold NaN or infinities ({listed}"
            f"{', ...' if len(bad) > 3 else ''}). Get the file again; check_weights=False takes them as they are"
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.device.type == "meta" or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # eight-bit floats have no arithmetic
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # NaN if there is one; fifteen times as fast as isfinite
    return bool(low.isfinite() and high.isfinite())
