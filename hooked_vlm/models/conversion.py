"""A checkpoint that was published as pickles alone, as safetensors: once, and checked.

Some of BLIP's best known checkpoints (VQA with CapFilt, captioning, retrieval) have no safetensors. What is unpickled,
is unpickled in a process of its own (`unpickling`); here, as everywhere, only what it wrote is read. Names and numbers
stay as they are, bit for bit, and the files beside the weights are copied. A checkpoint stands in its place when all of
it was checked, or not at all.

Costs the weights twice on the disk's way, in memory once in float32, and two forwards.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import hooked_vlm
from hooked_vlm.errors import CheckpointError, HookedVLMError, cut, quoted
from hooked_vlm.given import line
from hooked_vlm.models import checkpoint, loading
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.checkpoint import INDEX, PICKLED_INDEX, PICKLES, WEIGHTS, Files

BESIDE = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json"),
)
AGREE = 1e-4  # of the largest logit: ten times what float32 and another order of sums leave
_UNPICKLES = ("-P", "-m", "hooked_vlm.unpickling")  # -P: nothing is imported from where it runs
_PACKAGES = Path(hooked_vlm.__file__).parents[1]
_N_WORDS = 6


@dataclass(frozen=True)
class Converted:
    """What was written, and what was checked.

    Args:
        path: of the checkpoint.
        files: of weights, in it.
        n_tensors: in them.
        n_numbers: in the tensors.
        classes: the hooked model's, and Hugging Face's.
        asked: the drawn text that both were asked about a drawn picture.
        difference: the largest between their logits.
        scale: the largest logit.
    """

    path: Path
    files: tuple[str, ...]
    n_tensors: int
    n_numbers: int
    classes: tuple[str, str]
    asked: str
    difference: float
    scale: float

    def told(self) -> list[str]:
        """The same in sentences."""
        ours, theirs = self.classes
        return [
            f"{self.n_tensors:,} tensors ({self.n_numbers:,} numbers) are in {', '.join(self.files)}, bit for bit as "
            "they were pickled",
            f"the logits of {ours} and of Hugging Face's {theirs} agree over a drawn picture and {quoted(self.asked)}: "
            f"the largest difference is {self.difference:.1e}, the largest logit {self.scale:.3g}",
            f"{cut(self.path)} is a checkpoint: HookedVLM.from_pretrained({quoted(self.path)})",
        ]


def convert(name: str, out: str | os.PathLike[str], *, revision: str | None = None, seed: int = 0) -> Converted:
    """Make a checkpoint of safetensors from one that has pickles alone.

    Args:
        name: a hub name or a directory.
        out: the new checkpoint's directory; there is none, or it is empty.
        revision: branch, tag or commit on the hub.
        seed: of the picture and the text that the new checkpoint is checked with.

    Raises:
        CheckpointError: if there is no such checkpoint or it has safetensors, a file of it leads out of it or is more
            than weights, `out` is taken, or the new checkpoint does not load or does not compute what Hugging Face's
            model with its weights computes.
        UnsupportedArchitectureError: if no family reads it.
    """
    place = Path(out)
    _refuse_taken(place)
    directory = loading.resolve(name)
    config, hf_class = loading.read_config(directory, revision=revision)
    HookedVLM._family(hf_class, config)
    files = Files(directory, {"revision": revision})
    if held := checkpoint.weight_files(files, config):
        raise CheckpointError(f"{files} has safetensors ({held[0].name}): load it as it is")
    pickles = _pickles(files)
    with _put_in_place(place) as made:
        written, shapes = _unpickled(files, pickles, made)
        for file in BESIDE:
            if (found := files.find(file)) is not None:
                shutil.copyfile(found, made / file)
        try:
            model = HookedVLM.from_pretrained(str(made), device="cpu", dtype=torch.float32)
            asked, difference, scale = _parity(model, seed)
        except HookedVLMError as error:
            said = str(error).replace(str(made), str(place))
            raise CheckpointError(f"{files} was unpickled, and is no checkpoint that can be used: {said}") from error
        if not difference <= AGREE * scale:
            raise CheckpointError(
                f"{files} was unpickled, and its logits are not Hugging Face's: they differ by {difference:.2g} where "
                f"the largest is {scale:.3g}. Nothing was kept; please report it"
            )
    n_numbers = sum(prod(shape) for shape in shapes.values())
    classes = (type(model).__name__, hf_class)
    return Converted(place, written, len(shapes), n_numbers, classes, asked, difference, scale)


# --- the place ----------------------------------------------------------------------------------------------


def _refuse_taken(place: Path) -> None:
    """Raise CheckpointError if a directory cannot be the new checkpoint's."""
    if place.is_symlink():
        raise CheckpointError(f"{quoted(place)} is a symbolic link: name the directory itself, or a new one")
    try:
        taken = place.exists() and (not place.is_dir() or any(place.iterdir()))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{quoted(place)} cannot be looked into ({line(error)}): name another directory"
        ) from error
    if taken:
        what = "is not empty" if place.is_dir() else "is a file"
        raise CheckpointError(f"{quoted(place)} {what}: name a new directory, or an empty one")


