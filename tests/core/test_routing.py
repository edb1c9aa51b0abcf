from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb.core.concepts import ConceptBook
from elude_nb.core.routing import MOST_UNITS, NO_CONCEPT, Routing, shuffled
from elude_nb.core.strategies import (
    ROUTINGS,
    ChannelClusterRouting,
    ConceptRouting,
    RandomRouting,
    agreement_of,
    check_routing_settings,
    find_routing,
    owners,
    strongest_concepts,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def random_book(groups: int, weight: torch.Tensor, *, seed: int = 0, counts: torch.Tensor | None = None) -> ConceptBook:
    """Return a book whose channels are W times its sources, as at a real site."""
    _, s, kernel = weight.shape
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(groups, s * kernel, generator=generator, dtype=torch.float64) + 0.5
    if counts is None:
        counts = torch.randint(1, 20, (groups,), generator=generator)
    sums = sources * counts[:, None]
    return ConceptBook(counts, sums @ weight.flatten(1).double().T, sums.to(weight.dtype))


def random_weight(d: int, s: int, kernel: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(d, s, kernel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@st.composite
def routings(draw) -> tuple[Routing, torch.Tensor]:
    """Draw a routing and weights (d, s * kernel) for it."""
    d, s, k, kernel = (draw(st.integers(1, high)) for high in (5, 9, 4, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    routes = torch.randint(0, k + 1, (d, s), generator=generator).to(torch.uint8)
    concepts = torch.randint(-1, 6, (d, k), generator=generator)
    weight = torch.randn(d, s * kernel, generator=generator).to(draw(st.sampled_from(DTYPES)))
    return Routing(routes, concepts, ("drawn",) * d), weight


def assert_partition(routing: Routing, weight: torch.Tensor) -> None:
    """Every weight stands in exactly one unit, so that adding the units up in any order gives it back exactly."""
    channels, units = routing.rows()
    rows = routing.masked(weight, channels, units)
    kernel = weight.shape[1] // routing.routes.shape[1]
    total = torch.zeros_like(weight).index_add(0, channels, rows)
    assert total.equal(weight)
    for row, (channel, unit) in enumerate(zip(channels.tolist(), units.tolist(), strict=True)):
        for column in range(weight.shape[1]):
            mine = int(routing.routes[channel, column // kernel]) == unit
            assert rows[row, column] == (weight[channel, column] if mine else 0)
    sizes = routing.sizes()
    assert sizes.sum(1).tolist() == [routing.routes.shape[1]] * len(weight)
    expected = {(j, 0) for j in range(len(weight))} | {
        (j, int(u)) for j in range(len(weight)) for u in routing.routes[j]
    }
    assert list(zip(channels.tolist(), units.tolist(), strict=True)) == sorted(expected)
    for channel, unit in itertools.product(range(len(weight)), range(routing.units + 1)):
        assert sizes[channel, unit] == (routing.routes[channel] == unit).sum()
    assert routing.is_split().tolist() == [bool(row.any()) for row in routing.routes]


@settings(deadline=None, max_examples=60)
@given(routings())
def test_a_routing_is_always_a_partition(drawn) -> None:
    assert_partition(*drawn)


@settings(deadline=None, max_examples=40)
@given(
    d=st.integers(1, 6),
    s=st.integers(2, 12),
    kernel=st.sampled_from([1, 4]),
    groups=st.integers(2, 9),
    units=st.integers(2, 5),
    shared=st.sampled_from([None, 0.0, 0.5, 0.8, 1.0]),
    name=st.sampled_from(sorted(name for name in ROUTINGS if not name.startswith("elude"))),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_every_strategy_partitions(d, s, kernel, groups, units, shared, name, dtype, seed) -> None:
    weight = random_weight(d, s, kernel, seed=seed, dtype=dtype)
    book = random_book(groups, weight, seed=seed)
    fine = random_book(3 * groups, weight, seed=seed + 1)
    routing = find_routing(name).route(weight, book, fine, units=units, shared=shared)
    assert_partition(routing, weight.flatten(1))
    assert routing.units <= units
    for channel, reason in enumerate(routing.reasons):
        assert reason == "split" if routing.is_split()[channel] else reason.startswith("not split: ")
    owned = routing.concepts[routing.concepts != NO_CONCEPT]
    assert ((owned >= 0) & (owned < groups)).all()
    if name == "channel-clusters":
        assert not len(owned)
    else:  # a sub-unit has a concept if and only if it has sources
        assert (routing.sizes()[:, 1:] > 0).equal(routing.concepts != NO_CONCEPT)
        for row in routing.concepts.tolist():
            named = [concept for concept in row if concept != NO_CONCEPT]
            assert len(named) == len(set(named))


def slow_concept_routing(
    weight: torch.Tensor,
    book: ConceptBook,
    units: int,
    shared: float | None,
    one_meaning: float,
    *,
    both_signs: bool,
    unlike: bool,
) -> tuple[list[list[int]], list[dict[int, int]]]:
    """Method, step 3, word by word, in plain Python; a contribution that nobody's mean raises is shared."""
    d, s, kernel = weight.shape
    groups = range(len(book))
    tokens = int(book.counts.sum())
    h = (book.channel_sums / book.counts[:, None] - book.channel_sums.sum(0) / tokens).tolist()
    m = (book.source_sums / book.counts[:, None] - book.source_sums.sum(0) / tokens).unflatten(1, (s, kernel)).tolist()
    w = weight.tolist()

    def cosine(g: int, other: int) -> float:
        x, y = np.array(h[g]), np.array(h[other])
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    routes: list[list[int]] = []
    names: list[dict[int, int]] = []
    for j in range(d):
        sign = [(1 if h[g][j] > 0 else -1) if both_signs else 1 for g in groups]
        strength = [sign[g] * h[g][j] for g in groups]
        strongest = [g for _, g in sorted((-strength[g], g) for g in groups)][:units]
        raised = [g for g in strongest if strength[g] > 0]
        pairs = [(g, o, h[g][j] * h[o][j]) for g in raised for o in raised if g != o]  # cosines turned by both signs
        candidates = list(raised)
        if unlike:
            candidates = []
            for _ in range(min(units, len(book))):
                left = [g for g in groups if g not in candidates]
                novelty = {g: 1 - max([0.0, *(cosine(g, c) for c in candidates)]) for g in left}
                candidates.append(min((-max(0, strength[g]) * novelty[g], g) for g in left)[1])
        weights = sum(abs(p) for *_, p in pairs)
        if not pairs or sum(cosine(g, o) * p for g, o, p in pairs) / weights >= one_meaning:
            routes.append([0] * s)
            names.append({})
            continue
        row = []
        for i in range(s):
            speaks = [
                sign[g] * sum(w[j][i][p] * m[g][i][p] for p in range(kernel)) if strength[g] > 0 else -math.inf
                for g in candidates
            ]
            best, second = sorted(speaks, reverse=True)[:2]
            left_over = shared is not None and (best <= 0 or second > shared * best)
            row.append(0 if left_over else 1 + speaks.index(best))
        routes.append(row)
        names.append({unit: candidates[unit - 1] for unit in row if unit})
    return routes, names


@pytest.mark.parametrize("kernel", [1, 9])
@pytest.mark.parametrize("shared", [None, 0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize(("units", "groups"), [(2, 5), (4, 12), (8, 3)])
@pytest.mark.parametrize(("both_signs", "unlike"), [(True, True), (True, False), (False, True), (False, False)])
def test_concept_routing_is_the_method_word_by_word(kernel, shared, units, groups, both_signs, unlike) -> None:
    weight = random_weight(20, 15, kernel, seed=groups)
    book = random_book(groups, weight, seed=units)
    how = {"one_meaning": 0.2, "both_signs": both_signs, "unlike": unlike}
    routing = ConceptRouting(**how).route(weight, book, book, units=units, shared=shared)
    routes, names = slow_concept_routing(weight, book, units, shared, **how)
    assert routing.routes.tolist() == routes
    for channel, named in enumerate(names):
        found = {unit + 1: concept for unit, concept in enumerate(routing.concepts[channel].tolist()) if concept >= 0}
        assert found == named
    assert routing.is_split().any()


@pytest.mark.parametrize("shared", [0.5, 1.0])
def test_scaling_a_source_and_its_weight_the_other_way_changes_nothing(shared) -> None:
    """The contribution is what is routed, so units of measurement of a source do not matter."""
    weight = random_weight(10, 12, 1)
    book = random_book(8, weight)
    scale = torch.logspace(-3, 3, 12, base=2, dtype=torch.float64)  # not only powers of two
    scaled = ConceptBook(book.counts, book.channel_sums, book.source_sums * scale)
    one = ConceptRouting().route(weight, book, book, units=4, shared=shared)
    other = ConceptRouting().route(weight / scale[:, None], scaled, scaled, units=4, shared=shared)
    assert one.routes.equal(other.routes)


@pytest.mark.parametrize("shared", [0.5, 1.0])
def test_scaling_all_sources_or_shifting_them_changes_nothing(shared) -> None:
    weight = random_weight(10, 12, 1)
    book = random_book(8, weight)
    counts = book.counts[:, None]
    shift = 16 * torch.arange(12, dtype=torch.float64)
    moved = 4 * (book.source_sums + counts * shift)
    shifted = ConceptBook(book.counts, 4 * (book.channel_sums + counts * (weight[..., 0] @ shift)), moved)
    one = ConceptRouting().route(weight, book, book, units=4, shared=shared)
    other = ConceptRouting().route(weight, shifted, shifted, units=4, shared=shared)
    assert one.routes.equal(other.routes)
    assert one.concepts.equal(other.concepts)


def test_more_is_shared_the_smaller_rho_is() -> None:
    weight = random_weight(10, 40, 1)
    book = random_book(8, weight)
    routed = [ConceptRouting().route(weight, book, book, units=4, shared=rho).routes for rho in (0.0, 0.3, 0.6, 1.0)]
    for stricter, looser in itertools.pairwise(routed):
        assert ((stricter == 0) | (stricter == looser)).all()
    counts = [int((routes == 0).sum()) for routes in routed]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_planted_routing_is_found() -> None:
    """Concept g raises only its own sources; each channel hears the sources of some concepts."""
    groups, per_group = 6, 4
    owner = torch.arange(groups).repeat_interleave(per_group)
    sources = 0.01 * torch.randn(groups, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sources += (owner == torch.arange(groups)[:, None]).double()
    hears = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]])
    weight = hears[:, owner].double()
    counts = torch.full((groups,), 10)
    book = ConceptBook(counts, 10 * sources @ weight.T, 10 * sources)
    routing = ConceptRouting(one_meaning=1.1).route(weight[..., None], book, book, units=3, shared=0.8)
    for channel in (0, 1, 3):
        for source in range(24):
            unit = int(routing.routes[channel, source])
            if weight[channel, source]:
                assert routing.concepts[channel, unit - 1] == owner[source]
            else:
                assert unit == 0
    assert not routing.is_split()[2]
    assert routing.reasons[2] == "not split: fewer than two concepts drive it up"


def test_a_channel_of_one_meaning_is_left_alone() -> None:
    """All groups that raise it lie in one direction, up to a little."""
    sources = torch.tensor([[1.0, 1.0], [1.0, 1.1], [-1.0, -1.0]], dtype=torch.float64)
    weight = torch.eye(2, dtype=torch.float64)
    counts = torch.tensor([5, 5, 10])
    book = ConceptBook(counts, counts[:, None] * sources @ weight.T, counts[:, None] * sources)
    routing = ConceptRouting().route(weight[..., None], book, book, units=2, shared=0.8)
    assert not routing.routes.any()
    assert routing.reasons[0].startswith("not split: driven by one concept (its concepts agree to ")
    assert (routing.concepts == NO_CONCEPT).all()
    assert ConceptRouting(one_meaning=1.1).route(weight[..., None], book, book, units=2, shared=1.0).is_split().any()


def test_agreement_is_the_weighted_mean_cosine_of_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(5, 7, generator=generator, dtype=torch.float64), dim=1)
    strength = torch.rand(5, generator=generator, dtype=torch.float64)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    total = sum(float(strength[i] * strength[j]) for i, j in pairs)
    mean = sum(float(strength[i] * strength[j] * (directions[i] @ directions[j])) for i, j in pairs) / total
    assert agreement_of(strength, directions) == pytest.approx(mean)


def test_owners_of_hand_cases() -> None:
    contributions = torch.tensor(
        [
            [
                [3.0, 1.0, -1.0, 0.0, 5.0, 5.0, 1.0],
                [1.0, 3.0, -2.0, 0.0, 4.0, 4.1, -9.0],
                [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0],
            ]
        ]
    )
    allowed = torch.tensor([[True, True, False]])
    # clear, clear, nobody speaks for it, nobody at all, second is just 0.8 of best, just above, second is negative
    assert owners(contributions, allowed, 0.8).tolist() == [[1, 2, 0, 0, 1, 0, 1]]


def test_strongest_concepts_are_in_order_of_the_channel_mean() -> None:
    weight = random_weight(6, 5, 1)
    book = random_book(9, weight)
    values, concepts = strongest_concepts(book, 4)
    means = book.mean_channels()
    for channel in range(6):
        expected = sorted(range(9), key=lambda g: -means[g, channel])[:4]
        assert concepts[channel].tolist() == expected
        assert values[channel].equal(means[expected, channel])
    assert strongest_concepts(book, 99)[0].shape == (6, 9)


def test_channel_clusters_recover_planted_clusters() -> None:
    """Channel 0 is raised by two kinds of tokens, each through sources of its own; channel 1 by one kind only."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(90) % 3  # kind 2 raises neither channel
    sources = 0.02 * torch.randn(90, 8, generator=generator, dtype=torch.float64)
    sources[kinds == 0, :3] += 1
    sources[kinds == 1, 3:6] += 1
    weight = torch.ones(2, 8, dtype=torch.float64)
    weight[:, 6:] = 0.01
    weight[1, 3:6] = -1
    fine = ConceptBook(torch.ones(90, dtype=torch.int64), sources @ weight.T, sources)
    routing = ChannelClusterRouting().route(weight[..., None], fine, fine, units=2, shared=0.8)
    first, second = routing.routes[0, :3].unique().tolist(), routing.routes[0, 3:6].unique().tolist()
    assert sorted(first + second) == [1, 2]
    assert routing.reasons[0] == "split"
    assert (routing.concepts == NO_CONCEPT).all()


def test_channel_clusters_leave_a_channel_with_few_groups_alone() -> None:
    weight = random_weight(3, 4, 1)
    book = random_book(3, weight)
    routing = ChannelClusterRouting().route(weight, book, book, units=3, shared=0.8)
    assert not routing.is_split().any()
    assert all("groups of tokens drive it up" in reason for reason in routing.reasons)


@settings(deadline=None, max_examples=40)
@given(routings(), st.integers(0, 50))
def test_shuffling_keeps_sizes_concepts_and_reasons(drawn, seed) -> None:
    routing, weight = drawn
    mixed = shuffled(routing, seed)
    assert mixed.sizes().equal(routing.sizes())
    assert mixed.concepts.equal(routing.concepts)
    assert mixed.reasons == routing.reasons
    assert mixed.routes.equal(shuffled(routing, seed).routes)
    assert_partition(mixed, weight)


def test_random_routing_deals_out_the_same_sizes() -> None:
    weight = random_weight(10, 60, 1)
    book = random_book(8, weight)
    settings_: dict[str, Any] = {"units": 4, "shared": 0.8}
    real = ConceptRouting().route(weight, book, book, **settings_)
    random = RandomRouting().route(weight, book, book, **settings_)
    assert random.sizes().equal(real.sizes())
    assert not random.routes.equal(real.routes)
    assert not random.routes.equal(RandomRouting(seed=1).route(weight, book, book, **settings_).routes)


def test_random_routing_forgets_the_order_of_sources() -> None:
    """Each source is as likely as any other to be in a unit."""
    routes = torch.zeros(4000, 8, dtype=torch.uint8)
    routes[:, :2] = 1
    routing = Routing(routes, torch.zeros(4000, 1, dtype=torch.int64), ("split",) * 4000)
    often = (shuffled(routing).routes == 1).sum(0)  # each binomial(4000, 1/4): 1000 with deviation 27
    assert (often - 1000).abs().max() < 5 * 27


def test_only_leaves_other_channels_whole() -> None:
    routes = torch.tensor([[0, 1, 2], [1, 1, 0], [2, 0, 1]], dtype=torch.uint8)
    routing = Routing(routes, torch.tensor([[4, 5], [6, -1], [7, 8]]), ("split", "split", "split"))
    kept = routing.only(torch.tensor([2]))
    assert kept.routes.tolist() == [[0, 0, 0], [0, 0, 0], [2, 0, 1]]
    assert kept.concepts.tolist() == [[-1, -1], [-1, -1], [7, 8]]
    assert kept.reasons == ("not split: not asked for", "not split: not asked for", "split")
    assert routing.routes.equal(routes)
    assert not routing.only(torch.tensor([], dtype=torch.int64)).is_split().any()


def test_routing_says_what_it_is() -> None:
    routing = Routing(torch.tensor([[0, 1], [0, 0]], dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64), ("", ""))
    assert repr(routing) == "Routing(d=2, s=2, k=3, 1 channel split)"


@pytest.mark.parametrize(
    ("routes", "concepts", "reasons", "message"),
    [
        (torch.tensor([[3]], dtype=torch.uint8), torch.zeros(1, 2), ("",), "points to sub-unit 3; there are 2"),
        (torch.tensor([[1]]), torch.zeros(1, 2), ("",), r"must be \(d, s\) of uint8"),
        (torch.zeros(2, dtype=torch.uint8), torch.zeros(2, 2), ("", ""), r"must be \(d, s\) of uint8"),
        (torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(1, 2), ("", ""), "2 channels need 2 rows"),
        (torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, 2), ("",), "2 channels need 2 rows"),
    ],
)
def test_a_routing_that_is_none_is_refused(routes, concepts, reasons, message) -> None:
    with pytest.raises(ValueError, match=message):
        Routing(routes, concepts, reasons)


def test_routing_by_name_or_object() -> None:
    assert find_routing("concepts") == ConceptRouting()
    mine = ConceptRouting(one_meaning=0.5)
    assert find_routing(mine) is mine
    assert {find_routing(name).name for name in ROUTINGS} == set(ROUTINGS)


def test_unknown_routing_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'concepts'"):
        find_routing("concept")
    for wrong in (3, object(), ConceptRouting):
        with pytest.raises(TypeError, match=r"an object with a name and route\(\)"):
            find_routing(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("units", "shared", "error"),
    [
        (1, 0.8, ValueError),
        (MOST_UNITS + 1, 0.8, ValueError),
        (2.0, 0.8, TypeError),
        (4, 1.2, ValueError),
        (4, -0.1, ValueError),
        (4, float("nan"), ValueError),
        (4, "0.8", TypeError),
    ],
)
def test_settings_out_of_range_are_refused(units, shared, error) -> None:
    with pytest.raises(error):
        check_routing_settings(units, shared)


def test_as_many_units_as_fit_a_byte() -> None:
    check_routing_settings(MOST_UNITS, 1.0)
    weight = random_weight(1, 300, 1)
    book = random_book(600, weight)
    routing = ConceptRouting(one_meaning=1.1).route(weight, book, book, units=MOST_UNITS, shared=1.0)
    assert routing.routes.max() <= MOST_UNITS
    assert_partition(routing, weight.flatten(1))
