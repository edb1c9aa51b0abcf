"""Exercise 4: maps of sub-units, their shares of a channel's variance, and how to draw them fairly."""

from __future__ import annotations

import torch
from torch import Tensor

from elude_nb.course.answers import Right, as_numbers, check_choice_of, check_numbers
from elude_nb.errors import AnswerError


def check_grid(heat: object, values: Tensor, rows: int, columns: int) -> Right:
    """Check the map (rows, columns) of an image's patch values (t,), which come row by row."""
    right = values.view(rows, columns)
    return check_numbers(
        heat,
        right,
        "Patches come row by row, as one reads.",
        shape="rows and columns of patches",
        mistakes={
            "Rows and columns are the wrong way round.": lambda: values.view(columns, rows).T,
            "The map stands on its head.": right.flip(0),
        },
    )


def check_unit_maps(maps: object, row: Tensor, bias: float, q: Tensor, owners: Tensor) -> Right:
    """Check the units' values (k + 1, t), of weights (s,), sources q (t, s) and owners (s,); unit 0 has the bias."""
    count = int(owners.max()) + 1
    members = torch.stack([(owners == unit) for unit in range(count)]).to(q)
    parts = (members * row) @ q.T
    right = parts.clone()
    right[0] += bias
    return check_numbers(
        maps,
        right,
        "The maps add up to the channel's map at every patch.",
        shape="a row for each unit, unit 0 among them, and a column for each patch",
        places=1e-4,
        mistakes={
            "The bias is in no unit; unit 0 has it.": parts,
            "The bias is in every unit; only unit 0 has it.": parts + bias,
            "The weights are missing: a contribution is a source times its weight.": members @ q.T,
            "Unit 0 is missing: it has what no sub-unit has, the bias too.": right[1:],
            "Those are means; a sub-unit is the sum of its contributions.": parts
            / members.sum(1, keepdim=True).clamp(min=1),
        },
    )


def check_shares(shares: object, units: Tensor, channel: Tensor) -> Right:
    """Check the units' shares of a channel's variance (k + 1,), of their values (k + 1, t) and the channel's (t,)."""
    about = channel - channel.mean()
    moved = units - units.mean(1, keepdim=True)
    variance = about.square().mean()
    covariance = (moved * about).mean(1)
    return check_numbers(
        shares,
        covariance / variance,
        "The shares add up to 1, since covariances of parts add up to the variance of the whole.",
        shape="one number for each unit",
        mistakes={
            "Those are variances, which do not add up to the channel's; take the covariance with the channel.": (
                moved.square().mean(1) / variance
            ),
            "You forgot to centre: take the means away before you multiply.": (
                (units * channel).mean(1) / channel.square().mean()
            ),
            "Those are covariances; divide by the channel's variance.": covariance,
            "Those are correlations; they do not add up to 1.": (
                covariance / (moved.square().mean(1) * variance).sqrt().clamp(min=1e-30)
            ),
        },
    )


def check_limit(limit: object, maps: Tensor) -> Right:
    """Check the one number that is the full colour of all maps, of centred maps (k, rows, columns)."""
    return check_numbers(
        limit,
        maps.abs().max(),
        "From minus this number to plus this number: white is 0 in every map, and equal colours are equal values.",
        shape="one number for all maps",
        mistakes={
            "The strongest value may be negative: take absolute values first.": maps.max(),
            "One number for each map: then a weak map looks as strong as a strong one.": maps.abs().amax((1, 2)),
            "That is the range; the scale goes as far below 0 as above.": maps.max() - maps.min(),
            "That is the mean; values above it would all have the same colour.": maps.abs().mean(),
        },
    )


def check_outline(inside: object, heat: Tensor, mean: float) -> Right:
    """Check which patches lie inside the outline, (rows, columns), of a unit's map and its mean over all images."""
    about = heat - mean
    return check_numbers(
        inside,
        about > about.max() / 2,
        "The outline holds what the unit is most active on, whatever its mean is.",
        shape="True or False for each patch",
        places=1e-9,
        mistakes={
            "You forgot to centre: the activation is counted from the unit's mean.": heat > heat.max() / 2,
            "That is everything above the mean; the outline is at half of the highest value.": about > 0,
            "That is the outside.": about <= about.max() / 2,
            "That is above half of the patches; the outline is at half of the highest value.": about > about.median(),
        },
    )


def check_patch_box(box: object, heat: Tensor, side: int) -> Right:
    """Check left, top, right and bottom in pixels of the patch at which a map is highest; patches are ``side`` wide."""
    top, left = divmod(int(heat.argmax()), heat.shape[1])
    right = [left * side, top * side, (left + 1) * side, (top + 1) * side]
    if as_numbers(box).shape != (4,):
        raise AnswerError("Four numbers are asked for: left, top, right and bottom.")
    return check_numbers(
        box,
        right,
        "Columns count to the right and rows downwards, in pictures as in arrays.",
        places=1e-9,
        mistakes={
            "Left and top are the wrong way round: the column says how far to the right.": [
                right[i] for i in (1, 0, 3, 2)
            ],
            "Those are patches; the box is in pixels.": [left, top, left + 1, top + 1],
            "The third and fourth number are the right and lower edge, and not width and height.": [
                *right[:2],
                side,
                side,
            ],
        },
    )


def check_reading(answer: object) -> Right:
    """Check what two maps with different colour scales allow to say."""
    return check_choice_of(
        answer,
        "c",
        "Without a common scale, colours compare places inside one map and nothing else.",
        {
            "a": "Each map has a scale of its own, so its darkest red may be a small number.",
            "b": "A scale of its own makes the strongest place of every map equally red.",
        },
    )
