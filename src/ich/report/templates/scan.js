"use strict";
const scan = JSON.parse(document.getElementById("scan").textContent);
const $ = (id) => document.getElementById(id);
const n = scan.ids.length;
const packed = { hu: document.getElementsByClassName("hu"), heat: document.getElementsByClassName("heat") };
const slice = $("slice").getContext("2d");
const state = { place: 0, drawn: null, label: scan.labels.length - 1, level: 40, width: 80 };

/* The pixels of a PNG of ours (ich.images.png: 8 bits, gray, rows without a filter or with "up"). Not read back from a
   canvas, whose pixels some browsers alter against fingerprinting. */
async function pixels(element) {
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  const view = new DataView(bytes.buffer);
  const width = view.getUint32(16), height = view.getUint32(20), parts = [];
  for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at)) {
    if (view.getUint32(at + 4) === 0x49444154) parts.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  if (rows.length !== height * (width + 1)) throw new Error("a slice of this file is damaged");
  const values = new Uint8Array(width * height);
  for (let y = 0, from = 0, to = 0; y < height; y++) {
    const filter = rows[from++];
    if (filter === 2) for (let x = 0; x < width; x++, to++) values[to] = rows[from++] + values[to - width];
    else if (filter === 0) for (let x = 0; x < width; x++) values[to++] = rows[from++];
    else throw new Error("a slice of this file has a filter that is not ours");
  }
  return { values, width, height };
}

/* The last slices that were unpacked: a promise of each, of one half MB a slice of 512 x 512. */
const KEPT = 24;
const unpacked = new Map();
function unpack(place) {
  if (!unpacked.has(place)) {
    unpacked.set(place, Promise.all([pixels(packed.hu[place]), packed.heat.length ? pixels(packed.heat[place]) : null])
      .then(([{ values }, heat]) => {
        const codes = new Uint16Array(values.length / 2);
        for (let k = 0; k < codes.length; k++) codes[k] = (values[k] << 8) | values[k + codes.length];
        return { codes, heat };
      }));
  }
  const found = unpacked.get(place);
  unpacked.delete(place);
  unpacked.set(place, found);  // the newest
  if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
  return found;
}

function draw() {
  const { codes, heat } = state.drawn.pixels, low = state.level - state.width / 2;
  const gray = Uint32Array.from(scan.levels, (hu) =>
    (255 << 24 | Math.round(Math.min(Math.max((hu - low) / state.width, 0), 1) * 255) * 0x10101) >>> 0);
  const image = slice.createImageData(slice.canvas.width, slice.canvas.height);
  const out = new Uint32Array(image.data.buffer);
  for (let k = 0; k < out.length; k++) out[k] = gray[codes[k]];
  slice.putImageData(image, 0, 0);
  if (heat) drawHeat(heat);
  tell();
}

/* From red to yellow, clear where there is none; the page's style enlarges it smoothly. */
function drawHeat({ values, width, height }) {
  const canvas = $("heat"), size = width * (height / scan.labels.length);
  canvas.width = width;
  canvas.height = height / scan.labels.length;
  canvas.style.opacity = $("opacity").value / 100;
  const context = canvas.getContext("2d"), image = context.createImageData(width, canvas.height);
  for (let k = 0; k < size; k++) {
    const value = values[state.label * size + k];
    image.data.set([255, value * 0.85, 0, value], 4 * k);
  }
  context.putImageData(image, 0, 0);
}

const number = (p) => (p === null ? "none" : p < 0.9995 ? p.toFixed(3) : "1.000");
function tell() {
  const place = state.drawn.place, z = scan.z[place], p = scan.probabilities[place][state.label];
  $("status").textContent = `Slice ${place + 1} of ${n}${z === null ? "" : `, z ${z.toFixed(1)} mm`}; `
    + `level ${state.level}, width ${state.width} HU` + (p === null ? "" : `; ${scan.labels[state.label]} ${number(p)}`);
  const [first, last] = scan.slabs[place];
  if ($("slab")) {
    $("slab").textContent = first === last ? "slice that the model read alone"
      : `slab of slices ${first + 1} to ${last + 1}, which the model read as one`;
  }
  $("id").textContent = scan.ids[place];
  $("hu").textContent = "";
  $("place").value = place + 1;
  $("place").setAttribute("aria-valuetext", `slice ${place + 1} of ${n}`);
  if (document.activeElement !== $("level")) $("level").value = state.level;
  if (document.activeElement !== $("width")) $("width").value = state.width;
  for (const [k, button] of [...$("presets").children].entries()) {
    const { center, width } = scan.presets[k];
    button.setAttribute("aria-pressed", center === state.level && width === state.width);
  }
  scan.labels.forEach((_, k) => {
    $(`p${k}`).textContent = number(scan.probabilities[place][k]);
    if (scan.truth) $(`t${k}`).textContent = scan.truth[place][k] ? "yes" : "no";
  });
  for (const button of $("strongest").children) {
    button.setAttribute("aria-current", first <= button.value && button.value <= last);
  }
  cursor.setAttribute("x1", across(place));
  cursor.setAttribute("x2", across(place));
}

