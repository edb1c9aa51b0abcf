"""How far two sets of outputs lie apart, gathered batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How far one set of outputs is from another.

    Attributes
    ----------
    identical
        Whether all values are equal.
    max_abs_diff
        Largest absolute difference.
    max_rel_diff
        The same over the largest absolute value of the reference.
    max_ulp_diff
        Largest distance in units in the last place (floating-point numbers between two values; at values that cancel
        to nearly 0 it is large for tiny differences).
    top1_agreement
        Share of outputs whose largest entry is the same one.
    values
        How many values were compared.
    """

    identical: bool
    max_abs_diff: float
    max_rel_diff: float
    max_ulp_diff: int
    top1_agreement: float
    values: int


class Comparison:
    """Gathers differences over batches."""

    def __init__(self) -> None:
        self._identical, self._abs, self._largest, self._ulp = True, 0.0, 0.0, 0
        self._same_top, self._rows, self._values = 0, 0, 0

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Take in the outputs of one batch, (n, ...) each."""
        self._identical &= torch.equal(reference, other)
        apart = (reference.double() - other.double()).abs().nan_to_num(torch.inf, posinf=torch.inf)
        self._abs = max(self._abs, float(apart.masked_fill(reference == other, 0).max()))  # inf equals inf
        self._largest = max(self._largest, float(reference.abs().max()))
        self._ulp = max(self._ulp, _ulps(reference, other))
        same = reference.argmax(-1) == other.argmax(-1)
        self._same_top += int(same.sum())
        self._rows += same.numel()
        self._values += reference.numel()

    def result(self) -> Difference:
        """Return the difference over all that was taken in."""
        relative = self._abs / self._largest if self._largest else self._abs
        agreement = self._same_top / self._rows
        return Difference(self._identical, self._abs, relative, self._ulp, agreement, self._values)


def _ulps(reference: Tensor, other: Tensor) -> int:
    """Return the largest distance in units in the last place; numbers of unlike sign would overflow a difference."""
    a, b = ordered(reference), ordered(other)
    alike = (a < 0) == (b < 0)
    return int(torch.where(alike, (a - b).abs().double(), a.double().abs() + b.double().abs()).max())


def ordered(values: Tensor) -> Tensor:
    """Map floats to whole numbers so that neighbours differ by 1: the distance is one in units in the last place."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize]
    bits = values.contiguous().view(whole).long()
    return torch.where(bits >= 0, bits, torch.iinfo(whole).min - bits)
