// The playground: what the reader sets is the state; the worker computes what follows from it; the page shows both.

import { LONGEST, SETTINGS, START, readAddress, writeAddress, writeStrokes } from "./address.js";
import { drawAffinities, drawAttention, drawBar, drawGreys, drawNeurons, drawRing, matchColors } from "./draw.js";
import { editVolume, makeNoise, measureGreys } from "./edit.js";
import { readImage } from "./upload.js";

const byId = id => document.getElementById(id);
const OWN = { id: "own", name: "your own image", voxelSize: [40, 8, 8] };
const STRIDES = { a1: 4, a2: 8, a3: 16 };
const SLIDERS = {
  z: value => `${value + 1} of 8`, noise: value => `± ${value}`, contrast: value => `× ${value.toFixed(2)}`,
  threshold: value => value.toFixed(2),
};

let model, samples, noise;
let state = { ...START };
let untouched, result, edited;  // what the model computed for the sample as it is, and for what is shown
let ring = [64, 64], stroke = null;  // where keys draw, and the stroke that is being drawn

// --- the worker ------------------------------------------------------------------------------------------------------

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
worker.onmessage = ({ data: { id, answer, error } }) => {
  const [resolve, reject] = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error)); else resolve(answer);
};
worker.onerror = event => showAlert(`The model cannot run in this browser (${event.message || "its worker did not start"}).`);

let asked = 0;
const ask = (task, values) => new Promise((resolve, reject) => {
  waiting.set(++asked, [resolve, reject]);
  worker.postMessage({ id: asked, task, ...values });
});

async function load(path, read) {
  const response = await fetch(new URL(path, import.meta.url));
  if (!response.ok) throw new Error(`${path} could not be loaded (${response.status}).`);
  return response[read]();
}

// --- samples ---------------------------------------------------------------------------------------------------------

const sample = () => samples.get(state.sample);

async function loadSample() {
  if (sample().raw) return;
  const bytes = new Uint8Array(await load(sample().file, "arrayBuffer")), size = bytes.length / 2;
  Object.assign(sample(), { raw: bytes.subarray(0, size), truth: bytes.subarray(size) });
  sample().greys = measureGreys(sample().raw);
}

async function openOwn() {
  const [file] = byId("file").files;
  showAlert("");
  if (!file || !byId("nm").reportValidity()) return;
  try {
    const { volume, pages } = await readImage(file, Number(byId("nm").value), model.shape);
    const about = pages > 1 ? `${pages} pages of ${file.name}` : `${file.name}, the same in all sections`;
    samples.set("own", { ...OWN, about: `${about}; taken as sections 40 nm apart.`, raw: volume, greys: measureGreys(volume) });
  } catch (error) {
    return showAlert(error.message);
  }
  setState({ ...START, sample: "own" });
}

// --- compute ---------------------------------------------------------------------------------------------------------

let busy = false, again = false, computed = "";

/** Shows the state, and lets the worker compute it; what changes meanwhile is computed next. */
async function update() {
  again = true;
  if (sample().raw) edit();
  if (busy) return;
  busy = true;
  document.body.dataset.ready = "no";
  try {
    while (again) {
      again = false;
      await compute();
    }
    document.body.dataset.ready = "yes";
  } catch (error) {
    showAlert(`Something went wrong: ${error.message}`);
    document.body.dataset.ready = "failed";
  }
  busy = false;
}

function edit() {
  edited = editVolume(sample().raw, model.shape, sample().greys, state, noise);
  drawEm();
}

const request = (raw, settings, threshold) => ask("compute", {
  raw, attention: settings, voxelSize: sample().voxelSize, threshold, truth: sample().truth });

/** Everything that the model's answer follows from, as a key. */
const inputs = ({ sample: id, strokes, noise: sd, contrast, a1, a2, a3 }) => JSON.stringify([id, strokes, sd, contrast, a1, a2, a3]);

async function compute() {
  await loadSample();
  edit();
  await opened;
  const shown = sample();
  if (untouched?.sample !== shown) {
    const first = await request(sample().raw, Array(3).fill(START.a1), model.threshold);
    untouched = { sample: shown, ...first, colors: matchColors(first.neurons, null) };
    result = { ...untouched, threshold: model.threshold };
    computed = inputs({ ...START, sample: shown.id });
  }
  if (shown !== sample()) return;
  const key = inputs(state), { a1, a2, a3, threshold } = state;  // not before: the reader goes on meanwhile
  if (key !== computed) {
    result = await request(edited, [a1, a2, a3], threshold);
    computed = key;
  } else if (result.threshold !== threshold) {
    result = { ...result, ...await ask("merge", { threshold, truth: sample().truth }) };
  }
  if (shown !== sample()) return;
  result = { ...result, threshold, colors: matchColors(result.neurons, untouched) };
  history.replaceState(null, "", `#${writeAddress(state)}`);
  draw();
  const { model: modelMs, neurons } = result.ms, seconds = ms => `${(ms / 1000).toFixed(2)} s`;
  byId("status").textContent = `Computed in ${seconds(modelMs + neurons)}: model ${seconds(modelMs)}, neurons ${seconds(neurons)}.`;
  window.playground = { state, result, untouched, edited };  // to look at in the console, and for tests
}

