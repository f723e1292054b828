// From affinities to neurons, as fgnet_lib/segmentation.py does it: watershed fragments, then agglomeration by mean
// affinity. Volumes are flat arrays with a shape [sections, rows, columns]; affinities are three of them in a row, and
// channel c joins a voxel to its predecessor along axis c.

const INSIDE = 0.5;  // boundary maps are below it inside of neurites
const LINK = 0.1;  // affinities up to it join nothing
const SMOOTHING = 2;  // voxels

const count = shape => shape[0] * shape[1] * shape[2];
const strides = shape => [shape[1] * shape[2], shape[2], 1];

/** Watershed fragments: ids from 1. Anisotropic data is flooded section by section, isotropic data in 3D. */
export function makeFragments(affinities, shape, voxelSize) {
  const size = count(shape), linked = linkMask(affinities, shape);
  if (voxelSize[0] < 2 * voxelSize[2]) return flood(boundaryMap(affinities, size, 0), linked, shape, voxelSize);
  const boundary = boundaryMap(affinities, size, 1), section = shape[1] * shape[2], labels = new Int32Array(size);
  let last = 0;
  for (let z = 0; z < shape[0]; z++) {
    const cut = array => array.subarray(z * section, (z + 1) * section);
    const part = flood(cut(boundary), cut(linked), [1, shape[1], shape[2]], voxelSize);
    labels.set(part.map(label => label + last), z * section);
    last += part.reduce((a, b) => Math.max(a, b), 0);
  }
  return labels;
}

/** 1 - mean affinity of each voxel, over the channels from `first` on. */
function boundaryMap(affinities, size, first) {
  const boundary = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    let sum = 0;
    for (let channel = first; channel < 3; channel++) sum = Math.fround(sum + affinities[channel * size + i]);
    boundary[i] = 1 - Math.fround(sum / (3 - first));
  }
  return boundary;
}

/** Marks the voxels that an affinity above LINK joins to a neighbour: everything but membranes. */
function linkMask(affinities, shape) {
  const size = count(shape), mask = new Uint8Array(size);
  strides(shape).forEach((stride, axis) => {
    for (let i = 0; i < size; i++) {
      if (affinities[axis * size + i] <= LINK) continue;
      mask[i] = 1;
      if (Math.floor(i / stride) % shape[axis]) mask[i - stride] = 1;
    }
  });
  return mask;
}

function flood(boundary, linked, shape, voxelSize) {
  const inside = Uint8Array.from(boundary, value => value < INSIDE);
  if (inside.every(Boolean)) return new Int32Array(inside.length).fill(1);
  const distance = smooth(distanceToBoundary(inside, shape, voxelSize), shape);
  const highest = largestNearby(distance, shape);
  const peaks = inside.map((value, i) => value && distance[i] === highest[i]);
  const seeds = addSeeds(labelParts(peaks, shape, true), linked, shape);
  if (seeds.every(seed => seed === 0)) return seeds.fill(1);
  return watershed(boundary.map((value, i) => value + (linked[i] ? 0 : 1)), seeds, shape);
}

/** Lets `change` work in place on every line of a volume along an axis. */
function forEachLine(values, shape, axis, change) {
  const stride = strides(shape)[axis], line = new Float64Array(shape[axis]);
  for (let start = 0; start < values.length; start++) {
    if (Math.floor(start / stride) % shape[axis]) continue;  // no line starts here
    for (let k = 0; k < line.length; k++) line[k] = values[start + k * stride];
    change(line);
    for (let k = 0; k < line.length; k++) values[start + k * stride] = line[k];
  }
}

/** Exact Euclidean distance (nm) to the nearest voxel outside: lower envelopes of parabolas, axis by axis. */
function distanceToBoundary(inside, shape, voxelSize) {
  const squares = Float64Array.from(inside, value => value ? 1e20 : 0);
  for (let axis = 0; axis < 3; axis++)
    if (shape[axis] > 1) forEachLine(squares, shape, axis, line => lowerEnvelope(line, voxelSize[axis] ** 2));
  return squares.map(Math.sqrt);
}

/** In place: of each place of a line the smallest sum of a height and the squared distance to its place. */
function lowerEnvelope(line, unit) {
  const n = line.length, heights = line.slice(), lowest = new Int32Array(n), starts = new Float64Array(n);
  const meet = (p, q) => ((heights[q] - heights[p]) / unit + q * q - p * p) / (2 * (q - p));
  let last = 0;  // parabola lowest[k] is the lowest from starts[k] on
  starts[0] = -Infinity;
  for (let q = 1; q < n; q++) {
    let start = meet(lowest[last], q);
    while (start <= starts[last]) start = meet(lowest[--last], q);
    starts[++last] = start;
    lowest[last] = q;
  }
  for (let q = 0, k = 0; q < n; q++) {
    while (k < last && starts[k + 1] < q) k++;
    line[q] = unit * (q - lowest[k]) ** 2 + heights[lowest[k]];
  }
}

