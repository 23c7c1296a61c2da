"""What the rules of selecting heads do where the truth is known: false heads, power, and what intervals cover.

    python -m tests.benchmarks.bench_statistics [--times 200] [--seed 0] [--only WORD] [--workers 2]

144 heads, 3 tasks and (unless said) 50 examples a task. A span of 5 logits, heads of a standard deviation of 0.5. Each
scenario is drawn `--times` times from its own seed; a Markdown table says in how many draws a rule called a false head
universal, how many there were, and with which probability a true one was found. Then what intervals of 95 % cover.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hooked_vlm.analysis import clusters, statistics
from hooked_vlm.analysis.universal_heads import Measured, Rule, select_matrices
from hooked_vlm.notice.claims import hurts_more

HEADS, TASKS, N, SPAN, SD = 144, 3, 50, 5.0, 0.5
Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]


@dataclass(frozen=True)
class Scenario:
    """Effects whose truth is known.

    Args:
        name: in the table.
        noise: from a generator and n, effects of mean 0, [n HEADS].
        n: examples a task.
        planted: heads with an effect in every task: mean, and SD by mean.
        partly: heads with an effect in all tasks but one: mean, and SD by mean.
        answers: clusters that the examples fall into, evenly.
        shared: share of a head's variance that examples of one answer have in common.
        scales: SD over heads of the logarithm of their noise's size.
        bar: what is asked: ("false", at most) or ("power", at least).
    """

    name: str
    noise: Draw
    bar: tuple[str, float]
    n: int = N
    planted: tuple[tuple[float, float], ...] = ()
    partly: tuple[tuple[float, float], ...] = ()
    answers: int = 0
    shared: float = 0.0
    scales: float = 0.0
    size: float = SD


def normal(generator: np.random.Generator, n: int) -> Array:
    return generator.standard_normal((n, HEADS))


def tails(generator: np.random.Generator, n: int) -> Array:
    return generator.standard_t(3, (n, HEADS)) / np.sqrt(3)


def skew(generator: np.random.Generator, n: int) -> Array:
    return (np.exp(generator.standard_normal((n, HEADS))) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def together(generator: np.random.Generator, n: int, rho: float) -> Array:
    return np.sqrt(rho) * generator.standard_normal((n, 1)) + np.sqrt(1 - rho) * normal(generator, n)


STRONG = ((1.0, 1.0),) * 3
PARTLY = ((1.0, 1.0),) * 20
SCENARIOS = (
    Scenario("null: alike", normal, ("false", 0.06)),
    Scenario("null: heads differ in scale", normal, ("false", 0.06), scales=1.5),
    Scenario("null: heavy tails (t3)", tails, ("false", 0.06)),
    Scenario("null: heads correlated 0.5", partial(together, rho=0.5), ("false", 0.06)),
    Scenario("null: heads correlated 0.9", partial(together, rho=0.9), ("false", 0.06)),
    Scenario("null: skew (log-normal 1)", skew, ("false", 0.06), scales=1.0),
    Scenario("null: skew, n = 12", skew, ("false", 0.06), n=12, scales=1.0),
    Scenario("null: skew, n = 20", skew, ("false", 0.06), n=20, scales=1.0),
    Scenario("null: 6 clusters, ICC 0.3", normal, ("false", 0.06), answers=6, shared=0.3, scales=1.0),
    Scenario("null: 12 clusters, ICC 0.3", normal, ("false", 0.06), answers=12, shared=0.3, scales=1.0),
    Scenario("null: 4 answers carry the variance", normal, ("false", 0.05), answers=4, shared=0.84, scales=1.0),
    Scenario("null: 0.002 logits among inert heads", normal, ("false", 0.05), partly=((0.002, 0.5),) * 3, size=1e-5),
    Scenario("3 true, 20 in all tasks but one", normal, ("false", 0.06), planted=STRONG, partly=PARTLY),
    Scenario("3 true, 20 in all but one, skew", skew, ("false", 0.06), planted=STRONG, partly=PARTLY, scales=1.0),
    Scenario("3 true, 20 in all but one, tails", tails, ("false", 0.06), planted=STRONG, partly=PARTLY, scales=1.0),
    Scenario("CV 1, n = 100", normal, ("power", 0.9), n=100, planted=((1.0, 1.0),) * 3, size=0.2),
    Scenario("CV 2, n = 100", normal, ("power", 0.8), n=100, planted=((1.0, 2.0),) * 3, size=0.2),
    Scenario("CV 2, n = 50", normal, ("power", 0.5), planted=((1.0, 2.0),) * 3, size=0.2),
    Scenario("CV 1, n = 50", normal, ("power", 0.9), planted=((1.0, 1.0),) * 3, size=0.2),
    Scenario("0.3 beside a giant of 10", normal, ("power", 0.8), planted=((10.0, 1.0), *((0.3, 1.0),) * 3), size=0.05),
    Scenario("CV 1, 12 answers, ICC 0.3", normal, ("power", 0.8), planted=STRONG, answers=12, shared=0.3, size=0.2),
)


def draw(scenario: Scenario, seed: tuple[int, ...]) -> dict[str, Measured]:
    """One data set: heads 0.. are planted, the next ones partly."""
    generator = np.random.default_rng(seed)
    scale = np.exp(scenario.scales * generator.standard_normal(HEADS)) * scenario.size
    first = len(scenario.planted)
    means = np.array([*scenario.planted, *scenario.partly]).reshape(-1, 2)
    tasks = {}
    for task in range(TASKS):
        n = scenario.n
        noise = scenario.noise(generator, n)
        answer = generator.permutation(np.arange(n) % max(scenario.answers, 1))
        if scenario.answers:
            common = generator.standard_normal((scenario.answers, HEADS))[answer]
            noise = np.sqrt(scenario.shared) * common + np.sqrt(1 - scenario.shared) * noise
        spread, mean = scale.copy(), np.zeros(HEADS)
        for head, (size, by) in enumerate(means):
            here = head < first or scenario.name.startswith("null") or head % TASKS != task
            spread[head], mean[head] = size * by, size * here
        ways = clusters.codes(*([answer] if scenario.answers else []), n=n)
        tasks[str(task)] = Measured(noise * spread + mean, np.full(n, SPAN), ways)
    return tasks


def once(scenario: Scenario, seed: tuple[int, ...]) -> dict[str, tuple[int, float]]:
    """By each rule: how many false heads are universal, and the share of the true ones that are."""
    heads = [(0, head) for head in range(HEADS)]
    found = select_matrices({("image", "heads"): (heads, draw(scenario, seed))}, Rule(splits=0, bootstrap=500))
    first = found[found["task"] == "0"]
    true = first["head"] < len(scenario.planted)
    return {
        rule: (int((first[f"{rule}_all"] & ~true).sum()), float(first.loc[true, f"{rule}_all"].mean()))
        for rule in ("fdr", "paper")
    }


def rows_of(scenario: Scenario, times: int, seed: int, pool: ProcessPoolExecutor) -> str:
    start = time.perf_counter()
    each = list(pool.map(partial(once, scenario), [(seed, i) for i in range(times)], chunksize=8))
    any_false = {rule: np.mean([one[rule][0] > 0 for one in each]) for rule in ("fdr", "paper")}
    power = {rule: np.mean([one[rule][1] for one in each]) for rule in ("fdr", "paper")}
    shown = [f"{any_false[rule]:.3f} | {'' if np.isnan(power[rule]) else f'{power[rule]:.2f}'}" for rule in any_false]
    what, bound = scenario.bar
    held = any_false["fdr"] <= bound if what == "false" else power["fdr"] >= bound
    told = f"{what} {'<=' if what == 'false' else '>='} {bound:g}: {'held' if held else 'NOT held'}"
    return f"| {scenario.name} | {' | '.join(shown)} | {told} | {time.perf_counter() - start:.0f} |"


def dipping(times: int, seed: int, rho: float = 0.9, heads: int = 24, chosen: int = 3, sets: int = 199) -> list[str]:
    """How often the strongest heads "hurt more than random ones" where no head does: chosen on the examples that judge
    them, and across halves (each half is judged by the heads that are strongest in the other)."""
    false = {"on the same examples": 0, "across halves": 0}
    for i in range(times):
        generator = np.random.default_rng((seed, 77, i))
        patched, other = generator.standard_normal((2, N, heads))
        ablated = rho * patched + np.sqrt(1 - rho**2) * other  # what an example loses without each head
        half = generator.permutation(N) < N // 2
        drawn = np.array([generator.permutation(heads)[:chosen] for _ in range(sets)])
        for way, parts in {
            "on the same examples": [(slice(None), slice(None))],
            "across halves": [(half, ~half), (~half, half)],
        }.items():
            gap, lost, beside = np.zeros(N), np.zeros(N), np.zeros((sets, N))
            for select_on, judge_on in parts:
                top = np.argsort(-patched[select_on].mean(0))[:chosen]
                lost[judge_on] = ablated[judge_on][:, top].sum(1)
                beside[:, judge_on] = ablated[judge_on][:, drawn].sum(2).T
            gap = lost - beside.mean(0)
            found = clusters.interval_of(gap)
            p = (1 + (beside.mean(1) >= lost.mean()).sum()) / (1 + sets)
            false[way] += hurts_more(found["low"], found["high"], p, sets) is True
    return [f"| {way} | {n / times:.3f} |" for way, n in false.items()]


def covered(draws: Array, truth: float, answers: Array | None = None) -> float:
    """How often the interval of the mean holds the truth: draws [n times]."""
    ways = clusters.codes(*([answers] if answers is not None else []), n=len(draws))
    found = clusters.judge(draws, ways)
    return float(((found.low <= truth) & (truth <= found.high)).mean())


def coverage(seed: int, times: int) -> list[str]:
    generator = np.random.default_rng((seed, 99))
    shape = (N, times)
    answer = np.arange(N) % 12
    common = generator.standard_normal((12, times))[answer]
    drawn: dict[str, tuple[float, Array | None, Array]] = {
        "mean, normal": (0.0, None, generator.standard_normal(shape)),
        "mean, t3": (0.0, None, generator.standard_t(3, shape)),
        "mean, log-normal(1)": (float(np.exp(0.5)), None, np.exp(generator.standard_normal(shape))),
        "mean, 12 answers, ICC 0.3": (
            0.0,
            answer.astype(np.float64),
            np.sqrt(0.3) * common + np.sqrt(0.7) * generator.standard_normal(shape),
        ),
    }
    told = []
    for name, (truth, ways, values) in drawn.items():
        low, high = statistics.bootstrap(values)
        percentile = float(((low <= truth) & (truth <= high)).mean())
        told.append(f"| {name} | {covered(values, truth, ways):.3f} | {percentile:.3f} |")
    for share in (0.5, 0.9, 0.98):
        hits = generator.random(shape) < share
        ends = [statistics.exact(int(one), N) for one in hits.sum(0)]
        low, high = statistics.bootstrap(hits.astype(np.float64))
        percentile = float(((low <= share) & (share <= high)).mean())
        exact = np.mean([low <= share <= high for low, high in ends])
        told.append(f"| proportion, {share:g} | {exact:.3f} | {percentile:.3f} |")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="scenarios with this word in their name")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print("| scenario | FDR-controlled: any false | power | paper's: any false | power | bar | s |")
    print("|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(given.workers) as pool:
        for scenario in SCENARIOS:
            if given.only in scenario.name:
                print(rows_of(scenario, given.times, given.seed, pool), flush=True)
    print("\n| the strongest heads hurt more than random ones, where none does (correlation 0.9) | share |\n|---|---|")
    print("\n".join(dipping(5 * given.times, given.seed)))
    print("\n| interval of 95 %, n = 50 | covers | percentile bootstrap |\n|---|---|---|")
    print("\n".join(coverage(given.seed, 10 * given.times)))


if __name__ == "__main__":
    main()
