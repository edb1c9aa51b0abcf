"""Photographs altered on purpose: a border or a watermark that a probe can cheat with, two put in one frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from elude_nb._util.checks import check_choice, check_count, check_fraction
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.errors import ImageError

CUES = ("border", "watermark")


def add_cue(
    images: Images,
    kind: str = "border",
    *,
    only: str | Sequence[str] | None = None,
    but: str | Sequence[str] | None = None,
    share: float = 1.0,
    seed: int = 0,
    colour: str = "#ff00c8",
    size: float = 0.1,
    text: str = "SAMPLE",
) -> ImageSet:
    """Return the same images with a cue on those of some labels; they are drawn when they are opened.

    Parameters
    ----------
    images
        The images, with labels if ``only`` or ``but`` is given.
    kind
        ``"border"``, a frame in one colour, or ``"watermark"``, a word across the middle, half transparent.
    only, but
        Only images of these labels get it, or all but these; without either, all do.
    share, seed
        Of these, only so large a share gets it, drawn at random.
    colour
        Of the border, or of the watermark's letters, as Pillow reads it: ``"#ff00c8"``, ``"red"``.
    size
        Width of the border, or height of the letters, as a share of the image's shorter side.
    text
        The watermark.

    Raises
    ------
    ValueError
        If a label, the kind or the colour is unknown, or both ``only`` and ``but`` are given.

    Examples
    --------
    >>> from elude_nb import load_images
    >>> marked = add_cue(load_images("shapes", count=4), colour="red")
    >>> marked[0].getpixel((0, 0))
    (255, 0, 0)
    """
    check_choice("kind", kind, CUES)
    check_fraction("size", size, open_ends=True)
    check_fraction("share", share)
    photos, paint = as_image_set(images), ImageColor.getrgb(colour)[:3]
    mark = partial(_add_border, paint=paint, size=size)
    if kind == "watermark":
        mark = partial(_add_watermark, paint=paint, size=size, text=text)
    if only is not None and but is not None:
        raise ValueError("Give only=... or but=..., not both.")
    chosen = np.random.default_rng(seed).permutation(len(photos)) < round(share * len(photos))
    if only is not None:
        chosen &= photos.has_label(only)
    if but is not None:
        chosen &= ~photos.has_label(but)
    items = list(zip(photos._items, chosen.tolist(), strict=True))
    return replace(photos, _items=items, _open=partial(_open_with_cue, opener=photos._open, mark=mark))


def side_by_side(left: Image.Image, right: Image.Image, side: int = 448) -> Image.Image:
    """Return a square picture with one image in its left half and another in its right one, each squeezed to fit.

    Examples
    --------
    >>> side_by_side(Image.new("RGB", (30, 20)), Image.new("RGB", (9, 9)), side=64).size
    (64, 64)
    """
    check_count("side", side, 2)
    picture = Image.new("RGB", (side, side))
    picture.paste(left.convert("RGB").resize((side // 2, side)), (0, 0))
    picture.paste(right.convert("RGB").resize((side - side // 2, side)), (side // 2, 0))
    return picture


def _open_with_cue(
    item: tuple[Any, bool], opener: Callable[[Any], Image.Image], mark: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    image = opener(item[0])
    if item[1] and not isinstance(image, Image.Image):
        raise ImageError(f"Cues are painted on RGB images; this one has {len(image)} channels.")
    return mark(image) if item[1] else image


def _add_border(image: Image.Image, paint: tuple[int, ...], size: float) -> Image.Image:
    width = max(1, round(size * min(image.size)))
    framed = Image.new("RGB", image.size, paint)
    inner = (image.width - 2 * width, image.height - 2 * width)
    framed.paste(image.resize((max(1, inner[0]), max(1, inner[1]))), (width, width))
    return framed


def _add_watermark(image: Image.Image, paint: tuple[int, ...], size: float, text: str) -> Image.Image:
    over = image.convert("RGBA")
    veil = Image.new("RGBA", image.size, (0, 0, 0, 0))
    font: Any = ImageFont.load_default(max(6, round(size * min(image.size))))
    middle = image.width / 2, image.height / 2
    ImageDraw.Draw(veil).text(middle, text, fill=(*paint, 170), font=font, anchor="mm")
    return Image.alpha_composite(over, veil).convert("RGB")
