"""A run under way: what each of its stages is given. Costs nothing; knows no model but through its public face."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hooked_vlm.models.base import HookedVLM
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.directory import RunDirectory
from hooked_vlm.notice.rows import TaskRows
from hooked_vlm.notice.terminal import Progress


@dataclass(frozen=True)
class Run:
    """A run under way.

    Args:
        place: its directory, locked.
        config: its configuration, resolved.
        model: whose heads are patched.
        rows: of each task, surveyed.
        bar: what is shown of it.
        stop: whether it is to stop when the examples in flight are done.
    """

    place: RunDirectory
    config: NoticeConfig
    model: HookedVLM
    rows: Mapping[str, TaskRows]
    bar: Progress
    stop: Callable[[], bool]

    @property
    def batch(self) -> int:
        """Examples that are run together."""
        assert self.config.batch is not None
        return self.config.batch

    def go_on(self) -> None:
        """Raise KeyboardInterrupt, which says what is kept, if Ctrl-C was pressed."""
        if self.stop():
            n = self.place.n_examples
            done = "1 example is" if n == 1 else f"{n} examples are"
            raise KeyboardInterrupt(f"stopped; {done} in {self.place.path}, and the same command goes on from there")
