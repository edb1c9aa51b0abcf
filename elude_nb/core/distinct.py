"""Choose distinct units among many: one that stands for each meaning, where several units mean the same.

Everything here works on activations (x, u) of any kind of units: sub-units of a split, channels, latents of a sparse
autoencoder. The rows ``x`` are images (best), tokens or groups of tokens. Correlations are worked out by blocks, so
memory grows with the number of units and not with its square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elude_nb._util.checks import check_count, check_number
from elude_nb.core.clustering import unit_vectors

THRESHOLD = 0.8
"""Correlation above which two units are taken to mean the same."""

FEWEST_COPIES = 5
"""How many others resemble a unit that is chosen, as long as there are enough such units."""

_BLOCK = 1024  # units whose correlations with all others are made at once
_AT_ONCE = 64  # candidates whose gains are worked out together


def standardise(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return activations with mean 0 and length 1, so that products of columns are correlations, (x, u).

    Parameters
    ----------
    values
        Activations, (x, u). A unit that is constant, up to rounding, becomes 0: it correlates with none.
    weights
        How many tokens each row stands for, (x,); by default 1.
    """
    return unit_vectors(_centred(values, weights).T).T


def spread(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the standard deviation of each unit, (u,); arguments as for `standardise`."""
    return _centred(values, weights).square().sum(0).sqrt()


def _centred(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return activations less their mean, times the square root of each row's share of the weight, (x, u)."""
    weights = values.new_ones(len(values)) if weights is None else weights.to(values)
    share = weights / weights.sum()
    moved = values - share @ values
    rounding = 8 * torch.finfo(values.dtype).eps * values.abs().amax(0)
    return torch.where(moved.abs().amax(0) > rounding, moved, 0) * share.sqrt()[:, None]


def count_copies(standard: Tensor, groups: Tensor | None = None, threshold: float = THRESHOLD) -> Tensor:
    """Return how many other units correlate with each unit above ``threshold``, (u,).

    Parameters
    ----------
    standard
        From `standardise`, (x, u).
    groups
        The channel of each unit, (u,): then units of the same channel are not counted.
    threshold
        A correlation.
    """
    groups = torch.arange(standard.shape[1]) if groups is None else groups
    counts = [
        (find_copies(standard, rows, threshold) & (groups[rows, None] != groups)).sum(1)
        for rows in torch.arange(standard.shape[1]).split(_BLOCK)
    ]
    return torch.cat(counts) if counts else groups.new_zeros(0)


def find_copies(standard: Tensor, units: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Return which units correlate with chosen ones (m,) above ``threshold``, (m, u), bool; each with itself too."""
    return standard[:, units].T @ standard > threshold


def choose_unlike(standard: Tensor, quality: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Return units of which no two correlate above ``threshold``, the best first, (m,).

    Units are gone through by falling quality; one is kept unless it correlates above the threshold with one that was
    kept before. Constant units are left out.

    Parameters
    ----------
    standard
        From `standardise`, (x, u).
    quality
        (u,), higher is better.
    threshold
        A correlation.

    Examples
    --------
    >>> standard = standardise(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.1, 1.0], [0.0, 0.0, 0.0]]))
    >>> choose_unlike(standard, torch.tensor([1.0, 2.0, 0.5])).tolist()
    [1, 2]
    """
    check_number("threshold", threshold)
    left = standard.abs().amax(0) > 0
    kept = []
    for unit in quality.argsort(descending=True, stable=True).tolist():
        if left[unit]:
            kept.append(unit)
            left &= standard.T @ standard[:, unit] <= threshold
            left[unit] = False
    return torch.tensor(kept, dtype=torch.int64)


def choose_covering(
    standard: Tensor,
    n: int,
    *,
    threshold: float = THRESHOLD,
    fewest: int = FEWEST_COPIES,
    worth: Tensor | None = None,
) -> Tensor:
    """Return the ``n`` units that together are high on as many rows as possible, in the order of the choice, (n,).

    Greedy facility location (Nemhauser, Wolsey and Fisher, 1978): the coverage of a set of units is the sum over the
    rows of the largest standard score that one of them has there (0 if none is above its mean), and each step adds the
    unit that raises it most. So no two units are chosen for the same images.

    Candidates are the units that at least ``fewest`` others resemble, with a correlation above ``threshold``: that
    several units agree is evidence that what they respond to is no accident. If there are fewer than ``n`` such units,
    ``fewest`` is lowered one by one until there are enough.

    Parameters
    ----------
    standard
        From `standardise`, (x, u).
    n
        How many, from 1 to u.
    threshold, fewest
        See above.
    worth
        What a unit's standard scores are multiplied by, (u,), at least 0; by default 1.

    Examples
    --------
    >>> choose_covering(standardise(torch.eye(4)[:, [0, 0, 0, 1]]), 4, threshold=0.9).tolist()[:2]
    [0, 3]
    """
    check_count("n", n, 1, standard.shape[1])
    alike = count_copies(standard, threshold=threshold)
    while fewest and int((alike >= fewest).sum()) < n:
        fewest -= 1
    candidates = (alike >= fewest).nonzero().flatten()
    height = standard.T[candidates].clamp(min=0)  # (c, x)
    if worth is not None:
        height = height * worth[candidates, None].to(height)
    covered, bounds = height.new_zeros(height.shape[1]), height.sum(1)
    chosen: list[int] = []
    for _ in range(n):
        # What a unit adds can only fall as others are chosen: gains of earlier steps bound it from above.
        known = torch.zeros(len(candidates), dtype=torch.bool)
        while not known[best := int(bounds.argmax())]:
            promising = bounds.topk(min(_AT_ONCE, len(bounds))).indices
            promising[-1] = best  # of many equal ones, topk need not return the first
            bounds[promising] = (height[promising] - covered).clamp(min=0).sum(1)
            bounds[chosen] = -1
            known[promising] = True
        chosen.append(best)
        covered = torch.maximum(covered, height[best])
        bounds[best] = -1
    return candidates[chosen]


def coverage_gains(standard: Tensor, chosen: Tensor) -> Tensor:
    """Return by how much each chosen unit (m,) raised the coverage of those before it, (m,).

    As a share of the coverage of all units, so that the gains add up to 1 at most; see `choose_covering`.
    """
    if not len(chosen):
        return standard.new_zeros(0)
    height = standard.T.clamp(min=0)
    covered = height[chosen].cummax(0).values.sum(1) / height.amax(0).sum().clamp(min=1e-30)
    return covered.diff(prepend=covered.new_zeros(1))