@contextmanager
def _put_in_place(place: Path) -> Iterator[Path]:
    """A new directory beside a place, which is put there if all goes well, and is gone if anything does not."""
    made = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        made.mkdir(parents=True)
        yield made
        _refuse_taken(place)
        made.replace(place)
    except OSError as error:
        raise CheckpointError(
            f"{quoted(place)} cannot be written ({error.strerror or line(error)}): make room, or name another directory"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


# --- the weights --------------------------------------------------------------------------------------------


def _pickles(files: Files) -> dict[str, Path]:
    """The pickled files of a checkpoint by name, each inside of it.

    Raises:
        CheckpointError: if there are none, one is missing or outside, or an index is none.
    """
    if (found := files.find(PICKLES)) is not None:
        return {PICKLES: found}
    if files.find(PICKLED_INDEX) is None:
        raise CheckpointError(f"{files} has no weights: neither {WEIGHTS} nor {PICKLES}, nor an index of either")
    parts = files.read(PICKLED_INDEX).get("weight_map")
    if (
        not isinstance(parts, dict)
        or not parts
        or not all(isinstance(p, str) and p.endswith(".bin") for p in parts.values())
    ):
        raise CheckpointError(
            f"the {PICKLED_INDEX} of {files} is damaged: expected a weight_map from names to .bin files"
        )
    there = {part: files.find(part) for part in sorted(set(parts.values()))}
    if missing := [part for part, path in there.items() if path is None]:
        raise CheckpointError(
            f"the {PICKLED_INDEX} of {files} names {cut(', '.join(missing[:3]))}, which is not there: get it again"
        )
    return {part: path for part, path in there.items() if path is not None}


def _unpickled(files: Files, pickles: dict[str, Path], made: Path) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Let a child write safetensors of pickles into a directory; their names, and the shapes of the tensors."""
    n = len(pickles)
    names = [WEIGHTS] if n == 1 else [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    pairs = [
        [os.path.abspath(path), os.path.abspath(made / name)]
        for path, name in zip(pickles.values(), names, strict=True)
    ]
    said = _child({"files": pairs})
    if "shapes" not in said:
        file = next((name for name, path in pickles.items() if os.path.abspath(path) == said.get("file")), "a file")
        raise CheckpointError(
            f"{file} of {files} is not converted: {said['reason']}. Get the file again, or ask its publisher for "
            "safetensors"
        )
    shapes: dict[str, list[int]] = {}
    where: dict[str, str] = {}
    for name, found in zip(names, said["shapes"], strict=True):
        shapes |= found
        where |= dict.fromkeys(found, name)
    if n > 1:
        index = {"metadata": {"total_size": sum((made / name).stat().st_size for name in names)}, "weight_map": where}
        (made / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return tuple(names), shapes


def _child(job: dict[str, Any]) -> dict[str, Any]:
    """What the process that unpickles says of a job: the shapes of tensors by name, or a file and a reason."""
    ours = {name: value for name, value in os.environ.items() if name != "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"}
    ours["PYTHONPATH"] = os.pathsep.join([str(_PACKAGES), *filter(None, [ours.get("PYTHONPATH")])])
    command = [sys.executable, *_UNPICKLES]
    run = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=ours, check=False)
    try:
        said: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        how = f"status {run.returncode}"
        if run.returncode < 0:
            how = f"signal {signal.Signals(-run.returncode).name}; is there memory for a file of weights?"
        return {"reason": f"the process that reads it ended ({how})"}
    return said


# --- the check ----------------------------------------------------------------------------------------------


def _parity(model: HookedVLM, seed: int) -> tuple[str, float, float]:
    """A drawn text; our logits' largest difference from Hugging Face's over it and a drawn picture; the largest."""
    tokenizer, drawn = model.tokenizer, torch.Generator().manual_seed(seed)
    ids = torch.randperm(len(tokenizer), generator=drawn).tolist()
    spelled = (tokenizer.decode([id]).strip() for id in ids)
    words = [word for _, word in zip(range(_N_WORDS), filter(str.isalpha, spelled), strict=False)]
    text = " ".join(words) or "?"
    placeholder = f"{model.processor.image_token} " if "image_token" in model.processor_parts else ""
    noise = torch.randint(256, (64, 64, 3), generator=drawn, dtype=torch.uint8)
    inputs = model.to_inputs(Image.fromarray(noise.numpy()), placeholder + text, allow_special_tokens=True)
    with torch.no_grad():
        ours, theirs = model(inputs), model._hf_logits(inputs)
    return text, float((ours - theirs).abs().max()), float(theirs.abs().max())
