from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb.scores import fidelity as room
from elude_nb.scores import knn_accuracy, neighbour_agreement, output_change, probe_accuracy, unexplained_variance
from elude_nb.scores.fidelity import chance_accuracy, fit_probe, nearest_neighbours


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kinds(n: int, seed: int = 0, spread: float = 0.3) -> tuple[torch.Tensor, list[str]]:
    """Return embeddings (n, 3) of three kinds of images in turn, and their names."""
    names = [("cat", "dog", "owl")[i % 3] for i in range(n)]
    return torch.eye(3).double()[[i % 3 for i in range(n)]] + spread * drawn(n, 3, seed=seed), names


# Unexplained variance.


@settings(deadline=None, max_examples=30)
@given(t=st.integers(2, 9), d=st.integers(1, 4), seed=st.integers(0, 999), noise=st.floats(0, 3))
def test_unexplained_variance_is_error_over_spread_around_the_mean_vector(t, d, seed, noise) -> None:
    x = drawn(t, d, seed=seed)
    y = x + noise * drawn(t, d, seed=seed + 1)
    error = sum((float(x[i, j]) - float(y[i, j])) ** 2 for i in range(t) for j in range(d))
    means = [sum(float(x[i, j]) for i in range(t)) / t for j in range(d)]
    spread = sum((float(x[i, j]) - means[j]) ** 2 for i in range(t) for j in range(d))
    assert unexplained_variance(x, y) == pytest.approx(error / spread)


def test_unexplained_variance_of_hand_cases() -> None:
    x = torch.tensor([[0.0, 10.0], [2.0, 10.0], [4.0, 10.0]])  # spread 8, all of it in the first channel
    assert unexplained_variance(x, x) == 0
    assert unexplained_variance(x, x.mean(0).expand(3, 2)) == 1
    assert unexplained_variance(x, x + torch.tensor([0.0, 2.0])) == 1.5  # worse than the mean
    assert unexplained_variance(x.numpy(), torch.zeros(3, 2)) == 320 / 8


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_unexplained_variance_does_not_know_shift_scale_or_order(seed, scale) -> None:
    x, y, shift = drawn(7, 3, seed=seed), drawn(7, 3, seed=seed + 1), 50 * drawn(3, seed=seed + 2)
    found = unexplained_variance(x, y)
    assert unexplained_variance(scale * x + shift, scale * y + shift) == pytest.approx(found)
    assert unexplained_variance(x.flip(0), y.flip(0)) == pytest.approx(found)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.7, 1e5 / 3])
def test_what_never_varies_has_no_variance_to_explain(value) -> None:
    constant = torch.full((7, 3), value, dtype=torch.float64)  # seven times 0.1 is not 0.7: the mean is off by rounding
    with pytest.raises(ValueError, match="never varies"):
        unexplained_variance(constant, torch.zeros(7, 3))


# Output change.


def test_output_change_of_a_hand_case() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # mean 0
    y = torch.tensor([[0.0, 3.0], [-1.0, 0.0]])
    assert output_change(x, y).to_dict() == {"largest": 3.0, "mean": 1.0, "cosine": 0.5, "top1_agreement": 0.5}


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 8), e=st.integers(1, 5), seed=st.integers(0, 999))
def test_output_change_against_loops(n, e, seed) -> None:
    x, y = drawn(n, e, seed=seed), drawn(n, e, seed=seed + 1)
    gaps = [abs(float(a - b)) for a, b in zip(x.flatten(), y.flatten(), strict=True)]
    mean = x.mean(0)
    cosines, tops = 0.0, 0
    for a, b in zip(x, y, strict=True):
        p, q = a - mean, b - mean
        cosines += float(p @ q / p.norm() / q.norm())
        tops += a.tolist().index(max(a.tolist())) == b.tolist().index(max(b.tolist()))
    expected = [max(gaps), sum(gaps) / len(gaps), cosines / n, tops / n]
    found = output_change(x, y)
    assert found.tolist() == pytest.approx(expected)
    assert list(found.index) == ["largest", "mean", "cosine", "top1_agreement"]


