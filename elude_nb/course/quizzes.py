"""Exercise 7: the intruder quiz in pairs, and what its answers show."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from elude_nb.course.answers import Right, check_choice_of, check_function, check_numbers, need
from elude_nb.errors import AnswerError
from elude_nb.interpret.quiz import CHANNEL, KINDS, SUB_UNIT, share_of

Z = 1.959964


def check_chance(chance: object, size: int) -> Right:
    """Check how often guessing finds the one odd image of ``size``."""
    return check_numbers(
        chance,
        1 / size,
        "A kind of unit says something only if people are right more often than this.",
        mistakes={
            "That is one of two; how many images does a question show?": 0.5,
            "That is how often guessing is wrong.": 1 - 1 / size,
            "That is in percent; give a share of 1.": 100 / size,
            "There are as many places for the odd image as images.": 1 / (size - 1),
        },
    )


def check_right_shares(shares: Any, answers: pd.DataFrame) -> Right:
    """Check how often answers were right, a number for each kind of unit: a dictionary, or a column by kind."""
    need(shares)
    try:
        given = [shares[kind] for kind in KINDS]
    except (KeyError, TypeError, IndexError):
        raise AnswerError(f"A number for each of the kinds {KINDS} is asked for.") from None
    grouped = answers.groupby("kind")["right"]
    right = grouped.mean()[list(KINDS)]
    return check_numbers(
        given,
        right,
        "Channels and sub-units were mixed, so nobody knew which was asked about.",
        mistakes={
            "The two kinds are the wrong way round.": right[::-1],
            "That is how many were right; divide by how many there are of each kind.": grouped.sum()[list(KINDS)],
            "You have divided by the number of all answers; each kind has its own.": grouped.sum()[list(KINDS)]
            / len(answers),
            "Those are the shares of wrong answers.": 1 - right,
        },
    )


def check_wilson(function: object) -> Right:
    """Check a function of right answers and their number that returns Wilson's 95 % interval."""

    def wilson(right: int, count: int) -> list[float]:
        found = share_of(right, count)
        return [found.low, found.high]

    def wald(right: int, count: int) -> list[float]:
        p = right / count
        half = Z * (p * (1 - p) / count) ** 0.5
        return [p - half, p + half]

    def of(z: float) -> Any:
        def interval(right: int, count: int) -> list[float]:
            p = right / count
            centre, half = p + z**2 / (2 * count), z * (p * (1 - p) / count + z**2 / (4 * count**2)) ** 0.5
            return [(centre - half) / (1 + z**2 / count), (centre + half) / (1 + z**2 / count)]

        return interval

    def undivided(right: int, count: int) -> list[float]:
        return [end * (1 + Z**2 / count) for end in wilson(right, count)]

    return check_function(
        function,
        [(7, 10), (10, 10), (3, 24)],
        wilson,
        "Even 10 of 10 leave a good deal open, and the interval stays between 0 and 1.",
        shape="the lower and the upper end",
        places=2e-3,
        mistakes={
            "That is p plus and minus 1.96 standard errors; with 10 of 10 it has no width.": wald,
            "The factor is 1.96 for 95 %, and yours is that of 90 %.": of(1.644854),
            "The division at the end is missing.": undivided,
        },
    )


def check_paired(differences: Any, answers: pd.DataFrame) -> Right:
    """Check for each channel how much more often its sub-unit's question was answered rightly, a column by channel."""
    need(differences)
    table = answers.pivot_table(index="channel", columns="kind", values="right", aggfunc="mean")
    by_channel = hasattr(differences, "reindex") and set(differences.index) == set(table.index)
    given = differences.reindex(table.index) if by_channel else differences
    return check_numbers(
        given,
        table[SUB_UNIT] - table[CHANNEL],
        "Each channel is compared with its own sub-unit, on the same players.",
        shape="one number for each channel",
        mistakes={
            "The sign is turned round: positive is to mean that the sub-unit was easier.": table[CHANNEL]
            - table[SUB_UNIT],
            "Those are the sub-units alone.": table[SUB_UNIT],
            "Those are the channels alone.": table[CHANNEL],
        },
    )


