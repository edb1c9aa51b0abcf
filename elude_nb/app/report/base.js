// The report's script: concept_map.js stands before this, panels.js and list.js after it. All text reaches the page as
// text (textContent, setAttribute), never as markup, so no name can do anything but be read. Pictures stand in the page
// once; tiles are drawn from them under their heat maps.
const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"; // as entries.py has them
const [ROWS, COLUMNS] = data.grid;
const SHARP = Math.min(2, window.devicePixelRatio || 1);
const byId = (id) => document.getElementById(id);
const number = (value, digits = 3) => (value === null ? "–" : String(Number(value.toPrecision(digits))));
const conceptName = (c) => data.concepts[c]?.title ?? `concept ${c}`; // "concept 3: cat"
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// ------------------------------------------------------------------ tiles

let showHeat = true;
const painters = new WeakMap(); // canvas -> function that draws it anew

// A veil of one pixel a patch: clear where the unit is high, dark where it is not. Scaling it up makes it smooth.
function veil(heat) {
  const canvas = make("canvas", { width: COLUMNS, height: ROWS });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(COLUMNS, ROWS);
  for (let i = 0; i < ROWS * COLUMNS; i++) {
    const dark = 1 - LEVELS.indexOf(heat[i]) / 63;
    pixels.data.set([20, 20, 20, Math.round(dark * 0.8 * 255)], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Where the map is brightest, in [0, 1].
function brightest(heat) {
  let best = 0;
  for (let i = 1; i < heat.length; i++) if (LEVELS.indexOf(heat[i]) > LEVELS.indexOf(heat[best])) best = i;
  return [((best % COLUMNS) + 0.5) / COLUMNS, (Math.floor(best / COLUMNS) + 0.5) / ROWS];
}

// A canvas with one image; ``part`` is the side of the cut-out around the brightest patch, 1 is the whole image.
function tileCanvas([index, , heat], side, part = 1) {
  const canvas = make("canvas", { width: side * SHARP, height: side * SHARP });
  const picture = document.querySelector(`#image-${index} img`);
  const [x, y] = part < 1 ? brightest(heat).map((at) => Math.min(Math.max(at - part / 2, 0), 1 - part)) : [0, 0];
  const paint = () => {
    const context = canvas.getContext("2d");
    const draw = (source, width, height) =>
      context.drawImage(source, x * width, y * height, part * width, part * height, 0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    draw(picture, picture.naturalWidth, picture.naturalHeight);
    if (showHeat && part === 1) draw(veil(heat), COLUMNS, ROWS);
  };
  painters.set(canvas, paint);
  if (picture.complete) paint();
  else picture.addEventListener("load", paint, { once: true });
  return canvas;
}

function tiles(images, side, who) {
  const links = images.map((image) => {
    const said = `${document.querySelector(`#image-${image[0]} img`).alt}: ${who} is ${number(image[1])}`;
    const canvas = tileCanvas(image, side);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", said);
    return make("a", { href: `#image-${image[0]}`, title: said }, canvas);
  });
  return make("div", { class: "tiles" }, ...links);
}

function heatSwitch() {
  const box = make("input", { type: "checkbox", class: "heat-switch" });
  box.checked = showHeat;
  box.addEventListener("change", () => {
    showHeat = box.checked;
    for (const canvas of document.querySelectorAll("canvas")) painters.get(canvas)?.();
    for (const other of document.querySelectorAll(".heat-switch")) other.checked = showHeat;
  });
  return make("label", {}, box, " darken the rest of each image");
}

// ----------------------------------------------------------------- charts

// The chart of contributions by block that figures/html.py made, filled with other values.
function depthChart(values, width, height) {
  if (data.blocks.length < 2 || !values.length) return "";
  const chart = byId("depth-chart").content.querySelector("svg").cloneNode(true);
  const top = Math.max(0, ...values), bottom = Math.min(0, ...values), bars = [...chart.querySelectorAll("rect")];
  const strongest = values.reduce((best, value, i) => (Math.abs(value) > Math.abs(values[best]) ? i : best), 0);
  const where = (bar) => bar.textContent.split(":")[0];
  chart.setAttribute("aria-label", `mean contributions by block; the largest from ${where(bars[strongest])}`);
  bars.forEach((bar, i) => {
    bar.setAttribute("y", -Math.max(values[i], 0));
    bar.setAttribute("height", Math.abs(values[i]));
    bar.querySelector("title").textContent = `${where(bar)}: ${number(values[i])}`;
  });
  chart.setAttribute("viewBox", `0 ${-top} ${values.length} ${top - bottom || 1}`);
  chart.setAttribute("width", width);
  chart.setAttribute("height", height);
  return chart;
}

function legend() {
  const blocks = `bars: blocks ${data.blocks[0]} to ${data.blocks[data.blocks.length - 1]}`;
  const keys = data.parts.slice(0, 2).map((part, i) => make("span", { class: i ? "key other" : "key" }, part));
  return make("div", { class: "links faint" }, blocks, ...keys);
}

function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const lines = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell))));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
}

const conceptLink = (c) => make("a", { href: `#concept-${c}` }, conceptName(c));
const channelLink = (channel, text) =>
  data.channels[channel] ? make("a", { href: `#channel-${channel}` }, text) : make("span", {}, text);
