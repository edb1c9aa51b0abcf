// The map of concepts: a link for each, that can be dragged, zoomed and walked with arrow keys.
function drawMap(home) {
  const map = make("div", { class: "map", role: "group", "aria-describedby": "map-help" });
  map.setAttribute("aria-label", `Map of ${data.concepts.length} concepts`);
  const help = make("p", { id: "map-help", class: "faint" },
    "Concepts of similar direction lie side by side. Rest or focus on one to see its best images, open it to see its " +
    "sub-units. Drag to move; + and − or Ctrl and the wheel zoom. Arrow keys go from concept to concept, 0 shows all.");
  const peek = make("div", { class: "peek" });
  const view = { zoom: 1, x: 0, y: 0 }; // x, y: what share of the map lies left of and above the window
  let dragged = false;

  function preview(entry) {
    peek.replaceChildren(make("h3", {}, conceptLink(entry.concept)), tiles(entry.images.slice(0, 6), 84, "the concept"),
      make("p", { class: "faint" }, `${entry.tokens.toLocaleString("en")} tokens, ${entry.units.length} sub-units`),
      bars(entry.depth, 190, 40));
  }

  const nodes = data.concepts.map((entry, i) => {
    const said = `${conceptName(entry.concept)}: ${entry.units.length} sub-units`;
    const node = make("a", { href: `#concept-${entry.concept}`, title: said, "aria-label": said, draggable: "false" },
      tileCanvas(entry.images[0], 64, 0.5));
    node.tabIndex = i ? -1 : 0;
    node.addEventListener("pointerenter", () => preview(entry));
    node.addEventListener("focus", () => {
      for (const other of nodes) other.tabIndex = other === node ? 0 : -1; // Tab leaves the map and comes back here
      preview(entry);
      bringIn(i);
    });
    node.addEventListener("click", (event) => dragged && event.preventDefault());
    return node;
  });

  const growth = () => Math.min(Math.sqrt(view.zoom), 2); // thumbnails grow with the map, but less
  const room = (grown = growth()) =>
    [map.clientWidth - grown * nodes[0].offsetWidth - 16, map.clientHeight - grown * nodes[0].offsetHeight - 16];
  const within = (value) => Math.min(Math.max(value, 0), 1 - 1 / view.zoom);

  // Where the concepts stand, in shares of the map: moved apart until no thumbnail lies on another, as far as there is
  // room. Each round takes every two that are too close and moves both, along the axis on which less is needed.
  let spots = [];
  function spread() {
    const [width, height] = room(1).map((length) => Math.max(length, 1));
    const least = [0.92 * nodes[0].offsetWidth / width, 0.92 * nodes[0].offsetHeight / height];
    spots = data.concepts.map(({ x, y }) => [x, y]);
    for (let round = 0; round < 80; round++) {
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
    nodes.forEach((node, i) => {
      const [x, y] = spots[i];
      const left = 8 + (x - view.x) * view.zoom * width, top = 8 + (y - view.y) * view.zoom * height;
      node.style.transform = `translate(${left}px, ${top}px) scale(${growth()})`;
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
      const aside = Math.abs((to[0] - from[0]) * dy) + Math.abs((to[1] - from[1]) * dx);
      if (j !== i && along > 1e-9 && along + 2 * aside < least) [best, least] = [j, along + 2 * aside];
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
    else return;
    event.preventDefault();
  });
  map.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the wheel alone scrolls the page
    event.preventDefault();
    const box = map.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  map.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.button) return;
    const start = { x: event.clientX, y: event.clientY, left: view.x, top: view.y };
    const move = (to) => {
      const dx = to.clientX - start.x, dy = to.clientY - start.y, [width, height] = room();
      dragged = dragged || Math.hypot(dx, dy) > 5; // less is a click
      if (!dragged) return;
      map.classList.add("dragged");
      [view.x, view.y] = [start.left - dx / width / view.zoom, start.top - dy / height / view.zoom];
      place();
    };
    const stop = () => {
      map.classList.remove("dragged");
      for (const [name, done] of [["pointermove", move], ["pointerup", stop], ["pointercancel", stop]])
        window.removeEventListener(name, done);
    };
    for (const [name, done] of [["pointermove", move], ["pointerup", stop], ["pointercancel", stop]])
      window.addEventListener(name, done);
  });
  map.addEventListener("dragstart", (event) => event.preventDefault());
  map.addEventListener("scroll", () => map.scrollTo(0, 0)); // focus must not scroll what is panned

  const button = (text, said, action) => {
    const made = make("button", { type: "button", "aria-label": said }, text);
    made.addEventListener("click", action);
    return made;
  };
  const buttons = make("div", { class: "tools buttons" }, button("+", "Zoom in", () => zoom(1.5)),
    button("−", "Zoom out", () => zoom(1 / 1.5)), button("all", "Show the whole map", () => zoom(0)));
  map.append(...nodes);
  home.append(help, buttons, make("div", { class: "atlas" }, map, peek));
  home.hidden = false;
  spread();
  place();
  new ResizeObserver(() => {
    spread();
    place();
  }).observe(map);
  preview(data.concepts[0]);
}
