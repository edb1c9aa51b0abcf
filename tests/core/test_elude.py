"""The published method against a slow, literal second implementation, and on networks whose clusters are planted."""

from __future__ import annotations

import itertools
import math
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import elude_nb as en
from elude_nb import Disentanglement, Edit, EludeRouting, disentangle, verify
from elude_nb.core.concepts import ConceptBook, make_books
from elude_nb.core.density import cluster_by_density
from elude_nb.core.elude import RHOS, Instances, choose_rho, winning_sets
from elude_nb.core.routing import NO_CONCEPT, Routing, pack_bits, shuffled, unpack_bits
from elude_nb.core.strategies import RandomRouting
from tests.parts import collected, recording_of
from tests.tiny import hook_count, random_images, tiny_conv, tiny_mlp, tiny_vit

SMALL: dict[str, Any] = {"top_k": 0.5, "min_cluster_size": 4}
QUICK: dict[str, Any] = {"concepts": 6, "tokens_per_image": 8, "progress": False}
RULES = ["published", "signed", "absolute"]


# ---------------------------------------------------------------- a literal second implementation


def literal_sets(strength: np.ndarray[Any, Any], rho: float) -> np.ndarray[Any, Any]:
    """Try every subset of the clusters for every source, as the paper's definition has it."""
    k, s = strength.shape
    found = np.ones((k, s), dtype=bool)
    subsets = [c for size in range(1, k) for c in itertools.combinations(range(k), size)]
    for j in range(s):
        winners = [
            subset for subset in subsets
            if rho * min(strength[c, j] for c in subset) > max(strength[c, j] for c in range(k) if c not in subset)
        ]  # fmt: skip
        if len(winners) == 1:
            found[:, j] = [c in winners[0] for c in range(k)]
    return found


