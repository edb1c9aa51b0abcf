from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from elude_nb.core.verify import Comparison, Difference, ordered


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_neighbours_are_one_apart(dtype) -> None:
    def apart(a: float, b: torch.Tensor) -> int:
        return int((ordered(torch.tensor([a], dtype=dtype)) - ordered(b.view(1))).abs())

    up, down = torch.tensor(torch.inf, dtype=dtype), torch.tensor(-torch.inf, dtype=dtype)
    smallest = torch.nextafter(torch.tensor(0.0, dtype=dtype), up) if dtype.itemsize > 2 else None
    assert apart(0.0, torch.tensor(-0.0, dtype=dtype)) == 0
    for value in (1.0, -1.0, 3.14, 2.0, -0.5):
        here = torch.tensor(value, dtype=dtype)
        assert apart(value, here) == 0
        if dtype.itemsize > 2:  # torch has no nextafter for half precision
            assert apart(value, torch.nextafter(here, up)) == 1
            assert apart(value, torch.nextafter(torch.nextafter(here, down), down)) == 2
        else:
            assert apart(value, (here.view(torch.int16) + 1).view(dtype)) == 1
    if smallest is not None:
        assert apart(0.0, smallest) == apart(0.0, -smallest) == 1
        assert int((ordered(smallest.view(1)) - ordered(-smallest.view(1))).abs()) == 2


def test_order_of_values_is_the_order_of_their_numbers() -> None:
    values = torch.tensor([-np.inf, -1e30, -2.0, -1.0, -1e-40, 0.0, 1e-40, 1.0, 2.0, 1e30, np.inf])
    assert (ordered(values).diff() > 0).all()


def compared(*pairs: tuple[list[list[float]], list[list[float]]]) -> Difference:
    found = Comparison()
    for one, other in pairs:
        found.add(torch.tensor(one), torch.tensor(other))
    return found.result()


def test_difference_of_hand_cases() -> None:
    same = compared(([[1.0, 2.0]], [[1.0, 2.0]]))
    assert same == Difference(
        identical=True, max_abs_diff=0.0, max_rel_diff=0.0, max_ulp_diff=0, top1_agreement=1.0, values=2
    )
    other = compared(([[1.0, 2.0]], [[1.5, 2.0]]), ([[4.0, 3.0], [0.0, 1.0]], [[4.0, 4.25], [0.0, 1.0]]))
    assert (other.identical, other.max_abs_diff, other.max_rel_diff) == (False, 1.25, 1.25 / 4)
    assert other.top1_agreement == 2 / 3
    assert other.values == 6
    assert other.max_ulp_diff == 2**22 + 2**19  # from 3 to 4, and on to 4.25


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_never_equal_to_finite_ones(wrong) -> None:
    found = compared(([[1.0, 2.0]], [[1.0, wrong]]))
    assert not found.identical
    assert found.max_abs_diff == math.inf


def test_infinities_that_are_equal_are_no_difference() -> None:
    found = compared(([[math.inf, -math.inf]], [[math.inf, -math.inf]]))
    assert found.identical
    assert found.max_abs_diff == found.max_ulp_diff == 0


def test_ulp_distance_over_the_whole_range_of_float64_does_not_wrap_around() -> None:
    largest = torch.finfo(torch.float64).max
    found = Comparison()
    found.add(torch.tensor([[largest]], dtype=torch.float64), torch.tensor([[-largest]], dtype=torch.float64))
    assert found.result().max_ulp_diff > 2**62
