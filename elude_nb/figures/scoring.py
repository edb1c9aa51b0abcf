"""Pictures of single scores: which factor each unit encodes, and the questions of an intruder test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elude_nb.checks import check_count, check_kind, check_whole
from elude_nb.figures.grids import square_thumbnail
from elude_nb.figures.theme import GREEN, INK, ORANGE, Picture, drawing, handed_over, house_style, sequential
from elude_nb.images import ImageSet, as_image_set
from elude_nb.scores.inputs import check_table
from elude_nb.scores.intruder import IntruderTrial


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
