"""A run directory made from nothing, in the format of a real one: parquet files, run.json, summary.json, figures.

The effects are drawn, with a few heads that stand out in every task; summary.json is made from the parquet files as for
a real run. No model runs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from hooked_vlm.analysis.ablation import FULL, SELECTED
from hooked_vlm.analysis.causes import INTERVENTIONS
from hooked_vlm.analysis.heads import HEAD_KINDS
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.directory import RUN, VERSION, RunDirectory, block_size
from hooked_vlm.notice.run_tables import ABLATION_COLUMNS, ATTENTION_COLUMNS, CAUSES_COLUMNS
from hooked_vlm.notice.storage import digest_of
from hooked_vlm.notice.summary import summarise
from hooked_vlm.notice.vocabulary import MODULE_KINDS

POSITIONS = (
    ("special", "[CLS]"),
    ("other", "is"),
    ("subject", "circle"),
    ("answer", "red"),
    ("wrong answer", "blue"),
    ("last", "?"),
)
COLUMNS = {
    "attention": ATTENTION_COLUMNS,
    "ablation": ABLATION_COLUMNS,
    "causes": CAUSES_COLUMNS,
}  # where nothing was measured
DRAWS = 199  # random sets of heads
STRONG = {
    ("cross_attn-heads", 1, 2): ("image", "text"),
    ("cross_attn-heads", 2, 0): ("image",),
    ("attn-heads", 1, 1): ("text",),
}


def run_directory(
    path: Path,
    *,
    tasks: Sequence[str] = ("colour", "shape", "place"),
    corrupt: Sequence[str] = ("image", "text"),
    kinds: Sequence[str] = (*HEAD_KINDS, *MODULE_KINDS),
    layers: int = 3,
    heads: int = 4,
    kept: int = 14,
    dropped: int = 2,
    noise: bool = True,
    masks: bool = True,
    strong: bool = True,
    model: str = "zoo:blip-shapes",
    seed: int = 0,
) -> Path:
    """Write a finished run's parquet files, run.json, summary.json and figures.

    Args:
        path: the directory; made if it is not there.
        tasks: names of the tasks.
        corrupt: modalities that were corrupted.
        kinds: what was patched.
        layers: of the prompt's stack.
        heads: of each of its layers.
        kept: examples a task that were patched.
        dropped: examples a task that were answered wrongly.
        noise: with Gaussian noise beside each modality.
        masks: with a mask of the object asked about.
        strong: with heads that stand out in every task.
        model: name of the model.
        seed: of what is drawn.
    """
    draw = np.random.default_rng(seed)
    every = [*corrupt, *(f"{modality}_noise" for modality in corrupt if noise)]
    config = NoticeConfig(
        model=model,
        tasks=tuple(tasks),
        corrupt=tuple(corrupt),
        kinds=tuple(kinds),
        select_at="answer",
        examples=kept or 1,
        seed=seed,
        noise=noise,
        random_draws=DRAWS,
        bootstrap=100,
        batch=16,
    )
    about = {
        "name": model,
        "class": "HookedBLIPForQuestionAnswering",
        "stack": "text_encoder",
        "layers": layers,
        "heads": heads,
    }
    run = {
        "version": VERSION,
        "id": digest_of([config.to_json(), str(path)]),
        "config": config.to_json(),
        "model": {**about, "d_model": 16},
        "packages": {"hooked-vlm": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "block": block_size(16),
        "started": "2026-01-05T10:00:00+00:00",
    }
    path.mkdir(parents=True, exist_ok=True)
    place = RunDirectory(path)
    place.begin(run)
    written = set()
    for task in tasks:
        every_table: dict[str, dict[int, pa.Table]] = {}
        for number in range(kept + dropped):
            key = {"task": task, "example": f"{task}-{number}", "group": f"g{number % 2}"}
            good = number < kept
            tables = {"examples": [_example(key, number, good, every)]}
            if good:
                tables["effects"] = _effects(key, every, kinds, layers, heads, strong, draw)
                tables["attention"] = _attention(key, kinds, layers, heads, masks, draw)
                tables["ablation"] = _ablation(key, corrupt, strong, draw)
                if strong:
                    tables["causes"] = _causes(key, kinds, masks, np.random.default_rng((seed, number)))
            for name, rows in tables.items():
                frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=COLUMNS[name])
                every_table.setdefault(name, {})[number] = pa.Table.from_pandas(frame, preserve_index=False)
        for name, of in every_table.items():
            if any(table.num_rows for table in of.values()) or name not in ("ablation", "causes"):
                place.add(name, task, of)
                written.add(name)
    drawn = strong and "effects" in written
    figures = [figure(path, f"head-{i}", *head) for i, head in enumerate(STRONG)] if drawn else []
    summarise(path, figures=figures)
    return path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write run.json or summary.json as the run would."""
    place = RunDirectory(path.parent)
    if path.name == RUN:
        place.begin(content)
    else:
        place.write_text(path.name, json.dumps(content))