/** Gaussian filter; beyond its ends, a line is mirrored. */
function smooth(values, shape) {
  const radius = 4 * SMOOTHING, weights = Float64Array.from({ length: 2 * radius + 1 },
    (_, k) => Math.exp(-((k - radius) ** 2) / (2 * SMOOTHING ** 2)));
  const total = weights.reduce((a, b) => a + b);
  const mirror = (k, n) => { while (k < 0 || k >= n) k = k < 0 ? -k - 1 : 2 * n - 1 - k; return k; };
  for (let axis = 0; axis < 3; axis++) {
    if (shape[axis] === 1) continue;
    const padded = new Float64Array(shape[axis] + 2 * radius);
    forEachLine(values, shape, axis, line => {
      for (let k = 0; k < padded.length; k++) padded[k] = line[mirror(k - radius, line.length)];
      for (let k = 0; k < line.length; k++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * padded[k + j];
        line[k] = sum / total;
      }
    });
  }
  return values;
}

/** The largest value among a voxel and all neighbours, diagonal ones too. */
function largestNearby(values, shape) {
  const largest = values.slice();
  for (let axis = 0; axis < 3; axis++)
    forEachLine(largest, shape, axis, line => {
      for (let k = 0, before = -Infinity; k < line.length; k++) {
        const here = line[k], next = k + 1 < line.length ? line[k + 1] : -Infinity;
        line[k] = Math.max(before, here, next);
        before = here;
      }
    });
  return largest;
}

// Neighbours are visited in volumes with a rim of one voxel, where no step leads out.
const widen = shape => shape.map(n => n + 2);

function forEachRow(shape, visit) {
  const [section, width] = strides(widen(shape));
  for (let z = 0, inner = 0; z < shape[0]; z++)
    for (let y = 0; y < shape[1]; y++, inner += shape[2]) visit(inner, (z + 1) * section + (y + 1) * width + 1);
}

function addRim(values, shape, rim) {
  const wide = new values.constructor(count(widen(shape))).fill(rim);
  forEachRow(shape, (inner, outer) => wide.set(values.subarray(inner, inner + shape[2]), outer));
  return wide;
}

function removeRim(wide, shape) {
  const values = new wide.constructor(count(shape));
  forEachRow(shape, (inner, outer) => values.set(wide.subarray(outer, outer + shape[2]), inner));
  return values;
}

/** Steps of an index to the neighbours of a voxel with a rim: across faces, or all with `diagonal`. */
function neighbourSteps(shape, diagonal) {
  const steps = [], [dz, dy] = strides(widen(shape));
  for (let z = -1; z <= 1; z++) for (let y = -1; y <= 1; y++) for (let x = -1; x <= 1; x++)
    if (diagonal ? z || y || x : Math.abs(z) + Math.abs(y) + Math.abs(x) === 1) steps.push(z * dz + y * dy + x);
  return Int32Array.from(steps);
}

/** Labels the connected parts of a mask from 1 on. */
function labelParts(mask, shape, diagonal) {
  const wide = addRim(mask, shape, 0), labels = new Int32Array(wide.length), steps = neighbourSteps(shape, diagonal), stack = [];
  let label = 0;
  for (let start = 0; start < wide.length; start++) {
    if (!wide[start] || labels[start]) continue;
    labels[start] = ++label;
    stack.push(start);
    while (stack.length) {
      const from = stack.pop();
      for (let k = 0; k < steps.length; k++) {
        const i = from + steps[k];
        if (!wide[i] || labels[i]) continue;
        labels[i] = label;
        stack.push(i);
      }
    }
  }
  return removeRim(labels, shape);
}

/** Makes every connected part of the mask a seed that has none yet. */
function addSeeds(seeds, mask, shape) {
  const parts = labelParts(mask, shape, false), seeded = new Set(), numbers = new Map();
  let last = seeds.reduce((a, b) => Math.max(a, b), 0);
  parts.forEach((part, i) => { if (seeds[i]) seeded.add(part); });
  return seeds.map((seed, i) => {
    const part = parts[i];
    if (part === 0 || seeded.has(part)) return seed;
    if (!numbers.has(part)) numbers.set(part, ++last);
    return numbers.get(part);
  });
}

/** A queue (binary heap) that gives back the lowest key first, and of equal keys the one that came first. */
class Queue {
  keys = []; ages = []; items = []; age = 0;

