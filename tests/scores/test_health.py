"""Health of a set of units, against NumPy, brute force and hand cases."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb.scores import (
    density,
    effective_rank,
    health,
    is_dead,
    l0,
    largest_correlation,
    linear_explained,
    stability,
)


def drawn(n: int, u: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, u, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(3, 20), u=st.integers(2, 7), seed=st.integers(0, 1000))
def test_largest_correlation_is_numpys(n, u, seed) -> None:
    values = drawn(n, u, seed)
    table = np.corrcoef(values.numpy().T)
    np.fill_diagonal(table, -np.inf)
    assert largest_correlation(values).tolist() == pytest.approx(table.max(0).tolist(), abs=1e-9)
    scaled = values * torch.linspace(0.1, 9, u) + 5
    assert largest_correlation(scaled).tolist() == pytest.approx(table.max(0).tolist(), abs=1e-9)


def test_constant_units_have_no_correlation() -> None:
    values = drawn(10, 3)
    values[:, 1] = 4.0
    found = largest_correlation(values)
    assert found.isna().tolist() == [False, True, False]
    assert found[0] == pytest.approx(np.corrcoef(values[:, 0], values[:, 2])[0, 1])
    assert largest_correlation(values[:, :1]).isna().all()


def test_effective_rank_counts_directions() -> None:
    values = drawn(4000, 5)
    assert effective_rank(values) == pytest.approx(5, abs=0.01)
    assert effective_rank(torch.cat([values, 3 * values + 1], 1)) == pytest.approx(5, abs=0.01)
    assert effective_rank(values[:, :1].repeat(1, 6)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.ones(5, 3)) == 0.0
    centred = (values - values.mean(0)) / values.std(0)
    singular = np.linalg.svd(centred.numpy(), compute_uv=False)
    share = singular / singular.sum()
    assert effective_rank(values) == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-6)


def test_counts_of_a_hand_case() -> None:
    values = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, 3.0], [0.0, 0.0, -2.0], [5.0, 0.0, 4.0]])
    assert density(values).tolist() == [0.75, 0.0, 0.5]
    assert density(values, 1.5).tolist() == [0.5, 0.0, 0.5]
    assert is_dead(values).tolist() == [False, True, False]
    assert l0(values) == 1.25
    found = health(values)
    assert (found["units"], found["dead"], found["L0"]) == (3, 1, 1.25)
    assert found["density"] == pytest.approx(1.25 / 3)


def test_what_is_explained_linearly() -> None:
    generator = torch.Generator().manual_seed(1)
    units, mixing = drawn(400, 6), torch.randn(6, 9, generator=generator, dtype=torch.float64)
    channels = units @ mixing + 7
    half = slice(200), slice(200, None)
    whole = linear_explained(units[half[0]], channels[half[0]], units[half[1]], channels[half[1]], strength=1e-9)
    assert whole == pytest.approx(1.0, abs=1e-6)
    noise = torch.randn(400, 9, generator=generator, dtype=torch.float64)
    noisy = channels + noise
    found = linear_explained(units[half[0]], noisy[half[0]], units[half[1]], noisy[half[1]], strength=1e-9)
    solved = np.linalg.lstsq(np.c_[units[half[0]], np.ones(200)], noisy[half[0]].numpy(), rcond=None)[0]
    left = noisy[half[1]].numpy() - np.c_[units[half[1]], np.ones(200)] @ solved
    spread = noisy[half[1]] - noisy[half[1]].mean(0)
    assert found == pytest.approx(1 - (left**2).sum() / float(spread.square().sum()), abs=1e-6)
    shifted = linear_explained(
        units[half[0]] + 3, noisy[half[0]] - 50, units[half[1]] + 3, noisy[half[1]] - 50, strength=1e-9
    )
    assert shifted == pytest.approx(found, abs=1e-6)
    unrelated = linear_explained(drawn(200, 6, 5), channels[half[0]], drawn(200, 6, 6), channels[half[1]])
    assert unrelated < 0.1


def test_stability_is_the_best_matching_of_all() -> None:
    first, second = drawn(30, 4), drawn(30, 4, 9)
    second[:, 2] = first[:, 0] + 0.1 * second[:, 2]
    table = np.corrcoef(first.numpy().T, second.numpy().T)[:4, 4:]
    best = max(itertools.permutations(range(4)), key=lambda order: sum(table[i, j] for i, j in enumerate(order)))
    assert stability(first, second).tolist() == pytest.approx([table[i, j] for i, j in enumerate(best)])
    order = torch.tensor([3, 1, 0, 2])
    assert stability(first, first[:, order] * 2 + 1).tolist() == pytest.approx([1.0] * 4)
    assert stability(first, second[:, :2]).isna().sum() == 2


def test_bad_input_is_refused() -> None:
    values = drawn(6, 3)
    with pytest.raises(ValueError, match="same ones"):
        stability(values, drawn(5, 3))
    with pytest.raises(ValueError, match="never vary"):
        linear_explained(values, values, values, torch.ones(6, 3))
    with pytest.raises(ValueError, match=r"\(6, 3\), \(4, 3\)"):
        linear_explained(values, values[:4], values, values)
    values[0, 0] = torch.inf
    for score in (largest_correlation, effective_rank, density, is_dead, l0, health):
        with pytest.raises(ValueError, match="NaN or infinite"):
            score(values)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-14, 1e-3, 1e6]))
def test_order_of_images_and_scale_of_units_do_not_matter(seed, scale) -> None:
    values, other = drawn(25, 4, seed), drawn(25, 4, seed + 1)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
    factors = torch.tensor([scale, 1.0, 2.0, scale])
    for changed in (lambda x: x[order], lambda x: x * factors):
        assert largest_correlation(changed(values)).tolist() == pytest.approx(largest_correlation(values).tolist())
        assert effective_rank(changed(values)) == pytest.approx(effective_rank(values))
        assert stability(changed(values), changed(other)).tolist() == pytest.approx(stability(values, other).tolist())
        assert density(changed(values)).tolist() == density(values).tolist()
        assert l0(changed(values)) == l0(values)
        fitted = [linear_explained(x, other, x, other) for x in (values, values * factors)]
        assert fitted[0] == pytest.approx(fitted[1])


def test_correlations_do_not_depend_on_how_many_units_are_looked_at_at_once(monkeypatch) -> None:
    values = drawn(20, 10)
    values[:, 4] = 1.0
    found = largest_correlation(values).tolist()
    room = sys.modules["elude_nb.scores.health"]  # as an attribute, the name is the function's
    monkeypatch.setattr(room, "_UNITS_AT_ONCE", 3)
    assert largest_correlation(values).tolist() == pytest.approx(found, nan_ok=True)


def test_constant_units_take_no_partner_away_and_what_is_not_found_again_scores_nothing_good() -> None:
    ramp = torch.arange(5.0)[:, None]
    first = torch.cat([torch.ones(5, 1), ramp], dim=1)
    assert stability(first, -ramp).tolist() == pytest.approx([np.nan, -1.0], nan_ok=True)
    assert stability(ramp, torch.ones(5, 1)).tolist() == [0.0]
    assert stability(first[:, :1], ramp).isna().all()


def test_linear_share_is_the_weighted_r2_of_scikit_learns_ridge() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.preprocessing import StandardScaler

    units, channels = drawn(90, 5), drawn(90, 5) @ drawn(5, 3, 1) + 2 * drawn(90, 3, 2)
    x, y, x_new, y_new = units[:60].numpy(), channels[:60].numpy(), units[60:].numpy(), channels[60:].numpy()
    for strength in (1e-9, 0.1, 10.0):
        scaler = StandardScaler().fit(x)
        guess = Ridge(alpha=strength * 60).fit(scaler.transform(x), y).predict(scaler.transform(x_new))
        expected = r2_score(y_new, guess, multioutput="variance_weighted")
        assert linear_explained(x, y, x_new, y_new, strength=strength) == pytest.approx(expected)


def test_a_unit_that_never_varied_where_the_fit_looked_explains_nothing() -> None:
    units, channels = drawn(40, 3), drawn(40, 2, 1)
    seen, new = units[:20].clone(), units[20:]
    seen[:, 1] = 0.1
    expected = linear_explained(seen[:, [0, 2]], channels[:20], new[:, [0, 2]], channels[20:])
    assert linear_explained(seen, channels[:20], new, channels[20:]) == pytest.approx(expected)
    mean = linear_explained(units[:1], channels[:1], new, channels[20:])  # one token: its channels are the guess
    left = (channels[20:] - channels[0]).square().sum() / (channels[20:] - channels[20:].mean(0)).square().sum()
    assert mean == pytest.approx(1 - float(left))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5 / 3])
def test_channels_that_never_vary_leave_nothing_to_explain(value) -> None:
    values = drawn(7, 3)
    with pytest.raises(ValueError, match="never vary"):  # seven times 0.1 is not 0.7: the spread is off by rounding
        linear_explained(values, values, values, torch.full((7, 3), value, dtype=torch.float64))


def test_columns_and_strengths_that_do_not_fit_are_refused() -> None:
    values = drawn(9, 3)
    with pytest.raises(ValueError, match=r"\(9, 3\), \(9, 1\)"):  # no silent broadcast
        linear_explained(values, values[:, :1], values, values)
    with pytest.raises(ValueError, match=r"\(9, 2\), \(9, 3\)"):
        linear_explained(values, values, values[:, :2], values)
    for strength in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"strength=.* must be above 0"):
            linear_explained(values, values, values, values, strength=strength)
    for function in (lambda x: linear_explained(values, values, values, x), lambda x: stability(values, x)):
        broken = values.clone()
        broken[3, 2] = torch.nan
        with pytest.raises(ValueError, match="row 3, column 2"):
            function(broken)


def test_health_gathers_what_the_others_say() -> None:
    values = drawn(30, 5)
    values[:, 2] = 0.0
    found = health(values)
    assert list(found.index) == ["units", "dead", "redundancy", "effective_rank", "density", "L0"]
    expected = [5, 1, largest_correlation(values).mean(), effective_rank(values), density(values).mean(), l0(values)]
    assert found.tolist() == pytest.approx(expected)
    assert np.isnan(health(values[:, :1])["redundancy"])  # nothing to be a copy of
