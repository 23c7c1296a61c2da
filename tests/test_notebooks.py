"""The notebooks as they are kept: with their outputs, and fit to be read anywhere. `make test` executes them."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PLACES = re.compile(r"(?<![\w.:/])/(?:home|root|work|tmp|usr|Users|mnt|opt|var)/|[A-Z]:\\\\Users")  # of one machine
PICTURES = {"image/png", "image/svg+xml", "text/html"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def outputs(path: Path) -> list[dict]:
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def test_there_are_five_numbered_in_the_order_in_which_they_are_read():
    assert [path.stem.partition("_")[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


def test_it_begins_with_its_number_and_title(notebook):
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(rf"# {notebook.stem[0]}\. \w", text(first))


def test_it_was_executed_from_top_to_bottom_and_keeps_what_came_out(notebook):
    code = cells(notebook, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kept = outputs(notebook)
    assert any(output["output_type"] == "stream" for output in kept)
    assert sum(bool(PICTURES & set(output.get("data", {}))) for output in kept) >= 3


def test_nothing_in_it_failed_or_warned(notebook):
    for output in outputs(notebook):
        assert output["output_type"] != "error", output
        assert output.get("name") != "stderr", output["text"]


def test_the_line_to_change_for_the_real_checkpoint_is_named_and_runs_on_the_zoo(notebook):
    line = text(cells(notebook, "code")[0])
    name, value = re.fullmatch(r"(MODELS?) = ([^#\n]+?)  # the one line to change\b.*", line).groups()
    assert "zoo:" in value
    advice = text(cells(notebook, "markdown")[0])
    assert re.search(rf'To run this on .*`{name} = "[A-Za-z-]+/[A-Za-z0-9.-]+"', advice, re.DOTALL)


def test_it_names_no_place_of_one_machine(notebook):
    assert PLACES.search("saved to /home/me/x") and PLACES.search('["/tmp/x"]')
    assert not PLACES.search("a patch and/or a head, https://some.site/home/page")
    found = PLACES.search(notebook.read_text(encoding="utf-8"))
    assert found is None, found


def test_it_is_small_enough_to_be_looked_at_online(notebook):
    assert notebook.stat().st_size < 2**20


def test_its_prose_explains_its_code(notebook):
    """No two code cells in a row beyond the first two, which choose the model and load it."""
    kinds = [cell["cell_type"] for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]][3:]
    assert ("code", "code") not in list(itertools.pairwise(kinds))
