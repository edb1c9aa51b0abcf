"""One look for all pictures, and a figure that shows itself in a notebook with an alt text."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito: told apart by most colour-blind people too.
INK = "#222222"
FAINT = "#767676"
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#B8A800",
)
SEQUENCE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW)

_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 130,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house's style inside this block; matplotlib's own settings are as before afterwards."""
    with mpl.rc_context(_SETTINGS):
        yield


class Picture(Figure):
    """A matplotlib figure that shows itself as the last line of a notebook cell, with a text for those who cannot see.

    It is not registered with pyplot, so it is freed when nobody holds it.
    """

    alt: str = ""

    def png(self) -> bytes:
        """Return the picture as the bytes of a PNG file."""
        buffer = io.BytesIO()
        with house_style():
            self.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file; its ending (.png, .pdf, .svg) decides the format."""
        with house_style():
            self.savefig(path, bbox_inches="tight", pad_inches=0.08)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png()).decode("ascii")
        return f'<img alt="{html.escape(self.alt)}" style="max-width:100%" src="data:image/png;base64,{data}">'

    def __repr__(self) -> str:
        return f"Picture({self.alt!r})"
