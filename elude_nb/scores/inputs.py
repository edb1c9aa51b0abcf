"""Inputs and outputs of all scores: NumPy or torch in, pandas out.

Letters: ``n`` images (or patches), ``u`` units, ``e`` numbers of a reference embedding.

Conventions of all scores: NaN or infinity in the input is an error. A unit that is constant has no best images, so a
score of these is NaN, and a mean over units (`elude_nb.scores.mean_interval`) says how many it left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_kind, shortly
from elude_nb._util.words import counted

Array = Tensor | np.ndarray[Any, Any] | pd.DataFrame


def as_activations(activations: Array) -> Tensor:
    """Return activations (n, u) as a float tensor on the CPU, in at least float32.

    Raises
    ------
    ValueError
        If there are not two dimensions, no rows, or a value is not finite.
    """
    return as_matrix("activations", activations, "(n, u)")


def as_embeddings(embeddings: Array, n: int) -> Tensor:
    """Return reference embeddings (n, e) as a float tensor; raise unless there is one finite row an image."""
    found = as_matrix("embeddings", embeddings, "(n, e)")
    if len(found) != n:
        raise ValueError(
            f"activations of {n} images and embeddings of {len(found)} must be (n, u), (n, e) over the same images."
        )
    return found


def as_codes(
    labels: Sequence[Any] | Array | pd.Series, n: int, *, classes: int = 1, of: str = "images"
) -> tuple[Tensor, list[Any]]:
    """Return labels as whole numbers (n,), and the names that these stand for in sorted order; ``of`` is for errors.

    Raises
    ------
    ValueError
        If there is not one label an image, one is missing, or there are fewer than ``classes`` different ones.
    """
    values = as_numbers("labels", labels).numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 1 or len(values) != n:
        given = counted(len(values), "label") if values.ndim == 1 else f"an array {values.shape} of labels"
        raise ValueError(f"{given} for {n} {of}: give one each.")
    if pd.isna(values).any():
        raise ValueError(f"{counted(int(pd.isna(values).sum()), 'label')} missing; leave those {of} out.")
    names, codes = np.unique(values, return_inverse=True)
    if not len(names):
        raise ValueError(f"There are no labels; give some {of}, with one label each.")
    if len(names) < classes:
        raise ValueError(f"There is only one label ({names[0]!r}); give {of} of at least {classes}.")
    return torch.from_numpy(codes.astype(np.int64)), names.tolist()


def unit_vectors(embeddings: Tensor) -> Tensor:
    """Return the rows at length 1; a row of zeros stays as it is (its cosine with any other is 0)."""
    return torch.nn.functional.normalize(embeddings, dim=1, eps=torch.finfo(embeddings.dtype).tiny)


def is_constant(activations: Tensor) -> Tensor:
    """Return which units have the same activation on all images, (u,), bool."""
    return activations.amax(0) == activations.amin(0)


def rank(values: Tensor, ties: str = "average") -> Tensor:
    """Return the rank of each value in its column, from 1, (n, u), float64; ``ties`` as in `scipy.stats.rankdata`."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.numpy(), method=ties, axis=0)).double()


def per_unit(name: str, values: Tensor, missing: Tensor | None = None) -> pd.Series[float]:
    """Return one number a unit as a named column, in the order of the activations' columns; NaN where ``missing``."""
    if missing is not None:
        values = values.masked_fill(missing, torch.nan)
    return pd.Series(values.double().numpy(), name=name, index=pd.RangeIndex(len(values), name="unit"))


def as_numbers(name: str, values: object) -> Tensor:
    """Return real numbers of any shape as a dense tensor on the CPU, in their own dtype.

    Raises
    ------
    TypeError, ValueError
        If they are complex, sparse or not numbers, or rows differ in length.
    """
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.device.type == "meta" or values.is_complex():
            raise TypeError(f"{name} must be real and dense, with values, not {values.dtype} on {values.device}.")
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, an array or a tensor, not {shortly(values)}.")
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()  # torch warns about read-only arrays, such as a column of pandas
    return torch.from_numpy(array)


def check_table(name: str, table: object, *columns: str) -> None:
    """Raise ``TypeError`` unless this is a pandas table, ``ValueError`` unless it has these columns."""
    check_kind(name, table, pd.DataFrame, "a pandas DataFrame")
    missing = [column for column in columns if column not in table.columns]  # type: ignore[attr-defined]
    if missing:
        raise ValueError(f"{name} lacks the columns {missing}; hand in the table as it was returned.")


def as_matrix(name: str, values: Array, shape: str) -> Tensor:
    """Return numbers as a float tensor of two dimensions, in at least float32; ``shape`` is what an error asks for.

    Raises
    ------
    TypeError, ValueError
        If they are not numbers, have another number of dimensions or no rows, or a value is not finite.
    """
    tensor = as_numbers(name, values)
    tensor = tensor if tensor.is_floating_point() and tensor.dtype.itemsize >= 4 else tensor.float()
    if tensor.ndim != 2 or not len(tensor):
        raise ValueError(f"{name} must be {shape} with at least one row, not {tuple(tensor.shape)}.")
    if not tensor.isfinite().all():
        where = (~tensor.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{name} hold NaN or infinite values, the first in row {where[0]}, column {where[1]}.")
    return tensor
