// The widget around drawConceptMap, which stands before this in the module.
function render({ model, el }) {
  let map = null;
  const caption = make("div", { class: "elude-map-caption" });

  function mark() {
    map.mark(model.get("chosen"));
  }

  function draw() {
    map?.close();
    el.replaceChildren();
    map = drawConceptMap(el, model.get("concepts"), {
      node: ({ label, src }) => make("button", { type: "button", title: label, "aria-label": label },
        ...(src ? [make("img", { src, alt: "", draggable: "false" })] : [])),
      preview: ({ label }) => { caption.textContent = label; },
      choose: (numbers) => {
        if (String(numbers) === String(model.get("chosen"))) model.send({ again: true });
        model.set("chosen", numbers);
        model.save_changes();
      },
    });
    el.append(caption);
    mark();
  }

  model.on("change:concepts", draw);
  model.on("change:chosen", mark);
  draw();
  return () => {
    model.off("change:concepts", draw);
    model.off("change:chosen", mark);
    map.close();
  };
}

export default { render };
