// The list of channels, which stands in the page as a table: sorted and searched here; and the start of it all.
function prepareChannels() {
  const body = document.querySelector("#channel-table tbody");
  const rows = [...body.rows];
  const heads = [...document.querySelectorAll("#channel-table th[data-key]")];
  const words = new Map(rows.map((row) => [row, wordsOf(row)]));
  const search = make("input", { type: "search", id: "channel-search", placeholder: "17, concept 3, a name …" });
  const status = make("span", { role: "status", class: "faint" });

  function wordsOf(row) {
    const units = data.channels[row.dataset.channel]?.units || [];
    const owned = units.filter((unit) => unit.concept !== null).map((unit) => `${conceptName(unit.concept)};`);
    const labels = (data.channels[row.dataset.channel]?.rows || []).map((line) => line.labels);
    return [row.lastElementChild.textContent, ...owned, ...labels].join(" ").toLowerCase();
  }

  function filter() {
    const wanted = search.value.trim().toLowerCase();
    const concept = wanted.match(/^concept\s+(\d+)$/);
    const fits = (row) => {
      if (/^\d+$/.test(wanted)) return row.dataset.channel.startsWith(wanted);
      if (concept) return new RegExp(`concept ${concept[1]}\\b`).test(words.get(row));
      return wanted.split(/\s+/).every((word) => words.get(row).includes(word));
    };
    for (const row of rows) row.hidden = !fits(row);
    status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} channels`;
  }

  function sort(head) {
    const column = head.cellIndex;
    const before = head.getAttribute("aria-sort");
    const up = before ? before === "descending" : head.dataset.key === "channel"; // scores begin with the largest
    const value = (row) => {
      const found = row.cells[column].dataset.value;
      return found === undefined ? null : Number(found);
    };
    rows.sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === null || right === null) return (left === null) - (right === null); // what has no value comes last
      return up ? left - right : right - left;
    });
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    for (const other of heads) other.querySelector("span").textContent = other === head ? (up ? " ▲" : " ▼") : "";
    body.append(...rows);
  }

  for (const head of heads) {
    const arrow = make("span", { "aria-hidden": "true" });
    const button = make("button", { type: "button", title: head.title }, head.textContent, arrow);
    button.addEventListener("click", () => sort(head));
    head.replaceChildren(button);
    if (head.dataset.key === "separation") {
      head.setAttribute("aria-sort", "descending");
      arrow.textContent = " ▼";
    }
  }
  search.addEventListener("input", filter);
  search.addEventListener("keydown", (event) => {
    const first = rows.find((row) => !row.hidden && row.querySelector("a"));
    if (event.key === "Enter" && first) location.hash = first.querySelector("a").hash;
  });
  byId("channel-tools").append(make("label", { for: "channel-search" }, "Find channels"), search, status);
  byId("channel-tools").hidden = false;
  filter();
}

// The map, with the concept under the pointer beside it.
function prepareMap(home) {
  const peek = make("div", { class: "peek" });
  const preview = (entry) =>
    peek.replaceChildren(make("h3", {}, conceptLink(entry.concept)), tiles(entry.images.slice(0, 6), 84, "the concept"),
      make("p", { class: "faint" }, `${entry.tokens.toLocaleString("en")} tokens, ${entry.units.length} sub-units`),
      depthChart(entry.depth, 190, 40));
  const node = (entry) => {
    const said = `${conceptName(entry.concept)}: ${entry.units.length} sub-units`;
    return make("a", { href: `#concept-${entry.concept}`, title: said, "aria-label": said, draggable: "false" },
      tileCanvas(entry.images[0], 64, true));
  };
  const box = make("div");
  home.append(box, peek);
  home.hidden = false;
  drawConceptMap(box, data.concepts, { node, preview });
  preview(data.concepts[0]);
}

// The channels that come apart best, before and after.
function prepareBest(home) {
  for (const { channel, caption } of data.best) {
    const entry = data.channels[channel];
    const units = new Map(entry.units.map((unit) => [unit.unit, unit]));
    const parts = entry.rows.filter((row) => row.unit > 0).sort((a, b) => b.alike - a.alike);
    const most = parts.map((row) => row.labels.split(" ")[0]); // the label of most of its images
    const unlike = parts.filter((_, i) => most.indexOf(most[i]) === i);
    const shown = [...new Set([...unlike, ...parts])].slice(0, 3);
    const rows = [...entry.rows.filter((row) => row.unit < 0), ...shown];
    const all = entry.units.filter((unit) => unit.unit).length;
    const open = channelLink(channel, all > 3 ? `All ${all} sub-units` : "Its sub-units");
    home.append(
      make("article", { class: "panel" },
        make("header", {}, make("h3", {}, `Channel ${channel}`), make("p", {}, caption), wayChoice()),
        ...rows.map((row) => unitRow(row, units.get(row.unit))),
        make("p", {}, all > 3 ? "Shown are three whose images are alike, of different labels where there are such. " : "", open)),
    );
  }
}

prepareBest(byId("best-view"));
if (data.concepts.length) prepareMap(byId("map"));
prepareChannels();
window.addEventListener("hashchange", route);
route();
