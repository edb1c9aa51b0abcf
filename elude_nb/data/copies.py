"""Images that are copies of others: the same pixels, or nearly so, as after another compression."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

NEAR = 0.1
"""Two images are copies if they differ by less than this share of their contrast (both as standard deviations)."""
_BUCKETS = 256
_ROWS = 1024


def sketch(images: Tensor) -> Tensor:
    """Return a short sketch of each of ``n`` inputs (n, ...) of one shape, (n, 257), on the CPU.

    Its distances are those of the inputs but for some 5 % (a count sketch: all numbers with random signs, summed in
    buckets). The last column is the distance below which another input is a copy.
    """
    values = images.detach().flatten(1).cpu()
    whole = not values.is_floating_point()  # numbers of words: nearly the same is another sentence
    values = values.float()
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, values.shape[1:], generator=generator) * 2.0 - 1
    padding = -values.shape[1] % _BUCKETS
    sums = torch.nn.functional.pad(values * signs, (0, padding)).unflatten(1, (-1, _BUCKETS)).sum(1)
    rounding = 1e-5 * values.norm(dim=1)
    contrast = (values - values.mean(1, keepdim=True)).norm(dim=1)
    near = torch.zeros_like(rounding) if whole else rounding + NEAR * contrast
    return torch.cat([sums, near[:, None]], dim=1)


def find_originals(sketches: Tensor) -> Tensor:
    """Return for each input the number of the first one that it is a copy of; its own, if of none, (n,)."""
    sums, near = sketches[:, :-1].double(), sketches[:, -1].double()  # rounding is far below any distance allowed
    squares = sums.square().sum(1)
    found = torch.arange(len(sums))
    for start in range(0, len(sums), _ROWS):
        rows = slice(start, start + _ROWS)
        apart = squares[rows, None] + squares[: start + _ROWS] - 2 * sums[rows] @ sums[: start + _ROWS].T
        allowed = torch.minimum(near[rows, None], near[: start + _ROWS]).square()
        copies = (apart <= allowed).tril(start - 1)  # of earlier ones
        for row in copies.any(1).nonzero().flatten().tolist():
            found[start + row] = found[int(copies[row].int().argmax())]
    return found


def distinct_numbers(originals: Tensor, names: Sequence[str], *, warn: bool = True) -> Tensor:
    """Return the numbers of the inputs that are no copies; a warning counts the others and names some."""
    numbers = torch.arange(len(originals))
    copies = (originals != numbers).nonzero().flatten().tolist()
    if copies and warn:
        said = ", ".join(f"{names[i]!r} (of {names[int(originals[i])]!r})" for i in copies[:3])
        warnings.warn(
            f"{len(copies)} of {len(originals)} images are copies of others and count once with these: {said}"
            f"{', ...' if len(copies) > 3 else ''}",
            stacklevel=3,
        )
    return (originals == numbers).nonzero().flatten()
