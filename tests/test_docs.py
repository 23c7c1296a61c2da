"""The pages beside the README tell the truth; `python -m tests.test_docs` writes the tables of hooks from the code."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hooked_vlm.errors
from hooked_vlm import HookedVLM
from hooked_vlm.models.table import hook_table_markdown
from tests.models import drawn

ROOT = Path(__file__).parents[1]
HOOKS, ERRORS = ROOT / "docs" / "hooks.md", ROOT / "docs" / "errors.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "hooked_vlm" / "zoo").glob("*/README.md")])
TABLES = {"vqa": lambda: drawn.blip("vqa"), "llava": drawn.llava}


def with_tables(text: str) -> str:
    """The page with the hook tables that the code makes."""
    for kind, build in TABLES.items():
        table = hook_table_markdown(HookedVLM.from_hf(build()))
        text = re.sub(rf"(<!-- hooks: {kind} -->\n).*?(<!-- end -->)", rf"\1\n{table}\n\n\2", text, flags=re.DOTALL)
    return text


def test_the_hook_tables_are_the_codes() -> None:
    text = HOOKS.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: python -m tests.test_docs"
    assert text.count("| `text_encoder.blocks.{l}.cross_attn.hook_z` |") == 1


def test_every_error_has_symptom_cause_and_way_out() -> None:
    base = hooked_vlm.errors.HookedVLMError
    classes = {
        name: next(b.__name__ for b in error.__mro__ if b.__module__ == "builtins")
        for name, error in inspect.getmembers(hooked_vlm.errors, inspect.isclass)
        if issubclass(error, base) and error is not base
    }
    page = re.split(r"^### ", ERRORS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    told = {match[1]: match[2] for part in page if (match := re.match(r"`(\w+)` \((\w+)\)\n", part))}
    assert told == classes
    for part in page:
        assert re.search(r"\*\*Symptom\*\*: .*\n(.*\n)*?- \*\*Cause\*\*: .*\n(.*\n)*?- \*\*Way out\*\*: .", part), part


def texts() -> list[str]:
    """Every piece of text in the package's source that stands between two values."""
    trees = [ast.parse(source.read_text(encoding="utf-8")) for source in (ROOT / "hooked_vlm").rglob("*.py")]
    return [
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value.__class__ is str
    ]


def test_the_symptoms_are_what_the_errors_say() -> None:
    said = "\n".join(texts())
    for symptom in re.findall(r"\*\*Symptom\*\*: `([^`]+)`", ERRORS.read_text(encoding="utf-8")):
        length = min(18, len(symptom))
        windows = [symptom[start : start + length] for start in range(len(symptom) - length + 1)]
        assert any(window in said for window in windows), symptom


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.name} links to {target}"


def test_the_reference_is_made_without_a_warning(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pdoc", "docs/make.py", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0 and "Warn" not in made.stderr, made.stderr[-2000:]
    pages = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")}
    assert {"hooked_vlm.html", "hooked_vlm/patching/sweep.html", "hooked_vlm/models/base.html"} <= pages
    assert "run_with_state" in (tmp_path / "hooked_vlm" / "models" / "base.html").read_text(encoding="utf-8")


if __name__ == "__main__":
    HOOKS.write_text(with_tables(HOOKS.read_text(encoding="utf-8")), encoding="utf-8")
