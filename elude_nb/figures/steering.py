"""Steering: what an edit does at each strength, whom it hits, and what an image is like before and after."""

from __future__ import annotations

import textwrap
from typing import Any, overload

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elude_nb._util.checks import check_count, check_kind
from elude_nb.figures.images import square_thumbnail
from elude_nb.figures.theme import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    YELLOW,
    Picture,
    diverging,
    drawing,
    handed_over,
    house_style,
    readable_on,
)
from elude_nb.interpret.neighbours import Neighbours
from elude_nb.steering.effects import Effect
from elude_nb.text.similarity import SimilarityEffect

_COLOURS = {
    "edit": BLUE,
    "random sub-units": ORANGE,
    "random concept": YELLOW,
    "same channels": GREY,
    "best channel": INK,
    "mean direction": GREEN,
    "SAE latent": RED,
}
_TILE = 1.1
_LEAST_DROP = 0.005


def dose_response(effect: Effect) -> Picture:
    """Show how far the probability of the true class falls with the strength of an edit and of its controls.

    At the left for the images of the class that is meant, at the right for all others (the mean over their classes).
    Strength 0 is the model as it is.
    """
    check_kind("effect", effect, Effect, "an Effect, from effect(...)")
    methods = list(dict.fromkeys(effect.curve["method"]))
    with house_style():
        picture = Picture(figsize=(8.4, 3.4))
        axes = picture.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
        for method in methods:
            rows = effect.curve[effect.curve["method"] == method].sort_values("strength")
            dose = [0.0, *rows["strength"]]
            style = {"color": _COLOURS.get(method, PURPLE), "linewidth": 2.4 if method == "edit" else 1.4}
            axes[0].plot(dose, [0, *(100 * rows["drop"])], marker="o", markersize=3, label=method, **style)
            axes[1].plot(dose, [0, *(100 * rows["others"])], marker="o", markersize=3, **style)
            if method == "edit":
                for place, prefix in zip(axes, ("", "others "), strict=True):
                    low, high = ([0, *(100 * rows[f"{prefix}{end}"])] for end in ("low", "high"))
                    place.fill_between(dose, low, high, color=BLUE, alpha=0.12)
        for place, title in zip(axes, (f"{effect.target}: the class meant", "all other classes, mean"), strict=True):
            place.set_title(title)
            place.axhline(0, color=FAINT, linewidth=0.8)
            place.set_xlabel("strength of the edit")
            place.grid(axis="y", color=FAINT, alpha=0.2)
        axes[0].set_ylabel("fall of the true class's\nprobability, points")
        picture.legend(loc="center left", bbox_to_anchor=(0.91, 0.5), fontsize=8)
    picture.alt = f"Fall of the probability of {effect.target} and of the others over strengths. {effect}"
    return picture


@overload
def side_effects(effect: Effect, *, axes: None = None) -> Picture: ...
@overload
def side_effects(effect: Effect, *, axes: Axes) -> Axes: ...
def side_effects(effect: Effect, *, axes: Axes | None = None) -> Picture | Axes:
    """Show for an edit and its controls at full strength the fall on the target, on the others, and on the worst hit.

    A good handle has a long first bar and short ones below. The specificity stands beside it where the drop is clear
    of nought. With ``axes`` it is drawn there; else a new picture is returned.
    """
    check_kind("effect", effect, Effect, "an Effect, from effect(...)")
    table = effect.table.iloc[::-1].reset_index(drop=True)
    places = np.arange(len(table))
    with drawing(axes, (7.6, 0.9 + 0.52 * len(table))) as place:
        bars = (("drop", 0.27, 1.0, f"{effect.target} (meant)"), ("others", 0.0, 0.55, "others, mean"))
        for column, shift, alpha, label in bars:
            colours = [_COLOURS.get(method, PURPLE) for method in table["method"]]
            place.barh(places + shift, 100 * table[column], height=0.25, color=colours, alpha=alpha, label=label)
        striped: Any = {"color": PAPER, "edgecolor": FAINT, "hatch": "////"}
        place.barh(places - 0.27, 100 * table["worst"], height=0.25, label="worst hit", **striped)
        place.hlines(places + 0.27, 100 * table["low"], 100 * table["high"], color=INK, linewidth=1)
        right = 100 * max(float(table[["drop", "high", "worst"]].max().max()), 0.01)
        for row, (_, values) in zip(places, table.iterrows(), strict=True):
            end = 100 * max(values["drop"], values["high"], 0)
            # A ratio of two noughts says nothing.
            text = f"specificity {values['specificity']:.1f}" if values["low"] > _LEAST_DROP else ""
            place.text(end + 0.02 * right, row + 0.27, text, va="center", fontsize=7.5, color=FAINT)
        place.set_yticks(places, [f"{m}\n{_short(d)}" for m, d in zip(table["method"], table["detail"], strict=True)])
        place.tick_params(axis="y", length=0, labelsize=8)
        place.axvline(0, color=FAINT, linewidth=0.8)
        place.set_xlim(right=1.25 * right)
        place.set_xlabel("fall of the true class's probability, points")
        handles: list[Any] = place.legend(loc="lower right", fontsize=8).legend_handles
        for handle in handles[:2]:
            handle.set_color(FAINT)
    alt = f"Bars of what an edit and its controls do to {effect.target} and to the others. {effect}"
    return handed_over(place, axes, alt)


