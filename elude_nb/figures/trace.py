"""ELUDe on one channel, step by step, in one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from elude_nb._util.checks import check_count, check_kind
from elude_nb.figures.theme import SEQUENCE, Picture, diverging, house_style, nth_colour, sequential, shade
from elude_nb.interpret.trace import ChannelTrace

_MOST_INSTANCES = 400  # rows of the table of cosines that are drawn


def channel_steps(trace: ChannelTrace, *, max_sources: int = 24, max_units: int = 12) -> Picture:
    """Show the four things that ELUDe makes of one channel: its instances, their clusters, the shares, the sub-units.

    Parameters
    ----------
    trace
        From `elude_nb.interpret.trace_channel`.
    max_sources
        How many sources have their shares shown: those that contribute most on average.
    max_units
        How many sub-units are shown, the largest clusters first.

    Raises
    ------
    ValueError
        If the channel was not split.
    """
    check_kind("trace", trace, ChannelTrace, "a ChannelTrace, from trace_channel(...)")
    check_count("max_sources", max_sources)
    check_count("max_units", max_units)
    if not trace.units.shape[1]:
        raise ValueError(f"Channel {trace.channel} was {trace.reason}; there is nothing to draw. Take another channel.")
    with house_style():
        picture = Picture(figsize=(9.2, 7.0))
        places = picture.subplots(2, 2, gridspec_kw={"wspace": 0.38, "hspace": 0.42}).flat
        _draw_instances(places[0], trace)
        _draw_clusters(places[1], trace)
        _draw_shares(places[2], trace, max_sources, max_units)
        _draw_units(places[3], trace, max_units)
        picture.text(0.02, 1, f"Channel {trace.channel}, step by step", fontsize=12, fontweight="bold", va="top")
    n, k = trace.units.shape
    noise = int((trace.groups < 0).sum())
    picture.alt = (
        f"Channel {trace.channel}: {n} instances of {len(trace.values)} tokens, in {k} clusters, {noise} outside all; "
        f"shares of {trace.shares.shape[1]} sources; the sub-units add up to the channel to {trace.largest_gap:.1g}."
    )
    return picture


def _draw_instances(place: Axes, trace: ChannelTrace) -> None:
    n = len(trace.contributions)
    place.plot(trace.values.numpy(), color=shade("grey"), linewidth=1.2)
    place.fill_between(np.arange(n), trace.values[:n].numpy(), color=shade("blue"), alpha=0.35)
    place.set_title(f"1. Instances: the {n:,} highest of {len(trace.values):,} tokens")
    place.set_xlabel("tokens, the highest first")
    place.set_ylabel("channel")


def _draw_clusters(place: Axes, trace: ChannelTrace) -> None:
    order = torch.where(trace.groups < 0, len(trace.shares), trace.groups).argsort(stable=True)
    order = order[torch.linspace(0, len(order) - 1, min(len(order), _MOST_INSTANCES)).round().long()]
    directions = torch.nn.functional.normalize(trace.contributions[order], dim=1)
    place.imshow((directions @ directions.T).numpy(), cmap=sequential(), vmin=0, vmax=1, interpolation="nearest")
    for edge in (trace.groups[order].diff() != 0).nonzero().flatten().tolist():
        for draw in (place.axhline, place.axvline):
            draw(edge + 0.5, color=shade("paper"), linewidth=0.6)
    noise = int((trace.groups < 0).sum())
    place.set_title(f"2, 3. Contributions: cosines, {len(trace.shares)} clusters")
    place.set_xlabel(f"instances by cluster; the last, {noise:,}, are outside all")
    place.set(xticks=[], yticks=[])


def _draw_shares(place: Axes, trace: ChannelTrace, max_sources: int, max_units: int) -> None:
    strongest = trace.contributions.abs().mean(0).topk(min(max_sources, trace.shares.shape[1])).indices
    shares = trace.shares[:, strongest].numpy()  # (k, c)
    rows = {str(unit + 1): row for unit, row in enumerate(shares[:max_units])}
    if len(shares) > max_units:
        rows["others"] = shares[max_units:].sum(0)
    places, bottom = np.arange(len(strongest)), np.zeros(len(strongest))
    for unit, (name, row) in enumerate(rows.items()):
        colour = shade("grey") if name == "others" else nth_colour(unit)
        opacity = 0.5 if len(SEQUENCE) <= unit < max_units else 1.0  # the eighth has the first one's colour
        place.bar(places, row, bottom=bottom, color=colour, alpha=opacity, width=0.85, label=name)
        bottom += row
    beside: Any = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 9, "title_fontsize": 9}
    place.legend(title="sub-unit", **beside)
    place.set_title(f"4. Shares of the {len(strongest)} strongest sources")
    place.set_xlabel("source")
    place.set_xticks(places, [str(source) for source in strongest.tolist()], rotation=90, fontsize=9)
    place.set_ylabel("shares")
    place.set_ylim(0, 1)


def _draw_units(place: Axes, trace: ChannelTrace, max_units: int) -> None:
    k = min(max_units, trace.units.shape[1])
    means = torch.stack([trace.units[trace.groups == group, :k].mean(0) for group in range(k)]).numpy()  # (k, k)
    limit = float(np.abs(means).max()) or 1.0
    drawn = place.imshow(means.T, cmap=diverging(), vmin=-limit, vmax=limit)
    place.set_title("5. Sub-units on each cluster")
    place.set_xlabel(f"cluster\nsum of the sub-units less the channel: {trace.largest_gap:.1g} at most")
    place.set_ylabel("sub-unit")
    names = [str(unit + 1) for unit in range(k)]
    place.set_xticks(range(k), names, fontsize=9)
    place.set_yticks(range(k), names, fontsize=9)
    place.figure.colorbar(drawn, ax=place, fraction=0.046, label="mean")
