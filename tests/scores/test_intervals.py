"""Bootstrap intervals: seeded, around the mean, as wide as theory says, and open about what has no score."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb.scores import Interval, mean_interval


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_the_mean_lies_inside(values) -> None:
    found = mean_interval(values, resamples=50)
    assert found.mean == pytest.approx(float(np.mean(values)))
    assert found.low <= found.mean <= found.high
    assert found.count == len(values)


def test_it_is_about_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(0).normal(2, 3, 400)
    found = mean_interval(values)
    error = values.std() / 20
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)
    narrow = mean_interval(values, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_what_has_no_score_is_left_out_and_counted() -> None:
    found = mean_interval([1.0, math.nan, 3.0])
    assert (found.mean, found.count, found.missing) == (2.0, 2, 1)
    nothing = mean_interval([math.nan])
    assert math.isnan(nothing.mean)
    assert (nothing.count, nothing.missing) == (0, 1)
    assert str(mean_interval([0.5, 0.5])) == "0.500 [0.500, 0.500]"


def test_the_seed_decides() -> None:
    values = np.arange(20.0)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        mean_interval([1.0], level=1.0)
    with pytest.raises(ValueError, match="resamples"):
        mean_interval([1.0], resamples=0)


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_it_is_the_quantiles_of_means_of_resamples(values, seed) -> None:
    rng, means = np.random.default_rng(seed), []
    for _ in range(40):
        drawn = rng.multinomial(len(values), [1 / len(values)] * len(values))
        means.append(sum(count * value for count, value in zip(drawn, values, strict=True)) / len(values))
    found = mean_interval(values, level=0.8, resamples=40, seed=seed)
    low, high = np.quantile(means, [0.1, 0.9])
    assert found.low == pytest.approx(min(low, np.mean(values)), abs=1e-9)
    assert found.high == pytest.approx(max(high, np.mean(values)), abs=1e-9)


def test_it_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(size=50), resamples=200, level=0.8) for _ in range(200)]
    assert np.mean([interval.low <= 0 <= interval.high for interval in found]) == pytest.approx(0.8, abs=0.1)


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=12), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_scale_and_shift_go_with_it(values, scale, shift) -> None:
    before = mean_interval(values, resamples=30)
    after = mean_interval([scale * value + shift for value in values], resamples=30)
    expected = [scale * x + shift for x in (before.low, before.mean, before.high)]
    assert [after.low, after.mean, after.high] == pytest.approx(expected, abs=1e-9)


def test_columns_and_lone_values_are_taken_and_infinite_ones_refused() -> None:
    assert mean_interval(pd.Series([1.0, None, 3.0], index=[4, 5, 6])) == mean_interval([1.0, math.nan, 3.0])
    assert mean_interval([2.5]) == Interval(2.5, 2.5, 2.5, 1)
    assert mean_interval([]).count == 0
    for wrong in (math.inf, -math.inf):
        with pytest.raises(ValueError, match="1 of 2"):
            mean_interval([1.0, wrong])
