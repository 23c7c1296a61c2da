"""A run that is stopped inside an example goes on inside it, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hooked_vlm.notice import NoticeConfig, effects, parts, run
from tests.notice.models import FAMILIES, answerable, small


class Killed(BaseException):
    pass


def config_of(family: str, tmp_path: Path, **changes: Any) -> NoticeConfig:
    task = answerable(family, tmp_path / "some.parquet")
    options: dict[str, Any] = {"kinds": ("attn-heads", "mlp"), "bootstrap": 10, "random_draws": 0, "examples": 2}
    return NoticeConfig(model=family, tasks=(task,), **options | changes)


def effects_of(directory: Path) -> pd.DataFrame:
    tables = [pd.read_parquet(path) for path in sorted((directory / "effects").glob("*.parquet"))]
    return pd.concat(tables, ignore_index=True)


def swept_pieces(monkeypatch: pytest.MonkeyPatch, *, until: int | None = None) -> list[str]:
    """The pieces that are swept, as they are; with `until`, the process dies after so many."""
    whole, seen = effects.sweep_all, []

    def counted(*args: Any, done: Any, **options: Any) -> Any:
        def each(name: str, result: Any) -> None:
            done(name, result)
            seen.append(name)
            if len(seen) == until:
                raise Killed

        return whole(*args, done=each, **options)

    monkeypatch.setattr(effects, "sweep_all", counted)
    return seen


@pytest.mark.parametrize(
    ("family", "harm"), [("llava", "nothing"), *(("blip", harm) for harm in ("nothing", "cut", "gone", "swapped"))]
)
def test_a_run_goes_on_inside_an_example(
    family: str, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "PIECE", 1)
    config = config_of(family, tmp_path)
    with monkeypatch.context() as patched:
        every = swept_pieces(patched)
        expected = effects_of(run(config, tmp_path / "whole", model=small(family), progress=False))
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        seen = swept_pieces(patched, until=5)
        with pytest.raises(Killed):
            run(config, out, model=small(family), progress=False)
    kept = sorted((out / "parts").glob("*.parquet"))
    assert len(kept) == len(seen) == 5
    if harm == "cut":
        kept[0].write_bytes(kept[0].read_bytes()[:-9])
    elif harm == "gone":
        kept[0].unlink()
    elif harm == "swapped":
        one, other = (path.read_bytes() for path in kept[:2])
        kept[0].write_bytes(other), kept[1].write_bytes(one)
    with monkeypatch.context() as patched:
        again = swept_pieces(patched)
        run(config, out, model=small(family), progress=False)
    lost = {"nothing": 0, "cut": 1, "gone": 1, "swapped": 2}[harm]
    assert len(again) == len(every) - 5 + lost
    pd.testing.assert_frame_equal(effects_of(out), expected, check_exact=True)
    assert not (out / "parts").exists()


def test_parts_are_kept_only_where_a_batch_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = swept_pieces(monkeypatch, until=3)
    with pytest.raises(Killed):
        run(config_of("blip", tmp_path), tmp_path / "run", model=small("blip"), progress=False)
    assert len(seen) == 3 and not (tmp_path / "run" / "parts").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_screened_run_says_what_was_measured(family: str, tmp_path: Path) -> None:
    exact = effects_of(run(config_of(family, tmp_path), tmp_path / "exact", model=small(family), progress=False))
    directory = run(config_of(family, tmp_path, screen=2), tmp_path / "run", model=small(family), progress=False)
    found = effects_of(directory)
    assert 0 < found["measured"].mean() < 1 and "measured" not in exact
    both = found["measured"] & (found["kind"] == "attn-heads")
    assert (found.loc[both, "effect"] - exact.loc[both, "effect"]).abs().max() < 1e-4
    assert "Screened: of each kind of sites" in (directory / "report.html").read_text(encoding="utf-8")
