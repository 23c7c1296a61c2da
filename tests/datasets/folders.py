"""Small folders in the formats of the original data sets, pictures drawn from a number; a few milliseconds each."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hooked_vlm.datasets.svo_probes import COLUMNS

SVO_COLUMNS = ("sentence", *COLUMNS)


def picture(path: Path, number: int, *, mode: str = "RGB", side: int = 12) -> Path:
    """A picture of noise that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def damaged(path: Path) -> Path:
    """A picture's file cut off in the middle."""
    picture(path, 0, side=40)
    path.write_bytes(path.read_bytes()[:200])
    return path


def sorted_pictures(folder: Path, counts: Mapping[str, int], *, mode: str = "RGB", ending: str = ".png") -> Path:
    """Folders of so many pictures each, as MIT-States and FER-2013 have them."""
    for at, (name, n) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            picture(folder / name / f"{name.replace(' ', '_')}_{k:03d}{ending}", 1000 * at + k, mode=mode)
    return folder


def svo_line(positive: str, negative: str, pos_id: int | str, neg_id: int | str, **changes: str) -> dict[str, str]:
    """A line of svo_probes.csv; the flags follow from the triplets."""
    differ = [str(one != two) for one, two in zip(positive.split(","), negative.split(","), strict=False)]
    flags = dict(zip(("subj_neg", "verb_neg", "obj_neg"), [*differ, "False", "False", "False"], strict=False))
    ids = {"pos_image_id": str(pos_id), "neg_image_id": str(neg_id)}
    urls = {f"{which}_url": f"http://pictures.org/{ids[f'{which}_image_id']}_o.jpg" for which in ("pos", "neg")}
    return {
        "sentence": f"A {positive.replace(',', ' ')}.",
        "pos_triplet": positive,
        "neg_triplet": negative,
        **flags,
        **urls,
        **ids,
        **changes,
    }


def table(path: Path, lines: Iterable[Mapping[str, Any]], columns: Sequence[str] = SVO_COLUMNS) -> Path:
    """A file of comma-separated values with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return path


def svo_folder(folder: Path, lines: Sequence[Mapping[str, str]], *, ending: str = ".jpg") -> Path:
    """SVO-Probes with every picture of its lines by image id."""
    table(folder / "svo_probes.csv", lines)
    for id in sorted({line[f"{which}_image_id"] for line in lines for which in ("pos", "neg")}):
        picture(folder / "images" / f"{id}{ending}", int(id))
    return folder
