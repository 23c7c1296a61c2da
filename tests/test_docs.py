"""The pages tell the truth, and make a site; `python -m tests.test_docs` writes the tables that the code makes."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from html import escape
from pathlib import Path

import pytest
import typer

import hooked_vlm.errors
from hooked_vlm import HookedVLM, cli
from hooked_vlm.datasets.pairs import COLUMNS
from hooked_vlm.datasets.sources import TASKS
from hooked_vlm.models.table import hook_table_markdown
from tests.models import drawn

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
ERRORS = ROOT / "docs" / "errors.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS, *(ROOT / "hooked_vlm" / "zoo").glob("*/README.md")])


def two_columns(rows: Mapping[str, str], first: str, second: str) -> str:
    """Names and what they mean, as a table."""
    return "\n".join([f"| {first} | {second} |", "|---|---|", *(f"| `{name}` | {rows[name]} |" for name in rows)])


def options(command: str) -> str:
    """The options of a command, as its help has them."""
    known = typer.main.get_command(cli.app).commands[command].params  # type: ignore[attr-defined]
    rows = ["| option | left out | what it does |", "|---|---|---|"]
    for option in known:
        if option.param_type_name == "option":
            names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            default = "" if option.required or option.default is None or option.is_flag else f"`{option.default}`"
            rows.append(f"| {names} | {default} | {escape(option.help)} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "hooks: vqa": lambda: hook_table_markdown(HookedVLM.from_hf(drawn.blip("vqa"))),
    "hooks: llava": lambda: hook_table_markdown(HookedVLM.from_hf(drawn.llava())),
    "options: notice": lambda: options("notice"),
    "tasks": lambda: two_columns(TASKS, "task", "asks"),
    "columns": lambda: two_columns(COLUMNS, "column", "what it holds"),
}


def with_tables(text: str) -> str:
    """A page with the tables that the code makes, each between `<!-- its name -->` and `<!-- end -->`."""

    def made(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(TABLES)}) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def test_the_tables_are_the_codes() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in DOCS}
    for page, text in texts.items():
        assert with_tables(text) == text, f"{page.name}: run python -m tests.test_docs"
    everything = "".join(texts.values())
    assert {name: everything.count(f"<!-- {name} -->") for name in TABLES} == dict.fromkeys(TABLES, 1)
    assert everything.count("| `text_encoder.blocks.{l}.cross_attn.hook_z` |") == 1


def commands() -> list[tuple[str, str]]:
    """Every command line of ours in a page: the page, and what stands behind `hooked-vlm`."""
    told = [page for page in PAGES if page.name != "CHANGELOG.md"]  # what was so once
    lines = [(page.name, line) for page in told for line in page.read_text(encoding="utf-8").splitlines()]
    return [(name, said) for name, line in lines for said in re.findall(r"(?:^|`)hooked-vlm ([^`#]+)", line)]


@pytest.mark.parametrize(("page", "said"), commands())
def test_a_command_on_a_page_is_one_with_these_options(page: str, said: str) -> None:
    known = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    name, *words = said.split()
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    if name == "--help":
        return
    spelled = {each for option in known[name].params for each in (*option.opts, *option.secondary_opts)}
    assert options <= spelled, f"{page}: hooked-vlm {said}"


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


# --- the site -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link or an anchor that leads nowhere, or a page that is in no menu, fails it."""
    out = tmp_path_factory.mktemp("site")
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0 and "WARNING" not in made.stderr, made.stderr[-2000:]
    return out


@cache
def html(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?([^\" >]+)", html(page))
        assert loaded
        found = [each for each in loaded if re.match(r"(?:https?:)?//", each)]
        assert not found, f"{page.name} loads {found}"
    assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", (site / "assets" / "wide.css").read_text())


def test_the_search_knows_pages_notebooks_and_docstrings(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    for place in ("sweeps.html#screening", "notebooks/2_notice_by_hand.html#pairs", "hooked_vlm.hooks.knock_out"):
        assert place in index, place


def test_a_notebook_is_shown_with_what_came_out_of_it(site: Path) -> None:
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for book in books:
        page = html(site / "notebooks" / f"{book.stem}.html")
        assert page.count("data:image/png;base64,") == book.read_text(encoding="utf-8").count('"image/png": "')
        assert page.count('class="language-python highlight"') > 3 and 'class="language-text highlight"' in page
    last = html(site / "notebooks" / f"{books[-1].stem}.html")
    assert "<table>" in last and '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in last
    assert "$$" not in last


PACKAGES = ("hooked_vlm", "hooked_vlm.patching", "hooked_vlm.analysis", "hooked_vlm.notice", "hooked_vlm.viz")


def test_the_reference_has_every_public_name(site: Path) -> None:
    pages = (site / "reference").glob("*.html")
    described = {anchor for page in pages for anchor in re.findall(r'<h\d id="(hooked_vlm[\w.]*)"', html(page))}
    modules = [importlib.import_module(name) for name in PACKAGES]
    public = [getattr(module, name) for module in modules for name in module.__all__]
    public += [error for name, error in inspect.getmembers(hooked_vlm.errors, inspect.isclass) if name[0] != "_"]
    ours = [each for each in public if getattr(each, "__module__", "").startswith("hooked_vlm")]
    assert len(ours) > 50
    assert {f"{each.__module__}.{each.__qualname__}" for each in ours} <= described


def test_an_example_in_a_docstring_is_shown_as_code(site: Path) -> None:
    page = html(site / "reference" / "analysis.html")
    assert 'class="language-pycon highlight"' in page and "<p>&gt;&gt;&gt;" not in page


if __name__ == "__main__":
    for page in DOCS:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
