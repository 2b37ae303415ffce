"use strict";
/* Charts as SVG, drawn at the width that their place has. A picked bar chooses what the gallery shows. */

const HEIGHT = 240;
const MARGIN = { top: 18, right: 4, bottom: 40, left: 38 };

function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/* A frame with horizontal lines at `ticks`; returns {svg, x0, width, y}, where y(value) is the place of a value. */
function frame(place, ticks, show) {
  const total = Math.max(place.clientWidth, 240);
  const svg = draw("svg", { width: total, height: HEIGHT, viewBox: `0 0 ${total} ${HEIGHT}` });
  const room = HEIGHT - MARGIN.top - MARGIN.bottom;
  const y = (value) => MARGIN.top + room * (1 - value / ticks.at(-1));
  for (const tick of ticks) {
    const line = { x1: MARGIN.left, x2: total - MARGIN.right, y1: y(tick), y2: y(tick), class: tick ? "grid" : "zero" };
    const label = { x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" };
    svg.append(draw("line", line), draw("text", label, show(tick)));
  }
  place.replaceChildren(svg);
  return { svg, x0: MARGIN.left, width: total - MARGIN.left - MARGIN.right, y };
}

function column(box, x, width, value, kind) {
  const top = box.y(value);
  const height = Math.max(0, box.y(0) - top);
  return draw("rect", { x, width, y: top, height, rx: Math.min(3, width / 4), class: kind });
}

/* A group that can be picked with the pointer or the keyboard; `facet` and `value` say what it stands for. */
function pickable(box, x, width, facet, value, told) {
  const hit = { x, width, y: MARGIN.top - 6, height: HEIGHT - MARGIN.top - 4, rx: 4, class: "hit" };
  const group = draw("g", { class: "pick", tabindex: 0, role: "button", "aria-label": told });
  group.dataset.facet = facet;
  group.dataset.value = value;
  group.append(draw("title", {}, told), draw("rect", hit));
  group.addEventListener("click", () => choose(facet, value));
  group.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(facet, value);
  });
  box.svg.append(group);
  return group;
}

function niceTicks(most) {
  const rough = Math.max(1, most) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough));
  return Array.from({ length: Math.ceil(Math.max(1, most) / step) + 1 }, (_, i) => i * step);
}

function drawHistogram() {
  const counts = facts.sides.map((side) => side.histogram);
  const bins = counts[0].length;
  const box = frame(document.getElementById("histogram"), niceTicks(Math.max(...counts.flat())), whole);
  const step = box.width / bins;
  counts[0].forEach((count, bin) => {
    const x = box.x0 + bin * step;
    const range = `IoU ${(bin / bins).toFixed(2)} to ${((bin + 1) / bins).toFixed(2)}`;
    const before = counts[1] ? `, before ${whole(counts[1][bin])}` : "";
    const group = pickable(box, x, step, "iou", bin, `${range}: ${whole(count)} expressions${before}`);
    group.append(column(box, x + 1.5, Math.max(1, step - 3), count, "ours"));
  });
  if (counts[1]) {
    const steps = counts[1].map((count, bin) => `V${box.y(count)}H${box.x0 + (bin + 1) * step}`);
    const path = `M${box.x0} ${box.y(0)}${steps.join("")}V${box.y(0)}`;
    box.svg.append(draw("path", { d: path, class: "outline", "pointer-events": "none" }));
  }
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
    const label = { x: box.x0 + share * box.width, y: HEIGHT - 20, "text-anchor": anchor };
    box.svg.append(draw("text", label, share.toFixed(share % 0.5 ? 2 : 1)));
  }
}

/* Bars of oIoU with a ring at mIoU for each row of a table; two bars where there are two results. */
function drawTable(id, table, facet) {
  const box = frame(document.getElementById(id), [0, 25, 50, 75, 100], String);
  const first = facts.sides[0][table];
  const step = box.width / first.length;
  first.forEach(({ label }, number) => {
    const rows = facts.sides.map((side) => side[table].find((row) => row.label === label) ?? { n: 0 });
    const x = box.x0 + number * step;
    const told = rows.map((row) => `oIoU ${percent(row.oIoU)}, mIoU ${percent(row.mIoU)}`).join("; before: ");
    const group = pickable(box, x, step, facet, label, `${label}: ${whole(rows[0].n)} expressions; ${told}`);
    drawRows(box, group, rows, x, step);
    const middle = { x: x + step / 2, "text-anchor": "middle" };
    const tight = step < 60; // a narrow window
    const name = tight ? label.replace("%", "") : label;
    group.append(draw("text", { ...middle, y: HEIGHT - 20, class: tight ? "value tight" : "value" }, name));
    const count = step > 44 || rows[0].n < 1000 ? whole(rows[0].n) : `${(rows[0].n / 1000).toFixed(1)}k`;
    group.append(draw("text", { ...middle, y: HEIGHT - 5 }, count));
  });
}

function drawRows(box, group, rows, x, step) {
  const width = Math.min(46, (step * 0.62) / rows.length);
  rows.forEach((row, side) => {
    if (!row.n) return;
    const left = x + step / 2 + (side - rows.length / 2) * width;
    group.append(column(box, left + 1, width - 2, row.oIoU, side ? "theirs" : "ours"));
    const ring = { cx: left + width / 2, cy: box.y(row.mIoU), r: 3.5, class: "mean" };
    group.append(draw("circle", ring));
    const room = rows.length === 1 ? step : width; // a second bar would hide what is wider
    if (side || room < 18) return;
    const above = box.y(row.oIoU) - 5;
    const ringInTheWay = ring.cy < above + 9 && ring.cy > above - 14;
    const value = { x: left + width / 2, y: ringInTheWay ? ring.cy - 8 : above, "text-anchor": "middle" };
    group.append(draw("text", { ...value, class: "value" }, percent(row.oIoU, room >= 34 ? 1 : 0)));
  });
}

function drawCharts() {
  drawHistogram();
  drawTable("by-length", "by_length", "length");
  drawTable("by-size", "by_size", "size");
  markChosen();
}

/* The key below each chart. */
function addLegends() {
  for (const place of document.querySelectorAll(".chart")) {
    const bars = place.id !== "histogram";
    if (!bars && facts.sides.length === 1) continue;
    const items = facts.sides.map((side, i) => make("span", {}, dot(i), (bars ? "oIoU " : "") + sideName(i)));
    if (bars) items.push(make("span", {}, make("i", { className: "ring" }), "mIoU"));
    place.after(make("div", { className: "legend" }, ...items));
  }
}