def test_outputs_that_stay_or_never_vary() -> None:
    x = drawn(6, 4)
    same = output_change(x, x.clone())
    assert same[["largest", "mean", "top1_agreement"]].tolist() == [0.0, 0.0, 1.0]
    assert same["cosine"] == pytest.approx(1.0)
    alike = output_change(torch.full((5, 2), 0.1), torch.full((5, 2), 0.1))
    assert math.isnan(alike["cosine"])  # there is no direction from the mean
    assert alike["largest"] == 0
    assert math.isnan(output_change(x[:1], x[:1])["cosine"])


def test_a_tiny_change_is_not_rounded_away() -> None:
    x = torch.ones(3, 2, dtype=torch.float64)
    changed = x.clone()
    changed[1, 1] += 2**-52
    assert output_change(x, changed)["largest"] == 2**-52


# Neighbours.


def slow_neighbours(embeddings: torch.Tensor, k: int) -> list[set[int]]:
    centred = embeddings - embeddings.mean(0)
    found = []
    for i, a in enumerate(centred):
        cosine = {j: float(a @ b / (a.norm() * b.norm())) for j, b in enumerate(centred) if j != i}
        found.append(set(sorted(cosine, key=lambda j: -cosine[j])[:k]))
    return found


@settings(deadline=None, max_examples=30)
@given(n=st.integers(3, 12), e=st.integers(2, 5), k=st.integers(1, 5), seed=st.integers(0, 999))
def test_neighbour_agreement_is_the_mean_share_in_common(n, e, k, seed) -> None:
    k = min(k, n - 1)
    x, y = drawn(n, e, seed=seed), drawn(n, e, seed=seed + 1)
    shares = [len(a & b) / k for a, b in zip(slow_neighbours(x, k), slow_neighbours(y, k), strict=True)]
    assert neighbour_agreement(x, y, k) == pytest.approx(sum(shares) / n)


