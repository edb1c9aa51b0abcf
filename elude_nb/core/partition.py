"""Shares of a weight that add up to it bit for bit, in whatever order they are added.

``W / 3 + W / 3 + W / 3`` is not ``W`` in floating point. A floating-point number is a whole number, its mantissa, times
a power of two; the whole number can be divided among the members of a set, quotient and remainder. Each share is a
multiple of the same power of two and no larger than ``W``, so it is representable, and so is every partial sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = {torch.float64: -1074, torch.float32: -149, torch.bfloat16: -133, torch.float16: -24}
"""Exponent of the smallest subnormal number of each dtype."""


def equal_share(values: Tensor, count: Tensor, rank: Tensor) -> Tensor:
    """Return the share that one member of a set has of each value.

    Parameters
    ----------
    values
        The values to share, of any shape and floating-point dtype, finite.
    count
        How many members share each value, at least 1, int64, of the same shape.
    rank
        Which of them is asked for, 0 to ``count - 1``, int64.

    Returns
    -------
    Tensor
        In the dtype of ``values``. A share differs from ``values / count`` by less than one unit in the last place of
        the value; those of all ranks add up to the value bit for bit in any order.
    """
    whole, exponent = _as_whole(values)
    quotient, remainder = whole.abs() // count, whole.abs() % count
    return _as_float((quotient + (rank < remainder)) * whole.sign(), exponent, values.dtype)


def proportional_shares(values: Tensor, proportions: Tensor) -> Tensor:
    """Return shares of values (c,) in given proportions (c, k), each row of which adds up to 1: (c, k).

    Shares of a value add up to it bit for bit in any order; each is within one unit in its last place, times k, of the
    exact proportion.
    """
    whole, exponent = _as_whole(values)
    size = whole.abs()[:, None]
    parts = (size * proportions.double()).floor().long().clamp(min=0)
    left = size - parts.sum(1, keepdim=True)  # of the order of k, since each part was rounded down
    largest = proportions.argmax(1, keepdim=True)
    parts = parts.scatter_add(1, largest, left)
    return _as_float(parts * whole.sign()[:, None], exponent[:, None], values.dtype)


def _as_whole(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return int64 mantissas and exponents with ``values == mantissa * 2 ** exponent`` exactly."""
    digits = 53 if values.dtype == torch.float64 else 24  # enough for all narrower dtypes, which are widened exactly
    digits = {torch.bfloat16: 8, torch.float16: 11}.get(values.dtype, digits)
    mantissa, power = torch.frexp(values.double())
    exponent = (power.long() - digits).clamp(min=_SMALLEST[values.dtype])
    return torch.ldexp(mantissa, power.long() - exponent).long(), exponent


def _as_float(whole: Tensor, exponent: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ldexp(whole.double(), exponent).to(dtype)
