"""Exemplars: the top-activating images of a channel and of each of its sub-units, with heat maps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_whole
from elude_nb._util.words import counted, one_line
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.names import UniqueNames
from elude_nb.core.readout import is_flat
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.data.copies import check_enough
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.errors import SiteError
from elude_nb.models.forward import overheard, reference
from elude_nb.models.load import Model
from elude_nb.scores.inputs import as_embeddings
from elude_nb.scores.similarity import best_images, top_similarity

WHOLE_CHANNEL = -1
REST = "rest (unit 0)"

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Exemplar:
    """One of a unit's top-activating images.

    Attributes
    ----------
    image
        As the model sees it, before its colours are normalised: (h, w, 3) in [0, 1].
    heat
        The unit's activation at each patch, (rows, columns), turned round for a unit that is low on its concept.
    index
        Number of the image in its set.
    value
        The unit's largest activation in it.
    """

    image: Pixels = field(repr=False)
    heat: Pixels = field(repr=False)
    index: int
    value: float


@dataclass(frozen=True, eq=False)
class Exemplars:
    """The top-activating images of one channel before (the whole channel) and after (each sub-unit).

    Attributes
    ----------
    channel
        The channel.
    rows
        For each unit in turn its exemplars, the highest activation first; the whole channel comes first, and unit 0
        (the rest) last. A unit that is the same everywhere has none.
    names
        A name for each row.
    units
        The rows' unit numbers; -1 is the whole channel.
    similarity
        For each row, the mean pairwise cosine of its images' embeddings (less their mean over the set); NaN if there
        are none.
    """

    channel: int
    rows: tuple[tuple[Exemplar, ...], ...]
    names: tuple[str, ...]
    units: tuple[int, ...]
    similarity: tuple[float, ...]

    def __repr__(self) -> str:
        rows = f"{counted(len(self.rows), 'row')} of {counted(len(self.rows[0]), 'image')}"
        return f"Exemplars(channel {self.channel}: {rows})"


@knows_arguments
@own_arithmetic()
def find_exemplars(
    split: Disentanglement,
    images: Images,
    channel: int,
    *,
    count: int = 8,
    units: Sequence[int] | int = 5,
    embeddings: Tensor | Model | str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Exemplars:
    """Find the top-activating images of a channel and of its sub-units, with heat maps over patches.

    Of images that are copies, the first counts; a warning says how many there are.

    Parameters
    ----------
    split
        The disentanglement; its site needs patch tokens or positions of a map.
    images
        Where to look.
    channel
        The channel.
    count
        Images for each row.
    units
        Which units, or how many: then the strongest is taken first, next those that are strong and unlike the ones
        already taken, and unit 0 in the end.
    embeddings
        What judges how alike images are: reference embeddings (n, e), a `Model`, or the name of one, as in
        `elude_nb.score`; by default the model's own output.
    batch_size, progress
        In place of the model's own settings.

    Raises
    ------
    ValueError
        If the channel was not split or does not exist, or there are fewer than ``count`` images.
    """
    check_split(split, "find_exemplars")
    split = split.using(batch_size=batch_size, progress=progress)
    photos = as_image_set(images)
    check_count("channel", channel, 0, split.site.channels - 1)
    check_count("count", count, 2, len(photos))
    if split.site.layout.grid is None:
        raise SiteError(f"{split.site.name!r} has no patches to draw heat maps over; choose another site.")
    judged = reference(embeddings, photos, split.model.progress)
    with overheard(split.model, wanted=embeddings is None) as outputs:
        chosen, names, maps = read_channel(split, photos, channel, units)
    distinct = outputs.distinct(photos)
    check_enough("count", count, len(distinct), len(photos))
    return arrange_exemplars(
        channel,
        chosen,
        names,
        maps,
        grid=split.site.layout.grid,
        picture=lambda index: split.model.picture(photos[index]).numpy(),
        labels=photos.labels,
        embeddings=outputs.embeddings(distinct) if judged is None else as_embeddings(judged, len(photos)),
        count=count,
        distinct=distinct,
    )


def read_channel(
    split: Disentanglement, inputs: ImageSet, channel: int, units: Sequence[int] | int
) -> tuple[list[int], list[str], list[Tensor]]:
    """Return which sub-units were chosen, the names of all rows, and the rows' activations (n, t).

    The first row is the whole channel, the others are the sub-units, all less their means; a sub-unit that is low on
    its concept is turned round.

    Raises
    ------
    ValueError
        If the channel was not split, or has no such unit.
    """
    if not bool(split.routing.is_split()[channel]):
        raise ValueError(f"Channel {channel} was {split.routing.reasons[channel]}; see .channels for split ones.")
    several = add_rest(choose_units(split, channel, units)) if isinstance(units, int) else units
    chosen = [check_whole("unit", unit) for unit in several]
    every = split.units.loc[split.units["channel"] == channel, "unit"].tolist()
    unknown = [unit for unit in chosen if unit not in every]
    if unknown:
        raise ValueError(f"Channel {channel} has no unit {unknown[0]}; it has {every}, of which 0 is the rest.")
    values = split.activations(inputs, [(channel, unit) for unit in every], tokens="patch").float()  # (n, t, u)
    mean = split.book.channel_mean()[channel].float()  # sub-units are centred already; the channel and unit 0 are not
    signs = split.signs[channel].tolist()
    maps = [signs[unit] * (values[..., every.index(unit)] - mean * (unit == 0)) for unit in chosen]
    concepts = [NO_CONCEPT, *split.routing.concepts[channel].tolist()]
    share = float(split.unit_shares[channel, 0])
    names = [name_of_unit(unit, concepts[unit], split.names, low=signs[unit] < 0, share=share) for unit in chosen]
    return chosen, ["whole channel", *names], [values.sum(-1) - mean, *maps]


def arrange_exemplars(
    channel: int,
    units: Sequence[int],
    names: Sequence[str],
    maps: Sequence[Tensor],
    *,
    grid: tuple[int, int],
    picture: Callable[[int], Pixels],
    labels: Sequence[str] | None,
    embeddings: Tensor,
    count: int,
    distinct: Tensor,
) -> Exemplars:
    """Return the ``count`` images on which each map (n, t) is highest; the first map is the whole channel's.

    ``names`` are of all rows, ``units`` of those after the first; ``picture`` gives an image by its number. Only the
    images numbered in ``distinct`` are looked at: the others are copies.
    """
    count = min(count, len(distinct))
    rows, similarity, titles = list[tuple[Exemplar, ...]](), list[float](), list[str]()
    for name, heat in zip(names, maps, strict=True):
        if rows and is_flat(heat, maps[0]):
            rows.append(())
            similarity.append(math.nan)
            titles.append(f"{name}\nthe same in every image")
            continue
        highest = heat.amax(1)
        best = distinct[best_images(highest[distinct], count)].tolist()
        rows.append(tuple(Exemplar(picture(i), heat[i].view(*grid).numpy(), i, float(highest[i])) for i in best))
        alike = top_similarity(highest[distinct, None], embeddings[distinct], count).item() if count > 1 else math.nan
        similarity.append(alike)
        titles.append(name if labels is None else f"{name}\n{count_labels(labels[i] for i in best)}")
    return Exemplars(channel, tuple(rows), tuple(titles), (WHOLE_CHANNEL, *units), tuple(similarity))


def choose_units(split: Disentanglement, channel: int, number: int) -> list[int]:
    """Return up to ``number`` sub-units of a channel: strong ones whose concepts are unlike each other."""
    check_count("units", number)
    table = split.live_units
    return choose_among(table[table["channel"] == channel], split.book, number)


def add_rest(units: Sequence[int]) -> list[int]:
    """Return the units that are shown of a channel: the sub-units chosen and unit 0, or none if it is not split."""
    return [*units, 0] if units else []


def choose_among(table: pd.DataFrame, book: ConceptBook, number: int) -> list[int]:
    """Return up to ``number`` of a channel's sub-units, the strongest first, then strong ones unlike those taken.

    The table has the columns ``unit``, ``concept`` and ``mean_on_concept``.
    """
    units: list[int] = table["unit"].tolist()
    if table["concept"].isna().any():
        return units[:number]
    strength = torch.tensor(table["mean_on_concept"].to_numpy(dtype=np.float64)).abs()
    directions = book.directions()[table["concept"].tolist()].double()
    chosen: list[int] = []
    novelty = torch.ones_like(strength)
    while len(chosen) < min(number, len(units)):
        worth = strength * novelty
        worth[chosen] = -1
        chosen.append(int(worth.argmax()))
        novelty = torch.minimum(novelty, 1 - (directions @ directions[chosen[-1]]).clamp(min=0))
    return [units[i] for i in chosen]


def name_of_unit(unit: int, concept: int, names: UniqueNames, *, low: bool = False, share: float = math.nan) -> str:
    """Return a unit's name: ``"sub-unit 3, concept 12"``, with what the concept is called; ``(low)`` if it is low.

    Unit 0 has its ``share`` of the channel's variance in its name, if that is given.
    """
    if unit == 0:
        return REST + ("" if math.isnan(share) else f", {share:.1%} of the variance".replace("-0.0%", "0.0%"))
    return f"sub-unit {unit}" + (
        f", {names.title(concept, number=True)}{' (low)' if low else ''}" if concept != NO_CONCEPT else ""
    )


def count_labels(labels: Iterable[str]) -> str:
    """Say how often each label occurs, the three commonest by name.

    Examples
    --------
    >>> count_labels(["cat", "dog", "cat"])
    'cat 2, dog 1'
    """
    counted = Counter(map(one_line, labels)).most_common()
    shown = [f"{label} {number}" for label, number in counted[:3]]
    others = sum(number for _, number in counted[3:])
    return ", ".join([*shown, f"others {others}"] if others else shown)


def crop_at(picture: Array, patch: int, grid: tuple[int, int], share: float) -> Array:
    """Return a square of a picture (h, w, 3) around a patch, moved inwards where it would leave the picture."""
    height, width = picture.shape[:2]
    side = max(1, round(share * min(height, width)))
    row, column = divmod(patch, grid[1])
    top = round((row + 0.5) / grid[0] * height - side / 2)
    left = round((column + 0.5) / grid[1] * width - side / 2)
    top, left = min(max(top, 0), height - side), min(max(left, 0), width - side)
    return picture[top : top + side, left : left + side]
