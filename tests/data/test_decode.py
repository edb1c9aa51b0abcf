from __future__ import annotations

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from elude_nb.data import decode
from elude_nb.data.decode import open_rgb
from elude_nb.data.images import load_images
from elude_nb.errors import ImageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found  # type: ignore[return-value]


def saved(tmp_path: Path, image: Image.Image, ending: str = "png", **how: Any) -> Image.Image:
    """Write the image, open it as the library does, and check what is promised of all images."""
    file = tmp_path / f"image.{ending}"
    image.save(file, **how)
    opened = open_rgb(file)
    assert opened.mode == "RGB"
    return opened


def test_grey_is_repeated(tmp_path: Path) -> None:
    assert pixel(saved(tmp_path, Image.new("L", (8, 8), 77))) == (77, 77, 77)
    assert pixel(saved(tmp_path, Image.new("1", (8, 8), 1))) == WHITE


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.putpixel((2, 0), (255, 0, 0, 51))  # a fifth of red, four fifths of white
    opened = saved(tmp_path, image)
    assert [pixel(opened, x) for x in range(3)] == [RED, WHITE, (255, 204, 204)]


def test_grey_with_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("LA", (8, 8), (100, 255))
    image.putpixel((1, 0), (100, 0))
    opened = saved(tmp_path, image)
    assert [pixel(opened, x) for x in range(2)] == [(100, 100, 100), WHITE]


def test_a_palette_with_a_transparent_colour_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    image.putpixel((2, 0), 2)
    assert [pixel(saved(tmp_path, image), x) for x in range(3)] == [RED, GREEN, BLUE]
    opened = saved(tmp_path, image, transparency=1)
    assert [pixel(opened, x) for x in range(3)] == [RED, WHITE, BLUE]
    opened = saved(tmp_path, image, "gif", transparency=2)
    assert [pixel(opened, x) for x in range(3)] == [RED, GREEN, WHITE]


def test_a_transparent_colour_of_rgb_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), RED)
    image.putpixel((1, 0), BLUE)
    opened = saved(tmp_path, image, transparency=BLUE)
    assert [pixel(opened, x) for x in range(2)] == [RED, WHITE]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    opened = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "tif")
    assert pixel(opened) == RED


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.zeros((8, 8), np.uint16)
    values[0, :5] = [0, 257, 128 * 257, 65535, 128]  # 128 / 257 is rounded to 0
    for ending in ("png", "tif"):
        opened = saved(tmp_path, Image.fromarray(values), ending)
        assert [pixel(opened, x)[0] for x in range(5)] == [0, 1, 128, 255, 0]


def test_floats_are_scaled_from_0_to_1(tmp_path: Path) -> None:
    values = np.zeros((8, 8), np.float32)
    values[0, :3] = [0.2, 0.5, 1.0]
    opened = saved(tmp_path, Image.fromarray(values), "tif")
    assert [pixel(opened, x) for x in range(3)] == [(51, 51, 51), (128, 128, 128), WHITE]


@pytest.mark.parametrize(
    ("wrong", "said"), [(1.5, " 1.5"), (-0.1, " -0.1"), (float("nan"), "NaN"), (float("inf"), "NaN")]
)
def test_floats_outside_are_named(tmp_path: Path, wrong: float, said: str) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[3, 3] = wrong
    with pytest.raises(ImageError, match=rf"image\.tif.*{said}"):
        saved(tmp_path, Image.fromarray(values), "tif")


@pytest.mark.parametrize("brightest", [255, 256, 4095])
def test_a_scan_of_12_bits_is_scaled_by_its_range_and_not_by_its_maximum(tmp_path: Path, brightest: int) -> None:
    values = np.zeros((8, 8), np.uint16)
    values[0, :2] = [2048, brightest]
    for ending in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"scan.{ending}")
        assert pixel(open_rgb(tmp_path / f"scan.{ending}", (0, 4095)))[0] == 128
        with pytest.warns(UserWarning, match=rf"scan.{ending}.*a quarter of its range.*value_range=\(0, 4095\)"):
            assert pixel(open_rgb(tmp_path / f"scan.{ending}"))[0] == 8
        open_rgb(tmp_path / f"scan.{ending}")  # of a folder of scans, one warning is enough
        decode._dark.clear()


