"""Texts: empty ones in every disguise, control tokens, surrogates, 50 MB, placeholders, and what is no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.sabotage.engine import Case, Oracle, either, equals, refuses
from tests.sabotage.world import KINDS, QUESTION, model, picture, said, truth

FAMILY = "text"
MEGABYTES = 50_000_000
INVISIBLE = {
    "nothing": "", "space": " ", "newlines": "\n\t\r\n", "no-break-space": "\u00a0", "zero-width-space": "\u200b",
    "zero-width-joiners": "\u200b\u200c\u200d", "byte-order-mark": "\ufeff", "word-joiner": "\u2060",
    "soft-hyphen": "\u00ad",
    "direction-marks": "\u200e\u202e\u2066", "combining-mark-alone": "\u0301", "variation-selector": "\ufe0f",
    "tag": "\U000e0041",
    "ideographic-space": "\u3000", "hangul-filler": "\u3164", "control-characters": "\x01\x02\x7f",
}  # fmt: skip
LEGAL = {
    "letters-in-full-width": "\uff49\uff53 \uff49\uff54 \uff52\uff45\uff44 ?",
    "arabic": "هل هو أحمر ؟", "chinese": "它 是 红色 吗 ?",
    "emoji": "is it 🟥 or 🟦 ?",
    "family-emoji": "is it \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 ?",
    "accents-composed": "is it caf\u00e9 red ?",
    "accents-apart": "is it cafe\u0301 red ?",
    "braces": "is {it} {0} {{red}} %s %(a)d ?", "template-code": "is it {{ 7 * 7 }} {% if x %} red ?",
    "markup": "<b>is</b> &amp; <it> red ?",
    "almost-a-placeholder": "is it < image > or <image ?", "spaces-between": "is   it \t red\n?",
    "quotes": "is \"it\" 'red' ` ?",
    "one-letter": "a", "punctuation": "?!", "backslashes": "\\is \\n it \\u0041 ?", "digits": "is it 12 345 ?",
    "url": "is https://it.red/a?b=c#d ?",
}  # fmt: skip
MIXED = {
    "zero-width-inside": "is\u200b it \u200dred ?", "mark-in-front": "\ufeffis it red ?",
    "right-to-left-override": "is it \u202edeR ?",
    "NUL-inside": "is it \0 red ?", "control-inside": "is it \x01\x7f red ?",
}  # fmt: skip
SURROGATES = {
    "high": "is it \ud800 red ?",
    "low-alone": "\udcff",
    "pair-apart": "is \ud83d \ude00 red ?",
    "last": "red \udfff",
}
WRONG: dict[str, tuple[Any, Any]] = {
    "none": (None, ("text", "NoneType")), "number": (7, "int"), "float": (float("nan"), "float"),
    "bytes": (b"is it red ?", "bytes"),
    "dict": ({"text": "red"}, "dict"), "empty-list": ([], "empty"), "none-in-a-list": (["is it red ?", None], "text 1"),
    "number-in-a-list": (["is it red ?", "or blue ?", 3], "text 2"), "lists-in-lists": ([["is it red ?"]], "text 0"),
    "bytes-in-a-list": ([b"is it red ?"], "text 0"), "second-empty": (["is it red ?", " "], "text 1"),
    "path": (Path("red"), ("Path", "text")),
    "truth": (True, "bool"), "tensor": (torch.tensor([1, 2]), ("text 0", "Tensor")),
    "array-of-numbers": (np.arange(3), ("text 0", "ndarray")),
    "function": (len, ("builtin", "function")), "object": (object(), "object"),
}  # fmt: skip


def cases(seed: int, kept: Path) -> Iterator[Case]:
    """Every case of the family."""
    for name, attack, oracle in (*_texts(), *_placeholders(), *_special(), *_long(), *_tokens(), *_found()):
        yield Case(FAMILY, name, attack, oracle)


Found = Iterator[tuple[str, Callable[[Path], Any], Oracle]]


def _ask(kind: str, text: Any, folder: Path) -> Any:
    return said(kind, picture(), text)


def _texts() -> Found:
    for i, (name, text) in enumerate(INVISIBLE.items()):
        for kind in ("blip", KINDS[1 + i % 2]):
            oracle = refuses(("text", "empty"))
            if (name, kind) == ("combining-mark-alone", "llava"):  # whose tokens spell any byte
                oracle = either(partial(truth, kind, picture(), text), "text")
            yield f"{name}-{kind}", partial(_ask, kind, text), oracle
    for name, text in LEGAL.items():
        for kind in ("blip", "llava"):
            yield f"{name}-{kind}", partial(_ask, kind, text), equals(partial(truth, kind, picture(), text))
    for name, text in MIXED.items():
        for kind in ("blip", "llava"):
            yield f"{name}-{kind}", partial(_ask, kind, text), either(partial(truth, kind, picture(), text), "text")
    for name, text in SURROGATES.items():
        for kind in KINDS:
            yield f"surrogate-{name}-{kind}", partial(_ask, kind, text), refuses(("surrogate", "text"))
    for i, (name, (given, word)) in enumerate(WRONG.items()):
        yield f"given-{name}", partial(_ask, KINDS[i % 3], given), refuses(word)
    plain = partial(truth, "blip", picture())
    yield "given-numpy-string", partial(_ask, "blip", np.str_(QUESTION)), equals(plain)
    yield "given-numpy-strings", partial(_ask, "blip", np.array([QUESTION])), either(plain, "text")
    yield "given-generator", partial(_ask, "blip", (each for each in [QUESTION])), either(plain, "generator")
    yield "given-tuple", partial(_ask, "blip", (QUESTION,)), equals(plain)

    def both(kind: str, _: Path) -> Any:
        return said(kind, [picture(), picture(1)], [QUESTION, "is the circle red or blue ?"])

    for kind in KINDS:
        rows = (truth(kind, picture()), truth(kind, picture(1), "is the circle red or blue ?"))
        yield f"two-lengths-{kind}", partial(both, kind), equals(torch.cat(rows))


def _placeholders() -> Found:
    asked = "USER: <image>\nis it red ? ASSISTANT:"
    for kind in ("llava", "llava-words"):
        yield f"own-template-{kind}", partial(_ask, kind, asked), equals(partial(truth, kind, picture(), asked))
        for n in (2, 3, 1000):
            text = asked.replace("<image>", "<image>" * n)
            yield f"{n}-placeholders-{kind}", partial(_ask, kind, text), refuses(str(n), "<image>")
        yield (
            f"no-words-{kind}",
            partial(_ask, kind, "<image>"),
            either(partial(truth, kind, picture(), "<image>"), "text"),
        )

        def inside(kind: str, _: Path) -> Any:
            return said(kind, [picture(), picture(1)], [QUESTION, "<image> a <image> b"])

        yield f"in-the-second-text-{kind}", partial(inside, kind), refuses("text 1", "<image>")


def _special() -> Found:
    """Control tokens in the middle of a question: refused by name, or read as the letters that they are."""
    for kind in KINDS:
        tokenizer = model(kind).processor.tokenizer
        tokens = [t for t in dict.fromkeys(tokenizer.all_special_tokens) if t not in ("<image>", tokenizer.unk_token)]
        for token in tokens:
            for name, text in {
                "inside": f"is it {token} red ?",
                "glued": f"is it{token}red ?",
                "first": f"{token} is it red ?",
            }.items():
                yield f"{token}-{name}-{kind}", partial(_counted, kind, text), either(controls(kind, QUESTION), token)
    yield (
        "sep-in-lower-case",
        partial(_ask, "blip", "is it [sep] red ?"),
        either(partial(truth, "blip", picture(), "is it [sep] red ?"), "[sep]"),
    )


def _counted(kind: str, text: str, _: Path) -> Any:
    return controls(kind, text)


def controls(kind: str, text: str) -> dict[str, int]:
    """How often each control token of a tokenizer stands in the inputs of a text."""
    of = model(kind)
    tokenizer = of.processor.tokenizer
    ids = of.to_inputs(picture(), text).input_ids[0].tolist()
    return {
        t: ids.count(tokenizer.convert_tokens_to_ids(t))
        for t in tokenizer.all_special_tokens
        if t != tokenizer.unk_token
    }


def _long() -> Found:
    for kind in KINDS:
        context = model(kind).stacks[model(kind).prompt_stack].cfg.n_ctx
        used = model(kind).to_inputs(picture(), "red").input_ids.shape[1] - 1
        fits = " ".join(["red"] * (context - used))
        if kind != "llava":  # whose words are several tokens
            yield f"as-long-as-fits-{kind}", partial(_ask, kind, fits), equals(partial(truth, kind, picture(), fits))
            yield f"one-too-long-{kind}", partial(_ask, kind, fits + " red"), refuses("text 0", str(context))
    for name, unit in {
        "words": "red ",
        "letters": "r",
        "invisible": "\u200b",
        "brackets": "[",
        "new-lines": "\n",
        "accents": "\u0301",
        "placeholders": "<image>",
    }.items():

        def endless(kind: str, unit: str, _: Path) -> Any:
            return said(kind, picture(), unit * (MEGABYTES // len(unit)))

        for kind in KINDS:
            yield f"50-MB-of-{name}-{kind}", partial(endless, kind, unit), refuses("text")

    def second(_: Path) -> Any:
        return said("blip", picture(), [QUESTION, "red " * (MEGABYTES // 4)])

    yield "50-MB-in-the-second-text", second, refuses("text 1")
    for name in ("to_tokens", "to_str_tokens", "to_single_token"):

        def through(name: str, _: Path) -> Any:
            return len(getattr(model("blip"), name)("red " * (MEGABYTES // 4)))

        yield f"50-MB-{name}", partial(through, name), refuses("text")


def _tokens() -> Found:
    blip = model("blip")
    for text in ("red blue", "circleish", "redd"):
        yield f"single-{text}", lambda _, text=text: blip.to_single_token(text), refuses(text)
    for name, given in (
        ("empty", ""),
        ("space", " "),
        ("zero-width", "\u200b"),
        ("none", None),
        ("list", []),
        ("number", 3),
        ("surrogate", "\ud800"),
    ):
        for method in ("to_single_token", "to_tokens", "to_str_tokens"):
            if (name, method) != ("number", "to_str_tokens"):  # which reads an id
                yield f"{method}-{name}", lambda _, m=method, g=given: getattr(blip, m)(g), refuses(("text", "token"))
    beyond = len(blip.processor.tokenizer)
    for name, given in (
        ("floats", torch.tensor([1.0, 2.0])), ("negative", [-1]), ("beyond", [beyond]), ("huge", [2**40]),
        ("more-than-64-bits", [2**70]),
        ("letters", "red"), ("none", None), ("ragged", [[1, 2], [3]]), ("truths", torch.tensor([True])),
        ("three-axes", torch.ones(1, 1, 2, dtype=torch.long)),
        ("empty", []), ("NaN", [float("nan")]), ("complex", torch.tensor([1j])),
    ):  # fmt: skip
        yield f"to_string-{name}", lambda _, g=given: blip.to_string(g), refuses("token")


def _found() -> Found:
    def find(kind: str, *asked: Any) -> Callable[[Path], Any]:
        return lambda _: model(kind).to_inputs(picture(), "is the red circle red ?").find(*asked)

    for kind in KINDS:
        for name, asked, word in (
            ("nowhere", ("yellow",), "yellow"), ("empty", ("",), "''"), ("space", (" ",), "' '"),
            ("twice", ("red",), "occurrence"),
            ("part", ("circl",), "circl"), ("third", ("red", 2), "2"), ("before-the-first", ("red", -3), "-3"),
            ("zero-width", ("\u200b",), ("find", "u200b", "''")),
        ):  # fmt: skip
            yield f"find-{name}-{kind}", find(kind, *asked), refuses(word)
    for name, asked in (
        ("none", (None,)), ("number", (3,)), ("bytes", (b"red",)), ("list", (["red"],)),
        ("occurrence-letter", ("red", "x")),
        ("occurrence-part", ("red", 1.5)), ("occurrence-NaN", ("red", float("nan"))), ("occurrence-list", ("red", [0])),
    ):  # fmt: skip
        yield f"find-{name}", find("blip", *asked), refuses(("find", "occurrence", "text", "position"))
    yield "find-brackets", find("blip", "(" * 20_000), refuses("(((")
    yield "find-50-MB", find("blip", "red " * 10_000_000), refuses("red")
    yield "find-pattern", find("blip", ".*"), refuses(".*")
