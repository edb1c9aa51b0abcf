"""Bad pictures for `fuzz`: damaged ones, and small ones that unpack to more than they say or than is read."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from unittest import mock

import numpy as np
from fuzz_files import damaged  # type: ignore[import-not-found]  # beside this file
from fuzz_watch import MEBIBYTE, Case, Family, Ground, Misbehaved  # type: ignore[import-not-found]
from PIL import Image

from elude_nb.data import decode as opening
from elude_nb.data.decode import open_rgb, read_rgb
from elude_nb.errors import ImageError

PICTURES = ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO", "PCX", "DDS", "ICNS", "JPEG2000", "SGI"]
PICTURES += ["IM", "MSP", "XBM", "DIB", "AVIF", "QOI"]


def _drawn(kind: str) -> bytes | None:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    try:
        picture = Image.fromarray(pixels)
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of formats that it will drop
            (picture.convert("1") if kind in {"MSP", "XBM"} else picture).save(buffer, kind)
    except (OSError, KeyError, ValueError):  # this Pillow cannot write it
        return None
    return buffer.getvalue()


def damaged_pictures(ground: Ground) -> Iterator[Case]:
    """Pictures of all kinds, cut and changed, as uploads and as files with right and wrong endings."""
    whole = {kind: content for kind in PICTURES if (content := _drawn(kind))}
    while True:
        kind = ground.pick(whole)
        content = damaged(whole[kind], ground)
        if ground.rng.random() < 0.5:
            yield Case(f"upload {kind}", partial(read_rgb, content, kind))
        else:
            file = ground.folder / f"picture.{ground.pick(['png', 'jpg', 'eps', 'pdf', 'txt', 'svg', 'tif'])}"
            file.write_bytes(content)
            yield Case(f"{kind} as {file.name}", partial(open_rgb, file))
            file.unlink()


SIDE = 1000
"""Of the largest square that is read in most cases: limits of Pillow and of the library are set down for them."""

UNPACKED = 40 * MEBIBYTE
"""What such a case may take: ten times the largest square in bytes as RGBA. A bomb has 36 times its pixels."""

SHAPES = {
    "just within": (SIDE, SIDE),
    "just beyond": (SIDE, SIDE + 1),
    "twice as much": (2 * SIDE, SIDE - 1),
    "far beyond": (6 * SIDE, 6 * SIDE),
}
PACKED = ["PNG", "GIF", "TIFF", "WEBP", "TGA", "PCX", "SGI", "JPEG", "BMP", "PPM", "QOI"]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@cache
def _black(width: int, height: int, depth: int = 8) -> bytes:
    """Return a PNG of grey pixels that are all there, and all 0."""
    line = b"\0" * (1 + (width * depth + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


@cache
def _flat(kind: str, width: int, height: int) -> bytes | None:
    """Return a picture of one colour, as packed as its format allows."""
    more = {
        "TIFF": {"compression": "tiff_adobe_deflate"},
        "WEBP": {"lossless": True},
        "TGA": {"compression": "tga_rle"},
    }
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):
            Image.new("RGB", (width, height)).save(buffer, kind, **more.get(kind, {}))
    except (OSError, KeyError, ValueError):  # this Pillow cannot write it
        return None
    return buffer.getvalue()


def _in_ico(png: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(png), 22) + png


def _in_icns(png: bytes) -> bytes:
    return b"icns" + struct.pack(">I", 16 + len(png)) + b"ic07" + struct.pack(">I", 8 + len(png)) + png


def _in_iptc(png: bytes) -> bytes:
    def field(record: int, tag: int, data: bytes) -> bytes:
        return struct.pack(">BBBBBI", 0x1C, record, tag, 0x84, 0, len(data)) + data  # its length has four bytes

    about = field(3, 20, b"\0\x20") + field(3, 30, b"\0\x20") + field(3, 60, b"\x01\0") + field(3, 120, b"\x05")
    return about + field(8, 10, png) + b"\0" * 5


HOLDERS: dict[str, Callable[[bytes], bytes]] = {"ICO": _in_ico, "ICNS": _in_icns, "IPTC": _in_iptc}


def _cursor(width: int, height: int) -> bytes:
    """Return a cursor of 8 bits a pixel, packed by skipping 255 lines at once; it says 32 x 32 before."""
    skips = b"\0\2\0\xff" * (2 * height // 255 + 1) + b"\0\1"
    colours = bytes(1024)
    header = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 8, 1, len(skips), 0, 0, 256, 0)
    body = header + colours + skips
    return struct.pack("<HHHBBBBHHII", 0, 2, 1, 32, 32, 0, 0, 0, 0, len(body), 22) + body


def _read_small(content: bytes, name: str, *, must: bool) -> None:
    """Read with the limits set down; ``must`` says that the picture is within them, and nothing is wrong with it."""
    fewer = SIDE * SIDE
    with mock.patch.object(opening, "MOST_PIXELS", fewer), mock.patch.object(Image, "MAX_IMAGE_PIXELS", fewer):
        try:
            found = read_rgb(content, name)
        except ImageError as error:
            if must:
                raise Misbehaved(f"a picture within the limit was refused: {error}") from error
            raise
    if found.width * found.height > fewer:
        raise Misbehaved(f"{found.width} x {found.height} pixels were read, more than the limit")


def unpacking(ground: Ground) -> Iterator[Case]:
    """Pictures whose pixels are all there, around the limit and far beyond it; also inside icons, cursors and IPTC."""
    while True:
        said, (width, height) = ground.pick(SHAPES.items())
        if ground.rng.random() < 0.05:  # at the true limit, told before anything is unpacked
            depth = ground.pick([1, 8])
            side = 1 + int(opening.MOST_PIXELS**0.5)
            yield Case(
                f"PNG beyond the true limit, {depth} bits", partial(read_rgb, _black(side, side, depth), "large")
            )
            continue
        must = said == "just within"
        match int(ground.rng.integers(0, 4)):
            case 0:
                name, content = "PNG with 1 bit", _black(width, height, 1)
            case 1 if said != "far beyond":  # they are drawn by Pillow, as large as they are
                name = ground.pick(PACKED)
                content = _flat(name, width, height)
            case 2:
                name, content = "CUR", _cursor(width, height)
            case _:
                name = ground.pick(HOLDERS)
                content = HOLDERS[name](_black(width, height))
        if content is not None:
            # Icons of another size than they say, and IPTC, may well be refused.
            read = partial(_read_small, content, name, must=must and name not in {*HOLDERS, "CUR"})
            yield Case(f"{name} {said} the limit, {len(content):,} bytes", read, memory=UNPACKED)


def _bomb(ground: Ground) -> tuple[str, bytes]:
    side, wide = (int(2 ** ground.rng.uniform(13, 31)) for _ in range(2))
    packed = zlib.compress(b"\0" * 5_000_000, 9)
    header = struct.pack(">IIBBBBB", side, wide, ground.pick([1, 8, 16]), ground.pick([0, 2, 3, 6]), 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    small = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 30, 8, 2, 0, 0, 0))
    text = _chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 60_000_000, 9)) if ground.rng.random() < 0.1 else b""
    short = side & 0xFFFF, wide & 0xFFFF
    return ground.pick(
        [
            ("PNG that is huge", png + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")),
            ("PNG with more pixels than it says", small + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")),
            ("PNG with packed text", small + text + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")),
            ("PNG with a packed profile", small + _chunk(b"iCCP", b"x\0\0" + packed) + _chunk(b"IDAT", packed)),
            ("BMP", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, side, -wide, 1, 24, 0, 0, 0, 0, 0, 0)),
            ("GIF", b"GIF89a" + struct.pack("<HHBBB", *short, 0x80, 0, 0) + b"\0" * 6 + b"," + b"\0" * 40),
            ("PPM", f"P6 {side} {wide} 255\n".encode() + b"\0" * 99),
            ("PGM with 16 bits", f"P5 {side} {wide} 65535\n".encode() + b"\0" * 99),
            ("TGA", struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, *short, 24, 0) + b"\xff\0\0\0" * 99),
            ("PCX", struct.pack("<BBBBHHHH", 10, 5, 1, 8, 0, 0, *short) + b"\0" * 200),
            ("SGI", struct.pack(">HBBHHHH", 474, 1, 1, 3, *short, 3) + b"\0" * 600),
            ("TIFF", _tiff(side, wide)),
            ("PSD", b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, side, wide, 8, 3) + b"\0" * 40),
        ]
    )


def _tiff(side: int, wide: int) -> bytes:
    entries = {256: side, 257: wide, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: wide, 279: 0xFFFFFFF}
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + b"\0" * 4


def bombs(ground: Ground) -> Iterator[Case]:
    """Small pictures that say they are huge, or unpack to far more than they say."""
    while True:
        name, content = _bomb(ground)
        yield Case(f"{name} {content[:40]!r}", partial(read_rgb, content, name))


FAMILIES: dict[str, tuple[Family, float]] = {
    "pictures: damaged": (damaged_pictures, 0.10),
    "pictures: bombs in their headers": (bombs, 0.03),
    "pictures: bombs that unpack": (unpacking, 0.02),
}
