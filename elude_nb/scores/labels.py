"""How well units predict labels: average precision, ROC, sparse probing with one unit, class selectivity, and FMS.

Letters: ``n`` images, ``u`` units, ``l`` labels. Every image has one label; each label is scored against the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count, check_fraction
from elude_nb._util.words import counted
from elude_nb.scores.inputs import Array, as_activations, as_codes, as_numbers, check_table, is_constant, per_unit, rank

Labels = Sequence[Any] | Array | pd.Series
FEWEST = 2  # images of a label in each half; with one, its average precision is the place of a single image

_AT_ONCE = 1 << 23  # numbers ranked at once: 64 MB, a few times over


def average_precision(activations: Array, labels: Labels) -> pd.DataFrame:
    """Return the average precision of each unit for each label, in (0, 1]; higher is better.

    The label's share of the images is chance. ``sum over thresholds of (recall - recall before) * precision``, as
    `sklearn.metrics.average_precision_score` has it, for all labels and units at once: the sum is the mean, over the
    images of the label, of (those of the label at least as high) / (all at least as high), so one ranking of all images
    and one inside each label are enough. A unit that is constant scores NaN.

    Parameters
    ----------
    activations
        (n, u).
    labels
        One an image, (n,); at least two different ones.

    Returns
    -------
    DataFrame
        (l, u): one row a label, in sorted order, one column a unit.

    Raises
    ------
    ValueError
        If the shapes disagree, there is only one label, one is missing, or an activation is not finite.

    Examples
    --------
    >>> average_precision(torch.tensor([[3.0], [2.0], [1.0]]), ["cat", "dog", "cat"]).round(3)[0].to_dict()
    {'cat': 0.833, 'dog': 0.5}
    """
    values, codes, names = _inputs(activations, labels)
    return _table(_precision(values, codes, len(names)), values, names)


def d_prime(values: Tensor, is_target: Tensor) -> Tensor:
    """Return how well each column of values (n, u) tells the target's rows from the others, (u,); 0 if it is constant.

    ``d' = (mean on the target - mean on the others) / root of their mean variance``.
    """
    here, there = values[is_target], values[~is_target]
    spread = ((here.var(0, correction=0) + there.var(0, correction=0)) / 2).sqrt()
    distance: Tensor = (here.mean(0) - there.mean(0)) / spread.clamp(min=1e-12)
    return distance.masked_fill(spread == 0, 0)


def auroc(activations: Array, labels: Labels) -> pd.DataFrame:
    """Return the area under each unit's ROC curve for each label, in [0, 1]; higher is better, 0.5 is chance.

    The chance that an image of the label is higher than one of another, ties counting half (Mann and Whitney, 1947):
    ``(sum of midranks - p (p + 1) / 2) / (p (n - p))`` with ``p`` images of the label. Below 0.5 the unit is
    higher on images without the label. A unit that is constant scores NaN.

    Parameters
    ----------
    activations
        (n, u).
    labels
        One an image, (n,); at least two different ones.

    Returns
    -------
    DataFrame
        (l, u): one row a label, in sorted order, one column a unit.

    Raises
    ------
    ValueError
        If the shapes disagree, there is only one label, one is missing, or an activation is not finite.

    Examples
    --------
    >>> auroc(torch.tensor([[3.0], [2.0], [1.0]]), ["cat", "dog", "dog"])[0].to_dict()
    {'cat': 1.0, 'dog': 0.0}
    """
    values, codes, names = _inputs(activations, labels)
    return _table(_roc_area(values, codes, len(names)), values, names)


def best_unit_precision(
    activations: Array, labels: Labels, *, seed: int = 0, choose: Array | Sequence[bool] | None = None
) -> pd.DataFrame:
    """Choose for each label the unit that predicts it best on one half of the images, and score it on the other half.

    Sparse probing with one unit (as in SAEBench, arXiv 2503.09532), by average precision. A unit that is constant on
    the first half is not chosen; one that is constant on the other half scores chance, not NaN: leaving it out would
    favour units that are hardly ever active.

    Parameters
    ----------
    activations
        (n, u).
    labels
        One an image, (n,).
    seed
        Of the halves; each label's images are distributed to both, the odd one to the scoring half.
    choose
        (n,), bool: the images to choose on, if you have halves of your own; ``seed`` is not used then.

    Returns
    -------
    DataFrame
        One row a label: ``unit``, ``precision_when_chosen`` (on the choosing half, biased upwards by the choice),
        ``average_precision`` on the other half (higher is better) and ``chance``, the label's share of that half.

    Raises
    ------
    ValueError
        If a label has fewer than two images in either half, ``choose`` is no mask of the images, or no unit varies.

    Examples
    --------
    >>> activations = torch.tensor([[9.0, 1], [8, 2], [7, 3], [6, 4], [1, 5], [2, 6], [3, 7], [4, 8]])
    >>> best_unit_precision(activations, ["cat"] * 4 + ["dog"] * 4)["unit"].to_dict()
    {'cat': 0, 'dog': 1}
    """
    values, codes, names = _inputs(activations, labels)
    first = _choosing_half(codes, names, seed, choose)
    chosen = _precision(values[first], codes[first], len(names))
    held_out = _precision(values[~first], codes[~first], len(names))
    unit = chosen.masked_fill(_constant(values[first]), -1).argmax(1)  # (l,), the first of equals
    row = torch.arange(len(names))
    return pd.DataFrame(
        {
            "unit": unit.numpy(),
            "precision_when_chosen": chosen[row, unit].numpy(),
            "average_precision": held_out[row, unit].numpy(),
            "chance": (torch.bincount(codes[~first]) / float((~first).sum())).double().numpy(),
        },
        index=pd.Index(names, name="label"),
    )


def labels_covered(table: pd.DataFrame, threshold: float = 0.5) -> int:
    """Return how many labels have a unit that scores above ``threshold``; higher is better.

    Parameters
    ----------
    table
        From `best_unit_precision`, whose ``average_precision`` is held out; or (l, u) from `average_precision` or
        `auroc`, where the best of many units is chosen on the images that it is scored on, which biases it upwards.
    threshold
        In [0, 1]; a label counts if a unit lies above it.

    Examples
    --------
    >>> labels_covered(pd.DataFrame({0: [0.9, 0.2], 1: [0.1, 0.5]}, index=["cat", "dog"]))
    1
    """
    check_fraction("threshold", threshold)
    check_table("table", table)
    found = table[["average_precision"]] if "average_precision" in table.columns else table
    return int((found.to_numpy() > threshold).any(axis=1).sum())


def class_selectivity(activations: Array, labels: Labels) -> pd.Series[float]:
    """Return how much more active each unit is on one label than on the others, in [0, 1]; higher is better.

    ``(highest - others) / (highest + others)`` (Morcos et al., arXiv 1803.06959), where ``highest`` is the largest of
    the labels' mean activations and ``others`` the mean of the other labels' means. The formula is for activations that
    are not negative, so each unit's smallest activation is subtracted; scale and offset of a unit make no difference.
    A unit that is constant scores NaN.

    Parameters
    ----------
    activations
        (n, u).
    labels
        One an image, (n,); at least two different ones.

    Examples
    --------
    >>> class_selectivity(torch.tensor([[2.0, 2.0], [1.0, 0.0]]), ["cat", "dog"]).tolist()
    [1.0, 1.0]
    >>> class_selectivity(torch.tensor([[3.0], [1.0], [0.0]]), ["cat", "dog", "dog"]).round(3).tolist()
    [0.714]
    """
    values, codes, names = _inputs(activations, labels)
    shifted = (values - values.amin(0)).double()
    counts = torch.bincount(codes, minlength=len(names))
    means = shifted.new_zeros(len(names), values.shape[1]).index_add_(0, codes, shifted) / counts[:, None]
    highest = means.amax(0)
    others = (means.sum(0) - highest) / (len(names) - 1)
    selectivity = ((highest - others) / (highest + others)).clamp(0, 1)
    return per_unit("class_selectivity", selectivity, missing=is_constant(values))


def feature_monosemanticity(
    activations: Array,
    labels: Labels,
    *,
    removed: int = 1,
    added: int = 5,
    candidates: int = 64,
    seed: int = 0,
    choose: Array | Sequence[bool] | None = None,
) -> pd.DataFrame:
    """Return the feature monosemanticity score of each label (FMS, arXiv 2506.19382), in [0, 1]; higher is better.

    How well one unit predicts the label (``capacity``), how much is lost without it (``local``), and how little more
    units add to it (``global``)::

        local = 2 (accuracy of the best unit - accuracy of the best unit left when ``removed`` are taken away)
        global = 1 - mean over i = 1 .. added of (accuracy with the i best units - accuracy of the best unit)
        score = capacity (local + global) / 2

    A reconstruction from the published formulas. Where these leave room we chose: each label against all others, with
    balanced accuracy (chance 0.5, hence the factor 2); units are ordered as the roots of decision trees (Gini), the
    last root removed each time; one unit is judged by a tree of depth 1, ``i`` units by one of depth ``i``; trees are
    fitted on one half of the images and tested on the other; ``local`` and ``global`` are clipped to [0, 1]. A copy of
    a unit lowers ``local`` to 0, as intended.

    Parameters
    ----------
    activations
        (n, u).
    labels
        One an image, (n,).
    removed, added
        How many units are removed, and how many are combined at most.
    candidates
        Trees use only so many units, those whose area under the ROC curve is farthest from 0.5 on the training half:
        a tree's root is such a unit, and thousands of others would only cost time.
    seed, choose
        The halves, as in `best_unit_precision`.

    Returns
    -------
    DataFrame
        One row a label: ``unit``, ``capacity``, ``local``, ``global``, ``monosemanticity``. If all units are removed,
        the accuracy is chance (0.5).

    Raises
    ------
    ValueError
        If a label has fewer than two images in either half, ``choose`` is no mask of the images, or no unit varies.

    Examples
    --------
    >>> activations = torch.tensor([[9.0, 5], [8, 5], [7, 5], [6, 5], [1, 5], [2, 5], [3, 5], [4, 5]])
    >>> feature_monosemanticity(activations, ["cat"] * 4 + ["dog"] * 4)["monosemanticity"].to_dict()
    {'cat': 1.0, 'dog': 1.0}
    """
    check_count("removed", removed)
    check_count("added", added)
    check_count("candidates", candidates)
    values, codes, names = _inputs(activations, labels)
    first = _choosing_half(codes, names, seed, choose)
    constant = _constant(values[first])
    distance = (_roc_area(values[first], codes[first], len(names)) - 0.5).abs().masked_fill(constant, -1)
    ordered = distance.argsort(dim=1, descending=True, stable=True)[:, : min(candidates, int((~constant).sum()))]
    rows = []
    for label in range(len(names)):
        trees = _Trees(values[:, ordered[label]], codes == label, first, seed)
        best, *_ = order = trees.roots(max(removed + 1, added))
        alone = trees.accuracy([best])
        without = trees.accuracy(order[removed : removed + 1])
        together = [trees.accuracy(order[:i]) for i in range(1, min(added, len(order)) + 1)]
        beyond = added - len(together)  # with all units in use the accuracy stays
        more = (sum(together) + beyond * together[-1]) / added - alone
        local, rest = float(np.clip(2 * (alone - without), 0, 1)), float(np.clip(1 - more, 0, 1))
        rows.append((int(ordered[label, best]), alone, local, rest, alone * (local + rest) / 2))
    columns = ["unit", "capacity", "local", "global", "monosemanticity"]
    return pd.DataFrame(rows, columns=columns, index=pd.Index(names, name="label"))


class _Trees:
    """Decision trees for one label against the rest: fitted on one half, tested on the other."""

    def __init__(self, values: Tensor, target: Tensor, train: Tensor, seed: int) -> None:
        # Trees work in float32 and ignore differences below 1e-7: centre and scale before they round.
        centred = values.double() - values.double().mean(0)
        scaled = (centred / centred.abs().amax(0).clamp(min=torch.finfo(torch.float64).tiny)).numpy()
        self._train, self._test = (scaled[half.numpy()] for half in (train, ~train))
        self._target, self._truth = (target[half].numpy() for half in (train, ~train))
        self._seed = seed

    def roots(self, number: int) -> list[int]:
        """Return up to ``number`` units: the root of a tree, the root without that unit, and so on."""
        left, found = list(range(self._train.shape[1])), list[int]()
        while left and len(found) < number:
            root = int(self._fit(left, depth=1).tree_.feature[0])
            found.append(left.pop(max(root, 0)))  # -2: no unit is of use, so any one will do
        return found

    def accuracy(self, units: Sequence[int]) -> float:
        """Return the balanced accuracy of a tree over these units; 0.5 if there are none."""
        if not units:
            return 0.5
        found = self._fit(units, depth=len(units)).predict(self._test[:, units])
        return float((found[self._truth].mean() + (~found[~self._truth]).mean()) / 2)

    def _fit(self, units: Sequence[int], depth: int) -> Any:
        from sklearn.tree import DecisionTreeClassifier

        tree = DecisionTreeClassifier(max_depth=depth, class_weight="balanced", random_state=self._seed)
        return tree.fit(self._train[:, units], self._target)


def _inputs(activations: Array, labels: Labels) -> tuple[Tensor, Tensor, list[Any]]:
    values = as_activations(activations)
    return values, *as_codes(labels, len(values), classes=2)


def _table(scores: Tensor, values: Tensor, names: list[Any]) -> pd.DataFrame:
    columns = pd.RangeIndex(scores.shape[1], name="unit")
    scores = scores.masked_fill(is_constant(values), torch.nan)
    return pd.DataFrame(scores.numpy(), index=pd.Index(names, name="label"), columns=columns)


def _precision(values: Tensor, codes: Tensor, labels: int) -> Tensor:
    """Return the average precision of each unit for each label, (l, u), float64; a constant unit's is the chance."""
    found = torch.zeros(labels, values.shape[1], dtype=torch.float64)
    for part in _unit_parts(values):
        above = _at_least(values[:, part])  # (n, units in the part)
        for label in range(labels):
            mine = codes == label
            found[label, part] = (_at_least(values[mine, part]) / above[mine]).mean(0)
    return found