/* The text changes with the pixels, never before them. */
async function go(place) {
  state.place = Math.min(Math.max(place, 0), n - 1);
  const wanted = state.place;
  try {
    const found = await unpack(wanted);
    if (wanted !== state.place) return;
    state.drawn = { place: wanted, pixels: found };
    draw();
    for (const next of [wanted + 1, wanted - 1, wanted + 2]) if (next >= 0 && next < n) unpack(next).catch(() => {});  // told when it is shown
  } catch (error) {
    alarm(`Slice ${wanted + 1} cannot be shown: ${error.message}`);
  }
}

function alarm(text) {
  $("alarm").textContent = text;
  $("alarm").hidden = false;
}

function setWindow(level, width) {
  if (!Number.isFinite(level) || !(width >= 1)) return;
  Object.assign(state, { level: Math.round(level), width: Math.round(width) });
  if (state.drawn) draw();
}

function choose(label) {
  state.label = label;
  $("chosen").textContent = scan.labels[label];
  $("strongest").replaceChildren(...scan.strongest[label].map((place) => {
    const button = document.createElement("button"), [first, last] = scan.slabs[place], p = number(scan.probabilities[place][label]);
    const slices = first === last ? [place + 1, `slice ${place + 1}`] : [`${first + 1}–${last + 1}`, `slices ${first + 1} to ${last + 1}`];
    const mark = scan.truth?.slice(first, last + 1).some((row) => row[label]) ? " ✓" : "";
    button.type = "button";
    button.value = place;
    button.textContent = `${slices[0]}: ${p}${mark}`;
    button.setAttribute("aria-label", `${slices[1]}, ${scan.labels[label]} ${p}${mark}`);
    button.onclick = () => go(place);
    return button;
  }));
  if (!scan.strongest[label].length) $("strongest").textContent = "no slice has a probability";
  curves.forEach((curve, k) => curve.setAttribute("stroke-width", k === label ? 4 : 1.5));
  curves[label].parentNode.append(curves[label]);
  if (state.drawn) draw();
}

/* The chart: 0 to 1 upwards, the slices from left to right. */
const chart = $("chart");
const WIDE = chart.clientWidth < 500 ? 420 : 640;  // its unit is a pixel or so, for the size of its text
const LEFT = 44, RIGHT = WIDE - 12, TOP = 10, FOOT = 210;
const across = (place) => (n === 1 ? (LEFT + RIGHT) / 2 : LEFT + 6 + (place / (n - 1)) * (RIGHT - LEFT - 12));
const up = (p) => FOOT - p * (FOOT - TOP);
function add(parent, name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  parent.append(element);
  return element;
}
for (const p of [0, 0.25, 0.5, 0.75, 1]) {
  add(chart, "line", { x1: LEFT, x2: RIGHT, y1: up(p), y2: up(p), stroke: p ? "#ddd" : "#444" });
  add(chart, "text", { x: LEFT - 5, y: up(p) + 4, "text-anchor": "end", fill: "#1a1a1a" }, p);
}
const bottom = FOOT + (scan.truth ? scan.labels.length * 7 + 4 : 0);
chart.setAttribute("viewBox", `0 0 ${WIDE} ${bottom + 46}`);
const ticks = Math.max(1, Math.ceil(n / (WIDE / 80) / 5) * 5);
for (let k = 0; k < n; k += k ? ticks : Math.max(1, ticks - 1)) {
  add(chart, "text", { x: across(k), y: bottom + 18, "text-anchor": "middle", fill: "#1a1a1a" }, k + 1);
}
add(chart, "text", { x: (LEFT + RIGHT) / 2, y: bottom + 38, "text-anchor": "middle", fill: "#1a1a1a" }, "slice");
if (scan.truth) {
  const wide = Math.max(2, (RIGHT - LEFT) / n - 1);
  scan.truth.forEach((row, place) => row.forEach((has, k) => {
    if (has) add(chart, "rect", { x: across(place) - wide / 2, y: FOOT + 4 + 7 * k, width: wide, height: 6, fill: scan.colors[k] });
  }));
}
const cursor = add(chart, "line", { y1: TOP, y2: bottom, stroke: "#1a1a1a", "stroke-dasharray": "4 3" });
const lines = add(chart, "g", { fill: "none", "stroke-linejoin": "round", "stroke-linecap": "round" });
const curves = scan.colors.map((stroke, k) => {
  let d = "", open = false;
  scan.probabilities.forEach((row, place) => {
    if (row[k] !== null) d += `${open ? "L" : "M"}${across(place).toFixed(1)} ${up(row[k]).toFixed(1)}`;
    const alone = row[k] !== null && !open && (place + 1 === n || scan.probabilities[place + 1][k] === null);
    if (alone) d += "h0.01";  // a dot
    open = row[k] !== null;
  });
  return add(lines, "path", { d, stroke });
});
function placeAt(event) {
  const box = chart.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * WIDE;
  return n === 1 ? 0 : Math.round(((x - LEFT - 6) / (RIGHT - LEFT - 12)) * (n - 1));
}
chart.onclick = (event) => go(placeAt(event));
chart.onpointermove = (event) => { if (event.buttons) go(placeAt(event)); };