def largest_first(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Number clusters by size, those of equal size by their first member."""
    order = sorted(set(labels[labels >= 0]), key=lambda c: (-(labels == c).sum(), list(labels).index(c)))
    return np.array([order.index(label) if label >= 0 else -1 for label in labels])


def literal_split(row: np.ndarray[Any, Any], q: np.ndarray[Any, Any], h: np.ndarray[Any, Any], routing: EludeRouting):
    """Follow docs/method.md line by line for one channel; return owners as sets of clusters (k, s), or None."""
    top, least = routing.sizes(len(q))
    best = sorted(range(len(q)), key=lambda t: -h[t])[:top]
    c = np.stack([row * q[t] for t in best])
    unit = np.stack([vector / math.sqrt(sum(vector**2)) for vector in c])
    found = HDBSCAN(min_cluster_size=least, cluster_selection_method=routing.selection, copy=True).fit(unit)
    found.labels_ = largest_first(found.labels_)
    k = found.labels_.max() + 1
    if k < 2:
        return None
    means, sources = [], []
    for cluster in range(k):
        weights = np.where(found.labels_ == cluster, found.probabilities_, 0)
        mean = sum(w * vector for w, vector in zip(weights, unit, strict=True))
        means.append(np.abs(mean) / math.sqrt(sum(mean**2)))
        sources.append(sum(w * q[t] for w, t in zip(weights, best, strict=True)) / weights.sum())
    strength = np.stack(means)
    if routing.rule == "signed":
        gains = np.stack([row * (mean - q.mean(0)) for mean in sources])
        return np.arange(k)[:, None] == gains.argmax(0)
    if routing.rule == "absolute":
        return np.arange(k)[:, None] == strength.argmax(0)
    scores = []
    for rho in RHOS:
        sets = literal_sets(strength, rho)
        ratios = []
        for cluster in range(k):
            z = np.maximum((c * sets[cluster] / sets.sum(0)).sum(1), 0)
            own, other = found.labels_ == cluster, (found.labels_ != cluster) & (found.labels_ >= 0)
            ratios.append(z[own].sum() / (z[other].sum() + 1e-5))
        scores.append(np.mean(ratios))
    return literal_sets(strength, RHOS[int(np.argmax(scores))])


def planted(kinds: int = 3, each: int = 60, sources: int = 18, *, seed: int = 0) -> tuple[Tensor, Instances]:
    """Return W (4, s, 1) and tokens of a few kinds, each of which a third of the sources answers to."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(kinds).repeat_interleave(each)
    pattern = torch.nn.functional.one_hot(torch.arange(sources) % kinds, kinds).double()  # (s, kinds)
    q = pattern.T[kind] * (1 + 0.1 * torch.randn(len(kind), sources, generator=generator, dtype=torch.float64))
    q = q + 0.05 * torch.randn(q.shape, generator=generator, dtype=torch.float64)
    weight = 0.5 + torch.rand(4, sources, generator=generator, dtype=torch.float64)
    return weight[..., None], Instances(q, q @ weight.T, torch.ones(len(q)))


@pytest.mark.parametrize("selection", ["leaf", "eom"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_the_literal_implementation_makes_of_it(rule, selection, seed) -> None:
    weight, found = planted(seed=seed)
    strategy = EludeRouting(top_k=0.9, min_cluster_size=12, rule=rule, selection=selection)
    routing, centres = strategy.route_instances(weight, found)
    for channel in range(len(weight)):
        q, h = found.sources.numpy(), found.channels[:, channel].numpy()
        expected = literal_split(weight[channel, :, 0].numpy(), q, h, strategy)
        if expected is None:
            assert not routing.is_split()[channel]
            assert not len(centres[channel])
            continue
        members = routing.members(channel)[1 : 1 + len(expected)].numpy()
        assert (members == expected).all()
        assert len(centres[channel]) == len(expected)


@pytest.mark.parametrize("rule", RULES)
def test_planted_kinds_are_found_and_each_source_goes_to_its_own(rule) -> None:
    weight, found = planted()
    routing, _ = EludeRouting(top_k=1.0 - 1e-9, min_cluster_size=12, rule=rule).route_instances(weight, found)
    assert routing.is_split().all()
    for channel in range(4):
        owners = [routing.routes[channel, kind::3].unique().tolist() for kind in range(3)]
        if rule == "published":  # some sources are shared by all; the others have their own kind's owner
            owners = [[owner for owner in several if owner] for several in owners]
        assert all(len(several) == 1 for several in owners)
        assert len({several[0] for several in owners}) == 3


def test_random_groups_of_the_same_sizes_are_a_control() -> None:
    weight, found = planted()
    centres = {
        groups: EludeRouting(top_k=0.99, min_cluster_size=12, groups=groups).route_instances(weight, found)[1]
        for groups in ("hdbscan", "random")
    }
    for real, random in zip(centres["hdbscan"], centres["random"], strict=True):
        assert len(real) == len(random) == 3
        assert random.norm(dim=1).max() < 0.5 * real.norm(dim=1).min()


@given(st.integers(2, 6), st.integers(1, 8), st.sampled_from(RHOS), st.integers(0, 10_000))
def test_winning_sets_are_those_of_the_definition(k, s, rho, seed) -> None:
    strength = torch.rand(k, s, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    strength[:, 0] = strength[0, 0]  # a tie: nobody wins
    assert (winning_sets(strength, rho).numpy() == literal_sets(strength.numpy(), rho)).all()


def test_rho_is_the_one_that_tells_clusters_apart() -> None:
    strength = torch.tensor([[0.9, 0.5, 0.0], [0.1, 0.5, 1.0]], dtype=torch.float64)
    contributions = torch.tensor([[2.0, 1.0, 0.1], [0.2, 1.0, 2.0]], dtype=torch.float64)
    groups = torch.tensor([0, 1])
    rho = choose_rho(strength, contributions, groups)
    assert rho in RHOS
    assert winning_sets(strength, rho).tolist() == [[True, True, False], [False, True, True]]


# ---------------------------------------------------------------- clusters


@pytest.mark.parametrize("selection", ["leaf", "eom"])
@pytest.mark.parametrize("min_samples", [None, 2, 9])
def test_clusters_are_those_of_distances_between_the_vectors(selection, min_samples) -> None:
    weight, found = planted(each=40)
    vectors = torch.nn.functional.normalize(weight[0, :, 0] * found.sources, dim=1)
    groups, membership = cluster_by_density(vectors, min_cluster_size=8, min_samples=min_samples, selection=selection)
    whole = HDBSCAN(min_cluster_size=8, min_samples=min_samples, cluster_selection_method=selection, copy=True).fit(
        vectors.numpy()
    )
    assert (groups.numpy() == largest_first(whole.labels_)).all()
    np.testing.assert_allclose(membership.numpy(), whole.probabilities_, atol=1e-6)


def test_fractions_and_numbers_say_how_many() -> None:
    assert EludeRouting().sizes(2_500_000) == (400_000, 1000)  # the paper's own
    assert EludeRouting().sizes(7500) == (1200, 8)
    assert EludeRouting(top_k=300, min_cluster_size=20).sizes(1000) == (300, 20)
    assert EludeRouting(top_k=300, min_cluster_size=0.1).sizes(200) == (200, 20)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"top_k": 1.5}, ValueError), ({"top_k": 0}, ValueError), ({"top_k": "all"}, TypeError),
        ({"top_k": True}, TypeError), ({"min_cluster_size": 1}, ValueError), ({"min_cluster_size": -0.1}, ValueError),
        ({"min_samples": 0}, ValueError), ({"selection": "best"}, ValueError), ({"rule": "rho"}, ValueError),
        ({"groups": "kmeans"}, ValueError), ({"instances": "all"}, ValueError), ({"max_tokens": 1}, ValueError),
        ({"seed": -1}, ValueError),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong, error) -> None:
    with pytest.raises(error, match=next(iter(wrong))):
        EludeRouting(**wrong)


def test_too_few_instances_are_reported_before_the_forward_passes(vit, images, monkeypatch) -> None:
    monkeypatch.setattr("elude_nb.core.one_pass.record", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="too few for two clusters of min_cluster_size=100"):
        disentangle(vit, images, "blocks.1.mlp.fc2", routing=EludeRouting(top_k=150, min_cluster_size=100), **QUICK)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"top_k": 30, "min_cluster_size": 40}, "top_k=30 of 30 instances is 30, too few for two clusters"),
     ({"top_k": 30, "min_cluster_size": 4, "min_samples": 31}, "min_samples=31 exceeds the 30 instances")],
)  # fmt: skip
def test_numbers_that_contradict_each_other_are_refused_before_any_image(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        EludeRouting(**wrong)


def test_too_few_neighbours_are_reported_before_the_forward_passes(vit, images, monkeypatch) -> None:
    monkeypatch.setattr("elude_nb.core.one_pass.record", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="min_samples=5000 exceeds"):
        disentangle(vit, images, "blocks.1.mlp.fc2", routing=EludeRouting(min_samples=5000, **SMALL), **QUICK)


@pytest.mark.parametrize("instances", ["tokens", "micro-clusters"])
def test_one_image_is_too_few_and_many_alike_are_not_split(instances) -> None:
    model, image = tiny_vit(), random_images(1, 32)
    routing = EludeRouting(top_k=0.16, min_cluster_size=8, instances=instances)
    with pytest.raises(ValueError, match="too few for two clusters of min_cluster_size=8"):
        disentangle(model, image, "blocks.1.mlp.fc2", routing=routing, **QUICK)
    alike = disentangle(
        model, [image[0]] * 30, "blocks.1.mlp.fc2", routing=EludeRouting(instances=instances, **SMALL),
        **(QUICK | {"concepts": 2, "tokens": "class", "tokens_per_image": 1}),
    )  # fmt: skip
    assert not alike.routing.is_split().any()
    assert verify(alike, [image[0]], progress=False).weights_partition_exact


@pytest.mark.parametrize("what", ["sources", "channels"])
def test_values_that_are_not_finite_are_named(what, monkeypatch) -> None:
    weight, found = planted()
    getattr(found, what)[7, 3] = torch.nan
    monkeypatch.setattr(EludeRouting, "_find_clusters", lambda *_: pytest.fail("a channel was clustered"))
    with pytest.raises(ValueError, match=f"The {what} of instance 7 hold NaN"):
        EludeRouting(**SMALL).route_instances(weight, found)


def test_an_interrupt_stops_all_threads_and_leaves_nothing_behind(vit, images, monkeypatch) -> None:
    begun, threads = [], torch.get_num_threads()

    find_clusters = EludeRouting._find_clusters

    def interrupted(self, row, found, channel):
        begun.append(channel)
        if channel == 3:
            raise KeyboardInterrupt
        time.sleep(0.02)
        return find_clusters(self, row, found, channel)

    monkeypatch.setattr(EludeRouting, "_find_clusters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        disentangle(vit, images, "blocks.1.mlp.fc2", routing=EludeRouting(**SMALL), **QUICK)
    assert len(begun) < 24
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
    assert torch.get_num_threads() == threads
    assert hook_count(vit.network) == 0


def test_groups_of_tokens_are_split_as_their_tokens_are() -> None:
    """Micro-clusters count by their tokens: as many sub-units, and nearly the same owners."""
    weight, found = planted(each=240)
    groups = torch.arange(len(found)) // 4  # neighbours are of one kind
    book = ConceptBook(
        torch.bincount(groups),
        torch.zeros(len(found) // 4, 4, dtype=torch.float64).index_add_(0, groups, found.channels),
        torch.zeros(len(found) // 4, 18, dtype=torch.float64).index_add_(0, groups, found.sources),
        torch.zeros(len(found) // 4, 18, dtype=torch.float64).index_add_(0, groups, found.sources.square()),
    )
    strategy = EludeRouting(top_k=0.99, min_cluster_size=60, rule="signed")
    exact, _ = strategy.route_instances(weight, found)
    summed, _ = strategy.route_instances(weight, Instances.of_groups(book))
    assert exact.sizes().gt(0).sum() == summed.sizes().gt(0).sum() == 12
    for channel in range(4):
        assert adjusted_rand_score(exact.routes[channel], summed.routes[channel]) > 0.99


def test_as_many_groups_are_kept_as_asked_for() -> None:
    model, images = tiny_vit(), random_images(60, 32)
    seen = []
    for number in (20, 90):
        strategy = EludeRouting(instances="micro-clusters", micro_clusters=number, **SMALL)
        parts = en.record(model, images, en.find_site(model, "blocks.1.mlp.fc2"), tokens="all")
        found = collected(en.Recording.join(list(parts)), capacity=4 * number, micro=number, squares=True)
        fine = make_books(found.groups(), 6, number, 0)[1]
        seen.append(len(fine))
        assert fine.source_squares is not None
        spread = fine.source_squares / fine.counts[:, None] - (fine.source_sums / fine.counts[:, None]).square()
        assert spread.min() > -1e-9
        split = disentangle(model, images, "blocks.1.mlp.fc2", routing=strategy, **QUICK)
        assert split.book.source_squares is None
    assert seen[0] <= 20 < seen[1] <= 90


def test_constant_and_silent_channels_are_not_split() -> None:
    weight, found = planted()
    weight[1] = 0
    channels = found.channels.clone()
    channels[:, 1] = 2.0
    silent = found.sources.clone()
    routing, _ = EludeRouting(**SMALL).route_instances(weight, Instances(silent, channels, found.counts))
    assert not routing.is_split()[1]
    assert routing.reasons[1] == "not split: it is constant"
    channels[:, 1] = torch.arange(len(channels))
    routing, _ = EludeRouting(**SMALL).route_instances(weight, Instances(silent, channels, found.counts))
    assert routing.reasons[1] == "not split: too few instances contribute to it"


# ---------------------------------------------------------------- routings that share


def random_shared(d: int, s: int, k: int, seed: int) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    members = torch.rand(d, s, k, generator=generator) < 0.4
    count = members.sum(2)
    alone = count == 1
    routes = torch.where(alone, members.to(torch.uint8).argmax(2) + 1, 0).to(torch.uint8)
    sets = pack_bits(members & (count > 1)[..., None])
    return Routing(routes, torch.full((d, k), NO_CONCEPT), ("split",) * d, sets)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(2, 20), st.sampled_from([1, 3]), st.integers(0, 9999))
def test_shared_weights_add_up_bit_for_bit(d, s, k, kernel, seed) -> None:
    routing = random_shared(d, s, k, seed)
    weight = torch.randn(d, s * kernel, generator=torch.Generator().manual_seed(seed))
    channels, units = torch.arange(d).repeat_interleave(k + 1), torch.arange(k + 1).repeat(d)
    rows = routing.masked(weight, channels, units)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    assert torch.zeros_like(weight).index_add(0, channels[order], rows[order]).equal(weight)
    for channel in range(d):
        members = routing.members(channel)
        assert (members.sum(0) >= 1).all()
        assert routing.sizes()[channel].equal(members.sum(1))
        exclusive = (members & (members.sum(0) == 1)).sum(1)
        assert routing.exclusive_sizes()[channel].equal(exclusive)
        part = members.repeat_interleave(kernel, dim=1)
        assert ((rows[channels == channel] == 0) | part).all()
        torch.testing.assert_close(
            routing.add_by_unit(weight[:, :s])[channel], (weight[channel, :s] * members / members.sum(0)).sum(1)
        )
    torch.testing.assert_close(routing.mean_shares().sum(1), torch.ones(d, dtype=torch.float64))


@given(st.integers(1, 40), st.integers(0, 9999))
def test_bits_are_packed_and_unpacked(k, seed) -> None:
    members = torch.rand(3, 5, k, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(members)
    assert packed.shape == (3, 5, -(-k // 8))
    assert unpack_bits(packed, k).equal(members)


def test_owner_sets_that_make_no_sense_are_refused() -> None:
    routes, none = torch.zeros(1, 2, dtype=torch.uint8), torch.full((1, 3), NO_CONCEPT)
    for sets in ([[1, 0, 0]], [[1, 1, 0, 1]]):  # one sharer; a sub-unit that does not exist
        wrong = pack_bits(torch.tensor([sets[0], [0] * len(sets[0])]).bool())[None]
        with pytest.raises(ValueError, match="Channel 0"):
            Routing(routes, none, ("split",), wrong)
    both = pack_bits(torch.tensor([[1, 1, 0], [0, 0, 0]]).bool())[None]
    with pytest.raises(ValueError, match="an owner and is shared"):
        Routing(routes + 1, none, ("split",), both)


def test_shuffled_sizes_are_the_same_sizes() -> None:
    routing = random_shared(3, 30, 5, 0)
    random = shuffled(routing, 1)
    assert random.sizes().equal(routing.sizes())
    assert random.exclusive_sizes().equal(routing.exclusive_sizes())
    assert not random.routes.equal(routing.routes)


# ---------------------------------------------------------------- whole splits


@pytest.fixture(scope="module", params=["published", "signed"])
def split(request) -> Disentanglement:
    return disentangle(
        tiny_vit(),
        random_images(40, 32),
        "blocks.1.mlp.fc2",
        routing=EludeRouting(rule=request.param, **SMALL),
        **QUICK,
    )


@pytest.mark.parametrize("rule", ["published", "signed"])
@pytest.mark.parametrize(
    ("make", "site", "side"),
    [(tiny_vit, "blocks.1.mlp.fc2", 32), (tiny_vit, "stream", 32), (tiny_mlp, "3", 8), (tiny_conv, "point", 16),
     (tiny_conv, "grouped", 16), (tiny_conv, "stem", 16)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_certificate_holds(make, site, side, rule, dtype) -> None:
    model, images = make(dtype), random_images(60, side)
    split = disentangle(model, images, site, routing=EludeRouting(rule=rule, **SMALL), **QUICK)
    assert split.routing.is_split().any()
    found = verify(split, images[:4], progress=False)
    assert found.lens.max_abs_diff == 0.0
    assert found.weights_partition_exact
    units = split.activations(images[:3], tokens=split.settings.tokens)
    seen = split.recording(images[:3])
    channels = split.decode(units.flatten(0, -2))
    torch.testing.assert_close(channels, seen.channels.reshape(channels.shape), rtol=1e-4, atol=1e-4)
    assert hook_count(model.network) == 0


def test_the_bias_is_spread_over_sub_units_that_share(split) -> None:
    explicit = split.explicit()
    layer: Any = explicit.get_submodule("blocks.1.mlp.fc2")
    channels, units = split.routing.rows()
    of_sub_units = torch.zeros(24, dtype=torch.float64).index_add(0, channels, layer.split.bias * (units > 0))
    is_split = split.routing.is_split()
    bias = split.model.network.blocks[1].mlp.fc2.bias
    if split.settings.strategy.count("published"):
        assert of_sub_units[is_split].equal(bias[is_split])
        assert not of_sub_units[~is_split].any()
    else:
        assert not of_sub_units.any()


def test_nothing_is_left_over(split) -> None:
    is_split = split.routing.is_split()
    assert split.unit_shares[is_split, 0].abs().max() < 1e-9
    assert not split.routing.sizes()[is_split, 0].any()


def test_concepts_go_through_all_channels(split) -> None:
    images = random_images(6, 32)
    assert split.concept_activations(images, tokens="class").shape == (6, len(split.book))
    assert int(split.book.counts.sum()) == 40 * 8
    assert (split.routing.concepts != NO_CONCEPT).equal(split.routing.live()[:, 1:])  # a dead sub-unit has none
    concept = int(split.units["concept"].dropna().iloc[0])
    batch = split.model.prepare([images[0]])
    plain = split.model(batch)
    with split.edit(Edit.scale(concept=concept, by=0.0)):
        assert not split.model(batch).equal(plain)
    assert split.model(batch).equal(plain)


def test_it_is_saved_and_loaded(split, tmp_path) -> None:
    path = tmp_path / "split.safetensors"
    split.save(path)
    found = Disentanglement.load(path, split.model)
    images = random_images(3, 32)
    assert found.activations(images).equal(split.activations(images))
    assert found.settings == split.settings
    assert found.routing.sizes().equal(split.routing.sizes())
    assert found.identity == split.identity


def test_the_rest_of_the_library_runs_on_it(split, tmp_path) -> None:
    images = random_images(30, 32)
    assert len(en.score(split, images, k=4, progress=False))
    assert en.attribute(split, images[:2], 0).exact in {True, False}
    channel, unit = (int(each[0]) for each in split.routing.live_rows())
    assert len(split.contributions(channel, unit)) == int(split.routing.sizes()[channel, unit])
    assert en.find_exemplars(split, images, channel, count=4, progress=False).rows


@pytest.mark.parametrize("instances", ["tokens", "micro-clusters"])
def test_the_seed_decides_it(instances) -> None:
    model, images = tiny_vit(), random_images(40, 32)
    strategy = EludeRouting(instances=instances, max_tokens=200, **SMALL)
    one, other = (disentangle(model, images, "blocks.1.mlp.fc2", routing=strategy, **QUICK) for _ in range(2))
    assert one.routing.routes.equal(other.routing.routes)
    assert one.settings.strategy == repr(strategy)


def test_what_is_kept_of_many_tokens_is_a_uniform_sample() -> None:
    counts, rows = np.zeros(400), torch.arange(400, dtype=torch.float64)[:, None]
    for seed in range(150):
        found = collected(recording_of(rows, rows, 7), capacity=4, micro=2, kept=50, seed=seed, batch=37).kept
        assert len(found) == len(found.sources.unique()) == 50
        assert found.channels.equal(found.sources)
        counts[found.sources[:, 0].long().numpy()] += 1
    assert abs(counts[:200].sum() - counts[200:].sum()) < 5 * math.sqrt(150 * 50)
    assert counts.max() < 50


def test_random_routes_of_the_same_sizes_are_a_control(split) -> None:
    strategy = RandomRouting(like=EludeRouting(**SMALL))
    random = disentangle(split.model, random_images(40, 32), "blocks.1.mlp.fc2", routing=strategy, **QUICK)
    assert random.settings.routing == "random"
    assert verify(random, random_images(2, 32), progress=False).weights_partition_exact


def test_tables_and_maps_split_what_is_shared(split) -> None:
    """Whatever adds contributions up by unit gives each sharer its part, so that all parts add up to the channel."""
    from elude_nb.interpret.gallery import Gallery
    from elude_nb.interpret.profiles import depth_profile, find_contributors, route_table

    images = random_images(8, 32)
    channel = int(split.routing.is_split().nonzero()[0])
    gallery = Gallery(split, images).fill(progress=False)
    view = gallery.channel(channel)
    whole = gallery.maps_of([(channel, 0)])[..., 0]
    difference = view.maps.sum(-1) - whole  # unit 0 of a view holds the channel's mean
    assert difference.std() < 1e-3 * whole.std()
    table = route_table(split, channel, detail="source")
    assert int(table["sources"].sum()) == int(split.routing.sizes()[channel].sum())
    assert depth_profile(split, int(split.units["concept"].dropna().iloc[0])).notna().any(axis=None)
    assert len(find_contributors(split, split.recording(images[:1]).sources[0] - split.book.source_mean()))
    assert gallery.depths(view)
    parts = split.routing.fractions(channel)
    torch.testing.assert_close(parts.sum(0), torch.ones(96, dtype=torch.float64))


def test_the_time_of_the_clusters_is_in_the_estimate(vit, images, capsys, monkeypatch) -> None:
    monkeypatch.setattr(EludeRouting, "expected_seconds", lambda *_: 3600.0)
    disentangle(vit, images, "blocks.1.mlp.fc2", routing=EludeRouting(**SMALL), **(QUICK | {"progress": True}))
    assert "60 min" in capsys.readouterr().err


def test_more_channels_take_longer() -> None:
    strategy = EludeRouting(**SMALL)
    assert strategy.expected_seconds(200, 10_000, 12) > strategy.expected_seconds(200, 10, 12) > 0
