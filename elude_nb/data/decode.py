"""Open one image of any kind as upright RGB with 8 bits a channel, or say what is wrong with it."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from elude_nb._util.checks import shortly
from elude_nb.errors import ImageError

SMALLEST_SIDE = 8
MOST_PIXELS = 89_478_485
"""A quarter of a gigabyte as RGB, and up to 1.7 on the way there from a picture with transparency; Pillow begins to
warn here."""
LARGEST_ASPECT = 50
_ROWS_AT_ONCE = 256  # of a picture, scaled in double precision


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file as RGB, upright, 8 bits a channel.

    Raises
    ------
    TypeError
        If ``path`` is no path.
    ImageError
        If it is no ordinary file, or the file is empty, no image, broken, or too small; the message holds its path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"A path must be text or a Path, not {shortly(path)}.")
    name = os.fsdecode(path)
    try:
        _check_ordinary(name)
        return _read(name, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name!r} does not exist (any more).") from error
    except UnidentifiedImageError as error:
        empty = Path(name).stat().st_size == 0
        raise ImageError(f"{name!r} is {'an empty file' if empty else 'not an image'}; remove it.") from error
    except _UNREADABLE as error:
        raise _broken(name, error) from error


def _check_ordinary(name: str) -> None:
    """Refuse folders, devices, and pipes, at which a reader would wait for ever."""
    if not stat.S_ISREG(os.stat(name).st_mode):  # noqa: PTH116 - unlike Path.is_file, it says what is wrong
        raise ImageError(f"{name!r} is no ordinary file; name an image.")


def read_rgb(content: bytes, name: str) -> Image.Image:
    """Return an image from the bytes of a file, as an upload hands them over: RGB, upright, 8 bits a channel.

    Raises
    ------
    ImageError
        If they are empty, no image, broken, too large or too small; the message holds ``name``.
    """
    try:
        return _read(io.BytesIO(content), name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        what = "not an image" if content else "an empty file"
        raise ImageError(f"{name!r} is {what}; choose a picture, such as a JPEG or PNG file.") from error
    except _UNREADABLE as error:
        raise _broken(name, error) from error


def _read(source: str | io.BytesIO, name: str) -> Image.Image:
    """Open, turn upright and convert; errors other than those of size and of the pixels are for the caller to word."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow's, about files that it can read all the same, and size
            Image.open(source, formats=_formats()) as opened,
        ):
            _check_size(opened, name)  # told before anything is unpacked
            opened.load()
            _check_size(opened, name)  # some formats hold pictures of another size than they say
            return upright_rgb(opened, name)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name!r} is too large to open safely ({error}).") from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"{name!r} has {width} x {height} pixels, too many; {MOST_PIXELS:,} are read at most.")


# Those that hold pixels and nothing else: for EPS and WMF Pillow starts other programs, and containers such as IPTC are
# opened as whatever lies in them.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF"),
    "WEBP",
)


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are read, of those that this Pillow knows."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


# What Pillow's readers raise on broken files; each format has its own ways.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error),
    *(KeyError, IndexError, OverflowError, RuntimeError, AttributeError, TypeError, ZeroDivisionError),
)


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Apply the EXIF rotation of a PIL image and bring it to RGB; raise `ImageError` with its ``name`` if broken."""
    try:
        return to_rgb(ImageOps.exif_transpose(image), name)
    except ImageError:
        raise
    except _UNREADABLE as error:  # PIL reads the pixels only now
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name!r} is a broken image ({error}); remove it or fetch it again.")


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
    scaled = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        scaled[rows] = np.round(pixels[rows] * scale)
    return Image.fromarray(scaled)