// --- show ------------------------------------------------------------------------------------------------------------

function drawEm() {
  const nm = sample().voxelSize[2], canvas = byId("em");
  drawGreys(canvas, edited, model.shape, state.z, nm);
  if (canvas.matches(":focus-visible")) drawRing(canvas, ...ring, state.radius, model.shape[2]);
}

function draw() {
  drawEm();
  if (!result) return;
  const { maps, neurons, colors } = result;
  drawNeurons(byId("neurons"), neurons, colors, edited, model.shape, state.z, sample().voxelSize[2]);
  drawAffinities(byId("refined"), maps.A_r, model.shape, state.z);
  drawAffinities(byId("coarse"), maps.A_s, model.shape, state.z);
  for (const [name, stride] of Object.entries(STRIDES)) {
    const highest = Math.max(0.01, ...maps[name], ...untouched.maps[name]);
    drawAttention(byId(name), maps[name], stride, model.shape, state.z, highest);
    byId(`${name}-ends`).lastChild.textContent = highest.toFixed(2);
  }
  showNumbers();
}

function showNumbers() {
  const change = result.maps.A_r.reduce((sum, value, i) => sum + Math.abs(value - untouched.maps.A_r[i]), 0) / result.maps.A_r.length;
  const voi = k => ({ voi }) => voi ? voi[k].toFixed(2) : "unknown";
  const rows = {
    "neurons in the 8 sections": ({ neurons }) => new Set(neurons).size,
    "VOI split": voi(0),
    "VOI merge": voi(1),
    "mean change of A<sub>r</sub>": column => column === untouched ? "" : change.toFixed(3),
  };
  byId("numbers").replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.innerHTML = name;
    row.append(head, ...[result, untouched].map(column => Object.assign(document.createElement("td"), { textContent: value(column) })));
    return row;
  }));
}

function showControls() {
  byId("sample").value = state.sample;
  for (const [id, text] of Object.entries(SLIDERS)) {
    byId(id).value = state[id];
    document.querySelector(`output[for=${id}]`).textContent = text(state[id]);
  }
  for (const name of Object.keys(STRIDES)) byId(`${name}-setting`).value = state[name];
  byId("radius").value = state.radius;
  document.querySelector("output[for=radius]").textContent = `${state.radius * sample().voxelSize[2]} nm`;
  byId("undo").disabled = state.strokes.length === 0;
  byId("about").textContent = sample().about;
}

function showAlert(text) { byId("alert").textContent = text; }

function setState(changes) {
  state = { ...state, ...changes };
  showControls();
  update();
}

// --- mouse, finger and keys on the section ----------------------------------------------------------------------------

const tool = () => document.querySelector("input[name=tool]:checked").value;

/** Begins a stroke, or goes on with it, at a voxel. */
function drawAt(y, x, kind) {
  const section = byId("through").checked ? null : state.z;
  const strokes = state.strokes.filter(other => other !== stroke);
  const next = stroke ? { ...stroke, points: [...stroke.points, [y, x]] } : { tool: kind, radius: state.radius, z: section, points: [[y, x]] };
  if (writeStrokes([...strokes, next]).length > LONGEST) return showAlert("The link to this view can hold no more strokes: undo some.");
  stroke = next;
  setState({ strokes: [...strokes, next] });
}

function voxelAt(event) {
  const box = byId("em").getBoundingClientRect(), [, rows, columns] = model.shape;
  const voxel = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
  return [voxel((event.clientY - box.top) / box.height, rows), voxel((event.clientX - box.left) / box.width, columns)];
}

