// Runs an exported model in the browser, with the same steps as mmvit/deploy/runtime.py.
// Beside this file: onnxruntime-web's ort.wasm.bundle.min.mjs and ort-wasm-simd-threaded.wasm, and a model.onnx.
// Address: index.html?model=ADDRESS&image=ADDRESS&score=0.5, where each may be left out.

const page = (id) => document.getElementById(id);
const options = new URLSearchParams(location.search);
let model = null; // {session, metadata}
let picture = null; // {width, height, data: RGBA}
let result = null; // of the picture

// The file.

// The fields of a protobuf message that are messages or texts themselves: [number, bytes].
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (!(byte & 128)) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 2) {
      const length = varint();
      yield [(tag - kind) / 8, bytes.subarray(at, at + length)];
      at += length;
    } else if (kind === 0) varint();
    else at += kind === 1 ? 8 : 4;
  }
}

// What an ONNX file says about its use, for onnxruntime-web does not tell: metadata_props of ModelProto.
function readMetadata(bytes) {
  const text = new TextDecoder();
  for (const [number, entry] of fields(bytes)) {
    if (number !== 14) continue;
    const [key, value] = [...fields(entry)].map(([, part]) => text.decode(part));
    if (key === 'mmvit') return JSON.parse(value);
  }
  throw new Error('the file does not say how to use it (its metadata lack mmvit): export it by mmvit');
}

async function loadModel(bytes) {
  const metadata = readMetadata(bytes);
  if (metadata.task === 'features') throw new Error('a backbone has nothing to show: export a detector or segmenter');
  const ort = await import('./ort.wasm.bundle.min.mjs').catch(() => {
    throw new Error('onnxruntime-web is not beside this page: docs/deploy.md tells which files it needs');
  });
  ort.env.wasm.wasmPaths = { wasm: new URL('ort-wasm-simd-threaded.wasm', import.meta.url).href };
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'] });
  const palette = metadata.palette ?? metadata.classes.map((_, index) => hue((index * 0.618) % 1));
  model = { session, metadata, palette, Tensor: ort.Tensor };
}

