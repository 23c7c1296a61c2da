"""The numbers that a reader of a real run's report sees, recomputed from the parquet files with pandas and scipy.

Nothing of the package that computes is used here: a run is made, its report is read as a reader reads it, and every
table and chart is compared with the rows it is said to come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hooked_vlm.notice import NoticeConfig, run
from hooked_vlm.notice.vocabulary import EVERY
from tests.notice.models import blip_shapes
from tests.notice.report.parsed import Page
from tests.notice.test_summary import studentised

TASKS = ("place", "colour")
HEADS = ("attn-heads", "cross_attn-heads")
CLUSTERS = ["answer", "group", "template"]
TAILS = stats.binom.ppf([1e-6, 1 - 1e-6], 999, 0.025) / 9.99  # in percent; of a thousand intervals none lies beyond
MANY = 8  # clusters of a column from which it has a say in what is told of the answers that were seen
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
    about = found["examples"].assign(template=found["examples"].apply(template, axis=1))
    assert about.groupby("task")[CLUSTERS].nunique().max().max() < MANY  # so that they have a say in heads alone
    assert about[CLUSTERS].nunique().max() < MANY
    found["effects"] = found["effects"].merge(about[["task", "example", "answer", "template"]], on=["task", "example"])
    return found


def template(row: pd.Series) -> str:
    """A prompt without its answers and without the word that its corrupt prompt has another for."""
    asked, other = (row[name].rstrip("?").split() for name in ("prompt", "corrupt_prompt"))
    held = [
        word == its and word not in (row["answer"], row["wrong_answer"]) for word, its in zip(asked, other, strict=True)
    ]
    return " ".join(word if stays else "_" for word, stays in zip(asked, held, strict=True))


def numbers(text: str) -> list[float]:
    """The numbers in a cell; percentages as shares."""
    scale = 100 if "%" in text else 1
    return [float(each.replace(MINUS, "-")) / scale for each in re.findall(NUMBER, text)]


def close(seen: float, value: float, digits: float = 0.006) -> bool:
    """Whether a number that was written with two or three decimals is a value."""
    return abs(seen - value) <= digits


def interval_fits(
    low: float, high: float, values: pd.Series, columns: Iterable[pd.Series] = (), written: float = 0.006
) -> bool:
    """Whether an interval of a mean is what Student's t, the studentised bootstrap and clusters of examples grant.

    The package draws 999 resamples, so that what it takes for a tail of 2.5 % is one of `TAILS`.

    Args:
        low: as the reader sees it.
        high: as the reader sees it.
        values: one an example.
        columns: that cluster the examples, into fewer than `MANY`.
        written: how far rounding moves an end.
    """
    n, mean, se = len(values), values.mean(), values.sem()
    drawn, student = studentised(values.to_numpy()), stats.t.ppf(0.975, n - 1)
    of_clusters = [cluster_ends(values, column) for column in columns]
    lows, highs = zip((mean, mean), *of_clusters, strict=True)
    below = [min(mean - max(student, reach) * se, *lows) for reach in np.percentile(drawn, 100 - TAILS)]
    above = [max(mean + max(student, -reach) * se, *highs) for reach in np.percentile(drawn, TAILS[::-1])]
    return all(
        first - written <= end <= last + written for end, (first, last) in zip((low, high), (below, above), strict=True)
    )


def cluster_ends(values: pd.Series, column: pd.Series) -> tuple[float, float]:
    """The hull of Student's intervals of the mean of cluster means, and of the mean with cluster-robust errors."""
    by = values.groupby(column)
    clusters, means = by.ngroups, by.mean()
    robust = (clusters / (clusters - 1) * ((values - values.mean()).groupby(column).sum() ** 2).sum()) ** 0.5
    both = ((values.mean(), robust / len(values)), (means.mean(), means.sem()))
    ends = [stats.t.interval(0.95, clusters - 1, mean, error) for mean, error in both]
    return min(low for low, _ in ends), max(high for _, high in ends)


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


