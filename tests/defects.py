"""Classes of defects that were found by hostile use, each with the test that fails where it is not mended.

`python -m tests.defects COMMIT` runs these tests against the package as it was at a commit, and says which fail there;
at the commit before a class was mended its test must. `tests/test_defects.py` holds the table to the tests there are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]

BEFORE = "8d26302"  # the commit at which each of these failed
CLASSES: dict[str, dict[str, str]] = {
    "Positions and batches": {
        "a tensor with one axis (last_each) means the same positions in every row": (
            "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[last_each]"
        ),
        "sites at each row's own positions (find_each) become sites in every row": (
            "tests/test_positions.py::test_what_can_be_meant_is_done_in_each_row[each row's own]"
        ),
        "a list of slices (image_spans) is no position": (
            "tests/test_positions.py::test_what_can_be_meant_is_done_in_each_row[a slice for each row]"
        ),
        "a sweep over ragged prompts patches other tokens than the ones named": (
            "tests/patching/test_sweep.py::test_named_positions_of_ragged_prompts_equal_the_single_runs"
        ),
        "a mask is read as positions 0 and 1": (
            "tests/test_positions.py::test_what_can_be_meant_is_done_in_each_row[a mask]"
        ),
        "True is position 1": "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[a bool]",
        "1.7 is position 1": "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[a float]",
        "an integer of numpy is refused without a name": (
            "tests/test_positions.py::test_what_can_be_meant_is_done_in_each_row[a numpy integer]"
        ),
        "a string is refused without a name": (
            "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[a string]"
        ),
        "a hook at no position does nothing, silently": (
            "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[nothing]"
        ),
        "positions for two rows are repeated over four": (
            "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[positions of one row]"
        ),
        "clean and corrupt whose tokens stand elsewhere are swept": (
            "tests/patching/test_sweep.py::test_prompts_that_stand_elsewhere_in_their_rows_raise[real tokens-sweep]"
        ),
        "clean and corrupt whose image stands elsewhere are swept": (
            "tests/patching/test_sweep.py::test_prompts_that_stand_elsewhere_in_their_rows_raise[image tokens-sweep]"
        ),
        "a metric for two examples is repeated over four": (
            "tests/patching/test_metrics.py::test_what_was_made_for_other_examples_raises"
        ),
        "a source of two rows is repeated over four": "tests/test_hooks.py::test_what_cannot_be_done_raises[7]",
        "a span holds the text between two pieces of an image": (
            "tests/models/test_inputs.py::test_image_tokens_with_text_between_them_are_no_span"
        ),
        "logits that are NaN are measured": (
            "tests/patching/test_metrics.py::test_logits_that_are_not_finite_measure_nothing[nan]"
        ),
        "a metric by its name is called": "tests/patching/test_attribution.py::test_what_cannot_be_attributed_raises",
    },
}


# Errors that a commit did not have yet, so that a test which names one is loaded there and fails for its own reason.
LATER_ERRORS = """

def __getattr__(name):
    if not name.endswith("Error"):
        raise AttributeError(name)
    globals()[name] = type(name, (HookedVLMError, ValueError), {})
    return globals()[name]
"""


def outcomes(commit: str, tests: list[str]) -> dict[str, str]:
    """What each test does with the package of a commit, in a copy of it with today's tests: passes, fails, no load."""
    with tempfile.TemporaryDirectory() as directory:
        there = Path(directory)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=there, input=archive, check=True)
        with (there / "hooked_vlm" / "errors.py").open("a", encoding="utf-8") as errors:
            errors.write(LATER_ERRORS)
        shutil.rmtree(there / "tests")
        shutil.copytree(ROOT / "tests", there / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        report = there / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "--continue-on-collection-errors",
            f"--junitxml={report}",
            "-o",
            "junit_family=xunit1",
        ]
        subprocess.run([*command, *tests], cwd=there, env=_environment(there), check=False)
        found = {
            f"{case.get('file')}::{case.get('name')}": "fails"
            if {"failure", "error"} & {c.tag for c in case}
            else "passes"
            for case in ElementTree.parse(report).iter("testcase")
        }
    return {test: found.get(test, "no load") for test in tests}


def _environment(there: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(there), "HF_HUB_OFFLINE": "1"}


def main(commit: str = BEFORE) -> int:
    """Print each class and what its test says of a commit; 1 if one passes there."""
    found = outcomes(commit, [test for part in CLASSES.values() for test in part.values()])
    for part, classes in CLASSES.items():
        print(f"\n{part}")
        for name, test in classes.items():
            print(f"  {found[test]:<8} {name}")
    failing = sum(outcome != "passes" for outcome in found.values())
    print(f"\n{failing} of {len(found)} fail with the package of {commit}")
    return 0 if failing == len(found) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
