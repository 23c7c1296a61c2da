"""What a prompt may be: a text that says something, holds no control tokens, and is not hopelessly beyond the context.

The length is bounded from below before anything is tokenized, since tokenizing many megabytes takes minutes: see
`fewest_tokens`. Costs a walk along the text; knows no family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from hooked_vlm.errors import TextError
from hooked_vlm.given import is_blank, unwritable

PLACEHOLDER = "<image>"  # as LLaVA's prompts write it, whatever a tokenizer makes of it
_SHORT = 100_000  # characters that are tokenized in no time
_LONG = 1_000_000  # characters that are tokenized in seconds
_WORD = 100  # characters: longer words are unknown to BERT's tokenizer, whatever they are
_EDGE = 16  # tokens that may be otherwise where a window is cut off


def listed(texts: Any) -> list[str]:
    """One text or several, as a list.

    Raises:
        TextError: if there is none, or one is no string, shows nothing, or holds what no tokenizer reads.
    """
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, Mapping)):
        raise TextError(f"the text is a {type(texts).__name__}; expected a string or a list of strings")
    found: list[str] = [texts] if isinstance(texts, str) else list(texts)
    if not found:
        raise TextError("the list of texts is empty; expected at least one")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise TextError(f"text {i} is a {type(text).__name__}; expected a string")
        if is_blank(text):
            raise TextError(f"text {i} is empty ({text[:40]!a}); expected at least one word that can be seen")
        if problem := unwritable(text):
            raise TextError(f"text {i} has {problem}, which no tokenizer reads: take it out")
    return found


def refuse_huge(texts: Sequence[str]) -> None:
    """Refuse texts that nobody reads in one piece: a tokenizer takes minutes for them.

    Raises:
        TextError: naming the text, its length, and the limit.
    """
    for i, text in enumerate(texts):
        if len(text) > _LONG:
            raise TextError(
                f"text {i} ({text[:40]!a}...) has {len(text):,} characters; expected at most {_LONG:,}. Cut it in parts"
            )


def refuse_unread(texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
    """Refuse texts of which a tokenizer makes nothing: it may drop what can be seen, such as an accent alone.

    Args:
        texts: each as the user wrote it.
        ids: the tokens of each.

    Raises:
        TextError: naming the text.
    """
    for i, (text, row) in enumerate(zip(texts, ids, strict=True)):
        if not len(row):
            raise TextError(f"text {i} ({text[:40]!a}) is empty to the tokenizer, which drops all of it; write a word")


def refuse_special_tokens(
    tokenizer: Any, texts: Sequence[str], ids: Sequence[Sequence[int]], placeholder: str | None
) -> None:
    """Refuse texts in which the tokenizer reads control tokens, such as its end or its padding.

    Args:
        tokenizer: the model's.
        texts: each as the user wrote it, before any template.
        ids: the tokens of each, none added.
        placeholder: the one control token that a prompt may hold, in families that read one.

    Raises:
        TextError: naming the text and the token.
    """
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = {*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}
    if placeholder is not None:
        special.discard(tokenizer.convert_tokens_to_ids(placeholder))
    spelled = {tokenizer.unk_token, PLACEHOLDER} - {placeholder, None}  # the first is also what unknown words become
    for i, (text, row) in enumerate(zip(texts, ids, strict=True)):
        found = [tokenizer.convert_ids_to_tokens(id) for id in row if id in special]
        if found := [*found, *(token for token in sorted(spelled) if token in text)]:
            raise TextError(
                f"text {i} ({text[:40]!a}) holds {found[0]!r}, which is a control token and no word: take it out, or "
                "pass allow_special_tokens=True to have it read as one"
            )


def refuse_endless(tokenizer: Any, texts: Sequence[str], limit: int) -> None:
    """Refuse texts that have more tokens than the context by far, without tokenizing them.

    No text that fits is refused, save one of more than a million characters that would fit because most of it is
    white space, or words of more than a hundred letters each.

    Raises:
        TextError: naming the text, its length, and the limit.
    """
    if all(len(text) <= _SHORT for text in texts):
        return
    longest = max(_WORD, *map(len, tokenizer.get_vocab()))
    for i, text in enumerate(texts):
        most = max(_LONG, limit * longest)
        if len(text) > most:
            least = -(-len(text) // longest)
        else:
            least = fewest_tokens(tokenizer, text, limit) if len(text) > _SHORT else 0
        if len(text) > most or least > limit:
            raise TextError(
                f"text {i} ({text[:40]!a}...) has {len(text):,} characters, some {least:,} tokens or more, and the "
                f"context is {limit}: shorten it"
            )


def fewest_tokens(tokenizer: Any, text: str, enough: int) -> int:
    """A number of tokens that a text has at least; 0 where nothing is known of a tokenizer.

    Two bounds hold, of which the larger counts. The tokenizer's own pre-tokenizer splits the text into pieces, and
    each is a token at least, unless the vocabulary drops what it does not know. And no token is longer than the
    vocabulary's longest, so where nothing is replaced by "unknown", characters divided by that length. A token that
    was added to the vocabulary may span several pieces, so pieces are divided by its length where one occurs.

    Args:
        tokenizer: a Hugging Face tokenizer; only those of the `tokenizers` library are known.
        text: the text.
        enough: beyond this the search ends: only as much of the text is looked at as it takes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return 0
    model = backend.model
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    longest = max(map(len, (*tokenizer.get_vocab(), *added)))
    spells_all = isinstance(model, models.BPE) and (model.byte_fallback or _bytes_alone(backend))
    counts_pieces = spells_all or getattr(model, "unk_token", None) is not None
    least = 0
    for window in (_SHORT, 8 * _SHORT, len(text)):
        part = text[:window]
        seen = part if backend.normalizer is None else backend.normalizer.normalize_str(part)
        spanned = max((len(token) for token in added if token and token in part), default=1)
        if spells_all:
            least = max(least, len("".join(seen.split())) // longest)
        if counts_pieces and backend.pre_tokenizer is not None:
            least = max(least, len(backend.pre_tokenizer.pre_tokenize_str(seen)) // spanned)
        if window < len(text):
            least = max(0, least - _EDGE)
        if least > enough or window >= len(text):
            break
    return least


def _bytes_alone(backend: Tokenizer) -> bool:
    """Whether a tokenizer spells every text in bytes, so that nothing is unknown to it."""
    found = backend.pre_tokenizer
    parts = list(iter(found)) if isinstance(found, pre_tokenizers.Sequence) else [found]
    return any(isinstance(part, pre_tokenizers.ByteLevel) for part in parts) and all(
        backend.token_to_id(byte) is not None for byte in pre_tokenizers.ByteLevel.alphabet()
    )
