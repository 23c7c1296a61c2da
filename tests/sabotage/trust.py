"""Checkpoints of somebody else's: pickles, code, foreign processors, files that no list has, wrong options."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, zoo
from tests.sabotage.checkpoints import CLASSES, INDEX, PREPARES, WEIGHTS, Change, attacked, hf_says, load, named, saved
from tests.sabotage.engine import CANARY, Oracle, draws, either, equals, refuses
from tests.sabotage.world import answered, hugging_face, picture, truth

Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


def attacks(seed: int, kept: Path) -> Found:
    """Every attack of the kind."""
    for part in (_indices(kept), _code(kept), _processors(kept), _zoo(seed), _options(kept)):
        yield from part


def _indices(kept: Path) -> Found:
    """Weights in several files, and an index that names others."""
    for kind in CLASSES:

        def indexed(names: Callable[[list[str]], Any], there: Path, keep: bool = False) -> None:
            weights = load_file(there / WEIGHTS)
            half = sorted(weights)[::2]
            save_file({n: weights[n] for n in half}, there / "one.safetensors", metadata={"format": "pt"})
            save_file(
                {n: weights[n] for n in weights if n not in half}, there / "two.safetensors", metadata={"format": "pt"}
            )
            shutil.copyfile(there / WEIGHTS, there.parent / "outside.safetensors")
            torch.save(weights, there / "weights.bin")
            torch.save(weights, there.parent / "outside.bin")
            if not keep:
                (there / WEIGHTS).unlink()
            of = {n: "one.safetensors" if n in half else "two.safetensors" for n in weights}
            (there / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names(of)}))

        right = partial(truth, kind, picture())
        yield f"{kind}-index", partial(attacked, kept, kind, partial(indexed, lambda of: of)), equals(right)
        yield (
            f"{kind}-index-beside-the-whole",
            partial(attacked, kept, kind, partial(indexed, lambda of: of, keep=True)),
            equals(right),
        )
        for name, change, word in (
            ("of-a-pickle", lambda of: dict.fromkeys(of, "weights.bin"), "weights.bin"),
            ("of-a-pickle-for-one", lambda of: {**of, next(iter(of)): "weights.bin"}, "weights.bin"),
            ("above", lambda of: dict.fromkeys(of, "../outside.safetensors"), "outside.safetensors"),
            ("above-and-back", lambda of: dict.fromkeys(of, "../spoilt/../outside.safetensors"), "outside.safetensors"),
            ("of-a-pickle-above", lambda of: dict.fromkeys(of, "../outside.bin"), "outside.bin"),
            ("absolute", lambda of: dict.fromkeys(of, str(Path("outside.safetensors").absolute())),
                "outside.safetensors"),
            ("of-nothing", lambda of: {}, (INDEX, "spoilt")), ("a-list", list, (INDEX, "spoilt")),
            ("none", lambda of: None, (INDEX, "spoilt")),
            ("of-numbers", lambda of: dict.fromkeys(of, 7), (INDEX, "spoilt")),
            ("of-a-missing-file", lambda of: {**of, next(iter(of)): "three.safetensors"},
                ("three.safetensors", "spoilt")),
            ("of-one-half", lambda of: {n: f for n, f in of.items() if f == "one.safetensors"}, (INDEX, "spoilt")),
            ("of-devices", lambda of: dict.fromkeys(of, "/dev/zero"), "/dev/zero"),
            ("of-the-folder", lambda of: dict.fromkeys(of, "."), (INDEX, "spoilt")),
        ):  # fmt: skip
            yield f"{kind}-index-{name}", partial(attacked, kept, kind, partial(indexed, change)), refuses(word)
        crossed = partial(
            indexed,
            lambda of: {n: "two.safetensors" if f == "one.safetensors" else "one.safetensors" for n, f in of.items()},
        )
        yield f"{kind}-index-crossed", partial(attacked, kept, kind, crossed), either(right, (INDEX, "spoilt"))


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
            yield f"{kind}-bomb-beside-{name}", partial(attacked, kept, kind, partial(bomb, name)), either(right, name)
        yield (
            f"{kind}-bomb-alone",
            partial(attacked, kept, kind, partial(bomb, "pytorch_model.bin", remove=True)),
            refuses("safetensors"),
        )
        yield (
            f"{kind}-bomb-called-safetensors",
            partial(attacked, kept, kind, partial(bomb, WEIGHTS)),
            refuses("spoilt"),
        )

        def mapped(file: str, names: dict[str, str], there: Path) -> None:
            code = f"open({str(there.parent / CANARY)!r}, 'w').close()\nclass Evil:\n    pass\n"
            (there / "evil.py").write_text(code)
            values = json.loads((there / file).read_text("utf-8"))
            (there / file).write_text(json.dumps({**values, "auto_map": names}), "utf-8")

        for file, names in (
            ("config.json", {"AutoConfig": "evil.Evil", "AutoModelForVision2Seq": "evil.Evil"}),
            ("config.json", {"AutoModel": "evil.Evil"}),
            ("processor_config.json", {"AutoProcessor": "evil.Evil"}),
            ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
            ("config.json", {"AutoConfig": "../evil.Evil"}),
            ("config.json", {"AutoConfig": "someone/elses--evil.Evil"}),
        ):  # fmt: skip
            shown = f"{file}-{'-'.join(names)}-{str(next(iter(names.values())))[:9]}".replace("/", "")
            yield (
                f"{kind}-auto_map-{shown}",
                partial(attacked, kept, kind, partial(mapped, file, names)),
                either(right, ("spoilt", "auto_map", "code")),
            )
    asked = "{% for message in messages %}<image>{{ message['content'][1]['text'] }}{% endfor %}"
    for name, template in {
        "grows": "{{ 'x' * 10**12 }}" + asked, "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + asked,
        "imports": "{{ cycler.__init__.__globals__.os.system('touch canary') }}" + asked,
        "raises": "{{ raise_exception('no') }}", "broken": "{% for", "divides": "{{ 1 / 0 }}",
        "includes": "{% include '/etc/passwd' %}" + asked, "is-empty": "",
        "has-no-image": "{{ messages[0]['content'][1]['text'] }}",
        "has-two-images": "<image><image>{{ messages[0]['content'][1]['text'] }}",
        "calls-an-unknown": "{{ nobody() }}" + asked,
    }.items():  # fmt: skip

        def templated(template: str, there: Path) -> None:
            (there / "chat_template.jinja").write_text(template)

        oracle = refuses(("template", "text 0", "spoilt"))
        yield f"llava-template-{name}", partial(attacked, kept, "llava", partial(templated, template)), oracle


def _processors(kept: Path) -> Found:
    """Processors that are another model's, or none."""
    for kind, other in (("blip", "llava"), ("llava", "blip")):

        def foreign(other: str, there: Path) -> None:
            for path in saved(kept, other).iterdir():
                if path.name in PREPARES:
                    shutil.copyfile(path, there / path.name)

        words = named("processor", "vocabulary", "pixel_values", "template", "image", "token")
        yield (
            f"{kind}-foreign-processor",
            partial(attacked, kept, kind, partial(foreign, other)),
            either(partial(hf_says, kind), words),
        )
        for name, given in (
            ("string", "blip"),
            ("dict", {}),
            ("number", 7),
            ("class", HookedVLM),
            ("other-tokenizer", hugging_face(other)[1].tokenizer),
            ("other-processor", hugging_face(other)[1]),
        ):
            yield (
                f"{kind}-given-{name}",
                lambda folder, k=kind, g=given: attacked(kept, k, lambda _: None, folder, processor=g),
                refuses(words),
            )


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

        def cut(file: str, size: int, there: Path) -> None:
            os.truncate(there / file, size)

        def longer(file: str, there: Path) -> None:
            (there / file).write_bytes((there / file).read_bytes() + b" ")

        for name, change in {
            "deleted": lambda there, f=file: (there / f).unlink(),
            "cut": partial(cut, file, draw.randrange(size)),
            "bit": partial(turned, file, draw.randrange(size)),
            "longer": partial(longer, file),
        }.items():
            yield (
                f"zoo-{file}-{name}",
                partial(attack, change),
                refuses(file) if file != "README.md" else either(right, file),
            )
    for name in (
        "pytorch_model.bin",
        INDEX,
        "chat_template.jinja",
        "evil.py",
        "preprocessor_config.json",
        "added_tokens.json",
        "adapter_config.json",
        "special_tokens_map.json",
    ):
        yield f"zoo-with-{name}", partial(attack, lambda there, n=name: (there / n).write_text("{}")), refuses(name)
    yield (
        "zoo-with-a-folder",
        partial(attack, lambda there: (there / "additional_chat_templates").mkdir()),
        refuses("additional_chat_templates"),
    )


