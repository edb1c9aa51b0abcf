"""Drawn scenes whose factors are known: the ground truth that photographs do not have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageChops, ImageDraw

from elude_nb._util.checks import check_choice

SIDE = 224
_FINER = 3  # drawn this many times larger, then reduced: smooth edges

SHAPES = ("circle", "square", "triangle", "star", "cross")
TEXTURES = ("plain", "stripes", "dots", "checks")
COLOURS: dict[str, tuple[int, int, int]] = {  # of Okabe and Ito: most colour-blind people can distinguish them
    "orange": (230, 159, 0),
    "sky": (86, 180, 233),
    "green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "blue": (0, 114, 178),
    "red": (213, 94, 0),
}


def sample_scenes(count: int, seed: int = 0) -> pd.DataFrame:
    """Draw factors independently and evenly: one row a scene.

    Returns
    -------
    DataFrame
        ``shape``, ``colour``, ``texture``; ``size`` (radius) and ``x``, ``y`` (centre) as shares of the side.
    """
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.12, 0.32, count)
    return pd.DataFrame(
        {
            "shape": rng.choice(SHAPES, count),
            "colour": rng.choice(list(COLOURS), count),
            "texture": rng.choice(TEXTURES, count),
            "size": size,
            "x": size + rng.random(count) * (1 - 2 * size),  # the whole shape stays inside
            "y": size + rng.random(count) * (1 - 2 * size),
        }
    )


def swap_factor(scenes: pd.DataFrame, factor: str, seed: int = 0) -> pd.DataFrame:
    """Return the same scenes with one factor exchanged for another of its values, drawn evenly from the others.

    Parameters
    ----------
    scenes
        From `sample_scenes`.
    factor
        ``"shape"``, ``"colour"`` or ``"texture"``.
    seed
        Of the drawing.
    """
    values = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": TEXTURES}
    allowed = values[check_choice("factor", factor, values)]
    steps = np.random.default_rng(seed).integers(1, len(allowed), len(scenes))
    places = [allowed.index(value) for value in scenes[factor]]
    swapped = [allowed[(place + int(step)) % len(allowed)] for place, step in zip(places, steps, strict=True)]
    return scenes.assign(**{factor: swapped})


def draw_scene(factors: Mapping[str, Any]) -> Image.Image:
    """Draw one row of `sample_scenes` as an RGB image of 224 x 224 pixels on light grey."""
    side = SIDE * _FINER
    radius, x, y = (float(factors[name]) * side for name in ("size", "x", "y"))
    shape = Image.new("L", (side, side), 0)
    ImageDraw.Draw(shape).polygon([(x + radius * u, y + radius * v) for u, v in _outline(factors["shape"])], fill=255)
    colour = COLOURS[factors["colour"]]
    ink = Image.new("RGB", (side, side), colour)
    dark = Image.new("RGB", (side, side), tuple(channel // 4 for channel in colour))
    ink.paste(dark, mask=_texture(str(factors["texture"]), side))
    scene = Image.new("RGB", (side, side), (225, 225, 225))
    scene.paste(ink, mask=shape)
    return scene.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a shape of radius 1 around the origin."""
    if shape == "cross":
        a = 0.35
        arm = [(a, 1.0), (a, a), (1.0, a), (1.0, -a), (a, -a), (a, -1.0)]
        return [*arm, *[(-u, -v) for u, v in arm]]
    corners = {"circle": 90, "square": 4, "triangle": 3, "star": 10}[shape]
    turn = -math.pi / 4 if shape == "square" else -math.pi / 2
    return [
        (reach * math.cos(angle), reach * math.sin(angle))
        for k in range(corners)
        for reach in [0.45 if shape == "star" and k % 2 else 1.0]
        for angle in [turn + 2 * math.pi * k / corners]
    ]


def _texture(texture: str, side: int) -> Image.Image:
    """Return a mask (side, side) that is white where the darker ink goes."""
    step = side // 16
    stripes = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(stripes)
    if texture in {"stripes", "checks"}:
        for left in range(0, side, 2 * step):
            draw.rectangle((left, 0, left + step - 1, side), fill=255)
    if texture == "checks":  # stripes both ways, exclusive or
        return ImageChops.difference(stripes, stripes.transpose(Image.Transpose.ROTATE_90))
    if texture == "dots":
        r = step * 0.55
        for left in range(step, side, 2 * step):
            for top in range(step, side, 2 * step):
                draw.ellipse((left - r, top - r, left + r, top + r), fill=255)
    return stripes
