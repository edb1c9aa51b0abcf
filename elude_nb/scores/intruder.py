"""The intruder test: which image does not belong to a unit's best ones? Answered by an embedding, or by people.

The test comes from topic models (Chang et al., Reading Tea Leaves, NeurIPS 2009). For units of vision models,
Zimmermann et al. (arXiv 2307.05471) ask people which of two images belongs to a unit's top-activating ones; Klindt et
al. (arXiv 2310.11431) let an image similarity answer. Here the question has one form for both: several images with high
activations and one with a low activation, shown together.

Trials are plain data: the widget that asks people shows the same ones that the automatic test grades.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count, check_kind
from elude_nb._util.words import counted
from elude_nb.scores.inputs import Array, as_activations, as_embeddings, as_matrix, unit_vectors
from elude_nb.scores.intervals import Interval, mean_interval
from elude_nb.scores.similarity import best_images

_TRIALS_AT_ONCE = 4096

_Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class IntruderTrial:
    """One question: which of these images does not belong.

    Attributes
    ----------
    unit
        The unit in question.
    images
        Numbers of the images, in the order in which they are shown.
    intruder
        The position of the intruder among them, from 0.
    """

    unit: int
    images: tuple[int, ...]
    intruder: int


def make_trials(
    activations: Array,
    *,
    units: Sequence[int] | None = None,
    size: int = 5,
    top: int = 10,
    trials_per_unit: int = 5,
    seed: int = 0,
) -> list[IntruderTrial]:
    """Draw trials: ``size - 1`` of a unit's ``top`` best images, and one intruder at a random position.

    The intruder is from the lower half of the unit's activations, and among the ``top`` best images of another unit, so
    that it is not conspicuous by itself; if there is none, any from the lower half. Best images count only if they are
    above that unit's lower half, so every question has one right answer: a unit that is constant, or has fewer than
    ``size - 1`` such images, gets no trial.

    Parameters
    ----------
    activations
        (n, u).
    units
        Numbers of the units in question; by default all.
    size
        Images of a trial: chance is 1 in ``size``.
    top
        How many best images there are to draw from, at least ``size - 1`` and at most half of the images.
    trials_per_unit, seed
        How many trials each unit gets, and from which seed they are drawn.

    Raises
    ------
    ValueError
        If there are too few images, a unit does not exist, or a value is not finite.

    Examples
    --------
    >>> activations = torch.arange(12.0)[:, None] * torch.tensor([[1.0, -1.0]])
    >>> trial = make_trials(activations, size=3, top=4, trials_per_unit=1)[0]
    >>> trial.unit, len(trial.images), trial.images[trial.intruder] in range(4)  # one of the other unit's best
    (0, 3, True)
    """
    values = as_activations(activations)
    n, u = values.shape
    check_count("size", size, 3)
    check_count("trials_per_unit", trials_per_unit)
    if not size - 1 <= check_count("top", top) <= n // 2:
        raise ValueError(f"top={top} must lie between size - 1 = {size - 1} and half of the {n} images.")
    asked = range(u) if units is None else [check_count("unit", unit, 0, u - 1) for unit in units]
    best, high, low = _best_and_low(values, top)
    is_best = np.bincount(best[high], minlength=n) > 0  # (n,), of any unit
    trials = []
    for unit in asked:
        own = best[high[:, unit], unit]
        if len(own) < size - 1:
            continue
        strangers = low[is_best[low[:, unit]], unit]  # of other units: the unit's own are not in its lower half
        strangers = strangers if len(strangers) else low[:, unit]
        rng = np.random.default_rng([seed, unit])  # a unit's trials do not depend on the other units in question
        trials += [_draw(unit, own, strangers, size, rng) for _ in range(trials_per_unit)]
    return trials


def _best_and_low(values: Tensor, top: int) -> tuple[_Numbers, _Numbers, _Numbers]:
    """Return each unit's best images (top, u), which lie above its lower half (top, u), and that half (n // 2, u).

    A unit that is 0 on most images is as high on images of its lower half as on some of its ``top`` best ones.
    """
    best = best_images(values, top)
    ordered, order = values.sort(0)
    half = len(values) // 2
    high = values.gather(0, best) > ordered[half - 1]
    return best.numpy(), high.numpy(), order[:half].numpy()


def _draw(unit: int, own: _Numbers, strangers: _Numbers, size: int, rng: np.random.Generator) -> IntruderTrial:
    shown = rng.choice(own, size - 1, replace=False).tolist()
    position = int(rng.integers(size))
    shown.insert(position, int(rng.choice(strangers)))
    return IntruderTrial(unit, tuple(shown), position)


def guess_by_embedding(trials: Sequence[IntruderTrial], embeddings: Array) -> list[int]:
    """Return the position of the image with the smallest mean cosine to the others, for each trial.

    Parameters
    ----------
    trials
        All of one size.
    embeddings
        (n, e), centred as wanted; they need not be unit vectors.

    Raises
    ------
    ValueError
        If a trial shows an image that has no embedding.

    Examples
    --------
    >>> guess_by_embedding([IntruderTrial(0, (2, 0, 1), 0)], torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
    [0]
    """
    trials = _checked(trials)
    unit = unit_vectors(as_matrix("embeddings", embeddings, "(n, e)"))
    if not trials:
        return []
    images = torch.tensor([trial.images for trial in trials])  # (trials, size)
    if int(images.max()) >= len(unit):
        raise ValueError(f"A trial shows image {int(images.max())}, but only {len(unit)} images have embeddings.")
    found: list[int] = []
    for some in images.split(_TRIALS_AT_ONCE):
        shown = unit[some]  # (trials, size, e)
        cosines = (shown * shown.sum(1, keepdim=True)).sum(2) - shown.square().sum(2)  # with the others, not itself
        found += cosines.argmin(1).tolist()
    return found


def _checked(trials: Sequence[IntruderTrial]) -> list[IntruderTrial]:
    found = list(trials)
    for trial in found:
        check_kind("A trial", trial, IntruderTrial, "an IntruderTrial, from make_trials")
    return found


def grade(trials: Sequence[IntruderTrial], answers: Sequence[int]) -> pd.Series[float]:
    """Return the share of right answers for each unit in question, indexed by unit, in [0, 1].

    Parameters
    ----------
    trials
        From `make_trials`.
    answers
        The position chosen in each trial, from 0: by people, or by `guess_by_embedding`. Leave out trials without an
        answer.

    Raises
    ------
    TypeError, ValueError
        If an answer is not a whole number, is not the position of an image, or there is not one a trial.

    Examples
    --------
    >>> grade([IntruderTrial(7, (4, 0, 2), 1), IntruderTrial(7, (0, 2, 5), 2)], [1, 0]).to_dict()
    {7: 0.5}
    """
    trials, answers = _checked(trials), list(answers)
    if len(answers) != len(trials):
        raise ValueError(f"{len(answers)} answers were given to {len(trials)} trials; give one each.")
    right = [
        float(trial.intruder == check_count("answer", answer, 0, len(trial.images) - 1))
        for trial, answer in zip(trials, answers, strict=True)
    ]
    table = pd.DataFrame({"unit": [trial.unit for trial in trials], "right": right})
    return table.groupby("unit")["right"].mean().rename("intruder_accuracy")


def intruder_accuracy(
    activations: Array, embeddings: Array, *, size: int = 5, top: int = 10, trials_per_unit: int = 5, seed: int = 0
) -> pd.Series[float]:
    """Return how often an embedding finds the intruder among a unit's best images, in [0, 1]; higher is better.

    The guess is the image with the smallest mean cosine to the others; chance is 1 / ``size``. `intruder_result` gives
    the mean over units with its interval. A unit without a trial, such as a constant one, scores NaN.

    Parameters
    ----------
    activations
        (n, u).
    embeddings
        (n, e), from an independent encoder if there is one.
    size, top, trials_per_unit, seed
        As in `make_trials`.

    Raises
    ------
    ValueError
        If there are too few images, the shapes disagree, or a value is not finite.

    Examples
    --------
    >>> kinds = torch.eye(2).repeat_interleave(8, dim=0)  # eight images of each of two kinds, and a unit for each
    >>> intruder_accuracy(kinds, kinds, top=8).tolist()
    [1.0, 1.0]
    """
    values = as_activations(activations)
    known = as_embeddings(embeddings, len(values))
    trials = make_trials(values, size=size, top=top, trials_per_unit=trials_per_unit, seed=seed)
    graded = grade(trials, guess_by_embedding(trials, known))
    return graded.astype(float).reindex(pd.RangeIndex(values.shape[1], name="unit"))


@dataclass(frozen=True)
class IntruderResult:
    """The mean accuracy over units with its interval, and chance; printing it shows all three.

    Attributes
    ----------
    accuracy
        In [0, 1]; higher is better.
    chance
        The accuracy of random guesses.
    """

    accuracy: Interval
    chance: float

    def __str__(self) -> str:
        left_out = f", {self.accuracy.missing} without a trial" if self.accuracy.missing else ""
        units = counted(self.accuracy.count, "unit")
        return f"odd one found: {self.accuracy} (chance {self.chance:.3f}, {units}{left_out})"


def intruder_result(accuracies: pd.Series[float], *, size: int = 5, seed: int = 0) -> IntruderResult:
    """Return the mean of `intruder_accuracy` or `grade` with its interval, and the chance level.

    Parameters
    ----------
    accuracies
        One a unit, (u,); units that score NaN are left out and counted.
    size
        Images of a trial, as in `make_trials`.
    seed
        Of the interval.

    Examples
    --------
    >>> print(intruder_result(pd.Series([1.0, 1.0, float("nan")])))
    odd one found: 1.000 [1.000, 1.000] (chance 0.200, 2 units, 1 without a trial)
    """
    return IntruderResult(mean_interval(accuracies, seed=seed), 1 / check_count("size", size, 3))
