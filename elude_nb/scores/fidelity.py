"""Fidelity of reconstructions that replace a model's activations; neighbours, probe and ridge for all modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count
from elude_nb.core.verify import Comparison
from elude_nb.scores.inputs import Array, as_codes, as_embeddings, is_constant, unit_vectors

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_ROWS_AT_ONCE = 1024

_Values = np.ndarray[Any, Any]


def unexplained_variance(original: Array, reconstruction: Array) -> float:
    """Return the fraction of variance unexplained (FVU), at least 0; lower is better, and 0 is exact.

    ``sum |x - y|^2 / sum |x - mean x|^2`` over all tokens and channels, the mean taken channel by channel: adding a
    constant vector to both changes nothing, and reconstructing every token by the mean gives 1. 1 less this is R^2, the
    faithfulness of ELUDe's paper (arXiv 2605.31304).

    Parameters
    ----------
    original, reconstruction
        (t, d) each.

    Raises
    ------
    ValueError
        If the shapes differ, the original never varies, or a value is not finite.

    Examples
    --------
    >>> original = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    >>> unexplained_variance(original, original), unexplained_variance(original, torch.ones(2, 2))
    (0.0, 1.0)
    """
    x, y = _pair(original, reconstruction)
    if is_constant(x).all():  # the sum below may be off 0 by rounding
        raise ValueError("The original never varies, so there is no variance to explain; use more tokens.")
    return float((x - y).square().sum() / (x - x.mean(0)).square().sum())


def output_change(original: Array, changed: Array) -> pd.Series[float]:
    """Return how far a changed model's outputs lie from the original's.

    Parameters
    ----------
    original, changed
        (n, e) each, of the same images.

    Returns
    -------
    Series
        ``largest`` and ``mean`` absolute difference (0 if nothing changed), mean ``cosine`` of the centred outputs, and
        ``top1_agreement``, the share of images whose largest entry is the same one. Outputs are centred at the
        original's mean; where the original never varies, as with one image, the cosine is NaN.

    Raises
    ------
    ValueError
        If the shapes differ, or a value is not finite.

    Examples
    --------
    >>> output_change(torch.eye(2), torch.eye(2)).round(6).to_dict()
    {'largest': 0.0, 'mean': 0.0, 'cosine': 1.0, 'top1_agreement': 1.0}
    """
    x, y = _pair(original, changed)
    gathered = Comparison()
    gathered.add(x, y)
    found = gathered.result()
    mean = x.mean(0)
    cosine = (unit_vectors(x - mean) * unit_vectors(y - mean)).sum(1).mean()
    return pd.Series(
        {
            "largest": found.max_abs_diff,
            "mean": float((x - y).abs().mean()),
            "cosine": float("nan") if is_constant(x).all() else float(cosine),
            "top1_agreement": found.top1_agreement,
        },
        name="output_change",
    )


def neighbour_agreement(original: Array, changed: Array, k: int = 10) -> float:
    """Return the mean share of each image's ``k`` nearest neighbours that stay the same, in [0, 1]; higher is better.

    Neighbours are by cosine, among the other images; each set of embeddings is centred at its own mean, so that a
    common shift changes nothing. Unrelated embeddings share about k / (n - 1).

    Parameters
    ----------
    original, changed
        (n, e) each, of the same images.
    k
        Nearest neighbours, fewer than n.

    Raises
    ------
    ValueError
        If there are not more than ``k`` images, the shapes differ, or a value is not finite.

    Examples
    --------
    >>> embeddings = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 0.0], [4.0, 0.0]])
    >>> neighbour_agreement(embeddings, 2 * embeddings + 1, k=1)
    1.0
    """
    x, y = _pair(original, changed)
    check_count("k", k, 1, len(x) - 1)
    numbers = torch.arange(len(x))
    a, b = (nearest_neighbours(z - z.mean(0), z - z.mean(0), k, leave_out=numbers)[1] for z in (x, y))
    return float((a[:, :, None] == b[:, None]).any(2).double().mean(1).mean())


def nearest_neighbours(
    queries: Tensor, among: Tensor, k: int, *, leave_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cosines and the numbers of the ``k`` rows nearest to each query, (q, k) each, the nearest first.

    Parameters
    ----------
    queries, among
        (q, e) and (n, e). The cosine counts: centre both beforehand if what all rows have in common should not.
    k
        How many, at most n; with ``leave_out`` fewer than n.
    leave_out
        One row for each query that is not its neighbour, (q,): the query itself.

    Examples
    --------
    >>> nearest_neighbours(torch.tensor([[2.0, 1.0]]), torch.eye(2), 2)[1].tolist()
    [[0, 1]]
    """
    units, found = unit_vectors(among), []
    for rows in torch.arange(len(queries)).split(_ROWS_AT_ONCE):
        cosines = unit_vectors(queries[rows]) @ units.T
        if leave_out is not None:
            cosines[torch.arange(len(rows)), leave_out[rows]] = -torch.inf
        found.append(cosines.topk(k, dim=1))
    values, numbers = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, numbers


