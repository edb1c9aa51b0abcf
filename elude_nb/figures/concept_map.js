"use strict";
// The map of concepts, drawn by the report and by the widget. All text reaches the page as text (textContent,
// setAttribute), never as markup.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Whether a point lies in a polygon: a ray from it crosses its sides an odd number of times.
function inPolygon([x, y], corners) {
  let odd = false;
  corners.forEach(([x1, y1], i) => {
    const [x2, y2] = corners[(i + 1) % corners.length];
    if (y1 > y !== y2 > y && x < x1 + ((y - y1) / (y2 - y1)) * (x2 - x1)) odd = !odd;
  });
  return odd;
}

// Draw concepts, each with a name (or "") and a place x, y in [0, 1], as nodes that can be dragged, zoomed and walked
// with arrow keys. `node` makes a link or a button of a concept; `preview` is called when one is hovered or focused.
// With `choose`, which is called with numbers of concepts, several can be chosen: by Space, by a click with Ctrl, Cmd or
// Shift, or by a lasso: drawn with Shift, or with its button pressed. Returns functions that mark the chosen concepts, and
// that end it.
function drawConceptMap(home, concepts, { node, preview = () => {}, choose = null }) {
  const map = make("div", { class: "elude-map", role: "group", "aria-label": `Map of ${concepts.length} concepts`,
    "data-lm-suppress-shortcuts": "true" }); // else JupyterLab takes the arrow keys for its cells
  const help = make("p", { class: "elude-map-help", id: `elude-map-${Math.random().toString(36).slice(2)}` },
    "Concepts of similar direction lie side by side. Drag to move; + and − or Ctrl and the wheel zoom. Arrow keys go " +
    "from concept to concept, 0 shows all. " +
    (choose ? "Click one, or draw around several with the lasso or with Shift; Space adds one or takes it away."
            : "Hover or focus one to see its top images, open it to see its sub-units."));
  map.setAttribute("aria-describedby", help.id);
  const view = { zoom: 1, x: 0, y: 0 }; // x, y: what share of the map lies left of and above the window
  let dragged = false, lassoes = false, chosen = new Set();

  const nodes = concepts.map((concept, i) => {
    const made = node(concept);
    made.classList.add("elude-map-node");
    made.tabIndex = i ? -1 : 0;
    if (concept.name) made.append(make("span", { class: "elude-map-name", "aria-hidden": "true" }, concept.name));
    made.addEventListener("pointerenter", () => preview(concept));
    made.addEventListener("focus", () => {
      for (const other of nodes) other.tabIndex = other === made ? 0 : -1; // Tab leaves the map and comes back here
      preview(concept);
      bringIn(i);
    });
    made.addEventListener("click", (event) => {
      if (dragged) event.preventDefault();
      else if (choose && (event.ctrlKey || event.metaKey || event.shiftKey)) toggle(i);
      else if (choose) choose([i]);
    });
    return made;
  });
  map.append(...nodes);

  function mark(numbers) {
    chosen = new Set(numbers);
    nodes.forEach((made, i) => {
      made.classList.toggle("chosen", chosen.has(i));
      if (choose) made.setAttribute("aria-pressed", chosen.has(i));
    });
  }

  function toggle(i) {
    const next = new Set(chosen);
    if (!next.delete(i)) next.add(i);
    choose([...next].sort((a, b) => a - b));
  }

  const growth = () => Math.min(Math.sqrt(view.zoom), 2); // thumbnails grow with the map, but less
  const room = (grown = growth()) =>
    [map.clientWidth - grown * nodes[0].offsetWidth - 16, map.clientHeight - grown * nodes[0].offsetHeight - 16];
  const within = (value) => Math.min(Math.max(value, 0), 1 - 1 / view.zoom);

  // Where the concepts stand, in shares of the map: moved apart until no thumbnail lies on another, as far as there is
  // room. Each round takes every two that are too close and moves both, along the axis on which less is needed.
  let spots = [];
  function spread() {
    const area = map.clientWidth * map.clientHeight;
    map.style.setProperty("--side", `${Math.min(46, Math.max(12, Math.sqrt(0.35 * area / concepts.length)))}px`);
    const [width, height] = room(1).map((length) => Math.max(length, 1));
    const least = [0.92 * nodes[0].offsetWidth / width, 0.92 * nodes[0].offsetHeight / height];
    spots = concepts.map(({ x, y }) => [x, y]);
    const rounds = Math.min(80, 1e8 / concepts.length ** 2);
    for (let round = 0; round < rounds; round++) {
      let moved = false;
      for (let i = 0; i < spots.length; i++) {
        for (let j = 0; j < i; j++) {
          const lack = [0, 1].map((axis) => least[axis] - Math.abs(spots[i][axis] - spots[j][axis]));
          if (lack[0] <= 1e-6 || lack[1] <= 1e-6) continue;
          const axis = lack[0] * width <= lack[1] * height ? 0 : 1;
          const push = (lack[axis] / 2) * (spots[i][axis] >= spots[j][axis] ? 1 : -1);
          spots[i][axis] = Math.min(Math.max(spots[i][axis] + push, 0), 1);
          spots[j][axis] = Math.min(Math.max(spots[j][axis] - push, 0), 1);
          moved = true;
        }
      }
      if (!moved) return;
    }
  }

  function place() {
    const [width, height] = room();
    [view.x, view.y] = [within(view.x), within(view.y)];
    map.classList.toggle("zoomed", view.zoom > 1);
    nodes.forEach((made, i) => {
      const left = 8 + (spots[i][0] - view.x) * view.zoom * width, top = 8 + (spots[i][1] - view.y) * view.zoom * height;
      made.style.transform = `translate(${left}px, ${top}px) scale(${growth()})`;
    });
  }

  // The point at (x, y) of the window, in shares of it, stays where it is.
  function zoom(factor, x = 0.5, y = 0.5) {
    const next = Math.min(Math.max(view.zoom * factor, 1), 12);
    view.x += x / view.zoom - x / next;
    view.y += y / view.zoom - y / next;
    view.zoom = next;
    place();
  }

  // Where a concept stands in the window, in shares of it; the middle without one.
  const around = (i) => (i < 0 ? [0.5, 0.5] : [(spots[i][0] - view.x) * view.zoom, (spots[i][1] - view.y) * view.zoom]);

  function bringIn(i) {
    const [x, y] = spots[i], width = 1 / view.zoom;
    if (x < view.x || x > view.x + width) view.x = x - width / 2;
    if (y < view.y || y > view.y + width) view.y = y - width / 2;
    place();
  }

  // The concept that lies nearest in a direction; what is off to the side counts as further away.
  function neighbour(i, dx, dy) {
    const from = spots[i];
    let best = -1, least = Infinity;
    spots.forEach((to, j) => {
      const along = (to[0] - from[0]) * dx + (to[1] - from[1]) * dy;
      const across = Math.abs((to[0] - from[0]) * dy) + Math.abs((to[1] - from[1]) * dx);
      if (j !== i && along > 1e-9 && along + 2 * across < least) [best, least] = [j, along + 2 * across];
    });
    return best;
  }

  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = nodes.indexOf(document.activeElement);
    if (event.key in arrows && at >= 0) {
      const to = neighbour(at, ...arrows[event.key]);
      if (to >= 0) nodes[to].focus({ preventScroll: true });
    } else if (event.key === "+" || event.key === "=") zoom(1.5, ...around(at));
    else if (event.key === "-") zoom(1 / 1.5, ...around(at));
    else if (event.key === "0") zoom(0);
    else if (event.key === " " && choose && at >= 0) toggle(at);
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would move to another cell
  });
  map.addEventListener("keyup", (event) => { // that of Space would click a button
    if (event.key === " " && choose) event.preventDefault();
  });
  map.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the wheel alone scrolls the page
    event.preventDefault();
    const box = map.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });

  // Call `move` while the pointer is dragged, and `end` when it is released.
  function drag(move, end) {
    const stop = () => {
      for (const [name, done] of listeners) window.removeEventListener(name, done);
      end();
    };
    const listeners = [["pointermove", move], ["pointerup", stop], ["pointercancel", stop]];
    for (const [name, done] of listeners) window.addEventListener(name, done);
  }

  function pan(start) {
    const [left, top] = [view.x, view.y];
    drag((to) => {
      const dx = to.clientX - start.clientX, dy = to.clientY - start.clientY, [width, height] = room();
      dragged = dragged || Math.hypot(dx, dy) > 5; // less is a click
      if (!dragged) return;
      map.classList.add("dragged");
      [view.x, view.y] = [left - dx / width / view.zoom, top - dy / height / view.zoom];
      place();
    }, () => map.classList.remove("dragged"));
  }

  function lasso(start) {
    const area = map.getBoundingClientRect(), corners = [[start.clientX, start.clientY]];
    const [drawn, line] = ["svg", "polygon"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
    drawn.setAttribute("class", "elude-map-lasso");
    drawn.setAttribute("aria-hidden", "true");
    drawn.append(line);
    drag((to) => {
      dragged = dragged || Math.hypot(to.clientX - start.clientX, to.clientY - start.clientY) > 5;
      if (!dragged) return;
      corners.push([to.clientX, to.clientY]);
      line.setAttribute("points", corners.map(([x, y]) => `${x - area.left},${y - area.top}`).join(" "));
      map.append(drawn);
    }, () => {
      drawn.remove();
      if (!dragged) return;
      const found = concepts.map((_, i) => i).filter((i) => {
        const at = nodes[i].getBoundingClientRect();
        return inPolygon([(at.left + at.right) / 2, (at.top + at.bottom) / 2], corners);
      });
      if (found.length) choose(found);
    });
  }

  map.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.button) return;
    if (choose && (lassoes || event.shiftKey)) lasso(event);
    else pan(event);
  });
  map.addEventListener("dragstart", (event) => event.preventDefault());
  map.addEventListener("scroll", () => map.scrollTo(0, 0)); // focus must not scroll what is panned

  const button = (text, said, action) => {
    const made = make("button", { type: "button", "aria-label": said }, text);
    made.addEventListener("click", action);
    return made;
  };
  const buttons = make("div", { class: "elude-map-buttons" }, button("+", "Zoom in", () => zoom(1.5)),
    button("−", "Zoom out", () => zoom(1 / 1.5)), button("all", "Show the whole map", () => zoom(0)));
  if (choose) {
    const toggled = button("lasso", "Lasso: draw around concepts to choose them", () => {
      lassoes = !lassoes;
      toggled.setAttribute("aria-pressed", lassoes);
      map.classList.toggle("lassoes", lassoes);
    });
    toggled.setAttribute("aria-pressed", "false");
    buttons.append(toggled);
  }
  home.append(help, buttons, map);
  const redraw = () => {
    spread();
    place();
  };
  redraw();
  const observer = new ResizeObserver(redraw);
  observer.observe(map);
  return { mark, close: () => observer.disconnect() };
}
