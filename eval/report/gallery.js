/* The gallery: which expressions, in which order, a page of them at a time, and one of them large. */

const PAGE = 48;
const chosen = { iou: null, length: null, size: null, change: null }; // what was picked in the charts and the table
let samples = [];
let images = [];
let listed = []; // the samples that fit, in order
let starts = []; // places in `listed` at which a page begins
let page = 0;
let large = 0; // place in `listed` of the one that is shown large

function readSamples() {
  const data = JSON.parse(document.getElementById("rows").textContent);
  images = data.images;
  samples = data.rows.map((row, index) => {
    const [sentence, name, image, hit, union, tokens, size, overlay, object, ...compared] = row;
    const [hitBefore, unionBefore, overlayBefore] = compared;
    const iou = share(hit, union);
    const before = unionBefore === undefined ? iou : share(hitBefore, unionBefore);
    const sample = { index, sentence, name, image, imageName: data.names[image], tokens, size, object, iou, before };
    const pixels = { hit, union, hitBefore, unionBefore };
    const change = iou - before;
    return Object.assign(sample, { overlay, overlayBefore, pixels, change, words: new Set(wordsOf(sentence)) });
  });
}

function share(hit, union) {
  return union ? hit / union : 1;
}

function wordsOf(text) {
  return text.toLowerCase().split(/[^\p{L}\p{N}_]+/u).filter(Boolean);
}

/* A test for each word of the query. A star stands for any ending, a minus in front leaves a word out. */
function conditions(query) {
  const found = [];
  for (const part of query.split(/\s+/).filter(Boolean)) {
    const wanted = !part.startsWith("-");
    const words = wordsOf(part);
    words.forEach((word, i) => {
      const anyEnding = part.endsWith("*") && i === words.length - 1;
      const has = (own) => (anyEnding ? [...own].some((one) => one.startsWith(word)) : own.has(word));
      found.push((sample) => has(sample.words) === wanted);
    });
  }
  return found;
}

/* Whether a sample is in the row `label` of the table by length: "3", "6-7", ">20". */
function hasLength(sample, label) {
  if (label.startsWith(">")) return sample.tokens > Number(label.slice(1));
  const [first, last] = label.split("-").map(Number);
  return sample.tokens >= first && sample.tokens <= (last ?? first);
}

function inBin(sample, bin) {
  const bins = facts.sides[0].histogram.length;
  const { hit, union } = sample.pixels;
  return (union ? Math.min(bins - 1, Math.floor((bins * hit) / union)) : bins - 1) === bin;
}

const FACETS = {
  iou: inBin,
  length: hasLength,
  size: (sample, label) => sample.size === label,
  change: (sample, kind) => CHANGES[kind][3](sample),
};

const ORDERS = {
  worst: ["Worst first", (a, b) => a.iou - b.iou],
  median: ["Median first", null],
  best: ["Best first", (a, b) => b.iou - a.iou],
  lost: ["Lost most first", (a, b) => a.change - b.change],
  gained: ["Gained most first", (a, b) => b.change - a.change],
  split: ["In order of the split", () => 0],
};

function fillOrders() {
  const names = Object.keys(ORDERS).filter((name) => facts.changes || !["lost", "gained"].includes(name));
  const sort = document.getElementById("sort");
  sort.append(...names.map((name) => make("option", { value: name }, ORDERS[name][0])));
  sort.addEventListener("change", () => list());
}

/* Pick something above the gallery and go to what it chose, or let it go if it was picked. */
function choose(facet, value) {
  chosen[facet] = chosen[facet] === value ? null : value;
  list();
  if (chosen[facet] !== null) goToGallery();
}

/* The style sheet makes it smooth, unless the reader prefers less motion. */
function goToGallery() {
  document.getElementById("gallery").scrollIntoView();
  document.getElementById("count").focus({ preventScroll: true });
}

function queried() {
  return document.getElementById("query").value.trim();
}

function setQuery(text) {
  document.getElementById("query").value = text;
  list();
  if (text) goToGallery();
}

/* Find and order what fits, and show its first page. */
function list() {
  const query = document.getElementById("query").value;
  const tests = conditions(query);
  for (const [facet, value] of Object.entries(chosen)) {
    if (value !== null) tests.push((sample) => FACETS[facet](sample, value));
  }
  listed = samples.filter((sample) => tests.every((test) => test(sample)));
  inOrder(document.getElementById("sort").value);
  page = 0;
  starts = [0];
  listed.forEach((sample, i) => {
    if (i - starts.at(-1) >= PAGE && !followsOther(i)) starts.push(i);
  });
  showCount(tests.length > 0);
  showChips();
  markChosen();
  showPage();
}

