"""Open one image of any kind as upright RGB with 8 bits a channel, or say what is wrong with it.

Pictures of more than 8 bits are scaled by the depth that their file states, or by a range that the caller states: the
values that become black and white. A picture's own maximum never counts.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from elude_nb._util.checks import check_number, shortly
from elude_nb._util.warn import warn_caller
from elude_nb.errors import ImageError

Range = tuple[float, float]
"""The values of a picture that become black and white; all between are scaled, all beyond are cut off."""

SMALLEST_SIDE = 8
MOST_PIXELS = 89_478_485
"""A quarter of a gigabyte as RGB, and up to 2 on the way there; Pillow begins to warn here."""
LARGEST_ASPECT = 50

# Those that hold pixels and nothing else: for EPS and WMF Pillow starts other programs, and containers such as IPTC are
# opened as whatever lies in them.
_FORMATS = ["AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA"]
_FORMATS += ["TIFF", "WEBP"]
_SIGNED = ["AVIF", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP"]  # known by their first bytes, without an ending

_dark: list[str] = []  # the deep picture that was warned of: of a folder, one is enough
_READING = RLock()

# What Pillow's readers raise on broken files; each format has its own ways.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(KeyError, IndexError, OverflowError, RuntimeError, AttributeError, TypeError, ZeroDivisionError),
)


def open_rgb(path: str | os.PathLike[str], value_range: Range | None = None) -> Image.Image:
    """Open an image file as RGB, upright, 8 bits a channel; ``value_range`` is for files of more bits.

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
    return _read(name, name, value_range)


def read_rgb(content: bytes, name: str, value_range: Range | None = None) -> Image.Image:
    """Return an image from the bytes of a file, such as an upload: RGB, upright, 8 bits a channel.

    Raises
    ------
    ImageError
        If they are no image, broken, too large or too small; the message holds ``name``.
    """
    return _read(io.BytesIO(content), name, value_range)


def upright_rgb(image: Image.Image, name: str, value_range: Range | None = None) -> Image.Image:
    """Apply the EXIF rotation of a PIL image and bring it to RGB; raise `ImageError` with its ``name`` if broken."""
    with _image_errors(name):  # PIL may read the pixels only now
        bits = _raw_bits(image)
        shown = _upright(image, name, value_range, bits)
    if bits > 8 and value_range is None:
        _warn_of_dark(shown, name)
    return shown


