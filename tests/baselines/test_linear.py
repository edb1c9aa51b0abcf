from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb import find_site, record
from elude_nb.baselines.base import Method
from elude_nb.baselines.linear import ICA, NMF, PCA, Channels, HiddenUnits, KMeansDirections
from elude_nb.core.recording import Recording
from elude_nb.errors import NotFittedError
from elude_nb.scores.fidelity import ridge

D = 6


def recording_of(channels: torch.Tensor, sources: torch.Tensor | None = None) -> Recording:
    none = channels.new_zeros(len(channels), 0)
    numbers = torch.arange(len(channels))
    return Recording(channels, none if sources is None else sources, 0 * channels, numbers, 0 * numbers)


def mixed(t: int = 80, d: int = D, seed: int = 0) -> Recording:
    """Skewed tokens off the origin, each channel with another spread, and the sources that are mixed in them."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.rand(t, d, generator=generator, dtype=torch.float64).square()
    weight = torch.randn(d, d, generator=generator, dtype=torch.float64) * torch.arange(1.0, d + 1)[:, None]
    return recording_of(sources @ weight.T + 5, sources)


def left(method: Method, recording: Recording) -> float:
    """Share of the squared distances to the mean that a reconstruction leaves."""
    h = recording.channels
    return float((h - method.reconstruct(recording)).square().sum() / (h - h.mean(0)).square().sum())


MAKERS: dict[str, Callable[[Any], Method]] = {
    "channels": Channels,
    "hidden units": lambda units: HiddenUnits(slice(0, D), units),
    "PCA": PCA,
    "ICA": ICA,
    "NMF": NMF,
    "k-means": KMeansDirections,
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


# ------------------------------------------------------------------ what all have in common


@EVERY
def test_the_interface_holds(make) -> None:
    seen, method = mixed(), make(4)
    assert method.fit(seen) is method
    units = method.encode(seen)
    assert units.shape == (80, 4)
    assert units.isfinite().all()
    assert method.decode(units).shape == seen.channels.shape
    torch.testing.assert_close(method.reconstruct(seen), method.decode(units))
    assert method.size_in_bytes() > 0


@EVERY
def test_the_recording_stays_as_it_is(make) -> None:
    seen, kept = mixed(), mixed()
    method = make(4).fit(seen)
    method.decode(method.encode(seen))
    assert torch.equal(seen.channels, kept.channels)
    assert torch.equal(seen.sources, kept.sources)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_and_channels_have_the_recordings_dtype(make, dtype) -> None:
    seen = recording_of(mixed().channels.to(dtype), mixed().sources.to(dtype))
    method = make(4).fit(seen)
    assert method.encode(seen).dtype == dtype
    assert method.reconstruct(seen).dtype == dtype


@EVERY
def test_a_tokens_units_do_not_depend_on_the_other_tokens(make) -> None:
    seen, method = mixed(), make(4).fit(mixed())
    parts = torch.cat([method.encode(part) for part in seen.parts(7)])
    torch.testing.assert_close(parts, method.encode(seen), rtol=1e-9, atol=1e-9)


@EVERY
def test_the_same_seed_gives_the_same_units(make) -> None:
    first, second = (make(4).fit(mixed()).encode(mixed(seed=1)) for _ in range(2))
    assert torch.equal(first, second)


@EVERY
def test_more_units_than_there_are_give_fewer(make) -> None:
    method = make(1000).fit(mixed(t=9))
    units = method.encode(mixed(t=20, seed=1))
    assert 0 < units.shape[1] <= 2 * D
    assert units.isfinite().all()
    assert method.reconstruct(mixed(t=20)).isfinite().all()


@EVERY
def test_a_method_that_was_not_fitted_says_so(make) -> None:
    method = make(4)
    for act in (lambda: method.encode(mixed()), lambda: method.decode(torch.zeros(3, 4))):
        with pytest.raises(NotFittedError, match=method.name):
            act()


@EVERY
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_tokens_that_cannot_be_fitted_are_refused(make, wrong) -> None:
    seen = mixed()
    with pytest.raises(ValueError, match="1 token"):
        make(4).fit(next(seen.parts(1)))
    with pytest.raises(ValueError, match="5 tokens"):
        make(4).fit(recording_of(torch.ones(5, D), torch.rand(5, D)))
    seen.channels[3, 2] = wrong
    with pytest.raises(ValueError, match="NaN or infinite"):
        make(4).fit(seen)


@EVERY
def test_a_constant_channel_does_no_harm(make) -> None:
    seen = mixed()
    seen.channels[:, 2] = 7.5
    seen.sources[:, 1] = 0
    method = make(12 if make is not MAKERS["hidden units"] else D).fit(seen)
    assert method.encode(seen).isfinite().all()
    assert method.reconstruct(seen)[:, 2].tolist() == pytest.approx([7.5] * 80)


@EVERY
def test_silly_numbers_are_refused(make) -> None:
    with pytest.raises(ValueError, match="n_units=0"):
        make(0)
    with pytest.raises(TypeError, match="n_units"):
        make(4.5)


@pytest.mark.parametrize("kind", [PCA, ICA, NMF, KMeansDirections])
def test_seeds_are_those_of_scikit_learn(kind) -> None:
    with pytest.raises(ValueError, match="seed=-1"):
        kind(4, seed=-1)


def test_which_methods_run_beside_the_model_and_which_need_sources() -> None:
    methods = {name: make(4) for name, make in MAKERS.items()}
    assert {name for name, method in methods.items() if method.lossless} == {"channels", "hidden units"}
    assert {name for name, method in methods.items() if method.needs_sources} == {"hidden units"}
    assert not any(method.needs_labels for method in methods.values())
    assert [method.name for method in methods.values()] == list(MAKERS)


# ------------------------------------------------------------------ channels


def test_channels_have_units_of_both_signs_around_their_mean() -> None:
    seen = recording_of(torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]]))
    units = Channels().fit(seen).encode(seen)
    assert units.tolist() == [[-10, -2, 10, 2], [-10, 0, 10, 0], [20, 2, -20, -2]]  # the second varies more


def test_all_channels_decode_exactly_and_some_leave_the_others_at_their_mean() -> None:
    seen = mixed()
    assert (Channels().fit(seen).reconstruct(seen) - seen.channels).abs().max() <= 1e-14 * seen.channels.abs().max()
    few = Channels(5).fit(seen)  # an odd number is rounded down
    kept = sorted(range(D), key=lambda j: -float(seen.channels[:, j].var()))[:2]
    assert few.kept_.tolist() == kept
    made = few.reconstruct(seen)
    for j in range(D):
        expected = seen.channels[:, j] if j in kept else seen.channels[:, j].mean().expand(80)
        torch.testing.assert_close(made[:, j], expected)


# ------------------------------------------------------------------ hidden units


def test_hidden_units_are_the_sources_of_largest_variance() -> None:
    seen = mixed()
    hidden = HiddenUnits(slice(2, None), 3).fit(seen)
    columns = sorted(range(2, D), key=lambda i: -float(seen.sources[:, i].var()))[:3]
    assert torch.equal(hidden.encode(seen), seen.sources[:, columns])


def test_hidden_units_decode_by_ridge_regression() -> None:
    seen = mixed()
    hidden = HiddenUnits(slice(0, D)).fit(seen)
    x, y = hidden.encode(seen) - hidden.encode(seen).mean(0), seen.channels - seen.channels.mean(0)
    strength = 1e-3 * sum(float(column @ column) for column in x.T) / D
    rows = torch.cat([x, strength**0.5 * torch.eye(D)])  # ridge regression is least squares with rows added
    slow = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(D, D)])).solution
    torch.testing.assert_close(hidden.reconstruct(seen), x @ slow + seen.channels.mean(0))
    assert left(hidden, seen) < 1e-3  # the channels are linear in these sources
    assert left(HiddenUnits(slice(0, 2)).fit(seen), seen) > 0.1


@pytest.mark.parametrize("d", [1, 3])
def test_ridge_of_one_target_or_of_nothing_keeps_its_shape(d) -> None:
    x = mixed().sources
    assert ridge(x, x[:, :d], 1e-3).shape == (D, d)
    assert ridge(0 * x, x[:, :d], 1.0).tolist() == [[0.0] * d] * D


def test_hidden_units_need_sources() -> None:
    with pytest.raises(ValueError, match=r"slice\(0, 6, None\) .* 0 sources"):
        HiddenUnits(slice(0, D)).fit(recording_of(mixed().channels))


def test_hidden_units_of_a_transformer_are_its_last_layers(vit, images) -> None:
    site = find_site(vit)
    seen = Recording.join(list(record(vit, images, site, tokens_per_image=4)))
    width = site.terms[-1].sources
    hidden = HiddenUnits(slice(site.sources - width, None)).fit(seen)
    assert hidden.encode(seen).shape == (80, width)
    assert torch.equal(hidden.encode(seen).sort(1).values, seen.sources[:, -width:].sort(1).values)


# ------------------------------------------------------------------ PCA and ICA


def test_principal_components_are_those_of_the_covariance() -> None:
    seen = mixed()
    pca = PCA(2 * D).fit(seen)
    values, vectors = torch.linalg.eigh(seen.channels.T.cov())
    torch.testing.assert_close(pca.explained_, values.flip(0) / values.sum())
    for found, slow in zip(pca.back_, vectors.T.flip(0), strict=True):
        assert abs(float(found @ slow)) == pytest.approx(1)
    units = pca.encode(seen)
    torch.testing.assert_close(units[:, :D].T.cov(), values.flip(0).diag(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(units[:, D:], -units[:, :D])


def test_components_lose_just_the_variance_that_they_lack() -> None:
    seen, full = mixed(), PCA(2 * D).fit(mixed())
    for kind in (PCA, ICA):
        assert left(kind(2 * D).fit(seen), seen) < 1e-20
        for units in (2, 5, 8):
            assert left(kind(units).fit(seen), seen) == pytest.approx(1 - float(full.explained_[: units // 2].sum()))


def test_no_more_components_than_tokens_give() -> None:
    seen = mixed(t=4)
    for kind in (PCA, ICA):
        method = kind(2 * D).fit(seen)
        assert method.encode(seen).shape == (4, 6)  # four points span three dimensions
        assert left(method, seen) < 1e-20


def test_independent_components_find_the_sources() -> None:
    seen = mixed(t=4000)
    ica = ICA(2 * D).fit(seen)
    assert ica.converged_
    units = ica.encode(seen)[:, :D]
    torch.testing.assert_close(units.T.cov(), torch.eye(D, dtype=torch.float64), atol=1e-6, rtol=0)
    alike = torch.corrcoef(torch.cat([units, seen.sources], 1).T)[:D, D:].abs()
    assert alike.amax(0).min() > 0.97
    mixture = torch.corrcoef(torch.cat([PCA(2 * D).fit(seen).encode(seen)[:, :D], seen.sources], 1).T)[:D, D:].abs()
    assert mixture.amax(0).min() < 0.9  # which principal components do not


def test_independent_components_come_strongest_first() -> None:
    seen = mixed(t=500)
    ica = ICA(2 * D).fit(seen)
    units, h = ica.encode(seen)[:, :D], seen.channels - seen.channels.mean(0)
    carried = [float(((h * units[:, c : c + 1]).mean(0)).square().sum()) for c in range(D)]  # their covariances
    assert carried == sorted(carried, reverse=True)
    assert carried[0] > 1.5 * carried[-1]


@pytest.mark.parametrize("kind", [ICA, NMF])
def test_running_out_of_iterations_is_kept_and_not_warned_of(kind) -> None:
    assert kind(8, iterations=200).fit(mixed(t=500)).converged_
    assert not kind(8, iterations=1).fit(mixed(t=500)).converged_


@pytest.mark.parametrize("kind", [ICA, NMF])
def test_of_too_many_tokens_some_are_drawn(kind) -> None:
    seen = mixed(t=300)
    drawn, again = (kind(6, max_tokens=50, seed=3).fit(seen) for _ in range(2))
    other, whole = kind(6, max_tokens=50, seed=4).fit(seen), kind(6, max_tokens=300).fit(seen)
    assert torch.equal(drawn.mean_, again.mean_)
    assert not torch.equal(drawn.mean_, other.mean_)
    torch.testing.assert_close(whole.mean_, seen.channels.mean(0))
    assert drawn.encode(seen).shape == whole.encode(seen).shape == (300, 6)


# ------------------------------------------------------------------ NMF


def test_parts_are_not_negative_and_come_strongest_first() -> None:
    seen = mixed(t=300)
    nmf = NMF(5).fit(seen)
    units = nmf.encode(seen)
    assert nmf.parts_.shape == (5, 2 * D)
    assert nmf.parts_.min() >= 0
    assert units.min() >= 0
    energy = [float((units[:, c : c + 1] * nmf.parts_[c]).square().sum()) for c in range(5)]
    assert energy[0] > energy[-1]
    assert sorted(energy, reverse=True) == pytest.approx(energy, rel=0.1)  # sorted by the units of the fit itself


def test_enough_parts_give_both_halves_back() -> None:
    seen = mixed(t=200)
    assert left(NMF(2 * D, iterations=2000, encode_iterations=500).fit(seen), seen) < 0.01
    few = [left(NMF(units).fit(seen), seen) for units in (1, 3, 6)]
    assert few == sorted(few, reverse=True)


def test_encoding_is_the_best_non_negative_fit_of_the_halves() -> None:
    from scipy.optimize import nnls

    seen = mixed(t=60)
    nmf = NMF(4, encode_iterations=500).fit(seen)
    centred = seen.channels - seen.channels.mean(0)
    halves = torch.cat([centred.clamp(min=0), -centred.clamp(max=0)], 1)
    slow = [nnls(nmf.parts_.T.numpy(), token)[0].tolist() for token in halves.numpy()]
    torch.testing.assert_close(nmf.encode(seen), torch.tensor(slow, dtype=torch.float64), atol=1e-5, rtol=1e-4)
    above, below = (nmf.encode(seen) @ nmf.parts_).split(D, dim=1)
    torch.testing.assert_close(nmf.reconstruct(seen), above - below + seen.channels.mean(0))


# ------------------------------------------------------------------ k-means


def pointed(per_group: tuple[int, ...] = (40, 10, 25)) -> tuple[Recording, torch.Tensor]:
    """Tokens in a few directions around a mean far from the origin; and the group of each."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(len(per_group)).repeat_interleave(torch.tensor(per_group))
    lengths = 1 + torch.rand(len(groups), 1, generator=generator, dtype=torch.float64)
    noise = 0.02 * torch.randn(len(groups), D, generator=generator, dtype=torch.float64)
    return recording_of(lengths * torch.eye(D, dtype=torch.float64)[groups] + noise + 3), groups


