"""Attribute swaps: whether a unit that stands for an attribute follows it when one thing in an image is exchanged.

Two images differ in one attribute only, such as the shape of what is drawn. The unit matched to the attribute that left
should fall, that of the attribute that came should rise, and the others should stay (as TAPAScore asks, arXiv
2606.24716). Units are matched on other images than those that are swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from elude_nb.scores.inputs import Array, as_activations, as_codes
from elude_nb.scores.labels import d_prime


def match_units(activations: Array, labels: Sequence[Any]) -> pd.DataFrame:
    """Return for each label the unit that tells its images best from the others'.

    Parameters
    ----------
    activations
        (n, u).
    labels
        One an image, of at least two kinds.

    Returns
    -------
    DataFrame
        One row a label: ``label``, ``unit`` (the column with the largest `elude_nb.scores.labels.d_prime`) and
        ``d_prime``. Two labels may have one unit.
    """
    values = as_activations(activations).double()
    codes, names = as_codes(labels, len(values), classes=2)
    rows = []
    for code, name in enumerate(names):
        distance = d_prime(values, codes == code)
        unit = int(distance.argmax())
        rows.append({"label": name, "unit": unit, "d_prime": float(distance[unit])})
    return pd.DataFrame(rows)


def swap_response(
    before: Array, after: Array, labels_before: Sequence[Any], labels_after: Sequence[Any], matched: pd.DataFrame
) -> pd.DataFrame:
    """Return how the matched units answer to swaps, one row a label.

    Parameters
    ----------
    before, after
        Activations of all units, (n, u) each: of the images as they were, and with one attribute exchanged.
    labels_before, labels_after
        That attribute, one a pair.
    matched
        From `match_units`, on other images.

    Returns
    -------
    DataFrame
        ``label``, ``unit``; ``follows``, the share of the pairs with the label in which its unit moves as it should
        (falls where the label leaves, rises where it comes; 0.5 is chance); ``moves``, by how many standard deviations
        (over all images) in that direction; ``others_move``, the mean absolute change of the units of labels that are
        in neither image; ``selectivity``, ``moves - others_move``. NaN where no pair tells.

    Raises
    ------
    ValueError
        If shapes or numbers of labels differ.
    """
    first, second = as_activations(before).double(), as_activations(after).double()
    if first.shape != second.shape or not len(first) == len(labels_before) == len(labels_after):
        raise ValueError(
            f"{tuple(first.shape)} and {tuple(second.shape)} activations with {len(labels_before)} and "
            f"{len(labels_after)} labels: give as many of each pair's two images."
        )
    spread = torch.cat([first, second]).std(0, correction=0)
    change = torch.where(spread > 0, (second - first) / spread.clamp(min=1e-12), 0.0)  # (n, u)
    left, came = list(labels_before), list(labels_after)
    units = dict(zip(matched["label"].tolist(), matched["unit"].tolist(), strict=True))
    rows = []
    for label, unit in units.items():
        direction = torch.tensor([float(to == label) - float(was == label) for was, to in zip(left, came, strict=True)])
        told = direction != 0  # not where it is in both images or in neither
        along = (change[:, unit] * direction)[told]
        others = _of_others(change, units, label, left, came)[told]
        moves, others_move = float(along.mean()), float(others.nanmean())
        rows.append(
            {"label": label, "unit": unit, "follows": float((along > 0).double().mean()), "moves": moves,
             "others_move": others_move, "selectivity": moves - others_move}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _of_others(change: Tensor, units: dict[Any, int], label: Any, left: list[Any], came: list[Any]) -> Tensor:
    """Return for each pair the mean absolute change of units of labels in neither image, (n,); NaN without any."""
    found = []
    for number, (one, other) in enumerate(zip(left, came, strict=True)):
        rest = [unit for name, unit in units.items() if name not in {one, other, label}]
        found.append(change[number, rest].abs().mean() if rest else change.new_tensor(torch.nan))
    return torch.stack(found)
