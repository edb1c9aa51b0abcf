"""A finished example, shown at once: nothing here imports torch or runs a model.

``docs/make_example.py`` makes the pictures and the table; a test says whether they are current.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from elude_nb._util.html import render

FOLDER = Path(__file__).parent / "dinov2_small"
_OPEN = 3  # channels that are open; the others open with a click


@dataclass(frozen=True)
class ExampleRow:
    """The images on which one unit of a channel activates most, of those that the discovery did not see.

    Attributes
    ----------
    unit
        The sub-unit's number; -1 is the whole channel.
    concept
        What the sub-unit's concept is called.
    labels
        What the images show, the highest activation first.
    similarity
        Mean pairwise cosine of these images' embeddings, -1 to 1; higher is more alike.
    copies
        How many sub-units of other channels mean the same.
    jpeg
        The images side by side, each cut out around the patch where the activation is highest.
    """

    unit: int
    concept: str
    labels: tuple[str, ...]
    similarity: float
    copies: int
    jpeg: bytes = field(repr=False)

    @property
    def title(self) -> str:
        """Return what the row is called, such as ``"sub-unit 3, rocket"``."""
        return "whole channel" if self.unit < 0 else f"sub-unit {self.unit}, {self.concept}"

    @property
    def contents(self) -> str:
        """Return what the images show, such as ``"rocket 4, cat 2"``."""
        return ", ".join(f"{label} {count}" for label, count in Counter(self.labels).most_common())

    @property
    def src(self) -> str:
        """Return the pictures as an address for ``<img>``."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")


@dataclass(frozen=True)
class ExampleChannel:
    """One channel before and after.

    Attributes
    ----------
    channel
        Its number.
    before, after, random
        Mean similarity of the ten best unseen images: of the channel, of its sub-units, and of random routes.
    sub_units
        How many sub-units it has; ``rows`` shows a few that are unlike each other.
    rest
        The share of the channel's variance in no sub-unit.
    rows
        The whole channel, then the sub-units.
    """

    channel: int
    before: float
    after: float
    random: float
    sub_units: int
    rest: float
    rows: tuple[ExampleRow, ...] = field(repr=False)

    @property
    def caption(self) -> str:
        """Return what came out, in words."""
        return (
            f"similarity {self.before:.2f} \N{RIGHTWARDS ARROW} {self.after:.2f} on unseen images; "
            f"random routes {self.random:.2f}"
        )


@dataclass(frozen=True)
class Example:
    """A finished example; as the last line of a cell it shows its pictures.

    Attributes
    ----------
    model, site, source
        What was split, and on which images.
    discovery, unseen
        How many images the discovery saw, and how many others the pictures and figures are of.
    images_of_score
        Of how many best images of each unit the similarity is.
    pictures, side, gap
        How many pictures a row has, the pixels of each and those between two.
    distinct
        How many of the channels repeat no better one; the others come after these.
    credits
        Who made photographs that may be shown if that is said.
    channels
        The channels that come apart best on unseen images.
    """

    model: str
    site: str
    source: str
    discovery: int
    unseen: int
    images_of_score: int
    pictures: int
    side: int
    gap: int
    distinct: int
    credits: dict[str, str] = field(repr=False)
    channels: tuple[ExampleChannel, ...] = field(repr=False)

    def __repr__(self) -> str:
        return f"Example({self.model} on the {self.source}: the {len(self.channels)} channels that come apart best)"

    def _repr_html_(self) -> str:
        return str(self.html())

    def html(self, note: str = "", *, most: int | None = None) -> Markup:
        """Return the pictures of the first ``most`` channels as HTML that needs no kernel, below a ``note``."""
        shown = self.channels[:most]
        return render("elude_nb.examples", "example.html", example=self, channels=shown, note=note, opened=_OPEN)


@cache
def example() -> Example:
    """Return a finished example: the 20 channels of DINOv2-S that come apart best on the photographs.

    It shows itself in a notebook at once; no model is loaded. ``docs/make_example.py`` made it.

    Examples
    --------
    >>> example()
    Example(dinov2-small on the photographs: the 20 channels that come apart best)
    >>> example().channels[0].caption  # doctest: +ELLIPSIS
    'similarity 0.06 ... random routes 0.26'
    """
    stored = json.loads((FOLDER / "example.json").read_text(encoding="utf-8"))
    recipe = stored["recipe"]
    return Example(
        model=recipe["model"],
        site=stored["site"],
        source=recipe["source"],
        **{name: stored[name] for name in ("discovery", "unseen", "images_of_score", "distinct", "credits")},
        **{name: recipe[name] for name in ("pictures", "side", "gap")},
        channels=tuple(map(_channel, stored["channels"])),
    )


def _channel(stored: dict[str, Any]) -> ExampleChannel:
    rows = tuple(
        ExampleRow(
            **{name: row[name] for name in ("unit", "concept", "similarity", "copies")},
            labels=tuple(row["labels"]),
            jpeg=(FOLDER / row["picture"]).read_bytes(),
        )
        for row in stored["rows"]
    )
    names = ("channel", "before", "after", "random", "sub_units", "rest")
    return ExampleChannel(**{name: stored[name] for name in names}, rows=rows)
