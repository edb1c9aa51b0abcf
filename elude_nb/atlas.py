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
    found = found - (found.max(0) + found.min(0)) / 2
    return Atlas(found / max(float(np.ptp(found, axis=0).max()), 1e-12))
