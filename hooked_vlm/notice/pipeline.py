"""A NOTICE run from a configuration to a report, which goes on where it was stopped.

Stages, each once: answer the clean questions, and of what is answered rightly sweep each corruption over each kind of
site and score what each head attends to; select heads; ablate them; change what they attend to; draw where they look;
summarise; report. Everything
an example gives is on disk before the next block of examples begins, and nothing of it is kept in memory: 1,000
examples take no more than 50. A run that is killed at any moment goes on with the same command, without doing an
example twice; blocks of examples depend on the rows' numbers alone, so that its numbers are those of a run that was
never stopped.

Costs two forwards and a sweep an example and corruption, and a look at every row first. Knows no model but through
its public face.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from hooked_vlm.analysis.answers import Scored
from hooked_vlm.analysis.image_attention import score_batch
from hooked_vlm.datasets.pairs import MASKS
from hooked_vlm.errors import DoesNotFitError
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.models.memory import told_if_out
from hooked_vlm.notice import conclusion, directory, report, selections, summary
from hooked_vlm.notice.config import NoticeConfig, file_name
from hooked_vlm.notice.directory import RunDirectory
from hooked_vlm.notice.effects import Effects, measured
from hooked_vlm.notice.examples import Example, grouped, own_rows, prepared, query, stacked
from hooked_vlm.notice.identity import begun, started
from hooked_vlm.notice.parts import Parts
from hooked_vlm.notice.planning import plan as planned
from hooked_vlm.notice.rows import Row, TaskRows
from hooked_vlm.notice.running import Run
from hooked_vlm.notice.terminal import Progress
from hooked_vlm.notice.vocabulary import CORRUPT, CORRUPTIONS


def run(
    config: NoticeConfig,
    out: str | os.PathLike[str],
    *,
    progress: bool = True,
    model: HookedVLM | None = None,
    accept_versions: bool = False,
) -> Path:
    """Run NOTICE, or go on with a run that was stopped.

    Args:
        config: what to run.
        out: the run's directory; a new or empty one, or one that holds the same configuration's run.
        progress: show sites per second and time left.
        model: a `HookedVLM` to use in place of loading `config.model`.
        accept_versions: go on although packages have other versions than when the run began; run.json notes it.

    Returns:
        The run's directory, which holds `report.html`.

    Raises:
        ResumeError: if the directory holds another configuration's run, or a run of other weights, tokenizer, rows or
            package versions; it names what differs.
        RunDirectoryError: if it cannot be written, another process writes it, or it holds something else.
        KeyboardInterrupt: if Ctrl-C was pressed, when the examples in flight are done; it says what is kept.
        DataError, TaskSchemaError: if there is no such task, or a row of it is not as it should be.
        DoesNotFitError: if memory runs out; it says what is kept.
        CheckpointError, UnknownCheckpointError, StackError, ...: as loading the model raises.
    """
    place = RunDirectory(out)
    with place.locked(), _interruptible() as stop:
        config = begun(place, config)
        rows = {task: TaskRows(config, task) for task in config.tasks}
        if model is None:
            planned(config, timed=False, rows=rows).refuse_unfit()
            model = load(config)
        bar = Progress(len(config.tasks), config.examples, shown=progress)
        with bar, _fitting(place, model, bar):
            bar.say("reading the rows")
            foretold = planned(config, model=model, timed=bar.shown, rows=rows)
            config = started(place, foretold.config, model, rows, accept_versions=accept_versions)
            bar.tell(str(foretold))
            under_way = Run(place, config, model, rows, bar, stop)
            for task in config.tasks:
                _sweep(under_way, task)
            _conclude(under_way)
    return place.path


def load(config: NoticeConfig) -> Any:
    """The model of a configuration."""
    return HookedVLM.from_pretrained(config.model, device=config.device, dtype=config.dtype, revision=config.revision)


@contextmanager
def _fitting(place: RunDirectory, model: HookedVLM, bar: Progress) -> Iterator[None]:
    """While it is open, what runs out of memory also says what that means for the run: what is kept, what to do."""
    try:
        with told_if_out(lambda: "the run", lambda: model.device, lambda: ()):
            yield
    except DoesNotFitError as error:
        n = place.n_examples
        raise DoesNotFitError(
            f"{bar.doing}: {error.found}",
            "--batch 1 (batch=1) runs one example at a time and --dtype bfloat16 takes half the memory, each as "
            "another run, in another directory; --plan says what a run needs",
            f"{n} example{'s are' if n != 1 else ' is'} kept in {place.path}: with more memory free the same command "
            "goes on from there",
        ) from error


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


# --- examples ---------------------------------------------------------------------------------------------


def _sweep(run: Run, task: str) -> None:
    """Run one task's examples until as many are kept as were asked for, or its rows are at an end.

    Which examples are done is what the directory's files prove, and nothing else.
    """
    rows, wanted = run.rows[task], run.config.examples
    done = _done(run.place, rows)
    run.bar.begin(task, sum(done.values()))
    batches = [range(start, min(start + run.batch, len(rows))) for start in range(0, len(rows), run.batch)]
    drawn = rows.again(run.model, range(len(rows)))
    for numbers in batches:
        if not wanted:
            break
        if not _whole(numbers, done, wanted):
            done |= _batch(run, rows, _of(drawn, numbers), wanted, done)
        for number in numbers:
            wanted -= bool(wanted) and done[number]
        run.go_on()
    run.bar.end(task)


def _of(drawn: Iterator[tuple[int, Row]], numbers: range) -> list[tuple[int, Row]]:
    """The rows of some numbers, out of a stream that stands before them."""
    found = []
    for number, row in drawn:
        if number in numbers:
            found.append((number, row))
        if number == numbers[-1]:
            break
    return found


def _done(place: RunDirectory, rows: TaskRows) -> dict[int, bool]:
    """Of each example that is done, whether it was kept: its row is this one, and every table of it is there."""
    measured_too = set(place.numbers(directory.EFFECTS, rows.task)) & set(place.numbers(directory.ATTENTION, rows.task))
    found = {}
    for number, table in place.tables(directory.EXAMPLES, rows.task, ["example", "fingerprint", "kept"]):
        (row,) = table.to_pylist()
        same = number < len(rows) and (row["example"], row["fingerprint"]) == (rows.ids[number], rows.prints[number])
        if same and (not row["kept"] or number in measured_too):
            found[number] = bool(row["kept"])
    return found


def _whole(numbers: Sequence[int], done: Mapping[int, bool], wanted: int) -> bool:
    """True if nothing of a batch is left to do: each example is done, or comes after the last that is wanted."""
    for number in numbers:
        if number not in done:
            return False
        wanted -= done[number]
        if not wanted:
            return True
    return True


def _batch(
    run: Run, surveyed: TaskRows, rows: Sequence[tuple[int, Row]], wanted: int, done: Mapping[int, bool]
) -> dict[int, bool]:
    """Run a batch of rows and write what is not written yet; which of them are kept.

    What is computed together depends on the rows alone and not on what is done: so an example has the same numbers
    whenever it is run. Its row is written last, behind what was measured of it.
    """
    place, config, model, task = run.place, run.config, run.model, surveyed.task
    examples = prepared(model, config, [(number, {**row, "task": file_name(task)}) for number, row in rows])
    kept_so_far = list(accumulate(example.kept for example in examples))
    examples = [each for each, n in zip(examples, kept_so_far, strict=True) if n - each.kept < wanted]
    tables: dict[str, dict[int, pa.Table]] = {kind: {} for kind in directory.MEASURED}
    found: dict[int, Effects] = {}
    parts: list[Parts] = []
    for group in grouped([example for example in examples if example.kept], _shape):
        if all(example.number in done for example in group):
            continue
        scores = _attention(model, config, group)
        parts.append(Parts(place, task, [example.number for example in group]))
        effects_of = measured(model, config, group, parts=parts[-1])
        for example, effects, scored in zip(group, effects_of, scores, strict=True):
            found[example.number] = effects
            tables[directory.EFFECTS][example.number] = effects.table
            tables[directory.ATTENTION][example.number] = scored
    tables[directory.EXAMPLES] = {
        example.number: _row(example, surveyed.prints[example.number], found.get(example.number))
        for example in examples
        if example.number in found or not example.kept
    }
    for kind, made in tables.items():
        place.add(kind, task, {number: table for number, table in made.items() if number not in done})
    for each in parts:
        each.clear()
    for example in examples:
        if example.number in found and example.number not in done:
            run.bar.advance(len(found[example.number].table))
    return {example.number: example.kept for example in examples}


def _shape(example: Example) -> tuple[Any, ...]:
    """What examples that are swept together have in common."""
    return example.clean.input_ids.shape[1], len(example.tokens.shared), example.positions, example.corrupt


def _attention(model: HookedVLM, config: NoticeConfig, group: Sequence[Example]) -> list[pa.Table]:
    """What each head of each example attends to, as tables."""
    queries = [query(config, example) for example in group]
    masks, rivals = ([example.row.get(name) for example in group] for name in MASKS)
    table = score_batch(
        model,
        stacked(group),
        kinds=config.kinds,
        queries=queries,
        masks=masks,
        rival_masks=rivals,
        query_role=config.watch_at,
    )
    rows = [example.row for example in group]
    about = [{"task": row["task"], "example": row["id"], "group": row["group"] or ""} for row in rows]
    return [own_rows(table, i, each) for i, each in enumerate(about)]


def _row(example: Example, print_: str, found: Effects | None) -> pa.Table:
    """An example's row of `examples/*.parquet`."""
    row, scored, nan = example.row, example.scored or Scored(-1, -1), float("nan")
    clean, corrupt = (nan, {}) if found is None else (found.clean, found.corrupt)
    record: dict[str, Any] = {
        "task": row["task"],
        "example": row["id"],
        "number": example.number,
        "fingerprint": print_,
        "group": row["group"] or "",
        "prompt": row["prompt"],
        "corrupt_prompt": row.get("corrupt_prompt"),
        "answer": row["answer"],
        "wrong_answer": row["wrong_answer"],
        "generated": example.generated,
        "kept": example.kept,
        "reason": example.reason,
        "right_token": scored.right,
        "wrong_token": scored.wrong,
        "shared_tokens": list(scored.shared),
        "clean_logit_diff": clean,
        **{f"{name}_logit_diff": corrupt.get(name, nan) for name in CORRUPTIONS},
        **{f"{name}_lacking": example.lacks.get(name, "") if example.kept else "" for name in CORRUPT},
    }
    types = {"shared_tokens": pa.list_(pa.int64()), "corrupt_prompt": pa.string()}  # which may hold nothing
    return pa.table({name: pa.array([value], types.get(name)) for name, value in record.items()})


# --- the end ----------------------------------------------------------------------------------------------


def _conclude(run: Run) -> None:
    """Select heads, ablate them, test what they see, draw where they look, summarise, and write the report.

    A model that answers nothing rightly has nothing to restore: the report then says so, and why each row went.
    """
    run.bar.say("summarising")
    run.place.forget_parts()
    found = summary.select(run.place, run.config.to_json())
    run.bar.say("ablating")
    halves = summary.halved(found)
    conclusion.ablate_kept(run, summary.to_ablate(halves))
    run.bar.say("testing what heads see")
    conclusion.test_attention(run, summary.to_test(found, halves))
    run.bar.say("drawing")
    figures = conclusion.draw_attention(run, selections.to_draw(found.heads))
    run.bar.say("summarising")
    summary.conclude(run.place, found, figures)
    report.write(run.place.path)