@overload
def similarity_bars(effect: SimilarityEffect, *, axes: None = None) -> Picture: ...
@overload
def similarity_bars(effect: SimilarityEffect, *, axes: Axes) -> Axes: ...
def similarity_bars(effect: SimilarityEffect, *, axes: Axes | None = None) -> Picture | Axes:
    """Show by how much an edit and its controls moved similarities: within the target, across, and elsewhere.

    A good handle has a long first bar and short ones below. Lines are the intervals over inputs. With ``axes`` it is
    drawn there; else a new picture is returned.
    """
    table = effect.table.iloc[::-1].reset_index(drop=True)
    places = np.arange(len(table))
    looks = (
        ("within", 0.27, 1.0, f"two of {effect.target} (meant)"),
        ("across", 0.0, 0.6, f"one of {effect.target}, one other"),
        ("elsewhere", -0.27, 0.3, "two others"),
    )
    with drawing(axes, (7.6, 0.9 + 0.6 * len(table))) as place:
        for kind, shift, alpha, label in looks:
            colours = [_COLOURS.get(method, PURPLE) for method in table["method"]]
            place.barh(places + shift, table[kind], height=0.25, color=colours, alpha=alpha, label=label)
            place.hlines(places + shift, table[f"{kind}_low"], table[f"{kind}_high"], color=INK, linewidth=1)
        place.set_yticks(places, [f"{m}\n{_short(d)}" for m, d in zip(table["method"], table["detail"], strict=True)])
        place.tick_params(axis="y", length=0, labelsize=8)
        place.axvline(0, color=FAINT, linewidth=0.8)
        place.set_xlabel("change of the mean cosine similarity")
        above: Any = {"loc": "lower center", "bbox_to_anchor": (0.4, 1.0), "ncols": 3}  # bars may fill the axes
        handles: list[Any] = place.legend(fontsize=8, **above).legend_handles
        for handle in handles:
            handle.set_color(FAINT)
    alt = f"Bars of what an edit and its controls do to similarities. {effect}"
    return handed_over(place, axes, alt)


@overload
def class_drops(effect: Effect, *, axes: None = None) -> Picture: ...
@overload
def class_drops(effect: Effect, *, axes: Axes) -> Axes: ...
def class_drops(effect: Effect, *, axes: Axes | None = None) -> Picture | Axes:
    """Show the fall of each class's probability as a table in colours, one row a method.

    With ``axes`` it is drawn there; else a new picture is returned.
    """
    check_kind("effect", effect, Effect, "an Effect, from effect(...)")
    table = 100 * effect.by_class
    largest = max(float(table.abs().to_numpy().max()), 1e-9)
    with drawing(axes, (2.2 + 0.62 * table.shape[1], 1.1 + 0.34 * len(table))) as place:
        colours = diverging()
        place.imshow(table, cmap=colours, vmin=-largest, vmax=largest, aspect="auto")
        for row, values in enumerate(table.to_numpy()):
            for column, value in enumerate(values):
                colour = readable_on(colours(0.5 + 0.5 * value / largest))
                place.text(column, row, f"{value + 0:.0f}".replace("-0", "0"), ha="center", va="center", color=colour)
        place.set_yticks(range(len(table)), [str(name) for name in table.index])
        place.set_xticks(range(table.shape[1]), [str(name) for name in table.columns], rotation=35, ha="right")
        for label in place.get_xticklabels():
            label.set_fontweight("bold" if label.get_text() == effect.target else "normal")
        place.tick_params(length=0)
        place.spines[:].set_visible(False)
        place.set_title("fall of each class's probability, points")
    return handed_over(place, axes, f"Fall of each class's probability for {len(table)} methods; {effect}")


