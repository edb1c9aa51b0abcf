"""One look for all pictures, and a figure that shows itself in a notebook with an alt text."""

from __future__ import annotations

import base64
import html
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from elude_nb._util.checks import check_choice
from elude_nb._util.files import atomic_write
from elude_nb._util.words import as_text, one_line
from elude_nb.figures.fonts import FONT, choose_fonts

# For light pages the colours of Okabe and Ito, which most colour-blind people distinguish too. For dark pages the same
# hues, lighter: each has a contrast of 5 or more with the paper, so that text in it is readable.
_COLOURS = {
    "ink": ("#222222", "#E6E6E6"),
    "faint": ("#616161", "#9A9A9A"),
    "paper": ("#FFFFFF", "#111111"),
    "blue": ("#0072B2", "#2E96D6"),
    "orange": ("#E69F00", "#E69F00"),
    "green": ("#009E73", "#12B588"),
    "red": ("#D55E00", "#EC7426"),
    "sky": ("#56B4E9", "#8CCBF2"),
    "purple": ("#CC79A7", "#D68FB8"),
    "yellow": ("#B8A800", "#D3C832"),
    "grey": ("#999999", "#999999"),
}
THEMES = {
    name: {colour: codes[number] for colour, codes in _COLOURS.items()} for number, name in enumerate(("light", "dark"))
}
SEQUENCE = ("blue", "orange", "green", "red", "purple", "sky", "yellow")
_theme: ContextVar[str] = ContextVar("theme", default="light")

