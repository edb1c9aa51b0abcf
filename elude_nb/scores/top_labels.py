"""How far the labels of a unit's best images agree: a judge that owes nothing to any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count
from elude_nb.scores.inputs import Array, as_activations, as_codes, is_constant, per_unit
from elude_nb.scores.similarity import best_images


def top_purity(activations: Array, labels: Sequence[Any] | Array, k: int = 10) -> pd.Series[float]:
    """Return the share of each unit's ``k`` best images with their most common label, in [1/k, 1]; higher is better.

    A unit that is constant scores NaN.

    Examples
    --------
    >>> top_purity(torch.tensor([[3.0], [2.0], [1.0]]), ["cat", "cat", "dog"], k=3).round(2).tolist()
    [0.67]
    """
    counts, _, constant = _count_labels(activations, labels, check_count("k", k))
    return per_unit("top_purity", counts.amax(1) / k, missing=constant)


def label_share_over_chance(activations: Array, labels: Sequence[Any] | Array, k: int = 10) -> pd.Series[float]:
    """Return how often two of a unit's ``k`` best images share a label, over chance; 1 is chance, higher is better.

    The share of pairs of different best images with the same label, ``sum over labels of m (m - 1) / (k (k - 1))``
    with ``m`` of the best images of a label, divided by the same share among all images. A unit that is constant
    scores NaN; so do all where no two images share a label, since chance is 0 then.

    Parameters
    ----------
    activations
        (n, u).
    labels
        One an image, (n,).
    k
        How many best images, at least 2 and at most n.

    Raises
    ------
    ValueError
        If there are fewer than ``k`` images, or one has no label.

    Examples
    --------
    >>> activations = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    >>> label_share_over_chance(activations, ["cat", "cat", "dog", "dog"], k=2).tolist()
    [3.0]
    """
    counts, every, constant = _count_labels(activations, labels, check_count("k", k, 2))
    chance = _share_of_pairs(every)
    return per_unit("label_share_over_chance", _share_of_pairs(counts) / chance, missing=constant | (chance == 0))


def _count_labels(activations: Array, labels: Sequence[Any] | Array, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return how often each label is among a unit's best images (u, l) and all (l,), and which units are constant."""
    values = as_activations(activations)
    check_count("k", k, 1, len(values))
    codes, names = as_codes(labels, len(values))
    best = codes[best_images(values, k)]  # (k, u)
    counts = torch.nn.functional.one_hot(best, len(names)).sum(0)
    return counts, torch.bincount(codes, minlength=len(names)), is_constant(values)


def _share_of_pairs(counts: Tensor) -> Tensor:
    """Return the share of pairs of different images that have the same label, from how many have each, (..., l)."""
    number = counts.sum(-1)
    return (counts * (counts - 1)).sum(-1) / (number * (number - 1)).clamp(min=1)
