"""On paper: every chart is drawn, folded parts are unfolded, and nothing depends on what was scrolled to."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from hooked_vlm.notice import report
from hooked_vlm.notice.report.compare import compare
from tests.notice.made import run_directory
from tests.notice.report.parsed import Page

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
READER = shutil.which("pdftotext") or ""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run's report and a comparison."""
    root = tmp_path_factory.mktemp("paper")
    run = run_directory(root / "run", kinds=["attn-heads", "mlp"], layers=2, heads=3, kept=3)
    return [report.write(run), compare([run, shutil.copytree(run, root / "other")], root / "both.html")]


@pytest.fixture(scope="module")
def sources(pages):
    return [path.read_text(encoding="utf-8") for path in pages]


def test_the_page_has_rules_for_paper(sources):
    for source in sources:
        (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
        paper = style[style.index("@media print") :]
        assert ".main-svg" in paper  # a chart that was drawn for the screen is scaled to the column
        assert "print-color-adjust: exact" in paper  # colours of maps, legends and tiles are not left out
        assert "overflow: visible" in paper  # a table that scrolls on the screen is not cut off


def test_charts_are_drawn_and_parts_unfolded_before_a_page_is_printed(sources):
    for source in sources:
        script = source[source.rindex("<script>") :]
        before = script[script.index('"beforeprint"') : script.index('"afterprint"')]
        assert "open = true" in before and ".forEach(draw)" in before
        assert "viewBox" in script and "open = false" in script[script.index('"afterprint"') :]


def test_no_picture_waits_until_it_is_scrolled_to(sources):
    for source in sources:
        images = [attributes for tag, attributes in Page(source).elements if tag == "img"]
        assert all(attributes.get("loading") != "lazy" for attributes in images)


@pytest.mark.skipif(not (BROWSER and READER), reason="needs chromium, and pdftotext of poppler-utils")
def test_no_chart_is_blank_in_a_pdf(pages, sources, tmp_path):
    """Each chart's axis title stands on the paper as often as there are charts that have it, folded ones included."""
    for path, source in zip(pages, sources, strict=True):
        paper = tmp_path / f"{path.stem}.pdf"
        browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        subprocess.run(
            [*browser, f"--print-to-pdf={paper}", path.as_uri()], check=True, capture_output=True, timeout=120
        )
        text = subprocess.run([READER, "-layout", paper, "-"], check=True, capture_output=True, text=True).stdout
        for axis in ("xaxis", "yaxis"):
            titles = [chart["layout"][axis].get("title", {}).get("text") for _, chart in Page(source).charts]
            for title in {title for title in titles if title}:
                assert len(re.findall(rf"\b{re.escape(title)}\b", text)) >= titles.count(title), (path.name, title)
