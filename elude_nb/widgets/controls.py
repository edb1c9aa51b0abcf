"""Controls that ipywidgets lacks: buttons that copy and upload, a picture whose patches can be chosen, the map."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import traitlets

_HERE, _FIGURES = Path(__file__).parent, files("elude_nb.figures")
_SEND_FILES = (_HERE / "send_files.js").read_text("utf-8")


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


class Slider(anywidget.AnyWidget):
    """A slider whose name stands above it, wherever it is narrow, with a button that removes it.

    Attributes
    ----------
    description
        Its name; also what screen readers say (trait, synchronised).
    hint
        What it means, on hovering (trait, synchronised).
    value, min, max, step
        Where it stands, and between what (traits, synchronised).
    digits
        How many are written of the value (trait, synchronised).
    marks
        What is written below it, from one end to the other (trait, synchronised).
    removable
        Whether there is a button (trait, synchronised).
    """

    _esm = _HERE / "slider.js"
    _css = _HERE / "steering.css"
    description = traitlets.Unicode().tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    value = traitlets.Float().tag(sync=True)
    min = traitlets.Float(0).tag(sync=True)
    max = traitlets.Float(1).tag(sync=True)
    step = traitlets.Float(1).tag(sync=True)
    digits = traitlets.Int(0).tag(sync=True)
    marks = traitlets.List(traitlets.Unicode()).tag(sync=True)
    removable = traitlets.Bool(default_value=False).tag(sync=True)
    disabled = traitlets.Bool(default_value=False).tag(sync=True)

    def on_remove(self, act: Callable[[], object]) -> None:
        """Have ``act`` called when the button is pressed."""
        self.on_msg(lambda _, content, __: act() if content == "remove" else None)


class Thumbnails(anywidget.AnyWidget):
    """A strip of pictures, of which one is chosen by a click or a key.

    Attributes
    ----------
    label
        What screen readers call the strip (trait, synchronised).
    pictures
        One dict a picture: ``number``, ``src`` (a data URI) and ``name`` (trait, synchronised).
    chosen
        Numbers of the chosen ones, the main one first (trait, synchronised).
    """

    _esm = _HERE / "thumbnails.js"
    _css = _HERE / "steering.css"
    label = traitlets.Unicode().tag(sync=True)
    pictures = traitlets.List(traitlets.Dict()).tag(sync=True)
    chosen = traitlets.List(traitlets.Int()).tag(sync=True)

    def on_choose(self, act: Callable[[int], object]) -> None:
        """Have ``act`` called with the number of the picture that is clicked."""
        self.on_msg(lambda _, content, __: act(content["choose"]) if "choose" in content else None)


class Links(anywidget.AnyWidget):
    """A few words and buttons after them, each of which leads to something; without buttons nothing is shown.

    Attributes
    ----------
    label
        The words (trait, synchronised).
    options
        What is written on the buttons (trait, synchronised).
    """

    _esm = _HERE / "links.js"
    _css = _HERE / "links.css"
    label = traitlets.Unicode().tag(sync=True)
    options = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def on_press(self, act: Callable[[int], object]) -> None:
        """Have ``act`` called with the number of the button that is pressed."""
        self.on_msg(lambda _, content, __: act(content["press"]) if "press" in content else None)


class Presence(anywidget.AnyWidget):
    """Tells how many views of what it stands in the page has: none once a cell that showed it has run again.

    Attributes
    ----------
    views
        How many; -1 where no page has said it (trait, synchronised).
    """

    _esm = _HERE / "presence.js"
    views = traitlets.Int(-1).tag(sync=True)


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

    def on_again(self, act: Callable[[], object]) -> None:
        """Have ``act`` called when what is chosen already is chosen once more."""
        self.on_msg(lambda _, content, __: act() if "again" in content else None)


MOST_BYTES = 30_000_000  # a larger file would hold up the connection to the kernel

Files = list[tuple[str, bytes]]


class _TakesFiles(anywidget.AnyWidget):
    """A control that sends files to the kernel, in parts, by the script send_files.js.

    Attributes
    ----------
    most_bytes
        Larger files are refused (trait, synchronised).
    """

    most_bytes = traitlets.Int(MOST_BYTES).tag(sync=True)

    def on_files(self, take: Callable[[Files, list[str]], object]) -> None:
        """Have ``take`` called with the files of one choice, name and content, and what was refused in words."""
        parts: list[tuple[str, list[bytes]]] = []  # two files may have one name, of different folders
        refused: list[str] = []

        def receive(_: Any, content: Any, buffers: Any) -> None:
            kind, name = content.get("kind"), str(content.get("name", "file"))
            if kind == "part":
                if not content.get("start") or not parts:
                    parts.append((name, []))
                parts[-1][1].append(bytes(buffers[0]) if buffers else b"")
            elif kind == "refused":
                if content.get("begun") and parts:
                    parts.pop()
                refused.append(f"{name!r} {content.get('why')}")
            elif kind == "end":
                files, messages = [(one, b"".join(held)) for one, held in parts], list(refused)
                parts.clear()
                refused.clear()
                take(files, messages)

        self.on_msg(receive)


class UploadButton(_TakesFiles):
    """A button by which files can be chosen.

    Attributes
    ----------
    label, hint
        What is written on it, and what appears on hovering (traits, synchronised).
    accept
        Endings of the files that the browser offers, ``".png,.jpg"`` (trait, synchronised).
    """

    _esm = _SEND_FILES + (_HERE / "upload_button.js").read_text("utf-8")
    label = traitlets.Unicode("upload").tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    accept = traitlets.Unicode().tag(sync=True)


class PatchPicker(_TakesFiles):
    """A picture with a grid of patches, on which files can be dropped.

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

    _esm = _SEND_FILES + (_HERE / "patch_picker.js").read_text("utf-8")
    src = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    grid = traitlets.List(traitlets.Int(), default_value=[1, 1]).tag(sync=True)
    row = traitlets.Int().tag(sync=True)
    column = traitlets.Int().tag(sync=True)
    side = traitlets.Int(320).tag(sync=True)
