"""The nearest neighbours of an image, before and after an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_kind
from elude_nb.core.edit import Edit
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.data.images import Images, ImageSet
from elude_nb.scores.fidelity import nearest_neighbours
from elude_nb.steering.heads import read_outputs


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest neighbours of one image as the model is, and under edits.

    Attributes
    ----------
    image
        The image.
    among
        The images searched; their features are those of the model as it is.
    found
        For each name (``"as it is"`` first, then the edits'), the numbers of the neighbours, the nearest first.
    cosines
        For each name, their cosines, in the same order.
    """

    image: Image.Image = field(repr=False)
    among: ImageSet
    found: dict[str, tuple[int, ...]]
    cosines: dict[str, tuple[float, ...]] = field(repr=False)

    @property
    def labels(self) -> pd.DataFrame:
        """How many neighbours have each label: one row a name, one column a label."""
        labels = pd.Series(self.among.labels or self.among.names)
        counts = {name: labels[list(numbers)].value_counts() for name, numbers in self.found.items()}
        return pd.DataFrame(counts).fillna(0).astype(int).T.sort_index(axis=1)


@own_arithmetic()
def find_neighbours(
    split: Disentanglement,
    image: Image.Image,
    among: Images,
    edits: Mapping[str, Edit],
    *,
    k: int = 6,
    outputs: Tensor | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Neighbours:
    """Find the nearest neighbours of an image, as the model is and under each edit.

    Parameters
    ----------
    split
        The split to edit.
    image
        The image whose neighbours are wanted; only it is edited.
    among
        Where to look.
    edits
        Edits by name, controls among them.
    k
        How many neighbours.
    outputs
        The `read_outputs` (n, e) of ``among``, if they are there already.
    batch_size, progress
        In place of the model's own settings.

    Returns
    -------
    Neighbours
        By cosine of features (output and mean patch token), less their mean over ``among``.

    Raises
    ------
    EditError
        If the split cannot carry out an edit.
    ValueError
        If there are fewer than ``k`` images, or ``outputs`` are not theirs.
    """
    check_split(split, "find_neighbours")
    check_kind("edits", edits, Mapping, "a mapping of names to edits, such as {'no cats': Edit.ablate(concept=12)}")
    model = split.model.using(batch_size=batch_size, progress=progress)
    photos = model.inputs(among)
    check_count("k", k, 1, len(photos))
    contexts = {name: split.edit(edit) for name, edit in edits.items()}  # wrong ones are found before anything runs
    if outputs is None:
        outputs = read_outputs(model, photos)
    if len(outputs) != len(photos):
        raise ValueError(f"outputs has {len(outputs)} rows for {len(photos)} images; take read_outputs of the same.")
    queries = {"as it is": read_outputs(model, [image])}
    if outputs.shape[1:] != queries["as it is"].shape[1:]:
        found, wanted = (tuple(each.shape[1:]) for each in (outputs, queries["as it is"]))
        raise ValueError(f"outputs has rows of {found}, not of {wanted}; take read_outputs, as effect(...).before is.")
    for name, context in contexts.items():
        with context:
            queries[name] = read_outputs(model, [image])
    names = photos.labels or photos.names
    ranked = {name: rank_neighbours(query[0], outputs, names, k) for name, query in queries.items()}
    return Neighbours(
        image,
        photos,
        {name: tuple(table["image"]) for name, table in ranked.items()},
        {name: tuple(table["cosine"]) for name, table in ranked.items()},
    )


def rank_neighbours(
    query: Tensor, among: Tensor, labels: Sequence[str], k: int, *, leave_out: int | None = None
) -> pd.DataFrame:
    """Return the nearest of ``among`` (n, e) to ``query`` (e,), as `find_neighbours` ranks them.

    Parameters
    ----------
    query, among
        Features; the mean over ``among`` is taken away from both, then the cosine counts.
    labels
        One for each of ``among``.
    k
        How many; fewer if there are not so many.
    leave_out
        The number of the image itself, if it is among them.

    Returns
    -------
    DataFrame
        ``rank`` from 1, ``image``, ``label`` and ``cosine``.

    Examples
    --------
    >>> rank_neighbours(torch.tensor([1.0, 0.0]), torch.eye(2), ["a", "b"], 1)["label"].tolist()
    ['a']
    """
    mean = among.mean(0)
    itself = None if leave_out is None else torch.tensor([leave_out])
    most = len(among) - (leave_out is not None)
    cosines, numbers = nearest_neighbours((query - mean)[None], among - mean, min(k, most), leave_out=itself)
    table = pd.DataFrame({"rank": range(1, numbers.shape[1] + 1), "image": numbers[0].tolist()})
    return table.assign(label=[labels[number] for number in numbers[0]], cosine=cosines[0].tolist())
