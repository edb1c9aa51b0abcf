"""Exercise 5: an edit, and its bystanders: the classes that were not meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elude_nb.course.answers import Right, as_numbers, check_choice_of, check_function, check_numbers
from elude_nb.errors import AnswerError
from elude_nb.steering.effects import strength_at


def check_ablation(edited: object, channel: Tensor, unit: Tensor, mean: float, strength: float) -> Right:
    """Check a channel (t,) whose sub-unit (t,) is faded to its mean by a strength from 0 to 1."""
    about = unit - mean
    return check_numbers(
        edited,
        channel - strength * about,
        "The other sub-units stay as they were, so only the difference is taken away.",
        shape="one number for each token",
        mistakes={
            "You have faded the sub-unit to 0; fade it to its mean, which is what is usual.": channel - strength * unit,
            "The sign is wrong: the sub-unit gets stronger.": channel + strength * about,
            "The strength is missing: that is the whole edit.": channel - about,
            "You have faded the whole channel; only one sub-unit is meant.": channel
            - strength * (channel - channel.mean()),
            "That is the sub-unit after the edit; the channel is asked for.": unit - strength * about,
            "That is what is left of the sub-unit at this strength the other way round: 1 takes all away.": (
                channel - (1 - strength) * about
            ),
        },
    )


def check_undone(during: object, after: object) -> Right:
    """Check the largest changes of an output during an edit and after it."""
    inside, outside = as_numbers(during), as_numbers(after)
    if inside.numel() != 1 or outside.numel() != 1:
        raise AnswerError("One number each is asked for: the largest of all absolute differences.")
    if float(inside) == 0:
        raise AnswerError("During the edit nothing changes: run the model inside the `with` block.")
    if float(inside) < 0 or float(outside) < 0:
        raise AnswerError("A largest difference is not negative: take absolute values first.")
    if float(outside) != 0:
        raise AnswerError(
            "After the edit the model is the same bit for bit: is the last pass outside the `with` block?"
        )
    return Right("An edit lasts as long as its block.")


def check_drops(drops: object, before: Tensor, after: Tensor, labels: Tensor) -> Right:
    """Check how far the probability of the true class falls, (c,), of probabilities (n, c) and labels (n,)."""
    classes = range(before.shape[1])
    mine = before.gather(1, labels[:, None])[:, 0] - after.gather(1, labels[:, None])[:, 0]
    change = before - after
    return check_numbers(
        drops,
        torch.stack([mine[labels == c].mean() for c in classes]),
        "For each class: what its own images lose.",
        shape="one number for each class",
        mistakes={
            "The sign is turned round: a drop is positive where the probability falls.": (
                torch.stack([-mine[labels == c].mean() for c in classes])
            ),
            "Those are means over all images; for each class only its own images count.": change.mean(0),
            "Those are sums; take the mean over the images of a class.": (
                torch.stack([mine[labels == c].sum() for c in classes])
            ),
            "That is one number for each image; take the mean over the images of a class.": mine,
        },
    )


def check_bystanders(answer: object, drops: Tensor, target: int) -> Right:
    """Check the target's drop, the mean and worst of the others, and the specificity, of the drops (c,)."""
    others = drops[[c for c in range(len(drops)) if c != target]]
    own, moved = drops[target], others.abs().mean()
    right = [own, others.mean(), others.max(), own / moved]
    given = as_numbers(answer)
    if given.shape != (4,):
        raise AnswerError(
            "Four numbers are asked for: the target's drop, the mean and the worst of the others, specificity."
        )
    return check_numbers(
        answer,
        right,
        "A good edit has a large first number and small second and third ones.",
        mistakes={
            "The target is among its bystanders; leave it out.": (
                [own, drops.mean(), drops.max(), own / drops.abs().mean()]
            ),
            "In the specificity the others' changes cancel; take absolute values before their mean.": (
                [*right[:3], own / others.mean()]
            ),
            "The worst bystander is the one that falls most.": [own, others.mean(), others.min(), own / moved],
            "The specificity is upside down.": [*right[:3], moved / own],
        },
    )


def check_strength_for(function: object) -> Right:
    """Check a function of a wanted drop, strengths and their drops: the strength at which it is reached."""
    strengths = [0.0, 0.25, 0.5, 0.75, 1.0]
    cases = [
        (0.15, strengths, [0.0, 0.1, 0.35, 0.6, 0.7]),
        (0.1, strengths, [0.0, 0.16, 0.3, 0.5, 0.9]),
        (0.62, strengths, [0.0, 0.1, 0.35, 0.6, 0.7]),
    ]

    def nearest(wanted: float, x: Sequence[float], y: Sequence[float]) -> float:
        return float(x[int(np.abs(np.asarray(y) - wanted).argmin())])

    def first_above(wanted: float, x: Sequence[float], y: Sequence[float]) -> float:
        return float(x[int((np.asarray(y) >= wanted).argmax())])

    return check_function(
        function,
        cases,
        strength_at,
        "Now edits that do different amounts can be compared.",
        shape="one number",
        places=1e-6,
        mistakes={
            "That is the nearest strength that was measured; draw a line between the two around it.": nearest,
            "That is the first measured strength that reaches it; draw a line from the one before.": first_above,
            "You look up the drop at a strength; the question is the strength of a drop.": (
                lambda wanted, x, y: float(np.interp(wanted, x, y))
            ),
            "One line through 0 and the last point is drawn; take the two points around the wanted drop.": (
                lambda wanted, x, y: wanted / y[-1] * x[-1]
            ),
        },
    )


def check_at_equal_drop(others: object, curves: dict[str, Any], wanted: float) -> Right:
    """Check what the others lose, a number for each edit, where each takes the wanted drop off the target.

    ``curves`` has for each edit a table with columns ``strength``, ``drop`` and ``others``.
    """
    right, full = [], []
    for table in curves.values():
        x, y, z = (table[name].tolist() for name in ("strength", "drop", "others"))
        right.append(float(np.interp(strength_at(wanted, x, y), x, z)))
        full.append(z[-1])
    given = as_numbers([others[name] for name in curves] if isinstance(others, dict) else others)
    return check_numbers(
        given,
        right,
        "At an equal drop the edit with the smaller number is the more selective one.",
        shape="one number for each edit",
        places=1e-4,
        mistakes={
            "That is at full strength, where the edits do different amounts to the target.": full,
            "The edits are in another order.": right[::-1],
        },
    )


def check_control(answer: object) -> Right:
    """Check which control shows that an effect comes from the concept that was meant."""
    return check_choice_of(
        answer,
        "b",
        "Random concepts of equal strength show what any edit of this size does.",
        {
            "a": "The unedited model shows that something has changed, and not what did it.",
            "c": "The same edit at half its strength is the same edit.",
            "d": "More images narrow the interval; what the edit is compared with stays the same.",
        },
    )
