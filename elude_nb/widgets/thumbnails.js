// A strip of pictures to choose from.
function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "elude-thumbnails";
  box.setAttribute("role", "group");
  el.append(box);

  function draw() {
    box.setAttribute("aria-label", model.get("label"));
    box.replaceChildren(
      ...model.get("pictures").map(({ number, src, name }) => {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.number = number;
        button.title = name;
        button.setAttribute("aria-label", name);
        const picture = document.createElement("img");
        picture.src = src;
        picture.alt = "";
        button.append(picture);
        button.addEventListener("click", () => model.send({ choose: number }));
        return button;
      }),
    );
    mark();
  }

  function mark() {
    const chosen = model.get("chosen");
    for (const button of box.children) {
      const place = chosen.indexOf(Number(button.dataset.number));
      button.setAttribute("aria-pressed", String(place >= 0));
      button.classList.toggle("main", place === 0);
    }
  }

  model.on("change:pictures", draw);
  model.on("change:chosen", mark);
  draw();
  return () => { model.off("change:pictures", draw); model.off("change:chosen", mark); };
}

export default { render };
