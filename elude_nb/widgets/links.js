// Buttons in a row after a few words; a press sends the number of what was pressed.
function render({ model, el }) {
  const words = document.createElement("span");
  el.classList.add("elude-links");
  el.setAttribute("role", "group");

  function draw() {
    el.setAttribute("aria-label", model.get("label"));
    words.textContent = model.get("label");
    const options = model.get("options");
    el.hidden = !options.length;
    el.replaceChildren(words, ...options.map((text, number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => model.send({ press: number }));
      return button;
    }));
  }

  model.on("change:options change:label", draw);
  draw();
  return () => model.off("change:options change:label", draw);
}

export default { render };
