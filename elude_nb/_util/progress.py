"""One progress bar for the whole library, and one way to say beforehand how long something will take.

``tqdm.auto`` picks a widget in a notebook and text in a terminal. A page that is exported without a
kernel cannot show a widget, so `elude-nb tour` asks for text through the environment. In a file or a pipe, such as the
log of a batch job, a bar that is drawn again and again is unreadable: there is a line every ten seconds. Who has a bar
of their own, such as a panel that works in the background, is told instead (`reporting`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from time import perf_counter
from typing import Any, TypeVar

from elude_nb._util.checks import check_flag
from elude_nb._util.words import counted

TEXT_BARS = "ELUDE_NB_TEXT_BARS"
_DELAY = 1.0  # seconds
_LONG = 5.0  # seconds from which on it is said beforehand
_EVERY = 10.0  # seconds from a line to the next, where there is no terminal

Report = Callable[[str, float | None], object]
"""Called with what is being done, in words, and the share of it that is done if there is a bar. What it raises ends the
work."""
_REPORT: ContextVar[Report | None] = ContextVar("who is told, instead of standard error", default=None)
_T = TypeVar("_T")


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Hand what is said and how far bars are to ``report``, in this thread, instead of writing it.

    Examples
    --------
    >>> told = []
    >>> with reporting(lambda text, share: told.append(text)):
    ...     say("a line")
    >>> told
    ['a line']
    """
    token = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(token)


def say(text: str) -> None:
    """Write a line without tearing a bar that is being drawn: on standard error, or as a notebook's ordinary output.

    Notebooks draw standard error in red, as if something had failed.
    """
    from tqdm import tqdm

    report = _REPORT.get()
    if report is not None:
        report(text, None)
        return

    kernels = sys.modules.get("ipykernel.iostream")
    tqdm.write(text, file=sys.stdout if kernels and isinstance(sys.stderr, kernels.OutStream) else sys.stderr)


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
    if _REPORT.get() is not None:
        more = {"delay": 0, "mininterval": 0.2, **more}
        return _reports()(iterable, desc=description, total=total, disable=not show, **more)
    if os.environ.get(TEXT_BARS):
        from tqdm import tqdm
    else:
        from tqdm.asyncio import tqdm_asyncio
        from tqdm.auto import tqdm

        file = more.get("file") or sys.stderr
        if tqdm is tqdm_asyncio and file is not None and not file.isatty():  # neither a widget nor a terminal
            tqdm, more = _lines(), {**more, "delay": _EVERY, "mininterval": 0}
    # What is over in a moment shows no bar.
    return tqdm(iterable, desc=description, total=total, disable=not show, **{"delay": _DELAY, **more})


@cache
def _lines() -> Any:
    """Return a kind of tqdm that writes whole lines, ten seconds apart."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[misc]  # tqdm has no types
        said: float | None = None  # when the last line was written, and of which step
        said_of: float = 0
        disable: bool

        def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002 - tqdm's names
            if self._time() - (self.said or self.start_t) >= _EVERY:
                self._write()

        def clear(self, nolock: bool = False) -> None:
            """Leave what was written."""

        def close(self) -> None:
            if not self.disable:
                self.disable = True
                self._decr_instances(self)
                if self.said is not None and self.said_of != self.n:
                    self._write()

        def _write(self) -> None:
            self.said, self.said_of = self._time(), self.n
            seconds = self.said - self.start_t
            inner = f" ({self.postfix})" if self.postfix else ""
            self.fp.write(f"{_count(self)}, {seconds:.0f} s{_left(self, seconds)}{inner}\n")
            self.fp.flush()

    return Lines


@cache
def _reports() -> Any:
    """Return a kind of tqdm that draws nothing and tells who asked for it by `reporting`."""
    from tqdm import tqdm

    class Reports(tqdm):  # type: ignore[misc]  # tqdm has no types
        disable: bool

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Draw nothing: tqdm holds a lock here, and a report may raise."""

        def clear(self, nolock: bool = False) -> None:
            """There is nothing to clear."""

        def update(self, n: float = 1) -> bool | None:
            due: bool | None = super().update(n)
            report = _REPORT.get()
            if due and report is not None:
                report(_count(self) + _left(self, self._time() - self.start_t), self.n / (self.total or self.n))
            return due

        def close(self) -> None:
            if not self.disable:
                self.disable = True
                self._decr_instances(self)

    return Reports


def _count(bar: Any) -> str:
    """Return how far a bar is, such as ``"forward passes: 8 of 64 images"``."""
    total = bar.total or bar.n
    count = f"{total:,}" if bar.unit == "it" else counted(total, bar.unit)  # the description says of what
    of = f"{bar.n:,} of " if bar.total else ""
    return f"{bar.desc.removesuffix(': ')}: {of}{count}"


def _left(bar: Any, seconds: float) -> str:
    """Return how long a bar will take from here on, as in ``", about 20 s left"``; nothing at its ends."""
    total = bar.total or bar.n
    return f", {in_words(seconds / bar.n * (total - bar.n))} left" if 0 < bar.n < total else ""
