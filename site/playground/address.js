// The state of the page in its address, behind the #, so that a view can be shared: only what differs from the start.

export const START = {
  sample: "phantom", z: 4, noise: 0, contrast: 1, a1: "as computed", a2: "as computed", a3: "as computed",
  threshold: NaN, strokes: [],  // the threshold is the model's: the page sets it here when it has read the model
};
export const SETTINGS = ["as computed", "0", "mean", "1"];  // of an attention map
export const LONGEST = 8000;  // characters of strokes; longer addresses are cut by some programs

const RANGES = { z: [0, 7], noise: [0, 60], contrast: [0.2, 2], threshold: [0, 1] };
const STROKE = /^(d|e)([1-8])([0-7]|a)((?:[0-9a-z]{4})+)$/;

const pair = value => value.toString(36).padStart(2, "0");
const unpair = text => Math.min(127, parseInt(text, 36));

export function writeStrokes(strokes) {
  return strokes.map(({ tool, radius, z, points }) =>
    tool[0] + radius + (z ?? "a") + points.map(([y, x]) => pair(y) + pair(x)).join("")).join("-");
}

function readStroke(text) {
  const match = STROKE.exec(text);
  if (!match) return null;
  const points = match[4].match(/.{4}/g).map(point => [unpair(point.slice(0, 2)), unpair(point.slice(2))]);
  return { tool: match[1] === "d" ? "draw" : "erase", radius: Number(match[2]), z: match[3] === "a" ? null : Number(match[3]), points };
}

export function writeAddress(state) {
  const entries = Object.entries({ ...state, strokes: writeStrokes(state.strokes) });
  const changed = entries.filter(([key, value]) => key in START && String(value) !== String(START[key]));
  return new URLSearchParams(changed).toString();
}

/** The state of an address, and the names of its entries that make no sense and are left out. */
export function readAddress(text, samples) {
  const state = { ...START }, wrong = [];
  for (const [key, value] of new URLSearchParams(text)) {
    if (key in RANGES) {
      const number = Number(value), [low, high] = RANGES[key];
      if (value !== "" && number >= low && number <= high) state[key] = key === "z" ? Math.round(number) : number;
      else wrong.push(key);
    } else if (/^a[123]$/.test(key) && SETTINGS.includes(value)) state[key] = value;
    else if (key === "sample" && samples.includes(value)) state.sample = value;
    else if (key === "strokes" && value.split("-").every(readStroke)) state.strokes = value.split("-").map(readStroke);
    else wrong.push(key);
  }
  return { state, wrong };
}
