"""What `hooked_vlm.notice` offers by name is there, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hooked_vlm import notice


def test_every_public_name_is_there() -> None:
    assert set(notice.__all__) == set(dir(notice)) == set(notice._PUBLIC)
    assert all(callable(getattr(notice, name)) for name in notice.__all__)
    with pytest.raises(AttributeError, match="it offers NoticeConfig, compare"):
        _ = notice.nothing


def test_naming_the_package_imports_nothing_heavy() -> None:
    script = "import hooked_vlm.notice, sys; print([m for m in ('torch', 'pandas', 'pyarrow') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
