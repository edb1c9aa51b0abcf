from __future__ import annotations

import numpy as np
import pytest
import torch

import elude_nb as en
from elude_nb.core.recording import Recording, record
from elude_nb.scores.factors import planted_recovery
from elude_nb.scores.planted import Planted, planted_network
from tests.tiny import hook_count


def split_of(planted: Planted, concepts: int = 12, units: int = 8, **settings) -> en.Disentanglement:
    return en.disentangle(
        planted.model,
        planted.images,
        planted.site,
        concepts=concepts,
        units=units,
        tokens="class",
        progress=False,
        **settings,
    )


def recovery(planted: Planted, **settings) -> float:
    """Mean over the channels that were split; all must be."""
    split = split_of(planted, **settings)
    assert split.routing.is_split().all()
    return float(planted_recovery(split.routing.routes, planted.truth).mean())


def seen_by(planted: Planted) -> Recording:
    site = en.find_site(planted.model, planted.site)
    return Recording.join(list(record(planted.model, planted.images, site, tokens="class")))


# --------------------------------------------------------------------- how it is built


def test_in_the_clean_case_a_hidden_unit_responds_to_its_own_pattern_alone() -> None:
    planted = planted_network(concepts=5, channels=7, sources_per_concept=3, images=40)
    sources = seen_by(planted).sources  # (40, 15)
    shown = torch.tensor([int(label.removeprefix("pattern ")) for label in planted.images.labels or ()])
    own = torch.arange(15) // 3 == shown[:, None]
    assert (sources[own] > 0.2).all()
    assert (sources[~own] == 0).all()


def test_channels_are_sums_of_the_sources_that_the_truth_names() -> None:
    planted = planted_network(concepts=5, channels=7, sources_per_concept=3, images=10)
    seen, weight = seen_by(planted), planted.model.network.get_parameter("site.weight")
    for channel in range(7):
        for image in range(10):
            mine = [i for i in range(15) if planted.truth[channel, i] != -1]
            expected = sum(float(weight[channel, i] * seen.sources[image, i]) for i in mine)
            assert float(seen.channels[image, channel]) == pytest.approx(expected, abs=1e-5)
    planted_weights = weight[planted.truth >= 0]
    assert float(planted_weights.min()) > 0.5
    assert float(planted_weights.max()) < 1.5


@pytest.mark.parametrize(("concepts", "channels", "each"), [(5, 7, 3), (12, 24, 3), (6, 3, 2), (4, 4, 4), (64, 64, 1)])
def test_concepts_are_distributed_evenly_over_the_channels(concepts, channels, each) -> None:
    truth = planted_network(
        concepts=concepts, channels=channels, concepts_per_channel=each, sources_per_concept=2, images=64
    ).truth
    assert truth.shape == (channels, 2 * concepts)
    source = torch.arange(2 * concepts) // 2
    assert ((truth == source) | (truth == -1)).all()
    has = (truth != -1)[:, ::2]
    assert (has.sum(1) == each).all()
    assert int(has.sum(0).max() - has.sum(0).min()) <= 1


def test_images_show_the_patterns_evenly_and_are_not_copies() -> None:
    planted = planted_network(concepts=4, images=22, noise=0.0)
    labels = planted.images.labels or ()
    assert sorted({labels.count(name) for name in set(labels)}) == [5, 6]
    pixels = [np.asarray(image).tobytes() for image in planted.images]
    assert len(set(pixels)) == 22


def test_a_planted_network_is_decided_by_its_seed() -> None:
    first, same, other = (planted_network(noise=0.2, seed=seed) for seed in (0, 0, 1))
    assert first.model.fingerprint() == same.model.fingerprint() != other.model.fingerprint()
    assert first.truth.equal(same.truth)
    assert not first.truth.equal(other.truth)
    pictures = [np.asarray(planted.images[7]).tolist() for planted in (first, same, other)]
    assert pictures[0] == pictures[1] != pictures[2]


def test_even_much_noise_does_not_drive_pixels_to_black_or_white() -> None:
    pixels = np.stack([np.asarray(image) for image in planted_network(noise=1.0).images])
    assert ((pixels == 0) | (pixels == 255)).mean() < 1e-3


# ------------------------------------------------------------------- what is recovered


@pytest.mark.parametrize("seed", range(4))
def test_the_default_routing_recovers_what_was_planted(seed) -> None:
    planted = planted_network(seed=seed)
    assert recovery(planted, seed=seed) > 0.95
    assert hook_count(planted.model.network) == 0


@pytest.mark.parametrize(
    ("concepts", "channels", "each"), [(3, 6, 2), (4, 8, 3), (12, 24, 2), (12, 24, 6), (32, 48, 4), (64, 64, 8)]
)
def test_the_default_routing_recovers_networks_of_many_sizes(concepts, channels, each) -> None:
    planted = planted_network(concepts=concepts, channels=channels, concepts_per_channel=each, images=20 * concepts)
    split = split_of(planted, concepts=concepts)
    scores = planted_recovery(split.routing.routes, planted.truth)[split.routing.is_split().numpy()]
    assert len(scores) >= 0.8 * channels  # two of three concepts can look like one at the site
    assert scores.mean() > 0.95


def test_sub_units_belong_to_the_concepts_that_were_planted() -> None:
    planted = planted_network()
    split = split_of(planted)
    labels = np.array(planted.images.labels)
    for channel, unit in [(0, 1), (5, 2), (23, 3)]:
        mine = split.routing.routes[channel] == unit
        concept = planted.truth[channel, mine].unique()
        concept = concept[concept >= 0]
        assert len(concept) == 1
        values = split.activations(planted.images, [(channel, unit)])[:, 0]
        shown = labels == f"pattern {int(concept)}"
        assert values[shown].min() > values[~shown].max()


def test_random_routes_recover_nothing() -> None:
    planted = planted_network()
    assert abs(recovery(planted, routing="random")) < 0.1


def test_noise_is_borne_up_to_a_point() -> None:
    scores = [np.mean([recovery(planted_network(noise=x, seed=k)) for k in range(3)]) for x in (0, 0.2, 0.5, 1)]
    assert scores[0] > 0.99
    assert scores[1] > 0.95
    assert 0.4 < scores[2] < 0.9
    assert scores[3] < 0.2


def test_a_book_finer_than_the_patterns_still_recovers_them_if_nothing_is_shared() -> None:
    assert recovery(planted_network(), concepts=48, shared=1.0) > 0.95


def test_a_channel_of_one_concept_is_not_split() -> None:
    planted = planted_network(concepts_per_channel=1)
    split = split_of(planted)
    assert not split.routing.is_split().any()
    assert set(planted_recovery(split.routing.routes, planted.truth)) == {1.0}  # one group, and it is whole


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"concepts": 1}, r"concepts=1 .*2 and 64"),
        ({"concepts": 65, "images": 100}, "concepts=65 "),
        ({"concepts_per_channel": 13}, r"concepts_per_channel=13 .*1 and 12"),
        ({"sources_per_concept": 0}, "sources_per_concept=0 "),
        ({"images": 11}, r"images=11 .* 12"),
        ({"channels": 3}, "3 channels of 3 concepts .* 12 concepts"),
        ({"noise": -0.1}, r"noise=-0\.1 must be 0 or a positive number"),
        ({"noise": float("nan")}, "noise=nan must be"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        planted_network(**wrong)