def test_groups_are_found_and_the_largest_comes_first() -> None:
    seen, groups = pointed()
    kmeans = KMeansDirections(3).fit(seen)
    nearest = kmeans.encode(seen).argmax(1)
    assert [groups[nearest == unit].unique().tolist() for unit in range(3)] == [[0], [2], [1]]


def test_units_are_cosines_and_decode_is_the_mean_of_the_nearest_group() -> None:
    seen, groups = pointed()
    kmeans = KMeansDirections(3).fit(seen)
    centred = seen.channels - seen.channels.mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True)
    for column, group in enumerate((0, 2, 1)):
        mine = groups == group
        direction = unit[mine].sum(0) / unit[mine].sum(0).norm()
        torch.testing.assert_close(kmeans.encode(seen)[:, column], unit @ direction)
        made = kmeans.reconstruct(seen)[mine]
        torch.testing.assert_close(made, seen.channels[mine].mean(0).expand_as(made))
    assert 0 < left(kmeans, seen) < 0.2


def test_copies_of_few_tokens_give_few_groups() -> None:
    seen = recording_of(torch.eye(D, dtype=torch.float64)[[0, 1, 1, 2, 2, 2]])
    kmeans = KMeansDirections(5).fit(seen)
    assert kmeans.encode(seen).shape == (6, 3)
    torch.testing.assert_close(kmeans.reconstruct(seen), seen.channels)


