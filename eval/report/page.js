/* What the scripts share, the tables, one expression shown large, and the start. Data is only ever set as text. */

const facts = JSON.parse(document.getElementById("facts").textContent);

/* Of the table of changes: name, whether it is good, what it means, and which samples it counts. */
const CHANGES = {
  better: ["Better", "good", `IoU rose by more than ${facts.changed}`, (sample) => sample.change > facts.changed],
  same: ["About the same", "", `IoU changed by at most ${facts.changed}`, (s) => Math.abs(s.change) <= facts.changed],
  worse: ["Worse", "bad", `IoU fell by more than ${facts.changed}`, (sample) => -sample.change > facts.changed],
  now_found: ["Now found", "good", `IoU rose to ${facts.found} or more from below`, (s) => isFound(s.iou, s.before)],
  now_lost: ["Now lost", "bad", `IoU fell below ${facts.found}`, (sample) => isFound(sample.before, sample.iou)],
};

/* The panes of an expression shown large: title, overlay, and which of its colours are seen. */
const ALL = "right wrong missed";
const TRUTH = [["Image", "overlay", ""], ["Ground truth", "overlay", "right missed"]];
const PANES = [...TRUTH, ["Prediction", "overlay", "right wrong"], ["Both", "overlay", ALL]];
const COMPARED = [...TRUTH, ["Before", "overlayBefore", ALL], ["Now", "overlay", ALL]];
const SMALL = 320; // an image with no longer side is enlarged, pixel by pixel
let enlarged = ""; // title of the pane that was enlarged last

