"""Distributions of scores as inline SVG, coloured by the page's own style sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from elude_nb._util.html import render
from elude_nb.figures.theme import in_words
from elude_nb.scores.overview import NO_SCORES
from elude_nb.scores.verdict import HIGHER_IS_BETTER

KINDS = {"channel": "channels, before", "random route": "random routes, the control", "sub-unit": "sub-units, after"}
LEFT, WIDTH = 10, 440  # of a chart that is readable on a phone: names stand above, not beside
_LANE, _HALF = 66, 21


def score_columns(scores: pd.DataFrame) -> list[str]:
    """Return the scores of a table that have any value."""
    names = [str(name) for name in scores.columns if name not in NO_SCORES]
    return [name for name in names if scores[name].notna().any()]


def draw_distribution(scores: pd.DataFrame, column: str) -> Markup:
    """Return an SVG: how a score is distributed over channels, random routes and sub-units, with the mean of each."""
    found = {kind: scores.loc[scores["kind"] == kind, column].dropna().to_numpy(dtype=np.float64) for kind in KINDS}
    found = {kind: values for kind, values in found.items() if len(values)}
    every = np.concatenate(list(found.values()))
    low, high = float(every.min()), float(every.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    lanes = []
    for place, (kind, values) in enumerate(found.items()):
        middle = place * _LANE + 20 + _HALF
        counts, edges = np.histogram(values, bins=36, range=(low, high))
        half = _HALF * counts / counts.max()
        xs = _across((edges[:-1] + edges[1:]) / 2, low, high)
        outline = [*zip(xs, middle - half, strict=True), *zip(xs[::-1], (middle + half)[::-1], strict=True)]
        lanes.append(
            {
                "kind": kind.replace(" ", "-"),
                "name": KINDS[kind],
                "outline": " ".join(f"{x:.1f},{y:.1f}" for x, y in outline),
                "x": _across(values.mean(), low, high),
                "top": middle - _HALF,
                "bottom": middle + _HALF,
                "mean": values.mean(),
                "count": len(values),
            }
        )
    return render(
        "elude_nb.app",
        "distribution.html",
        name=in_words(column),
        better={True: ", higher is better", False: ", lower is better"}.get(HIGHER_IS_BETTER.get(column), ""),  # type: ignore[arg-type]
        lanes=lanes,
        ticks=[(_across(tick, low, high), f"{tick + 0.0:.4g}") for tick in _choose_ticks(low, high)],
        left=LEFT,
        width=WIDTH,
        height=_LANE * len(found) + 28,
    )


def _choose_ticks(low: float, high: float) -> Any:
    step = 10 ** np.floor(np.log10((high - low) / 3))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 6)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def _across(value: Any, low: float, high: float) -> Any:
    """Return where a value, or an array of them, lies from left to right."""
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - LEFT)