/* Sort what is listed. Expressions of one object stand together, where the first of them would stand alone. */
function inOrder(name) {
  let compare = ORDERS[name][1];
  if (name === "median") {
    const ious = listed.map((sample) => sample.iou).sort((a, b) => a - b);
    const middle = ious[Math.floor(ious.length / 2)];
    compare = (a, b) => Math.abs(a.iou - middle) - Math.abs(b.iou - middle);
  }
  listed.sort((a, b) => compare(a, b) || a.index - b.index);
  const objects = new Map(listed.map((sample) => [sample.object, []]));
  for (const sample of listed) objects.get(sample.object).push(sample);
  listed = [...objects.values()].flat();
}

/* Whether the expression at `place` is of the same object as the one before it. */
function followsOther(place) {
  return place > 0 && listed[place].object === listed[place - 1].object;
}

function showCount(filtered) {
  const sum = (key) => listed.reduce((total, sample) => total + (sample.pixels[key] ?? 0), 0);
  const mean = (key) => (100 * listed.reduce((total, sample) => total + sample[key], 0)) / listed.length;
  const numbers = (hit, union, key) => `oIoU ${percent(100 * share(sum(hit), sum(union)))}, mIoU ${percent(mean(key))}`;
  const all = filtered ? ` of ${whole(samples.length)}` : "";
  const parts = [make("b", {}, whole(listed.length)), `${all} expressions`];
  if (listed.length) {
    parts.push(" · ", numbers("hit", "union", "iou"));
    if (facts.changes) parts.push(" · before ", numbers("hitBefore", "unionBefore", "before"));
  }
  const bare = listed.reduce((total, sample) => total + (sample.overlay ? 0 : 1), 0);
  if (bare) parts.push(` · ${whole(bare)} without an image, to keep the file small`);
  document.getElementById("count").replaceChildren(...parts);
}

function showChips() {
  const bins = facts.sides[0].histogram.length;
  const names = {
    iou: (bin) => `IoU ${(bin / bins).toFixed(2)} to ${((bin + 1) / bins).toFixed(2)}`,
    length: (label) => `${label} ${label === "1" ? "token" : "tokens"}`,
    size: (label) => (label === "none" ? "no object" : `mask ${label}`),
    change: (kind) => CHANGES[kind][0],
  };
  const picked = Object.entries(chosen).filter(([, value]) => value !== null);
  const chips = picked.map(([facet, value]) => {
    const chip = make("button", { className: "chip", title: "Show all again" }, `${names[facet](value)} ×`);
    chip.addEventListener("click", () => choose(facet, value));
    return chip;
  });
  document.getElementById("chips").replaceChildren(...chips);
}

function showPage() {
  const first = starts[page];
  const shown = listed.slice(first, starts[page + 1]);
  const none = make("p", { className: "empty" }, "No expression fits. Words are whole words: try a star, as in wom*.");
  const cards = shown.map((sample, i) => card(sample, first + i));
  document.getElementById("cards").replaceChildren(...(cards.length ? cards : [none]));
  const range = `${whole(first + 1)}–${whole(first + shown.length)} of ${whole(listed.length)}`;
  document.getElementById("place").textContent = shown.length ? range : "none";
  document.getElementById("previous").disabled = page === 0;
  const last = page + 1 === starts.length;
  document.getElementById("next").disabled = last;
  document.getElementById("more").hidden = last;
}

function turn(by, scroll) {
  page += by;
  showPage();
  if (scroll) document.getElementById("gallery").scrollIntoView();
}

function card(sample, place) {
  const shot = make("span", { className: "shot" });
  if (sample.overlay) {
    shot.append(make("img", { src: webp(images[sample.image]), alt: "" }));
    shot.append(make("img", { src: webp(sample.overlay), alt: "", className: "over-it" }));
  } else {
    shot.append(make("span", { className: "gone" }, "no image"));
  }
  const score = make("span", { className: "score" }, make("b", {}, sample.iou.toFixed(2)), track(sample.iou));
  if (facts.changes) score.append(gain(sample.change));
  const said = make("span", { className: "said", dir: "auto", title: sample.sentence }, sample.sentence);
  const kind = followsOther(place) ? "card follows" : "card";
  const element = make("button", { className: kind, type: "button" }, shot, said, score);
  element.addEventListener("click", () => showLarge(place));
  return element;
}

function gain(change) {
  const kind = change > facts.changed ? "gain good" : change < -facts.changed ? "gain bad" : "gain";
  return make("span", { className: kind }, signed(change, 2));
}

function webp(base64) {
  return `data:image/webp;base64,${base64}`;
}
