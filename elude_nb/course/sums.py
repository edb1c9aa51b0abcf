"""Exercise 1: a channel is a sum of contributions, and a sum may be sorted into groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elude_nb.course.answers import Right, check_choice_of, check_numbers, need
from elude_nb.errors import AnswerError


def check_sizes(channels: object, sources: object, W: Tensor) -> Right:
    """Check how many channels and sources a layer has, of its weights W (d, s)."""
    return check_numbers(
        [channels, sources],
        list(W.shape),
        "Each row of W belongs to a channel, each column to a source.",
        mistakes={"You have the two the wrong way round: W has a row for each channel.": list(W.shape)[::-1]},
    )


def check_contributions(c: object, W: Tensor, q: Tensor, channel: int) -> Right:
    """Check the contributions (s,) to a channel at one token, of W (d, s) and the sources' values q (s,)."""
    row = W[channel]
    return check_numbers(
        c,
        row * q,
        f"{len(q):,} contributions, one for each source; some are positive and some negative.",
        shape="one number for each source",
        mistakes={
            "That is already their sum; the contributions are the products before they are added up.": lambda: row @ q,
            "Those are the weights alone; a contribution is a weight times what its source has at this token.": row,
            "Those are the sources alone; a contribution is a source's value times its weight.": q,
            "The signs are lost: a contribution may be negative.": (row * q).abs(),
            "Those are all channels; take the row of W of the one channel.": W * q,
        },
    )


def check_channel_value(value: object, W: Tensor, b: Tensor, q: Tensor, channel: int) -> Right:
    """Check the value of a channel at one token, of W (d, s), b (d,) and q (s,)."""
    total = W[channel] @ q
    return check_numbers(
        value,
        total + b[channel],
        "The contributions and the bias make the number that the model itself computed.",
        shape="one number",
        places=1e-4,
        mistakes={
            "Off by the bias: the contributions are all there, and the channel has a bias besides.": total,
            "The bias is counted once for each source; it belongs to the channel once.": total + len(q) * b[channel],
            "That is the mean of the contributions; the channel is their sum.": total / len(q) + b[channel],
            "That is the mean of the contributions, and the bias is missing.": total / len(q),
            "The bias is subtracted; it is added.": total - b[channel],
        },
    )


def check_channel(values: object, W: Tensor, b: Tensor, q: Tensor, channel: int) -> Right:
    """Check the values (t,) of a channel at many tokens, of W (d, s), b (d,) and q (t, s)."""
    total = q @ W[channel]
    return check_numbers(
        values,
        total + b[channel],
        f"One matrix product for all {len(q)} tokens.",
        shape="one number for each token",
        places=1e-4,
        mistakes={
            "Off by the bias: it belongs to the channel at every token.": total,
            "Those are all channels; take the row of W of the one channel.": q @ W.T + b,
            "Those are all channels, and the bias is missing.": q @ W.T,
            "Those are the contributions of every source; add them up for each token.": q * W[channel],
        },
    )


def check_strongest(strongest: object, c: Tensor, W: Tensor, q: Tensor, channel: int) -> Right:
    """Check the numbers of the sources with the largest contributions by absolute value, of c (s,), the largest first.

    How many there are follows from the answer's length.
    """
    need(strongest)
    count = len(strongest) if hasattr(strongest, "__len__") else 0
    if not 0 < count <= len(c):
        raise AnswerError("The answer is a list of numbers of sources.")

    def first(values: Tensor) -> Tensor:
        return values.argsort(descending=True)[:count]

    return check_numbers(
        strongest,
        first(c.abs()),
        "A strong contribution may push the channel up or down.",
        places=1e-9,
        mistakes={
            "Those are the largest positive ones; a strongly negative contribution is strong too.": first(c),
            "Those are the weakest ones; sort the other way round.": c.abs().argsort()[:count],
            "Those are the most negative ones.": c.argsort()[:count],
            "Those have the largest weights; at this token it counts what the source has, too.": first(
                W[channel].abs()
            ),
            "Those are the largest sources; it counts how heavily this channel weighs them, too.": first(q.abs()),
            "Those are the contributions themselves; the answer is the numbers of their sources.": c[first(c.abs())],
        },
    )


def check_group_sums(sums: object, c: Tensor, group: Tensor, bias: float) -> Right:
    """Check the sums (k,) of contributions c (s,) that are sorted into groups (s,), numbered from 0."""
    count = int(group.max()) + 1
    right = torch.zeros(count).to(c).index_add(0, group, c)
    sizes = torch.bincount(group, minlength=count)
    return check_numbers(
        sums,
        right,
        "However they are sorted, the groups add up to the same channel.",
        shape="one number for each group",
        mistakes={
            "Those are the means of the groups; means do not add up to the channel, sums do.": right / sizes,
            "The bias is in every group, so the groups together have it more than once.": right + bias,
            "Those are how many contributions each group has.": sizes,
            "Those are the sums of absolute values; contributions of both signs cancel in a channel.": (
                torch.zeros(count).to(c).index_add(0, group, c.abs())
            ),
        },
    )


def check_why_groups(answer: object) -> Right:
    """Check why the contributions to a channel may be sorted into any groups."""
    return check_choice_of(
        answer,
        "b",
        "Nothing is said about which grouping is good: that is what the method is for.",
        {
            "a": "Random groups add up to the channel as well, and nobody would call theirs independent.",
            "c": "A large network shares a value among many sources; that alone lets nothing be taken apart.",
            "d": "The activation function comes before the sources or after the channel, and never inside this sum.",
        },
    )


def check_by_block(by_block: object, W: Tensor, q: Tensor, channel: int, block: Any) -> Right:
    """Check how much each block adds to a channel, (blocks,), of W (d, s), q (s,) and each source's block from 1."""
    blocks = torch.as_tensor(block) - 1
    count = int(blocks.max()) + 1

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(count).to(values).index_add(0, blocks, values)

    c = W[channel] * q
    return check_numbers(
        by_block,
        sums(c),
        "The blocks, what enters the stream, and the bias add up to the channel.",
        shape="one number for each block",
        mistakes={
            "The values of the sources are added without their weights.": sums(q),
            "The weights are added without the values of their sources.": sums(W[channel]),
            "Those are means; what a block adds is a sum.": sums(c) / torch.bincount(blocks),
            "You have added up from the first block to this one; the question is what each block adds.": (
                sums(c).cumsum(0)
            ),
            "Those are absolute values: what one source adds, another may take away.": sums(c.abs()),
        },
    )


def check_rounding(gap32: Any, gap64: Any) -> Right:
    """Check the largest differences between a sum in two orders, in float32 and in float64."""
    need(gap32)
    need(gap64)
    gap32, gap64 = float(gap32), float(gap64)
    if gap32 < 0 or gap64 < 0:
        raise AnswerError("A largest difference is not negative: take absolute values first.")
    if gap32 > 1e-2:
        raise AnswerError("In float32 the two sums differ by more than rounding: are the same numbers in both?")
    if gap32 == 0:
        raise AnswerError("In float32 both sums are equal to the bit: add the second one in another order.")
    if gap64 > 1e-11:
        raise AnswerError("In float64 the gap is as in float32: convert the contributions before they are added.")
    return Right("The order of additions matters for the last digits alone, and less so in float64.")
