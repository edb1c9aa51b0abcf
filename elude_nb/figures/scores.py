"""How scores lie before and after, methods beside each other, and what intruder trials look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elude_nb._util.checks import check_choice, check_count, check_kind, check_whole
from elude_nb.baselines.compare import Compared
from elude_nb.data.images import ImageSet, as_image_set
from elude_nb.figures.images import show_image, square_thumbnail
from elude_nb.figures.theme import Picture, drawing, finish, house_style, in_words, sequential, shade, words
from elude_nb.scores.inputs import check_table
from elude_nb.scores.intruder import IntruderTrial
from elude_nb.scores.verdict import HIGHER_IS_BETTER

_KINDS = {"channel": "grey", "random route": "orange", "sub-unit": "blue"}
_METHODS = {"sub-units": "blue", "concepts": "sky", "random routes": "orange", "channels": "grey",
            "signed rule": "blue", "ELUDe as published": "green", "random groups": "orange"}  # fmt: skip


def score_distributions(scores: pd.DataFrame, column: str = "top_similarity", *, axes: Axes | None = None) -> Any:
    """Show how a score is distributed over channels, random routes and sub-units, with the mean of each.

    Parameters
    ----------
    scores
        From `elude_nb.score`.
    column
        Which of its columns.
    axes
        Where to draw; by default a new `Picture`.

    Returns
    -------
    Picture or Axes
        The new picture, or ``axes``.

    Raises
    ------
    ValueError
        If there is no such column, or nothing in it.
    """
    _check_columns(scores, column)
    found = {kind: scores.loc[scores["kind"] == kind, column].dropna().to_numpy() for kind in _KINDS}
    found = {kind: values for kind, values in found.items() if len(values)}
    if not found:
        raise ValueError(f"{column!r} has no value for any of {list(_KINDS)}; choose another column.")
    with drawing(axes, (7.2, 0.7 + 0.75 * len(found))) as place:
        values = list(found.values())
        bodies: Any = place.violinplot(values, orientation="horizontal", widths=0.85, showextrema=False)["bodies"]
        for row, (kind, body) in enumerate(zip(found, bodies, strict=True), start=1):
            body.set(facecolor=shade(_KINDS[kind]), edgecolor="none", alpha=0.75)
            place.vlines(float(found[kind].mean()), row - 0.36, row + 0.36, color=shade("ink"), linewidth=1.8)
        names = [f"{kind}s\nmean {each.mean():.2f} of {len(each):,}" for kind, each in found.items()]
        place.set_yticks(range(1, len(found) + 1), names)
        top = column == "top_similarity"
        better = "higher: a unit's top images are more alike" if top else f"{_name_better(column)} is better"
        place.set_xlabel(f"{in_words(column)} ({better})")
        place.tick_params(axis="y", length=0)
        place.spines["left"].set_visible(False)
    means = ", ".join(f"{kind} {float(each.mean()):.2f}" for kind, each in found.items())
    return finish(place, axes, f"Distributions of {in_words(column)}; means: {means}")


def _check_columns(table: pd.DataFrame, *columns: str) -> None:
    for column in columns:
        check_choice("column", column, [str(name) for name in table.columns])


def _name_better(score: str) -> str:
    return "higher" if HIGHER_IS_BETTER.get(score, True) else "lower"


def tradeoff(
    compared: Compared | pd.DataFrame,
    score: str = "top_similarity",
    *,
    loss: str = "unexplained_variance",
    size: str = "equal",
    axes: Axes | None = None,
) -> Any:
    """Plot a score against what the model loses when a method's reconstruction replaces its activations.

    Methods on the grey line at the left lose nothing: the model runs as it is.

    Parameters
    ----------
    compared
        From `elude_nb.compare`, or tables of several put together.
    score, loss
        Columns of its table.
    size
        Which rows: one of `elude_nb.baselines.compare.SIZES`.
    axes
        Where to draw; by default a new `Picture`.

    Returns
    -------
    Picture or Axes
        The new picture, or ``axes``.
    """
    table = _rows_of(compared, size)
    _check_columns(table, score, loss)
    for end in ("low", "high"):
        table[end] = table.get(f"{score}_{end}", table[score])
    widest = max(float(table[loss].max()), 1e-3)
    with drawing(axes, (7.6, 4.6)) as place:
        place.axvline(0, color=shade("faint"), linewidth=6, alpha=0.25, zorder=0)
        where = (0, 1.01)
        place.annotate("nothing is lost", where, xycoords=("data", "axes fraction"), color=shade("faint"), fontsize=9)
        place.set_xlim(-0.06 * widest, 1.35 * widest)
        table = table.sort_values(score)
        table["height"] = table[score]  # of the name
        lossless = table[loss] <= 0
        extent = float(table["high"].max() - table["low"].min()) or 1.0
        table.loc[lossless, "height"] = _spread(table.loc[lossless, score], 0.05 * extent)
        for row in table.to_dict("records"):
            _draw_point(place, row, row[score], row[loss], 0.03 * 1.41 * widest)
        place.set_xlabel(f"{in_words(loss)} (0: the model is unchanged)")
        place.set_ylabel(f"{in_words(score)} ({_name_better(score)} is better)")
        place.margins(y=0.08)
    said = ", ".join(f"{row['method']} {row[score]:.2f} at {row[loss]:.2f}" for _, row in table.sort_index().iterrows())
    return finish(place, axes, f"{in_words(score)} against {in_words(loss)}: {said}")


def _draw_point(place: Axes, row: dict[Any, Any], value: float, lost: float, beside: float) -> None:
    """Draw one method with its interval, and its name beside it."""
    ends = [[value - row["low"]], [row["high"] - value]]
    place.errorbar(lost, value, ends, fmt="o", color=_colour_of(row["method"]), capsize=3, markersize=6)
    place.annotate(
        f"{words(row['method'])} ({int(row['units'])})",
        (lost, value),
        xytext=(lost + beside, row["height"]),
        va="center",
        fontsize=9,
        color=shade("ink"),
        arrowprops={"arrowstyle": "-", "color": shade("faint"), "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4},
    )


def _spread(values: pd.Series[float], gap: float) -> list[float]:
    """Return sorted values pushed upwards until neighbours are at least ``gap`` apart, centred where they were."""
    heights: list[float] = []
    for value in values:
        heights.append(max(float(value), heights[-1] + gap) if heights else float(value))
    shift = (sum(heights) - float(values.sum())) / max(len(heights), 1)
    return [height - shift for height in heights]


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
        Which rows: one of `elude_nb.baselines.compare.SIZES`.
    """
    table, scores = _rows_of(compared, size), list(scores)
    if not scores:
        raise ValueError("Name a score to show; there is none in scores=[].")
    _check_columns(table, *scores)
    table = table.sort_values(scores[0])
    places, colours = np.arange(len(table)), [_colour_of(method) for method in table["method"]]
    with house_style():
        picture = Picture(figsize=(2.6 + 2.3 * len(scores), 0.9 + 0.28 * len(table)))
        axes = picture.subplots(1, len(scores), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.12})[0]
        for place, score in zip(axes, scores, strict=True):
            low, high = table.get(f"{score}_low", table[score]), table.get(f"{score}_high", table[score])
            place.hlines(places, low, high, colors=colours, linewidth=2)
            place.scatter(table[score], places, c=colours, s=28, zorder=3)
            place.set_title(f"{in_words(score)} {'→' if _name_better(score) == 'higher' else '←'}")
            place.grid(axis="x", color=shade("faint"), alpha=0.2)
            place.locator_params(axis="x", nbins=4)  # numbers of many digits would run into each other
            place.tick_params(axis="y", length=0)
        axes[0].set_yticks(
            places, [f"{words(m)} ({int(u)})" for m, u in zip(table["method"], table["units"], strict=True)]
        )
    named = ", ".join(map(in_words, scores))
    best = f"highest {in_words(scores[0])}: {table.iloc[-1]['method']}"
    picture.alt = f"{named} of {len(table)} methods; {best}"
    return picture


