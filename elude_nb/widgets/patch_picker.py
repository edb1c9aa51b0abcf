"""PatchPicker: a picture on which a patch is chosen by click or arrow keys, and onto which an image can be dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

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

    _esm = Path(__file__).with_suffix(".js")
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
