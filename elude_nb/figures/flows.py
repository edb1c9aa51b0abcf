"""The re-routing as a flow: from blocks through their parts to the units of a channel."""

from __future__ import annotations

import html
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from elude_nb.checks import check_choice, check_count
from elude_nb.disentanglement import Disentanglement
from elude_nb.figures.plotly_theme import clear, dress
from elude_nb.figures.routes import COLUMNS, SAID, colour_of, routes_of, unit_name, units_in, usual_detail
from elude_nb.figures.theme import GREY, shade

_FLOW, _LINE, _SPACE, _MARGINS = 300, 13, 4, 56  # pixels: all that flows, a label, between nodes, above and below


def routing_sankey(
    split: Disentanglement,
    channel: int,
    *,
    by: str = "contribution",
    detail: str | None = None,
    most: int = 20,
    most_blocks: int = 12,
    shared: bool = False,
) -> Any:
    """Show the way of a channel's contributions as a plotly Sankey: blocks, their parts, sub-units, the channel.

    Widths are sums of absolute mean contributions on the sub-units' concepts (or numbers of sources): what a unit gets
    from many sources of both signs is as wide as all of them. The net sum stands in the text that shows while the
    pointer rests. What flows into a node flows out of it.

    Parameters
    ----------
    split, channel, by, shared
        As `routing_bars` takes them.
    detail
        ``"part"``: attention and MLP of each block; ``"head"``: its attention heads one by one; ``"source"``: single
        sources. By default parts where there are blocks, else sources.
    most
        At most so many places are shown, those that give most; the others are one node.
    most_blocks
        The same for blocks.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        If the channel was left alone, or there is no such channel, quantity or detail.

    Examples
    --------
    ``routing_sankey(split, 17, detail="head").write_html("channel17.html")``
    """
    import plotly.graph_objects as go

    column = COLUMNS[check_choice("by", by, COLUMNS)]
    detail = detail or usual_detail(split)
    table = routes_of(split, channel, detail, shared=shared)
    table = _with_others(table[table[column] > 0], column, check_count("most", most))
    table["start"] = _starts(table, column, check_count("most_blocks", most_blocks))
    units = units_in(table)
    unit_names = {unit: unit_name(split, channel, unit) for unit in units}
    table = table.assign(end=table["unit"].map(unit_names), net=table["contribution"], width=table[column])
    table = table.sort_values(["rest", "block", "part", "place", "unit"], key=_natural, kind="stable")
    nodes = _Nodes()
    flows: dict[tuple[int, int, int], np.ndarray[Any, Any]] = {}
    rows = zip(table["start"], table["place"], table["end"], table["unit"], table["width"], table["net"], strict=True)
    for start, source, end, unit, width, net in rows:
        way = [nodes.number(0, start), nodes.number(1, source), nodes.number(2, end, colour_of(units, unit))]
        way.append(nodes.number(3, f"channel {channel}"))
        nodes.grow(way, width)
        for one, other in pairwise(way):
            flows[one, other, unit] = flows.get((one, other, unit), 0) + np.array([width, net])
    x, y, pad, tall = nodes.laid_out()
    figure = go.Figure(
        go.Sankey(
            arrangement="fixed",
            node={
                "x": x,
                "y": y,
                "label": [html.escape(name) for name in nodes.names],
                "color": [shade(colour) for colour in nodes.colours],
                "pad": pad,
                "thickness": 14,
                "line": {"width": 0},
                "hovertemplate": f"%{{label}}<br>{SAID[by]}: %{{value:.3g}}<extra></extra>",
            },
            link={
                "source": [one for one, _, _ in flows],
                "target": [other for _, other, _ in flows],
                "value": [float(amount[0]) for amount in flows.values()],
                "color": [clear(colour_of(units, unit), 0.45) for _, _, unit in flows],
                "customdata": [
                    [html.escape(unit_names[unit]), "" if np.isnan(amount[1]) else f"<br>net sum {amount[1]:.3g}"]
                    for (_, _, unit), amount in flows.items()
                ],
                "hovertemplate": "%{source.label} to %{target.label}<br>for %{customdata[0]}: %{value:.3g}"
                "%{customdata[1]}<extra></extra>",
            },
        )
    )
    title = f"Channel {channel}: where its units come from <sub>(widths: {SAID[by]})</sub>"
    strongest = table.groupby("place")["width"].sum().idxmax()
    kind = "units" if shared else "sub-units"
    alt = f"Flow from {table['place'].nunique()} places to {len(units)} {kind} of channel {channel}; most: {strongest}"
    dressed = dress(figure, title=title, alt=alt, height=tall + _MARGINS)
    # Sankey labels have a glow of the other colour around them, which blurs them on either theme.
    return dressed.update_traces(textfont={"size": 11, "shadow": "none"})


