"""Pictures that come as arrays or tensors: which axis has the channels, and which values are black and white."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from elude_nb.data.decode import SMALLEST_SIDE, Range, check_sides, scale, to_rgb
from elude_nb.errors import ImageError

Pixels = np.ndarray[Any, np.dtype[Any]]

_COLOURS = 3


def as_array(source: Any) -> Pixels:
    """Return an array, a tensor or a column of a table as an array."""
    if hasattr(source, "detach"):  # a tensor; NumPy has no bfloat16
        source = source.detach().cpu()
        source = source.float() if source.dtype.is_floating_point and source.dtype.itemsize < 4 else source
    return np.asarray(source)


def split_pictures(pixels: Pixels) -> Pixels:
    """Return an array of one or several pictures as (n, h, w, c).

    Four axes are (n, h, w, c) or (n, c, h, w): of the two, the shorter axis has the channels. Three axes are n grey
    pictures (n, h, w), unless they are one picture of some channels: (3, h, w), or (h, w, c) with few c.

    Raises
    ------
    ImageError
        If there is no picture, or the shape can be read in two ways.
    """
    shape = pixels.shape
    if not pixels.size:
        raise ImageError(f"An array of shape {shape} has no pictures.")
    if pixels.ndim == 4:
        return _channels_last(pixels)
    if pixels.ndim == 3 and shape[0] >= SMALLEST_SIDE and shape[-1] >= SMALLEST_SIDE:
        return pixels[..., None]
    if pixels.ndim == 3 and shape[0] not in {1, _COLOURS} and shape[-1] >= SMALLEST_SIDE:
        raise ImageError(
            f"An array of shape {shape} may be {shape[0]} grey pictures or one with {shape[0]} channels; give "
            "array[:, None] for the former and array[None] for the latter."
        )
    return one_picture(pixels)[None]


def one_picture(pixels: Pixels) -> Pixels:
    """Return an array of one picture, (h, w), (h, w, c) or (c, h, w), as (h, w, c); raise `ImageError` otherwise."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or not pixels.size:
        raise ImageError(f"An array of shape {pixels.shape} is no picture; give (h, w), (h, w, c) or (c, h, w).")
    found: Pixels = _channels_last(pixels[None])[0]
    return found


def _channels_last(pixels: Pixels) -> Pixels:
    first, last = pixels.shape[1], pixels.shape[-1]
    if first == last:
        raise ImageError(
            f"An array of shape {pixels.shape} does not show which axis has the channels; give (n, h, w, c) or "
            "(n, c, h, w) with fewer channels than pixels a side."
        )
    return pixels if last < first else np.moveaxis(pixels, 1, -1)


def show_picture(pixels: Pixels, name: str, value_range: Range | None = None) -> Any:
    """Return a picture (h, w, c) as RGB if it has one channel or three, else as a tensor (c, h, w) in [0, 1].

    Raises
    ------
    ImageError
        If its values leave the range (the one stated; by default that of 8 bits, or 0 to 1 for floats) or its sides
        are no picture's; the message names it.
    """
    check_dtype(pixels.dtype, value_range)
    check_sides(pixels.shape[1], pixels.shape[0], name)
    if pixels.shape[-1] in {1, _COLOURS}:
        if pixels.dtype != np.uint8 or value_range is not None:
            pixels = np.round(_shares(pixels, name, value_range) * 255).astype(np.uint8)
        return to_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), name)
    return torch.from_numpy(np.moveaxis(_shares(pixels, name, value_range), -1, 0).astype(np.float32))


def as_rgb(image: Image.Image | Tensor) -> Image.Image:
    """Return an image of a set as RGB, to be looked at: of a tensor (c, h, w) the first three channels.

    One channel alone is grey, and of two there is no blue.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    bands = [Image.fromarray(band) for band in (image[:_COLOURS] * 255).round().to(torch.uint8).cpu().numpy()]
    blank = bands[0] if len(bands) == 1 else Image.new("L", bands[0].size)
    return Image.merge("RGB", [*bands, *[blank] * (_COLOURS - len(bands))])


def check_dtype(dtype: np.dtype[Any], value_range: Range | None) -> None:
    """Raise `ImageError` for numbers of which no one has said which are black and white."""
    if dtype.kind not in "uif" or (value_range is None and dtype.kind != "f" and dtype != np.uint8):
        raise ImageError(
            f"An array of {dtype} is ambiguous; give uint8, floats in [0, 1], or other numbers and which of them are "
            "black and white: load_images(..., value_range=(0, 4095))."
        )


def _shares(pixels: Pixels, name: str, value_range: Range | None) -> Pixels:
    limits = value_range or ((0, 255) if pixels.dtype == np.uint8 else (0, 1))
    return scale(pixels, limits, name, clip=value_range is not None)
