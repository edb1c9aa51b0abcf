"""Scores against known factors of synthetic images: mutual information, MIG, DCI, and recovery of planted routes.

Letters: ``n`` images, ``u`` units, ``f`` factors. A factor is a column of a table such as `elude_nb.data.synthetic`
gives: numbers with more values than bins are continuous, everything else is categorical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count, check_flag, check_kind
from elude_nb._util.words import counted
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.scores.inputs import Array, as_activations, as_codes, as_numbers, check_table, is_constant, per_unit, rank

BINS = 20
NATS = "nats"
SHARES = "shares of the factor's entropy"

_MOST_BINS = 1_000_000  # far more than images; codes of pairs of bins are whole numbers of 64 bits
_FEWEST_IMAGES = 20  # DCI fits trees on one half of them
_LEAF = 5  # images; a smaller leaf fits noise


def mutual_information(
    activations: Array, factors: pd.DataFrame, *, bins: int = BINS, normalised: bool = False
) -> pd.DataFrame:
    """Return the mutual information of each unit with each factor, at least 0; 0 means that they are independent.

    ``I(unit; factor) = sum over cells of p log(p / (p of the unit's bin * p of the factor's value))``, in nats, over
    bins that hold equally many images; images with the same activation share a bin. In a finite sample independent
    variables have about ``(bins - 1) (values - 1) / (2 n)`` nats: compare with random routes on the same images, or use
    fewer bins. A unit that is constant scores NaN.

    Parameters
    ----------
    activations
        (n, u).
    factors
        (n, f), one row an image in the same order; the index is ignored.
    bins
        Of a unit, and of a continuous factor.
    normalised
        Divide by the factor's entropy: then 1 means that the unit's bin determines the factor's value.

    Returns
    -------
    DataFrame
        (u, f).

    Raises
    ------
    ValueError
        If there is not one row an image, a value is missing, or a factor has one value only.

    Examples
    --------
    >>> factors = pd.DataFrame({"shape": ["star", "star", "cross", "cross"], "x": [0.1, 0.9, 0.1, 0.9]})
    >>> mutual_information(torch.tensor([[1.0], [1.0], [0.0], [0.0]]), factors, bins=2).round(3).to_dict("list")
    {'shape': [0.693], 'x': [0.0]}
    """
    check_count("bins", bins, 2, _MOST_BINS)
    check_flag("normalised", normalised)
    values = as_activations(activations)
    _check_factors(factors, len(values))
    cells = _equal_bins(values, bins)  # (n, u)
    found = {}
    for name in factors:
        information, entropy = _information(cells, bins, _factor_codes(factors[name], bins))
        found[name] = per_unit(str(name), information / (entropy if normalised else 1), missing=is_constant(values))
    table = pd.DataFrame(found, index=pd.RangeIndex(values.shape[1], name="unit"))
    table.attrs["information"] = SHARES if normalised else NATS
    return table


def mutual_information_gap(information: pd.DataFrame) -> pd.Series[float]:
    """Return the mutual information gap (MIG) of each factor, in [0, 1]; higher is better.

    The difference of the two largest mutual informations with the factor, divided by the factor's entropy (Chen et al.,
    arXiv 1802.04942). It is high where one unit encodes the factor; a copy of that unit makes it 0, and so does a unit
    for each value of the factor. The mean over factors is the MIG of the paper. The bias of finite samples is in both
    terms and cancels.

    Parameters
    ----------
    information
        (u, f), from ``mutual_information(..., normalised=True)``. Units without a score (NaN) count as 0.

    Raises
    ------
    ValueError
        If there are fewer than two units, or the information is in nats.

    Examples
    --------
    >>> mutual_information_gap(pd.DataFrame({"shape": [0.9, 0.2, 0.1], "x": [0.3, 0.3, 0.0]})).round(3).to_dict()
    {'shape': 0.7, 'x': 0.0}
    """
    check_table("information", information)
    if len(information) < 2:
        raise ValueError(f"A gap needs at least two units; the table has {len(information)}.")
    if information.attrs.get("information") == NATS:
        raise ValueError("The information is in nats; use mutual_information(..., normalised=True).")
    best = np.sort(information.fillna(0).to_numpy(dtype=np.float64), axis=0)[-2:]
    return pd.Series(best[1] - best[0], index=information.columns, name="mutual_information_gap")


def encoded_factor(information: pd.DataFrame) -> pd.DataFrame:
    """Return the factor with which each unit has most mutual information, and its share of the unit's sum.

    Parameters
    ----------
    information
        (u, f), from `mutual_information`; normalised, so that factors of many values do not win by their size.

    Returns
    -------
    DataFrame
        One row a unit: ``factor``; ``information`` with it; ``share``, in [1/f, 1], higher means that the unit encodes
        one factor only. A unit that is constant, or independent of all factors, has neither (NaN).

    Examples
    --------
    >>> encoded_factor(pd.DataFrame({"shape": [0.6, 0.1], "x": [0.2, 0.3]})).round(2).to_dict("list")
    {'factor': ['shape', 'x'], 'information': [0.6, 0.3], 'share': [0.75, 0.75]}
    """
    check_table("information", information)
    if not information.size:
        raise ValueError("information is empty; give the table of mutual_information.")
    values = information.fillna(0)
    most, total = values.max(axis=1), values.sum(axis=1)
    table = pd.DataFrame({"factor": values.idxmax(axis=1), "information": most, "share": most / total})
    return table[total > 0].reindex(information.index)


@dataclass(frozen=True, eq=False)
class DCI:
    """Disentanglement, completeness and informativeness of units against factors; higher is better for all three.

    Attributes
    ----------
    disentanglement
        In [0, 1]: whether a unit is important for one factor only; the mean over units, weighted by their importance.
        NaN if no unit is important.
    completeness
        In [0, 1]: whether one unit only is important for a factor; the mean over factors. 0 for a factor for which no
        unit is important.
    informativeness
        At most 1: how well the units predict the factors on held-out images; the mean over factors. 0 is as good as
        guessing. NaN if the held-out half has only one value of a factor, so that guessing is perfect.
    importance
        (u, f): the importance of each unit for each factor; each column sums to 1, or to 0. Units that were left out
        have zeros.
    units, factors
        What the means are of: disentanglement of each unit (NaN if it is not important), and a table with completeness
        and informativeness of each factor.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: pd.DataFrame = field(repr=False)
    units: pd.Series[float] = field(repr=False)
    factors: pd.DataFrame = field(repr=False)


