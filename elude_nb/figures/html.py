"""Photographs, heat maps and small charts as HTML, for panels and pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from elude_nb._util.html import render
from elude_nb.interpret.exemplars import Exemplars
from elude_nb.interpret.gallery import Gallery

SIDE = 96  # pixels of a tile
GREY = "#767676"
# Okabe and Ito, a little lighter, so that text in them is readable on light and on dark pages.
PALETTE = ("#2C8FCC", "#C98500", "#0AA67B", "#DE6A1F", "#C56B9E", "#3FA0DC", "#9C9000")
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
_ROOM = "elude_nb.figures"


def darken(picture: Array, heat: Array, brightest: float) -> Array:
    """Return a photograph (h, w, 3), uint8 or in [0, 1], darkened where a heat map (rows, columns) is low.

    It keeps its colours where the heat is ``brightest``, and is dark where the heat is 0 or less. The result is in
    [0, 1].
    """
    image = np.asarray(picture, dtype=np.float32) / (255 if picture.dtype == np.uint8 else 1)
    share = np.clip(np.asarray(heat, dtype=np.float32) / max(brightest, 1e-12), 0, 1)
    light = enlarge(share, image.shape).clip(0, 1)[..., None]  # bicubic overshoots
    grey = image.mean(axis=2, keepdims=True)
    shown: Array = light * image + (1 - light) * (0.12 + 0.25 * (0.6 * grey + 0.4 * image))
    return shown.clip(0, 1)


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
    image = Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels * 255).round().astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def tile(
    picture: Array,
    alt: str,
    *,
    heat: Array | None = None,
    brightest: float = 1.0,
    side: int = SIDE,
    colour: str = GREY,
) -> Markup:
    """Return one ``<img>``, with a heat map darkened as `darken` does it."""
    if heat is not None:
        picture = (darken(picture, heat, brightest) * 255).round().astype(np.uint8)
    return render(_ROOM, "tile.html", src=data_uri(picture, side), alt=alt, colour=colour, side=side)


def top_images(gallery: Gallery, maps: Tensor, count: int, *, colour: str = GREY) -> Markup:
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
        )
        for image in best.tolist()
    )


def exemplar_grid(exemplars: Exemplars, colours: Sequence[str]) -> Markup:
    """Return a table of the top-activating images of the whole channel and of each of its sub-units, one row each."""
    rows = zip(exemplars.names, exemplars.rows, exemplars.similarity, colours, strict=True)
    return render(_ROOM, "exemplars.html", rows=rows, tile=tile)


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
