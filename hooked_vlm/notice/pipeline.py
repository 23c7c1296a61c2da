"""A NOTICE run from a configuration to a report, which goes on where it was stopped.

Steps: answer the clean questions and keep what is answered rightly; sweep each corruption over each kind of site;
score what each head attends to; select heads; ablate them; summarise; draw; report. Everything an example gives is
on disk before the next block of examples begins, and nothing of it is kept in memory: 1,000 examples take no more
than 50. A run that is killed at any moment goes on with the same command, without doing an example twice; blocks of
examples depend on the rows' numbers alone, so that its numbers are those of a run that was never stopped.

Costs two forwards and a sweep an example and corruption. Knows no model but through its public face.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from hooked_vlm.models import placement
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.notice import conclusion, directory, report, selections, summary
from hooked_vlm.notice.config import NoticeConfig, file_name
from hooked_vlm.notice.directory import RunDirectory
from hooked_vlm.notice.effects import Effects, measured, n_sites
from hooked_vlm.notice.examples import Example, grouped, own_rows, prepared, rows_of, stacked
from hooked_vlm.notice.functions import score_batch
from hooked_vlm.notice.terminal import Progress
from hooked_vlm.notice.vocabulary import CORRUPTIONS, EVERY

PACKAGES = ("hooked-vlm", "torch", "transformers", "transformer-lens", "numpy", "pandas", "pyarrow")
Rows = Sequence[tuple[int, dict[str, Any]]]


def run(config: NoticeConfig, out: str | os.PathLike[str], *, progress: bool = True, model: Any = None) -> Path:
    """Run NOTICE, or go on with a run that was stopped.

    Args:
        config: what to run.
        out: the run's directory; a new or empty one, or one that holds the same configuration's run.
        progress: show sites per second and time left.
        model: a `HookedVLM` to use in place of loading `config.model`.

    Returns:
        The run's directory, which holds `report.html`.

    Raises:
        ResumeError: if the directory holds another configuration's run.
        RunDirectoryError: if it cannot be written, another process writes it, or it holds something else.
        KeyboardInterrupt: if Ctrl-C was pressed, when the examples in flight are done; it says what is kept.
        DataError: if there is no such task, or its data is not as it should be.
        CheckpointError, UnknownCheckpointError, StackError, ...: as loading the model raises.
    """
    place = RunDirectory(out)
    with place.locked(), _interruptible() as stop:
        config = _begun(place, config)
        if model is None:
            model = load(config)
        config = _started(place, config, model)
        with Progress(len(config.tasks), config.examples, shown=progress) as bar:
            bar.tell(f"{config.model} runs {placement.told(config.device, config.dtype)}")
            for task in config.tasks:
                _task(place, config, model, task, bar, stop)
            bar.say("summarising")
            _conclude(place, config, model, bar, lambda: refuse_to_go_on(place, stop))
    return place.path


def load(config: NoticeConfig) -> Any:
    """The model of a configuration."""
    return HookedVLM.from_pretrained(config.model, device=config.device, dtype=config.dtype, revision=config.revision)


# --- beginning --------------------------------------------------------------------------------------------


def _begun(place: RunDirectory, config: NoticeConfig) -> NoticeConfig:
    """Refuse another configuration's directory before anything is loaded."""
    stored = place.stored()
    if stored is not None:
        before = NoticeConfig.from_json(stored["config"])
        config = config.decided_as(before)
        before.refuse_another(config, place.path)
    return config