def dci(activations: Array, factors: pd.DataFrame, *, seed: int = 0, max_units: int = 200, trees: int = 100) -> DCI:
    """Return disentanglement, completeness and informativeness (Eastwood and Williams, ICLR 2018).

    Random forests predict each factor from the units, on one half of the images. With ``R`` their importances (u, f;
    mean decrease in impurity) and entropies to the base of the number of entries::

        disentanglement = sum over units of rho (1 - entropy(row of R)),  rho = the unit's share of all importance
        completeness    = mean over factors of (1 - entropy(column of R))
        informativeness = mean over factors of (1 - loss / loss of guessing), on the other half of the images

    The loss is the squared error for continuous factors (so this is R2) and the error rate for categorical ones;
    guessing predicts the training half's mean, or its most common value. The paper leaves the predictor open and uses
    the plain error for informativeness. We chose forests that consider all units at each split: those that consider a
    few spread the importance over uninformative units.

    Parameters
    ----------
    activations
        (n, u).
    factors
        (n, f), one row an image in the same order; the index is ignored.
    seed
        Of the halves and the forests.
    max_units
        Only so many units are used, those with most mutual information with a factor on the training half. It is the
        base of the completeness: compare only figures with the same number.
    trees
        In each forest. 200 units x 500 images x 6 factors x 100 trees take a few seconds.

    Raises
    ------
    ValueError
        If there is not one row an image, fewer than 20 images, two factors or two units that vary, a value is missing,
        or a factor has one value only on the training half.

    Examples
    --------
    >>> from elude_nb.data.synthetic import sample_scenes
    >>> factors = sample_scenes(200)[["x", "y"]]
    >>> found = dci(factors.to_numpy(copy=True), factors, trees=10)
    >>> found.disentanglement > 0.9, found.completeness > 0.9, found.informativeness > 0.9
    (True, True, True)
    """
    check_count("max_units", max_units, 2)
    check_count("trees", trees)
    values = as_activations(activations)
    _check_factors(factors, len(values), fewest=2)
    if len(values) < _FEWEST_IMAGES:
        raise ValueError(f"{counted(len(values), 'image')}: too few for DCI; use at least {_FEWEST_IMAGES}.")
    train = np.random.default_rng(seed).permutation(len(values)) < len(values) // 2
    most = mutual_information(values[torch.from_numpy(train)], factors[train], normalised=True).max(axis=1)
    used = most.dropna().nlargest(max_units).index.sort_values().to_numpy(copy=True)
    if len(used) < 2:
        raise ValueError(f"DCI needs at least two units that vary; of {len(most)}, {len(used)} do.")
    inputs = values[:, used].double().numpy()
    fitted = [_fit_forest(inputs, factors[name], train, trees, seed) for name in factors]
    importance = pd.DataFrame(0.0, index=most.index, columns=factors.columns)
    importance.loc[used] = np.stack([found for found, _ in fitted], axis=1)
    return _dci(importance, len(used), [skill for _, skill in fitted])


