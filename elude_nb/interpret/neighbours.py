"""What an image is like to a model: its nearest neighbours before and after an edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elude_nb._util.checks import check_count, check_kind
from elude_nb.core.edit import Edit
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.data.images import Images, ImageSet
from elude_nb.steering.heads import read_outputs


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest neighbours of one image as the model is, and under edits.

    Attributes
    ----------
    image
        The image.
    among
        The images searched; they are embedded by the model as it is.
    found
        For each name (``"as it is"`` first, then the edits'), the numbers of the neighbours, the nearest first.
    cosines
        For each name, their cosines, in the same order.
    """

    image: Image.Image = field(repr=False)
    among: ImageSet
    found: dict[str, tuple[int, ...]]
    cosines: dict[str, tuple[float, ...]]

    @property
    def labels(self) -> pd.DataFrame:
        """How many neighbours bear each label: one row a name, one column a label."""
        names = self.among.labels or self.among.names
        counts = {name: Counter(names[i] for i in numbers) for name, numbers in self.found.items()}
        columns = sorted({label for count in counts.values() for label in count})
        return pd.DataFrame(
            {label: [count[label] for count in counts.values()] for label in columns}, index=list(counts)
        )


def find_neighbours(
    split: Disentanglement,
    image: Image.Image,
    among: Images,
    edits: dict[str, Edit],
    *,
    k: int = 6,
    outputs: Tensor | None = None,
    batch_size: int = 16,
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
    batch_size
        Images in one forward pass.

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
    photos = split.model.inputs(among)
    check_count("k", k, 1, len(photos))
    contexts = {name: split.edit(edit) for name, edit in edits.items()}  # wrong ones are found before anything runs
    if outputs is None:
        outputs = read_outputs(split.model, photos, batch_size=batch_size)
    if len(outputs) != len(photos):
        raise ValueError(f"outputs has {len(outputs)} rows for {len(photos)} images; take read_outputs of the same.")
    queries = {"as it is": read_outputs(split.model, [image])}
    for name, context in contexts.items():
        with context:
            queries[name] = read_outputs(split.model, [image])
    ranked = {name: _nearest(query, outputs, k) for name, query in queries.items()}
    return Neighbours(
        image, photos, {name: numbers for name, (numbers, _) in ranked.items()}, {n: c for n, (_, c) in ranked.items()}
    )


def _nearest(query: Tensor, outputs: Tensor, k: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    mean = outputs.mean(0)
    cosines = torch.nn.functional.cosine_similarity(query - mean, outputs - mean, dim=1)
    best: Sequence[Tensor] = cosines.topk(k)
    return tuple(best[1].tolist()), tuple(best[0].tolist())
