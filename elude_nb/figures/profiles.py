"""The profile of a concept: in which blocks it arises, and where in images it lies."""

from __future__ import annotations

from typing import Any

import numpy as np

from elude_nb.figures.theme import FAINT, SEQUENCE, Picture, house_style
from elude_nb.gallery import Gallery
from elude_nb.profiles import depth_profile


def concept_profile(gallery: Gallery, concept: int) -> Picture:
    """Show in which blocks a concept's contributions arise (left), and where in the images it lies on the mean (right).

    Parameters
    ----------
    gallery
        Images that are ready.
    concept
        The concept.

    Raises
    ------
    ValueError
        If there is no such concept, it has no sub-units, or no image is ready.
    """
    split = gallery.split
    table = depth_profile(split, concept)
    if not len(gallery):
        raise ValueError("No image is ready; call .fill() first.")
    mean = gallery.concept_maps[..., concept].mean(0).view(*gallery.grid).numpy()
    name = split.names.get(concept)
    with house_style():
        picture = Picture(figsize=(8.4, 3.0))
        depth, space = picture.subplots(1, 2, gridspec_kw={"width_ratios": [2.4, 1], "wspace": 0.12})
        width = 0.8 / table.shape[1]
        for number, part in enumerate(table.columns):
            places = np.arange(len(table)) + (number - (table.shape[1] - 1) / 2) * width
            label = str(part).replace("mlp", "MLP")
            depth.bar(places, table[part], width * 0.94, color=SEQUENCE[number % len(SEQUENCE)], label=label)
        depth.axhline(0, color=FAINT, linewidth=0.8)
        depth.set_xticks(range(len(table)), [str(block) for block in table.index])
        depth.set_xlabel("block in which the contribution arises")
        depth.set_ylabel("contribution, in standard\ndeviations of the channels")
        depth.set_title(f"Concept {concept}" + (f": {name}" if name else ""))
        depth.legend(loc="best", fontsize=8)
        shown = space.imshow(mean, cmap="cividis")
        space.set(xticks=[], yticks=[])
        space.spines[:].set_visible(False)
        space.set_title(f"mean over {len(gallery)} images", loc="center", fontsize=9)
        bar: Any = picture.colorbar(shown, ax=space, shrink=0.8)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7.5)
    total = table.sum(axis=1)
    picture.alt = (
        f"Concept {concept}: contributions by block, most from block {total.idxmax()}; "
        f"and its mean read-out over {len(gallery)} images at each patch."
    )
    return picture
