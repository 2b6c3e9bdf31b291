// The data of the page, the tokens' texts, and the making of elements. Text of models and users
// becomes text nodes, never markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const TEXTS = new Map(DATA.texts.ids.map((id, i) => [id, DATA.texts.texts[i]]));
const TOKENS = DATA.tokens;
const VOCAB = DATA.model.vocab_size;

const textOf = (id) => TEXTS.get(id) ?? `#${id}`;
const short = (text, size) => {
  const characters = Array.from(text);
  return characters.length > size ? characters.slice(0, size - 1).join("") + "…" : text;
};

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
function numbersOf(base64, read) {
  const bytes = bytesOf(base64);
  const view = new DataView(bytes.buffer);
  return Array.from({length: bytes.length / 4}, (_, i) => view[read](4 * i, true));
}

const percent = (p) => (p >= 0.0001 || p === 0 ? `${(100 * p).toFixed(2)} %` : `${(100 * p).toExponential(1)} %`);
const milliseconds = (s) => (s >= 0.01 ? `${(1e3 * s).toFixed(1)} ms` : `${(1e3 * s).toFixed(2)} ms`);
const count = (n) => n.toLocaleString("en-US");
const bytesText = (n) => {
  for (const unit of ["bytes", "kB", "MB"]) {
    if (n < 1000) return unit === "bytes" ? `${n} bytes` : `${n.toFixed(1)} ${unit}`;
    n /= 1000;
  }
  return `${n.toFixed(1)} GB`;
};
const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null));
  return element;
}
const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

// A picture of these pixels, named for those who cannot see it.
const picture = (width, height, name, ...children) =>
  shape("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name}, ...children);
const label = (x, y, text, attributes = {}) => shape("text", {x, y, ...attributes}, text);
const box = (x, y, width, height, name, title) =>
  shape("rect", {x, y, width: Math.max(width, 0), height, class: name}, title ? shape("title", {}, title) : null);
const line = (x1, y1, x2, y2, name) => shape("path", {d: `M${x1} ${y1}L${x2} ${y2}`, class: name});
const polyline = (points, name) =>
  shape("path", {class: name, d: points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("")});

// A table; the columns named in `texts` hold text, the others numbers.
function table(caption, heads, rows, texts = [0]) {
  const kind = (i) => (texts.includes(i) ? {class: "text"} : {});
  return el("div", {class: "table", tabindex: 0, role: "region", "aria-label": caption},
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", {scope: "col", ...kind(i)}, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => el("td", kind(i), String(cell))))))));
}

// Rows of horizontal bars: {text, value from 0 to 1, name of its class, note}.
function bars(rows, width, name) {
  const height = 20, left = Math.min(130, width * 0.32);
  const right = 14 + 7.4 * Math.max(...rows.map((row) => row.note.length));
  const size = Math.floor(left / 7.4) - 1;
  const long = (row) => Math.max((width - left - right) * row.value, row.value ? 1 : 0);
  return picture(width, rows.length * height + 4, name, rows.map((row, i) => [
    label(left - 6, i * height + 14, short(row.text, size), {"text-anchor": "end"}),
    box(left, i * height + 3, long(row), height - 6, row.name ?? "bar", `${row.text}: ${row.note}`),
    label(left + long(row) + 6, i * height + 14, row.note, row.value ? {} : {class: "soft"}),
  ]));
}

// An image of one pixel per value from 0 to 1 (null: none), in the accent's colour.
function raster(values, columns) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = Math.ceil(values.length / columns);
  const context = canvas.getContext("2d");
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const image = context.createImageData(canvas.width, canvas.height);
  values.forEach((value, i) => image.data.set([red, green, blue, Math.round(255 * (value ?? 0))], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}
const grid = (values, columns, x, y, width, height) =>
  shape("image", {x, y, width, height, href: raster(values, columns), preserveAspectRatio: "none"});

// What the reader has chosen.
const state = {at: DATA.num_prompt_tokens - 1, layer: null, head: 0, settings: null, draws: null};

// Sections in order: {title, sentence, parts: functions of the width that return elements}. A part
// is drawn again when something changes.
const SECTIONS = [];
function section(title, sentence, ...parts) {
  SECTIONS.push({title, sentence, parts});
}
const figure = (caption, ...children) => el("figure", {}, children, caption ? el("figcaption", {}, caption) : null);
const numbers = (...tables) => el("details", {}, el("summary", {}, "The numbers"), tables);
