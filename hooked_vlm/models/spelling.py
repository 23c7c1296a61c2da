"""Token ids as strings, those too that a model has and its tokenizer does not.

A model's vocabulary is often padded beyond its tokenizer's (LLaVA-1.5 has 32,064 ids, of which its tokenizer names
32,002), and a tokenizer's own ids may have gaps. Such an id has a row in the unembedding, so it can be generated, or
stand among the likeliest; a tokenizer drops it, gives None or raises. Here it has a name. Costs what the tokenizer
costs; knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

_UNNAMED = "<unnamed {}>"


def n_ids(tokenizer: Any, d_vocab: int) -> int:
    """How many ids there are: the model's, or the tokenizer's where it knows more.

    Args:
        tokenizer: the model's Hugging Face tokenizer.
        d_vocab: how many ids the model has.
    """
    return max(d_vocab, len(tokenizer), 1 + max(tokenizer.added_tokens_decoder, default=-1))


def strings(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Each id as the string of its token; one that the tokenizer does not name as "<unnamed 32003>"."""
    return [_UNNAMED.format(id) if (name := _named(tokenizer, id)) is None else name for id in ids]


def text(tokenizer: Any, ids: Iterable[int], **options: Any) -> str:
    """What ids spell together; those that the tokenizer does not name stand in it as `strings` has them.

    Args:
        tokenizer: a Hugging Face tokenizer.
        ids: of one row.
        options: as `tokenizer.decode` takes them.
    """
    parts = []
    for named, run in groupby(ids, lambda id: _named(tokenizer, id) is not None):
        if named:
            parts.append(str(tokenizer.decode(list(run), **options)))
        else:
            parts += strings(tokenizer, run)
    return "".join(parts)


def _named(tokenizer: Any, id: int) -> str | None:
    try:
        (found,) = tokenizer.convert_ids_to_tokens([id])
    except (IndexError, KeyError, OverflowError, ValueError):  # as tokenizers without the `tokenizers` library raise
        return None
    return found if isinstance(found, str) else None
