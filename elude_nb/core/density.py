"""Cluster by density: HDBSCAN on unit vectors, or on groups of vectors ("data bubbles"), in bounded memory.

HDBSCAN is a minimum spanning tree of mutual reachability distances, and a hierarchy cut out of it. The tree is made
here, by matrix products; scikit-learn's `HDBSCAN` takes it as a sparse matrix of distances and makes the clusters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_KEPT = 1 << 30
"""Largest table of all cosines that is kept, in bytes; beyond it, they are worked out again for each round."""
BLOCK = 1 << 24  # cosines worked out at once where they are not kept

DIMENSION = 10.0
"""Taken for the dimension of the tokens in a group, which says how near the nearest of n tokens is (Breunig et al.,
2001, section 5). From 5 to 100 the number of clusters grows by a sixth (docs/method.md)."""

_FINEST = 32  # copies that stand for a smallest cluster of groups, so that the tree does not grow with the tokens
_NEAREST = 1e-12  # the least distance: a sparse matrix does not hold 0

_Array = np.ndarray[Any, Any]


def cluster_by_density(
    vectors: Tensor, *, min_cluster_size: int, min_samples: int | None = None, selection: str = "leaf"
) -> tuple[Tensor, Tensor]:
    """Cluster unit vectors (n, s) with HDBSCAN (Campello, Moulavi and Sander, 2013).

    The clusters are those of `sklearn.cluster.HDBSCAN` with the distances between the vectors, but for rounding. Where
    the table of all cosines is larger than ``MOST_KEPT``, it is worked out by blocks, several times (Boruvka's
    algorithm); there, edges of equal length may be taken in another order. Cosines are worked out on the vectors'
    device, and the tree and its clusters on the CPU.

    Parameters
    ----------
    vectors
        Vectors of length 1, (n, s).
    min_cluster_size, min_samples, selection
        As in `sklearn.cluster.HDBSCAN`; ``selection`` is ``"leaf"`` or ``"eom"``.

    Returns
    -------
    groups, probabilities
        For each vector its cluster, the largest first, or -1 for noise, (n,) int64; and how strongly it belongs to it,
        (n,).

    Raises
    ------
    ValueError
        If ``min_samples`` exceeds the number of vectors.
    """
    neighbours = _checked(min_samples or min_cluster_size, len(vectors))
    if len(vectors) ** 2 * vectors.itemsize <= MOST_KEPT:
        cosines = all_cosines(vectors)
        reach = np.concatenate([_largest(cosines[rows], neighbours) for rows in _blocks(len(cosines))])
        ends, cosine = spanning_tree(cosines, reach)
    else:
        blocks = (cosines_of(vectors, rows) for rows in _blocks(len(vectors)))
        reach = np.concatenate([_largest(block, neighbours) for block in blocks])
        ends, cosine = spanning_tree_by_blocks(vectors, reach)
    lengths = np.sqrt(np.maximum(2 - 2 * cosine.astype(np.float64), 0))
    groups, probabilities = _clusters(ends, lengths, min_cluster_size, selection)
    return torch.from_numpy(groups).to(vectors.device), torch.from_numpy(probabilities).to(vectors)


def cluster_groups_by_density(
    means: Tensor,
    counts: Tensor,
    *,
    min_cluster_size: int,
    min_samples: int | None = None,
    selection: str = "leaf",
) -> tuple[Tensor, Tensor]:
    """Cluster groups of unit vectors with HDBSCAN as if their members were there: data bubbles.

    Breunig, Kriegel, Kroeger and Sander (*Data Bubbles*, SIGMOD 2001, definitions 7 to 9). A group is a ball around its
    mean, its extent the root mean square distance between two members; the k nearest of its n members lie within
    ``(k / n) ** (1 / DIMENSION)`` of that. Two groups are as far apart as their balls' surfaces, and at least as far as
    neighbours inside of them. Each group counts for as many vectors as it has.

    Parameters
    ----------
    means
        The mean of each group's unit vectors, (m, s): its length says how far they spread.
    counts
        How many vectors each group has, (m,), whole numbers from 1 on.
    min_cluster_size, min_samples
        In vectors, not groups.
    selection
        ``"leaf"`` or ``"eom"``.

    Returns
    -------
    groups, probabilities
        For each group its cluster, or -1 for noise, (m,) int64, and how strongly it belongs to it, (m,).

    Raises
    ------
    ValueError
        If ``min_samples`` exceeds the number of vectors.
    """
    size = counts.cpu().numpy().astype(np.int64)
    neighbours = _checked(min_samples or min_cluster_size, int(size.sum()))
    apart, extents = bubble_distances(means, size)
    reach = _bubble_reach(apart, extents, size, neighbours)
    ends, nearness = spanning_tree(-apart, -reach)
    fineness = max(1, min_cluster_size // _FINEST)
    copies = np.maximum(1, np.round(size / fineness)).astype(np.int64) - 1
    members = np.repeat(np.arange(len(size)), copies)
    inside = np.stack([members, len(size) + np.arange(len(members))], axis=1)
    groups, probabilities = _clusters(
        np.concatenate([ends, inside]),
        np.concatenate([-nearness, reach[members]]).astype(np.float64),
        max(2, round(min_cluster_size / fineness)),
        selection,
    )
    groups, probabilities = groups[: len(size)], probabilities[: len(size)]
    return torch.from_numpy(groups).to(means.device), torch.from_numpy(probabilities).to(means)


def expected_bytes(vectors: int, width: int, item: int = 4) -> int:
    """Return the most memory that `cluster_by_density` takes beside the vectors (n, width) themselves."""
    table = vectors**2 * item
    return (table if table <= MOST_KEPT else 6 * BLOCK * item) + vectors * (width * item + 600)


def bubble_distances(means: Tensor, counts: _Array) -> tuple[_Array, _Array]:
    """Return the distances between groups (m, m) and the groups' extents (m,); see `cluster_groups_by_density`.

    A group of one member has no extent of its own, and none is made up for it.
    """
    products = all_cosines(means)
    squares = np.diagonal(products).copy()
    between = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    # The mean of n vectors is longer than that of their distribution: unbiased as a variance is.
    spread = np.maximum(1 - squares, 0) * counts / np.maximum(counts - 1, 1)
    extents = np.sqrt(2 * spread).astype(products.dtype) * (counts > 1)
    nearest = extents * _within(1, counts)
    surfaces = between - (extents[:, None] + extents) + (nearest[:, None] + nearest)
    apart = np.maximum(surfaces, np.maximum(nearest[:, None], nearest)).astype(products.dtype)
    return apart, extents


def _bubble_reach(apart: _Array, extents: _Array, counts: _Array, neighbours: int) -> _Array:
    """Return how far each group's members have to look for so many neighbours, themselves among them, (m,)."""
    order = np.argsort(apart + np.diag(np.full(len(apart), -np.inf)), axis=1)
    reached = (counts[order].cumsum(1) >= neighbours).argmax(1)  # the first of them is the group itself
    last = order[np.arange(len(order)), reached]
    own = extents * _within(neighbours, counts)
    found: _Array = np.where(reached == 0, own, apart[np.arange(len(order)), last]).astype(apart.dtype)
    return found


