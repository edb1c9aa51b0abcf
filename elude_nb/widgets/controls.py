"""Controls that ipywidgets lacks: a button that copies, a picture whose patches can be chosen, the map of concepts."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import traitlets

_HERE, _FIGURES = Path(__file__).parent, files("elude_nb.figures")


class CopyButton(anywidget.AnyWidget):
    """A button that copies `text` to the clipboard and says so.

    Attributes
    ----------
    text
        What is copied (trait).
    label
        What is written on the button (trait).

    Examples
    --------
    >>> CopyButton(text="Edit()", label="copy the edit").text
    'Edit()'
    """

    _esm = _HERE / "copy_button.js"
    text = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode("copy").tag(sync=True)


class ConceptMap(anywidget.AnyWidget):
    """The map of concepts, by the script that the report draws it with.

    Attributes
    ----------
    concepts
        One dict a concept: ``name``, ``label``, ``x`` and ``y`` in [0, 1], and ``src``, a thumbnail as a data URI
        (trait, synchronised).
    chosen
        Numbers of the chosen concepts (trait, synchronised).
    """

    _esm = _FIGURES.joinpath("concept_map.js").read_text("utf-8") + (_HERE / "concept_map.js").read_text("utf-8")
    _css = _FIGURES.joinpath("concept_map.css").read_text("utf-8")
    concepts = traitlets.List(traitlets.Dict()).tag(sync=True)
    chosen = traitlets.List(traitlets.Int()).tag(sync=True)


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

    _esm = _HERE / "patch_picker.js"
    src = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    grid = traitlets.List(traitlets.Int(), default_value=[1, 1]).tag(sync=True)
    row = traitlets.Int().tag(sync=True)
    column = traitlets.Int().tag(sync=True)
    side = traitlets.Int(320).tag(sync=True)
    most_bytes = traitlets.Int(MOST_BYTES).tag(sync=True)

    def on_drop(self, take: Callable[[str, bytes], object], refuse: Callable[[str], object]) -> None:
        """Have ``take(name, content)`` called for a dropped file, or ``refuse(message)`` if it is too large."""

        def receive(_: Any, content: Any, buffers: Any) -> None:
            name = str(content.get("name", "file"))
            if content.get("kind") == "file" and buffers:
                take(name, bytes(buffers[0]))
            elif content.get("kind") == "too large":
                refuse(f"{name!r} has {content.get('size', 0):,} bytes; at most {MOST_BYTES:,} are taken.")

        self.on_msg(receive)