def test_opening_in_threads_hides_no_warning_afterwards(tmp_path: Path) -> None:
    for number, image in enumerate(load_images("shapes", count=4)):
        image.save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_rgb, sorted(tmp_path.iterdir()) * 20))
    assert warnings.filters == before


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_need_a_stated_range(tmp_path: Path, kind: Any) -> None:
    values = np.zeros((8, 8), kind)
    values[0, :4] = [-1000, 200, 255, 256]
    Image.fromarray(values).save(tmp_path / "slice.tif")
    with pytest.raises(ImageError, match=r"slice\.tif.*value_range=\("):
        open_rgb(tmp_path / "slice.tif")
    opened = open_rgb(tmp_path / "slice.tif", (-1000, 1040))
    assert [pixel(opened, x)[0] for x in range(4)] == [0, 150, 157, 157]
    assert pixel(load_images([Image.fromarray(values)], value_range=(-1000, 1040))[0], 1)[0] == 150


def test_the_depth_of_the_file_counts(tmp_path: Path) -> None:
    """A TIFF of 12 bits; a TIFF of 16 where 0 is white; a PGM that says itself that 4095 is white."""
    half, full = np.full((8, 8), 2048, "<u2"), np.full((8, 8), 65535, "<u2")
    packed = np.frombuffer((b"\x80\x08\x00" * 43)[:128], "<u2").reshape(8, 8)  # 2048 in 12 bits each
    Image.fromarray(packed).save(tmp_path / "twelve.tif")
    file = (tmp_path / "twelve.tif").read_bytes()
    bits = struct.pack("<HHIHH", 258, 3, 1, 16, 0)
    assert file.count(bits) == 1
    (tmp_path / "twelve.tif").write_bytes(file.replace(bits, struct.pack("<HHIHH", 258, 3, 1, 12, 0)))
    assert pixel(open_rgb(tmp_path / "twelve.tif"))[0] == 128
    Image.fromarray(full).save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    (tmp_path / "own.pgm").write_bytes(b"P5 8 8 4095\n" + half.byteswap().tobytes())
    assert pixel(open_rgb(tmp_path / "inverted.tif")) == (0, 0, 0)
    assert pixel(open_rgb(tmp_path / "own.pgm"))[0] == 128


def test_colours_of_16_bits_are_warned_of_or_refused_as_pillow_cuts_them(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + np.full(24, 2048, ">u2").tobytes() for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.warns(UserWarning, match="a quarter of its range"):
        assert pixel(open_rgb(tmp_path / "deep.png")) == (8, 8, 8)
    with pytest.raises(ImageError, match=r"deep\.png.*16 bits"):
        open_rgb(tmp_path / "deep.png", (0, 4095))


def quarters() -> Image.Image:
    """Twelve wide, eight high: red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (12, 8), WHITE)
    image.paste(RED, (0, 0, 6, 4))
    image.paste(GREEN, (6, 0, 12, 4))
    image.paste(BLUE, (0, 4, 6, 8))
    return image


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    w, h = image.size
    return [pixel(image, x, y) for y in (0, h - 1) for x in (0, w - 1)]


@pytest.mark.parametrize(
    ("orientation", "size", "expected"),
    [
        (1, (12, 8), [RED, GREEN, BLUE, WHITE]),
        (3, (12, 8), [WHITE, BLUE, GREEN, RED]),
        (6, (8, 12), [BLUE, RED, WHITE, GREEN]),  # shown turned by 90 degrees clockwise
        (8, (8, 12), [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_a_photograph_stands_upright(
    tmp_path: Path, orientation: int, size: tuple[int, int], expected: list[tuple[int, int, int]]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    opened = saved(tmp_path, quarters(), exif=exif)
    assert (opened.size, corners(opened)) == (size, expected)
    with Image.open(tmp_path / "image.png") as handed_in:  # the same for a PIL image of the user's
        assert corners(load_images([handed_in])[0]) == expected
