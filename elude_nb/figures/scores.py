"""Bars and distributions: where contributions come from, and how scores lie before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elude_nb._util.checks import check_choice, check_count, check_kind, check_whole
from elude_nb.baselines.compare import HIGHER_IS_BETTER, Compared
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.data.images import ImageSet, as_image_set
from elude_nb.figures.images import square_thumbnail
from elude_nb.figures.theme import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    RED,
    SEQUENCE,
    SKY,
    Picture,
    drawing,
    handed_over,
    house_style,
    in_words,
    sequential,
)
from elude_nb.scores.inputs import check_table
from elude_nb.scores.intruder import IntruderTrial

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
    scores: pd.DataFrame, column: str = "top_similarity", *, axes: Axes | None = None
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
        place.set_xlabel(f"{in_words(column)} ({_reading(column)})")
        place.tick_params(axis="y", length=0)
        place.spines["left"].set_visible(False)
    means = ", ".join(f"{kind} {float(v.mean()):.2f}" for kind, v in zip(kinds, values, strict=True))
    return handed_over(place, axes, f"Distributions of {in_words(column)}; means: {means}")


def _reading(column: str) -> str:
    if column == "top_similarity":
        return "higher: a unit's best images are more alike"
    return "higher is better" if HIGHER_IS_BETTER.get(column, True) else "lower is better"


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
    score: str = "top_similarity",
    *,
    loss: str = "unexplained_variance",
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
        place.set_xlabel(f"{in_words(loss)} (0: the model is what it was)")
        place.set_ylabel(f"{in_words(score)} ({'higher' if HIGHER_IS_BETTER.get(score, True) else 'lower'} is better)")
        place.margins(y=0.08)
    said = ", ".join(f"{row['method']} {row[score]:.2f} at {row[loss]:.2f}" for _, row in table.iterrows())
    return handed_over(place, axes, f"{in_words(score)} against {in_words(loss)}: {said}")


def score_intervals(
    compared: Compared | pd.DataFrame,
    scores: Sequence[str] = ("top_similarity", "best_unit_precision", "redundancy"),
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
            low, high = table.get(f"{score}_low", table[score]), table.get(f"{score}_high", table[score])
            colours = [_colour(method) for method in table["method"]]
            place.hlines(places, low, high, colors=colours, linewidth=2)
            place.scatter(table[score], places, c=colours, s=28, zorder=3)
            arrow = "\u2192" if HIGHER_IS_BETTER.get(score, True) else "\u2190"
            place.set_title(f"{in_words(score)} {arrow}")
            place.grid(axis="x", color=FAINT, alpha=0.2)
            place.tick_params(axis="y", length=0)
        axes[0].set_yticks(places, [f"{m} ({int(u)})" for m, u in zip(table["method"], table["units"], strict=True)])
    best = table.iloc[-1]
    picture.alt = f"{', '.join(map(in_words, scores))} of {len(table)} methods; "
    picture.alt += f"highest {in_words(scores[0])}: {best['method']}"
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
    low, high = float(row.get(f"{score}_low", value)), float(row.get(f"{score}_high", value))
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
    ends = [table[column] for column in (score, f"{score}_low", f"{score}_high") if column in table]
    return float(max(end.max() for end in ends) - min(end.min() for end in ends)) or 1.0


@overload
def factor_heatmap(information: pd.DataFrame, count: int = ..., *, axes: None = None) -> Picture: ...
@overload
def factor_heatmap(information: pd.DataFrame, count: int = ..., *, axes: Axes) -> Axes: ...
def factor_heatmap(information: pd.DataFrame, count: int = 30, *, axes: Axes | None = None) -> Picture | Axes:
    """Show how much of each factor the units tell that tell most, as shares of the factor's entropy.

    Parameters
    ----------
    information
        Units by factors, from `elude_nb.scores.mutual_information` with ``normalised=True``.
    count
        How many units: those with the largest shares, each factor's beside each other.
    axes
        Where to draw; by default a new picture.
    """
    check_count("count", count)
    check_table("information", information)
    if not information.size:
        raise ValueError("information is empty; give the table of mutual_information.")
    home = information.to_numpy().argmax(1)
    best = pd.Series(information.to_numpy().max(1), index=information.index).nlargest(count).index
    order = sorted(best, key=lambda unit: (home[information.index.get_loc(unit)], -information.loc[unit].max()))
    shown = information.loc[order].T.to_numpy()
    with drawing(axes, (0.8 + 0.26 * len(order), 0.9 + 0.36 * information.shape[1])) as place:
        mesh = place.imshow(shown, cmap=sequential(), vmin=0, vmax=max(0.01, float(shown.max())), aspect="auto")
        place.set_yticks(range(information.shape[1]), [str(name) for name in information.columns])
        place.set_xticks(range(len(order)), [str(unit) for unit in order], rotation=90, fontsize=7)
        place.set_xlabel("unit")
        place.set_title("Share of each factor that a single unit tells")
        place.tick_params(length=0)
        place.figure.colorbar(mesh, ax=place, fraction=0.03, pad=0.02)
    alt = f"Shares of {information.shape[1]} factors told by {len(order)} units; the largest {shown.max():.2f}"
    return handed_over(place, axes, alt)


def trial_sheet(trials: Sequence[IntruderTrial], images: ImageSet, answers: Sequence[int] | None = None) -> Picture:
    """Show intruder trials, one a row; with answers, the intruder is framed, and the answer where it is wrong.

    Parameters
    ----------
    trials
        From `elude_nb.scores.make_trials`.
    images
        The images that they number.
    answers
        For each trial the place pointed at, from 0; without, nothing is given away.
    """
    images = as_image_set(images)
    if not len(trials):
        raise ValueError("There are no trials to show.")
    for trial in trials:
        check_kind("A trial", trial, IntruderTrial, "an IntruderTrial, from make_trials")
    answers = None if answers is None else [check_whole("answer", answer) for answer in answers]
    if answers is not None and len(answers) != len(trials):
        raise ValueError(f"{len(answers)} answers were given to {len(trials)} trials; give one each.")
    last = max(index for trial in trials for index in trial.images)
    if last >= len(images):
        raise ValueError(f"A trial shows image {last}, but there are only {len(images)}.")
    size = len(trials[0].images)
    with house_style():
        picture = Picture(figsize=(1.1 * size, 1.15 * len(trials)))
        axes = picture.subplots(len(trials), size, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
        for row, trial in enumerate(trials):
            for place, index in enumerate(trial.images):
                tile = axes[row, place]
                tile.imshow(np.asarray(square_thumbnail(images[index])))
                tile.set_xticks([])
                tile.set_yticks([])
                colour = None if answers is None else _frame(place, trial.intruder, answers[row])
                tile.spines[:].set_visible(colour is not None)
                tile.spines[:].set(color=colour or INK, linewidth=3)
            axes[row, 0].set_ylabel(f"unit {trial.unit}", fontsize=8)
    picture.alt = f"{len(trials)} intruder trials of {size} images"
    return picture


def _frame(place: int, intruder: int, answer: int) -> str | None:
    """Return the colour of an image's frame: green for the intruder, orange for a wrong answer."""
    return GREEN if place == intruder else ORANGE if place == answer else None
