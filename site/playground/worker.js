// Runs the model and makes neurons, beside the page, so that the page stays responsive.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { agglomerate, makeFragments, makeGraph, variationOfInformation } from "./segment.js";

ort.env.logLevel = "error";
ort.env.wasm.numThreads = 1;  // more need headers that static hosts do not send
ort.env.wasm.wasmPaths = { wasm: new URL("./runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };

// An attention map a becomes p a + q mean(a) + r.
const KNOBS = { "as computed": [1, 0, 0], 0: [0, 0, 0], mean: [0, 1, 0], 1: [0, 0, 1] };
const OUTPUTS = ["A_s", "A_r", "a1", "a2", "a3"];

let session, shape;
let current = {};  // fragments and graph of the last volume, to merge again at another threshold

async function predict(raw, attention) {
  const feeds = {
    raw: new ort.Tensor("float32", Float32Array.from(raw, value => value / 255), [1, 1, ...shape]),
    attention: new ort.Tensor("float32", attention.flatMap(setting => KNOBS[setting]), [3, 3]),
  };
  const results = await session.run(feeds);
  return Object.fromEntries(OUTPUTS.map(name => [name, results[name].data]));
}

function findNeurons(threshold, truth) {
  const parent = agglomerate(current.graph, threshold), neurons = current.fragments.map(fragment => parent[fragment]);
  return { neurons, voi: truth && variationOfInformation(neurons, truth), fragmentCount: new Set(current.fragments).size };
}

const answers = {
  async open({ model, content }) {
    shape = model.shape;
    session = await ort.InferenceSession.create(content);
    return {};
  },

  async compute({ raw, attention, voxelSize, threshold, truth }) {
    const start = performance.now(), maps = await predict(raw, attention), middle = performance.now();
    const fragments = makeFragments(maps.A_r, shape, voxelSize);
    current = { fragments, graph: makeGraph(fragments, maps.A_r, shape) };
    const segmentation = findNeurons(threshold, truth);
    return { maps, ...segmentation, ms: { model: middle - start, neurons: performance.now() - middle } };
  },

  merge({ threshold, truth }) {
    const start = performance.now(), segmentation = findNeurons(threshold, truth);
    return { ...segmentation, ms: { model: 0, neurons: performance.now() - start } };
  },
};

self.onmessage = async ({ data: { id, task, ...values } }) => {
  try {
    self.postMessage({ id, answer: await answers[task](values) });
  } catch (error) {
    self.postMessage({ id, error: String(error.message ?? error) });
  }
};