def _within(neighbours: int, counts: _Array) -> _Array:
    """Return the share of a group's extent within which its members have so many neighbours, (m,)."""
    share: _Array = np.minimum(neighbours / counts, 1) ** (1 / DIMENSION)
    return share


def all_cosines(vectors: Tensor) -> _Array:
    """Return the products of all pairs of vectors (n, s), (n, n): half of them worked out, the other half mirrored."""
    from scipy.linalg.blas import dsyrk, ssyrk

    if vectors.device.type == "cpu":
        product = dsyrk if vectors.dtype == torch.float64 else ssyrk
        array = np.ascontiguousarray(vectors.numpy())
        table: _Array = product(1.0, array.T, trans=1, lower=0).T  # the lower half, row by row
    else:  # a GPU works out all of them sooner
        table = cosines_of(vectors, slice(None))
    step = 256
    for start in range(0, len(table), step):
        corner = table[start : start + step, start : start + step]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
        table[start : start + step, start + step :] = table[start + step :, start : start + step].T
    return table


def cosines_of(vectors: Tensor, rows: slice) -> _Array:
    """Return the products of some of the vectors (n, s) with all of them."""
    products: _Array = (vectors[rows] @ vectors.T).cpu().numpy()
    return products


def spanning_tree(nearness: _Array, reach: _Array) -> tuple[_Array, _Array]:
    """Return the edges (n - 1, 2) of a tree of mutual reachability, and how near their ends are (n - 1,).

    Prim's algorithm, ties and all as scikit-learn has it: each edge starts at the vertex that was added last.

    Parameters
    ----------
    nearness
        The larger the nearer, (n, n), symmetric: cosines, or distances times -1.
    reach
        What of it each has with its k-th neighbour, (n,).
    """
    count = len(nearness)
    ends, found = np.empty((count - 1, 2), np.int64), np.empty(count - 1, nearness.dtype)
    best, row = np.full(count, -np.inf, nearness.dtype), np.empty(count, nearness.dtype)
    taken = np.zeros(count, nearness.dtype)
    here = 0
    for step in range(count - 1):
        taken[here] = -np.inf
        np.minimum(nearness[here], reach, out=row)
        np.minimum(row, reach[here], out=row)
        np.maximum(best, row, out=best)
        np.add(best, taken, out=row)
        there = int(row.argmax())
        ends[step], found[step] = (here, there), best[there]
        here = there
    return ends, found


