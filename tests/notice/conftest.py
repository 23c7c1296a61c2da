"""What the tests of the pipeline share."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from hooked_vlm.cli import main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `hooked-vlm notice`; gives its exit code and what it wrote to the two streams."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()  # what was written before is not the command's
        monkeypatch.setattr(sys, "argv", ["hooked-vlm", "notice", *words])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call
