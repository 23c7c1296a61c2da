"""A run's last look at the model: ablating the heads that were selected, and drawing what they attend to.

Both go through the kept examples again, drawn from their source. Costs two passes over the rows, and for each example
a resumed pass a set of heads. What is on disk already is not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from hooked_vlm import viz
from hooked_vlm.analysis import ablation
from hooked_vlm.analysis.answers import Scored
from hooked_vlm.analysis.heads import Head, head_name, module_of, of_heads
from hooked_vlm.analysis.image_attention import image_attention
from hooked_vlm.errors import InputsError, MissingExtraError
from hooked_vlm.notice import directory
from hooked_vlm.notice.config import NoticeConfig, file_name
from hooked_vlm.notice.directory import RunDirectory
from hooked_vlm.notice.examples import Example, given, grouped, own_rows, prepared, restored, stacked
from hooked_vlm.notice.rows import Survey
from hooked_vlm.notice.schema import Selection
from hooked_vlm.notice.storage import digest_of


def ablate_kept(
    place: RunDirectory,
    config: NoticeConfig,
    model: Any,
    surveys: Mapping[str, Survey],
    sets: Mapping[Selection, Sequence[Head]],
    go_on: Callable[[], None],
) -> None:
    """Ablate each set of heads, and as many random ones, in every kept example that has no such file yet.

    Args:
        place: the run's.
        config: the run's, resolved.
        model: a `HookedVLM`.
        surveys: the rows of each task.
        sets: of heads.
        go_on: called between batches; raises if the run is to stop.
    """
    kinds = [kind for kind in config.kinds if of_heads(kind)]
    named = {selection.name: heads for selection, heads in sets.items()}
    asked = digest_of({name: [list(head) for head in heads] for name, heads in named.items()})
    for task in config.tasks if sets else ():
        kept = place.numbers(directory.EFFECTS, task)
        missing = set(kept) - set(place.numbers(directory.ABLATION, task, asked))
        if not missing:
            continue
        means = ablation.ReferenceMeans(model, kinds)
        for group in _again(place, config, model, surveys[task], kept):
            means.add(stacked(group))
            go_on()
        for group in _again(place, config, model, surveys[task], kept):
            if missing.isdisjoint(example.number for example in group):
                continue
            right, wrong = ([getattr(e.tokens, side) for e in group] for side in ("right", "wrong"))
            table = ablation.ablate(
                model, stacked(group), right, wrong, named, means, draws=config.random_draws, seed=config.seed
            )
            tables = {}
            for i, example in enumerate(group):
                about = {"task": file_name(task), "example": example.row["id"]}
                tables[example.number] = own_rows(table, i, about)
            place.add(directory.ABLATION, task, tables, asked)
            go_on()


def _again(
    place: RunDirectory, config: NoticeConfig, model: Any, rows: Survey, kept: Sequence[int]
) -> Iterator[list[Example]]:
    """The kept examples of a task once more, with their clean inputs, in batches of equal length."""
    drawn = rows.again(config, model, frozenset(kept))
    assert config.batch is not None
    while block := list(islice(drawn, config.batch)):
        examples = given(model, config, block)
        for example in examples:
            record = place.example(rows.task, example.number)
            tokens = Scored(record["right_token"], record["wrong_token"], tuple(record["shared_tokens"]))
            restored(model, example, tokens)
        yield from grouped(examples, lambda e: (e.clean.input_ids.shape[1], len(e.tokens.shared)))


# --- figures --------------------------------------------------------------------------------------------


def draw_attention(
    place: RunDirectory,
    config: NoticeConfig,
    model: Any,
    surveys: Mapping[str, Survey],
    heads: Sequence[Head],
    query: Callable[[Example], list[int]],
    go_on: Callable[[], None],
) -> list[dict[str, Any]]:
    """Draw where heads look in the first kept example of every task, less the mean over all heads as in the paper.

    Args:
        place: the run's.
        config: the run's, resolved.
        model: a `HookedVLM`.
        surveys: the rows of each task.
        heads: which.
        query: an example's positions from which is looked.
        go_on: called between figures; raises if the run is to stop.

    Returns:
        A record for each figure, the `figures` of summary.json; none where matplotlib is not installed, the heads
        cannot see the image, or the processor's way with the picture is not known: a run does not fail for a picture.
    """
    records = []
    for task in config.tasks if heads else ():
        numbers = place.numbers(directory.EFFECTS, task)
        if not numbers:
            continue
        ((number, row),) = surveys[task].again(config, model, numbers[:1])
        (example,) = prepared(model, config, [(number, row)])
        kinds = list(dict.fromkeys(kind for kind, _, _ in heads))
        found, _ = image_attention(model, example.clean, kinds, query(example))
        picture = row["image"]
        try:
            geometry = viz.Geometry.of(model.processor, picture, model.stacks["vision_encoder"].patch_size)
        except InputsError:
            return []
        for kind, layer, head in heads:
            if kind not in found:
                continue
            name = f"{file_name(task)}-{example.number:06d}-{module_of(kind)}-{layer}-{head}.png"
            values = found[kind].less_the_mean()[0, layer, head]
            try:
                figure = viz.overlay(
                    values.flatten().cpu(),
                    picture,
                    geometry,
                    kind="diverging",
                    label="attention less the mean head's",
                    outline=None if row.get("mask") is None else np.asarray(row["mask"].convert("L")) > 127,
                    to="matplotlib",
                )
            except MissingExtraError:
                return []
            place.write_figure(f"{directory.FIGURES}/{name}", figure)
            caption = f"{head_name(kind, layer, head)}: {row['prompt']} ({row['answer']})"
            about = {"file": f"{directory.FIGURES}/{name}", "kind": kind, "layer": layer, "head": head}
            records.append({**about, "example": row["id"], "caption": caption})
            go_on()
    return records