/* Labels and presets. */
scan.labels.forEach((name, k) => {
  const row = $("labels").tBodies[0].insertRow(), head = document.createElement("th");
  head.scope = "row";
  head.innerHTML = `<label><input type="radio" name="label"><i></i><span></span></label>`;
  const [input] = head.getElementsByTagName("input");
  input.checked = k === state.label;
  input.onchange = () => choose(k);
  head.getElementsByTagName("i")[0].style.background = scan.colors[k];
  head.getElementsByTagName("span")[0].textContent = name;
  row.append(head);
  row.insertCell().id = `p${k}`;
  const best = row.insertCell(), place = scan.strongest[k][0];
  if (place === undefined) best.textContent = "none";
  else {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${number(scan.probabilities[place][k])} at ${place + 1}`;
    button.setAttribute("aria-label", `${name}: highest, ${number(scan.probabilities[place][k])}, at slice ${place + 1}`);
    button.onclick = () => { input.checked = true; choose(k); go(place); };
    best.append(button);
  }
  if (scan.truth) row.insertCell().id = `t${k}`;
});
scan.presets.forEach(({ name, center, width }, k) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `${k + 1} ${name}`;
  button.title = `level ${center}, width ${width} HU`;
  button.onclick = () => setWindow(center, width);
  $("presets").append(button);
});

/* Hands. */
const stage = $("stage");
let turned = 0;
stage.addEventListener("wheel", (event) => {
  if (event.ctrlKey) return;  // the browser's zoom
  event.preventDefault();
  turned += event.deltaMode === 0 ? event.deltaY / 50 : event.deltaY;
  if (Math.abs(turned) >= 1) {
    go(state.place + Math.sign(turned));
    turned = 0;
  }
}, { passive: false });

/* Where a pointer is: shares of the slice's width and height. */
function within(event) {
  const box = slice.canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

function zoom(x, y) {
  const { style } = $("sheet");
  style.transformOrigin = `${100 * x}% ${100 * y}%`;
  style.transform = style.transform ? "" : "scale(2)";
}
stage.ondblclick = (event) => {
  const { x, y } = within(event);
  zoom(x, y);
};

let drag = null;
stage.onpointerdown = (event) => {
  if (event.button) return;
  stage.setPointerCapture(event.pointerId);
  drag = { x: event.clientX, y: event.clientY, level: state.level, width: state.width };
};
stage.onpointermove = (event) => {
  if (drag) {
    const share = drag.width / 256;
    setWindow(drag.level + (event.clientY - drag.y) * share, Math.max(1, drag.width + (event.clientX - drag.x) * share));
  } else if (state.drawn) {
    const { width, height } = slice.canvas, at = within(event);
    const x = Math.floor(at.x * width), y = Math.floor(at.y * height);
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    $("hu").textContent = `${scan.levels[state.drawn.pixels.codes[y * width + x]]} HU at row ${y}, column ${x}`;
  }
};
stage.onpointerup = stage.onpointercancel = () => { drag = null; };
stage.onpointerleave = () => { $("hu").textContent = ""; };

$("place").oninput = (event) => go(event.target.value - 1);
$("level").oninput = $("width").oninput = () => {
  if ($("level").value && $("width").value) setWindow($("level").valueAsNumber, $("width").valueAsNumber);
};
if ($("opacity")) $("opacity").oninput = () => { if (state.drawn) draw(); };

/* Keys work wherever the focus is, but for those that the focused control uses itself. Space scrolls: it is nobody's. */
const far = Math.max(5, Math.round(n / 20));
const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: far, PageUp: -far, Home: -n, End: n };
const OWN = { number: /^(?!Page)/, range: /^(Arrow|Page|Home|End)/, radio: /^Arrow/ };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || OWN[event.target.type]?.test(event.key)) return;
  const preset = scan.presets[event.key - 1];
  if (preset) setWindow(preset.center, preset.width);
  else if (event.key === "z" || event.key === "Z") zoom(0.5, 0.5);
  else if (event.key in steps) go(state.place + steps[event.key]);
  else return;
  event.preventDefault();
});

/* The address may name a slice, as scan.html#12. */
function begin() {
  const asked = Number(location.hash.slice(1));
  go(Number.isInteger(asked) && asked >= 1 && asked <= n ? asked - 1 : scan.start);
}
addEventListener("hashchange", begin);

choose(state.label);
setWindow(scan.presets[0].center, scan.presets[0].width);
if (typeof DecompressionStream === "undefined") {
  alarm("This browser cannot unpack the slices: it needs one of 2023 or later (Chrome or Edge 80, Firefox 113, Safari 16.4).");
} else {
  stage.focus({ preventScroll: true });
  begin();
}
