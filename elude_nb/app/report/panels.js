// What opens below the map and below the list: one concept, one channel.
let opener = null; // the link that was followed, to which the focus returns

function show(panel, title, beside, ...content) {
  const link = document.activeElement?.closest("a");
  opener = link && !panel.contains(link) ? link : null;
  const close = make("button", { type: "button" }, "Close");
  close.addEventListener("click", () => {
    panel.hidden = true;
    const first = document.querySelector(`:is(.elude-map, #channel-table) a[href="${location.hash}"]`);
    history.replaceState(null, "", "#" + panel.closest("section").id);
    mark();
    (opener?.isConnected ? opener : first)?.focus();
  });
  const tools = make("div", { class: "tools" }, ...beside, wayChoice(), close);
  const heading = make("header", {}, make("h3", {}, title), tools);
  panel.replaceChildren(heading, ...content);
  panel.setAttribute("role", "region");
  panel.setAttribute("aria-label", title);
  panel.hidden = false;
  panel.focus({ preventScroll: true });
  panel.scrollIntoView({ block: "start" });
}

function openConcept(c) {
  const entry = data.concepts[c];
  const name = conceptName(c);
  const units = (count) =>
    table(
      ["channel", "sub-unit", "mean on the concept", "share of the channel's variance"],
      entry.units.slice(0, count).map(([channel, unit, mean, share]) =>
        [channelLink(channel, `channel ${channel}`), String(unit), number(mean), number(share)]),
    );
  let list = units(20);
  const more = make("button", { type: "button" }, `Show all ${entry.units.length} sub-units`);
  more.hidden = entry.units.length <= 20;
  more.addEventListener("click", () => {
    const all = units(entry.units.length);
    list.replaceWith(all);
    list = all;
    more.hidden = true;
  });
  const depth = depthChart(entry.depth, 420, 80);
  show(
    byId("concept-view"), capital(name), [],
    make("p", {}, `${entry.tokens.toLocaleString("en")} tokens of the discovery, ${entry.units.length} sub-units.`),
    tiles(entry.images, 160, name),
    ...(depth ? [make("h4", {}, "Where its read-out arises, on its own tokens"), depth, legend()] : []),
    make("h4", {}, "Concepts of similar direction"),
    make("div", { class: "links" }, ...entry.alike.map(conceptLink)),
    make("h4", {}, "Its sub-units, by their share of the channel"), list, more,
  );
}

function unitRow(row, unit) {
  const name = row.unit < 0 ? "Whole channel, before" : row.title.replace(`, ${unit ? conceptName(unit.concept) : ""}`, "");
  const what = make("div", { class: "name" }, capital(name));
  if (unit && unit.concept !== null) what.append(" ", make("small", {}, conceptLink(unit.concept)));
  if (unit && unit.copies) what.append(make("small", {}, `${unit.copies} ${unit.copies === 1 ? "copy" : "copies"} in other channels`));
  if (row.labels) what.append(make("small", {}, row.labels));
  if (row.images.length) {
    what.append(make("small", {}, term("similarity"), ` ${row.alike === null ? "–" : row.alike.toFixed(2)}`));
  }
  return make("div", { class: row.unit < 0 ? "row whole" : "row" }, what, tiles(row.images, 160, name));
}

function openChannel(channel) {
  const entry = data.channels[channel];
  const units = new Map(entry.units.map((unit) => [unit.unit, unit]));
  const hasConcept = (unit) => unit.concept !== null && data.concepts.length > 0;
  const lines = entry.units.map((unit) => [
    unit.unit ? `sub-unit ${unit.unit}` : "rest (unit 0)",
    hasConcept(unit) ? conceptLink(unit.concept) : "–",
    unit.sources.toLocaleString("en"), number(unit.share), number(unit.mean), number(unit.top),
    unit.copies === null ? "–" : unit.copies.toLocaleString("en"), depthChart(unit.depth, 190, 34),
  ]);
  const scores = ["share of variance", "mean on concept", "top similarity", "copies in other channels"];
  const heads = ["unit", "concept", "sources", ...scores, "where it arises"];
  const order = [...document.querySelectorAll("#channel-table tbody tr:not([hidden]) a")].map((link) => link.hash);
  const place = order.indexOf(`#channel-${channel}`);
  const step = (to, text) => (order[to] && place >= 0 ? [make("a", { class: "button", href: order[to] }, text)] : []);
  show(
    byId("channel-view"), `Channel ${channel}`, [...step(place - 1, "Previous"), ...step(place + 1, "Next")],
    ...entry.rows.map((row) => unitRow(row, units.get(row.unit))),
    make("h4", {}, "Its units"), table(heads, lines),
    make("p", { class: "faint" }, "Shares add up to 1; a share is negative where the unit covaries negatively with its channel."),
    ...(data.blocks.length > 1 ? [legend()] : []),
  );
}

// What is open is in the address, so that the browser's back button works and a link can be sent with the file.
function mark() {
  for (const element of document.querySelectorAll("tr.open, .elude-map a.chosen")) element.classList.remove("open", "chosen");
  const link = document.querySelector(`#channel-table a[href="${location.hash}"]`);
  link?.closest("tr").classList.add("open");
  document.querySelector(`.elude-map a[href="${location.hash}"]`)?.classList.add("chosen");
}

function route() {
  const [, kind, at] = location.hash.match(/^#(concept|channel)-(\d+)$/) || [];
  if (kind === "concept" && data.concepts[at]) openConcept(Number(at));
  if (kind === "channel" && data.channels[at]) openChannel(Number(at));
  if (kind) mark();
}