function isFound(iou, elsewhere) {
  return iou >= facts.found && elsewhere < facts.found;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const whole = (number) => number.toLocaleString("en-US");
const percent = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function signed(value, digits) {
  if (value === null) return percent(value);
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? `±${text}` : (value < 0 ? "−" : "+") + text;
}

function dot(side) {
  return make("i", { className: side ? "dot theirs" : "dot" });
}

function sideName(side) {
  return facts.sides.length === 1 ? "" : side ? "before" : "now";
}

function track(value) {
  const fill = make("i");
  fill.style.width = `${100 * value}%`;
  return make("span", { className: "track" }, fill);
}

function showHead() {
  const [ours, theirs] = facts.sides;
  document.getElementById("title").textContent = facts.title;
  const note = facts.other ? " (others than the public split's)" : "";
  const count = `${whole(ours.n_samples)} expressions${note} of ${whole(images.length)} images · `;
  const parts = [count, make("b", {}, ours.checkpoint)];
  if (theirs) parts.push(" compared with ", make("b", {}, theirs.checkpoint));
  document.getElementById("subtitle").append(...parts);
  if (!facts.control) return;
  const notice = document.getElementById("control");
  notice.hidden = false;
  const { expressions, changed, told, oIoU_plain } = facts.control;
  const drawn = expressions === "rotated" ? ", which is what is drawn as ground truth" : "";
  notice.textContent = `A control, not a result: ${whole(changed)} expressions were ${told}${drawn}. Without that `
    + `the oIoU is ${percent(oIoU_plain)}. Where the IoU stays high, the model did not need what was changed.`;
}

function showSummary() {
  const steps = Object.keys(facts.sides[0].prec);
  const head = ["oIoU", "mIoU", ...steps.map((x) => `Prec@${x}`), "Acc@0.5"];
  const main = (side) => [side.oIoU, side.mIoU, ...steps.map((x) => side.prec[x]), side["Acc@0.5"]];
  fillSummary("summary", head, main);
  const { n_no_target: without, ...more } = facts.sides[0].generalised ?? {};
  if (without === undefined) return;
  const names = Object.keys(more);
  const heads = names.map((name) => name + (name.startsWith("Prec") ? ", with an object" : ""));
  fillSummary("generalised", heads, (side) => names.map((name) => side.generalised?.[name]));
  document.getElementById("generalised").parentElement.hidden = false;
  document.getElementById("subtitle").append(` · ${whole(without)} expressions without an object`);
}

/* A table of metrics: a row for each side and, of two, one for the difference. An older result lacks some numbers. */
function fillSummary(id, head, numbers) {
  const large = (value, i) => make("td", { className: i < 2 ? "large" : "" }, percent(value));
  const rows = facts.sides.map((side, i) => {
    const name = make("td", { title: side.checkpoint }, dot(i), side.checkpoint);
    return make("tr", {}, name, ...numbers(side).map(large));
  });
  if (facts.sides.length > 1) {
    const differences = numbers(facts.sides[0]).map((value, i) => (value ?? NaN) - (numbers(facts.sides[1])[i] ?? NaN));
    const kind = (value) => (!(Math.abs(value) >= 0.005) ? "" : value > 0 ? "good" : "bad");
    const text = (value) => (Number.isNaN(value) ? "–" : signed(value, 2));
    const cells = differences.map((value) => make("td", { className: kind(value) }, text(value)));
    rows.push(make("tr", { className: "difference" }, make("td", {}, "Difference"), ...cells));
  }
  const top = make("tr", {}, ...["Checkpoint", ...head].map((text) => make("th", {}, text)));
  document.getElementById(id).append(make("thead", {}, top), make("tbody", {}, ...rows));
}

function showChanges() {
  if (!facts.changes) return;
  const total = samples.length;
  const rows = Object.entries(CHANGES).map(([key, [name, kind, meaning]]) => {
    const count = facts.changes[key];
    const title = make("td", { className: kind }, make("button", { className: "link" }, name));
    const note = make("td", {}, `${percent((100 * count) / total, 1)}% · ${meaning}`);
    const row = make("tr", {}, title, make("td", {}, whole(count)), note);
    row.dataset.facet = "change";
    row.dataset.value = key;
    row.addEventListener("click", () => chooseChange(key));
    return row;
  });
  document.getElementById("changed").append(make("tbody", {}, ...rows));
  for (const key of ["better", "same", "worse"]) {
    const part = make("i", { className: key, title: `${CHANGES[key][0]}: ${whole(facts.changes[key])}` });
    part.style.flexGrow = facts.changes[key];
    document.getElementById("balance").append(part);
  }
  document.getElementById("changes").hidden = false;
  document.getElementById("no-masks").hidden = facts.both_masks;
}

/* Pick a row of the table of changes, and turn the gallery the way that shows it. */
function chooseChange(key) {
  const falls = key === "worse" || key === "now_lost";
  if (chosen.change !== key) document.getElementById("sort").value = falls ? "lost" : "gained";
  choose("change", key);
}

/* The table by word, sorted by the column that was clicked last, upwards first. */
function showWords(key = "mIoU", down = false) {
  const rows = facts.words.map((row) => ({ ...row, change: row.mIoU - row.before }));
  const place = document.getElementById("words");
  if (!rows.length) {
    place.replaceChildren(make("p", { className: "none" }, "No word stands in five expressions or more."));
    return;
  }
  const least = Math.min(...rows.map((row) => row.n));
  document.getElementById("words-note").textContent = `words in ${whole(least)} expressions or more`;
  const columns = { label: "word", n: "expressions", mIoU: "mIoU", ...(facts.changes ? { change: "change" } : {}) };
  rows.sort((a, b) => (down ? -1 : 1) * (key === "label" ? (a.label < b.label ? -1 : 1) : a[key] - b[key]));
  const head = Object.entries(columns).map(([column, title]) => {
    const mark = column === key ? (down ? " ↓" : " ↑") : "";
    const button = make("button", {}, title + mark);
    button.addEventListener("click", () => showWords(column, column === key ? !down : column === "n"));
    const order = down ? "descending" : "ascending";
    return make("th", { className: mark ? "sorted" : "", ariaSort: mark ? order : null }, button);
  });
  const body = rows.map(wordRow);
  place.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
  markChosen();
}

function wordRow(row) {
  const word = make("td", {}, make("button", { className: "link", dir: "auto" }, row.label));
  const mean = make("td", {}, percent(row.mIoU, 1), track(row.mIoU / 100));
  const element = make("tr", {}, word, make("td", {}, whole(row.n)), mean);
  if (facts.changes) {
    const kind = Math.abs(row.change) < 0.05 ? "" : row.change > 0 ? "good" : "bad";
    element.append(make("td", { className: kind }, signed(row.change, 1)));
  }
  element.dataset.word = row.label;
  element.addEventListener("click", () => setQuery(queried() === row.label ? "" : row.label));
  return element;
}

/* Show in charts and tables what is picked. */
function markChosen() {
  for (const element of document.querySelectorAll("[data-facet]")) {
    const value = chosen[element.dataset.facet];
    element.classList.toggle("chosen", value !== null && String(value) === element.dataset.value);
  }
  for (const row of document.querySelectorAll("[data-word]")) {
    row.classList.toggle("chosen", row.dataset.word === queried());
  }
}

function showRecords() {
  const records = facts.sides.map((side) => {
    const entries = Object.entries(side.record).flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]);
    return make("dl", {}, ...entries);
  });
  document.getElementById("records").append(...records);
}

