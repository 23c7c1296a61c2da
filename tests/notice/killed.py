"""Runs in processes of their own, to be killed: a warm server that forks one for each run, so that 200 take minutes.

    with Server(task) as server:
        pid = server.start(directory)             # a run, in a process of its own
        os.kill(pid, signal.SIGKILL)
        server.wait()                             # how it ended, as `subprocess` gives it
        server.start(directory, die_at=7)         # one that kills itself at the seventh thing it does to the disk

The server imports everything and builds the model once, with one thread, before it forks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooked_vlm.notice import pipeline
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.report import compare  # noqa: F401  imported before the first fork
from tests.notice.models import small

MOMENTS = ("before", "middle", "after")  # of a line of the manifest or of a file's move; a move has no middle


def config_of(task: str, **changes: Any) -> NoticeConfig:
    """The configuration that is run."""
    options = {"noise": True, "bootstrap": 20, "random_draws": 2, "examples": 4, "batch": 2}
    of_heads = {"kinds": ("cross_attn-heads",), "corrupt": ("image",)}  # those that see the image, so that it is drawn
    return NoticeConfig(model="blip", tasks=(task,), **options | of_heads | changes)


class Server:
    """Forks runs of `config_of(task)`.

    Args:
        task: a file of questions.
    """

    def __init__(self, task: str) -> None:
        command = [sys.executable, "-m", "tests.notice.killed", task]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, **pipes, text=True, cwd=root, env=environment)  # type: ignore[call-overload]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def start(self, out: Path, die_at: int | None = None, moment: str = "before") -> int:
        """Begin a run, or go on with one; its process.

        Args:
            out: the run's directory.
            die_at: at which line or move it kills itself, from 0; None for never.
            moment: one of `MOMENTS`.
        """
        asked = json.dumps({"out": str(out), "die_at": die_at, "moment": moment})
        self._process.stdin.write(f"{asked}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """How the run ended: 0, 1, or a signal's number below 0."""
        return int(self._process.stdout.readline())

    def go(self, out: Path, die_at: int | None = None, moment: str = "before") -> int:
        """`start` and `wait`."""
        self.start(out, die_at, moment)
        return self.wait()


def dying(die_at: int | None, moment: str) -> list[int]:
    """Let this process kill itself at a line of a manifest or a move of a file; how many there were, in a list."""
    from hooked_vlm.notice import storage

    counted, replace, add = [0], os.replace, storage.Manifest.add

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def here() -> bool:
        counted[0] += 1
        return counted[0] - 1 == die_at

    def replaced(source: Any, target: Any) -> None:
        now = here()
        if now and moment != "after":
            die()
        replace(source, target)
        if now:
            die()

    def added(self: Any, entry: Mapping[str, Any]) -> None:
        now = here()
        if now and moment == "middle":
            with self.path.open("ab") as file:
                file.write(storage._line(entry)[:50])
        if now and moment != "after":
            die()
        add(self, entry)
        if now:
            die()

    os.replace = replaced  # type: ignore[assignment]
    storage.Manifest.add = added  # type: ignore[method-assign]
    return counted


def serve(task: str) -> None:
    """Read what is asked for, line by line, and fork."""
    model = small("blip")
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            code = 1
            try:
                counted = dying(asked["die_at"], asked["moment"])
                pipeline.run(config_of(task), asked["out"], progress=False, model=model)
                Path(f"{asked['out']}.moves").write_text(str(counted[0]))
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        status = os.waitpid(child, 0)[1]
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
