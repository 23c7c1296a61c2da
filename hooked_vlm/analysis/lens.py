"""What a stream would say if the model stopped there, and which part of the model says it.

`logit_lens` puts the model's own ending (its last norm or head, and its unembedding) on the stream after every layer,
at any position, image positions included (nostalgebraist 2020, "interpreting GPT: the logit lens").
`direct_logit_attribution` splits a logit into what the embeddings, every head, every MLP and the biases write into it
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"); the parts sum to the logit.

Where that holds. The last norm is linear once its scale is taken from the run, so both hold in a pre-norm stack whose
stream is unembedded: LLaVA's language model. BLIP's answer decoder is post-norm: each sum passes a norm before the next
layer, so no logit is a sum over layers or heads. What holds there is its head on each layer's normalized stream, exact
after the last layer, and how that reading changes from layer to layer, which sums to the logit by telescoping; it is
called what it is, in `Lens.form`. A vision tower and BLIP's question encoder have no unembedding, and asking for one
raises. Cost: one forward; logits of one layer at a time. Knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from hooked_vlm.components.hook_point import unhooked
from hooked_vlm.components.stack import Stack
from hooked_vlm.errors import InputsError, ResidualError
from hooked_vlm.models import spelling
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.turn import alone
from hooked_vlm.positions import Index, read

Token = str | int
Tokens = Token | Sequence[Token]
PRE_NORM: Final = "last norm and unembedding on the residual stream"
POST_NORM: Final = "decoder head on the normalized stream"
AT_ONCE = 2**25  # logits that are held at a time: 128 MiB in float32


# --- the logit lens ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lens:
    """What every layer says at some positions.

    Args:
        stack: whose stream was read.
        form: through what: `PRE_NORM` or `POST_NORM`; the second is no decomposition (see the module).
        layers: what the rows are called: "embedding", "0", "1", ... for the stream after each layer.
        positions: which positions were read.
        tokens: [layer batch pos k], the likeliest tokens' ids, best first.
        logits: [layer batch pos k], their logits.
        probabilities: [layer batch pos k], of the whole vocabulary.
        followed: ids of the tokens that were asked for.
        followed_logits: [layer batch pos followed].
        followed_probabilities: [layer batch pos followed].
        followed_ranks: [layer batch pos followed], how many tokens have a larger logit.
        words: [layer batch pos k], the likeliest tokens as they are spelled.
    """

    stack: str
    form: str
    layers: tuple[str, ...]
    positions: tuple[int, ...]
    tokens: Int[Tensor, "layer batch pos k"]
    logits: Float[Tensor, "layer batch pos k"]
    probabilities: Float[Tensor, "layer batch pos k"]
    followed: tuple[int, ...]
    followed_logits: Float[Tensor, "layer batch pos followed"]
    followed_probabilities: Float[Tensor, "layer batch pos followed"]
    followed_ranks: Int[Tensor, "layer batch pos followed"]
    words: NDArray[np.object_] = field(repr=False)

    @property
    def changes(self) -> Float[Tensor, "layer batch pos followed"]:
        """By how much each layer changes the logit that is read, the embedding's own reading first.

        They sum to the last row, by telescoping. In a pre-norm stack the norm's scale changes from row to row, so
        this is no direct attribution; in a post-norm decoder it is the only split by layer that holds.
        """
        return torch.cat([self.followed_logits[:1], self.followed_logits.diff(dim=0)])


def logit_lens(
    model: HookedVLM,
    inputs: VLMInputs | Mapping[str, Any],
    *,
    stack: str | None = None,
    positions: Index = None,
    follow: Tokens = (),
    k: int = 5,
    cache: Any = None,
) -> Lens:
    """Read the words out of the stream after every layer.

    Args:
        model: a `HookedVLM`.
        inputs: what it is run on. Hooks that are on the model stay active in the run and rest while the lens projects.
        stack: whose stream; None for the one that makes the logits.
        positions: which positions of that stack: `inputs.image_span` reads the image's patches in LLaVA. None for all.
        follow: tokens whose logit, probability and rank are kept in every row, ids or words.
        k: how many of the likeliest tokens are kept.
        cache: of a run that is over, in place of running the model: it must hold `streams` at every position.

    Returns:
        A row for the embedding and one for each layer; the last one is the model's own output.

    Raises:
        ResidualError: if the stack's stream is not read by an unembedding.
        StackNameError: if there is no such stack.
        PositionError: if there is no such position.
        InputsError: if `k` is below 1, or the cache lacks a stream.
    """
    found = _unembedded(model, stack)
    if k < 1:
        raise InputsError(f"the lens was asked for the {k} likeliest tokens; expected at least 1")
    followed = _ids(model, follow)
    names = streams(found)
    if cache is None:
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs, names_filter=names)
    missing = [name for name in names if name not in cache]
    if missing:
        raise InputsError(f"the cache lacks {missing[0]}: make it with names_filter=lens.streams(model.stacks[...])")
    places = _places(positions, cache[names[0]].shape[1], found.name)
    rows = [_read(model, cache[name][:, places], followed, k) for name in names]
    tokens, logits, probabilities, *theirs = (torch.stack(part) for part in zip(*rows, strict=True))
    return Lens(
        stack=found.name,
        form=POST_NORM if found.post_norm else PRE_NORM,
        layers=("embedding", *(str(layer) for layer in range(len(found.blocks)))),
        positions=tuple(places),
        tokens=tokens,
        logits=logits,
        probabilities=probabilities,
        followed=tuple(followed),
        followed_logits=theirs[0],
        followed_probabilities=theirs[1],
        followed_ranks=theirs[2],
        words=_spelled(model, tokens),
    )


def streams(stack: Stack) -> list[str]:
    """The hook points that the lens reads: the stream before the first block and after each."""
    after = "hook_normalized_resid_post" if stack.post_norm else "hook_resid_post"
    blocks = [f"{stack.prefix}blocks.{layer}" for layer in range(len(stack.blocks))]
    return [f"{blocks[0]}.hook_resid_pre", *(f"{block}.{after}" for block in blocks)]


@alone
def _read(model: HookedVLM, stream: Tensor, followed: list[int], k: int) -> tuple[Tensor, ...]:
    """Of one layer's stream [batch pos d_model]: the likeliest tokens, and the followed ones."""
    parts: list[list[Tensor]] = []
    at_once = max(1, AT_ONCE // (model.W_U.shape[1] * len(stream)))
    for piece in torch.split(stream.to(model.device), at_once, 1):
        with torch.no_grad(), unhooked(model.hook_dict.values()):
            logits = model._logits(piece).float()
        best = logits.topk(min(k, logits.shape[-1]))
        log_total = logits.logsumexp(-1, keepdim=True)
        theirs = logits[..., followed]
        ranks = torch.stack([(logits > logits[..., [i]]).sum(-1) for i in followed], -1) if followed else theirs.long()
        parts.append(
            [best.indices, best.values, (best.values - log_total).exp(), theirs, (theirs - log_total).exp(), ranks]
        )
    return tuple(torch.cat(part, 1).cpu() for part in zip(*parts, strict=True))


# --- direct logit attribution -----------------------------------------------------------------------


@dataclass(frozen=True)
class Attribution:
    """What every part of a pre-norm stack writes into a logit, or into a difference of two.

    Args:
        embeddings: [batch], from the stream before the first block: the token's embedding or the image's feature.
        heads: [layer head batch], from each head's own output.
        attn_biases: [layer batch], from the attentions' output biases.
        mlps: [layer batch], from the MLPs with their biases.
        constant: [batch], from the last norm's bias and the unembedding's.
        logit: [batch], the logit of the run.
    """

    embeddings: Float[Tensor, " batch"]
    heads: Float[Tensor, "layer head batch"]
    attn_biases: Float[Tensor, "layer batch"]
    mlps: Float[Tensor, "layer batch"]
    constant: Float[Tensor, " batch"]
    logit: Float[Tensor, " batch"]

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The sum of all parts: the logit, to rounding."""
        parts = self.heads.sum((0, 1)) + self.attn_biases.sum(0) + self.mlps.sum(0)
        return self.embeddings + parts + self.constant

    @property
    def unexplained(self) -> Float[Tensor, " batch"]:
        """The logit less the sum: rounding, unless a hook edited the run between a part and the stream."""
        return self.logit - self.total

    @property
    def by_layer(self) -> Float[Tensor, "layer batch"]:
        """Each layer's attention, bias and MLP together."""
        return self.heads.sum(1) + self.attn_biases + self.mlps

    @property
    def columns(self) -> list[str]:
        """What `grid`'s columns are: the heads' numbers, "bias" and "MLP"."""
        return [*(str(head) for head in range(self.heads.shape[1])), "bias", "MLP"]

    @property
    def grid(self) -> Float[Tensor, "layer column"]:
        """Heads, attention bias and MLP of each layer, averaged over the batch: what `viz.head_map` draws."""
        return torch.cat([self.heads, self.attn_biases[:, None], self.mlps[:, None]], 1).mean(-1)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each part and example: part, layer, head (-1 where there is none), example, value."""
        n_layers, n_heads, n = self.heads.shape
        parts = [("embeddings", -1, -1, self.embeddings), ("constant", -1, -1, self.constant)]
        for layer in range(n_layers):
            parts += [("head", layer, head, self.heads[layer, head]) for head in range(n_heads)]
            parts += [("attn_bias", layer, -1, self.attn_biases[layer]), ("mlp", layer, -1, self.mlps[layer])]
        rows = [(part, layer, head, i, float(v[i])) for part, layer, head, v in parts for i in range(n)]
        return pd.DataFrame(rows, columns=["part", "layer", "head", "example", "value"])


def direct_logit_attribution(
    model: HookedVLM,
    inputs: VLMInputs | Mapping[str, Any],
    token: Tokens,
    against: Tokens | None = None,
    *,
    stack: str | None = None,
    position: int | None = None,
) -> Attribution:
    """Split a logit, or a difference of two, into what each part of the stack writes into it.

    The stream x is a sum of parts, and with the last norm's scale s frozen at the run's a token t's logit is
    ``sum over parts of (part / s) . (w * W_U[t])``, plus what the norm's and the unembedding's biases give; for a
    LayerNorm each part is centred first. A part's share is what it writes directly: what it does through later layers
    is in their shares.

    Args:
        model: a `HookedVLM`.
        inputs: what it is run on. Hooks that are on the model stay active.
        token: whose logit, an id or a word; one, or one for each example.
        against: likewise; the logit that is taken off, or None.
        stack: None for the one that makes the logits.
        position: where the logit is read; None for each row's last real one.

    Raises:
        ResidualError: if the stack is post-norm or its stream is not unembedded: the parts would not sum.
        StackNameError: if there is no such stack.
        PositionError: if there is no such position.
        DenseWeightError: if an attention's output weights are quantised.
    """
    found = _pre_norm(model, stack)
    inputs = model.as_inputs(inputs)
    n = len(inputs)
    right = _for_each(_ids(model, token), n)
    wrong = None if against is None else _for_each(_ids(model, against), n)
    if position is None:
        at = inputs.last_each.tolist()
    else:
        at = _places(position, inputs.input_ids.shape[1], "the prompt") * n
    blocks = [f"{found.prefix}blocks.{layer}" for layer in range(len(found.blocks))]
    first, scale = f"{blocks[0]}.hook_resid_pre", f"{found.prefix}ln_final.hook_scale"
    names = [f"{block}.{part}" for block in blocks for part in ("attn.hook_z", "hook_mlp_out")]
    with torch.no_grad():
        here = _at(model, inputs, [first, *names, scale, "hook_logits"], at)
        direction, constant = _direction(model, found, right, wrong)
        direction = direction / here[scale]

        def written(part: Tensor) -> Tensor:
            return (part.to(direction.device) * direction).sum(-1).cpu()

        heads, biases = [], []
        for block, name in zip(found.blocks, blocks, strict=True):
            attn: Any = block.attn
            reads = torch.einsum("hkd,bd->bhk", attn.W_O.float(), direction.to(attn.W_O.device))
            heads.append((here[f"{name}.attn.hook_z"] * reads).sum(-1).T.cpu())
            biases.append(written(attn.b_O.float().expand(n, -1)))
        mlps = [written(here[f"{block}.hook_mlp_out"]) for block in blocks]
        logits, rows = here["hook_logits"], torch.arange(n)
        logit = logits[rows, right] - (0 if wrong is None else logits[rows, wrong])
        return Attribution(
            written(here[first]),
            torch.stack(heads),
            torch.stack(biases),
            torch.stack(mlps),
            constant.cpu(),
            logit.cpu(),
        )


def _pre_norm(model: HookedVLM, name: str | None) -> Stack:
    """The stack whose logits are sums of parts. Raises ResidualError, StackNameError if it is not the one asked for."""
    found = _unembedded(model, name)
    if found.post_norm:
        raise ResidualError(
            f"{found.name} is post-norm: each sub-layer's sum passes a LayerNorm before the next, so a logit is no sum "
            f"over heads and layers. What holds: logit_lens(model, inputs, follow=...).changes, by layer; and "
            "patching.sweep, which measures what a head does instead of splitting what it wrote"
        )
    return found


def _at(model: HookedVLM, inputs: VLMInputs, names: list[str], positions: list[int]) -> dict[str, Tensor]:
    """Activations of a run, each row's at its own position: [batch ...]."""
    first = min(positions)
    _, cache = model.run_with_cache(inputs, names_filter=names, pos_slice=slice(first, max(positions) + 1))
    rows, places = torch.arange(len(inputs)), torch.tensor(positions) - first
    return {name: cache[name][rows, places].float() for name in names}


def _direction(model: HookedVLM, stack: Stack, right: list[int], wrong: list[int] | None) -> tuple[Tensor, Tensor]:
    """What a part, over the norm's scale, is multiplied with to give a logit [batch d_model], and what is added."""
    if wrong is not None:
        (direction, constant), (theirs, added) = (_direction(model, stack, ids, None) for ids in (right, wrong))
        return direction - theirs, constant - added
    view: Any = model.focus(stack.name)
    chosen = torch.tensor(right, device=model.W_U.device)
    direction = view.tokens_to_residual_directions(chosen).float()
    constant = model.W_U.T[chosen].float() @ view.ln_final.b.float() + model.unembed.b_U[chosen].float()
    if not view.ln_final.is_rms:  # centring the part is centring the direction
        direction = direction - direction.mean(-1, keepdim=True)
    return direction, constant


# --- what both ask ----------------------------------------------------------------------------------


def _unembedded(model: HookedVLM, name: str | None) -> Stack:
    """The stack whose stream the model's ending reads.

    Raises:
        StackNameError: if there is no such stack.
        ResidualError: if another one is asked for, or the model has none.
    """
    name = model.answer_stack if name is None else name
    stack: Stack = model.stacks[name]
    if "unembed" not in model._modules:
        raise ResidualError(
            f"{type(model).__name__} makes no words, so no stream of it can be read as words: look at its patterns, or "
            "patch it with patching.sweep"
        )
    if name == model.answer_stack:
        return stack
    way_out = (
        "logit_lens(model, inputs, positions=inputs.image_span) reads the patches once they are in the language model"
        if name == "vision_encoder" and model.main_stack == model.answer_stack
        else f"read {model.answer_stack}, or measure with patching.sweep what {name} does to the answer"
    )
    raise ResidualError(f"{name} has no unembedding: no weight of the model turns its stream into words. {way_out}")


def _ids(model: HookedVLM, tokens: Tokens) -> list[int]:
    """Tokens as ids.

    Raises:
        InputsError: if an id is outside the vocabulary.
    """
    each = [tokens] if isinstance(tokens, (str, int)) else list(tokens)
    ids = [model.to_single_token(token) if isinstance(token, str) else int(token) for token in each]
    d_vocab = model.W_U.shape[1]
    beyond = [i for i in ids if not 0 <= i < d_vocab]
    if beyond:
        raise InputsError(f"token ids {beyond} are outside the vocabulary, 0 to {d_vocab - 1}")
    return ids


def _for_each(ids: list[int], n: int) -> list[int]:
    if len(ids) not in (1, n):
        raise InputsError(f"{len(ids)} tokens for {n} examples: give one, or one for each")
    return ids * (n // len(ids))


def _places(wanted: Index, n: int, of: str) -> list[int]:
    """Positions, the same in every row, as indices from the start. Raises PositionError if there are none such."""
    found = read(wanted, f"positions of {of}", by_row=False)
    return list(range(n)) if found is None else list(found.spelled(n, f"positions of {of}")[0])


def _spelled(model: HookedVLM, ids: Tensor) -> NDArray[np.object_]:
    """Ids as strings, as the tokenizer spells them; as numbers where there is no tokenizer."""
    tokenizer = getattr(model.processor, "tokenizer", None)
    flat = ids.reshape(-1).tolist()
    found = np.empty(len(flat), dtype=object)
    found[:] = [str(i) for i in flat] if tokenizer is None else spelling.strings(tokenizer, flat)
    return found.reshape(ids.shape)
