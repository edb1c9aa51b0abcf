"""The intruder test for people: questions about whole channels and about sub-units of the same channels, mixed.

Questions are those that `elude_nb.scores` asks an embedding; here people answer them, without being told which kind of
unit a question is about.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from elude_nb._util.checks import check_count, check_kind
from elude_nb._util.files import atomic_write
from elude_nb.interpret.gallery import Gallery
from elude_nb.scores.intervals import Interval, difference_interval, mean_interval
from elude_nb.scores.intruder import IntruderTrial, guess_by_embedding, make_trials

CHANNEL, SUB_UNIT = "channel", "sub-unit"
KINDS = (CHANNEL, SUB_UNIT)
_TRIED = 64  # channels are looked at for a question to practise with
_BEST = 10  # images of a unit that questions are drawn from, as in the automatic test; of few images, a tenth
_TYPES = {"round": "int64", "question": "int64", "channel": "int64", "unit": "Int64", "answer": "int64"}
_TYPES |= {"intruder": "int64", "right": "bool", "seconds": "float64", "crop": "float64"}
_COLUMNS = ["player", "round", "question", "kind", *list(_TYPES)[2:]]


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes
    ----------
    kind
        ``"channel"`` or ``"sub-unit"``.
    channel, unit
        What it is about; ``unit`` is ``None`` for a whole channel.
    trial
        The images and the intruder; its ``unit`` is the channel's number, so that `elude_nb.scores.grade` goes by
        channel.
    patches
        The patch of each image at which the unit is most active, counted row by row.
    """

    kind: str
    channel: int
    unit: int | None
    trial: IntruderTrial
    patches: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """How many of some answers were right, with the 95 % interval of Wilson (1927).

    Attributes
    ----------
    right, count
        Right answers, and all.
    low, high
        The interval; NaN without answers.
    """

    right: int
    count: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Return the share of right answers, in [0, 1]; NaN without answers."""
        return self.right / self.count if self.count else float("nan")

    def __str__(self) -> str:
        if not self.count:
            return "no answers yet"
        return f"{self.right} of {self.count} right, {self.share:.2f} [{self.low:.2f}, {self.high:.2f}]"


_Both = tuple[Question, Question]


def share_of(right: int, count: int) -> Share:
    """Return right answers out of ``count`` with their interval.

    Examples
    --------
    >>> print(share_of(7, 10))
    7 of 10 right, 0.70 [0.40, 0.89]
    """
    from scipy.stats import binomtest

    check_count("right", right, 0, check_count("count", count, 0))
    if not count:
        return Share(0, 0, float("nan"), float("nan"))
    interval = binomtest(right, count).proportion_ci(confidence_level=0.95, method="wilson")
    return Share(right, count, float(interval.low), float(interval.high))


def make_questions(
    gallery: Gallery,
    *,
    per_kind: int = 10,
    size: int = 5,
    seed: int = 0,
    units: Sequence[tuple[int, int]] | None = None,
) -> tuple[Question, ...]:
    """Draw channels, one sub-unit of each, a question about either, and mix them.

    Sub-units are distinct ones (`Disentanglement.distinct_units`), so that a meaning that many channels share is not
    asked about again and again; the channels of these are asked about. Others follow where there are too few.
    Activations of images are the largest over their patches; a sub-unit that is low on its concept is turned round.
    A unit's top-activating images are ten, as in the automatic test, or a tenth of fewer than a hundred.

    Parameters
    ----------
    gallery
        Its images that are ready are asked about.
    per_kind
        How many questions about channels, and as many about sub-units.
    size
        Images of a question; chance is 1 in ``size``.
    seed
        Of all that is drawn.
    units
        Sub-units, (channel, number), to ask about instead of drawing any; beside each of their channels.

    Raises
    ------
    TypeError, ValueError
        If a setting is out of range, there are too few images, or not enough units raise enough of them.
    """
    check_kind("gallery", gallery, Gallery, "a Gallery of images")
    check_count("per_kind", per_kind)
    check_count("size", size, 3)
    n = len(gallery)
    if n < 2 * (size - 1):
        raise ValueError(f"Questions of {size} images need {2 * (size - 1)} images to draw from; {n} are ready.")
    state = [int(word) for word in np.random.SeedSequence(check_count("seed", seed, 0)).generate_state(3)]
    rng = np.random.default_rng(state[0])
    asked = _draw(gallery, per_kind, size, state, rng) if units is None else _choose(gallery, list(units), size, state)
    questions = list(dict.fromkeys(question for both in asked for question in both))  # a channel's once
    return tuple(questions[place] for place in rng.permutation(len(questions)))


def clearest_question(gallery: Gallery, *, size: int = 5, seed: int = 0, leave_out: Sequence[int] = ()) -> Question:
    """Return a question to practise with: whose intruder differs most from the other images, by the model's outputs.

    It is about a sub-unit, of 64 channels at most.

    Parameters
    ----------
    gallery, size, seed
        As in `make_questions`.
    leave_out
        Channels that it is not about, unless there are no others.

    Raises
    ------
    TypeError, ValueError
        As in `make_questions`.
    """
    state = [int(word) for word in np.random.SeedSequence([check_count("seed", seed, 0), 1]).generate_state(3)]
    pairs = _one_a_channel(gallery, np.random.default_rng(state[0]))
    others = [pair for pair in pairs if pair[0] not in set(leave_out)]
    asked = (_ask(gallery, some[:_TRIED], size, state) for some in (others, pairs) if some)
    questions = [part for _, part in next(filter(None, asked), {}).values()]
    if not questions:
        raise ValueError(f"No sub-unit raises enough of the {len(gallery)} images for a question; take more images.")
    directions = torch.nn.functional.normalize(gallery.outputs - gallery.outputs.mean(0), dim=1)

    def clear(question: Question) -> float:
        shown = directions[list(question.trial.images)]
        alike, odd, others = shown @ shown.T, question.trial.intruder, size - 1
        to_odd = (float(alike[odd].sum()) - 1) / others
        among = float(alike.sum()) - size - 2 * others * to_odd  # each of them once as a row and once as a column
        return among / (others * (others - 1)) - to_odd

    return max(questions, key=clear)


def _one_a_channel(gallery: Gallery, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return a sub-unit of each split channel, (channel, number), in a random order; distinct ones come first."""
    order: dict[int, int] = {}
    for table in (gallery.split.distinct_units(), gallery.split.live_units):
        numbers = table[~table["channel"].isin(list(order))].groupby("channel")["unit"].agg(list)
        order |= {int(channel): int(rng.choice(numbers[channel])) for channel in rng.permutation(numbers.index)}
    return list(order.items())


