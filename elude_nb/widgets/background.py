"""Work beside a running kernel: in a thread of its own, so that the page answers meanwhile.

A thread and not steps of the kernel's loop, as in `GalleryPanel`: loading, clustering and routing have no steps. Hooks
and edits belong to the thread that set them (docs/calls.md), so the work must have a model that no other thread has.
Widgets are touched by the loop's thread alone; the work tells it what to show.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from elude_nb._util.arithmetic import has_own_defaults
from elude_nb._util.progress import TEXT_BARS, Report, reporting

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Raised in the work when somebody has stopped it."""


class Work:
    """Something that is being made in a thread.

    Parameters
    ----------
    make
        What makes it. What it says and how far its bars are is handed to ``report``.
    report
        Called in the loop's thread.
    loop
        The running loop.
    """

    def __init__(self, make: Callable[[], Any], report: Report, loop: asyncio.AbstractEventLoop) -> None:
        self._make, self._report, self._loop = make, report, loop
        self._stop = threading.Event()
        self.result: asyncio.Future[Any] = loop.create_future()
        run = contextvars.copy_context().run
        # A daemon: a kernel that is shut down does not wait for it.
        threading.Thread(target=run, args=(self._run,), name="elude_nb work", daemon=True).start()

    def stop(self) -> None:
        """End the work where it next says how far it is; then ``result`` raises `Stopped`."""
        self._stop.set()

    def _run(self) -> None:
        try:
            with reporting(self._tell):
                made = self._make()
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            self._in_loop(self._end, None, error)
        else:
            self._in_loop(self._end, made, None)

    def _tell(self, text: str, share: float | None) -> None:
        if self._stop.is_set():
            raise Stopped
        self._in_loop(self._report, text, share)

    def _end(self, made: Any, error: BaseException | None) -> None:
        if self.result.done():  # it was cancelled
            return
        if error is None:
            self.result.set_result(made)
        else:
            self.result.set_exception(error)

    def _in_loop(self, function: Callable[..., object], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)


def find_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop of a page that goes on after the cell; ``None`` if what is made must be there when the cell ends.

    That is so in scripts, which have no loop, and where a program runs a notebook and then closes the kernel: the tour,
    nbconvert, nbmake and papermill. These say in their requests that nobody can be asked for input. So does voila, but
    its kernel stays.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    if os.environ.get(TEXT_BARS) or not has_own_defaults():  # a thread would have other defaults for a while
        return None
    kept = os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
    return loop if kept or _request().get("allow_stdin", True) else None


def _request() -> dict[str, Any]:
    """Return the content of the request that the kernel is answering, if there is a kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None)
    parent: dict[str, Any] = kernel.get_parent() if kernel is not None else {}
    content: dict[str, Any] = parent.get("content", {})
    return content
