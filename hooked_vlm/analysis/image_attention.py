"""What heads do to the image: where a query token's attention goes, scored against the object's mask.

One clean run shows, for every head, the attention of the query (BLIP: the answer's word in the question; LLaVA: the
prompt's last token) over the image's patches. Pixels are what is counted: a patch that the mask covers by a third
has a third of its pixels in the mask, and each of its pixels has the patch's attention. With a_k the attention on
patch k, m_k the share of it that the mask covers, and sums over patches (the class token is not a patch):

| score | formula |
|---|---|
| `image_mass` | attention on patches and class token: 1 in cross-attention, less where text is attended to as well |
| `inside` | sum a_k m_k / sum a_k |
| `area` | mean m_k: `inside` of a head that attends evenly |
| `lift` | inside / area: above 1, more than evenly on the object; below 1, less |
| `auc` | P(attention of a pixel in the mask > that of a pixel outside) + half of P(equal); 0.5 is even |
| `pointing` | 1 if the patch with most attention is an object's patch, else 0 (pointing game, Zhang et al. 2016) |
| `rival_lift` | `lift` of the rival's mask: of the thing for which the wrong answer would be right |
| `grounding` | lift - rival_lift: above 0, more on the object asked about than on its rival |
| `objects_lift` | `lift` of both masks together, of the one that is there where the other is not |
| `relative_inside` | inside less its mean over all heads of the kind (Golovanevsky et al. 2025 show attention so) |
| `outlier` | attention on high-norm background patches and the class token / attention on patches and class token |
| `cls` | attention on the class token / attention on patches and class token |

An object's patch is covered by half at least (or, of small objects, is the one most covered). High-norm patches
(Darcet et al. 2024, "Vision Transformers Need Registers") are those where the norm of the tower's residual stream
after its last block that is used lies above mean + 3 SD over the image's patches; background is what the mask covers
by less than half. A picture may have none, and small towers mostly have none.

The mask goes through the model's own image processor (resize, crop, padding), so that it lies where the model sees
the object. Cost: one forward a batch; patterns are read one layer at a time and only the query's row is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hooked_vlm.analysis.heads import module_of, of_heads
from hooked_vlm.errors import DataError, InputsError, PositionError
from hooked_vlm.images import to_rgb_list
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.inputs import VLMInputs

RIVAL_SCORES = ("rival_lift", "grounding", "objects_lift")
"""Those that an earlier version did not measure."""
SCORES = (
    "image_mass", "inside", "area", "lift", "auc", "pointing", *RIVAL_SCORES, "relative_inside", "outlier", "cls",
)  # fmt: skip
COLUMNS = ("kind", "layer", "head", "query_role", *SCORES)
NORM_SDS = 3.0  # standard deviations above the mean at which a patch's norm is an outlier


@dataclass(frozen=True)
class ImageAttention:
    """The query's attention over the image, of every head of one kind.

    Args:
        patches: attention on each patch, row by row of the grid.
        cls: attention on the class token; None where text cannot attend to one.
        grid: patches down and across.
    """

    patches: Float[Tensor, "batch layer head patch"]
    cls: Float[Tensor, "batch layer head"] | None
    grid: tuple[int, int]

    def on_image(self, layer: int, head: int) -> Float[Tensor, "batch image_key"]:
        """One head's attention on the image's keys, the class token first where there is one."""
        patches = self.patches[:, layer, head]
        return patches if self.cls is None else torch.cat([self.cls[:, layer, head, None], patches], 1)

    def less_the_mean(self) -> Float[Tensor, "batch layer head row column"]:
        """Each head's attention less the mean over all heads, as maps: what the paper shows."""
        relative = self.patches - self.patches.mean((1, 2), keepdim=True)
        return rearrange(relative, "b l h (r c) -> b l h r c", r=self.grid[0])


Query = int | Sequence[int]


