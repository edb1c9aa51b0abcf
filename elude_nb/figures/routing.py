"""The routing as bars and as a Sankey: which blocks, heads and MLPs, or which sources, feed which sub-unit."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from elude_nb._util.checks import check_choice, check_count, check_flag
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.figures.depth import HATCHES, name_part
from elude_nb.figures.theme import (
    SEQUENCE,
    drawing,
    dress,
    finish,
    nth_colour,
    shade,
    translucent,
    words,
    words_for_plotly,
)
from elude_nb.interpret.exemplars import REST
from elude_nb.interpret.profiles import route_table

_QUANTITIES = {
    "contribution": ("magnitude", "sum of absolute mean contributions"),
    "sources": ("sources", "number of sources"),
}


def routing_bars(
    split: Disentanglement,
    channel: int,
    *,
    by: str = "contribution",
    detail: str | None = None,
    max_places: int = 14,
    rest: bool = True,
    axes: Axes | None = None,
) -> Any:
    """Show how much of each place in the network goes to which sub-unit of a channel, as stacked bars.

    Parameters
    ----------
    split, channel
        A channel that was split.
    by
        ``"contribution"``: absolute mean contributions on the sub-units' concepts, summed; ``"sources"``: how many.
    detail
        ``"part"``: blocks in their order, attention and MLP side by side; ``"head"`` or ``"source"``: the places (heads
        and MLPs, or single sources) that give most, the largest first. By default parts where there are blocks, else
        sources.
    max_places
        How many places are shown with ``"head"`` or ``"source"``.
    rest
        Whether to show unit 0 too, in grey, where it has contributions. It has no concept: they are averaged over those
        of the channel.
    axes
        Where to draw; by default a new `Picture`.

    Returns
    -------
    Picture or Axes
        The new picture, or ``axes``.

    Raises
    ------
    ValueError
        If the channel was not split, or there is no such channel, quantity or detail.
    """
    table, detail, said = _find_routes(split, channel, by, detail, rest=rest)
    check_count("max_places", max_places)
    units = _units_of(table)
    looks: dict[int, dict[str, Any]] = {
        unit: {
            "color": _colour_of(units, unit),
            # The eighth sub-unit has the first one's colour and must look unlike it.
            "alpha": 0.95 if unit == 0 or units.index(unit) < len(SEQUENCE) else 0.5,
            "edgecolor": shade("paper"),
            "linewidth": 0.4,
        }
        for unit in units
    }
    by_block = detail == "part"
    height = 3.4 if by_block else 0.9 + 0.25 * min(max_places, table["place"].nunique())
    with drawing(axes, (8.4, height)) as place:
        if by_block:
            _draw_blocks(place, table, looks)
            place.set_ylabel(said.replace("absolute ", "absolute\n"))
        else:
            _draw_places(place, table, looks, max_places)
            place.set_xlabel(said)
        place.set_title(f"Channel {channel}: what each {'block' if by_block else 'place'} sends to which unit")
        place.grid(axis="y" if by_block else "x", color=shade("faint"), alpha=0.2)
        place.set_axisbelow(True)
        handles = [Patch(color=look["color"], alpha=look["alpha"]) for look in looks.values()]
        names = [_name_unit(split, channel, unit) for unit in units]
        beside: Any = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 9}
        place.legend(handles, names, title="goes to", title_fontsize=9, **beside)
    strongest = table.groupby("place")["width"].sum().idxmax()
    alt = f"Stacked bars: {said} by {detail} for {len(units)} units of channel {channel}; most from {strongest}."
    return finish(place, axes, alt)


def _find_routes(
    split: Disentanglement, channel: int, by: str, detail: str | None, *, rest: bool
) -> tuple[pd.DataFrame, str, str]:
    """Return the routes of a channel with the quantity as ``width``, the detail, and the quantity in words."""
    check_split(split)
    check_flag("rest", rest)
    column, said = _QUANTITIES[check_choice("by", by, _QUANTITIES)]
    detail = detail or ("part" if split.site.blocks else "source")
    table = route_table(split, channel, detail=detail)
    table = table if rest else table[table["unit"] > 0]
    return table.assign(width=table[column]), detail, said


def _units_of(table: pd.DataFrame) -> list[int]:
    return sorted(table["unit"].unique().tolist(), key=lambda unit: (unit == 0, unit))  # the rest comes last


def _colour_of(units: list[int], unit: int) -> str:
    return nth_colour(units.index(unit)) if unit else shade("grey")


def _name_unit(split: Disentanglement, channel: int, unit: int) -> str:
    """Return a unit's name with that of its concept: ``"sub-unit 3: concept 12"``."""
    if unit == 0:
        return REST
    concept = int(split.routing.concepts[channel, unit - 1])
    name = split.concept_title(concept) if concept != NO_CONCEPT else ""
    return f"sub-unit {unit}" + (f": {words(name)}" if name else "")