def granularity_curve(
    table: pd.DataFrame, scores: Sequence[str] = ("ms_score", "best_unit_precision"), *, size: str = "own"
) -> Picture:
    """Show scores along the expansion factor, each point named by its smallest cluster, with 95 % intervals.

    Parameters
    ----------
    table
        From `elude_nb.baselines.granularity`.
    scores
        Which of its columns, a panel each.
    size
        Which rows: one of `elude_nb.baselines.compare.SIZES`.

    Raises
    ------
    ValueError
        If there is no such column or size.
    """
    check_table("table", table, "min_cluster_size", "expansion_factor", "size")
    check_choice("size", size, sorted(set(table["size"])))
    if not scores:
        raise ValueError("Name a score to show; there is none in scores=[].")
    _check_columns(table, *scores)
    rows = table[table["size"] == size].sort_values("expansion_factor")
    factors = rows["expansion_factor"].to_numpy()
    with house_style():
        picture = Picture(figsize=(6.4, 0.6 + 2.1 * len(scores)))
        axes = picture.subplots(len(scores), 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.28})[:, 0]
        for place, score in zip(axes, scores, strict=True):
            ends = [(rows[score] - rows.get(f"{score}_low", rows[score])).to_numpy(),
                    (rows.get(f"{score}_high", rows[score]) - rows[score]).to_numpy()]  # fmt: skip
            place.errorbar(factors, rows[score], ends, fmt="o-", color=shade("blue"), capsize=3, markersize=5)
            for x, y, least in zip(factors, rows[score], rows["min_cluster_size"], strict=True):
                place.annotate(f"{least:g}", (x, y), xytext=(4, 5), textcoords="offset points", fontsize=9)
            place.set_title(f"{in_words(score)} ({_name_better(score)} is better)")
            place.set_xscale("log")
            place.margins(x=0.08, y=0.2)
        shown = [f"{factor:.3g}" for factor in factors]
        axes[-1].set_xticks(factors, shown)
        axes[-1].minorticks_off()
        axes[-1].set_xlabel("sub-units a channel; at each point, the smallest cluster")
    said = ", ".join(f"{in_words(name)} {rows[name].iloc[0]:.2f} to {rows[name].iloc[-1]:.2f}" for name in scores)
    picture.alt = f"From {shown[0]} to {shown[-1]} sub-units a channel: {said}"
    return picture


