"""What a run is told with: `write` makes a run's report, `compare.compare` puts several runs side by side.

Each is one HTML file that opens offline, made from run.json, summary.json and figures alone: nothing in here loads a
model or reads a parquet file. `loaded` is a run as it is read; `text` makes every sentence, the terminal's too;
`views`, `maps` and `compare` say what a page shows, as plain dictionaries with `charts`; `render` writes them into
templates/; `notebook` is what a notebook shows.
"""

from __future__ import annotations

from pathlib import Path

from hooked_vlm.notice.directory import REPORT, RunDirectory
from hooked_vlm.notice.report import views
from hooked_vlm.notice.report.loaded import Loaded
from hooked_vlm.notice.report.render import page

__all__ = ["html_of", "write"]


def write(directory: str | Path) -> Path:
    """Write report.html of a finished run: for a reader who was not there, the same each time, byte for byte.

    Costs a second, and 5 MB of disk for plotly.js.

    Args:
        directory: of the run; holds run.json, summary.json and, where overlays were drawn, figures/.

    Returns:
        The report's path.

    Raises:
        RunDirectoryError: There is no finished run, or the file cannot be written.
    """
    run = Loaded.read(directory)
    return RunDirectory(directory).write_text(REPORT, html_of(run))


def html_of(run: Loaded) -> str:
    """The report as text."""
    return page("report", views.report(run))