def _draw_blocks(place: Axes, table: pd.DataFrame, looks: dict[int, dict[str, Any]]) -> None:
    """Draw a stack of units for each part of each block."""
    amounts = table.pivot_table("width", ["part", "block"], "unit", aggfunc="sum", fill_value=0.0)
    blocks, parts = sorted(table["block"].unique().tolist()), sorted(table["part"].unique().tolist())
    width = 0.84 / len(parts)
    for number, part in enumerate(parts):
        heights = amounts.loc[part].reindex(blocks, fill_value=0.0)
        bottoms = heights[list(looks)].cumsum(axis=1) - heights[list(looks)]
        xs = np.array(blocks) + (number - (len(parts) - 1) / 2) * width
        for unit, look in looks.items():
            hatch = HATCHES[number % len(HATCHES)]
            place.bar(xs, heights[unit], width * 0.94, bottom=bottoms[unit], hatch=hatch, **look)
    place.set_xticks(blocks)
    said = ", ".join(f"{name_part(part)} {'hatched' if number else 'plain'}" for number, part in enumerate(parts))
    place.set_xlabel(f"block ({said})" if len(parts) > 1 else "block")


def _draw_places(place: Axes, table: pd.DataFrame, looks: dict[int, dict[str, Any]], most: int) -> None:
    """Draw a stack of units for each of the places that give most."""
    totals = table.groupby("place")["width"].sum().sort_values(ascending=False)
    names = totals.index[:most]
    widths = table.pivot_table("width", "place", "unit", aggfunc="sum", fill_value=0.0).loc[names, list(looks)]
    lefts = widths.cumsum(axis=1) - widths
    for unit, look in looks.items():
        place.barh(range(len(names)), widths[unit], 0.8, left=lefts[unit], **look)
    place.set_yticks(range(len(names)), [words(name) for name in names])
    place.invert_yaxis()
    place.tick_params(axis="y", length=0)
    if len(totals) > len(names):
        rest = f"and {len(totals) - len(names)} others, with {totals.iloc[most:].sum() / totals.sum():.0%} of all"
        place.text(0.99, 0.02, rest, transform=place.transAxes, ha="right", fontsize=9, color=shade("faint"))


_FLOW, _LINE, _SPACE, _MARGINS = 300, 13, 4, 56  # pixels: all that flows, a label, between nodes, above and below
_STEPS = ("start", "place", "end", "goal")  # columns of nodes: blocks, their parts, units, the channel


def routing_sankey(
    split: Disentanglement,
    channel: int,
    *,
    by: str = "contribution",
    detail: str | None = None,
    max_places: int = 20,
    max_blocks: int = 12,
    rest: bool = True,
) -> Any:
    """Show the way of a channel's contributions as a plotly Sankey: blocks, their parts, sub-units, the channel.

    Widths are sums of absolute mean contributions on the sub-units' concepts (or numbers of sources): what a unit gets
    from many sources of both signs is as wide as all of them. The net sum is in the text that appears on hovering.
    What flows into a node flows out of it.

    Parameters
    ----------
    split, channel, by, rest
        As `routing_bars` takes them.
    detail
        ``"part"``: attention and MLP of each block; ``"head"``: its attention heads one by one; ``"source"``: single
        sources. By default parts where there are blocks, else sources.
    max_places
        At most so many places are shown, those that give most; the others are one node.
    max_blocks
        The same for blocks.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        If the channel was not split, or there is no such channel, quantity or detail.

    Examples
    --------
    ``routing_sankey(split, 17, detail="head").write_html("channel17.html")``
    """
    import plotly.graph_objects as go

    table, detail, said = _find_routes(split, channel, by, detail, rest=rest)
    table = _merge_places(table[table["width"] > 0], check_count("max_places", max_places))
    table["start"] = _name_starts(table, check_count("max_blocks", max_blocks))
    units = _units_of(table)
    table["end"] = table["unit"].map({unit: _name_unit(split, channel, unit) for unit in units})
    table["goal"] = f"channel {channel}"
    table = table.sort_values(["merged", "block", "part", "place", "unit"], key=_natural, kind="stable")
    names = [list(dict.fromkeys(table[step])) for step in _STEPS]
    first = np.cumsum([0, *map(len, names)])
    numbers = {step: {name: first[i] + j for j, name in enumerate(names[i])} for i, step in enumerate(_STEPS)}
    unit_of = dict(zip(table["end"], table["unit"], strict=True))
    colours = [_colour_of(units, unit_of[name]) for name in names[2]]
    x, y, pad, tall = _lay_out(table)
    node = {
        "x": x,
        "y": y,
        "label": [words_for_plotly(name, 80) for column in names for name in column],
        "color": [shade("grey")] * first[2] + colours + [shade("grey")],
        "pad": pad,
        "thickness": 14,
        "line": {"width": 0},
        "hovertemplate": f"%{{label}}<br>{said}: %{{value:.3g}}<extra></extra>",
    }
    flows = _find_flows(table, numbers)
    net = ["" if np.isnan(amount) else f"<br>net sum {amount:.3g}" for amount in flows["contribution"]]
    link = {
        "source": flows["source"],
        "target": flows["target"],
        "value": flows["width"],
        "color": [translucent(_colour_of(units, unit), 0.45) for unit in flows["unit"]],
        "customdata": [[words_for_plotly(name), text] for name, text in zip(flows["end"], net, strict=True)],
        "hovertemplate": "%{source.label} to %{target.label}<br>for %{customdata[0]}: %{value:.3g}"
        "%{customdata[1]}<extra></extra>",
    }
    title = f"Channel {channel}: where its units come from <sub>(widths: {said})</sub>"
    strongest = table.groupby("place")["width"].sum().idxmax()
    kind = "units" if rest else "sub-units"
    alt = f"Flow from {len(names[1])} places to {len(units)} {kind} of channel {channel}; most: {strongest}"
    figure = dress(go.Figure(go.Sankey(arrangement="fixed", node=node, link=link)), title=title, alt=alt, height=tall)
    # Sankey labels have a glow of the other colour around them, which blurs them on either theme.
    return figure.update_traces(textfont={"size": 11, "shadow": "none"})


