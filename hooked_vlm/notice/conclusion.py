"""A run's last look at the model: ablating the heads that were selected, changing and drawing what they attend to.

All go through the kept examples again, drawn from their source. Costs three passes over the rows, and for each example
a resumed pass a set of heads, and one a head and change of its attention. What is on disk already is not done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np

from hooked_vlm import viz
from hooked_vlm.analysis import ablation
from hooked_vlm.analysis.answers import Scored
from hooked_vlm.analysis.causes import attention_causes
from hooked_vlm.analysis.heads import Head, head_name, module_of, of_heads
from hooked_vlm.analysis.image_attention import image_attention
from hooked_vlm.datasets.pairs import MASKS
from hooked_vlm.errors import InputsError, MissingExtraError
from hooked_vlm.notice import directory
from hooked_vlm.notice.config import file_name
from hooked_vlm.notice.examples import Example, given, grouped, own_rows, prepared, query, restored, stacked
from hooked_vlm.notice.roles import roles
from hooked_vlm.notice.running import Run
from hooked_vlm.notice.schema import Figure
from hooked_vlm.notice.selections import HeldOut, Tested
from hooked_vlm.notice.storage import digest_of


def ablate_kept(run: Run, chosen: Mapping[str, Sequence[HeldOut]]) -> None:
    """Ablate each set of heads, and as many random ones, in every kept example that judges it and has no such file yet.

    Args:
        run: under way.
        chosen: sets of heads, and the examples that judge them, of each task by its name in files.
    """
    place, config, model = run.place, run.config, run.model
    kinds = [kind for kind in config.kinds if of_heads(kind)]
    for task in config.tasks:
        parts = [
            (held.examples, {str(selection): heads for selection, heads in held.sets.items()})
            for held in chosen.get(file_name(task), ())
        ]
        if not any(named for _, named in parts):
            continue
        asked = digest_of(
            [
                [sorted(ids), {name: [list(head) for head in heads] for name, heads in named.items()}]
                for ids, named in parts
            ]
        )
        kept = place.numbers(directory.EFFECTS, task)
        missing = set(kept) - set(place.numbers(directory.ABLATION, task, asked))
        if not missing:
            continue
        means = ablation.ReferenceMeans(model, kinds)
        for group in _again(run, task, kept):
            means.add(stacked(group))
            run.go_on()
        for group in _again(run, task, kept):
            if missing.isdisjoint(example.number for example in group):
                continue
            tables = {}
            for ids, named in parts:
                mine = [example for example in group if example.row["id"] in ids]
                if not mine:
                    continue
                right, wrong = ([getattr(e.tokens, side) for e in mine] for side in ("right", "wrong"))
                table = ablation.ablate(
                    model, stacked(mine), right, wrong, named, means, draws=config.random_draws, seed=config.seed
                )
                for i, example in enumerate(mine):
                    about = {"task": file_name(task), "example": example.row["id"]}
                    tables[example.number] = own_rows(table, i, about)
            place.add(directory.ABLATION, task, tables, asked)
            run.go_on()


def test_attention(run: Run, chosen: Mapping[str, Sequence[Tested]]) -> None:
    """Change what heads attend to, in every kept example that tests them and has no such file yet.

    Args:
        run: under way.
        chosen: heads, and the examples in which they are tested, of each task by its name in files.
    """
    place, config, model = run.place, run.config, run.model
    for task in config.tasks:
        parts = [part for part in chosen.get(file_name(task), ()) if part.heads]
        heads_of = {example: part.heads for part in parts for example in part.examples}
        asked = digest_of([[sorted(part.examples), [list(head) for head in part.heads]] for part in parts])
        ids = run.rows[task].ids
        wanted = [number for number in place.numbers(directory.EFFECTS, task) if ids[number] in heads_of]
        missing = set(wanted) - set(place.numbers(directory.CAUSES, task, asked))
        for group in _again(run, task, wanted) if missing else ():
            tables = {}
            for part in parts:
                mine = [each for each in group if each.number in missing and each.row["id"] in part.examples]
                if not mine:
                    continue
                right, wrong = ([getattr(e.tokens, side) for e in mine] for side in ("right", "wrong"))
                masks, rivals = ([example.row.get(name) for example in mine] for name in MASKS)
                table = attention_causes(
                    model,
                    stacked(mine),
                    right,
                    wrong,
                    part.heads,
                    queries=[query(config, example) for example in mine],
                    masks=masks,
                    rival_masks=rivals,
                )
                for i, example in enumerate(mine):
                    about = {"task": file_name(task), "example": example.row["id"]}
                    tables[example.number] = own_rows(table, i, about)
            place.add(directory.CAUSES, task, tables, asked)
            run.go_on()


def _again(run: Run, task: str, kept: Sequence[int]) -> Iterator[list[Example]]:
    """The kept examples of a task once more, with their clean inputs, in batches of equal length."""
    drawn = run.rows[task].again(run.model, frozenset(kept))
    while block := list(islice(drawn, run.batch)):
        examples = given(run.model, run.config, block)
        for example in examples:
            record, row = run.place.example(task, example.number), example.row
            example.roles = roles(example.clean, row["prompt"], row["answer"], row["wrong_answer"])  # no subject
            tokens = Scored(record["right_token"], record["wrong_token"], tuple(record["shared_tokens"]))
            restored(run.model, example, tokens)
        yield from grouped(examples, lambda e: (e.clean.input_ids.shape[1], len(e.tokens.shared)))


# --- figures --------------------------------------------------------------------------------------------


def draw_attention(run: Run, heads: Sequence[Head]) -> list[Figure]:
    """Draw where heads look in the first kept example of every task, less the mean over all heads as in the paper.

    Args:
        run: under way.
        heads: which.

    Returns:
        A record for each figure, the `figures` of summary.json; none where matplotlib is not installed, the heads
        cannot see the image, or the processor's way with the picture is not known: a run does not fail for a picture.
    """
    place, config, model = run.place, run.config, run.model
    records: list[Figure] = []
    for task in config.tasks if heads else ():
        numbers = place.numbers(directory.EFFECTS, task)
        if not numbers:
            continue
        ((number, row),) = run.rows[task].again(model, numbers[:1])
        (example,) = prepared(model, config, [(number, row)])
        kinds = list(dict.fromkeys(kind for kind, _, _ in heads))
        found, _ = image_attention(model, example.clean, kinds, query(config, example))
        picture, vision = row["image"], cast(Any, model.stacks["vision_encoder"])
        try:
            geometry = viz.Geometry.of(model.processor, picture, vision.patch_size)
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
            about = {"kind": kind, "layer": layer, "head": head, "example": row["id"], "caption": caption}
            records.append(cast(Figure, {"file": f"{directory.FIGURES}/{name}", **about}))
            run.go_on()
    return records
