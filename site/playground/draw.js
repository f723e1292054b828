// Pictures of sections: grey values, affinities, attention, neurons. Each draws one section of a volume into a canvas.

/** Paints `color(pixel)` -> [r, g, b] for rows x columns pixels, enlarged to the canvas without smoothing. */
function paint(canvas, rows, columns, color) {
  const base = new OffscreenCanvas(columns, rows), small = base.getContext("2d"), image = small.createImageData(columns, rows);
  for (let pixel = 0; pixel < rows * columns; pixel++) image.data.set([...color(pixel), 255], 4 * pixel);
  small.putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(base, 0, 0, canvas.width, canvas.height);
  return context;
}

export function drawGreys(canvas, volume, [, rows, columns], z, nm) {
  const first = z * rows * columns;
  drawScaleBar(paint(canvas, rows, columns, pixel => Array(3).fill(volume[first + pixel])), columns, nm);
}

/** Affinities as red (z), green (y), blue (x): white joins, black parts. */
export function drawAffinities(canvas, affinities, [depth, rows, columns], z) {
  const section = rows * columns, size = depth * section;
  paint(canvas, rows, columns, pixel => [0, 1, 2].map(axis => 255 * affinities[axis * size + z * section + pixel]));
}

// From black over red to white.
const warm = t => [2 * t, 2 * t - 0.5, 2 * t - 1].map(part => 255 * Math.min(1, Math.max(0, part)));

export function drawAttention(canvas, map, stride, [, rows, columns], z, highest) {
  const [height, width] = [rows / stride, columns / stride];
  paint(canvas, height, width, pixel => warm(map[z * height * width + pixel] / highest));
}

export function drawBar(canvas) {
  paint(canvas, 1, 256, pixel => warm(pixel / 255));
}

/** A colour for each number from 0: neighbours in the list differ in hue, and rounds of the circle in lightness. */
export function colorOf(number) {
  const hue = (number * 137.508) % 360, light = [0.62, 0.5, 0.75][number % 3], chroma = 0.75 * (1 - Math.abs(2 * light - 1));
  return [0, 8, 4].map(n => {
    const k = (n + hue / 30) % 12;
    return 255 * (light - chroma / 1.5 * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
  });
}

/** For each neuron a number of a colour: that of the earlier neuron that it overlaps most, or a new one. */
export function matchColors(neurons, before) {
  const overlaps = new Map(), numbers = new Map(), used = new Set();
  neurons.forEach((neuron, i) => {
    const pair = neuron * 65536 + (before ? before.neurons[i] : neuron);
    overlaps.set(pair, (overlaps.get(pair) ?? 0) + 1);
  });
  let last = before ? Math.max(...before.colors.values()) : -1;
  const pairs = [...overlaps].sort((a, b) => b[1] - a[1]).map(([pair]) => [Math.floor(pair / 65536), pair % 65536]);
  for (const [neuron, earlier] of before ? pairs : []) {
    const number = before.colors.get(earlier);
    if (numbers.has(neuron) || used.has(number)) continue;
    numbers.set(neuron, number);
    used.add(number);
  }
  for (const [neuron] of pairs) if (!numbers.has(neuron)) numbers.set(neuron, ++last);
  return numbers;
}

/** Neurons in colours over the grey section, with dark outlines. */
export function drawNeurons(canvas, neurons, colors, volume, [, rows, columns], z, nm) {
  const first = z * rows * columns, palette = new Map([...colors].map(([neuron, number]) => [neuron, colorOf(number)]));
  const context = paint(canvas, rows, columns, pixel => {
    const i = first + pixel, color = palette.get(neurons[i]);
    return color.map(part => 0.5 * part + 0.5 * volume[i]);
  });
  const size = canvas.width / columns;
  context.fillStyle = "#000";
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < columns; x++) {
      const i = first + y * columns + x;
      if (x + 1 < columns && neurons[i] !== neurons[i + 1]) context.fillRect((x + 1) * size - 1, y * size - 1, 2, size + 2);
      if (y + 1 < rows && neurons[i] !== neurons[i + columns]) context.fillRect(x * size - 1, (y + 1) * size - 1, size + 2, 2);
    }
  drawScaleBar(context, columns, nm);
}

function drawScaleBar(context, columns, nmPerVoxel) {
  const { width, height } = context.canvas, voxel = width / columns;
  const nm = [1000, 500, 200, 100, 50].find(length => length / nmPerVoxel <= columns / 3) ?? 20;
  const long = nm / nmPerVoxel * voxel, size = Math.round(width / 22);
  context.font = `${size}px system-ui, sans-serif`;
  context.fillStyle = "#000a";
  context.fillRect(8, height - size - 30, Math.max(long, context.measureText(`${nm} nm`).width) + 16, size + 22);
  context.fillStyle = "#fff";
  context.fillRect(16, height - 18, long, 5);
  context.fillText(`${nm} nm`, 16, height - 24);
}

export function drawRing(canvas, y, x, radius, columns) {
  const context = canvas.getContext("2d"), voxel = canvas.width / columns;
  for (const [color, thick] of [["#000", 5], ["#4dd2ff", 2.5]]) {
    context.strokeStyle = color;
    context.lineWidth = thick;
    context.beginPath();
    context.arc((x + 0.5) * voxel, (y + 0.5) * voxel, (radius + 0.5) * voxel, 0, 7);
    context.stroke();
  }
}
