"""How a report looks and how its charts come alive: one style sheet, one script, no address of anything outside.

Colours are ColorBrewer's and Okabe and Ito's, told apart by colour-blind readers.
"""

from __future__ import annotations

from typing import Final

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK: Final = "#1f2933"
FAINT: Final = "#5f6c7b"
LINE: Final = "#dde3ea"
SHADES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#a0522d")

# ColorBrewer's RdBu turned round: blue below zero, red above (Harrower and Brewer 2003).
DIVERGING: Final = (
    "#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7",
    "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f",
)  # fmt: skip

STYLE: Final = f"""
:root {{ color-scheme: light; --ink: {INK}; --faint: {FAINT}; --line: {LINE}; --accent: #0b5c8c; --tint: #f4f7fa; }}
* {{ box-sizing: border-box; }}
html {{ scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 {FONT}; }}
main {{ max-width: 1240px; margin: 0 auto; padding: 28px 24px 60px; }}
main > * {{ min-width: 0; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }}
h2 {{ font-size: 22px; line-height: 1.25; margin: 0 0 10px; }}
h3 {{ font-size: 17px; margin: 26px 0 6px; }}
h4 {{ font-size: 15px; margin: 14px 0 2px; color: var(--faint); }}
p {{ margin: 0 0 12px; max-width: 76ch; }}
a {{ color: var(--accent); }}
code, pre {{ font: 13.5px/1.5 ui-monospace, 'SF Mono', Menlo, Consolas, monospace; }}
code {{ overflow-wrap: anywhere; }}
pre {{ background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px;
  white-space: pre-wrap; overflow-wrap: anywhere; }}
.subtitle {{ color: var(--faint); margin-bottom: 18px; max-width: none; overflow-wrap: anywhere; }}
.answer {{ font-size: 18px; line-height: 1.5; }}
.answer p {{ max-width: 72ch; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); gap: 12px;
  margin: 18px 0 10px; padding: 0; list-style: none; }}
.tiles li {{ border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; background: var(--tint); }}
.tiles b {{ display: block; font-size: 21px; line-height: 1.3; font-variant-numeric: tabular-nums; }}
.tiles span {{ color: var(--faint); font-size: 13.5px; line-height: 1.4; display: block; }}
.contents {{ font-size: 14.5px; margin: 18px 0; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
  padding: 12px 0; }}
.contents h2 {{ font-size: 13px; color: var(--faint); margin: 0 0 6px; }}
.contents ol {{ margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; }}
.contents a {{ text-decoration: none; }}
.contents a:hover {{ text-decoration: underline; }}
section {{ padding-top: 22px; margin-top: 26px; border-top: 1px solid var(--line); scroll-margin-top: 8px; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); gap: 14px 18px; }}
.grid.wide {{ grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }}
.grid > * {{ min-width: 0; }}
figure {{ margin: 8px 0 12px; min-width: 0; }}
figcaption {{ font-size: 14px; color: var(--faint); }}
figcaption.title {{ color: var(--ink); font-weight: 600; }}
.plot {{ width: 100%; overflow: hidden; }}
.note {{ font-size: 14px; color: var(--faint); }}
.missing {{ color: var(--faint); border-left: 3px solid var(--line); padding-left: 12px; }}
.overlay img {{ width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 4px; }}
.scroll {{ overflow-x: auto; margin: 8px 0 16px; }}
.scroll:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
table {{ border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }}
caption {{ caption-side: top; text-align: left; color: var(--faint); font-size: 14px; padding-bottom: 6px; }}
th, td {{ text-align: left; vertical-align: top; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); }}
thead th {{ color: var(--faint); font-weight: 600; font-size: 13.5px; vertical-align: bottom; }}
tbody th {{ font-weight: 600; white-space: nowrap; }}
.prose tbody th {{ white-space: normal; min-width: 14em; }}
.findings {{ list-style: none; padding: 0; margin: 0; }}
.findings li {{ display: grid; grid-template-columns: 8.2em minmax(0, 1fr); margin: 0 0 12px; }}
.findings p {{ margin: 0 0 2px; }}
.findings details {{ margin: 0; font-size: 14px; }}
th.number, td.number {{ text-align: right; white-space: nowrap; }}
th.number + th:not(.number), td.number + td:not(.number) {{ padding-left: 10px; }}
.scale {{ display: flex; align-items: center; gap: 10px; font-size: 13.5px; color: var(--faint);
  margin: 4px 0 10px; flex-wrap: wrap; }}
.legend {{ display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; margin: 4px 0 8px; padding: 0;
  list-style: none; }}
.legend i {{ display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 7px; }}
.scale i {{ display: inline-block; width: 180px; height: 11px; border-radius: 2px; border: 1px solid var(--line);
  background: linear-gradient(to right, {", ".join(DIVERGING)}); }}
.verdict {{ white-space: nowrap; font-weight: 600; }}
.verdict.yes {{ color: #00664b; }}
.verdict.no {{ color: #a34700; }}
.verdict.open {{ color: var(--faint); }}
dl.facts {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 18px; margin: 8px 0 14px; }}
dl.facts dt {{ color: var(--faint); }}
dl.facts dd {{ margin: 0; overflow-wrap: anywhere; }}
details {{ margin: 10px 0; }}
summary {{ cursor: pointer; color: var(--accent); }}
footer {{ margin-top: 40px; padding-top: 14px; border-top: 1px solid var(--line); color: var(--faint);
  font-size: 14px; }}
@media (min-width: 1080px) {{
  main {{ display: grid; grid-template-columns: 190px minmax(0, 1fr); column-gap: 44px; align-content: start; }}
  .top {{ grid-column: 2; grid-row: 1; }}
  .parts {{ grid-column: 2; grid-row: 2; }}
  .contents {{ grid-column: 1; grid-row: 1 / span 2; align-self: start; position: sticky; top: 20px;
    border: 0; padding: 8px 0; margin: 0; }}
  .contents ol {{ display: block; }}
  .contents li {{ margin: 5px 0; line-height: 1.35; }}
}}
@media (max-width: 620px) {{
  main {{ padding: 18px 16px 40px; }}
  h1 {{ font-size: 25px; }}
  .answer {{ font-size: 17px; }}
  .tiles {{ grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }}
  .tiles li {{ padding: 10px; }}
  .tiles b {{ font-size: 18px; }}
  .findings li {{ display: block; }}
  td:not(.number) {{ min-width: 9em; }}
  dl.facts {{ display: block; }}
  dl.facts dt {{ margin-top: 8px; }}
}}
@media print {{  /* paper has a width of its own, and nothing is drawn again for it: charts scale as pictures do */
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  body {{ font-size: 13px; }}
  main {{ display: block; max-width: none; padding: 0; }}
  .contents {{ display: none; }}
  .answer {{ font-size: 15px; }}
  p, .answer p {{ max-width: none; }}
  .tiles, .grid {{ grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px 12px; }}
  .grid.wide {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
  .plot {{ position: relative; height: auto !important; overflow: visible; }}
  .plot .svg-container {{ position: static !important; }}
  .plot .main-svg {{ position: absolute; inset: 0; width: 100% !important; height: 100% !important; }}
  .scroll {{ overflow: visible; }}
  table {{ font-size: 11px; width: 100%; }}
  th, td, th.number, td.number {{ white-space: normal; min-width: 0 !important; padding-right: 8px; }}
  tbody th {{ min-width: 7em !important; }}
  pre, .chart .note {{ font-size: 11px; }}
  figure, tr, li {{ break-inside: avoid; }}
  h2, h3, h4, .scale, .legend, caption, thead {{ break-after: avoid; }}
  .missing, .note {{ orphans: 3; widows: 3; }}
}}
"""

