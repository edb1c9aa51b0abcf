"""The house's look for plotly figures; plotly is imported where one is drawn."""

from __future__ import annotations

from typing import Any

from elude_nb.figures.theme import FAINT, INK, PAPER, SEQUENCE, THEMES, current_theme


def dress(figure: Any, *, title: str, alt: str, height: int = 460) -> Any:
    """Give a plotly figure the colours and fonts of the current theme, a title and a text for who cannot see it.

    The text stands in ``figure.layout.meta["alt"]``.
    """
    colours = THEMES[current_theme()]
    figure.update_layout(
        title={"text": title, "x": 0, "xanchor": "left", "font": {"size": 15}},
        font={"family": "DejaVu Sans, Verdana, sans-serif", "size": 12, "color": colours[INK]},
        paper_bgcolor=colours[PAPER],
        plot_bgcolor=colours[PAPER],
        colorway=list(SEQUENCE),
        height=height,
        margin={"l": 12, "r": 12, "t": 44, "b": 12},
        hoverlabel={"bgcolor": colours[PAPER], "font": {"color": colours[INK]}, "bordercolor": colours[FAINT]},
        meta={"alt": alt},
    )
    return figure
