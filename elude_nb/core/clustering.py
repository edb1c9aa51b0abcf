"""Group tokens by direction: spherical k-means."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def cluster_directions(points: Tensor, weights: Tensor, groups: int, *, seed: int, careful: bool = False) -> Tensor:
    """Group points (n, d) by direction: weighted k-means on their unit vectors; return groups (n,).

    ``careful`` spends k-means++ and more steps on it, for the concepts themselves; micro-clusters need neither.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    how: dict[str, Any] = {"init": "k-means++", "max_iter": 60} if careful else {"init": "random", "max_iter": 6}
    with warnings.catch_warnings():
        # Fewer distinct directions than groups is no fault: the empty groups are dropped afterwards.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(groups, n_init=1, random_state=seed, **how).fit(
            unit_vectors(points).numpy(), sample_weight=weights.numpy()
        )
    return torch.from_numpy(np.asarray(fitted.labels_, dtype=np.int64))


def unit_vectors(vectors: Tensor) -> Tensor:
    """Return vectors (..., d) scaled to length 1; a zero vector stays zero."""
    return torch.nn.functional.normalize(vectors, dim=-1, eps=1e-12)


def cluster_by_density(
    vectors: Tensor, *, min_cluster_size: int, min_samples: int | None = None, selection: str = "leaf"
) -> tuple[Tensor, Tensor]:
    """Cluster unit vectors (n, s) with HDBSCAN (Campello, Moulavi and Sander, 2013), as scikit-learn has it.

    Distances are worked out from one matrix product, ``|a - b|^2 = 2 - 2 a b``.

    Parameters
    ----------
    vectors
        Vectors of length 1, (n, s).
    min_cluster_size, min_samples, selection
        As in `sklearn.cluster.HDBSCAN`; ``selection`` is ``"leaf"`` or ``"eom"``.

    Returns
    -------
    groups, probabilities
        For each vector its cluster, or -1 for noise, (n,) int64, and how strongly it belongs to it, (n,).
    """
    from sklearn.cluster import HDBSCAN

    cosines = vectors @ vectors.T
    distances = (2 - 2 * cosines).clamp_(min=0).sqrt_().fill_diagonal_(0).double().numpy()
    model = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=min_samples,
        metric="precomputed",
        cluster_selection_method=selection,
        copy=False,
    )
    found = model.fit(distances)
    groups = torch.from_numpy(np.asarray(found.labels_, dtype=np.int64))
    return groups, torch.from_numpy(np.asarray(found.probabilities_)).to(vectors.dtype)
