"""Shares add up to the value bit for bit in any order: over floats of every size, and sets of 1 to 32."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elude_nb.core.partition import equal_share, proportional_shares

DTYPES = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def every_kind(dtype: torch.dtype, seed: int, count: int = 400) -> torch.Tensor:
    """Return finite floats with random bits, subnormal ones, zeros of both signs, and the extremes."""
    generator = torch.Generator().manual_seed(seed)
    whole = DTYPES[dtype]
    info = torch.iinfo(whole)
    bits = torch.randint(info.min, info.max, (count,), generator=generator, dtype=torch.int64).to(whole)
    small = torch.arange(1, 60).to(whole)
    values = torch.cat([bits.view(dtype), small.view(dtype), -small.view(dtype)])
    limits = torch.finfo(dtype)
    extremes = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny, -limits.tiny, 1.0], dtype=dtype)
    found = torch.cat([values, extremes])
    return found[found.isfinite()]


def added(parts: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Add parts (k, n) one after the other, in the dtype they have."""
    total = torch.zeros_like(parts[0])
    for place in order:
        total = total + parts[place]
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(1, 32), st.integers(0, 10_000))
def test_equal_shares_add_up_in_any_order(dtype, count, seed) -> None:
    values = every_kind(dtype, seed)
    counts = torch.full(values.shape, count)
    parts = torch.stack([equal_share(values, counts, torch.full_like(counts, rank)) for rank in range(count)])
    assert parts.dtype == dtype
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert added(parts, order).equal(values)
    assert added(parts, torch.arange(count)).equal(values)
    assert ((parts == 0) | (parts.sign() == values.sign())).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 32])
def test_a_share_is_within_one_unit_in_the_last_place(dtype, count) -> None:
    values = every_kind(dtype, 0, 60)
    counts = torch.full(values.shape, count)
    for rank in (0, count - 1):
        parts = equal_share(values, counts, torch.full_like(counts, rank))
        for value, part in zip(values.tolist(), parts.tolist(), strict=True):
            above = torch.nextafter(torch.tensor(abs(value), dtype=dtype).float(), torch.tensor(torch.inf))
            last_place = Fraction(float(above)) - Fraction(abs(value)) if above.isfinite() else None
            if dtype == torch.float32 and last_place is not None:
                assert abs(Fraction(part) - Fraction(value) / count) < last_place
            assert abs(Fraction(part)) <= abs(Fraction(value))


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(1, 32), st.integers(0, 10_000))
def test_proportional_shares_add_up_in_any_order(dtype, count, seed) -> None:
    values = every_kind(dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    proportions = torch.rand(len(values), count, generator=generator, dtype=torch.float64)
    proportions = proportions / proportions.sum(1, keepdim=True)
    proportions[0] = torch.nn.functional.one_hot(torch.tensor(count - 1), count)
    parts = proportional_shares(values, proportions)
    order = torch.randperm(count, generator=generator)
    assert added(parts.T, order).equal(values)
    assert parts[0, count - 1].equal(values[0])


def test_proportions_are_kept_to_within_the_last_places() -> None:
    values = torch.tensor([1.0, -3.0, 0.1])
    found = proportional_shares(values, torch.tensor([[0.25, 0.75]] * 3, dtype=torch.float64))
    torch.testing.assert_close(found, values[:, None] * torch.tensor([0.25, 0.75]), rtol=1e-6, atol=0)


def test_thirds_of_one_are_not_what_division_gives() -> None:
    """The reason for all this: 0.1 / 3 three times is not 0.1 in float32 arithmetic of any order of division."""
    value, three = torch.tensor([0.7]), torch.tensor([3])
    parts = [equal_share(value, three, torch.tensor([rank])) for rank in range(3)]
    assert (parts[0] + parts[1] + parts[2]).equal(value)
    assert len({float(part) for part in parts}) == 2
