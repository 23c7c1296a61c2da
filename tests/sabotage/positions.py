"""Positions of every kind, right and wrong, in hooks, sites and sweeps, on rows that are padded and differ.

What a form of positions means is spelled out for each row as a list of ints, and that is run for every row alike; of
each such run, its own row is what the form must give. Then rows that do not fit one another, and sliding windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooked_vlm import VLMInputs, hooks
from hooked_vlm.patching import Sites, attribution, path_patching, sweep
from hooked_vlm.patching import metrics as measures
from tests.sabotage.engine import Case, Oracle, either, equals, refuses
from tests.sabotage.world import model, picture

FAMILY = "positions"
TEXTS = ["is it red ?", "is the left circle red or blue ?", "is a red circle yellow ?", "red or blue circle ?"]
OTHERS = ["is it red .", "is a right square red and not ?", "is the red square green ?", "red and green square ?"]
SETTINGS = {"blip": ("blip", "right"), "llava-left": ("llava-words", "left"), "llava-right": ("llava-words", "right")}
Z = {"blip": "text_encoder.blocks.0.attn.hook_z", "llava-words": "blocks.0.attn.hook_z"}


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    from tests.sabotage import rows  # which builds on this module

    for part in (_each_row(), _everywhere(), _refused(), _heads(), _sites(), rows.attacks(seed)):
        for name, attack, oracle in part:
            yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


# --- what is run --------------------------------------------------------------------------------------------


@cache
def batch(setting: str, which: str = "clean") -> VLMInputs:
    """Four rows of different lengths, padded on the setting's side."""
    kind, side = SETTINGS[setting]
    of = model(kind)
    before, of.processor.tokenizer.padding_side = of.processor.tokenizer.padding_side, side
    try:
        return of.to_inputs([picture(i) for i in range(4)], TEXTS if which == "clean" else OTHERS)
    finally:
        of.processor.tokenizer.padding_side = before


def of_setting(setting: str) -> Any:
    return model(SETTINGS[setting][0])


def stack_of(setting: str) -> str:
    return of_setting(setting).prompt_stack


@cache
def cached(setting: str) -> Any:
    return of_setting(setting).run_with_cache(batch(setting, "corrupt"))[1]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


FUNCTIONS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "zero_ablate": ("attn.hook_z", lambda s, p: hooks.zero_ablate(positions=p)),
    "patch": ("attn.hook_z", lambda s, p: hooks.patch(cached(s), positions=p)),
    "mean_ablate": ("hook_resid_mid", lambda s, p: hooks.mean_ablate(cached(s), positions=p)),
    "resample_ablate": ("attn.hook_z", lambda s, p: hooks.resample_ablate(cached(s), generator(), positions=p)),
    "add_noise": ("hook_mlp_out", lambda s, p: hooks.add_noise(3.0, generator(), positions=p)),
    "steer": ("hook_resid_mid", lambda s, p: hooks.steer(torch.linspace(-2, 2, 16), 3.0, positions=p)),
    "knock_out-queries": ("attn.hook_attn_scores", lambda s, p: hooks.knock_out(p, [0, 1, 2])),
    "knock_out-keys": ("attn.hook_attn_scores", lambda s, p: hooks.knock_out(None, p)),
}


@torch.no_grad()
def hooked(setting: str, function: str, positions: Any, _: Any = None) -> Tensor:
    """The answer's logits with a hook at some positions, [batch d_vocab]."""
    of, inputs = of_setting(setting), batch(setting)
    inside, make = FUNCTIONS[function]
    name = f"{of.stacks[stack_of(setting)].prefix}blocks.0.{inside}"
    logits = of.run_with_hooks(inputs, fwd_hooks=[(name, make(setting, positions))])
    return measures.answering(of, inputs, logits)[:, 0]


def row_by_row(setting: str, function: str, places: list[list[int]]) -> Tensor:
    """The same with each row's own positions: of a run with those of row i everywhere, row i."""
    return torch.stack([hooked(setting, function, own)[i] for i, own in enumerate(places)])


# --- each row its own ---------------------------------------------------------------------------------------


