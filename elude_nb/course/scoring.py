"""Exercise 3: a score by hand, its control, and an interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from elude_nb.course.answers import Right, as_numbers, call, check_choice_of, check_function, check_numbers
from elude_nb.errors import AnswerError
from elude_nb.scores.inputs import unit_vectors


def check_image_activations(activation: object, values: Tensor, count: int) -> Right:
    """Check how strongly each image activates a unit, (n,), of its values at all tokens, image by image, (n * t,)."""
    by_image = values.view(count, -1)
    return check_numbers(
        activation,
        by_image.amax(1),
        "An image counts as its strongest patch.",
        shape="one number for each image",
        mistakes={
            "Those are means over the patches; a small thing in a large image would be lost.": by_image.mean(1),
            "That is the first token of each image.": by_image[:, 0],
            "Those are the largest over the images, one for each token; turn the dimensions round.": by_image.amax(0),
            "That is the largest by absolute value; a unit is read where it is high.": by_image.abs().amax(1),
        },
    )


def check_top_images(best: object, activation: Tensor, k: int) -> Right:
    """Check the numbers of the k images that activate a unit most, the highest first, of its activations (n,)."""
    order = activation.argsort(descending=True)
    return check_numbers(
        best,
        order[:k],
        "Everything that is said about a unit rests on such images.",
        shape=f"{k} numbers of images",
        places=1e-9,
        mistakes={
            "Those are the lowest images.": activation.argsort()[:k],
            "The lowest of them comes first; sort the other way round.": order[:k].flip(0),
            "Those are the activations; the answer is the numbers of the images.": activation[order[:k]],
        },
    )


def check_directions(e: object, outputs: Tensor) -> Right:
    """Check the centred embeddings scaled to length 1, (n, e), of the model's outputs (n, e)."""
    centred = outputs - outputs.mean(0)
    return check_numbers(
        e,
        unit_vectors(centred),
        "After centring, two unrelated images have a cosine near 0.",
        shape="a row for each image",
        mistakes={
            "You forgot to centre: take the mean over the images away first.": unit_vectors(outputs),
            "They are not scaled to length 1 yet.": centred,
            "You have scaled first and centred afterwards; centre first.": (
                unit_vectors(outputs) - unit_vectors(outputs).mean(0)
            ),
            "You have centred each image by itself; the mean is over the images.": (
                unit_vectors(outputs - outputs.mean(1, keepdim=True))
            ),
            "The columns have length 1; it is the rows that are scaled, one for each image.": (
                centred / centred.norm(dim=0)
            ),
        },
    )


def check_top_similarity(similarity: object, e: Tensor, best: Tensor) -> Right:
    """Check the mean cosine over the pairs of some images, of all images' directions (n, e)."""
    chosen = e[torch.as_tensor(best)]
    k = len(chosen)
    table = chosen @ chosen.T
    every = e @ e.T
    pairs = float(table.sum() - table.diagonal().sum())
    return check_numbers(
        similarity,
        pairs / (k * (k - 1)),
        "That is top similarity: 1 for copies, about 0 for images that have nothing in common.",
        shape="one number",
        mistakes={
            "Each image is paired with itself as well, which is always 1; leave the diagonal out.": table.mean(),
            "That is the sum over the pairs; take the mean.": pairs / 2,
            "That is the sum over the pairs, each counted twice; take the mean.": pairs,
            "The diagonal is left out of the sum, but still counted when you divide.": pairs / k**2,
            "Each pair is counted once, but you divide as if it were counted twice.": pairs / 2 / (k * (k - 1)),
            "Those are all images; only the top ones are asked for.": (
                (every.sum() - every.diagonal().sum()) / (len(e) * (len(e) - 1))
            ),
        },
    )


def _weighted(a: Tensor, e: Tensor, *, scaled: bool = True, selves: bool = False, mean: bool = True) -> float:
    if scaled:
        a = (a - a.min()) / (a.max() - a.min())
    weights = a[:, None] * a
    if not selves:
        weights = weights - weights.diagonal().diag()
    total = weights * (e @ e.T)
    return float(total.sum() / weights.sum()) if mean else float(total.sum() / 2)


