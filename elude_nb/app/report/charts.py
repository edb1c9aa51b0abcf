"""Distributions of scores as inline SVG, coloured by the page's own style sheet."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd

from elude_nb.baselines.compare import HIGHER_IS_BETTER
from elude_nb.figures.theme import in_words

KINDS = {"channel": "channels, before", "random route": "random routes, the control", "sub-unit": "sub-units, after"}
LEFT, WIDTH = 10, 440  # of a chart that can still be read on a phone: names stand above, not beside
_LANE, _HALF = 66, 21


def score_columns(scores: pd.DataFrame) -> list[str]:
    """Return the scores of a table that have any value."""
    names = [str(name) for name in scores.columns if name not in {"kind", "channel", "unit"}]
    return [name for name in names if scores[name].notna().any()]


def distribution(scores: pd.DataFrame, column: str) -> str:
    """Return an SVG: how a score is distributed over channels, random routes and sub-units, with the mean of each."""
    found = {kind: scores.loc[scores["kind"] == kind, column].dropna().to_numpy(dtype=np.float64) for kind in KINDS}
    found = {kind: values for kind, values in found.items() if len(values)}
    every = np.concatenate(list(found.values()))
    low, high = float(every.min()), float(every.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    height = _LANE * len(found) + 28
    lanes = [
        _lane(kind, values, (low, high), place * _LANE + 20 + _HALF)
        for place, (kind, values) in enumerate(found.items())
    ]
    means = "; ".join(f"{KINDS[kind]}: {values.mean():.3f}" for kind, values in found.items())
    better = (
        "" if column not in HIGHER_IS_BETTER else f", {'higher' if HIGHER_IS_BETTER[column] else 'lower'} is better"
    )
    said = html.escape(f"Distributions of {in_words(column)}{better}. Means: {means}.")
    return (
        f'<figure><figcaption>{html.escape(in_words(column))}<small>{better}</small></figcaption><svg class="chart" role="img" '
        f'aria-label="{said}" viewBox="0 0 {WIDTH} {height}">{"".join(lanes)}{_axis(low, high, height)}</svg></figure>'
    )


def _lane(
    kind: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], ends: tuple[float, float], y: float
) -> str:
    counts, edges = np.histogram(values, bins=36, range=ends)
    half = _HALF * counts / counts.max()
    xs = _across((edges[:-1] + edges[1:]) / 2, ends)
    above = " ".join(f"{x:.1f},{y - h:.1f}" for x, h in zip(xs, half, strict=True))
    below = " ".join(f"{x:.1f},{y + h:.1f}" for x, h in zip(xs[::-1], half[::-1], strict=True))
    mean = float(_across(values.mean(), ends))
    return (
        f'<polygon class="{kind.replace(" ", "-")}" points="{above} {below}"/>'
        f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - _HALF}" y2="{y + _HALF}"/>'
        f'<text x="{LEFT}" y="{y - _HALF - 6}">{KINDS[kind]} <tspan class="faint">mean {values.mean():.3f} of '
        f"{len(values):,}</tspan></text>"
    )


def _axis(low: float, high: float, height: int) -> str:
    step = 10 ** np.floor(np.log10((high - low) / 3))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 6)
    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    marks = "".join(
        f'<text class="faint" x="{_across(tick, (low, high)):.1f}" y="{height - 6}" text-anchor="middle">'
        f"{tick + 0.0:.4g}</text>"
        for tick in ticks
    )
    return f'<line class="axis" x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{height - 24}" y2="{height - 24}"/>{marks}'


def _across(value: Any, ends: tuple[float, float]) -> Any:
    """Return where a value, or an array of them, lies from left to right."""
    return LEFT + (value - ends[0]) / (ends[1] - ends[0]) * (WIDTH - LEFT - LEFT)