def _started(place: RunDirectory, config: NoticeConfig, model: Any) -> NoticeConfig:
    config = config.resolved(model)
    for task in config.tasks:
        rows_of(config, model, task)  # raises where there is no such task or data, before anything is written
    if place.stored() is None:
        cfg = model.stacks[model.prompt_stack].cfg
        record = {
            "version": directory.VERSION,
            "config": config.to_json(),
            "model": {
                "name": config.model,
                "class": type(model).__name__,
                "stack": model.prompt_stack,
                "layers": cfg.n_layers,
                "heads": cfg.n_heads,
                "d_model": cfg.d_model,
            },
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        place.write_json(directory.RUN, record)
    return config


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While it is open, the first Ctrl-C is noted and the second one interrupts; gives whether there was one."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def note(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        sys.stderr.write("\nStopping when the examples in flight are done; Ctrl-C again to stop at once.\n")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def refuse_to_go_on(place: RunDirectory, stop: Callable[[], bool]) -> None:
    """Raise KeyboardInterrupt, which says what is kept, if Ctrl-C was pressed."""
    if stop():
        n = sum(1 for _ in (place.path / directory.EXAMPLES).glob("*.parquet"))
        done = "1 example is" if n == 1 else f"{n} examples are"
        raise KeyboardInterrupt(f"stopped; {done} in {place.path}, and the same command goes on from there")


# --- examples ---------------------------------------------------------------------------------------------


def _task(
    place: RunDirectory, config: NoticeConfig, model: Any, task: str, bar: Progress, stop: Callable[[], bool]
) -> None:
    """Run one task's examples until as many are kept as were asked for, or its rows are at an end."""
    finished = place.read_json(directory.SOURCES) or {}
    done = place.done(task)
    bar.begin(task, sum(done.values()))
    if task in finished:
        bar.end(task)
        return
    drawn = rows_of(config, model, task)
    numbered = enumerate(drawn.rows)
    kept = seen = 0
    while kept < config.examples and (block := list(islice(numbered, config.batch))):
        names = [number for number, _ in block]
        if not _whole(names, done, config.examples - kept):
            done |= _block(place, config, model, task, block, config.examples - kept, done, bar, stop)
        for number in names:
            if kept < config.examples:
                kept, seen = kept + done[number], number + 1
        refuse_to_go_on(place, stop)
    skipped = {"seen": seen, "kept": kept, "skipped": dict(drawn.skipped), "named": drawn.named}
    place.write_json(directory.SOURCES, finished | {task: skipped})
    bar.end(task)


def _whole(numbers: list[int], done: dict[int, bool], wanted: int) -> bool:
    """True if nothing of a block is left to do: each example is done, or comes after the last that is wanted."""
    for number in numbers:
        if number not in done:
            return False
        wanted -= done[number]
        if not wanted:
            return True
    return True


def _block(
    place: RunDirectory,
    config: NoticeConfig,
    model: Any,
    task: str,
    block: Rows,
    wanted: int,
    done: dict[int, bool],
    bar: Progress,
    stop: Callable[[], bool],
) -> dict[int, bool]:
    """Run a block of rows and write what is not written yet; which of them are kept.

    What is computed together depends on the rows alone and not on what is done: so an example has the same numbers
    whenever it is run.
    """
    examples = prepared(model, config, [(number, {**row, "task": file_name(task)}) for number, row in block])
    kept_so_far = list(accumulate(example.kept for example in examples))
    examples = [each for each, n in zip(examples, kept_so_far, strict=True) if n - each.kept < wanted]
    for example in examples:
        if not example.kept and example.number not in done:
            place.write_table(directory.EXAMPLES, task, example.number, _record(example, None))
    for group in grouped([example for example in examples if example.kept], _shape):
        missing = [example for example in group if example.number not in done]
        if not missing:
            continue
        effects = measured(model, config, group)
        attention = _attention(model, config, group)
        for example, found, scores in zip(group, effects, attention, strict=True):
            if example.number in done:
                continue
            place.write_table(directory.EFFECTS, task, example.number, found.table)
            place.write_table(directory.ATTENTION, task, example.number, scores)
            place.write_table(directory.EXAMPLES, task, example.number, _record(example, found))
            bar.advance(n_sites(model, config.kinds, len(example.positions)) * len(found.corrupt))
        refuse_to_go_on(place, stop)
    return {example.number: example.kept for example in examples}


def _shape(example: Example) -> tuple[Any, ...]:
    """What examples that are swept together have in common."""
    return example.clean.input_ids.shape[1], len(example.tokens.shared), example.positions


def _attention(model: Any, config: NoticeConfig, group: Sequence[Example]) -> list[pa.Table]:
    """What each head of each example attends to, as tables."""
    queries = [query(config, example) for example in group]
    masks = [example.row.get("mask") for example in group]
    table = score_batch(
        model, stacked(group), kinds=config.kinds, queries=queries, masks=masks, query_role=config.select_at
    )
    rows = [example.row for example in group]
    about = [{"task": row["task"], "example": row["id"], "group": row["group"] or ""} for row in rows]
    return [own_rows(table, i, each) for i, each in enumerate(about)]


def query(config: NoticeConfig, example: Example) -> list[int]:
    """The positions from which an example's heads are watched: where they are selected."""
    if config.select_at == EVERY:
        return [place for place, role in enumerate(example.roles) if role != "image"]
    return example.where(config.select_at)


def _record(example: Example, found: Effects | None) -> pa.Table:
    """An example's row of `examples/*.parquet`."""
    row, scored = example.row, example.scored
    record: dict[str, Any] = {
        "task": row["task"],
        "example": row["id"],
        "number": example.number,
        "group": row["group"] or "",
        "prompt": row["prompt"],
        "corrupt_prompt": row.get("corrupt_prompt"),
        "answer": row["answer"],
        "wrong_answer": row["wrong_answer"],
        "generated": example.generated,
        "kept": example.kept,
        "reason": example.reason,
        "right_token": -1 if scored is None else scored.right,
        "wrong_token": -1 if scored is None else scored.wrong,
        "shared_tokens": [] if scored is None else list(scored.shared),
        "clean_logit_diff": float("nan") if found is None else found.clean,
    }
    for name in CORRUPTIONS:
        record[f"{name}_logit_diff"] = float("nan") if found is None else found.corrupt.get(name, float("nan"))
    return pa.table({name: pa.array([value], _TYPES.get(name)) for name, value in record.items()})


_TYPES = {
    "number": pa.int64(),
    "right_token": pa.int64(),
    "wrong_token": pa.int64(),
    "shared_tokens": pa.list_(pa.int64()),
    "corrupt_prompt": pa.string(),
}


# --- the end ----------------------------------------------------------------------------------------------


def _conclude(place: RunDirectory, config: NoticeConfig, model: Any, bar: Progress, go_on: Callable[[], None]) -> None:
    """Select heads, ablate them, summarise, draw, and write the report.

    A model that answers nothing rightly has nothing to restore: the report then says so, and why each row went.
    """
    found = summary.summarise(place.path, config=config)
    bar.say("ablating")
    conclusion.ablate_kept(place, config, model, selections.to_ablate(found), go_on)
    bar.say("drawing")
    heads = list(dict.fromkeys(head for c in config.corrupt for head in selections.strongest(found, c)))
    figures = conclusion.draw_attention(place, config, model, heads, lambda example: query(config, example), go_on)
    bar.say("summarising")
    summary.summarise(place.path, config=config, figures=figures)
    report.write(place.path)
