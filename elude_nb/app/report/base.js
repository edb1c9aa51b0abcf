"use strict";
// First of the four files of a report's script, which stand in its page as one. All text reaches the page as text
// (textContent, setAttribute), never as markup, so no name can do anything but be read. Pictures stand in the page
// once; tiles are drawn from them under their heat maps.
const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"; // as packing.py has them
const [ROWS, COLUMNS] = data.grid;
const SHARP = Math.min(2, window.devicePixelRatio || 1);
const byId = (id) => document.getElementById(id);
const number = (value, digits = 3) => (value === null ? "–" : String(Number(value.toPrecision(digits))));
const conceptName = (c) => `concept ${c}` + (data.concepts[c]?.name ? `, ${data.concepts[c].name}` : "");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

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

// Bars by block, one a part of it. ``depth`` holds block after block, in each part after part.
function bars(depth, width, height) {
  if (depth.length < 2) return "";
  const high = Math.max(0, ...depth), low = Math.min(0, ...depth), scale = (height - 2) / (high - low || 1);
  const zero = 1 + high * scale, step = width / depth.length, parts = data.parts.length;
  const where = (i) => `${data.parts[i % parts]} of block ${data.blocks[Math.floor(i / parts)]}`;
  const strongest = depth.reduce((best, value, i) => (Math.abs(value) > Math.abs(depth[best]) ? i : best), 0);
  const drawn = depth.map((value, i) => {
    const bar = makeSvg("rect", { x: i * step + 0.1 * step, width: 0.8 * step, height: Math.abs(value) * scale });
    bar.setAttribute("y", zero - Math.max(value * scale, 0));
    if (i % parts) bar.setAttribute("class", "second");
    bar.append(makeSvg("title", {}, `${where(i)}: ${number(value)}`));
    return bar;
  });
  const said = `contributions by block; the largest from ${where(strongest)}`;
  const line = makeSvg("line", { x1: 0, x2: width, y1: zero, y2: zero });
  const chart = makeSvg("svg", { class: "bars", viewBox: `0 0 ${width} ${height}`, width, height }, ...drawn, line);
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", said);
  return chart;
}

function legend() {
  const blocks = `bars: blocks ${data.blocks[0]} to ${data.blocks[data.blocks.length - 1]}`;
  const keys = data.parts.slice(0, 2).map((part, i) => make("span", { class: i ? "key second" : "key" }, part));
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