def to_rgb(image: Image.Image, name: str = "image", value_range: Range | None = None) -> Image.Image:
    """Bring any PIL image to upright RGB with 8 bits: deeper ones are scaled, transparency is laid over white.

    ``value_range`` is for images of more than 8 bits; by default their whole depth.
    """
    check_sides(*image.size, name)
    limits = (value_range or _stated_range(image, name)) if _is_deep(image) else None
    if limits is not None and _tag(image, _PHOTOMETRIC) == 0:  # 0 is white, as in X-rays
        limits = limits[::-1]  # Pillow turns round those of 8 bits alone
    image = ImageOps.exif_transpose(image)  # which loses the tags
    if limits is not None:  # PIL alone would clip
        shares = scale(np.asarray(image), limits, name, clip=value_range is not None)
        image = Image.fromarray(np.round(shares * 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def scale(pixels: np.ndarray[Any, Any], limits: Range, name: str, *, clip: bool = False) -> np.ndarray[Any, Any]:
    """Return pixels scaled to [0, 1], where the first of ``limits`` is 0 and the second is 1.

    Raises
    ------
    ImageError
        If a value is not finite, or without ``clip`` lies beyond the limits; the message names the image.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"{name!r} has pixels that are NaN or infinite; leave it out, or put numbers in their place.")
    if not (clip or (low >= min(limits) and high <= max(limits))):
        cure = "state which are black and white in all pictures, for example value_range=(0, 255)."
        if low < 0:
            cure = (
                "they look normalised, and a model prepares pictures itself. Give them as they were before (a data set "
                "with transform=None), or state which values are black and white: value_range=(-1, 1)."
            )
        raise ImageError(
            f"{name!r} has values from {low:.6g} to {high:.6g}, not {min(limits):.6g} to {max(limits):.6g}; {cure}"
        )
    values: Any = pixels.astype(np.float64 if pixels.dtype.itemsize > 2 else np.float32)
    shares: np.ndarray[Any, Any] = np.clip((values - limits[0]) / (limits[1] - limits[0]), 0, 1)
    return shares


def check_value_range(value_range: object) -> Range | None:
    """Return two numbers, the first below the second, or ``None``; raise ``TypeError`` or ``ValueError`` otherwise."""
    if value_range is None:
        return None
    if not isinstance(value_range, tuple | list) or len(value_range) != 2:
        raise TypeError(f"value_range must be two numbers, such as (0, 4095), not {shortly(value_range)}.")
    low, high = (check_number("value_range", value) for value in value_range)
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"value_range={value_range} is empty or infinite; give the values of black and white.")
    return low, high


def check_sides(width: int, height: int, name: str) -> None:
    """Raise `ImageError` for an image that is too small, or far longer than wide."""
    if min(width, height) < SMALLEST_SIDE:
        raise ImageError(f"{name!r} has {width} x {height} pixels; each side needs at least {SMALLEST_SIDE}.")
    if max(width, height) > LARGEST_ASPECT * min(width, height):
        raise ImageError(f"{name!r} has {width} x {height} pixels; it is over {LARGEST_ASPECT} times as long as wide.")


def is_picture(path: str) -> bool:
    """Say whether a file is to be read as a picture: by its ending, or without one by its first bytes."""
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122 - half the time of Path for 100,000 files
    if ending:
        return ending in endings()
    if not os.path.isfile(path):  # noqa: PTH113 - a pipe would be waited for
        return False
    try:
        with _quiet(), Image.open(path, formats=_known(_SIGNED)):
            return True
    except _UNREADABLE:
        return False


def _read(source: str | io.BytesIO, name: str, value_range: Range | None = None) -> Image.Image:
    with _image_errors(name), _quiet(), Image.open(source, formats=_known(_FORMATS)) as opened:
        _check_size(opened, name)  # before anything is unpacked
        bits = _raw_bits(opened)
        opened.load()
        _check_size(opened, name)  # some formats hold pictures of another size than they say
        shown = _upright(opened, name, value_range, bits)
    if bits > 8 and value_range is None:
        _warn_of_dark(shown, name)
    return shown


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Pillow's warnings, about size and about files that it can read all the same.

    One thread at a time: filters are the process's, and two that leave in the wrong order would hide all for good.
    """
    with _READING, warnings.catch_warnings(action="ignore"):
        yield


def _upright(image: Image.Image, name: str, value_range: Range | None, bits: int) -> Image.Image:
    if value_range is not None and bits > 8 and not _is_deep(image):
        raise ImageError(
            f"{name!r} has colours of {bits} bits, of which Pillow reads 8, and value_range needs them all. Read it "
            "with another library, such as tifffile, and hand in an array."
        )
    return to_rgb(image, name, value_range)


LEAVE_OUT = ", or leave such files out: images.without_broken()"
"""What errors of single images advise; who leaves them out does not say it."""


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises about an image into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name!r} is not an image of a kind that is read; save it as a PNG or JPEG file{LEAVE_OUT}."
        ) from error
    except _UNREADABLE as error:
        raise ImageError(f"{name!r} is too large or a broken image ({error}); fetch it again{LEAVE_OUT}.") from error


def _known(formats: list[str]) -> list[str]:
    """Return those of some formats that this Pillow knows."""
    Image.init()
    return [name for name in formats if name in Image.OPEN]


@cache
def endings() -> frozenset[str]:
    """Return the endings that this Pillow has for the formats that are read, with their dots."""
    Image.init()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in _FORMATS)


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"{name!r} has {width} x {height} pixels, too many; {MOST_PIXELS:,} are read at most.")


def _is_deep(image: Image.Image) -> bool:
    """Say whether an image is grey with more than 8 bits: integers of 12, 16 or 32, or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def _stated_range(image: Image.Image, name: str) -> Range:
    """Return which values of a deep image are black and white: 0 and 1 for floats, else by its depth."""
    if image.mode == "F":
        return 0, 1
    if image.mode.startswith("I;16"):
        return 0, 2 ** (_tag(image, _BITS) or 16) - 1
    if image.format == "PPM":  # Pillow has scaled it to 16 bits
        return 0, 65535
    raise ImageError(
        f"{name!r} has whole numbers of 32 bits, or below 0; state which are black and white: "
        "load_images(..., value_range=(0, 4095))."
    )


_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF


def _tag(image: Image.Image, number: int) -> int | None:
    found = getattr(image, "tag_v2", {}).get(number)
    return found[0] if isinstance(found, tuple) else found


def _raw_bits(image: Image.Image) -> int:
    """Return the bits a channel of an image file; of colours with 16 bits, Pillow keeps the upper 8."""
    if image.mode.startswith("I;16"):
        return _tag(image, _BITS) or 16
    kinds = [str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in getattr(image, "tile", [])]
    return 16 if any(";16" in kind for kind in kinds) and image.mode != "I" else 8


def _warn_of_dark(shown: Image.Image, name: str) -> None:
    """Warn once of a deep picture whose upper bits are all empty: it may be a scan of 12 bits in a file of 16."""
    if not _dark and 0 < int(np.asarray(shown).max()) < 64:
        _dark.append(name)
        warn_caller(
            f"{name!r} has more than 8 bits a channel, reaches less than a quarter of its range, and is dark; others "
            "may be, too. If they are scans of 12 bits, say so: value_range=(0, 4095)."
        )
