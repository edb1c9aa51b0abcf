"""Methods beside each other: what a score gains against what the model loses, and scores with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elude_nb.checks import check_choice
from elude_nb.comparison import Compared
from elude_nb.figures.theme import BLUE, FAINT, GREY, INK, ORANGE, RED, SKY, Picture, drawing, handed_over, house_style
from elude_nb.scores.inputs import check_table
from elude_nb.tables import HIGHER_IS_BETTER

_COLOURS = {"sub-units": BLUE, "concepts": SKY, "random routes": ORANGE, "channels": GREY}


@overload
def tradeoff(
    compared: Compared | pd.DataFrame, score: str = ..., *, loss: str = ..., size: str = ..., axes: None = None
) -> Picture: ...
@overload
def tradeoff(
    compared: Compared | pd.DataFrame, score: str = ..., *, loss: str = ..., size: str = ..., axes: Axes
) -> Axes: ...
def tradeoff(
    compared: Compared | pd.DataFrame,
    score: str = "top similarity",
    *,
    loss: str = "unexplained variance",
    size: str = "equal",
    axes: Axes | None = None,
) -> Picture | Axes:
    """Plot a score against what is lost of the model when a method's reconstruction stands in for its activations.

    Methods on the grey line at the left lose nothing: the model runs as it is.

    Parameters
    ----------
    compared
        From `elude_nb.compare`, or tables of several put together.
    score, loss
        Columns of its table.
    size
        ``"equal"`` or ``"own"`` numbers of units.
    axes
        Where to draw; by default a new picture.
    """
    table = _rows(compared, size)
    for column in (score, loss):
        check_choice("column", column, [str(name) for name in table.columns])
    with drawing(axes, (7.6, 4.6)) as place:
        place.axvline(0, color=FAINT, linewidth=6, alpha=0.25, zorder=0)
        place.annotate("nothing is lost", (0, 1.01), xycoords=("data", "axes fraction"), color=FAINT, fontsize=8)
        place.set_xlim(*_limits(table[loss]))
        for side, rows in table.sort_values(score).groupby(table[loss] > 0):
            # Lossless methods stand above each other: their names are pushed apart and tied to their points.
            heights = rows[score] if side else _spread(rows[score], 0.05 * _range(table, score))
            for height, (_, row) in zip(heights, rows.iterrows(), strict=True):
                _point(place, row, score, loss, float(height))
        place.set_xlabel(f"{loss} (0: the model is what it was)")
        place.set_ylabel(f"{score} ({'higher' if HIGHER_IS_BETTER.get(score, True) else 'lower'} is better)")
        place.margins(y=0.08)
    said = ", ".join(f"{row['method']} {row[score]:.2f} at {row[loss]:.2f}" for _, row in table.iterrows())
    return handed_over(place, axes, f"{score} against {loss}: {said}")


def score_intervals(
    compared: Compared | pd.DataFrame,
    scores: Sequence[str] = ("top similarity", "best-unit precision", "redundancy"),
    *,
    size: str = "equal",
) -> Picture:
    """Show some scores of every method, a point and its 95 % interval each; the arrow says which way is better.

    Parameters
    ----------
    compared
        From `elude_nb.compare`.
    scores
        Columns of its table.
    size
        ``"equal"`` or ``"own"`` numbers of units.
    """
    table = _rows(compared, size)
    scores = list(scores)
    if not scores:
        raise ValueError("Name a score to show; there is none in scores=[].")
    for column in scores:
        check_choice("column", column, [str(name) for name in table.columns])
    table = table.sort_values(scores[0])
    places = np.arange(len(table))
    with house_style():
        picture = Picture(figsize=(2.6 + 2.3 * len(scores), 0.9 + 0.28 * len(table)))
        axes = picture.subplots(1, len(scores), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.12})[0]
        for place, score in zip(axes, scores, strict=True):
            low, high = table.get(f"{score} low", table[score]), table.get(f"{score} high", table[score])
            colours = [_colour(method) for method in table["method"]]
            place.hlines(places, low, high, colors=colours, linewidth=2)
            place.scatter(table[score], places, c=colours, s=28, zorder=3)
            arrow = "\u2192" if HIGHER_IS_BETTER.get(score, True) else "\u2190"
            place.set_title(f"{score} {arrow}")
            place.grid(axis="x", color=FAINT, alpha=0.2)
            place.tick_params(axis="y", length=0)
        axes[0].set_yticks(places, [f"{m} ({int(u)})" for m, u in zip(table["method"], table["units"], strict=True)])
    best = table.iloc[-1]
    picture.alt = f"{', '.join(scores)} of {len(table)} methods; highest {scores[0]}: {best['method']}"
    return picture


def _rows(compared: Compared | pd.DataFrame, size: str) -> pd.DataFrame:
    table = compared.table if isinstance(compared, Compared) else compared
    check_table("compared", table, "size", "method", "units")
    check_choice("size", size, sorted(set(table["size"])))
    return table[table["size"] == size].reset_index(drop=True)  # tables put together number their rows twice


def _colour(method: str) -> str:
    fitting = [colour for name, colour in _COLOURS.items() if method.startswith(name)]
    return fitting[0] if fitting else RED if "SAE" in method else FAINT


def _point(place: Axes, row: pd.Series[Any], score: str, loss: str, height: float) -> None:
    """Draw one method with its interval and its name."""
    colour, value, lost = _colour(str(row["method"])), float(row[score]), float(row[loss])
    low, high = float(row.get(f"{score} low", value)), float(row.get(f"{score} high", value))
    place.errorbar(lost, value, [[value - low], [high - value]], fmt="o", color=colour, capsize=3, markersize=6)
    left, right = place.get_xlim()
    place.annotate(
        f"{row['method']} ({int(row['units'])})",
        (lost, value),
        xytext=(lost + 0.03 * (right - left), height),
        va="center",
        fontsize=8,
        color=INK,
        arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4},
    )


def _spread(values: pd.Series[float], gap: float) -> list[float]:
    """Return sorted values pushed upwards until neighbours are at least ``gap`` apart, centred where they were."""
    heights: list[float] = []
    for value in values:
        heights.append(max(float(value), heights[-1] + gap) if heights else float(value))
    shift = (sum(heights) - float(values.sum())) / len(heights)
    return [height - shift for height in heights]


def _limits(losses: pd.Series[float]) -> tuple[float, float]:
    widest = max(float(losses.max()), 1e-3)
    return -0.06 * widest, 1.35 * widest


def _range(table: pd.DataFrame, score: str) -> float:
    ends = [table[column] for column in (score, f"{score} low", f"{score} high") if column in table]
    return float(max(end.max() for end in ends) - min(end.min() for end in ends)) or 1.0
