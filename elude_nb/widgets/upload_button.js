// A button that opens the browser's choice of files. The input is made anew each time, so that the same file can be
// chosen twice.
function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-button widget-button lm-Widget";
  button.style.width = "auto";
  const paint = () => {
    button.textContent = model.get("label");
    button.title = model.get("hint");
  };
  paint();
  button.addEventListener("click", () => {
    const input = document.createElement("input");
    input.type = "file";
    input.accept = model.get("accept");
    input.multiple = true;
    input.addEventListener("change", () => sendFiles(model, input.files));
    input.click();
  });
  for (const name of ["label", "hint"]) model.on("change:" + name, paint);
  el.append(button);
  return () => { for (const name of ["label", "hint"]) model.off("change:" + name, paint); };
}
export default { render };