def test_neighbours_of_a_hand_case() -> None:
    angles = torch.tensor([0.0, 10.0, 90.0, 101.0, 180.0, 192.0, 270.0, 283.0])  # four pairs around a circle
    x = torch.stack([torch.cos(angles.deg2rad()), torch.sin(angles.deg2rad())], dim=1)
    assert neighbour_agreement(x, x, k=1) == 1
    swapped = x[[0, 2, 1, 3, 4, 5, 6, 7]]  # images 1 and 2 change places: 0 and 3 lose their partners, too
    assert neighbour_agreement(x, swapped, k=1) == 0.5
    assert neighbour_agreement(x, swapped, k=7) == 1  # all others are all others


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), rows=st.integers(1, 20))
def test_neighbours_do_not_know_rotation_shift_scale_order_or_chunks(seed, rows) -> None:
    x, y = drawn(15, 4, seed=seed), drawn(15, 4, seed=seed + 1)
    found = neighbour_agreement(x, y, k=3)
    rotation = torch.linalg.qr(drawn(4, 4, seed=seed + 2)).Q
    order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
    assert neighbour_agreement(x, 3 * x @ rotation + 7, k=3) == 1
    assert neighbour_agreement(x[order], y[order], k=3) == pytest.approx(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_ROWS_AT_ONCE", rows)
        assert neighbour_agreement(x, y, k=3) == pytest.approx(found)


def test_unrelated_embeddings_share_as_many_neighbours_as_chance_has_it() -> None:
    found = neighbour_agreement(drawn(400, 20), drawn(400, 20, seed=1), k=10)
    assert found == pytest.approx(10 / 399, abs=0.01)


# Classifiers.


@settings(deadline=None, max_examples=20)
@given(k=st.sampled_from([1, 3, 5]), seed=st.integers(0, 999))
def test_knn_is_the_vote_of_the_nearest_by_cosine(k, seed) -> None:
    (x, names), (y, others) = kinds(24, seed, spread=0.8), kinds(15, seed + 1, spread=0.8)
    right = 0
    for row, name in zip(y, others, strict=True):
        cosine = [float(row @ other / (row.norm() * other.norm())) for other in x]
        votes = Counter(names[i] for i in sorted(range(24), key=lambda i: -cosine[i])[:k])
        guess = min(votes, key=lambda label: (-votes[label], label))  # of a tie, the first in order
        right += guess == name
    assert knn_accuracy(x, names, y, others, k=k) == pytest.approx(right / 15)


@pytest.mark.parametrize("accuracy", [knn_accuracy, probe_accuracy])
def test_kinds_that_lie_apart_are_told_apart_and_noise_is_not(accuracy) -> None:
    (x, names), (y, others) = kinds(60), kinds(90, seed=1)
    assert accuracy(x, names, y, others) > 0.9
    assert accuracy(drawn(300, 4), ["a", "b"] * 150, drawn(300, 4, seed=1), ["a", "b"] * 150) == pytest.approx(
        0.5, abs=0.1
    )
    shuffled = others[1:] + others[:1]
    assert accuracy(x, names, y, shuffled) < 0.1  # it is right for another label: below chance


@pytest.mark.parametrize("accuracy", [knn_accuracy, probe_accuracy])
def test_labels_may_be_of_any_kind(accuracy) -> None:
    (x, names), (y, others) = kinds(30), kinds(30, seed=1)
    found = accuracy(x, names, y, others)
    number = {"cat": 0, "dog": 1, "owl": 2}
    codes, tested = [number[name] for name in names], [number[name] for name in others]
    assert accuracy(x.numpy(), codes, y.float(), tested) == found
    assert accuracy(x, torch.tensor(codes), y, np.array(tested)) == found
    assert accuracy(x, pd.Series(names, index=range(5, 35)), y, others) == found


def test_a_label_that_was_not_trained_on_is_never_guessed() -> None:
    (x, names), (y, others) = kinds(60), kinds(90, seed=1)
    known = [name if name != "owl" else "eagle" for name in others]
    for accuracy in (knn_accuracy, probe_accuracy):
        assert accuracy(x, names, y, known) == pytest.approx(accuracy(x, names, y, others) - 1 / 3, abs=0.05)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_the_probe_does_not_know_scale_or_shift_of_a_column(seed, scale) -> None:
    (x, names), (y, others) = kinds(30, seed, spread=0.6), kinds(30, seed + 1, spread=0.6)
    factor, shift = torch.tensor([scale, 1.0, 1 / scale]), torch.tensor([5.0, -5.0, 0.0])
    found = probe_accuracy(factor * x + shift, names, factor * y + shift, others)
    assert found == pytest.approx(probe_accuracy(x, names, y, others), abs=1 / 30 + 1e-9)  # one image on the border


def test_the_probe_standardises_by_the_training_images_alone() -> None:
    x, names = kinds(60)
    moved = x + 100  # were the test images centred at their own mean, this would not be noticed
    assert probe_accuracy(x, names, x, names) > 0.9
    assert probe_accuracy(x, names, moved, names) < 0.7


def test_chance_is_the_commonest_training_label_on_the_test_images() -> None:
    assert chance_accuracy(["a", "b", "b"], ["a", "a", "a", "b"]) == 0.25
    assert chance_accuracy([7, 7, 3], torch.tensor([7, 7, 3, 3, 3])) == 0.4  # type: ignore[arg-type]
    assert chance_accuracy(["a", "b"] * 5, ["a", "b", "c", "d"]) == 0.25  # of a tie, the first in order
    assert chance_accuracy(["x", "x", "y"], ["a", "b"]) == 0


# What is refused.


@pytest.mark.parametrize("function", [unexplained_variance, output_change, neighbour_agreement])
def test_shapes_that_differ_and_values_that_are_not_finite_are_refused(function) -> None:
    with pytest.raises(ValueError, match=r"\(20, 3\) and \(20, 4\) must be of one shape"):
        function(drawn(20, 3), drawn(20, 4))
    with pytest.raises(ValueError, match=r"\(20, 3\) and \(1, 3\) must be of one shape"):  # no silent broadcast
        function(drawn(20, 3), drawn(1, 3))
    with pytest.raises(ValueError, match=r"must be \(n, e\)"):
        function(drawn(20), drawn(20))
    for wrong in (math.nan, math.inf):
        broken = drawn(20, 3)
        broken[4, 1] = wrong
        for pair in ((drawn(20, 3), broken), (broken, drawn(20, 3))):
            with pytest.raises(ValueError, match="row 4, column 1"):
                function(*pair)


def test_neighbours_need_more_images_than_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"k=5 .*1 and 4"):
        neighbour_agreement(drawn(5, 3), drawn(5, 3), k=5)


