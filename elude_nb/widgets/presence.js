// Nothing to see: it tells the kernel how many views of a panel the page has.
const counts = new WeakMap();

function render({ model, el }) {
  el.style.display = "none";
  const add = (change) => {
    counts.set(model, (counts.get(model) ?? 0) + change);
    model.set("views", counts.get(model));
    model.save_changes();
  };
  add(1);
  return () => add(-1);
}

export default { render };
