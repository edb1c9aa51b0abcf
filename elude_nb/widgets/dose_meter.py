"""Doses of the concept in hand, measured an image at a time between the moves of sliders."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pandas as pd

from elude_nb.interpret.gallery import Gallery
from elude_nb.steering.dose import DoseCurve
from elude_nb.steering.live import LiveSteering
from elude_nb.widgets.panel import EXPECTED

REST = 1.0  # seconds without a move before anything is measured


class DoseMeter:
    """Keeps the table of each concept that was measured, and measures others in a running kernel.

    Parameters
    ----------
    live, gallery
        Live steering with a head, and the images, with labels.
    in_hand
        Returns the concept to measure next, or ``None``.
    paint
        Called after each image.

    Attributes
    ----------
    tables
        Of each concept, as `DoseCurve.table`.
    """

    def __init__(
        self, live: LiveSteering, gallery: Gallery, in_hand: Callable[[], int | None], paint: Callable[[], object]
    ) -> None:
        self._live, self._gallery, self._in_hand, self._paint = live, gallery, in_hand, paint
        self.tables: dict[int, pd.DataFrame] = {}
        self._curves: dict[int, DoseCurve] = {}
        self._errors: dict[int, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._moved = time.monotonic()

    def wait(self) -> None:
        """Measure nothing for a moment: a slider moves."""
        self._moved = time.monotonic()

    def curve(self, concept: int) -> DoseCurve:
        """Return the curve of a concept, measured or not; raises as `DoseCurve` does."""
        if concept not in self._curves:
            images = self._gallery.images.subset(self._gallery.distinct.tolist())
            self._curves[concept] = DoseCurve(self._live, concept, images)
        return self._curves[concept]

    def measure(self, concept: int) -> pd.DataFrame:
        """Measure a concept at once and return its table."""
        self._gallery.fill(progress=False)
        for _ in self.curve(concept).steps(8):
            pass
        self.tables[concept] = self.curve(concept).table
        return self.tables[concept]

    def begin(self, concept: int) -> str:
        """Measure in the background, if a kernel runs; return in words how far it is with a concept."""
        if concept in self._errors:
            return self._errors[concept]
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return "What each class loses was not measured; panel.measure() does it."
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        ready = self._curves[concept].ready if concept in self._curves else 0
        return f"What each class loses is being measured: {ready} of {len(self._gallery.images)} images."

    async def _run(self) -> None:
        while (concept := self._in_hand()) is not None and concept not in {*self.tables, *self._errors}:
            if self._gallery.ready < len(self._gallery.images) or time.monotonic() - self._moved < REST:
                await asyncio.sleep(0.2)
                continue
            try:
                curve = self.curve(concept)
                next(curve.steps(1), None)
                if curve.ready == len(curve.images):
                    self.tables[concept] = curve.table
            except EXPECTED as error:
                self._errors[concept] = str(error)
            self._paint()
            await asyncio.sleep(0.02)