def _find_flows(table: pd.DataFrame, numbers: dict[str, dict[str, int]]) -> pd.DataFrame:
    """Return one row a link: what flows between two nodes for one unit."""
    found = []
    for one, other in pairwise(_STEPS):
        keys = list(dict.fromkeys([one, other, "unit", "end"]))
        flow = table.groupby(keys, sort=False)[["width", "contribution"]].sum(min_count=1).reset_index()
        found.append(flow.assign(source=flow[one].map(numbers[one]), target=flow[other].map(numbers[other])))
    return pd.concat(found, ignore_index=True)


def _lay_out(table: pd.DataFrame) -> tuple[list[float | None], list[float | None], float, int]:
    """Return where the middle of each node lies, in shares of the width and the height; the pad; the height.

    plotly would put nodes so that links are short, in no order, and labels of thin ones on top of each other. Here
    blocks and places are in their order, each with room for its label; units and the channel are left to plotly, which
    keeps their links from crossing. The pad makes it draw widths to the scale that this needs.
    """
    scale = _FLOW / table["width"].sum()
    sizes = [table.groupby(step, sort=False)["width"].sum().to_numpy() for step in _STEPS]
    rooms = [np.maximum(scale * size, _LINE) + _SPACE for size in sizes]
    tall, most = max(room.sum() for room in rooms), max(map(len, rooms))
    x: list[float | None] = []
    y: list[float | None] = []
    for room, across in zip(rooms, (0.012, 0.34, None, None), strict=True):
        middles = np.cumsum(room) - room / 2 + (tall - room.sum()) / 2
        x += [across] * len(room)
        y += [None if across is None else float(middle / tall) for middle in middles]
    return x, y, (tall - _FLOW) / max(most - 1, 1), round(tall) + _MARGINS


def _name_starts(table: pd.DataFrame, max_blocks: int) -> list[str]:
    """Return the first node of each row: its block, or its layer where there are no blocks."""
    totals = table.groupby("block")["width"].sum().sort_values(ascending=False)
    shown = set(totals.index[:max_blocks])
    return [
        (f"block {block}" if block in shown else "other blocks") if block else str(layer)
        for block, layer in zip(table["block"], table["layer"], strict=True)
    ]


def _natural(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return keys by which ``"head 10 of 2"`` comes after ``"head 9 of 2"``."""
    if values.name != "place":
        return values
    return values.map(lambda text: re.sub(r"\d+", lambda found: f"{found[0]:>6}", text))


def _merge_places(table: pd.DataFrame, max_places: int) -> pd.DataFrame:
    """Merge all places but those that give most into one; the column ``merged`` says which rows they are."""
    totals = table.groupby("place")["width"].sum().sort_values(ascending=False)
    merged = ~table["place"].isin(totals.index[:max_places])
    return table.assign(place=table["place"].mask(merged, f"{len(totals) - max_places} others"), merged=merged)
