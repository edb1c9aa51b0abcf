from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from elude_nb.data.synthetic import sample_scenes
from elude_nb.scores.factors import (
    DCI,
    dci,
    encoded_factor,
    mutual_information,
    mutual_information_gap,
    planted_recovery,
)


def drawn(n: int, u: int, seed: int = 0, levels: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, levels, (n, u)).astype(float) if levels else rng.normal(size=(n, u)))


def units_of(factors: pd.DataFrame, noise: float = 0.0, others: int = 0, seed: int = 0) -> torch.Tensor:
    """One unit a factor, its values by rank or by number, and ``others`` that know nothing."""
    rng = np.random.default_rng(seed)
    columns = [
        factors[name] if factors[name].dtype.kind == "f" else pd.Series(pd.factorize(factors[name], sort=True)[0])
        for name in factors
    ]
    known = np.stack([(column / column.std()).to_numpy() for column in columns], axis=1)
    known = known + noise * rng.normal(size=known.shape)
    return torch.from_numpy(np.concatenate([known, rng.normal(size=(len(factors), others))], axis=1))


# --------------------------------------------------------------------- mutual information


def slow_bins(values: np.ndarray, bins: int) -> list[int]:
    """Literal: a value's bin is the share of values that are lower, in bins."""
    return [int(sum(other < value for other in values) * bins // len(values)) for value in values]


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(4, 30), u=st.integers(0, 3), bins=st.integers(2, 6), levels=st.integers(0, 4), seed=st.integers(0, 99)
)
def test_information_is_that_of_scikit_learn_over_the_same_bins(n, u, bins, levels, seed) -> None:
    activations, factors = drawn(n, u, seed, levels), sample_scenes(n, seed)
    factors["shape"] = ["star", "cross"] * (n // 2) + ["star"] * (n % 2)
    factors = factors[["shape", "size", "x"]]
    found = mutual_information(activations, factors, bins=bins)
    shares = mutual_information(activations, factors, bins=bins, normalised=True)
    assert found.shape == (u, 3)
    for unit in range(u):
        values = activations[:, unit].numpy()
        for name in factors:
            discrete = name == "shape" or n <= bins
            codes = list(pd.factorize(factors[name])[0]) if discrete else slow_bins(factors[name].to_numpy(), bins)
            if values.min() == values.max():
                assert np.isnan(found[name].iloc[unit])
                continue
            expected = mutual_info_score(slow_bins(values, bins), codes)
            assert found[name].iloc[unit] == pytest.approx(expected, abs=1e-12)
            counts = np.unique(codes, return_counts=True)[1] / n
            entropy = -float((counts * np.log(counts)).sum())
            assert shares[name].iloc[unit] == pytest.approx(expected / entropy, abs=1e-12)


def test_information_of_hand_cases() -> None:
    factors = pd.DataFrame({"four": list("abcd") * 5, "two": list("aabb") * 5})
    known = torch.tensor([0.0, 1, 2, 3] * 5)
    told = torch.stack([known, (known > 1).float(), known % 2], dim=1)
    table = mutual_information(told, factors, bins=4)
    two = math.log(2)
    assert table.to_numpy() == pytest.approx(np.array([[2 * two, two], [two, two], [two, 0]]), abs=1e-12)
    shares = mutual_information(told, factors, bins=4, normalised=True)
    assert shares.to_numpy() == pytest.approx(np.array([[1, 1], [0.5, 1], [0.5, 0]]), abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(levels=st.integers(0, 5), seed=st.integers(0, 99))
def test_information_depends_neither_on_order_nor_on_any_rising_function_of_a_unit(levels, seed) -> None:
    activations, factors = drawn(40, 4, seed, levels), sample_scenes(40, seed)
    order = np.random.default_rng(seed).permutation(40)
    moved = (activations[order] * torch.tensor([1e-6, 1, 3, 1000])).atan()
    moved[:, 2] = moved[:, 2] ** 3
    found = mutual_information(moved, factors.iloc[order])
    assert found.to_numpy() == pytest.approx(mutual_information(activations, factors).to_numpy(), nan_ok=True)


def test_unrelated_units_tell_what_a_finite_sample_always_tells() -> None:
    found = mutual_information(drawn(2000, 200), sample_scenes(2000), bins=10).mean()
    assert found["texture"] == pytest.approx(9 * 3 / 4000, rel=0.1)
    assert found["x"] == pytest.approx(9 * 9 / 4000, rel=0.1)


def test_numbers_of_few_values_and_truth_values_are_categories() -> None:
    count = np.repeat(np.arange(3), 10)
    factors = pd.DataFrame({"count": count, "is two": count == 2, "kind": pd.Categorical(count)})
    found = mutual_information(torch.from_numpy(count.astype(float))[:, None], factors, normalised=True)
    assert found.to_numpy() == pytest.approx(1)


# ----------------------------------------------------------------------- MIG, best factor


def test_gap_of_a_unit_for_each_factor_and_of_copies() -> None:
    factors = sample_scenes(600)
    activations = units_of(factors, others=3)
    known = mutual_information_gap(mutual_information(activations, factors, normalised=True))
    assert known.index.tolist() == list(factors)
    assert (known > 0.8).all()
    assert (known[["shape", "colour", "texture"]] > 0.9).all()
    copied = torch.cat([activations, activations[:, :1]], dim=1)
    again = mutual_information_gap(mutual_information(copied, factors, normalised=True))
    assert again["shape"] == 0
    assert again[1:].equals(known[1:])


def test_gap_is_the_difference_of_the_two_best_and_leaves_constant_units_out() -> None:
    table = pd.DataFrame({"a": [0.1, np.nan, 0.7, 0.4], "b": [0.2, np.nan, 0.0, 0.0]})
    assert mutual_information_gap(table).tolist() == pytest.approx([0.3, 0.2])
    with pytest.raises(ValueError, match=" 1"):
        mutual_information_gap(table[:1])
    with pytest.raises(ValueError, match="nats"):
        mutual_information_gap(mutual_information(drawn(50, 3), sample_scenes(50)))


def test_encoded_factor_names_the_factor_that_a_unit_encodes() -> None:
    factors = sample_scenes(600)
    activations = units_of(factors)
    mixed = activations[:, :1] + 10 * activations[:, 1:2]  # shape and colour in one unit, all pairs told apart
    table = encoded_factor(mutual_information(torch.cat([activations, mixed], 1), factors, bins=30, normalised=True))
    assert table["factor"].tolist()[:6] == list(factors)
    assert table["share"][6] < 0.6
    assert table["share"][:3].min() > 0.7
    assert table["factor"][6] in {"shape", "colour"}


def test_a_unit_that_tells_nothing_has_no_factor() -> None:
    table = encoded_factor(pd.DataFrame({"a": [0.0, np.nan, 0.3], "b": [0.0, np.nan, 0.9]}, index=[4, 5, 6]))
    assert table.index.tolist() == [4, 5, 6]
    assert table.isna().all(axis=1).tolist() == [True, True, False]
    assert table.loc[6].to_dict() == {"factor": "b", "information": 0.9, "share": pytest.approx(0.75)}


# ------------------------------------------------------------------------------------ DCI


def test_a_unit_for_each_factor_is_disentangled_complete_and_informative() -> None:
    factors = sample_scenes(300)
    found = dci(units_of(factors, noise=0.05, others=10), factors, trees=20)
    assert min(found.disentanglement, found.completeness, found.informativeness) > 0.9
    assert found.importance.iloc[:6].to_numpy().argmax(0).tolist() == [0, 1, 2, 3, 4, 5]
    assert (found.units[:6] > 0.9).all()


def test_several_units_for_one_factor_are_disentangled_but_not_complete() -> None:
    factors = sample_scenes(400)[["shape", "colour"]]
    one_hot = [factors[name] == value for name in factors for value in sorted(set(factors[name]))]
    found = dci(np.stack(one_hot, axis=1).astype(float), factors, trees=20)
    assert found.disentanglement > 0.9
    assert found.completeness < 0.5
    assert found.informativeness > 0.9


def test_units_that_mix_factors_are_informative_but_not_disentangled() -> None:
    factors = sample_scenes(800)[["size", "x"]]
    x, size = units_of(factors).T
    found = dci(torch.stack([x + size, x - size], dim=1), factors, trees=20)
    assert found.disentanglement < 0.2
    assert found.completeness < 0.2
    assert found.informativeness > 0.7


def test_noise_tells_nothing() -> None:
    found = dci(drawn(300, 20), sample_scenes(300)[["shape", "x"]], trees=20)
    assert found.informativeness < 0.1
    assert found.disentanglement < 0.3
    assert found.completeness < 0.3


def slow_dci(importance: np.ndarray, looked_at: int) -> tuple[float, float]:
    def spread(weights: np.ndarray, base: int) -> float:
        shares = weights[weights > 0] / weights.sum()
        return -sum(float(p) * math.log(p, base) for p in shares)

    rows = [row for row in importance if row.sum() > 0]
    d = sum((1 - spread(row, importance.shape[1])) * row.sum() for row in rows) / importance.sum()
    c = sum(1 - spread(column, looked_at) for column in importance.T) / importance.shape[1]
    return d, c


def test_averages_are_those_of_a_literal_loop_over_the_importances() -> None:
    factors = sample_scenes(200)[["shape", "size", "x"]]
    activations = units_of(factors, noise=1.0, others=6)
    activations[:, 5] = 2.0
    found = dci(activations, factors, trees=10, max_units=7)
    importance = found.importance.to_numpy()
    assert importance.sum(0) == pytest.approx(1)
    assert (importance.sum(1) > 0).sum() <= 7
    assert math.isnan(found.units[5])
    assert (found.disentanglement, found.completeness) == pytest.approx(slow_dci(importance, 7))
    assert found.completeness == pytest.approx(found.factors["completeness"].mean())
    assert found.informativeness == pytest.approx(found.factors["informativeness"].mean())


def test_the_units_looked_at_are_those_that_tell_most() -> None:
    factors = sample_scenes(300)
    activations = units_of(factors, noise=0.05, others=30)[:, torch.arange(36).flip(0)]
    found = dci(activations, factors, trees=10, max_units=6)
    assert found.importance.sum(axis=1).to_numpy().nonzero()[0].tolist() == [30, 31, 32, 33, 34, 35]


def test_dci_is_decided_by_its_seed_and_scale_makes_no_difference() -> None:
    factors = sample_scenes(120)[["shape", "x"]]
    activations = units_of(factors, noise=0.5, others=3)

    def figures(found: DCI) -> list[float]:
        return [found.disentanglement, found.completeness, found.informativeness]

    first = figures(dci(activations, factors, trees=10))
    assert figures(dci(activations, factors, trees=10)) == first
    assert figures(dci(8 * activations, factors, trees=10)) == pytest.approx(first)
    assert figures(dci(activations, factors, trees=10, seed=1)) != first


def test_guessing_is_the_zero_of_informativeness() -> None:
    factors = pd.DataFrame({"rare": [0] * 95 + [1] * 5, "x": np.linspace(0, 1, 100)}).sample(frac=1, random_state=1)
    found = dci(drawn(100, 4), factors, trees=10).factors["informativeness"]
    assert found["rare"] == pytest.approx(0, abs=0.3)  # 95 % right is not 0.95
    assert found["x"] < 0.2


# ------------------------------------------------------------------------- planted routes


def slow_rand(found: list[int], truth: list[int]) -> float:
    """Adjusted Rand index over the pairs of sources, literally."""
    pairs = list(combinations(range(len(truth)), 2))
    same_found = [found[i] == found[j] for i, j in pairs]
    same_truth = [truth[i] == truth[j] for i, j in pairs]
    both = sum(a and b for a, b in zip(same_found, same_truth, strict=True))
    expected = sum(same_found) * sum(same_truth) / len(pairs)
    most = (sum(same_found) + sum(same_truth)) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


@settings(deadline=None, max_examples=30)
@given(d=st.integers(0, 3), s=st.integers(2, 14), seed=st.integers(0, 999))
def test_recovery_is_the_adjusted_rand_index_over_pairs_of_planted_sources(d, s, seed) -> None:
    rng = np.random.default_rng(seed)
    found, truth = rng.integers(0, 4, (d, s)), rng.integers(-1, 3, (d, s))
    truth[:, :2] = [0, 1]
    expected = [slow_rand(list(f[t >= 0]), list(t[t >= 0])) for f, t in zip(found, truth, strict=True)]
    scores = planted_recovery(found.astype(np.uint8), truth)
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)
    assert planted_recovery(3 - found, truth).tolist() == scores.tolist()  # numbers are only names


def test_recovery_of_hand_cases() -> None:
    truth = torch.tensor([[0, 0, 1, 1, -1], [0, 0, 1, 1, -1], [4, 4, 4, 4, 4], [-1, -1, 2, -1, -1]])
    found = torch.tensor([[2, 2, 0, 0, 2], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 2, 1, 2, 1]])
    scores = planted_recovery(found, truth)
    assert scores[:3].tolist() == [1, 0, 1]
    assert math.isnan(scores[3])
    assert (scores.name, scores.index.name) == ("planted_recovery", "channel")


def test_routes_at_random_recover_nothing_on_average() -> None:
    rng = np.random.default_rng(0)
    scores = planted_recovery(rng.integers(0, 4, (300, 40)), rng.integers(0, 3, (300, 40)))
    assert abs(scores.mean()) < 0.01


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("score", [mutual_information, dci])
def test_factors_that_do_not_fit_are_refused(score) -> None:
    activations, factors = drawn(30, 3), sample_scenes(30)
    with pytest.raises(ValueError, match=r"29 .* 30 images"):
        score(activations, factors[1:])
    with pytest.raises(TypeError, match="factors "):
        score(activations, factors.to_dict("list"))
    with pytest.raises(ValueError, match=r"at least . columns"):
        score(activations, factors[[]])
    with pytest.raises(ValueError, match="of different names"):
        score(activations, factors[["x", "x"]])
    with pytest.raises(ValueError, match="'shape'"):
        score(activations, factors.assign(shape="star"))
    with pytest.raises(ValueError, match="'colour' has 2"):
        score(activations, factors.assign(colour=factors["colour"].where(np.arange(30) > 1)))
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="'x' has 1"):
            score(activations, factors.assign(x=[wrong, *factors["x"][1:]]))
        with pytest.raises(ValueError, match="activations "):
            score(torch.full((30, 2), wrong), factors)


def test_too_little_for_dci_is_refused() -> None:
    factors = sample_scenes(30)
    with pytest.raises(ValueError, match="at least 2 columns"):
        dci(drawn(30, 3), factors[["x"]])
    with pytest.raises(ValueError, match="19 images"):
        dci(drawn(19, 3), factors[:19])
    with pytest.raises(ValueError, match="of 3, 0"):
        dci(torch.ones(30, 3), factors)
    with pytest.raises(ValueError, match="max_units=1 "):
        dci(drawn(30, 3), factors, max_units=1)
    with pytest.raises(ValueError, match="bins=1 "):
        mutual_information(drawn(30, 3), factors, bins=1)


def test_routes_and_truth_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and true groups \(3, 2\) must both be \(d, s\)"):
        planted_recovery(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"must both be \(d, s\)"):
        planted_recovery(torch.zeros(3), torch.zeros(3))
