"""Pictures to compare figures with. After a wanted change: ``python -m tests.looks`` draws all of them anew."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elude_nb import Disentanglement, disentangle, find_exemplars
from elude_nb.figures import (
    Picture,
    activation_map,
    before_after,
    concept_profile,
    contact_sheet,
    contributions_by_block,
    routing_bars,
    theme,
    unit_maps,
)
from elude_nb.gallery import Gallery
from tests.tiny import random_images, tiny_vit

FOLDER = Path(__file__).parent / "pictures"
_WIDTH = 180  # pixels of a stored picture
_COARSE = 60  # pixels across at which pictures are compared: fonts and edges are below that


def made() -> tuple[Disentanglement, Gallery]:
    """Return the split and the gallery of which all pictures are drawn."""
    images = random_images(16, 32)
    split = disentangle(tiny_vit(), images, concepts=8, units=3, tokens_per_image=6, progress=False)
    return split, Gallery(split, images).fill(progress=False)


def _dark(draw: Callable[[], Any]) -> Any:
    with theme("dark"):
        return draw()


def drawings(split: Disentanglement, gallery: Gallery) -> dict[str, Callable[[], Any]]:
    """Return how each picture is drawn, by its name."""
    channel = int(split.routing.is_split().nonzero()[0])
    units = gallery.channel(channel).units["unit"].tolist()[1:]
    exemplars = find_exemplars(split, gallery.images, channel, count=4, units=3, progress=False)
    heat = gallery.channel(channel).maps[0, :, 1].view(*gallery.grid).numpy()
    return {
        "activation_map": lambda: activation_map(gallery.pictures_of(0), heat, title="sub-unit 1"),
        "before_after": lambda: before_after(exemplars),
        "before_after_crops": lambda: before_after(exemplars, crops=0.4),
        "before_after_dark": lambda: _dark(lambda: before_after(exemplars)),
        "concept_profile": lambda: concept_profile(gallery, 2),
        "concept_profile_dark": lambda: _dark(lambda: concept_profile(gallery, 2)),
        "contact_sheet": lambda: contact_sheet(gallery.images, 8, 4),
        "contributions_by_block": lambda: contributions_by_block(split, channel, units),
        "routing_bars": lambda: routing_bars(split, channel),
        "routing_bars_sources": lambda: routing_bars(split, channel, by="sources"),
        "unit_maps": lambda: unit_maps(gallery, 0, channel),
    }


def rendered(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.png())).convert("RGB")


def stored(picture: Image.Image) -> Image.Image:
    """Return a picture as small as it is stored."""
    return picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)), Image.Resampling.LANCZOS)


def unlikeness(one: Image.Image, other: Image.Image) -> float:
    """Return how unlike two pictures are, 0 to 1: the largest difference of colours after both are made coarse.

    Shapes that differ by more than 8 % count as wholly unlike.
    """
    if abs(one.width / one.height - other.width / other.height) > 0.08 * one.width / one.height:
        return 1.0
    size = (_COARSE, max(1, round(_COARSE * one.height / one.width)))
    first, second = (np.asarray(p.convert("RGB").resize(size, Image.Resampling.BOX), dtype=float) for p in (one, other))
    # The mean over small fields forgives a line that lies half a pixel beside, and nothing larger.
    difference = np.abs(first - second).mean(2) / 255
    rows, columns = (length // 4 * 4 for length in difference.shape)
    fields = difference[:rows, :columns].reshape(rows // 4, 4, columns // 4, 4).mean((1, 3))
    return float(fields.max())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in drawings(*made()).items():
        stored(rendered(draw())).quantize(64).save(FOLDER / f"{name}.png", optimize=True)
