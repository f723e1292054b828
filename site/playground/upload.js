// An image of the reader becomes a volume. It is read by the browser and sent to nobody.

const LARGEST = 64 * 2 ** 20;  // bytes
const MOST = 4096;  // pixels along a side
const NM = 8;  // of a voxel in y and x after resampling

/**
 * The middle of an image as a volume of the given shape with voxels of 8 nm; the pages of a TIFF become sections, and
 * the last one is repeated if there are too few. Throws an Error whose message is a sentence for the reader.
 */
export async function readImage(file, nmPerPixel, [depth, height, width]) {
  const told = `"${file.name}"`;
  if (file.size > LARGEST) throw new Error(`${told} has ${(file.size / 2 ** 20).toFixed(0)} MB; the page reads files of up to 64 MB.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const isTiff = bytes[0] === bytes[1] && (bytes[0] === 0x49 || bytes[0] === 0x4d);
  const pages = isTiff ? readTiff(bytes, told, depth) : [await createImageBitmap(new Blob([bytes])).catch(() => {
    throw new Error(`${told} is no image that this page can read. Choose a PNG, a JPEG or an uncompressed grey TIFF.`);
  })];
  const volume = new Uint8Array(depth * height * width);
  for (let z = 0; z < depth; z++) {
    const page = pages[Math.min(z, pages.length - 1)];
    const [rows, columns] = [height * NM / nmPerPixel, width * NM / nmPerPixel];  // pixels that are shown
    if (page.width < Math.floor(columns) || page.height < Math.floor(rows))
      throw new Error(`${told} has ${page.width} × ${page.height} pixels; at ${nmPerPixel} nm a pixel the page needs at least ` +
        `${Math.floor(columns)} × ${Math.floor(rows)}.`);
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(page, (page.width - columns) / 2, (page.height - rows) / 2, columns, rows, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    for (let i = 0; i < height * width; i++)
      volume[z * height * width + i] = Math.round((data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3);
  }
  return { volume, pages: Math.min(pages.length, depth) };
}

/** The pages of an uncompressed grey TIFF of 8 or 16 bits, as canvases; `most` at most. */
function readTiff(bytes, told, most) {
  const view = new DataView(bytes.buffer), little = bytes[0] === 0x49, pages = [];
  const refuse = why => { throw new Error(`${told} is a TIFF that this page cannot read: ${why}. Save it as an uncompressed grey TIFF of 8 bits, or as a PNG.`); };
  const number = (at, size) => size === 1 ? view.getUint8(at) : size === 2 ? view.getUint16(at, little) : view.getUint32(at, little);
  const entries = at => {  // tag -> values of a directory
    const tags = new Map();
    for (let k = 0; k < number(at, 2); k++) {
      const entry = at + 2 + 12 * k, size = { 1: 1, 3: 2, 4: 4 }[number(entry + 2, 2)], values = number(entry + 4, 4);
      if (!size) continue;  // texts and fractions: nothing that is needed
      const first = values * size > 4 ? number(entry + 8, 4) : entry + 8;
      tags.set(number(entry, 2), Array.from({ length: values }, (_, n) => number(first + n * size, size)));
    }
    return tags;
  };
  try {
    for (let at = number(4, 4); at && pages.length < most; at = number(at + 2 + 12 * number(at, 2), 4)) {
      const tags = entries(at), tag = (id, otherwise) => (tags.get(id) ?? [otherwise])[0];
      const [width, height, bits] = [tag(256), tag(257), tag(258, 1)];
      if (tag(259, 1) !== 1) refuse("it is compressed");
      if (tag(277, 1) !== 1 || ![8, 16].includes(bits) || tag(339, 1) !== 1) refuse("its pixels are no whole numbers of 8 or 16 bits");
      if (!tags.has(273)) refuse("it is stored in tiles");
      if (!(width <= MOST && height <= MOST)) refuse(`it has more than ${MOST} pixels along a side`);
      const image = new ImageData(width, height), perStrip = Math.min(tag(278, height), height) * width, size = bits / 8;
      for (let i = 0; i < width * height; i++) {
        const value = number(tags.get(273)[Math.floor(i / perStrip)] + (i % perStrip) * size, size) / (size === 2 ? 257 : 1), grey = tag(262, 1) === 0 ? 255 - value : value;
        image.data.set([grey, grey, grey, 255], 4 * i);
      }
      const page = new OffscreenCanvas(width, height);
      page.getContext("2d").putImageData(image, 0, 0);
      pages.push(page);
    }
  } catch (error) {
    if (error instanceof RangeError || error instanceof TypeError) refuse("it is damaged or cut short");
    throw error;
  }
  if (pages.length === 0) refuse("it has no page");
  return pages;
}
