"""What a class answered to the intruder quiz."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elude_nb._util.checks import check_fraction
from elude_nb._util.words import counted
from elude_nb.figures.theme import drawing, finish, shade
from elude_nb.interpret.quiz import KINDS, SUB_UNIT, class_result

_NAMES = {kind: f"{'' if kind == SUB_UNIT else 'whole '}{kind}s" for kind in KINDS}


def quiz_result(answers: pd.DataFrame, *, chance: float = 0.2, axes: Axes | None = None) -> Any:
    """Show how often a class found the odd image, for whole channels and for sub-units, with 95 % intervals.

    A dot is a player, a thin line joins both kinds of one player. Intervals are over the questions, as
    `elude_nb.interpret.quiz.class_result` has them.

    Parameters
    ----------
    answers
        Rows of `elude_nb.interpret.quiz.Quiz.results` of one or more players, as `elude_nb.course.class_answers` reads
        them.
    chance
        How often a guess is right: 1 in as many images as a question shows.
    axes
        Where to draw; by default a new `Picture`.

    Returns
    -------
    Picture or Axes

    Raises
    ------
    ValueError
        If there is no answer.
    """
    check_fraction("chance", chance)
    if not len(answers):
        raise ValueError("There are no answers to show.")
    found = class_result(answers)
    players = answers.pivot_table(index="player", columns="kind", values="right").reindex(columns=list(KINDS))
    spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(players))
    with drawing(axes, (5.2, 3.6)) as place:
        for shift, row in zip(spread, players.to_numpy(), strict=True):
            place.plot(np.arange(2) + shift, 100 * row, "o-", color=shade("grey"), lw=0.6, ms=4, alpha=0.6)
        for number, kind in enumerate(KINDS):
            share = found.shares[kind]
            if share.count:
                ends = 100 * np.array([[share.mean - share.low], [share.high - share.mean]])
                colour = shade("blue") if kind == SUB_UNIT else shade("orange")
                place.errorbar(number, 100 * share.mean, ends, fmt="s", ms=9, lw=2.5, capsize=5, color=colour)
                place.text(number + 0.2, 100 * share.mean, f"{100 * share.mean:.0f} %", va="center", fontsize=11)
        place.axhline(100 * chance, color=shade("ink"), ls="--", lw=1)
        place.text(1.45, 100 * chance + 1.5, "guessing", ha="right", fontsize=9)
        place.set_xticks(range(2), [_NAMES[kind] for kind in KINDS])
        place.set(xlim=(-0.5, 1.5), ylim=(0, 104), ylabel="% found the odd image")
        place.set_title(f"{counted(found.people, 'player')}, {counted(found.answers, 'answer')}", fontsize=11)
    said = ", ".join(f"{_NAMES[kind]} {share}" for kind, share in found.shares.items() if share.count)
    return finish(place, axes, f"How often the odd image was found: {said}. {found}")