def image_attention(
    model: HookedVLM,
    inputs: VLMInputs,
    kinds: Iterable[str],
    queries: Query | Sequence[Query],
    *,
    image: int | None = None,
) -> tuple[dict[str, ImageAttention], Float[Tensor, "batch patch"]]:
    """Attention of query tokens over the image in one run, and the norms of the image's patches.

    Args:
        model: a `HookedVLM`.
        inputs: a batch, or one example.
        kinds: "cross_attn-heads" or "attn-heads", of the prompt's stack. A kind whose keys hold no image (BLIP's
            self-attention) is left out of what is returned; so is any kind that is not of heads.
        queries: position of the query, or several (their attention is averaged), or such for each example.
        image: which image of each prompt, from 0; may be left out where each has one.

    Raises:
        PositionError: if a query is no position of the prompt.
        InputsError: if a prompt has no such image, or several and none was named, or its positions are no grid.
    """
    stack = model.stacks[model.prompt_stack]
    numbers = _chosen(inputs, image)
    attended = {kind: _image_keys(model, inputs, kind, numbers) for kind in kinds}
    weights = query_weights(inputs, queries)
    tower = model.vision_encoder
    last = f"{tower.prefix}blocks.{tower.cfg.n_layers - 1}.hook_resid_post"
    rows: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}

    def keep_query(activation: Tensor, hook: Any) -> None:
        rows[hook.name] = torch.einsum("bq,bhqk->bhk", weights.to(activation), activation).float()

    def keep_norms(activation: Tensor, hook: Any) -> None:
        norms[hook.name] = activation.float().norm(dim=-1)

    hooks: list[tuple[str, Any]] = [(last, keep_norms)]
    names = {
        kind: [f"{stack.prefix}blocks.{i}.{module_of(kind)}.hook_pattern" for i in range(stack.cfg.n_layers)]
        for kind, keys in attended.items()
        if keys is not None
    }
    hooks += [(name, keep_query) for each in names.values() for name in each]
    with torch.no_grad():
        model.run_with_hooks(inputs, fwd_hooks=hooks, logits_at="last")
    found = {}
    for kind, of_layers in names.items():
        keys = attended[kind]
        assert keys is not None
        over = torch.stack([rows[name] for name in of_layers], 1)  # [batch layer head key]
        places = keys.places.to(over.device)[:, None, None, :].expand(*over.shape[:3], -1)
        on = over.gather(-1, places)
        found[kind] = ImageAttention(on[..., keys.n_before :], on[..., 0] if keys.n_before else None, keys.grid)
    return found, norms[last][numbers, int(tower.has_class_token) :]


def _chosen(inputs: VLMInputs, image: int | None) -> list[int]:
    """The numbers in the batch of the image meant of each prompt."""
    each = inputs.images_each
    if not inputs.n_images or (image is None and set(each) != {1}):
        named = f"; or name which is meant, image=0 to image={min(each) - 1}" if min(each) else ""
        raise InputsError(f"the prompts have {each} images: expected one in each{named}")
    if image is not None and not 0 <= image < min(each):
        raise InputsError(f"image {image} of each prompt was asked for, and the prompts have {each} images")
    return [end - n + (image or 0) for end, n in zip(accumulate(each), each, strict=True)]


@dataclass(frozen=True)
class ImageKeys:
    """Which keys are the image's: [batch key], the class token first where there is one."""

    places: Tensor
    n_before: int
    grid: tuple[int, int]


def image_keys(model: HookedVLM, inputs: VLMInputs, kind: str, image: int | None = None) -> ImageKeys | None:
    """Where the image is among the keys of a kind of heads, or None where it is not.

    Args:
        model: as `image_attention`.
        inputs: as `image_attention`.
        kind: of heads.
        image: as `image_attention`.
    """
    return _image_keys(model, inputs, kind, _chosen(inputs, image))


def _image_keys(model: HookedVLM, inputs: VLMInputs, kind: str, numbers: list[int]) -> ImageKeys | None:
    if not of_heads(kind):
        return None
    cross = kind == "cross_attn-heads"
    if cross != (inputs.layout.image_token_id is None):  # cross-attention reads the image; self-attention the prompt
        return None
    try:
        grids = [inputs.grid(number) for number in numbers]
    except PositionError as error:
        raise InputsError(f"attention is mapped over a grid of patches: {error}") from error
    if len({grid.shape for grid in grids}) > 1:
        raise InputsError(
            f"the images have grids of {[tuple(grid.shape) for grid in grids]} patches: expected one; take the "
            "examples apart, inputs[i]"
        )
    spans = inputs.image_spans
    first = int(grids[0][0, 0])
    n_before = first - spans[numbers[0]].start + (cross and model.vision_encoder.has_class_token)
    patches = torch.stack([grid.flatten() for grid in grids])
    before = patches[:, :1] + torch.arange(-n_before, 0, device=patches.device)
    return ImageKeys(torch.cat([before, patches], 1), n_before, (grids[0].shape[0], grids[0].shape[1]))


def query_weights(inputs: VLMInputs, queries: Query | Sequence[Query]) -> Float[Tensor, "batch pos"]:
    """How much each position counts as query; rows sum to 1."""
    batch, n = inputs.input_ids.shape
    each: list[Any] = [queries] * batch if isinstance(queries, int) else list(queries)
    if not isinstance(queries, int) and (batch == 1 or len(each) != batch):
        each = [each] * batch if all(isinstance(q, int) for q in each) else each
    if len(each) != batch:
        raise PositionError(f"queries for {len(each)} examples were given; the batch has {batch}")
    weights = torch.zeros(batch, n)
    for i, query in enumerate(each):
        places = [query] if isinstance(query, int) else list(query)
        if not places or not all(-n <= place < n for place in places):
            raise PositionError(f"queries of row {i} are {places}; the prompt has positions 0 to {n - 1}")
        weights[i, places] = 1 / len(places)
    return weights


