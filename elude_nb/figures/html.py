"""Photographs, heat maps and small charts as HTML, for panels and pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from elude_nb._util.html import render
from elude_nb.interpret.exemplars import Exemplars, crop_at
from elude_nb.interpret.gallery import Gallery

SIDE = 160  # pixels of a tile
WAYS = {
    "outline": "outlined",
    "dark": "the rest darkened",
    "heat": "in colours",
    "crop": "cut out",
    "none": "not shown",
}
"""How an activation can be shown on a photograph, with the words for it; panels, figures and pages offer these."""
GREY = "#767676"
# Okabe and Ito, a little lighter, so that text in them is readable on light and on dark pages.
PALETTE = ("#2C8FCC", "#C98500", "#0AA67B", "#DE6A1F", "#C56B9E", "#3FA0DC", "#9C9000")
OUTSIDE = 0.7  # of the light is left outside an outline
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
_ROOM = "elude_nb.figures"


def draw_activation(picture: Array, heat: Array, brightest: float, way: str = "outline") -> Array:
    """Return a photograph (h, w, 3), uint8 or in [0, 1], with a heat map (rows, columns) shown in one of `WAYS`.

    Parameters
    ----------
    picture, heat
        The photograph and the activation at each patch, counted from the mean. Of one patch nothing is known of where
        in the image it is: the photograph is returned as it is.
    brightest
        The activation that is full colour in ``"dark"`` and ``"heat"``; 0 and less are dark, or clear.
    way
        ``"outline"``: a line around where the activation is above half of its highest value in this image, none if
        that is not above 0. ``"crop"``: what surrounds the highest patch, half a side high and wide.

    Returns
    -------
    ndarray
        In [0, 1], of the size of the photograph, or of the crop.
    """
    image = np.asarray(picture, dtype=np.float32) / (255 if picture.dtype == np.uint8 else 1)
    heat = np.asarray(heat, dtype=np.float32)
    if way == "none" or heat.size == 1:
        return image
    if way == "crop":
        return crop_at(image, int(heat.argmax()), (heat.shape[0], heat.shape[1]), 0.5)
    if way == "outline":
        return _outline(image, heat)
    share = enlarge(np.clip(heat / max(brightest, 1e-12), 0, 1), image.shape)
    share = share.clip(0, 1)[..., None]  # a cubic curve overshoots
    if way == "heat":
        hot = np.concatenate([np.ones_like(share), 0.85 * (1 - share), np.zeros_like(share)], axis=2)
        shown: Array = image + 0.75 * share * (hot - image)
        return shown
    grey = image.mean(axis=2, keepdims=True)
    shown = share * image + (1 - share) * (0.12 + 0.25 * (0.6 * grey + 0.4 * image))
    return shown.clip(0, 1)


def _outline(image: Array, heat: Array) -> Array:
    """Draw a white line with a dark halo, so that it is seen on any picture; outside it is a little less light."""
    if not heat.max() > 0:
        return image
    level = enlarge(np.clip(heat / heat.max(), 0, 1), image.shape) - 0.5
    away = np.abs(level) / np.hypot(*np.gradient(level)).clip(1e-6)  # pixels from the line, near to it
    half = max(*image.shape[:2], 135) / 180
    # Without the difference of light nobody could say on which side of the line the unit is active.
    shown: Array = image * (OUTSIDE + (1 - OUTSIDE) * np.clip(0.5 + np.sign(level) * away, 0, 1)[..., None])
    for reach, colour, opacity in ((2.2 * half + 0.5, 0.0, 0.6), (half + 0.25, 1.0, 1.0)):
        cover = opacity * np.clip(reach + 0.5 - away, 0, 1)[..., None]
        shown = shown + cover * (colour - shown)
    return shown


def enlarge(heat: Array, shape: tuple[int, ...]) -> Array:
    """Return a heat map (rows, columns) resampled smoothly to the first two sides of ``shape``, float32."""
    small = Image.fromarray(heat.astype(np.float32))
    return np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def data_uri(picture: Array, side: int | tuple[int, int] | None = SIDE) -> str:
    """Return a picture (h, w, 3), uint8, as a JPEG data URI.

    It is ``side`` pixels high and wide, or of ``side``, a (width, height), or as large as it is.
    """
    image = Image.fromarray(picture)
    if side is not None:
        size = side if isinstance(side, tuple) else (side, side)
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


FULL = 0.5  # 1 - cosine at which a map of the change has its full colour: patches of a faded concept reach it
_HOT = (214, 0, 160)  # magenta: photographs have little of it


def change_layer(distance: Array) -> Array:
    """Return a layer (rows, columns, 4), uint8, to lay over a picture: magenta where patches moved, clear elsewhere.

    ``distance`` is 1 - cosine similarity, (rows, columns). It is opaque to 70 % at `FULL` and beyond, so maps of
    different edits can be compared.
    """
    share = np.clip(np.asarray(distance, dtype=np.float64) / FULL, 0, 1)
    layer = np.empty((*share.shape, 4), np.uint8)
    layer[..., :3], layer[..., 3] = _HOT, (255 * 0.7 * share).round()
    return layer


def pixels_uri(pixels: Array) -> str:
    """Return pixels (h, w, 3) in [0, 1], or (h, w, 4) uint8, as a PNG data URI of their own size."""
    image = Image.fromarray(_as_bytes(pixels))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _as_bytes(pixels: Array) -> Array:
    return pixels if pixels.dtype == np.uint8 else (pixels * 255).round().astype(np.uint8)


def tile(
    picture: Array,
    alt: str,
    *,
    heat: Array | None = None,
    brightest: float = 1.0,
    side: int = SIDE,
    colour: str = GREY,
    activation: str = "outline",
) -> Markup:
    """Return one ``<img>``, with a heat map drawn as `draw_activation` does it."""
    if heat is not None:
        if activation != "crop":  # lines are drawn at the size at which they are seen
            picture = np.asarray(Image.fromarray(_as_bytes(picture)).resize((side, side), Image.Resampling.LANCZOS))
        picture = _as_bytes(draw_activation(picture, heat, brightest, activation))
    return render(_ROOM, "tile.html", src=data_uri(picture, side), alt=alt, colour=colour, side=side)


def top_images(
    gallery: Gallery, maps: Tensor, count: int, *, colour: str = GREY, activation: str = "outline"
) -> Markup:
    """Return tiles of the images on which maps (n, t) are highest, the highest first, all on one scale."""
    labels, brightest = gallery.labels or gallery.images.names, float(maps.amax())
    distinct = gallery.distinct
    best = distinct[maps[distinct].amax(1).topk(min(count, len(distinct))).indices]
    return Markup().join(
        tile(
            gallery.pictures_of(image),
            f"image {image}: {labels[image]}",
            heat=maps[image].view(*gallery.grid).numpy(),
            brightest=brightest,
            colour=colour,
            activation=activation,
        )
        for image in best.tolist()
    )


def exemplar_grid(exemplars: Exemplars, colours: Sequence[str], *, activation: str = "outline") -> Markup:
    """Return a table of the top-activating images of the whole channel and of each of its sub-units, one row each."""
    rows = zip(exemplars.names, exemplars.rows, exemplars.similarity, colours, strict=True)
    return render(_ROOM, "exemplars.html", rows=rows, tile=partial(tile, activation=activation))


def depth_chart(table: pd.DataFrame, *, width: int = 180, height: int = 34) -> Markup:
    """Return an SVG of contributions by block: one group of bars a row of the table (a block), one bar a column."""
    values = table.to_numpy(dtype=np.float64)
    places = [f"{part} of block {block}" for block in table.index for part in table.columns]
    bars = [
        {"value": value, "part": number % table.shape[1], "place": place}
        for number, (value, place) in enumerate(zip(values.ravel().tolist(), places, strict=True))
    ]
    largest = f"the largest from {places[int(np.abs(values).argmax())]}" if bars else "none"
    top, bottom = values.max(initial=0.0), values.min(initial=0.0)
    return render(
        _ROOM,
        "depth_chart.html",
        bars=bars,
        label=f"mean contributions by block; {largest}",
        width=width,
        height=height,
        top=float(top),
        bottom=float(bottom if top > bottom else top - 1),  # a view box has an extent
    )
