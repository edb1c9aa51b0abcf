from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb import find_site, record
from elude_nb.baselines.channel_splits import OverlappingGroups, TwoClassSplit, VirtualNeurons, merge_error
from elude_nb.core.recording import Recording
from elude_nb.errors import NotFittedError
from elude_nb.models.hooks import for_analysis
from elude_nb.scores.planted import planted_network

T, S, D = 60, 10, 4
LABELS = [f"class {number % 4}" for number in range(T)]


def drawn(
    kernel: int = 1, *, t: int = T, s: int = S, d: int = D, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Recording, torch.Tensor, torch.Tensor]:
    """A recording of a site with everything: kernel positions, a bias, something that enters; its weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(t, s * kernel, generator=generator, dtype=torch.float64) + 0.5
    sources[:, 0] += 2 * torch.arange(t) % 4  # the labels show in it
    weight = torch.randn(d, s * kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(d, generator=generator, dtype=torch.float64)
    entering = torch.randn(t, d, generator=generator, dtype=torch.float64)
    channels = sources @ weight.T + bias + entering
    numbers = torch.arange(t)
    seen = Recording(channels.to(dtype), sources.to(dtype), entering.to(dtype), numbers, 0 * numbers)
    return seen, weight.to(dtype), bias.to(dtype)


def two_reasons() -> tuple[Recording, torch.Tensor, torch.Tensor]:
    """A channel that is high on tokens 0-9 for one source and on 10-15 for another; the other channel is not."""
    generator = torch.Generator().manual_seed(0)
    sources = 0.1 * torch.rand(40, 3, generator=generator, dtype=torch.float64)
    sources[:10, 0] += 5
    sources[10:16, 1] += 5
    weight = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    numbers = torch.arange(40)
    channels = sources @ weight.T
    return Recording(channels, sources, 0 * channels, numbers, 0 * numbers), weight, torch.zeros(2).double()


# ------------------------------------------------------------------ virtual neurons


def test_a_channel_that_is_high_for_two_reasons_has_two_virtual_neurons() -> None:
    seen, weight, bias = two_reasons()
    virtual = VirtualNeurons(weight, bias, strongest=16, channels=[0]).fit(seen)
    units, centred = virtual.encode(seen), seen.channels[:, 0] - seen.channels[:, 0].mean()
    assert virtual.channels_.tolist() == [0, 0]
    torch.testing.assert_close(units[:10, 0], centred[:10])  # the larger cluster is first
    torch.testing.assert_close(units[10:16, 1], centred[10:16])
    assert units[:10, 1].eq(0).all()
    assert units[10:16, 0].eq(0).all()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("chosen", [None, [2, 0]])
def test_a_virtual_neuron_is_active_where_its_centre_is_nearest(kernel, chosen) -> None:
    from sklearn.cluster import KMeans

    seen, weight, bias = drawn(kernel)
    virtual = VirtualNeurons(weight, bias, kernel, units_per_channel=3, strongest=12, channels=chosen, seed=1).fit(seen)
    units = virtual.encode(seen)
    numbers = chosen or list(range(D))
    assert units.shape == (T, 3 * len(numbers))
    for place, channel in enumerate(numbers):
        vectors = torch.stack([(token * weight[channel]).view(S, kernel).sum(1) for token in seen.sources])  # (t, s)
        best = sorted(range(T), key=lambda t: -float(seen.channels[t, channel]))[:12]
        fitted = KMeans(3, n_init=3, random_state=1).fit(vectors[best].numpy())
        mine = virtual.matrix_[:, 3 * place : 3 * place + 3]
        # the method's own centres, worked out from what it does with sources, are centres of mass of their clusters
        gates = (seen.sources @ mine - virtual.offset_[3 * place : 3 * place + 3]).argmax(1)
        centres = torch.stack([vectors[[t for t in best if gates[t] == k]].mean(0) for k in range(3)])
        assert torch.equal(torch.cdist(vectors, centres).argmin(1), gates)
        spent = sum(float((vectors[t] - centres[gates[t]]).square().sum()) for t in best)
        assert spent == pytest.approx(fitted.inertia_)
        sizes = [sum(int(gates[t]) == k for t in best) for k in range(3)]
        assert sizes == sorted(sizes, reverse=True)
        centred = seen.channels[:, channel] - seen.channels[:, channel].mean()
        expected = torch.stack([torch.where(gates == k, centred, 0) for k in range(3)], 1)
        torch.testing.assert_close(units[:, 3 * place : 3 * place + 3], expected)


def test_virtual_neurons_add_up_to_the_channel() -> None:
    seen, weight, bias = drawn(2)
    new = drawn(2, seed=1)[0]
    every, few = VirtualNeurons(weight, bias, 2).fit(seen), VirtualNeurons(weight, kernel=2, channels=[3, 1]).fit(seen)
    torch.testing.assert_close(every.reconstruct(new), new.channels)
    torch.testing.assert_close(few.reconstruct(new)[:, [1, 3]], new.channels[:, [1, 3]])
    torch.testing.assert_close(few.reconstruct(new)[:, [0, 2]], seen.channels[:, [0, 2]].mean(0).expand(T, 2))
    assert every.lossless


def test_tokens_that_are_all_alike_leave_clusters_empty() -> None:
    seen, weight, bias = two_reasons()
    seen.sources[:16] = seen.sources[0].clone()
    seen.channels.copy_(seen.sources @ weight.T)
    virtual = VirtualNeurons(weight, bias, strongest=16, channels=[0]).fit(seen)
    units = virtual.encode(seen)
    torch.testing.assert_close(units[:, 0], seen.channels[:, 0] - seen.channels[:, 0].mean())
    assert units[:, 1].eq(0).all()


def test_no_more_tokens_than_there_are_can_be_clustered() -> None:
    seen, weight, bias = drawn(t=7)
    assert VirtualNeurons(weight, bias, strongest=100).fit(seen).encode(seen).shape == (7, 2 * D)
    with pytest.raises(ValueError, match=r"7 tokens .* 8 clusters"):
        VirtualNeurons(weight, bias, units_per_channel=8).fit(seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units_per_channel": 1}, "units_per_channel=1"),
        ({"strongest": 2, "units_per_channel": 3}, "strongest=2"),
        ({"channels": [4]}, "channel=4"),
        ({"channels": [1, 1]}, r"channels=\[1, 1\]"),
        ({"channels": []}, r"channels=\[\]"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_virtual_neurons_that_cannot_be_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        VirtualNeurons(drawn()[1], **settings)


# ------------------------------------------------------------------ the split by classes


def test_sources_go_to_the_class_of_their_highest_relevance() -> None:
    # classes: a, b and a third; sources: one for a, one for b, one for both, one that never varies, one against a
    sources = torch.tensor([[4.0, 0, 2, 1, -3]] * 4 + [[0, 3, 2, 1, 0]] * 4 + [[0, 0, 0, 1, 0]] * 4).double()
    channels = sources @ torch.ones(5, 1).double()
    numbers = torch.arange(12)
    seen = Recording(channels, sources, 0 * channels, numbers, 0 * numbers)
    split = TwoClassSplit(torch.ones(1, 5).double()).fit(seen, ["a"] * 4 + ["b"] * 4 + ["c"] * 4)
    names = [split.class_names_[number] for number in split.classes_[0]]
    assert names == ["b", "a"]  # mean 6 and 4
    # above their means over all tokens, the last source's -3 on a is a gain for b: -1 lies below 0
    assert [["residual", *names][route] for route in split.routes_[0]] == ["a", "b", "residual", "residual", "b"]


def slow_routes(seen, weight, kernel, labels, groups, tau, gamma, rho) -> tuple[list[list[int]], list[list[str]]]:
    """Literal second implementation, channel by channel, source by source, class by class."""
    routes: list[list[int]] = []
    classes: list[list[str]] = []
    for channel, row in enumerate(weight):
        values = seen.channels[:, channel]
        of = {name: [t for t in range(len(labels)) if labels[t] == name] for name in sorted(set(labels))}
        best = sorted(of, key=lambda name: -float(values[of[name]].mean()))[:groups]
        high = {n: sorted(of[n], key=lambda t: -float(values[t]))[: max(1, round(gamma * len(of[n])))] for n in best}
        contributions = (seen.sources * row).view(len(labels), -1, kernel).sum(2)
        relevance = {name: contributions[high[name]].mean(0) - contributions.mean(0) for name in best}
        routes.append([])
        for source in range(contributions.shape[1]):
            found = [float(relevance[name][source]) for name in best]
            floors = [tau * float(relevance[name].max()) for name in best]
            counted = [
                value if value >= floor and value > 0 else 0.0 for value, floor in zip(found, floors, strict=True)
            ]
            own = [
                number
                for number, value in enumerate(counted)
                if value > 0 and all(other <= rho * value for n, other in enumerate(counted) if n != number)
            ]
            routes[-1].append(own[0] + 1 if len(own) == 1 else 0)
        classes.append(best)
    return routes, classes


@settings(deadline=None, max_examples=30)
@given(
    kernel=st.sampled_from([1, 3]),
    groups=st.integers(2, 4),
    tau=st.sampled_from([0.0, 0.03, 0.5]),
    gamma=st.sampled_from([0.0, 0.3, 1.0]),
    rho=st.sampled_from([0.0, 0.4, 0.8]),
    seed=st.integers(0, 100),
)
def test_routes_are_those_of_a_literal_loop(kernel, groups, tau, gamma, rho, seed) -> None:
    seen, weight, bias = drawn(kernel, seed=seed)
    how = {"tau": tau, "gamma": gamma, "rho": rho}
    split = OverlappingGroups(weight, bias, kernel, n_groups=groups, **how).fit(seen, LABELS)
    routes, classes = slow_routes(seen, weight, kernel, LABELS, groups, **how)
    assert split.routes_.tolist() == routes
    assert [[split.class_names_[number] for number in row] for row in split.classes_] == classes
    if groups == 2:
        two = TwoClassSplit(weight, bias, kernel, **how).fit(seen, LABELS)
        assert torch.equal(two.routes_, split.routes_)


def test_channels_are_routed_alike_in_chunks_and_at_once(monkeypatch) -> None:
    seen, weight, bias = drawn(3)
    expected = TwoClassSplit(weight, bias, 3).fit(seen, LABELS).routes_
    monkeypatch.setattr("elude_nb.baselines.channel_splits._CONTRIBUTIONS_AT_ONCE", 1)
    assert torch.equal(TwoClassSplit(weight, bias, 3).fit(seen, LABELS).routes_, expected)


@pytest.mark.parametrize("kind", [TwoClassSplit, OverlappingGroups])
@pytest.mark.parametrize("kernel", [1, 3])
def test_units_are_sums_of_contributions_and_merge_into_the_channels(kind, kernel) -> None:
    seen, weight, bias = drawn(kernel)
    new = drawn(kernel, seed=1)[0]
    new.channels.copy_(new.sources @ weight.T + bias + new.entering)
    split = kind(weight, bias, kernel, rho=0.5).fit(seen, LABELS)
    assert 0 < int((split.routes_ == 0).sum()) < split.routes_.numel()
    units, g = split.encode(new), split.n_groups_
    assert units.shape == (T, D * g)
    residual = split.residual(new)
    for channel in range(D):
        contributions = (new.sources * weight[channel]).view(T, S, kernel).sum(2)
        means = (seen.sources.mean(0) * weight[channel]).view(S, kernel).sum(1)
        shared = split.routes_[channel] == 0
        torch.testing.assert_close(residual[:, channel], contributions[:, shared].sum(1))
        for group in range(g):
            mine = split.routes_[channel] == group + 1
            mine = mine | shared if kind is OverlappingGroups else mine
            expected = (contributions - means)[:, mine].sum(1)
            torch.testing.assert_close(units[:, channel * g + group], expected)
    torch.testing.assert_close(split.reconstruct(new), new.channels)
    torch.testing.assert_close(split.decode(units, new), new.channels)


def test_a_partition_adds_up_to_the_weight_bit_for_bit_and_overlapping_groups_do_not() -> None:
    seen, weight, bias = drawn(3)
    for kind in (TwoClassSplit, OverlappingGroups):
        split = kind(weight, bias, 3, rho=0.5).fit(seen, LABELS)
        of_groups = split.matrix_.unflatten(1, (D, -1)).sum(2).T
        left = weight * (split.routes_ == 0).repeat_interleave(3, dim=1)
        assert torch.equal(of_groups + left, weight) == (kind is TwoClassSplit)


def test_an_edited_unit_moves_its_channel_alone() -> None:
    seen, weight, bias = drawn()
    split = TwoClassSplit(weight, bias).fit(seen, LABELS)
    units = split.encode(seen)
    units[:, 3] += 10  # channel 1, second class
    moved = split.decode(units, seen) - seen.channels
    torch.testing.assert_close(moved, torch.tensor([0.0, 10, 0, 0]).double().expand(T, D), atol=1e-9, rtol=0)


def test_decoding_without_the_rest_is_refused() -> None:
    seen, weight, bias = drawn()
    split = TwoClassSplit(weight, bias).fit(seen, LABELS)
    with pytest.raises(ValueError, match="two-class split"):
        split.decode(split.encode(seen))


def test_fewer_classes_than_groups_are_all_taken() -> None:
    seen, weight, bias = drawn()
    split = OverlappingGroups(weight, bias, n_groups=9).fit(seen, LABELS)
    assert split.n_groups_ == 4
    assert split.encode(seen).shape == (T, 4 * D)
    assert split.classes_.sort(1).values.tolist() == [[0, 1, 2, 3]] * D


def test_a_site_without_bias_needs_none() -> None:
    seen, weight, bias = drawn()
    seen.channels.sub_(bias)
    assert merge_error(TwoClassSplit(weight).fit(seen, LABELS), seen) < 1e-12


# ------------------------------------------------------------------ what rounding costs


class Partition(OverlappingGroups):
    """The same routes, every contribution counted once."""

    overlapping = False


def merge_errors(size: float, dtype: torch.dtype, groups: int) -> dict[str, float]:
    """What merging costs where sources that all classes share are ``size`` times as large as the other ones."""
    seen, weight, bias = drawn(t=400, s=64, d=16)
    labels = [number % groups for number in range(400)]
    for number in range(groups):
        seen.sources[number::groups, number] += 4
    seen.sources[:, 32:] *= size
    channels = seen.sources @ weight.T + bias + seen.entering
    sources, entering, weight, bias = (x.to(dtype) for x in (seen.sources, seen.entering, weight, bias))
    rounded = Recording(channels.to(dtype), sources, entering, seen.images, seen.positions)
    # the same sum over the same rounded numbers in float64: what is left is rounding in the merge alone
    truth = sources.double() @ weight.double().T + bias.double() + entering.double()
    splits = [
        kind(weight, bias, n_groups=groups, rho=0.5).fit(rounded, labels) for kind in (Partition, OverlappingGroups)
    ]
    assert torch.equal(splits[0].routes_, splits[1].routes_)
    return {type(split).__name__: float((split.reconstruct(rounded) - truth).abs().max()) for split in splits}


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_overlapping_groups_lose_more_than_a_partition_in_float32(size) -> None:
    errors = {groups: merge_errors(size, torch.float32, groups) for groups in (4, 16)}
    for groups, error in errors.items():
        assert error["Partition"] > 0
        assert error["OverlappingGroups"] > 1.5 * error["Partition"], groups
    assert errors[16]["OverlappingGroups"] > 1.5 * errors[4]["OverlappingGroups"]  # the more groups, the more
    assert errors[16]["OverlappingGroups"] > 4 * errors[16]["Partition"]


def test_in_float64_next_to_nothing_is_lost() -> None:
    for error in merge_errors(1.0, torch.float64, 16).values():
        assert error < 1e-11


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def test_merging_is_measured_against_the_recorded_channels(dtype, most) -> None:
    seen, weight, bias = drawn(dtype=dtype)
    split = OverlappingGroups(weight, bias).fit(seen, LABELS)
    error = merge_error(split, seen)
    assert 0 < error < most
    assert error == float((split.reconstruct(seen) - seen.channels).abs().max())
    assert split.reconstruct(seen).dtype == dtype


# ------------------------------------------------------------------ at the sites of real networks


def recorded(split, images) -> tuple[Recording, dict[str, Any], list[str]]:
    network, site = split.model.network, split.site
    seen = Recording.join(list(record(split.model, images, site, tokens=split.settings.tokens, tokens_per_image=4)))
    parts = {
        "weight": for_analysis(site.weight(network)),
        "bias": for_analysis(site.bias(network)),
        "kernel": site.kernel,
    }
    return seen, parts, [images.labels[number] for number in seen.images.tolist()]


@pytest.mark.parametrize(
    ("name", "pictures"), [("split", "images"), ("conv_split", "small_images"), ("mlp_split", "smallest_images")]
)
def test_splits_give_the_channels_of_every_kind_of_site(request, name, pictures) -> None:
    split = request.getfixturevalue(name)
    seen, parts, labels = recorded(split, request.getfixturevalue(pictures))
    for kind in (VirtualNeurons, TwoClassSplit, OverlappingGroups):
        method = kind(**parts).fit(seen, labels)
        assert method.encode(seen).isfinite().all()
        assert merge_error(method, seen) < 1e-9, kind


def test_in_float32_a_partition_is_nearer_to_a_transformers_channels(vit32, images) -> None:
    from elude_nb import disentangle

    split = disentangle(vit32, images, concepts=8, units=3, tokens_per_image=6, progress=False)
    seen, parts, labels = recorded(split, images)
    overlapping = OverlappingGroups(**parts, n_groups=3, rho=0.2).fit(seen, labels)
    # the residual is made large: something that all tokens have in common, and that no class owns
    large = Recording(seen.channels, seen.sources + 300, seen.entering, seen.images, seen.positions)
    truth = large.sources.double() @ parts["weight"].double().T + parts["bias"].double() + large.entering.double()
    partition = (split.decode(split.encode(large)).double() - truth).abs().max()
    assert (overlapping.reconstruct(large).double() - truth).abs().max() > 1.2 * partition > 0


def test_planted_sources_are_found_from_labels() -> None:
    planted = planted_network(concepts=6, channels=8, concepts_per_channel=2)
    site = find_site(planted.model, planted.site)
    seen = Recording.join(list(record(planted.model, planted.images, site, tokens="class")))
    labels = [(planted.images.labels or ())[number] for number in seen.images.tolist()]
    network = planted.model.network
    split = TwoClassSplit(for_analysis(site.weight(network)), for_analysis(site.bias(network))).fit(seen, labels)
    named = torch.tensor([int(str(name).removeprefix("pattern ")) for name in split.class_names_])
    owner = torch.cat([torch.full((8, 1), -1), named[split.classes_]], 1).gather(1, split.routes_.long())
    assert torch.equal(owner, planted.truth)


# ------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels"),
        (LABELS[1:], "59 .* 60 tokens"),
        (["same"] * T, "'same'"),
        ([None, *LABELS[1:]], "1 label "),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message) -> None:
    seen, weight, bias = drawn()
    with pytest.raises(ValueError, match=message):
        TwoClassSplit(weight, bias).fit(seen, labels)


@pytest.mark.parametrize("kind", [VirtualNeurons, TwoClassSplit, OverlappingGroups])
def test_recordings_and_weights_that_do_not_fit_are_refused(kind) -> None:
    seen, weight, bias = drawn()
    with pytest.raises(ValueError, match=r"4 channels and 10 sources.*\(4, 9\)"):
        kind(weight[:, 1:], bias).fit(seen, LABELS)
    with pytest.raises(ValueError, match=r"kernel=3.*\(4, 10\)"):
        kind(weight, bias, 3)
    with pytest.raises(ValueError, match=r"\(4, 10\) and \(2,\)"):
        kind(weight, bias[:2])
    method = kind(weight, bias)
    with pytest.raises(NotFittedError, match=method.name):
        method.encode(seen)
    seen.sources[3, 2] = math.nan
    with pytest.raises(ValueError, match="sources"):
        method.fit(seen, LABELS)


@pytest.mark.parametrize("name", ["tau", "gamma", "rho"])
def test_thresholds_are_shares(name) -> None:
    with pytest.raises(ValueError, match=f"{name}=1.5"):
        TwoClassSplit(drawn()[1], **{name: 1.5})  # type: ignore[arg-type]


def test_the_models_weights_are_not_counted_as_memory() -> None:
    seen, weight, bias = drawn()
    assert TwoClassSplit(weight, bias).fit(seen, LABELS).size_in_bytes() == D * S
    virtual = VirtualNeurons(weight, bias).fit(seen)
    kept = (virtual.matrix_, virtual.offset_, virtual.mean_, virtual.channels_, virtual._chosen)
    assert virtual.size_in_bytes() == sum(tensor.nbytes for tensor in kept)


@pytest.mark.parametrize("kind", [VirtualNeurons, TwoClassSplit, OverlappingGroups])
def test_fitting_and_encoding_change_nothing_and_are_repeatable(kind) -> None:
    seen, weight, bias = drawn()
    first, second = (kind(weight, bias).fit(seen, LABELS).encode(seen) for _ in range(2))
    assert torch.equal(first, second)
    again, same, _ = drawn()
    assert torch.equal(seen.sources, again.sources)
    assert torch.equal(seen.channels, again.channels)
    assert torch.equal(weight, same)
