"""Argument checks whose errors say what was given, what is allowed and what to type next."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Collection, Iterable, Mapping, Set
from numbers import Integral, Real
from types import UnionType

import numpy as np


def near_matches(word: str, options: Collection[str]) -> str:
    """Say which options are spelled like ``word``: ``" Did you mean 'a' or 'b'?"``, or nothing.

    Examples
    --------
    >>> near_matches("resnet5", ["resnet50", "vit"])
    " Did you mean 'resnet50'?"
    """
    close = difflib.get_close_matches(word, options)
    return f" Did you mean {' or '.join(repr(option) for option in close)}?" if close else ""


def check_choice(name: str, value: object, options: Collection[str]) -> str:
    """Return ``value`` if it is one of ``options``; else raise ``ValueError`` with near matches."""
    if isinstance(value, str) and value in options:
        return value
    allowed = ", ".join(repr(option) for option in options)
    hint = near_matches(value, options) if isinstance(value, str) else ""
    raise ValueError(f"{name}={reprlib.repr(value)} is not known; choose one of {allowed}.{hint}")


def check_count(name: str, value: object, minimum: int = 1, maximum: int | None = None) -> int:
    """Return ``value`` as an int if it is a whole number in ``[minimum, maximum]``.

    Raises
    ------
    TypeError
        If ``value`` is not a whole number (booleans are not numbers here).
    ValueError
        If it lies outside the bounds.
    """
    number = check_whole(name, value)
    if number < minimum or (maximum is not None and number > maximum):
        bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ValueError(f"{name}={number} is out of range: it must be {bounds}.")
    return number


def check_whole(name: str, value: object) -> int:
    """Return ``value`` as an int; raise ``TypeError`` if it is no whole number (booleans are not numbers here)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, not {shortly(value)}.")
    return int(value)


def check_flag(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is ``True`` or ``False``, Python's or NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {shortly(value)}.")


def check_unit(unit: object) -> tuple[int, int]:
    """Return a unit as the two whole numbers that it is, channel and number; else raise ``TypeError``.

    Examples
    --------
    >>> check_unit([17, 3]), check_unit(np.array([17, 3]))
    ((17, 3), (17, 3))
    """
    if isinstance(unit, Iterable) and not isinstance(unit, str | bytes | Mapping | Set):
        parts = [part.item() if getattr(part, "ndim", None) == 0 else part for part in unit]
        if len(parts) == 2 and all(isinstance(part, Integral) and not isinstance(part, bool) for part in parts):
            return int(parts[0]), int(parts[1])
    raise TypeError(f"A unit is a pair (channel, number), such as (17, 3), not {shortly(unit)}.")


def check_number(name: str, value: object) -> float:
    """Return ``value`` as a float; raise ``TypeError`` if it is no real number (booleans are not numbers here)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {shortly(value)}.")
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if value == abs(value) else -math.inf


def check_fraction(name: str, value: object, *, open_ends: bool = False) -> float:
    """Return ``value`` as a float in [0, 1], or in (0, 1) with ``open_ends``."""
    number = check_number(name, value)
    inside = 0 < number < 1 if open_ends else 0 <= number <= 1
    if not inside:
        bounds = "strictly between 0 and 1" if open_ends else "between 0 and 1"
        raise ValueError(f"{name}={number} is out of range: it must be {bounds}.")
    return number


def check_kind(name: str, value: object, kind: type | UnionType, cure: str) -> None:
    """Raise ``TypeError`` unless ``value`` is of a kind; the message ends with ``cure``, where to get one."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {cure}, not {shortly(value)}.")


def shortly(value: object) -> str:
    """Return a value as an error names it: cut to some 60 letters, with its type.

    Examples
    --------
    >>> shortly("x")
    "'x' (str)"
    """
    return f"{reprlib.repr(value)[:60]} ({type(value).__name__})"