def test_a_token_far_from_every_direction_goes_to_the_nearest_and_not_to_the_most_opposite() -> None:
    kmeans = KMeansDirections(2).fit(recording_of(torch.tensor([[2.0, 1.0], [2.0, -1.0], [-1.0, 3.0], [-3.0, -3.0]])))
    units = torch.tensor([[-0.9, 0.1], [0.2, -0.8]])
    torch.testing.assert_close(kmeans.decode(units), (kmeans.centres_ + kmeans.mean_)[[1, 0]])


# ------------------------------------------------------------------ laws


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_scaling_and_shifting_all_channels_leaves_what_is_lost(seed, scale, shift) -> None:
    seen = mixed(t=40, seed=seed)
    moved = recording_of(scale * seen.channels + shift, seen.sources)
    for make in (MAKERS["channels"], MAKERS["PCA"], MAKERS["k-means"]):
        assert left(make(4).fit(moved), moved) == pytest.approx(left(make(4).fit(seen), seen), abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000))
def test_the_order_of_tokens_does_not_matter(seed) -> None:
    seen = mixed(t=40, seed=seed)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    turned = recording_of(seen.channels[order], seen.sources[order])
    for make in (MAKERS["channels"], MAKERS["hidden units"], MAKERS["PCA"]):
        torch.testing.assert_close(make(4).fit(turned).encode(seen), make(4).fit(seen).encode(seen))