def _rows_of(compared: Compared | pd.DataFrame, size: str) -> pd.DataFrame:
    table = compared.table if isinstance(compared, Compared) else compared
    check_table("compared", table, "size", "method", "units")
    check_choice("size", size, sorted(set(table["size"])))
    return table[table["size"] == size].reset_index(drop=True)  # tables put together number their rows twice


def _colour_of(method: str) -> str:
    fitting = [colour for name, colour in _METHODS.items() if method.startswith(name)]
    return shade(fitting[0] if fitting else "red" if "SAE" in method else "faint")


def factor_heatmap(information: pd.DataFrame, count: int = 30, *, axes: Axes | None = None) -> Any:
    """Show the units that tell most about any factor, and how much of each factor they tell: shares of its entropy.

    Parameters
    ----------
    information
        Units by factors, from `elude_nb.scores.mutual_information` with ``normalised=True``.
    count
        How many units: those with the largest shares, each factor's beside each other.
    axes
        Where to draw; by default a new `Picture`.

    Returns
    -------
    Picture or Axes
        The new picture, or ``axes``.
    """
    check_count("count", count)
    check_table("information", information)
    if not information.size:
        raise ValueError("information is empty; give the table of mutual_information.")
    best = information.loc[information.max(axis=1).nlargest(count).index]
    ranked = pd.DataFrame({"home": best.to_numpy().argmax(1), "most": -best.max(axis=1)}, index=best.index)
    shown = best.loc[ranked.sort_values(["home", "most"]).index].T
    with drawing(axes, (0.8 + 0.26 * shown.shape[1], 0.9 + 0.36 * len(shown))) as place:
        most = max(0.01, float(shown.to_numpy().max()))
        mesh = place.imshow(shown, cmap=sequential(), vmin=0, vmax=most, aspect="auto")
        place.set_yticks(range(len(shown)), [words(name) for name in shown.index])
        place.set_xticks(range(shown.shape[1]), [words(unit) for unit in shown.columns], rotation=90, fontsize=9)
        place.set_xlabel("unit")
        place.set_title("Share of each factor that a single unit tells")
        place.tick_params(length=0)
        place.figure.colorbar(mesh, ax=place, fraction=0.03, pad=0.02)
    largest = shown.to_numpy().max()
    alt = f"Shares of {len(shown)} factors told by {shown.shape[1]} units; the largest {largest:.2f}"
    return finish(place, axes, alt)


def trial_sheet(trials: Sequence[IntruderTrial], images: ImageSet, answers: Sequence[int] | None = None) -> Picture:
    """Show intruder trials, one a row; with answers, the intruder is framed, and the answer where it is wrong.

    Parameters
    ----------
    trials
        From `elude_nb.scores.make_trials`.
    images
        The images that they number.
    answers
        For each trial the place that was chosen, from 0; without, nothing is given away.
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
            for number, index in enumerate(trial.images):
                colour = None
                if answers is not None and number in {trial.intruder, answers[row]}:
                    colour = shade("green" if number == trial.intruder else "orange")
                show_image(axes[row, number], square_thumbnail(images[index]), frame=colour)
                axes[row, number].spines[:].set_linewidth(3)
            axes[row, 0].set_ylabel(f"unit {trial.unit}", fontsize=9)
    picture.alt = f"{len(trials)} intruder trials of {size} images"
    return picture