class _Nodes:
    """Nodes of a Sankey in columns, in the order in which they come; a name may stand in several columns."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str], int] = {}
        self.names: list[str] = []
        self.colours: list[str] = []
        self._sizes: list[float] = []

    def number(self, column: int, name: str, colour: str = GREY) -> int:
        if (column, name) not in self._numbers:
            self._numbers[column, name] = len(self.names)
            self.names.append(name)
            self.colours.append(colour)
            self._sizes.append(0.0)
        return self._numbers[column, name]

    def grow(self, numbers: list[int], width: float) -> None:
        """Let something flow through these nodes."""
        for number in numbers:
            self._sizes[number] += width

    def laid_out(self) -> tuple[list[float | None], list[float | None], float, int]:
        """Return where the middle of each node lies, in shares of the width and the height; the pad; the height.

        plotly would put nodes so that links are short, in no order, and labels of thin ones on top of each other.
        Here blocks and places stand in their order, each with room for its label; units and the channel are left to
        plotly, which keeps their links from crossing. The pad makes it draw widths to the scale that this needs.
        """
        columns = [[n for (c, _), n in self._numbers.items() if c == column] for column in range(4)]
        scale = _FLOW / sum(self._sizes[n] for n in columns[0])
        rooms = [[max(scale * self._sizes[n], _LINE) + _SPACE for n in column] for column in columns]
        tall = max(sum(room) for room in rooms)
        x: list[float | None] = [None] * len(self.names)
        y = x.copy()
        for place, (column, room) in enumerate(zip(columns[:2], rooms[:2], strict=True)):
            ends = np.cumsum(room) + (tall - sum(room)) / 2
            for number, end, high in zip(column, ends, room, strict=True):
                x[number], y[number] = (0.012, 0.34)[place], float((end - high / 2) / tall)
        most = max(len(column) for column in columns)
        return x, y, (tall - _FLOW) / max(most - 1, 1), round(tall)


def _starts(table: pd.DataFrame, column: str, most: int) -> list[str]:
    """Return the first station of each row: its block, or its layer where there are no blocks."""
    given = table.groupby("block")[column].sum().sort_values(ascending=False)
    shown = set(given.index[:most])
    return [
        (f"block {block}" if block in shown else "other blocks") if block else str(layer)
        for block, layer in zip(table["block"], table["layer"], strict=True)
    ]


def _natural(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return keys by which ``"head 10 of 2"`` comes after ``"head 9 of 2"``."""
    if values.name != "place":
        return values
    return values.map(lambda text: re.sub(r"\d+", lambda found: f"{found[0]:>6}", text))


def _with_others(table: pd.DataFrame, column: str, most: int) -> pd.DataFrame:
    """Put all places but those that give most together as one; the column ``rest`` says which rows they are."""
    totals = table.groupby("place")[column].sum().sort_values(ascending=False)
    rest = ~table["place"].isin(totals.index[:most])
    return table.assign(place=table["place"].mask(rest, f"{len(totals) - most} others"), rest=rest)