def planted_recovery(found_routes: Array, true_groups: Array) -> pd.Series[float]:
    """Return how well each channel's routes agree with a planted partition of its sources, at most 1; higher is better.

    The adjusted Rand index (Hubert and Arabie, 1985): 1 means the same groups whatever their numbers, 0 is chance.
    Sources with -1 in the truth belong to no group and are left out. Unit 0 is a group like any
    other, so a planted source that ended there is a mistake.

    A channel that was not split has all sources in one group: it scores 0 where the truth has several groups, and 1
    where it has one. A channel with fewer than two planted sources has no partition and scores NaN.

    Parameters
    ----------
    found_routes
        (d, s), for example ``split.routing.routes``.
    true_groups
        (d, s), whole numbers, -1 where a source belongs to no group.

    Raises
    ------
    ValueError
        If the two are not tables of one shape.

    Examples
    --------
    >>> truth = torch.tensor([[5, 5, 7, 7, -1], [5, 5, 7, 7, -1]])
    >>> planted_recovery(torch.tensor([[1, 1, 2, 2, 2], [0, 0, 0, 0, 0]]), truth).tolist()
    [1.0, 0.0]
    """
    from sklearn.metrics import adjusted_rand_score

    found, truth = as_numbers("found_routes", found_routes), as_numbers("true_groups", true_groups)
    if found.ndim != 2 or found.shape != truth.shape:
        raise ValueError(f"Routes {tuple(found.shape)} and true groups {tuple(truth.shape)} must both be (d, s).")
    scores = [
        adjusted_rand_score(groups[planted].numpy(), routes[planted].numpy()) if int(planted.sum()) > 1 else np.nan
        for routes, groups, planted in zip(found, truth, truth != NO_CONCEPT, strict=True)
    ]
    return pd.Series(scores, dtype=float, name="planted_recovery", index=pd.RangeIndex(len(scores), name="channel"))


def _check_factors(factors: pd.DataFrame, n: int, fewest: int = 1) -> None:
    check_kind("factors", factors, pd.DataFrame, "a pandas DataFrame with one row an image")
    if len(factors) != n:
        raise ValueError(f"{len(factors)} rows of factors were given for {n} images; give one an image.")
    if factors.shape[1] < fewest or not factors.columns.is_unique:
        raise ValueError(f"factors must have at least {fewest} columns of different names, not {list(factors)}.")
    wrong = (factors.isna() | factors.isin([np.inf, -np.inf])).sum()
    if wrong.any():
        raise ValueError(f"Factor {wrong.idxmax()!r} has {int(wrong.max())} missing or infinite values.")
    single = [name for name in factors if (factors[name] == factors[name].iloc[0]).all()]
    if single:
        raise ValueError(f"Factor {single[0]!r} has one value only; leave it out.")