def edit_summary(path: Path, **changes: Any) -> dict[str, Any]:
    """Replace top-level parts of a run's summary.json, as if the run had written them."""
    summary = json.loads((path / "summary.json").read_text())
    summary.update(changes)
    write_json(path / "summary.json", summary)
    return summary


def edit_tables(path: Path, kind: str, task: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the tables of a kind of a task, as if the run had written them."""
    columns = pd.read_parquet(next((path / kind).glob(f"{task}-*.parquet"))).columns
    tables = dict(RunDirectory(path).opened().tables(kind, task, list(columns)))
    write_tables(path, kind, task, {number: change(table.to_pandas()) for number, table in tables.items()})


def write_tables(path: Path, kind: str, task: str, frames: Mapping[int, pd.DataFrame]) -> None:
    """Write the tables of some examples, as if the run had."""
    tables = {number: pa.Table.from_pandas(frame, preserve_index=False) for number, frame in frames.items()}
    RunDirectory(path).opened().add(kind, task, tables)


def number_of(frame: pd.DataFrame) -> int:
    """The number of the example whose table this is."""
    return int(frame["example"].iloc[0].rpartition("-")[2])


def _example(key: dict[str, str], number: int, good: bool, every: Sequence[str]) -> dict[str, Any]:
    text = "is the circle red or blue?"
    after = {
        f"{name}_logit_diff": -3.0 if name in every and good else float("nan")
        for name in ("image", "text", "image_noise", "text_noise")
    }
    return {
        **key,
        "number": number,
        "prompt": text,
        "corrupt_prompt": text.replace("circle", "square"),
        "answer": "red",
        "wrong_answer": "blue",
        "generated": "red" if good else "blue",
        "kept": good,
        "reason": "" if good else "wrong answer",
        "right_token": 5,
        "wrong_token": 6,
        "clean_logit_diff": 4.0 + number / 10 if good else -1.0,
        **after,
    }


def _effects(
    key: dict[str, str], every: Sequence[str], kinds: Sequence[str], layers: int, heads: int, strong: bool, draw: Any
) -> list[dict[str, Any]]:
    rows = []
    for corrupt in every:
        for kind in kinds:
            per_head = kind in HEAD_KINDS
            places = [*enumerate(POSITIONS), *([(-1, ("every position", ""))] if per_head else [])]
            for layer in range(layers):
                for head in range(heads) if per_head else (-1,):
                    high = strong and corrupt.removesuffix("_noise") in STRONG.get((kind, layer, head), ())
                    for position, (role, token) in places:
                        scale = 1.0 if role in ("answer", "every position") else 0.15
                        effect = scale * (
                            (1.4 if high else 0.0) + draw.normal(0.08, 0.12) + (0 if per_head else 0.5 * layer)
                        )
                        rows.append(
                            {
                                **key,
                                "corrupt": corrupt,
                                "kind": kind,
                                "stack": "text_encoder",
                                "layer": layer,
                                "head": head,
                                "position": position,
                                "role": role,
                                "token": token,
                                "effect": effect,
                                "restoration": effect / 10,
                                "normalized": effect / 7,
                            }
                        )
    return rows


def _attention(
    key: dict[str, str], kinds: Sequence[str], layers: int, heads: int, masks: bool, draw: Any
) -> list[dict[str, Any]]:
    rows = []
    for kind in kinds:
        for layer in range(layers if kind in HEAD_KINDS else 0):
            for head in range(heads):
                inside = float(np.clip(draw.normal(0.5 if (kind, layer, head) in STRONG else 0.15, 0.05), 0.01, 1))
                scored = {
                    "inside": inside,
                    "area": 0.15,
                    "lift": inside / 0.15,
                    "auc": 0.5 + inside / 2,
                    "pointing": float(inside > 0.4),
                    "relative_inside": inside - 0.2,
                    "rival_lift": (rival := float(np.clip(draw.normal(1.0, 0.1), 0.1, 2))),
                    "grounding": inside / 0.15 - rival,
                    "objects_lift": (inside / 0.15 + rival) / 2,
                }
                if not masks:
                    scored = dict.fromkeys(scored, float("nan"))
                rows.append(
                    {
                        **key,
                        "kind": kind,
                        "layer": layer,
                        "head": head,
                        "query_role": "answer",
                        "image_mass": 1.0,
                        **scored,
                        "outlier": float(draw.uniform(0, 0.2)),
                        "cls": 0.02,
                    }
                )
    return rows


def _causes(key: dict[str, str], kinds: Sequence[str], masks: bool, draw: Any) -> list[dict[str, Any]]:
    """The answer needs what the heads that stand out see of the object, and nothing else."""
    rows = []
    for kind, layer, head in (each for each in STRONG if each[0] in kinds):
        for intervention in INTERVENTIONS:
            cost = draw.normal(1.0 if intervention == "asked" else 0.0, 0.1)
            known = masks or intervention == "outliers"
            about = {"kind": kind, "layer": layer, "head": head, "intervention": intervention}
            rows.append({**key, **about, "cost": cost if known else float("nan")})
    return rows


def _ablation(key: dict[str, str], corrupt: Sequence[str], strong: bool, draw: Any) -> list[dict[str, Any]]:
    if not strong:
        return []
    whole = {"selection": FULL, "draw": SELECTED, "n_heads": 0, "overlap": 0, "correct": True, "logit_diff": 4.0}
    rows = [{**key, **whole}]
    for modality in corrupt:
        for which in range(SELECTED, DRAWS):
            left = 1.0 if which == SELECTED else 3.5
            about = {"selection": f"universal {modality}", "draw": which, "n_heads": 2, "overlap": 0}
            rows.append(
                {**key, **about, "correct": bool(draw.random() < left / 4), "logit_diff": draw.normal(left, 0.3)}
            )
    return rows


def figure(path: Path, name: str, kind: str, layer: int, head: int) -> dict[str, Any]:
    """Write a small PNG among the run's figures, and give its record."""
    shades = np.linspace(0, 255, 48 * 48).reshape(48, 48)
    drawn = Image.fromarray(np.stack([shades, shades.T, shades], axis=-1).astype(np.uint8))

    class Drawn:
        def savefig(self, into: io.BytesIO, **options: Any) -> None:
            drawn.save(into, format="PNG")

    RunDirectory(path).write_figure(f"figures/{name}.png", Drawn())
    return {
        "file": f"figures/{name}.png",
        "kind": kind,
        "layer": layer,
        "head": head,
        "example": "colour-0",
        "caption": f"Attention of L{layer}.H{head} from the answer word, colour-0",
    }
