"""Coherence: whether the images that a unit likes best are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from elude_nb.checks import check_count
from elude_nb.scores.inputs import (
    Array,
    as_activations,
    as_codes,
    as_embeddings,
    as_numbers,
    is_constant,
    per_unit,
    unit_vectors,
)


def top_similarity(activations: Array, embeddings: Array, k: int = 10) -> pd.Series[float]:
    """Return the mean pairwise cosine of the ``k`` images that each unit likes best, in [-1/(k-1), 1].

    Higher is better. Without going through the pairs: ``(|sum e|^2 - k) / (k (k - 1))`` over unit vectors ``e``. It is
    the clarity of semanticlens (Nature Machine Intelligence 2025) over embeddings less their mean, so that unrelated
    images score 0.

    Parameters
    ----------
    activations
        (n, u).
    embeddings
        (n, e), centred as wanted; they need not be unit vectors.
    k
        Number of best images, at least 2 and at most n.

    Raises
    ------
    ValueError
        If there are fewer than ``k`` images, the shapes disagree, or a value is not finite.

    Examples
    --------
    >>> same = torch.ones(4, 3)
    >>> top_similarity(torch.arange(4.0)[:, None], same, k=3).round(3).tolist()
    [1.0]
    """
    check_count("k", k, 2)
    values = as_activations(activations)
    unit = unit_vectors(as_embeddings(embeddings, len(values)))
    best = best_images(values, k)
    total = k * top_centres(values, unit, k)  # (u, e)
    selves = unit.square().sum(1)[best].sum(0)  # k, but for embeddings of zeros: those are like no other, cosine 0
    similarity = (total.square().sum(1) - selves) / (k * (k - 1))
    return per_unit("top similarity", similarity.masked_fill(is_constant(values), torch.nan))


def best_images(activations: Tensor, k: int) -> Tensor:
    """Return the numbers of the ``k`` images that each unit likes best, (k, u), best first.

    Raises
    ------
    ValueError
        If there are fewer than ``k`` images.
    """
    check_count("k", k)
    activations = as_numbers("activations", activations)
    if activations.ndim != 2:
        raise ValueError(f"activations must be (n, u), not {tuple(activations.shape)}.")
    if len(activations) < k:
        raise ValueError(f"k={k} best of {len(activations)} images cannot be chosen; use more images or a smaller k.")
    if activations.dtype == torch.bool:  # whether a unit fires: torch ranks only numbers
        activations = activations.to(torch.uint8)
    return activations.topk(k, dim=0).indices


def top_centres(activations: Array, embeddings: Array, k: int = 10) -> Tensor:
    """Return the mean of the unit embeddings of the ``k`` images that each unit likes best, (u, e)."""
    values = as_activations(activations)
    unit = unit_vectors(as_embeddings(embeddings, len(values)))
    total = unit.new_zeros(values.shape[1], unit.shape[1])
    for row in best_images(values, k):
        total += unit[row]
    return total / k


def sibling_similarity(centres: Tensor, channels: Tensor) -> pd.Series[float]:
    """Return how alike each unit's best images are to those of the other units of its channel, in [-1, 1].

    The mean cosine between an image of the one and an image of the other, which is the product of their centres (PURE's
    distance between clusters, arXiv 2404.06453, as a similarity). Lower means that the units of a channel differ.
    A unit without siblings scores NaN.

    Parameters
    ----------
    centres
        From `top_centres`, (u, e).
    channels
        The channel of each unit, (u,).

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, or the centres are not finite.
    """
    centres, channels = as_numbers("centres", centres), as_numbers("channels", channels)
    if centres.ndim != 2 or not bool(centres.isfinite().all()):
        raise ValueError(f"centres {tuple(centres.shape)} must be (u, e), and finite.")
    if channels.shape != (len(centres),):
        raise ValueError(f"channels {tuple(channels.shape)} must be ({len(centres)},), one a unit.")
    places = channels.unique(return_inverse=True)[1]
    number = int(places.max()) + 1 if len(places) else 0
    sums = centres.new_zeros(number, centres.shape[1]).index_add_(0, places, centres)
    others = torch.bincount(places, minlength=number)[places] - 1
    similarity = (centres * (sums[places] - centres)).sum(1) / others.clamp(min=1)
    return per_unit("sibling similarity", similarity.masked_fill(others == 0, torch.nan))


def top_purity(activations: Array, labels: Sequence[Any] | Array, k: int = 10) -> pd.Series[float]:
    """Return the share of each unit's ``k`` best images that bear their commonest label, in [1/k, 1]; higher is better.

    A unit that is constant scores NaN.

    Examples
    --------
    >>> top_purity(torch.tensor([[3.0], [2.0], [1.0]]), ["cat", "cat", "dog"], k=3).round(2).tolist()
    [0.67]
    """
    values = as_activations(activations)
    check_count("k", k, 1, len(values))
    codes, names = as_codes(labels, len(values))
    best = codes[best_images(values, k)]  # (k, u)
    purity = torch.nn.functional.one_hot(best, len(names)).sum(0).amax(1) / k
    return per_unit("top purity", purity.masked_fill(is_constant(values), torch.nan))
