// Draws a report's charts: what can be seen first, what is folded away once it is unfolded, everything for paper.
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