SCRIPT: Final = """
(function () {
  "use strict";
  var folded = [];
  function each(what, act, root) { Array.prototype.forEach.call((root || document).querySelectorAll(what), act); }
  function shown(box) { return !box.dataset.drawn && box.offsetParent !== null; }
  function waiting(root) { return Array.prototype.filter.call(root.querySelectorAll(".plot"), shown); }
  function scalable(box) {  // on paper, where the style sheet makes it as wide as its column
    var size = box.querySelector(".main-svg");
    if (!size) { return; }
    var wide = size.getAttribute("width"), high = size.getAttribute("height");
    box.style.aspectRatio = wide + " / " + high;
    each(".main-svg", function (svg) { svg.setAttribute("viewBox", "0 0 " + wide + " " + high); }, box);
  }
  function draw(box) {
    box.dataset.drawn = "yes";
    var figure = JSON.parse(box.querySelector("script").textContent);
    Plotly.newPlot(box, figure.data, figure.layout, { responsive: true, displayModeBar: false, scrollZoom: false });
    box.on("plotly_afterplot", function () { scalable(box); });
    scalable(box);
  }
  function some(root) {  // a few at a time, from the top, so that the page answers meanwhile
    var boxes = waiting(root).slice(0, 4);
    boxes.forEach(draw);
    if (boxes.length) { setTimeout(some, 0, root); }
  }
  each("details", function (part) {  // what is folded away has no width to draw in
    part.addEventListener("toggle", function () { if (part.open) { some(part); } });
  });
  addEventListener("beforeprint", function () {  // paper cannot be unfolded, nor wait for what is not drawn yet
    each("details:not([open]):not([data-screen])", function (part) { part.open = true; folded.push(part); });
    waiting(document).forEach(draw);
  });
  addEventListener("afterprint", function () {
    folded.splice(0).forEach(function (part) { part.open = false; });
  });
  some(document);
})();
"""