def where_selected(rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The effects by which heads are selected: each patched at every position at once."""
    effects = rows["effects"]
    return effects[(effects["role"] == EVERY) & effects["kind"].isin(HEADS)]


def test_every_cell_of_every_head_map(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    expected = {
        key: (each["effect"], each["effect"].abs(), each["restoration"], each["normalized"], each[CLUSTERS])
        for key, each in where_selected(rows).groupby([*CELL, "head"])
    }
    sizes = pd.Series({key: size.mean() for key, (_, size, *_) in expected.items()})
    of_map = sizes.groupby(level=[0, 1, 2])
    medians, limits = of_map.median(), of_map.mean() + 2 * of_map.std()
    widened = 0
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
                effect, size, restoration, normalized, about = expected[*key[:3], layer, head]
                assert drawn["z"][layer][head] == pytest.approx(effect.mean(), rel=1e-4, abs=1e-6)
                ends, _, _, n, mean_abs, ratio, restored, share, rule, *_ = drawn["customdata"][layer][head]
                assert int(n) == len(effect)  # where all are equal to rounding there is no interval
                columns = [about[name] for name in CLUSTERS if about[name].nunique() >= 4]
                assert interval_fits(*numbers(ends), effect, columns) if numbers(ends) else np.ptp(effect) < 1e-5, ends
                widened += bool(numbers(ends)) and not interval_fits(*numbers(ends), effect)
                assert close(numbers(mean_abs)[0], size.mean()) and close(numbers(restored)[0], restoration.mean())
                assert close(numbers(ratio)[0], size.mean() / medians[key[:3]])
                assert close(numbers(share)[0], normalized.median()) or not np.isfinite(normalized).all()
                assert ("paper" in rule or "both" in rule) == (size.mean() > limits[key[:3]])
    assert not keys and widened  # by clusters, beyond what examples alone grant


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


def test_every_score_and_label_of_what_heads_do(page: Page, rows: dict[str, pd.DataFrame], directory: Path) -> None:
    shown = page.table("All heads and their labels")
    groups = rows["attention"].groupby(["kind", "layer", "head"])
    effects = where_selected(rows)
    effects = effects[effects["corrupt"].isin(["image", "text"])].groupby(["kind", "layer", "head"])
    assert len(shown) == len(groups) == 16  # the self-attention of words does not see the image
    assert not list((directory / "causes").glob("*"))  # halves of 7 examples choose no head whose attention is changed
    columns = {"inside": "inside", "lift": "lift", "AUC": "auc", "pointing": "pointing", "outlier": "outlier"}
    columns["rival's lift"] = "rival_lift"
    (moves,) = [name for name in shown[0] if name.startswith("effect")]  # and names where it was read
    for row in shown:
        kind, layer, head = re.fullmatch(r"(\w+) L(\d+)\.H(\d+)", row["head"]).groups()  # type: ignore[union-attr]
        own = groups.get_group((f"{kind}-heads", int(layer), int(head)))
        for name, column in columns.items():
            assert close(numbers(row[name])[0], own[column].mean())
        value, low, high = numbers(row["score and interval"])
        assert row["score and interval"].startswith("lift ") and int(row["n"]) == len(own)
        assert close(value, own["lift"].mean()) and interval_fits(low, high, own["lift"])
        mine = effects.get_group((f"{kind}-heads", int(layer), int(head))).groupby(["corrupt", "task"])["effect"]
        matters = row[moves] == "yes"
        assert not matters or (mean_by_error(mine) > stats.t.ppf(0.975, 13)).any()
        beyond = mean_by_error(own.assign(more=own["objects_lift"] - 1).groupby("task")["more"], sign=True)
        if row["label"] == "looks at objects":
            assert matters and (beyond > stats.t.ppf(0.975, 13)).any()  # in each task in which it matters
        else:  # whatever asks what a head's attention is worth is not known here
            assert row["label"] == ("undecided" if matters else "none") and not (matters and (beyond > 3.5).all()), row
    assert {"looks at objects", "none"} <= {row["label"] for row in shown}


def mean_by_error(groups: Any, *, sign: bool = False) -> pd.Series:
    """|mean| of each group by its standard error, or with its sign."""
    found = groups.mean() / groups.sem()
    return found if sign else found.abs()


def test_every_number_of_the_ablation(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    shown = page.tables[next(caption for caption in page.tables if caption.startswith("Mean ablation"))][1:]
    ablated = rows["ablation"]
    written = {
        re.sub(
            r"universal (.*)", r"universal heads (\1)", re.sub(r"strongest (\d) (.*)", r"\1 strongest heads (\2)", name)
        ): name
        for name in ablated["selection"].unique()
        if name != "none"
    }
    assert sorted((removed, task) for removed, task, *_ in shown) == sorted(
        (each, task) for each in written for task in TASKS
    )
    groups = dict(iter(ablated.groupby(["task", "selection"])))
    for removed, task, n_heads, *cells in shown:
        own, whole = groups[task, written[removed]], groups[task, "none"]
        chosen, drawn = own[own["draw"] < 0], own[own["draw"] >= 0]
        drawn = drawn[drawn.groupby("draw")["example"].transform("nunique") == chosen["example"].nunique()]
        of_draws = drawn.groupby("draw")[["correct", "logit_diff"]].mean()
        harm = drawn.groupby("example")["logit_diff"].mean() - chosen.set_index("example")["logit_diff"]
        expected = []
        for measure in ("correct", "logit_diff"):
            span = np.percentile(of_draws[measure], [2.5, 97.5])
            for each in (whole, chosen):
                expected.append([each[measure].mean(), *(share_of(each[measure]) if measure == "correct" else [])])
            expected.append([of_draws[measure].mean(), *(span if span[0] < span[1] else [])])
        values = [numbers(cell) for cell in cells]
        assert [len(each) for each in values[:6]] == [len(each) for each in expected], (removed, task)
        assert np.allclose(np.concatenate(values[:6]), np.concatenate(expected), rtol=0, atol=0.006), (removed, task)
        assert close(values[6][0], harm.mean()) and interval_fits(*values[6][1:], harm), (removed, task)
        hits = (of_draws["logit_diff"] <= chosen["logit_diff"].mean()).sum()
        assert close(values[7][0], (1 + hits) / (1 + len(of_draws)))
        assert int(n_heads) == chosen["n_heads"].max() and len(chosen) == len(whole)


def test_heads_are_ablated_in_the_half_that_did_not_choose_them(rows: dict[str, pd.DataFrame]) -> None:
    chosen = rows["ablation"][rows["ablation"]["draw"] < 0]
    chosen = chosen[chosen["selection"].str.startswith("strongest 3")]
    effects = where_selected(rows).assign(size=lambda each: each["effect"].abs())
    told_apart = 0
    for (task, selection), own in chosen.groupby(["task", "selection"]):
        there = effects[(effects["task"] == task) & (effects["corrupt"] == selection.split()[-1])]
        halves = own.groupby("heads")["example"].agg(set)
        if len(halves) == 1:  # both halves choose the same heads
            continue
        assert sorted(map(len, halves)) == [7, 7]
        for heads, judges in halves.items():
            sizes = there[~there["example"].isin(judges)].groupby(["kind", "layer", "head"])["size"].mean()
            parts = [part.split() for part in str(heads).split(", ")]
            named = {(kind, *map(int, place.split("."))) for kind, *places in parts for place in places}
            assert named == set(sizes.nlargest(3).index)
            told_apart += 1
    assert told_apart


def test_every_rank_correlation(page: Page, rows: dict[str, pd.DataFrame]) -> None:
    sizes = where_selected(rows).assign(size=lambda each: each["effect"].abs())
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
    effects = where_selected(rows)
    sizes = effects.assign(size=effects["effect"].abs()).groupby([*CELL, "head"])["size"].mean().reset_index()
    of_map = sizes.groupby(["corrupt", "kind", "task"])["size"]
    sizes["above"] = sizes["size"] > of_map.transform("mean") + 2 * of_map.transform("std")
    every = sizes[sizes["corrupt"].isin(["image", "text"])].groupby(["corrupt", "kind", "layer", "head"])["above"].all()
    expected = {f"{key[1].removesuffix('-heads')} L{key[2]}.H{key[3]}" for key, above in every.items() if above}
    tables = [rows for caption, rows in page.tables.items() if caption.startswith("Universal heads")]
    shown = [dict(zip(tables[0][0], row, strict=True)) for row in tables[0][1:]] if tables else []
    assert {row["head"] for row in shown if "paper" in row["selected by"]} == expected
