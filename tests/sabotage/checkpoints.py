"""Checkpoints on disk: every file damaged, every setting absurd, weights of somebody else's, and code that must not
run.

What Hugging Face makes of the same files is right; where it makes nothing of them, an error must name them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hooked_vlm import HookedVLM
from tests.models import checkpoints
from tests.sabotage.engine import CANARY, Case, Oracle, draws, either, refuses
from tests.sabotage.world import answered, hugging_face, picture, truth_of

FAMILY = "checkpoints"
CLASSES = {"blip": "BlipForQuestionAnswering", "llava": "LlavaForConditionalGeneration"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ABSURD = (None, -1, 0, 10**9, 1.5, "nonsense", [], {}, True, float("nan"), 1e308, "9" * 5000, [[[]]], -(10**30))
PREPARES = ("processor_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
Change = Callable[[Path], Any]  # what is done to a checkpoint before it is loaded


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    from tests.sabotage import trust  # which builds on this module

    for part in (
        _files(seed, kept),
        _settings(seed, kept),
        _giants(kept),
        _weights(seed, kept),
        trust.attacks(seed, kept),
    ):
        for name, attack, oracle in part:
            yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


@cache
def saved(kept: Path, kind: str) -> Path:
    """A checkpoint on disk."""
    return Path(checkpoints.save(kept / "checkpoints" / kind, *hugging_face(kind)))


def load(directory: Any, **options: Any) -> Any:
    return HookedVLM.from_pretrained(directory, **{"device": "cpu", "dtype": "float32"} | options)


def attacked(kept: Path, kind: str, change: Change, folder: Path, **options: Any) -> Any:
    """What the package makes of a checkpoint to which something was done."""
    there = shutil.copytree(saved(kept, kind), folder / "spoilt")
    change(there)
    _watch_pickles(folder / CANARY)
    return answered(load(str(there), **options), picture())


def _watch_pickles(canary: Path) -> None:
    """Let torch.load say that it was called: nothing of a checkpoint is unpickled, harmless or not."""
    read = torch.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        canary.touch()
        return read(*args, **kwargs)

    torch.load = watched


def hf_says(kind: str) -> Any:
    """What Hugging Face makes of `spoilt`, in the folder of the case that runs."""
    import transformers

    try:
        hf = getattr(transformers, CLASSES[kind]).from_pretrained("spoilt", dtype=torch.float32, use_safetensors=True)
        processor = transformers.AutoProcessor.from_pretrained("spoilt")
        if kind == "llava":  # how many tokens an image takes is the model's to say, whatever the processor was told
            processor.patch_size = hf.config.vision_config.patch_size
            processor.vision_feature_select_strategy = hf.config.vision_feature_select_strategy
            processor.num_additional_image_tokens = 1
        return truth_of(hf.eval(), processor, kind, picture())
    except Exception as error:
        return f"Hugging Face's {type(error).__name__}"


def named(*more: str) -> tuple[str, ...]:
    return ("spoilt", *more)


# --- files --------------------------------------------------------------------------------------------------


def _files(seed: int, kept: Path) -> Found:
    for kind in CLASSES:
        for file in sorted(path.name for path in saved(kept, kind).iterdir()):
            draw = draws(seed, "checkpoint", kind, file)
            for name, damage in _damage(kept, kind, file, draw).items():
                words = named(file, "processor", "tokenizer", "template", "image")
                yield (
                    f"{kind}-{file}-{name}",
                    partial(attacked, kept, kind, damage),
                    either(partial(hf_says, kind), words),
                )


def _damage(kept: Path, kind: str, file: str, draw: Random) -> dict[str, Change]:
    size = (saved(kept, kind) / file).stat().st_size

    def turned(place: int, bit: int, there: Path) -> None:
        content = bytearray((there / file).read_bytes())
        content[place] ^= 1 << bit
        (there / file).write_bytes(content)

    def replaced(make: Callable[[Path], Any], there: Path) -> None:
        (there / file).unlink()
        make(there / file)

    def swapped(there: Path) -> None:
        other = draw.choice(sorted(path for path in there.iterdir() if path.suffix == ".json" and path.name != file))
        mine, theirs = (there / file).read_bytes(), other.read_bytes()
        (there / file).write_bytes(theirs)
        other.write_bytes(mine)

    def linked(there: Path) -> None:
        shutil.move(there / file, there.parent / "elsewhere")
        (there / file).symlink_to(there.parent / "elsewhere")

    found: dict[str, Change] = {
        "deleted": lambda there: (there / file).unlink(),
        "emptied": lambda there: (there / file).write_bytes(b""),
        "cut": partial(lambda at, there: os.truncate(there / file, at), draw.randrange(1, size)),
        "cut-by-one": lambda there: os.truncate(there / file, size - 1),
        "swapped": swapped,
        "a-folder": partial(replaced, Path.mkdir),
        "a-pipe": partial(replaced, os.mkfifo),
        "a-link-to-itself": partial(replaced, lambda path: path.symlink_to(path.name)),
        "a-link": linked,
        "of-zeros": lambda there: (there / file).write_bytes(bytes(size)),
        "a-list": lambda there: (there / file).write_text("[]"),
        "too-deep": lambda there: (there / file).write_text("[" * 100_000),
    }
    head = 400 if file == WEIGHTS else size
    return found | {f"bit-{i}": partial(turned, draw.randrange(head), draw.randrange(8)) for i in range(3)}


# --- settings -----------------------------------------------------------------------------------------------


def _leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(values, dict):
        for key in values:
            yield from _leaves(values[key], (*path, key))
    else:
        yield path


def _set(file: str, path: tuple[Any, ...], value: Any, there: Path) -> None:
    values = json.loads((there / file).read_text("utf-8"))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (there / file).write_text(json.dumps(values), "utf-8")


def _settings(seed: int, kept: Path) -> Found:
    """Each setting of each file in turn, with an absurd value that the seed draws."""
    for kind in CLASSES:
        for file in ("config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"):
            if not (saved(kept, kind) / file).exists():
                continue
            for path in _leaves(json.loads((saved(kept, kind) / file).read_text("utf-8"))):
                value = draws(seed, kind, file, path).choice(ABSURD)
                shown = ".".join(map(str, path))
                words = named(
                    file, str(path[-1]), "processor", "tokenizer", "image", "pixel_values", "vocabulary", "position"
                )
                attack = partial(attacked, kept, kind, partial(_set, file, path, value))
                yield f"{kind}-{file}-{shown}-{repr(value)[:12]}", attack, either(partial(hf_says, kind), words)


def _giants(kept: Path) -> Found:
    """Settings that would take more memory than there is: refused before anything is built."""
    for kind in CLASSES:
        for part in ("text_config", "vision_config"):
            for name in (
                "num_hidden_layers",
                "hidden_size",
                "intermediate_size",
                "vocab_size",
                "image_size",
                "max_position_embeddings",
                "num_attention_heads",
            ):
                if name in json.loads((saved(kept, kind) / "config.json").read_text())[part]:
                    for size in (10**9, 10**5 if "layers" in name else 10**12):
                        attack = partial(attacked, kept, kind, partial(_set, "config.json", (part, name), size))
                        yield (
                            f"{kind}-{part}-{name}-{size}",
                            attack,
                            either(partial(hf_says, kind), named("config.json", name)),
                        )
    for value in (99, -99, 3.5, "all", [], [0, 99], [-1, 2], None, 4, -5, 0, -1, [0], [-2, -1]):
        attack = partial(attacked, kept, "llava", partial(_set, "config.json", ("vision_feature_layer",), value))
        yield (
            f"llava-vision_feature_layer-{value}",
            attack,
            either(partial(hf_says, "llava"), ("vision_feature_layer", "spoilt")),
        )


# --- weights ------------------------------------------------------------------------------------------------


def _rewritten(change: Callable[[dict[str, torch.Tensor]], Any], there: Path) -> None:
    weights = load_file(there / WEIGHTS)
    change(weights)
    save_file({name: each.contiguous() for name, each in weights.items()}, there / WEIGHTS, metadata={"format": "pt"})


def _weights(seed: int, kept: Path) -> Found:
    for kind in CLASSES:
        names = sorted(load_file(saved(kept, kind) / WEIGHTS))
        draw = draws(seed, "weights", kind)
        for name in draw.sample(names, 5):
            ending = ".".join(name.split(".")[-3:])  # what comes before it is called otherwise in files and in models
            for shown, value in {"NaN": float("nan"), "infinite": float("inf")}.items():

                def spoil(name: str, value: float, weights: dict[str, torch.Tensor]) -> None:
                    weights[name].view(-1)[weights[name].numel() // 2] = value

                change = partial(_rewritten, partial(spoil, name, value))
                yield f"{kind}-{shown}-in-{name}", partial(attacked, kept, kind, change), refuses(ending)
        name = draw.choice([each for each in names if each.endswith("weight")])
        for shown, change in {
            "missing": lambda w, n=name: w.pop(n), "extra": lambda w: w.update(surplus=torch.ones(2)),
            "renamed": lambda w, n=name: w.update({n + "x": w.pop(n)}),
            "a-row-less": lambda w, n=name: w.update({n: w[n][:-1].clone()}), "flat": lambda w,
            n=name: w.update({n: w[n].reshape(1, -1)}), "empty": lambda w, n=name: w.update({n: torch.ones(0)}),
            "none-at-all": lambda w: w.clear(), "of-another-model": lambda w, k=kind: _other_weights(kept, k, w),
        }.items():  # fmt: skip
            oracle = refuses(named(name)) if shown != "extra" else refuses("surplus")
            yield f"{kind}-weights-{shown}", partial(attacked, kept, kind, partial(_rewritten, change)), oracle
        for shown, dtype in {
            "int8": torch.int8,
            "bool": torch.bool,
            "complex": torch.complex64,
            "double": torch.float64,
            "half": torch.float16,
        }.items():
            change = partial(_rewritten, lambda w, n=name, d=dtype: w.update({n: w[n].to(d)}))
            yield (
                f"{kind}-weights-in-{shown}",
                partial(attacked, kept, kind, change),
                either(partial(hf_says, kind), (name, "spoilt")),
            )
        huge = (2**62).to_bytes(8, "little")
        for shown, content in {
            "header-of-2^62": huge + bytes(99),
            "header-of-lies": _header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
            "header-that-overlaps": _header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
            "pickle": b"\x80\x04\x95", "zip": b"PK\x03\x04" + bytes(999), "gguf": b"GGUF" + bytes(99),
        }.items():  # fmt: skip
            yield (
                f"{kind}-weights-{shown}",
                partial(attacked, kept, kind, lambda there, c=content: (there / WEIGHTS).write_bytes(c)),
                refuses(named(WEIGHTS)),
            )


def _other_weights(kept: Path, kind: str, weights: dict[str, torch.Tensor]) -> None:
    other = "llava" if kind == "blip" else "blip"
    weights.clear()
    weights.update(load_file(saved(kept, other) / WEIGHTS))


def _header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


# --- code ---------------------------------------------------------------------------------------------------
