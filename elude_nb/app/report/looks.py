"""What a report looks at: a gallery where the site has patches, else whole images, each as a map of one patch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.progress import progress_bar
from elude_nb.core.result import Disentanglement
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.interpret.exemplars import Exemplars, arrange_exemplars, choose_units, name_of_unit
from elude_nb.interpret.gallery import Gallery, picture_of
from elude_nb.models.forward import overheard

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Looks(Protocol):
    """What the pages of a report are made of."""

    grid: tuple[int, int]
    images: ImageSet

    @property
    def pictures(self) -> Pictures:
        """As the model sees them, (n, h, w, 3)."""
        ...  # pragma: no cover

    @property
    def concept_maps(self) -> Tensor | None:
        """Read-out of each concept at every patch, (n, t, g); ``None`` if no concept goes through all channels."""
        ...  # pragma: no cover

    def channel(self, channel: int, count: int, units: int) -> tuple[Exemplars, dict[int, pd.DataFrame]]:
        """Return the best images of a channel and its sub-units, and where each sub-unit's contributions arise."""
        ...  # pragma: no cover


def look_at(split: Disentanglement, images: Images, *, max_memory: float, progress: bool) -> Looks:
    """Run the images and return what there is to be seen.

    Raises
    ------
    ValueError
        If there are not two images, or not even two fit into ``max_memory``.
    """
    photos = as_image_set(images)
    if len(photos) < 2:
        raise ValueError(f"A report compares images with each other; it was given {len(photos)}: give two at least.")
    if split.site.layout.grid is None:
        return WholeImages(split, photos, progress=progress)
    return Patches(Gallery(split, photos, max_memory=max_memory).fill(progress=progress))


class Patches:
    """A gallery that is filled: pictures with heat maps."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self.grid, self.images = gallery.grid, gallery.images

    @property
    def pictures(self) -> Pictures:
        """See `Looks`."""
        return self._gallery.pictures

    @property
    def concept_maps(self) -> Tensor | None:
        """See `Looks`."""
        return self._gallery.concept_maps if self._gallery.has_concepts else None

    def channel(self, channel: int, count: int, units: int) -> tuple[Exemplars, dict[int, pd.DataFrame]]:
        """See `Looks`."""
        view = self._gallery.channel(channel)
        return self._gallery.exemplars(view, count=count, units=units), self._gallery.depths(view)


class WholeImages:
    """A site with one vector an image has no patches: an image as a whole is bright or dark."""

    grid = (1, 1)

    def __init__(self, split: Disentanglement, images: ImageSet, *, progress: bool) -> None:
        self.images, self._split = images, split
        with overheard(split.model) as outputs:
            self._values = _largest(split.activations(images, progress=progress) * _signs(split))  # (n, u)
        self._embeddings = outputs.embeddings()
        bar = progress_bar(images, description="pictures", show=progress, unit="image")
        self._pictures = [picture_of(split.model, image) for image in bar]

    @property
    def pictures(self) -> Pictures:
        """See `Looks`."""
        return np.stack(self._pictures)

    @cached_property
    def concept_maps(self) -> Tensor | None:
        """See `Looks`."""
        if not bool((self._split.routing.concepts != NO_CONCEPT).any()):
            return None
        return _largest(self._split.concept_activations(self.images))[:, None]

    def channel(self, channel: int, count: int, units: int) -> tuple[Exemplars, dict[int, pd.DataFrame]]:
        """See `Looks`; where contributions arise is left out."""
        split = self._split
        rows = (split.routing.rows()[0] == channel).nonzero().flatten()
        numbers = split.routing.rows()[1][rows].tolist()
        signs = split.signs[channel]
        chosen = choose_units(split, channel, units)
        concepts: Sequence[int] = [NO_CONCEPT, *split.routing.concepts[channel].tolist()]
        whole = (self._values[:, rows] * signs[numbers]).sum(1) - float(split.book.channel_mean()[channel])
        maps = [whole, *(self._values[:, rows[numbers.index(unit)]] for unit in chosen)]
        names = [name_of_unit(unit, concepts[unit], low=bool(signs[unit] < 0)) for unit in chosen]
        found = arrange_exemplars(
            channel,
            chosen,
            ["whole channel", *names],
            [values[:, None] for values in maps],
            grid=self.grid,
            picture=self._in_colours,
            labels=self.images.labels,
            embeddings=self._embeddings,
            count=count,
        )
        return found, {}

    def _in_colours(self, index: int) -> Any:
        return self._pictures[index].astype(np.float32) / 255


def _signs(split: Disentanglement) -> Tensor:
    """Return which way each row of ``split.units`` speaks, (u,)."""
    channels, units = split.routing.rows()
    return split.signs[channels, units]


def _largest(values: Tensor) -> Tensor:
    """Return (n, u): of an image's tokens the largest value."""
    return values if values.ndim == 2 else torch.amax(values, 1)
