"""Ten colour photographs from the wheels of scikit-image and scikit-learn, and random crops of them."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from elude_nb._util.checks import check_choice
from elude_nb.data.decode import open_rgb
from elude_nb.errors import ImageError

PHOTOGRAPHS: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
"""Label, package and file of each."""


class Crop(NamedTuple):
    """A part of a photograph, in pixels."""

    label: str
    left: int
    top: int
    width: int
    height: int
    mirrored: bool


def photograph(label: str) -> Image.Image:
    """Return a copy of one of the ten whole photographs by its label, such as ``"astronaut"``; see ``PHOTOGRAPHS``.

    Raises
    ------
    ValueError
        If there is none of that label.
    ImageError
        If the package that holds it is not installed.
    """
    return _read_photograph(check_choice("label", label, PHOTOGRAPHS)).copy()


def sample_crops(count: int, seed: int = 0) -> list[Crop]:
    """Draw crops of all photographs in turn: 8 to 60 % of the area, sides within 3:4 and 4:3, half of them mirrored."""
    return [_sample_crop(label, seed, index) for index, label in enumerate(islice(cycle(PHOTOGRAPHS), count))]


def open_crop(crop: Crop) -> Image.Image:
    """Return a crop as an image of its own."""
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    patch = _read_photograph(crop.label).crop(box)
    return ImageOps.mirror(patch) if crop.mirrored else patch


def factors_of_crops(crops: list[Crop]) -> pd.DataFrame:
    """Return where in its photograph each crop lies: its centre and its area as shares, and whether it is mirrored."""
    table = pd.DataFrame(crops)
    whole = pd.DataFrame([_read_photograph(crop.label).size for crop in crops], columns=["width", "height"])
    return pd.DataFrame(
        {
            "photograph": table["label"],
            "x": (table["left"] + table["width"] / 2) / whole["width"],
            "y": (table["top"] + table["height"] / 2) / whole["height"],
            "area": table["width"] * table["height"] / (whole["width"] * whole["height"]),
            "mirrored": table["mirrored"],
        }
    )


@cache
def _read_photograph(label: str) -> Image.Image:
    """Return a photograph from the cache: crop or copy it, and never hand it out."""
    package, file = PHOTOGRAPHS[label]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImageError(f"The photograph {label!r} is part of the package {package!r}, which is not installed.")
    return open_rgb(Path(spec.origin).parent / file)


def _sample_crop(label: str, seed: int, index: int) -> Crop:
    # Every crop has a generator of its own, so that crop 7 is the same whatever the count.
    rng = np.random.default_rng([seed, index])
    photo_width, photo_height = _read_photograph(label).size
    area = rng.uniform(0.08, 0.6) * photo_width * photo_height
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(photo_width, round(float(np.sqrt(area * ratio))))
    height = min(photo_height, round(float(np.sqrt(area / ratio))))
    left, top = int(rng.integers(photo_width - width + 1)), int(rng.integers(photo_height - height + 1))
    return Crop(label, left, top, width, height, bool(rng.random() < 0.5))
