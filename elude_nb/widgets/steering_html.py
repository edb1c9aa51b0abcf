"""The pictures of the steering panel: images with their patches before and after, bars of classes, lines of doses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from elude_nb.figures.html import FULL, PALETTE, change_layer, pixels_uri
from elude_nb.figures.theme import words
from elude_nb.steering.live import Steered
from elude_nb.steering.patches import PatchColours
from elude_nb.widgets import parts

MOST_CLASSES = 8  # have a bar
COLOURS = "the first three principal components of the patches before, as red, green and blue"
NO_PATCHES = "This model has no patches after its last block, or does not say where they stand: no maps are drawn."
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 326, 8, 116  # of the chart of doses


def shown_images(
    shown: Sequence[tuple[Steered, Mapping[str, Any]]], colours: PatchColours | None, *, ratio: float, main: bool
) -> Markup:
    """Return each image (``picture``, ``alt``, ``label``) with what an edit did to it; ``ratio`` is width / height.

    ``main`` is for one that is shown large; below others stands what the colours mean.
    """
    rows = [_shown(steered, about, colours) for steered, about in shown]
    settings = {"ratio": f"{ratio:.4g}", "full": f"{FULL:g}", "colours": COLOURS, "main": main}
    return parts.fill("shown.html", shown=rows, why="" if colours or not main else NO_PATCHES, **settings)


def _shown(steered: Steered, about: Mapping[str, Any], colours: PatchColours | None) -> dict[str, Any]:
    made = {"chance": _chance(steered.probabilities, str(about["label"])), "moved": None, "layer": None, **about}
    distance = steered.distance
    if distance is None or steered.patches is None or colours is None:
        return made
    before, after = (pixels_uri(colours.encode(tokens).numpy()) for tokens in steered.patches)
    most = float(distance.max())
    row, column = divmod(int(distance.argmax()), distance.shape[1])
    where = f", most in row {row + 1}, column {column + 1} of {' x '.join(map(str, distance.shape))}" if most else ""
    said = f"where the patches of {about['alt']} changed: up to {most:.2f}{where}"
    layer = pixels_uri(change_layer(distance.float().numpy()))
    return {**made, "moved": most, "layer": layer, "layer_alt": said, "before": before, "after": after}


def _chance(probabilities: pd.DataFrame, label: str) -> str:
    """Return in words what became of the probability of an image's own class, or else of the likeliest."""
    if probabilities.empty:
        return ""
    own = label in probabilities.index
    name = label if own else str(probabilities["before"].idxmax())
    before, after = probabilities.loc[name, ["before", "after"]]
    return f"{'' if own else f'{words(name, 20)} '}{before:.2f} → {after:.2f}"


def probability_bars(table: pd.DataFrame) -> Markup:
    """Return the likeliest classes, before or after, with a bar for either; ``table`` has one row a class."""
    likeliest = table[["before", "after"]].max(axis=1).sort_values(ascending=False, kind="stable").index[:MOST_CLASSES]
    rows = [(name, float(table.loc[name, "before"]), float(table.loc[name, "after"])) for name in likeliest]
    return parts.fill("probabilities.html", rows=rows, colour=PALETTE[0], others=len(table) - len(rows))


def dose_chart(name: str, table: pd.DataFrame, strength: float, images: int) -> Markup:
    """Return what each class loses as a concept is faded, with a mark where its slider stands.

    Parameters
    ----------
    name
        What the concept is called.
    table
        From `elude_nb.steering.dose.DoseCurve`.
    strength
        Of the slider: 1 is dose 0.
    images
        How many were measured.
    """
    target = str(table["target"].iloc[0])
    values = 100 * table[["drop", "others", "worst"]]
    low, high = min(float(values.min().min()), 0.0), max(float(values.max().max()), 1.0)

    def x(dose: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * dose, 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low), 1)

    looks = (
        ("drop", words(target, 24), PALETTE[0], 3, ""),
        ("others", "the others, mean", "currentColor", 1.5, ""),
        ("worst", "the worst other", PALETTE[3], 1.5, "4 3"),
    )
    lines = [
        {
            "name": title,
            "colour": colour,
            "width": width,
            "dashes": dashes,
            "points": " ".join(
                f"{x(dose)},{y(value)}" for dose, value in zip(table["dose"], values[column], strict=True)
            ),
        }
        for column, title, colour, width, dashes in looks
    ]
    sentence = dose_in_words(table, 1 - strength)
    return parts.fill(
        "dose.html",
        name=name,
        why="",
        label=f"Loss of each class by dose. {dose_in_words(table, 1.0)}",
        ticks=[(value, y(value)) for value in _ticks(low, high)],
        doses=[(f"{100 * dose:g}", x(dose)) for dose in table["dose"]],
        at=x(1 - strength) if 0 <= strength <= 1 else None,
        lines=lines,
        sentence=sentence,
        note=f"A quick look on these {images} images, on which the class was chosen too; effect(...) has controls.",
    )


def _ticks(low: float, high: float) -> list[float]:
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100) if (high - low) / step <= 5 or step == 100)
    return [float(value) for value in np.arange(np.ceil(low / step) * step, high + 1e-9, step)]


def dose_in_words(table: pd.DataFrame, dose: float) -> str:
    """Return what the nearest measured dose does: to the class meant, to the others, to the worst of them."""
    if dose < 0:
        return "It is amplified; doses are measured of fading only."
    row = table.iloc[int((table["dose"] - dose).abs().argmin())]
    if row["dose"] == 0:
        return "Not faded: nothing is lost."
    drop, others, worst = (f"{-100 * float(row[column]):+z.1f}" for column in ("drop", "others", "worst"))
    return (
        f"Faded by {100 * float(row['dose']):g} %: {row['target']} {drop} points, the others {others} on the mean, "
        f"the worst ({row['worst_class']}) {worst}; specificity {float(row['specificity']):z.1f}"
    )
