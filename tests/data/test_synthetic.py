from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from elude_nb.data.images import load_images
from elude_nb.data.synthetic import COLOURS, SHAPES, SIDE, TEXTURES, draw_scene, sample_scenes

GROUND = (225, 225, 225)


def scene(shape: str = "circle", colour: str = "green", texture: str = "plain", **where: float) -> Image.Image:
    return draw_scene({"shape": shape, "colour": colour, "texture": texture, "size": 0.25, "x": 0.5, "y": 0.5} | where)


def share_drawn(image: Image.Image) -> float:
    """Share of the pixels that are not background."""
    distance = np.abs(np.asarray(image).astype(int) - GROUND).sum(2)
    return float((distance > 60).mean())


def test_factors_have_one_row_a_scene_and_only_known_values() -> None:
    table = sample_scenes(200, seed=0)
    assert list(table.columns) == ["shape", "colour", "texture", "size", "x", "y"]
    assert len(table) == 200
    assert set(table["shape"]) == set(SHAPES)
    assert set(table["colour"]) == set(COLOURS)
    assert set(table["texture"]) == set(TEXTURES)


def test_every_shape_stays_inside_the_picture() -> None:
    table = sample_scenes(2000, seed=1)
    assert table["size"].between(0.12, 0.32).all()
    for axis in ("x", "y"):
        assert (table[axis] - table["size"]).min() >= 0
        assert (table[axis] + table["size"]).max() <= 1


def test_factors_are_even_and_independent() -> None:
    table = sample_scenes(6000, seed=2)
    pairs = table.groupby(["shape", "colour"]).size()
    assert len(pairs) == 30
    assert pairs.min() > 140  # 200 expected, with a deviation of 14
    assert pairs.max() < 260
    assert abs(table["size"].corr(table["x"])) < 0.05


def test_factors_are_decided_by_their_seed() -> None:
    assert sample_scenes(9, seed=4).equals(sample_scenes(9, seed=4))
    assert not sample_scenes(9, seed=4).equals(sample_scenes(9, seed=5))


@pytest.mark.parametrize(("shape", "colour"), list(itertools.product(SHAPES, COLOURS)))
def test_a_plain_shape_shows_its_colour_at_its_centre_and_grey_around(shape: str, colour: str) -> None:
    image = scene(shape, colour, x=0.3, y=0.6)
    assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))
    assert image.getpixel((round(0.3 * SIDE), round(0.6 * SIDE))) == COLOURS[colour]
    for x, y in itertools.product((0, SIDE - 1), repeat=2):
        assert image.getpixel((x, y)) == GROUND


@pytest.mark.parametrize(
    ("shape", "area"),  # of a shape of radius 1, by hand
    [
        ("circle", np.pi),
        ("square", 2.0),
        ("triangle", 3 * np.sqrt(3) / 4),
        ("star", 10 * 0.5 * 0.45 * np.sin(np.pi / 5)),
        ("cross", 4 * 0.7 - 0.7**2),
    ],
)
def test_each_shape_covers_its_area(shape: str, area: float) -> None:
    assert share_drawn(scene(shape, "blue", size=0.3)) == pytest.approx(area * 0.3**2, rel=0.04)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_mirror_images_of_themselves(shape: str) -> None:
    drawn = np.abs(np.asarray(scene(shape, "blue")).astype(int) - GROUND).sum(2) > 60
    assert (drawn != drawn[:, ::-1]).mean() < 0.01
    top, bottom = drawn[: SIDE // 2].sum(), drawn[SIDE // 2 :].sum()
    if shape == "triangle":
        assert bottom > top  # it stands on its base


@pytest.mark.parametrize(("texture", "dark_share"), [("stripes", 0.5), ("checks", 0.5), ("dots", np.pi * 0.55**2 / 4)])
def test_a_texture_darkens_its_share_of_the_shape(texture: str, dark_share: float) -> None:
    pixels = np.asarray(scene("square", "orange", texture, size=0.45)).astype(int)
    inside = pixels[60:164, 60:164]  # well within the square's 80 to 143 x 2 pixels
    dark = np.abs(inside - np.array(COLOURS["orange"]) // 4).sum(2) < 60
    assert dark.mean() == pytest.approx(dark_share, abs=0.08)


def test_the_textures_differ_from_one_another() -> None:
    images = {texture: scene("square", "orange", texture).tobytes() for texture in TEXTURES}
    assert len(set(images.values())) == len(TEXTURES)


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(KeyError, match="hexagon"):
        scene("hexagon")


def test_the_image_set_and_its_table_tell_of_the_same_scenes() -> None:
    images = load_images("shapes", count=25, seed=3)
    table = images.factors
    assert table is not None
    assert table.equals(sample_scenes(25, seed=3))
    assert images.labels == tuple(table["shape"])
    for number, row in enumerate(table.to_dict("records")):
        image = images[number]
        assert image.tobytes() == images[number].tobytes()
        assert images.names[number] == f"{row['texture']} {row['colour']} {row['shape']} {number}"
        if row["texture"] == "plain":
            centre = round(row["x"] * SIDE), round(row["y"] * SIDE)
            assert image.getpixel(centre) == COLOURS[row["colour"]]
    assert len(load_images("shapes")) == 400


def test_another_seed_gives_other_scenes() -> None:
    first, second = (load_images("shapes", count=1, seed=seed)[0].tobytes() for seed in (0, 1))
    assert first != second


def test_a_square_stands_on_a_side() -> None:
    image = scene("square", "blue", size=0.3)  # its half side is 0.3 / sqrt(2) = 0.212
    for x, y in itertools.product((0.31, 0.69), repeat=2):
        assert image.getpixel((round(x * SIDE), round(y * SIDE))) == COLOURS["blue"]
    assert image.getpixel((SIDE // 2, round(0.26 * SIDE))) == GROUND
