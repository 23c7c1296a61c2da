"""Misuse of everything public: hooks that return anything, wrong keys, wrong inputs, NaN, threads, options out of range."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs, hooks
from hooked_vlm.notice import NoticeConfig
from hooked_vlm.patching import Sites, attribution, path_patching, sweep
from hooked_vlm.patching import metrics as measures
from tests.sabotage.engine import Case, Oracle, either, equals, refuses
from tests.sabotage.positions import batch
from tests.sabotage.world import QUESTION, hugging_face, model, picture, said

FAMILY = "api"
POINTS = {
    "blip": ("hook_pixel_values", "vision_encoder.blocks.1.hook_resid_pre", "text_encoder.blocks.0.attn.hook_z", "text_encoder.blocks.1.cross_attn.hook_pattern", "text_encoder.blocks.0.attn.hook_k",
             "text_encoder.blocks.1.hook_normalized_resid_post", "text_decoder.blocks.0.mlp.hook_post", "hook_logits"),
    "llava-words": ("hook_image_features", "hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_rot_q", "blocks.1.attn.hook_attn_scores", "blocks.1.mlp.hook_pre", "blocks.1.ln2.hook_scale", "hook_logits"),
}  # fmt: skip
RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "its-first-row": lambda x: x[:1], "three-rows": lambda x: x[:3], "eight-rows": lambda x: torch.cat([x, x]), "transposed": lambda x: x.transpose(0, 1), "half-its-last-axis": lambda x: x[..., : x.shape[-1] // 2], "an-axis-more": lambda x: x[None],
    "an-axis-less": lambda x: x[0], "its-mean": lambda x: x.mean(), "nothing-of-it": lambda x: x[:0], "in-float64": lambda x: x.double(), "in-float16": lambda x: x.half(), "in-int64": lambda x: x.long(), "truths": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64), "on-meta": lambda x: x.to("meta"), "an-array": lambda x: x.detach().numpy(), "a-number": lambda x: 0.0, "a-word": lambda x: "zeros", "a-tuple": lambda x: (x, None), "a-list": lambda x: x.tolist(), "false": lambda x: False, "sparse": lambda x: x.to_sparse(),
}  # fmt: skip


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    for part in (_returned(), _names(), _keys(), _forward(), _inputs(), _generate(), _resume(), _focus(), _sweeps(), _not_finite(), _poured_in(), _threads(), _models(), _configs()):
        for name, attack, oracle in part:
            yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


def _calls(prefix: str, calls: dict[str, tuple[Callable[[], Any], Any]]) -> Found:
    """Calls that must be refused, each with what the error must name."""
    for name, (call, word) in calls.items():
        yield f"{prefix}-{name}", lambda _, c=call: c(), refuses(word)


def of_blip() -> VLMInputs:
    return batch("blip")


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
        for name, give in {"nothing": lambda x: None, "itself": lambda x: x, "a-copy": lambda x: x.clone(), "a-view": lambda x: x.view_as(x), "strided": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)}.items():
            yield f"{kind}-{points[2]}-gives-{name}", partial(run, kind, setting, points[2], give), equals(plain)


def _names() -> Found:
    blip = model("blip")
    zero = hooks.zero_ablate()

    def run(*fwd: Any) -> Any:
        return blip.run_with_hooks(of_blip(), fwd_hooks=list(fwd))

    z = POINTS["blip"][2]
    yield from _calls("hook", {
        "typo": (lambda: run(("text_encoder.blocks.0.attn.hok_z", zero)), z), "empty": (lambda: run(("", zero)), "''"), "layer-beyond": (lambda: run(("text_encoder.blocks.9.attn.hook_z", zero)), "blocks.9"),
        "of-llava": (lambda: run(("blocks.0.attn.hook_z", zero)), z), "number": (lambda: run((3, zero)), ("3", "int")), "none": (lambda: run((None, zero)), ("None",)), "filter-of-nothing": (lambda: run((lambda n: False, zero)), "filter"),
        "not-callable": (lambda: run((z, 3)), (z, "int")), "none-as-function": (lambda: run((z, None)), (z, "NoneType")), "a-tensor-as-function": (lambda: run((z, torch.zeros(1))), (z, "Tensor")), "no-pair": (lambda: run(z), ("pair", "hook", "fwd_hooks")),
        "three-of-a-pair": (lambda: run((z, zero, 1)), ("pair", "hook", "fwd_hooks")), "dict": (lambda: blip.run_with_hooks(of_blip(), fwd_hooks={z: zero}), ("pair", "hook", "fwd_hooks", "dict")), "gated-result": (lambda: run(("text_encoder.blocks.0.attn.hook_result", zero)), "use_attn_result"),
        "gated-input": (lambda: run(("text_encoder.blocks.0.attn.hook_q_input", zero)), "use_split_qkv_input"), "added-typo": (lambda: blip.add_hook("text_encoder.blocks.0.attn.hok_z", zero), z), "knock-out-of-z": (lambda: run((z, hooks.knock_out([0], [1]))), z),
        "heads-of-residual": (lambda: run(("text_encoder.blocks.0.hook_resid_pre", hooks.zero_ablate(heads=[0]))), "hook_resid_pre"), "positions-of-pixels": (lambda: run(("hook_pixel_values", hooks.zero_ablate(positions=[0]))), "hook_pixel_values"),
        "noise-NaN": (lambda: run((z, hooks.add_noise(float("nan"), torch.Generator()))), ("std", "nan")), "noise-negative": (lambda: run((z, hooks.add_noise(-1.0, torch.Generator()))), ("std", "-1")), "noise-word": (lambda: run((z, hooks.add_noise("x", torch.Generator()))), ("std", "'x'")),
        "noise-without-generator": (lambda: run((z, hooks.add_noise(1.0, None))), "generator"), "noise-of-a-seed": (lambda: run((z, hooks.add_noise(1.0, 0))), "generator"), "steer-of-another-size": (lambda: run((z, hooks.steer(torch.ones(5)))), (z, "direction", "5")),
        "steer-of-a-list": (lambda: run((z, hooks.steer([1.0] * 8))), ("direction", "list")), "patch-of-a-word": (lambda: run((z, hooks.patch("cache"))), ("source", "str")),
        "patch-of-another-shape": (lambda: run((z, hooks.patch(torch.zeros(1, 3, 2, 8)))), z), "swap-of-another-size": (lambda: run(("hook_pixel_values", hooks.swap_image(torch.zeros(1, 3, 8, 8)))), ("hook_pixel_values",)),
        "swap-at-another-point": (lambda: run((z, hooks.swap_image(torch.zeros(1, 3, 16, 16)))), z), "tokens-of-another-length": (lambda: run(("text_encoder.hook_embed", hooks.swap_tokens(torch.zeros(1, 3, 16)))), "text_encoder.hook_embed"),
    })  # fmt: skip

    def silent() -> Any:
        return blip.run_with_hooks(of_blip(), fwd_hooks=[("text_decoder.hook_embed", zero)], return_type=None)

    yield "hook-that-fires", lambda _: silent(), equals(None)

    def again(_: Path) -> Any:
        try:
            run((z, lambda x, hook: x[:1]))
        except Exception:
            pass
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


def _keys() -> Found:
    blip = model("blip")

    def cache(**options: Any) -> Any:
        return blip.run_with_cache(of_blip(), **options)[1]

    full = "text_encoder.blocks.0.cross_attn.hook_z"
    right = cache()[full]
    yield "cache-cross-z", lambda _: cache().focus("text_encoder")["z", 0, "cross_attn"], either(right, "cross_attn")
    yield "cache-cross-pattern", lambda _: cache().focus("text_encoder")["pattern", 1, "cross_attn"], either(cache()["text_encoder.blocks.1.cross_attn.hook_pattern"], "cross_attn")
    both = torch.stack([cache()[f"text_encoder.blocks.{i}.cross_attn.hook_z"] for i in (0, 1)])
    yield "cache-stack-cross-z", lambda _: cache().focus("text_encoder").stack_activation("z", sublayer_type="cross_attn"), either(both, "cross_attn")
    own = torch.stack([cache()[f"text_encoder.blocks.{i}.attn.hook_z"] for i in (0, 1)])
    yield "cache-stack-z", lambda _: cache().focus("text_encoder").stack_activation("z"), equals(own)
    yield from _calls("cache", {
        "typo": (lambda: cache()["text_encoder.blocks.0.attn.hok_z"], "text_encoder.blocks.0.attn.hook_z"), "short-in-the-whole": (lambda: cache()["z", 0], ("focus", "hook_z")), "layer-beyond": (lambda: cache().focus("text_encoder")["z", 9], ("9", "hook_z")),
        "unknown-in-focus": (lambda: cache().focus("text_encoder")["zz", 0], ("zz", "hook_z")), "sublayer-typo": (lambda: cache().focus("text_encoder")["z", 0, "cros_attn"], ("cros_attn", "cross_attn")), "number": (lambda: cache()[3], ("3", "int")), "none": (lambda: cache()[None], "None"),
        "list": (lambda: cache()[["hook_logits"]], ("hook_logits", "list")), "empty-tuple": (lambda: cache()[()], ("()", "tuple", "key")), "stack-unknown": (lambda: cache().focus("text"), "text_encoder"), "stack-none": (lambda: cache().focus(None), ("None", "text_encoder")), "not-cached": (lambda: cache(names_filter=full)["hook_logits"], ("hook_logits",)),
        "filter-typo": (lambda: cache(names_filter="hook_logitz"), "hook_logits"), "filter-list-typo": (lambda: cache(names_filter=[full, "hook_logitz"]), "hook_logits"), "filter-number": (lambda: cache(names_filter=3), ("3", "int", "names_filter")), "filter-of-nothing": (lambda: cache(names_filter=lambda n: False), "filter"),
        "batch-dim": (lambda: cache(remove_batch_dim=True), ("4", "batch")), "slice-word": (lambda: cache(pos_slice="last"), ("pos_slice", "last")), "slice-beyond": (lambda: cache(pos_slice=99), ("99", "pos_slice")), "slice-float": (lambda: cache(pos_slice=1.5), ("1.5", "pos_slice")),
        "device": (lambda: cache(device="cuda:99"), ("cuda:99", "device")), "decomposition": (lambda: cache().decompose_resid(), ("focus", "decompose_resid")), "decomposition-post-norm": (lambda: cache().focus("text_encoder").decompose_resid(), "post-norm"), "stack-activation-typo": (lambda: cache().focus("text_encoder").stack_activation("zz"), ("zz",)),
        "stack-layer-beyond": (lambda: cache().focus("text_encoder").stack_activation("z", layer=99), "99"), "head-results-gated": (lambda: cache().focus("vision_encoder").stack_head_results(layer=99), ("99", "use_attn_result")),
    })  # fmt: skip


# --- running ------------------------------------------------------------------------------------------------


def _forward() -> Found:
    blip = model("blip")
    inputs = of_blip()
    pixels, ids, mask = inputs.pixel_values, inputs.input_ids, inputs.attention_mask

    def ran(**parts: Any) -> Any:
        return blip(VLMInputs(**{"pixel_values": pixels, "input_ids": ids, "attention_mask": mask} | parts))

    yield from _calls("forward", {
        "return-type": (lambda: blip(inputs, "logit"), "logit"), "return-type-number": (lambda: blip(inputs, 3), "3"), "loss-without-answer": (lambda: blip(inputs, "loss"), "decoder_input_ids"), "logits-at-word": (lambda: blip(inputs, logits_at="first"), "first"), "logits-at-beyond": (lambda: blip(inputs, logits_at=[99]), "99"),
        "logits-at-float": (lambda: blip(inputs, logits_at=1.5), "1.5"), "logits-at-none-of-a-list": (lambda: blip(inputs, logits_at=[None]), "None"), "logits-at-true": (lambda: blip(inputs, logits_at=True), "True"), "none": (lambda: blip(None), "NoneType"), "word": (lambda: blip("is it red ?"), "str"),
        "tensor": (lambda: blip(ids), "Tensor"), "list": (lambda: blip([inputs]), "list"), "empty-dict": (lambda: blip({}), "pixel_values"), "dict-without-pixels": (lambda: blip({"input_ids": ids}), "pixel_values"), "dict-with-more": (lambda: blip({"input_ids": ids, "pixel_values": pixels, "attentionmask": mask}), "attentionmask"),
        "dict-of-lists": (lambda: blip({"input_ids": ids.tolist(), "pixel_values": pixels}), "input_ids"), "ids-beyond": (lambda: ran(input_ids=ids.clone().fill_(9999)), "9999"), "ids-negative": (lambda: ran(input_ids=-ids), "-"), "ids-float": (lambda: ran(input_ids=ids.float()), "input_ids"), "ids-truths": (lambda: ran(input_ids=ids > 3), "input_ids"),
        "ids-one-axis": (lambda: ran(input_ids=ids[0]), "input_ids"), "ids-three-axes": (lambda: ran(input_ids=ids[None]), "input_ids"), "ids-empty": (lambda: ran(input_ids=ids[:, :0], attention_mask=None), "input_ids"), "ids-of-other-rows": (lambda: ran(input_ids=ids[:2], attention_mask=None), ("rows",)), "ids-too-many": (lambda: ran(input_ids=ids.repeat(1, 9), attention_mask=None), ("context", "40")),
        "ids-array": (lambda: ran(input_ids=ids.numpy()), "input_ids"), "ids-none": (lambda: ran(input_ids=None), "input_ids"), "ids-complex": (lambda: ran(input_ids=ids.to(torch.complex64)), "input_ids"), "ids-meta": (lambda: ran(input_ids=ids.to("meta")), ("meta",)), "ids-sparse": (lambda: ran(input_ids=ids.to_sparse()), ("sparse", "input_ids")),
        "mask-of-twos": (lambda: ran(attention_mask=mask * 2), "attention_mask"), "mask-negative": (lambda: ran(attention_mask=-mask), "attention_mask"), "mask-of-halves": (lambda: ran(attention_mask=mask * 0.5), "attention_mask"), "mask-NaN": (lambda: ran(attention_mask=mask * float("nan")), "attention_mask"), "mask-additive": (lambda: ran(attention_mask=(1.0 - mask) * -1e9), "attention_mask"),
        "mask-of-nothing": (lambda: ran(attention_mask=mask * 0), "attention_mask"), "mask-one-row-empty": (lambda: ran(attention_mask=mask * torch.tensor([[1], [0], [1], [1]])), ("attention_mask", "1")), "mask-shorter": (lambda: ran(attention_mask=mask[:, 1:]), "attention_mask"), "mask-of-other-rows": (lambda: ran(attention_mask=mask[:1]), "attention_mask"),
        "mask-causal": (lambda: ran(attention_mask=torch.ones(4, 10, 10)), "attention_mask"), "pixels-of-ints": (lambda: ran(pixel_values=(pixels * 9).long()), "pixel_values"), "pixels-one-axis-less": (lambda: ran(pixel_values=pixels[0]), "pixel_values"), "pixels-channels-last": (lambda: ran(pixel_values=pixels.permute(0, 2, 3, 1)), ("pixel_values", "channel")),
        "pixels-of-one-channel": (lambda: ran(pixel_values=pixels[:, :1]), ("pixel_values", "channel")), "pixels-of-another-size": (lambda: ran(pixel_values=pixels.repeat(1, 1, 2, 2)), ("pixel_values", "interpolate", "16")), "pixels-of-odd-size": (lambda: ran(pixel_values=pixels[..., :15]), ("pixel_values", "16", "15")), "pixels-of-other-rows": (lambda: ran(pixel_values=pixels[:3]), "pixel_values"),
        "pixels-complex": (lambda: ran(pixel_values=pixels.to(torch.complex64)), "pixel_values"), "pixels-meta": (lambda: ran(pixel_values=pixels.to("meta")), "meta"), 
        "answer-beyond": (lambda: ran(decoder_input_ids=torch.full((4, 1), 9999)), ("9999", "decoder_input_ids")), "answer-negative": (lambda: ran(decoder_input_ids=torch.full((4, 1), -100)), ("-100", "decoder_input_ids")),
        "answer-float": (lambda: ran(decoder_input_ids=torch.ones(4, 1)), "decoder_input_ids"), "answer-empty": (lambda: ran(decoder_input_ids=torch.ones(4, 0, dtype=torch.long)), "decoder_input_ids"), "answer-of-other-rows": (lambda: ran(decoder_input_ids=torch.ones(2, 1, dtype=torch.long)), "decoder_input_ids"), "answer-too-long": (lambda: ran(decoder_input_ids=torch.ones(4, 999, dtype=torch.long)), ("context", "40", "decoder_input_ids")),
        
    })  # fmt: skip
    for kind, setting in (("llava-words", "llava-left"), ("llava-words", "llava-right")):
        held = batch(setting)
        token = held.layout.image_token_id
        yield from _calls(f"forward-{setting}", {
            "no-image-tokens": (lambda h=held, t=token: model("llava-words")(h.replace(input_ids=h.input_ids.masked_fill(h.input_ids == t, 5))), ("image",)),
            "an-image-token-more": (lambda h=held, t=token: model("llava-words")(h.replace(input_ids=torch.cat([h.input_ids, torch.full((4, 1), t)], 1), attention_mask=None)), ("image",)),
            "image-tokens-masked": (lambda h=held, t=token: model("llava-words")(h.replace(attention_mask=h.attention_mask * (h.input_ids != t))), ("image", "attention_mask")),
            "a-hole-in-the-mask": (lambda h=held: model("llava-words")(h.replace(attention_mask=h.attention_mask * torch.tensor([[1, 0] * 8]))), ("attention_mask", "image")),
        })  # fmt: skip


def _inputs() -> Found:
    inputs = of_blip()
    yield from _calls("inputs", {
        "row-beyond": (lambda: inputs[9], ("9", "row")), "row-float": (lambda: inputs[0.5], ("0.5", "row", "float")), "row-word": (lambda: inputs["a"], ("'a'", "row", "str")), "row-none": (lambda: inputs[None], ("None", "row")), "rows-beyond": (lambda: inputs[[0, 9]], ("9", "row")), "rows-none-left": (lambda: inputs[4:], ("empty", "row")),
        "rows-by-a-short-mask": (lambda: inputs[torch.tensor([True, False])], ("row", "mask", "bool")), "repeat-0": (lambda: inputs.repeat(0), "0"), "repeat-negative": (lambda: inputs.repeat(-2), "-2"), "repeat-half": (lambda: inputs.repeat(1.5), "1.5"), "repeat-word": (lambda: inputs.repeat("x"), ("'x'", "str")), "to-nowhere": (lambda: inputs.to("cuda:99"), "cuda:99"),
        "to-a-typo": (lambda: inputs.to("gpu"), "gpu"), "to-an-int-dtype": (lambda: inputs.to(dtype=torch.int64), "int64"), "to-a-number": (lambda: inputs.to(3.5), "3.5"), "replace-by-none": (lambda: inputs.replace(pixel_values=None), "pixel_values"), "last-that-differs": (lambda: inputs.last, "last_each"),
        "image-span-of-none": (lambda: VLMInputs(inputs.pixel_values, inputs.input_ids).image_span, "layout"), "find-without-tokenizer": (lambda: VLMInputs(inputs.pixel_values, inputs.input_ids).find("red"), "layout"), "find-that-differs": (lambda: inputs.find("red"), "find_each"),
    })  # fmt: skip
    yield "inputs-to-a-dtype", lambda _: inputs.to(torch.float16).pixel_values.double(), either(inputs.pixel_values.half().double(), "float16")


def _generate() -> Found:
    blip, inputs = model("blip"), of_blip()

    def asked(**options: Any) -> Callable[[], Any]:
        return lambda: blip.generate(inputs, **options)

    yield from _calls("generate", {
        "no-tokens": (asked(max_new_tokens=0), "0"), "negative": (asked(max_new_tokens=-1), "-1"), "half": (asked(max_new_tokens=1.5), "1.5"), "word": (asked(max_new_tokens="5"), "max_new_tokens"), "none": (asked(max_new_tokens=None), "max_new_tokens"), "true": (asked(max_new_tokens=True), ("max_new_tokens", "True")), "NaN": (asked(max_new_tokens=float("nan")), ("max_new_tokens", "nan")),
        "beyond-the-context": (asked(max_new_tokens=10**9), ("context", "40")), "temperature-0": (asked(do_sample=True, temperature=0), "temperature"), "temperature-negative": (asked(do_sample=True, temperature=-1.0), "temperature"), "temperature-NaN": (asked(do_sample=True, temperature=float("nan")), "temperature"), "temperature-word": (asked(do_sample=True, temperature="hot"), "temperature"),
        "top_k-0": (asked(do_sample=True, top_k=0), "top_k"), "top_k-half": (asked(do_sample=True, top_k=1.5), "top_k"), "top_k-word": (asked(do_sample=True, top_k="all"), "top_k"), "top_p-0": (asked(do_sample=True, top_p=0.0), "top_p"), "top_p-2": (asked(do_sample=True, top_p=2), "top_p"),
        "top_p-NaN": (asked(do_sample=True, top_p=float("nan")), "top_p"), "top_p-word": (asked(do_sample=True, top_p="0.9"), "top_p"), "seed-word": (asked(do_sample=True, seed="x"), "seed"), "seed-half": (asked(do_sample=True, seed=0.5), "seed"), "seed-huge": (asked(do_sample=True, seed=2**70), "seed"), "return-type": (asked(return_type="ids"), "ids"), "return-type-none": (asked(return_type=None), "return_type"),
        "no-inputs": (lambda: blip.generate(None), ("NoneType", "inputs")), "without-tokenizer": (lambda: HookedVLM.from_hf(hugging_face("blip")[0]).generate(inputs), "tokenizer"),
    })  # fmt: skip


def _resume() -> Found:
    blip, inputs = model("blip"), of_blip()
    logits, state = blip.run_with_state(inputs)
    resid = state.resid_pre("text_encoder", 1)
    same = logits.detach()
    yield "resume-of-nothing-changed", lambda _: blip.resume(state, "text_encoder", {1: resid}), equals(same)
    llava = model("llava-words").run_with_state(batch("llava-left"))[1]

    def asked(*given: Any, **options: Any) -> Callable[[], Any]:
        return lambda: blip.resume(*given, **options)

    yield from _calls("resume", {
        "stack": (asked(state, "text", {1: resid}), "text_encoder"), "stack-none": (asked(state, None, {1: resid}), "None"), "layer-beyond": (asked(state, "text_encoder", {9: resid}), "9"), "layer-negative": (asked(state, "text_encoder", {-1: resid}), "-1"), "layer-float": (asked(state, "text_encoder", {0.5: resid}), "0.5"), "layer-word": (asked(state, "text_encoder", {"1": resid}), ("'1'", "layer")),
        "nothing": (asked(state, "text_encoder", {}), "layer"), "none": (asked(state, "text_encoder", None), ("None", "joins")), "a-tensor": (asked(state, "text_encoder", resid), ("Tensor", "joins")), "rows-cut": (asked(state, "text_encoder", {1: resid[:3]}), ("(3", "rows")), "positions-cut": (asked(state, "text_encoder", {1: resid[:, 1:]}), "shape"), "width-cut": (asked(state, "text_encoder", {1: resid[..., 1:]}), "shape"),
        "no-rows": (asked(state, "text_encoder", {1: resid[:0]}), "(0"), "double": (asked(state, "text_encoder", {1: resid.double()}), ("float64", "dtype")), "ints": (asked(state, "text_encoder", {1: resid.long()}), ("int64", "dtype")), "an-array": (asked(state, "text_encoder", {1: resid.detach().numpy()}), "ndarray"), "a-none": (asked(state, "text_encoder", {1: None}), "None"),
        "first-in-bidirectional": (asked(state, "text_encoder", {1: resid}, first_position=2), "first_position"), "first-negative": (asked(state, "text_decoder", {1: state.resid_pre("text_decoder", 1)}, first_position=-1), "first_position"), "first-beyond": (asked(state, "text_decoder", {1: state.resid_pre("text_decoder", 1)}, first_position=99), "first_position"), "first-float": (asked(state, "text_encoder", {1: resid}, first_position=0.5), "first_position"),
        "logits-at": (asked(state, "text_encoder", {1: resid}, logits_at="first"), "first"), "state-none": (asked(None, "text_encoder", {1: resid}), ("state", "NoneType")), "state-of-logits": (asked(logits, "text_encoder", {1: resid}), ("state", "Tensor")), "state-of-another-model": (asked(llava, "text_encoder", {1: resid}), ("text_encoder", "state", "model")),
        "resid-of-another-stack": (lambda: state.resid_pre("language_model", 0), "language_model"), "resid-beyond": (lambda: state.resid_pre("text_encoder", 7), "7"), "resid-float": (lambda: state.resid_pre("text_encoder", 0.5), "0.5"),
    })  # fmt: skip


def _focus() -> Found:
    blip = model("blip")

    def view(stack: Any = "text_encoder", images: Any = None, texts: Any = None) -> Any:
        return blip.focus(stack, images=picture() if images is None else images, texts=texts)

    ids = of_blip().input_ids[:1, :5]
    yield "focus-as-it-is", lambda _: view()(ids), equals(blip(VLMInputs(blip.to_pixels(picture()), ids)))
    yield from _calls("focus", {
        "stack": (lambda: view("text"), "text_encoder"), "stack-none": (lambda: view(None), ("None", "text_encoder")), "no-image": (lambda: blip.focus("text_encoder")(ids), "images"), "image-missing": (lambda: view(images="absent.png")(ids), "absent.png"), "ids-beyond": (lambda: view()(ids.clone().fill_(9999)), "9999"), "ids-negative": (lambda: view()(-ids), "-"), "ids-float": (lambda: view()(ids.float()), ("float", "ids", "token")),
        "ids-three-axes": (lambda: view()(ids[None]), ("(1, 1, 5)", "axes", "shape")), "ids-none": (lambda: view()(None), "NoneType"), "ids-empty": (lambda: view()(ids[:, :0]), ("empty", "shape")), "text-empty": (lambda: view()(""), "empty"), "hook-typo": (lambda: view().run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hok_z", hooks.zero_ablate())]), "blocks.0.attn.hook_z"), "hook-layer-beyond": (lambda: view().run_with_hooks(ids, fwd_hooks=[("blocks.9.attn.hook_z", hooks.zero_ablate())]), "blocks.9"),
        "cache-typo": (lambda: view().run_with_cache(ids, names_filter="blocks.0.attn.hok_z"), "blocks.0.attn.hook_z"), "filter-of-nothing": (lambda: view().run_with_cache(ids, names_filter=lambda n: False), "filter"), "two-images-three-rows": (lambda: view(images=[picture(), picture(1)])(ids.repeat(3, 1)), ("3", "2")), "decoder-without-text": (lambda: view("text_decoder")(ids), "texts"), "vision-without-text": (lambda: view("vision_encoder")(picture()), "texts"),
        "vision-of-unknown-ids": (lambda: view("vision_encoder", texts=QUESTION)(torch.full((1, 5), 77)), ("77", "image")), "directions-of-no-logits": (lambda: view().tokens_to_residual_directions("red"), "logits"), "unembedding-of-encoder": (lambda: view().W_U, ("W_U", "logits")), "return-type": (lambda: view()(ids, return_type="x"), "'x'"),
    })  # fmt: skip


def _sweeps() -> Found:
    blip, clean, corrupt = model("blip"), of_blip(), batch("blip", "corrupt")
    sites, metric = Sites.heads(blip, "text_encoder", layers=0, positions=1), measures.logit_diff(5, 6)

    def asked(metrics: Any = metric, of: Any = sites, model: Any = blip, **options: Any) -> Callable[[], Any]:
        return lambda: sweep(model, clean, corrupt, of, metrics, **{"progress": False} | options).values

    wrong: dict[str, tuple[Any, Any]] = {
        "word": ("logit_diff", "logit_diff"), "none": (None, ("None", "metric")), "nothing": ({}, "metric"), "number": (3, ("int", "metric")), "dict-of-words": ({"a": "b"}, ("'a'", "metric", "a")), "uncalled": (measures.logit_diff, ("logit_diff", "metric")), "list": ([metric], ("list", "metric")),
        "gives-a-scalar": (lambda x: x.mean(), ("metric", "shape", "batch")), "gives-two-a-row": (lambda x: x[:, -1, :2].reshape(-1), ("metric", "shape", "batch")), "gives-an-array": (lambda x: x[:, -1, 0].detach().numpy(), ("metric", "ndarray", "tensor")), "gives-none": (lambda x: None, ("metric", "None")), 
        "gives-NaN": (lambda x: x[:, -1, 0] * float("nan"), ("metric", "nan", "finite")), "gives-infinity": (lambda x: x[:, -1, 0] / 0, ("metric", "inf", "finite")), "gives-complex": (lambda x: x[:, -1, 0] * 1j, ("metric", "complex")), "gives-the-first-rows": (lambda x: x[:2, -1, 0], ("metric", "shape", "batch")), "ids-beyond": (measures.logit_diff(5, 10**6), "1000000"),
    }  # fmt: skip
    yield from _calls("sweep-metric", {name: (asked(metrics=given), word) for name, (given, word) in wrong.items()})
    yield from _calls("attribution-metric", {name: (partial(attribution, blip, clean, corrupt, sites, given), word) for name, (given, word) in wrong.items() if name not in ("nothing", "dict-of-words")})
    yield from _calls("attribution-metric", {"without-gradient": (partial(attribution, blip, clean, corrupt, sites, measures.rank(5)), ("gradient", "rank"))})
    yield from _calls("sweep", {
        "direction": (asked(direction="clean"), "clean"), "reduce": (asked(reduce="sum"), "sum"), "budget-0": (asked(budget=0), "budget"), "budget-negative": (asked(budget=-1), "budget"), "budget-word": (asked(budget="1GB"), "budget"), "budget-NaN": (asked(budget=float("nan")), "budget"), "sites-none": (asked(of=None), ("sites", "NoneType")), "sites-list": (asked(of=[sites]), ("sites", "list")), "sites-name": (asked(of=POINTS["blip"][2]), ("sites", "str")),
        "sites-of-another-model": (asked(of=Sites.heads(model("llava-words"), "language_model", layers=0, positions=1)), ("language_model", "blocks.0.attn.hook_z")), "position-beyond": (asked(of=Sites.heads(blip, "text_encoder", positions=99)), "99"), "model-none": (asked(model=None), ("model", "NoneType")), "model-of-hf": (asked(model=hugging_face("blip")[0]), ("model", "Blip")), "corruption-typo": (asked(corruption=[("hook_pixels", hooks.zero_ablate())]), "hook_pixel_values"),
        "corruption-number": (asked(corruption=3), ("corruption", "hook")), "steps-0": (partial(attribution, blip, clean, corrupt, sites, metric, steps=0), "steps"), "steps-half": (partial(attribution, blip, clean, corrupt, sites, metric, steps=1.5), "steps"), "steps-word": (partial(attribution, blip, clean, corrupt, sites, metric, steps="9"), "steps"), "verify-negative": (partial(attribution, blip, clean, corrupt, sites, metric, verify_top=-1), "verify_top"),
        "verify-half": (partial(attribution, blip, clean, corrupt, sites, metric, verify_top=0.5), "verify_top"), "attribution-direction": (partial(attribution, blip, clean, corrupt, sites, metric, direction="x"), "direction"), "path-from-residual": (partial(path_patching, blip, clean, corrupt, Sites.residual(blip, "text_encoder", positions=1), sites, metric, progress=False), ("hook_resid_pre", "send")),
        "path-to-pattern": (partial(path_patching, blip, clean, corrupt, sites, Sites.heads(blip, "text_encoder", positions=1, activation="pattern"), metric, progress=False), ("receiv", "pattern")), "path-to-none": (partial(path_patching, blip, clean, corrupt, sites, None, metric, progress=False), ("receiv", "None")), "path-direction": (partial(path_patching, blip, clean, corrupt, sites, sites, metric, direction="x", progress=False), "direction"),
    })  # fmt: skip


# --- numbers that are none, threads, models -----------------------------------------------------------------


def _not_finite() -> Found:
    """One weight that is NaN: refused when the model is made, or every number that it reaches is refused or NaN."""
    names = ("text_encoder.encoder.layer.0.attention.self.query.weight", "text_decoder.cls.predictions.bias", "vision_model.encoder.layers.1.mlp.fc1.weight", "text_encoder.embeddings.LayerNorm.bias")
    for name in names:
        for shown, value in {"NaN": float("nan"), "infinite": float("inf")}.items():

            def spoilt(name: str, value: float) -> Any:
                hf = copy.deepcopy(hugging_face("blip")[0])
                with torch.no_grad():
                    hf.get_parameter(name).view(-1)[3] = value
                return HookedVLM.from_hf(hf, hugging_face("blip")[1])

            def forward(name: str, value: float, _: Path) -> Any:
                logits = spoilt(name, value)(of_blip())
                return "not finite" if not torch.isfinite(logits[:, -1]).any() or name.endswith("predictions.bias") and not torch.isfinite(logits).all() else "finite"

            def measured(name: str, value: float, _: Path) -> Any:
                of = spoilt(name, value)
                sites = Sites.heads(of, "text_encoder", layers=0, positions=1)
                return sweep(of, of_blip(), batch("blip", "corrupt"), sites, measures.logit_diff(3, 4), progress=False).values

            words = (name, "finite", "nan", "inf")
            yield f"{shown}-in-{name}-forward", partial(forward, name, value), either("not finite", words)
            yield f"{shown}-in-{name}-sweep", partial(measured, name, value), refuses(words)
    bad = torch.zeros(2, 1, 9)
    bad[1, 0, 4] = float("nan")
    for name, metric in {"logit_diff": measures.logit_diff(1, 2), "probability": measures.probability(1), "log_probability": measures.log_probability(1), "rank": measures.rank(1), "kl_divergence": measures.kl_divergence(torch.zeros(2, 1, 9))}.items():
        yield f"NaN-logits-{name}", lambda _, m=metric: m(bad), refuses(("finite", "nan"))
    for name, given in {"none": None, "array": np.zeros((2, 1, 9)), "two-axes": torch.zeros(2, 9), "no-positions": torch.zeros(2, 0, 9)}.items():
        yield f"metric-of-{name}", lambda _, g=given: measures.logit_diff(1, 2)(g), refuses(("logits", "logit_diff"))


def _poured_in() -> Found:
    """NaN and infinity that a user pours in: they come out again, or are refused."""
    blip, inputs = model("blip"), of_blip()
    z = POINTS["blip"][2]
    state = blip.run_with_state(inputs)[1]
    resid = state.resid_pre("text_encoder", 1)

    def pixels(change: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: blip(inputs.replace(pixel_values=change(inputs.pixel_values)))

    for name, call in {
        "NaN-pixels": pixels(lambda x: x * float("nan")), "infinite-pixels": pixels(lambda x: x / 0), "huge-pixels": pixels(lambda x: x * 1e38), "one-NaN-pixel": pixels(lambda x: x.index_fill(3, torch.tensor([3]), float("nan"))),
        "steered-by-NaN": lambda: blip.run_with_hooks(inputs, fwd_hooks=[(z, hooks.steer(torch.ones(8), float("nan")))]), "patched-with-NaN": lambda: blip.run_with_hooks(inputs, fwd_hooks=[(z, hooks.patch(torch.full((1, 10, 2, 8), float("nan"))))]),
        "resumed-from-NaN": lambda: blip.resume(state, "text_encoder", {1: resid * float("nan")}), "queries-of-NaN": lambda: blip.run_with_hooks(inputs, fwd_hooks=[("text_encoder.blocks.0.attn.hook_q", lambda x, hook: x * float("nan"))]),
        "keys-of-NaN": lambda: blip.run_with_hooks(inputs, fwd_hooks=[("text_encoder.blocks.0.attn.hook_k", lambda x, hook: x * float("nan"))]),
    }.items():  # fmt: skip

        def honest(call: Callable[[], Any], _: Path) -> Any:
            return "finite" if torch.isfinite(call()).any() else "not finite"

        yield name, partial(honest, call), either("not finite", ("nan", "inf", "finite"))
    plain = blip(inputs).detach()
    yield "pixels-double", lambda _: pixels(lambda x: x.double())().detach(), either(plain, ("float64", "dtype"))
    half = blip(inputs.replace(pixel_values=inputs.pixel_values.half().float())).detach()
    yield "pixels-half", lambda _: pixels(lambda x: x.half())().detach(), either(half, ("float16", "dtype"))


def _threads() -> Found:
    """Several threads on one model: each gets its own numbers, or is refused."""
    blip = model("blip")
    questions = ["is it red ?", "is the left circle red or blue ?", "is a red circle yellow ?", "two ?"]
    given = [blip.to_inputs(picture(i), text) for i, text in enumerate(questions)]
    point = POINTS["blip"][2]
    ways: dict[str, Callable[[int], Any]] = {
        "forward": lambda i: blip(given[i]).detach(), "cache": lambda i: blip.run_with_cache(given[i], names_filter=point)[1][point].detach(), "hooks": lambda i: blip.run_with_hooks(given[i], fwd_hooks=[(point, hooks.zero_ablate(heads=i % 2))]).detach(),
        "generate": lambda i: blip.generate(given[i], 4, stop_at_eos=False, return_type="tokens"),
        "sweep": lambda i: sweep(blip, given[i], given[i].replace(pixel_values=given[i].pixel_values.flip(-1)), Sites.heads(blip, "text_encoder", layers=0, positions=1), measures.logit_diff(5, 6), progress=False).values,
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
                        if not torch.equal(found[i], right[i]) and not torch.allclose(found[i].float(), right[i].float(), atol=1e-5):
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

        yield f"threads-{name}", partial(together, way), either(lambda way=way: [way(i) for i in range(len(given))], "thread")

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

    yield from _calls("model", {
        "stack-typo": (lambda: blip.stacks["vision"], "vision_encoder"), "no-processor": (lambda: HookedVLM.from_hf(hugging_face("blip")[0]).to_inputs(picture(), QUESTION), "processor"), "processor-none-tokens": (lambda: HookedVLM.from_hf(hugging_face("blip")[0]).to_tokens("red"), "tokenizer"), "to-inputs-no-text": (lambda: blip.to_inputs(picture()), "text"),
        "to-inputs-counts": (lambda: blip.to_inputs([picture()] * 3, [QUESTION] * 2), ("3", "2")), "to-nowhere": (lambda: fresh().to("cuda:99"), "cuda:99"), "to-ints": (lambda: fresh().to(torch.int32), "int32"), "flag-typo": (lambda: setattr(fresh().cfg, "use_attn_results", True), "use_attn_result"), "flag-word": (lambda: setattr(fresh().cfg, "use_attn_result", "yes"), "use_attn_result"),
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
    def config(**options: Any) -> Callable[[], Any]:
        return lambda: NoticeConfig(**{"model": "zoo:blip-shapes", "tasks": ("colour",)} | options)

    wrong = {
        "tasks": ((), "colour", ("colour", "colour"), (3,), None, ("a.parquet", "b/a.parquet")), "corrupt": (("sound",), (), ("image", "image"), "image", None), "kinds": (("heads",), ("mlp", "mlp"), "mlp", None), "positions": ("foo", None, 3, "TEXT"), "select_at": ("foo", None, 7), "region": ("blurr", 3),
        "examples": (0, -1, 1.5, "5", None, True, 10**30, float("nan")), "seed": (-1, 1.5, "0", None, True, 2**70), "noise": ("yes", None), "noise_scale": (0.0, -1.0, float("nan"), float("inf"), "3", None, True), "random_draws": (-1, 0.5, None, "2", True), "bootstrap": (0, -1, 0.5, None, "9", True), "batch": (0, -1, 0.5, "x", True),
        "prompt_template": ("", "no place", 3), "model": ("", None, 3), "device": (3.5, ""), "dtype": (3, ""), "revision": (3,), "data": (3, b"x"),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            yield f"config-{name}-{repr(value)[:20]}", lambda _, c=config(**{name: value}): c(), refuses(name)
    for name, text in {"unknown": {"colour": 1}, "without-tasks": {"model": "x"}, "no-mapping": [], "none": None}.items():
        yield f"config-from-{name}", lambda _, t=text: NoticeConfig.from_json(t), refuses(("colour", "tasks", "configuration", "mapping"))
