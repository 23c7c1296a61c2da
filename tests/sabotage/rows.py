"""Rows that do not fit one another: other lengths, other batches, other ids; and windows that count padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_vlm import HookedVLM, hooks
from hooked_vlm.patching import Sites, attribution, path_patching, sweep
from hooked_vlm.patching import metrics as measures
from tests.models import checkpoints
from tests.sabotage.engine import Oracle, equals, refuses
from tests.sabotage.positions import SETTINGS, TEXTS, Z, batch, cached, generator, of_setting
from tests.sabotage.world import model, picture

Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


def attacks(seed: int) -> Found:
    """Every attack of the kind."""
    for part in (_rows_that_differ(), _batches(), _windows(seed)):
        yield from part


def _rows_that_differ() -> Found:
    """Clean and corrupt of one padded shape, whose rows are of other lengths or hold the image elsewhere."""
    short, long = "is it red ?", "is the left circle red or blue ?"
    for setting, (kind, _) in SETTINGS.items():

        def crossed(setting: str, by: str, _: Path) -> Any:
            hooked = of_setting(setting)
            hooked.processor.tokenizer.padding_side = SETTINGS[setting][1]
            pictures, texts = [picture(0), picture(1)], [short, long]
            clean, corrupt = hooked.to_inputs(pictures, texts), hooked.to_inputs(pictures, texts[::-1])
            return _measured(hooked, clean, corrupt, by)

        for by in ("sweep", "attribution", "path_patching"):
            yield (
                f"{setting}-{by}-short-and-long-crossed",
                partial(crossed, setting, by),
                refuses("row", ("0", "first")),
            )
        if kind == "blip":
            continue

        def moved(by: str, _: Path) -> Any:
            of = model("llava-words")
            clean = of.to_inputs(picture(), "is it <image> red ?")
            return _measured(of, clean, of.to_inputs(picture(1), "<image> is it red ?"), by)

        if setting == "llava-left":
            for by in ("sweep", "attribution", "path_patching"):
                yield f"{by}-image-elsewhere", partial(moved, by), refuses("image")
    of = of_setting("blip")
    for by in ("sweep", "attribution", "path_patching"):
        yield (
            f"{by}-of-other-lengths",
            lambda _, by=by: _measured(of, of.to_inputs(picture(), short), of.to_inputs(picture(), long), by),
            refuses(("length", "shape", "tokens")),
        )
        yield (
            f"{by}-of-other-batches",
            lambda _, by=by: _measured(of, batch("blip"), batch("blip", "corrupt")[:2], by),
            refuses(("4", "rows", "shape")),
        )
        yield (
            f"{by}-of-nothing",
            lambda _, by=by: _measured(of, None, batch("blip"), by),
            refuses(("NoneType", "VLMInputs", "inputs")),
        )
        yield (
            f"{by}-of-answers",
            lambda _, by=by: _measured(
                of, batch("blip").replace(decoder_input_ids=torch.full((4, 3), 5)), batch("blip", "corrupt"), by
            ),
            refuses(("decoder_input_ids", "answer")),
        )


def _measured(of: Any, clean: Any, corrupt: Any, by: str) -> Any:
    stack, metric = of.prompt_stack, measures.logit_diff(5, 6)
    sites = Sites.heads(of, stack, "attn")
    if by == "sweep":
        return sweep(of, clean, corrupt, sites, metric, progress=False).values
    if by == "attribution":
        return attribution(of, clean, corrupt, sites, metric).values
    return path_patching(
        of,
        clean,
        corrupt,
        Sites.heads(of, stack, layers=0, positions=1),
        Sites.heads(of, stack, layers=1, activation="v", positions=1),
        metric,
        progress=False,
    ).values


def _batches() -> Found:
    """Sources and ids for another number of rows."""

    @torch.no_grad()
    def patched(rows: Any, make: Any, _: Path) -> Tensor:
        source = {Z["blip"]: cached("blip")[Z["blip"]][rows]}
        return of_setting("blip").run_with_hooks(batch("blip"), fwd_hooks=[(Z["blip"], make(source))])[:, -1]

    for name, rows in {"2": slice(0, 2), "3": slice(0, 3), "8": [0, 1, 2, 3] * 2, "0": slice(0, 0)}.items():
        yield f"patch-of-{name}-rows-on-4", partial(patched, rows, hooks.patch), refuses(name, "4")
    yield "mean-of-no-rows", partial(patched, slice(0, 0), hooks.mean_ablate), refuses("0")
    yield (
        "resample-of-no-rows",
        partial(patched, slice(0, 0), lambda s: hooks.resample_ablate(s, generator())),
        refuses("0"),
    )
    yield "patch-of-nothing", partial(patched, slice(0, 4), lambda s: hooks.patch({})), refuses(Z["blip"])
    yield "patch-of-none", partial(patched, slice(0, 4), lambda s: hooks.patch(None)), refuses(("None", "source"))
    yield (
        "swap-of-2-images",
        lambda _: of_setting("blip").run_with_hooks(
            batch("blip"), fwd_hooks=[("hook_pixel_values", hooks.swap_image(batch("blip").pixel_values[:2]))]
        ),
        refuses("2", "4"),
    )
    logits = torch.randn(4, 1, 117, generator=generator())
    for name, make in {
        "logit_diff": lambda ids: measures.logit_diff(ids, 3),
        "logit_diff-wrong": lambda ids: measures.logit_diff(3, ids), "probability": measures.probability,
        "log_probability": measures.log_probability, "rank": measures.rank,
        "restoration": lambda ids: measures.restoration(ids, logits),
    }.items():  # fmt: skip
        for shown, ids, word in (
            ("2-ids", [1, 2], ("2", "examples")), ("3-ids", [1, 2, 3], "3"), ("8-ids", [1] * 8, "8"),
            ("no-ids", [], ("[]", "empty", "no ")), ("beyond", 117, "117"), ("negative", -1, "-1"),
            ("float", 1.5, "1.5"),
            ("whole-float", 2.0, ("2.0", "float")),
            ("true", True, "True"), ("word", "red", "red"), ("words", ["red"] * 4, "red"), ("none", None, "None"),
            ("NaN", float("nan"), "nan"), ("two-axes", [[1, 2]] * 4, ("axes", "8", "(4, 2)")),
            ("huge", 2**70, ("1180591620717411303424", "vocabulary")),
        ):  # fmt: skip
            yield f"{name}-of-{shown}", lambda _, m=make, i=ids: m(i)(logits), refuses(word)
    for name, make in {
        "kl_divergence": measures.kl_divergence,
        "restoration": lambda other: measures.restoration(1, other),
        "normalized": lambda other: measures.normalized(measures.probability(1), other, other + 1),
    }.items():
        yield f"{name}-of-2-rows-on-4", lambda _, m=make: m(logits[:2])(logits), refuses("2", "4")


def _windows(seed: int) -> Found:
    """A sliding window counts tokens and no padding: what is said in a padded batch is what each row says alone."""

    def answers(window: int, draw: int, side: str, alone: bool, _: Any = None) -> Any:
        hf, processor = checkpoints.llava(seed=draw, text="mistral", text_changes={"sliding_window": window})
        of = HookedVLM.from_hf(hf, processor)
        processor.tokenizer.padding_side = side
        if alone:
            rows = [
                of.generate(of.to_inputs(picture(i), text), 6, stop_at_eos=False, return_type="tokens")
                for i, text in enumerate(TEXTS)
            ]
            return torch.cat(rows)
        return of.generate(
            of.to_inputs([picture(i) for i in range(4)], TEXTS), 6, stop_at_eos=False, return_type="tokens"
        )

    for window in (2, 3, 4, 7):
        for draw in range(2):
            for side in ("left", "right"):
                attack = partial(answers, window, seed + draw, side, False)
                yield (
                    f"window-{window}-{side}-{draw}",
                    attack,
                    equals(partial(answers, window, seed + draw, side, True)),
                )
