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

// A word as it is shown; the glossary says on hovering what it means.
const IN_GLOSSARY = { unit: "sub-unit", sources: "source", "copies in other channels": "copies", "top similarity": "similarity" };
function term(shown) {
  const title = data.words[IN_GLOSSARY[shown] ?? shown];
  return title ? make("abbr", { class: "elude-term", title }, shown) : shown;
}

// ------------------------------------------------------------------ tiles

const WAYS = data.ways; // as figures/html.py draws them, too
const REMEMBERED = "elude-activation-shown"; // by the browser, where it lets a file remember anything
const painters = new WeakMap(); // canvas -> function that draws it anew
let way = remembered();

function remembered() {
  try {
    return WAYS[localStorage.getItem(REMEMBERED)] ? localStorage.getItem(REMEMBERED) : "outline";
  } catch {
    return "outline";
  }
}

// A picture of one pixel a patch, its colour [r, g, b, a] made of the level in [0, 1]. Scaling it up makes it smooth.
function overlay(heat, colour) {
  const canvas = make("canvas", { width: COLUMNS, height: ROWS });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(COLUMNS, ROWS);
  for (let i = 0; i < ROWS * COLUMNS; i++) pixels.data.set(colour(LEVELS.indexOf(heat[i]) / 63), 4 * i);
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// A white line with a dark halo around where a map is above half of its highest level, on a square of so many pixels.
// Outside it is a little darker, or nobody could say on which side of the line the unit is active.
function outline(heat, side) {
  const canvas = make("canvas", { width: side, height: side });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const highest = Math.max(...Array.from(heat, (letter) => LEVELS.indexOf(letter))) / 63;
  if (!highest) return canvas;
  context.imageSmoothingQuality = "high";
  context.drawImage(overlay(heat, (level) => [0, 0, 0, (255 * level) / highest]), 0, 0, side, side);
  const pixels = context.getImageData(0, 0, side, side);
  const levels = Float32Array.from({ length: side * side }, (_, i) => pixels.data[4 * i + 3] / 255 - 0.5);
  const slope = (i, at, step) => (levels[at < side - 1 ? i + step : i] - levels[at ? i - step : i]) / (at % (side - 1) ? 2 : 1);
  const cover = (value) => Math.min(Math.max(value, 0), 1), half = Math.max(side, 135) / 180;
  levels.forEach((level, i) => {
    const away = Math.abs(level) / Math.max(Math.hypot(slope(i, i % side, 1), slope(i, Math.floor(i / side), side)), 1e-6);
    const line = cover(half + 0.75 - away), halo = 0.6 * cover(2.2 * half + 1 - away);
    const outside = 0.3 * cover(0.5 - Math.sign(level) * away);
    const alpha = 1 - (1 - outside) * (1 - halo) * (1 - line), white = alpha ? (255 * line) / alpha : 0;
    pixels.data.set([white, white, white, 255 * alpha], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Where the map is brightest, in [0, 1].
function brightest(heat) {
  let best = 0;
  for (let i = 1; i < heat.length; i++) if (LEVELS.indexOf(heat[i]) > LEVELS.indexOf(heat[best])) best = i;
  return [((best % COLUMNS) + 0.5) / COLUMNS, (Math.floor(best / COLUMNS) + 0.5) / ROWS];
}

// A canvas with one image, the activation shown in the way that was chosen; ``fixed`` is always the cut-out.
function tileCanvas([index, , heat], side, fixed = false) {
  const canvas = make("canvas", { width: side * SHARP, height: side * SHARP });
  const picture = document.querySelector(`#image-${index} img`);
  const paint = () => {
    const part = (fixed || way === "crop") && ROWS * COLUMNS > 1 ? 0.5 : 1;
    const [x, y] = part < 1 ? brightest(heat).map((at) => Math.min(Math.max(at - part / 2, 0), 1 - part)) : [0, 0];
    const context = canvas.getContext("2d");
    const draw = (source, width, height) =>
      context.drawImage(source, x * width, y * height, part * width, part * height, 0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    draw(picture, picture.naturalWidth, picture.naturalHeight);
    if (fixed || ROWS * COLUMNS === 1) return;
    if (way === "dark") draw(overlay(heat, (level) => [20, 20, 20, 204 * (1 - level)]), COLUMNS, ROWS);
    if (way === "heat") draw(overlay(heat, (level) => [255, 217 * (1 - level), 0, 191 * level]), COLUMNS, ROWS);
    if (way === "outline") draw(outline(heat, canvas.width), canvas.width, canvas.height);
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

function wayChoice() {
  if (ROWS * COLUMNS === 1) return ""; // nothing is known of where in an image
  const choices = Object.entries(WAYS).map(([value, name]) => make("option", { value }, name));
  const choice = make("select", { class: "way" }, ...choices);
  choice.value = way;
  choice.addEventListener("change", () => {
    way = choice.value;
    try {
      localStorage.setItem(REMEMBERED, way);
    } catch {
      // it holds until the page is closed
    }
    for (const canvas of document.querySelectorAll("canvas")) painters.get(canvas)?.();
    for (const other of document.querySelectorAll("select.way")) other.value = way;
  });
  return make("label", {}, "activation ", choice);
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
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, term(text))));
  const lines = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell))));
  return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `table: ${heads.join(", ")}` }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
}

const conceptLink = (c) => make("a", { href: `#concept-${c}` }, conceptName(c));
const channelLink = (channel, text) =>
  data.channels[channel] ? make("a", { href: `#channel-${channel}` }, text) : make("span", {}, text);