def neighbour_grid(neighbours: Neighbours, columns: int = 6) -> Picture:
    """Show an image and the nearest neighbours it has, one row as the model is and one for each edit."""
    check_kind("neighbours", neighbours, Neighbours, "what find_neighbours returns")
    check_count("columns", columns)
    names = list(neighbours.found)
    shown = min(columns, *(len(found) for found in neighbours.found.values()))
    label = 1.35 + 1.15 * _TILE  # the image and the names of the rows
    width, height = label + shown * _TILE, len(names) * (_TILE + 0.22)
    with house_style():
        picture = Picture(figsize=(width, height))
        side = 1.0 * _TILE
        query = picture.add_axes((0, 1 - (side + 0.2) / height, side / width, side / height))
        _tile(query, np.asarray(square_thumbnail(neighbours.image)), "the image")
        for row, name in enumerate(names):
            top = 1 - (row * (_TILE + 0.22) + 0.2) / height
            words = "\n".join(textwrap.wrap(name, 17))
            colour = INK if row == 0 else BLUE
            picture.text(1.25 * _TILE / width, top - 0.5 * _TILE / height, words, va="center", fontsize=9, color=colour)
            for column, number in enumerate(neighbours.found[name][:shown]):
                left = (label + column * _TILE) / width
                box = (left, top - 0.96 * _TILE / height, 0.96 * _TILE / width, 0.96 * _TILE / height)
                names_of = neighbours.among.labels or neighbours.among.names
                title = f"{names_of[number]} {neighbours.cosines[name][column]:.2f}"
                _tile(picture.add_axes(box), np.asarray(square_thumbnail(neighbours.among[number])), title)
    counts = neighbours.labels.to_dict("index")
    picture.alt = f"Nearest neighbours of an image, by edit: {counts}"
    return picture


@overload
def accuracy_bars(accuracies: pd.DataFrame, *, title: str = ..., axes: None = None) -> Picture: ...
@overload
def accuracy_bars(accuracies: pd.DataFrame, *, title: str = ..., axes: Axes) -> Axes: ...
def accuracy_bars(accuracies: pd.DataFrame, *, title: str = "", axes: Axes | None = None) -> Picture | Axes:
    """Show shares in [0, 1] as grouped bars: one group a row of the table, one bar a column, with the value on it.

    With ``axes`` they are drawn there; else a new picture is returned.
    """
    rows, columns = accuracies.shape
    colours = [SKY, RED, GREEN, PURPLE, YELLOW, ORANGE, BLUE]
    with drawing(axes, (1.6 + 1.2 * rows, 3.0)) as place:
        for number, name in enumerate(accuracies.columns):
            places = np.arange(rows) + (number - (columns - 1) / 2) * 0.8 / columns
            heights, colour = 100 * accuracies[name], colours[number % len(colours)]
            bars = place.bar(places, heights, width=0.74 / columns, color=colour, label=name)
            place.bar_label(bars, fmt="%.0f", fontsize=8, color=INK)
        wrapped = ["\n".join(textwrap.wrap(str(name), 14)) for name in accuracies.index]
        place.set_xticks(range(rows), wrapped, fontsize=8)
        place.set(ylim=(0, 118), ylabel="% right", title=title)
        place.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=8)
        place.tick_params(axis="x", length=0)
    return handed_over(place, axes, f"{title}: {accuracies.round(2).to_dict('index')}")


def _tile(place: Axes, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], title: str) -> None:
    place.imshow(image)
    place.set_title(title, fontsize=7.5, loc="center", pad=2)
    place.axis("off")


def _short(detail: str) -> str:
    return textwrap.shorten(detail, 34, placeholder=" ...")
