"""Checkpoints on disk: every file damaged, every setting absurd, weights of somebody else's, and code that must not run.

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

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, zoo
from tests.models import checkpoints
from tests.sabotage.engine import CANARY, Case, Oracle, draws, either, equals, refuses
from tests.sabotage.world import answered, hugging_face, picture, truth, truth_of

FAMILY = "checkpoints"
CLASSES = {"blip": "BlipForQuestionAnswering", "llava": "LlavaForConditionalGeneration"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ABSURD = (None, -1, 0, 10**9, 1.5, "nonsense", [], {}, True, float("nan"), 1e308, "9" * 5000, [[[]]], -(10**30))
PREPARES = ("processor_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
Change = Callable[[Path], Any]  # what is done to a checkpoint before it is loaded


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    parts = (_files(seed, kept), _settings(seed, kept), _giants(kept), _weights(seed, kept), _indices(kept), _code(kept))
    for part in (*parts, _processors(kept), _zoo(seed), _options(kept)):
        for name, attack, oracle in part:
            yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


@cache
def saved(kept: Path, kind: str) -> Path:
    """A checkpoint on disk."""
    return Path(checkpoints.save(kept / "checkpoints" / kind, *hugging_face(kind)))


def load(directory: Any, **options: Any) -> Any:
    return HookedVLM.from_pretrained(directory, **{"device": "cpu", "dtype": "float32"} | options)


def _attack(kept: Path, kind: str, change: Change, folder: Path, **options: Any) -> Any:
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
        return truth_of(hf.eval(), transformers.AutoProcessor.from_pretrained("spoilt"), kind, picture())
    except Exception as error:
        return f"Hugging Face's {type(error).__name__}"


def _named(*more: str) -> tuple[str, ...]:
    return ("spoilt", *more)


# --- files --------------------------------------------------------------------------------------------------


def _files(seed: int, kept: Path) -> Found:
    for kind in CLASSES:
        for file in sorted(path.name for path in saved(kept, kind).iterdir()):
            draw = draws(seed, "checkpoint", kind, file)
            for name, damage in _damage(kept, kind, file, draw).items():
                words = _named(file, "processor", "tokenizer", "template", "image")
                yield f"{kind}-{file}-{name}", partial(_attack, kept, kind, damage), either(partial(hf_says, kind), words)


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
                words = _named(file, str(path[-1]), "processor", "tokenizer", "image", "pixel_values", "vocabulary", "position")
                attack = partial(_attack, kept, kind, partial(_set, file, path, value))
                yield f"{kind}-{file}-{shown}-{repr(value)[:12]}", attack, either(partial(hf_says, kind), words)


def _giants(kept: Path) -> Found:
    """Settings that would take more memory than there is: refused before anything is built."""
    for kind in CLASSES:
        for part in ("text_config", "vision_config"):
            for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "image_size", "max_position_embeddings", "num_attention_heads"):
                if name in json.loads((saved(kept, kind) / "config.json").read_text())[part]:
                    for size in (10**9, 10**5 if "layers" in name else 10**12):
                        attack = partial(_attack, kept, kind, partial(_set, "config.json", (part, name), size))
                        yield f"{kind}-{part}-{name}-{size}", attack, either(partial(hf_says, kind), _named("config.json", name))
    for value in (99, -99, 3.5, "all", [], [0, 99], [-1, 2], None, 4, -5, 0, -1, [0], [-2, -1]):
        attack = partial(_attack, kept, "llava", partial(_set, "config.json", ("vision_feature_layer",), value))
        yield f"llava-vision_feature_layer-{value}", attack, either(partial(hf_says, "llava"), ("vision_feature_layer", "spoilt"))


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
            for shown, value in {"NaN": float("nan"), "infinite": float("inf")}.items():

                def spoil(name: str, value: float, weights: dict[str, torch.Tensor]) -> None:
                    weights[name].view(-1)[weights[name].numel() // 2] = value

                change = partial(_rewritten, partial(spoil, name, value))
                yield f"{kind}-{shown}-in-{name}", partial(_attack, kept, kind, change), refuses(name)
        name = draw.choice([each for each in names if each.endswith("weight")])
        for shown, change in {
            "missing": lambda w, n=name: w.pop(n), "extra": lambda w: w.update(surplus=torch.ones(2)), "renamed": lambda w, n=name: w.update({n + "x": w.pop(n)}),
            "a-row-less": lambda w, n=name: w.update({n: w[n][:-1].clone()}), "flat": lambda w, n=name: w.update({n: w[n].reshape(1, -1)}), "empty": lambda w, n=name: w.update({n: torch.ones(0)}),
            "none-at-all": lambda w: w.clear(), "of-another-model": lambda w, k=kind: _other_weights(kept, k, w),
        }.items():  # fmt: skip
            oracle = refuses(_named(name)) if shown != "extra" else refuses("surplus")
            yield f"{kind}-weights-{shown}", partial(_attack, kept, kind, partial(_rewritten, change)), oracle
        for shown, dtype in {"int8": torch.int8, "bool": torch.bool, "complex": torch.complex64, "double": torch.float64, "half": torch.float16}.items():
            change = partial(_rewritten, lambda w, n=name, d=dtype: w.update({n: w[n].to(d)}))
            yield f"{kind}-weights-in-{shown}", partial(_attack, kept, kind, change), either(partial(hf_says, kind), (name, "spoilt"))
        huge = (2**62).to_bytes(8, "little")
        for shown, content in {
            "header-of-2^62": huge + bytes(99), "header-of-lies": _header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}), "header-that-overlaps": _header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
            "pickle": b"\x80\x04\x95", "zip": b"PK\x03\x04" + bytes(999), "gguf": b"GGUF" + bytes(99),
        }.items():  # fmt: skip
            yield f"{kind}-weights-{shown}", partial(_attack, kept, kind, lambda there, c=content: (there / WEIGHTS).write_bytes(c)), refuses(_named(WEIGHTS))


def _other_weights(kept: Path, kind: str, weights: dict[str, torch.Tensor]) -> None:
    other = "llava" if kind == "blip" else "blip"
    weights.clear()
    weights.update(load_file(saved(kept, other) / WEIGHTS))


def _header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def _indices(kept: Path) -> Found:
    """Weights in several files, and an index that names others."""
    for kind in CLASSES:

        def indexed(names: Callable[[list[str]], Any], there: Path, keep: bool = False) -> None:
            weights = load_file(there / WEIGHTS)
            half = sorted(weights)[::2]
            save_file({n: weights[n] for n in half}, there / "one.safetensors", metadata={"format": "pt"})
            save_file({n: weights[n] for n in weights if n not in half}, there / "two.safetensors", metadata={"format": "pt"})
            shutil.copyfile(there / WEIGHTS, there.parent / "outside.safetensors")
            torch.save(weights, there / "weights.bin")
            torch.save(weights, there.parent / "outside.bin")
            if not keep:
                (there / WEIGHTS).unlink()
            of = {n: "one.safetensors" if n in half else "two.safetensors" for n in weights}
            (there / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names(of)}))

        right = partial(truth, kind, picture())
        yield f"{kind}-index", partial(_attack, kept, kind, partial(indexed, lambda of: of)), equals(right)
        yield f"{kind}-index-beside-the-whole", partial(_attack, kept, kind, partial(indexed, lambda of: of, keep=True)), equals(right)
        for name, change, word in (
            ("of-a-pickle", lambda of: dict.fromkeys(of, "weights.bin"), "weights.bin"), ("of-a-pickle-for-one", lambda of: {**of, next(iter(of)): "weights.bin"}, "weights.bin"),
            ("above", lambda of: dict.fromkeys(of, "../outside.safetensors"), "outside.safetensors"), ("above-and-back", lambda of: dict.fromkeys(of, "../spoilt/../outside.safetensors"), "outside.safetensors"),
            ("of-a-pickle-above", lambda of: dict.fromkeys(of, "../outside.bin"), "outside.bin"), ("absolute", lambda of: dict.fromkeys(of, str(Path("outside.safetensors").absolute())), "outside.safetensors"),
            ("of-nothing", lambda of: {}, (INDEX, "spoilt")), ("a-list", list, (INDEX, "spoilt")), ("none", lambda of: None, (INDEX, "spoilt")), ("of-numbers", lambda of: dict.fromkeys(of, 7), (INDEX, "spoilt")),
            ("of-a-missing-file", lambda of: {**of, next(iter(of)): "three.safetensors"}, ("three.safetensors", "spoilt")), ("of-one-half", lambda of: {n: f for n, f in of.items() if f == "one.safetensors"}, (INDEX, "spoilt")),
            ("of-devices", lambda of: dict.fromkeys(of, "/dev/zero"), "/dev/zero"), ("of-the-folder", lambda of: dict.fromkeys(of, "."), (INDEX, "spoilt")),
        ):  # fmt: skip
            yield f"{kind}-index-{name}", partial(_attack, kept, kind, partial(indexed, change)), refuses(word)
        crossed = partial(indexed, lambda of: {n: "two.safetensors" if f == "one.safetensors" else "one.safetensors" for n, f in of.items()})
        yield f"{kind}-index-crossed", partial(_attack, kept, kind, crossed), either(right, (INDEX, "spoilt"))


# --- code ---------------------------------------------------------------------------------------------------


class Bomb:
    """What writes the canary when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def _code(kept: Path) -> Found:
    """Files that hold code: none of it runs."""
    for kind in CLASSES:
        right = partial(truth, kind, picture())

        def bomb(name: str, there: Path, remove: bool = False) -> None:
            torch.save({"x": Bomb(there.parent / CANARY)}, there / name)
            if remove:
                (there / WEIGHTS).unlink()

        for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "adapter_model.bin"):
            yield f"{kind}-bomb-beside-{name}", partial(_attack, kept, kind, partial(bomb, name)), either(right, name)
        yield f"{kind}-bomb-alone", partial(_attack, kept, kind, partial(bomb, "pytorch_model.bin", remove=True)), refuses("safetensors")
        yield f"{kind}-bomb-called-safetensors", partial(_attack, kept, kind, partial(bomb, WEIGHTS)), refuses("spoilt")

        def mapped(file: str, names: dict[str, str], there: Path) -> None:
            code = f"open({str(there.parent / CANARY)!r}, 'w').close()\nclass Evil:\n    pass\n"
            (there / "evil.py").write_text(code)
            values = json.loads((there / file).read_text("utf-8"))
            (there / file).write_text(json.dumps({**values, "auto_map": names}), "utf-8")

        for file, names in (
            ("config.json", {"AutoConfig": "evil.Evil", "AutoModelForVision2Seq": "evil.Evil"}), ("config.json", {"AutoModel": "evil.Evil"}),
            ("processor_config.json", {"AutoProcessor": "evil.Evil"}), ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
            ("config.json", {"AutoConfig": "../evil.Evil"}), ("config.json", {"AutoConfig": "someone/elses--evil.Evil"}),
        ):  # fmt: skip
            shown = f"{file}-{'-'.join(names)}-{str(next(iter(names.values())))[:9]}".replace("/", "")
            yield f"{kind}-auto_map-{shown}", partial(_attack, kept, kind, partial(mapped, file, names)), either(right, ("spoilt", "auto_map", "code"))
    asked = "{% for message in messages %}<image>{{ message['content'][1]['text'] }}{% endfor %}"
    for name, template in {
        "grows": "{{ 'x' * 10**12 }}" + asked, "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + asked, "imports": "{{ cycler.__init__.__globals__.os.system('touch canary') }}" + asked,
        "raises": "{{ raise_exception('no') }}", "broken": "{% for", "divides": "{{ 1 / 0 }}", "includes": "{% include '/etc/passwd' %}" + asked, "is-empty": "", "has-no-image": "{{ messages[0]['content'][1]['text'] }}",
        "has-two-images": "<image><image>{{ messages[0]['content'][1]['text'] }}", "calls-an-unknown": "{{ nobody() }}" + asked,
    }.items():  # fmt: skip

        def templated(template: str, there: Path) -> None:
            (there / "chat_template.jinja").write_text(template)

        oracle = refuses(("template", "text 0", "spoilt"))
        yield f"llava-template-{name}", partial(_attack, kept, "llava", partial(templated, template)), oracle


