"""What a plan counts is what a run does; it reads no weights, and refuses what does not fit before they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from hooked_vlm import HookedVLM
from hooked_vlm.errors import DoesNotFitError, InputsError
from hooked_vlm.notice import NoticeConfig, effects, plan, run
from hooked_vlm.notice.planning import looked_at
from hooked_vlm.notice.rows import TaskRows
from hooked_vlm.patching import cost, engine
from tests.notice.models import FAMILIES, answerable, blip_shapes, small, untrained_llava

ZOO = {"zoo:blip-shapes": blip_shapes, "zoo:llava-shapes": untrained_llava}  # the plan looks at no weight


def config_of(name: str, **changes: Any) -> NoticeConfig:
    options: dict[str, Any] = {"tasks": ("colour",), "noise": True, "batch": 1, "device": "cpu"}
    return NoticeConfig(model=name, **options | changes)


class Counted:
    """Positions that run through blocks of a stack while it is open, the whole runs of `measured` left out."""

    def __init__(self, model: HookedVLM) -> None:
        self.model, self.positions = model, 0

    def __enter__(self) -> Counted:
        self.stack, counting = self.model.stacks[self.model.prompt_stack], []

        def while_it_runs(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*given: Any, **options: Any) -> Any:
                counting.append(True)
                try:
                    return call(*given, **options)
                finally:
                    counting.pop()

            return run

        def count(block: Any, given: Any, after: torch.Tensor) -> None:
            self.positions += after.shape[0] * after.shape[1] * len(counting)

        self.watching = [block.register_forward_hook(count) for block in self.stack.blocks]
        self.stack.one_block = while_it_runs(self.stack.one_block)  # type: ignore[method-assign]
        self.model.resume = while_it_runs(self.model.resume)  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self.stack.one_block, self.model.resume
        for handle in self.watching:
            handle.remove()


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("changes", [{}, {"positions": "last"}])
def test_what_is_foreseen_is_what_is_run(name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooked_vlm.notice.planning.LOOKED_AT", 2)
    monkeypatch.setattr(engine, "WASTE", 0)  # a pass begins where all its sites do
    model, config = ZOO[name](), config_of(name, **{"noise": False} | changes)
    if changes.get("positions") == "last" and name.startswith("zoo:blip"):
        config = replace(config, kinds=("cross_attn-heads", "mlp"))
    foretold = plan(config, model=model, timed=False)
    config = foretold.config
    examples = [example for task in config.tasks for example in looked_at(config, model, TaskRows(config, task))]
    assert len(examples) == 2
    skipped, positions, sites = 0, 0, 0
    for example in examples:
        with Counted(model) as counted:
            (found,) = effects.measured(model, config, [example])
        skipped, positions = skipped + sum(found.skipped.values()), positions + counted.positions
        sites += found.table.num_rows
    n = len(examples)
    assert foretold.sites == pytest.approx(sites / n, abs=len(foretold.costs))
    assert foretold.skipped == pytest.approx(skipped / n, abs=len(foretold.costs))
    assert foretold.position_runs == pytest.approx(positions / n, abs=len(foretold.costs))
    assert foretold.skipped > 0 or changes


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_torch_counts(family: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = small(family)
    inputs = model.to_inputs(torch.rand(3, 20, 20), "is it red?")
    with FlopCounterMode(display=False) as counter:
        model(inputs, logits_at="last")
    counted = cost.run_flop(model, cost.lengths_of(model, inputs.input_ids.shape[1]))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.15)  # patches, projector and head are left out


def test_a_plan_reads_no_weights_and_says_what_a_run_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HookedVLM, "from_pretrained", classmethod(lambda *args, **options: pytest.fail("loaded")))
    config = config_of("zoo:llava-shapes", examples=7)
    foretold = plan(config)
    said = str(foretold)
    assert foretold.seconds is not None and foretold.seconds > 0 and foretold.examples == 7
    for part in ("7 examples of colour", "cannot differ: not run", "position-runs", "memory:", "time: about"):
        assert part in said
    assert foretold.weights_bytes == sum(p.numel() for p in untrained_llava().hf_model.parameters()) * 4
    assert 0 < foretold.savings["--positions last"] < foretold.savings["--no-every-position"] < 1
    screened = plan(replace(config, screen=8), timed=False)
    assert screened.sites == foretold.sites and screened.position_runs < foretold.position_runs
    assert foretold.peak_bytes >= foretold.weights_bytes + foretold.kept_bytes + foretold.row_bytes


def test_every_position_at_once_is_swept_where_it_is_affordable(monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained_llava()
    assert plan(config_of("zoo:llava-shapes"), model=model, timed=False).config.every_position
    monkeypatch.setattr("hooked_vlm.notice.planning.AFFORDABLE", 0.1)
    dear = plan(config_of("zoo:llava-shapes"), model=model, timed=False)
    assert dear.config.every_position is False and "every position at once: not swept" in str(dear)
    asked = config_of("zoo:llava-shapes", every_position=True)
    assert plan(asked, model=model, timed=False).config.every_position
    for positions, at, swept in (("last", "auto", False), ("last", "every position", True)):
        config = config_of("zoo:llava-shapes", positions=positions, select_at=at)
        assert plan(config, model=model, timed=False).config.every_position is swept
    with pytest.raises(InputsError, match="every position where every_position is False"):
        config_of("zoo:llava-shapes", select_at="every position", every_position=False)


def test_what_does_not_fit_is_refused_before_the_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HookedVLM, "from_pretrained", classmethod(lambda *args, **options: pytest.fail("loaded")))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**22))
    with pytest.raises(DoesNotFitError, match=r"needs .* \(weights .*, and 4.0 MiB are free: dtype float16"):
        run(config_of("zoo:blip-shapes"), tmp_path / "run", progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_without_every_position_ends_in_a_report_that_says_so(family: str, tmp_path: Path) -> None:
    config = NoticeConfig(
        model=family, tasks=(answerable(family, tmp_path / "some.parquet"),), examples=5, bootstrap=20, random_draws=2,
        kinds=("attn-heads", "mlp"), every_position=False,
    )  # fmt: skip
    directory = run(config, tmp_path / "run", model=small(family), progress=False)
    table = pd.concat(pd.read_parquet(path) for path in (directory / "effects").glob("*.parquet"))
    assert (table["position"] >= 0).all()
    assert "every position at once was not swept" in (directory / "report.html").read_text(encoding="utf-8")


def test_the_command_prints_the_plan_and_runs_nothing(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["zoo:llava-shapes", "--task", "colour", "--examples", "3"]
    code, printed, told = command(*words, "--plan", "--out", str(out))
    assert (code, told) == (0, "") and "3 examples of colour" in printed and not out.exists()
    code, _, told = command(*words)
    assert code == 1 and "--out DIRECTORY, or --plan" in told
