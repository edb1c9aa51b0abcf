// A picture with a grid of patches: click one, or move with the arrow keys; and files can be dropped on it.
function render({ model, el }) {
  const box = document.createElement("div");
  box.dataset.lmSuppressShortcuts = "true"; // else JupyterLab takes the arrow keys for its cells
  box.className = "elude-picker";
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.style.cssText = "position:relative;display:inline-block;line-height:0;cursor:crosshair;max-width:100%";
  const picture = document.createElement("img");
  picture.style.cssText = "display:block;max-width:100%";
  picture.draggable = false;
  const frame = document.createElement("div"); // around the chosen patch
  frame.style.cssText =
    "position:absolute;box-sizing:border-box;border:2px solid #fff;outline:2px solid #d55e00;pointer-events:none";
  const spoken = document.createElement("div");
  spoken.setAttribute("role", "status");
  spoken.style.cssText = "line-height:1.4;font-size:12px";
  box.append(picture, frame);
  el.append(box, spoken);

  function paint() {
    const [rows, columns] = model.get("grid");
    const side = model.get("side");
    picture.src = model.get("src");
    picture.width = side;
    picture.height = side;
    picture.alt = model.get("alt");
    box.setAttribute("aria-label", model.get("alt") + "; arrow keys choose a patch");
    const row = model.get("row");
    const column = model.get("column");
    frame.style.left = (100 * column) / columns + "%";
    frame.style.top = (100 * row) / rows + "%";
    frame.style.width = 100 / columns + "%";
    frame.style.height = 100 / rows + "%";
    spoken.textContent = `patch: row ${row + 1} of ${rows}, column ${column + 1} of ${columns}`;
  }

  function choose(row, column) {
    const [rows, columns] = model.get("grid");
    model.set("row", Math.min(Math.max(row, 0), rows - 1));
    model.set("column", Math.min(Math.max(column, 0), columns - 1));
    model.save_changes();
  }

  box.addEventListener("click", (event) => {
    const [rows, columns] = model.get("grid");
    const area = picture.getBoundingClientRect();
    choose(
      Math.floor(((event.clientY - area.top) / area.height) * rows),
      Math.floor(((event.clientX - area.left) / area.width) * columns)
    );
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would move to another cell
    choose(model.get("row") + step[0], model.get("column") + step[1]);
  });
  box.addEventListener("dragover", (event) => {
    event.preventDefault();
    box.style.outline = "3px dashed #0072b2";
  });
  box.addEventListener("dragleave", () => (box.style.outline = ""));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    box.style.outline = "";
    const files = [...event.dataTransfer.files]; // empty after this event
    if (files.length) sendFiles(model, files);
  });
  for (const name of ["src", "grid", "side", "alt", "row", "column"]) model.on("change:" + name, paint);
  paint();
}
export default { render };
