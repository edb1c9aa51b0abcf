"""Open one image of any kind as upright RGB with 8 bits a channel, or say what is wrong with it."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from elude_nb.errors import ImageError

SMALLEST_SIDE = 8
MOST_PIXELS = 89_478_485
"""A quarter of a gigabyte as RGB, and up to 2 on the way there; Pillow begins to warn here."""
LARGEST_ASPECT = 50

# Those that hold pixels and nothing else: for EPS and WMF Pillow starts other programs, and containers such as IPTC are
# opened as whatever lies in them.
_FORMATS = ["AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA"]
_FORMATS += ["TIFF", "WEBP"]

# What Pillow's readers raise on broken files; each format has its own ways.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(KeyError, IndexError, OverflowError, RuntimeError, AttributeError, TypeError, ZeroDivisionError),
)


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file as RGB, upright, 8 bits a channel.

    Raises
    ------
    TypeError
        If ``path`` is no path.
    ImageError
        If there is no such file, or it is no ordinary file, no image, broken, too large or too small; the message
        holds its path.
    """
    name = os.fsdecode(path)
    if not os.path.isfile(name):  # noqa: PTH113 - False for pipes, at which a reader would wait for ever
        raise ImageError(f"{name!r} does not exist or is no ordinary file.")
    return _read(name, name)


def read_rgb(content: bytes, name: str) -> Image.Image:
    """Return an image from the bytes of a file, such as an upload: RGB, upright, 8 bits a channel.

    Raises
    ------
    ImageError
        If they are no image, broken, too large or too small; the message holds ``name``.
    """
    return _read(io.BytesIO(content), name)


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Apply the EXIF rotation of a PIL image and bring it to RGB; raise `ImageError` with its ``name`` if broken."""
    with _image_errors(name):  # PIL may read the pixels only now
        return to_rgb(ImageOps.exif_transpose(image), name)


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Bring any PIL image to RGB with 8 bits: 16 bits are scaled, transparency is laid over white."""
    width, height = image.size
    if min(width, height) < SMALLEST_SIDE:
        raise ImageError(f"{name!r} has {width} x {height} pixels; each side needs at least {SMALLEST_SIDE}.")
    if max(width, height) > LARGEST_ASPECT * min(width, height):
        raise ImageError(f"{name!r} has {width} x {height} pixels; it is over {LARGEST_ASPECT} times as long as wide.")
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image, name)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _read(source: str | io.BytesIO, name: str) -> Image.Image:
    with (
        _image_errors(name),
        warnings.catch_warnings(action="ignore"),  # Pillow's, about files that it can read all the same, and size
        Image.open(source, formats=_formats()) as opened,
    ):
        _check_size(opened, name)  # before anything is unpacked
        opened.load()
        _check_size(opened, name)  # some formats hold pictures of another size than they say
        return upright_rgb(opened, name)


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises about an image into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name!r} is not an image of a kind that is read; save it as a PNG or JPEG file.") from error
    except _UNREADABLE as error:
        raise ImageError(f"{name!r} is too large or a broken image ({error}); remove it or fetch it again.") from error


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are read, of those that this Pillow knows."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def endings() -> frozenset[str]:
    """Return the endings that this Pillow has for the formats that are read, with their dots."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in _formats())


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"{name!r} has {width} x {height} pixels, too many; {MOST_PIXELS:,} are read at most.")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit integers by 1/257 and floats in [0, 1] by 255; PIL alone would clip them."""
    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode == "F":
        scale, limit = 255.0, 1.0
    else:
        scale, limit = (1.0, 255) if image.mode == "I" and high <= 255 else (1 / 257, 65535)
    if not (low >= 0 and high <= limit):
        raise ImageError(f"{name!r} has pixels from {low} to {high}; mode {image.mode!r} needs 0 to {limit}.")
    return Image.fromarray(np.round(pixels * scale).astype(np.uint8))