function hue(turn) {
  const channel = (offset) => {
    const part = (offset + turn * 6) % 6;
    return Math.floor(255 * (1 - 0.8 * Math.max(0, Math.min(part, 4 - part, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

// Before the network.

async function readPicture(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' }).catch(() => {
    throw new Error('this is not an image that the browser can read');
  });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext('2d');
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

// {height, width} for the network, as mmcv or detectron2 compute it from an image's.
function workingSize(height, width, { scale, keep_ratio, rounding }) {
  const [most, least] = [Math.max(...scale), Math.min(...scale)];
  if (!keep_ratio && rounding === 'mmcv') return { width: scale[0], height: scale[1] };
  if (!keep_ratio) return height > width ? { width: least, height: most } : { width: most, height: least };
  const [long, short] = [Math.max(height, width), Math.min(height, width)];
  let sides;
  if (rounding === 'mmcv') {
    const factor = Math.min(most / long, least / short);
    sides = [height * factor, width * factor];
  } else {
    const factor = least / short;
    sides = [height, width].map((side) => (side === short ? least : factor * side));
    const cap = most / Math.max(...sides);
    if (cap < 1) sides = sides.map((side) => cap * side);
  }
  const [rows, columns] = sides.map((side) => Math.floor(side + 0.5));
  return { height: rows, width: columns };
}

// Both ways of resizing take the rows of an RGBA image, and columns as rows of the transposed image.

// As OpenCV: two neighbours of each new pixel, and their shares.
function neighbours(from, to, isInside) {
  return Array.from({ length: to }, (_, index) => {
    const position = Math.fround(((index + 0.5) * from) / to - 0.5);
    const first = Math.floor(position);
    const part = isInside && (first < 0 || first >= from - 1) ? 0 : Math.fround(position - first);
    const clip = (at) => Math.min(Math.max(at, 0), from - 1);
    return [clip(first), clip(first + 1), 1 - part, part];
  });
}

function halfToEven(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

// In float32, or as OpenCV does in integers: the shares have 11 bits.
function bilinear({ width, height, data }, size, isFloat) {
  const inBits = ([first, second, ...shares]) => [first, second, ...shares.map((share) => halfToEven(share * 2048))];
  const taps = (...sides) => (isFloat ? neighbours(...sides) : neighbours(...sides).map(inBits));
  const mix = isFloat
    ? (above, a, below, b) => above * a + below * b
    : (above, a, below, b) => (((a * (above >> 4)) >> 16) + ((b * (below >> 4)) >> 16) + 2) >> 2;
  const columns = taps(width, size.width, true);
  const widened = new (isFloat ? Float32Array : Int32Array)(height * size.width * 4);
  for (let y = 0, out = 0; y < height; y++) {
    for (const [first, second, a, b] of columns) {
      for (let c = 0; c < 4; c++) {
        widened[out++] = data[(y * width + first) * 4 + c] * a + data[(y * width + second) * 4 + c] * b;
      }
    }
  }
  const resized = new (isFloat ? Float32Array : Uint8ClampedArray)(size.height * size.width * 4);
  const row = size.width * 4;
  let out = 0;
  for (const [first, second, a, b] of taps(height, size.height, false)) {
    for (let x = 0; x < row; x++) resized[out++] = mix(widened[first * row + x], a, widened[second * row + x], b);
  }
  return { ...size, data: resized };
}

// As Pillow: a triangle over all pixels in reach, in 22 bits.
function triangles(from, to) {
  const step = from / to;
  const reach = Math.max(step, 1);
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * step;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), from);
    const weight = (at) => Math.max(0, 1 - Math.abs(at - centre + 0.5) / reach);
    const taps = Array.from({ length: end - first }, (_, i) => weight(first + i));
    const sum = taps.reduce((a, b) => a + b);
    return [first, taps.map((tap) => Math.trunc((tap / sum) * (1 << 22) + 0.5))];
  });
}

function antialiased(image, size) {
  const shrink = (data, outer, from, to, [outerStep, step], [outerOut, stepOut]) => {
    const out = new Uint8ClampedArray(outer * to * 4);
    triangles(from, to).forEach(([first, taps], index) => {
      for (let line = 0; line < outer; line++) {
        for (let c = 0; c < 4; c++) {
          let sum = 1 << 21;
          for (let i = 0; i < taps.length; i++) sum += data[(line * outerStep + (first + i) * step) * 4 + c] * taps[i];
          out[(line * outerOut + index * stepOut) * 4 + c] = sum >> 22;
        }
      }
    });
    return out;
  };
  const { width, height } = image;
  const rows = shrink(image.data, height, width, size.width, [width, 1], [size.width, 1]);
  const data = shrink(rows, size.width, height, size.height, [1, size.width], [1, size.width]);
  return { ...size, data };
}

function resize(image, rule) {
  if (!rule) return image;
  const size = workingSize(image.height, image.width, rule);
  if (rule.interpolation === 'antialiased') return antialiased(image, size);
  return bilinear(image, size, rule.interpolation === 'bilinear_float32');
}

async function run(image) {
  const inside = resize(image, model.metadata.resize);
  const pixels = inside.width * inside.height;
  const planes = new Float32Array(3 * pixels);
  for (let c = 0; c < 3; c++) for (let i = 0; i < pixels; i++) planes[c * pixels + i] = inside.data[i * 4 + c];
  const started = performance.now();
  const input = new model.Tensor('float32', planes, [1, 3, inside.height, inside.width]);
  const outputs = await model.session.run({ image: input });
  const seconds = (performance.now() - started) / 1000;
  if (model.metadata.task === 'semantic') return { seconds, classes: outputs.classes, instances: [] };
  const instances = Array.from(outputs.scores.data, (score, n) => {
    const factors = [image.width / inside.width, image.height / inside.height];
    const box = Array.from(outputs.boxes.data.subarray(n * 4, n * 4 + 4), (side, i) => side * factors[i % 2]);
    const [, rows, columns] = outputs.masks?.dims ?? [];
    const stride = model.metadata.mask_stride; // if any, a mask fills the padded image, otherwise its box
    const frame = stride ? [0, 0, columns * stride * factors[0], rows * stride * factors[1]] : box;
    const cells = outputs.masks?.data.subarray(n * rows * columns, (n + 1) * rows * columns);
    return { score, label: Number(outputs.labels.data[n]), box, frame, cells, rows, columns };
  });
  return { seconds, instances };
}

// After it.

// The pixels (indices into the image) of a box whose mask, enlarged linearly to its frame, reaches the threshold.
function paste({ box: [left, top, right, bottom], frame: [x0, y0, x1, y1], cells, rows, columns }, { width, height }) {
  const inside = [];
  if (!(left < right && top < bottom)) return inside;
  const range = (low, high, limit) => [Math.max(Math.floor(low) - 1, 0), Math.min(Math.ceil(high) + 1, limit)];
  const at = (y, x) => (y >= 0 && y < rows && x >= 0 && x < columns ? cells[y * columns + x] : 0);
  const [firstRow, endRow] = range(top, bottom, height);
  const [firstColumn, endColumn] = range(left, right, width);
  for (let y = firstRow; y < endRow; y++) {
    const v = ((y + 0.5 - y0) / (y1 - y0)) * rows - 0.5;
    const row = Math.floor(v);
    for (let x = firstColumn; x < endColumn; x++) {
      const u = ((x + 0.5 - x0) / (x1 - x0)) * columns - 0.5;
      const column = Math.floor(u);
      const above = at(row, column) * (column + 1 - u) + at(row, column + 1) * (u - column);
      const below = at(row + 1, column) * (column + 1 - u) + at(row + 1, column + 1) * (u - column);
      if (above * (row + 1 - v) + below * (v - row) >= model.metadata.mask_threshold) inside.push(y * width + x);
    }
  }
  return inside;
}

function show() {
  const least = Number(page('score').value);
  const instances = result.instances.filter(({ score }) => score >= least);
  const shown = instances.map((instance) => ({ ...instance, mask: instance.cells && paste(instance, picture) }));
  draw(shown);
  const rows = shown.map(({ label, score, box, mask }) => {
    const row = document.createElement('tr');
    const sides = box.map((side) => side.toFixed(3));
    const cells = [model.metadata.classes[label], score.toFixed(4), ...sides, mask?.length ?? ''];
    row.append(...cells.map((textContent) => Object.assign(document.createElement('td'), { textContent })));
    return row;
  });
  page('found').tBodies[0].replaceChildren(...rows);
  page('found').hidden = rows.length === 0;
  const what = result.classes ? 'Segmented' : `${shown.length} found`;
  say(`${what} in ${result.seconds.toFixed(2)} s.`);
}

function draw(instances) {
  const pixels = new Uint8ClampedArray(picture.data);
  const blend = (index, colour) => {
    for (let c = 0; c < 3; c++) pixels[index * 4 + c] = (pixels[index * 4 + c] + colour[c]) / 2;
  };
  const bestLast = [...instances].reverse();
  for (const { mask, label } of bestLast) mask?.forEach((index) => blend(index, model.palette[label]));
  if (result.classes) {
    const [rows, columns] = result.classes.dims.slice(-2);
    const cell = (at, cells, limit) => Math.floor(((at + 0.5) * cells) / limit);
    for (let y = 0, index = 0; y < picture.height; y++) {
      const row = cell(y, rows, picture.height) * columns;
      for (let x = 0; x < picture.width; x++, index++) {
        blend(index, model.palette[Number(result.classes.data[row + cell(x, columns, picture.width)])]);
      }
    }
  }
  const painted = new OffscreenCanvas(picture.width, picture.height);
  painted.getContext('2d').putImageData(new ImageData(pixels, picture.width, picture.height), 0, 0);
  const zoom = Math.max(1, Math.floor(640 / Math.max(picture.width, picture.height))); // small pictures are enlarged
  const [width, height] = [zoom * picture.width, zoom * picture.height];
  const context = Object.assign(page('picture'), { width, height }).getContext('2d');
  context.drawImage(painted, 0, 0, width, height);
  const unit = Math.max(1, Math.round(Math.min(width, height) / 400));
  context.font = `${12 * unit}px system-ui, sans-serif`;
  context.lineWidth = unit;
  for (const { box, label, score } of bestLast) {
    const [left, top, right, bottom] = box.map((side) => side * zoom);
    const colour = model.palette[label];
    context.fillStyle = context.strokeStyle = `rgb(${colour})`;
    context.strokeRect(left, top, right - left, bottom - top);
    const text = `${model.metadata.classes[label]} ${score.toFixed(2)}`;
    const length = context.measureText(text).width;
    const [start, base] = [Math.max(0, Math.min(left, width - length)), Math.max(top, 15 * unit)]; // inside the image
    context.fillRect(start, base - 15 * unit, length, 15 * unit);
    context.fillStyle = colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11 > 127 ? 'black' : 'white';
    context.fillText(text, start, base - 4 * unit);
  }
}

function say(text, isError = false) {
  Object.assign(page('status'), { textContent: text, className: isError ? 'error' : 'done' });
}

// What the user does. One thing after the other.

let last = Promise.resolve();
function then(step) {
  last = last.then(step).catch((error) => say(`Error: ${error.message}`, true));
}

async function update() {
  if (!model) return say(picture ? 'Drop a model, too.' : 'Drop a model and a picture.');
  if (!picture) return say('Ready. Drop a picture.');
  say('Computing …');
  result = await run(picture);
  show();
}

function take(file) {
  then(async () => {
    if (file.name.endsWith('.onnx')) await loadModel(new Uint8Array(await file.arrayBuffer()));
    else picture = await readPicture(file);
    await update();
  });
}

async function fetched(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address} is not there`);
  return response.blob();
}

then(async () => {
  say('Loading the model …');
  const file = await fetched(options.get('model') ?? 'model.onnx').catch((error) => {
    if (options.has('model')) throw error;
  });
  if (file) await loadModel(new Uint8Array(await file.arrayBuffer()));
  if (options.has('image')) picture = await readPicture(await fetched(options.get('image')));
  if (options.has('score')) page('score').value = options.get('score');
  await update();
});
page('drop').addEventListener('change', ({ target }) => [...target.files].forEach(take));
page('score').addEventListener('input', () => then(() => result && show()));
for (const event of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(event, (dragged) => {
    dragged.preventDefault();
    page('drop').classList.toggle('over', event === 'dragover');
    if (event === 'drop') [...dragged.dataTransfer.files].forEach(take);
  });
}
