"""The re-routing as bars: which blocks, attention heads and MLPs, or which single sources, feed which sub-unit."""

from __future__ import annotations

import html
import re
from itertools import pairwise
from typing import Any, overload

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from elude_nb._util.checks import check_choice, check_count, check_flag
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.figures.theme import FAINT, GREY, PAPER, SEQUENCE, Picture, clear, drawing, dress, handed_over, shade
from elude_nb.interpret.profiles import route_table

COLUMNS = {"contribution": "magnitude", "sources": "sources"}
SAID = {"contribution": "sum of absolute mean contributions", "sources": "number of sources"}
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")


@overload
def routing_bars(
    split: Disentanglement,
    channel: int,
    *,
    by: str = ...,
    detail: str | None = ...,
    most: int = ...,
    shared: bool = ...,
    axes: None = None,
) -> Picture: ...
@overload
def routing_bars(
    split: Disentanglement,
    channel: int,
    *,
    by: str = ...,
    detail: str | None = ...,
    most: int = ...,
    shared: bool = ...,
    axes: Axes,
) -> Axes: ...
def routing_bars(
    split: Disentanglement,
    channel: int,
    *,
    by: str = "contribution",
    detail: str | None = None,
    most: int = 14,
    shared: bool = False,
    axes: Axes | None = None,
) -> Picture | Axes:
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
    most
        How many places are shown with ``"head"`` or ``"source"``.
    shared
        Whether to show the shared unit too, in grey. It has no concept: its contributions are averaged over those of
        the channel.
    axes
        Where to draw; by default a new picture.

    Raises
    ------
    ValueError
        If the channel was left alone, or there is no such channel, quantity or detail.
    """
    column = COLUMNS[check_choice("by", by, COLUMNS)]
    detail = detail or usual_detail(split)
    table = routes_of(split, channel, detail, shared=shared)
    check_count("most", most)
    units = units_in(table)
    across = detail != "part"
    named = table["place"].nunique() if across else 0
    size = (8.4, 0.9 + 0.25 * min(most, named)) if across else (8.4, 3.4)
    with drawing(axes, size) as place:
        if across:
            _bars_by_place(place, table, units, column, most)
            place.set_xlabel(SAID[by])
        else:
            _bars_by_block(place, table, units, column)
            place.set_ylabel(SAID[by].replace("absolute ", "absolute\n"))
        place.set_title(f"Channel {channel}: what each {'place' if across else 'block'} sends to which unit")
        place.grid(axis="x" if across else "y", color=FAINT, alpha=0.2)
        place.set_axisbelow(True)
        handles = [Patch(color=colour_of(units, unit), alpha=_strength(units, unit)) for unit in units]
        legend: Any = place.legend(
            handles,
            [unit_name(split, channel, unit) for unit in units],
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            fontsize=8,
        )
        legend.set_title("goes to", prop={"size": 8})
    strongest = table.groupby("place")[column].sum().idxmax()
    alt = f"Stacked bars: {SAID[by]} by {detail} for {len(units)} units of channel {channel}; most from {strongest}."
    return handed_over(place, axes, alt)


def usual_detail(split: Disentanglement) -> str:
    """Return parts where there are blocks, else sources."""
    check_split(split)
    return "part" if split.site.blocks else "source"


def routes_of(split: Disentanglement, channel: int, detail: str, *, shared: bool) -> pd.DataFrame:
    """Return the `route_table` of a channel, the shared unit in it or not."""
    check_flag("shared", shared)
    table = route_table(split, channel, detail=detail)
    return table if shared else table[table["unit"] > 0]


def units_in(table: pd.DataFrame) -> list[int]:
    """Return the units of a table in their order."""
    return sorted(table["unit"].unique().tolist(), key=lambda unit: (unit == 0, unit))  # the shared one comes last


def colour_of(units: list[int], unit: int) -> str:
    """Return the colour of one of these units."""
    return GREY if unit == 0 else SEQUENCE[units.index(unit) % len(SEQUENCE)]


def unit_name(split: Disentanglement, channel: int, unit: int) -> str:
    """Return a unit's name with that of its concept: ``"sub-unit 3: concept 12"``."""
    if unit == 0:
        return "shared unit"
    concept = int(split.routing.concepts[channel, unit - 1])
    name = split.names.get(concept, "") or (f"concept {concept}" if concept >= 0 else "")
    return f"sub-unit {unit}" + (f": {name}" if name else "")


def _bars_by_block(place: Axes, table: pd.DataFrame, units: list[int], column: str) -> None:
    blocks, parts = sorted(table["block"].unique().tolist()), sorted(table["part"].unique().tolist())
    amounts = table.groupby(["unit", "part", "block"])[column].sum()
    width = 0.84 / len(parts)
    for number, part in enumerate(parts):
        base = np.zeros(len(blocks))
        for unit in units:
            heights = np.array([float(amounts.get((unit, part, block), 0.0)) for block in blocks])
            place.bar(
                np.array(blocks) + (number - (len(parts) - 1) / 2) * width,
                heights,
                width * 0.94,
                bottom=base,
                color=colour_of(units, unit),
                alpha=_strength(units, unit),
                hatch=_HATCHES[number % len(_HATCHES)],
                edgecolor=PAPER,
                linewidth=0.4,
            )
            base += heights
    place.set_xticks(blocks)
    said = ", ".join(
        f"{part.replace('mlp', 'MLP')} {'plain' if number == 0 else 'hatched'}" for number, part in enumerate(parts)
    )
    place.set_xlabel(f"block ({said})" if len(parts) > 1 else "block")


def _bars_by_place(place: Axes, table: pd.DataFrame, units: list[int], column: str, most: int) -> None:
    totals = table.groupby("place")[column].sum().sort_values(ascending=False)
    names = totals.index[:most].tolist()
    amounts = table.groupby(["unit", "place"])[column].sum()
    base = np.zeros(len(names))
    for unit in units:
        widths = np.array([float(amounts.get((unit, name), 0.0)) for name in names])
        look: Any = {"color": colour_of(units, unit), "alpha": _strength(units, unit), "edgecolor": PAPER}
        place.barh(range(len(names)), widths, 0.8, left=base, linewidth=0.4, **look)
        base += widths
    place.set_yticks(range(len(names)), names)
    place.invert_yaxis()
    place.tick_params(axis="y", length=0)
    if len(totals) > len(names):
        rest = f"and {len(totals) - len(names)} others, with {totals.iloc[most:].sum() / totals.sum():.0%} of all"
        place.text(0.99, 0.02, rest, transform=place.transAxes, ha="right", fontsize=8, color=FAINT)


def _strength(units: list[int], unit: int) -> float:
    """Return an opacity: the eighth sub-unit has the first one's colour and must look unlike it."""
    return 0.95 if unit == 0 or units.index(unit) < len(SEQUENCE) else 0.5


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
