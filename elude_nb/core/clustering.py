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
            unit_vectors(points).cpu().numpy(), sample_weight=weights.cpu().numpy()
        )
    return torch.from_numpy(np.asarray(fitted.labels_, dtype=np.int64)).to(points.device)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Return vectors (..., d) scaled to length 1; a zero vector stays zero."""
    return torch.nn.functional.normalize(vectors, dim=-1, eps=1e-12)
