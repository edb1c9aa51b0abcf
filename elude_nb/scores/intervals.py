"""Bootstrap confidence intervals of means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from elude_nb._util.checks import check_count, check_fraction

_KEPT = 1 << 23  # draws that are kept at most, 16 MB


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap confidence interval.

    Attributes
    ----------
    mean, low, high
        NaN if there was nothing to average.
    count
        How many values were averaged.
    missing
        How many were left out because they had no score (NaN).
    """

    mean: float
    low: float
    high: float
    count: int
    missing: int = 0

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Any, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
    """Return the mean of ``values`` (m,) with its percentile bootstrap interval (Efron, 1979).

    Values that are NaN have no score: they are left out and counted. The interval treats the values as independent.
    Units of one model are not quite independent, so over units it is too narrow.

    Parameters
    ----------
    values
        A sequence, array or column of numbers.
    level
        Share of the resampled means inside the interval.
    resamples, seed
        How many bootstrap samples are drawn, and from which seed.

    Raises
    ------
    ValueError
        If a value is infinite.

    Examples
    --------
    >>> mean_interval([1.0, 1.0, float("nan")])
    Interval(mean=1.0, low=1.0, high=1.0, count=2, missing=1)
    """
    check_fraction("level", level, open_ends=True)
    check_count("resamples", resamples)
    every = np.asarray(values, dtype=np.float64).ravel()
    if np.isinf(every).any():
        raise ValueError(f"{int(np.isinf(every).sum())} of {len(every)} values are infinite and have no mean.")
    found = every[~np.isnan(every)]
    missing = len(every) - len(found)
    if not len(found):
        return Interval(np.nan, np.nan, np.nan, 0, missing)
    # How often a resample draws each value determines its mean.
    draws = (_drawn if len(found) * resamples <= _KEPT else _draw)(len(found), resamples, seed)
    means = np.array([each @ found for each in draws])
    low, high = np.quantile(means / len(found), [(1 - level) / 2, (1 + level) / 2])
    mean = float(found.mean())
    return Interval(mean, min(float(low), mean), max(float(high), mean), len(found), missing)


def _draw(m: int, resamples: int, seed: int) -> Iterator[Any]:
    """Yield for each resample how often it draws each of ``m`` values, (m,)."""
    rng = np.random.default_rng(seed)
    return (rng.multinomial(m, np.full(m, 1 / m)) for _ in range(resamples))


@lru_cache(8)
def _drawn(m: int, resamples: int, seed: int) -> Any:
    """Keep the draws, which take longer than the sums: the scores of one kind of unit are mostly equally many."""
    return np.stack([*_draw(m, resamples, seed)]).astype(np.uint16)


def difference_interval(
    first: Any,
    second: Any,
    *,
    clusters: tuple[Any, Any] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return how much larger the mean of ``first`` is than that of ``second``, with its percentile bootstrap interval.

    Parameters
    ----------
    first, second
        Two sequences of numbers, (m,) and (l,); NaN is left out.
    clusters
        For each of the two which cluster each value is from, such as its channel: clusters are resampled whole, and the
        same ones for both (cluster bootstrap: Davison and Hinkley, 1997, section 3.8). By default all values are
        independent.
    level, resamples, seed
        As in `mean_interval`.

    Raises
    ------
    ValueError
        If one of the two has no number.

    Examples
    --------
    >>> difference_interval([2.0, 2.0], [1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0, count=5, missing=0)
    """
    check_fraction("level", level, open_ends=True)
    check_count("resamples", resamples)
    samples = [np.asarray(each, dtype=np.float64).ravel() for each in (first, second)]
    if clusters is None:
        sizes = np.cumsum([0, *map(len, samples)])
        where = [np.arange(*sizes[i : i + 2]) for i in range(2)]
    else:
        where = [np.asarray(each) for each in clusters]
    known = [~np.isnan(each) for each in samples]
    if not all(each.any() for each in known):
        raise ValueError("A difference of means needs a number on either side; one side has none.")
    _, index = np.unique(np.concatenate(where), return_inverse=True)
    total = int(index.max()) + 1
    parts = []  # of each sample: the sum and the number of values of each cluster
    for values, of_cluster, there in zip(samples, np.split(index, [len(where[0])]), known, strict=True):
        sums = np.bincount(of_cluster[there], weights=values[there], minlength=total)
        parts.append((sums, np.bincount(of_cluster[there], minlength=total)))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = rng.multinomial(total, np.full(total, 1 / total))
        counts = [drawn @ number for _, number in parts]
        if all(counts):  # a resample may miss all clusters of a small sample
            found.append(drawn @ parts[0][0] / counts[0] - drawn @ parts[1][0] / counts[1])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    mean = float(samples[0][known[0]].mean() - samples[1][known[1]].mean())
    count = int(sum(each.sum() for each in known))
    return Interval(mean, min(float(low), mean), max(float(high), mean), count, sum(map(len, samples)) - count)
