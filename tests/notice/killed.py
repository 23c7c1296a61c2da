"""A run in a process of its own, to be killed: python -m tests.notice.killed DIRECTORY TASK [DELAY]

DELAY seconds pass before each file is moved into place, so that a kill often falls between two files.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from hooked_vlm.notice import pipeline
from hooked_vlm.notice.config import NoticeConfig
from tests.notice.models import small


def config_of(task: str, **changes: Any) -> NoticeConfig:
    """The configuration that is run."""
    options = {"noise": True, "bootstrap": 20, "random_draws": 2, "examples": 4, "batch": 2, "kinds": ("attn-heads",)}
    return NoticeConfig(model="blip", tasks=(task,), **options | changes)


if __name__ == "__main__":
    delay, replace = float(sys.argv[3]), os.replace

    def slowly(source: str, target: str) -> None:
        time.sleep(delay)
        replace(source, target)

    os.replace = slowly  # type: ignore[assignment]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    pipeline.run(config_of(sys.argv[2]), sys.argv[1], progress=False, model=small("blip"))
