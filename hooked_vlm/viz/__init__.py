"""Pictures of what a model does, each in two forms: plotly to look at, matplotlib for papers.

    viz.head_map(result)                                      # layer x head, of a sweep or any [layer head]
    viz.token_map(effects, inputs.str_tokens)                 # layer x token
    seen = viz.Geometry.of(model.processor, image, model.vision_encoder.patch_size)
    viz.attention_over_image(pattern[head, query], image, seen, to="matplotlib")

Everything takes arrays, tensors and plain facts: this package imports none of the others, `errors` excepted. Charts
cost what their numbers cost. `save` writes a figure; matplotlib is installed by the extra `figures`.
"""

from hooked_vlm.viz.charts import head_map, token_map, word_map
from hooked_vlm.viz.geometry import Geometry, picture
from hooked_vlm.viz.images import attention_over_image, clean_against_corrupt, overlay
from hooked_vlm.viz.panels import save
from hooked_vlm.viz.scales import Scale

__all__ = [
    "Geometry",
    "Scale",
    "attention_over_image",
    "clean_against_corrupt",
    "head_map",
    "overlay",
    "picture",
    "save",
    "token_map",
    "word_map",
]
