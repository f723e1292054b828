// What the reader does to the sections: brush, contrast, noise. The same state gives the same grey values everywhere.

/** Normal random numbers, always the same, to scale as noise. */
export function makeNoise(size) {
  let state = 1;
  const uniform = () => {  // mulberry32, a generator of one 32-bit state
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return Float32Array.from({ length: size }, () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));  // Box and Muller
}

/** Grey values of membrane and cytoplasm: the 5th and 75th percentile of a volume, and its mean. */
export function measureGreys(raw) {
  const sorted = raw.slice().sort();
  const at = share => sorted[Math.floor(share * (sorted.length - 1))];
  return { membrane: at(0.05), cytoplasm: at(0.75), mean: raw.reduce((a, b) => a + b) / raw.length };
}

/** The volume as the model is given it: strokes first, as if in the tissue, then contrast, then noise. */
export function editVolume(raw, shape, greys, state, noise) {
  const edited = Float32Array.from(raw);
  for (const stroke of state.strokes) paintStroke(edited, shape, greys, stroke);
  return Uint8Array.from(edited, (value, i) =>
    Math.min(255, Math.max(0, Math.round(greys.mean + state.contrast * (value - greys.mean) + state.noise * noise[i]))));
}

function paintStroke(volume, [depth, height, width], greys, { tool, radius, z, points }) {
  const grey = tool === "draw" ? greys.membrane : greys.cytoplasm;
  points.forEach(([y, x], k) => {
    const [fromY, fromX] = points[Math.max(0, k - 1)], steps = Math.max(1, Math.ceil(Math.hypot(y - fromY, x - fromX)));
    for (let step = 1; step <= steps; step++)
      dab(fromY + (y - fromY) * step / steps, fromX + (x - fromX) * step / steps);
  });

  function dab(y, x) {
    for (let section = z ?? 0; section <= (z ?? depth - 1); section++)
      for (let row = Math.max(0, Math.ceil(y - radius)); row <= Math.min(height - 1, y + radius); row++)
        for (let column = Math.max(0, Math.ceil(x - radius)); column <= Math.min(width - 1, x + radius); column++)
          if (Math.hypot(row - y, column - x) <= radius) volume[(section * height + row) * width + column] = grey;
  }
}
