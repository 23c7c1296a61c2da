"""Misuse of what runs a model: forward, caches, inputs, generate, resume and focused stacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hooked_vlm import HookedVLM, VLMInputs, hooks
from tests.sabotage.engine import Oracle, either, equals, refuses
from tests.sabotage.positions import batch
from tests.sabotage.world import QUESTION, hugging_face, model, picture

Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]
Calls = dict[str, tuple[Callable[[], Any], Any]]  # a call, and what an error must name


def attacks() -> Found:
    """Every attack on them."""
    for part in (_keys, _forward, _inputs, _generate, _resume, _focus):
        yield from part()


def refused(prefix: str, given: Calls) -> Found:
    """Calls that must be refused, each with what the error must name."""
    for name, (call, word) in given.items():
        yield f"{prefix}-{name}", lambda _, c=call: c(), refuses(word)


def of_blip() -> VLMInputs:
    return batch("blip")


def _keys() -> Found:
    blip = model("blip")

    def cache(**options: Any) -> Any:
        return blip.run_with_cache(of_blip(), **options)[1]

    full = "text_encoder.blocks.0.cross_attn.hook_z"
    right = cache()[full]
    yield "cache-cross-z", lambda _: cache().focus("text_encoder")["z", 0, "cross_attn"], either(right, "cross_attn")
    yield (
        "cache-cross-pattern",
        lambda _: cache().focus("text_encoder")["pattern", 1, "cross_attn"],
        either(cache()["text_encoder.blocks.1.cross_attn.hook_pattern"], "cross_attn"),
    )
    both = torch.stack([cache()[f"text_encoder.blocks.{i}.cross_attn.hook_z"] for i in (0, 1)])
    yield (
        "cache-stack-cross-z",
        lambda _: cache().focus("text_encoder").stack_activation("z", sublayer_type="cross_attn"),
        either(both, "cross_attn"),
    )
    own = torch.stack([cache()[f"text_encoder.blocks.{i}.attn.hook_z"] for i in (0, 1)])
    yield "cache-stack-z", lambda _: cache().focus("text_encoder").stack_activation("z"), equals(own)
    yield from refused("cache", {
        "typo": (lambda: cache()["text_encoder.blocks.0.attn.hok_z"], "text_encoder.blocks.0.attn.hook_z"),
        "short-in-the-whole": (lambda: cache()["z", 0], ("focus", "hook_z")),
        "layer-beyond": (lambda: cache().focus("text_encoder")["z", 9], ("9", "hook_z")),
        "unknown-in-focus": (lambda: cache().focus("text_encoder")["zz", 0], ("zz", "hook_z")),
        "sublayer-typo": (lambda: cache().focus("text_encoder")["z", 0, "cros_attn"], ("cros_attn", "cross_attn")),
        "number": (lambda: cache()[3], ("3", "int")), "none": (lambda: cache()[None], "None"),
        "list": (lambda: cache()[["hook_logits"]], ("hook_logits", "list")),
        "empty-tuple": (lambda: cache()[()], ("()", "tuple", "key")),
        "stack-unknown": (lambda: cache().focus("text"), "text_encoder"),
        "stack-none": (lambda: cache().focus(None), ("None", "text_encoder")),
        "not-cached": (lambda: cache(names_filter=full)["hook_logits"], ("hook_logits",)),
        "filter-typo": (lambda: cache(names_filter="hook_logitz"), "hook_logits"),
        "filter-list-typo": (lambda: cache(names_filter=[full, "hook_logitz"]), "hook_logits"),
        "filter-number": (lambda: cache(names_filter=3), ("3", "int", "names_filter")),
        "filter-of-nothing": (lambda: cache(names_filter=lambda n: False), "filter"),
        "batch-dim": (lambda: cache(remove_batch_dim=True), ("4", "batch")),
        "slice-word": (lambda: cache(pos_slice="last"), ("pos_slice", "last")),
        "slice-beyond": (lambda: cache(pos_slice=99), ("99", "pos_slice")),
        "slice-float": (lambda: cache(pos_slice=1.5), ("1.5", "pos_slice")),
        "device": (lambda: cache(device="cuda:99"), ("cuda:99", "device")),
        "decomposition": (lambda: cache().decompose_resid(), ("focus", "decompose_resid")),
        "decomposition-post-norm": (lambda: cache().focus("text_encoder").decompose_resid(), "post-norm"),
        "stack-activation-typo": (lambda: cache().focus("text_encoder").stack_activation("zz"), ("zz",)),
        "stack-layer-beyond": (lambda: cache().focus("text_encoder").stack_activation("z", layer=99),
            ("99", "2 layers")),
        "head-results-gated": (lambda: cache().focus("vision_encoder").stack_head_results(layer=99),
            ("99", "2 layers", "use_attn_result")),
    })  # fmt: skip


def _forward() -> Found:
    blip = model("blip")
    inputs = of_blip()
    pixels, ids, mask = inputs.pixel_values, inputs.input_ids, inputs.attention_mask

    def ran(**parts: Any) -> Any:
        return blip(VLMInputs(**{"pixel_values": pixels, "input_ids": ids, "attention_mask": mask} | parts))

    yield from refused("forward", {
        "return-type": (lambda: blip(inputs, "logit"), "logit"), "return-type-number": (lambda: blip(inputs, 3), "3"),
        "loss-without-answer": (lambda: blip(inputs, "loss"), "decoder_input_ids"),
        "logits-at-word": (lambda: blip(inputs, logits_at="first"), "first"),
        "logits-at-beyond": (lambda: blip(inputs, logits_at=[99]), "99"),
        "logits-at-float": (lambda: blip(inputs, logits_at=1.5), "1.5"),
        "logits-at-none-of-a-list": (lambda: blip(inputs, logits_at=[None]), "None"),
        "logits-at-true": (lambda: blip(inputs, logits_at=True), "True"), "none": (lambda: blip(None), "NoneType"),
        "stop-beyond": (lambda: blip(inputs, stop_at_layer=3), ("3", "text_encoder", "layers 0 to 1")),
        "stop-float": (lambda: blip(inputs, stop_at_layer=1.0), ("1.0", "float")),
        "stop-true": (lambda: blip(inputs, stop_at_layer=True), "True"),
        "stop-stack-alone": (lambda: blip(inputs, stop_at_layer="vision_encoder"), ("vision_encoder", "layer of")),
        "stop-of-no-stack": (lambda: blip(inputs, stop_at_layer=("vision", 1)), ("vision", "vision_encoder")),
        "stop-turned-round": (lambda: blip(inputs, stop_at_layer=(1, "vision_encoder")), ("(1, ", "stack and a layer")),
        "stop-with-loss": (lambda: blip(inputs, "loss", stop_at_layer=1), ("stop_at_layer", "return_type")),
        "stop-with-logits-at": (lambda: blip(inputs, stop_at_layer=1, logits_at="last"),
            ("stop_at_layer", "logits_at")),
        "stop-before-a-hook": (lambda: blip.run_with_hooks(inputs, stop_at_layer=1, fwd_hooks=[("hook_logits", print)]),
            ("hook_logits", "never reached")),
        "stop-before-a-filter": (lambda: blip.run_with_cache(inputs, stop_at_layer=1, names_filter="hook_logits"),
            ("hook_logits", "never reached")),
        "word": (lambda: blip("is it red ?"), "str"),
        "tensor": (lambda: blip(ids), "Tensor"), "list": (lambda: blip([inputs]), "list"),
        "empty-dict": (lambda: blip({}), "pixel_values"),
        "dict-without-pixels": (lambda: blip({"input_ids": ids}), "pixel_values"),
        "dict-with-more": (lambda: blip({"input_ids": ids, "pixel_values": pixels, "attentionmask": mask}),
            "attentionmask"),
        "dict-of-lists": (lambda: blip({"input_ids": ids.tolist(), "pixel_values": pixels}), "input_ids"),
        "ids-beyond": (lambda: ran(input_ids=ids.clone().fill_(9999)), "9999"),
        "ids-negative": (lambda: ran(input_ids=-ids), "-"),
        "ids-float": (lambda: ran(input_ids=ids.float()), "input_ids"),
        "ids-truths": (lambda: ran(input_ids=ids > 3), "input_ids"),
        "ids-one-axis": (lambda: ran(input_ids=ids[0]), "input_ids"),
        "ids-three-axes": (lambda: ran(input_ids=ids[None]), "input_ids"),
        "ids-empty": (lambda: ran(input_ids=ids[:, :0], attention_mask=None), "input_ids"),
        "ids-of-other-rows": (lambda: ran(input_ids=ids[:2], attention_mask=None), ("rows",)),
        "ids-too-many": (lambda: ran(input_ids=ids.repeat(1, 9), attention_mask=None), ("context", "40")),
        "ids-array": (lambda: ran(input_ids=ids.numpy()), "input_ids"),
        "ids-none": (lambda: ran(input_ids=None), "input_ids"),
        "ids-complex": (lambda: ran(input_ids=ids.to(torch.complex64)), "input_ids"),
        "ids-meta": (lambda: ran(input_ids=ids.to("meta")), ("meta",)),
        "ids-sparse": (lambda: ran(input_ids=ids.to_sparse()), ("sparse", "input_ids")),
        "mask-of-twos": (lambda: ran(attention_mask=mask * 2), "attention_mask"),
        "mask-negative": (lambda: ran(attention_mask=-mask), "attention_mask"),
        "mask-of-halves": (lambda: ran(attention_mask=mask * 0.5), "attention_mask"),
        "mask-NaN": (lambda: ran(attention_mask=mask * float("nan")), "attention_mask"),
        "mask-additive": (lambda: ran(attention_mask=(1.0 - mask) * -1e9), "attention_mask"),
        "mask-of-nothing": (lambda: ran(attention_mask=mask * 0), "attention_mask"),
        "mask-one-row-empty": (lambda: ran(attention_mask=mask * torch.tensor([[1], [0], [1], [1]])),
            ("attention_mask", "1")), "mask-shorter": (lambda: ran(attention_mask=mask[:, 1:]), "attention_mask"),
        "mask-of-other-rows": (lambda: ran(attention_mask=mask[:1]), "attention_mask"),
        "mask-causal": (lambda: ran(attention_mask=torch.ones(4, 10, 10)), "attention_mask"),
        "pixels-of-ints": (lambda: ran(pixel_values=(pixels * 9).long()), "pixel_values"),
        "pixels-one-axis-less": (lambda: ran(pixel_values=pixels[0]), "pixel_values"),
        "pixels-channels-last": (lambda: ran(pixel_values=pixels.permute(0, 2, 3, 1)), ("pixel_values", "channel")),
        "pixels-of-one-channel": (lambda: ran(pixel_values=pixels[:, :1]), ("pixel_values", "channel")),
        "pixels-of-another-size": (lambda: ran(pixel_values=pixels.repeat(1, 1, 2, 2)),
            ("pixel_values", "interpolate", "16")),
        "pixels-of-odd-size": (lambda: ran(pixel_values=pixels[..., :15]), ("pixel_values", "16", "15")),
        "pixels-of-other-rows": (lambda: ran(pixel_values=pixels[:3]), "pixel_values"),
        "pixels-complex": (lambda: ran(pixel_values=pixels.to(torch.complex64)), "pixel_values"),
        "pixels-meta": (lambda: ran(pixel_values=pixels.to("meta")), "meta"),
        "answer-beyond": (lambda: ran(decoder_input_ids=torch.full((4, 1), 9999)), ("9999", "decoder_input_ids")),
        "answer-negative": (lambda: ran(decoder_input_ids=torch.full((4, 1), -100)), ("-100", "decoder_input_ids")),
        "answer-float": (lambda: ran(decoder_input_ids=torch.ones(4, 1)), "decoder_input_ids"),
        "answer-empty": (lambda: ran(decoder_input_ids=torch.ones(4, 0, dtype=torch.long)), "decoder_input_ids"),
        "answer-of-other-rows": (lambda: ran(decoder_input_ids=torch.ones(2, 1, dtype=torch.long)),
            "decoder_input_ids"),
        "answer-too-long": (lambda: ran(decoder_input_ids=torch.ones(4, 999, dtype=torch.long)),
            ("context", "40", "decoder_input_ids")),

    })  # fmt: skip
    for setting in ("llava-left", "llava-right"):
        yield from refused(f"forward-{setting}", _placeholders(setting))


def _placeholders(setting: str) -> Calls:
    """Image tokens that are none or too many."""
    held, llava = batch(setting), model("llava-words")
    ids, token = held.input_ids, held.layout.image_token_id
    longer = torch.cat([ids, torch.full((4, 1), token)], 1)

    def ran(**changes: Any) -> Callable[[], Any]:
        return lambda: llava(held.replace(**changes))

    return {
        "no-image-tokens": (ran(input_ids=ids.masked_fill(ids == token, 5)), "image"),
        "an-image-token-more": (ran(input_ids=longer, attention_mask=None), "image"),
    }


def _inputs() -> Found:
    inputs = of_blip()
    yield from refused("inputs", {
        "row-beyond": (lambda: inputs[9], ("9", "row")), "row-float": (lambda: inputs[0.5], ("0.5", "row", "float")),
        "row-word": (lambda: inputs["a"], ("'a'", "row", "str")), "row-none": (lambda: inputs[None], ("None", "row")),
        "rows-beyond": (lambda: inputs[[0, 9]], ("9", "row")), "rows-none-left": (lambda: inputs[4:], ("empty", "row")),
        "rows-by-a-short-mask": (lambda: inputs[torch.tensor([True, False])], ("row", "mask", "bool")),
        "repeat-0": (lambda: inputs.repeat(0), "0"), "repeat-negative": (lambda: inputs.repeat(-2), "-2"),
        "repeat-half": (lambda: inputs.repeat(1.5), "1.5"), "repeat-word": (lambda: inputs.repeat("x"), ("'x'", "str")),
        "to-nowhere": (lambda: inputs.to("cuda:99"), "cuda:99"),
        "to-a-typo": (lambda: inputs.to("gpu"), "gpu"),
        "to-an-int-dtype": (lambda: inputs.to(dtype=torch.int64), "int64"),
        "to-a-number": (lambda: inputs.to(3.5), "3.5"),
        "replace-by-none": (lambda: inputs.replace(pixel_values=None), "pixel_values"),
        "last-that-differs": (lambda: inputs.last, "last_each"),
        "image-span-of-none": (lambda: VLMInputs(inputs.pixel_values, inputs.input_ids).image_span, "layout"),
        "find-without-tokenizer": (lambda: VLMInputs(inputs.pixel_values, inputs.input_ids).find("red"), "layout"),
        "find-that-differs": (lambda: inputs.find("red"), "find_each"),
    })  # fmt: skip
    yield (
        "inputs-to-a-dtype",
        lambda _: inputs.to(torch.float16).pixel_values.double(),
        either(inputs.pixel_values.half().double(), "float16"),
    )


def _generate() -> Found:
    blip, inputs = model("blip"), of_blip()

    def asked(**options: Any) -> Callable[[], Any]:
        return lambda: blip.generate(inputs, **options)

    yield from refused("generate", {
        "no-tokens": (asked(max_new_tokens=0), "0"), "negative": (asked(max_new_tokens=-1), "-1"),
        "half": (asked(max_new_tokens=1.5), "1.5"), "word": (asked(max_new_tokens="5"), "max_new_tokens"),
        "none": (asked(max_new_tokens=None), "max_new_tokens"),
        "true": (asked(max_new_tokens=True), ("max_new_tokens", "True")),
        "NaN": (asked(max_new_tokens=float("nan")), ("max_new_tokens", "nan")),
        "beyond-the-context": (asked(max_new_tokens=10**9), ("context", "40")),
        "temperature-0": (asked(do_sample=True, temperature=0), "temperature"),
        "temperature-negative": (asked(do_sample=True, temperature=-1.0), "temperature"),
        "temperature-NaN": (asked(do_sample=True, temperature=float("nan")), "temperature"),
        "temperature-word": (asked(do_sample=True, temperature="hot"), "temperature"),
        "top_k-0": (asked(do_sample=True, top_k=0), "top_k"), "top_k-half": (asked(do_sample=True, top_k=1.5), "top_k"),
        "top_k-word": (asked(do_sample=True, top_k="all"), "top_k"),
        "top_p-0": (asked(do_sample=True, top_p=0.0), "top_p"), "top_p-2": (asked(do_sample=True, top_p=2), "top_p"),
        "top_p-NaN": (asked(do_sample=True, top_p=float("nan")), "top_p"),
        "top_p-word": (asked(do_sample=True, top_p="0.9"), "top_p"),
        "seed-word": (asked(do_sample=True, seed="x"), "seed"), "seed-half": (asked(do_sample=True, seed=0.5), "seed"),
        "seed-huge": (asked(do_sample=True, seed=2**70), "seed"), "return-type": (asked(return_type="ids"), "ids"),
        "return-type-none": (asked(return_type=None), "return_type"),
        "no-inputs": (lambda: blip.generate(None), ("NoneType", "inputs")),
        "without-tokenizer": (lambda: HookedVLM.from_hf(hugging_face("blip")[0]).generate(inputs), "tokenizer"),
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

    yield from refused("resume", {
        "stack": (asked(state, "text", {1: resid}), "text_encoder"),
        "stack-none": (asked(state, None, {1: resid}), "None"),
        "layer-beyond": (asked(state, "text_encoder", {9: resid}), "9"),
        "layer-negative": (asked(state, "text_encoder", {-1: resid}), "-1"),
        "layer-float": (asked(state, "text_encoder", {0.5: resid}), "0.5"),
        "layer-word": (asked(state, "text_encoder", {"1": resid}), ("'1'", "layer")),
        "nothing": (asked(state, "text_encoder", {}), "layer"),
        "none": (asked(state, "text_encoder", None), ("None", "join")),
        "a-tensor": (asked(state, "text_encoder", resid), ("Tensor", "injected")),
        "rows-cut": (asked(state, "text_encoder", {1: resid[:3]}), ("(3", "rows")),
        "positions-cut": (asked(state, "text_encoder", {1: resid[:, 1:]}), "shape"),
        "width-cut": (asked(state, "text_encoder", {1: resid[..., 1:]}), "shape"),
        "no-rows": (asked(state, "text_encoder", {1: resid[:0]}), "(0"),
        "double": (asked(state, "text_encoder", {1: resid.double()}), ("float64", "dtype")),
        "ints": (asked(state, "text_encoder", {1: resid.long()}), ("int64", "dtype")),
        "an-array": (asked(state, "text_encoder", {1: resid.detach().numpy()}), "ndarray"),
        "a-none": (asked(state, "text_encoder", {1: None}), "None"),
        "first-in-bidirectional": (asked(state, "text_encoder", {1: resid}, first_position=2), "first_position"),
        "first-negative": (asked(state, "text_decoder", {1: state.resid_pre("text_decoder", 1)}, first_position=-1),
            "first_position"), "first-beyond": (asked(state, "text_decoder", {1: state.resid_pre("text_decoder", 1)},
            first_position=99), "first_position"),
        "first-float": (asked(state, "text_encoder", {1: resid}, first_position=0.5), "first_position"),
        "logits-at": (asked(state, "text_encoder", {1: resid}, logits_at="first"), "first"),
        "state-none": (asked(None, "text_encoder", {1: resid}), ("state", "NoneType")),
        "state-of-logits": (asked(logits, "text_encoder", {1: resid}), ("state", "Tensor")),
        "state-of-another-model": (asked(llava, "text_encoder", {1: resid}), ("text_encoder", "state", "model")),
        "resid-of-another-stack": (lambda: state.resid_pre("language_model", 0), "language_model"),
        "resid-beyond": (lambda: state.resid_pre("text_encoder", 7), "7"),
        "resid-float": (lambda: state.resid_pre("text_encoder", 0.5), "0.5"),
    })  # fmt: skip


def _focus() -> Found:
    blip = model("blip")

    def view(stack: Any = "text_encoder", images: Any = None, texts: Any = None) -> Any:
        return blip.focus(stack, images=picture() if images is None else images, texts=texts)

    ids = of_blip().input_ids[:1, :5]
    yield "focus-as-it-is", lambda _: view()(ids), equals(blip(VLMInputs(blip.to_pixels(picture()), ids)))
    yield from refused("focus", {
        "stack": (lambda: view("text"), "text_encoder"), "stack-none": (lambda: view(None), ("None", "text_encoder")),
        "no-image": (lambda: blip.focus("text_encoder")(ids), "images"),
        "image-missing": (lambda: view(images="absent.png")(ids), "absent.png"),
        "ids-beyond": (lambda: view()(ids.clone().fill_(9999)), "9999"), "ids-negative": (lambda: view()(-ids), "-"),
        "ids-float": (lambda: view()(ids.float()), ("float", "ids", "token", "Tensor")),
        "ids-three-axes": (lambda: view()(ids[None]), ("(1, 1, 5)", "axes", "shape", "Tensor")),
        "ids-none": (lambda: view()(None), ("NoneType", "text")),
        "ids-empty": (lambda: view()(ids[:, :0]), ("empty", "shape")),
        "text-empty": (lambda: view()(""), "empty"),
        "hook-typo": (lambda: view().run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hok_z", hooks.zero_ablate())]),
            "blocks.0.attn.hook_z"),
        "hook-layer-beyond": (lambda: view().run_with_hooks(ids,
            fwd_hooks=[("blocks.9.attn.hook_z", hooks.zero_ablate())]), "blocks.9"),
        "cache-typo": (lambda: view().run_with_cache(ids, names_filter="blocks.0.attn.hok_z"), "blocks.0.attn.hook_z"),
        "filter-of-nothing": (lambda: view().run_with_cache(ids, names_filter=lambda n: False), "filter"),
        "two-images-three-rows": (lambda: view(images=[picture(), picture(1)])(ids.repeat(3, 1)), ("3", "2")),
        "decoder-without-text": (lambda: view("text_decoder")(ids), "texts"),
        "vision-without-text": (lambda: view("vision_encoder")(picture()), "texts"),
        "vision-of-unknown-ids": (lambda: view("vision_encoder", texts=QUESTION)(torch.full((1, 5), 77)),
            ("77", "image")), "directions-of-no-logits": (lambda: view().tokens_to_residual_directions("red"),
            "logits"), "unembedding-of-encoder": (lambda: view().W_U, ("W_U", "logits")),
        "return-type": (lambda: view()(ids, return_type="x"), "'x'"),
    })  # fmt: skip