def _processors(kept: Path) -> Found:
    """Processors that are another model's, or none."""
    for kind, other in (("blip", "llava"), ("llava", "blip")):

        def foreign(other: str, there: Path) -> None:
            for path in saved(kept, other).iterdir():
                if path.name in PREPARES:
                    shutil.copyfile(path, there / path.name)

        words = _named("processor", "vocabulary", "pixel_values", "template", "image", "token")
        yield f"{kind}-foreign-processor", partial(_attack, kept, kind, partial(foreign, other)), either(partial(hf_says, kind), words)
        for name, given in (("string", "blip"), ("dict", {}), ("number", 7), ("class", HookedVLM), ("other-tokenizer", hugging_face(other)[1].tokenizer), ("other-processor", hugging_face(other)[1])):
            yield f"{kind}-given-{name}", lambda folder, k=kind, g=given: _attack(kept, k, lambda _: None, folder, processor=g), refuses(words)


def _zoo(seed: int) -> Found:
    """The zoo's own folders, which list what belongs in them."""
    home = Path(zoo.__file__).parent

    def attack(change: Change, folder: Path) -> Any:
        shutil.copytree(home / "blip-shapes", folder / "blip-shapes")
        change(folder / "blip-shapes")
        zoo._HERE = folder
        return answered(load("zoo:blip-shapes"), picture(0, 64, 64), "is the circle red or blue?")

    def right() -> Any:
        return answered(load(str(home / "blip-shapes")), picture(0, 64, 64), "is the circle red or blue?")

    yield "zoo-as-it-is", partial(attack, lambda _: None), equals(right)
    for file in sorted(path.name for path in (home / "blip-shapes").iterdir()):
        draw = draws(seed, "zoo", file)
        size = (home / "blip-shapes" / file).stat().st_size

        def turned(file: str, place: int, there: Path) -> None:
            content = bytearray((there / file).read_bytes())
            content[place] ^= 1
            (there / file).write_bytes(content)

        for name, change in {
            "deleted": lambda there, f=file: (there / f).unlink(), "cut": lambda there, f=file, n=draw.randrange(size): os.truncate(there / f, n),
            "bit": partial(turned, file, draw.randrange(size)), "longer": lambda there, f=file: (there / f).write_bytes((there / f).read_bytes() + b" "),
        }.items():  # fmt: skip
            yield f"zoo-{file}-{name}", partial(attack, change), refuses(file) if file != "README.md" else either(right, file)
    for name in ("pytorch_model.bin", INDEX, "chat_template.jinja", "evil.py", "preprocessor_config.json", "added_tokens.json", "adapter_config.json", "special_tokens_map.json"):
        yield f"zoo-with-{name}", partial(attack, lambda there, n=name: (there / n).write_text("{}")), refuses(name)
    yield "zoo-with-a-folder", partial(attack, lambda there: (there / "additional_chat_templates").mkdir()), refuses("additional_chat_templates")


