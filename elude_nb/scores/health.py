"""Properties of a set of units: copies, dead units, sparsity, variance explained, stability between fits."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_number
from elude_nb.scores.fidelity import ridge
from elude_nb.scores.inputs import Array, as_activations, is_constant, per_unit, unit_vectors

_UNITS_AT_ONCE = 1024


def largest_correlation(activations: Array) -> pd.Series[float]:
    """Return each unit's largest Pearson correlation with another unit, in [-1, 1]; lower means fewer near-copies.

    A unit that is constant, or the only one that is not, scores NaN.

    Parameters
    ----------
    activations
        (n, u).

    Examples
    --------
    >>> largest_correlation(torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [3.0, 6.0, 0.0]])).round(3).tolist()
    [1.0, 1.0, 0.0]
    """
    values = as_activations(activations)
    standard, constant = _standardised(values), is_constant(values)
    largest = values.new_full((values.shape[1],), torch.nan)
    for start in range(0, values.shape[1], _UNITS_AT_ONCE):
        rows = slice(start, start + _UNITS_AT_ONCE)
        found = standard[:, rows].T @ standard  # (rows, u)
        found[:, constant] = -torch.inf
        found[torch.arange(len(found)), torch.arange(start, start + len(found))] = -torch.inf
        largest[rows] = found.amax(1)
    return per_unit("largest_correlation", largest.clamp(-1, 1), missing=constant | largest.isinf())


def effective_rank(activations: Array, *, standardise: bool = True) -> float:
    """Return how many directions the units span, in [1, min(n, u)]; higher means fewer copies.

    ``exp(H(p))``, the exponential of the entropy of the normalised singular values (Roy and Vetterli, *The effective
    rank*, EUSIPCO 2007), of the centred activations, each unit at variance 1. Constant units do not count; if all are,
    the rank is 0.

    Parameters
    ----------
    activations
        (n, u).
    standardise
        ``False`` takes the matrix as it is: of a dictionary (u, e), this is the effective rank in ELUDe's paper (arXiv
        2605.31304).

    Examples
    --------
    >>> round(effective_rank(torch.eye(4)[:, :3]), 1), round(effective_rank(torch.eye(3), standardise=False), 1)
    (2.9, 3.0)
    """
    values = as_activations(activations)
    standard = _standardised(values)[:, ~is_constant(values)] if standardise else values
    if not standard.any():
        return 0.0
    share = torch.linalg.svdvals(standard.double())
    share = share[share > share[0] * 1e-12] / share.sum()
    return float((-(share * share.log()).sum()).exp())


def density(activations: Array, threshold: float = 0.0) -> pd.Series[float]:
    """Return the share of rows on which each unit is above ``threshold``, in [0, 1]; a dead unit has 0.

    Parameters
    ----------
    activations
        At tokens rather than images, (t, u): a sparse unit is sparse there.
    threshold
        0 is the resting value of a rectified unit. Units of both signs are above it about half of the time.
    """
    least = check_number("threshold", threshold)
    return per_unit("density", (as_activations(activations) > least).double().mean(0))


def is_dead(activations: Array) -> pd.Series[bool]:
    """Return which units never change over these rows (t, u)."""
    dead = is_constant(as_activations(activations))
    return pd.Series(dead.numpy(), name="dead", index=pd.RangeIndex(len(dead), name="unit"))


def l0(activations: Array, threshold: float = 0.0) -> float:
    """Return how many units are above ``threshold`` at once, the mean over rows (t, u); lower is sparser."""
    least = check_number("threshold", threshold)
    return float((as_activations(activations) > least).sum(1).double().mean())


def linear_explained(
    units: Array, channels: Array, held_out_units: Array, held_out_channels: Array, *, strength: float = 1e-3
) -> float:
    """Return the share of the channels' variance that the units explain linearly (R2), at most 1; higher is better.

    A ridge regression from units to channels is fitted on one set of tokens and scored on another: 1 less the sum of
    squared errors over all channels over the sum of squares around their means. It is below 0 where the fit is worse
    than the mean. Adding a constant to a channel or a unit changes nothing.

    Parameters
    ----------
    units, channels
        To fit on, (t, u) and (t, d).
    held_out_units, held_out_channels
        To score on.
    strength
        Of the ridge, above 0, relative to the units' mean variance.

    Raises
    ------
    ValueError
        If the shapes do not fit, the held-out channels never vary, or a value is not finite.
    """
    given = units, channels, held_out_units, held_out_channels
    x, y, x_new, y_new = (as_activations(values).double() for values in given)
    if x.shape != (len(y), x_new.shape[1]) or y_new.shape != (len(x_new), y.shape[1]):
        shapes = [tuple(values.shape) for values in (x, y, x_new, y_new)]
        raise ValueError(f"{shapes} must be (t, u), (t, d) and, held out, (t', u), (t', d).")
    if not check_number("strength", strength) > 0:
        raise ValueError(f"strength={strength} is out of range: it must be above 0, such as 0.001.")
    if is_constant(y_new).all():  # the spread below may be off 0 by rounding
        raise ValueError("The held-out channels never vary; there is nothing to explain. Use other tokens.")
    # A unit that is constant on the tokens of the fit explains nothing, whatever it does elsewhere.
    scale = x.std(0, correction=0).masked_fill(is_constant(x), torch.inf)
    centre, mean = x.mean(0), y.mean(0)
    x, x_new = (x - centre) / scale, (x_new - centre) / scale
    fitted = x_new @ ridge(x, y - mean, strength * len(x)) + mean
    spread = (y_new - y_new.mean(0)).square().sum()
    return float(1 - (y_new - fitted).square().sum() / spread)


def stability(first: Array, second: Array) -> pd.Series[float]:
    """Return how well each unit of one fit matches a unit of another, in [-1, 1]; higher is better.

    Units are matched one to one so that the sum of their correlations over the same images is largest (the Hungarian
    method). Units of ``first`` without a partner, because there are fewer in ``second``, score NaN, and so do constant
    ones.

    Parameters
    ----------
    first, second
        Activations of the units of two fits (two seeds, or two halves of the data) on the same images, (n, u) each.
    """
    from scipy.optimize import linear_sum_assignment

    a, b = as_activations(first).double(), as_activations(second).double()
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} images: both fits must be read on the same ones.")
    live = (~is_constant(a)).nonzero().flatten()  # constant units must not take a partner
    correlation = _standardised(a)[:, live].T @ _standardised(b)
    rows, columns = linear_sum_assignment(correlation.numpy(), maximize=True)
    found = torch.full((a.shape[1],), torch.nan, dtype=torch.float64)
    found[live[rows]] = correlation[rows, columns].clamp(-1, 1)
    return per_unit("stability", found)


def health(activations: Array) -> pd.Series[float]:
    """Return the scores of this module for one set of units at tokens or images (t, u), in one column.

    Returns
    -------
    Series
        ``units``, ``dead``, ``redundancy`` (mean largest correlation), ``effective_rank``, mean ``density``, ``L0``.
    """
    values = as_activations(activations)
    return pd.Series(
        {
            "units": values.shape[1],
            "dead": int(is_dead(values).sum()),
            "redundancy": float(largest_correlation(values).mean()),
            "effective_rank": effective_rank(values),
            "density": float(density(values).mean()),
            "L0": l0(values),
        },
        name="health",
    )


def _standardised(values: Tensor) -> Tensor:
    """Return columns with mean 0 and length 1; constant ones are 0."""
    centred = values - values.mean(0)
    centred[:, is_constant(values)] = 0
    return unit_vectors(centred.T).T