def forms(setting: str) -> dict[str, tuple[Any, list[list[int]]]]:
    """Ways to give each row positions of its own, and what they mean."""
    inputs = batch(setting)
    last, found = inputs.last_each, inputs.find_each("red")
    lasts = [[int(p)] for p in last]
    given: dict[str, tuple[Any, list[list[int]]]] = {
        "last_each": (last, lasts), "last_each-as-a-column": (last[:, None], lasts),
        "last_each-as-an-array": (last[:, None].numpy(), lasts),
        "last_each-as-int32": (last[:, None].int(), lasts), "find_each": (found, found.tolist()),
        "find_each-as-an-array": (found.numpy(), found.tolist()),
        "find_each-as-lists": (found.tolist(), found.tolist()),
        "two-a-row": (torch.stack([last, found[:, 0]], 1),
            [[int(a), int(b)] for a, b in zip(last, found[:, 0], strict=True)]),
        "negative-column": (last[:, None] - inputs.input_ids.shape[1], lasts),
        "slices": ([slice(int(p), int(p) + 1) for p in last], lasts),
        "real-mask": (inputs.is_real, [row.nonzero()[:, 0].tolist() for row in inputs.is_real]),
        "mask-as-an-array": (inputs.is_real.numpy(), [row.nonzero()[:, 0].tolist() for row in inputs.is_real]),
    }  # fmt: skip
    if setting != "blip":
        spans = inputs.image_spans
        places = [list(range(span.start, span.stop)) for span in spans]
        given |= {"image_spans": (spans, places), "is_image": (inputs.is_image, places)}
    return given


def _each_row() -> Found:
    for setting in SETTINGS:
        for i, (name, (given, places)) in enumerate(forms(setting).items()):
            for function in list(FUNCTIONS)[i % 2 :: 2]:
                right = partial(row_by_row, setting, function, places)
                yield (
                    f"{setting}-{function}-{name}",
                    partial(hooked, setting, function, given),
                    either(right, "position"),
                )


def _everywhere() -> Found:
    """Positions that every row shares, in forms that a user has in hand."""
    for name, given, places in (
        ("int64", np.int64(2), [2]), ("int32-array", np.array([1, 2], np.int32), [1, 2]),
        ("no-axis", torch.tensor(2), [2]), ("range", range(1, 3), [1, 2]),
        ("negative", -2, [-2]), ("twice", [1, 1, 2], [1, 2]), ("out-of-order", [2, 1], [1, 2]),
        ("tuple", (1, 2), [1, 2]), ("slice", slice(1, 3), [1, 2]),
        ("slice-of-steps", slice(0, 4, 2), [0, 2]), ("list-of-int64", [np.int64(1), np.int64(2)], [1, 2]),
        ("byte-tensor", torch.tensor([1, 2], dtype=torch.uint8), [1, 2]),
    ):  # fmt: skip
        for setting, function in (("blip", "zero_ablate"), ("llava-left", "patch"), ("llava-right", "knock_out-keys")):
            right = partial(hooked, setting, function, places)
            oracle = equals(right) if name not in ("twice", "byte-tensor", "int32-array") else either(right, "position")
            yield f"{setting}-{function}-{name}", partial(hooked, setting, function, given), oracle
    for setting in SETTINGS:
        n = batch(setting).input_ids.shape[1]
        mask = torch.tensor([place in (1, 2) for place in range(n)])
        for name, given in {"mask": mask, "mask-as-an-array": mask.numpy(), "mask-as-a-list": mask.tolist()}.items():
            oracle = either(partial(hooked, setting, "zero_ablate", [1, 2]), ("position", "bool", "True"))
            yield f"{setting}-{name}-of-every-row", partial(hooked, setting, "zero_ablate", given), oracle
        plain = partial(_plain, setting)
        for name, given in {
            "empty-list": [],
            "empty-range": range(0),
            "empty-tensor": torch.tensor([], dtype=torch.long),
            "mask-of-nowhere": mask & False,
            "slice-of-nothing": slice(2, 2),
        }.items():
            yield (
                f"{setting}-{name}",
                partial(hooked, setting, "zero_ablate", given),
                either(plain, ("position", "pos of")),
            )


@torch.no_grad()
def _plain(setting: str) -> Tensor:
    return measures.answering(of_setting(setting), batch(setting), of_setting(setting)(batch(setting)))[:, 0]


# --- what cannot be meant -----------------------------------------------------------------------------------

