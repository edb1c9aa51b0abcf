"""HDBSCAN from a spanning tree of our own: against scikit-learn's, against the package hdbscan, and data bubbles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from elude_nb.core import density
from elude_nb.core.density import (
    all_cosines,
    bubble_distances,
    cluster_by_density,
    cluster_groups_by_density,
    spanning_tree,
    spanning_tree_by_blocks,
)


def blobs(kinds: int = 5, each: int = 60, width: int = 12, *, spread: float = 0.25, seed: int = 0) -> Tensor:
    """Return unit vectors around a few directions, and as many without any."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.nn.functional.normalize(torch.randn(kinds, width, generator=generator, dtype=torch.float64), dim=1)
    vectors = middles.repeat_interleave(each, 0)
    vectors = vectors + spread * torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
    stray = torch.randn(each, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(torch.cat([vectors, stray]), dim=1)


@pytest.mark.parametrize("selection", ["leaf", "eom"])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_those_of_scikit_learn(selection, seed) -> None:
    vectors = blobs(seed=seed)
    found, probabilities = cluster_by_density(vectors, min_cluster_size=9, selection=selection)
    whole = HDBSCAN(min_cluster_size=9, cluster_selection_method=selection, copy=True).fit(vectors.numpy())
    assert adjusted_rand_score(found, whole.labels_) == 1.0
    np.testing.assert_allclose(probabilities, whole.probabilities_, atol=1e-9)
    sizes = torch.bincount(found[found >= 0])
    assert (sizes[:-1] >= sizes[1:]).all()


@pytest.mark.parametrize("selection", ["leaf", "eom"])
def test_the_package_hdbscan_finds_the_same(selection) -> None:
    hdbscan = pytest.importorskip("hdbscan")
    vectors = blobs()
    found, _ = cluster_by_density(vectors, min_cluster_size=9, min_samples=9, selection=selection)
    # Its min_samples leaves the vector itself out.
    other = hdbscan.HDBSCAN(min_cluster_size=9, min_samples=8, cluster_selection_method=selection).fit(vectors.numpy())
    assert adjusted_rand_score(found, other.labels_) > 0.95


@pytest.mark.parametrize("neighbours", [1, 7])
@pytest.mark.parametrize("block", [1, 5000])
def test_trees_are_as_short_as_can_be(neighbours, block, monkeypatch) -> None:
    monkeypatch.setattr(density, "BLOCK", block)
    vectors = blobs(each=20)
    cosines = all_cosines(vectors)
    np.testing.assert_allclose(cosines, vectors @ vectors.T, atol=1e-12)
    reach = np.sort(cosines, axis=1)[:, -neighbours]
    mutual = np.minimum(np.minimum(cosines, reach), reach[:, None])
    shortest = minimum_spanning_tree(2 - mutual).sum()  # distances above 0
    for ends, near in (spanning_tree(cosines, reach), spanning_tree_by_blocks(vectors, reach)):
        assert ends.shape == (len(vectors) - 1, 2)
        assert (2 - near).sum() == pytest.approx(shortest)
        assert len(np.unique(ends)) == len(vectors)


def test_tables_too_large_to_keep_are_worked_out_by_blocks(monkeypatch) -> None:
    vectors = blobs()
    kept, _ = cluster_by_density(vectors, min_cluster_size=9)
    monkeypatch.setattr(density, "MOST_KEPT", 0)
    monkeypatch.setattr(density, "BLOCK", 1000)
    monkeypatch.setattr(density, "spanning_tree", lambda *_: pytest.fail("the table was kept"))
    found, _ = cluster_by_density(vectors, min_cluster_size=9)
    assert adjusted_rand_score(kept, found) > 0.95  # edges of equal length are taken in another order
    assert density.expected_bytes(100_000, 10) < 1 << 30


def test_vectors_that_are_all_alike_are_one_cluster() -> None:
    vectors = torch.nn.functional.normalize(torch.ones(50, 6), dim=1)
    groups, probabilities = cluster_by_density(vectors, min_cluster_size=5)
    assert int(groups.max()) < 1
    assert bool(probabilities.isfinite().all())
    with pytest.raises(ValueError, match="min_samples=51"):
        cluster_by_density(vectors, min_cluster_size=5, min_samples=51)


def literal_bubble_distance(means, counts, i: int, j: int) -> float:
    """Follow Breunig et al. (2001), definitions 7 and 8, for two groups."""
    extent, nearest = {}, {}
    for g in (i, j):
        variance = (1 - float(means[g] @ means[g])) * counts[g] / max(counts[g] - 1, 1)
        extent[g] = (2 * variance) ** 0.5 if counts[g] > 1 else 0.0
        nearest[g] = (1 / counts[g]) ** (1 / density.DIMENSION) * extent[g]
    between = float(np.linalg.norm(means[i] - means[j]))
    if between - (extent[i] + extent[j]) >= 0:
        return float(max(between - (extent[i] + extent[j]) + nearest[i] + nearest[j], nearest[i], nearest[j]))
    outside = between - (extent[i] + extent[j]) + nearest[i] + nearest[j]
    return float(max(outside, nearest[i], nearest[j]))


def grouped(vectors: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Return means and counts of consecutive vectors."""
    parts = vectors.split(each)
    return torch.stack([part.mean(0) for part in parts]), torch.tensor([len(part) for part in parts])


def test_distances_between_groups_are_those_of_the_definition() -> None:
    means, counts = grouped(blobs(each=10), 7)
    counts[3] = 1
    apart, extents = bubble_distances(means, counts.numpy())
    assert extents[3] == 0
    for i in range(len(means)):
        for j in range(len(means)):
            if i != j:
                expected = literal_bubble_distance(means.numpy(), counts.numpy(), i, j)
                assert apart[i, j] == pytest.approx(expected, abs=1e-7)


def test_groups_are_clustered_as_their_members_are() -> None:
    vectors = blobs(each=120, spread=0.1)
    exact, _ = cluster_by_density(vectors, min_cluster_size=40)
    means, counts = grouped(vectors, 6)
    groups, membership = cluster_groups_by_density(means, counts, min_cluster_size=40)
    assert int(groups.max()) == int(exact.max()) == 4
    assert adjusted_rand_score(exact[:600], groups.repeat_interleave(6)[:600]) > 0.9
    assert ((membership >= 0) & (membership <= 1)).all()


def test_groups_of_one_member_are_vectors() -> None:
    vectors = blobs()
    exact, _ = cluster_by_density(vectors, min_cluster_size=9)
    groups, _ = cluster_groups_by_density(vectors, torch.ones(len(vectors), dtype=torch.int64), min_cluster_size=9)
    assert adjusted_rand_score(exact, groups) > 0.95


def test_the_tree_does_not_grow_with_the_tokens(monkeypatch) -> None:
    means, counts = grouped(blobs(each=120, spread=0.1), 6)
    sizes = []
    real = density._clusters

    def counted(ends, *more):
        sizes.append(len(ends))
        return real(ends, *more)

    monkeypatch.setattr(density, "_clusters", counted)
    for times in (1, 1000):
        groups, _ = cluster_groups_by_density(means, counts * times, min_cluster_size=40 * times)
        assert int(groups.max()) == 4
    assert sizes[1] <= 1.5 * sizes[0]
