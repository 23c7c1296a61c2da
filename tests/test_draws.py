"""Every run of the tests draws new examples, CI's too, and says how to draw them again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(os.environ.get("CONFTEST") or Path(__file__).with_name("conftest.py"))
DRAWING = """
from hypothesis import given, strategies as st

@given(st.integers())
def test_drawn(n):
    print("drawn", n, file=open("drawn.txt", "a"))

@given(st.integers())
def test_failing(n):
    assert n < 1000
"""


class Run:
    """A run of the tests in a folder: what it printed, and what the test that draws drew."""

    def __init__(self, folder: Path, *options: str) -> None:
        drawn = folder / "drawn.txt"
        drawn.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "_hypothesis_pytestplugin", *options],
            cwd=folder,
            env={**os.environ, "CI": "true", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        self.printed = done.stdout + done.stderr
        assert "1 failed, 1 passed" in self.printed, self.printed
        self.drawn = drawn.read_text()
        before, after = re.findall(r"seed (\d+); again: make test SEED=\1", self.printed)
        assert before == after
        self.seed = before


def test_a_run_in_ci_draws_anew_keeps_what_fails_and_is_repeated_by_its_seed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_drawing.py").write_text(DRAWING)
    run = Run(tmp_path, "-p", "xdist", "-n", "2")
    assert "@reproduce_failure" in run.printed
    assert any((tmp_path / ".hypothesis" / "examples").iterdir())
    assert Run(tmp_path).drawn != run.drawn
    again = Run(tmp_path, f"--hypothesis-seed={run.seed}")
    assert (again.seed, again.drawn) == (run.seed, run.drawn)
