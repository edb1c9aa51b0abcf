"""The profile of a concept: in which blocks it arises, and where in images it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import Tensor

from elude_nb.checks import check_kind
from elude_nb.disentanglement import Disentanglement
from elude_nb.figures.theme import FAINT, SEQUENCE, Picture, house_style
from elude_nb.gallery import Gallery
from elude_nb.profiles import depth_profile, spatial_profile


def concept_profile(of: Gallery | Disentanglement, concept: int, *, maps: Tensor | None = None) -> Picture:
    """Show in which blocks a concept's contributions arise (left), and where in images it lies on the mean (right).

    Parameters
    ----------
    of
        A gallery with images that are ready, or a split.
    concept
        The concept.
    maps
        Its read-out at every patch of some images, (n, t); by default the gallery's. A split without maps is shown by
        its depth alone.

    Raises
    ------
    ValueError
        If there is no such concept, it has no sub-units, no image is ready, or the maps are of another shape.
    """
    check_kind("of", of, Gallery | Disentanglement, "a Gallery or a Disentanglement")
    split = of if isinstance(of, Disentanglement) else of.split
    table = depth_profile(split, concept)
    if isinstance(of, Gallery) and maps is None:
        if not len(of):
            raise ValueError("No image is ready; call .fill() first.")
        maps = of.concept_maps[..., concept]
    mean = None if maps is None else spatial_profile(split, maps).numpy()
    name = split.names.get(concept)
    title = f"Concept {concept}" + (f": {name}" if name else "") + ", over all channels"
    with house_style():
        picture = Picture(figsize=(8.4, 3.0))
        if mean is None or maps is None:
            _depth(picture.subplots(), table, title)
        else:
            depth, space = picture.subplots(1, 2, gridspec_kw={"width_ratios": [2.4, 1], "wspace": 0.12})
            _depth(depth, table, title)
            shown = space.imshow(mean, cmap="cividis")
            space.set(xticks=[], yticks=[])
            space.spines[:].set_visible(False)
            space.set_title(f"where in the image:\nmean of {len(maps)} images", loc="center", fontsize=9)
            bar: Any = picture.colorbar(shown, ax=space, shrink=0.8)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7.5)
            bar.set_label("read-out", fontsize=8)
    total = table.sum(axis=1)
    picture.alt = f"Concept {concept}: contributions by block, most from block {total.idxmax()}"
    if mean is not None and maps is not None:
        row, column = np.unravel_index(mean.argmax(), mean.shape)
        picture.alt += f"; mean over {len(maps)} images, highest in row {row + 1}, column {column + 1} of {mean.shape}"
    return picture


def _depth(place: Axes, table: pd.DataFrame, title: str) -> None:
    width = 0.8 / table.shape[1]
    for number, part in enumerate(table.columns):
        places = np.arange(len(table)) + (number - (table.shape[1] - 1) / 2) * width
        label = str(part).replace("mlp", "MLP")
        place.bar(places, table[part], width * 0.94, color=SEQUENCE[number % len(SEQUENCE)], label=label)
    place.axhline(0, color=FAINT, linewidth=0.8)
    blocks = [str(block) if block else "this layer" for block in table.index]
    place.set_xticks(range(len(table)), blocks)
    place.set_xlabel("block in which the contribution arises" if len(table) > 1 else "")
    place.set_ylabel("contribution, in standard\ndeviations of the channels")
    place.set_title(title)
    place.margins(y=0.12)
    if table.shape[1] > 1:
        place.legend(loc="best", fontsize=8)