def knn_accuracy(
    train: Array, train_labels: Sequence[Any], test: Array, test_labels: Sequence[Any], *, k: int = 5
) -> float:
    """Return the accuracy of a k-nearest-neighbour classifier (cosine), in [0, 1]; higher is better.

    Compare it with `chance_accuracy`. The caller chooses both sets of images. A label without training images is never
    predicted.

    Parameters
    ----------
    train, train_labels
        Embeddings (n, e) of the original model and their labels, (n,).
    test, test_labels
        Embeddings of other images, of the original or the changed model, and their labels.
    k
        How many nearest neighbours vote, at most n.

    Raises
    ------
    ValueError
        If there is not one label an image, fewer than two different ones to train on, the embeddings differ in length,
        or a value is not finite.

    Examples
    --------
    >>> knn_accuracy(torch.eye(2), ["cat", "dog"], torch.tensor([[0.9, 0.2], [0.3, 0.8]]), ["cat", "cat"], k=1)
    0.5
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, train_names, y, test_names = _labelled(train, train_labels, test, test_labels)
    check_count("k", k, 1, len(x))
    return float(KNeighborsClassifier(k, metric="cosine").fit(x, train_names).score(y, test_names))


def probe_accuracy(train: Array, train_labels: Sequence[Any], test: Array, test_labels: Sequence[Any]) -> float:
    """Return the accuracy of a linear probe, in [0, 1]; higher is better.

    Logistic regression on embeddings standardised by the mean and spread of the training images. Compare it with
    `chance_accuracy`.

    Parameters
    ----------
    train, train_labels, test, test_labels
        As in `knn_accuracy`.

    Raises
    ------
    ValueError
        As `knn_accuracy` does.

    Examples
    --------
    >>> probe_accuracy(torch.eye(2), ["cat", "dog"], torch.tensor([[0.9, 0.2], [0.3, 0.8]]), ["cat", "dog"])
    1.0
    """
    x, train_names, y, test_names = _labelled(train, train_labels, test, test_labels)
    return float(fit_probe(x, train_names).score(y, test_names))


def fit_probe(embeddings: _Values, labels: Sequence[Any] | _Values) -> Pipeline:
    """Return a linear probe fitted on embeddings (n, e): ``StandardScaler``, then ``LogisticRegression``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(embeddings, labels)


def ridge(inputs: Tensor, targets: Tensor, strength: float) -> Tensor:
    """Return the matrix (u, d) of a ridge regression without offset, from inputs (t, u) to targets (t, d).

    It minimises ``|targets - inputs matrix|^2 + strength |matrix|^2``, in float64.
    """
    from sklearn.linear_model import Ridge

    fitted = Ridge(strength, fit_intercept=False).fit(inputs.double().numpy(), targets.double().numpy())
    matrix: Tensor = torch.from_numpy(fitted.coef_).reshape(targets.shape[1], -1).T
    return matrix.to(inputs)


def chance_accuracy(train_labels: Sequence[Any], test_labels: Sequence[Any]) -> float:
    """Return the accuracy of always predicting the most common training label, in [0, 1].

    With equally many images of each of c labels it is 1 / c. Of equally common labels the first in order is predicted.

    Parameters
    ----------
    train_labels, test_labels
        As in `knn_accuracy`.

    Examples
    --------
    >>> chance_accuracy(["cat", "cat", "dog"], ["cat", "dog", "dog", "dog"])
    0.25
    """
    codes, names = as_codes(train_labels, len(train_labels))
    guess = names[int(codes.bincount().argmax())]
    tested, known = as_codes(test_labels, len(test_labels))
    return float(np.mean(np.asarray(known)[tested.numpy()] == guess))


def _labelled(
    train: Array, train_labels: Sequence[Any], test: Array, test_labels: Sequence[Any]
) -> tuple[_Values, _Values, _Values, _Values]:
    """Return both sets of embeddings, each with the names of its labels, as scikit-learn takes them."""
    x, y = as_embeddings(train, len(train)).double().numpy(), as_embeddings(test, len(test)).double().numpy()
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"train {x.shape} and test {y.shape} must have equally many columns: take both from one layer."
        )
    codes, names = as_codes(train_labels, len(x), classes=2)
    tested, known = as_codes(test_labels, len(y))
    return x, np.asarray(names)[codes.numpy()], y, np.asarray(known)[tested.numpy()]


def _pair(original: Array, changed: Array) -> tuple[Tensor, Tensor]:
    x, y = as_embeddings(original, len(original)).double(), as_embeddings(changed, len(changed)).double()
    if x.shape != y.shape:
        raise ValueError(f"{tuple(x.shape)} and {tuple(y.shape)} must be of one shape: give the same rows and columns.")
    return x, y