def _draw(gallery: Gallery, per_kind: int, size: int, state: list[int], rng: np.random.Generator) -> list[_Both]:
    pairs, found = _one_a_channel(gallery, rng), list[_Both]()
    step = max(2 * per_kind, 8)
    for start in range(0, len(pairs), step):  # twice as many as are needed are mostly enough
        found += _ask(gallery, pairs[start : start + step], size, state).values()
        if len(found) >= per_kind:
            return found[:per_kind]
    raise ValueError(
        f"Only {len(found)} of {len(pairs)} split channels raise enough of the {len(gallery)} images for a question, "
        f"themselves and by their sub-unit; per_kind={per_kind} asks for more. Take fewer, or more images."
    )


def _choose(gallery: Gallery, pairs: list[tuple[int, int]], size: int, state: list[int]) -> list[_Both]:
    if not pairs or any(unit < 1 for _, unit in pairs):
        raise ValueError(f"units={pairs} must be sub-units, (channel, number) with numbers from 1; see split.units.")
    asked = _ask(gallery, pairs, size, state)
    dull = [pair for pair in pairs if pair not in asked]
    if dull:
        raise ValueError(f"Too few of the {len(gallery)} images raise {dull} or their channels; leave these out.")
    of_channels = {channel: both[0] for (channel, _), both in asked.items()}
    return [(of_channels[channel], both[1]) for (channel, _), both in asked.items()]