function traits(sample) {
  const { hit, union, hitBefore, unionBefore } = sample.pixels;
  const entries = [["IoU", `${sample.iou.toFixed(4)} = ${whole(hit)} / ${whole(union)} pixels`]];
  if (facts.changes) {
    entries.push(["before", `${sample.before.toFixed(4)} = ${whole(hitBefore)} / ${whole(unionBefore)} pixels`]);
    entries.push(["change", signed(sample.change, 4)]);
  }
  const size = sample.size === "none" ? "no object" : `${sample.size} of the image`;
  entries.push(["tokens", whole(sample.tokens)], ["mask", size]);
  return [...entries, ["sample", sample.name], ["image", sample.imageName]];
}

async function showLarge(place) {
  large = place;
  const sample = listed[place];
  const said = document.getElementById("detail-said");
  said.textContent = sample.sentence;
  said.dir = "auto";
  const entries = traits(sample);
  const cells = entries.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]);
  document.getElementById("detail-facts").replaceChildren(...cells);
  document.getElementById("earlier").disabled = place === 0;
  document.getElementById("later").disabled = place === listed.length - 1;
  const dialog = document.getElementById("detail");
  if (!dialog.open) dialog.showModal();
  const panes = sample.overlay ? await paint(sample) : [make("div", {}, "Its image is not in this file.")];
  if (large !== place) return;
  document.getElementById("panes").replaceChildren(...panes);
  document.getElementById("stage").hidden = !sample.overlay;
  if (sample.overlay) enlarge(panes.find((pane) => pane.textContent === enlarged) ?? panes.at(-1));
}

async function paint(sample) {
  const image = await decoded(images[sample.image]);
  return Promise.all((sample.overlayBefore ? COMPARED : PANES).map(async ([title, overlay, kinds]) => {
    const canvas = tinted(image, await decoded(sample[overlay]), kinds);
    const pane = make("button", { type: "button" }, canvas, title);
    pane.addEventListener("click", () => enlarge(pane));
    return pane;
  }));
}

async function decoded(base64) {
  const picture = make("img", { src: webp(base64) });
  await picture.decode();
  return picture;
}

/* A canvas with the image, and over it the colours of the overlay that `kinds` names. */
function tinted(image, overlay, kinds) {
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  const codes = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < codes.data.length; i += 4) {
    const [red, green, blue, alpha] = codes.data.subarray(i, i + 4); // each colour has one part that leads
    const kind = red > green && red > blue ? "wrong" : green > blue ? "right" : "missed";
    codes.data[i + 3] = alpha >= 128 && kinds.includes(kind) ? 158 : 0;
  }
  context.putImageData(codes, 0, 0);
  context.globalCompositeOperation = "destination-over";
  context.drawImage(image, 0, 0);
  return canvas;
}

function enlarge(pane) {
  enlarged = pane.textContent;
  for (const other of document.getElementById("panes").children) other.ariaPressed = other === pane;
  const source = pane.firstChild;
  const stage = document.getElementById("stage");
  Object.assign(stage, { width: source.width, height: source.height });
  stage.getContext("2d").drawImage(source, 0, 0);
  const small = Math.max(source.width, source.height) <= SMALL;
  document.getElementById("detail").classList.toggle("small", small);
}

function step(by) {
  if (large + by >= 0 && large + by < listed.length) showLarge(large + by);
}

function listen() {
  const on = (id, event, call) => document.getElementById(id).addEventListener(event, call);
  on("query", "input", () => list());
  on("previous", "click", () => turn(-1, false));
  on("next", "click", () => turn(1, false));
  on("more", "click", () => turn(1, true));
  on("earlier", "click", () => step(-1));
  on("later", "click", () => step(1));
  on("close", "click", () => document.getElementById("detail").close());
  on("detail", "click", (event) => event.target.id === "detail" && event.target.close());
  on("detail", "keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) drawCharts();
    width = window.innerWidth;
  });
}

readSamples();
showHead();
showSummary();
showChanges();
showWords();
showRecords();
fillOrders();
if (facts.changes) document.getElementById("sort").value = "lost";
addLegends();
drawCharts();
listen();
list();
