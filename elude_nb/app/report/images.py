"""The images of a report: a gallery where the site has patches, else whole images, each as a map of one patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.progress import announced, progress_bar
from elude_nb._util.words import counted
from elude_nb.core.result import Disentanglement
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.interpret.descriptions import described
from elude_nb.interpret.exemplars import Exemplars, add_rest, arrange_exemplars, choose_units, name_of_unit
from elude_nb.interpret.gallery import picture_of
from elude_nb.interpret.scored_gallery import ScoredGallery
from elude_nb.models.forward import overheard
from elude_nb.scores.overview import score

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


_CERTIFICATE, _CHANNEL = 50, 0.3
"""A certificate, and a channel that can be opened, take about as long as so many images (DINOv2 on a CPU)."""


@dataclass(frozen=True, eq=False)
class ReportImages:
    """What a report shows of its images.

    Attributes
    ----------
    images
        Those that are shown.
    pictures
        As the model sees them, (n, h, w, 3).
    grid
        Rows and columns of patches.
    concept_maps
        Read-out of each concept at every patch, (n, t, g); ``None`` if no concept goes through all channels.
    channel
        Returns of a channel, and at most so many images and sub-units, the top-activating images, and where each
        sub-unit's contributions arise.
    distinct
        Numbers of the images that are no copies of earlier ones.
    scores
        Returns what `elude_nb.score` does on these images, of the ``k`` best, without another pass where the tokens of
        the split are patches.
    """

    images: ImageSet
    pictures: Pictures
    grid: tuple[int, int]
    concept_maps: Tensor | None
    channel: Callable[[int, int, int], tuple[Exemplars, dict[int, pd.DataFrame]]]
    distinct: Tensor
    scores: Callable[[int], pd.DataFrame]


def run_images(
    split: Disentanglement, images: Images, *, max_memory: float, seed: int = 0, channels: int = 0
) -> ReportImages:
    """Run the images and return what a report of so many ``channels`` shows of them; say how long the report will take.

    Raises
    ------
    ValueError
        If there are not two images, or not even two fit into ``max_memory``.
    """
    photos = as_image_set(images)
    if len(photos) < 2:
        raise ValueError(f"A report compares images with each other; it was given {len(photos)}: give two at least.")
    if split.site.layout.grid is None:
        return _run_whole_images(split, photos, seed)
    gallery = ScoredGallery(split, photos, max_memory=max_memory, seed=seed)
    n, model = len(gallery.images), split.model
    what = f"report: {counted(n, 'image')}, {counted(channels, 'channel')}"
    worth = (n + _CERTIFICATE + _CHANNEL * channels) / min(n, model.batch_size)  # batches
    steps = announced(gallery.steps(model.batch_size), what, lambda first: first * worth, show=model.progress)
    with progress_bar(description="gallery", total=n, show=model.progress, unit="image") as bar:
        for done in steps:
            bar.update(done)

    def channel(number: int, count: int, units: int) -> tuple[Exemplars, dict[int, pd.DataFrame]]:
        view = gallery.channel(number)
        return gallery.exemplars(view, count=count, units=units), gallery.depths(view)

    maps = gallery.concept_maps if gallery.has_concepts else None
    return ReportImages(gallery.images, gallery.pictures, gallery.grid, maps, channel, gallery.distinct, gallery.scores)


def _run_whole_images(split: Disentanglement, images: ImageSet, seed: int) -> ReportImages:
    """Return images without patches: one value of a unit an image; where contributions arise is left out."""
    channels, units = split.routing.rows()
    with overheard(split.model) as outputs:
        values = _largest(split.activations(images) * split.signs[channels, units])  # (n, u)
    distinct = outputs.distinct(images)
    embeddings = outputs.embeddings(distinct)
    bar = progress_bar(images, description="pictures", show=split.model.progress, unit="image")
    pictures = np.stack([picture_of(split.model, image) for image in bar])
    maps = None
    if bool((split.routing.concepts != NO_CONCEPT).any()):
        largest = _largest(split.concept_activations(images))
        maps, split = largest[:, None], described(split, largest, distinct, images)

    def channel(number: int, count: int, max_units: int) -> tuple[Exemplars, dict[int, pd.DataFrame]]:
        rows = (channels == number).nonzero().flatten()
        numbers, signs = units[rows].tolist(), split.signs[number]
        chosen = add_rest(choose_units(split, number, max_units))
        concepts = [NO_CONCEPT, *split.routing.concepts[number].tolist()]
        mean = float(split.book.channel_mean()[number])  # all in unit 0
        whole = (values[:, rows] * signs[numbers]).sum(1) - mean
        parts = [values[:, rows[numbers.index(unit)]] - mean * (unit == 0) for unit in chosen]
        share = float(split.unit_shares[number, 0])
        names = [
            name_of_unit(unit, concepts[unit], split.names, low=bool(signs[unit] < 0), share=share) for unit in chosen
        ]
        found = arrange_exemplars(
            number,
            chosen,
            ["whole channel", *names],
            [each[:, None] for each in (whole, *parts)],
            grid=(1, 1),
            picture=lambda index: pictures[index].astype(np.float32) / 255,
            labels=images.labels,
            embeddings=embeddings,
            count=count,
            distinct=distinct,
        )
        return found, {}

    return ReportImages(
        images, pictures, (1, 1), maps, channel, distinct, lambda k: score(split, images, k=k, seed=seed)
    )


def _largest(values: Tensor) -> Tensor:
    """Return (n, u): of an image's tokens the largest value."""
    return values if values.ndim == 2 else torch.amax(values, 1)
