"""Controls that ipywidgets lacks: a button that copies, a picture whose patches can be picked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

_SCRIPT = """
function byHand(text) {  // pages that are not served over https have no navigator.clipboard
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
    try { await navigator.clipboard.writeText(text); done = true; } catch { done = byHand(text); }
    said.textContent = done ? "copied" : "this page may not copy: mark the text and copy it";
  });
  model.on("change:label", label);
  model.on("change:text", forget);
  el.append(button, said);
  return () => { model.off("change:label", label); model.off("change:text", forget); };
}

export default { render };
"""


class CopyButton(anywidget.AnyWidget):
    """A button that copies `text` to the clipboard and says so.

    Attributes
    ----------
    text
        What is copied (trait).
    label
        What stands on the button (trait).

    Examples
    --------
    >>> CopyButton(text="Edit()", label="copy the edit").text
    'Edit()'
    """

    _esm = _SCRIPT
    text = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode("copy").tag(sync=True)


MOST_BYTES = 30_000_000  # a larger file would hold up the connection to the kernel


class PatchPicker(anywidget.AnyWidget):
    """A picture with a grid of patches.

    Attributes
    ----------
    src, alt
        The picture as a data URI, and what it shows in words (traits, synchronised).
    grid
        Rows and columns of patches (trait, synchronised).
    row, column
        The chosen patch (traits, synchronised).
    side
        Width and height in pixels (trait, synchronised).
    """

    _esm = Path(__file__).with_name("patch_picker.js")
    src = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    grid = traitlets.List(traitlets.Int(), default_value=[1, 1]).tag(sync=True)
    row = traitlets.Int().tag(sync=True)
    column = traitlets.Int().tag(sync=True)
    side = traitlets.Int(320).tag(sync=True)
    most_bytes = traitlets.Int(MOST_BYTES).tag(sync=True)

    def on_drop(self, take: Callable[[str, bytes], object], refuse: Callable[[str], object]) -> None:
        """Have ``take(name, content)`` called for a dropped file, or ``refuse(message)`` if it is too large."""

        def received(_: Any, content: Any, buffers: Any) -> None:
            if content.get("kind") == "file" and buffers:
                take(str(content.get("name", "file")), bytes(buffers[0]))
            elif content.get("kind") == "too large":
                refuse(
                    f"{content.get('name')!r} has {content.get('size', 0):,} bytes; at most {MOST_BYTES:,} are taken."
                )

        self.on_msg(received)
