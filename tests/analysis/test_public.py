"""What `hooked_vlm.analysis` offers by name is there, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hooked_vlm import analysis


def test_every_public_name_is_there() -> None:
    assert set(analysis.__all__) == set(dir(analysis)) == set(analysis._PUBLIC)
    assert all(callable(getattr(analysis, name)) for name in analysis.__all__)
    with pytest.raises(AttributeError, match="it offers GaussianNoise, ReferenceMeans"):
        _ = analysis.nothing


def test_it_is_reached_from_the_top_and_imports_nothing_heavy() -> None:
    script = "import hooked_vlm, sys; hooked_vlm.analysis; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