def _sign_flip(differences: Any, *, sides: int = 2, count_itself: bool = True) -> float:
    values = np.asarray(differences, dtype=float)
    seen = values.mean()
    means = np.array([(values * signs).mean() for signs in product((1, -1), repeat=len(values))])
    at_least = means >= seen - 1e-12 if sides == 1 else np.abs(means) >= abs(seen) - 1e-12
    return float((at_least.sum() - (0 if count_itself else 1)) / len(means))


def check_sign_flip(function: object) -> Right:
    """Check a function of differences (m,): the share of all 2^m ways to flip their signs with a mean as large."""
    cases = [([0.5, 0.25, 0.0, 0.75, 0.5],), ([0.2, -0.3, 0.4, 0.1],), ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0],)]
    return check_function(
        function,
        cases,
        _sign_flip,
        "If sub-units and channels were equally easy, each sign could as well have been the other one.",
        shape="one number",
        mistakes={
            "That is one-sided: a mean as far below 0 counts as well.": lambda v: _sign_flip(v, sides=1),
            "What was seen is one of the ways, and counts.": lambda v: _sign_flip(v, count_itself=False),
            "That is how many ways there are; divide by all of them.": lambda v: _sign_flip(v) * 2 ** len(v),
            "Those are the ways that are less extreme.": lambda v: 1 - _sign_flip(v),
        },
    )


def check_kappa(kappa: object, answers: pd.DataFrame) -> Right:
    """Check how far two players chose the same images beyond chance: Cohen's kappa of what they chose."""
    table = answers.pivot_table(index="question", columns="player", values="answer").dropna().astype(int)
    first, second = table.iloc[:, 0], table.iloc[:, 1]
    seen = float((first == second).mean())
    size = int(table.to_numpy().max()) + 1
    chance = float(sum((first == place).mean() * (second == place).mean() for place in range(size)))
    return check_numbers(
        kappa,
        (seen - chance) / (1 - chance),
        "1 is full agreement, 0 what two guessers would reach. It says nothing about who is right.",
        mistakes={
            "That is how often the two agree; take away what they would by chance.": seen,
            "Chance is taken away, and the rest is not divided by what was possible beyond chance.": seen - chance,
            "Chance is taken as one half; it follows from how often each chose each place.": (seen - 0.5) / 0.5,
            "Chance is taken as one place of all; it follows from how often each chose each place.": (
                (seen - 1 / size) / (1 - 1 / size)
            ),
        },
    )


def check_why_mixed(answer: object) -> Right:
    """Check why questions about channels and about sub-units are mixed."""
    return check_choice_of(
        answer,
        "c",
        "Whoever knows the kind may try harder for it.",
        {
            "a": "Practice helps with both kinds, and an order could be turned round; mixing does more than that.",
            "b": "There are as many of each kind in any order.",
        },
    )


def practice_answers(pairs: int = 8, *, seed: int = 0) -> pd.DataFrame:
    """Return answers of two players that a computer made up, to analyse where no class has answered yet.

    They are **not** of people: each player finds the odd image with a fixed probability, 0.55 for channels and 0.85 for
    sub-units. The columns are those of `elude_nb.interpret.quiz.Quiz.results`.

    Parameters
    ----------
    pairs
        How many channels, each with a sub-unit.
    seed
        Of what is drawn.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(2 * pairs):
        kind = KINDS[number % 2]
        intruder = int(rng.integers(5))
        for player in ("made up 1", "made up 2"):
            right = bool(rng.random() < (0.85 if kind == SUB_UNIT else 0.55))
            answer = intruder if right else int((intruder + rng.integers(1, 5)) % 5)
            rows.append(
                {
                    "player": player, "round": 1, "question": number + 1, "kind": kind, "channel": 7 * (number // 2),
                    "unit": 1 if kind == SUB_UNIT else None, "answer": answer, "intruder": intruder, "right": right,
                    "seconds": 5.0, "crop": 0.45,
                }
            )  # fmt: skip
    from elude_nb.interpret.quiz import as_table

    return as_table(rows)
