"""Bars and distributions: where contributions come from, and how scores lie before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elude_nb.checks import check_choice, check_whole
from elude_nb.disentanglement import Disentanglement
from elude_nb.figures.theme import (
    BLUE,
    FAINT,
    GREY,
    INK,
    ORANGE,
    PAPER,
    SEQUENCE,
    Picture,
    drawing,
    handed_over,
    house_style,
)
from elude_nb.plans import check_split
from elude_nb.tables import HIGHER_IS_BETTER

_KINDS = {"channel": GREY, "random route": ORANGE, "sub-unit": BLUE}


def contributions_by_block(split: Disentanglement, channel: int, units: Sequence[int]) -> Picture:
    """Show for sub-units of one channel in which blocks, and whether in attention or MLP, their contributions arise.

    Each bar is the sum of a branch's contributions, averaged over the tokens of the sub-unit's concept and taken
    above the overall mean.
    """
    check_split(split)
    units = [check_whole("unit", unit) for unit in units]
    if not units:
        raise ValueError("Name a unit to show; there is none in units=[].")
    tables = {unit: split.contributions(channel, unit) for unit in units}
    blocks = sorted({int(block) for table in tables.values() for block in table["block"].dropna()}) or [0]
    with house_style():
        picture = Picture(figsize=(8.4, 0.5 + 0.85 * len(units)))
        axes = picture.subplots(len(units), 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.35})[:, 0]
        for number, (place, (unit, table)) in enumerate(zip(axes, tables.items(), strict=True)):
            sums = table.assign(block=table["block"].fillna(0).astype(int)).groupby(["part", "block"])
            totals = sums["contribution"].sum()
            colour = SEQUENCE[number % len(SEQUENCE)]
            for shift, (part, hatch, alpha) in enumerate(_parts(table)):
                heights = [float(totals.get((part, block), 0.0)) for block in blocks]
                place.bar(
                    np.array(blocks) + (shift - 0.5) * 0.4,
                    heights,
                    width=0.38,
                    color=colour,
                    alpha=alpha,
                    hatch=hatch,
                    edgecolor=PAPER,
                    label=part.replace("mlp", "MLP"),
                )
            place.axhline(0, color=FAINT, linewidth=0.8)
            concept = int(split.routing.concepts[channel, unit - 1])
            name = f"sub-unit {unit}" + (f"\nconcept {concept}" if concept >= 0 else "")
            place.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, fontweight="bold")
            place.margins(y=0.15)
        axes[-1].set_xticks(blocks)
        axes[-1].set_xlabel("block in which the contribution arises")
        axes[0].set_title(f"Channel {channel}: what each sub-unit is made of (mean contribution on its concept)")
        axes[0].legend(loc="upper left", ncols=2, fontsize=8, handlelength=1.2)
        _grey_legend(axes[0].get_legend())
        picture.align_ylabels(axes)
    picture.alt = f"Bars of mean contributions by block for {len(units)} sub-units of channel {channel}"
    return picture


def _parts(table: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Return each part of the site with its hatch and opacity."""
    looks = [("", 1.0), ("////", 0.55)]
    parts = list(dict.fromkeys(table["part"].sort_values()))
    return [(part, *look) for part, look in zip(parts, looks, strict=False)]


def _grey_legend(legend: object) -> None:
    for handle in getattr(legend, "legend_handles", []):
        handle.set_facecolor(FAINT)


@overload
def score_distributions(scores: pd.DataFrame, column: str = ..., *, axes: None = None) -> Picture: ...
@overload
def score_distributions(scores: pd.DataFrame, column: str = ..., *, axes: Axes) -> Axes: ...
def score_distributions(
    scores: pd.DataFrame, column: str = "top similarity", *, axes: Axes | None = None
) -> Picture | Axes:
    """Show how a score is distributed over channels, random routes and sub-units, with the mean of each.

    Parameters
    ----------
    scores
        From `elude_nb.score`.
    column
        Which of its columns.
    axes
        Where to draw; by default a new picture.

    Raises
    ------
    ValueError
        If there is no such column, or nothing in it.
    """
    check_choice("column", column, [str(name) for name in scores.columns])
    kinds = [kind for kind in _KINDS if scores.loc[scores["kind"] == kind, column].notna().any()]
    if not kinds:
        raise ValueError(f"{column!r} has no value for any of {list(_KINDS)}; choose another column.")
    values = [scores.loc[scores["kind"] == kind, column].dropna().to_numpy() for kind in kinds]
    with drawing(axes, (7.2, 0.7 + 0.75 * len(kinds))) as place:
        bodies: Any = place.violinplot(values, orientation="horizontal", widths=0.85, showextrema=False)["bodies"]
        for row, (kind, body, found) in enumerate(zip(kinds, bodies, values, strict=True), start=1):
            body.set(facecolor=_KINDS[kind], edgecolor="none", alpha=0.75)
            mean = float(found.mean())
            place.vlines(mean, row - 0.36, row + 0.36, color=INK, linewidth=1.8)
        names = [f"{kind}s\nmean {v.mean():.2f} of {len(v):,}" for kind, v in zip(kinds, values, strict=True)]
        place.set_yticks(range(1, len(kinds) + 1), names)
        place.set_xlabel(f"{column} ({_reading(column)})")
        place.tick_params(axis="y", length=0)
        place.spines["left"].set_visible(False)
    means = ", ".join(f"{kind} {float(v.mean()):.2f}" for kind, v in zip(kinds, values, strict=True))
    return handed_over(place, axes, f"Distributions of {column}; means: {means}")


def _reading(column: str) -> str:
    if column == "top similarity":
        return "higher: a unit's best images are more alike"
    return "higher is better" if HIGHER_IS_BETTER.get(column, True) else "lower is better"
