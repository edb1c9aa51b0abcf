"""One method evaluated: which of its units are live, in which order, what they score, and what the model loses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb import find_site, record
from elude_nb.baselines import PCA, Channels, Concepts, HiddenUnits, Method
from elude_nb.baselines.evaluate import Fidelity, FittedMethod, Halves, most_selective
from elude_nb.baselines.replace import Replaced, replaced_by_each, replaced_features
from elude_nb.core.recording import Recording
from elude_nb.scores import mean_interval, top_similarity, unexplained_variance
from tests.tiny import hook_count

N, T = 12, 5  # images, tokens of each


class Given(Method):
    """Units that are looked up: its channels are what it says."""

    def __init__(self, name: str = "given", change: Callable[[torch.Tensor], torch.Tensor] = torch.abs) -> None:
        self.name, self._change = name, change

    def fit(self, recording: Recording, labels: Any = None) -> Given:
        self.labels = labels
        return self

    def encode(self, recording: Recording) -> torch.Tensor:
        return self._change(recording.channels)

    def decode(self, units: torch.Tensor) -> torch.Tensor:
        return units


def tokens(units: int = 6, seed: int = 0) -> Recording:
    h = torch.randn(N * T, units, generator=torch.Generator().manual_seed(seed))
    numbers = torch.arange(N * T)
    return Recording(h, h[:, :0], 0 * h, numbers // T, numbers % T)


def fit(method: Method, seen: Recording, new: Recording, *, k: int = 3, labels: Any = None, images: Any = None) -> Any:
    reference = torch.randn(N, 4, generator=torch.Generator().manual_seed(2))
    return FittedMethod.fit(method, Halves(seen, labels, torch.arange(N * T) % 4, new, images, reference, k))


# ------------------------------------------------------------------ the most selective


@settings(deadline=None, max_examples=20)
@given(u=st.integers(1, 8), groups=st.integers(2, 5), seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_order_is_of_the_units_and_not_of_their_scale_or_the_tokens_order(u, groups, seed, scale) -> None:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(40, u, generator=generator, dtype=torch.float64)
    home = torch.randint(groups, (40,), generator=generator)
    order = most_selective(activations, home)
    assert sorted(order.tolist()) == list(range(u))
    assert torch.equal(most_selective(scale * activations - 3, home), order)
    shuffled = torch.randperm(40, generator=generator)
    assert torch.equal(most_selective(activations[shuffled], home[shuffled]), order)
    turned = torch.randperm(u, generator=generator)
    assert torch.equal(turned[most_selective(activations[:, turned], home)], order)


@pytest.mark.parametrize("value", [0.0, 7.3, -1e-3])
def test_constant_units_come_last_and_groups_without_tokens_do_no_harm(value) -> None:
    activations = torch.randn(60, 7, generator=torch.Generator().manual_seed(1))
    activations[:, [0, 3]] = value
    order = most_selective(activations, torch.arange(60) % 2 * 5)  # groups 0 and 5 only
    assert sorted(order[-2:].tolist()) == [0, 3]
    moving = [1, 2, 4, 5, 6]
    without = most_selective(activations[:, moving], torch.arange(60) % 2 * 5)
    assert order[:-2].tolist() == [moving[i] for i in without]


def test_any_prefix_has_the_strongest_of_as_many_groups_as_it_can() -> None:
    home = torch.arange(5).repeat_interleave(8)
    units = [torch.where(home == group, height, 0.0) for group in (0, 0, 1, 0, 2) for height in (1.0,)]
    activations = torch.stack(units, 1) + 0.3 * torch.rand(40, 5, generator=torch.Generator().manual_seed(0))
    assert set(most_selective(activations, home)[:3].tolist()) >= {2, 4}
    assert set(most_selective(activations, home)[3:].tolist()) < {0, 1, 3}


# ------------------------------------------------------------------ live units


def test_live_units_are_those_that_enough_images_raise() -> None:
    seen, new = tokens(), tokens(seed=1)
    new.channels.clamp_(min=0)
    new.channels[:, 1] = 2.0  # the same on all
    new.channels[:, 4] = 0.0
    new.channels[[0, 3, 7], 4] = 1.0  # two images
    expected = []
    for unit in range(6):
        best = [max(float(new.channels[i * T + t, unit]) for t in range(T)) for i in range(N)]
        if sum(value > min(best) for value in best) >= 3:
            expected.append(unit)
    assert {1, 4}.isdisjoint(expected)
    found = fit(Given(), seen, new)
    assert found.live.tolist() == expected
    assert sorted(found.order.tolist()) == expected
    every = most_selective(found.seen_units, torch.arange(N * T) % 4)
    assert found.order.tolist() == [unit for unit in every.tolist() if unit in expected]
    assert found.cost(0.25)["dead_units"] == 6 - len(expected)
    assert 4 in fit(Given(), seen, new, k=2).live.tolist()


def test_the_order_looks_at_the_discovery_alone_and_labels_go_to_the_fit() -> None:
    seen = tokens()
    one, other = (fit(Given(), seen, tokens(seed=seed), labels=["a"] * N * T) for seed in (1, 2))
    assert torch.equal(one.order, other.order)
    assert one.method.labels == ["a"] * N * T


def test_activations_are_the_largest_over_an_images_tokens() -> None:
    found = fit(Given(), tokens(), tokens(seed=1))
    for image in range(N):
        assert torch.equal(found.pooled[image], found.new_units[image * T : (image + 1) * T].max(0).values)


def test_long_recordings_are_encoded_in_parts_that_join(monkeypatch) -> None:
    whole = fit(Given(), tokens(), tokens(seed=1))
    monkeypatch.setattr("elude_nb.baselines.evaluate._TOKENS_AT_ONCE", 7)
    parts = fit(Given(), tokens(), tokens(seed=1))
    assert torch.equal(parts.new_units, whole.new_units)
    assert torch.equal(parts.seen_units, whole.seen_units)


def test_a_method_without_live_units_is_refused() -> None:
    with pytest.raises(ValueError, match="'flat'"):
        fit(Given("flat", torch.zeros_like), tokens(), tokens(seed=1))


def test_seconds_count_the_forward_passes() -> None:
    found = fit(Channels(), tokens(), tokens(seed=1))
    cost = found.cost(0.25)
    assert cost["seconds_per_1000_images"] == pytest.approx(250 + 1000 * found.encode_seconds / N)
    assert cost["seconds_to_fit"] == found.fit_seconds >= 0
    assert cost["bytes"] == found.method.size_in_bytes() > 0


# ------------------------------------------------------------------ scores


def summed(images, numbers: torch.Tensor, k: int = 4) -> tuple[dict[str, float], Any, FittedMethod]:
    found = fit(Given(), tokens(), tokens(seed=1), k=k, images=images)
    return *found.scores(numbers), found


def test_scores_are_means_over_the_units_that_were_asked_for(images) -> None:
    summary, single, found = summed(images[:N], torch.tensor([4, 0, 2]))
    assert single["unit"].tolist() == [4, 0, 2]
    assert summary["units"] == 3
    expected = top_similarity(found.pooled[:, [4, 0, 2]], found.halves.reference, 4)
    assert single["top_similarity"].tolist() == pytest.approx(expected.tolist())
    interval = mean_interval(expected)
    names = ("top_similarity", "top_similarity_low", "top_similarity_high")
    assert [summary[name] for name in names] == [interval.mean, interval.low, interval.high]
    for name in single.columns.drop("unit"):
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]


@pytest.mark.parametrize(
    ("labels", "scored"),
    [
        (None, None),
        ([*"aaaaaaaaaaaa"], None),  # one label
        ([*"aaaabbbcccdd"], None),  # only one of them has four images
        ([*"aaaabbbbccdd"], 2),
        ([*"aaaabbbbcccc"], 3),
    ],
)
def test_only_labels_with_four_images_are_scored(labels, scored) -> None:
    from elude_nb import load_images

    images = load_images(np.random.default_rng(0).random((N, 8, 8, 3)), labels=labels)
    summary = summed(images, torch.arange(6))[0]
    assert summary.get("labels") == scored
    assert ("best_unit_precision" in summary) == ("labels_covered" in summary) == (scored is not None)
    assert ("top_purity" in summary) == (labels is not None)


# ------------------------------------------------------------------ fidelity


@pytest.fixture(scope="module")
def recorded(vit32, images) -> tuple[Any, Recording]:
    site = find_site(vit32)
    return site, Recording.join(list(record(vit32, images, site, tokens_per_image=4)))


def test_fidelity_is_that_of_the_reconstruction_in_the_models_place(recorded, vit32, images) -> None:
    site, seen = recorded
    method, larger = PCA(8).fit(seen), PCA(40, name="more").fit(seen)
    fidelity = Fidelity(vit32, images, site, "patch", [method, larger], k=5, seed=0)
    found = fidelity.measure(method, seen)
    assert found["unexplained_variance"] == pytest.approx(unexplained_variance(seen.channels, method.reconstruct(seen)))
    before, after = (replaced_features(vit32, images, site, made) for made in (None, method.reconstruct))
    assert found["output_change"] == pytest.approx(float((before - after).abs().max()))
    agree = (before.argmax(1) == after.argmax(1)).float().mean()
    assert found["top1_agreement"] == pytest.approx(float(agree))
    assert 0 <= found["neighbour_agreement"] < 1
    more = fidelity.measure(larger, seen)
    assert more["unexplained_variance"] < found["unexplained_variance"]
    assert hook_count(vit32.network) == 0


class Clumsy(Channels):
    """Says that it changes nothing, and shifts what the last block puts out."""

    def beside(self, network: Any, site: Any) -> Any:
        return Replaced(network, site, lambda recording: recording.channels + 1, torch.arange(4))


def test_beside_the_model_nothing_is_lost_not_a_bit(recorded, vit32, images) -> None:
    """All are read in one pass; of a method that changes the outputs it is told, and only of that one."""
    site, seen = recorded
    width = site.terms[-1].sources
    methods = [Channels(), HiddenUnits(slice(site.sources - width, None)), Concepts(vit32, site, concepts=5, units=3)]
    clumsy = Clumsy(name="clumsy")
    for made in (methods, [*methods, clumsy]):
        fitted = [method.fit(seen) for method in made]
        fidelity = Fidelity(vit32, images, site, "patch", fitted, k=5, seed=0)
        for method in methods:
            found = fidelity.measure(method, seen)
            assert found["unexplained_variance"] == found["output_change"] == 0.0
            assert found["top1_agreement"] == found["neighbour_agreement"] == 1.0
    assert fidelity.measure(clumsy, seen)["output_change"] > 0
    assert hook_count(vit32.network) == 0


@pytest.mark.parametrize(
    ("name", "pictures", "place"), [("vit", "images", "stream:2"), ("conv", "small_images", "point")]
)
def test_several_reconstructions_share_a_pass(request, name, pictures, place) -> None:
    model, images = request.getfixturevalue(name).using(batch_size=4), request.getfixturevalue(pictures)[:6]
    site = find_site(model, place)
    ways = {
        "zeros": (lambda recording: torch.zeros_like(recording.channels), False),
        "sources": (lambda recording: recording.channels + recording.sources.sum(1, keepdim=True), True),
    }
    original, found = replaced_by_each(model, images, site, ways)
    assert original.equal(replaced_features(model, images, site, None))
    for way, (reconstruct, sources) in ways.items():
        assert found[way].equal(replaced_features(model, images, site, reconstruct, sources=sources))


def test_probes_need_labels_with_enough_images(vit32, images, recorded) -> None:
    site, seen = recorded
    method = PCA(8).fit(seen)

    def scored(chosen: Any) -> set[str]:
        return set(Fidelity(vit32, chosen, site, "patch", [method], k=3, seed=0).measure(method, seen))

    probes = {"knn_accuracy", "probe_accuracy"}
    assert probes <= scored(images)
    assert probes.isdisjoint(scored(images[:11]))  # the third label has three
    assert probes.isdisjoint(scored(images.with_labels(["same"] * 20)))


def test_a_method_that_fails_inside_the_model_leaves_no_hook(recorded, vit32, images) -> None:
    site, _ = recorded

    def fail(channels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no units")

    failing = [Given("fails", fail)]
    failing[0].needs_sources = True  # put in by hooks, not in what follows the site
    for methods in (failing, [Given("fails", fail)]):
        with pytest.raises(RuntimeError, match="no units"):
            Fidelity(vit32, images, site, "patch", methods, k=5, seed=0)
        assert hook_count(vit32.network) == 0
