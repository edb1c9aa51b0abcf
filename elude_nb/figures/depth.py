"""Where contributions arise: by block and part, for sub-units of a channel and for a concept over all channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import Tensor

from elude_nb._util.checks import check_kind, check_whole
from elude_nb._util.words import counted
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.figures.theme import Picture, house_style, nth_colour, shade, words
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.profiles import depth_profile, places_of_sources, spatial_profile

HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")  # of parts


def draw_depth(place: Axes, table: pd.DataFrame, colour: str | None = None) -> None:
    """Draw contributions, one group of bars a row of the table (a block), one bar a column (a part of it).

    Parts have a colour each, or all ``colour``; then they differ by their hatch.
    """
    width = 0.8 / table.shape[1]
    for number, part in enumerate(table.columns):
        looks: Any = {"color": nth_colour(number)}
        if colour is not None:
            hatch = HATCHES[number % len(HATCHES)]
            looks = {"color": colour, "hatch": hatch, "alpha": 0.55 if hatch else 1.0, "edgecolor": shade("paper")}
        places = np.arange(len(table)) + (number - (table.shape[1] - 1) / 2) * width
        place.bar(places, table[part], width * 0.94, label=name_part(part), **looks)
    place.axhline(0, color=shade("faint"), linewidth=0.8)
    place.set_xticks(range(len(table)), [str(block) if block else "this layer" for block in table.index])
    place.margins(y=0.15)


def name_part(part: object) -> str:
    """Return the name of a part as pictures write it."""
    return words(part).replace("mlp", "MLP")


def contributions_by_block(split: Disentanglement, channel: int, units: Sequence[int]) -> Picture:
    """Show for sub-units of one channel in which blocks, and whether in attention or MLP, their contributions arise.

    Each bar is the sum of a branch's contributions, averaged over the tokens of the sub-unit's concept and taken
    above the overall mean. Unit 0 has no concept and is left out.
    """
    check_split(split)
    units = [unit for unit in (check_whole("unit", each) for each in units) if unit]
    if not units:
        raise ValueError("Name a sub-unit to show; there is none in units.")
    tables = [_depth_of_unit(split, channel, unit) for unit in units]
    with house_style():
        picture = Picture(figsize=(8.4, 0.5 + 0.85 * len(units)))
        axes = picture.subplots(len(units), 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.35})[:, 0]
        for number, (place, unit, table) in enumerate(zip(axes, units, tables, strict=True)):
            colour, concept = nth_colour(number), int(split.routing.concepts[channel, unit - 1])
            draw_depth(place, table, colour)
            name = f"sub-unit {unit}" + (
                f"\n{words(split.concept_title(concept), 24)}" if concept != NO_CONCEPT else ""
            )
            place.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, fontweight="bold")
        axes[-1].set_xlabel("block in which the contribution arises")
        axes[0].set_title(f"Channel {channel}: what each sub-unit is made of (mean contribution on its concept)")
        legend: Any = axes[0].legend(loc="upper left", ncols=2, fontsize=9, handlelength=1.2)
        for handle in legend.legend_handles:
            handle.set_facecolor(shade("faint"))
        picture.align_ylabels(axes)
    picture.alt = f"Bars of mean contributions by block for {counted(len(units), 'sub-unit')} of channel {channel}"
    return picture


def _depth_of_unit(split: Disentanglement, channel: int, unit: int) -> pd.DataFrame:
    """Return the contributions of a unit: one row a block, one column a part."""
    table = split.contributions(channel, unit)
    table["block"] = table["block"].fillna(0).astype(int)
    found = table.pivot_table("contribution", "block", "part", aggfunc="sum")
    blocks, parts, _ = places_of_sources(split)
    return found.reindex(index=blocks, columns=parts, fill_value=0.0).fillna(0.0)


def concept_profile(of: Gallery | Disentanglement, concept: int, *, maps: Tensor | None = None) -> Picture:
    """Show in which blocks a concept's contributions arise (left), and where in images it lies on the mean (right).

    Parameters
    ----------
    of
        A gallery with images that are ready, or a split.
    concept
        The concept.
    maps
        Its read-out at every patch of some images, (n, t); by default the gallery's. A split without maps is shown by
        its depth alone.

    Raises
    ------
    ValueError
        If there is no such concept, it has no sub-units, no image is ready, or the maps are of another shape.
    """
    check_kind("of", of, Gallery | Disentanglement, "a Gallery or a Disentanglement")
    split = of if isinstance(of, Disentanglement) else of.split
    table = depth_profile(split, concept)
    if isinstance(of, Gallery) and maps is None:
        if not len(of):
            raise ValueError("No image is ready; call .fill() first.")
        maps = of.concept_maps[..., concept]
    title = words(split.concept_title(concept, number=True), 75).capitalize()
    with house_style():
        picture = Picture(figsize=(8.4, 3.0))
        picture.alt = f"{title}: contributions by block, most from block {table.sum(axis=1).idxmax()}"
        if maps is None:
            place = picture.subplots()
        else:
            place, space = picture.subplots(1, 2, gridspec_kw={"width_ratios": [2.4, 1], "wspace": 0.12})
            picture.alt += _draw_space(picture, space, spatial_profile(split, maps).numpy(), len(maps))
        draw_depth(place, table)
        place.set_title(f"{title}, over all channels")
        place.set_xlabel("block in which the contribution arises" if len(table) > 1 else "")
        place.set_ylabel("contribution, in standard\ndeviations of the channels")
        if table.shape[1] > 1:
            place.legend(loc="best", fontsize=9)
    return picture


def _draw_space(picture: Picture, place: Axes, mean: np.ndarray[Any, Any], count: int) -> str:
    """Draw the mean of maps, (rows, columns), and return it in words."""
    shown = place.imshow(mean, cmap="cividis")
    place.set(xticks=[], yticks=[])
    place.spines[:].set_visible(False)
    place.set_title(f"where in the image:\nmean of {counted(count, 'image')}", loc="center", fontsize=9)
    bar: Any = picture.colorbar(shown, ax=place, shrink=0.8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9)
    bar.set_label("read-out", fontsize=9)
    row, column = np.unravel_index(mean.argmax(), mean.shape)
    return f"; mean over {counted(count, 'image')}, highest in row {row + 1}, column {column + 1} of {mean.shape}"