def _ask(gallery: Gallery, pairs: list[tuple[int, int]], size: int, state: list[int]) -> dict[tuple[int, int], _Both]:
    """Return a question about each pair's channel and one about its sub-unit, where there are both."""
    once = gallery.distinct
    top = min(_BEST, max(size - 1, len(once) // 10))  # of twenty images, ten are no longer the top
    channels, units = torch.tensor(pairs).T
    whole = gallery.maps_of([(channel, 0) for channel, _ in pairs]).max(1)  # (n, u)
    parts = (gallery.maps_of(pairs) * gallery.split.signs[channels, units]).max(1)
    asked = []
    # Other seeds for either kind: with one, the intruder would stand at the same place in a channel and its sub-unit.
    for kind, (values, patches), seed in zip(KINDS, (whole, parts), state[1:], strict=True):
        of_kind = {}
        for trial in make_trials(values[once], size=size, top=top, trials_per_unit=1, seed=seed):
            channel, unit = pairs[trial.unit]
            number = unit if kind == SUB_UNIT else None
            images = once[list(trial.images)]
            peaks = tuple(patches[images, trial.unit].tolist())
            shown = replace(trial, unit=channel, images=tuple(images.tolist()))
            of_kind[channel, unit] = Question(kind, channel, number, shown, peaks)
        asked.append(of_kind)
    return {pair: (asked[0][pair], asked[1][pair]) for pair in pairs if pair in asked[0] and pair in asked[1]}


def as_row(
    question: Question, place: int, player: str, round_: int, number: int, *, crop: float | None, seconds: float
) -> dict[str, object]:
    """Return an answer as a row of `Quiz.results`."""
    return {
        "player": player,
        "round": round_,
        "question": number,
        "kind": question.kind,
        "channel": question.channel,
        "unit": question.unit,
        "answer": place,
        "intruder": question.trial.intruder,
        "right": place == question.trial.intruder,
        "seconds": round(seconds, 3),
        "crop": crop,
    }


def as_table(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Return answers as `Quiz.results` has them."""
    return pd.DataFrame(list(rows), columns=_COLUMNS).astype(_TYPES)


def save_answers(answers: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write answers to a CSV file, by an atomic write; ``OSError`` if it cannot be written."""
    with atomic_write(path) as part:
        answers.to_csv(part, index=False)


def shares(answers: pd.DataFrame) -> dict[str, Share]:
    """Return how many of some answers (rows of `Quiz.results`) were right, for each kind of unit."""
    by_kind = {kind: answers.loc[answers["kind"] == kind, "right"] for kind in KINDS}
    return {kind: share_of(int(right.sum()), len(right)) for kind, right in by_kind.items()}


@dataclass(frozen=True)
class ClassResult:
    """What several people answered to the same questions.

    Attributes
    ----------
    people, answers
        How many.
    shares
        For each kind of unit the mean over its questions of the share that was right, with its interval; without
        answers NaN.
    difference
        How much larger that of sub-units is, with its interval; None until both kinds were answered.
    """

    people: int
    answers: int
    shares: dict[str, Interval]
    difference: Interval | None

    def __str__(self) -> str:
        found = self.difference
        if found is None:
            return "No answers to both kinds of question yet."
        here = f"{100 * found.mean:+.0f} points [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"
        if found.low > 0:
            return f"The odd image was found more often for sub-units than for whole channels: {here}."
        if found.high < 0:
            return f"The odd image was found more often for whole channels than for sub-units: {here}."
        return f"No difference so far between sub-units and whole channels: {here}."


def class_result(answers: pd.DataFrame) -> ClassResult:
    """Return what a class answered: rows of `Quiz.results` of several players.

    Intervals are of the questions: channels are drawn anew, with all that was answered about each of them (cluster
    bootstrap), because answers to one question are not independent. They say nothing about other people.
    """
    by_kind = {kind: answers[answers["kind"] == kind] for kind in KINDS}
    of_questions = {
        kind: rows.groupby(["channel", rows["unit"].fillna(0)])["right"].mean() for kind, rows in by_kind.items()
    }
    found = None
    if all(map(len, of_questions.values())):
        whole, parts = (of_questions[kind] for kind in KINDS)
        clusters = tuple(each.index.get_level_values(0).to_numpy() for each in (parts, whole))
        found = difference_interval(parts, whole, clusters=(clusters[0], clusters[1]))
    each = {kind: mean_interval(values) for kind, values in of_questions.items()}
    return ClassResult(answers["player"].nunique(), len(answers), each, found)


class Quiz:
    """Questions one after the other, by one player after the other.

    Parameters
    ----------
    questions
        From `make_questions`; without any, the first round begins with `restart`.
    clock
        Returns the time in seconds.

    Attributes
    ----------
    questions
        Those of this round.
    practice
        A question that comes before them and is not counted, until it is answered; or None.
    round
        Counted from 1; 0 before the first.
    answered
        How many questions of this round were answered.
    """

    def __init__(self, questions: Sequence[Question] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: list[dict[str, object]] = []
        self.questions: tuple[Question, ...] = ()
        self.practice: Question | None = None
        self.round = self.answered = 0
        self.begin()
        if questions:
            self.restart(questions)

    def restart(self, questions: Sequence[Question], practice: Question | None = None) -> None:
        """Begin a new round, with a question to practise before it; results of earlier rounds are kept."""
        if not questions:
            raise ValueError("A round needs at least one question.")
        self.questions, self.practice, self.answered = tuple(questions), practice, 0
        self.round += 1
        self.begin()

    def begin(self) -> None:
        """Start the clock: the question is now shown."""
        self._since = self._clock()

    @property
    def finished(self) -> bool:
        """Whether all questions of this round were answered; so it is before the first."""
        return self.practice is None and self.answered == len(self.questions)

    @property
    def current(self) -> Question:
        """Return the first question that was not answered.

        Raises
        ------
        ValueError
            If the round is over.
        """
        if self.finished:
            raise ValueError("There is no question left to answer; restart the quiz.")
        return self.practice or self.questions[self.answered]

    def answer(self, place: int, player: str = "", *, crop: float | None = None) -> bool:
        """Answer the current question with the place of an image, from 0; return whether it was right.

        ``crop`` is noted: the share of its side that was shown of each image, or None of whole images.

        Raises
        ------
        TypeError, ValueError
            If there is no such image, or the round is over.
        """
        question = self.current
        check_count("answer", place, 0, len(question.trial.images) - 1)
        right = place == question.trial.intruder
        if self.practice is not None:
            self.practice = None
            return right
        self.answered += 1
        seconds = self._clock() - self._since
        self._rows.append(as_row(question, place, player, self.round, self.answered, crop=crop, seconds=seconds))
        return right

    @property
    def results(self) -> pd.DataFrame:
        """One row an answer of any round: ``player``, ``round``, ``question`` from 1, ``kind``, ``channel``, ``unit``.

        Then ``answer`` and ``intruder`` (places of images, from 0, as `elude_nb.scores.grade` takes them), ``right``,
        ``seconds`` and ``crop`` (missing where whole images were shown). ``unit`` is missing for whole channels.
        Answers to practise are not among them.
        """
        return as_table(self._rows)

    def score(self) -> dict[str, Share]:
        """Return how many answers of this round were right, for each kind of unit."""
        table = self.results
        return shares(table[table["round"] == self.round])

    def score_of_embedding(self, embeddings: torch.Tensor) -> dict[str, Share]:
        """Return how many of this round's questions an embedding (n, e) of the images answers rightly."""
        found = {}
        for kind in KINDS:
            trials = [question.trial for question in self.questions if question.kind == kind]
            guesses = guess_by_embedding(trials, embeddings)
            right = sum(guess == trial.intruder for guess, trial in zip(guesses, trials, strict=True))
            found[kind] = share_of(right, len(trials))
        return found

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the results to a file, by an atomic write; ``OSError`` if it cannot be written."""
        save_answers(self.results, path)
