from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb.core.clustering import cluster_directions
from elude_nb.core.concepts import Cells, ConceptBook, Moments, make_books
from tests.parts import collected, recording_of

D, S = 5, 7


def random_tokens(tokens: int, *, seed: int = 0, offset: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return channels (t, d) and sources (t, s) that depend on each other, far from zero."""
    rng = np.random.default_rng(seed)
    sources = rng.normal(size=(tokens, S)) + offset
    channels = sources @ rng.normal(size=(S, D)) + 0.1 * rng.normal(size=(tokens, D))
    return torch.from_numpy(channels), torch.from_numpy(sources)


def planted_tokens(
    groups: int, tokens: int, *, noise: float = 0.05, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return channels, sources and the group of each token: far-apart orthogonal directions."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(groups, groups)))[0]
    of = rng.integers(groups, size=tokens)
    channels = centres[of] * rng.uniform(2, 3, size=(tokens, 1)) + noise * rng.normal(size=(tokens, groups))
    sources = np.eye(groups)[of] + noise * rng.normal(size=(tokens, groups))
    return torch.from_numpy(channels), torch.from_numpy(sources), torch.from_numpy(of)


def built(
    channels: torch.Tensor, sources: torch.Tensor, concepts: int, *, capacity: int, micro: int, seed: int = 0, batch=13
) -> tuple[ConceptBook, ConceptBook, Moments]:
    found = collected(recording_of(channels, sources), capacity=capacity, micro=micro, seed=seed, batch=batch)
    return *make_books(found.groups(), concepts, micro, seed), found.moments


@pytest.mark.parametrize(("capacity", "micro"), [(1000, 1000), (40, 10), (16, 8), (9, 30), (1, 8)])
def test_sums_are_those_of_all_tokens_however_few_cells_there_are(capacity, micro) -> None:
    channels, sources = random_tokens(200)
    for book in built(channels, sources, 6, capacity=capacity, micro=micro)[:2]:
        assert int(book.counts.sum()) == 200
        assert (book.counts > 0).all()
        torch.testing.assert_close(book.channel_sums.sum(0), channels.sum(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(book.source_sums.sum(0), sources.sum(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(book.channel_mean(), channels.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(book.source_mean(), sources.mean(0), rtol=1e-12, atol=1e-12)


def test_without_merges_each_group_has_the_sums_of_its_tokens() -> None:
    """Literal second implementation: the tokens of each group are added up one by one."""
    channels, sources = random_tokens(60)
    book, fine, _ = built(channels, sources, 4, capacity=100, micro=100)
    centred = channels - channels.mean(0)
    groups = cluster_directions(centred.float(), torch.ones(60), 4, seed=0, careful=True)
    for group in range(4):
        members = [i for i in range(60) if groups[i] == group]
        assert book.counts[group] == len(members)
        torch.testing.assert_close(book.channel_sums[group], sum(channels[i] for i in members))
        torch.testing.assert_close(book.source_sums[group], sum(sources[i] for i in members))
        mean = torch.stack([sources[i] for i in members]).mean(0) - sources.mean(0)
        torch.testing.assert_close(book.mean_sources()[group], mean)
    assert len(fine) == 60  # fewer tokens than micro-clusters: single tokens
    assert fine.source_sums.equal(sources)


@pytest.mark.parametrize(("capacity", "micro"), [(1000, 1000), (16, 8)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_are_numpys(capacity, micro, offset) -> None:
    channels, sources = random_tokens(150, offset=offset)
    moments = built(channels, sources, 4, capacity=capacity, micro=micro)[2]
    assert moments.tokens == 150
    expected = np.cov(np.hstack([sources.numpy(), channels.numpy()]).T, bias=True)[:S, S:]
    np.testing.assert_allclose(moments.covariance.numpy(), expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(moments.channel_variance.numpy(), channels.numpy().var(0), rtol=1e-8)


def test_moments_in_float32_survive_a_large_mean() -> None:
    channels, sources = random_tokens(5000, offset=300.0)
    moments = built(channels.float(), sources.float(), 4, capacity=512, micro=64, batch=250)[2]
    np.testing.assert_allclose(moments.channel_variance.numpy(), channels.numpy().var(0), rtol=1e-3)


def test_centred_means_weighted_by_counts_add_up_to_nothing() -> None:
    channels, sources = random_tokens(120)
    book = built(channels, sources, 6, capacity=30, micro=12)[0]
    shares = book.counts[:, None] / book.counts.sum()
    torch.testing.assert_close((shares * book.mean_channels()).sum(0), torch.zeros(D, dtype=torch.float64))
    torch.testing.assert_close((shares * book.mean_sources()).sum(0), torch.zeros(S, dtype=torch.float64))
    torch.testing.assert_close(book.directions().norm(dim=1), torch.ones(len(book), dtype=torch.float64))


def test_books_over_the_same_groups_add_up() -> None:
    channels, sources = random_tokens(80)
    groups = torch.arange(80) % 4

    def of(rows: slice) -> ConceptBook:
        single = ConceptBook(torch.ones(80, dtype=torch.int64)[rows], channels[rows], sources[rows])
        return single.regroup(groups[rows], 4)

    whole, parts = of(slice(None)), of(slice(0, 33)) + of(slice(33, None))
    assert whole.counts.equal(parts.counts)
    torch.testing.assert_close(whole.channel_sums, parts.channel_sums)
    torch.testing.assert_close(whole.source_sums, parts.source_sums)
    torch.testing.assert_close(whole.mean_sources(), parts.mean_sources())


def test_books_of_other_shapes_do_not_add_up() -> None:
    one, two = (ConceptBook(torch.ones(g, dtype=torch.int64), torch.ones(g, D), torch.ones(g, S)) for g in (3, 4))
    with pytest.raises(ValueError, match="only books over the same groups"):
        one + two


@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=12))
@settings(deadline=None)
def test_regrouping_keeps_all_sums(groups) -> None:
    size = len(groups)
    book = ConceptBook(
        torch.arange(1, size + 1), torch.arange(2.0 * size).view(size, 2), torch.arange(3.0 * size).view(size, 3)
    )
    merged = book.regroup(torch.tensor(groups), 4)
    for group in range(4):
        members = [i for i in range(size) if groups[i] == group]
        assert int(merged.counts[group]) == sum(int(book.counts[i]) for i in members)
        assert merged.channel_sums[group].equal(book.channel_sums[members].sum(0))
        assert merged.source_sums[group].equal(book.source_sums[members].sum(0))


@pytest.mark.parametrize(("capacity", "micro"), [(5000, 5000), (200, 60), (64, 24)])
def test_planted_groups_are_recovered_through_merges(capacity, micro) -> None:
    channels, sources, of = planted_tokens(8, 2000)
    book = built(channels, sources, 8, capacity=capacity, micro=micro, batch=100)[0]
    assert len(book) == 8
    planted = torch.stack([sources[of == g].mean(0) for g in range(8)]) - sources.mean(0)
    means = book.mean_sources()
    match = torch.cdist(means, planted).argmin(1)
    assert sorted(match.tolist()) == list(range(8))
    # The groups hold the very same tokens, so counts and means are equal, not only near.
    assert book.counts.tolist() == [int((of == g).sum()) for g in match]
    torch.testing.assert_close(means, planted[match], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("capacity", [40, 1000])
def test_the_same_seed_gives_the_same_book(capacity) -> None:
    channels, sources = random_tokens(300)
    one, same, other = (built(channels, sources, 8, capacity=capacity, micro=20, seed=seed)[0] for seed in (1, 1, 2))
    assert one.counts.equal(same.counts)
    assert one.source_sums.equal(same.source_sums)
    assert not one.channel_sums.equal(other.channel_sums)


def test_batches_do_not_change_the_book() -> None:
    channels, sources = random_tokens(300)
    books = [built(channels, sources, 8, capacity=64, micro=20, batch=batch)[0] for batch in (1, 7, 300)]
    for book in books[1:]:
        assert book.counts.equal(books[0].counts)
        torch.testing.assert_close(book.source_sums, books[0].source_sums)


@pytest.mark.parametrize("capacity", [10, 1000])
def test_copies_of_few_tokens_give_as_many_groups_as_there_are_directions(capacity) -> None:
    channels, sources = random_tokens(3)
    copies = torch.arange(121) % 3  # one token waits in the buffer of 10 in the end
    book, fine, moments = built(channels[copies], sources[copies], 8, capacity=capacity, micro=9)
    assert len(book) == 3
    assert sorted(book.counts.tolist()) == [40, 40, 41]
    assert int(fine.counts.sum()) == moments.tokens == 121
    torch.testing.assert_close(book.source_sums.sum(0), sources[copies].sum(0))


@pytest.mark.parametrize("capacity", [10, 1000])
def test_copies_of_one_token_give_one_group(capacity) -> None:
    channels, sources = (x.expand(51, -1) for x in random_tokens(1))
    book, _, moments = built(channels, sources, 4, capacity=capacity, micro=8)
    assert book.counts.sum() == 51
    assert len(book) <= 4
    torch.testing.assert_close(moments.channel_variance, torch.zeros(D, dtype=torch.float64), atol=1e-12, rtol=0)
    assert book.directions().isfinite().all()


def test_too_few_tokens_are_refused_with_what_helps() -> None:
    channels, sources = random_tokens(5)
    with pytest.raises(ValueError, match="5 tokens: too few for 6 concepts; use more images"):
        built(channels, sources, 6, capacity=100, micro=100)


@pytest.mark.parametrize("careful", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_not_lengths_decide_the_group(careful, dtype) -> None:
    angles = torch.tensor([0.0, 0.05, 3.1, 3.15])
    points = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 50.0, 2.0, 0.1])[:, None]
    groups = cluster_directions(points.to(dtype), torch.ones(4), 2, seed=0, careful=careful)
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_each_direction_is_in_the_group_whose_weighted_mean_is_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(80, 3, generator=generator, dtype=torch.float64), dim=1)
    weights = 10 ** (3 * torch.rand(80, generator=generator, dtype=torch.float64))
    groups = cluster_directions(points, weights, 5, seed=0, careful=True)
    centres = []
    for group in range(5):
        mine = [i for i in range(80) if groups[i] == group]
        centres.append(sum(weights[i] * points[i] for i in mine) / sum(weights[i] for i in mine))
    nearest = [min(range(5), key=lambda g: float((points[i] - centres[g]).norm())) for i in range(80)]
    assert groups.tolist() == nearest


def test_book_says_what_it_holds() -> None:
    channels, sources = random_tokens(1200)
    book = built(channels, sources, 6, capacity=5000, micro=5000)[0]
    assert repr(book) == "ConceptBook(6 concepts from 1,200 tokens)"


def test_moments_add_up_whatever_the_cut_and_none_are_neutral() -> None:
    channels, sources = random_tokens(90, offset=1e4)
    whole = Moments.of(channels, sources)
    parts = [Moments.of(channels[a:b], sources[a:b]) for a, b in ((0, 1), (1, 60), (60, 90))]
    for found in (parts[0] + (parts[1] + parts[2]), (parts[2] + parts[0]) + parts[1]):
        torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.channel_variance, whole.channel_variance, rtol=1e-9, atol=1e-9)
    for found in (whole + Moments.empty(D, S), Moments.empty(D, S) + whole):
        assert found.products.equal(whole.products)
        assert found.channel_mean.equal(whole.channel_mean)
    before = parts[0].products.clone()
    parts[0] + parts[1]
    assert parts[0].products.equal(before)


def test_a_token_is_counted_in_the_cell_whose_centre_is_nearest() -> None:
    channels, _ = random_tokens(200)
    cells = Cells.of(channels[:80], 12, seed=0)
    directions = torch.nn.functional.normalize(channels - channels[:80].mean(0), dim=1).float()
    assert cells.nearest(channels).equal(torch.cdist(directions, cells.centres).argmin(1))
    assert len(Cells.of(channels[:5], 12, seed=0)) == 5  # fewer tokens than cells: one each
