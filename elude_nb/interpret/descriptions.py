"""What concepts without a name are called: the commonest label of their top images, or the most typical image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.words import one_line
from elude_nb.core.names import UniqueNames
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.data.copies import check_enough
from elude_nb.data.decode import endings
from elude_nb.data.images import Images, ImageSet
from elude_nb.interpret.find_units import pool_readouts
from elude_nb.models.forward import overheard
from elude_nb.scores.inputs import is_constant
from elude_nb.scores.labels import Labels
from elude_nb.scores.similarity import best_images, of_few

_SHOWN = 6  # images that a description counts labels over, at most: about as many as pictures show
_LONGEST = 40  # letters of an image's name, which may be a sentence


@own_arithmetic()
def describe_concepts(
    split: Disentanglement,
    images: Images,
    *,
    labels: Labels | None = None,
    tokens: str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> UniqueNames:
    """Describe each concept by its top images: ``"rocket-like, 4 of 6 images"``, or ``"like IMG_0032"``.

    A description says what is there, not that it is more than chance; for that there is `name_concepts`, which
    describes the concepts as well. Descriptions are shown where a concept has no name. They are no names: edits,
    `Disentanglement.concepts_named` and scores do not know them.

    Parameters
    ----------
    split, images, tokens, batch_size, progress
        As for `name_concepts`.
    labels
        One an image; by default those of the images. Where there are none, or no two top images have the same, the name
        of the first top image is the description.

    Returns
    -------
    UniqueNames
        Without names, and with ``descriptions`` of all concepts that are not the same on all images:
        ``split = split.with_names(describe_concepts(split, images))``.

    Raises
    ------
    ValueError
        If there are fewer than two different images, not as many labels, or the routing has no concepts that go through
        all channels.
    """
    check_split(split, "describe_concepts")
    split = split.using(batch_size=batch_size, progress=progress)
    photos = split.model.inputs(images)
    given = photos.labels if labels is None else labels
    words = None if given is None else as_words(given).fillna("").tolist()
    if words is not None and len(words) != len(photos):
        raise ValueError(f"{len(words)} labels were given for {len(photos)} images; give one each.")
    values, once = read_concepts(split, photos, tokens)
    return describe(values, once, words, photos.names)


def as_words(labels: Labels) -> pd.Series[Any]:
    """Return labels as text without blanks at the ends; those that are missing stay so."""
    given = pd.Series(list(labels.cpu().numpy() if isinstance(labels, Tensor) else labels), dtype=object)
    return given.where(given.isna(), given.astype(str).str.strip())


def read_concepts(split: Disentanglement, images: ImageSet, tokens: str | None) -> tuple[Tensor, Tensor]:
    """Return each concept at each image's highest token, (n, g), and which images are no copies of others, (m,)."""
    with overheard(split.model, wanted=False) as heard:
        values = pool_readouts(split, images, [(split.concept_readout(), torch.tensor(1))], tokens)
    return values, heard.distinct(images)


def describe(values: Tensor, once: Tensor, labels: Sequence[str] | None, names: Sequence[str]) -> UniqueNames:
    """Return descriptions from the values of concepts (n, g), of the images that are no copies (m,).

    Labels are (n,), empty where there is none.
    """
    top = of_few(_SHOWN, len(once))
    check_enough("top", top, len(once), len(values))
    best, constant = once[best_images(values[once], top)].T.tolist(), is_constant(values).tolist()
    found = {c: _describe([*mine], labels, names) for c, mine in enumerate(best) if not constant[c]}
    return UniqueNames(descriptions=found)


def described(split: Disentanglement, values: Tensor, once: Tensor, images: ImageSet) -> Disentanglement:
    """Return a split with descriptions by these images, see `describe`; as it is if it has some, or images are few."""
    if split.names.descriptions or len(once) < 2:
        return split
    labels = None if images.labels is None else list(images.labels)
    return split.with_names(describe(values, once, labels, images.names))


def _describe(best: list[int], labels: Sequence[str] | None, names: Sequence[str]) -> str:
    counted = (
        Counter(label for label in (labels[i].strip() for i in best) if label) if labels is not None else Counter()
    )
    label, count = counted.most_common(1)[0] if counted else ("", 0)
    if count > 1:  # of equal ones the first, which has the better image
        return f"{one_line(label)}-like, {count} of {len(best)} images"
    name = names[best[0]]
    if re.fullmatch(r"image \d+", name):  # what an image without a name is called
        return ""
    stem = PurePath(name).stem if PurePath(name).suffix.lower() in endings() else one_line(name)
    return f"like {stem if len(stem) <= _LONGEST else stem[: _LONGEST - 1] + '…'}"