def _options(kept: Path) -> Found:
    for name, given, word in (
        ("nothing", "", "''"), ("space", " ", "' '"), ("none", None, "None"), ("number", 3, "3"),
        ("unknown", "zoo:nothing", "zoo:nothing"), ("above", "zoo:../../etc", "zoo:../../etc"),
        ("zoo-alone", "zoo:", "zoo:"),
        ("device", "/dev/zero", "/dev/zero"), ("missing", "/absent/model", "/absent/model"),
        ("web", "https://example.org/model", "example.org"), ("hub-name-that-is-none", "a/b/c/d", "a/b/c/d"),
        ("NUL", "a\0b", "a"),
        ("bytes", b"blip", "blip"), ("list", ["blip"], "blip"), ("surrogate", "\udcff", ("checkpoint", "directory")),
        ("endless", "x" * 5000, "xxx"), ("hub-name-not-here", "nobody/nothing", "nobody/nothing"),
    ):  # fmt: skip
        yield f"name-{name}", lambda _, g=given: load(g), refuses(word)

    def asked(kind: str, options: dict[str, Any], folder: Path) -> Any:
        return attacked(kept, kind, lambda _: None, folder, **options)

    for name, options, word in (
        ("dtype-int8", {"dtype": "int8"}, "int8"), ("dtype-typo", {"dtype": "flot16"}, "flot16"),
        ("dtype-number", {"dtype": 3}, "3"), ("dtype-class", {"dtype": float}, ("float", "dtype")),
        ("device-absent", {"device": "cuda:99"}, "cuda:99"),
        ("device-typo", {"device": "gpu"}, "gpu"), ("device-meta", {"device": "meta"}, "meta"),
        ("device-empty", {"device": ""}, "device"), ("option-unknown", {"n_layers": 3}, "n_layers"),
        ("remote-code", {"trust_remote_code": True}, "trust_remote_code"),
        ("pickles", {"use_safetensors": False}, "use_safetensors"),
        ("device-and-map", {"device": "cpu", "device_map": "auto"}, "device_map"),
        ("map-typo", {"device": None, "device_map": "atuo"}, ("device_map", "atuo", "auto")),
        ("quantised-by-a-word", {"quantization_config": "4bit"}, ("quantization_config", "4bit")),
        ("subfolder-above", {"subfolder": "../.."}, ("subfolder", "spoilt")),
        ("subfolder-missing", {"subfolder": "weights"}, ("weights", "spoilt")),
        ("variant", {"variant": "fp8"}, ("fp8", "spoilt")),
        ("attention", {"attn_implementation": "flash_attention_2"}, "attn_implementation"),
        ("state-dict", {"state_dict": {}}, ("state_dict", "spoilt", "missing")),
    ):  # fmt: skip
        yield f"option-{name}", partial(asked, "blip", options), refuses(word)
    yield "class-of-the-other", lambda _: HookedLLaVA.from_pretrained(str(saved(kept, "blip"))), refuses("HookedLLaVA")
    yield "class-of-another", lambda _: HookedBLIP.from_pretrained(str(saved(kept, "llava"))), refuses("HookedBLIP")
    for name, given in (
        ("none", None),
        ("string", "blip"),
        ("linear", torch.nn.Linear(2, 2)),
        ("class", torch.nn.Module),
        ("hooked", None),
    ):
        hf = HookedVLM.from_hf(*hugging_face("blip")) if name == "hooked" else given
        yield (
            f"from_hf-{name}",
            lambda _, g=hf: HookedVLM.from_hf(g),
            refuses(("Hooked", "NoneType", "str", "Linear", "type", "Module")),
        )