def spanning_tree_by_blocks(vectors: Tensor, reach: _Array) -> tuple[_Array, _Array]:
    """Return what `spanning_tree` returns of the cosines of unit vectors (n, s), without keeping them.

    Boruvka's algorithm: in each round every tree takes its nearest edge to another, so there are at most log2(n)
    rounds, each of which works out all cosines. Edges of equal length are told apart by the numbers of their ends.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(vectors)
    trees, here = np.arange(count), np.arange(count)
    ends, found = np.empty((0, 2), np.int64), np.empty(0, reach.dtype)
    while len(ends) < count - 1:
        there, near = np.empty(count, np.int64), np.empty(count, reach.dtype)
        for rows in _blocks(count):
            cosines = cosines_of(vectors, rows)
            np.minimum(cosines, reach, out=cosines)
            np.minimum(cosines, reach[rows, None], out=cosines)
            cosines[trees[rows, None] == trees] = -np.inf
            there[rows] = cosines.argmax(1)
            near[rows] = cosines[np.arange(len(cosines)), there[rows]]
        low, high = np.minimum(here, there), np.maximum(here, there)
        order = np.lexsort((high, low, -near, trees))
        first = order[np.unique(trees[order], return_index=True)[1]]
        edges, place = np.unique(np.stack([low, high], axis=1)[first], axis=0, return_index=True)
        ends, found = np.concatenate([ends, edges]), np.concatenate([found, near[first[place]]])
        graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
        trees = connected_components(graph, directed=False)[1]
    return ends, found


def _clusters(ends: _Array, lengths: _Array, min_cluster_size: int, selection: str) -> tuple[_Array, _Array]:
    """Return clusters (n,) and probabilities (n,) of a tree (n - 1, 2) with its edges' lengths.

    With ``min_samples=1``, scikit-learn leaves the tree's distances as they are. Edges of equal length are told apart
    by the last bits, in the order in which `HDBSCAN` sorts a dense matrix's.
    """
    from scipy.sparse import coo_array
    from sklearn.cluster import HDBSCAN

    order = np.argsort(lengths)
    steps = np.arange(len(order))
    bits = np.maximum(lengths[order], _NEAREST).view(np.int64) - steps
    lengths = np.empty(len(order))
    lengths[order] = (np.maximum.accumulate(bits) + steps).view(np.float64)
    count = len(ends) + 1
    both = np.concatenate([ends, ends[:, ::-1]])
    tree = coo_array((np.concatenate([lengths, lengths]), (both[:, 0], both[:, 1])), shape=(count, count)).tocsr()
    model = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=1,
        metric="precomputed",
        cluster_selection_method=selection,
        copy=False,
    )
    found = model.fit(tree)
    labels, probabilities = np.asarray(found.labels_, dtype=np.int64), np.asarray(found.probabilities_)
    _, first, sizes = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    number = np.append(np.argsort(np.lexsort((first, -sizes))), -1)  # noise, -1, stays so
    return number[labels], probabilities


def _blocks(count: int) -> Iterator[slice]:
    """Return which rows of a table (count, count) are worked on at once."""
    step = max(1, math.ceil(BLOCK / count))
    return (slice(start, start + step) for start in range(0, count, step))


def _largest(rows: _Array, number: int) -> _Array:
    """Return the so-manieth largest value of each row."""
    place = rows.shape[1] - number
    found: _Array = np.partition(rows, place, axis=1)[:, place]
    return found


def _checked(neighbours: int, count: int) -> int:
    if neighbours > count:
        raise ValueError(f"min_samples={neighbours} exceeds the {count:,} vectors; give fewer.")
    return neighbours
