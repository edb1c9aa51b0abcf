"""A map of concepts: laid out in the plane, near each other if they drive the channels alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from elude_nb._util.checks import check_count, check_kind
from elude_nb._util.words import counted
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.interpret.exemplars import crop_at
from elude_nb.interpret.gallery import Gallery, Pictures
from elude_nb.scores.similarity import best_images

_PERPLEXITY = 12.0
_LARGEST_SIDE = 4096  # pixels of a thumbnail
_CROP = 0.4  # of the image's side: 90 pixels of 224

Positions = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Atlas:
    """A map of concepts.

    Attributes
    ----------
    positions
        Of each concept, (g, 2), centred, the larger extent being 1.
    concepts
        One row a concept: ``name``, ``title`` (see `Disentanglement.concept_title`), ``tokens`` of the
        discovery, their ``share``, and in how many ``sub_units`` of how many ``channels`` it is.
    units
        One row a sub-unit that belongs to a concept: ``channel``, ``unit``, ``concept``.
    best
        Numbers of the images on which each concept is strongest, the best first, (g, c); c is 0 without a gallery.
    thumbnails
        What surrounds the patch on which each concept is strongest, (g, side, side, 3), uint8; none without a gallery.
    """

    positions: Positions
    concepts: pd.DataFrame
    units: pd.DataFrame
    best: Numbers
    thumbnails: Pictures

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        numbers = {"concept": len(self), "sub-unit": len(self.units), "thumbnail": len(self.thumbnails)}
        return f"Atlas({', '.join(counted(number, noun) for noun, number in numbers.items())})"


def lay_out(
    split: Disentanglement, gallery: Gallery | None = None, *, count: int = 4, side: int = 56, seed: int = 0
) -> Atlas:
    """Lay the concepts of a split out by the similarity of their directions.

    t-SNE (van der Maaten and Hinton, 2008) on cosine distances, begun at the two first principal components, so that
    the same split gives the same map. Distances between far concepts mean nothing; neighbourhoods do.

    Parameters
    ----------
    split
        The disentanglement.
    gallery
        Images of this split that are ready; without, the atlas has no images and no thumbnails.
    count, side
        How many images of each concept (fewer if fewer are ready), and the pixels of a thumbnail's side.
    seed
        Of the layout.

    Raises
    ------
    ValueError
        If ``seed`` is negative, or the gallery has no image ready, or is of another split or of one without concepts.
    """
    check_split(split)
    check_count("seed", seed, 0)
    check_count("count", count)
    check_count("side", side, 1, _LARGEST_SIDE)
    best: Numbers = np.zeros((len(split.book), 0), np.int64)
    thumbnails: Pictures = np.zeros((0, side, side, 3), np.uint8)
    if gallery is not None:
        _check_gallery(gallery, split)
        best, thumbnails = cut_thumbnails(gallery, count, side)
    units = split.units[["channel", "unit", "concept"]].dropna().astype("int64").reset_index(drop=True)
    return Atlas(_positions(split, seed), _concepts(split, units), units, best, thumbnails)


def spread(positions: Positions, side: float) -> Positions:
    """Push squares of this side apart until none hides another, each as little as it takes; return where they are.

    ``positions`` are their centres, (g, 2). After 300 rounds it is left as it is.
    """
    found = np.array(positions, dtype=np.float64)
    for _ in range(300):
        apart = found[:, None] - found[None]  # (g, g, 2)
        overlap: Any = np.maximum(side - np.abs(apart), 0)
        both: Any = (overlap > 1e-9).all(2)
        np.fill_diagonal(both, val=False)
        if not both.any():
            break
        # Of two that overlap each goes half the shorter way out; two at one place go by their order.
        order = np.sign(np.arange(len(found))[:, None] - np.arange(len(found))[None])[..., None]
        way = np.where(apart == 0, order, np.sign(apart))
        shorter = overlap == overlap.min(2, keepdims=True)
        found += (0.5 * way * overlap * shorter * both[..., None]).sum(1) / np.maximum(both.sum(1), 1)[:, None]
    return found


def _positions(split: Disentanglement, seed: int) -> Positions:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    directions = split.book.directions().double().numpy()
    found: Any = np.zeros((len(directions), 2))
    if len(directions) == 2:
        found[:, 0] = 0, 1
    if len(directions) > 2:
        found = PCA(2, random_state=seed).fit_transform(directions)
    if len(directions) > 4:
        start = 1e-4 * found / max(float(found.std()), 1e-12)
        perplexity = min(_PERPLEXITY, (len(directions) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init=start, metric="cosine", random_state=seed)
        found = PCA(2, random_state=seed).fit_transform(tsne.fit_transform(directions))  # the longer way lies flat
    found = found - (found.max(0) + found.min(0)) / 2
    positions: Positions = np.asarray(found / max(float(np.ptp(found, axis=0).max()), 1e-12), dtype=np.float64)
    return positions


def _concepts(split: Disentanglement, units: pd.DataFrame) -> pd.DataFrame:
    every = range(len(split.book))
    tokens = split.book.counts.numpy()
    grouped = units.groupby("concept")["channel"]
    return pd.DataFrame(
        {
            "name": [split.names.get(concept, "") for concept in every],
            "title": [split.concept_title(concept, number=True) for concept in every],
            "tokens": tokens,
            "share": tokens / max(int(tokens.sum()), 1),
            "sub_units": grouped.size().reindex(every, fill_value=0).to_numpy(),
            "channels": grouped.nunique().reindex(every, fill_value=0).to_numpy(),
        },
        index=pd.RangeIndex(len(split.book), name="concept"),
    )


def _check_gallery(gallery: Gallery, split: Disentanglement) -> None:
    check_kind("gallery", gallery, Gallery, "a Gallery of images")
    if gallery.split.identity != split.identity:
        raise ValueError(f"The gallery shows {gallery.split!r}, which is another split than this {split!r}.")
    if not gallery.has_concepts:
        raise ValueError("These sub-units belong to no concepts across channels; lay them out without a gallery.")
    if not len(gallery):
        raise ValueError("Thumbnails need images that are ready; call the gallery's .fill() first.")


def cut_thumbnails(gallery: Gallery, count: int, side: int) -> tuple[Numbers, Pictures]:
    """Return each concept's top-activating images, (g, c), and a thumbnail of its first, (g, side, side, 3)."""
    highest, patches = gallery.concept_maps.max(1)  # (n, g) twice
    distinct = gallery.distinct
    best = distinct[best_images(highest[distinct], min(count, len(distinct)))].T  # (g, c)
    thumbnails = []
    for concept, image in enumerate(best[:, 0].tolist()):
        crop = crop_at(gallery.pictures_of(image), int(patches[image, concept]), gallery.grid, _CROP)
        thumbnails.append(np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.LANCZOS)))
    return best.numpy(), np.stack(thumbnails)
