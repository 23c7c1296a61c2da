"""Pictures of what a model does, each in two forms: plotly to look at, matplotlib for papers.

    viz.head_map(result)                                      # layer x head, of a sweep or any [layer head]
    viz.token_map(effects, inputs.str_tokens)                 # layer x token
    viz.lines({"MLP": effects.mean(1)}, y_title="effect")     # over layers; also bars and scatter
    seen = viz.Geometry.of(model.processor, image, model.vision_encoder.patch_size)
    viz.attention_over_image(pattern[head, query], image, seen, to="matplotlib")

Everything takes arrays, tensors and plain facts: of the others this package imports `errors`, `images` and `resizing`
alone. Charts cost what their numbers cost. `save` writes a figure; matplotlib is installed by the extra `figures`.
`to="page"` gives one map or graph as plain plotly data, which is what the report of a run embeds.
"""

from hooked_vlm.viz.charts import head_map, token_map, word_map
from hooked_vlm.viz.forms import save
from hooked_vlm.viz.geometry import Geometry, picture
from hooked_vlm.viz.graphs import bars, lines, scatter
from hooked_vlm.viz.images import attention_over_image, clean_against_corrupt, overlay
from hooked_vlm.viz.scales import Scale

__all__ = [
    "Geometry",
    "Scale",
    "attention_over_image",
    "bars",
    "clean_against_corrupt",
    "head_map",
    "lines",
    "overlay",
    "picture",
    "save",
    "scatter",
    "token_map",
    "word_map",
]