  get size() { return this.keys.length; }

  set(k, key, age, item) { this.keys[k] = key; this.ages[k] = age; this.items[k] = item; }

  move(from, to) { this.set(to, this.keys[from], this.ages[from], this.items[from]); }

  push(key, item) {
    let k = this.size;
    for (let up; k > 0 && key < this.keys[up = (k - 1) >> 1]; k = up) this.move(up, k);
    this.set(k, key, this.age++, item);
  }

  /** Removes the first item; its key is not needed. */
  pop() {
    const { keys, ages } = this, first = this.items[0], key = keys.pop(), age = ages.pop(), item = this.items.pop();
    if (this.size === 0) return first;
    let k = 0;
    for (let next; (next = 2 * k + 1) < keys.length; k = next) {
      if (next + 1 < keys.length && (keys[next + 1] < keys[next] || keys[next + 1] === keys[next] && ages[next + 1] < ages[next])) next++;
      if (key < keys[next] || key === keys[next] && age < ages[next]) break;
      this.move(next, k);
    }
    this.set(k, key, age, item);
    return first;
  }
}

/** Lets the seeds grow over the lowest values first, until every voxel has a label. */
function watershed(values, seeds, shape) {
  const labels = addRim(seeds, shape, -1), heights = addRim(values, shape, 0), queue = new Queue(), steps = neighbourSteps(shape, false);
  for (let i = 0; i < labels.length; i++) if (labels[i] > 0) queue.push(heights[i], i);
  while (queue.size) {
    const from = queue.pop();
    for (let k = 0; k < steps.length; k++) {
      const i = from + steps[k];
      if (labels[i]) continue;
      labels[i] = labels[from];
      queue.push(heights[i], i);
    }
  }
  return removeRim(labels, shape);
}

/** For each fragment its neighbours: Map of neighbour -> [sum, number] of the affinities of their face. */
export function makeGraph(fragments, affinities, shape) {
  const size = count(shape), graph = Array.from({ length: fragments.reduce((a, b) => Math.max(a, b), 0) + 1 }, () => new Map());
  strides(shape).forEach((stride, axis) => {
    for (let i = 0; i < size; i++) {
      if (Math.floor(i / stride) % shape[axis] === 0) continue;
      const a = fragments[i], b = fragments[i - stride];
      if (a === b) continue;
      const face = graph[a].get(b) ?? [0, 0];
      face[0] += affinities[axis * size + i];
      face[1] += 1;
      graph[a].set(b, face);
      graph[b].set(a, face);
    }
  });
  return graph;
}

/** For each fragment the neuron that it belongs to: the face with the lowest score (1 - mean affinity) is merged first. */
export function agglomerate(graph, threshold) {
  graph = graph.map(faces => new Map(faces));
  const parent = graph.map((_, i) => i), queue = new Queue(), score = face => 1 - face[0] / face[1];
  const push = (a, b, face) => { if (score(face) < threshold) queue.push(score(face), [a, b, face]); };
  graph.forEach((faces, a) => faces.forEach((face, b) => { if (a < b) push(a, b, face); }));
  while (queue.size) {
    let [a, b, face] = queue.pop();
    if (graph[a].get(b) !== face) continue;  // merged, or changed, since it was queued
    if (graph[a].size < graph[b].size) [a, b] = [b, a];
    parent[b] = a;
    for (const [other, old] of graph[b]) {
      graph[other].delete(b);
      if (other === a) continue;
      const before = graph[a].get(other) ?? [0, 0], joined = [old[0] + before[0], old[1] + before[1]];
      graph[a].set(other, joined);
      graph[other].set(a, joined);
      push(a, other, joined);
    }
    graph[b].clear();
  }
  return parent.map((_, i) => { while (parent[i] !== i) i = parent[i]; return i; });
}

/** Variation of information in bits, [split, merge], of a segmentation against the truth, whose 0 is not scored. */
export function variationOfInformation(segmentation, truth) {
  const pairs = new Map(), segments = new Map(), objects = new Map();
  const add = (table, key) => table.set(key, (table.get(key) ?? 0) + 1);
  let voxels = 0;
  truth.forEach((object, i) => {
    if (object === 0) return;
    voxels += 1;
    add(pairs, segmentation[i] * 65536 + object);
    add(segments, segmentation[i]);
    add(objects, object);
  });
  let split = 0, merge = 0;
  for (const [pair, n] of pairs) {
    split -= n / voxels * Math.log2(n / objects.get(pair % 65536));
    merge -= n / voxels * Math.log2(n / segments.get(Math.floor(pair / 65536)));
  }
  return [split, merge];
}