# --- masks ------------------------------------------------------------------------------------------


def patch_coverage(model: HookedVLM, masks: Any) -> Float[Tensor, "batch patch"]:
    """Which share of each patch a mask covers, where the model sees it.

    The mask goes through the model's image processor as the picture does, beside an all-white and an all-black one of
    its size; ``(mask - black) / (white - black)`` undoes the normalisation, and is averaged over each patch.

    Args:
        model: a `HookedVLM` with a processor.
        masks: white where the object is, each of its picture's size: one or a list.
    """
    pictures = to_rgb_list(masks)
    sizes = list(dict.fromkeys(picture.size for picture in pictures))
    plain = [Image.new("RGB", size, colour) for size in sizes for colour in ("black", "white")]
    pixels = model.to_pixels([*pictures, *plain]).float().cpu()
    seen, ends = pixels[: len(pictures)], pixels[len(pictures) :]
    which = [sizes.index(picture.size) for picture in pictures]
    black, white = ends[[2 * i for i in which]], ends[[2 * i + 1 for i in which]]
    span = white - black
    share = torch.where(span.abs() > 1e-6, (seen - black) / torch.where(span == 0, 1.0, span), 0.0).clamp(0, 1)
    side = model.vision_encoder.patch_size
    height, width = (n // side * side for n in share.shape[-2:])
    return reduce(share[..., :height, :width], "b c (r p) (k q) -> b (r k)", "mean", p=side, q=side)


# --- scores -----------------------------------------------------------------------------------------


def score_batch(
    model: HookedVLM,
    inputs: VLMInputs,
    *,
    kinds: Iterable[str],
    queries: Query | Sequence[Query],
    masks: Sequence[Any] | None = None,
    rival_masks: Sequence[Any] | None = None,
    query_role: str = "",
    image: int | None = None,
) -> pd.DataFrame:
    """Every score of every head for each example of a batch, in one run.

    Args:
        model: a `HookedVLM`.
        inputs: the clean examples.
        kinds: as `image_attention`.
        queries: as `image_attention`.
        masks: of the object asked about, one for each example, None for those without; or None.
        rival_masks: of its rival, in the same way.
        query_role: what the query is, for the table.
        image: as `image_attention`.

    Returns:
        One row for each example, kind, layer and head: row (the example's place in the batch) and `COLUMNS`. NaN
        where there is no mask, or where the processor's crop leaves nothing of the object; so for its rival's.

    Raises:
        PositionError: as `image_attention`.
        DataError: if there are not as many masks as examples.
    """
    given = [one_each(each, len(inputs)) for each in (masks, rival_masks)]
    attention, norms = image_attention(model, inputs, kinds, queries, image=image)
    cover, rival = (covered(model, each if attention else [None] * len(each), norms.shape[1]) for each in given)
    parts = [_scored(kind, each, cover, rival, norms.cpu()) for kind, each in attention.items()]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["row", *COLUMNS])
    return table.assign(query_role=query_role)[["row", *COLUMNS]]


def one_each(masks: Sequence[Any] | None, n: int) -> list[Any]:
    """Masks of as many examples. Raises DataError if there are not as many."""
    given = [None] * n if masks is None else list(masks)
    if len(given) != n:
        raise DataError(f"{len(given)} masks were given for {n} examples: one each, None where there is none.")
    return given


def covered(model: HookedVLM, masks: Sequence[Any], n_patches: int) -> Float[Tensor, "batch patch"]:
    """`patch_coverage` of a mask an example, NaN for those that have none.

    Args:
        model: a `HookedVLM` with a processor.
        masks: one for each example, None for those without.
        n_patches: of the image.
    """
    cover = torch.full((len(masks), n_patches), torch.nan)
    has = [i for i, mask in enumerate(masks) if mask is not None]
    if has:
        cover[has] = patch_coverage(model, [masks[i] for i in has])
    return cover


