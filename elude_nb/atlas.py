"""The atlas: concepts laid out in the plane, near each other if they drive the channels alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from elude_nb.checks import check_count
from elude_nb.disentanglement import Disentanglement

_PERPLEXITY = 12.0


@dataclass(frozen=True, eq=False)
class Atlas:
    """A map of concepts.

    Attributes
    ----------
    positions
        Of each concept, (g, 2), centred, the larger extent being 1.
    """

    positions: np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def lay_out(split: Disentanglement, *, seed: int = 0) -> Atlas:
    """Lay the concepts of a split out by the similarity of their directions.

    t-SNE (van der Maaten and Hinton, 2008) on cosine distances, begun at the two first principal components, so that
    the same split gives the same map. Distances between far concepts mean nothing; neighbourhoods do.

    Raises
    ------
    ValueError
        If ``seed`` is negative.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    check_count("seed", seed, 0)
    directions = split.book.directions().double().numpy()
    found: Any = np.zeros((len(directions), 2))
    if len(directions) > 2:
        start = PCA(2, random_state=seed).fit_transform(directions)
        found = start
        if len(directions) > 4:
            start = 1e-4 * start / max(float(start.std()), 1e-12)
            perplexity = min(_PERPLEXITY, (len(directions) - 1) / 3)
            tsne = TSNE(2, perplexity=perplexity, init=start, metric="cosine", random_state=seed)
            found = tsne.fit_transform(directions)
    elif len(directions) == 2:
        found = np.array([[-0.5, 0.0], [0.5, 0.0]])
    if len(found) > 2:
        found = PCA(2, random_state=seed).fit_transform(found)  # its longer way lies flat, as pages are wide
    found = found - (found.max(0) + found.min(0)) / 2
    return Atlas(found / max(float(np.ptp(found, axis=0).max()), 1e-12))


def spread(positions: np.ndarray[tuple[int, ...], np.dtype[np.float64]], side: float) -> np.ndarray[Any, Any]:
    """Push squares of this side apart until none hides another, each as little as it takes; return where they are.

    ``positions`` are their centres, (g, 2). After 300 rounds it is left as it is.
    """
    found = np.array(positions, dtype=np.float64)
    for _ in range(300):
        apart = found[:, None] - found[None]  # (g, g, 2)
        overlap: Any = np.maximum(side - np.abs(apart), 0)
        both: Any = (overlap > 1e-9).all(2)
        np.fill_diagonal(both, val=False)
        if not both.any():
            break
        # Of two that overlap each goes half the shorter way out; two at one place go by their order.
        order = np.sign(np.arange(len(found))[:, None] - np.arange(len(found))[None])[..., None]
        way = np.where(apart == 0, order, np.sign(apart))
        shorter = overlap == overlap.min(2, keepdims=True)
        found += (0.5 * way * overlap * shorter * both[..., None]).sum(1) / np.maximum(both.sum(1), 1)[:, None]
    return found