function addDrawing(canvas) {
  canvas.addEventListener("pointerdown", event => {
    ring = voxelAt(event);
    stroke = null;
    if (tool() === "off" || event.button > 0) return;
    canvas.setPointerCapture(event.pointerId);
    drawAt(...ring, tool());
  });
  canvas.addEventListener("pointermove", event => {
    if (!stroke || !canvas.hasPointerCapture(event.pointerId)) return;
    const [y, x] = voxelAt(event), [lastY, lastX] = stroke.points.at(-1);
    ring = [y, x];
    if (Math.hypot(y - lastY, x - lastX) >= 1.5) drawAt(y, x, stroke.tool);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { stroke = null; });
  canvas.addEventListener("keydown", press);
  canvas.addEventListener("focus", () => { if (edited) drawEm(); });  // a click focuses, too: its stroke goes on
  canvas.addEventListener("blur", () => { stroke = null; if (edited) drawEm(); });
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const TOOLS = { d: "draw", e: "erase" };

function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in STEPS) {
    ring = ring.map((at, k) => Math.min(model.shape[k + 1] - 1, Math.max(0, at + STEPS[key][k] * (event.shiftKey ? 8 : 1))));
    drawEm();
  } else if (key in TOOLS) {
    if (stroke?.tool !== TOOLS[key]) stroke = null;
    drawAt(...ring, TOOLS[key]);  // a second press goes on with the line of the first
  } else if (key === "Escape") {
    stroke = null;
  } else if (key === "PageUp" || key === "PageDown") {
    stroke = null;
    setState({ z: Math.min(model.shape[0] - 1, Math.max(0, state.z + (key === "PageUp" ? 1 : -1))) });
  } else return;
  event.preventDefault();
}

// --- start -----------------------------------------------------------------------------------------------------------

/** A panel for an attention map, with a bar of its colours and a choice of what it is set to. */
function addMap(name, stride) {
  const figure = document.createElement("figure");
  figure.className = "attention";
  figure.innerHTML = `<figcaption>Attention ${name}</figcaption>
    <canvas id="${name}" width="256" height="256" role="img" aria-label="Attention ${name}: bright where it is high"></canvas>
    <canvas class="bar" width="256" height="8" aria-hidden="true"></canvas><div class="ends" id="${name}-ends"><span>0</span><span></span></div>
    <label>stride ${stride}; ${name} is <select id="${name}-setting"></select></label>`;
  document.querySelector(".maps").append(figure);
  drawBar(figure.querySelector(".bar"));
  const select = byId(`${name}-setting`);
  const texts = { mean: "its mean" };
  select.append(...SETTINGS.map(setting => new Option(texts[setting] ?? setting, setting)));
  select.addEventListener("input", () => setState({ [name]: select.value }));
}

function openAddress() {
  const address = location.hash.slice(1), known = [...samples.keys()].filter(id => samples.get(id).file);
  const { state: read, wrong } = readAddress(address, known);
  showAlert("");
  if (new URLSearchParams(address).get("sample") === OWN.id) {
    showAlert("A link cannot hold your own image: please choose the file again.");
    return setState({ ...START });
  }
  if (wrong.length) showAlert(`The link holds something that this page does not understand, and leaves out: ${wrong.join(", ")}.`);
  setState(read);
}

function addControls() {
  for (const id of Object.keys(SLIDERS)) byId(id).addEventListener("input", event => setState({ [id]: Number(event.target.value) }));
  byId("radius").addEventListener("input", event => setState({ radius: Number(event.target.value) }));
  byId("sample").addEventListener("input", event => {
    if (event.target.value !== OWN.id || samples.has(OWN.id)) return setState({ ...START, sample: event.target.value });
    byId("sample").value = state.sample;
    byId("file").click();
  });
  for (const id of ["file", "nm"]) byId(id).addEventListener("change", openOwn);
  byId("undo").addEventListener("click", () => { stroke = null; setState({ strokes: state.strokes.slice(0, -1) }); });
  byId("reset").addEventListener("click", () => { showAlert(""); setState({ ...START, sample: state.sample }); });
  byId("share").addEventListener("click", () => Promise.resolve().then(() => navigator.clipboard.writeText(location.href)).then(  // there is none over http
    () => { byId("status").textContent = "The link is copied."; },
    () => { byId("status").textContent = "Copy the address of this page: it holds the view."; }));
  for (const radio of document.querySelectorAll("input[name=tool]"))
    radio.addEventListener("change", () => byId("em").classList.toggle("brush", tool() !== "off"));
  addDrawing(byId("em"));
  window.addEventListener("hashchange", openAddress);
}

let opened;  // a promise: the model is in the worker

async function start() {
  const content = await load("content.json", "json");
  [model] = content.models;  // a second one would need a choice here
  samples = new Map(content.samples.map(part => [part.id, part]));
  noise = makeNoise(model.shape.reduce((a, b) => a * b));
  START.sample = content.samples[0].id;
  START.threshold = model.threshold;
  state.radius = 2;
  byId("sample").append(...[...samples.values(), OWN].map(({ id, name }) => new Option(name, id)));
  byId("credits").textContent = content.credits.join(" ");
  Object.entries(STRIDES).forEach(([name, stride]) => addMap(name, stride));
  addControls();
  opened = load(model.file, "arrayBuffer").then(bytes => ask("open", { model, content: bytes }));
  openAddress();
}

start().catch(error => showAlert(`The page could not start: ${error.message}`));