WRONG: dict[str, tuple[Any, Any]] = {
    "float": (1.7, "1.7"), "whole-float": (1.0, "1.0"), "float-tensor": (torch.tensor([1.0, 2.0]), ("float", "1.0")),
    "float-array": (np.array([1.5]), ("float", "1.5")), "float-in-a-list": ([1, 1.5], "1.5"),
    "true": (True, "True"), "false": (False, "False"), "truth-in-a-list": ([1, True], "True"),
    "numpy-truth": (np.True_, ("True", "bool")), "letter": ("foo", "foo"), "digit": ("1", "'1'"),
    "letters": (["last"], "last"),
    "bytes": (b"1", ("b'1'", "bytes")),
    "none-in-a-list": ([1, None], "None"), "beyond": (99, "99"), "before": (-99, "-99"), "one-beyond": ([0, 99], "99"),
    "huge": (10**30, ("1000000", "position")), "NaN": (float("nan"), "nan"), "complex": (1j, "1j"),
    "dict": ({1: 2}, ("dict", "{1: 2}")),
    "function": (len, ("function", "len")), "object": (object(), "object"),
    "two-rows-of-four": ([[1], [2]], ("2 rows", "2", "rows")),
    "three-rows-of-four": (torch.tensor([[1], [2], [1]]), ("3",)),
    "eight-rows-of-four": (torch.ones(8, 1, dtype=torch.long), ("8",)),
    "three-axes": (torch.ones(4, 1, 1, dtype=torch.long), ("3", "(4, 1, 1)", "axes")),
    "slice-of-letters": (slice("a", "b"), ("slice", "'a'")), "slice-of-floats": (slice(0.5, 2.5), ("slice", "0.5")),
    "slice-of-no-step": (slice(0, 3, 0), ("slice", "step")),
    "mask-too-short": (torch.tensor([True, False]), ("mask", "bool", "position")),
    "mask-of-two-rows": (torch.ones(2, 4, dtype=torch.bool), ("mask", "bool", "position", "rows")),
    "slices-of-two-rows": ([slice(0, 1), slice(1, 2)], ("2", "slice")),
    "slices-and-ints": ([slice(0, 1), 1, 2, 3], ("slice", "position")),
    "floats-of-each-row": (torch.ones(4, 1), ("float", "1.0")), "empty-floats": (np.array([]), ("float", "position")),
    "set-of-letters": ({"a"}, ("set", "'a'")), "negative-zero-float": (-0.0, "-0.0"),
}  # fmt: skip


def _refused() -> Found:
    for i, (name, (given, word)) in enumerate(WRONG.items()):
        for j, setting in enumerate(SETTINGS):
            function = list(FUNCTIONS)[(i + 3 * j) % len(FUNCTIONS)]
            yield f"{setting}-{function}-{name}", partial(hooked, setting, function, given), refuses(word)


def _heads() -> Found:
    @torch.no_grad()
    def at(heads: Any, _: Any = None) -> Tensor:
        of, inputs = of_setting("blip"), batch("blip")
        return of.run_with_hooks(inputs, fwd_hooks=[(Z["blip"], hooks.zero_ablate(heads=heads))])[:, -1]

    for name, given, place in (
        ("int64", np.int64(1), 1),
        ("no-axis", torch.tensor(1), 1),
        ("negative", -1, 1),
        ("range", range(1, 2), 1),
    ):
        yield f"heads-{name}", partial(at, given), equals(partial(at, [place]))
    mask = partial(at, [1])
    yield "heads-mask", partial(at, torch.tensor([False, True])), either(mask, ("bool", "head", "True"))
    for name, given, word in (
        ("beyond", 2, "2"), ("before", -3, "-3"), ("float", 1.0, "1.0"), ("true", True, "True"),
        ("letter", "all", "all"), ("none-in-a-list", [None], "None"),
        ("mask-too-long", torch.tensor([True] * 3), ("bool", "head")),
        ("float-tensor", torch.tensor([0.5]), ("float", "0.5")), ("dict", {}, ("dict", "{}")),
        ("each-row's", torch.tensor([[0], [1]]), ("head", "2")),
    ):  # fmt: skip
        yield f"heads-{name}", partial(at, given), refuses(word)


# --- sites --------------------------------------------------------------------------------------------------


