"""Misuse of everything public: hooks that give anything, metrics, NaN, threads, options; `calls` has the rest."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_vlm import HookedVLM, hooks
from hooked_vlm.notice import NoticeConfig
from hooked_vlm.patching import Sites, attribution, path_patching, sweep
from hooked_vlm.patching import metrics as measures
from tests.sabotage import calls, finite
from tests.sabotage.calls import of_blip, refused
from tests.sabotage.engine import Case, Oracle, either, equals, refuses
from tests.sabotage.positions import batch
from tests.sabotage.world import QUESTION, hugging_face, model, picture, said

FAMILY = "api"
POINTS = {
    "blip": ("hook_pixel_values", "vision_encoder.blocks.1.hook_resid_pre", "text_encoder.blocks.0.attn.hook_z",
        "text_encoder.blocks.1.cross_attn.hook_pattern", "text_encoder.blocks.0.attn.hook_k",
             "text_encoder.blocks.1.hook_normalized_resid_post", "text_decoder.blocks.0.mlp.hook_post", "hook_logits"),
    "llava-words": ("hook_image_features", "hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_rot_q",
        "blocks.1.attn.hook_attn_scores", "blocks.1.mlp.hook_pre", "blocks.1.ln2.hook_scale", "hook_logits"),
}  # fmt: skip
RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "its-first-row": lambda x: x[:1], "three-rows": lambda x: x[:3], "eight-rows": lambda x: torch.cat([x, x]),
    "transposed": lambda x: x.transpose(0, 1), "half-its-last-axis": lambda x: x[..., : x.shape[-1] // 2],
    "an-axis-more": lambda x: x[None],
    "an-axis-less": lambda x: x[0], "its-mean": lambda x: x.mean(), "nothing-of-it": lambda x: x[:0],
    "in-float64": lambda x: x.double(), "in-float16": lambda x: x.half(), "in-int64": lambda x: x.long(),
    "truths": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64), "on-meta": lambda x: x.to("meta"),
    "an-array": lambda x: x.detach().numpy(), "a-number": lambda x: 0.0, "a-word": lambda x: "zeros",
    "a-tuple": lambda x: (x, None), "a-list": lambda x: x.tolist(), "false": lambda x: False,
    "sparse": lambda x: x.to_sparse(),
}  # fmt: skip


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    parts = (_returned(), _names(), _sweeps(), _threads(), _models(), _configs())
    for part in (*parts, calls.attacks(), finite.attacks()):
        for name, attack, oracle in part:
            yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


# --- hooks --------------------------------------------------------------------------------------------------


def _returned() -> Found:
    """A hook gives back an activation of the shape, dtype and device that it was given, or nothing."""
    for kind, points in POINTS.items():
        setting = "blip" if kind == "blip" else "llava-left"

        @torch.no_grad()
        def run(kind: str, setting: str, point: str, give: Callable[[Tensor], Any], _: Any = None) -> Any:
            return model(kind).run_with_hooks(batch(setting), fwd_hooks=[(point, lambda x, hook: give(x))])

        for i, (name, give) in enumerate(RETURNED.items()):
            for point in points[i % 2 :: 2]:
                yield f"{kind}-{point}-gives-{name}", partial(run, kind, setting, point, give), refuses(point)
        plain = partial(run, kind, setting, points[0], lambda x: None)
        for name, give in {
            "nothing": lambda x: None,
            "itself": lambda x: x,
            "a-copy": lambda x: x.clone(),
            "a-view": lambda x: x.view_as(x),
            "strided": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        }.items():
            yield f"{kind}-{points[2]}-gives-{name}", partial(run, kind, setting, points[2], give), equals(plain)


def _names() -> Found:
    blip = model("blip")
    zero = hooks.zero_ablate()

    def run(*fwd: Any) -> Any:
        return blip.run_with_hooks(of_blip(), fwd_hooks=list(fwd))

    z = POINTS["blip"][2]
    yield from refused("hook", {
        "typo": (lambda: run(("text_encoder.blocks.0.attn.hok_z", zero)), z), "empty": (lambda: run(("", zero)), "''"),
        "layer-beyond": (lambda: run(("text_encoder.blocks.9.attn.hook_z", zero)), "blocks.9"),
        "of-llava": (lambda: run(("blocks.0.attn.hook_z", zero)), z), "number": (lambda: run((3, zero)), ("3", "int")),
        "none": (lambda: run((None, zero)), ("None",)),
        "filter-of-nothing": (lambda: run((lambda n: False, zero)), "filter"),
        "not-callable": (lambda: run((z, 3)), (z, "int")),
        "none-as-function": (lambda: run((z, None)), (z, "NoneType")),
        "a-tensor-as-function": (lambda: run((z, torch.zeros(1))), (z, "Tensor")),
        "no-pair": (lambda: run(z), ("pair", "hook", "fwd_hooks")),
        "three-of-a-pair": (lambda: run((z, zero, 1)), ("pair", "hook", "fwd_hooks")),
        "dict": (lambda: blip.run_with_hooks(of_blip(), fwd_hooks={z: zero}), ("pair", "hook", "fwd_hooks", "dict")),
        "gated-result": (lambda: run(("text_encoder.blocks.0.attn.hook_result", zero)), "use_attn_result"),
        "gated-input": (lambda: run(("text_encoder.blocks.0.attn.hook_q_input", zero)), "use_split_qkv_input"),
        "added-typo": (lambda: blip.add_hook("text_encoder.blocks.0.attn.hok_z", zero), z),
        "knock-out-of-z": (lambda: run((z, hooks.knock_out([0], [1]))), z),
        "heads-of-residual": (lambda: run(("text_encoder.blocks.0.hook_resid_pre", hooks.zero_ablate(heads=[0]))),
            "hook_resid_pre"), "positions-of-pixels": (lambda: run(("hook_pixel_values",
            hooks.zero_ablate(positions=[0]))), "hook_pixel_values"),
        "noise-NaN": (lambda: run((z, hooks.add_noise(float("nan"), torch.Generator()))), ("std", "nan")),
        "noise-negative": (lambda: run((z, hooks.add_noise(-1.0, torch.Generator()))), ("std", "-1")),
        "noise-word": (lambda: run((z, hooks.add_noise("x", torch.Generator()))), ("std", "'x'")),
        "noise-without-generator": (lambda: run((z, hooks.add_noise(1.0, None))), "generator"),
        "noise-of-a-seed": (lambda: run((z, hooks.add_noise(1.0, 0))), "generator"),
        "steer-of-another-size": (lambda: run((z, hooks.steer(torch.ones(5)))), (z, "direction", "5")),
        "steer-of-a-list": (lambda: run((z, hooks.steer([1.0] * 8))), ("direction", "list")),
        "patch-of-a-word": (lambda: run((z, hooks.patch("cache"))), ("source", "str")),
        "patch-of-another-shape": (lambda: run((z, hooks.patch(torch.zeros(1, 3, 2, 8)))), z),
        "swap-of-another-size": (lambda: run(("hook_pixel_values", hooks.swap_image(torch.zeros(1, 3, 8, 8)))),
            ("hook_pixel_values",)),
        "swap-at-another-point": (lambda: run((z, hooks.swap_image(torch.zeros(1, 3, 16, 16)))), z),
        "tokens-of-another-length": (lambda: run(("text_encoder.hook_embed", hooks.swap_tokens(torch.zeros(1, 3, 16)))),
            "text_encoder.hook_embed"),
    })  # fmt: skip

    def silent() -> Any:
        return blip.run_with_hooks(of_blip(), fwd_hooks=[("text_decoder.hook_embed", zero)], return_type=None)

    yield "hook-that-fires", lambda _: silent(), equals(None)

    def again(_: Path) -> Any:
        with contextlib.suppress(Exception):
            run((z, lambda x, hook: x[:1]))
        return said("blip", picture())

    yield "hook-that-failed-is-gone", again, equals(said("blip", picture()))

    def own_error(_: Path) -> Any:
        def fails(x: Tensor, hook: Any) -> Tensor:
            raise ZeroDivisionError("mine")

        try:
            run((z, fails))
        except ZeroDivisionError as error:
            return str(error)

    yield "hook-whose-own-error-is-kept", own_error, equals("mine")


# --- running ------------------------------------------------------------------------------------------------


def _sweeps() -> Found:
    blip, clean, corrupt = model("blip"), of_blip(), batch("blip", "corrupt")
    sites, metric = Sites.heads(blip, "text_encoder", layers=0, positions=1), measures.logit_diff(5, 6)

    def asked(metrics: Any = metric, of: Any = sites, model: Any = blip, **options: Any) -> Callable[[], Any]:
        return lambda: sweep(model, clean, corrupt, of, metrics, **{"progress": False} | options).values

    def alone(intervention: Any) -> Callable[[], Any]:
        options = {"intervention": intervention, "progress": False}
        return lambda: sweep(blip, clean, None, sites, metric, **options).values

    wrong: dict[str, tuple[Any, Any]] = {
        "word": ("logit_diff", "logit_diff"), "none": (None, ("None", "metric")), "nothing": ({}, "metric"),
        "number": (3, ("int", "metric")), "dict-of-words": ({"a": "b"}, ("'a'", "metric", "a")),
        "uncalled": (measures.logit_diff, ("logit_diff", "metric")), "list": ([metric], ("list", "metric")),
        "gives-a-scalar": (lambda x: x.mean(), ("metric", "shape", "batch")),
        "gives-two-a-row": (lambda x: x[:, -1, :2].reshape(-1), ("metric", "shape", "batch")),
        "gives-an-array": (lambda x: x[:, -1, 0].detach().numpy(), ("metric", "ndarray", "tensor")),
        "gives-none": (lambda x: None, ("metric", "None")),
        "gives-NaN": (lambda x: x[:, -1, 0] * float("nan"), ("metric", "nan", "finite")),
        "gives-infinity": (lambda x: x[:, -1, 0] / 0, ("metric", "inf", "finite")),
        "gives-complex": (lambda x: x[:, -1, 0] * 1j, ("metric", "complex")),
        "gives-the-first-rows": (lambda x: x[:2, -1, 0], ("metric", "shape", "batch")),
        "ids-beyond": (measures.logit_diff(5, 10**6), "1000000"),
    }  # fmt: skip
    yield from refused("sweep-metric", {name: (asked(metrics=given), word) for name, (given, word) in wrong.items()})
    yield from refused(
        "attribution-metric",
        {
            name: (partial(attribution, blip, clean, corrupt, sites, given), word)
            for name, (given, word) in wrong.items()
            if name not in ("nothing", "dict-of-words")
        },
    )
    yield from refused(
        "attribution-metric",
        {
            "without-gradient": (
                partial(attribution, blip, clean, corrupt, sites, measures.rank(5)),
                ("gradient", "rank"),
            )
        },
    )
    yield from refused("sweep", {
        "direction": (asked(direction="clean"), "clean"), "reduce": (asked(reduce="sum"), "sum"),
        "budget-0": (asked(budget=0), "budget"), "budget-negative": (asked(budget=-1), "budget"),
        "budget-word": (asked(budget="1GB"), "budget"), "budget-NaN": (asked(budget=float("nan")), "budget"),
        "sites-none": (asked(of=None), ("sites", "NoneType")), "sites-list": (asked(of=[sites]), ("sites", "list")),
        "sites-name": (asked(of=POINTS["blip"][2]), ("sites", "str")),
        "sites-of-another-model": (asked(of=Sites.heads(model("llava-words"), "language_model", layers=0, positions=1)),
            ("language_model", "blocks.0.attn.hook_z")),
        "position-beyond": (asked(of=Sites.heads(blip, "text_encoder", positions=99)), "99"),
        "model-none": (asked(model=None), ("model", "NoneType")),
        "model-of-hf": (asked(model=hugging_face("blip")[0]), ("model", "Blip")),
        "corruption-typo": (asked(corruption=[("hook_pixels", hooks.zero_ablate())]), "hook_pixel_values"),
        "corruption-number": (asked(corruption=3), ("corruption", "hook")),
        "intervention-uncalled": (alone(hooks.zero_ablate), ("intervention", "hooks.zero_ablate()")),
        "intervention-word": (alone("zero"), ("intervention", "'zero'")),
        "intervention-and-corrupt": (asked(intervention=hooks.zero_ablate()), ("intervention", "corrupt")),
        "intervention-shape": (alone(lambda z, hook: z[:, :1]), ("hook_z", "same shape")),
        "knock-out-of-z": (alone(hooks.knock_out(0, 0)), ("knock_out", "hook_z", "attn_scores")),
        "screen-0": (asked(screen=0), "screen"), "screen-word": (asked(screen="3"), ("screen", "'3'")),
        "screen-of-windows": (asked(of=sites.windows(1), screen=3), "windows"),
        "steps-0": (partial(attribution, blip, clean, corrupt, sites, metric, steps=0), "steps"),
        "steps-half": (partial(attribution, blip, clean, corrupt, sites, metric, steps=1.5), "steps"),
        "steps-word": (partial(attribution, blip, clean, corrupt, sites, metric, steps="9"), "steps"),
        "verify-negative": (partial(attribution, blip, clean, corrupt, sites, metric, verify_top=-1), "verify_top"),
        "verify-half": (partial(attribution, blip, clean, corrupt, sites, metric, verify_top=0.5), "verify_top"),
        "attribution-direction": (partial(attribution, blip, clean, corrupt, sites, metric, direction="x"),
            "direction"), "path-from-residual": (partial(path_patching, blip, clean, corrupt,
            Sites.residual(blip, "text_encoder", positions=1), sites, metric, progress=False),
            ("hook_resid_pre", "send")),
        "path-to-pattern": (partial(path_patching, blip, clean, corrupt, sites,
            Sites.heads(blip, "text_encoder", positions=1, activation="pattern"), metric, progress=False),
            ("receiv", "pattern")),
        "path-to-a-word": (partial(path_patching, blip, clean, corrupt, sites, "logit", metric, progress=False),
            ("receiv", "logit")),
        "path-to-none": (partial(path_patching, blip, clean, corrupt, sites, None, metric, progress=False),
            ("receiv", "None")), "path-direction": (partial(path_patching, blip, clean, corrupt, sites, sites, metric,
            direction="x", progress=False), "direction"),
    })  # fmt: skip


# --- numbers that are none, threads, models -----------------------------------------------------------------


def _threads() -> Found:
    """Several threads on one model: each gets its own numbers, or is refused."""
    blip = model("blip")
    questions = ["is it red ?", "is the left circle red or blue ?", "is a red circle yellow ?", "two ?"]
    given = [blip.to_inputs(picture(i), text) for i, text in enumerate(questions)]
    point = POINTS["blip"][2]
    ways: dict[str, Callable[[int], Any]] = {
        "forward": lambda i: blip(given[i]).detach(),
        "cache": lambda i: blip.run_with_cache(given[i], names_filter=point)[1][point].detach(),
        "hooks": lambda i: blip.run_with_hooks(given[i], fwd_hooks=[(point, hooks.zero_ablate(heads=i % 2))]).detach(),
        "generate": lambda i: blip.generate(given[i], 4, stop_at_eos=False, return_type="tokens"),
        "sweep": lambda i: sweep(blip, given[i], given[i].replace(pixel_values=given[i].pixel_values.flip(-1)),
            Sites.heads(blip, "text_encoder", layers=0, positions=1), measures.logit_diff(5, 6), progress=False).values,
    }  # fmt: skip
    for name, way in ways.items():

        def together(way: Callable[[int], Any], _: Path) -> Any:
            found: list[Any] = [None] * len(given)
            errors: list[BaseException] = []
            start = threading.Barrier(len(given))

            def work(i: int) -> None:
                try:
                    start.wait()
                    for _ in range(15):
                        found[i] = way(i)
                        if not torch.equal(found[i], right[i]) and not torch.allclose(
                            found[i].float(), right[i].float(), atol=1e-5
                        ):
                            return
                except BaseException as error:
                    errors.append(error)

            threads = [threading.Thread(target=work, args=(i,)) for i in range(len(given))]
            right = [way(i) for i in range(len(given))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if errors:
                raise errors[0]
            return found

        yield (
            f"threads-{name}",
            partial(together, way),
            either(lambda way=way: [way(i) for i in range(len(given))], "thread"),
        )

    def mixed(_: Path) -> Any:
        plain = said("blip", picture())
        stop = threading.Event()

        def disturb() -> None:
            while not stop.is_set():
                blip.run_with_hooks(given[1], fwd_hooks=[(point, hooks.zero_ablate())])

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            found = [said("blip", picture()) for _ in range(40)]
        finally:
            stop.set()
            thread.join()
        return next((each for each in found if not torch.allclose(each, plain, atol=1e-5)), plain)

    yield "threads-hooks-beside-forward", mixed, either(said("blip", picture()), "thread")


def _models() -> Found:
    blip = model("blip")

    def fresh() -> Any:
        return HookedVLM.from_hf(copy.deepcopy(hugging_face("blip")[0]), hugging_face("blip")[1])

    yield from refused("model", {
        "stack-typo": (lambda: blip.stacks["vision"], "vision_encoder"),
        "no-processor": (lambda: HookedVLM.from_hf(hugging_face("blip")[0]).to_inputs(picture(), QUESTION),
            "processor"), "processor-none-tokens": (lambda: HookedVLM.from_hf(hugging_face("blip")[0]).to_tokens("red"),
            "tokenizer"), "to-inputs-no-text": (lambda: blip.to_inputs(picture()), "text"),
        "to-inputs-counts": (lambda: blip.to_inputs([picture()] * 3, [QUESTION] * 2), ("3", "2")),
        "to-nowhere": (lambda: fresh().to("cuda:99"), "cuda:99"), "to-ints": (lambda: fresh().to(torch.int32), "int32"),
        "flag-typo": (lambda: setattr(fresh().cfg, "use_attn_results", True), "use_attn_result"),
        "flag-word": (lambda: setattr(fresh().cfg, "use_attn_result", "yes"), "use_attn_result"),
    })  # fmt: skip

    def trained(_: Path) -> Any:
        of = fresh()
        of.train()
        return of(of_blip()).detach()

    yield "model-train", trained, either(blip(of_blip()).detach(), "train")

    def deep(_: Path) -> Any:
        return copy.deepcopy(blip)(of_blip()).detach()

    yield "model-deep-copy", deep, either(blip(of_blip()).detach(), "copy")

    def shared(_: Path) -> Any:
        first = HookedVLM.from_hf(hugging_face("blip")[0], hugging_face("blip")[1])
        HookedVLM.from_hf(hugging_face("blip")[0], hugging_face("blip")[1])
        return first(of_blip()).detach()

    yield "model-wrapped-twice", shared, equals(blip(of_blip()).detach())


def _configs() -> Found:
    def config(**options: Any) -> Callable[[Path], Any]:
        return lambda _: NoticeConfig(**{"model": "zoo:blip-shapes", "tasks": ("colour",)} | options)

    wrong = {
        "tasks": ((), "colour", ("colour", "colour"), (3,), None, ("a.parquet", "b/a.parquet")),
        "corrupt": (("sound",), (), ("image", "image"), "image", None),
        "kinds": (("heads",), ("mlp", "mlp"), "mlp", None), "positions": ("foo", None, 3, "TEXT"),
        "select_at": ("foo", None, 7), "region": ("blurr", 3),
        "examples": (0, -1, 1.5, "5", None, True, 10**30, float("nan")), "seed": (-1, 1.5, "0", None, True),
        "noise": ("yes", None), "noise_scale": (0.0, -1.0, float("nan"), float("inf"), "3", None, True),
        "random_draws": (-1, 0.5, None, "2", True), "bootstrap": (0, -1, 0.5, None, "9", True),
        "batch": (0, -1, 0.5, "x", True),
        "prompt_template": ("", "no place", 3), "model": ("", None, 3), "device": (3.5, ""), "dtype": (3, ""),
        "revision": (3,), "data": (3, b"x"),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            yield f"config-{name}-{repr(value)[:20]}", config(**{name: value}), refuses(name)
    for name, text in {
        "unknown": {"colour": 1},
        "without-tasks": {"model": "x"},
        "no-mapping": [],
        "none": None,
    }.items():
        yield (
            f"config-from-{name}",
            lambda _, t=text: NoticeConfig.from_json(t),
            refuses(("colour", "tasks", "configuration", "mapping")),
        )