def check_monosemanticity(function: object) -> Right:
    """Check a function that takes activations (n,) and directions (n, e) and returns the monosemanticity."""
    generator = torch.Generator().manual_seed(0)
    cases = [
        (torch.randn(n, generator=generator), unit_vectors(torch.randn(n, 5, generator=generator))) for n in (6, 9)
    ]
    return check_function(
        function,
        cases,
        _weighted,
        "All pairs count, by how strongly both of their images activate the unit.",
        shape="one number",
        mistakes={
            "The activations are not scaled to the range from 0 to 1 first.": lambda a, e: _weighted(
                a, e, scaled=False
            ),
            "Each image is paired with itself as well; a pair is two images.": lambda a, e: _weighted(
                a, e, selves=True
            ),
            "That is the sum over the pairs; divide by the sum of the weights.": lambda a, e: _weighted(
                a, e, mean=False
            ),
            "That is the same weight for every pair.": lambda a, e: _weighted(
                torch.arange(len(a)) * 0 + 1.0, e, scaled=False
            ),
        },
    )


def check_random_routes(shuffled: object, owners: Tensor) -> Right:
    """Check a random control of the owners (s,) of a channel's contributions: the same sizes, drawn anew."""
    given = as_numbers(shuffled)
    if given.shape != owners.shape:
        raise AnswerError(f"There are {len(owners):,} contributions; your answer has the shape {tuple(given.shape)}.")
    same_sizes = torch.equal(given.sort().values, owners.double().sort().values)
    if not same_sizes:
        raise AnswerError(
            "The sub-units have other sizes than before. A control differs in one thing alone: shuffle the owners, "
            "and do not draw new ones."
        )
    if torch.equal(given, owners.double()):
        raise AnswerError("Nothing has moved: each contribution has the owner that it had.")
    if bool((given.diff() >= 0).all()) or bool((given.diff() <= 0).all()):
        raise AnswerError("They are sorted and not shuffled.")
    expected = float((torch.bincount(owners.long()).double() / len(owners)).square().sum())
    if float((given == owners).double().mean()) > expected + 0.15 + 1 / len(owners) ** 0.5:
        raise AnswerError("Most contributions have kept their owner; shuffle all of them.")
    return Right("As many sub-units, of the same sizes, from the same contributions. Only the choice is random.")


def check_gain(gain: object, ours: Tensor, control: Tensor) -> Right:
    """Check the gain of each sub-unit (m,) over its control, of the scores of both, (m,) each."""
    return check_numbers(
        gain,
        ours - control,
        "Pairs share a channel and a size, so what they differ in is the choice of contributions.",
        shape="one number for each sub-unit",
        mistakes={
            "The sign is turned round: a gain is positive where the sub-unit is better.": control - ours,
            "That is the difference of the means; keep one number for each pair.": (ours - control).mean(),
            "Those are ratios; a score near 0 would make them meaningless.": ours / control,
        },
    )


def check_interval(interval: object) -> Right:
    """Check a function that returns the ends of a 95 % bootstrap interval of the mean of some numbers (m,)."""
    values = torch.tensor(np.random.default_rng(0).normal(3.0, 2.0, 60))
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    found = call(interval, values)
    ends = as_numbers(found)
    if ends.shape != (2,):
        raise AnswerError("Return two numbers: the lower and the upper end.")
    low, high = ends.tolist()
    if high < low:
        raise AnswerError("The upper end comes first; return the lower one first.")
    if high - low < 1e-9:
        raise AnswerError("The interval has no width: draw with replacement, or every resample is the same.")
    wide = (high - low) / (2 * half)
    if 0.9 < wide < 1.15 and abs((low + high) / 2 - float(values.mean())) < half:
        return Right("So far the mean would move if other numbers had been drawn.")
    if wide > 3:
        raise AnswerError("That interval holds most of the numbers; an interval of the mean is far narrower.")
    if wide < 0.6:
        raise AnswerError("The interval is too narrow: each resample has as many numbers as there are.")
    if wide < 0.9:
        raise AnswerError("The interval is a little too narrow: 95 % lie between the 2.5th and the 97.5th percentile.")
    raise AnswerError("The interval is not that of the mean: draw resamples, take the mean of each, then percentiles.")


def check_verdict(answer: object, low: float, high: float) -> Right:
    """Check what an interval of the mean gain says: "better", "worse" or "open"."""
    right = "better" if low > 0 else "worse" if high < 0 else "open"
    said = {
        "better": "The interval does not lie above 0, so a gain is not shown.",
        "worse": "The interval does not lie below 0, so a loss is not shown.",
        "open": "The interval leaves 0 out, so there is a difference.",
    }
    del said[right]
    wrong: dict[str, Any] = said
    return check_choice_of(
        answer, right, "The interval is about the mean; single channels may well do otherwise.", wrong
    )
