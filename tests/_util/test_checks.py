from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from elude_nb._util.checks import check_choice, check_count, check_flag, check_fraction, near_matches


def test_near_matches_names_the_closest_spelling_first() -> None:
    assert near_matches("resnet5", ["resnet50", "vit_tiny", "convnext"]) == " Did you mean 'resnet50'?"
    assert near_matches("patchs", ["patches", "patch", "class"]) == " Did you mean 'patches' or 'patch'?"


def test_near_matches_is_silent_without_a_likeness() -> None:
    assert not near_matches("zzz", ["resnet50", "vit_tiny"])
    assert not near_matches("vit", [])


def test_near_matches_names_three_at_most() -> None:
    assert near_matches("ab1", ["ab2", "ab3", "ab4", "ab5"]).count("'") == 6


def test_check_choice_returns_the_choice() -> None:
    assert check_choice("tokens", "class", ("class", "patches")) == "class"


def test_check_choice_names_argument_value_options_and_the_likely_word() -> None:
    with pytest.raises(ValueError, match=r"^tokens='clas'.*'class', 'patches'") as caught:
        check_choice("tokens", "clas", ("class", "patches"))
    assert str(caught.value).endswith("Did you mean 'class'?")


@pytest.mark.parametrize("value", [None, 3, ["class"]])
def test_check_choice_takes_only_text(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^tokens=.*'class'"):
        check_choice("tokens", value, ("class",))


@pytest.mark.parametrize("value", [1, 7, np.int64(7), np.uint8(7)])
def test_check_count_gives_plain_ints(value: Any) -> None:
    result = check_count("units", value, maximum=7)
    assert result == int(value)
    assert type(result) is int


@pytest.mark.parametrize("value", [True, np.bool_(1), 1.0, "3", None, float("nan")])
def test_check_count_refuses_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^units"):
        check_count("units", value)


def test_check_count_names_its_bounds() -> None:
    with pytest.raises(ValueError, match=r"^units=0 .*1\.$"):
        check_count("units", 0)
    with pytest.raises(ValueError, match=r"^units=9 .*2 and 8\.$"):
        check_count("units", 9, minimum=2, maximum=8)
    assert check_count("units", 0, minimum=0) == 0
    assert check_count("units", 8, minimum=2, maximum=8) == 8


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.25), np.int64(1)])
def test_check_fraction_gives_plain_floats_with_closed_ends(value: Any) -> None:
    result = check_fraction("shared", value)
    assert result == float(value)
    assert type(result) is float


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_check_fraction_refuses_what_lies_outside(value: float) -> None:
    with pytest.raises(ValueError, match=f"^shared={value} "):
        check_fraction("shared", value)


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, float("nan")])
def test_check_fraction_with_open_ends_refuses_the_ends(value: float) -> None:
    with pytest.raises(ValueError, match=f"^fraction={float(value)} "):
        check_fraction("fraction", value, open_ends=True)


@pytest.mark.parametrize("value", [True, "0.5", None, 0.5j])
def test_check_fraction_takes_only_real_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^shared"):
        check_fraction("shared", value)


def test_check_flag_takes_both_kinds_of_truth_and_nothing_else() -> None:
    for right in (True, False, np.True_, np.False_):
        check_flag("progress", right)
    wrong: tuple[Any, ...] = (0, 1, None, "no", np.array([True]))
    for value in wrong:
        with pytest.raises(TypeError, match=r"^progress"):
            check_flag("progress", value)