def _roc_area(values: Tensor, codes: Tensor, labels: int) -> Tensor:
    """Return the area under the ROC curve of each unit for each label, (l, u), float64; a constant unit's is 0.5."""
    p = torch.bincount(codes, minlength=labels).double()[:, None]
    found = torch.zeros(labels, values.shape[1], dtype=torch.float64)
    for part in _unit_parts(values):
        midranks = rank(values[:, part])  # (n, units in the part)
        sums = found.new_zeros(labels, midranks.shape[1]).index_add_(0, codes, midranks)
        found[:, part] = (sums - p * (p + 1) / 2) / (p * (len(values) - p))
    return found


def _unit_parts(values: Tensor) -> Iterator[slice]:
    size = max(1, _AT_ONCE // len(values))
    return (slice(start, start + size) for start in range(0, values.shape[1], size))


def _at_least(values: Tensor) -> Tensor:
    """Return how many images are at least as high as each one, including itself, (n, u), float64."""
    return len(values) + 1 - rank(values, ties="min")


def _constant(values: Tensor) -> Tensor:
    """Return which units are constant, (u,), bool; raise if all are, since none can be chosen."""
    constant = is_constant(values)
    if bool(constant.all()):
        raise ValueError(f"None of {len(constant)} units varies over the {len(values)} images to choose on.")
    return constant


def _choosing_half(codes: Tensor, names: list[Any], seed: int, choose: Array | Sequence[bool] | None) -> Tensor:
    """Return which images to choose on, (n,), bool; raise unless both halves have two images of each label."""
    first = _draw_half(codes, seed) if choose is None else _as_mask(choose, len(codes))
    counts = torch.stack([torch.bincount(codes[half], minlength=len(names)) for half in (first, ~first)])
    few = [names[i] for i in (counts.amin(0) < FEWEST).nonzero().flatten().tolist()]
    if few:
        raise ValueError(
            f"{counted(len(few), 'label')} with fewer than {FEWEST} images in one half: {few[:10]}. Leave out labels "
            f"with fewer than {2 * FEWEST} images, or choose other halves."
        )
    return first


def _draw_half(codes: Tensor, seed: int) -> Tensor:
    """Distribute each label's images at random to two halves, (n,), bool; an odd one goes to the second."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(codes)))
    order = order[codes[order].argsort(stable=True)]  # label by label, shuffled inside
    counts = torch.bincount(codes)
    start = (counts.cumsum(0) - counts)[codes[order]]
    first = torch.zeros(len(codes), dtype=torch.bool)
    first[order] = torch.arange(len(codes)) - start < counts[codes[order]] // 2
    return first


def _as_mask(choose: Array | Sequence[bool], n: int) -> Tensor:
    mask = as_numbers("choose", choose)
    if mask.dtype != torch.bool or mask.shape != (n,):
        raise ValueError(f"choose must be a mask of {n} True or False, not {tuple(mask.shape)} of {mask.dtype}.")
    return mask
