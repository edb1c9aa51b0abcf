"""The images of the steering panel: as the model saw them, as tiles, in the strip, and their patches in colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from markupsafe import Markup

from elude_nb.figures.html import data_uri, tile
from elude_nb.figures.theme import words
from elude_nb.interpret.gallery import Gallery, picture_of
from elude_nb.steering.live import LiveSteering, Seen
from elude_nb.steering.patches import PatchColours
from elude_nb.widgets.panel import FIRST_IMAGES

_KEPT = 6  # images whose sources are cached: 24 MB each for all blocks of a ViT-S
_SIDE, _LARGE, _SMALL = 64, 160, 48  # pixels of neighbours, of images that are steered, and in the strip
_IN_STRIP = 60

Key = int | None  # number of an image of the gallery; None is the user's own


class SteeredImages:
    """Images of a gallery, and one of the user's own, each looked at once.

    Parameters
    ----------
    gallery
        Has the images and their labels.
    live
        Sees them.
    """

    def __init__(self, gallery: Gallery, live: LiveSteering) -> None:
        self._gallery, self._live = gallery, live
        self._own: Any = None
        self.seen: dict[Key, tuple[Seen, str, float]] = {}  # with a picture and how much wider than high it is
        self._tiles: dict[int, Markup] = {}
        self._colours: tuple[list[Key], PatchColours | None] = [], None  # of the images that are shown

    def take_own(self, image: Any) -> None:
        """Have another image of the user's own, or none."""
        self._own = image
        self.seen.pop(None, None)

    def look(self, key: Key) -> Seen:
        """Return an image as the model saw it; the last few are cached, with their pictures."""
        kept = self.seen.pop(key, None)
        if kept is None:
            image = self._own if key is None else self._gallery.images[key]
            pixels = picture_of(self._gallery.split.model, image)
            ratio = pixels.shape[1] / pixels.shape[0]
            kept = self._live.see(image), data_uri(pixels, (round(_LARGE * ratio), _LARGE)), ratio
            for old in list(self.seen)[: max(len(self.seen) - _KEPT + 1, 0)]:
                del self.seen[old]
        self.seen[key] = kept  # at the end: used last
        return kept[0]

    def fit_colours(self, keys: list[Key]) -> PatchColours | None:
        """Return the colours of the patches before, of all images that are shown."""
        if self._colours[0] != keys or None in keys:
            patches = [seen.patches for seen in map(self.look, keys)]
            tokens = [found.flatten(0, 1) for found in patches if found is not None]
            self._colours = keys, PatchColours.fit(torch.cat(tokens)) if tokens else None
        return self._colours[1]

    def describe(self, key: Key) -> dict[str, str]:
        """Return the picture of an image that was looked at, and what stands for it in words."""
        label = self.label(key)
        alt = label if key is None else f"image {key}, {label}"
        return {"picture": self.seen[key][1], "alt": alt, "label": words(label, 40)}

    def label(self, key: Key) -> str:
        """Return the label of an image, or its name."""
        if key is None:
            return "an image of your own"
        return str((self._gallery.images.labels or self._gallery.images.names)[key])

    def tile(self, number: int) -> Markup:
        """Return an image of the gallery as a tile."""
        if number not in self._tiles:
            alt = f"image {number}, {self.label(number)}"
            self._tiles[number] = tile(self._gallery.pictures_of(number), alt, side=_SIDE)
        return self._tiles[number]

    def strip(self, before: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Return the thumbnails of the images that are ready, or those ``before`` if there are no more."""
        ready = min(self._gallery.ready, _IN_STRIP)
        if len(before) == ready:
            return before
        return [
            {
                "number": number,
                "src": data_uri(self._gallery.pictures_of(number), _SMALL),
                "name": f"image {number}, {words(self.label(number))}",
            }
            for number in range(ready)
        ]

    def others(self, image: int, count: int) -> list[int]:
        """Return a few of the images that are run first anyway: one of each other label, or any."""
        first = min(FIRST_IMAGES, len(self._gallery.images))
        labels = self._gallery.images.labels or self._gallery.images.names
        found = {labels[number]: number for number in reversed(range(first))}
        return sorted(number for label, number in found.items() if label != labels[image])[:count]