def score_example(
    model: HookedVLM,
    inputs: VLMInputs,
    *,
    kinds: Iterable[str],
    query: Query,
    mask: Any = None,
    rival_mask: Any = None,
    query_role: str = "",
    image: int | None = None,
) -> pd.DataFrame:
    """`score_batch` of one example: a table with `COLUMNS`.

    Args:
        model: a `HookedVLM`.
        inputs: a batch of one.
        kinds: as `image_attention`.
        query: position of the query, or several.
        mask: white where the object is, or None.
        rival_mask: white where its rival is, or None.
        query_role: what the query is, for the table.
        image: as `image_attention`.

    Raises:
        PositionError: as `image_attention`.
    """
    masks, rivals = (None if each is None else [each] for each in (mask, rival_mask))
    options: dict[str, Any] = {"masks": masks, "rival_masks": rivals, "query_role": query_role, "image": image}
    scores = score_batch(model, inputs, kinds=kinds, queries=query, **options)
    return scores.drop(columns="row")


def _inside(on: Tensor, cover: Tensor) -> tuple[Tensor, Tensor]:
    """Of each head the share of its attention on patches that lies in a mask, and that of the pixels; NaN, no mask."""
    m = cover.double()[:, None, None, :]
    inside = (on * m).sum(-1) / on.sum(-1)
    area = m.mean(-1).expand_as(inside)
    seen = area > 0  # False too where there is no mask
    return inside.where(seen, torch.nan), area.where(seen, torch.nan)


def _scored(kind: str, attention: ImageAttention, cover: Tensor, rival: Tensor, norms: Tensor) -> pd.DataFrame:
    on, cls = attention.patches.double().cpu(), attention.cls
    batch, layers, heads, _ = on.shape
    on_patches = on.sum(-1)
    on_cls = torch.zeros_like(on_patches) if cls is None else cls.double().cpu()
    mass = on_patches + on_cls
    inside, area = _inside(on, cover)
    rival_inside, rival_area = _inside(on, rival)
    objects_inside, objects_area = _inside(on, torch.fmax(cover, rival))
    seen = area > 0
    strange = outlying(norms, cover)[:, None, None, :]
    is_object = object_patches(cover)[:, None, :].expand(-1, layers * heads, -1)
    top = rearrange(on, "b l h p -> b (l h) p").argmax(-1, keepdim=True)
    pointing = rearrange(is_object.gather(-1, top)[..., 0], "b (l h) -> b l h", l=layers).double()
    scores = {
        "image_mass": mass,
        "inside": inside,
        "area": area,
        "lift": inside / area,
        "auc": _auc(on, cover).where(seen, torch.nan),
        "pointing": pointing.where(seen, torch.nan),
        "rival_lift": rival_inside / rival_area,
        "grounding": inside / area - rival_inside / rival_area,
        "objects_lift": objects_inside / objects_area,
        "relative_inside": inside - inside.nanmean((1, 2), keepdim=True),
        "outlier": ((on * strange).sum(-1) + on_cls) / mass,
        "cls": torch.full_like(mass, torch.nan) if cls is None else on_cls / mass,
    }
    index = pd.MultiIndex.from_product([range(batch), range(layers), range(heads)], names=["row", "layer", "head"])
    columns = {name: values.flatten().numpy() for name, values in scores.items()}
    return pd.DataFrame(columns, index).reset_index().assign(kind=kind)


def outlying(norms: Float[Tensor, "batch patch"], cover: Float[Tensor, "batch patch"]) -> Tensor:
    """[batch patch], True on background patches whose norm lies above mean + `NORM_SDS` SD of the picture's."""
    threshold = norms.mean(1, keepdim=True) + NORM_SDS * norms.std(1, keepdim=True)
    return (norms > threshold) & ~(cover >= 0.5)


def object_patches(cover: Float[Tensor, "batch patch"]) -> Tensor:
    """[batch patch], True where the mask covers half of a patch, or as much of one as of any."""
    known = cover.nan_to_num(0.0)
    most = known.max(1, keepdim=True).values
    return (known >= torch.clamp(most, max=0.5)) & (known > 0)


def _auc(on: Float[Tensor, "batch layer head patch"], cover: Float[Tensor, "batch patch"]) -> Tensor:
    """[batch layer head], from ranks: ties count half, also between the pixels of one patch."""
    heads = rearrange(on, "b l h p -> b (l h) p").contiguous()
    m = cover.double().nan_to_num(0.0)[:, None, :].expand_as(heads)
    ordered, order = heads.sort(-1)
    outside = torch.nn.functional.pad((1 - m).gather(-1, order).cumsum(-1), (1, 0))
    below = outside.gather(-1, torch.searchsorted(ordered, heads, right=False))
    upto = outside.gather(-1, torch.searchsorted(ordered, heads, right=True))
    auc = (m * (below + upto) / 2).sum(-1) / (m.sum(-1) * (1 - m).sum(-1))
    return rearrange(auc, "b (l h) -> b l h", l=on.shape[1])
