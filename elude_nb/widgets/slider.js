// A slider with its name above it: a native range, which keyboards and screen readers know.
function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "elude-slider";
  const head = document.createElement("div");
  head.className = "elude-slider-head";
  const name = document.createElement("span");
  const value = document.createElement("output");
  const input = document.createElement("input");
  input.type = "range";
  input.dataset.lmSuppressShortcuts = "true"; // else JupyterLab takes the arrow keys for its cells
  input.setAttribute("role", "slider"); // as native ranges are anyway; tests and style sheets look for it
  const remove = document.createElement("button");
  remove.type = "button";
  remove.textContent = "\u00d7";
  const marks = document.createElement("div");
  marks.className = "elude-slider-marks";
  marks.setAttribute("aria-hidden", "true");
  head.append(name, value, remove);
  box.append(head, input, marks);
  el.append(box);

  function paint() {
    const title = model.get("description");
    name.textContent = title;
    name.title = model.get("hint") || title;
    input.setAttribute("aria-label", title);
    remove.setAttribute("aria-label", `remove ${title}`);
    remove.title = `remove ${title}`;
    remove.hidden = !model.get("removable");
    for (const key of ["min", "max", "step"]) input[key] = model.get(key);
    input.disabled = model.get("disabled");
    input.value = model.get("value");
    write();
    marks.replaceChildren(
      ...model.get("marks").map((text) => Object.assign(document.createElement("span"), { textContent: text })),
    );
  }

  function write() {
    value.textContent = Number(input.value).toFixed(model.get("digits"));
    const [low, high] = [Number(input.min), Number(input.max)];
    input.style.setProperty("--part", `${(100 * (input.value - low)) / (high - low || 1)}%`);
  }

  input.addEventListener("input", () => {
    write();
    model.set("value", Number(input.value));
    model.save_changes();
  });
  remove.addEventListener("click", () => model.send("remove"));
  model.on("change", paint);
  paint();
  return () => model.off("change", paint);
}

export default { render };
