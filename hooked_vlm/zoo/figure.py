"""A picture of the shapes world and of the zoo's answers, for the documentation: one pair of every task.

`python -m hooked_vlm.zoo.evaluate --figure FILE` draws it. Costs a few seconds, and needs matplotlib.
"""

import pathlib
from typing import Any

from hooked_vlm.datasets import shapes
from hooked_vlm.datasets.scenes import GRID
from hooked_vlm.zoo.measure import Answerer, probabilities

SHADES = ("#1b6ca8", "#e08e2b")
PICTURES = {"image": "clean image", "corrupt_image": "corrupt image", "mask": "mask of the thing asked about"}


def draw(models: dict[str, tuple[Answerer, Any]], path: pathlib.Path, seed: int = 6) -> None:
    """Draw a pair of every task, the mask of the thing asked about, and what the models answer.

    Args:
        models: By name, a model and its tokenizer.
        path: The picture's file; its ending says which kind.
        seed: Of the scenes.

    Raises:
        ImportError: There is no matplotlib.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib: pip install 'hooked-vlm[figures]'.") from error

    figure = pyplot.figure(figsize=(10, 9), layout="constrained")
    bands: Any = figure.subfigures(len(shapes.TASKS), 1)
    for band, (task, index) in zip(bands, (("colour", 10), ("shape", 14), ("place", 1)), strict=True):
        pair = shapes.pair(task, index, seed=seed, n_objects=(3,))
        row = pair.to_row(4 * GRID)
        band.suptitle(f"{task}:  {pair.prompt}      corrupt prompt:  {pair.corrupt_prompt}", fontsize=11)
        axes = band.subplots(1, 4, width_ratios=(1, 1, 1, 1.4))
        for axis, (name, title) in zip(axes, PICTURES.items(), strict=False):
            axis.imshow(row[name], cmap="gray", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(title, fontsize=9)
        _bars(axes[3], models, pair)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(axis: Any, models: dict[str, tuple[Answerer, Any]], pair: shapes.Pair) -> None:
    """Probability of the right answer to the right, of the wrong one to the left, a bar for every run."""
    runs = (
        ("clean", pair.scene, pair.prompt),
        ("corrupt image", pair.corrupt_scene, pair.prompt),
        ("corrupt prompt", pair.scene, pair.corrupt_prompt or pair.prompt),
        ("blank image", None, pair.prompt),
    )
    for offset, (name, (model, tokenizer)) in enumerate(models.items()):
        right, wrong = tokenizer.convert_tokens_to_ids([pair.answer, pair.wrong_answer])
        chances = probabilities(model, [scene for _, scene, _ in runs], [prompt for _, _, prompt in runs])
        at = [number + 0.34 * (offset - (len(models) - 1) / 2) for number in range(len(runs))]
        axis.barh(at, chances[:, right].tolist(), 0.3, color=SHADES[offset % 2], label=name)
        axis.barh(at, (-chances[:, wrong]).tolist(), 0.3, color=SHADES[offset % 2])
    axis.set_yticks(range(len(runs)), [label for label, _, _ in runs], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(-1.05, 1.05)
    axis.set_xticks((-1, 0, 1), (pair.wrong_answer, "probability", pair.answer), fontsize=9)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, 1.16), ncols=2, frameon=False)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
