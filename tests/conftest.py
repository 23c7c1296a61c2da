"""What holds in every test: no network, one thread a process, fresh draws that can be repeated.

Every run draws its examples from one seed, which it prints and which `--hypothesis-seed` sets: each test from the
seed and its own name, so that neither the order of the tests nor the number of processes matters.
"""

import os
import secrets
from pathlib import Path
from typing import Any

# Before anything imports torch or huggingface_hub, which read these once.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
# The models are tiny, and workers share the cores: with two threads each, on busy cores, threads that wait for one
# another made a forward of 2 ms take 700.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings
from hypothesis.database import DirectoryBasedExampleDatabase

collect_ignore_glob = ["benchmarks/bench_*.py"]

# Also where Hypothesis sees a CI: on its own it would draw the same examples there every time, and keep none.
settings.register_profile(
    "fresh",
    settings.get_profile("default"),
    max_examples=20,
    deadline=None,
    print_blob=True,
    database=DirectoryBasedExampleDatabase(Path.cwd() / ".hypothesis" / "examples"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fresh")

SEED = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """The run's seed: the one asked for, the one that the other processes of this run have, or a new one."""
    shared = getattr(config, "workerinput", {}).get("drawn_from")
    config.stash[SEED] = shared or config.getoption("--hypothesis-seed") or str(secrets.randbelow(10**9))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A process of pytest-xdist draws from the seed of the run."""
    node.workerinput["drawn_from"] = node.config.stash[SEED]


def repeat(config: pytest.Config) -> str:
    """How to draw the examples of this run again."""
    return f"examples drawn from seed {config.stash[SEED]}; again: make test SEED={config.stash[SEED]}"


def pytest_report_header(config: pytest.Config) -> str:
    """The seed, before the first test."""
    return repeat(config)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """The seed once more, beside what failed."""
    if exitstatus:
        terminalreporter.line(repeat(config))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test's draws: from the run's seed and the test's name."""
    test = getattr(item, "obj", None)
    if is_hypothesis_test(test):  # hypothesis.seed sets this too, and forgets the examples that failed before
        getattr(test, "__func__", test)._hypothesis_internal_use_seed = f"{item.config.stash[SEED]} {item.nodeid}"
