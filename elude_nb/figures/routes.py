"""The re-routing itself: which blocks and parts feed which sub-unit of a channel."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from elude_nb.disentanglement import Disentanglement
from elude_nb.figures.plotly_theme import dress
from elude_nb.figures.theme import FAINT, PAPER, SEQUENCE, Picture, house_style
from elude_nb.profiles import part_table

_COLOURS = (*SEQUENCE, "#888888")  # eight, as many as a channel has sub-units by default
_HATCHES = ("", "////", "....", "xxxx")


def routing_bars(
    split: Disentanglement, channel: int, *, by: str = "contribution", axes: Axes | None = None
) -> Picture | Axes:
    """Show for each block how much of it goes to which sub-unit: stacked bars, the parts of a block side by side.

    Parameters
    ----------
    split, channel
        A channel that was split.
    by
        ``"contribution"``: absolute mean contributions on the sub-units' concepts; ``"sources"``: how many.
    axes
        Where to draw; by default a new picture, which is returned.
    """
    table = part_table(split, channel, by=by)
    columns: list[Any] = list(table.columns)
    blocks = sorted({int(block) for block, _ in columns})
    parts = sorted({str(part) for _, part in columns})
    width = 0.8 / len(parts)
    with house_style():
        picture = None
        if axes is None:
            picture = Picture(figsize=(8.4, 3.4))
            axes = picture.subplots()
        for number, part in enumerate(parts):
            places = np.array(blocks) + (number - (len(parts) - 1) / 2) * width
            base = np.zeros(len(blocks))
            for row, unit in enumerate(table.index):
                heights = np.array([float(table.loc[unit].get((block, part), 0.0)) for block in blocks])
                axes.bar(
                    places,
                    heights,
                    width * 0.94,
                    bottom=base,
                    color=_COLOURS[row % len(_COLOURS)],
                    alpha=1.0 if row < len(_COLOURS) else 0.5,
                    hatch=_HATCHES[number % len(_HATCHES)],
                    edgecolor=PAPER,
                    linewidth=0.4,
                    label=f"sub-unit {unit}" if number == 0 else None,
                )
                base += heights
        axes.set_xticks(blocks)
        beside = " and ".join(part.replace("mlp", "MLP") for part in parts)
        axes.set_xlabel(f"block ({beside}, side by side)" if len(parts) > 1 else "block")
        axes.set_ylabel("sum of |mean contribution|" if by == "contribution" else "sources")
        axes.set_title(f"Channel {channel}: what each block sends to which sub-unit")
        axes.grid(axis="y", color=FAINT, alpha=0.2)
        axes.set_axisbelow(True)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    if picture is None:
        return axes
    strongest: Any = table.sum().idxmax()
    picture.alt = (
        f"Stacked bars: contributions to {len(table)} sub-units of channel {channel} by block and part; "
        f"most come from {strongest[1]} of block {strongest[0]}."
    )
    return picture


def routing_sankey(split: Disentanglement, channel: int, *, most_blocks: int = 12) -> Any:
    """Show the way of a channel's contributions as a plotly Sankey: blocks, their parts, sub-units, the channel.

    Widths are absolute mean contributions on the sub-units' concepts; the shared unit has no concept and is left out.

    Parameters
    ----------
    split, channel
        A channel that was split.
    most_blocks
        At most so many blocks are shown, those that contribute most; the others are one node.

    Returns
    -------
    plotly.graph_objects.Figure
    """
    import plotly.graph_objects as go

    table = part_table(split, channel)
    strength = table.T.groupby(level="block").sum().sum(axis=1).sort_values(ascending=False)
    shown = {int(block) for block in strength.index[:most_blocks]}
    names: list[str] = []
    number: dict[tuple[str, str], int] = {}

    def node(column: str, name: str) -> int:
        if (column, name) not in number:
            number[column, name] = len(names)
            names.append(name)
        return number[column, name]

    flows: dict[tuple[int, int, int], float] = {}
    columns: list[Any] = sorted(table.columns)
    for block, part in columns:
        title = f"block {block}" if int(block) in shown else "other blocks"
        for row, unit in enumerate(table.index):
            amount = float(table.loc[unit, (block, part)])
            if amount <= 0:
                continue
            way = [node("block", title), node("part", str(part)), node("unit", _unit_name(split, channel, int(unit)))]
            for one, other in [*pairwise(way), (way[-1], node("channel", f"channel {channel}"))]:
                flows[one, other, row] = flows.get((one, other, row), 0.0) + amount
    links = {
        "source": [one for one, _, _ in flows],
        "target": [other for _, other, _ in flows],
        "value": list(flows.values()),
        "color": [_clear(_COLOURS[row % len(_COLOURS)]) for _, _, row in flows],
        "customdata": [_unit_name(split, channel, int(table.index[row])) for _, _, row in flows],
        "hovertemplate": "%{source.label} to %{target.label}<br>for %{customdata}: %{value:.3g}<extra></extra>",
    }
    nodes = {"label": names, "pad": 12, "thickness": 14, "color": "#888888"}
    figure = go.Figure(go.Sankey(node=nodes, link=links, arrangement="snap"))
    alt = f"Flow of contributions from {len(shown)} blocks to {len(table)} sub-units of channel {channel}"
    return dress(figure, title=f"Channel {channel}: where its sub-units come from (mean contributions)", alt=alt)


def _unit_name(split: Disentanglement, channel: int, unit: int) -> str:
    concept = int(split.routing.concepts[channel, unit - 1])
    name = split.names.get(concept, "")
    return f"sub-unit {unit}" + (f": {name}" if name else f" (concept {concept})" if concept >= 0 else "")


def _clear(colour: str) -> str:
    """Return a colour that lets others shine through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.45)"
