"""One look for all pictures, and a figure that shows itself in a notebook with an alt text."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, get_named_colors_mapping
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from elude_nb._util.checks import check_choice
from elude_nb._util.files import atomic_write

# Names that matplotlib looks up when something is drawn: each theme gives them its own colours.
INK, FAINT, PAPER = "elude:ink", "elude:faint", "elude:paper"
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, GREY = (
    "elude:blue",
    "elude:orange",
    "elude:green",
    "elude:red",
    "elude:sky",
    "elude:purple",
    "elude:yellow",
    "elude:grey",
)
SEQUENCE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW)

THEMES: dict[str, dict[str, str]] = {
    # Okabe and Ito: told apart by most colour-blind people too.
    "light": {
        INK: "#222222",
        FAINT: "#767676",
        PAPER: "#FFFFFF",
        BLUE: "#0072B2",
        ORANGE: "#E69F00",
        GREEN: "#009E73",
        RED: "#D55E00",
        SKY: "#56B4E9",
        PURPLE: "#CC79A7",
        YELLOW: "#B8A800",
        GREY: "#999999",
    },
    # The same hues, lighter: each has a contrast of 5 or more with the paper, so that words in them are read.
    "dark": {
        INK: "#E6E6E6",
        FAINT: "#9A9A9A",
        PAPER: "#111111",
        BLUE: "#2E96D6",
        ORANGE: "#E69F00",
        GREEN: "#12B588",
        RED: "#EC7426",
        SKY: "#8CCBF2",
        PURPLE: "#D68FB8",
        YELLOW: "#D3C832",
        GREY: "#999999",
    },
}
# Below the mean, at it, above it; and from nothing to much. What is nothing looks like paper.
_DARK_MAPS = {
    "diverging": ("#8CCBF2", "#2E79B5", "#1B1B1B", "#C85A14", "#FFC08A"),
    "sequential": ("#1B1B1B", "#1F5F92", "#4FA8DE", "#D5EDFC"),
}
_theme: ContextVar[str] = ContextVar("theme", default="light")


def _name_colours(colours: Mapping[str, str]) -> None:
    """Give the names their colours one by one: `dict.update` would leave matplotlib's cache of colours as it was."""
    known = get_named_colors_mapping()
    for name, value in colours.items():
        known[name] = value


_name_colours(THEMES["light"])  # for what is drawn outside of any block

SETTINGS: Any = {
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


def shade(colour: str) -> str:
    """Return one of the house's colours in the current theme, ``"#RRGGBB"``; any other is returned as it is."""
    return THEMES[_theme.get()].get(colour, colour)


def diverging() -> Colormap:
    """Return the colours of values below (blue) and above (red) a middle that looks like the paper."""
    return mpl.colormaps["RdBu_r"] if current_theme() == "light" else _dark_map("diverging")


def sequential() -> Colormap:
    """Return the colours of values from nothing, which looks like the paper, to much."""
    return mpl.colormaps["Blues"] if current_theme() == "light" else _dark_map("sequential")


def readable_on(background: tuple[float, ...]) -> str:
    """Return the colour, near black or white, in which words are read best on a background (r, g, b, ...) in [0, 1]."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in background[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return THEMES["light"][INK] if luminance > 0.2 else "#FFFFFF"


def in_words(column: str) -> str:
    """Return the name of a column as pictures and pages write it: ``"top similarity"``."""
    return str(column).replace("_", " ")


def _dark_map(name: str) -> Colormap:
    return LinearSegmentedColormap.from_list(f"elude dark {name}", _DARK_MAPS[name])


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house's style inside this block; matplotlib's own settings are as before afterwards."""
    known = get_named_colors_mapping()
    before = {name: cast("str", known[name]) for name in THEMES["light"]}
    _name_colours(THEMES[_theme.get()])
    try:
        with mpl.rc_context(SETTINGS):
            yield
    finally:
        _name_colours(before)


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
        """Write the picture to a file, whole or not at all; its ending (.png, .pdf, .svg) decides the format."""
        with theme(self.theme), house_style(), atomic_write(path) as part:
            self.savefig(part, bbox_inches="tight", pad_inches=0.08)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png()).decode("ascii")
        image = Markup('<img alt="{}" style="max-width:100%" src="data:image/png;base64,{}">')
        return str(image.format(self.alt, data))

    def __repr__(self) -> str:
        return f"Picture({self.alt!r})"


@contextmanager
def drawing(axes: Axes | None, figsize: tuple[float, float]) -> Iterator[Axes]:
    """Draw in the house's style on the axes that somebody gave, or else on those of a new picture.

    Parameters
    ----------
    axes
        Where to draw, or ``None``.
    figsize
        Width and height of a new picture in inches.

    Raises
    ------
    TypeError
        If ``axes`` are no axes.
    """
    if axes is not None and not isinstance(axes, Axes):
        raise TypeError(f"axes must be matplotlib Axes, such as those of plt.subplots(), not {type(axes).__name__}.")
    with house_style():
        yield Picture(figsize=figsize).subplots() if axes is None else axes


def handed_over(place: Axes, axes: Axes | None, alt: str) -> Picture | Axes:
    """Return what was drawn: the new picture with its alt text, or the axes that somebody gave."""
    picture: Any = place.figure
    if axes is None:
        picture.alt = alt
        return cast("Picture", picture)
    if not isinstance(picture, Picture):
        # Words and lines look their colours up only when they are drawn; in a figure of somebody's own that may be
        # in no theme, or in another.
        for artist in place.findobj(lambda found: isinstance(found, Text | Line2D)):
            colour = cast("Text | Line2D", artist).get_color()
            if isinstance(colour, str) and colour in THEMES["light"]:
                cast("Text | Line2D", artist).set_color(shade(colour))
    return axes


FONTS = "DejaVu Sans, Verdana, sans-serif"


def plotly_template() -> Any:
    """Return the current theme as a `plotly.graph_objects.layout.Template`, for figures of your own."""
    import plotly.graph_objects as go

    ink, faint, paper = (shade(colour) for colour in (INK, FAINT, PAPER))
    lines = {"gridcolor": clear(FAINT, 0.2), "linecolor": faint, "zerolinecolor": clear(FAINT, 0.5), "automargin": True}
    return go.layout.Template(
        layout={
            "font": {"family": FONTS, "size": 12, "color": ink},
            "title": {"x": 0.01, "xanchor": "left", "font": {"size": 15}},
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "colorway": [shade(colour) for colour in SEQUENCE],
            "hoverlabel": {"bgcolor": paper, "font": {"family": FONTS, "color": ink}, "bordercolor": faint},
            "legend": {"bgcolor": clear(PAPER, 0.7)},
            "xaxis": lines,
            "yaxis": lines,
        }
    )


def dress(figure: Any, *, title: str, alt: str, height: int = 460) -> Any:
    """Give a plotly figure the colours and fonts of the current theme, a title and a text for who cannot see it.

    The text stands in ``figure.layout.meta["alt"]``. The width is left to the page.
    """
    figure.update_layout(
        template=plotly_template(),
        title={"text": title},
        height=height,
        margin={"l": 12, "r": 12, "t": 44, "b": 12},
        meta={"alt": alt},
    )
    return figure


def clear(colour: str, opacity: float) -> str:
    """Return a colour, ``"#RRGGBB"`` or one of the house's, that lets others shine through."""
    code = shade(colour)
    red, green, blue = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
