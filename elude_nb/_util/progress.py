"""One progress bar for the whole library, and one way to say beforehand how long something will take.

``tqdm.auto`` picks a widget in a notebook and text in a terminal. A page that is exported without a
kernel cannot show a widget, so `elude-nb tour` asks for text through the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, TypeVar

from elude_nb._util.checks import check_flag

TEXT_BARS = "ELUDE_NB_TEXT_BARS"
_DELAY = 1.0  # seconds
_LONG = 5.0  # seconds from which on it is said beforehand


_T = TypeVar("_T")


def say(text: str) -> None:
    """Write a line without tearing a bar that is being drawn."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def in_words(seconds: float) -> str:
    """Return a duration in words.

    Examples
    --------
    >>> in_words(125.4), in_words(20)
    ('about 2 min 5 s', 'about 20 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"about {f'{minutes} min ' if minutes else ''}{rest} s"


def announced(steps: Iterable[_T], what: str, expect: Callable[[float], float], *, show: bool = True) -> Iterator[_T]:
    """Yield ``steps``; after the first one say on standard error about how long ``what`` will take.

    ``expect`` gets the seconds from the start to the end of the first step, and returns those of the whole. What takes
    a few seconds is not announced, nor is anything unless ``show``.
    """
    start = perf_counter()
    for number, step in enumerate(steps):
        yield step
        if number == 0 and show:
            seconds = expect(perf_counter() - start)
            if seconds >= _LONG:
                say(f"{what}, {in_words(seconds)}")


def progress_bar(
    iterable: Iterable[Any] | None = None, *, description: str, total: int | None = None, show: bool = True, **more: Any
) -> Any:
    """Return a tqdm bar over ``iterable`` (or a manual one with ``total`` steps); ``show=False`` is silent.

    Raises
    ------
    TypeError
        If ``show`` is neither ``True`` nor ``False``.
    """
    check_flag("progress", show)
    if os.environ.get(TEXT_BARS):
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm
    # What is over in a moment shows no bar.
    return tqdm(iterable, desc=description, total=total, disable=not show, **{"delay": _DELAY, **more})
