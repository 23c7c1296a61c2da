"""A program of its own: pickled weights in, safetensors out. Nothing imports it; `models.conversion` runs it.

A pickle is a program. PyTorch reads one with `weights_only=True` as tensors by name, and refuses whatever else it asks
for; should that ever fail, it fails in a process that holds nothing and ends at once. This is the only place in the
package that unpickles. It reads what to do from its input, as JSON, and writes what it did to its output.

Costs a file's tensors in memory, one file at a time. Knows torch and safetensors, and no model.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hooked_vlm.errors import CheckpointError

_MOST = 4  # bytes written for each of a file: tied weights are in it once, and are written under each of their names
_ASKED = re.compile(r"GLOBAL (\S+)|class (\S+)")


def main() -> int:
    """Convert each file of a job, ``{"files": [[source, target], ...]}``; the exit status."""
    shapes: list[dict[str, list[int]]] = []
    for source, target in json.load(sys.stdin)["files"]:
        try:
            shapes.append(converted(source, target))
        except CheckpointError as error:
            json.dump({"file": source, "reason": str(error)}, sys.stdout)
            return 1
        except Exception as error:  # of a damaged file, anything
            json.dump({"file": source, "reason": f"it cannot be read ({type(error).__name__})"}, sys.stdout)
            return 1
    json.dump({"shapes": shapes}, sys.stdout)
    return 0


def converted(source: str, target: str) -> dict[str, list[int]]:
    """The tensors of one file as safetensors, each held against what was written; their shapes by name.

    Raises:
        CheckpointError: if it asks for anything but tensors, or holds anything else.
    """
    try:
        held = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except Exception as error:
        asked = _ASKED.search(str(error))
        raise CheckpointError(
            f"it asks for {asked[1] or asked[2]}, which is no tensor; nothing of it was run"
            if asked
            else f"it cannot be read as weights ({type(error).__name__})"
        ) from error
    tensors = dict(_alone(held, _MOST * os.path.getsize(source)))
    save_file(tensors, target, metadata={"format": "pt"})
    with safe_open(target, framework="pt") as written:
        for name, tensor in tensors.items():
            if not torch.equal(_bits(written.get_tensor(name)), _bits(tensor)):
                raise CheckpointError(f"{name} is not written as it was read")
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _alone(held: Any, most: int) -> Iterator[tuple[str, Tensor]]:
    """What a file holds, each tensor with memory of its own; `most` bytes together."""
    if not isinstance(held, Mapping) or not held:
        raise CheckpointError(f"it holds a {type(held).__name__}; expected tensors by name")
    seen: set[int] = set()
    for name, tensor in held.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"its {str(name)[:80]!r} is a {type(tensor).__name__}; expected tensors by name")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"its {name[:80]!r} is no dense tensor of numbers")
        n_bytes = tensor.numel() * tensor.element_size()
        most -= n_bytes
        if most < 0 or n_bytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"its {name[:80]!r} has {tensor.numel():,} numbers, more than the file can hold")
        place = tensor.untyped_storage().data_ptr()
        tensor = tensor.detach().contiguous()
        yield name, tensor.clone() if place in seen else tensor
        seen.add(place)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


if __name__ == "__main__":
    sys.exit(main())