@pytest.mark.parametrize("accuracy", [knn_accuracy, probe_accuracy])
def test_classifiers_refuse_what_does_not_fit(accuracy) -> None:
    x, names = kinds(12)
    with pytest.raises(ValueError, match=r"11 labels .* 12 images"):
        accuracy(x, names[1:], x, names)
    with pytest.raises(ValueError, match=r"11 labels .* 12 images"):
        accuracy(x, names, x, names[1:])
    with pytest.raises(ValueError, match="'cat'"):
        accuracy(x, ["cat"] * 12, x, names)
    with pytest.raises(ValueError, match="equally many columns"):
        accuracy(x, names, x[:, :2], names)
    with pytest.raises(ValueError, match="1 label "):
        accuracy(x, names, x, [None, *names[1:]])
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        accuracy(x, names, x, names)


def test_knn_needs_as_many_images_as_vote() -> None:
    x, names = kinds(4)
    with pytest.raises(ValueError, match=r"k=5 .*1 and 4"):
        knn_accuracy(x, names, x, names)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-9, 0.1, 1e6]))
def test_output_change_goes_with_scale_and_does_not_know_shift_or_order(seed, scale) -> None:
    x, y, shift = drawn(7, 3, seed=seed), drawn(7, 3, seed=seed + 1), drawn(3, seed=seed + 2)
    found = output_change(x, y)
    scaled = output_change(scale * x, scale * y)
    assert scaled[["largest", "mean"]].tolist() == pytest.approx((scale * found[["largest", "mean"]]).tolist())
    assert scaled["cosine"] == pytest.approx(found["cosine"])
    assert scaled["top1_agreement"] == found["top1_agreement"]
    moved = output_change(x + shift, y + shift)
    assert moved[["largest", "mean", "cosine"]].tolist() == pytest.approx(found[["largest", "mean", "cosine"]].tolist())
    assert output_change(x.flip(0), y.flip(0)).tolist() == pytest.approx(found.tolist())


# Shared by other rooms.


@settings(deadline=None, max_examples=30)
@given(q=st.integers(1, 6), n=st.integers(2, 8), k=st.integers(1, 8), seed=st.integers(0, 999), rows=st.integers(1, 6))
def test_nearest_neighbours_are_those_of_largest_cosine(q, n, k, seed, rows) -> None:
    k = min(k, n - 1)
    queries, among = drawn(q, 3, seed=seed), drawn(n, 3, seed=seed + 1)
    itself = torch.arange(q) % n
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_ROWS_AT_ONCE", rows)
        plain, others = (nearest_neighbours(queries, among, k, leave_out=left) for left in (None, itself))
    for i, query in enumerate(queries):
        cosine = [float(query @ row / (query.norm() * row.norm())) for row in among]
        order = sorted(range(n), key=lambda j: -cosine[j])
        assert plain[1][i].tolist() == order[:k]
        assert plain[0][i].tolist() == pytest.approx([cosine[j] for j in order[:k]])
        assert others[1][i].tolist() == [j for j in order if j != itself[i]][:k]


def test_a_probe_can_be_read_as_one_linear_map() -> None:
    x, names = kinds(60)
    probe = fit_probe(x.numpy(), names)
    scaler, regression = probe
    weight = regression.coef_ / scaler.scale_
    logits = x.numpy() @ weight.T + regression.intercept_ - weight @ scaler.mean_
    assert probe.classes_[logits.argmax(1)].tolist() == probe.predict(x.numpy()).tolist()
    assert probe.score(x.numpy(), names) == probe_accuracy(x, names, x, names)
