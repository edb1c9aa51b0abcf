"""The house's look for plotly figures; plotly is imported where one is drawn."""

from __future__ import annotations

from typing import Any

from elude_nb.figures.theme import FAINT, INK, PAPER, SEQUENCE, shade

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
