"""The numbers that a reader of a real run's report sees, recomputed from the parquet files with pandas and scipy.

Nothing of the package that computes is used here: a run is made, its report is read as a reader reads it, and every
table and chart is compared with the rows it is said to come from.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hooked_vlm.notice import NoticeConfig, run
from tests.notice.models import blip_shapes
from tests.notice.report.parsed import Page

TASKS = ("place", "colour")
HEADS = ("attn-heads", "cross_attn-heads")
EVERY = "every position"
CELL = ["corrupt", "kind", "task", "layer"]
WORDS = {
    "image": "image swapped for its pair",
    "text": "word replaced in the prompt",
    "image_noise": "Gaussian noise on the image",
    "text_noise": "Gaussian noise on the prompt",
}
MINUS = "\N{MINUS SIGN}"
NUMBER = rf"{MINUS}?\d+(?:\.\d+)?"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = ("cross_attn-heads", "attn-heads", "mlp", "resid")
    options = {"examples": 14, "noise": True, "kinds": kinds, "bootstrap": 400, "random_draws": 6, "seed": 3}
    config = NoticeConfig(model="zoo:blip-shapes", tasks=TASKS, **options)  # type: ignore[arg-type]
    return run(config, tmp_path_factory.mktemp("traced") / "run", progress=False, model=blip_shapes())


@pytest.fixture(scope="module")
def page(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows(directory: Path) -> dict[str, pd.DataFrame]:
    found = {}
    for kind in ("examples", "effects", "attention", "ablation"):
        parts = [pd.read_parquet(path) for path in sorted((directory / kind).glob("*.parquet"))]
        found[kind] = pd.concat(parts, ignore_index=True)
        texts = [name for name in found[kind] if isinstance(found[kind][name].dtype, pd.CategoricalDtype)]
        found[kind] = found[kind].astype(dict.fromkeys(texts, str))
    return found


def numbers(text: str) -> list[float]:
    """The numbers in a cell; percentages as shares."""
    scale = 100 if "%" in text else 1
    return [float(each.replace(MINUS, "-")) / scale for each in re.findall(NUMBER, text)]


def close(seen: float, value: float, digits: float = 0.006) -> bool:
    """Whether a number that was written with two or three decimals is a value."""
    return abs(seen - value) <= digits


def interval_fits(low: float, high: float, values: pd.Series, written: float = 0.006) -> bool:
    """Whether an interval is the percentile bootstrap of a mean, as scipy draws it, give or take the draws."""
    if values.nunique() == 1:
        return close(low, values.iloc[0]) and close(high, values.iloc[0])
    theirs = stats.bootstrap((values.to_numpy(),), np.mean, n_resamples=2000, method="percentile", rng=1)
    ends, room = theirs.confidence_interval, 0.2 * (theirs.confidence_interval.high - theirs.confidence_interval.low)
    return abs(low - ends.low) <= room + written and abs(high - ends.high) <= room + written


def share_of(values: pd.Series) -> list[float]:
    """The exact interval of a share (Clopper and Pearson)."""
    ends = stats.binomtest(int(values.sum()), len(values)).proportion_ci(method="exact")
    return [ends.low, ends.high]


def share_fits(low: float, high: float, values: pd.Series) -> bool:
    """Whether an interval is that of a share."""
    return all(close(*both) for both in zip((low, high), share_of(values), strict=True))


def test_counts(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    shown = page.table("Examples of each task")
    assert [row["task"] for row in shown] == list(TASKS)
    for row in shown:
        own = rows["examples"][rows["examples"]["task"] == row["task"]]
        assert (int(row["seen"]), int(row["kept"])) == (len(own), own["kept"].sum())
        right = own.apply(lambda one: one["generated"].split()[:1] == [one["answer"]], axis=1)
        assert close(numbers(row["accuracy"])[0], right.mean(), 6e-4)


def test_what_the_corruption_does(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    shown = page.table("Mean logit difference")
    assert len(shown) == len(TASKS) * len(WORDS)
    kept = rows["examples"][rows["examples"]["kept"]]
    for row in shown:
        (corrupt,) = [name for name, words in WORDS.items() if words == row["corruption"]]
        own = kept[kept["task"] == row["task"]]
        after = own[f"{corrupt}_logit_diff"]
        columns = {"clean": own["clean_logit_diff"], "corrupt": after, "answers that flip": (after < 0).astype(float)}
        for column, values in columns.items():
            mean, low, high = numbers(row[column])
            fits = share_fits if column == "answers that flip" else interval_fits
            assert close(mean, values.mean()) and fits(low, high, values), row
        assert int(row["examples"]) == len(own)


def at_answer(rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    effects = rows["effects"]
    return effects[(effects["role"] == "answer") & effects["kind"].isin(HEADS)]


def test_every_cell_of_every_head_map(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    expected = {
        key: (each["effect"], each["effect"].abs(), each["restoration"], each["normalized"])
        for key, each in at_answer(rows).groupby([*CELL, "head"])
    }
    sizes = pd.Series({key: size.mean() for key, (_, size, *_) in expected.items()})
    of_map = sizes.groupby(level=[0, 1, 2])
    means, limits = of_map.mean(), of_map.mean() + 2 * of_map.std()
    maps = [chart for _, chart in page.charts if chart["layout"]["xaxis"].get("title", {}).get("text") == "head"]
    assert len(maps) * 16 == len(expected) == len(WORDS) * len(HEADS) * len(TASKS) * 16
    keys = [key for key in expected if key[3:] == (0, 0)]
    for chart in maps:
        (drawn,) = chart["data"]
        # A map is known by its cell of layer 0 and head 0, and then every other cell must fit.
        first = drawn["z"][0][0]
        found = [key for key in keys if abs(expected[key][0].mean() - first) <= 1e-4 * abs(first) + 1e-6]
        assert found
        key = min(found, key=lambda key: abs(expected[*key[:3], 3, 3][0].mean() - drawn["z"][3][3]))
        keys.remove(key)
        for layer in range(4):
            for head in range(4):
                effect, size, restoration, normalized = expected[*key[:3], layer, head]
                assert drawn["z"][layer][head] == pytest.approx(effect.mean(), rel=1e-4, abs=1e-6)
                ends, _, _, n, mean_abs, ratio, restored, share, rule, *_ = drawn["customdata"][layer][head]
                assert int(n) == len(effect)  # where all are equal to rounding there is no interval
                assert interval_fits(*numbers(ends), effect) if numbers(ends) else np.ptp(effect) < 1e-5, ends
                assert close(numbers(mean_abs)[0], size.mean()) and close(numbers(restored)[0], restoration.mean())
                assert close(numbers(ratio)[0], size.mean() / means[key[:3]])
                assert close(numbers(share)[0], normalized.median()) or not np.isfinite(normalized).all()
                assert ("paper" in rule or "both" in rule) == (size.mean() > limits[key[:3]])
    assert not keys


def test_every_cell_of_every_map_of_words(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    effects = rows["effects"][rows["effects"]["corrupt"].isin(["image", "text"])]
    effects = effects[effects["role"] != EVERY].assign(size=lambda each: each["effect"].abs())
    per_example = effects.groupby([*CELL, "role", "example"])[["effect", "size"]].mean()
    means = per_example.groupby(level=[*CELL, "role"]).mean()
    expected = [
        row["size"] if key[1] in HEADS else row["effect"]
        for key, row in zip(means.index, means.to_dict("records"), strict=True)
    ]
    maps = [chart["data"][0] for _, chart in page.charts if "answer" in chart["layout"]["xaxis"].get("ticktext", [])]
    drawn = [value for one in maps for line in one["z"] for value in line if value is not None]
    assert sorted(drawn) == pytest.approx(sorted(expected), rel=1e-4, abs=1e-6)


def test_every_score_and_label_of_what_heads_do(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    shown = page.table("All heads and their labels")
    groups = rows["attention"].groupby(["kind", "layer", "head"])
    assert len(shown) == len(groups) == 16  # the self-attention of words does not see the image
    columns = {"inside": "inside", "lift": "lift", "AUC": "auc", "pointing": "pointing", "outlier": "outlier"}
    labelled = 0
    (moves,) = [name for name in shown[0] if name.startswith("effect")]  # and names where it was read
    for row in shown:
        kind, layer, head = re.fullmatch(r"(\w+) L(\d+)\.H(\d+)", row["head"]).groups()  # type: ignore[union-attr]
        own = groups.get_group((f"{kind}-heads", int(layer), int(head)))
        for name, column in columns.items():
            if name in row:
                assert close(numbers(row[name])[0], own[column].mean())
        value, low, high = numbers(row["score and interval"])
        which = own["outlier" if row["score and interval"].startswith("outlier") else "lift"]
        assert close(value, which.mean()) and interval_fits(low, high, which)
        means = own[["lift", "auc", "relative_inside"]].mean()
        if row["label"] == "object detection":
            assert (means > [1, 0.5, 0]).all() and low > 1 and row[moves] == "yes"
            labelled += 1
        elif row["label"] == "object suppression":
            assert (means < [1, 0.5, 0]).all() and high < 1 and row[moves] == "yes"
        elif row["label"] == "outlier suppression":
            assert low > 0.5
        else:
            assert row["label"] == "none"
            errors = own[["lift", "auc", "relative_inside"]].sem()
            sure = (means - 3.5 * errors > [1, 0.5, 0]).all()
            assert not (sure and row[moves] == "yes"), row
    assert labelled


def test_every_number_of_the_ablation(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    (caption,) = [caption for caption in page.tables if caption.startswith("Mean ablation")]
    shown = page.tables[caption][1:]
    ablated = rows["ablation"]
    names = {name for name in ablated["selection"].unique() if name != "none"}
    assert len(shown) == len(names) * len(TASKS)
    groups = dict(iter(ablated.groupby(["task", "selection"])))
    for _, task, n_heads, *cells in shown:
        values = [numbers(cell) for cell in cells]
        fits = []
        for name in names:
            own = groups[task, name]
            chosen, drawn = own[own["draw"] < 0], own[own["draw"] >= 0]
            of_draws = drawn.groupby("draw")[["correct", "logit_diff"]].mean()
            whole = groups[task, "none"]
            harm = drawn.groupby("example")["logit_diff"].mean() - chosen.set_index("example")["logit_diff"]
            p = (1 + (of_draws["logit_diff"] <= chosen["logit_diff"].mean()).sum()) / (1 + len(of_draws))
            expected = []
            for measure in ("correct", "logit_diff"):
                span = np.percentile(of_draws[measure], [2.5, 97.5])
                ends = share_of if measure == "correct" else (lambda values: [])
                alone = [[each[measure].mean(), *ends(each[measure])] for each in (whole, chosen)]
                expected += [*alone, [of_draws[measure].mean(), *(span if span[0] < span[1] else [])]]
            flat = [number for seen in values[:6] for number in seen]
            same = all(close(*both) for both in zip(flat, [one for made in expected for one in made], strict=True))
            harmed = close(values[6][0], harm.mean()) and interval_fits(*values[6][1:], harm)
            fits.append(same and harmed and close(values[7][0], p) and set(chosen["n_heads"]) == {int(n_heads)})
        assert any(fits), (task, cells)


def test_every_rank_correlation(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    sizes = at_answer(rows).assign(size=lambda each: each["effect"].abs())
    sizes = sizes.groupby(["task", "corrupt", "kind", "layer", "head"])["size"].mean()
    shown = page.table("Rank correlation")
    assert len(shown) == len(TASKS) * 2 * len(HEADS)
    for row in shown:
        (corrupt,) = [name for name, words in WORDS.items() if words == row["corruption"]]
        pair, noise = (sizes[row["task"], name, f"{row['attention']}-heads"] for name in (corrupt, f"{corrupt}_noise"))
        moved = (pair > 1e-5 * pair.max()) | (noise > 1e-5 * noise.max())
        assert close(numbers(row["Spearman"])[0], stats.spearmanr(pair[moved], noise[moved]).statistic)
        assert int(row["heads"]) == moved.sum()
        top = int(row["strongest shared"].rpartition(" ")[2])
        both = set(pair.nlargest(top).index) & set(noise.nlargest(top).index)
        assert close(numbers(row["strongest shared"].partition(" of ")[0])[0], len(both) / top)


def test_universal_heads_by_the_papers_rule(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    effects = at_answer(rows)
    sizes = effects.assign(size=effects["effect"].abs()).groupby([*CELL, "head"])["size"].mean().reset_index()
    of_map = sizes.groupby(["corrupt", "kind", "task"])["size"]
    sizes["above"] = sizes["size"] > of_map.transform("mean") + 2 * of_map.transform("std")
    every = sizes[sizes["corrupt"].isin(["image", "text"])].groupby(["corrupt", "kind", "layer", "head"])["above"].all()
    expected = {f"{key[1].removesuffix('-heads')} L{key[2]}.H{key[3]}" for key, above in every.items() if above}
    tables = [rows for caption, rows in page.tables.items() if caption.startswith("Universal heads")]
    shown = [dict(zip(tables[0][0], row, strict=True)) for row in tables[0][1:]] if tables else []
    assert {row["head"] for row in shown if "paper" in row["selected by"]} == expected