def _options(kept: Path) -> Found:
    for name, given, word in (
        ("nothing", "", "''"), ("space", " ", "' '"), ("none", None, "None"), ("number", 3, "3"), ("unknown", "zoo:nothing", "zoo:nothing"), ("above", "zoo:../../etc", "zoo:../../etc"), ("zoo-alone", "zoo:", "zoo:"),
        ("device", "/dev/zero", "/dev/zero"), ("missing", "/absent/model", "/absent/model"), ("web", "https://example.org/model", "example.org"), ("hub-name-that-is-none", "a/b/c/d", "a/b/c/d"), ("NUL", "a\0b", "a"),
        ("bytes", b"blip", "blip"), ("list", ["blip"], "blip"), ("surrogate", "\udcff", ("checkpoint", "directory")), ("endless", "x" * 5000, "xxx"), ("hub-name-not-here", "nobody/nothing", "nobody/nothing"),
    ):  # fmt: skip
        yield f"name-{name}", lambda _, g=given: load(g), refuses(word)

    def asked(kind: str, options: dict[str, Any], folder: Path) -> Any:
        return _attack(kept, kind, lambda _: None, folder, **options)

    for name, options, word in (
        ("dtype-int8", {"dtype": "int8"}, "int8"), ("dtype-typo", {"dtype": "flot16"}, "flot16"), ("dtype-number", {"dtype": 3}, "3"), ("dtype-class", {"dtype": float}, ("float", "dtype")), ("device-absent", {"device": "cuda:99"}, "cuda:99"),
        ("device-typo", {"device": "gpu"}, "gpu"), ("device-meta", {"device": "meta"}, "meta"), ("device-empty", {"device": ""}, "device"), ("option-unknown", {"n_layers": 3}, "n_layers"),
        ("remote-code", {"trust_remote_code": True}, "trust_remote_code"), ("pickles", {"use_safetensors": False}, "use_safetensors"), ("device-and-map", {"device": "cpu", "device_map": "auto"}, "device_map"), ("map-typo", {"device": None, "device_map": "atuo"}, ("device_map", "atuo", "auto")),
        ("quantised-by-a-word", {"quantization_config": "4bit"}, ("quantization_config", "4bit")), ("subfolder-above", {"subfolder": "../.."}, ("subfolder", "spoilt")), ("subfolder-missing", {"subfolder": "weights"}, ("weights", "spoilt")),
        ("variant", {"variant": "fp8"}, ("fp8", "spoilt")), ("attention", {"attn_implementation": "flash_attention_2"}, "attn_implementation"), ("state-dict", {"state_dict": {}}, ("state_dict", "spoilt", "missing")),
    ):  # fmt: skip
        yield f"option-{name}", partial(asked, "blip", options), refuses(word)
    yield "class-of-the-other", lambda _: HookedLLaVA.from_pretrained(str(saved(kept, "blip"))), refuses("HookedLLaVA")
    yield "class-of-another", lambda _: HookedBLIP.from_pretrained(str(saved(kept, "llava"))), refuses("HookedBLIP")
    for name, given in (("none", None), ("string", "blip"), ("linear", torch.nn.Linear(2, 2)), ("class", torch.nn.Module), ("hooked", None)):
        hf = HookedVLM.from_hf(*hugging_face("blip")) if name == "hooked" else given
        yield f"from_hf-{name}", lambda _, g=hf: HookedVLM.from_hf(g), refuses(("Hooked", "NoneType", "str", "Linear", "type", "Module"))