def _is_continuous(factor: pd.Series[Any], bins: int = BINS) -> bool:
    numeric = pd.api.types.is_numeric_dtype(factor) and not pd.api.types.is_bool_dtype(factor)
    return bool(numeric and factor.nunique() > bins)


def _factor_codes(factor: pd.Series[Any], bins: int) -> Tensor:
    if _is_continuous(factor, bins):
        return _equal_bins(torch.from_numpy(factor.to_numpy(dtype=np.float64, copy=True))[:, None], bins)[:, 0]
    return as_codes(factor.to_numpy(), len(factor))[0]


def _equal_bins(values: Tensor, bins: int) -> Tensor:
    """Return in which of ``bins`` equally full bins each value is, (n, u), int64; equal values share the lowest."""
    below = rank(values, ties="min").long() - 1  # how many are lower
    return below * bins // len(values)


def _information(cells: Tensor, bins: int, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mutual information of each unit's cells (n, u) with codes (n,), in nats, (u,), and their entropy."""
    (n, u), number = cells.shape, int(codes.max()) + 1
    places = (torch.arange(u) * bins + cells) * number + codes[:, None]
    joint = torch.bincount(places.flatten(), minlength=u * bins * number).view(u, bins, number).double() / n
    apart = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    information = torch.special.xlogy(joint, joint / apart.clamp(min=torch.finfo(torch.float64).tiny)).sum((1, 2))
    shares = torch.bincount(codes).double() / n
    return information.clamp(min=0), torch.special.entr(shares).sum()


def _fit_forest(
    inputs: np.ndarray[Any, Any], factor: pd.Series[Any], train: np.ndarray[Any, Any], trees: int, seed: int
) -> tuple[np.ndarray[Any, Any], float]:
    """Return the units' importances for one factor, (u,), that sum to 1, and the skill on the other half."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    continuous = _is_continuous(factor)
    target = factor.to_numpy(dtype=np.float64) if continuous else as_codes(factor.to_numpy(), len(factor))[0].numpy()
    kind = RandomForestRegressor if continuous else RandomForestClassifier
    forest = kind(trees, max_features=1.0, min_samples_leaf=_LEAF, n_jobs=-1, random_state=seed)
    forest.fit(inputs[train], target[train])
    forest.set_params(n_jobs=1)  # several threads would sum the trees in any order
    truth, predicted = target[~train], forest.predict(inputs[~train])
    guess = target[train].mean() if continuous else np.bincount(target[train]).argmax()
    loss, guessing = (np.square(truth - x).mean() if continuous else np.mean(truth != x) for x in (predicted, guess))
    return forest.feature_importances_, float(1 - loss / guessing) if guessing > 0 else np.nan


def _dci(importance: pd.DataFrame, used: int, skills: Sequence[float]) -> DCI:
    from scipy.stats import entropy

    R = importance.to_numpy()  # (u, f)
    with np.errstate(invalid="ignore"):  # what has no importance has no entropy: 0 / 0
        weights = R.sum(1) / R.sum()
        units = pd.Series(1 - entropy(R, axis=1, base=R.shape[1]), index=importance.index, name="disentanglement")
        completeness = np.nan_to_num(1 - entropy(R, base=used))
        disentanglement = np.nansum(weights * units) / weights.sum()
    return DCI(
        disentanglement=float(disentanglement),
        completeness=float(completeness.mean()),
        informativeness=float(np.mean(skills)),
        importance=importance,
        units=units,
        factors=pd.DataFrame({"completeness": completeness, "informativeness": skills}, index=importance.columns),
    )
