"""A run's stages follow one another once: a source is opened once, and nothing is summarised twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hooked_vlm.analysis import universal_heads
from hooked_vlm.datasets import sources
from hooked_vlm.notice import pipeline, places, rows, tables
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.directory import EFFECTS, RunDirectory
from tests.notice.models import answerable, small

STAGES = (
    (universal_heads, "select_matrices"),
    (universal_heads, "universal"),
    (places, "best_places"),
    (tables, "counts"),
    (tables, "behaviour"),
    (tables, "heads"),
    (tables, "roles"),
    (tables, "ablation"),
    (tables, "noise"),
)


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each source is opened, each table of the summary made, and the effects of each task read."""
    found: Counter[str] = Counter()

    def watched(room: Any, name: str, called: Any) -> None:
        before = getattr(room, name)

        def call(*args: Any, **options: Any) -> Any:
            if said := called(*args):
                found[said] += 1
            return before(*args, **options)

        monkeypatch.setattr(room, name, call)

    watched(rows, "source", lambda task: f"source {task}")
    for room, name in STAGES:
        watched(room, name, lambda *args, name=name: name)
    watched(RunDirectory, "tables", lambda _, kind, task, *more: f"effects of {task}" if kind == EFFECTS else "")
    return found


def test_each_stage_of_a_run_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = NoticeConfig(
        model="zoo:blip-shapes", tasks=("colour", "shape"), kinds=("cross_attn-heads", "mlp"), positions="answer",
        examples=2, batch=2, bootstrap=10, random_draws=2, noise=True,
    )  # fmt: skip
    found = counted(monkeypatch)
    pipeline.run(config, tmp_path / "run", progress=False)
    thrice = {"select_matrices", "universal"}  # of all examples, and of each half for what the other judges
    assert {name: found[name] for _, name in STAGES} == {name: 3 if name in thrice else 1 for _, name in STAGES}
    assert all(found[f"effects of {task}"] == 1 for task in config.tasks)
    assert all(found[f"source {task}"] == 1 for task in config.tasks)


def test_what_fits_in_no_memory_is_drawn_again_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = answerable("blip", tmp_path / "some.parquet", 8)
    options = {"kinds": ("cross_attn-heads",), "examples": 3, "batch": 2, "bootstrap": 10, "random_draws": 2}
    config, files = NoticeConfig(model="m", tasks=(task,), **options), []
    for kept in (2**28, 0):
        monkeypatch.setattr(rows, "KEPT", kept)
        run = pipeline.run(config, tmp_path / f"{kept}", progress=False, model=small("blip"))
        files.append({str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.parquet")})
        files[-1]["summary.json"] = (run / "summary.json").read_bytes()
    assert files[0] == files[1] and files[0]


def test_rows_that_fit_are_those_that_were_looked_through(tmp_path: Path) -> None:
    """Looked at for a plan first, surveyed, and drawn again: the rows of the source, in order, each drawn once."""
    model = small("blip")
    config = NoticeConfig(model="m", tasks=("colour",), examples=3)
    drawn = rows.TaskRows(config, "colour")
    first = drawn.first(model, 2)
    drawn.survey(model)
    again = list(drawn.again(model, range(len(drawn))))
    expected = list(sources.source("colour", n=12, tokenizer=model.processor.tokenizer).rows)
    assert [row["id"] for _, row in again] == [row["id"] for row in expected] == drawn.ids
    assert [number for number, _ in again] == list(range(12)) and drawn.noted["rows"] == 12
    assert all(row is again[i][1] for i, row in enumerate(first)) and drawn.first(model, 3)[:2] == first
    assert [number for number, _ in drawn.again(model, {7, 2})] == [2, 7]
