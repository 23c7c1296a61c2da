"""Pages of the site whose text lies elsewhere in the repository: a hook of mkdocs, named in mkdocs.yml.

The README is the home page, a notebook is a page as it is kept, with its outputs, and links lead to the same place on
the site as among the files. Nothing is executed.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
HOME = {"README.md": "index.md"}
OUTSIDE = [
    *HOME,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(card.relative_to(ROOT).as_posix()) for card in sorted((ROOT / "hooked_vlm" / "zoo").glob("*/README.md"))),
    *(str(book.relative_to(ROOT).as_posix()) for book in sorted((ROOT / "notebooks").glob("*.ipynb"))),
]
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", flags=re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and the files that they link to."""
    for source in OUTSIDE:
        text = (ROOT / source).read_text(encoding="utf-8")
        text = as_markdown(json.loads(text)) if source.endswith(".ipynb") else text
        files.append(File.generated(config, placed(source), content=relinked(text, source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of the pages in docs/, which lead out of it among the files."""
    return markdown if page.file.generated_by else relinked(markdown, f"docs/{page.file.src_uri}")


def placed(source: str) -> str:
    """The path on the site of a file of the repository."""
    card = re.fullmatch(r"hooked_vlm/(zoo/[\w-]+)/README\.md", source)
    return f"{card[1]}.md" if card else HOME.get(source, source.removeprefix("docs/").replace(".ipynb", ".md"))


def relinked(text: str, source: str) -> str:
    """A text whose relative links lead from its place on the site to those of the files that they name."""
    here, there = posixpath.dirname(source), posixpath.dirname(placed(source)) or "."

    def moved(link: re.Match[str]) -> str:
        target = placed(posixpath.normpath(posixpath.join(here, link[2])))
        return f"{link[1]}{posixpath.relpath(target, there)}{link[3]}"

    pieces = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # code stays as it is
    return "".join(piece if i % 2 else LINK.sub(moved, piece) for i, piece in enumerate(pieces))


def as_markdown(notebook: dict[str, Any]) -> str:
    """A notebook as it is kept: texts, code, and what came out."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(FORMULA.sub(formula, source) if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [shown(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def formula(found: re.Match[str]) -> str:
    """A formula as MathML, which needs no script."""
    return convert(found[1] or found[2], display="block" if found[1] else "inline")


def shown(output: dict[str, Any]) -> str:
    """An output in its richest form that a page can hold."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![What the cell draws](data:image/png;base64,{''.join(data['image/png'].split())})"
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>|(?<=<table)[^>]*", "", "".join(data["text/html"]), flags=re.DOTALL)
        return "\n".join(line for line in html.splitlines() if line.strip())
    return f"```text\n{''.join(output.get('text', data.get('text/plain', ''))).rstrip()}\n```"