def swept(setting: str, positions: Any, by: str = "sweep", _: Any = None, rows: Any = slice(None)) -> Tensor:
    """Effects at some positions in some rows, [layer head example]."""
    of = of_setting(setting)
    sites = Sites.heads(of, stack_of(setting), "attn", positions=positions)
    clean, corrupt, metric = batch(setting)[rows], batch(setting, "corrupt")[rows], measures.logit_diff(5, 9)
    if by == "attribution":
        values = attribution(of, clean, corrupt, sites, metric).values
    elif by == "path_patching":
        receivers = Sites.heads(
            of, stack_of(setting), "attn", layers=1, heads=0, activation="v", positions="all_at_once"
        )
        values = path_patching(of, clean, corrupt, sites, receivers, metric, progress=False).values
    else:
        values = sweep(of, clean, corrupt, sites, metric, progress=False).values
    assert values.numel() == 2 * 2 * len(clean), f"{values.shape}: more sites than one position has"
    return values.reshape(2, 2, len(clean)).detach()


def _sites() -> Found:
    for setting in SETTINGS:
        for name, (given, places) in forms(setting).items():
            if any(len(own) > 1 for own in places):
                continue
            for by in ("sweep", "attribution", "path_patching") if name in ("last_each", "find_each") else ("sweep",):

                def right(setting: str = setting, places: list[list[int]] = places, by: str = by) -> Tensor:
                    return torch.cat([swept(setting, own, by, rows=[i]) for i, own in enumerate(places)], -1)

                yield f"{setting}-{by}-sites-{name}", partial(swept, setting, given, by), either(right, "position")
    for i, (name, (given, word)) in enumerate(WRONG.items()):
        setting = list(SETTINGS)[i % 3]
        yield f"{setting}-sites-{name}", partial(swept, setting, given), refuses(word)
    of = of_setting("blip")
    for name, make, word in (
        ("layer-beyond", lambda: Sites.heads(of, "text_encoder", layers=9), "9"),
        ("layer-float", lambda: Sites.heads(of, "text_encoder", layers=0.5), "0.5"),
        ("layer-true", lambda: Sites.heads(of, "text_encoder", layers=True), "True"),
        ("layer-none", lambda: Sites.heads(of, "text_encoder", layers=[]), ("layer", "none")),
        ("head-beyond", lambda: Sites.heads(of, "text_encoder", heads=[0, 5]), "5"),
        ("head-float", lambda: Sites.heads(of, "text_encoder", heads=1.5), "1.5"),
        ("head-letter", lambda: Sites.heads(of, "text_encoder", heads="all"), "all"),
        ("head-true", lambda: Sites.heads(of, "text_encoder", heads=True), "True"),
        ("stack", lambda: Sites.heads(of, "text"), "text_encoder"),
        ("stack-none", lambda: Sites.heads(of, None), "None"),
        ("attention", lambda: Sites.heads(of, "text_encoder", "cross"), ("cross", "cross_attn")),
        ("activation", lambda: Sites.heads(of, "text_encoder", activation="zz"), "zz"),
        ("activation-without-heads", lambda: Sites.heads(of, "text_encoder", activation="hook_z"), "hook_z"),
        ("gated", lambda: Sites.heads(of, "text_encoder", activation="result"), "use_attn_result"),
        ("cross-of-vision", lambda: Sites.heads(of, "vision_encoder", "cross_attn"), "cross_attn"),
        ("residual", lambda: Sites.residual(of, "text_encoder", hook="resid"), "resid"),
        ("module", lambda: Sites.module(of, "text_encoder", "mpl_out"), "mlp_out"),
        ("neuron-beyond", lambda: Sites.neurons(of, "text_encoder", neurons=99), "99"),
        ("point-in-a-block", lambda: Sites.point(of, Z["blip"]), "Sites.module"),
        ("point-unknown", lambda: Sites.point(of, "hook_pixels"), "hook_pixel_values"),
        ("model-none", lambda: Sites.heads(None, "text_encoder"), ("NoneType", "model")),
        ("pick-beyond", lambda: Sites.heads(of, "text_encoder", positions=0).pick([99]), "99"),
        ("pick-float", lambda: Sites.heads(of, "text_encoder", positions=0).pick([0.5]), "0.5"),
        ("table-of-open", lambda: Sites.heads(of, "text_encoder").table, "at("),
    ):  # fmt: skip
        yield f"sites-{name}", lambda _, m=make: m(), refuses(word)
