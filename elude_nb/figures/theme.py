"""One look for all pictures, and a figure that shows itself in a notebook with an alt text."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib as mpl
from matplotlib.colors import get_named_colors_mapping
from matplotlib.figure import Figure

from elude_nb.checks import check_choice

# These three are names that matplotlib looks up when something is drawn: each theme gives them its own colours.
INK, FAINT, PAPER = "elude:ink", "elude:faint", "elude:paper"
# Okabe and Ito: told apart by most colour-blind people too, on white and on black.
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

THEMES: dict[str, dict[str, str]] = {
    "light": {INK: "#222222", FAINT: "#767676", PAPER: "#FFFFFF"},
    "dark": {INK: "#E6E6E6", FAINT: "#9A9A9A", PAPER: "#111111"},
}
_theme: ContextVar[str] = ContextVar("theme", default="light")


def _look_up(colours: dict[str, Any]) -> dict[str, Any]:
    """Have matplotlib find these colours by name; return those that it found before."""
    known = get_named_colors_mapping()
    before = {name: known.get(name, value) for name, value in colours.items()}
    for name, value in colours.items():  # not update(), which would leave its cache of resolved names as it was
        known[name] = value
    return before


_look_up(THEMES["light"])  # for what is drawn outside of any block

_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
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
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "savefig.dpi": 130,
}


@contextmanager
def theme(name: str) -> Iterator[None]:
    """Draw pictures for light or for dark pages inside this block: ``with theme("dark"): before_after(exemplars)``.

    Raises
    ------
    ValueError
        If there is no such theme.
    """
    token = _theme.set(check_choice("theme", name, THEMES))
    try:
        yield
    finally:
        _theme.reset(token)


def current_theme() -> str:
    """Return the name of the theme in which pictures are drawn now."""
    return _theme.get()


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house's style inside this block; matplotlib's own settings are as before afterwards."""
    before = _look_up(THEMES[_theme.get()])
    try:
        with mpl.rc_context(_SETTINGS):
            yield
    finally:
        _look_up(before)


class Picture(Figure):
    """A matplotlib figure that shows itself as the last line of a notebook cell, with a text for those who cannot see.

    It is not registered with pyplot, so it is freed when nobody holds it. It keeps the theme in which it was made.
    """

    alt: str = ""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.theme = current_theme()
        super().__init__(*arguments, **settings)

    def png(self) -> bytes:
        """Return the picture as the bytes of a PNG file."""
        buffer = io.BytesIO()
        with theme(self.theme), house_style():
            self.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file; its ending (.png, .pdf, .svg) decides the format."""
        with theme(self.theme), house_style():
            self.savefig(path, bbox_inches="tight", pad_inches=0.08)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png()).decode("ascii")
        return f'<img alt="{html.escape(self.alt)}" style="max-width:100%" src="data:image/png;base64,{data}">'

    def __repr__(self) -> str:
        return f"Picture({self.alt!r})"