SETTINGS: dict[str, Any] = {
    "font.family": FONT,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": "faint",
    "axes.facecolor": "paper",
    "axes.labelcolor": "ink",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "text.color": "ink",
    "xtick.color": "faint",
    "ytick.color": "faint",
    "xtick.labelcolor": "ink",
    "ytick.labelcolor": "ink",
    "legend.frameon": False,
    # Names are drawn as they are: "$5 and $10" is no mathematics. Numbers then must not be written as such, either.
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "figure.facecolor": "paper",
    "savefig.facecolor": "paper",
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
    """Return a colour of the current theme by its name, ``"#RRGGBB"``; any other is returned as it is."""
    return THEMES[_theme.get()].get(colour, colour)


def nth_colour(number: int) -> str:
    """Return the colour of the n-th of several things, from 0, in the current theme; after seven they come again."""
    return shade(SEQUENCE[number % len(SEQUENCE)])


def diverging() -> Colormap:
    """Return the colours of values below (blue) and above (red) a middle that looks like the paper."""
    if current_theme() == "light":
        return mpl.colormaps["RdBu_r"]
    return LinearSegmentedColormap.from_list("dark", ("#8CCBF2", "#2E79B5", "#1B1B1B", "#C85A14", "#FFC08A"))


def sequential() -> Colormap:
    """Return the colours of values from nothing, which looks like the paper, to much."""
    if current_theme() == "light":
        return mpl.colormaps["Blues"]
    return LinearSegmentedColormap.from_list("dark", ("#1B1B1B", "#1F5F92", "#4FA8DE", "#D5EDFC"))


def readable_on(background: tuple[float, ...]) -> str:
    """Return the colour, near black or white, in which text is readable on a background (r, g, b, ...) in [0, 1]."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in background[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return THEMES["light"]["ink"] if luminance > 0.2 else "#FFFFFF"


def in_words(column: str) -> str:
    """Return the name of a column as pictures and pages write it: ``"top similarity"``."""
    return str(column).replace("_", " ")


def words(text: object, most: int = 60) -> str:
    """Return people's words, such as a label or a file's name, as pictures write them: one line, of ``most`` letters.

    Examples
    --------
    >>> words("a/long/way/to/the/picture 0001.png", 20)
    'a/long/way/to…01.png'
    """
    line = one_line(text)
    if len(line) > most:
        end = most // 3  # tells names of files apart
        line = f"{line[: most - end - 1]}…{line[-end:]}"
    # matplotlib leaves what begins with "_" out of legends: a space without width goes before it.
    return f"\u200b{line}" if line.startswith("_") else line


def words_for_plotly(text: object, most: int = 200) -> str:
    """Return people's words for a plotly figure, which reads some HTML, and mathematics between dollar signs."""
    return html.escape(words(text, most)).replace("$", "&#36;")


def house_style() -> Any:
    """Return a context in which matplotlib draws in the style of the current theme; afterwards it is as before."""
    settings: Any = {name: shade(value) if value in _COLOURS else value for name, value in SETTINGS.items()}
    return mpl.rc_context(settings)


class Picture(Figure):
    """A matplotlib figure that shows itself as the last line of a notebook cell, with an alt text.

    It is not registered with pyplot, so it is freed when nobody holds it. It keeps the theme in which it was made.
    """

    alt: str = ""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.theme = current_theme()
        super().__init__(*arguments, **settings)

    def add_box(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return new axes; all lengths are in inches, from the upper left corner of the picture."""
        wide, high = self.get_size_inches()
        return self.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))

    def png(self) -> bytes:
        """Return the picture as the bytes of a PNG file."""
        buffer = io.BytesIO()
        self._write(buffer, format="png")
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file (an atomic write); its ending (.png, .pdf, .svg) decides the format."""
        with atomic_write(path) as part:
            self._write(part)

    def _write(self, to: Any, **settings: Any) -> None:
        with theme(self.theme), house_style():  # ticks are made when they are drawn
            choose_fonts(self)
            with warnings.catch_warnings():  # those of choose_fonts say more
                warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
                self.savefig(to, bbox_inches="tight", pad_inches=0.08, **settings)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png()).decode("ascii")
        image = Markup('<img alt="{}" style="max-width:100%" src="data:image/png;base64,{}">')
        return str(image.format(as_text(self.alt), data))

    def __repr__(self) -> str:
        return f"Picture({self.alt!r})"


@contextmanager
def drawing(axes: Axes | None, figsize: tuple[float, float]) -> Iterator[Axes]:
    """Draw in the house's style on the axes given, or else on those of a new picture of a size in inches.

    Raises
    ------
    TypeError
        If ``axes`` are no axes.
    """
    if axes is not None and not isinstance(axes, Axes):
        raise TypeError(f"axes must be matplotlib Axes, such as those of plt.subplots(), not {type(axes).__name__}.")
    with house_style():
        yield Picture(figsize=figsize).subplots() if axes is None else axes


def finish(place: Axes, axes: Axes | None, alt: str) -> Any:
    """Return what was drawn: the axes given, or else the new picture, with its alt text."""
    if axes is not None:
        choose_fonts(axes)
        return axes
    picture: Any = place.figure
    picture.alt = alt
    return picture


FONTS = "DejaVu Sans, Verdana, sans-serif"


def plotly_template() -> Any:
    """Return the current theme as a `plotly.graph_objects.layout.Template`, for figures of your own."""
    import plotly.graph_objects as go

    ink, faint, paper = (shade(colour) for colour in ("ink", "faint", "paper"))
    lines = {
        "gridcolor": translucent("faint", 0.2),
        "linecolor": faint,
        "zerolinecolor": translucent("faint", 0.5),
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONTS, "size": 12, "color": ink},
            "title": {"x": 0.01, "xanchor": "left", "font": {"size": 15}},
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "colorway": [shade(colour) for colour in SEQUENCE],
            "hoverlabel": {"bgcolor": paper, "font": {"family": FONTS, "color": ink}, "bordercolor": faint},
            "legend": {"bgcolor": translucent("paper", 0.7)},
            "xaxis": lines,
            "yaxis": lines,
        }
    )


def dress(figure: Any, *, title: str, alt: str, height: int = 460) -> Any:
    """Give a plotly figure the colours and fonts of the current theme, a title and an alt text, and return it.

    The alt text is in ``figure.layout.meta["alt"]``. The width is left to the page.
    """
    figure.update_layout(
        template=plotly_template(),
        title={"text": title},
        height=height,
        margin={"l": 12, "r": 12, "t": 44, "b": 12},
        meta={"alt": alt},
    )
    return figure


def translucent(colour: str, opacity: float) -> str:
    """Return a colour, ``"#RRGGBB"`` or one of the theme's, that lets others shine through."""
    code = shade(colour)
    red, green, blue = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
