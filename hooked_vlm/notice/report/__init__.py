"""What a run is told with: `write` makes a run's report, `compare.compare` puts several runs side by side.

Each is one HTML file that opens offline, made from run.json, summary.json and figures alone: nothing in here loads a
model or reads a parquet file. `writing` and `compare` are the two pages, `notebook` is what a notebook shows; `maps`,
`selection`, `evidence` and `head_maps` are parts of them; `charts`, `words`, `page` and `style` say how a thing is
drawn, worded, marked up and coloured; `loaded` is a run as it is read.
"""

from hooked_vlm.notice.report.writing import write

__all__ = ["write"]
