function copyBySelection(text) {  // pages that are not served over https have no navigator.clipboard
  const area = document.createElement("textarea");
  const before = document.activeElement;
  area.value = text;
  area.style.position = "fixed";
  area.style.opacity = "0";
  document.body.append(area);
  area.select();
  let done = false;
  try { done = document.execCommand("copy"); } catch { done = false; }
  area.remove();
  before?.focus();
  return done;
}

function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "elude-copy-button jupyter-button widget-button lm-Widget";
  button.style.width = "auto";
  const said = document.createElement("span");
  said.className = "elude-copied";
  said.setAttribute("role", "status");
  said.style.marginLeft = "0.6em";
  said.style.color = "var(--jp-ui-font-color1, inherit)";
  const label = () => { button.textContent = model.get("label"); };
  const forget = () => { said.textContent = ""; };
  label();
  button.addEventListener("click", async () => {
    const text = model.get("text");
    let done = false;
    try { await navigator.clipboard.writeText(text); done = true; } catch { done = copyBySelection(text); }
    said.textContent = done ? "copied" : "this page may not copy: select the text and copy it";
  });
  model.on("change:label", label);
  model.on("change:text", forget);
  el.append(button, said);
  return () => { model.off("change:label", label); model.off("change:text", forget); };
}

export default { render };
