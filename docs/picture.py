"""Draw the README's picture: `python docs/picture.py`. What its sweep finds, and where that head looks."""

from __future__ import annotations

from pathlib import Path

import torch

from hooked_vlm import HookedVLM, viz
from hooked_vlm.datasets import shapes
from hooked_vlm.patching import Sites, sweep
from hooked_vlm.patching.metrics import logit_diff

HERE = Path(__file__).parent


def main() -> None:
    """Write docs/heads.png and docs/attention.png."""
    model = HookedVLM.from_pretrained("zoo:blip-shapes")
    rows = shapes.load("shape", 24, seed=5)
    clean = model.to_inputs(list(rows["image"]), list(rows["prompt"]))
    corrupt = model.to_inputs(list(rows["corrupt_image"]), list(rows["prompt"]))
    right, wrong = ([model.to_single_token(word) for word in rows[column]] for column in ("answer", "wrong_answer"))
    sites = Sites.heads(model, "text_encoder", "cross_attn", positions="all_at_once")
    result = sweep(model, clean, corrupt, sites, logit_diff(right, wrong), progress=False)
    effect = result.effect().mean(-1)
    layer, head = divmod(int(effect.abs().argmax()), effect.shape[1])
    viz.save(
        viz.head_map(
            effect,
            label="logits restored",
            title="Cross-attention heads, patched one at a time",
            framed=[(layer, head)],
            to="matplotlib",
        ),
        HERE / "heads.png",
    )
    hook = f"text_encoder.blocks.{layer}.cross_attn.hook_pattern"
    with torch.no_grad():
        _, cache = model.run_with_cache(clean, names_filter=hook)
    shown = [0, 1, 2]
    pictures = [rows[i]["image"] for i in shown]
    query = [int(clean[i].find(rows[i]["prompt"].split()[2])[0]) for i in shown]
    patches = [cache[hook][i, head, at, clean.image_span] for i, at in zip(shown, query, strict=True)]
    seen = viz.Geometry.of(model.processor, pictures[0], model.vision_encoder.patch_size)
    viz.save(
        viz.attention_over_image(
            torch.stack(patches),
            pictures,
            seen,
            titles=[rows[i]["prompt"] for i in shown],
            title=f"Where layer {layer} head {head} looks from the colour's word",
            to="matplotlib",
        ),
        HERE / "attention.png",
    )


if __name__ == "__main__":
    main()
