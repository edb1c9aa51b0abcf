"""The re-routing as bars: which blocks, attention heads and MLPs, or which single sources, feed which sub-unit."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from elude_nb.checks import check_choice, check_count, check_flag
from elude_nb.disentanglement import Disentanglement
from elude_nb.figures.theme import FAINT, GREY, PAPER, SEQUENCE, Picture, drawing, handed_over
from elude_nb.plans import check_split
from elude_nb.profiles import route_table

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
